"""One life of the data plane of a host: a `Session` in one role, and the disk that it works on.

As `pairsync.testing.sim.host` does it, for one volume, and without failures of disks, which that simulator
looks after: one lane for applies and reads, one for metadata, flushes beside them.  A life ends with its
process, or when the guest changes its role; the next one finds what lies on the disk.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

from pairsync.core.dirty import DirtyMap
from pairsync.core.effects import (
    Apply,
    AskAlone,
    Complete,
    DiskFailed,
    DropSession,
    Emit,
    Examine,
    Flush,
    Journal,
    MapAllocation,
    Persist,
    Read,
    SavePages,
    Send,
)
from pairsync.core.messages import Condition, Role
from pairsync.core.questions import FAN_OUT, Examined
from pairsync.core.session import Session
from pairsync.core.setup import VolumeSetup
from pairsync.core.tracker import ops_bytes
from pairsync.core.units import KIB, block_count_of
from pairsync.testing.sim.disk import SECTOR_BYTES, SECTORS_PER_BLOCK, ops_of_content, values_of_op
from pairsync.testing.sim.lane import Lane
from pairsync.testing.sim.media import Stores

if TYPE_CHECKING:
    from .host import GrantHost
    from .world import GrantWorld

__all__ = ["GuestRead", "Plane"]


def _everything(size_bytes: int) -> DirtyMap:
    blocks = block_count_of(size_bytes)
    every = DirtyMap(blocks)
    every.mark(0, blocks)
    return every


class GuestRead:
    """A read of the guest: ``then`` is given the content of these sectors, None if it failed."""

    __slots__ = ("start", "stop", "then")

    def __init__(self, start: int, stop: int, then: Callable[[list[int] | None], None]) -> None:
        self.start = start
        self.stop = stop
        self.then = then


class Plane:
    """See the module."""

    def __init__(self, world: GrantWorld, host: GrantHost, stores: Stores, role: Role, term: int) -> None:
        self.role = role
        self.ended = False
        self.paused = False
        """The guest is halted: nothing is served."""
        self.deaf = False
        """What the link brings is not heard, until its session is over."""
        self.closing = 0  # requests of `finish` that have not ended
        self.stores = stores
        self._world = world
        self._host = host
        self._random: Random = world.random
        self._speeds = world.profile.speeds
        self._lane = Lane(world.clock, partial(host.defer, self._io_done))
        self._metadata_lane = Lane(world.clock, partial(host.defer, self._metadata_done))
        self._flushing = 0
        self._flush_free_ns = 0
        self._perform: dict[type[Any], Callable[[Any], None]] = {
            Apply: lambda job: self._push(job, ops_bytes(job.ops)),
            Read: lambda job: self._push(job, 4 * KIB),
            Examine: lambda job: self._push(job, 0),
            Flush: self._on_flush,
            Journal: self._on_metadata,
            SavePages: self._on_metadata,
            Persist: self._on_metadata,
            MapAllocation: lambda job: self._push(job, 0),
            Send: lambda effect: world.network.link.send(host.index, effect.messages),
            Complete: self._on_complete,
            DropSession: self._on_drop,
            Emit: lambda effect: world.checker.event(host, effect.event),
            AskAlone: lambda _: host.ask_alone(),
            DiskFailed: lambda _: None,
        }
        metadata = stores.metadata
        if not metadata.superblock.clean:
            stores.digests.opened(metadata.intents())
        if role is Role.ACTIVE:
            stores.disk.flush(stores.disk.position)
            if not host.digests_settled:  # what a standby has left in disorder is not believed
                stores.digests.opened(_everything(metadata.superblock.size_bytes))
        self._digests_true = role is Role.ACTIVE or host.digests_settled
        host.digests_settled = role is Role.ACTIVE
        setup = VolumeSetup(
            metadata.superblock, metadata.recovered(), world.profile.options, metadata.first_generation
        )
        self.session = Session(
            guest="g",
            pair_id=metadata.superblock.pair_id,
            role=role,
            term=term,
            boot_id="boot",
            volumes=[setup],
            draw_tag=lambda: self._random.getrandbits(64),
            arbitrated=True,
        )

    # ------------------------------------------------------------------ questions

    @property
    def serves(self) -> bool:
        """Whether the guest runs on it."""
        return self.role is Role.ACTIVE and not self.paused and not self.ended

    def could_serve(self, *, new: bool, term: int) -> bool:
        """As `guest.roles.could_serve`."""
        session = self.session
        if session.sources:
            return self.paused or all(source.failed is None for source in session.sources)
        useless = {Condition.SYNCING} if new else {Condition.SYNCING, Condition.BLANK}
        blocks = [target.superblock for target in session.targets]
        return all(block.condition not in useless and block.term >= term for block in blocks)

    @property
    def idle(self) -> bool:
        """Whether no job runs."""
        return not (self._lane.jobs or self._metadata_lane.jobs or self._flushing)

    # ------------------------------------------------------------------ life

    def crash(self, *, power: bool) -> None:
        """The process dies in the midst of whatever was being done, or the power goes."""
        self.ended = True
        for jobs in (self._lane.clear(), self._metadata_lane.clear()):
            done = min(self._random.choice((0, 0, 1, 2, len(jobs))), len(jobs))
            for job in jobs[:done]:
                self._finish(job)
            if done < len(jobs):
                self._tear(jobs[done])
        self.stores.digests.crashed(self._random)
        if power:
            self.stores.disk.lose_cache(self._random, self._random.random())

    def end_in_order(self) -> None:
        """Nothing runs any more, and the disk is given up."""
        self.ended = True
        self.stores.digests.saved(self.stores.digests.saving())
        self._host.digests_settled = self._digests_true

    def perform(self) -> None:
        """Do, or begin, what the session wants done."""
        while not self.ended and (effects := self.session.take()):
            for effect in effects:
                self._perform[type(effect)](effect)

    def halt(self) -> None:
        """As the second half of `guest.roles.halt`: what was asked for ends with EIO."""
        self.session.abandon("the guest does not run here any more")
        self.perform()

    def finish(self) -> None:
        """As `guest.roles.finish`: `closing` falls to 0."""
        self.closing = len(self.session.sources)
        for source in self.session.sources:
            source.close("close", self._host.now_ns)
        self.perform()

    # ------------------------------------------------------------------ the disk

    def _cost(self, base_ns: int, size_bytes: int = 0) -> int:
        cost_ns = base_ns + self._speeds.disk_ns_per_kib * size_bytes // KIB
        return int(cost_ns * (0.5 + self._random.random()))

    def _push(self, job: object, size_bytes: int) -> None:
        self._lane.push(job, self._cost(self._speeds.disk_ns, size_bytes))

    def read(self, read: GuestRead) -> None:
        """The guest reads."""
        self._push(read, 0)

    def _io_done(self, job: object) -> None:
        session, stores, now_ns = self.session, self.stores, self._host.now_ns
        if self.ended:
            return
        if isinstance(job, Apply):
            self._finish(job)
            session.applied(job.volume, job.token, None, now_ns)
        elif isinstance(job, Read):
            for extent in job.extents:
                stores.digests.fill(stores.disk, range(*extent))
            content = stores.disk.content
            ops = [op for extent in job.extents for op in ops_of_content(content, *extent, len(content))]
            session.read_done(job.volume, job.number, job.extents, ops, now_ns)
        elif isinstance(job, Examine):
            session.examined(job.volume, job.token, self._examine(job), now_ns)
        elif isinstance(job, MapAllocation):
            session.mapped(job.volume, job.token, stores.disk.runs_with_content(), now_ns)
        elif isinstance(job, GuestRead):
            job.then(stores.disk.content[job.start : job.stop] if self.serves else None)
        self._host.perform()

    def _examine(self, job: Examine) -> Examined:
        disk, digests = self.stores.disk, self.stores.digests
        span = FAN_OUT**job.level
        blocks = range(job.first * span, min(job.stop * span, -(-disk.sector_count // SECTORS_PER_BLOCK)))
        digests.fill(disk, blocks)
        bad = digests.bad_in(disk, blocks) if job.read else ()
        return Examined(digests.answer(job.level, job.first, job.stop), bad)

    def _finish(self, job: object) -> None:
        metadata = self.stores.metadata
        if isinstance(job, Apply):
            for op in job.ops:
                start, stop = op.offset // SECTOR_BYTES, (op.offset + op.length) // SECTOR_BYTES
                self.stores.disk.write(start, stop, values_of_op(op), fua=op.fua)
                self.stores.digests.note(self.stores.disk, start, stop)
        elif isinstance(job, Journal):
            wrong = metadata.append(job.segment, job.generation, job.extents)
            if wrong is not None:
                self._world.fail("journal", wrong)
        elif isinstance(job, SavePages):
            metadata.write_pages(job.pages)
            metadata.release(job.release)
        elif isinstance(job, Persist):
            self._world.checker.persisted(self._host, metadata.superblock, job.superblock)
            metadata.superblock = job.superblock

    def _tear(self, job: object) -> None:
        """Nothing of it is there, or a part."""
        if isinstance(job, Apply):
            share = self._random.choice((0.0, 0.5, 1.0))
            for op in job.ops:
                start, stop = op.offset // SECTOR_BYTES, (op.offset + op.length) // SECTOR_BYTES
                values = values_of_op(op)
                for sector in range(start, stop):
                    if self._random.random() < share:
                        value = values if isinstance(values, int) else values[sector - start]
                        self.stores.disk.write(sector, sector + 1, value, fua=False)
        elif isinstance(job, SavePages):
            self.stores.metadata.tear_pages(job.pages, self._random)

    def _on_flush(self, effect: Flush) -> None:
        clock = self._world.clock
        self._flush_free_ns = max(self._flush_free_ns, clock.now) + self._cost(self._speeds.flush_ns)
        leaves = self.stores.digests.saving() if effect.point else None
        self._flushing += 1
        begun = self.stores.disk.position
        clock.at(self._flush_free_ns, self._host.defer, self._flush_done, effect, begun, leaves)

    def _flush_done(self, effect: Flush, position: int, leaves: dict[int, int] | None) -> None:
        if self.ended:
            return
        self._flushing -= 1
        if leaves is not None:
            self.stores.digests.saved(leaves)
        self.stores.disk.flush(position)
        self.session.flushed(effect.volume, effect.token, 0, self._host.now_ns)
        self._host.perform()

    def _on_metadata(self, effect: Journal | SavePages | Persist) -> None:
        self._metadata_lane.push(effect, self._cost(self._speeds.metadata_ns))

    def _metadata_done(self, job: object) -> None:
        if self.ended:
            return
        now_ns = self._host.now_ns
        self._finish(job)
        if isinstance(job, Journal):
            self.session.journaled(job.volume, job.token, 0, now_ns)
        elif isinstance(job, SavePages):
            self.session.saved(job.volume, job.token, 0, now_ns)
        elif isinstance(job, Persist):
            self.session.persisted(job.volume, job.token, 0, now_ns)
        self._host.perform()

    # ------------------------------------------------------------------ the rest

    def _on_complete(self, effect: Complete) -> None:
        if effect.ticket == "close":
            self.closing -= 1
        else:
            self._world.guest.complete(self._host, effect.ticket, effect.errnos)

    def _on_drop(self, effect: DropSession) -> None:
        self._world.trace.note(self._host.name, "drop-session", 0, effect.reason)
        if effect.refused:
            self.session.dropped(self._host.now_ns)
        self._world.network.link.drop(self._host.index, effect.reason)
