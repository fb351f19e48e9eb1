"""Whether this host keeps the times that its failover time allows: what was measured, told when it matters.

The samples come from where they arise and cost a comparison each, none of them on the data path:

    the peer     pings of the link's paths; votes go over all of them, so the fastest counts (io.path)
    timers       how late the arbitration's own deadlines are looked at
    the guard    how late it was to take in what it was told
    the witness  each question until its answer, however late it came
    a stop       of a guest whose lease runs out; an orderly one takes its time under a lease that is renewed
    an opening   from the word that this host owns until its guest is served

Judged (`core.timingjudge`) every `JUDGE_NS`; a verdict that has changed is an event.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pairsync.core.events import TimingEvent
from pairsync.core.timing import Timing
from pairsync.core.timingjudge import Judgement, Measure, TimingJudge
from pairsync.core.units import NS_PER_S

__all__ = ["JUDGE_NS", "Punctuality"]

JUDGE_NS: Final = 2 * NS_PER_S
"""Between two judgements: each takes half a millisecond."""


class Punctuality:
    """See the module.  Times are those of one clock that never falls."""

    def __init__(self, timing: Timing, tell: Callable[[TimingEvent], None], now_ns: int) -> None:
        self._judge = TimingJudge(timing)
        self._tell = tell
        self._judged_ns = now_ns
        self.judgement: Judgement = self._judge.judge(now_ns)
        """The latest."""

    def measured(self, what: Measure, sample_ns: int, now_ns: int) -> None:
        """Something took so long."""
        self._judge.measured(what, sample_ns, now_ns)

    def is_due(self, now_ns: int) -> bool:
        """Whether `judge` should be called."""
        return now_ns - self._judged_ns >= JUDGE_NS

    def judge(self, now_ns: int, *, guard_ns: int = 0, round_trip_ns: int | None = None) -> None:
        """Judge, and tell of another verdict; with the peaks of what has gathered since the last time."""
        self.measured(Measure.GUARD, guard_ns, now_ns)
        self.measured(Measure.ROUND_TRIP, round_trip_ns or 0, now_ns)
        self._judged_ns = now_ns
        before, self.judgement = self.judgement, self._judge.judge(now_ns)
        now = self.judgement
        if now.verdict is before.verdict:
            return
        smallest_ns = now.smallest_failover_ns
        smallest_s = None if smallest_ns is None else smallest_ns / NS_PER_S
        self._tell(TimingEvent(now.verdict.name.lower(), now.reason, smallest_s))
