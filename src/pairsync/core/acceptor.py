"""Acceptor: the memory of one voter, and what it may still say.

A voter remembers the newest grant that it knows to be *decided* (the base), and of the rounds that look for
the base's successor: the highest ballot that it has promised, and what it has accepted, under which ballot.
This is single-decree Paxos, one instance for each place of the chain; the base says which instance, and who
its voters are.  The promises of one instance mean nothing in the next: a new base begins with none.

* `prepare`: a ballot higher than any promised is promised; lower ones are refused from then on.
* `accept`: a legal successor of the base is accepted under a ballot that is not lower than the promise.
* `learn`: somebody says that a newer grant was decided.  It becomes the base, whatever was accepted:
  who still works at an older instance is refused, and told of the newer base.
* `commit`: the voter's own acceptance decides.  Acceptance and knowledge are one durable step: with all
  other votes that a majority needs at hand, the own one makes the grant decided, and it is the base at once.

Pure functions of an immutable state.  For a host the state is durable before an answer leaves.  A witness
does nothing by itself: a host applies these functions to the state that it has read from the witness's
store, and writes the result by compare-and-swap.  Whoever reads at version k and swaps at version k has
seen and changed the state in one step; so promise and acceptance may be one swap.
"""

from __future__ import annotations

from typing import NamedTuple

from .grants import BALLOT_NONE, Ballot, Grant, HostId, VoterId, objection

__all__ = ["AcceptorState", "HostMemory", "accept", "commit", "gives_way", "is_news", "learn", "prepare"]


class AcceptorState(NamedTuple):
    """What a voter remembers.

    Invariants: ``accepted`` is None or a legal successor of ``base``; ``accepted_ballot <= promised``;
    without a base there are neither promises nor acceptances.
    """

    incarnation: bytes
    base: Grant | None = None
    promised: Ballot = BALLOT_NONE
    accepted_ballot: Ballot = BALLOT_NONE
    accepted: Grant | None = None

    def voter(self, name: bytes | str) -> VoterId:
        """The voter whose memory this is."""
        return VoterId(name, self.incarnation)


class HostMemory(NamedTuple):
    """What a host writes down: its voter's state, and by which promise it may be bound (`core.promises`)."""

    acceptor: AcceptorState
    promise_ns: int | None
    """The longest that it may have given; None: whoever wrote it did not say."""


def gives_way(state: AcceptorState, host: HostId) -> bool:
    """Whether that host, whose disks are empty, must not go on as the owner that it was.

    As another voter it stands in nobody's way who has the data.  Before the guest has run nobody has any.
    """
    base = state.base
    return base is not None and not base.is_first and base.owner_id == state.voter(host)


def is_news(base: Grant | None, grant: Grant) -> bool:
    """Whether ``grant``, which was decided, is newer than ``base``."""
    return base is None or grant.order > base.order


def learn(state: AcceptorState, grant: Grant) -> AcceptorState:
    """``grant`` was decided; the same state if that is no news."""
    return AcceptorState(state.incarnation, grant) if is_news(state.base, grant) else state


def prepare(state: AcceptorState, ballot: Ballot) -> AcceptorState | None:
    """Promise to hear no lower ballot; None: refused.  A repeated request is promised again."""
    if state.base is None or ballot < state.promised:
        return None
    return state._replace(promised=ballot)


def accept(state: AcceptorState, ballot: Ballot, grant: Grant) -> AcceptorState | None:
    """Accept ``grant`` as successor of the base; None: refused."""
    if state.base is None or ballot < state.promised or objection(state.base, grant) is not None:
        return None
    return state._replace(promised=ballot, accepted_ballot=ballot, accepted=grant)


def commit(state: AcceptorState, ballot: Ballot, grant: Grant) -> AcceptorState | None:
    """Accept ``grant`` where that decides it, and take it as the base; None: refused."""
    return None if accept(state, ballot, grant) is None else learn(state, grant)
