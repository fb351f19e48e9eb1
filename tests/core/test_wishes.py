"""Wishes: what the latest one asks of a guest in the role that it has, case by case."""

from __future__ import annotations

import pytest

from pairsync.core.arbitration import Own, Stop, Yield
from pairsync.core.grants import VoterId, genesis
from pairsync.core.timing import derive
from pairsync.core.units import NS_PER_S
from pairsync.core.wishes import (
    CLOSE_NS,
    MOVE_NS,
    Step,
    Wish,
    end_within_ns,
    halt_within_ns,
    has_handed_over,
    step_of,
)

FIRST = genesis(VoterId(b"a" * 32, b"a1"), b"fork")
OWN, STOP, YIELD = Own(FIRST._replace(term=3)), Stop(FIRST, "why"), Yield(FIRST)


@pytest.mark.parametrize(
    ("wish", "active", "halted", "term", "step"),
    [
        (OWN, False, False, 3, Step.SERVE),
        (OWN, True, True, 3, Step.SERVE),
        (OWN, True, False, 3, Step.NOTHING),  # another grant for the same owner
        (OWN, True, False, 2, Step.SERVE_ANEW),
        (STOP, True, False, 3, Step.STOP),
        (STOP, False, False, 3, Step.STOP),  # there may be nothing to stop: it is told all the same
        (YIELD, True, False, 3, Step.STAND_BY),
        (YIELD, True, True, 3, Step.STAND_BY),
        (YIELD, False, False, 3, Step.NOTHING),
    ],
)
def test_step(wish: Wish, active: bool, halted: bool, term: int, step: Step) -> None:
    assert step_of(wish, active=active, halted=halted, term=term) is step


def test_who_hands_over_counts_as_in_sync_where_it_served_and_the_grant_says_so() -> None:
    both = FIRST._replace(term=4, in_sync=frozenset({b"a" * 32, b"b" * 32}))
    assert has_handed_over(both, b"a" * 32, active=True, term=3)
    assert not has_handed_over(both, b"a" * 32, active=False, term=3)
    assert not has_handed_over(both, b"a" * 32, active=True, term=2)
    assert not has_handed_over(both._replace(in_sync=frozenset({b"b" * 32})), b"a" * 32, active=True, term=3)


def test_an_orderly_halt_ends_before_the_lease_does() -> None:
    timing, now_ns = derive(5 * NS_PER_S), 100 * NS_PER_S
    assert halt_within_ns(None, now_ns, timing) == MOVE_NS
    assert halt_within_ns(now_ns + 60 * NS_PER_S, now_ns, timing) == MOVE_NS
    assert halt_within_ns(now_ns + timing.stop_ns + 5, now_ns, timing) == 5
    assert halt_within_ns(now_ns, now_ns, timing) == 0


def test_an_orderly_end_takes_no_longer_than_a_failover_where_there_is_one() -> None:
    assert end_within_ns(derive(5 * NS_PER_S), goes_on=True) == 5 * NS_PER_S
    assert end_within_ns(derive(60 * NS_PER_S), goes_on=True) == CLOSE_NS
    assert end_within_ns(derive(5 * NS_PER_S), goes_on=False) == CLOSE_NS
