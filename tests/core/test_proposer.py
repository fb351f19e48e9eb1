"""Proposer: whatever voters do and in whatever order they answer, one place of the chain gets one grant."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pairsync.core.acceptor import AcceptorState, accept, commit, prepare
from pairsync.core.grants import Ballot, Grant, Vote, VoterId, genesis
from pairsync.core.proposer import Phase, Round, new_round
from pairsync.errors import InternalError

A, B = b"a" * 32, b"b" * 32
A1, B1, W1 = VoterId(A, b"a1"), VoterId(B, b"b1"), VoterId("w", b"w1")
BASE = genesis(A1, b"fork")._replace(in_sync=frozenset({A, B}), voters=frozenset({A1, B1, W1}))
ALONE = BASE._replace(epoch=2, in_sync=frozenset({A}), voters=frozenset({A1}))
TAKEN = Grant(2, 1, B, b"b1", frozenset({B}), frozenset({B1}), b"fork")
ONE, TWO = Ballot(1, A, b"a1"), Ballot(2, B, b"b1")
NONE = Ballot(0, b"", b"")


def test_a_round_by_way_of_the_peer() -> None:
    begun = new_round(BASE, ONE)
    assert begun.phase is Phase.PREPARING
    one = begun.hears_promise(A1, NONE, None)
    assert one.prepared() is Vote.PENDING
    two = one.hears_promise(B1, NONE, None)
    assert two.prepared() is Vote.WON
    fixed = two.fixes(ALONE)
    assert (fixed.phase, fixed.value) == (Phase.DECIDING, ALONE)
    assert fixed.may_ask(B1)
    assert fixed.may_ask(W1)
    assert not fixed.may_ask(VoterId(B, b"b2"))
    assert fixed.decided(A1) is Vote.PENDING
    accepted = fixed.hears_acceptance(B1)
    assert accepted.decided(A1) is Vote.WON
    assert not accepted.decided_by_others()
    assert accepted.hears_acceptance(W1).decided_by_others()


def test_what_was_found_under_the_highest_ballot_goes_on() -> None:
    begun = new_round(BASE, Ballot(3, A, b"a1")).hears_promise(A1, ONE, ALONE)
    assert begun.hears_promise(B1, TWO, TAKEN).fixes(ALONE).value == TAKEN
    assert begun.hears_promise(B1, NONE, None).fixes(TAKEN).value == ALONE
    assert begun.hears_promise(VoterId(B, b"b2"), TWO, TAKEN) == begun, "a stranger"


def test_the_witness_comes_first_where_the_majority_rests_on_it() -> None:
    begun = new_round(BASE, ONE)
    assert begun.witnessed(W1, NONE, None) is None, "the own promise is missing"
    gated = begun.hears_promise(A1, NONE, None).witnessed(W1, NONE, None)
    assert gated is not None
    fixed = gated.fixes(ALONE)
    assert fixed.may_ask(W1)
    assert not fixed.may_ask(B1)
    assert fixed.hears_promise(B1, TWO, TAKEN) == fixed, "too late"
    assert fixed.hears_acceptance(W1).may_ask(B1)
    assert fixed.hears_acceptance(W1).decided(A1) is Vote.WON
    assert fixed.witnessed(W1, NONE, None) is None


def test_refusals_count() -> None:
    begun = new_round(BASE, ONE).hears_promise(A1, NONE, None)
    assert begun.hears_refusal(B1).prepared() is Vote.PENDING
    assert begun.hears_refusal(B1).hears_refusal(W1).prepared() is Vote.LOST


def test_what_must_not_happen_is_told() -> None:
    begun = new_round(BASE, ONE)
    with pytest.raises(InternalError):
        begun.hears_acceptance(B1)
    with pytest.raises(InternalError):
        begun.fixes(ALONE)
    assert not begun.may_ask(B1)
    assert begun.decided(A1) is Vote.PENDING
    assert not begun.decided_by_others()
    fixed = begun.hears_promise(A1, NONE, None).hears_promise(B1, NONE, None).fixes(ALONE)
    with pytest.raises(InternalError):
        fixed.fixes(ALONE)


class _Voters:
    """Three voters, and proposers that talk to them one call at a time."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.states = {voter: AcceptorState(voter.incarnation, BASE) for voter in (A1, B1, W1)}
        self.decided: set[Grant] = set()

    def run(self, own: VoterId, counter: int, wish: Grant, *, by_witness: bool) -> None:
        """One round from its beginning until it is decided or given up; each answer comes or does not."""
        ballot = Ballot(counter, A if own == A1 else B, own.incarnation)
        current = new_round(BASE, ballot)
        for voter in self.random.sample([A1, B1], 2) if by_witness else self.random.sample([A1, B1, W1], 3):
            state = prepare(self.states[voter], ballot)
            if state is not None and (voter == own or self.random.random() < 0.7):
                current = current.hears_promise(
                    voter, self.states[voter].accepted_ballot, self.states[voter].accepted
                )
                self.states[voter] = state
                yield_now = self.random.random() < 0.3
                if yield_now:
                    self.others()
        if own not in current.promised:
            return
        self._decide(current, own, wish, by_witness=by_witness)

    def _decide(self, current: Round, own: VoterId, wish: Grant, *, by_witness: bool) -> None:
        seen = self.states[W1]
        gated = current.witnessed(W1, seen.accepted_ballot, seen.accepted) if by_witness else None
        if gated is None and current.prepared() is not Vote.WON:
            return
        fixed = (gated or current).fixes(wish)
        value = fixed.value
        assert value is not None
        for voter in [W1, *self.random.sample([A1, B1], 2)]:
            self.others()
            if voter == own or not fixed.may_ask(voter) or self.random.random() < 0.3:
                continue
            if voter == W1 and gated is not None and self.states[W1] != seen:
                return  # its swap fails
            state = accept(self.states[voter], fixed.ballot, value)
            if state is not None:
                self.states[voter] = state
                fixed = fixed.hears_acceptance(voter)
        if fixed.decided(own) is Vote.WON and commit(self.states[own], fixed.ballot, value) is not None:
            self.decided.add(value)
            state = accept(self.states[own], fixed.ballot, value)  # stays at this place, to go on asking
            assert state is not None
            self.states[own] = state
        elif fixed.decided_by_others():
            self.decided.add(value)

    rounds: list[tuple[VoterId, int, Grant, bool]]

    def others(self) -> None:
        """Perhaps another round runs in between."""
        if self.rounds and self.random.random() < 0.5:
            own, counter, wish, by_witness = self.rounds.pop()
            self.run(own, counter, wish, by_witness=by_witness)


@settings(max_examples=300)
@given(st.integers(0, 1 << 32))
def test_at_most_one_grant_is_decided(seed: int) -> None:
    random = Random(seed)
    voters = _Voters(random)
    counters = {A1: 0, B1: 0}
    rounds = []
    for _ in range(8):
        own = random.choice([A1, B1])
        counters[own] += random.randint(1, 2)  # a proposer never uses a ballot again
        wish = random.choice([ALONE, BASE._replace(epoch=2)]) if own == A1 else TAKEN
        rounds.append((own, counters[own], wish, random.random() < 0.5))
    voters.rounds = rounds[::-1]
    while voters.rounds:
        voters.others()
    assert len(voters.decided) <= 1
