"""The owner's disk fails, hangs, is full or vanished: the guest goes to the peer, and does not notice.

While the peer is in sync it holds all that was acknowledged, so nothing of the guest needs this disk::

    an operation failed, or its deadline passed ──▶ halted here ──▶ Arbiter.disk_failed ──▶ the peer owns
                                                        │                                       │
                        requests end unanswered ────────┘        the front doors ask it  ◀──────┘

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
two changes of role and the register's round: some tenths of a second, and for the clients of this host one
or two handshakes of the link, of which each role that changes needs one.

Where the peer is not in sync, or there is no grant register, or the level is ``async``, nothing of this
happens: what failed is an error of the guest, as of any disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from .disks import Disks
from .watch import LOOK_S, Ailment, DiskWatch

if TYPE_CHECKING:
    from .guest import Guest

__all__ = ["disk_failed", "hand_over", "watch_owner"]


def hand_over(guest: Guest, ailment: Ailment) -> bool:
    """The owner's disk cannot do what it should: leave this host if the peer can own; whether it does."""
    session, arbiter = guest.session, guest.arbiter
    if arbiter is None or not guest.serves or not session.in_sync:
        return False
    if any(source.options.level != "sync" for source in session.sources):
        return False
    if not arbiter.disk_failed(f"{ailment.volume}: {ailment.reason}"):
        return False
    guest.leave_for(ailment)
    return True


def disk_failed(guest: Guest, index: int, reason: str) -> None:
    """As the session machine of the owner says."""
    hand_over(guest, Ailment(list(guest.volumes)[index], reason))


async def watch_owner(guest: Guest, disks: Disks) -> None:
    """Look after the disks of an active guest for as long as it stays."""

    def unused() -> list[int]:
        return [source.index for source in guest.session.sources if not source.tracker.unflushed]

    watch = DiskWatch(guest, disks, unused)
    while True:
        await trio.sleep(LOOK_S)
        if guest.arbiter is None:
            continue
        found = watch.look()
        if found is not None and hand_over(guest, found):
            return
