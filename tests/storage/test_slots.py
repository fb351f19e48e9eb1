"""Two slots: at every crash and under every single damage one whole value, or a clear refusal."""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairsync.errors import InternalError, MetadataError
from pairsync.storage.slots import DualSlot, SlotValue, decode_slot, encode_slot
from pairsync.testing.disks import PowerCut, SimMedium

SLOT_BYTES = 4096
KIND = 7


def _medium() -> SimMedium:
    medium = SimMedium()
    medium.create("f", 2 * SLOT_BYTES)
    return medium


def _slots(medium: SimMedium, *, mirrored: bool = False) -> DualSlot:
    return DualSlot(
        medium.open("f"), what="value", kind=KIND, offset=0, slot_bytes=SLOT_BYTES, mirrored=mirrored
    )


def _reopened(medium: SimMedium) -> tuple[bytes, tuple[str, ...]]:
    medium.process_crash()
    return _slots(medium).load()


@given(st.binary(max_size=5000), st.integers(0, (1 << 64) - 1))
def test_what_is_encoded_is_decoded(payload: bytes, sequence: int) -> None:
    raw = encode_slot(KIND, SlotValue(sequence, payload))
    assert len(raw) % 4096 == 0
    assert decode_slot(KIND, raw) == SlotValue(sequence, payload)
    assert decode_slot(KIND + 1, raw) is None


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_no_value(raw: bytes) -> None:
    assert decode_slot(KIND, raw) is None


def test_every_single_bit_is_vouched_for() -> None:
    payload = b"some value"
    raw = encode_slot(KIND, SlotValue(3, payload))
    for bit in range(8 * (48 + len(payload))):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        assert decode_slot(KIND, bytes(flipped)) is None


def _newer(version: int = 2) -> bytes:
    prefix = struct.pack("<8sI", b"PAIRSYNC", version)
    return prefix + struct.pack("<I", zlib.crc32(prefix)) + b"whatever a later version writes".ljust(4080)


def test_a_newer_version_is_refused_and_nothing_touched() -> None:
    medium = _medium()
    slots = _slots(medium)
    slots.format(b"one")
    medium.process_crash()
    handle = medium.open("f")
    handle.write(SLOT_BYTES, (_newer(),), durable=True)
    handle.close()
    before = medium.content("f")
    with pytest.raises(MetadataError, match=r"f: written by a newer version \(format 2, this one knows 1\)"):
        _slots(medium).load()
    assert medium.content("f") == before


def test_an_older_version_or_another_magic_is_no_value() -> None:
    assert decode_slot(KIND, _newer(0)) is None
    prefix = b"PAIRSYNK" + struct.pack("<I", 9)
    assert decode_slot(KIND, prefix + struct.pack("<I", zlib.crc32(prefix)) + bytes(4080)) is None


def test_neither_slot_whole_is_damage() -> None:
    medium = _medium()
    with pytest.raises(MetadataError, match="damaged: neither copy of the value"):
        _slots(medium).load()


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_newest_wins_and_the_older_is_overwritten(mirrored: bool) -> None:
    medium = _medium()
    slots = _slots(medium, mirrored=mirrored)
    slots.format(b"0")
    for number in range(1, 9):
        slots.store(b"%d" % number)
        assert _reopened(medium) == (b"%d" % number, ())
        medium.process_crash()
        slots = _slots(medium, mirrored=mirrored)
        slots.load()


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("stored", [0, 1, 2])
@pytest.mark.parametrize("damaged", [0, 1])
def test_one_damaged_slot(mirrored: bool, stored: int, damaged: int) -> None:
    medium = _medium()
    slots = _slots(medium, mirrored=mirrored)
    slots.format(b"0")
    for number in range(stored):
        slots.store(b"%d" % (number + 1))
    medium.damage("f", damaged * SLOT_BYTES + 48, 0x10)
    medium.process_crash()
    slots = _slots(medium, mirrored=mirrored)
    payload, notes = slots.load()
    newest = b"%d" % stored
    assert payload == newest if mirrored or stored == 0 else payload in (newest, b"%d" % (stored - 1))
    assert notes == (f"the value at {damaged * SLOT_BYTES} is torn or damaged; the other copy was used",)
    slots.store(b"next")  # goes over the damaged one
    assert _reopened(medium) == (b"next", ())


def test_both_slots_damaged() -> None:
    medium = _medium()
    slots = _slots(medium)
    slots.format(b"0")
    medium.damage("f", 3, 1)
    medium.damage("f", SLOT_BYTES + 3, 1)
    with pytest.raises(MetadataError, match="damaged"):
        _reopened(medium)


def test_a_value_too_long_is_our_own_bug() -> None:
    medium = _medium()
    slots = _slots(medium)
    slots.format(b"0")
    with pytest.raises(InternalError):
        slots.store(bytes(SLOT_BYTES))
    assert _reopened(medium) == (b"0", ())


def _store_three(medium: SimMedium, mirrored: bool, durable: list[bytes]) -> None:
    slots = _slots(medium, mirrored=mirrored)
    slots.load()
    for value in (b"1" * 600, b"2" * 1200, b"3" * 30):
        slots.store(value)
        durable.append(value)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_power_cut_at_every_step(mirrored: bool, every_outcome: Callable[..., int]) -> None:
    """After any cut: the last value whose `store` returned, or the one that was being stored."""
    values = [b"0", b"1" * 600, b"2" * 1200, b"3" * 30]

    def attempt(step: int | None) -> tuple[SimMedium, list[bytes]]:
        medium = _medium()
        slots = _slots(medium, mirrored=mirrored)
        slots.format(b"0")
        handle_durable = [b"0"]
        medium.process_crash()
        handle = medium.open("f")
        handle.flush()
        medium.process_crash()
        medium.step, medium.cut_at_step = 0, step
        with contextlib.suppress(PowerCut):
            _store_three(medium, mirrored, handle_durable)
        return medium, handle_durable

    def judge(medium: SimMedium, durable: list[bytes]) -> None:
        payload, _ = _slots(medium).load()
        allowed = {durable[-1], *values[len(durable) : len(durable) + 1]}
        assert payload in allowed

    assert every_outcome(attempt, judge) >= 20


@pytest.mark.parametrize("mirrored", [False, True])
def test_what_a_killed_process_has_left_is_settled_before_it_is_relied_on(
    mirrored: bool, every_outcome: Callable[..., int]
) -> None:
    """The value in the page cache may be torn on the disk: the other slot must stay until it is not."""
    killed, stored = b"1" * 1200, b"2" * 1200

    def attempt(step: int | None) -> tuple[SimMedium, list[bytes]]:
        medium = _medium()
        _slots(medium, mirrored=mirrored).format(b"0")
        medium.power_cut(lambda n: n - 1)
        slots = _slots(medium, mirrored=mirrored)
        slots.load()
        slots.settle()
        medium.step, medium.cut_at_step = 0, 1  # written, and not yet durable
        with contextlib.suppress(PowerCut):
            slots.store(killed)
        medium.process_crash()
        slots = _slots(medium, mirrored=mirrored)
        assert slots.load() == (killed, ())
        possible = [b"0", killed]
        medium.step, medium.cut_at_step = 0, step
        with contextlib.suppress(PowerCut):
            slots.settle()
            possible[:] = [killed, stored]
            slots.store(stored)
            possible[:] = [stored]
        return medium, possible

    def judge(medium: SimMedium, possible: list[bytes]) -> None:
        assert _slots(medium).load()[0] in possible

    assert every_outcome(attempt, judge) >= 10
