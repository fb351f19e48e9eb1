"""Back-off: doubling, bounded, jitter in the upper half."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairsync.core.backoff import Backoff, Recurrence
from pairsync.errors import InternalError


def test_doubles_to_the_limit() -> None:
    backoff = Backoff(first_ns=100, limit_ns=500)
    assert [backoff.failed(0.0) for _ in range(5)] == [50, 100, 200, 250, 250]
    assert backoff.failures == 5


def test_success_begins_from_the_start() -> None:
    backoff = Backoff(first_ns=100, limit_ns=500)
    backoff.failed(0.5)
    backoff.failed(0.5)
    backoff.succeeded()
    assert backoff.failures == 0
    assert backoff.failed(0.0) == 50


@given(
    st.integers(1, 10**9),
    st.integers(0, 10**12),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=80),
)
def test_every_delay_lies_between_half_the_ceiling_and_the_ceiling(
    first_ns: int, more_ns: int, fractions: list[float]
) -> None:
    backoff = Backoff(first_ns=first_ns, limit_ns=first_ns + more_ns)
    for attempt, fraction in enumerate(fractions):
        ceiling_ns = min(first_ns << attempt, first_ns + more_ns)
        assert ceiling_ns // 2 <= backoff.failed(fraction) <= ceiling_ns


@pytest.mark.parametrize(("first_ns", "limit_ns"), [(0, 1), (2, 1), (-1, 5)])
def test_senseless_bounds_are_refused(first_ns: int, limit_ns: int) -> None:
    with pytest.raises(InternalError, match="back-off"):
        Backoff(first_ns=first_ns, limit_ns=limit_ns)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 2.0])
def test_the_fraction_is_checked(fraction: float) -> None:
    with pytest.raises(InternalError, match="fraction"):
        Backoff(first_ns=1, limit_ns=2).failed(fraction)


def test_what_comes_again_and_again_is_waited_for_longer_until_it_has_been_gone_for_long() -> None:
    home = Recurrence(first_ns=100, limit_ns=500)
    now_ns = 10**9
    for delay_ns in (50, 100, 200, 250, 250):
        assert home.next_ns(now_ns, 0.0) == delay_ns
        now_ns += delay_ns + 500
    assert home.next_ns(now_ns + 1, 0.0) == 50
