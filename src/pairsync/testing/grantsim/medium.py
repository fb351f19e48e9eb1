"""A volume's disk on one host: what outlives its processes, how it fails, and what one life asks of it.

One lane for applies and reads, one for metadata, flushes beside them.  A disk that is *sick* fails whatever
is asked of it, a part of a write being there at times, or ends nothing until it is well (`Medium.sick`).
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from pairsync.core.dirty import DirtyMap
from pairsync.core.effects import Apply, Examine, Flush, Journal, MapAllocation, Persist, Read, SavePages
from pairsync.core.messages import Role, WriteOp
from pairsync.core.questions import FAN_OUT, Examined
from pairsync.core.resync import Found
from pairsync.core.tracker import ops_bytes
from pairsync.core.units import KIB, block_count_of
from pairsync.testing.sim.digests import Save
from pairsync.testing.sim.disk import SECTOR_BYTES, SECTORS_PER_BLOCK, ops_of_content, values_of_op
from pairsync.testing.sim.lane import Lane
from pairsync.testing.sim.media import Stores

if TYPE_CHECKING:
    from .plane import Plane
    from .world import GrantWorld

__all__ = ["FAILS", "HANGS", "GuestRead", "Medium", "VolumeDisk"]

FAILS, HANGS = "fails", "hangs"

_End: TypeAlias = "tuple[Callable[..., None], tuple[Any, ...]]"
"""Of a job: what is to be done then."""


def _everything(size_bytes: int) -> DirtyMap:
    blocks = block_count_of(size_bytes)
    every = DirtyMap(blocks)
    every.mark(0, blocks)
    return every


class Medium:
    """What is durable of one volume on one host."""

    __slots__ = ("sick", "stores")

    def __init__(self, stores: Stores) -> None:
        self.stores = stores
        self.sick = ""
        """`FAILS` or `HANGS`; empty while it works."""


class GuestRead:
    """A read of the guest: ``then`` is given the content of these sectors, None if it failed."""

    __slots__ = ("start", "stop", "then")

    def __init__(self, start: int, stop: int, then: Callable[[list[int] | None], None]) -> None:
        self.start = start
        self.stop = stop
        self.then = then


class VolumeDisk:
    """A volume's disk as one life of the data plane has opened it; what comes of a job the plane hears."""

    def __init__(self, world: GrantWorld, plane: Plane, medium: Medium, index: int, *, settled: bool) -> None:
        """``settled``: what was recorded as digests of it is not in disorder."""
        self.medium = medium
        self._world = world
        self._plane = plane
        self._index = index
        self._random = world.random
        self._speeds = world.profile.speeds
        self._options = world.profile.options[index]
        self._lane = Lane(world.clock, partial(self._comes, self._io_done))
        self._metadata_lane = Lane(world.clock, partial(self._comes, self._metadata_done))
        self._flushing = 0
        self._flush_free_ns = 0
        self._came: deque[_End] = deque()  # ends that the host does not know of while it stands still
        self._hung: list[_End] = []  # before them: ends that a hang holds back
        self._hung_since_ns = 0  # by this host's clock, if there are any
        self._unsound = False  # a flush has failed: none of this life succeeds any more
        stores = medium.stores
        if not stores.metadata.superblock.clean:
            stores.digests.opened(stores.metadata.intents())
        if plane.role is Role.ACTIVE:
            stores.disk.flush(stores.disk.position)
            if not settled:  # what a standby has left in disorder is not believed
                stores.digests.opened(_everything(stores.metadata.superblock.size_bytes))

    # ------------------------------------------------------------------ questions

    @property
    def idle(self) -> bool:
        """Whether no job runs."""
        jobs = self._lane.jobs or self._metadata_lane.jobs or self._flushing
        return not (jobs or self._came or self._hung)

    @property
    def hangs(self) -> bool:
        """Whether it has not ended something that it was asked, for it hangs."""
        return bool(self._hung)

    def overdue(self, now_ns: int) -> bool:
        """Whether something that it was asked has passed its deadline."""
        if not self._hung:
            return False
        flushes = all(run == self._flush_done for run, _ in self._hung)
        deadline_ns = self._options.hang_ns if flushes else self._options.disk_deadline_ns
        return now_ns - self._hung_since_ns > deadline_ns

    def probe(self) -> bool:
        """Ask it whether it works; whether it says that it does not."""
        if self.medium.sick == HANGS and not self._hung:
            self._hold(self._nothing)
        return self.medium.sick == FAILS

    # ------------------------------------------------------------------ life

    def crash(self, *, power: bool) -> None:
        """The process dies in the midst of whatever was being done, or the power goes."""
        ends = [(run, arguments[0]) for run, arguments in (*self._hung, *self._came) if arguments]
        for lane, done in ((self._lane, self._io_done), (self._metadata_lane, self._metadata_done)):
            jobs = [*(job for run, job in ends if run == done), *lane.clear()]
            count = min(self._random.choice((0, 0, 1, 2, len(jobs))), len(jobs))
            for job in jobs[:count]:
                self._finish(job)
            if count < len(jobs):
                self._tear(jobs[count])
        self._hung = []
        self._came.clear()
        stores = self.medium.stores
        stores.digests.crashed(self._random)
        if power:
            stores.disk.lose_cache(self._random, self._random.random())

    def give_up_reads(self) -> None:
        """The guest does not wait for them here any more."""
        ends = (arguments[0] for _, arguments in (*self._hung, *self._came) if arguments)
        for job in (*ends, *self._lane.jobs):
            if isinstance(job, GuestRead):
                job.then(None)

    def wake(self) -> None:
        """It works again: what has hung ends now."""
        hung, self._hung = self._hung, []
        self._came.extendleft(reversed(hung))
        for _ in hung:
            self._plane.host.defer(self._arrives)

    def _comes(self, run: Callable[..., None], *arguments: Any) -> None:
        """A job has ended: the host hears of it now, or when it goes on."""
        self._came.append((run, arguments))
        self._plane.host.defer(self._arrives)

    def _arrives(self) -> None:
        if self._came:  # else it is gone
            run, arguments = self._came.popleft()
            run(*arguments)

    def _hold(self, run: Callable[..., None], *arguments: Any) -> None:
        if not self._hung:
            self._hung_since_ns = self._plane.host.now_ns
        self._hung.append((run, arguments))

    def _nothing(self) -> None:
        """A question that nobody waits for any more has been answered."""

    # ------------------------------------------------------------------ jobs

    def _cost(self, base_ns: int, size_bytes: int = 0) -> int:
        cost_ns = base_ns + self._speeds.disk_ns_per_kib * size_bytes // KIB
        return int(cost_ns * (0.5 + self._random.random()))

    def push(self, job: Apply | Read | Examine | MapAllocation | GuestRead) -> None:
        """Do it, in its turn."""
        size_bytes = 0
        if isinstance(job, Apply):
            size_bytes = ops_bytes(job.ops)
        elif isinstance(job, Read):
            size_bytes = 4 * KIB
        self._lane.push(job, self._cost(self._speeds.disk_ns, size_bytes))

    def record(self, job: Journal | SavePages | Persist) -> None:
        """Likewise, of metadata."""
        self._metadata_lane.push(job, self._cost(self._speeds.metadata_ns))

    def flush(self, effect: Flush) -> None:
        """Make durable what was written before."""
        clock = self._world.clock
        self._flush_free_ns = max(self._flush_free_ns, clock.now) + self._cost(self._speeds.flush_ns)
        stores = self.medium.stores
        saves = effect.digests and self._world.profile.options[effect.volume].digests
        save = stores.digests.saving(effect.milestone) if saves else None
        self._flushing += 1
        begun = stores.disk.position
        clock.at(self._flush_free_ns, self._comes, self._flush_done, effect, begun, save)

    def _flush_done(self, effect: Flush, position: int, save: Save | None) -> None:
        plane, stores = self._plane, self.medium.stores
        if plane.gone:
            return
        if self.medium.sick == HANGS:
            self._hold(self._flush_done, effect, position, save)
            return
        self._flushing -= 1
        if self.medium.sick:
            # The kernel forgets that the pages were dirty: what is not on the disk is gone for good.
            stores.disk.lose_cache(self._random, 1.0 if self._world.guest.plain else self._random.random())
            self._unsound = True
        elif not self._unsound:
            if save is not None:
                stores.digests.saved(save, effect.milestone)
            stores.disk.flush(position)
        if not plane.ended:
            error = errno.EIO if self._unsound else 0
            plane.session.flushed(effect.volume, effect.token, error, plane.host.now_ns)
            plane.host.perform()

    def _io_done(self, job: Apply | Read | Examine | MapAllocation | GuestRead) -> None:
        plane = self._plane
        if plane.gone:
            return
        if self.medium.sick == HANGS:
            self._hold(self._io_done, job)
            return
        session, stores, now_ns = plane.session, self.medium.stores, plane.host.now_ns
        error = errno.EIO if self.medium.sick else 0
        if isinstance(job, Apply):
            errnos = None
            if error:
                errnos = [error] * len(job.ops)
                self._fail(job)
            else:
                self._finish(job)
            if not plane.ended:
                session.applied(job.volume, job.token, errnos, now_ns)
        elif isinstance(job, GuestRead):
            job.then(stores.disk.content[job.start : job.stop] if plane.serves and not error else None)
        elif plane.ended:
            return
        elif isinstance(job, Read):
            if error:
                session.read_failed(job.volume, job.number, error, now_ns)
            else:
                session.read_done(job.volume, job.number, Found(job.extents, self._content(job)), now_ns)
        elif isinstance(job, Examine):
            session.examined(job.volume, job.token, error or self._examine(job), now_ns)
        else:
            session.mapped(job.volume, job.token, stores.disk.runs_with_content(), now_ns)
        plane.host.perform()

    def _content(self, job: Read) -> list[WriteOp]:
        digests, disk = self.medium.stores.digests, self.medium.stores.disk
        for extent in job.extents:
            digests.fill(disk, range(*extent))
        content = disk.content
        return [op for extent in job.extents for op in ops_of_content(content, *extent, len(content))]

    def _examine(self, job: Examine) -> Examined:
        disk, digests = self.medium.stores.disk, self.medium.stores.digests
        span = FAN_OUT**job.level
        blocks = range(job.first * span, min(job.stop * span, -(-disk.sector_count // SECTORS_PER_BLOCK)))
        digests.fill(disk, blocks)
        bad = digests.bad_in(disk, blocks) if job.read else ()
        return Examined(digests.answer(job.level, job.first, job.stop), bad)

    def _metadata_done(self, job: Journal | SavePages | Persist) -> None:
        plane = self._plane
        if plane.gone:
            return
        if self.medium.sick == HANGS:
            self._hold(self._metadata_done, job)
            return
        error = errno.EIO if self.medium.sick else 0
        outcome = self._random.randrange(3) if error else 0  # what failed may have happened all the same
        if outcome == 0:
            self._finish(job)
        elif outcome == 1:
            self._tear(job)
        if plane.ended:
            return
        session, now_ns = plane.session, plane.host.now_ns
        if isinstance(job, Journal):
            session.journaled(job.volume, job.token, error, now_ns)
        elif isinstance(job, SavePages):
            session.saved(job.volume, job.token, error, now_ns)
        else:
            session.persisted(job.volume, job.token, error, now_ns)
        plane.host.perform()

    # ------------------------------------------------------------------ what comes of it

    def _finish(self, job: object) -> None:
        stores, world = self.medium.stores, self._world
        metadata = stores.metadata
        if isinstance(job, Apply):
            for op in job.ops:
                start, stop = op.offset // SECTOR_BYTES, (op.offset + op.length) // SECTOR_BYTES
                stores.disk.write(start, stop, values_of_op(op), fua=op.fua)
                stores.digests.note(stores.disk, start, stop)
        elif isinstance(job, Journal):
            wrong = metadata.append(job.segment, job.generation, job.extents)
            if wrong is not None:
                world.fail("journal", wrong)
        elif isinstance(job, SavePages):
            metadata.write_pages(job.pages)
            metadata.release(job.release)
        elif isinstance(job, Persist):
            world.checker.persisted(self._plane.host, metadata.superblock, job.superblock)
            metadata.superblock = job.superblock

    def _tear(self, job: object) -> None:
        """Nothing of it is there, or a part."""
        if isinstance(job, Apply):
            disk = self.medium.stores.disk
            share = self._random.choice((0.0, 0.5, 1.0))
            for op in job.ops:
                start, stop = op.offset // SECTOR_BYTES, (op.offset + op.length) // SECTOR_BYTES
                values = values_of_op(op)
                for sector in range(start, stop):
                    if self._random.random() < share:
                        value = values if isinstance(values, int) else values[sector - start]
                        disk.write(sector, sector + 1, value, fua=False)
        elif isinstance(job, SavePages):
            self.medium.stores.metadata.tear_pages(job.pages, self._random)

    def _fail(self, job: Apply) -> None:
        """It ends with an error; what its blocks hold is not known."""
        self._tear(job)
        stores = self.medium.stores
        for op in job.ops:
            start, stop = op.offset // SECTOR_BYTES, (op.offset + op.length) // SECTOR_BYTES
            stores.digests.forget(stores.disk, start, stop, values_of_op(op))
