"""Liveness of one path: heartbeats, silence, round-trip time.

A path is watched by what arrives on its control connection.  Pings leave at a fixed interval; anything that
arrives proves life.  The verdict is three-valued: ``ALIVE``; ``SUSPECT`` once half the silence limit has
passed, which changes nothing but what is shown; ``DEAD`` after the limit.

**The observer may be the one who slept.**  When this process did not run (a stopped machine, a suspended
guest, a stalled disk under the event loop), its deadlines fire before it has looked at what arrived in the
meantime.  So a deadline that is noticed later than `STALL_INTERVALS` heartbeats gives the path one
interval to be heard before it is judged; once, so that it cannot go on for ever.

Inputs: arrivals, answers and the time, in integer nanoseconds of one monotonic clock.
"""

from __future__ import annotations

import enum
from collections import deque

from pairsync.errors import InternalError

__all__ = ["PINGS_OPEN_MAX", "STALL_INTERVALS", "PathMonitor", "Verdict"]

PINGS_OPEN_MAX = 64
"""Unanswered pings that are remembered for the round-trip time; older ones are forgotten."""

STALL_INTERVALS = 1
"""Heartbeat intervals by which a deadline may be overrun before the observer suspects itself."""

_RTT_WEIGHT_SHIFT = 3  # RFC 6298 section 2: a new sample counts one eighth


class Verdict(enum.Enum):
    """What the silence on a path says."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"


class PathMonitor:
    """Decides when to ping, and whether the path is alive."""

    def __init__(self, *, interval_ns: int, silence_ns: int, now_ns: int) -> None:
        if not 0 < interval_ns * 2 <= silence_ns:
            raise InternalError(
                f"silence limit of {silence_ns} ns is less than two heartbeat intervals of {interval_ns} ns"
            )
        self._interval_ns = interval_ns
        self._silence_ns = silence_ns
        # Invariants: heard_ns <= the last time given; next_ping_ns is when the next ping is due; open pings
        # are (number, sent_ns), oldest first, numbers rising; grace_until_ns > 0 while the path is given
        # the interval that a stalled observer owes it.
        self._heard_ns = now_ns
        self._next_ping_ns = now_ns
        self._ping_number = 0
        self._open: deque[tuple[int, int]] = deque(maxlen=PINGS_OPEN_MAX)
        self._grace_until_ns = 0
        self._watched_ns = now_ns
        self._rtt_ns: int | None = None
        self._rtt_min_ns: int | None = None
        self._rtt_peak_ns: int | None = None  # since it was taken

    @property
    def rtt_ns(self) -> int | None:
        """Smoothed round-trip time; ``None`` before the first answer."""
        return self._rtt_ns

    @property
    def rtt_min_ns(self) -> int | None:
        """Smallest round-trip time seen."""
        return self._rtt_min_ns

    def take_rtt_peak_ns(self) -> int | None:
        """Largest round-trip time since the last call; ``None`` if no ping was answered since."""
        peak_ns, self._rtt_peak_ns = self._rtt_peak_ns, None
        return peak_ns

    def silence_ns(self, now_ns: int) -> int:
        """How long nothing has been heard."""
        return max(0, now_ns - self._heard_ns)

    def heard(self, now_ns: int) -> None:
        """Something arrived."""
        self._heard_ns = max(self._heard_ns, now_ns)
        self._grace_until_ns = 0

    @property
    def next_ping_ns(self) -> int:
        """When the next ping should leave; the first at once."""
        return self._next_ping_ns

    def ping(self, now_ns: int) -> int:
        """The number of the ping that leaves now.  Pings that were missed are not made up for."""
        self._ping_number += 1
        self._open.append((self._ping_number, now_ns))
        self._next_ping_ns = now_ns + self._interval_ns
        return self._ping_number

    def pong(self, number: int, now_ns: int) -> None:
        """The ping of that number was answered; one that is unknown or answered already tells nothing."""
        self.heard(now_ns)
        while self._open and self._open[0][0] < number:
            self._open.popleft()
        if not self._open or self._open[0][0] != number:
            return
        sample_ns = max(0, now_ns - self._open.popleft()[1])
        self._rtt_peak_ns = max(sample_ns, self._rtt_peak_ns or 0)
        if self._rtt_ns is None:
            self._rtt_ns = sample_ns
        else:
            self._rtt_ns += (sample_ns - self._rtt_ns) >> _RTT_WEIGHT_SHIFT
        self._rtt_min_ns = sample_ns if self._rtt_min_ns is None else min(self._rtt_min_ns, sample_ns)

    def verdict(self, now_ns: int) -> Verdict:
        """Judge the path; to be called at every `next_deadline_ns`, and at least once an interval.

        A call that comes later than `STALL_INTERVALS` behind the interval in which it was due is taken for
        a stall of the observer.
        """
        watched_ns, self._watched_ns = self._watched_ns, now_ns
        silence_ns = self.silence_ns(now_ns)
        if silence_ns < self._silence_ns:
            return Verdict.SUSPECT if silence_ns * 2 >= self._silence_ns else Verdict.ALIVE
        if self._grace_until_ns:
            return Verdict.DEAD if now_ns >= self._grace_until_ns else Verdict.SUSPECT
        if now_ns - watched_ns > self._interval_ns * (1 + STALL_INTERVALS):
            self._grace_until_ns = now_ns + self._interval_ns
            return Verdict.SUSPECT
        return Verdict.DEAD

    def next_deadline_ns(self) -> int:
        """When `verdict` may say ``DEAD`` if nothing is heard until then."""
        return self._grace_until_ns or self._heard_ns + self._silence_ns
