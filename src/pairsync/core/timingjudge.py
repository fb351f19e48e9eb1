"""Whether a host still keeps the inequality of `core.timing`: what is measured against what is allowed.

A set of times is derived from allowances: for a message between the hosts, a late timer, a stop, the witness,
an opening.  Networks and machines change; so all of these are measured while running, and judged::

    OK ──▶ WARN ──▶ BROKEN        warned before it breaks: from 70 % of an allowance on
       ◀──      ◀──               and back only well below: 50 %, 70 %

Samples are kept as peaks of `SLOTS` slices of a window, so a term takes a few numbers whatever its traffic.
Two terms keep two guests from running at once, the guard's punctuality and the time of a stop: a single peak
of these breaks the promise.  The others may have one bad slice, which warns: a lost packet costs a fifth of a
second, and that is what the silence limit has its three heartbeats for.

Inputs: samples and the time, in integer nanoseconds; the time never falls.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from .timing import FAILOVER_NS_MAX, FAILOVER_NS_MIN, Allowances, Timing, derive
from .units import NS_PER_MS, NS_PER_S

__all__ = ["SLOTS", "Judgement", "Measure", "TimingJudge", "TimingVerdict"]

SLOTS = 6
"""Slices of a window."""

WINDOW_NS = 60 * NS_PER_S
"""How long a sample counts."""

WINDOW_RARE_NS = 24 * 3600 * NS_PER_S
"""Likewise, of what happens at a change of role only."""

WARN_PERCENT = 70
CALM_PERCENT = 50

STEP_NS = 100 * NS_PER_MS
"""Failover times that are proposed are multiples of that."""


class TimingVerdict(enum.IntEnum):
    """The worse, the greater."""

    OK = 0
    WARN = 1
    BROKEN = 2


class Measure(enum.Enum):
    """What is measured."""

    ROUND_TRIP = "a round trip to the peer"
    STALL = "a late timer of this host"
    GUARD = "a late guard"
    STOP = "a stop of the guest"
    WITNESS = "a round trip to the witness"
    OPEN = "an opening of the guest"


@dataclass(frozen=True, slots=True)
class _Rule:
    term: str
    """Of `Allowances`."""
    share: int = 1
    """A sample is so many times the term."""
    strict: bool = False
    """Whether a single peak breaks it."""
    window_ns: int = WINDOW_NS


_RULES = {
    Measure.ROUND_TRIP: _Rule("delay_ns", share=2),
    Measure.STALL: _Rule("stall_ns"),
    Measure.GUARD: _Rule("stall_ns", strict=True),
    Measure.STOP: _Rule("stop_ns", strict=True, window_ns=WINDOW_RARE_NS),
    Measure.WITNESS: _Rule("witness_wait_ns"),
    Measure.OPEN: _Rule("open_ns", window_ns=WINDOW_RARE_NS),
}


@dataclass(frozen=True, slots=True)
class Judgement:
    """``reason`` names the worst term, what it takes and what it may take; empty where all is well.

    ``smallest_failover_ns``: the shortest failover time that would hold with what is measured now, and with a
    reserve; None if there is none.
    """

    verdict: TimingVerdict
    reason: str
    smallest_failover_ns: int | None


class _Peaks:
    """The peaks of one measure, and its own verdict."""

    def __init__(self, rule: _Rule, allowed_ns: int) -> None:
        self.rule = rule
        self.allowed_ns = allowed_ns * rule.share
        # Invariants: peaks[n % SLOTS] is of slice n, for the SLOTS slices up to slot, which never falls.
        self._peaks = [0] * SLOTS
        self._slot = 0
        self.verdict = TimingVerdict.OK

    def add(self, sample_ns: int, now_ns: int) -> None:
        self.advance(now_ns)
        at = self._slot % SLOTS
        self._peaks[at] = max(self._peaks[at], sample_ns)

    def advance(self, now_ns: int) -> None:
        slot = now_ns * SLOTS // self.rule.window_ns
        for passed in range(max(self._slot + 1, slot - SLOTS + 1), slot + 1):
            self._peaks[passed % SLOTS] = 0
        self._slot = max(self._slot, slot)

    @property
    def peak_ns(self) -> int:
        return max(self._peaks)

    @property
    def steady_ns(self) -> int:
        """What it takes not just once."""
        return self.peak_ns if self.rule.strict else sorted(self._peaks)[-2]

    def judge(self) -> TimingVerdict:
        peak_ns, steady_ns = self.peak_ns, self.steady_ns
        above_warn = steady_ns * 100 > self.allowed_ns * WARN_PERCENT
        above_calm = steady_ns * 100 > self.allowed_ns * CALM_PERCENT
        if steady_ns > self.allowed_ns or (self.verdict is TimingVerdict.BROKEN and above_warn):
            self.verdict = TimingVerdict.BROKEN
        elif peak_ns > self.allowed_ns or above_warn or (self.verdict is not TimingVerdict.OK and above_calm):
            self.verdict = TimingVerdict.WARN
        else:
            self.verdict = TimingVerdict.OK
        return self.verdict


class TimingJudge:
    """See the module."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._terms = {measure: _Peaks(rule, getattr(timing, rule.term)) for measure, rule in _RULES.items()}

    def measured(self, what: Measure, sample_ns: int, now_ns: int) -> None:
        """A sample; a negative one counts as none."""
        self._terms[what].add(sample_ns, now_ns)

    def judge(self, now_ns: int) -> Judgement:
        """The verdict over all terms; to be asked now and then, at least once in a slice (10 s)."""
        for term in self._terms.values():
            term.advance(now_ns)
        verdict = max(term.judge() for term in self._terms.values())
        if verdict is TimingVerdict.OK:
            return Judgement(verdict, "", self._smallest_ns())
        worst, term = max(
            self._terms.items(), key=lambda each: (each[1].verdict, each[1].peak_ns / each[1].allowed_ns)
        )
        smallest_ns = self._smallest_ns()
        if smallest_ns is None:
            advice = "no failover time can be kept like this"
        elif smallest_ns <= self._timing.failover_ns:  # a peak, of a term that may have one
            advice = "not often enough to break it"
        else:
            advice = f"a failover time of {smallest_ns / NS_PER_S:g} s would hold"
        reason = (
            f"{worst.value} takes up to {term.peak_ns / NS_PER_MS:.0f} ms, and "
            f"{term.allowed_ns / NS_PER_MS:.0f} ms are allowed at a failover time of "
            f"{self._timing.failover_ns / NS_PER_S:g} s: {advice}"
        )
        return Judgement(verdict, reason, smallest_ns)

    def needs(self) -> Allowances:
        """What each term needs now, with a reserve that keeps it from warning: `derive`'s ``at_least``."""
        needs: dict[str, int] = {}
        for term in self._terms.values():
            name, share = term.rule.term, term.rule.share
            need_ns = -(-term.steady_ns * 100 // (share * WARN_PERCENT))
            needs[name] = max(needs.get(name, 0), need_ns)
        return Allowances(**needs)

    def _smallest_ns(self) -> int | None:
        """By halving: with more time every allowance is larger (`tests/core/test_timing.py`)."""
        needs = self.needs()
        low, high = FAILOVER_NS_MIN // STEP_NS, FAILOVER_NS_MAX // STEP_NS + 1
        while low < high:
            middle = (low + high) // 2
            if middle * STEP_NS <= FAILOVER_NS_MAX and not _covers(derive(middle * STEP_NS), needs):
                low = middle + 1
            else:
                high = middle
        return low * STEP_NS if low * STEP_NS <= FAILOVER_NS_MAX else None


def _covers(timing: Timing, needs: Allowances) -> bool:
    return all(getattr(timing, name) >= getattr(needs, name) for name in Allowances.__slots__)
