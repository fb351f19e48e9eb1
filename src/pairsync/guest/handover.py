"""The owner's disk fails, hangs, is full or vanished: the guest goes to the peer, and does not notice.

Whom the grant in force calls in sync holds all that was acknowledged (DESIGN rule 2), so nothing of the guest
needs this disk::

    an operation failed, or its deadline passed ──▶ halted here ──▶ Arbiter.disk_failed ──▶ the peer owns
                                                        │                                       │
                        requests end unanswered ────────┘        the front doors ask it  ◀──────┘

* **Where the peer cannot own yet**, nothing is taken until it can, or its next word is overdue
  (``Arbiter.patience_ns``): a standby that has just come back is in sync before it has said that it could
  serve, and before that is agreed.  What fails meanwhile ends unanswered too.  If it cannot own then either,
  what waits is done here, and its error told; so are those that follow, for a while (`PATIENT_AGAIN_NS`).
  A disk that *hangs* has not told an error: the peer is asked again with every look at it.
* **Whether the replicas have met** in this owner's life is not asked.  A new owner whose disk fails before
  that leaves likewise: nothing is acknowledged without the peer before a grant that leaves it out, and from
  the moment when that one is asked for (``Arbiter.ask_alone``) the register refuses.
* Halted at once: whatever was under way ends unanswered, with EIO, which the front doors (``guest.door``)
  keep to themselves, for the guest is active here no more.  Nothing is sent to the peer any more either: it
  could be the content of the disk that fails.  The link goes on, for the next owner is agreed over it.
* The grant register then moves ownership: `Guest.become` (STANDBY) here, which waits for no job that hangs,
  and (ACTIVE) there.  *Why a job that hangs does not matter to the next owner*: it can only write to this
  replica, which the new grant does not call in sync.  Until it ends the replica is ill and is neither opened
  nor written anew (``guest.reopen``), so it never meets a later life of its own; what it has changed is in
  the intent log, which was durable before it began, and comes back in the resync.
* The mender of a standby looks after the disk from then on, as after any other.

**In what time.**  A failure is acted upon when it is reported; a hang when `VolumeOptions.disk_deadline_ns`
has passed (three times that for a flush), a disk that nobody uses within `watch.PROBE_NS` beside that.  Then
two changes of role and the register's round: about a tenth of a second, also for the clients of this host,
since a new session of the link needs no new connections (``core.stream``).

Where the peer does not count as in sync, or there is no grant register, or the level is ``async``, nothing
of this happens: what failed is an error of the guest, as of any disk.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from pairsync.core.units import NS_PER_S

from .disks import Disks
from .roles import halt_now
from .watch import LOOK_S, Ailment, DiskWatch

if TYPE_CHECKING:
    from .guest import Guest

__all__ = ["Handover"]

_log = logging.getLogger("pairsync.guest")

HOLD_S: Final = 0.01
"""Between two looks whether the peer can own: short, for the guest stands still meanwhile."""

GIVE_BACK_NS: Final = 3 * NS_PER_S
"""So long who has handed the guest over may take to be a standby that could own it again."""

PATIENT_AGAIN_NS: Final = 10 * NS_PER_S
"""So long after the peer could not own errors are told at once."""


class Handover:
    """Of one guest on this host, for as long as it is open; see the module."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._patient_from_ns = 0  # what fails before then is told at once

    def failed(self, index: int, reason: str) -> None:
        """The disk of a volume cannot do what it should, as the owner's session machine says before it tells
        the error."""
        guest = self._guest
        if guest.serves:
            ailment = Ailment(list(guest.volumes)[index], reason)
            if not self.attempt(ailment) or guest.now_ns() < self._patient_from_ns:
                return
            guest.leave_for(ailment)
            guest.start_soon(self._hold, ailment)
        if guest.leaves_for is not None and any(source.failed for source in guest.session.sources):
            guest.leave_for(guest.leaves_for, silent=True)  # the machine has come to its end

    def attempt(self, ailment: Ailment) -> str | None:
        """Leave this host if the peer can own.

        "" if it leaves, or why the peer cannot own now; None where that is not to be expected.
        """
        guest, session, arbiter = self._guest, self._guest.session, self._guest.arbiter
        if arbiter is None or guest.paused or guest.closed or not session.sources:
            return None
        if not session.synchronous:
            return None
        refusal = arbiter.disk_failed()
        if refusal and arbiter.alone:
            return None
        if not refusal:
            guest.leave_for(ailment, silent=True)
            halt_now(guest, f"the disk of {ailment.volume}: {ailment.reason}")
        return refusal

    async def _hold(self, ailment: Ailment) -> None:
        """Take nothing until the peer can own the guest, or will not."""
        guest, arbiter = self._guest, self._guest.arbiter
        until_ns = guest.now_ns() + (0 if arbiter is None else arbiter.patience_ns)
        while guest.leaves_for is ailment and not guest.paused:  # else somebody else has decided
            refusal = self.attempt(ailment)
            if refusal is None or (refusal and guest.now_ns() > until_ns):
                reason = refusal or "the other host is out of sync"
                _log.warning("%s: %s, and the guest stays: %s", guest.name, ailment.reason, reason)
                self._patient_from_ns = guest.now_ns() + PATIENT_AGAIN_NS
                guest.leave_for(None)
            elif refusal:
                await trio.sleep(HOLD_S)

    async def give_back(self, reason: str) -> bool:
        """This host cannot take the guest over for want of a disk: whether who has left it has it again."""
        guest, arbiter = self._guest, self._guest.arbiter
        until_ns = guest.now_ns() + GIVE_BACK_NS
        while arbiter is None or arbiter.disk_failed():
            if guest.now_ns() > until_ns:
                return False
            await trio.sleep(HOLD_S)
        ailment = Ailment(next(iter(guest.volumes)), reason)
        _log.warning("%s: is given back: %s", guest.name, reason)
        guest.leave_for(ailment, silent=True)
        halt_now(guest, reason)
        return True

    async def watch(self, disks: Disks) -> None:
        """Look after the disks of an active guest for as long as it stays."""
        guest = self._guest

        def unused() -> list[int]:
            return [source.index for source in guest.session.sources if not source.tracker.unflushed]

        watch = DiskWatch(guest, disks, unused)
        while True:
            await trio.sleep(LOOK_S)
            if guest.arbiter is None:
                continue
            found = watch.look()
            if found is not None and guest.serves and self.attempt(found) == "":
                return
