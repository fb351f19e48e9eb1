"""Register: one host as voter and proposer, by way of the peer, of the witness, and alone."""

from __future__ import annotations

import pytest

from pairsync.core.acceptor import AcceptorState, accept, learn
from pairsync.core.arbitration import (
    Accept,
    Accepted,
    PersistAcceptor,
    Prepare,
    Promise,
    Refusal,
    SendPeer,
    TwoTruths,
    WitnessView,
)
from pairsync.core.grants import BALLOT_NONE, Ballot, Grant, VoterId, forced, genesis
from pairsync.core.outcomes import AskWitness, Outcome
from pairsync.core.register import Register
from pairsync.errors import InternalError

A, B = b"a" * 32, b"b" * 32
A1, B1, W1 = VoterId(A, b"a1"), VoterId(B, b"b1"), VoterId("w", b"w1")
FIRST = genesis(A1, b"fork")
BOTH = FIRST._replace(epoch=2, in_sync=frozenset({A, B}), voters=frozenset({A1, B1, W1}))
ALONE = BOTH._replace(epoch=3, in_sync=frozenset({A}), voters=frozenset({A1}))
SAME = BOTH._replace(epoch=3)
TAKEN = Grant(2, 1, B, b"b1", frozenset({B}), frozenset({B1}), b"fork")
EMPTY_VIEW = WitnessView(b"w1", 7, AcceptorState(b"w1", BOTH))
ONE = Ballot(1, A, b"a1")


def _register(base: Grant | None = BOTH) -> Register:
    return Register(A, B, AcceptorState(b"a1", base), ("w", "v"))


def _sent(out: list[Outcome]) -> list[object]:
    return [each.message for each in out if isinstance(each, SendPeer)]


def _kinds(out: list[Outcome]) -> list[type]:
    return [type(each.message) if isinstance(each, SendPeer) else type(each) for each in out]


def test_who_decides_alone_does_so_in_one_durable_step() -> None:
    register = _register(FIRST)
    out: list[Outcome] = []
    register.begin(BOTH, out, via_witness=False, cedes=True)
    assert out == [PersistAcceptor(AcceptorState(b"a1", BOTH))]
    assert register.base == BOTH
    assert register.round is None


def test_by_way_of_the_peer() -> None:
    register = _register()
    out: list[Outcome] = []
    register.begin(SAME, out, via_witness=False, cedes=True)
    assert _kinds(out) == [PersistAcceptor, Prepare], "the promise is durable before it is used"
    out.clear()
    register.hears(Promise(B1, BOTH, ONE, BALLOT_NONE, None), out, cedes=True)
    assert _sent(out) == [Accept(A1, BOTH, ONE, SAME)]
    out.clear()
    register.hears(Accepted(B1, BOTH, Ballot(9, A, b"a1")), out, cedes=True)
    assert out == [], "not of this round"
    register.hears(Accepted(B1, BOTH, ONE), out, cedes=True)
    assert out == [PersistAcceptor(AcceptorState(b"a1", SAME))]


def test_by_way_of_the_witness_in_one_swap() -> None:
    register = _register()
    out: list[Outcome] = []
    register.look("w", out)
    register.answered("w", EMPTY_VIEW, out, cedes=True)
    out.clear()
    register.begin(ALONE, out, via_witness=True, cedes=True)
    wanted = accept(AcceptorState(b"w1", BOTH), ONE, ALONE)
    assert wanted is not None
    assert out[1:] == [AskWitness("w", 7, wanted)]
    assert isinstance(out[0], PersistAcceptor)
    out.clear()
    register.answered("w", WitnessView(b"w1", 8, wanted), out, cedes=True)
    assert out == [PersistAcceptor(AcceptorState(b"a1", ALONE))]


def test_an_old_view_costs_one_more_round_and_no_pause() -> None:
    register = _register()
    out: list[Outcome] = []
    register.answered("w", EMPTY_VIEW, out, cedes=True)
    register.begin(ALONE, out, via_witness=True, cedes=True)
    promised = AcceptorState(b"w1", BOTH, Ballot(3, B, b"b1"))
    register.answered("w", WitnessView(b"w1", 8, promised), out, cedes=True)
    assert (register.round, register.paused, register.retried) == (None, False, True)
    out.clear()
    register.begin(ALONE, out, via_witness=True, cedes=True)
    assert isinstance(out[1], AskWitness)
    assert out[1].state is not None
    assert out[1].state.promised.counter == 4, "above all that was heard of"
    register.answered("w", WitnessView(b"w1", 9, promised), out, cedes=True)
    assert register.paused, "the second time somebody else is at work"


def test_a_witness_that_has_lost_its_memory_is_no_help() -> None:
    register = _register()
    out: list[Outcome] = []
    register.answered("w", WitnessView(b"w2", 0, None), out, cedes=True)
    register.begin(ALONE, out, via_witness=True, cedes=True)
    assert _kinds(out) == [PersistAcceptor, Prepare]
    assert register.asking is None


def test_a_witness_that_cannot_be_reached() -> None:
    register = _register()
    out: list[Outcome] = []
    register.begin(ALONE, out, via_witness=True, cedes=True)
    assert _kinds(out) == [PersistAcceptor, AskWitness, Prepare], "whoever answers first"
    register.unreachable("w")
    assert not register.paused
    register.abandon(pause=False)
    out.clear()
    register.answered("w", EMPTY_VIEW, out, cedes=True)
    register.begin(ALONE, out, via_witness=True, cedes=True)
    register.unreachable("w")
    assert (register.round, register.paused) == (None, True), "the swap may happen yet: another ballot"
    assert register.view("w") is None
    assert register.possible == {ALONE}


def test_what_a_voter_has_accepted_goes_on_if_it_may() -> None:
    accepted = accept(AcceptorState(b"w1", BOTH), Ballot(5, B, b"b1"), TAKEN)
    assert accepted is not None
    for cedes in (False, True):
        register = _register()
        out: list[Outcome] = []
        register.answered("w", WitnessView(b"w1", 8, accepted), out, cedes=cedes)
        assert register.leftover()
        register.begin(ALONE, out, via_witness=True, cedes=cedes)
        assert register.possible == {TAKEN}
        asked = [each for each in out if isinstance(each, AskWitness)]
        assert len(asked) == cedes, "a change of the owner waits until the guest is down"
        if cedes:
            assert asked[0].state is not None
            assert asked[0].state.accepted == TAKEN


def test_as_a_voter() -> None:
    register = _register()
    out: list[Outcome] = []
    ballot = Ballot(2, B, b"b1")
    register.votes(Prepare(B1, BOTH, ballot), out, cedes=False)
    assert _kinds(out) == [PersistAcceptor, Promise]
    out.clear()
    register.votes(Prepare(B1, BOTH, ONE), out, cedes=False)
    assert _sent(out) == [Refusal(A1, BOTH, ONE, ballot)]
    out.clear()
    register.votes(Accept(B1, BOTH, ballot, TAKEN), out, cedes=False)
    assert _kinds(out) == [Refusal], "the guest is up"
    out.clear()
    register.votes(Accept(B1, BOTH, ballot, TAKEN), out, cedes=True)
    assert _kinds(out) == [PersistAcceptor, Accepted]
    out.clear()
    register.votes(Prepare(B1, FIRST, Ballot(9, B, b"b1")), out, cedes=True)
    assert _sent(out) == [Refusal(A1, BOTH, Ballot(9, B, b"b1"), ballot)], "an older place of the chain"


def test_a_round_that_was_overtaken_pauses() -> None:
    for overtaken in (True, False):
        register = _register()
        out: list[Outcome] = []
        register.begin(SAME, out, via_witness=False, cedes=True)
        if overtaken:
            register.votes(Prepare(B1, BOTH, Ballot(2, B, b"b1")), out, cedes=True)
        else:
            register.hears(Refusal(B1, BOTH, ONE, Ballot(4, B, b"b1")), out, cedes=True)
            assert register.top_counter == 4
        assert register.round is None
        assert register.paused


def test_news_end_everything_old() -> None:
    register = _register()
    out: list[Outcome] = []
    register.begin(SAME, out, via_witness=False, cedes=True)
    out.clear()
    assert register.hears_of(TAKEN, out)
    assert out == [PersistAcceptor(AcceptorState(b"a1", TAKEN))]
    assert (register.round, register.possible) == (None, frozenset())
    assert register.hears_of(BOTH, out)
    assert register.hears_of(None, out)
    assert register.base == TAKEN


def test_a_newer_chain_rules_and_is_told_once() -> None:
    register = _register()
    out: list[Outcome] = []
    forced_grant = TAKEN._replace(fork=b"other", override="Erika")
    for _ in range(2):
        assert register.hears_of(forced_grant, out)
    assert out == [TwoTruths(BOTH, forced_grant), PersistAcceptor(AcceptorState(b"a1", forced_grant))]


def test_two_truths_are_told_and_nothing_is_learnt() -> None:
    register = _register()
    out: list[Outcome] = []
    other = BOTH._replace(fork=b"other")
    assert not register.hears_of(other, out)
    assert out == [TwoTruths(BOTH, other)]
    register.answered("w", WitnessView(b"w1", 8, AcceptorState(b"w1", other)), out, cedes=True)
    assert register.view("w") is None
    assert register.base == BOTH


def test_teaching_the_witness() -> None:
    register = _register()
    out: list[Outcome] = []
    register.answered("w", WitnessView(b"w1", 3, AcceptorState(b"w1", FIRST)), out, cedes=True)
    register.teach("w", out)
    assert out == [AskWitness("w", 3, learn(AcceptorState(b"w1"), BOTH))]
    register.teach("w", out)
    assert len(out) == 1, "one question at a time"
    register.answered("w", WitnessView(b"w1", 4, AcceptorState(b"w1", BOTH)), out, cedes=True)
    register.teach("w", out)
    assert len(out) == 1
    assert not register.leftover()


def test_an_override_needs_nobody() -> None:
    register = _register()
    out: list[Outcome] = []
    grant = forced(A1, [BOTH], b"new", "Erika")
    register.override(grant, out)
    assert out == [PersistAcceptor(AcceptorState(b"a1", grant))]


def test_what_cannot_begin_is_our_own_bug() -> None:
    for register in (_register(None), _register(FIRST)):
        with pytest.raises(InternalError):
            register.begin(TAKEN, [], via_witness=False, cedes=True)
    assert _register().voting_peer() == B1
    assert _register().voting_witness() == W1
    assert _register(None).voting_witness() is None
