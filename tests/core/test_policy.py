"""Policy: which grant is wanted next, case by case; and that whatever is wanted may follow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairsync.core.grants import Grant, VoterId, genesis, objection
from pairsync.core.policy import Situation, successor

A, B = b"a" * 32, b"b" * 32
A1, A2, B1, B2 = VoterId(A, b"a1"), VoterId(A, b"a2"), VoterId(B, b"b1"), VoterId(B, b"b2")
W1, W2 = VoterId("w", b"w1"), VoterId("w", b"w2")
FIRST = genesis(A1, b"fork")
BOTH = FIRST._replace(epoch=2, in_sync=frozenset({A, B}), voters=frozenset({A1, B1, W1}))
ALONE = BOTH._replace(epoch=3, in_sync=frozenset({A}), voters=frozenset({A1}))
WITNESSLESS = BOTH._replace(voters=frozenset({A1}))

NOW = Situation(
    own=A1,
    peer=B,
    base=BOTH,
    ready=True,
    wanted=frozenset({A, B}),
    peer_id=B1,
    vouched=False,
    leased=True,
    peer_ready=True,
    peer_newer=False,
    witness=W1,
    witness_lost=False,
    moving=False,
    guest_down=False,
    promise_out=False,
    leftover=False,
)


def _voted(now: Situation) -> tuple[set[bytes], set[VoterId]] | None:
    grant = successor(now)
    if grant is None:
        return None
    assert (grant.owner_id, grant.order) == (now.base.owner_id, (now.base.term, now.base.epoch + 1))
    return set(grant.in_sync), set(grant.voters)


def test_the_owner_is_content_when_all_is_well() -> None:
    assert successor(NOW) is None
    assert successor(NOW._replace(leftover=True)) == BOTH._replace(epoch=3)


def test_a_peer_that_is_out_leaves_the_owner_alone_with_itself() -> None:
    assert _voted(NOW._replace(wanted=frozenset({A}))) == ({A}, {A1})
    assert _voted(NOW._replace(wanted=frozenset({A}), ready=False)) is None


def test_an_owner_that_cannot_run_the_guest_leaves_it_to_a_peer_that_can() -> None:
    unable = NOW._replace(ready=False, guest_down=True)
    grant = successor(unable)
    assert grant is not None
    assert (grant.owner_id, grant.order) == (B1, (2, 1))
    assert (set(grant.in_sync), set(grant.voters)) == ({B}, {B1})
    assert objection(BOTH, grant) is None
    for changed in ({"guest_down": False}, {"peer_ready": False}, {"peer_id": B2}, {"base": ALONE}):
        assert successor(unable._replace(**changed)) is None


def test_an_owner_whose_disks_are_old_leaves_the_guest_to_a_peer_that_has_more() -> None:
    """The grant says that it is in sync, and its replica that it still is: nobody has to vouch for it."""
    unable = NOW._replace(ready=False, guest_down=True, base=WITNESSLESS)
    assert successor(unable) is None
    old = unable._replace(peer_newer=True)
    for peer in (B1, B2):
        grant = successor(old._replace(peer_id=peer))
        assert grant is not None
        assert (grant.owner_id, grant.order) == (peer, (2, 1))
        assert (set(grant.in_sync), set(grant.voters)) == ({B}, {peer})
        assert objection(WITNESSLESS, grant) is None
    for changed in (
        {"guest_down": False},
        {"peer_ready": False},
        {"base": ALONE},  # it was agreed to go on without it
        {"base": BOTH, "peer_id": B2},  # who has lost its memory is not who votes
    ):
        assert successor(old._replace(**changed)) is None


@pytest.mark.parametrize(
    ("changed", "voters"),
    [
        ({}, {A1, B1, W1}),
        ({"leased": False}, {A1}),
        ({"witness": None}, {A1}),
        ({"peer_id": B2}, {A1, B2, W1}),
    ],
)
def test_taking_the_peer_back(changed: dict[str, object], voters: set[VoterId]) -> None:
    now = NOW._replace(base=ALONE, vouched=True)._replace(**changed)  # type: ignore[arg-type]
    assert _voted(now) == ({A, B}, voters)


def test_the_witness_is_lost_and_returns() -> None:
    lost = NOW._replace(witness=None, witness_lost=True)
    assert _voted(lost) == ({A, B}, {A1})
    assert successor(lost._replace(base=WITNESSLESS)) is None
    back = NOW._replace(base=WITNESSLESS)
    assert successor(back) is None, "nobody vouches for that memory of the peer in this life"
    assert _voted(back._replace(vouched=True)) == ({A, B}, {A1, B1, W1})
    assert successor(back._replace(vouched=True, leased=False)) is None


def test_a_witness_without_its_memory_is_another_one() -> None:
    assert _voted(NOW._replace(witness=W2)) == ({A, B}, {A1, B1, W2})


def test_the_owner_whose_own_disk_is_out() -> None:
    out = NOW._replace(wanted=frozenset({B}))
    assert _voted(out) == ({B}, {A1, B1, W1})
    assert _voted(out._replace(witness=None, witness_lost=True)) == ({B}, {B1})


def test_a_replica_leaves_before_another_one_joins() -> None:
    swapped = NOW._replace(base=ALONE, wanted=frozenset({B}), vouched=True)
    assert successor(swapped) is None or _voted(swapped) == ({A, B}, {A1, B1, W1})


def test_moving_the_guest() -> None:
    moving = NOW._replace(moving=True)
    assert successor(moving) is None, "the guest is still up"
    down = moving._replace(guest_down=True)
    alone = frozenset({VoterId(B, b"b1")})
    moved = Grant(2, 1, B, b"b1", frozenset({A, B}), alone, b"fork")
    assert successor(down) == moved, "it starts without a lease"
    leaving = down._replace(wanted=frozenset({B}))
    assert successor(leaving) == moved._replace(in_sync=frozenset({B})), "its disk has failed"
    assert successor(down._replace(base=WITNESSLESS)) is None, "that memory may know nothing"
    vouched = down._replace(base=WITNESSLESS, vouched=True)
    assert successor(vouched) == moved._replace(voters=frozenset({B1}))
    assert successor(down._replace(peer_id=None)) is None
    assert successor(down._replace(peer_id=B2)) is None
    assert successor(down._replace(base=ALONE)) is None


STANDBY = NOW._replace(own=B1, peer=A, peer_id=A1, leased=False, promise_out=True)


def test_a_standby_takes_over() -> None:
    taken = Grant(2, 1, B, b"b1", frozenset({B}), frozenset({B1}), b"fork")
    assert successor(STANDBY) == taken
    assert successor(STANDBY._replace(promise_out=False)) is None
    assert successor(STANDBY._replace(ready=False)) is None
    assert successor(STANDBY._replace(base=ALONE)) is None, "rule 3"
    assert successor(STANDBY._replace(own=B2)) is None, "it has lost its memory"
    assert successor(STANDBY._replace(base=WITNESSLESS)) is None, "the owner decides alone"


def test_an_owner_that_has_lost_its_memory_does_nothing() -> None:
    assert successor(NOW._replace(own=A2, promise_out=True)) is None


some_voters = st.sampled_from([{A1}, {B1}, {A1, B1, W1}, {A1, B1}, {A1, B2, W2}]).map(frozenset)
some_hosts = st.sampled_from([{A}, {B}, {A, B}]).map(frozenset)


@given(
    st.builds(
        Situation,
        own=st.sampled_from([A1, A2, B1, B2]),
        peer=st.just(b""),
        base=st.builds(
            Grant,
            st.just(3),
            st.just(2),
            st.just(A),
            st.just(b"a1"),
            some_hosts,
            some_voters,
            st.just(b"fork"),
            st.sampled_from(["", "Erika"]),
        ),
        ready=st.booleans(),
        wanted=some_hosts,
        peer_id=st.sampled_from([None, A1, A2, B1, B2]),
        vouched=st.booleans(),
        leased=st.booleans(),
        witness=st.sampled_from([None, W1, W2]),
        witness_lost=st.booleans(),
        moving=st.booleans(),
        guest_down=st.booleans(),
        promise_out=st.booleans(),
        leftover=st.booleans(),
    )
)
def test_what_is_wanted_may_follow_and_serves_rule_4(now: Situation) -> None:
    other = B if now.own.name == A else A
    now = now._replace(peer=other)
    if now.peer_id is not None and now.peer_id.name != other:
        now = now._replace(peer_id=None)
    grant = successor(now)
    if grant is None:
        return
    assert objection(now.base, grant) is None
    if grant.in_sync == {grant.owner}:
        assert grant.sole == grant.owner_id, "who is alone needs nobody"
    if grant.owner != now.base.owner:
        assert now.promise_out or now.moving
