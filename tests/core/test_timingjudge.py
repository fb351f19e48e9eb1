"""The live check of the inequality: warns before it breaks, says why, and does not flap."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairsync.core.timing import FAILOVER_NS_MAX, FAILOVER_NS_MIN, Allowances, Timing, derive
from pairsync.core.timingjudge import (
    SLOTS,
    STEP_NS,
    WINDOW_NS,
    WINDOW_RARE_NS,
    Judgement,
    Measure,
    TimingJudge,
    TimingVerdict,
)
from pairsync.core.units import NS_PER_MS, NS_PER_S

OK, WARN, BROKEN = TimingVerdict.OK, TimingVerdict.WARN, TimingVerdict.BROKEN
SLICE_NS = WINDOW_NS // SLOTS
BEGIN_NS = 1_000_000 * NS_PER_S
STRICT = {Measure.GUARD, Measure.STOP}


def allowed_ns(timing: Timing, what: Measure) -> int:
    return {
        Measure.ROUND_TRIP: 2 * timing.delay_ns,
        Measure.STALL: timing.stall_ns,
        Measure.GUARD: timing.stall_ns,
        Measure.STOP: timing.stop_ns,
        Measure.WITNESS: timing.witness_wait_ns,
        Measure.OPEN: timing.open_ns,
    }[what]


def judge_after(*samples: tuple[Measure, int], times: int = 2, timing: Timing | None = None) -> Judgement:
    """Each sample once a slice of its window."""
    judge = TimingJudge(derive() if timing is None else timing)
    for turn in range(times):
        for what, sample_ns in samples:
            window_ns = WINDOW_RARE_NS if what in {Measure.STOP, Measure.OPEN} else WINDOW_NS
            judge.measured(what, sample_ns, BEGIN_NS + turn * window_ns // SLOTS)
    return judge.judge(BEGIN_NS + (times - 1) * SLICE_NS)


def test_at_first_all_is_well() -> None:
    assert judge_after() == Judgement(OK, "", FAILOVER_NS_MIN)


@pytest.mark.parametrize("what", Measure)
def test_it_warns_before_it_breaks(what: Measure) -> None:
    most_ns = allowed_ns(derive(), what)
    assert judge_after((what, most_ns * 70 // 100)).verdict is OK
    warned = judge_after((what, most_ns * 71 // 100 + 1))
    assert warned.verdict is WARN
    assert warned.reason.startswith(f"{what.value} takes up to ")
    assert judge_after((what, most_ns)).verdict is WARN
    assert judge_after((what, most_ns + 1)).verdict is BROKEN


@pytest.mark.parametrize("what", Measure)
def test_one_peak_breaks_only_what_keeps_two_guests_apart(what: Measure) -> None:
    judgement = judge_after((what, allowed_ns(derive(), what) + 1), times=1)
    assert judgement.verdict is (BROKEN if what in STRICT else WARN)
    assert judgement.reason.endswith("would hold" if what in STRICT else "not often enough to break it")


def test_the_reason_names_the_worst_and_what_would_hold() -> None:
    judgement = judge_after(
        (Measure.WITNESS, 1000 * NS_PER_MS), (Measure.STALL, 150 * NS_PER_MS), (Measure.OPEN, NS_PER_MS)
    )
    assert judgement == Judgement(
        BROKEN,
        "a round trip to the witness takes up to 1000 ms, and 413 ms are allowed at a failover time of 5 s: "
        "a failover time of 16.4 s would hold",
        16_400 * NS_PER_MS,
    )


def test_what_no_failover_time_can_bear() -> None:
    judgement = judge_after((Measure.STOP, FAILOVER_NS_MAX))
    assert judgement.smallest_failover_ns is None
    assert judgement.reason.endswith("no failover time can be kept like this")


def test_a_set_for_a_far_witness_is_kept_by_it() -> None:
    timing = derive(at_least=Allowances(witness_wait_ns=1500 * NS_PER_MS), failover_ns=8 * NS_PER_S)
    assert judge_after((Measure.WITNESS, NS_PER_S), timing=timing).verdict is OK


def test_it_does_not_flap() -> None:
    judge = TimingJudge(derive())
    most_ns = allowed_ns(derive(), Measure.STALL)
    now_ns = BEGIN_NS

    def after(percent: int, slices: int) -> TimingVerdict:
        nonlocal now_ns
        for _ in range(slices):
            now_ns += SLICE_NS
            judge.measured(Measure.STALL, most_ns * percent // 100, now_ns)
        return judge.judge(now_ns).verdict

    assert after(101, SLOTS) is BROKEN
    assert after(99, SLOTS) is BROKEN
    assert after(69, SLOTS) is WARN
    assert after(51, SLOTS) is WARN
    assert after(49, SLOTS) is OK
    assert after(69, SLOTS) is OK


@pytest.mark.parametrize("what", Measure)
def test_what_is_past_is_forgotten(what: Measure) -> None:
    judge = TimingJudge(derive())
    for turn in range(2):
        judge.measured(what, allowed_ns(derive(), what) * 2, BEGIN_NS + turn)
    judge.measured(what, 0, BEGIN_NS + WINDOW_RARE_NS + WINDOW_NS)
    assert judge.judge(BEGIN_NS + 2 * WINDOW_RARE_NS).verdict is OK
    judge.measured(what, -5, BEGIN_NS + 3 * WINDOW_RARE_NS)
    assert judge.judge(BEGIN_NS + 3 * WINDOW_RARE_NS).verdict is OK


samples = st.tuples(st.sampled_from(Measure), st.integers(0, 2 * NS_PER_S), st.integers(0, 30 * NS_PER_S))


@given(st.lists(samples, max_size=60))
def test_peaks_are_those_of_a_naive_window(events: list[tuple[Measure, int, int]]) -> None:
    judge = TimingJudge(derive())
    now_ns = BEGIN_NS
    seen: list[tuple[int, Measure, int]] = []
    for what, sample_ns, later_ns in events:
        now_ns += later_ns
        judge.measured(what, sample_ns, now_ns)
        seen.append((now_ns, what, sample_ns))
    judge.judge(now_ns)
    needs = judge.needs()
    peaks: dict[int, int] = {}
    for when_ns, what, sample_ns in seen:
        if what is Measure.WITNESS and now_ns // SLICE_NS - when_ns // SLICE_NS < SLOTS:
            peaks[when_ns // SLICE_NS] = max(peaks.get(when_ns // SLICE_NS, 0), sample_ns)
    steady_ns = sorted([0, 0, *peaks.values()])[-2]
    assert needs.witness_wait_ns == -(-steady_ns * 100 // 70)


@given(st.lists(st.tuples(st.sampled_from(Measure), st.integers(0, NS_PER_S)), max_size=12))
def test_what_is_proposed_holds_and_less_does_not(measured: list[tuple[Measure, int]]) -> None:
    """Were the failover time set to what is proposed, the same samples would find nothing to warn of."""
    proposed_ns = judge_after(*measured).smallest_failover_ns
    if proposed_ns is None:
        return
    assert judge_after(*measured, timing=derive(proposed_ns)).verdict is OK
    if proposed_ns > FAILOVER_NS_MIN:
        assert judge_after(*measured, timing=derive(proposed_ns - STEP_NS)).verdict is not OK


def test_its_memory_is_bounded() -> None:
    judge = TimingJudge(derive())
    rng = random.Random(1)
    now_ns = BEGIN_NS
    for _ in range(10_000):
        now_ns += rng.randrange(NS_PER_S)
        judge.measured(rng.choice(list(Measure)), rng.randrange(NS_PER_S), now_ns)
    assert all(len(term._peaks) == SLOTS for term in judge._terms.values())
