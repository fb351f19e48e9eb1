"""The disks of a guest: its open replicas and the queues in which jobs wait for them.

A guest's own are opened with it and closed with it.  In between all of them may be closed and opened anew, by
a standby whose disk has failed and by a guest that changes its role: what a file has promised after a failed
flush cannot be trusted any more, and a disk that vanished may be there again, with its files or without.

There is one way to open (`Disks.reopen`), the first time too: in a thread, for a disk may hang, and with
proof that it can be read, written and flushed.  A guest whose disks cannot be opened at the start begins as
a standby that is ill (``guest.reopen``), so that its host comes up and votes; an active one does not begin.

Invariants: `replicas` and `lanes` go by the volume's index; while no replica is open there are no lanes; a
replica is closed only when no job of its lanes runs, because the operating system keeps its lock as long, and
because what such a job still writes must not come after what is written by the next owner.
"""

from __future__ import annotations

import errno
import logging
import math
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Final, NamedTuple, TypeAlias

import trio

from pairsync.core.messages import Condition, Role
from pairsync.core.units import BLOCK_BYTES, NS_PER_S
from pairsync.errors import BackendError, BusyError, ClosedError, InternalError
from pairsync.storage.lane import InlineLane, Lane, start_lane

from .config import GuestConfig, VolumeConfig
from .performer import Lanes
from .replica import Replica

__all__ = ["OPENING_S", "Disks", "Opener", "Unopened", "describe_hang", "open_disks"]

_log = logging.getLogger("pairsync.guest")

OPENING_S: Final = 5.0
"""So long the disks may take to be opened before a standby begins without: the deadline of an operation."""

PART_S: Final = 1.0
"""So long an end waits for an attempt to open that was left behind: milliseconds, if the disk works."""

LOOK_S: Final = 0.05
"""Between two looks at what hangs: an attempt to open that was left behind, a job that holds up the end."""

Opener: TypeAlias = Callable[[VolumeConfig, bytes], Replica]
"""Opens a volume's replica, of the pair with that id."""


class Unopened(NamedTuple):
    """A volume that could not be opened."""

    volume: str
    error: BackendError | BusyError

    @property
    def ailment(self) -> tuple[str, str]:
        """As a mender takes it."""
        return self.volume, str(self.error)


class Disks:
    """See the module; made by `open_disks`.  All methods belong to the trio thread."""

    def __init__(
        self, config: GuestConfig, opener: Opener, nursery: trio.Nursery, *, opener_may_block: bool = True
    ) -> None:
        """``opener_may_block``: it is called in a thread."""
        self._config = config
        self._opener = opener
        self._opener_may_block = opener_may_block
        self.active = config.role is Role.ACTIVE
        """Whether the guest runs here; of what is opened from now on (`reopen`)."""
        self._nursery = nursery  # of the lanes
        self.replicas: list[Replica] = []
        """Those that were opened last; none before the first time, and closed if not all could be since."""
        self.unopened: Unopened | None = None
        """What could not be opened by the last attempt."""
        self.lanes: list[Lanes] = []
        self.opening: str | None = None
        """The volume that is being opened."""
        self._left: dict[str, _Opening] = {}  # attempts that nobody waits for, and that have not ended

    async def open(self) -> None:
        """Open all for the first time; a standby may begin with one `unopened`.

        Raises why, where the guest is active, and `BusyError`: another process has it.
        """
        unopened = await self.reopen(within_s=OPENING_S)
        if unopened is None:
            return
        if self.active or isinstance(unopened.error, BusyError):
            raise unopened.error
        _log.warning("%s: begins without its disks: %s", self._config.name, unopened.error)

    async def _start_lanes(self, replica: Replica) -> Lanes:
        """The queues of a volume: threads where its disk may keep them waiting."""
        name, may_block = replica.name, replica.device.may_block
        return Lanes(
            await start_lane(self._nursery, f"{name}-data", may_block=may_block),
            await start_lane(self._nursery, f"{name}-meta", may_block=replica.store.may_block),
            await start_lane(self._nursery, f"{name}-side", may_block=may_block),
        )

    async def use_threads(self, index: int) -> None:
        """From now on that volume's disk may keep its callers waiting, though it lies in memory."""
        if not self.lanes:
            return  # closed: those that are opened next are asked what they need
        lanes, name = self.lanes[index], self.replicas[index].name
        for kind in ("data", "meta", "side"):
            lane: Lane = getattr(lanes, kind)
            if isinstance(lane, InlineLane):
                fresh = await start_lane(self._nursery, f"{name}-{kind}", may_block=True)
                if lanes not in self.lanes:  # closed meanwhile
                    await fresh.aclose()
                    return
                # An inline lane has no other job outside of its own `submit`: nothing is overtaken.
                lane.hand_over(fresh)
                setattr(lanes, kind, fresh)
                await lane.aclose()

    # ------------------------------------------------------------------ looking

    @property
    def idle(self) -> bool:
        """Whether no job waits or runs."""
        return not any(lane.backlog for lanes in self.lanes for lane in _each(lanes))

    def overdue_ns(self, index: int, read_age_ns: int = 0) -> int:
        """How long an operation of that volume has been running, if its deadline has passed; else 0.

        ``read_age_ns``: the same of reads that are no job of a lane.
        """
        if not self.lanes:
            return 0
        lanes = self.lanes[index]
        options = self._config.volumes[index].options
        age_ns = max(lanes.data.job_age_ns, lanes.meta.job_age_ns, read_age_ns)
        if age_ns > options.disk_deadline_ns:
            return age_ns
        flush_ns = lanes.side.job_age_ns
        return flush_ns if flush_ns > options.hang_ns else 0

    # ------------------------------------------------------------------ closing, and opening anew

    async def reopen(self, *, term: int = 0, within_s: float = math.inf) -> Unopened | None:
        """Close all and open all anew, and see that they can be read, written and flushed; while `idle`.

        ``term`` is recorded for replicas that are whole, if it is higher: they count as in sync under it.
        What could not be opened ``within_s``, and why; then nothing is open, and it may be called again.
        """
        with trio.CancelScope(shield=True):  # all or none: `drain` asks something of those that it finds
            for lanes in self.lanes:
                for lane in _each(lanes):
                    await lane.aclose()
        self.lanes = []
        self.close()
        fresh: list[Replica] = []
        until_s = trio.current_time() + within_s
        try:
            for volume in self._config.volumes:
                self.opening = volume.name
                self.unopened = Unopened(volume.name, _hangs(volume.name))
                with trio.move_on_at(until_s):
                    try:
                        fresh.append(await self._open_anew(volume, term))
                        self.unopened = None
                    except (BackendError, BusyError) as error:
                        self.unopened = Unopened(volume.name, error)
                if self.unopened is not None:
                    return self.unopened
            self.replicas, fresh = fresh, []
        finally:
            self.opening = None
            for replica in fresh:
                replica.close()
        for replica in self.replicas:
            _tell_notes(replica)
            self.lanes.append(await self._start_lanes(replica))
        return None

    async def _open_anew(self, volume: VolumeConfig, term: int) -> Replica:
        await self._wait_for_who_left(volume.name)
        opening = _Opening(self._opener, volume, self._config.pair_id, term, active=self.active)
        if not self._opener_may_block:
            return opening.run()
        try:
            return await trio.to_thread.run_sync(
                opening.run, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1)
            )
        except trio.Cancelled:
            opening.abandon()
            self._left[volume.name] = opening
            raise

    async def _wait_for_who_left(self, volume: str) -> None:
        """Return when an attempt that was left behind has ended: it has the files."""
        while True:
            left = self._left.get(volume)
            if left is None or not left.runs:
                return
            await trio.sleep(LOOK_S)

    async def part(self) -> None:
        """Let what was left behind give its files back, so that they can be opened again at once."""
        with trio.CancelScope(shield=True), trio.move_on_after(PART_S):
            for volume in list(self._left):
                await self._wait_for_who_left(volume)

    async def end_lives(self) -> None:
        """Of disks that work: record that they are given up in order; while `idle`, before `reopen`."""
        if self.active or not self.lanes:
            return
        for replica, lanes in zip(self.replicas, self.lanes, strict=True):
            await lanes.side.run(partial(_end_life, replica))

    async def drain(self) -> None:
        """Let the lanes end their jobs, but do not wait for a disk that hangs."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._leave_what_hangs)
            for replica, lanes in zip(self.replicas, self.lanes, strict=False):
                await lanes.data.aclose()
                if not self.active:
                    lanes.side.submit(partial(_end_life, replica), _raise_bugs)
                await lanes.meta.aclose()
                await lanes.side.aclose()
            nursery.cancel_scope.cancel()

    async def _leave_what_hangs(self) -> None:
        while True:
            if any(self.overdue_ns(index) for index in range(len(self.lanes))):
                self._nursery.cancel_scope.cancel()  # the lane says what hangs
            await trio.sleep(LOOK_S)

    def close(self) -> None:
        """Give all files back; idempotent."""
        for replica in self.replicas:
            replica.close()


class _Opening:
    """An attempt to open a replica, in a thread that may have to be left behind."""

    def __init__(
        self, opener: Opener, volume: VolumeConfig, pair_id: bytes, term: int, *, active: bool
    ) -> None:
        self._opener = opener
        self._term = term
        self._active = active
        self._volume = volume
        self._pair_id = pair_id
        self._lock = threading.Lock()  # guards the next three
        self._abandoned = False
        self._opened: Replica | None = None
        self.runs = False
        """It may hold files that nobody has been given."""

    def run(self) -> Replica:
        """Open it, prove that its disk works and record that it is in use."""
        with self._lock:
            self.runs = not self._abandoned
        try:
            if self.runs:
                replica = self._begin_life()
                with self._lock:
                    self._opened = replica
                    if not self._abandoned:
                        return replica
                replica.close()
            raise ClosedError(f"volume {self._volume.name}: nobody waits for it any more")
        finally:
            self.runs = False

    def _begin_life(self) -> Replica:
        """Once more, with sound files, if that fails."""
        for last in (False, True):
            replica = self._opener(self._volume, self._pair_id)
            try:
                _prove(replica, self._term)
                replica.device.begin_life(active=self._active)
            except BackendError:
                replica.close()
                if last:
                    raise
            except BaseException:
                replica.close()
                raise
            else:
                return replica
        raise InternalError("a loop of two ended by itself")

    def abandon(self) -> None:
        """Nobody waits any more: what is opened is closed again."""
        with self._lock:
            self._abandoned = True
            opened = self._opened
        if opened is not None:
            opened.close()


def _hangs(volume: str) -> BackendError:
    return BackendError(f"volume {volume}: the disk hangs while it is opened", errno.EIO)


def _prove(replica: Replica, term: int) -> None:
    """Raises `BackendError` where a disk can be opened and does not work (say, it is read-only now)."""
    store, device = replica.store, replica.device
    block = store.superblock
    if block.condition is Condition.CONSISTENT:
        block = replace(block, term=max(block.term, term))
        replica.setup.superblock = block
    store.write_superblock(block)
    device.flush()
    device.read_into(0, memoryview(bytearray(min(BLOCK_BYTES, device.size_bytes))))


def _end_life(replica: Replica) -> None:
    try:
        replica.device.end_life()
    except BackendError as error:
        _log.warning("%s: not closed in order: %s", replica.name, error)


def _raise_bugs(result: object) -> None:
    if isinstance(result, BaseException) and not isinstance(result, ClosedError):
        raise result


def _each(lanes: Lanes) -> tuple[Lane, Lane, Lane]:
    return lanes.data, lanes.meta, lanes.side


def _tell_notes(replica: Replica) -> None:
    for note in replica.notes:
        _log.warning("%s: %s", replica.name, note)


def describe_hang(age_ns: int) -> str:
    """A disk that hangs, in words."""
    return f"the disk hangs: an operation has been running for {age_ns / NS_PER_S:.1f} s"


@asynccontextmanager
async def open_disks(
    config: GuestConfig, opener: Opener, *, opener_may_block: bool = True
) -> AsyncIterator[Disks]:
    """Open the disks of a guest; their jobs are ended and they are closed when the block is left.

    Raises what `Disks.open` does.  It holds a nursery, so what the block raises comes out in a group.
    """
    disks: Disks | None = None
    try:
        async with trio.open_nursery() as nursery:
            disks = Disks(config, opener, nursery, opener_may_block=opener_may_block)
            await disks.open()
            yield disks
            await disks.drain()
    finally:
        if disks is not None:
            disks.close()
            await disks.part()
