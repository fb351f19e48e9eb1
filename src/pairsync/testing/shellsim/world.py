"""The simulated world: two hosts with the real shell, a network, a guest, faults and checks, from one seed.

A run has a *safety phase*, in which faults strike, and a *liveness phase*: faults end, hosts are started, the
link works, and everything must become whole in bounded virtual time; then both hosts are closed in order, and
nothing may be left: no task, no connection, no request, no dirty block.

**Deterministic.**  One trio run under a mock clock, whose scheduler is seeded; disks work inline
(`InlineLane`: a simulated file lies in memory), so there is no thread.  TLS draws its own randomness, but all
its lengths are the same every time (Ed25519), so the course of events is.
"""

from __future__ import annotations

import logging
import traceback
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import NoReturn
from unittest.mock import patch

import trio
import trio._core._run as trio_run
import trio.testing

from pairsync.core.events import (
    BehindEvent,
    Event,
    InSyncEvent,
    PeerEvent,
    RefusedEvent,
    ResyncEvent,
    ScrubFindingEvent,
    TroubleEvent,
)
from pairsync.core.messages import Role
from pairsync.core.standing import Phase
from pairsync.core.units import NS_PER_S
from pairsync.errors import ProtocolError
from pairsync.guest.config import GuestConfig, VolumeConfig
from pairsync.io.config import LinkConfig, PathConfig
from pairsync.storage.metadata import load_metadata, metadata_path
from pairsync.testing.sim.world import Outcome

from .checker import Checker
from .damage import Damage
from .faults import Faults
from .host import Life, SimHost
from .identity import identities
from .network import SimNetwork
from .profile import Profile, draw_profile
from .start import PAIR_ID, data_name, make_start
from .trace import Timers, Trace
from .writer import Writer

__all__ = ["Outcome", "SimulationFailure", "World", "simulate", "simulate_quietly"]

HEAL_S_MAX = 400.0
"""How long the liveness phase may take: several of the longest hold-offs, peer deadlines, and the copying."""

REQUEST_NS_MAX = 150 * NS_PER_S
"""How long a request may take while its host is up: several peer deadlines, one after the other."""

LOOK_S = 1.0
"""Between two looks at what goes on."""

PORT = 7000
STOP_S_MAX = 60.0

ZOMBIE_S_MAX = 40.0
"""How long the tasks of a process that has died may be on their way out: as long as closing may take."""

HONEST_REFUSALS = frozenset({"peer-left", "peer-failed", "silent-peer", "volume-failed"})
"""Why a session of two honest hosts that keep their roles may be refused; anything else is a bug."""


class SimulationFailure(Exception):
    """A rule was broken."""


class World:
    """See the module."""

    nursery: trio.Nursery

    def __init__(self, seed: int, profile: Profile | None = None) -> None:
        self.seed = seed
        draws = Random(f"profile {seed}")  # noqa: S311 - reproducible on purpose, nothing secret
        self.profile = draw_profile(draws) if profile is None else profile
        # Streams of their own, so that a change in one thing leaves the others as they were.
        self.chance, self.habits, self.disks, self._wires = (
            Random(f"{what} {seed}")  # noqa: S311 - the same
            for what in ("faults", "writer", "disks", "network")
        )
        self.failure: str | None = None
        self.rule: str | None = None
        self.ending = False
        self.strange: list[str] = []  # texts of every `ProtocolError`
        self.coverage: Counter[str] = Counter()
        self.timers = Timers()
        self.trace = Trace(lambda: self.fail("spin", "the trace has become too long"))
        self.net = SimNetwork(self.timers, self._wires, self.profile.paths, ("active", "standby"))
        self.writer = Writer(self)
        self.active = SimHost(self, "active", Role.ACTIVE)
        self.standby = SimHost(self, "standby", Role.STANDBY)
        self.hosts = (self.active, self.standby)
        self.term = 2 if self.profile.start == "switched" else 1
        self.checker = Checker(self)
        self.damage = Damage(self)
        self.faults = Faults(self)
        make_start(self)

    # ------------------------------------------------------------------ hosts

    def keep(self, choices: int) -> int:
        """After a power cut: which of the contents that a sector has had is left."""
        keep = self.profile.cache_keep
        if keep is None:
            return self.disks.randrange(choices)
        return choices - 1 if self.disks.random() < keep else 0

    def start(self, host: SimHost) -> None:
        """Begin a life of a host."""
        profile = self.profile
        if host.role is Role.ACTIVE:
            self.term += self.chance.random() < 0.2
        other = self.standby if host is self.active else self.active
        dialer, listener = identities()
        dials = profile.active_dials is (host is self.active)
        mine, theirs = (dialer, listener) if dials else (listener, dialer)
        link = LinkConfig(
            identity=mine,
            peer_certificate_pem=theirs.certificate_pem,
            pair_id=PAIR_ID,
            listen=() if dials else tuple((f"{host.name}.{path}", PORT) for path in profile.paths),
            paths=tuple(
                PathConfig(path, (f"{other.name}.{path}", PORT), f"{host.name}.{path}")
                for path in profile.paths
            ),
            timings=profile.timings,
        )
        volumes = [
            VolumeConfig(data_name(index), data_name(index), profile.options)
            for index in range(len(profile.sizes_bytes))
        ]
        host.start(GuestConfig("guest", PAIR_ID, host.role, volumes, link, self.term))

    def opened(self, life: Life, users: trio.Nursery) -> None:
        """A guest is open."""
        self.trace.note(life.host.name, "open")
        if life.host is self.active:
            life.users = users
            self.writer.begin(life, users)

    def closed(self, life: Life) -> None:
        """A guest was closed in order."""
        host = life.host
        if host is self.active:
            if self.writer.requests:
                self.fail("answer", f"closed in order, and not answered: {sorted(self.writer.requests)[:8]}")
            for index, replica in enumerate(life.replicas.values()):
                if not replica.store.superblock.clean and not host.suspect and not life.failed:
                    self.fail("closed", f"volume {index}: closed in order, and not recorded as clean")
        self.faults.life_ended(host)

    # ------------------------------------------------------------------ what the parts tell

    def fail(self, rule: str, text: str) -> NoReturn:
        """A rule is broken."""
        if self.failure is None:
            self.rule, self.failure = rule, f"{rule}: {text}"
            self.end()
        raise SimulationFailure(f"{rule}: {text}")

    def raised(self, who: str, error: BaseException) -> None:
        """A host that is alive has raised."""
        if self.failure is None:
            lines = "".join(traceback.format_exception(error))
            self.rule, self.failure = "raised", f"raised: {who}: {type(error).__name__}: {error}\n{lines}"
            self.end()

    def broke_the_protocol(self, text: str) -> None:
        """Stands in for the `__init__` of `ProtocolError`: two honest hosts have no reason to raise it."""
        self.strange.append(text)

    def end(self) -> None:
        """Wind everything up."""
        self.ending = True
        self.nursery.cancel_scope.cancel()

    def reach(self, name: str) -> None:
        """Something worth counting has been reached."""
        self.coverage[name] += 1

    def refused(self, event: RefusedEvent) -> None:
        """A session was refused."""
        self.reach(f"refused:{event.rule}")
        if event.rule not in HONEST_REFUSALS:
            self.fail("refused", event.describe())

    def event(self, life: Life, event: Event) -> None:
        """A host emitted it."""
        active = life.host is self.active
        if isinstance(event, ResyncEvent) and active:
            self.reach(f"mode:{event.mode}")
            self.reach(f"rule:{event.rule}")
        elif isinstance(event, InSyncEvent) and active:
            self.reach("in-sync")
            self.reach(f"level:{self.profile.options.level}")
        elif isinstance(event, BehindEvent):
            self.reach("behind")
        elif isinstance(event, PeerEvent) and not event.connected:
            self.reach("session-lost")
        elif isinstance(event, ScrubFindingEvent):
            self.damage.finding(list(life.replicas).index(event.volume), event)
        elif isinstance(event, TroubleEvent) and event.fatal:
            life.failed = True

    def phase_changed(self, volume: int, before: Phase, after: Phase) -> None:
        """The peer's phase of one volume has changed."""
        self.trace.note("active", "phase", f"{volume} {before.value} -> {after.value}")
        self.reach(f"phase:{after.value}")
        if after in {Phase.ABSENT, Phase.BEHIND}:
            self.damage.peer_parted()
        self.faults.ambush(after)

    # ------------------------------------------------------------------ the run

    async def run(self) -> None:
        """Both phases; the outcome is in `failure`."""
        async with trio.open_nursery() as self.nursery:
            self.nursery.start_soon(self.timers.run)
            await self._run()
            self.ending = True
            self.nursery.cancel_scope.cancel()

    async def _run(self) -> None:
        for host in self.hosts:
            self.start(host)
        self.faults.begin()
        until = trio.current_time() + self.profile.safety_ns / NS_PER_S
        while trio.current_time() < until:
            await trio.sleep(LOOK_S)
            self._look()
        await self._heal()
        await self._close()

    def _look(self) -> None:
        """No request waits for ever, nobody broke the protocol, what has stopped for good is noticed."""
        if self.strange:
            self.fail("protocol", "; ".join(self.strange))
        for request in self.writer.requests.values():
            if self.timers.now_ns() - request.asked_ns > REQUEST_NS_MAX:
                self.fail("hang", f"request {request.number} was made {REQUEST_NS_MAX / NS_PER_S:g} s ago")
            break
        for host in self.hosts:
            if host.life is not None and host.life.broken():
                self.faults.stopped_serving(host.life)
            link = None if host.guest is None else host.guest.link
            if link is not None and link.statistics().frames_resent:
                self.reach("took-over")

    async def _heal(self) -> None:
        self.trace.note("world", "heal")
        self.writer.writing = False
        self.faults.end()
        until = trio.current_time() + HEAL_S_MAX
        flushed_in: Life | None = None
        while trio.current_time() < until:
            await trio.sleep(LOOK_S)
            self._look()
            for host in self.hosts:
                if not host.up and self.chance.random() < 0.2:
                    self.start(host)
            if not self._whole():
                continue
            life = self.active.life
            if flushed_in is life and self._clean():
                self.damage.strike_last()
                if not self.damage.outstanding:
                    self._compare()
                    return
                self._scrub()
            if flushed_in is not life and life is not None and life.guest is not None:
                for index, volume in enumerate(life.guest.volumes.values()):
                    self.nursery.start_soon(self.writer.flush, life, index, volume)
                flushed_in = life
        self.fail("liveness", self._why_not())

    def _scrub(self) -> None:
        """What an operator does who does not wait for the next scrub."""
        guest = self.active.guest
        if guest is not None:
            for source in guest.session.sources:
                source.scrubber.start(None, repair=True, now_ns=guest.now_ns())
                source.advance(guest.now_ns())
            guest.perform()

    def _whole(self) -> bool:
        mine, theirs = self.active.guest, self.standby.guest
        if mine is None or theirs is None or self.writer.requests:
            return False
        return mine.in_sync and theirs.in_sync

    def _clean(self) -> bool:
        guest = self.active.guest
        return guest is not None and not any(source.tracker.dirty() for source in guest.session.sources)

    def _compare(self) -> None:
        self.checker.full()
        for index in range(len(self.profile.sizes_bytes)):
            name = data_name(index)
            if self.active.medium.content(name) != self.standby.medium.content(name):
                self.fail("liveness", f"volume {index}: in sync, and the disks differ")

    def _why_not(self) -> str:
        parts = [f"not whole after {HEAL_S_MAX:g} s:"]
        for host in self.hosts:
            guest = host.guest
            if guest is None:
                parts.append(f"{host.name} is {'not open' if host.up else 'down'};")
                continue
            session = guest.session
            parts.append(f"{host.name} {session.phase.value} (refusal {session.refusal});")
            parts.extend(
                f"volume {source.index} {source.standing.phase.value} failed={source.failed}"
                f" dirty {source.tracker.dirty().count};"
                for source in session.sources
            )
        if self.writer.requests:
            parts.append(f"{len(self.writer.requests)} requests wait")
        return " ".join(parts)

    async def _close(self) -> None:
        """Close both hosts in order; nothing may be left."""
        self._look()
        self.trace.note("world", "close")
        self.ending = True
        order = [host for host in self.hosts if host.life is not None]
        self.chance.shuffle(order)
        for host in order:
            if host.life is not None:
                host.life.stop.set()
                with trio.move_on_after(STOP_S_MAX):
                    await host.life.ended.wait()
                if host.up:
                    self.fail("hang", f"{host.name} does not close")
        with trio.move_on_after(ZOMBIE_S_MAX):
            for host in self.hosts:
                for life in host.dying:
                    await life.ended.wait()
        if self.net.connections or self.net.listeners:
            ends = [f"{each.local} -> {each.remote}" for each in self.net.connections]
            self.fail("leak", f"connections are left open: {ends} {list(self.net.listeners)}")
        tasks = [task.name for task in self.nursery.child_tasks]
        if len(tasks) > 1:
            self.fail("leak", f"tasks are left: {sorted(tasks)}")
        self._check_closed()

    def _check_closed(self) -> None:
        """What is on the disks of two hosts that were in sync and closed in order: nothing is dirty."""
        for host in self.hosts:
            for index in range(len(self.profile.sizes_bytes)):
                name = metadata_path(data_name(index))
                opened = load_metadata(host.medium.open(name))
                if opened.intents or any(any(page.content) for page in opened.pages):
                    self.fail("closed", f"{host.name} {name}: dirty after an orderly end")
                if host is self.active and not (opened.superblock.clean and opened.superblock.peer_in_sync):
                    self.fail("closed", f"{name}: not recorded as closed in order and in sync")


def simulate(
    seed: int, profile: Profile | None = None, *, echo: Callable[[str], None] | None = None
) -> Outcome:
    """Run one seed; ``echo`` is told every line of the trace.  Not to be called from within a trio run."""
    world = World(seed, profile)
    world.trace.echo = echo
    clock = trio.testing.MockClock(autojump_threshold=0)
    state = trio_run._r.getstate()
    with (
        patch.object(trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
        patch.object(ProtocolError, "__init__", world.broke_the_protocol),
    ):
        trio_run._r.seed(seed)
        try:
            trio.run(world.run, clock=clock)
        except BaseException as error:
            if world.failure is None:
                if not isinstance(error, Exception):
                    raise
                world.raised("world", error)
        finally:
            trio_run._r.setstate(state)
    failed = world.failure is not None
    return Outcome(
        seed,
        world.failure,
        tuple(world.trace.recent()) if failed else (),
        world.trace.digest,
        world.trace.lines,
        round(clock.current_time() * NS_PER_S),
        world.writer.answered,
        dict(world.coverage),
        world.rule,
    )


def simulate_quietly(seed: int) -> Outcome:
    """Likewise; what the hosts log is not worth a line for each of thousands of faults."""
    logging.getLogger("pairsync").setLevel(logging.CRITICAL + 1)
    return simulate(seed)
