"""The simulated world: two hosts, a link, a guest, faults and checks, all from one seed.

A run has a *safety phase*, in which faults strike and the rules are checked after every step, and a *liveness
phase*: faults end, hosts are started, the link works, and everything must become whole in bounded time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random
from typing import NoReturn, Protocol

from pairsync.core.events import (
    DifferenceEvent,
    Event,
    InSyncEvent,
    RefusedEvent,
    ScrubEvent,
    ScrubFindingEvent,
    TroubleEvent,
)
from pairsync.core.messages import Role
from pairsync.core.standing import Phase
from pairsync.core.units import NS_PER_S
from pairsync.errors import PairsyncError

from .checker import Checker
from .clock import Clock, Trace
from .coverage import Coverage
from .damage import Damage
from .disk import SECTOR_BYTES
from .faults import Faults
from .guest import Guest
from .host import SimHost
from .link import Link
from .profile import Profile, draw_profile
from .start import make_replicas

__all__ = ["Outcome", "SimulationFailure", "World", "outcome_of", "simulate"]

HEAL_NS_MAX = 400 * NS_PER_S
"""How long the liveness phase may take: twice the longest hold-off, peer deadlines, and the copying."""

PLAN_RULES = frozenset(
    {
        "active-behind",
        "active-not-consistent",
        "active-rolled-back",
        "another-volume",
        "diverged",
        "interrupted-unrelated",
        "rolled-back-apart",
        "size-differs",
        "stale-term",
        "two-owners",
        "unrelated",
        "volumes-differ",
    }
)
"""Refusals that say what the two hosts have lived through: nothing of such a session is applied."""

REQUEST_NS_MAX = 150 * NS_PER_S
"""How long a request may take while its host is up: several peer deadlines, one after the other."""


class SimulationFailure(Exception):
    """A rule was broken."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a seed has come to."""

    seed: int
    failure: str | None  # the rule and why; None: all well
    trace: tuple[str, ...]  # the last lines, if it failed
    digest: int
    events: int
    simulated_ns: int
    requests: int
    coverage: dict[str, int]
    rule: str | None = None


class _Counts(Protocol):
    @property
    def counts(self) -> Counter[str]: ...


class _Guest(Protocol):
    @property
    def completed(self) -> int: ...


class _Runs(Protocol):
    """A world of either simulator of the core."""

    @property
    def seed(self) -> int: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def trace(self) -> Trace: ...
    @property
    def coverage(self) -> _Counts: ...
    @property
    def guest(self) -> _Guest: ...

    def run(self) -> None: ...


def outcome_of(world: _Runs) -> Outcome:
    """Run it; never raises for what the core does."""
    failure = rule = None
    try:
        world.run()
    except SimulationFailure as broken:
        failure, rule = str(broken), broken.rule
    except PairsyncError as raised:
        rule = "raised"
        failure = f"the core raised {type(raised).__name__}: {raised}"
    return Outcome(
        world.seed,
        failure,
        tuple(world.trace.recent()) if failure else (),
        world.trace.digest,
        world.clock.events,
        world.clock.now,
        world.guest.completed,
        dict(world.coverage.counts),
        rule,
    )


class World:
    """See the module."""

    def __init__(self, seed: int, profile: Profile | None = None) -> None:
        self.seed = seed
        self.random = Random(seed)  # noqa: S311 - reproducible on purpose, nothing secret
        self.profile = draw_profile(self.random) if profile is None else profile
        self.clock = Clock()
        self.trace = Trace(self.clock)
        self.coverage = Coverage(self)
        self.term = 1
        sector_counts = [
            self.profile.device_bytes(index) // SECTOR_BYTES for index in range(len(self.profile.sizes_bytes))
        ]
        self.guest = Guest(self, sector_counts)
        mine, theirs = make_replicas(self)
        self.active = SimHost(self, 0, "active", Role.ACTIVE, mine)
        self.standby = SimHost(self, 1, "standby", Role.STANDBY, theirs)
        self.hosts = (self.active, self.standby)
        self.checker = Checker(self)
        self.damage = Damage(self)
        self.link = Link(self)
        self.checker.begin(self.profile.start)
        self.faults = Faults(self)

    # ------------------------------------------------------------------ what the parts tell

    def fail(self, rule: str, text: str) -> NoReturn:
        """A rule is broken."""
        raise SimulationFailure(rule, text)

    def require(self, holds: bool, rule: str, text: str) -> None:
        """Fail unless it holds."""
        if not holds:
            self.fail(rule, text)

    def after_step(self, host: SimHost) -> None:
        """A host has performed a bundle."""
        self.checker.step(host)

    def complete(self, owner: object, errnos: object) -> None:
        """A request of the guest has ended."""
        self.guest.complete(owner, errnos)  # type: ignore[arg-type]

    def event(self, host: SimHost, event: Event) -> None:
        """A session emitted it."""
        if isinstance(event, RefusedEvent):
            self.coverage.reach(f"refused:{event.rule}")
            self.faults.refused(event.rule)
            if event.rule in PLAN_RULES:
                self.checker.stream.refused()
        elif isinstance(event, InSyncEvent):
            if host is self.active:
                self.coverage.reach("in-sync")
            else:
                self.checker.adopted(self.volume_of(host, event.volume))
        elif isinstance(event, DifferenceEvent):
            self.coverage.reach("differences-found")
            volume = self.volume_of(host, event.volume)
            if not self.damage.explains(volume, event):
                self.checker.alarm(volume)
        elif isinstance(event, TroubleEvent):
            self.faults.trouble(host)
        elif isinstance(event, ScrubEvent):
            self.coverage.reach("scrub")
            self.damage.scrubbed(self.volume_of(host, event.volume), event)
        elif isinstance(event, ScrubFindingEvent):
            self.damage.finding(self.volume_of(host, event.volume), event)

    def volume_of(self, host: SimHost, name: str) -> int:
        """The number of a volume that an event names."""
        return next(each.index for each in host.replicas if each.metadata.superblock.name == name)

    def phase_changed(self, volume: int, before: Phase, after: Phase) -> None:
        """The peer's phase of one volume has changed."""
        self.trace.note("active", "phase", volume, f"{before.value} -> {after.value}")
        self.coverage.reach(f"phase:{after.value}")
        if after in {Phase.ABSENT, Phase.BEHIND}:
            self.damage.parted()
        self.faults.ambush(after)
        self.guest.stir()
        if after is Phase.IN_SYNC:
            self.faults.drag()

    # ------------------------------------------------------------------ the run

    def run(self) -> None:
        """Both phases; raises `SimulationFailure`."""
        self.active.start(self.term)
        self.standby.start(self.term)
        self.guest.begin()
        self.faults.begin()
        until = self.profile.safety_ns
        while self.clock.now < until:
            self.clock.run_until(min(self.clock.now + 5 * NS_PER_S, until))
            self._check_requests()
        self._heal()

    def _check_requests(self) -> None:
        """No request of the guest waits for ever."""
        for request in self.guest.requests.values():
            if self.clock.now - request.asked_ns > REQUEST_NS_MAX:
                self.fail("hang", f"request {request.number} was made {REQUEST_NS_MAX / NS_PER_S:g} s ago")
            break

    def _heal(self) -> None:
        """The liveness phase."""
        self.trace.note("world", "heal")
        self.guest.rest()
        self.faults.end()
        deadline = self.clock.now + HEAL_NS_MAX
        flushed = False
        while self.clock.now < deadline:
            self.clock.run_until(self.clock.now + NS_PER_S)
            self._check_requests()
            self.faults.repair()
            if self._whole() and not self.guest.requests:
                if flushed and self._clean():
                    if not self.damage.outstanding:
                        break
                    self.faults.scrub()
                if not flushed:
                    for volume in range(len(self.guest.histories)):
                        self.guest.flush(volume)
                    flushed = True
        else:
            self.fail("liveness", self._why_not())
        self.checker.full()
        for mine, theirs in zip(self.active.replicas, self.standby.replicas, strict=True):
            if mine.disk.content != theirs.disk.content:
                self.fail("liveness", f"volume {mine.index}: in sync, and the disks differ")
            if mine.disk.sector_count != theirs.disk.sector_count:
                self.fail("liveness", f"volume {mine.index}: in sync, and the sizes differ")

    def _whole(self) -> bool:
        mine, theirs = self.active.session, self.standby.session
        return mine is not None and theirs is not None and mine.in_sync and theirs.in_sync

    def _clean(self) -> bool:
        session = self.active.session
        return session is not None and not any(source.tracker.dirty() for source in session.sources)

    def _why_not(self) -> str:
        parts = [f"not whole after {HEAL_NS_MAX / NS_PER_S:g} s:"]
        for host in self.hosts:
            session = host.session
            if session is None:
                parts.append(f"{host.name} is down;")
                continue
            parts.append(f"{host.name} {session.phase.value} (refusal {session.refusal});")
            parts.extend(
                f"volume {source.index} {source.standing.phase.value} failed={source.failed}"
                f" dirty {source.tracker.dirty().describe()};"
                for source in session.sources
            )
        requests = self.guest.requests
        if requests:
            parts.append(f"{len(requests)} requests wait, the first is {next(iter(requests))}")
        return " ".join(parts)


def simulate(seed: int, profile: Profile | None = None) -> Outcome:
    """Run one seed; never raises for what the core does."""
    return outcome_of(World(seed, profile))
