"""A witness is asked one question at a time, and given as long as its answers have taken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairsync.core.enquiry import ASKED_MAX, FAR_NS_MAX, Enquiry
from pairsync.core.units import NS_PER_MS, NS_PER_S
from pairsync.errors import InternalError

ALLOWED_NS = 400 * NS_PER_MS


def test_one_question_is_open_until_its_time() -> None:
    enquiry = Enquiry(7, ALLOWED_NS)
    assert not enquiry.is_past(6)
    assert enquiry.asks("w", 100) == 8
    assert enquiry.until_ns == 100 + ALLOWED_NS
    assert enquiry.asks("w", 200) == 9
    assert enquiry.is_past(8)
    assert not enquiry.is_past(9)
    enquiry.until_ns = None
    assert not enquiry.is_past(8)
    with pytest.raises(InternalError, match="number 10"):
        enquiry.measures(10, 300)


@pytest.mark.parametrize(
    ("took_ns", "wait_ns"),
    [
        (1, ALLOWED_NS),
        (ALLOWED_NS, ALLOWED_NS),
        (ALLOWED_NS + NS_PER_MS, 601_500_000),
        (NS_PER_S, 3 * NS_PER_S // 2),
        (9 * NS_PER_S, FAR_NS_MAX),
    ],
)
def test_who_is_far_is_given_longer(took_ns: int, wait_ns: int) -> None:
    enquiry = Enquiry(0, ALLOWED_NS)
    number = enquiry.asks("w", 5)
    enquiry.until_ns = None  # it is given up, and answered all the same
    enquiry.measures(number, 5 + took_ns)
    assert enquiry.wait_ns("w") == wait_ns
    assert enquiry.wait_ns("v") == ALLOWED_NS, "of another one nothing is known"
    enquiry.measures(enquiry.asks("w", 10), 11)
    assert enquiry.wait_ns("w") == ALLOWED_NS, "the last answer counts"


def test_what_the_failover_time_allows_is_not_shortened() -> None:
    enquiry = Enquiry(0, 2 * FAR_NS_MAX)
    enquiry.measures(enquiry.asks("w", 0), 5 * FAR_NS_MAX)
    assert enquiry.wait_ns("w") == 2 * FAR_NS_MAX


def test_its_memory_is_bounded() -> None:
    enquiry = Enquiry(0, ALLOWED_NS)
    numbers = [enquiry.asks("w", 0) for _ in range(ASKED_MAX + 1)]
    enquiry.measures(numbers[0], NS_PER_S)
    assert enquiry.wait_ns("w") == ALLOWED_NS, "too old"
    enquiry.measures(numbers[1], NS_PER_S)
    assert enquiry.wait_ns("w") > ALLOWED_NS
    enquiry.measures(numbers[1], 2)
    assert enquiry.wait_ns("w") > ALLOWED_NS, "an answer that comes twice is measured once"


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "answer"]), st.sampled_from("vw"), st.integers(0, 1500), st.integers(0, 9)
    ),
    max_size=30,
)
"""For a question also how often it is asked again; for an answer, which one it is, the latest first."""


@given(STEPS, st.integers(1, 3000))
def test_each_is_given_what_its_last_answer_has_taken(
    steps: list[tuple[str, str, int, int]], allowed_ms: int
) -> None:
    """Answers come in any order, twice, or never."""
    enquiry, now_ns = Enquiry(0, allowed_ms * NS_PER_MS), 0
    asked: list[tuple[int, str, int]] = []  # number, witness and time of each
    awaited: list[int] = []  # numbers of those that are remembered
    took_ns: dict[str, int] = {}
    for what, witness, passed_ms, which in steps:
        now_ns += passed_ms * NS_PER_MS
        if what == "ask":
            for _ in range(1 + which):
                number = enquiry.asks(witness, now_ns)
                asked += [(number, witness, now_ns)]
                awaited = [*awaited, number][-ASKED_MAX:]
            assert enquiry.until_ns == now_ns + enquiry.wait_ns(witness)
            assert [enquiry.is_past(each) for each, _, _ in asked] == [True] * (len(asked) - 1) + [False]
        elif asked:
            number, whom, asked_ns = asked[~(2 * which % len(asked))]
            enquiry.measures(number, now_ns)
            if number in awaited:
                awaited.remove(number)
                took_ns[whom] = now_ns - asked_ns
        for name in "vw":
            wait_ns, last_ns = enquiry.wait_ns(name), took_ns.get(name, 0)
            assert allowed_ms * NS_PER_MS <= wait_ns <= max(allowed_ms * NS_PER_MS, FAR_NS_MAX)
            assert wait_ns >= min(last_ns, FAR_NS_MAX)
            assert wait_ns == allowed_ms * NS_PER_MS or last_ns > allowed_ms * NS_PER_MS
