"""Performing: the right lane, the given order, one report each, and no recursion."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from pairsync.core.effects import (
    Apply,
    Complete,
    DiskFailed,
    DropSession,
    Effect,
    Emit,
    Flush,
    Journal,
    MapAllocation,
    Persist,
    Read,
    SavePages,
    Send,
)
from pairsync.core.events import AloneEvent, Event
from pairsync.core.limits import VolumeOptions
from pairsync.core.messages import BarrierDone, Condition, Generation, Message, OpKind, WriteOp
from pairsync.core.session import Session
from pairsync.core.superblock import Superblock
from pairsync.core.units import BLOCK_BYTES, MIB, Extent
from pairsync.errors import BackendError, ClosedError, InternalError
from pairsync.guest.config import VolumeConfig
from pairsync.guest.performer import Lanes, Performer
from pairsync.guest.replica import Replica, create_replica, open_replica
from pairsync.io.link import Link
from pairsync.storage.lane import start_lane
from pairsync.testing.disks import SimLane

PAIR = b"p" * 16
NOW_NS = 1234
EVENT = AloneEvent("vda", "1.2/03")


class _Script:
    """In the place of the session machine: hands out bundles, and notes what is reported."""

    def __init__(self) -> None:
        self.targets: list[object] = []  # as of an active host
        self.bundles: list[list[Effect]] = []
        self.reports: list[tuple[Any, ...]] = []
        self.on_report: Callable[[], None] = lambda: None

    def take(self) -> list[Effect]:
        return self.bundles.pop(0) if self.bundles else []

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name not in {
            *("applied", "journaled", "saved", "persisted", "flushed"),
            *("mapped", "read_done", "read_failed", "dropped"),
        }:
            raise AttributeError(name)

        def report(*arguments: object) -> None:
            if arguments[-1] != NOW_NS:
                raise InternalError("a report without the time")
            self.reports.append((name, *arguments[:-1]))
            self.on_report()

        return report


class _Wire:
    """In the place of the link."""

    def __init__(self) -> None:
        self.session: object | None = object()
        self.sent: list[list[Message]] = []
        self.dropped: list[str] = []

    def send(self, messages: Sequence[Message]) -> None:
        self.sent.append(list(messages))

    def drop_session(self, reason: str) -> None:
        self.dropped.append(reason)


class _Stage:
    """A performer with all that it acts on."""

    def __init__(self, directory: Path) -> None:
        path = directory / "vda.img"
        create_replica(path, name="vda", pair_id=PAIR, volume_id=b"v" * 16, size_bytes=MIB)
        self.replica: Replica = open_replica(VolumeConfig("vda", path, VolumeOptions()), PAIR)
        self.lanes = Lanes(SimLane(), SimLane(), SimLane())
        self.script = _Script()
        self.wire = _Wire()
        self.events: list[Event] = []
        self.failures: list[tuple[int, str]] = []
        self.moved = 0
        self.performer = Performer(
            cast("Session", self.script),
            [self.replica],
            [self.lanes],
            self.events.append,
            lambda: None,
            lambda volume, reason: self.failures.append((volume, reason)),
            lambda: NOW_NS,
            self._move,
        )
        self.performer.link = cast("Link", self.wire)

    def _move(self) -> None:
        self.moved += 1

    def perform(self, *effects: Effect) -> None:
        self.script.bundles.append(list(effects))
        assert self.performer.perform()

    def backlog(self) -> tuple[int, int, int]:
        return self.lanes.data.backlog, self.lanes.meta.backlog, self.lanes.side.backlog

    def run_lanes(self) -> None:
        for lane in (self.lanes.data, self.lanes.meta, self.lanes.side):
            cast("SimLane", lane).run_all()


@pytest.fixture
def stage(tmp_path: Path) -> _Stage:
    return _Stage(tmp_path)


def _message(number: int) -> Message:
    return BarrierDone(0, number)


def _write(offset: int, content: bytes) -> WriteOp:
    return WriteOp(OpKind.DATA, offset, len(content), content)


def test_each_effect_goes_to_its_lane_and_is_reported_once(stage: _Stage) -> None:
    block = stage.replica.setup.superblock
    stage.performer._replicas[0].store.release_segment(0)
    stage.performer._replicas[0].store.open_segment(0, 5)
    stage.perform(
        Apply(0, "a", [_write(0, b"x" * BLOCK_BYTES)]),
        Read(0, 7, [Extent(0, 1)], MIB),
        Journal(0, "j", 0, 5, [Extent(0, 1)]),
        SavePages(0, "s", {}, ()),
        Persist(0, "p", block),
        Flush(0, "f"),
        MapAllocation(0, "m"),
    )
    assert stage.backlog() == (2, 3, 2)
    assert stage.script.reports == []
    stage.run_lanes()
    assert [report[0] for report in stage.script.reports] == [
        *("applied", "read_done"),
        *("journaled", "saved", "persisted"),
        *("flushed", "mapped"),
    ]
    by_name = {report[0]: report[1:] for report in stage.script.reports}
    assert by_name["applied"] == (0, "a", None)
    volume, number, found = by_name["read_done"]
    assert (volume, number, found.covered) == (0, 7, [Extent(0, 1)])
    assert bytes(found.ops[0].data) == b"x" * BLOCK_BYTES  # what was applied before it
    assert by_name["journaled"] == (0, "j", 0)
    assert by_name["saved"] == (0, "s", 0)
    assert by_name["persisted"] == (0, "p", 0)
    assert by_name["flushed"] == (0, "f", 0)
    assert by_name["mapped"] == (0, "m", [(0, 1)])
    assert stage.moved == 7


def test_messages_leave_together_but_never_overtake(stage: _Stage) -> None:
    order: list[str] = []
    stage.wire.send = lambda messages: order.append(f"send {len(messages)}")  # type: ignore[method-assign]
    stage.perform(
        Send([_message(1)]),
        Send([_message(2), _message(3)]),
        Complete(lambda errnos: order.append(f"done {errnos}"), None),
        Send([_message(4)]),
        Emit(EVENT),
    )
    assert order == ["send 3", "done None", "send 1"]
    assert stage.events == [EVENT]


def test_nothing_is_sent_without_a_session(stage: _Stage) -> None:
    stage.wire.session = None
    stage.perform(Send([_message(1)]))
    assert stage.wire.sent == []
    stage.performer.link = None
    stage.perform(Send([_message(2)]), DropSession("because", refused=False))
    assert stage.wire.sent == []


def test_bundles_are_performed_until_there_is_none(stage: _Stage) -> None:
    answered: list[int] = []
    stage.script.bundles = [
        [Complete(lambda _, number=number: answered.append(number), None)] for number in range(3)
    ]
    stage.perform()
    assert answered == [0, 1, 2]


def test_what_is_called_from_within_feeds_the_loop_that_runs(stage: _Stage) -> None:
    """An owner that submits more at once, a lane that works inline: no recursion, however long the chain."""
    depth = 0
    turns = 0

    def again(_: object) -> None:
        nonlocal depth, turns
        depth += 1
        assert depth == 1
        turns += 1
        if turns < 5000:
            stage.script.bundles.append([Complete(again, None)])
            assert not stage.performer.perform()
        depth -= 1

    stage.perform(Complete(again, None))
    assert turns == 5000


def test_an_owner_that_raises_stops_nothing_for_good(stage: _Stage) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stage.perform(Complete(fail, None))
    stage.perform(Emit(EVENT))  # the loop can run again
    assert stage.events == [EVENT]


def test_a_failing_disk_is_reported_with_its_errno(stage: _Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise BackendError("gone", errno.ENXIO)

    for name in ("apply", "flush", "read"):
        monkeypatch.setattr(stage.replica.device, name, fail)
    for name in ("write_superblock", "append_intents", "write_bitmap"):
        monkeypatch.setattr(stage.replica.store, name, fail)
    monkeypatch.setattr(stage.replica.device, "hole_bytes", lambda *_: 0)
    stage.perform(
        Apply(0, "a", [_write(0, b"x"), _write(9, b"y")]),
        Read(0, 7, [Extent(0, 1)], MIB),
        Journal(0, "j", 0, 5, [Extent(0, 1)]),
        SavePages(0, "s", {0: bytes(4096)}, ()),
        Persist(0, "p", stage.replica.setup.superblock),
        Flush(0, "f"),
    )
    stage.run_lanes()
    assert stage.script.reports == [
        ("applied", 0, "a", [errno.ENXIO, errno.ENXIO]),
        ("read_failed", 0, 7, errno.ENXIO),
        ("journaled", 0, "j", errno.ENXIO),
        ("saved", 0, "s", errno.ENXIO),
        ("persisted", 0, "p", errno.ENXIO),
        ("flushed", 0, "f", errno.ENXIO),
    ]


def test_without_a_map_of_what_is_allocated_the_session_ends(
    stage: _Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise BackendError("no such thing", errno.EIO)

    monkeypatch.setattr(stage.replica.device, "allocation", fail)
    stage.perform(MapAllocation(0, "m"))
    stage.run_lanes()
    assert stage.wire.dropped == ["cannot find out what is allocated: no such thing"]
    assert stage.script.reports == [("dropped",)]
    assert stage.moved == 1


def test_what_comes_when_the_disks_are_closed_already_is_not_done(
    stage: _Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A permit that came while they were opened anew ended the host."""

    def submit(*_: object) -> None:
        raise ClosedError("lane vda-meta is closed")

    monkeypatch.setattr(stage.lanes.meta, "submit", submit)
    stage.perform(Persist(0, "p", stage.replica.setup.superblock), Emit(EVENT), Send([_message(1)]))
    assert stage.events == [EVENT]
    assert stage.wire.sent == [[_message(1)]]
    assert stage.script.reports == []


def test_a_session_is_dropped_and_only_a_refusal_is_reported(stage: _Stage) -> None:
    stage.perform(DropSession("silent", refused=False))
    assert (stage.wire.dropped, stage.script.reports) == (["silent"], [])
    stage.perform(DropSession("diverged", refused=True))
    assert (stage.wire.dropped, stage.script.reports) == (["silent", "diverged"], [("dropped",)])


each_kind_of_job = pytest.mark.parametrize(
    "effect",
    [
        Apply(0, "a", []),
        Read(0, 7, [Extent(0, 1)], MIB),
        Flush(0, "f"),
        SavePages(0, "s", {}, (0,)),
        MapAllocation(0, "m"),
    ],
)


@each_kind_of_job
def test_our_own_bugs_are_not_taken_for_disk_errors(
    stage: _Stage, monkeypatch: pytest.MonkeyPatch, effect: Effect
) -> None:
    def bug(*_: object) -> None:
        raise InternalError("an invariant does not hold")

    for name in ("apply", "flush", "read", "hole_bytes", "allocation"):
        monkeypatch.setattr(stage.replica.device, name, bug)
    monkeypatch.setattr(stage.replica.store, "release_segment", bug)
    stage.perform(effect)
    with pytest.raises(InternalError, match="invariant"):
        stage.run_lanes()
    assert stage.script.reports == []


@each_kind_of_job
def test_what_a_closing_lane_never_ran_is_reported_to_nobody(
    stage: _Stage, monkeypatch: pytest.MonkeyPatch, effect: Effect
) -> None:
    dones: list[Callable[[Any], None]] = []
    for lane in (stage.lanes.data, stage.lanes.meta, stage.lanes.side):
        monkeypatch.setattr(lane, "submit", lambda _, done: dones.append(done))
    stage.perform(effect)
    (done,) = dones
    done(ClosedError("the lane was closed before the job ran"))
    assert stage.script.reports == []
    assert stage.moved == 0


# ---------------------------------------------------------------------- what a resync overwrites is kept


def _syncing(stage: _Stage) -> Superblock:
    """The superblock of a resync that is about to begin on a consistent replica."""
    first = Generation(1, 1, 1)
    block = replace(stage.replica.store.superblock, condition=Condition.CONSISTENT, lineage=(first,))
    stage.replica.store.write_superblock(block)
    return replace(block, condition=Condition.SYNCING, sync_target=first)


def test_a_resync_waits_for_what_was_written_before_and_for_its_log(stage: _Stage) -> None:
    keeper, syncing = stage.replica.keeper, _syncing(stage)
    assert keeper is not None
    stage.perform(Apply(0, "w", [WriteOp(OpKind.ZERO, 0, BLOCK_BYTES)]), Persist(0, "s", syncing))
    assert stage.backlog() == (2, 0, 0)
    cast("SimLane", stage.lanes.data).run_all()
    assert keeper.undo is not None
    assert stage.backlog() == (0, 1, 0)
    cast("SimLane", stage.lanes.meta).run_all()
    assert stage.replica.store.superblock == syncing
    assert stage.backlog() == (1, 0, 0)
    assert stage.script.reports == [("applied", 0, "w", None)]
    stage.run_lanes()
    assert stage.script.reports[1:] == [("persisted", 0, "s", 0)]
    adopted = replace(syncing, condition=Condition.CONSISTENT, sync_target=None)
    stage.perform(Persist(0, "c", adopted))
    cast("SimLane", stage.lanes.data).run_all()
    cast("SimLane", stage.lanes.meta).run_all()
    assert keeper.undo is not None  # until the superblock is durable, and a turn later
    stage.run_lanes()
    assert keeper.infos() == []
    assert stage.script.reports[2:] == [("persisted", 0, "c", 0)]
    stage.replica.close()


def test_no_resync_where_nothing_can_be_kept(stage: _Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    syncing = _syncing(stage)

    def before(*_: object) -> None:
        raise BackendError("full", errno.ENOSPC)

    monkeypatch.setattr(stage.replica.keeper, "before", before)
    stage.perform(Persist(0, "s", syncing))
    stage.run_lanes()
    assert stage.script.reports == [("persisted", 0, "s", errno.ENOSPC)]
    assert stage.replica.store.superblock.condition is Condition.CONSISTENT
    stage.replica.close()


def test_a_log_that_cannot_be_removed_is_told(stage: _Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    syncing = _syncing(stage)

    def after(*_: object) -> None:
        raise BackendError("broken")

    monkeypatch.setattr(stage.replica.keeper, "after", after)
    stage.perform(Persist(0, "s", syncing))
    for _ in range(2):
        stage.run_lanes()
    assert stage.script.reports == [("persisted", 0, "s", errno.EIO)]
    stage.replica.close()


async def test_lanes_that_close_in_the_middle_leave_it_for_the_next_opening(stage: _Stage) -> None:
    syncing = _syncing(stage)
    stage.perform(Persist(0, "s", syncing))
    await stage.lanes.meta.aclose()
    stage.run_lanes()
    assert stage.script.reports == []
    assert stage.replica.store.superblock.condition is Condition.CONSISTENT
    stage.replica.close()


def test_a_disk_that_fails_is_told_before_what_ends_for_it(stage: _Stage) -> None:
    told: list[object] = []
    stage.perform(DiskFailed(0, "it is gone"), Complete(lambda _: told.append(list(stage.failures)), [5]))
    assert told == [[(0, "it is gone")]]


def test_a_guest_that_leaves_says_nothing_more_and_leaves_the_session_alone(stage: _Stage) -> None:
    stage.performer.leaving = True
    stage.perform(Send([BarrierDone(0, 1)]), DropSession("a flush failed", refused=True))
    assert stage.wire.sent == []
    assert stage.wire.dropped == []


async def test_where_the_disk_is_memory_others_have_their_turn_between_reads(stage: _Stage) -> None:
    """A stretch of zeroes, of which nothing is sent, kept a host from its heartbeats until its end."""

    def read_on() -> None:
        if len(stage.script.reports) < 20:
            stage.script.bundles.append([Read(0, len(stage.script.reports), [Extent(0, 1)], MIB)])
            stage.performer.perform()

    stage.script.on_report = read_on
    async with trio.open_nursery() as nursery:
        stage.lanes.data = await start_lane(nursery, "data", may_block=False)
        stage.perform(Read(0, 0, [Extent(0, 1)], MIB))
        turns = 0
        while len(stage.script.reports) < 20:
            turns += 1
            await trio.sleep(0)
        await stage.lanes.data.aclose()
    assert turns >= 20
    assert [report[2] for report in stage.script.reports] == list(range(20))
