"""Grants: which may follow which, and that two majorities of a grant's voters always meet."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairsync.core.grants import (
    BALLOT_NONE,
    Ballot,
    Grant,
    Vote,
    VoterId,
    forced,
    genesis,
    majority,
    objection,
    tally,
)
from pairsync.errors import InternalError

A, B = b"a" * 32, b"b" * 32
A1, B1, B2, W1 = VoterId(A, b"a1"), VoterId(B, b"b1"), VoterId(B, b"b2"), VoterId("w", b"w1")
FIRST = genesis(A1, b"fork")
BOTH = FIRST._replace(epoch=2, in_sync=frozenset({A, B}), voters=frozenset({A1, B1, W1}))

voters = st.frozensets(st.sampled_from([A1, B1, W1, VoterId("w2", b"x")]), min_size=1, max_size=3)


def test_the_first_grant_needs_nobody_but_its_owner() -> None:
    assert FIRST.order == (1, 1)
    assert FIRST.owner_id == A1
    assert FIRST.in_sync == {A}
    assert FIRST.sole == A1
    assert not FIRST.decides_without(A1)
    with pytest.raises(InternalError):
        genesis(W1, b"fork")


@given(voters, st.data())
def test_two_majorities_of_one_set_of_voters_meet(some: frozenset[VoterId], data: st.DataObject) -> None:
    """Also of a third party's view: who has won cannot have lost for anybody who heard other votes."""
    needed = majority(some)
    assert all(
        set(one) & set(two) for one in combinations(some, needed) for two in combinations(some, needed)
    )
    ayes = data.draw(st.frozensets(st.sampled_from(sorted(some, key=repr))))
    noes = (
        data.draw(st.frozensets(st.sampled_from(sorted(some - ayes, key=repr))))
        if some - ayes
        else frozenset()
    )
    vote = tally(some, ayes, noes)
    assert (vote is Vote.WON) == (2 * len(ayes) > len(some))
    assert (vote is Vote.LOST) == (2 * (len(some) - len(noes)) <= len(some))


def test_strangers_do_not_count() -> None:
    ayes = {B2, VoterId("w", b"w2"), A1}
    assert tally(BOTH.voters, ayes, frozenset()) is Vote.PENDING
    assert tally(BOTH.voters, ayes | {W1}, frozenset()) is Vote.WON
    assert tally(BOTH.voters, frozenset(), {B2}) is Vote.PENDING
    assert tally(BOTH.voters, {A1}, {B1, W1}) is Vote.LOST


def test_who_decides_without_whom() -> None:
    assert BOTH.decides_without(A1)
    assert BOTH.decides_without(B2)
    assert not BOTH._replace(voters=frozenset({A1, B1})).decides_without(A1)
    assert BOTH._replace(voters=frozenset({B1})).decides_without(A1)


TAKEN = Grant(2, 1, B, b"b1", frozenset({B}), frozenset({B1}), b"fork")

LEGAL = [
    (FIRST, BOTH),
    (BOTH, BOTH._replace(epoch=3)),
    (BOTH, BOTH._replace(epoch=3, in_sync=frozenset({A}), voters=frozenset({A1}))),
    (BOTH, BOTH._replace(epoch=3, in_sync=frozenset({B}))),
    (BOTH, TAKEN),
    (BOTH, TAKEN._replace(in_sync=BOTH.in_sync, voters=BOTH.voters)),
]

ILLEGAL = [
    (FIRST, FIRST, "epoch 1 after 1"),
    (FIRST, FIRST._replace(epoch=3), "epoch 3 after 1"),
    (FIRST, BOTH._replace(in_sync=frozenset({B})), "change places"),
    (FIRST, BOTH._replace(owner=B), "same term"),
    (FIRST, BOTH._replace(holder=b"a2"), "same term"),
    (FIRST, TAKEN, "not in sync"),
    (BOTH, TAKEN._replace(term=3), "3.1 after 1.2"),
    (BOTH, TAKEN._replace(epoch=2), "2.2 after 1.2"),
    (BOTH, TAKEN._replace(in_sync=frozenset({A})), "not in sync"),
    (BOTH._replace(in_sync=frozenset({B})), TAKEN._replace(in_sync=frozenset({A, B})), "joins"),
    (BOTH, TAKEN._replace(owner=A, holder=b"a1", in_sync=frozenset({A})), "same owner"),
    (BOTH, TAKEN._replace(holder=b"b2"), "lost its memory"),
    (BOTH, BOTH._replace(epoch=3, fork=b"other"), "chain"),
    (BOTH, BOTH._replace(epoch=3, override="me"), "override"),
    (BOTH, BOTH._replace(epoch=3, voters=frozenset()), "0 voters"),
    (BOTH, BOTH._replace(epoch=3, voters=frozenset({B1, B2})), "twice"),
    (BOTH, BOTH._replace(epoch=3, voters=BOTH.voters | {VoterId("v", b"v")}), "4 voters"),
    (BOTH, BOTH._replace(epoch=3, in_sync=frozenset()), "0 replicas"),
    (BOTH, BOTH._replace(term=0), "count from 1"),
]


@pytest.mark.parametrize(("base", "grant"), LEGAL)
def test_what_may_follow(base: Grant, grant: Grant) -> None:
    assert objection(base, grant) is None


@pytest.mark.parametrize(("base", "grant", "reason"), ILLEGAL)
def test_what_may_not_follow(base: Grant, grant: Grant, reason: str) -> None:
    assert reason in str(objection(base, grant))


hosts = st.sampled_from([A1, B1, B2])
in_sync = st.sampled_from([frozenset({A}), frozenset({B}), frozenset({A, B})])


@given(st.lists(st.tuples(st.booleans(), hosts, in_sync, voters), max_size=8))
def test_in_a_legal_chain_only_the_in_sync_are_promoted(
    changes: list[tuple[bool, VoterId, frozenset[bytes], frozenset[VoterId]]],
) -> None:
    """Whatever is proposed: terms only grow, and a replica that is in sync was so since its owner said so."""
    base = FIRST
    for new_term, owner, hosts_in_sync, agreeing in changes:
        grant = base._replace(epoch=base.epoch + 1, in_sync=hosts_in_sync, voters=agreeing)
        if new_term:
            grant = Grant(
                base.term + 1, 1, A if owner == A1 else B, owner.incarnation, hosts_in_sync, agreeing, b"fork"
            )
        if objection(base, grant) is not None:
            continue
        assert grant.order > base.order
        assert grant.in_sync
        if grant.owner_id != base.owner_id:
            assert grant.owner in base.in_sync
            assert grant.in_sync <= base.in_sync
        assert base.in_sync & grant.in_sync, "all that was acknowledged is somewhere"
        base = grant


def test_an_override_is_above_all_and_of_another_chain() -> None:
    grant = forced(B2, [FIRST, TAKEN, BOTH], b"new", "Erika")
    assert grant.order == (3, 1)
    assert (grant.owner_id, grant.sole) == (B2, B2)
    assert grant.in_sync == {B}
    assert grant.override == "Erika"
    assert "another chain" in str(objection(TAKEN, grant))
    assert forced(A1, [], b"new", "Erika").term == 1
    assert forced(A1, [], b"new", "Erika", term_seen=7).term == 8, "its memory was lost, its disk was not"
    with pytest.raises(InternalError):
        forced(W1, [], b"new", "Erika")


def test_what_logs_say() -> None:
    said = BOTH.describe()
    assert said == "1.2 owner 6161, in sync 6161 6262, voters host 6161/61, host 6262/62, witness w/77"
    assert "forced by Erika" in forced(B2, [], b"new", "Erika").describe()


def test_every_ballot_is_above_none() -> None:
    assert Ballot(1, A, b"a1") > BALLOT_NONE
    assert Ballot(2, A, b"a1") > Ballot(1, B, b"b1")
