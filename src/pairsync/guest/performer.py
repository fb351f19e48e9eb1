"""Performing: what the session machine wants done, in its order, with disks and the link.

`Performer.perform` is the only place where effects are performed.  A report that arrives while it runs (a
lane that works inline, an answer that is there at once) only feeds the machine: its effects are performed
by the loop that is already running.

Each volume has three lanes, so that what may overtake nothing stands in one queue and what may run beside it
does not wait: *data* (writes and resync reads, in order), *meta* (journal, bitmap, superblock, in order) and
*side* (flushes and the search for what is allocated).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import trio

from pairsync.core.effects import (
    Apply,
    AskAlone,
    Complete,
    DiskFailed,
    DropPoints,
    DropSession,
    Effect,
    Emit,
    Examine,
    Extend,
    Flush,
    Journal,
    MakePoint,
    MapAllocation,
    Persist,
    Read,
    SavePages,
    Send,
)
from pairsync.core.events import Event
from pairsync.core.messages import Condition, Message
from pairsync.core.questions import Examined
from pairsync.core.resync import Found
from pairsync.core.session import Session
from pairsync.core.units import Extent
from pairsync.errors import BackendError, ClosedError
from pairsync.io.link import Link
from pairsync.storage.lane import Lane
from pairsync.storage.pointcopy import PointCopy
from pairsync.storage.points import Points

from .growing import extend_job, recorded_job
from .keeping import keep_job
from .points import begin_point_job, copy_point_job, drop_points_job
from .replica import (
    Replica,
    apply_job,
    examine_job,
    flush_job,
    journal_job,
    map_job,
    persist_job,
    read_job,
    save_job,
)

__all__ = ["Lanes", "Performer"]


class Lanes:
    """The queues of one volume."""

    __slots__ = ("data", "meta", "side")

    def __init__(self, data: Lane, meta: Lane, side: Lane) -> None:
        self.data = data
        self.meta = meta
        self.side = side


class Performer:
    """See the module."""

    def __init__(
        self,
        session: Session,
        replicas: Sequence[Replica],
        lanes: Sequence[Lanes],
        emit: Callable[[Event], None],
        ask_alone: Callable[[], None],
        disk_failed: Callable[[int, str], object],
        now_ns: Callable[[], int],
        moved: Callable[[], None],
    ) -> None:
        self.link: Link | None = None  # set once, when it is open
        self.session = session
        self._replicas = list(replicas)
        self._lanes = list(lanes)
        self._emit = emit
        self._ask_alone = ask_alone
        self._disk_failed = disk_failed
        self.leaving = False
        """It leaves this host: nothing is sent any more, and the link's session goes on without us: the
        next owner is agreed over it."""
        self.now_ns = now_ns
        self._moved = moved  # called when a report of a lane has been dealt with
        self._performing = False  # the loop in `perform` runs, further up the stack
        self._table: dict[type, Callable[[Any], None]] = {
            Apply: self._apply,
            Journal: self._journal,
            Read: self._read,
            Examine: self._examine,
            Extend: self._extend,
            Flush: self._flush,
            SavePages: self._save,
            Persist: self._persist,
            MapAllocation: self._map,
            MakePoint: self._make_point,
            DropPoints: self._drop_points,
            DropSession: self._drop,
        }

    def perform(self) -> bool:
        """Perform until the machine wants nothing more; False if that is being done further up the stack."""
        if self._performing:
            return False
        self._performing = True
        try:
            while effects := self.session.take():
                self._perform_all(effects)
        finally:
            self._performing = False
        return True

    def _reported(self) -> None:
        """A report of a lane has been dealt with: whoever performs, maybe further up the stack, goes on."""
        if not self._performing:
            self._moved()

    def _perform_all(self, effects: Sequence[Effect]) -> None:
        outgoing: list[Message] = []
        table = self._table
        for effect in effects:
            if type(effect) is Send:
                outgoing.extend(effect.messages)
                continue
            if outgoing:
                self._send(outgoing)
                outgoing = []
            if type(effect) is Complete:
                effect.ticket(effect.errnos)  # type: ignore[operator]  # every owner is a callable
            elif type(effect) is Emit:
                self._emit(effect.event)
            elif type(effect) is AskAlone:
                self._ask_alone()
            elif type(effect) is DiskFailed:
                self._disk_failed(effect.volume, effect.reason)
            else:
                try:
                    table[type(effect)](effect)
                except ClosedError:  # its lane: the disks are opened anew, for another session machine
                    continue
        if outgoing:
            self._send(outgoing)

    def _send(self, messages: Sequence[Message]) -> None:
        if self.link is not None and self.link.session is not None and not self.leaving:
            self.link.send(messages)

    def _drop(self, effect: DropSession) -> None:
        if self.leaving:
            return
        if self.link is not None:
            self.link.drop_session(effect.reason)
        if effect.refused:
            self.session.dropped(self.now_ns())

    def _apply(self, effect: Apply) -> None:
        replica = self._replicas[effect.volume]
        if replica.keeper is not None:
            replica.keeper.announce(effect.ops)
        self._lanes[effect.volume].data.submit(
            partial(apply_job, replica.device, effect.ops),
            partial(self._applied, effect.volume, effect.token),
        )

    def _applied(self, volume: int, token: object, result: Sequence[int] | BaseException | None) -> None:
        if isinstance(result, BaseException):
            _raise_unless_closed(result)
            return
        self.session.applied(volume, token, result, self.now_ns())
        self._reported()

    def _journal(self, effect: Journal) -> None:
        store = self._replicas[effect.volume].store
        job = partial(journal_job, store, effect.segment, effect.generation, effect.extents)
        self._report(self._lanes[effect.volume].meta, job, self.session.journaled, effect)

    def _save(self, effect: SavePages) -> None:
        store = self._replicas[effect.volume].store
        job = partial(save_job, store, effect.pages, effect.release)
        self._report(self._lanes[effect.volume].meta, job, self.session.saved, effect)

    def _persist(self, effect: Persist) -> None:
        """Before a resync, and at its end, the data lane has something to do too, in its turn: what was
        written before the resync belongs to the replica's last consistent point.  And when the volume has
        grown: the open files get the new size between two writes."""
        replica, lanes = self._replicas[effect.volume], self._lanes[effect.volume]
        durable, wanted = replica.store.superblock, effect.superblock
        syncs = Condition.SYNCING in {durable.condition, wanted.condition}
        keeper = replica.keeper if syncs else None
        job = partial(persist_job, replica.store, wanted)
        if keeper is None and wanted.size_bytes == durable.size_bytes:
            self._report(lanes.meta, job, self.session.persisted, effect)
            return

        def end() -> None:
            recorded = partial(recorded_job, replica.device, keeper, wanted)
            self._report(lanes.data, recorded, self.session.persisted, effect)

        def write() -> None:
            self._go_on(lanes.meta, job, effect, end)

        if keeper is None:
            write()
        else:
            self._go_on(lanes.data, partial(keep_job, keeper, durable, wanted), effect, write)

    def _go_on(self, lane: Lane, job: Callable[[], int], effect: Persist, then: Callable[[], None]) -> None:
        """Run a job on the way to a superblock, and then what comes next; a failure is that of the whole."""

        def done(result: int | BaseException) -> None:
            if isinstance(result, BaseException):
                _raise_unless_closed(result)
            elif result:
                self.session.persisted(effect.volume, effect.token, result, self.now_ns())
                self._reported()
            else:
                with suppress(ClosedError):  # likewise: what is left is dealt with when it is opened again
                    then()

        lane.submit(job, done)

    def _extend(self, effect: Extend) -> None:
        def done(result: int | BaseException) -> None:
            if isinstance(result, BaseException):
                _raise_unless_closed(result)
                return
            self.session.extended(effect.volume, effect.token, effect.size_bytes, result, self.now_ns())
            self._reported()

        job = partial(extend_job, self._replicas[effect.volume], effect.size_bytes)
        self._lanes[effect.volume].data.submit(job, done)

    def _flush(self, effect: Flush) -> None:
        device = self._replicas[effect.volume].device
        job = partial(flush_job, device, digests=effect.digests, milestone=effect.milestone)
        self._report(self._lanes[effect.volume].side, job, self.session.flushed, effect)

    def _report(
        self,
        lane: Lane,
        job: Callable[[], int],
        report: Callable[[int, object, int, int], None],
        effect: Journal | SavePages | Persist | Flush,
    ) -> None:
        """Run a job that ends with an errno, and report it."""

        def done(result: int | BaseException) -> None:
            if isinstance(result, BaseException):
                _raise_unless_closed(result)
                return
            report(effect.volume, effect.token, result, self.now_ns())
            self._reported()

        lane.submit(job, done)

    def _map(self, effect: MapAllocation) -> None:
        def done(result: list[Extent] | BaseException) -> None:
            if isinstance(result, BackendError):
                self._drop(DropSession(f"cannot find out what is allocated: {result}", refused=True))
            elif isinstance(result, BaseException):
                _raise_unless_closed(result)
                return
            else:
                self.session.mapped(effect.volume, effect.token, result, self.now_ns())
            self._reported()

        job = partial(map_job, self._replicas[effect.volume].device)
        self._lanes[effect.volume].side.submit(job, done)

    def _read(self, effect: Read) -> None:
        def done(result: Found | int | BaseException) -> None:
            if isinstance(result, BaseException):
                _raise_unless_closed(result)
                return
            if isinstance(result, int):
                self.session.read_failed(effect.volume, effect.number, result, self.now_ns())
            else:
                self.session.read_done(effect.volume, effect.number, result, self.now_ns())
            self._reported()

        job = partial(read_job, self._replicas[effect.volume].device, effect.extents, effect.piece_bytes)
        # Later: where the disk is memory, a stretch of zeroes would be read to its end, as little of it is
        # sent, before others had their turn.  What is written before that is not sent from here.
        self._lanes[effect.volume].data.submit_later(job, done)

    def _examine(self, effect: Examine) -> None:
        def done(result: Examined | int | BaseException) -> None:
            if isinstance(result, BaseException):
                _raise_unless_closed(result)
                return
            self.session.examined(effect.volume, effect.token, result, self.now_ns())
            self._reported()

        job = partial(examine_job, self._replicas[effect.volume].device, effect)
        self._lanes[effect.volume].data.submit(job, done)

    def _make_point(self, effect: MakePoint) -> None:
        """Its moment is in the data lane; the copy is made in the side lane, beside later writes."""
        points, lanes = self._replicas[effect.volume].points, self._lanes[effect.volume]

        def begun(result: PointCopy | int | BaseException) -> None:
            if isinstance(result, PointCopy) and points is not None:
                with suppress(ClosedError):
                    self._copy_point(effect, lanes.side, points, result)
            else:
                self._point_made(effect, result)

        lanes.data.submit(partial(begin_point_job, points, effect.mark), begun)

    def _copy_point(self, effect: MakePoint, lane: Lane, points: Points, copy: PointCopy) -> None:
        def copied(result: bool | int | BaseException) -> None:
            if result is True:
                # Not at once: where the disk is memory, others would not have their turn in between.
                trio.lowlevel.current_trio_token().run_sync_soon(go_on)
            else:
                self._point_made(effect, result)

        def go_on() -> None:
            with suppress(ClosedError):  # a copy that was cut short is removed when it is opened again
                self._copy_point(effect, lane, points, copy)

        lane.submit(partial(copy_point_job, points, copy), copied)

    def _point_made(self, effect: MakePoint, result: object) -> None:
        if isinstance(result, BaseException):
            _raise_unless_closed(result)
        elif isinstance(result, int):
            self.session.point_made(effect.volume, effect.token, result, self.now_ns())
            self._reported()

    def _drop_points(self, effect: DropPoints) -> None:
        points, lanes = self._replicas[effect.volume].points, self._lanes[effect.volume]

        def done(result: int | BaseException) -> None:
            if isinstance(result, BaseException):
                _raise_unless_closed(result)
            else:
                self.session.points_dropped(effect.volume, effect.token, result)
                self._reported()

        def looked(copy: PointCopy | BaseException | None) -> None:
            if isinstance(copy, BaseException):
                _raise_unless_closed(copy)
                return
            with suppress(ClosedError):
                lanes.side.submit(partial(drop_points_job, points, effect.keep, copy), done)

        # By way of the data lane: a point that is asked for later must not be taken for one to be dropped.
        lanes.data.submit(points.under_way if points is not None else _nothing, looked)


def _nothing() -> None:
    """There is nothing under way."""


def _raise_unless_closed(error: BaseException) -> None:
    """A job that never ran because its lane was closed is no failure: the guest has ended, nobody waits."""
    if not isinstance(error, ClosedError):
        raise error
