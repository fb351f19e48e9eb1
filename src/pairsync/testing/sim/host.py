"""A simulated host: it performs the effects of its `Session` in simulated time, and may die at any moment.

What it does is what the shell has to do (``core.effects``): one lane a volume for applies and reads, one for
its metadata, flushes beside them, messages into the link, completions to the guest.  What is durable
(`media.Replica`) outlives the process; everything else is rebuilt from it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pairsync.core.dirty import DirtyMap
from pairsync.core.effects import (
    Apply,
    Complete,
    DiskFailed,
    DropSession,
    Emit,
    Examine,
    Extend,
    Flush,
    Journal,
    MapAllocation,
    Persist,
    Read,
    SavePages,
    Send,
)
from pairsync.core.messages import Adopt, Begin, Message, Role, Write
from pairsync.core.session import Session
from pairsync.core.setup import VolumeSetup
from pairsync.core.tracker import ops_bytes
from pairsync.core.units import BLOCK_BYTES, KIB, NS_PER_MS, NS_PER_S

from .digests import Save
from .disk import SECTOR_BYTES
from .lane import Lane
from .media import PIECE_BLOCKS, Media, Replica, metadata_text

if TYPE_CHECKING:
    from .world import World

__all__ = ["SimHost"]

TICK_NS = NS_PER_S // 2

NO_ROOM = 0.1
"""How often there is no room for a volume to grow."""


class SimHost:
    """See the module."""

    def __init__(self, world: World, index: int, name: str, role: Role, replicas: list[Replica]) -> None:
        self.name = name
        self.index = index
        self.role = role
        self.replicas = replicas
        self.up = False
        self.session: Session | None = None
        self.incarnation = 0  # answers to an earlier process are dropped
        self.suspect = False  # a device failed in a way that only a restart mends
        self.closing = False  # an orderly end has begun: the guest submits nothing more
        self.stopping: set[str] = set()  # owners of `Source.close` that are awaited
        self._world = world
        self._clock = world.clock
        self._random = world.random
        self._media = Media(world, self)
        self._trace = world.trace
        self._perform: dict[type[Any], Callable[[Any], None]] = {
            Apply: self._on_apply,
            Read: self._on_read,
            Examine: self._on_examine,
            Extend: self._on_extend,
            Flush: self._on_flush,
            Journal: self._on_metadata,
            SavePages: self._on_metadata,
            Persist: self._on_metadata,
            MapAllocation: self._on_map,
            Send: self._on_send,
            Complete: self._on_complete,
            DropSession: self._on_drop,
            Emit: self._on_emit,
            DiskFailed: lambda _: None,  # no grant register here: what failed is told
        }
        for replica in replicas:
            self._new_lanes(replica)

    def _new_lanes(self, replica: Replica) -> None:
        replica.lane = Lane(self._clock, partial(self._io_done, replica))
        replica.metadata_lane = Lane(self._clock, partial(self._metadata_done, replica))

    # ------------------------------------------------------------------ life

    def start(self, term: int, *, role: Role | None = None) -> None:
        """A process begins: all that it knows is what it finds on the disks.

        ``role``: which an operator gives it, instead of its own.  Raises `ArbitrationError` where the core
        refuses that.
        """
        world = self._world
        for replica in self.replicas:
            replica.unsound, replica.unsettled = 0, False
            if replica.grow():
                replica.digests.grow(replica.disk, known=False)
            if not replica.metadata.superblock.clean:
                # What an active host reads now becomes a digest, and no log will say that it is in doubt.
                position = replica.disk.position if self.role is Role.ACTIVE else 0
                for written in replica.disk.flush(position):
                    world.checker.differences.written(replica.index, *written)
                intents = replica.metadata.intents()
                world.damage.excuse("in-the-log", replica, intents.runs())
                replica.digests.opened(intents)
        setups = [
            VolumeSetup(
                replica.metadata.superblock,
                replica.metadata.recovered(),
                world.profile.options,
                replica.metadata.first_generation,
                given=replica.digests.given,
            )
            for replica in self.replicas
        ]
        session = Session(
            guest="g",
            pair_id=self.replicas[0].metadata.superblock.pair_id,
            role=role or self.role,
            term=term,
            boot_id="boot",
            volumes=setups,
            draw_tag=lambda: self._random.getrandbits(64),
        )
        self.incarnation += 1
        self.up = True
        self.suspect = False
        self.closing = False
        self.stopping.clear()
        self._trace.note(self.name, "start", self.incarnation)
        self.session = session
        self.perform()
        self._clock.after(self._random.randrange(TICK_NS), self._tick, self.incarnation)
        world.link.host_up()

    def crash(self, *, power: bool) -> None:
        """The process, or the machine, is gone."""
        self._trace.note(self.name, "power-cut" if power else "crash", self.incarnation)
        self._down()
        for replica in self.replicas:
            self._interrupt(replica)
            self._world.damage.excuse("grown", replica, [replica.digests.crashed(self._random)])
            if power:
                keep = self._world.profile.cache_keep
                replica.disk.lose_cache(self._random, self._random.random() if keep is None else keep)
        self._world.damage.back(self)
        self._world.link.host_down(self.index, silent=power)

    def stop(self) -> None:
        """An orderly end, after `Source.close` where there is one: everything asked for is done."""
        self._trace.note(self.name, "stop", self.incarnation)
        for replica in self.replicas:
            for job in replica.lane.clear():
                self._media.finish(replica, job)
            for job in replica.metadata_lane.clear():
                self._media.finish(replica, job)
            self._world.damage.excuse("grown", replica, [replica.digests.crashed(self._random)])
        self._down()
        self._world.damage.back(self)
        self._world.link.host_down(self.index, silent=False)

    def _down(self) -> None:
        self.up = False
        self.session = None
        self.incarnation += 1

    def _interrupt(self, replica: Replica) -> None:
        """Some of the first jobs have been done and not reported; the one after them is torn."""
        replica.flush_free_ns = 0
        for jobs in (replica.lane.clear(), replica.metadata_lane.clear()):
            done = min(self._random.choice((0, 0, 1, 2, len(jobs))), len(jobs))
            for job in jobs[:done]:
                self._media.finish(replica, job)
            if done < len(jobs):
                self._media.tear(replica, jobs[done])

    def perform(self) -> None:
        """Do, or begin, what the session wants done."""
        session = self.session
        handlers = self._perform
        while session is not None and (effects := session.take()):
            for effect in effects:
                handlers[type(effect)](effect)
        self._world.after_step(self)

    def _tick(self, incarnation: int) -> None:
        if incarnation == self.incarnation and self.session is not None:
            self.session.tick(self._clock.now)
            self.perform()
            self._clock.after(TICK_NS, self._tick, incarnation)

    # ------------------------------------------------------------------ the link

    def link_up(self) -> None:
        """A session of the link has begun."""
        if self.session is not None:
            self._world.checker.stream.session_begins(self)
            self.session.connected(self._clock.now)
            self.perform()

    def link_lost(self, reason: str) -> None:
        """It has ended."""
        if self.session is not None:
            self.session.lost(reason, self._clock.now)
            self.perform()

    def link_received(self, messages: Sequence[Message]) -> None:
        """Messages have arrived."""
        if self.session is not None:
            for message in messages:
                self._trace.note(self.name, "received", len(messages), message)
            self.session.received(messages, self._clock.now)
            self.perform()

    def _on_send(self, effect: Send) -> None:
        if self.role is Role.ACTIVE:
            for message in effect.messages:
                if isinstance(message, Write):
                    self._world.checker.stream.write_leaves(message)
                elif isinstance(message, Adopt):
                    self._world.checker.differences.agreed(message.volume)
                elif isinstance(message, Begin):
                    self._world.faults.begins(message.volume)
                    self._world.coverage.reach(f"mode:{message.plan.mode.name.lower()}")
                    self._world.coverage.reach(f"rule:{message.plan.rule}")
        self._world.link.send(self.index, effect.messages)

    def _on_drop(self, effect: DropSession) -> None:
        self._trace.note(self.name, "drop-session", effect.refused, effect.reason)
        if "grows first" in effect.reason:
            self._world.coverage.reach(f"grows-first:{self.name}")
        if self.session is not None and effect.refused:
            self.session.dropped(self._clock.now)
        self._world.link.drop(self.index, effect.reason)

    def _on_emit(self, effect: Emit) -> None:
        self._trace.note(self.name, "event", 0, effect.event)
        self._world.event(self, effect.event)

    # ------------------------------------------------------------------ the volume

    def _cost(self, replica: Replica, base_ns: int, size_bytes: int = 0) -> int:
        speeds = self._world.profile.speeds
        cost = (base_ns + speeds.disk_ns_per_kib * size_bytes // KIB) * replica.slow
        return int(cost * (0.5 + self._random.random()))

    def _on_apply(self, effect: Apply) -> None:
        replica = self.replicas[effect.volume]
        replica.applies_asked += 1
        if self.role is Role.STANDBY:
            self._world.checker.stream.apply_asked(self, effect)
        cost = self._cost(replica, self._world.profile.speeds.disk_ns, ops_bytes(effect.ops))
        replica.lane.push(effect, cost)

    def _on_read(self, effect: Read) -> None:
        replica = self.replicas[effect.volume]
        size = sum(min(extent.block_count, PIECE_BLOCKS) for extent in effect.extents) * BLOCK_BYTES
        replica.lane.push(effect, self._cost(replica, self._world.profile.speeds.disk_ns, size))

    def _on_examine(self, effect: Examine) -> None:
        replica = self.replicas[effect.volume]
        replica.lane.push(effect, self._cost(replica, self._world.profile.speeds.disk_ns))

    def _on_extend(self, effect: Extend) -> None:
        replica = self.replicas[effect.volume]
        replica.lane.push(effect, self._cost(replica, self._world.profile.speeds.flush_ns))

    def _io_done(self, replica: Replica, job: object) -> None:
        session = self.session
        if session is None:
            return
        now = self._clock.now
        if isinstance(job, Apply):
            self._trace.note(self.name, "applied", replica.index, job)
            errnos = self._media.finish(replica, job)
            session.applied(job.volume, job.token, errnos, now)
        elif isinstance(job, Read):
            self._trace.note(self.name, "read", job.number, job.extents)
            if replica.armed.read:
                error, replica.armed.read = replica.armed.read, 0
                self._world.coverage.fault("read-eio-active", job.volume)
                session.read_failed(job.volume, job.number, error, now)
            else:
                covered = [self._media.covered(replica.disk, extent) for extent in job.extents]
                session.read_done(job.volume, job.number, self._media.read(replica, covered), now)
        elif isinstance(job, Examine):
            self._trace.note(self.name, "examined", job.level, f"{job.first}..{job.stop}")
            session.examined(job.volume, job.token, self._media.examine(replica, job), now)
        elif isinstance(job, Extend):
            error = errno.ENOSPC if self._random.random() < NO_ROOM else 0
            self._trace.note(self.name, "extended", error, str(job.size_bytes))
            session.extended(job.volume, job.token, job.size_bytes, error, now)
        elif isinstance(job, Persist):  # recorded already: a volume has grown
            replica.grow()
            replica.digests.grow(replica.disk, known=True)
            session.persisted(job.volume, job.token, 0, now)
        self.perform()

    def _on_flush(self, effect: Flush) -> None:
        replica = self.replicas[effect.volume]
        begins_ns = max(replica.flush_free_ns, self._clock.now)
        replica.flush_free_ns = begins_ns + self._cost(replica, self._world.profile.speeds.flush_ns)
        saves = effect.digests and self._world.profile.options.digests
        save = replica.digests.saving(effect.milestone) if saves else None
        begun = (replica.disk.position, save)
        self._clock.at(replica.flush_free_ns, self._flush_done, self.incarnation, replica, effect, begun)

    def _flush_done(
        self, incarnation: int, replica: Replica, effect: Flush, begun: tuple[int, Save | None]
    ) -> None:
        session = self.session
        if incarnation != self.incarnation or session is None:
            return
        error, replica.armed.flush = replica.armed.flush, 0
        self._trace.note(self.name, "flushed", replica.index, str(error))
        if error:
            # The kernel forgets that the pages were dirty: what is not on the disk is gone for good.
            self._world.coverage.fault(f"flush-fails-{self.name}", effect.volume)
            self.suspect = self.suspect or self.role is Role.ACTIVE
            replica.disk.lose_cache(self._random, self._random.random())
            self._world.damage.back(self)
            self._world.checker.cache_lost(self, replica.index)
        elif replica.unsound:
            error = replica.unsound  # `BlockFile.sound`: no flush of that file succeeds any more
        else:
            position, save = begun
            if save is not None:
                replica.digests.saved(save, effect.milestone)
            for start, stop in replica.disk.flush(position):
                self._world.checker.differences.written(replica.index, start, stop)
        session.flushed(effect.volume, effect.token, error, self._clock.now)
        # A standby that hears of it opens its files anew.  If it does not, because an earlier session had
        # asked for the flush, the next one fails too.
        heard = bool(session.sources) or session.targets[effect.volume].failed is not None
        replica.unsound = 0 if heard else error
        self.perform()

    def _on_map(self, effect: MapAllocation) -> None:
        replica = self.replicas[effect.volume]
        cost = self._cost(replica, NS_PER_MS)
        runs = replica.disk.runs_with_content()  # as of some moment before the answer: the first is the worst
        self._clock.after(cost, self._mapped, self.incarnation, effect, runs)

    def _mapped(self, incarnation: int, effect: MapAllocation, runs: list[tuple[int, int]]) -> None:
        if incarnation == self.incarnation and self.session is not None:
            self._trace.note(self.name, "mapped", len(runs))
            self.session.mapped(effect.volume, effect.token, runs, self._clock.now)
            self.perform()

    # ------------------------------------------------------------------ metadata

    def _on_metadata(self, effect: Journal | SavePages | Persist) -> None:
        replica = self.replicas[effect.volume]
        replica.metadata_lane.push(effect, self._cost(replica, self._world.profile.speeds.metadata_ns))
        if isinstance(effect, Persist):
            self._world.checker.persist_asked(self, effect)

    def _metadata_done(self, replica: Replica, job: object) -> None:
        session = self.session
        if session is None:
            return
        now = self._clock.now
        error = 0
        armed = replica.armed
        if armed.journal and isinstance(job, Journal):
            error, armed.journal = armed.journal, 0
            self._world.coverage.fault("journal-fails", replica.index)
        elif armed.metadata and not isinstance(job, Journal):
            error, armed.metadata = armed.metadata, 0
            self._world.coverage.fault(f"metadata-fails-{self.name}", replica.index)
            self.suspect = True
        self._trace.note(self.name, type(job).__name__.lower(), error, metadata_text(job))
        outcome = self._random.randrange(3) if error else 0  # what failed may have happened all the same
        if outcome == 0:
            self._media.finish(replica, job)
        elif outcome == 1:
            self._media.tear(replica, job)
        if isinstance(job, Journal):
            session.journaled(job.volume, job.token, error, now)
        elif isinstance(job, SavePages):
            session.saved(job.volume, job.token, error, now)
        elif isinstance(job, Persist):
            replica.unsettled = bool(error)
            if not error and job.superblock.size_bytes > replica.disk.sector_count * SECTOR_BYTES:
                replica.lane.push(job, self._cost(replica, self._world.profile.speeds.disk_ns))
            else:
                session.persisted(job.volume, job.token, error, now)
        self.perform()

    # ------------------------------------------------------------------ the guest

    def _on_complete(self, effect: Complete) -> None:
        owner = effect.ticket
        if isinstance(owner, str):  # of `Source.close`
            self._world.require(owner in self.stopping, "complete", f"{owner} completed unasked")
            self.stopping.discard(owner)
            if effect.errnos is not None:
                self.suspect = True
            return
        self._world.complete(owner, effect.errnos)

    def own_dirty(self, volume: int) -> DirtyMap:
        """What a standby would mark: blocks that it wrote in an earlier role."""
        return self.replicas[volume].metadata.recovered()
