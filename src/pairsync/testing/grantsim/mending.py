"""What a host does about its disks, as ``guest.handover``, ``guest.watch`` and ``guest.reopen`` do it.

An owner whose peer has all that is acknowledged hands the guest over and becomes a standby that is ill; one
that is ill takes no part until its disks have been opened anew.  What is asked of a disk, and what comes of
it: `medium`.
"""

from __future__ import annotations

import errno
from abc import ABC
from typing import TYPE_CHECKING

from pairsync.core.backoff import Backoff
from pairsync.core.events import Event, TroubleEvent
from pairsync.core.messages import Failed, Role
from pairsync.core.session import SessionPhase
from pairsync.core.units import NS_PER_MS, NS_PER_S

from .medium import Medium
from .plane import Plane
from .roles import HOLD_NS, Roles

if TYPE_CHECKING:
    from .world import GrantWorld

__all__ = ["Mending"]

WATCH_NS = 100 * NS_PER_MS
"""Between two looks at what is to be settled, as `guest.watch`."""
RETRY_NS_MIN, RETRY_NS_MAX = 250 * NS_PER_MS, 5 * NS_PER_S
"""As `guest.reopen`."""


class Mending(Roles, ABC):
    """See the module."""

    def __init__(self, world: GrantWorld, index: int, media: list[Medium]) -> None:
        super().__init__(world, index, media)
        self._patience = Backoff(first_ns=RETRY_NS_MIN, limit_ns=RETRY_NS_MAX)

    def emitted(self, event: Event) -> None:
        """The session says so."""
        self._world.checker.event(self._me, event)
        plane = self.plane
        if isinstance(event, TroubleEvent) and plane is not None and plane.role is Role.STANDBY:
            self.after(WATCH_NS, self._falls_ill, plane, event.reason)

    def disk_failed(self, reason: str) -> None:
        """The owner's session says so: leave this host, if the peer can own, now or with its next word."""
        plane, arbiter = self.plane, self.arbiter
        if plane is not None and arbiter is not None and plane.serves:
            self._leaves(plane, reason, self.now_ns + 2 * arbiter.timing.heartbeat_ns)

    def _leaves(self, plane: Plane, reason: str, until_ns: int) -> None:
        """As `guest.handover.Handover.attempt`, and as its ``hold`` asks again."""
        arbiter = self.arbiter
        if self.plane is not plane or arbiter is None or not plane.serves:
            return
        if not plane.session.synchronous:
            return
        self.vouch()
        refusal, effects = arbiter.move(self.now_ns, leaving=True)
        self._world.trace.note(self.name, "disk-failed", 0, f"{reason}: {refusal or 'leaves'}")
        self.act(effects)
        if refusal:
            if self.now_ns < until_ns and not arbiter.peer_excluded:
                self.after(HOLD_NS, self._leaves, plane, reason, until_ns)
            return
        self._world.coverage.reach("hands-over" if plane.session.in_sync else "hands-over-unmet")
        plane.leaving, plane.deaf, plane.paused = reason, True, True
        self._world.changed()
        plane.halt()

    def watch_disks(self) -> None:
        """Now and then: what hangs, and what works no more though nobody uses it."""
        plane = self.plane
        if plane is None or plane.ill or plane.leaving or not any(medium.sick for medium in self.media):
            return
        found = plane.ailment(self.now_ns)
        if found and plane.role is Role.ACTIVE:
            self.disk_failed(found)
        elif found:
            self._falls_ill(plane, found)

    def wake(self) -> None:
        """A disk works again."""
        self.woken_ns = self._clock.now
        plane = self.plane
        if plane is not None:
            for disk in (*(plane.before.disks if plane.before is not None else ()), *plane.disks):
                disk.wake()

    # ------------------------------------------------------------------ a standby (guest.reopen)

    def _falls_ill(self, plane: Plane, reason: str) -> None:
        if self.plane is not plane or plane.ill or self.changing:
            return
        self._world.trace.note(self.name, "ill", 0, reason)
        self._world.coverage.reach("falls-ill")
        plane.ill, plane.deaf = reason, True
        link = self._world.network.link
        if link.session_of(self.index):
            link.send(self.index, [Failed(0, errno.EIO, reason)])
            link.drop(self.index, reason)
        self._world.changed()
        self.mend(plane)

    def mend(self, plane: Plane) -> None:
        """Open its disks anew once nothing is under way any more."""
        if self.plane is not plane:
            return
        if plane.session.phase is SessionPhase.OFFLINE and plane.idle:
            self._open_later(plane)
        else:
            self.after(WATCH_NS, self.mend, plane)

    def _open_later(self, plane: Plane) -> None:
        self.after(self._patience.failed(self._random.random()), self._open_anew, plane)

    def _open_anew(self, plane: Plane) -> None:
        if self.plane is not plane:
            return
        if self.sick or self.changing:
            self._open_later(plane)
            return
        self._patience.succeeded()
        self._world.trace.note(self.name, "well", 0)
        self._world.coverage.reach("is-well-again")
        self.since_ns = self._clock.now
        plane.end_in_order()
        self.plane = Plane(self._world, self._me, self.media, Role.STANDBY, plane.session.term)
        self._world.changed()
        self.perform()
        self.leave_session(self.plane, "the disks work again")
