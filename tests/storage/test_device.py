"""What every `Device` keeps, against an oracle of bytes: on a disk, in memory, and simulated."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairsync.core.messages import OpKind, WriteOp
from pairsync.storage.device import Device
from pairsync.storage.file import create_volume, open_volume
from pairsync.testing.disks import SimDisk, SimMedium

SIZE = 5_100  # not a multiple of 4096, nor of 512


def _op(kind: OpKind, offset: int, length: int, fill: int, fua: bool) -> WriteOp:
    data = bytes([fill]) * length if kind is OpKind.DATA else None
    return WriteOp(kind, offset, length, data, fua)


@st.composite
def op_batches(draw: st.DrawFn) -> list[WriteOp]:
    """Batches in which neighbours touch often."""
    ops: list[WriteOp] = []
    at = 0
    for _ in range(draw(st.integers(1, 8))):
        if draw(st.booleans()):
            at = draw(st.integers(0, SIZE))
        length = draw(st.sampled_from([0, 1, 100, 511, 512, 4096, 5000]))
        length = min(length, SIZE - at)
        ops.append(
            _op(draw(st.sampled_from(OpKind)), at, length, draw(st.integers(1, 255)), draw(st.booleans()))
        )
        at += length
    return ops


def _apply_to_oracle(oracle: bytearray, ops: list[WriteOp]) -> None:
    for op in ops:
        oracle[op.offset : op.offset + op.length] = op.data if op.data is not None else bytes(op.length)


def _read_all(device: Device) -> bytes:
    buffer = bytearray(device.size_bytes)
    device.read_into(0, memoryview(buffer))
    return bytes(buffer)


@pytest.fixture(scope="module", params=["disk", "memory", "simulated"])
def device(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], Device]]:
    """Makes an empty device of `SIZE` bytes; the one before is closed."""
    directory = tmp_path_factory.mktemp("device")
    if request.param == "memory":
        directory = Path("/dev/shm") / f"pairsync-test-file-{os.getpid()}"
        directory.mkdir()
    current: list[Device] = []

    def make() -> Device:
        while current:
            current.pop().close()
        if request.param == "simulated":
            current.append(SimDisk(SimMedium(), "vda", SIZE))
        else:
            path = directory / "vda"
            path.unlink(missing_ok=True)
            create_volume(path, SIZE)
            current.append(open_volume(path, SIZE))
        return current[-1]

    yield make
    while current:
        current.pop().close()
    (directory / "vda").unlink(missing_ok=True)
    directory.rmdir()


@given(batches=st.lists(op_batches(), max_size=6))
def test_the_device_holds_what_the_oracle_holds(
    device: Callable[[], Device], batches: list[list[WriteOp]]
) -> None:
    raw = device()
    oracle = bytearray(SIZE)
    for ops in batches:
        raw.apply(ops)
        _apply_to_oracle(oracle, ops)
        assert _read_all(raw) == oracle
    raw.flush()
    runs = raw.allocation(0, SIZE)
    assert sum(length for length, _ in runs) == SIZE
    at = 0
    for length, is_hole in runs:
        assert not is_hole or not any(oracle[at : at + length])
        at += length


# -- durability ----------------------------------------------------------------------------------------------


@given(batches=st.lists(st.tuples(op_batches(), st.booleans()), max_size=5), data=st.data())
def test_a_power_cut_keeps_fua_and_what_was_flushed(
    batches: list[tuple[list[WriteOp], bool]], data: st.DataObject
) -> None:
    medium = SimMedium()
    disk = SimDisk(medium, "vda", SIZE)
    may_hold: list[set[int]] = [{0} for _ in range(SIZE)]  # what each byte may be after a power cut
    for ops, flush in batches:
        disk.apply(ops)
        for op in ops:
            fill = op.data[0] if op.data else 0
            for at in range(op.offset, op.offset + op.length):
                may_hold[at] = {fill} if op.fua else may_hold[at] | {fill}
        if flush:
            disk.flush()
            may_hold = [{byte} for byte in _read_all(disk)]
    rng = data.draw(st.randoms(use_true_random=False))
    medium.power_cut(rng.randrange)
    survived = medium.content("vda")
    assert all(survived[at] in may_hold[at] for at in range(SIZE))
