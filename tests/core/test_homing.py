"""A guest goes home when its home has been in order for long enough, and ever more rarely."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pairsync.core.homing import HOME_NS_MAX, Homing
from pairsync.core.units import NS_PER_S

AFTER_NS = 60 * NS_PER_S


def test_it_goes_once_its_home_has_been_in_order_for_long_enough() -> None:
    homing = Homing(AFTER_NS)
    assert not homing.goes(True, 5)
    assert not homing.goes(True, 5 + AFTER_NS - 1)
    assert homing.goes(True, 5 + AFTER_NS)


def test_a_break_begins_it_anew() -> None:
    homing = Homing(AFTER_NS)
    assert not homing.goes(True, 0)
    assert not homing.goes(False, AFTER_NS - 1)
    assert not homing.goes(True, AFTER_NS)
    assert not homing.goes(True, 2 * AFTER_NS - 1)
    assert homing.goes(True, 2 * AFTER_NS)


def _waits(homing: Homing, attempts: int, now_ns: int = 0) -> list[int]:
    """How long it waited each time: the home was lost again at once."""
    waits: list[int] = []
    for _ in range(attempts):
        began_ns = now_ns
        assert not homing.goes(True, began_ns)
        while not homing.goes(True, now_ns):
            now_ns += NS_PER_S
        waits.append(now_ns - began_ns)
        assert not homing.goes(False, now_ns)
    return waits


def test_a_home_that_is_lost_again_and_again_is_trusted_ever_later_and_then_anew() -> None:
    homing = Homing(AFTER_NS)
    waits = _waits(homing, 9)
    assert waits == [min(AFTER_NS << number, HOME_NS_MAX) for number in range(9)]
    later_ns = sum(waits) + 2 * HOME_NS_MAX + 1
    assert _waits(homing, 1, later_ns) == [AFTER_NS]


def test_who_asked_for_longer_than_the_limit_gets_it() -> None:
    assert _waits(Homing(2 * HOME_NS_MAX), 2) == [2 * HOME_NS_MAX] * 2


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 100)), max_size=60), st.integers(1, 50))
def test_it_never_goes_while_it_could_not_and_never_sooner_than_asked(
    steps: list[tuple[bool, int]], after_ns: int
) -> None:
    homing, now_ns, since_ns = Homing(after_ns), 0, None
    for could, passed_ns in steps:
        now_ns += passed_ns
        since_ns = (now_ns if since_ns is None else since_ns) if could else None
        if homing.goes(could, now_ns):
            assert since_ns is not None
            assert now_ns - since_ns >= after_ns
            since_ns = None
