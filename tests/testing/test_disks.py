"""The simulated medium itself: what survives what, and that faults strike where they are told to."""

from __future__ import annotations

import errno
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairsync.core.messages import OpKind, WriteOp
from pairsync.errors import BackendError, BusyError, ClosedError, InternalError
from pairsync.storage import lane as lane_module
from pairsync.testing.disks import (
    SECTOR_BYTES,
    Fault,
    PowerCut,
    SimAction,
    SimDisk,
    SimLane,
    SimMedium,
    SimOperation,
)

SIZE = 5 * SECTOR_BYTES + 100


def _medium() -> SimMedium:
    medium = SimMedium()
    medium.create("f", SIZE)
    return medium


# -- what survives -------------------------------------------------------------------------------------------


def test_a_process_crash_keeps_everything_and_kills_the_handles() -> None:
    medium = _medium()
    file = medium.open("f")
    file.write(10, (b"hello",))
    medium.process_crash()
    with pytest.raises(ClosedError, match="has crashed"):
        file.read(0, 1)
    file.close()
    again = medium.open("f")
    assert again.read(9, 7) == b"\0hello\0"
    medium.power_cut(lambda _: 0)  # what the process crash kept was never flushed
    assert medium.content("f") == bytes(SIZE)


def test_flushed_and_durable_writes_survive() -> None:
    medium = _medium()
    file = medium.open("f")
    file.write(0, (b"a",))
    file.flush()
    file.write(SECTOR_BYTES, (b"b",), durable=True)
    file.write(2 * SECTOR_BYTES, (b"c",))
    assert medium.undecided() == [2]
    medium.power_cut(lambda _: 0)
    content = medium.content("f")
    assert [content[n * SECTOR_BYTES : n * SECTOR_BYTES + 1] for n in range(3)] == [b"a", b"b", b"\0"]


def test_a_durable_write_takes_only_its_own_sectors_along() -> None:
    medium = _medium()
    file = medium.open("f")
    file.write(0, (b"x" * SIZE,))
    file.write(SECTOR_BYTES + 5, (b"y" * SECTOR_BYTES,), durable=True)  # touches the second and the third
    medium.power_cut(lambda _: 0)
    expected = bytearray(b"x" * SIZE)
    expected[SECTOR_BYTES + 5 : 2 * SECTOR_BYTES + 5] = b"y" * SECTOR_BYTES
    expected[:SECTOR_BYTES] = bytes(SECTOR_BYTES)
    expected[3 * SECTOR_BYTES :] = bytes(SIZE - 3 * SECTOR_BYTES)
    assert medium.content("f") == expected


def test_every_content_that_a_sector_had_may_survive() -> None:
    outcomes: set[bytes] = set()
    for choice in range(4):
        medium = _medium()
        file = medium.open("f")
        for fill in (b"1", b"2", b"2", b"3"):
            file.write(0, (fill,))
        assert medium.undecided() == [4]  # the same content twice is no outcome of its own
        medium.power_cut(lambda _, choice=choice: choice)  # type: ignore[misc]
        assert medium.undecided() == []
        outcomes.add(medium.content("f")[:1])
    assert outcomes == {b"\0", b"1", b"2", b"3"}


def test_sectors_are_chosen_one_by_one() -> None:
    outcomes: set[tuple[bytes, bytes]] = set()
    for choice in itertools.product(range(2), repeat=2):
        medium = _medium()
        medium.open("f").write(SECTOR_BYTES - 1, (b"ab",))
        answers = iter(choice)
        medium.power_cut(lambda _, answers=answers: next(answers))  # type: ignore[misc]
        content = medium.content("f")
        outcomes.add((content[SECTOR_BYTES - 1 : SECTOR_BYTES], content[SECTOR_BYTES : SECTOR_BYTES + 1]))
    assert len(outcomes) == 4


@given(st.data())
def test_without_a_crash_it_is_memory(data: st.DataObject) -> None:
    medium = _medium()
    file = medium.open("f")
    oracle = bytearray(SIZE)
    for _ in range(data.draw(st.integers(0, 10))):
        at = data.draw(st.integers(0, SIZE))
        length = data.draw(st.integers(0, SIZE - at))
        match data.draw(st.sampled_from(SimAction)):
            case SimAction.WRITE:
                fill = bytes([data.draw(st.integers(1, 255))]) * length
                file.write(at, (fill[:7], fill[7:]), durable=data.draw(st.booleans()))
                oracle[at : at + length] = fill
            case SimAction.ZERO:
                file.zero(at, length, keep_space=False)
                oracle[at : at + length] = bytes(length)
            case SimAction.FLUSH:
                file.flush()
            case SimAction.READ:
                assert file.read(at, length) == oracle[at : at + length]
    assert medium.content("f") == oracle
    medium.power_cut(lambda n: n - 1)
    assert medium.content("f") == oracle


def test_allocation() -> None:
    medium = SimMedium()
    medium.create("big", 5 * 4096 + 10)
    file = medium.open("big")
    file.write(4096 + 7, (b"x",))
    assert file.allocation(0, 5 * 4096 + 10) == [(4096, True), (4096, False), (3 * 4096 + 10, True)]
    assert file.allocation(5000, 4096) == [(8192 - 5000, False), (5000 - 4096, True)]


def test_damage_is_durable() -> None:
    medium = _medium()
    file = medium.open("f")
    file.write(0, (b"\x0f",))
    medium.damage("f", 0, 0xF0)
    assert medium.content("f")[0] == 0xFF
    medium.power_cut(lambda _: 0)
    assert medium.content("f")[0] == 0xF0


# -- cut points and faults -----------------------------------------------------------------------------------


def test_steps_and_cut_points() -> None:
    def work(medium: SimMedium) -> None:
        file = medium.open("f")
        file.write(0, (b"a",))
        file.write(SECTOR_BYTES, (b"b",), durable=True)
        file.flush()
        file.zero(0, 1, keep_space=False)

    medium = _medium()
    work(medium)
    assert medium.step == 1 + 2 + 2 + 1
    undecided = []
    for step in range(6):
        medium = _medium()
        medium.cut_at_step = step
        with pytest.raises(PowerCut):
            work(medium)
        assert medium.step == step
        undecided.append(len(medium.undecided()))
    # issued a; issued b; b is durable; about to flush a; flushed; issued the zeroes
    assert undecided == [1, 2, 1, 1, 0, 1]


def test_faults() -> None:
    medium = _medium()
    file = medium.open("f")
    file.write(0, (b"old" * 10,), durable=True)
    seen: list[SimOperation] = []
    faults = {
        SimAction.READ: Fault(),
        SimAction.WRITE: Fault(errno.ENOSPC, done_bytes=2),
        SimAction.ZERO: Fault(errno.EIO, done_bytes=1),
        SimAction.FLUSH: Fault(errno.EIO),
    }

    def strike(operation: SimOperation) -> Fault:
        seen.append(operation)
        return faults[operation.action]

    medium.fault = strike
    for call, number in (
        (lambda: file.read(0, 3), errno.EIO),
        (lambda: file.write(6, (b"NEW",)), errno.ENOSPC),
        (lambda: file.zero(0, 3, keep_space=True), errno.EIO),
        (file.flush, errno.EIO),
    ):
        with pytest.raises(BackendError, match="f: ") as caught:
            call()
        assert caught.value.errno == number
    assert [(op.name, op.action, op.offset, op.length) for op in seen] == [
        ("f", SimAction.READ, 0, 3),
        ("f", SimAction.WRITE, 6, 3),
        ("f", SimAction.ZERO, 0, 3),
        ("f", SimAction.FLUSH, 0, 0),
    ]
    medium.fault = None
    assert file.read(0, 12) == b"\0ldoldNEdold"
    assert medium.undecided() == [3]  # a failed flush made nothing durable


def test_files() -> None:
    medium = _medium()
    with pytest.raises(InternalError):
        medium.create("f", 1)
    with pytest.raises(BackendError, match="No such file"):
        medium.open("g")
    file = medium.open("f")
    with pytest.raises(BusyError):
        medium.open("f")
    with pytest.raises(BackendError, match="ends outside"):
        file.write(SIZE, (b"x",))
    file.close()
    file.close()
    with pytest.raises(ClosedError):
        file.read(0, 1)
    again = medium.open("f")
    assert again.cached is not False
    again.cached = False
    assert not again.read_nowait(0, memoryview(bytearray(1)))
    medium.remove("f")
    with pytest.raises(BackendError, match="vanished"):
        again.flush()
    again.close()
    assert medium.names() == []


def test_a_disk_is_made_once() -> None:
    medium = SimMedium()
    disk = SimDisk(medium, "vda", 4096)
    disk.apply([WriteOp(OpKind.DATA, 1, 2, b"ab")])
    disk.close()
    again = SimDisk(medium, "vda", 9999)
    assert again.size_bytes == 4096
    assert not again.may_block
    assert medium.content("vda")[:4] == b"\0ab\0"


# -- the lane ------------------------------------------------------------------------------------------------


async def test_a_lane_runs_when_told() -> None:
    lane = SimLane()
    await lane.serve()
    order: list[object] = []

    def first() -> int:
        order.append("one")
        return 1

    lane.submit(first, order.append)
    lane.submit(lambda: 1 // 0, order.append)
    assert lane.backlog == 2
    assert order == []
    assert lane.step()
    assert order == ["one", 1]
    assert lane.run_all() == 1
    assert isinstance(order[2], ZeroDivisionError)
    assert not lane.step()
    lane.submit(lambda: 5, order.append)
    await lane.aclose()
    assert order[-1] == 5
    with pytest.raises(ClosedError):
        lane.submit(int, order.append)


def test_a_hanging_operation_completes_never() -> None:
    medium = SimMedium()
    disk = SimDisk(medium, "vda", 4096)
    lane = SimLane()
    reported: list[object] = []
    medium.fault = lambda op: Fault(hang=True) if op.action is SimAction.FLUSH else None
    lane.submit(lambda: disk.apply([WriteOp(OpKind.DATA, 0, 1, b"x")]), reported.append)
    lane.submit(disk.flush, reported.append)
    lane.submit(int, reported.append)
    assert lane.run_all() == 1
    assert lane.hung
    assert lane.backlog == 2
    assert not lane.step()
    assert reported == [None]
    lane.crash()
    assert lane.backlog == 0


def test_a_lane_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    lane = SimLane()
    for _ in range(lane_module.LANE_JOBS_MAX):
        lane.submit(int, lambda _: None)
    with pytest.raises(BusyError):
        lane.submit(int, lambda _: None)
