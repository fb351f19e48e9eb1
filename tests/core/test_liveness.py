"""The path monitor: heartbeats, the three verdicts, and an observer that slept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairsync.core.liveness import PINGS_OPEN_MAX, PathMonitor, Verdict
from pairsync.errors import InternalError

INTERVAL = 500
SILENCE = 2000


def monitor(now_ns: int = 0) -> PathMonitor:
    return PathMonitor(interval_ns=INTERVAL, silence_ns=SILENCE, now_ns=now_ns)


def watch(path: PathMonitor, start_ns: int, end_ns: int, step_ns: int = INTERVAL // 2) -> list[Verdict]:
    """Judge as often as a shell that is awake does."""
    return [path.verdict(now_ns) for now_ns in range(start_ns, end_ns + 1, step_ns)]


def test_pings_leave_at_the_interval_and_missed_ones_are_not_made_up_for() -> None:
    path = monitor()
    pings = [path.next_ping_ns, path.ping(0), path.next_ping_ns]
    assert pings == [0, 1, INTERVAL]
    late = [path.ping(5 * INTERVAL + 3), path.next_ping_ns]
    assert late == [2, 6 * INTERVAL + 3]


def test_verdicts_by_silence() -> None:
    path = monitor()
    verdicts = watch(path, 0, SILENCE)
    assert verdicts[0] is Verdict.ALIVE
    assert verdicts[-1] is Verdict.DEAD
    assert verdicts[-2] is Verdict.SUSPECT
    assert verdicts.index(Verdict.SUSPECT) == SILENCE // 2 // (INTERVAL // 2)


def test_anything_heard_is_life() -> None:
    path = monitor()
    watch(path, 0, SILENCE - 1)
    path.heard(SILENCE - 1)
    assert path.verdict(SILENCE) is Verdict.ALIVE
    assert path.silence_ns(SILENCE + 10) == 11
    path.heard(5)  # an arrival that was noted late does not turn the clock back
    assert path.silence_ns(SILENCE) == 1


def test_an_observer_that_slept_waits_one_interval_before_it_judges() -> None:
    path = monitor()
    path.verdict(0)
    late = 100 * SILENCE
    assert path.verdict(late) is Verdict.SUSPECT
    assert path.next_deadline_ns() == late + INTERVAL
    assert path.verdict(late + INTERVAL - 1) is Verdict.SUSPECT
    assert path.verdict(late + INTERVAL) is Verdict.DEAD


def test_an_observer_that_slept_and_then_hears_goes_on() -> None:
    path = monitor()
    path.verdict(0)
    late = 100 * SILENCE
    path.verdict(late)
    path.heard(late + 1)
    assert watch(path, late + INTERVAL, late + SILENCE)[0] is Verdict.ALIVE


def test_rtt_is_smoothed_and_its_minimum_kept() -> None:
    path = monitor()
    assert (path.rtt_ns, path.rtt_min_ns) == (None, None)
    path.pong(path.ping(0), 800)
    assert (path.rtt_ns, path.rtt_min_ns) == (800, 800)
    path.pong(path.ping(1000), 1080)
    assert (path.rtt_ns, path.rtt_min_ns) == (800 - 90, 80)


def test_answers_to_unknown_pings_tell_nothing_but_life() -> None:
    path = monitor()
    number = path.ping(0)
    path.pong(number + 7, 10)
    assert path.rtt_ns is None
    path.pong(number, 20)  # forgotten when a later number was answered
    assert path.rtt_ns is None
    assert path.silence_ns(30) == 10


def test_unanswered_pings_are_bounded() -> None:
    path = monitor()
    for now_ns in range(PINGS_OPEN_MAX + 1):
        path.ping(now_ns)
    path.pong(1, 1000)  # the oldest is forgotten
    assert path.rtt_ns is None
    path.pong(2, 1000)
    assert path.rtt_ns == 999


def test_a_limit_below_two_heartbeats_is_refused() -> None:
    with pytest.raises(InternalError, match="silence limit"):
        PathMonitor(interval_ns=10, silence_ns=19, now_ns=0)


@given(st.lists(st.integers(1, SILENCE * 2), max_size=30), st.data())
def test_a_watched_path_dies_exactly_when_it_was_silent_too_long(
    gaps: list[int], data: st.DataObject
) -> None:
    """An observer that is awake: judged at least once an interval, so the oracle is the silence alone."""
    path = monitor()
    now_ns = heard_ns = 0
    path.verdict(0)
    for gap in gaps:
        target_ns = now_ns + gap
        while now_ns < target_ns:
            now_ns = min(target_ns, now_ns + data.draw(st.integers(1, INTERVAL)))
            silence_ns = now_ns - heard_ns
            assert path.silence_ns(now_ns) == silence_ns
            verdict = path.verdict(now_ns)
            if silence_ns >= SILENCE:
                assert verdict is Verdict.DEAD
                return
            assert verdict is (Verdict.SUSPECT if silence_ns * 2 >= SILENCE else Verdict.ALIVE)
            assert path.next_deadline_ns() == heard_ns + SILENCE
        path.heard(now_ns)
        heard_ns = now_ns


def test_the_largest_round_trip_is_told_once() -> None:
    path = monitor()
    before = path.take_rtt_peak_ns()
    for sent_ns, took_ns in ((0, 30), (INTERVAL, 70), (2 * INTERVAL, 50)):
        path.pong(path.ping(sent_ns), sent_ns + took_ns)
    assert (before, path.take_rtt_peak_ns(), path.take_rtt_peak_ns()) == (None, 70, None)
