"""Changes of a host's role, and its guard: what ``guest.arbitration`` and ``guest.roles`` do with tasks.

One change after the other, the latest wish first; each step is a timer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from pairsync.core.arbiter import Arbiter
from pairsync.core.arbitration import Effect, Stop, Yield
from pairsync.core.claims import MEET_NS, has_to_meet, is_outdated
from pairsync.core.messages import Condition, Role
from pairsync.core.session import SessionPhase
from pairsync.core.units import NS_PER_MS, NS_PER_S
from pairsync.core.wishes import Step, Wish, end_within_ns, halt_within_ns, has_handed_over, step_of
from pairsync.errors import ArbitrationError

from .medium import Medium
from .plane import Plane
from .process import Process
from .releases import CURRENT

if TYPE_CHECKING:
    from .host import GrantHost
    from .world import GrantWorld

__all__ = ["HOLD_NS", "Roles"]

LOOK_NS = 5 * NS_PER_MS
"""Between two looks whether something has ended, as ``guest.roles``."""
SETTLE_NS = 10 * NS_PER_S
HOLD_NS = 10 * NS_PER_MS
"""Between two attempts to leave, as `guest.handover`."""
GIVE_BACK_NS = 3 * NS_PER_S
"""So long a host that cannot become active asks for the other one to own again, as `guest.handover`."""
END_NS = 60 * NS_PER_S
"""Of an orderly end: a change of the role first, with a guest that is halted in order and one that begins."""


class Roles(Process, ABC):
    """See the module."""

    def __init__(self, world: GrantWorld, index: int, media: list[Medium]) -> None:
        super().__init__(world.clock, world.random, world.profile.rates_ppm[index])
        self.name = "ab"[index]
        self.index = index
        self.media = media  # of its volumes
        self.woken_ns = -END_NS  # when a disk began to work again
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
    def permit(self, *, alone: bool) -> None:
        """Tell the session whether it may do without the peer."""

    @abstractmethod
    def vouch(self) -> None:
        """Tell the arbiter that the peer's replica is proven, if it is and he does not know."""

    @abstractmethod
    def mend(self, plane: Plane) -> None:
        """A standby begins ill."""

    @property
    def sick(self) -> bool:
        """Whether a disk of this host does not work."""
        return any(medium.sick for medium in self.media)

    @property
    def _ailing(self) -> bool:
        return self.sick or self._clock.now - self.woken_ns < END_NS

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
        """The guard acts whether this process stands still or not, but not while its machine does."""
        if life == self.life and self.guard_ns == until_ns:
            if self.asleep:
                stall_ns = self._world.profile.timing.stall_ns
                self.defer(self._clock.after, self._random.randrange(stall_ns), self._guard, life, until_ns)
                return
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
        active, grant = plane.role is Role.ACTIVE, None if wish is None else wish.grant
        step = Step.NOTHING
        if wish is not None:
            step = step_of(wish, active=active, halted=plane.paused, term=plane.session.term)
        if step is Step.STOP:
            moves = arbiter.decider.moving
            self._halt(in_order=moves, then=self._stopped, moves=moves)
        elif step is Step.NOTHING or grant is None:
            self._followed()
        elif step is Step.SERVE:
            owns = partial(self._owns, grant.term)
            self._wait(lambda: not has_to_meet(arbiter, plane.session), owns, MEET_NS, owns, may=True)
        elif step is Step.SERVE_ANEW:
            self._halt(in_order=True, then=partial(self._owns, grant.term))
        else:
            handed = has_handed_over(grant, self._me.id, active=active, term=plane.session.term)
            self._halt(in_order=False, then=partial(self._become, Role.STANDBY, grant.term, in_sync=handed))

    def _owns(self, term: int) -> None:
        plane, arbiter = self.plane, self.arbiter
        if plane is None or arbiter is None or is_outdated(arbiter, plane.session):
            self._followed()  # the arbiter was told
            return
        self.set_guard(self.lease_ns)
        self._become(Role.ACTIVE, term)

    def _followed(self) -> None:
        self.changing = False
        self.follow()

    def _stopped(self) -> None:
        self._followed()
        if self.arbiter is not None:
            self.act(self.arbiter.stopped(self.now_ns))

    def _halt(self, *, in_order: bool, then: Callable[[], None], moves: bool = False) -> None:
        """``moves``: for the peer to own the guest."""
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
        timing = self._world.profile.timing
        within_ns = halt_within_ns(self.lease_ns, self.now_ns, timing)
        if self.ending:
            could = self.arbiter is not None and self.arbiter.decider.peer_could_own
            within_ns = end_within_ns(timing, goes_on=plane.session.synchronous and could)
        left = partial(self._abandon, plane, then, moves=moves)
        self._wait(lambda: not plane.closing, left, within_ns, late=left, may=True)

    def _abandon(self, plane: Plane, then: Callable[[], None], *, moves: bool) -> None:
        """An orderly halt has come to its end, or its time has: a replica that lacks something is put out."""
        bad = bool(plane.closing) or plane.close_failed
        fault = plane.own_fault() if bad and plane.session.synchronous else ""
        if fault:
            plane.leaving, plane.deaf = fault, True
        plane.halt()
        if moves and bad and self.arbiter is not None:
            self._world.coverage.reach("move-leaves" if fault else "move-taken-back")
            put_out = self.arbiter.own_out(self.now_ns)[1] if fault else self.arbiter.peer_out(self.now_ns)
            self.act(put_out)
        self._halted(then)

    def _halted(self, then: Callable[[], None]) -> None:
        self.guard_ns = None  # as `Warden.rest`
        then()

    def _become(self, role: Role, term: int, *, in_sync: bool = False) -> None:
        plane = self.plane
        if plane is None:
            return
        if not plane.paused:
            plane.paused = True
            plane.halt()
        self.leave_session(plane, f"this host becomes {role.name.lower()}")
        reopen = partial(self._reopen, plane, role, term, in_sync=in_sync)
        if plane.leaving and role is Role.STANDBY:
            reopen()  # it waits for no job that hangs
        else:
            self._wait(lambda: self._settled(plane) or self._hangs(plane), reopen, SETTLE_NS, late=reopen)

    def _settled(self, plane: Plane) -> bool:
        return plane.session.phase is SessionPhase.OFFLINE and plane.idle

    def _hangs(self, plane: Plane) -> bool:
        return any(disk.overdue(self.now_ns) for disk in plane.disks)

    def leave_session(self, plane: Plane, reason: str) -> None:
        """End the session of the link; what it still brings is not heard."""
        link = self._world.network.link
        plane.deaf = link.session_of(self.index) != 0
        link.drop(self.index, reason)

    def _reopen(self, old: Plane, role: Role, term: int, *, in_sync: bool) -> None:
        world = self._world
        if role is Role.ACTIVE and isinstance(self.wish, Stop | Yield):
            world.coverage.reach("overtaken")
            self._followed()
            return
        term = max(term, old.session.term)
        ill = old.leaving or ("" if self._settled(old) and not self.sick else "a disk hangs or fails")
        if ill and role is Role.ACTIVE:
            self._gives_back(old, ill, self.now_ns + GIVE_BACK_NS)
            return
        if ill:
            old.ended = True
            plane = self.plane = Plane(world, self._me, self.media, role, term, ill=ill, before=old)
            world.changed()
            self.mend(plane)
            self._followed()
            return
        old.end_in_order()
        for medium in self.media if in_sync else ():
            metadata = medium.stores.metadata
            if metadata.superblock.condition is Condition.CONSISTENT:
                metadata.superblock = replace(metadata.superblock, term=term)
        try:
            plane = self.plane = Plane(world, self._me, self.media, role, term)
        except ArbitrationError as error:
            world.checker.not_opened(self._me, str(error))
            self._gives_up()
            return
        plane.paused = role is Role.ACTIVE
        world.changed()
        plane.perform()
        if role is Role.ACTIVE:
            world.faults.disks.ambush(self._me)
        seen = lambda: _ready(plane) or self._overtaken(plane) or self._hangs(plane)  # noqa: E731
        self._wait(seen, partial(self._opened, plane), SETTLE_NS, late=partial(self._opened, plane))

    def _overtaken(self, plane: Plane) -> bool:
        return plane.role is Role.ACTIVE and isinstance(self.wish, Stop | Yield)

    def _opened(self, plane: Plane) -> None:
        """Its new role is durable, or cannot become so soon, or is not wanted any more."""
        world = self._world
        failed = next((source.failed for source in plane.session.sources if source.failed), "")
        if self._overtaken(plane):
            world.coverage.reach("overtaken-opened")
            plane.halt()
            self._followed()
        elif failed or not _ready(plane):
            reason = failed or "the metadata do not become durable"
            self._gives_back(plane, reason, self.now_ns + GIVE_BACK_NS)
        else:
            self._becomes(plane)

    def _becomes(self, plane: Plane) -> None:
        world = self._world
        plane.paused = False
        world.changed()
        if plane.role is Role.ACTIVE:
            world.checker.takes_over(self._me, plane.session.term)
            self.permit(alone=self.alone)
        self.leave_session(plane, f"this host is {plane.role.name.lower()} now")
        self._followed()
        self.perform()

    def _gives_back(self, plane: Plane, reason: str, until_ns: int) -> None:
        """As `guest.handover.Handover.give_back`: who has handed the guest over may have it again."""
        if self.arbiter is None:
            return
        refusal, effects = self.arbiter.move(self.now_ns, leaving=True)
        self.act(effects)
        if not refusal:
            self._world.coverage.reach("gives-back")
            plane.leaving, plane.deaf, plane.paused = reason, True, True
            plane.halt()
            self._followed()
        elif self.now_ns < until_ns:
            self.after(HOLD_NS, self._gives_back, plane, reason, until_ns)
        else:
            self._gives_up()

    def _gives_up(self) -> None:
        """It cannot take the role: the process ends, and is begun anew."""
        self.crash(power=False, why="cannot-serve")
        self._world.faults.restart_later(self._me)

    def _wait(
        self,
        done: Callable[[], bool],
        then: Callable[[], None],
        left_ns: int,
        late: Callable[[], None] | None = None,
        *,
        may: bool = False,
    ) -> None:
        """Then, when it is so; ``late``: what is done instead if it takes too long, because a disk is sick.

        ``may``: or for whatever reason.
        """
        if done():
            then()
        elif left_ns > 0:
            self.after(LOOK_NS, partial(self._wait, done, then, left_ns - LOOK_NS, late, may=may))
        elif late is not None and (may or self._ailing):
            late()
        else:
            self._world.fail("hang", f"{self.name}: a change of its role does not end")


def _ready(plane: Plane) -> bool:
    return all(source.serving or source.failed is not None for source in plane.session.sources)
