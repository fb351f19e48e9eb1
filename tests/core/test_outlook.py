"""Outlook: what is promised of each failure, and of two in turn."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from pairsync.core.outlook import Failure, Fate, State, after, outlook

WHOLE = State(in_sync=True, sole=False)
F = Failure
SECOND = 1_000_000_000


def fates(state: State) -> dict[Failure, Fate]:
    return {failure: each.fate for failure, each in outlook(state, failover_ns=5 * SECOND).single.items()}


def test_a_whole_pair_survives_every_single_failure_with_nothing_lost() -> None:
    seen = outlook(WHOLE, failover_ns=5 * SECOND)
    assert seen.redundant
    assert {failure for failure, each in seen.single.items() if each.fate is Fate.MOVES} == {
        F.OWNER,
        F.OWNER_DISK,
    }
    assert seen.single[F.OWNER].within_ns == 5 * SECOND
    assert seen.single[F.WITNESS].within_ns == 0


def test_a_disk_that_hangs_is_waited_for_before_anybody_acts() -> None:
    """It was said that the guest moves within the failover time."""
    seen = outlook(replace(WHOLE, hang_ns=15 * SECOND), failover_ns=5 * SECOND).single
    waits = {failure: each.within_ns // SECOND for failure, each in seen.items()}
    assert waits == {F.OWNER: 5, F.STANDBY: 5, F.LINK: 5, F.WITNESS: 0, F.OWNER_DISK: 20, F.STANDBY_DISK: 20}
    alone = outlook(State(in_sync=False, sole=True, hang_ns=15 * SECOND), failover_ns=5 * SECOND).single
    assert not any(each.within_ns for each in alone.values())


def test_the_grant_outlives_the_witness() -> None:
    pairs = outlook(WHOLE, failover_ns=5 * SECOND).safe_pairs
    for first in (F.STANDBY, F.LINK, F.OWNER, F.STANDBY_DISK):
        assert (first, F.WITNESS) in pairs
    assert (F.WITNESS, F.STANDBY) in pairs
    assert (F.WITNESS, F.LINK) in pairs
    assert (F.WITNESS, F.OWNER) not in pairs  # that waits for a person, or for the host
    assert (F.WITNESS, F.OWNER_DISK) in pairs  # the owner is there to hand over


@pytest.mark.parametrize(("gone", "its_disk"), [(F.OWNER, F.OWNER_DISK), (F.OWNER_DISK, F.OWNER)])
def test_both_failures_of_a_pair_are_named_by_who_owns_before_them(gone: F, its_disk: F) -> None:
    """The loss of both hosts, owner first, was called safe: the standby of then is the host that is gone."""
    pairs = outlook(WHOLE, failover_ns=5 * SECOND).safe_pairs
    assert not {(gone, F.STANDBY), (gone, F.STANDBY_DISK)} & set(pairs)
    assert {(gone, its_disk), (gone, F.LINK), (gone, F.WITNESS)} <= set(pairs)


def test_a_host_alone_depends_on_nobody_but_itself() -> None:
    alone = State(in_sync=False, sole=True)
    stops = {failure for failure, fate in fates(alone).items() if fate is Fate.STOPS}
    assert stops == {F.OWNER, F.OWNER_DISK}


@pytest.mark.parametrize(
    ("owner_asks", "standby_asks", "fate"),
    [
        (True, True, Fate.GOES_ON),
        (True, False, Fate.GOES_ON),
        (False, True, Fate.MOVES),
        (False, False, Fate.STOPS),
    ],
)
def test_a_cut_link_leaves_the_guest_with_whoever_reaches_the_witness(
    owner_asks: bool, standby_asks: bool, fate: Fate
) -> None:
    assert fates(replace(WHOLE, owner_asks=owner_asks, standby_asks=standby_asks))[F.LINK] is fate


def test_what_an_asynchronous_standby_lacks_is_lost_with_its_owner_only() -> None:
    seen = outlook(replace(WHOLE, lag_bytes=4096), failover_ns=SECOND)
    lost = {failure: each.lost_bytes for failure, each in seen.single.items() if each.lost_bytes}
    assert lost == {F.OWNER: 4096}
    assert not seen.redundant
    assert all(first is not F.OWNER for first, _ in seen.safe_pairs)


def test_an_owner_does_not_leave_its_disk_for_a_standby_that_may_lack_something() -> None:
    assert fates(WHOLE)[F.OWNER_DISK] is Fate.MOVES
    assert fates(replace(WHOLE, leaves=False))[F.OWNER_DISK] is Fate.STOPS


def test_no_state_promises_to_be_run_by_a_host_that_is_not_in_sync() -> None:
    for in_sync, sole, link, owner, standby, disk in product((True, False), repeat=6):
        state = State(
            in_sync=in_sync,
            sole=sole,
            link=link,
            owner_asks=owner,
            standby_asks=standby,
            owner_disk=disk,
        )
        for failure in Failure:
            fate, then = after(state, failure)
            if fate is Fate.MOVES:
                assert in_sync
                assert then.sole
                assert not then.in_sync
            elif fate is Fate.STOPS:
                assert then == state
        assert all(first is not second for first, second in outlook(state, failover_ns=1).safe_pairs)
