"""Which grant a host wants next: a pure function of what it knows.

**The owner** wants the in-sync set that its data plane wants, one replica at a time, and these voters:

====================  ==============================  ========================================================
in sync               voters                          why
====================  ==============================  ========================================================
the owner alone       the owner                       rule 4: nothing that is lost later may stop the guest
both                  both and the witness            either may go on with the witness
both, no witness      the owner                       rule 4: or the later loss of the standby would stop it
the peer alone        both and the witness            the owner's disk has failed: the peer may take over
the same, no witness  the peer                        the owner cannot serve without the peer anyhow
====================  ==============================  ========================================================

The peer becomes a voter only with the memory that was vouched for in this life of the owner, or that is a
voter already; and only while it has promised not to take over, or the guest would have to stop at once.

**A planned move**: the guest is down, both replicas are equal; the peer owns the next term, and decides alone
until we have promised to stand by: its first breath must not wait for a lease of ours.  So it is where the
owner's disk has failed, but that its replica is out of sync with the same grant.  It too has to be the
memory that was vouched for, or that is a voter: that the grant calls its *host* in sync is not enough.

**An owner that cannot run the guest**, because its disks do not work since before it was started here, leaves
it to a peer that can in the same way.  Its heartbeats would keep the peer from taking over for ever.  So does
one whose disks were put back to an older state; a peer that has all of that, and more, needs no other proof.

**A standby** that is in sync takes over when its promise has run out, alone.
"""

from __future__ import annotations

from typing import NamedTuple

from .grants import Grant, HostId, VoterId

__all__ = ["Situation", "successor"]


class Situation(NamedTuple):
    """What a host knows when it looks for the next grant.

    ``wanted``: the in-sync set that the data plane wants.  ``peer_id``: the peer's memory, as last heard;
    ``vouched``: that replica was proven in this life; ``leased``: it has promised; ``peer_ready``: it
    could serve the guest, as it said last; ``peer_newer``: what this host has is old, and the peer has that
    and more.  ``witness``: the memory of the witness that can be had now;
    ``witness_lost``: none answered for long enough.  ``leftover``: something was accepted for the next grant,
    or may have been, that nobody decides any more: it would surprise us later, or keeps the guest down.
    """

    own: VoterId
    peer: HostId
    base: Grant
    ready: bool
    wanted: frozenset[HostId]
    peer_id: VoterId | None
    vouched: bool
    leased: bool
    peer_ready: bool
    peer_newer: bool
    witness: VoterId | None
    witness_lost: bool
    moving: bool
    guest_down: bool
    promise_out: bool
    leftover: bool


def successor(now: Situation) -> Grant | None:
    """The grant that this host wants to follow ``now.base``; None: it is content."""
    if now.base.owner_id == now.own:
        return _of_owner(now)
    return _take_over(now)


def _take_over(now: Situation) -> Grant | None:
    base, own = now.base, now.own
    host = own.name
    if not isinstance(host, bytes) or host not in base.in_sync or own not in base.voters:
        return None
    if not (now.promise_out and now.ready):
        return None
    alone = frozenset({host})
    return Grant(base.term + 1, 1, host, own.incarnation, alone, frozenset({own}), base.fork)


def _of_owner(now: Situation) -> Grant | None:
    base = now.base
    if now.moving:
        return _moved(now) if now.guest_down else None
    if not now.ready:
        return _left(now)
    in_sync = _in_sync(now)
    voters = _voters(now, in_sync)
    if not now.leftover and (in_sync, voters) == (base.in_sync, base.voters):
        return None
    return base._replace(epoch=base.epoch + 1, in_sync=in_sync, voters=voters, override="")


def _left(now: Situation) -> Grant | None:
    """The guest cannot run here; it goes where it can."""
    if not (now.guest_down and now.peer_ready):
        return None
    return _moved(now._replace(wanted=now.wanted - {now.own.name}, vouched=now.vouched or now.peer_newer))


def _in_sync(now: Situation) -> frozenset[HostId]:
    """One step from what is to what is wanted; a replica leaves before another one joins."""
    base, wanted = now.base.in_sync, now.wanted
    leaving = base - wanted
    if leaving and base - leaving:
        return base - leaving
    joining = wanted - base
    return base | joining if len(joining) == 1 else base


def _voters(now: Situation, in_sync: frozenset[HostId]) -> frozenset[VoterId]:
    own, base, peer = now.own, now.base, now.peer_id
    if in_sync == frozenset({own.name}):
        return frozenset({own})
    if peer is not None and (peer in base.voters or now.vouched) and now.leased:
        if now.witness is not None:
            return frozenset({own, peer, now.witness})
        if now.witness_lost and own.name not in in_sync:
            return frozenset({peer})
    if now.witness_lost and own.name in in_sync:
        return frozenset({own})
    return base.voters


def _moved(now: Situation) -> Grant | None:
    base, peer = now.base, now.peer_id
    if peer is None or not isinstance(peer.name, bytes) or peer.name not in base.in_sync:
        return None
    if peer not in base.voters and not now.vouched:
        return None  # nobody knows what that memory's replica is worth
    if any(voter.name == peer.name and voter != peer for voter in base.voters):
        return None  # it has lost its memory
    in_sync = (base.in_sync & now.wanted) | {peer.name}  # without ours, if our disk is why
    return Grant(base.term + 1, 1, peer.name, peer.incarnation, in_sync, frozenset({peer}), base.fork)
