"""Claims: on what ground a host would serve what lies on its disks, and when it must not.

A grant names the owner, and speaks of hosts.  Disks may have been exchanged, or put back to an older state,
since it was agreed.  So a host that owns a guest asks its replicas too (`obstacle`), and **one that knows
that its peer's are newer serves nothing**, whatever the grant says of the peer, in this life or a later one,
for its replicas record it (`Superblock.outdated`): until they have been brought up to date; until those of
the peer are not newer any more, for a person had them give way; or until a person insists on what is here.

A peer that is met and found newer may own the guest by the same proof, though nobody votes for it: see
`peer_is_newer`, and ``core.policy`` for what the owner does then.

A person who overrides makes a grant that says so, which stays the newest one until the peer is in sync again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from .lineage import has_all
from .messages import Condition
from .units import NS_PER_S

if TYPE_CHECKING:
    from .arbiter import Arbiter
    from .session import Session

__all__ = [
    "INSISTED",
    "MEET_NS",
    "Claim",
    "claim_of",
    "has_to_meet",
    "is_outdated",
    "obstacle",
    "peer_is_newer",
]

MEET_NS: Final = 2 * NS_PER_S
"""So long a new owner waits for a peer that may own too to introduce itself: a moment, if its disk works."""


class Claim(NamedTuple):
    """What is agreed of the host that would serve.

    ``new``: nothing was agreed of the guest but who has it first.  Later a replica that was never written is
    an exchanged disk, whatever a grant says of its host (DESIGN rule 3).  ``term``: of the grant, where it is
    the other host's; 0 if it is ours.  A replica that was proven in sync under it has recorded it: one that
    has not was put back from a backup, or is still to be proven.  ``insisted``: a person has said that what
    is here is the truth.
    """

    new: bool = False
    term: int = 0
    insisted: bool = False


INSISTED: Final = Claim(insisted=True)


def claim_of(arbiter: Arbiter) -> Claim:
    """What the grant in force says of this host."""
    grant = arbiter.grant
    if grant is None:
        return Claim(new=True)
    ours = grant.owner == arbiter.decider.register.name
    return Claim(grant.is_first, 0 if ours else grant.term, ours and bool(grant.override))


def obstacle(session: Session, claim: Claim, *, halted: bool = False) -> str:
    """Why what lies on this host's disks cannot serve the guest on that claim, for people; empty if it can.

    ``halted``: an owner that serves nothing now could, once its disks have been opened anew.
    """
    if session.outdated and not claim.insisted:
        return session.outdated
    for source in () if halted else session.sources:
        if source.failed is not None:
            return f"volume {source.standing.name}: {source.failed}"
    for target in session.targets:
        block = target.superblock
        if block.condition is Condition.SYNCING:
            return f"volume {block.name} is half overwritten by a resync"
        if block.condition is Condition.BLANK and not claim.new:
            return f"volume {block.name} was never written: an empty disk is not what the guest has"
        if block.term < claim.term:
            return f"volume {block.name} is not proven in sync since the last change of the owner"
    return ""


def has_to_meet(arbiter: Arbiter, session: Session) -> bool:
    """Whether a host that is about to serve should hear first whether its peer, which may own too, is newer.

    For `MEET_NS` at the most: a peer that votes is there, and introduces itself in that moment.
    """
    return session.awaits_peer and arbiter.both_in_sync


def is_outdated(arbiter: Arbiter, session: Session) -> bool:
    """Whether a host that is about to serve must not, since it knows that its peer has what is newer."""
    return bool(session.outdated) and not claim_of(arbiter).insisted


def peer_is_newer(session: Session) -> bool:
    """Whether this host is outdated, and the peer that is met now has all that it has, and more.

    That proves the peer's replicas, whatever memory it has: what the grant calls in sync is still there.
    """
    peer = session.peer
    return bool(session.outdated) and peer is not None and has_all(peer, session.introduction())
