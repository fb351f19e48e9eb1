"""What a host measures of itself, and when it says so."""

from __future__ import annotations

from pairsync.core.events import TimingEvent
from pairsync.core.timing import derive
from pairsync.core.timingjudge import Measure, TimingVerdict
from pairsync.core.units import NS_PER_S
from pairsync.guest.punctuality import JUDGE_NS, Punctuality

TIMING = derive(5 * NS_PER_S)


def test_only_another_verdict_is_told_and_only_now_and_then_it_is_judged() -> None:
    told: list[TimingEvent] = []
    watch = Punctuality(TIMING, told.append, 0)
    assert not watch.is_due(JUDGE_NS - 1)
    assert watch.is_due(JUDGE_NS)
    watch.judge(JUDGE_NS)
    assert not watch.is_due(2 * JUDGE_NS - 1)
    assert (told, watch.judgement.verdict) == ([], TimingVerdict.OK)
    watch.judge(2 * JUDGE_NS, guard_ns=TIMING.stall_ns * 3 // 4)
    watch.judge(3 * JUDGE_NS)
    assert [each.verdict for each in told] == ["warn"]
    watch.measured(Measure.GUARD, 2 * TIMING.stall_ns, 3 * JUDGE_NS)
    watch.judge(4 * JUDGE_NS)
    assert [each.verdict for each in told] == ["warn", "broken"]
    assert "a late guard" in told[-1].reason
    smallest_s = told[-1].smallest_failover_s
    assert smallest_s is not None
    assert derive(int(smallest_s * NS_PER_S)).stall_ns >= 2 * TIMING.stall_ns
    watch.judge(120 * NS_PER_S)
    assert [each.verdict for each in told] == ["warn", "broken", "ok"]
