"""Grants: who owns a guest, whose replicas are in sync, and who must agree to the next change.

The register of a guest is a chain of grants.  Each names, by `Grant.voters`, the voters of which a majority
decides its successor; and each was decided, as the one successor of the grant before it, by a majority of
*that* grant's voters.  So there is nothing to agree about beside the chain: a change of the voters is an
ordinary link of it, and two links of one place cannot both be decided because any two majorities of one set
of voters have a voter in common, and that voter does not forget (`core.acceptor`).

A voter is a name *and an incarnation*: 8 random bytes drawn when its memory was made.  One that has lost
its memory draws others, is another voter, and counts for nothing until a grant names it.  For the same
reason an owner is named with its incarnation (`Grant.holder`): a host that has lost its memory does not
know what it has promised, and does not go on as the owner that it was.

What may follow a grant is `objection`; an acceptor refuses everything else, whoever proposes it.

Forced grants (an operator's override) stand outside: nobody voted.  They get a new `Grant.fork`, so that
two chains are told apart for ever, and a term above every known one.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import NamedTuple, TypeAlias

from pairsync.errors import InternalError

__all__ = [
    "BALLOT_NONE",
    "FORK_BYTES",
    "HOST_ID_BYTES",
    "INCARNATION_BYTES",
    "IN_SYNC_MAX",
    "OPERATOR_BYTES_MAX",
    "VOTERS_MAX",
    "Ballot",
    "Grant",
    "HostId",
    "Vote",
    "VoterId",
    "forced",
    "genesis",
    "majority",
    "malformed",
    "objection",
    "tally",
]

HostId: TypeAlias = bytes
"""Fingerprint of a host's key."""

HOST_ID_BYTES = 32
INCARNATION_BYTES = 8
"""Drawn at random when a voter's memory is made: two memories are mixed up once in 2^64."""
FORK_BYTES = 8
"""Drawn at random with each genesis and each override."""
VOTERS_MAX = 3
"""The two hosts and one witness (DESIGN section 3)."""
IN_SYNC_MAX = 2
"""The hosts of a pair."""
OPERATOR_BYTES_MAX = 128
"""Name of the operator of an override, in UTF-8."""


class VoterId(NamedTuple):
    """One memory: a host's (by its fingerprint) or a witness's (by its name)."""

    name: bytes | str
    incarnation: bytes

    def describe(self) -> str:
        """Terse form for logs, such as ``host 3f21/08``."""
        name = f"witness {self.name}" if isinstance(self.name, str) else f"host {self.name.hex()[:4]}"
        return f"{name}/{self.incarnation.hex()[:2]}"


class Ballot(NamedTuple):
    """Numbers a round; of two, the higher one goes on.

    ``incarnation`` is that of the proposing host's memory: without it a host that has forgotten its rounds
    could begin one a second time, with another value.
    """

    counter: int
    proposer: HostId
    incarnation: bytes


BALLOT_NONE = Ballot(0, b"", b"")
"""Lower than any other."""


class Grant(NamedTuple):
    """One link of the chain.

    ``term`` grows by one with each change of the owner, ``epoch`` with every other change within a term
    and from 1.  ``holder`` is the incarnation of the owner's memory.  ``in_sync`` is never empty; the owner
    need not be in it: its disk may have failed, and it then serves from the peer.  ``override`` names the
    operator who forced this grant; empty if it was voted.
    """

    term: int
    epoch: int
    owner: HostId
    holder: bytes
    in_sync: frozenset[HostId]
    voters: frozenset[VoterId]
    fork: bytes
    override: str = ""

    @property
    def order(self) -> tuple[int, int]:
        """Of two grants of one chain, the one with the higher order is the newer."""
        return self.term, self.epoch

    @property
    def owner_id(self) -> VoterId:
        """The owner as a voter."""
        return VoterId(self.owner, self.holder)

    @property
    def sole(self) -> VoterId | None:
        """The voter that decides alone, if one does."""
        return next(iter(self.voters)) if len(self.voters) == 1 else None

    @property
    def is_first(self) -> bool:
        """Whether it is a `genesis`: nothing was ever agreed of the guest but who has it first."""
        return self.order == (1, 1)

    def decides_without(self, voter: VoterId) -> bool:
        """Whether a majority of the voters may decide the next grant without that one."""
        return len(self.voters - {voter}) >= majority(self.voters)

    def describe(self) -> str:
        """Terse form for logs: ``3.1 owner 3f21, in sync 3f21 a0b1, voters ...``."""
        in_sync = " ".join(sorted(host.hex()[:4] for host in self.in_sync))
        voters = ", ".join(sorted(voter.describe() for voter in self.voters))
        forced_by = f", forced by {self.override}" if self.override else ""
        return (
            f"{self.term}.{self.epoch} owner {self.owner.hex()[:4]}, in sync {in_sync}, "
            f"voters {voters}{forced_by}"
        )


class Vote(enum.Enum):
    """How a vote stands."""

    PENDING = "pending"
    WON = "won"
    LOST = "lost"


def majority(voters: AbstractSet[VoterId]) -> int:
    """How many of them are more than half."""
    return len(voters) // 2 + 1


def tally(voters: AbstractSet[VoterId], ayes: AbstractSet[VoterId], noes: AbstractSet[VoterId]) -> Vote:
    """How a vote among ``voters`` stands; what others say does not count."""
    needed = majority(voters)
    if len(ayes & voters) >= needed:
        return Vote.WON
    if len(voters) - len((noes - ayes) & voters) < needed:
        return Vote.LOST
    return Vote.PENDING


def genesis(owner: VoterId, fork: bytes) -> Grant:
    """The first grant of a guest: made together with the first host's memory, before there is a peer."""
    if not isinstance(owner.name, bytes):
        raise InternalError("a witness owns nothing")
    return Grant(1, 1, owner.name, owner.incarnation, frozenset({owner.name}), frozenset({owner}), fork)


def forced(
    owner: VoterId, known: Iterable[Grant], fork: bytes, operator: str, *, term_seen: int = 0
) -> Grant:
    """An override: ``owner`` alone, above everything that is ``known``, by the word of ``operator``.

    ``term_seen``: the highest that the owner's replica has recorded; a memory that was lost knows less.
    """
    if not isinstance(owner.name, bytes):
        raise InternalError("a witness owns nothing")
    term = 1 + max((grant.term for grant in known), default=0)
    term = max(term, term_seen + 1)
    alone = frozenset({owner.name})
    return Grant(term, 1, owner.name, owner.incarnation, alone, frozenset({owner}), fork, operator)


def objection(base: Grant, grant: Grant) -> str | None:
    """Why ``grant`` may not follow ``base``; None if it may.

    Within a term the owner stays, and one replica at most joins or leaves the in-sync set.  A change of the
    owner begins a term: only a replica that was in sync is promoted (DESIGN rule 3), and none joins with it.
    """
    wrong = malformed(grant)
    if wrong is not None:
        return wrong
    if grant.fork != base.fork:
        return "another chain"
    if grant.override:
        return "an override is not voted"
    if grant.term == base.term:
        if grant.epoch != base.epoch + 1:
            return f"epoch {grant.epoch} after {base.epoch}"
        if grant.owner_id != base.owner_id:
            return "another owner in the same term"
        if len(grant.in_sync ^ base.in_sync) > 1:
            return "two replicas change places at once"
        return None
    if (grant.term, grant.epoch) != (base.term + 1, 1):
        return f"{grant.term}.{grant.epoch} after {base.term}.{base.epoch}"
    if grant.owner_id == base.owner_id:
        return "a new term for the same owner"
    if grant.owner not in base.in_sync or grant.owner not in grant.in_sync:
        return "the new owner's replica is not in sync"
    if not grant.in_sync <= base.in_sync:
        return "a replica joins with a change of the owner"
    if any(voter.name == grant.owner and voter != grant.owner_id for voter in base.voters):
        return "the new owner has lost its memory"
    return None


def malformed(grant: Grant) -> str | None:
    """Why no chain holds such a grant; None if one may."""
    if grant.term < 1 or grant.epoch < 1:
        return "terms and epochs count from 1"
    if not 1 <= len(grant.in_sync) <= IN_SYNC_MAX:
        return f"{len(grant.in_sync)} replicas in sync"
    if not 1 <= len(grant.voters) <= VOTERS_MAX:
        return f"{len(grant.voters)} voters"
    if len({voter.name for voter in grant.voters}) != len(grant.voters):
        return "a voter stands twice"
    return None
