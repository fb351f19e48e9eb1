"""Proposer: one round of the register, from a ballot to a decision.

A round looks for the successor of one base::

    PREPARING   promises are gathered; each tells what its voter has accepted so far
    DECIDING    the value is fixed; acceptances are gathered
    (decided)   the own voter commits, or a majority of the others has accepted

The value is fixed when a majority has promised: what was accepted under the highest ballot among these, or
if nothing was, whatever the proposer wants.  No acceptance under the ballot is asked for before.

Two shortcuts, both a matter of which steps are one:

* **The own voter votes last.**  It is never asked to accept; once all other votes that a majority needs are
  there, `core.acceptor.commit` accepts and takes the grant for decided in one durable step.
* **The witness promises and accepts in one swap.**  What was read from it counts as its promise on
  condition (`Round.witnessed`); if the majority rests on that, its swap has to succeed before anybody else is
  asked, since before it the promise was not given.  If the swap fails the round is over: another voter has
  never seen its ballot.

A round is an immutable value; what is wanted from whom follows from it.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from pairsync.errors import InternalError

from .grants import BALLOT_NONE, Ballot, Grant, Vote, VoterId, tally

__all__ = ["Phase", "Round", "new_round"]

_NOBODY: frozenset[VoterId] = frozenset()


class Phase(enum.Enum):
    """See the module."""

    PREPARING = "preparing"
    DECIDING = "deciding"


class Round(NamedTuple):
    """One attempt to decide the successor of ``base``.

    ``found``: what was accepted under ``found_ballot``, the highest among those that promised.  ``value``:
    None until it is fixed.  ``gate``: the voter (the witness) whose acceptance must come first.
    """

    base: Grant
    ballot: Ballot
    promised: frozenset[VoterId] = _NOBODY
    refused: frozenset[VoterId] = _NOBODY
    found_ballot: Ballot = BALLOT_NONE
    found: Grant | None = None
    value: Grant | None = None
    gate: VoterId | None = None
    accepted: frozenset[VoterId] = _NOBODY

    @property
    def phase(self) -> Phase:
        """Whether the value is fixed."""
        return Phase.PREPARING if self.value is None else Phase.DECIDING

    def hears_promise(self, voter: VoterId, accepted_ballot: Ballot, accepted: Grant | None) -> Round:
        """``voter`` has promised the ballot, and had accepted that before.

        Late promises, and those of others than the voters, change nothing.
        """
        if self.value is not None or voter not in self.base.voters:
            return self
        return self._with(voter, accepted_ballot, accepted)

    def _with(self, voter: VoterId, accepted_ballot: Ballot, accepted: Grant | None) -> Round:
        promised = self.promised | {voter}
        if accepted is not None and accepted_ballot > self.found_ballot:
            return self._replace(promised=promised, found_ballot=accepted_ballot, found=accepted)
        return self._replace(promised=promised)

    def hears_refusal(self, voter: VoterId) -> Round:
        """``voter`` has promised a higher ballot."""
        return self._replace(refused=self.refused | {voter})

    def hears_acceptance(self, voter: VoterId) -> Round:
        """``voter`` has accepted the value."""
        if self.value is None:
            raise InternalError(f"{voter.describe()} has accepted under a ballot that has no value yet")
        return self._replace(accepted=self.accepted | {voter})

    def prepared(self) -> Vote:
        """Whether a majority has promised, without conditions."""
        return tally(self.base.voters, self.promised, self.refused)

    def witnessed(self, voter: VoterId, accepted_ballot: Ballot, accepted: Grant | None) -> Round | None:
        """The round as it is if ``voter``'s promise is given with its acceptance; None if that is no help."""
        conditional = self._with(voter, accepted_ballot, accepted)
        if self.value is not None or conditional.prepared() is not Vote.WON:
            return None
        return conditional._replace(gate=voter)

    def fixes(self, value: Grant) -> Round:
        """The value is fixed: what was found, or else ``value``."""
        if self.value is not None or self.prepared() is not Vote.WON:
            raise InternalError("a value is fixed when a majority has promised, once")
        return self._replace(value=value if self.found is None else self.found)

    def may_ask(self, voter: VoterId) -> bool:
        """Whether ``voter`` may be asked to accept now."""
        if self.value is None or voter not in self.base.voters:
            return False
        return self.gate is None or self.gate == voter or self.gate in self.accepted

    def decided(self, own: VoterId) -> Vote:
        """Whether the value is decided once the own voter commits (it counts if it is one of the voters)."""
        if self.value is None:
            return Vote.PENDING
        return tally(self.base.voters, self.accepted | {own}, self.refused)

    def decided_by_others(self) -> bool:
        """Whether it is decided whatever the own voter says."""
        return self.value is not None and tally(self.base.voters, self.accepted, _NOBODY) is Vote.WON


def new_round(base: Grant, ballot: Ballot) -> Round:
    """A round for the successor of ``base``; nobody has said anything yet."""
    return Round(base, ballot)
