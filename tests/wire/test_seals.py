"""Seals: records open once, in order, on their own lane and direction, unchanged; or not at all."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairsync.errors import InternalError, ProtocolError
from pairsync.wire.limits import (
    RECORD_BYTES_MAX,
    RECORD_HEADER_BYTES,
    RECORD_PLAINTEXT_BYTES_MAX,
    TAG_BYTES,
)
from pairsync.wire.seals import (
    LENGTH_BYTES,
    LaneSecrets,
    Opener,
    Sealer,
    derive_lane_secrets,
    record_length,
)

SECRET = bytes(range(32))
INPUTS = {
    "version": 1,
    "session_id": b"s" * 16,
    "lane_id": b"l" * 16,
    "dialer_fingerprint": b"d" * 32,
    "listener_fingerprint": b"r" * 32,
    "dialer_secret": b"1" * 32,
    "listener_secret": b"2" * 32,
}


def seal(sealer: Sealer, plaintext: bytes) -> bytes:
    out = memoryview(bytearray(LENGTH_BYTES + len(plaintext) + TAG_BYTES))
    assert sealer.seal(plaintext, out) == len(out)
    assert record_length(out[:LENGTH_BYTES]) == len(out) - LENGTH_BYTES
    return bytes(out)


def body(sealed: bytes) -> memoryview:
    return memoryview(sealed)[LENGTH_BYTES:]


def record(text: bytes) -> bytes:
    return text.ljust(RECORD_HEADER_BYTES, b".")


@given(st.lists(st.binary(min_size=RECORD_HEADER_BYTES, max_size=300), max_size=6))
def test_records_open_in_order(plaintexts: list[bytes]) -> None:
    sealer, opener = Sealer(SECRET), Opener(SECRET)
    for plaintext in plaintexts:
        sealed = seal(sealer, plaintext)
        assert plaintext not in sealed
        assert opener.open(body(sealed)) == plaintext


def test_an_opened_record_has_a_buffer_of_its_own() -> None:
    sealer, opener = Sealer(SECRET), Opener(SECRET)
    ciphertext = bytearray(body(seal(sealer, record(b"first"))))
    first = opener.open(memoryview(ciphertext))
    ciphertext[:] = bytes(len(ciphertext))
    assert first == record(b"first")
    assert first.readonly


@pytest.mark.parametrize("position", [0, 7, RECORD_HEADER_BYTES, -1])
def test_a_changed_byte_is_refused(position: int) -> None:
    sealed = bytearray(seal(Sealer(SECRET), record(b"text")))[LENGTH_BYTES:]
    sealed[position] ^= 1
    with pytest.raises(ProtocolError, match="fails its seal"):
        Opener(SECRET).open(memoryview(sealed))


def test_replay_reorder_and_omission_are_refused() -> None:
    sealer = Sealer(SECRET)
    first, second = seal(sealer, record(b"first")), seal(sealer, record(b"second"))
    replayed, reordered = Opener(SECRET), Opener(SECRET)
    replayed.open(body(first))
    with pytest.raises(ProtocolError):
        replayed.open(body(first))
    with pytest.raises(ProtocolError):
        reordered.open(body(second))


def test_a_cut_record_is_refused() -> None:
    sealed = seal(Sealer(SECRET), record(b"a longer text than a head"))
    with pytest.raises(ProtocolError, match="fails its seal"):
        Opener(SECRET).open(body(sealed)[:-1])
    with pytest.raises(ProtocolError, match="its tag alone"):
        Opener(SECRET).open(body(sealed)[: TAG_BYTES - 1])


def test_lengths_are_judged_before_use() -> None:
    smallest = RECORD_HEADER_BYTES + TAG_BYTES
    assert record_length(smallest.to_bytes(4, "big")) == smallest
    assert record_length(RECORD_BYTES_MAX.to_bytes(4, "big")) == RECORD_BYTES_MAX
    for length in (0, smallest - 1, RECORD_BYTES_MAX + 1, 0xFFFFFFFF):
        with pytest.raises(ProtocolError, match="announced"):
            record_length(length.to_bytes(4, "big"))


def test_a_record_outside_the_limits_is_not_sealed() -> None:
    for size in (RECORD_HEADER_BYTES - 1, RECORD_PLAINTEXT_BYTES_MAX + 1):
        with pytest.raises(InternalError, match="outside the limits"):
            Sealer(SECRET).seal(bytes(size), memoryview(bytearray(RECORD_BYTES_MAX + 8)))


def test_both_ends_step_to_the_next_key_at_the_same_record() -> None:
    few = RECORD_PLAINTEXT_BYTES_MAX
    sealer, opener = Sealer(SECRET, key_bytes_max=few), Opener(SECRET, key_bytes_max=few)
    stale = Opener(SECRET)  # one that never steps
    plaintext = bytes(few // 2)
    openings = []
    for _ in range(5):
        sealed = seal(sealer, plaintext)
        assert opener.open(body(sealed)) == plaintext
        try:
            stale.open(body(sealed))
        except ProtocolError:
            openings.append(False)
        else:
            openings.append(True)
    assert openings == [True, True, False, False, False]


def test_keys_step_by_records_too() -> None:
    sealer, opener = Sealer(SECRET, key_records_max=1), Opener(SECRET, key_records_max=1)
    sealed = [seal(sealer, record(b"same")) for _ in range(3)]
    assert len(set(sealed)) == 3
    assert [bytes(opener.open(body(one))) for one in sealed] == [record(b"same")] * 3


def test_a_key_that_serves_no_record_is_refused() -> None:
    with pytest.raises(InternalError, match="lane key"):
        Sealer(SECRET, key_bytes_max=RECORD_PLAINTEXT_BYTES_MAX - 1)


def test_secrets_depend_on_everything_and_differ_by_direction() -> None:
    base = derive_lane_secrets(**INPUTS)  # type: ignore[arg-type]  # a table of keyword arguments
    found = [base.from_dialer, base.from_listener]
    for name, value in INPUTS.items():
        changed = {**INPUTS, name: 2 if isinstance(value, int) else bytes([value[0] ^ 1]) + value[1:]}  # type: ignore[index]
        other = derive_lane_secrets(**changed)  # type: ignore[arg-type]
        found += [other.from_dialer, other.from_listener]
    assert len(set(found)) == len(found) == 2 * (len(INPUTS) + 1)


def test_secrets_are_not_shown() -> None:
    secrets = LaneSecrets(b"x" * 32, b"y" * 32)
    assert "xx" not in repr(secrets)
    assert [field.name for field in dataclasses.fields(secrets)] == ["from_dialer", "from_listener"]


@pytest.mark.parametrize("name", [name for name, value in INPUTS.items() if isinstance(value, bytes)])
def test_inputs_of_another_length_are_refused(name: str) -> None:
    with pytest.raises(InternalError, match="bytes, not"):
        derive_lane_secrets(**{**INPUTS, name: b"short"})  # type: ignore[arg-type]


@given(st.binary(max_size=100))
def test_arbitrary_bytes_do_not_open(sealed: bytes) -> None:
    with pytest.raises(ProtocolError):
        Opener(SECRET).open(memoryview(sealed))
