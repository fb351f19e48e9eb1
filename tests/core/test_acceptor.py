"""Acceptor: what a voter has said binds it, and what it learns sets it free."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pairsync.core.acceptor import AcceptorState, accept, commit, is_news, learn, prepare
from pairsync.core.grants import BALLOT_NONE, Ballot, Grant, VoterId, genesis

A, B = b"a" * 32, b"b" * 32
A1, B1, W1 = VoterId(A, b"a1"), VoterId(B, b"b1"), VoterId("w", b"w1")
BASE = genesis(A1, b"fork")._replace(in_sync=frozenset({A, B}), voters=frozenset({A1, B1, W1}))
NEXT = BASE._replace(epoch=2)
TAKEN = Grant(2, 1, B, b"b1", frozenset({B}), frozenset({B1}), b"fork")
ONE, TWO, THREE = (Ballot(counter, A, b"a1") for counter in (1, 2, 3))
EMPTY = AcceptorState(b"b1")
STATE = AcceptorState(b"b1", BASE)


def test_without_a_base_it_says_nothing() -> None:
    assert prepare(EMPTY, ONE) is None
    assert accept(EMPTY, ONE, NEXT) is None
    assert commit(EMPTY, ONE, NEXT) is None
    assert learn(EMPTY, BASE) == STATE
    assert STATE.voter(B) == B1


def test_a_promise_refuses_what_is_lower() -> None:
    promised = prepare(STATE, TWO)
    assert promised is not None
    assert promised.promised == TWO
    assert prepare(promised, ONE) is None
    assert prepare(promised, TWO) == promised
    assert accept(promised, ONE, NEXT) is None
    assert commit(promised, ONE, NEXT) is None
    accepted = accept(promised, TWO, NEXT)
    assert accepted is not None
    assert (accepted.accepted_ballot, accepted.accepted) == (TWO, NEXT)
    assert accepted.base == BASE


def test_an_acceptance_promises_too() -> None:
    accepted = accept(STATE, THREE, NEXT)
    assert accepted is not None
    assert prepare(accepted, TWO) is None


def test_only_what_may_follow_is_accepted() -> None:
    assert accept(STATE, ONE, NEXT._replace(epoch=3)) is None
    assert accept(STATE, ONE, TAKEN) is not None


def test_what_is_learnt_replaces_everything() -> None:
    accepted = accept(STATE, THREE, NEXT)
    assert accepted is not None
    assert learn(accepted, TAKEN) == AcceptorState(b"b1", TAKEN)
    assert learn(accepted, BASE) == accepted, "no news"
    assert not is_news(TAKEN, NEXT)


def test_a_commit_is_an_acceptance_that_is_known_to_decide() -> None:
    assert commit(STATE, ONE, TAKEN) == AcceptorState(b"b1", TAKEN)


ballots = st.builds(Ballot, st.integers(1, 4), st.sampled_from([A, B]), st.sampled_from([b"a1", b"b1"]))
requests = st.lists(
    st.one_of(
        st.tuples(st.just(prepare), ballots),
        st.tuples(st.sampled_from([accept, commit]), ballots, st.sampled_from([NEXT, TAKEN])),
        st.tuples(st.just(learn), st.sampled_from([NEXT, TAKEN])),
    ),
    max_size=12,
)


@given(requests)
def test_invariants(asked: list[tuple[object, ...]]) -> None:
    state = STATE
    for function, *arguments in asked:
        after = function(state, *arguments)  # type: ignore[operator]
        if after is None:
            continue
        assert after.incarnation == state.incarnation
        assert after.base is not None
        assert state.base is not None
        assert after.base.order >= state.base.order
        if after.base == state.base:
            assert after.promised >= state.promised
            assert after.accepted_ballot >= state.accepted_ballot
        else:
            assert (after.promised, after.accepted) == (BALLOT_NONE, None)
        assert after.accepted_ballot <= after.promised
        assert (after.accepted is None) == (after.accepted_ballot == BALLOT_NONE)
        state = after
