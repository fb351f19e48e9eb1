"""Changes of a host's role, and its guard: what ``guest.arbitration`` and ``guest.roles`` do with tasks.

One change after the other, the latest wish first; each step is a timer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from pairsync.core.arbiter import Arbiter
from pairsync.core.arbitration import Effect, Own, Stop, Yield
from pairsync.core.messages import Role
from pairsync.core.session import SessionPhase
from pairsync.core.units import NS_PER_MS, NS_PER_S
from pairsync.errors import ArbitrationError
from pairsync.testing.sim.media import Stores

from .plane import Plane
from .process import Process
from .releases import CURRENT

if TYPE_CHECKING:
    from .host import GrantHost
    from .world import GrantWorld

__all__ = ["Roles", "Wish"]

LOOK_NS = 5 * NS_PER_MS
"""Between two looks whether something has ended, as ``guest.roles``."""
SETTLE_NS = 10 * NS_PER_S
END_NS = 60 * NS_PER_S
"""Of an orderly end: a change of the role first, with a guest that is halted in order and one that begins."""

Wish: TypeAlias = Own | Stop | Yield


class Roles(Process, ABC):
    """See the module."""

    def __init__(self, world: GrantWorld, index: int, stores: Stores) -> None:
        super().__init__(world.clock, world.random, world.profile.rates_ppm[index])
        self.name = "ab"[index]
        self.index = index
        self.stores = stores
        self.arbiter: Arbiter | None = None  # while the host is up; likewise the next
        self.plane: Plane | None = None
        self.wish: Wish | None = None  # the latest that was not taken up
        self.changing = False  # a change of the role is under way
        self.ending = False  # the process ends in order, once that is over
        self.release = self.installed = CURRENT  # what the process is, and what the next one will be
        self.alone = False  # the permit that the session has
        self.lease_ns: int | None = None  # as told last
        self.guard_ns: int | None = None  # when the guard kills
        self._world = world

    @property
    def _me(self) -> GrantHost:
        return self._world.hosts[self.index]

    @abstractmethod
    def act(self, effects: Sequence[Effect]) -> None:
        """Perform these."""

    @abstractmethod
    def perform(self) -> None:
        """What the session wants done."""

    @abstractmethod
    def crash(self, *, power: bool, why: str) -> None:
        """The process is gone."""

    # ------------------------------------------------------------------ the guard

    def set_guard(self, until_ns: int | None) -> None:
        """It kills then; None: it need not."""
        self.guard_ns = until_ns
        if until_ns is not None:
            late_ns = self._random.randrange(self._world.profile.timing.stall_ns)
            self._clock.after(
                self.true_ns(until_ns - self.now_ns + late_ns), self._guard, self.life, until_ns
            )

    def _guard(self, life: int, until_ns: int) -> None:
        """The guard acts whether this host stands still or not."""
        if life == self.life and self.guard_ns == until_ns:
            self._world.coverage.reach("guard-kills")
            self.crash(power=False, why="killed-by-the-guard")
            self._world.faults.restart_later(self._me)

    # ------------------------------------------------------------------ an orderly end

    def end(self, then: Callable[[], None]) -> None:
        """As ``guest.arbitration.end``: halt the guest in order; then the process is over."""
        self.ending = True
        self._wait(
            lambda: not self.changing,
            lambda: self._halt(in_order=True, then=partial(self._exit, then)),
            END_NS,
        )

    def _exit(self, then: Callable[[], None]) -> None:
        self.crash(power=False, why="stopped")
        then()

    # ------------------------------------------------------------------ the role (guest.roles)

    def follow(self) -> None:
        """Take up the latest wish, if none is being followed."""
        if self.changing or self.ending or self.wish is None:
            return
        self.changing = True
        stop_ns = self._world.profile.timing.stop_ns
        delay_ns = self._random.randrange(self._random.choice((NS_PER_MS, NS_PER_MS, stop_ns)))
        self.after(delay_ns, self._take_up)

    def _take_up(self) -> None:
        wish, self.wish = self.wish, None
        plane, arbiter = self.plane, self.arbiter
        if plane is None or arbiter is None:
            return
        match wish:
            case Own(grant=grant) if plane.role is not Role.ACTIVE or plane.paused:
                self.set_guard(self.lease_ns)
                self._become(Role.ACTIVE, grant.term)
            case Stop():
                self._halt(in_order=arbiter.decider.moving, then=self._stopped)
            case Yield(grant=grant) if plane.role is Role.ACTIVE or plane.paused:
                self._halt(in_order=False, then=lambda: self._become(Role.STANDBY, grant.term))
            case _:
                self._followed()

    def _followed(self) -> None:
        self.changing = False
        self.follow()

    def _stopped(self) -> None:
        self._followed()
        if self.arbiter is not None:
            self.act(self.arbiter.stopped(self.now_ns))

    def _halt(self, *, in_order: bool, then: Callable[[], None]) -> None:
        plane = self.plane
        if plane is None:
            return
        if plane.role is not Role.ACTIVE or plane.paused:
            self._halted(then)
            return
        plane.paused = True
        self._world.changed()
        if in_order:
            plane.finish()
        self._wait(lambda: not plane.closing, lambda: self._abandon(plane, then), 30 * NS_PER_S)

    def _abandon(self, plane: Plane, then: Callable[[], None]) -> None:
        plane.halt()
        self._halted(then)

    def _halted(self, then: Callable[[], None]) -> None:
        self.guard_ns = None  # as `Warden.rest`
        then()

    def _become(self, role: Role, term: int) -> None:
        plane = self.plane
        if plane is None:
            return
        if not plane.paused:
            plane.paused = True
            plane.halt()
        self._leave_session(plane, f"this host becomes {role.name.lower()}")
        self._wait(
            lambda: plane.session.phase is SessionPhase.OFFLINE and plane.idle,
            lambda: self._reopen(plane, role, term),
            SETTLE_NS,
        )

    def _leave_session(self, plane: Plane, reason: str) -> None:
        link = self._world.network.link
        plane.deaf = link.session_of(self.index) != 0
        link.drop(self.index, reason)

    def _reopen(self, old: Plane, role: Role, term: int) -> None:
        world = self._world
        term = max(term, old.session.term)
        old.end_in_order()
        try:
            plane = self.plane = Plane(world, self._me, self.stores, role, term)
        except ArbitrationError as error:
            world.checker.not_opened(self._me, str(error))
            self.crash(power=False, why="cannot-serve")
            world.faults.restart_later(self._me)
            return
        if role is Role.ACTIVE:
            world.checker.takes_over(self._me, term)
        world.changed()
        plane.perform()
        self._leave_session(plane, f"this host is {role.name.lower()} now")
        self._wait(lambda: all(source.serving for source in plane.session.sources), self._became, SETTLE_NS)

    def _became(self) -> None:
        plane = self.plane
        if plane is not None and plane.role is Role.ACTIVE:
            plane.session.permitted(self.now_ns, alone=self.alone)
        self._followed()
        self.perform()

    def _wait(self, done: Callable[[], bool], then: Callable[[], None], left_ns: int) -> None:
        """Then, when it is so."""
        if done():
            then()
        elif left_ns <= 0:
            self._world.fail("hang", f"{self.name}: a change of its role does not end")
        else:
            self.after(LOOK_NS, self._wait, done, then, left_ns - LOOK_NS)
