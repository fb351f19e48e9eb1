"""A guest changes its role while its host, its link and its front door stay.

::

    halted ──────────────▶ session over, no job runs ──▶ disks opened anew ──▶ the other role, or the same
      ├─ in order: what was asked is done, and flushed on both hosts
      └─ else: it ends with EIO

What a replica is, is read from its disk again, exactly as after a restart of the host: there is one way to
become active, and one to become standby, whatever was before.  Ownership is not decided here: whoever calls
holds the grant, or has lost it (DESIGN rules 1 and 3).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import trio

from pairsync.core import claims
from pairsync.core.arbiter import Arbiter
from pairsync.core.claims import Claim
from pairsync.core.messages import Condition, Role
from pairsync.core.session import SessionPhase
from pairsync.core.units import NS_PER_S
from pairsync.core.wishes import CLOSE_NS
from pairsync.errors import BackendError

from .disks import Disks
from .watch import Ailment

if TYPE_CHECKING:
    from .guest import Guest

__all__ = ["CLOSE_S", "change_role", "finish", "halt", "halt_now", "meet", "obstacle"]

_log = logging.getLogger("pairsync.guest")

CLOSE_S: Final = CLOSE_NS / NS_PER_S
"""As `core.wishes.CLOSE_NS`."""

SETTLE_S: Final = 10.0
"""How long jobs that run may take to end, and disks to be opened anew: two deadlines of a disk each."""

SERVING_S: Final = 10.0
"""How long a new owner may take to record that it is one."""

LOOK_S: Final = 0.001
"""Between two looks whether something has ended: short, for the guest stands still meanwhile."""


def obstacle(guest: Guest, claim: Claim) -> str:
    """Why the guest cannot be served here on that claim, for people; empty if it can (`claims.obstacle`)."""
    if guest.closed:
        return "the guest is being closed"
    for volume, reason in guest.ailments.items():
        return f"volume {volume}: {reason}"
    halted = guest.paused or guest.leaves_for is not None
    return claims.obstacle(guest.session, claim, halted=halted)


async def meet(guest: Guest, arbiter: Arbiter) -> None:
    """Wait until a guest that is about to serve has heard whether its peer is newer, if that can be had."""
    await _within(claims.MEET_NS / NS_PER_S, lambda: not claims.has_to_meet(arbiter, guest.session))


async def finish(guest: Guest, within_s: float = CLOSE_S) -> bool:
    """Let what was taken end, flush, and write the exact dirty map; nothing new is taken any more.

    Whether that was done in time.  A guest that was halted has nothing to end any more.
    """
    if guest.session.abandoned:
        return True
    now_ns = guest.now_ns()
    sources = guest.session.sources
    for volume in guest.volumes.values():
        volume.wake_writers()
    ended = trio.Event()
    waiting = len(sources)
    failed: list[int] = []

    def done(errnos: Sequence[int] | None) -> None:
        nonlocal waiting
        failed.extend(errnos or ())
        waiting -= 1
        if not waiting:
            ended.set()

    for source in sources:
        source.close(done, now_ns)
    guest.perform()
    if waiting:
        with trio.move_on_after(within_s):
            await ended.wait()
    in_order = not waiting and not any(failed)
    if not in_order:
        _log.warning("%s: not closed in order: the next start will find more to resync", guest.name)
    return in_order


async def halt(guest: Guest, disks: Disks, *, in_order: bool, within_s: float = CLOSE_S) -> bool:
    """Serve nothing from now on; returns when nothing is under way that anybody waits for.

    ``in_order``: what was asked is done and flushed on both hosts first.  Otherwise, and for an owner that
    has lost its grant or its disk, it ends with EIO.  The link goes on: whoever owns next is agreed over it.

    Whether the peer is as good an owner now: all is in order, or it was this host's disk that did not get it
    done ``within_s``.  Whom else it waits for is the peer, which should not own what it does not take.
    """
    good = True
    if in_order and guest.leaves_for is None:
        guest.pause(True)
        good = await finish(guest, within_s)
        ailment = None if good else _own_fault(guest, disks)
        if ailment is not None and guest.session.synchronous:
            good = True
            guest.leave_for(ailment, silent=True)
    halt_now(guest, "the guest does not run here any more")
    return good


def _own_fault(guest: Guest, disks: Disks) -> Ailment | None:
    """What is wrong with this host's disk, where it is that which did not get done what was asked."""
    for name, source in zip(guest.volumes, guest.session.sources, strict=True):
        if source.failed is not None:
            return Ailment(name, source.failed)
    return None if disks.idle else Ailment(next(iter(guest.volumes)), "its disk is too slow to stop in order")


def halt_now(guest: Guest, reason: str) -> None:
    """Serve nothing from now on: what is under way ends with EIO, and what does not yet will find nobody."""
    guest.pause(True)
    for volume in guest.volumes.values():
        volume.wake_writers()
    guest.session.abandon(reason)
    guest.perform()


async def change_role(
    guest: Guest, disks: Disks, role: Role, term: int, *, in_order: bool, in_sync: bool = False
) -> bool:
    """Make ``guest`` active under ``term``, or a standby; whether it is so, in the end.

    Nothing is served before the new role is durable.  Disks take their time: a guest that is not to be served
    here after all by then (`Arbiter.overtaken`) is not, and stays halted until the next change.

    ``in_sync``: under that term a standby's replica counts as in sync, for it was the active one until then;
    it records that.  An active guest is halted first (see `halt`).  A disk that fails or hangs does not keep
    it from becoming a standby: that is ill then, and mended (``guest.reopen``).  Raises `BackendError` where
    a disk does not let a guest become active, `ArbitrationError` where a replica may not be active; then
    nothing is served, and the host process has to be started again.
    """

    def overtaken() -> bool:
        return role is Role.ACTIVE and guest.arbiter is not None and guest.arbiter.overtaken

    if not guest.paused:
        await halt(guest, disks, in_order=in_order)
    guest.stop_mending()
    guest.leave_session(f"this host becomes {role.name.lower()}")
    ailment = guest.leaves_for if role is Role.STANDBY else None
    if ailment is None:
        ailment = await _reopen(guest, disks, active=role is Role.ACTIVE, term=term if in_sync else 0)
    if overtaken():
        return False
    disks.active = role is Role.ACTIVE
    if ailment is not None and disks.active:
        raise BackendError(f"volume {ailment.volume}: {ailment.reason}")
    guest.renew(role, term, ill=ailment is not None)
    guest.start_mending([] if ailment is None else [ailment])
    if ailment is not None:
        guest.pause(False)
        _log.warning("%s: standby under term %d, its disk is ill: %s", guest.name, term, ailment.reason)
        return True
    guest.perform()
    await _within(SERVING_S, lambda: _ready(guest) or overtaken() or _hanging(guest, disks) is not None)
    if overtaken():
        halt_now(guest, "the guest is not to run here after all")
        return False
    if not _ready(guest):
        raise BackendError(f"guest {guest.name}: the metadata do not become durable")
    failed = next((source.failed for source in guest.session.sources if source.failed), None)
    if failed is not None:
        raise BackendError(f"guest {guest.name}: {failed}")
    guest.pause(False)
    guest.rejoin(f"this host is {role.name.lower()} now")
    _log.info("%s: %s under term %d", guest.name, role.name.lower(), guest.session.term)
    return True


async def _reopen(guest: Guest, disks: Disks, *, active: bool, term: int) -> Ailment | None:
    """Open the disks anew for another role; what is wrong, if that cannot be."""
    await _within(SETTLE_S, lambda: _settled(guest, disks) or _hanging(guest, disks) is not None)
    if not _settled(guest, disks):
        volume = _hanging(guest, disks) or next(iter(guest.volumes))
        return Ailment(volume, "the disk does not end what it was asked before")
    written = {each.name for each in disks.replicas if each.store.superblock.condition is not Condition.BLANK}
    await disks.end_lives()
    disks.active = active
    unopened = await disks.reopen(term=term, within_s=SETTLE_S)
    if unopened is not None:
        return Ailment(unopened.volume, str(unopened.error))
    blank = {each.name for each in disks.replicas if each.setup.superblock.condition is Condition.BLANK}
    if active and blank & written:  # DESIGN rule 3: zeroes are not what the guest has written
        return Ailment(min(blank & written), "another disk is there now, and it was never written")
    return None


def _hanging(guest: Guest, disks: Disks) -> str | None:
    """The first volume with an operation whose deadline has passed."""
    return next((name for index, name in enumerate(guest.volumes) if disks.overdue_ns(index)), None)


def _settled(guest: Guest, disks: Disks) -> bool:
    return guest.session.phase is SessionPhase.OFFLINE and disks.idle


def _ready(guest: Guest) -> bool:
    return all(source.serving or source.failed is not None for source in guest.session.sources)


async def _within(seconds: float, done: Callable[[], bool]) -> bool:
    """Whether ``done()`` comes true in that time."""
    with trio.move_on_after(seconds):
        while True:
            if done():
                return True
            await trio.sleep(LOOK_S)
    return False
