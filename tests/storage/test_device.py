"""What every `Device` keeps, against an oracle of bytes: on a disk, in memory, and simulated."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.storage.oracle import apply_to_oracle, op_batches, read_all

from pairsync.core.messages import WriteOp
from pairsync.storage.device import Device
from pairsync.storage.file import create_volume, open_volume
from pairsync.testing.disks import SimDisk, SimMedium

SIZE = 5_100  # not a multiple of 4096, nor of 512


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


@given(batches=st.lists(op_batches(SIZE), max_size=6))
def test_the_device_holds_what_the_oracle_holds(
    device: Callable[[], Device], batches: list[list[WriteOp]]
) -> None:
    raw = device()
    oracle = bytearray(SIZE)
    for ops in batches:
        raw.apply(ops)
        apply_to_oracle(oracle, ops)
        assert read_all(raw) == oracle
    raw.flush()
    runs = raw.allocation(0, SIZE)
    assert sum(length for length, _ in runs) == SIZE
    at = 0
    for length, is_hole in runs:
        assert not is_hole or not any(oracle[at : at + length])
        at += length


# -- durability ----------------------------------------------------------------------------------------------


@given(batches=st.lists(st.tuples(op_batches(SIZE), st.booleans()), max_size=5), data=st.data())
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
            may_hold = [{byte} for byte in read_all(disk)]
    rng = data.draw(st.randoms(use_true_random=False))
    medium.power_cut(rng.randrange)
    survived = medium.content("vda")
    assert all(survived[at] in may_hold[at] for at in range(SIZE))
