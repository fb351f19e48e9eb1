"""Held back: nothing that rests on a write is done before it is durable, and stopping never waits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairsync.core.acceptor import AcceptorState
from pairsync.core.arbitration import Beat, Effect, InForce, Own, PersistAcceptor, SendPeer, Stop
from pairsync.core.grants import VoterId, genesis
from pairsync.core.heldback import HELD_EFFECTS_MAX, HeldBack
from pairsync.errors import InternalError

A = VoterId(b"a" * 32, b"a1")
GRANT = genesis(A, b"fork")
WRITE = PersistAcceptor(AcceptorState(b"a1", GRANT))
OWN, STOP, FORCE = Own(GRANT), Stop(GRANT, "test"), InForce(GRANT, peer_excluded=True)


def _beat(number: int) -> SendPeer:
    return SendPeer(Beat(A, GRANT, number))


def test_what_follows_a_write_waits_for_it() -> None:
    held = HeldBack()
    assert held.passes([_beat(1), WRITE, FORCE, OWN]) == [_beat(1), WRITE]
    assert held.passes([_beat(2), WRITE, _beat(3)]) == [WRITE]
    assert held.writes == 2
    assert held.persisted() == [FORCE, OWN, _beat(2)]
    assert held.persisted() == [_beat(3)]
    assert held.passes([_beat(4)]) == [_beat(4)]
    with pytest.raises(InternalError):
        held.persisted()


def test_stopping_does_not_wait_and_takes_starting_with_it() -> None:
    held = HeldBack()
    held.passes([WRITE, OWN, FORCE])
    assert held.passes([STOP]) == [STOP]
    assert held.persisted() == [FORCE]


def test_a_disk_that_hangs_costs_heartbeats_only() -> None:
    held = HeldBack()
    held.passes([WRITE, FORCE])
    for number in range(2 * HELD_EFFECTS_MAX):
        assert held.passes([_beat(number)]) == []
    kept = held.persisted()
    assert kept[0] == FORCE
    assert len(kept) < HELD_EFFECTS_MAX
    assert kept[-1] == _beat(2 * HELD_EFFECTS_MAX - 1)


@given(st.lists(st.sampled_from(["written", WRITE, OWN, FORCE, STOP])))
def test_order_is_kept_and_nothing_comes_before_its_write(inputs: list[str | Effect]) -> None:
    held = HeldBack()
    wanted: list[tuple[int, Effect]] = []  # with the number of writes that must be durable before
    begun = durable = 0
    for each in inputs:
        if isinstance(each, str):
            if not held.writes:
                continue
            durable += 1
            out = held.persisted()
        elif each is WRITE or each is STOP:
            begun += each is WRITE
            wanted = [other for other in wanted if each is WRITE or other[1] is not OWN]
            assert held.passes([each]) == [each]
            continue
        else:
            wanted.append((begun, each))
            out = held.passes([each])
        for effect in out:
            after, expected = wanted.pop(0)
            assert effect is expected
            assert after <= durable
        assert all(after > durable for after, _ in wanted)
