"""Decider: inputs one by one; all their orders are explored in ``test_explore``."""

from __future__ import annotations

import pytest

from pairsync.core.acceptor import AcceptorState
from pairsync.core.arbitration import (
    Accept,
    Accepted,
    Beat,
    BeatAnswer,
    InForce,
    Own,
    PeerMessage,
    Prepare,
    Promise,
    Refusal,
    SendPeer,
    Stop,
    TwoTruths,
    WitnessView,
    Yield,
)
from pairsync.core.decider import Decider
from pairsync.core.grants import BALLOT_NONE, Ballot, Grant, VoterId, forced, genesis
from pairsync.core.outcomes import AskWitness, Guest, Outcome, Wait, Waiting

A, B = b"a" * 32, b"b" * 32
A1, B1, B2, W1 = VoterId(A, b"a1"), VoterId(B, b"b1"), VoterId(B, b"b2"), VoterId("w", b"w1")
FIRST = genesis(A1, b"fork")
BOTH = FIRST._replace(epoch=2, in_sync=frozenset({A, B}), voters=frozenset({A1, B1, W1}))
ALONE = BOTH._replace(epoch=3, in_sync=frozenset({A}), voters=frozenset({A1}))
TAKEN = Grant(2, 1, B, b"b1", frozenset({B}), frozenset({B1}), b"fork")
VIEW = WitnessView(b"w1", 7, AcceptorState(b"w1", BOTH))


def _up(host: VoterId, base: Grant | None) -> Decider:
    own, peer = (A, B) if host.name == A else (B, A)
    decider = Decider(own, peer, AcceptorState(host.incarnation, base), ("w",))
    decider.start()
    decider.is_ready(ready=True)
    decider.unreachable("w")
    return decider


def _owner() -> Decider:
    """Of `BOTH`, the guest up."""
    decider = _up(A1, BOTH)
    assert Own(BOTH) in decider.hears(BeatAnswer(B1, BOTH, 1, granted=True, ready=True))
    return decider


def _said(outcomes: list[Outcome]) -> list[PeerMessage]:
    return [each.message for each in outcomes if isinstance(each, SendPeer)]


@pytest.mark.parametrize("answers", [True, False])
def test_who_decides_alone_asks_around_first(answers: bool) -> None:
    decider = Decider(A, B, AcceptorState(b"a1", FIRST), ("w",))
    out = decider.start()
    assert InForce(FIRST, peer_excluded=True) in out
    assert AskWitness("w", None, None) in out
    assert decider.is_ready(ready=True) == []
    if answers:
        out = decider.hears(BeatAnswer(B1, None, 1, granted=False, ready=False))
    else:
        out = decider.expired(Wait.SILENCE)
    assert Own(FIRST) in out
    assert decider.guest is Guest.UP


def test_who_decides_alone_and_finds_that_it_does_not_any_more() -> None:
    decider = Decider(A, B, AcceptorState(b"a1", FIRST), ("w",))
    decider.start()
    decider.is_ready(ready=True)
    forced_grant = forced(B1, [FIRST], b"new", "Erika")
    out = decider.answered("w", WitnessView(b"w1", 9, AcceptorState(b"w1", forced_grant)))
    assert Yield(forced_grant) in out
    assert not any(isinstance(each, Own) for each in out)


def test_an_owner_with_other_voters_asks_first() -> None:
    decider = _up(A1, BOTH)
    assert decider.guest is Guest.DOWN
    assert decider.hears(BeatAnswer(B1, BOTH, 1, granted=False, ready=True)) != []
    assert decider.guest is Guest.DOWN
    assert Own(BOTH) in decider.hears(BeatAnswer(B1, BOTH, 2, granted=True, ready=True))


def test_a_lease_that_ends_stops_the_guest_and_a_new_one_starts_it() -> None:
    decider = _owner()
    stop = decider.expired(Wait.LEASE)[0]
    assert isinstance(stop, Stop)
    assert decider.guest is Guest.STOPPING
    decider.stopped()
    assert Own(BOTH) in decider.hears(BeatAnswer(B1, BOTH, 3, granted=True, ready=True))


def test_a_silent_peer_is_excluded_by_way_of_the_witness() -> None:
    decider = _owner()
    decider.answered("w", VIEW)
    out = decider.expired(Wait.SILENCE)
    swap = next(each for each in out if isinstance(each, AskWitness))
    assert swap.state is not None
    assert swap.state.accepted == ALONE
    assert not decider.peer_excluded
    out = decider.answered("w", WitnessView(b"w1", 8, swap.state))
    assert InForce(ALONE, peer_excluded=True) in out
    assert Own(ALONE) in out


def test_a_standby_promises_and_takes_over_when_that_has_run_out() -> None:
    decider = _up(B1, BOTH)
    answer = _said(decider.hears(Beat(A1, BOTH, 5)))[0]
    assert answer == BeatAnswer(B1, BOTH, 5, granted=True, ready=True)
    assert not _said(decider.hears(Beat(A1, BOTH, 0)))[0].granted  # type: ignore[union-attr]
    decider.answered("w", VIEW)
    out = decider.expired(Wait.PROMISE)
    swap = next(each for each in out if isinstance(each, AskWitness))
    assert swap.state is not None
    assert swap.state.accepted == TAKEN
    late = _said(decider.hears(Beat(A1, BOTH, 6)))[0]
    assert not late.granted, "while its round is being decided"  # type: ignore[union-attr]
    out = decider.answered("w", WitnessView(b"w1", 8, swap.state))
    assert Own(TAKEN) in out
    assert _said(out) == [Beat(B1, TAKEN, 1, hears=False)], "told at once"


def test_an_owner_that_does_not_hear_its_standby_is_promised_nothing() -> None:
    standby = _up(B1, BOTH)
    out = standby.hears(Beat(A1, BOTH, 5, hears=False))
    assert _said(out) == [BeatAnswer(B1, BOTH, 5, granted=False, ready=True)]
    assert Waiting(Wait.PROMISE) not in out
    assert Waiting(Wait.PROMISE) in standby.hears(Beat(A1, BOTH, 6))


def test_an_owner_asks_again_at_once_when_it_hears_its_standby() -> None:
    owner = _up(A1, BOTH)
    owner.expired(Wait.SILENCE)
    assert _said(owner.expired(Wait.BEAT)) == [Beat(A1, BOTH, 1, hears=False)]
    answer = BeatAnswer(B1, BOTH, 1, granted=False, ready=True)
    assert Beat(A1, BOTH, 1, hears=True) in _said(owner.hears(answer))
    assert not _said(owner.hears(answer)), "once"


def test_a_peer_that_asks_and_never_answers_is_as_good_as_silent() -> None:
    """What we say does not reach it: it has no vote for us, and maybe no disk to take the guest over with."""
    owner = _up(A1, BOTH)
    question = Beat(B1, BOTH, 0)
    assert Waiting(Wait.SILENCE) in owner.hears(question), "a first word that may be followed by answers"
    assert Waiting(Wait.SILENCE) not in owner.hears(question)
    assert Waiting(Wait.SILENCE) in owner.hears(BeatAnswer(B1, BOTH, 1, granted=False, ready=False))
    owner.expired(Wait.SILENCE)
    assert Waiting(Wait.SILENCE) in owner.hears(question)


def test_a_round_that_has_only_begun_is_given_up_for_the_owner() -> None:
    decider = _up(B1, BOTH)
    decider.expired(Wait.PROMISE)
    assert decider.register.round is not None
    assert _said(decider.hears(Beat(A1, BOTH, 6)))[0].granted  # type: ignore[union-attr]
    assert decider.register.round is None


def test_proof_that_the_peer_is_down_is_as_good_as_time() -> None:
    decider = _up(B1, BOTH)
    decider.peer_is_down()
    assert decider.promise_out
    assert _owner().peer_is_down() == []


def test_an_owner_refuses_to_be_replaced_while_its_guest_is_up() -> None:
    decider = _owner()
    ballot = Ballot(1, B, b"b1")
    assert isinstance(_said(decider.hears(Prepare(B1, BOTH, ballot)))[0], Promise)
    assert isinstance(_said(decider.hears(Accept(B1, BOTH, ballot, TAKEN)))[0], Refusal)
    decider.expired(Wait.LEASE)
    decider.stopped()
    assert isinstance(_said(decider.hears(Accept(B1, BOTH, ballot, TAKEN)))[0], Accepted)
    decider.hears(BeatAnswer(B1, BOTH, 9, granted=True, ready=True))
    assert decider.guest is Guest.DOWN, "it may have been replaced"


def test_a_move_stops_first() -> None:
    decider = _owner()
    refusal, out = decider.move()
    assert refusal == ""
    assert isinstance(out[0], Stop)
    assert not any(isinstance(each, Prepare) for each in _said(out))
    out = decider.stopped()
    ballot = next(each.ballot for each in _said(out) if isinstance(each, Prepare))
    out = decider.hears(Promise(B1, BOTH, ballot, Ballot(0, b"", b""), None))
    moved = Grant(2, 1, B, b"b1", BOTH.in_sync, frozenset({B1}), b"fork")
    assert Accept(A1, BOTH, ballot, moved) in _said(out)
    out = decider.hears(Accepted(B1, BOTH, ballot))
    assert Yield(moved) in out
    standby = _up(B1, BOTH)
    standby.hears(Accept(A1, BOTH, ballot, moved))
    assert standby.register.acceptor.accepted == moved, "from the owner, promise or not"


def test_a_move_is_given_up_when_the_peer_turns_out_to_have_forgotten() -> None:
    decider = _owner()
    decider.move()
    decider.hears(BeatAnswer(B2, None, 2, granted=False, ready=True))
    assert not decider.moving
    decider.stopped()
    assert not any(grant.owner == B for grant in decider.register.possible)


def test_a_failed_disk_that_could_not_be_left_stays_in_sync() -> None:
    """Else its owner could never go on alone: only the peer would be, and that is gone."""
    decider = _owner()
    decider.answered("w", VIEW)
    assert decider.move(leaving=True)[0] == ""
    out = decider.expired(Wait.SILENCE) + decider.stopped()  # it is gone before it was told
    swap = next(each for each in out if isinstance(each, AskWitness) and each.state is not None)
    assert swap.state is not None
    assert swap.state.accepted == ALONE


def _leaving() -> tuple[Decider, Ballot]:
    """An owner whose volumes cannot be served, that has begun to leave the guest to the peer."""
    decider = _owner()
    assert isinstance(decider.is_ready(ready=False)[0], Stop)
    out = decider.stopped()
    return decider, next(each.ballot for each in _said(out) if isinstance(each, Prepare))


def test_an_owner_that_can_serve_again_before_it_has_asked_for_another_one_goes_on() -> None:
    decider, ballot = _leaving()
    assert Own(BOTH) in decider.is_ready(ready=True)
    out = decider.hears(Promise(B1, BOTH, ballot, BALLOT_NONE, None))
    assert not _said(out)
    assert decider.may_run, "nobody has been asked for another owner, nor will be"
    assert decider.guest is Guest.UP


def test_an_owner_that_can_serve_again_but_may_have_been_replaced_has_that_decided_first() -> None:
    for replaced in (False, True):
        decider, ballot = _leaving()
        asked = _said(decider.hears(Promise(B1, BOTH, ballot, BALLOT_NONE, None)))
        left = next(each.grant for each in asked if isinstance(each, Accept))
        assert left == TAKEN
        decider.is_ready(ready=True)
        assert decider.guest is Guest.DOWN, "the peer may have heard it"
        out = decider.expired(Wait.ROUND)
        again = next(each.ballot for each in _said(out) if isinstance(each, Prepare))
        found = (ballot, left) if replaced else (BALLOT_NONE, None)
        decided = left if replaced else BOTH._replace(epoch=3)
        assert Accept(A1, BOTH, again, decided) in _said(decider.hears(Promise(B1, BOTH, again, *found)))
        out = decider.hears(Accepted(B1, BOTH, again))
        assert (Yield(left) if replaced else Own(decided)) in out


def test_moves_that_are_refused() -> None:
    assert _up(A1, BOTH).move()[0] == "the guest does not run here"
    alone = _up(A1, ALONE)
    alone.hears(BeatAnswer(B1, ALONE, 0, granted=False, ready=True))
    assert alone.move()[0] == "the other host is not in sync"
    unready = _up(A1, BOTH)
    unready.hears(BeatAnswer(B1, BOTH, 1, granted=True, ready=False))
    assert unready.move()[0] == "the other host is not ready"
    own_out = _owner()
    own_out.own_out()
    own_out.register.acceptor = AcceptorState(b"a1", BOTH._replace(epoch=3, in_sync=frozenset({B})))
    assert own_out.move()[0] == "the other host must take over by itself"


def test_no_move_to_a_memory_that_nobody_vouched_for() -> None:
    """Found by exploration: no witness, the owner restarted, and the peer has lost everything meanwhile."""
    witnessless = BOTH._replace(voters=frozenset({A1}))
    decider = _up(A1, witnessless)
    decider.hears(BeatAnswer(B2, witnessless, 1, granted=True, ready=True))
    assert decider.guest is Guest.UP
    assert decider.move()[0] == "the other host is not in sync"
    assert decider.own_out() is None
    decider.peer_in()
    assert decider.move()[0] == ""


def test_the_peer_is_taken_back_when_somebody_vouches() -> None:
    decider = _up(A1, ALONE)
    assert decider.peer_in() is None, "never heard"
    assert decider.own_out() is None
    decider.hears(BeatAnswer(B1, ALONE, 1, granted=True, ready=True))
    decider.answered("w", VIEW)
    out = decider.peer_in()
    assert out is not None
    both = BOTH._replace(epoch=4)
    assert InForce(both, peer_excluded=False) in out
    assert Own(both) in out


def test_wishes_of_a_standby_are_refused() -> None:
    decider = _up(B1, BOTH)
    assert (decider.peer_in(), decider.own_in(), decider.own_out()) == (None, None, None)


def test_its_own_replica_leaves_and_returns() -> None:
    decider = _owner()
    assert decider.own_out() is not None
    assert decider.wanted == {B}
    assert decider.own_in() is not None
    assert decider.wanted == {A, B}


def test_a_peer_that_has_lost_its_memory_is_out() -> None:
    decider = _owner()
    decider.hears(BeatAnswer(B2, None, 2, granted=False, ready=True))
    assert decider.wanted == {A}
    assert not decider.vouched


def test_news_make_an_owner_a_standby() -> None:
    decider = _owner()
    out = decider.hears(Beat(B1, TAKEN, 1))
    assert any(isinstance(each, Stop) for each in out)
    assert Yield(TAKEN) not in out
    assert Yield(TAKEN) in decider.stopped()
    assert Wait.PROMISE in decider.waits
    assert Wait.SILENCE not in decider.waits


def test_the_witness_is_lost_and_another_one_is_looked_for() -> None:
    decider = Decider(A, B, AcceptorState(b"a1", BOTH), ("w", "v"))
    decider.start()
    decider.unreachable("w")
    decider.expired(Wait.LOST)
    assert (decider.witness_lost, decider.current) == (True, 1)
    out = decider.expired(Wait.PROBE)
    assert AskWitness("v", None, None) in out
    decider.answered("v", WitnessView(b"v1", 1, None))
    assert not decider.witness_lost
    assert decider.situation(BOTH).witness == VoterId("v", b"v1")


def test_strangers_and_other_chains_are_not_listened_to() -> None:
    decider = _owner()
    assert decider.hears(Beat(VoterId(b"c" * 32, b"c1"), TAKEN, 1)) == []
    other = BOTH._replace(fork=b"other")
    assert decider.hears(Beat(B1, other, 1)) == [TwoTruths(BOTH, other)]


def test_waits_that_are_off_end_nothing() -> None:
    assert _owner().expired(Wait.PROMISE) == []


def test_an_override_makes_an_owner_of_anybody() -> None:
    decider = _up(B1, ALONE)
    out = decider.override("Erika", b"new")
    own = next(each for each in out if isinstance(each, Own))
    assert own.grant.order == (2, 1)
    assert own.grant.override == "Erika"
    assert decider.peer_excluded


def test_an_override_of_the_owner_takes_nobody_in_that_was_vouched_for_before() -> None:
    """Another person may have made the peer the owner meanwhile.  Found by exploration."""
    decider = _owner()
    decider.peer_in()
    decider.override("Erika", b"new")
    assert decider.base is not None
    assert decider.base.order == (2, 1)
    assert decider.base.in_sync == {A}
    assert not decider.vouched
    assert decider.peer_excluded


def test_a_host_with_another_key_is_another_host() -> None:
    """The one that the grant meant is put out, and the new one comes in; both at once ended the host."""
    c, c1 = b"c" * 32, VoterId(b"c" * 32, b"c1")
    base = BOTH._replace(voters=frozenset({A1}))
    decider = Decider(A, c, AcceptorState(b"a1", base), ("w",))
    assert InForce(base, peer_excluded=False) in decider.start(), "the grant calls somebody else in sync"
    decider.is_ready(ready=True)
    decider.unreachable("w")
    (said,) = [each for each in decider.hears(Beat(c1, None, 0)) if isinstance(each, InForce)]
    assert said == InForce(base._replace(epoch=3, in_sync=frozenset({A})), peer_excluded=True)
    assert decider.guest is Guest.UP
    decider.hears(BeatAnswer(c1, decider.base, 1, granted=True, ready=True))
    decider.peer_in()
    assert decider.base is not None
    assert decider.base.in_sync == {A, c}


def test_who_takes_over_from_a_host_with_another_key() -> None:
    """The standby's new peer is not the owner that has promised nothing for too long."""
    c, c1 = b"c" * 32, VoterId(b"c" * 32, b"c1")
    decider = Decider(B, c, AcceptorState(b"b1", BOTH), ("w",))
    decider.start()
    decider.is_ready(ready=True)
    decider.hears(Beat(c1, None, 0))
    decider.answered("w", VIEW)
    (asked,) = [each for each in decider.expired(Wait.PROMISE) if isinstance(each, AskWitness) and each.state]
    assert asked.state is not None
    decider.answered("w", WitnessView(b"w1", 8, asked.state))
    assert decider.base == TAKEN


def test_votes_that_no_host_gives_change_nothing_and_end_nobody() -> None:
    twice = BOTH._replace(epoch=3, voters=frozenset({A1, B1, B2}))
    decider = _owner()
    assert decider.hears(Beat(B1, twice, 0)) == []
    assert decider.base == BOTH
    ballot = Ballot(9, B, b"b1")
    illegal = BOTH._replace(epoch=7)
    decider.peer_out()
    decider.answered("w", WitnessView(b"w1", 8, AcceptorState(b"w1", BOTH, ballot, ballot, illegal)))
    for _ in range(3):
        decider.expired(Wait.ROUND)
        number = decider.register.round
        if number is not None:
            decider.hears(Promise(B1, BOTH, number.ballot, ballot, illegal))
    assert illegal not in decider.register.possible


# -- witnesses -----------------------------------------------------------------------------------------------

V1 = VoterId("v", b"v1")
WITH_V = BOTH._replace(epoch=3, voters=frozenset({A1, B1, V1}))


def _of_two(host: VoterId, base: Grant | None) -> Decider:
    own, peer = (A, B) if host.name == A else (B, A)
    decider = Decider(own, peer, AcceptorState(host.incarnation, base), ("w", "v"))
    decider.start()
    decider.is_ready(ready=True)
    return decider


def _asked(outcomes: list[Outcome]) -> list[str]:
    return [each.witness for each in outcomes if isinstance(each, AskWitness)]


def test_a_standby_that_was_taken_in_and_told_nothing_asks_the_witnesses_when_the_owner_is_silent() -> None:
    """The owner took it in, told a witness, and died: nobody ran until the owner was back."""
    standby = _of_two(B1, ALONE)
    assert not _asked(standby.expired(Wait.PROBE)), "the owner may be there"
    standby.expired(Wait.PROMISE)
    assert _asked(standby.expired(Wait.PROBE)) == ["w"]
    standby.unreachable("w")
    assert _asked(standby.expired(Wait.PROBE)) == ["v"]
    told = ALONE._replace(epoch=4, in_sync=BOTH.in_sync, voters=WITH_V.voters)
    out = standby.answered("v", WitnessView(b"v1", 9, AcceptorState(b"v1", told)))
    assert InForce(told, peer_excluded=False) in out
    swap = next(each for each in out if isinstance(each, AskWitness))
    assert swap.witness == "v"
    assert swap.state is not None
    assert swap.state.accepted is not None
    assert swap.state.accepted.owner == B
    out = standby.answered("v", WitnessView(b"v1", 10, swap.state))
    assert standby.owns
    assert standby.current == 1, "the one that was there"


def _owner_with_alternate() -> Decider:
    owner = _of_two(A1, WITH_V)
    owner.unreachable("v")
    owner.hears(BeatAnswer(B1, WITH_V, 1, granted=True, ready=True))
    owner.answered("v", WitnessView(b"v1", 7, AcceptorState(b"v1", WITH_V)))
    assert (owner.current, owner.guest) == (1, Guest.UP)
    return owner


def test_an_owner_returns_to_the_preferred_witness_when_that_is_back() -> None:
    owner = _owner_with_alternate()
    assert Wait.HOME in owner.waits
    assert _asked(owner.expired(Wait.HOME)) == ["w"]
    assert Wait.HOME in owner.waits, "again, later"
    owner.unreachable("w")
    assert (owner.current, owner.base) == (1, WITH_V)
    owner.expired(Wait.HOME)
    out = owner.answered("w", WitnessView(b"w1", 9, AcceptorState(b"w1", BOTH)))
    (prepare,) = [each for each in _said(out) if isinstance(each, Prepare)]
    out = owner.hears(Promise(B1, WITH_V, prepare.ballot, BALLOT_NONE, None))
    (accept,) = [each for each in _said(out) if isinstance(each, Accept)]
    assert accept.grant == WITH_V._replace(epoch=4, voters=BOTH.voters)
    out = owner.hears(Accepted(B1, WITH_V, prepare.ballot))
    assert (owner.base, owner.guest) == (accept.grant, Guest.UP)
    assert not _asked(owner.expired(Wait.HOME))
    assert Wait.HOME not in owner.waits


def test_the_preferred_witness_is_looked_for_once_the_alternate_has_answered() -> None:
    """There is one question at a time: a look that came to nothing would put the next one off ever longer."""
    owner = _owner_with_alternate()
    assert _asked(owner.expired(Wait.PROBE)) == ["v"]
    assert not _asked(owner.expired(Wait.HOME))
    assert Wait.HOME not in owner.waits
    assert not _asked(owner.expired(Wait.BEAT)), "v still owes an answer"
    out = owner.answered("v", WitnessView(b"v1", 7, AcceptorState(b"v1", WITH_V)))
    assert _asked(out) == ["w"]
    assert Wait.HOME in owner.waits, "again, later"
    assert not _asked(owner.unreachable("w"))


def test_a_round_does_not_wait_for_a_witness_that_has_no_vote() -> None:
    """Or the loss of the standby while the preferred witness is asked would stop the guest."""
    owner = _owner_with_alternate()
    assert _asked(owner.expired(Wait.HOME)) == ["w"]
    assert _asked(owner.expired(Wait.SILENCE)) == ["v"]
