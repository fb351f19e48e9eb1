"""A standby whose disk has failed, or hangs, takes itself out and comes back by itself.

::

    well ──an operation failed, or its deadline passed──▶ ill ──all jobs ended──▶ opening anew, with back-off
      ▲                                                                               │
      └──────────── read, written and flushed: a new session machine ◀────────────────┘

* **Why open anew**: after a failed flush a file promises nothing any more (``storage.blockfile``), and a file
  that vanished may be another one when it is back, even an empty one.  What the replica is, is read from its
  disk again, exactly as after a restart of the host; what the peer is not known to hold durably stands in
  the active host's dirty map, so nothing is lost by it.
* **What is wrong** is told by whatever was asked of the disk, and by who watches it (``guest.watch``).
* **A guest that has left this host**, its owner until then, because its disk had failed (``guest.handover``),
  is ill from its first moment as a standby.
* **A host that is started** with a disk that is missing, damaged or too small, fails or hangs, likewise: it
  comes up, votes and lets the other host run the guest; it cannot own it (``guest.roles.obstacle``).
* While it is ill this host keeps the link and says nothing on it: the active host waits for it to introduce
  itself, for as long as it waits for any peer.
* A job that hangs is waited for, however long: nothing can end it, and what it writes late must not meet what
  is written anew.  That is what `Mender.ailments` and the events tell a person.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import trio

from pairsync.core.backoff import Backoff
from pairsync.core.events import TroubleEvent
from pairsync.core.messages import Failed
from pairsync.core.session import SessionPhase
from pairsync.core.units import NS_PER_MS, NS_PER_S

from .disks import OPENING_S, Disks, Unopened
from .watch import LOOK_S, DiskWatch

if TYPE_CHECKING:
    from .guest import Guest

__all__ = ["Mender"]

_log = logging.getLogger("pairsync.guest")

RETRY_NS_MIN: Final = 250 * NS_PER_MS
RETRY_NS_MAX: Final = 5 * NS_PER_S
"""Bounds of the wait before a disk is opened anew: so long at most after its repair it takes part again."""

WELL_NS: Final = 10 * NS_PER_S
"""A disk that has worked for so long was worth opening: the next wait is short again."""

REASON_CHARACTERS_MAX: Final = 400
"""Of a reason that travels."""


class Mender:
    """See the module; one for a standby guest, for all of its volumes, which share a session."""

    def __init__(self, guest: Guest, disks: Disks, ailments: Sequence[tuple[str, str]] = ()) -> None:
        """``ailments``: what is wrong already."""
        self._guest = guest
        self._disks = disks
        self._names = list(guest.volumes)
        self._backoff = Backoff(first_ns=RETRY_NS_MIN, limit_ns=RETRY_NS_MAX)
        self.ailments: dict[str, str] = dict(ailments)
        """Why the guest takes no part, by volume; empty while it is well."""
        self.busy = False
        """Messages have come since the last probe: who uses a disk hears from it."""

    @property
    def ill(self) -> bool:
        """Whether the guest takes no part, until its disks have been opened anew."""
        return bool(self.ailments)

    def note(self, volume: str, reason: str) -> None:
        """A disk has failed, as the session machine says (called by the guest); the first reason counts."""
        self.ailments.setdefault(volume, reason)

    async def run(self) -> None:
        """Watch and mend until cancelled."""
        while True:
            if not self.ailments:
                await self._watch()
                self._leave()
            await self._mend()

    # ------------------------------------------------------------------ well

    async def _watch(self) -> None:
        """Return when something is wrong."""
        guest = self._guest
        began_ns = guest.now_ns()
        watch = DiskWatch(guest, self._disks, self._unused)
        while not self.ailments:
            await trio.sleep(LOOK_S)
            found = watch.look()
            if found is not None:
                self._tell(*found)
            if guest.now_ns() - began_ns >= WELL_NS:
                self._backoff.succeeded()

    def _unused(self) -> range:
        busy, self.busy = self.busy, False
        return range(0 if busy else len(self._names))

    def _tell(self, name: str, reason: str) -> None:
        """Say it once."""
        if self.ailments.get(name) != reason:
            self.ailments[name] = reason
            self._guest.emit(TroubleEvent(name, fatal=False, reason=reason))

    # ------------------------------------------------------------------ ill

    def _leave(self) -> None:
        """End the session; the peer hears why."""
        name, reason = next(iter(self.ailments.items()))
        link = self._guest.link
        if link is not None and link.session is not None:
            link.send([Failed(self._names.index(name), errno.EIO, reason[:REASON_CHARACTERS_MAX])])
            link.drop_session(reason)

    async def _mend(self) -> None:
        """Return when all disks have been opened anew, and the guest takes part again."""
        guest = self._guest
        while True:
            await self._wait_settled()
            await trio.sleep(self._backoff.failed(guest.draw_fraction()) / NS_PER_S)
            unopened = await self._reopen()
            if unopened is None:
                break
            self._tell(*unopened.ailment)
        self.ailments.clear()
        _log.info("%s: its disks work again", guest.name)
        guest.renew()
        guest.rejoin("the disks work again")

    async def _reopen(self) -> Unopened | None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_slow_opening)
            unopened = await self._disks.reopen()
            nursery.cancel_scope.cancel()
        return unopened

    async def _tell_slow_opening(self) -> None:
        """It is told, and waited for all the same."""
        await trio.sleep(OPENING_S)
        if self._disks.opening is not None:
            self._tell(self._disks.opening, "the disk hangs while it is opened anew")

    async def _wait_settled(self) -> None:
        """Return when the session is over and no job runs any more."""
        while True:
            if self._guest.session.phase is SessionPhase.OFFLINE and self._disks.idle:
                return
            await trio.sleep(LOOK_S)
