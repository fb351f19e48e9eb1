"""Arbiter: leases, promises, deadlines and numbers; whole stories are in ``test_stories``."""

from __future__ import annotations

from functools import partial

import pytest

from pairsync.core.acceptor import AcceptorState
from pairsync.core.arbiter import Arbiter
from pairsync.core.arbitration import (
    Beat,
    Discord,
    Effect,
    InForce,
    LeaseUntil,
    Own,
    PersistAcceptor,
    SendPeer,
    Stop,
    WitnessGet,
    WitnessSwap,
    WitnessView,
)
from pairsync.core.arbitration import BeatAnswer as _BeatAnswer
from pairsync.core.grants import Grant, VoterId, genesis
from pairsync.core.heartbeats import BEATS_OPEN_MAX
from pairsync.core.outcomes import Guest
from pairsync.core.timing import derive
from pairsync.errors import InternalError

A, B = b"a" * 32, b"b" * 32
A1, B1, W1 = VoterId(A, b"a1"), VoterId(B, b"b1"), VoterId("w", b"w1")
FIRST = genesis(A1, b"fork")
BOTH = FIRST._replace(epoch=2, in_sync=frozenset({A, B}), voters=frozenset({A1, B1, W1}))
ALONE = BOTH._replace(epoch=3, in_sync=frozenset({A}), voters=frozenset({A1}))
TIMING = derive()
T0 = 10**12
BeatAnswer = partial(_BeatAnswer, failover_ns=TIMING.failover_ns, asks=False)
FIRST_NUMBER = 1 << 40


def _arbiter(
    host: VoterId,
    base: Grant | None,
    *,
    witnesses: tuple[str, ...] = ("w",),
    promise_ns: int | None = TIMING.promise_ns,
) -> Arbiter:
    own, peer = (A, B) if host.name == A else (B, A)
    return Arbiter(
        own,
        peer,
        AcceptorState(host.incarnation, base),
        TIMING,
        witnesses=witnesses,
        promise_ns=promise_ns,
        first_number=FIRST_NUMBER,
        fraction=lambda: 0.5,
    )


def _beats(effects: list[Effect]) -> list[Beat]:
    return [e.message for e in effects if isinstance(e, SendPeer) and isinstance(e.message, Beat)]


def _leased() -> tuple[Arbiter, int]:
    """The owner of `BOTH` with the guest up, and the number of its first heartbeat, sent at T0."""
    arbiter = _arbiter(A1, BOTH)
    (beat,) = _beats(arbiter.start(T0))
    arbiter.is_ready(True, T0)
    out = arbiter.hears(BeatAnswer(B1, BOTH, beat.number, granted=True, ready=True), T0 + 5)
    until = LeaseUntil(T0 + TIMING.guard_after_ns)
    assert out.index(until) < out.index(Own(BOTH)), "the guard first"
    return arbiter, beat.number


def test_a_lease_counts_from_the_sending() -> None:
    arbiter, number = _leased()
    assert number > FIRST_NUMBER
    assert arbiter.grant == BOTH
    end_ns = T0 + TIMING.yield_after_ns
    assert not any(isinstance(each, Stop) for each in arbiter.tick(end_ns - 1))
    assert any(isinstance(each, Stop) for each in arbiter.stopped(end_ns)), "before any other input"


def test_an_answer_that_comes_late_gives_nothing() -> None:
    for late_ns in (0, 1):
        arbiter = _arbiter(A1, BOTH)
        (beat,) = _beats(arbiter.start(T0))
        arbiter.is_ready(True, T0)
        now_ns = T0 + TIMING.yield_after_ns - 1 + late_ns
        out = arbiter.hears(BeatAnswer(B1, BOTH, beat.number, granted=True, ready=True), now_ns)
        assert (Own(BOTH) in out) == (not late_ns)


def test_an_answer_to_another_life_gives_nothing() -> None:
    arbiter = _arbiter(A1, BOTH)
    (beat,) = _beats(arbiter.start(T0))
    arbiter.is_ready(True, T0)
    for number in (beat.number - 1, beat.number + 9, 1):
        answer = BeatAnswer(B1, BOTH, number, granted=True, ready=True)
        assert Own(BOTH) not in arbiter.hears(answer, T0 + 1)


def test_an_older_answer_does_not_shorten_the_lease() -> None:
    arbiter, number = _leased()
    now_ns = T0 + 5 + TIMING.heartbeat_ns
    (beat,) = _beats(arbiter.tick(now_ns))
    later = arbiter.hears(BeatAnswer(B1, BOTH, beat.number, granted=True, ready=True), now_ns)
    assert later == [LeaseUntil(now_ns + TIMING.guard_after_ns)]
    again = arbiter.hears(BeatAnswer(B1, BOTH, number, granted=True, ready=True), now_ns)
    assert again == []


def _alone_and_up() -> tuple[Arbiter, int]:
    """The owner of `ALONE`, whose peer is heard, and whose witness is known, from T0 + 1 on."""
    arbiter = _arbiter(A1, ALONE)
    arbiter.start(T0)
    arbiter.is_ready(True, T0)
    arbiter.answered(FIRST_NUMBER + 1, "w", WitnessView(b"w1", 1, None), T0 + 1)
    (beat,) = _beats(arbiter.tick(T0 + TIMING.heartbeat_ns))
    now_ns = T0 + TIMING.heartbeat_ns + 1
    out = arbiter.hears(BeatAnswer(B1, ALONE, beat.number, granted=True, ready=True), now_ns)
    assert arbiter.decider.guest is Guest.UP
    assert LeaseUntil(None) not in out, "nothing is told twice"
    return arbiter, now_ns


def test_the_guard_hears_of_a_grant_that_needs_a_lease_before_anybody_else() -> None:
    arbiter, now_ns = _alone_and_up()
    vouched, _ = arbiter.peer_in(now_ns)
    assert vouched
    out = arbiter.persisted(now_ns)
    kinds = [type(each) for each in out]
    assert kinds.index(InForce) < kinds.index(LeaseUntil) < kinds.index(SendPeer)
    assert kinds.count(LeaseUntil) == 1


def test_the_guard_hears_when_the_lease_ran_out_that_a_new_grant_needs() -> None:
    """While the grant was written down: the guest stops, and the guard held no deadline at all."""
    arbiter, now_ns = _alone_and_up()
    arbiter.peer_in(now_ns)
    late_ns = now_ns + TIMING.yield_after_ns
    out = arbiter.persisted(late_ns)
    assert any(isinstance(each, Stop) for each in out)
    assert LeaseUntil(T0 + TIMING.heartbeat_ns + TIMING.guard_after_ns) in out


def test_the_guard_waits_for_a_guest_that_flushes_before_it_moves() -> None:
    """A flush that took longer than the lease was ended by the guard, and with it the host."""
    arbiter, _ = _leased()
    refusal, effects = arbiter.move(T0 + 6)
    assert not refusal
    assert any(isinstance(each, Stop) for each in effects)
    assert arbiter.decider.guest is Guest.STOPPING
    now_ns = T0 + 5 + TIMING.heartbeat_ns
    (beat,) = _beats(arbiter.tick(now_ns))
    out = arbiter.hears(BeatAnswer(B1, BOTH, beat.number, granted=True, ready=True), now_ns)
    assert out == [LeaseUntil(now_ns + TIMING.guard_after_ns)]
    assert not any(isinstance(each, LeaseUntil) for each in arbiter.stopped(now_ns)), "nothing runs any more"


def test_heartbeats_that_are_remembered_are_few() -> None:
    arbiter = _arbiter(A1, FIRST)
    now_ns = T0
    arbiter.start(now_ns)
    for _ in range(2 * BEATS_OPEN_MAX):
        now_ns += TIMING.heartbeat_ns
        arbiter.tick(now_ns)
    assert len(arbiter._beats) == BEATS_OPEN_MAX
    assert BEATS_OPEN_MAX * TIMING.heartbeat_ns > TIMING.lease_ns


def test_a_standby_waits_for_its_promise_also_after_a_start() -> None:
    arbiter = _arbiter(B1, BOTH)
    arbiter.start(T0)
    arbiter.is_ready(True, T0)
    heard_ns = T0 + 100
    arbiter.hears(Beat(A1, BOTH, 77, TIMING.failover_ns), heard_ns)
    arbiter.tick(heard_ns + TIMING.promise_ns - 1)
    assert arbiter.decider.register.round is None
    arbiter.tick(heard_ns + TIMING.promise_ns)
    assert arbiter.decider.register.round is not None


def test_who_stood_still_listens_before_he_judges() -> None:
    arbiter = _arbiter(B1, BOTH)
    arbiter.start(T0)
    arbiter.is_ready(True, T0)
    late_ns = T0 + TIMING.promise_ns + TIMING.stall_ns + 1
    arbiter.tick(late_ns)
    assert arbiter.decider.register.round is None
    arbiter.tick(late_ns + TIMING.heartbeat_ns + 2 * TIMING.delay_ns)
    assert arbiter.decider.register.round is not None, "once"


def test_what_rests_on_a_write_waits_for_it() -> None:
    arbiter = _arbiter(A1, ALONE)
    arbiter.start(T0)
    arbiter.is_ready(True, T0)
    arbiter.hears(BeatAnswer(B1, ALONE, 0, granted=False, ready=True), T0)
    before = arbiter.peer_excluded
    taken, out = arbiter.peer_in(T0)
    assert taken
    assert (before, arbiter.peer_excluded) == (True, False), "at once, not when it is decided"
    assert [type(each) for each in out] == [PersistAcceptor]
    assert arbiter.grant == ALONE
    out = arbiter.persisted(T0 + 1)
    assert isinstance(out[0], InForce)
    assert arbiter.grant == out[0].grant
    refused, out = _arbiter(B1, BOTH).peer_in(T0)
    assert not refused
    assert out == []
    with pytest.raises(InternalError):
        arbiter.persisted(T0 + 2)


def test_alone_only_when_that_is_durable() -> None:
    arbiter, _ = _leased()
    (get,) = [each for each in _arbiter(A1, BOTH).start(T0) if isinstance(each, WitnessGet)]
    view = WitnessView(b"w1", 7, AcceptorState(b"w1", BOTH))
    arbiter.answered(get.number, "w", view, T0 + 6)
    out = arbiter.peer_out(T0 + 7)
    assert [type(each) for each in out] == [PersistAcceptor]
    (swap,) = arbiter.persisted(T0 + 8)
    assert isinstance(swap, WitnessSwap)
    out = arbiter.answered(swap.number, "w", WitnessView(b"w1", 8, swap.state), T0 + 9)
    assert [type(each) for each in out] == [PersistAcceptor]
    assert not arbiter.peer_excluded
    out = arbiter.persisted(T0 + 10)
    assert InForce(ALONE, peer_excluded=True) in out
    assert LeaseUntil(None) in out
    assert arbiter.peer_excluded


def test_answers_of_the_witness_that_are_late() -> None:
    arbiter = _arbiter(A1, ALONE)
    (get,) = [each for each in arbiter.start(T0) if isinstance(each, WitnessGet)]
    view = WitnessView(b"w1", 7, AcceptorState(b"w1", ALONE))
    late_ns = T0 + TIMING.witness_wait_ns
    arbiter.tick(late_ns)
    assert arbiter.decider.register.asking is None
    arbiter.answered(get.number, "w", view, late_ns + 1)
    assert arbiter.decider.register.view("w") == view, "late, and better than nothing"
    arbiter.answered(get.number, "w", view._replace(version=6), late_ns + 2)
    assert arbiter.decider.register.view("w") == view, "older than what is known"
    assert arbiter.unreachable(get.number, "w", late_ns + 3) == []
    with pytest.raises(InternalError):
        arbiter.answered(get.number + 1, "w", view, late_ns + 4)
    next_ns = T0 + TIMING.witness_probe_ns
    (again,) = [each for each in arbiter.tick(next_ns) if isinstance(each, WitnessGet)]
    arbiter.answered(get.number, "w", view._replace(version=9), next_ns)
    assert arbiter.decider.register.view("w") == view, "of another question than the one that is open"
    arbiter.unreachable(again.number, "w", next_ns)
    assert arbiter.decider.register.view("w") is None
    # A cable that was out delivers what was said meanwhile: also to questions that others have followed.
    arbiter.answered(get.number, "w", view, next_ns + 1)
    arbiter.answered(again.number, "w", view._replace(version=9), next_ns + 2)
    arbiter.answered(get.number, "w", view, next_ns + 3)
    assert arbiter.decider.register.view("w") == view._replace(version=9)


def test_a_new_link_is_used_at_once() -> None:
    arbiter = _arbiter(A1, FIRST)
    arbiter.start(T0)
    assert len(_beats(arbiter.link_up(T0 + 1))) == 1
    standby = _arbiter(B1, None)
    standby.start(T0)
    assert standby.link_up(T0 + 1) == []
    assert _arbiter(B1, None, witnesses=()).next_deadline_ns() is None


def test_other_inputs_reach_the_decider() -> None:
    standby = _arbiter(B1, BOTH)
    standby.start(T0)
    standby.is_ready(True, T0)
    standby.peer_is_down(T0)
    assert standby.decider.promise_out
    owner, _ = _leased()
    assert owner.own_out(T0 + 6)[0]
    assert owner.own_in(T0 + 6)[0]
    refusal, out = owner.move(T0 + 7)
    assert refusal == ""
    assert isinstance(out[0], Stop)
    out = _arbiter(B1, ALONE).override("Erika", b"new", T0)
    assert isinstance(out[0], PersistAcceptor)


def test_an_owner_and_a_peer_with_another_failover_time_promise_each_other_nothing() -> None:
    other_ns = 2 * TIMING.failover_ns
    standby = _arbiter(B1, BOTH)
    standby.start(T0)
    out = standby.hears(Beat(A1, BOTH, 77, other_ns), T0 + 100)
    assert Discord(other_ns) in out
    (answer,) = [each.message for each in out if isinstance(each, SendPeer)]
    assert answer == BeatAnswer(B1, BOTH, 0, granted=False, ready=False)
    out = standby.hears(Beat(A1, BOTH, 78, other_ns), T0 + 200)
    assert not any(isinstance(each, Discord) for each in out), "told once"
    out = standby.hears(Beat(A1, BOTH, 79, TIMING.failover_ns), T0 + 300)
    assert Discord(None) in out
    assert SendPeer(BeatAnswer(B1, BOTH, 79, granted=True, ready=False)) in out

    owner = _arbiter(A1, BOTH)
    (beat,) = _beats(owner.start(T0))
    assert beat.failover_ns == TIMING.failover_ns
    owner.is_ready(True, T0)
    out = owner.hears(_BeatAnswer(B1, BOTH, beat.number, True, True, other_ns), T0 + 5)
    assert Discord(other_ns) in out
    assert Own(BOTH) not in out, "granted for another time than is asked for"


def test_a_peer_with_another_failover_time_is_put_out_and_stays_out_until_they_are_the_same() -> None:
    arbiter, number = _leased()
    arbiter.hears(_BeatAnswer(B1, BOTH, number, True, True, 2 * TIMING.failover_ns), T0 + 5)
    assert arbiter.decider.register.round is not None
    assert arbiter.decider.wanted == {A}
    before = (arbiter.wants_proof(1), arbiter.peer_in(T0 + 6)[0])
    arbiter.hears(BeatAnswer(B1, BOTH, number, granted=True, ready=True), T0 + 7)
    after = (arbiter.wants_proof(1), arbiter.peer_in(T0 + 8)[0])
    assert (before, after) == ((False, False), (True, True))


def test_a_proof_under_the_term_before_an_override_tells_nothing() -> None:
    """The standby had not recorded the new one: it was called in sync, and could not be promoted."""
    arbiter, _ = _leased()
    arbiter.override("Erika", b"new fork", T0 + 6)
    assert arbiter.decider.base is not None
    assert arbiter.decider.base.term == 2
    assert not arbiter.wants_proof(1)
    assert arbiter.wants_proof(2)


def test_an_answer_to_an_older_question_that_comes_after_a_newer_one_is_no_bug_of_ours() -> None:
    """Seen on a busy machine with etcd: the host ended itself over it."""
    arbiter = _arbiter(A1, ALONE)
    (old,) = [each for each in arbiter.start(T0) if isinstance(each, WitnessGet)]
    now_ns = T0 + TIMING.witness_wait_ns
    arbiter.tick(now_ns)  # it is given up
    asked: list[WitnessGet] = []
    while not asked:
        now_ns += TIMING.heartbeat_ns
        asked = [each for each in arbiter.tick(now_ns) if isinstance(each, WitnessGet)]
    arbiter.answered(asked[0].number, "w", WitnessView(b"w1", 7, None), now_ns)
    while arbiter._enquiry.until_ns is not None:  # whatever was asked then is given up, too
        now_ns = arbiter._enquiry.until_ns
        arbiter.tick(now_ns)
    before = arbiter.decider.base
    arbiter.answered(old.number, "w", WitnessView(b"w1", 6, None), now_ns)
    assert arbiter.decider.base == before


# -- promises of an earlier life -----------------------------------------------------------------------------


def test_nothing_is_promised_before_it_is_written_down_for_how_long() -> None:
    arbiter = _arbiter(B1, BOTH, promise_ns=TIMING.promise_ns - 1)
    assert arbiter.start(T0) == [PersistAcceptor(AcceptorState(b"b1", BOTH), TIMING.promise_ns)]
    assert arbiter.hears(Beat(A1, BOTH, 7, TIMING.failover_ns), T0) == []
    out = arbiter.persisted(T0 + 1)
    assert SendPeer(BeatAnswer(B1, BOTH, 7, granted=True, ready=False)) in out


def test_a_host_that_had_a_longer_failover_time_waits_for_what_it_has_promised_then() -> None:
    """It is cut off from an owner that still has the lease of before."""
    longer = derive(4 * TIMING.failover_ns)
    arbiter = _arbiter(B1, BOTH, promise_ns=longer.promise_ns)
    arbiter.start(T0)
    arbiter.is_ready(True, T0)
    for now_ns in (T0 + TIMING.promise_ns, T0 + longer.lease_ns, T0 + longer.promise_ns - 1):
        arbiter.tick(now_ns)
        assert not arbiter.decider.promise_out
    out = arbiter.tick(T0 + longer.promise_ns)
    assert arbiter.decider.promise_out
    assert out[0] == PersistAcceptor(AcceptorState(b"b1", BOTH), TIMING.promise_ns), "no longer than needed"


def test_every_write_keeps_the_promise() -> None:
    longer_ns = derive(4 * TIMING.failover_ns).promise_ns
    arbiter = _arbiter(B1, BOTH, promise_ns=longer_ns)
    arbiter.start(T0)
    (write, *_) = arbiter.hears(Beat(A1, ALONE, 7, TIMING.failover_ns), T0 + 5)
    assert write == PersistAcceptor(AcceptorState(b"b1", ALONE), longer_ns)


# -- what is told for the outlook ----------------------------------------------------------------------------


def test_a_standby_tells_whether_it_reaches_the_witness_that_votes() -> None:
    standby = _arbiter(B1, BOTH)
    (question,) = [each for each in standby.start(T0) if isinstance(each, WitnessGet)]

    def asks(now_ns: int) -> bool | None:
        out = standby.hears(Beat(A1, BOTH, 7, TIMING.failover_ns), now_ns)
        (answer,) = [e.message for e in out if isinstance(e, SendPeer) and isinstance(e.message, _BeatAnswer)]
        return answer.asks

    assert asks(T0 + 1) is False
    standby.answered(question.number, "w", WitnessView(b"w1", 7, None), T0 + 2)
    assert asks(T0 + 3) is True
    (question,) = [
        each for each in standby.tick(T0 + TIMING.witness_probe_ns) if isinstance(each, WitnessGet)
    ]
    standby.unreachable(question.number, "w", T0 + TIMING.witness_probe_ns + 5)
    assert asks(T0 + TIMING.witness_probe_ns + 6) is False
    (question,) = [
        each for each in standby.tick(T0 + 2 * TIMING.witness_probe_ns) if isinstance(each, WitnessGet)
    ]
    standby.answered(question.number, "w", WitnessView(b"w2", 1, None), T0 + 2 * TIMING.witness_probe_ns)
    assert asks(T0 + 2 * TIMING.witness_probe_ns + 1) is False, "it has lost its memory: no voter"


def test_an_owner_believes_its_peer_about_the_witness_and_one_that_does_not_say_as_itself() -> None:
    arbiter, number = _leased()
    assert (arbiter.owner_asks, arbiter.standby_asks) == (True, False)
    arbiter.hears(BeatAnswer(B1, BOTH, number, granted=True, ready=True, asks=True), T0 + 6)
    assert arbiter.standby_asks
    arbiter.hears(BeatAnswer(B1, BOTH, number, granted=True, ready=True, asks=None), T0 + 7)
    assert arbiter.standby_asks
    arbiter.tick(T0 + TIMING.witness_lost_ns)
    assert (arbiter.owner_asks, arbiter.standby_asks) == (False, False)
