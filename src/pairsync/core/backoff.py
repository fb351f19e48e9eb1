"""Exponential back-off with jitter, bounded.

The delay doubles from ``first_ns`` to ``limit_ns``; the jitter draws from its upper half, so that two hosts
that failed together do not retry together, and no retry comes at once.  The random fraction is an argument.
"""

from __future__ import annotations

from pairsync.errors import InternalError

__all__ = ["Backoff", "Recurrence"]


class Backoff:
    """Delays between attempts at one thing."""

    def __init__(self, *, first_ns: int, limit_ns: int) -> None:
        if not 0 < first_ns <= limit_ns:
            raise InternalError(f"back-off from {first_ns} ns to {limit_ns} ns: 0 < first <= limit")
        self._first_ns = first_ns
        self._limit_ns = limit_ns
        # Invariants: first_ns <= ceiling_ns <= limit_ns; failures counts attempts since the last success.
        self._ceiling_ns = first_ns
        self._failures = 0

    @property
    def failures(self) -> int:
        """Attempts that failed in a row."""
        return self._failures

    def failed(self, fraction: float) -> int:
        """An attempt failed: wait so many nanoseconds; ``fraction`` is random in ``[0, 1)``."""
        if not 0 <= fraction < 1:
            raise InternalError(f"the random fraction of a back-off is {fraction}, not in [0, 1)")
        delay_ns = self._ceiling_ns // 2 + int(fraction * (self._ceiling_ns - self._ceiling_ns // 2))
        self._ceiling_ns = min(self._ceiling_ns * 2, self._limit_ns)
        self._failures += 1
        return delay_ns

    def succeeded(self) -> None:
        """An attempt succeeded and lasted: begin from the start next time."""
        self._ceiling_ns = self._first_ns
        self._failures = 0


class Recurrence:
    """Delays for what comes again and again, each time rarer: of one cause as well as of several.

    It begins from the start once nothing has come for ``limit_ns``.
    """

    def __init__(self, *, first_ns: int, limit_ns: int) -> None:
        self._backoff = Backoff(first_ns=first_ns, limit_ns=limit_ns)
        self._limit_ns = limit_ns
        self._until_ns = 0  # when the last delay was over

    def next_ns(self, now_ns: int, fraction: float) -> int:
        """It has come again: the delay in nanoseconds; ``fraction`` as in `Backoff.failed`."""
        if now_ns - self._until_ns > self._limit_ns:
            self._backoff.succeeded()
        delay_ns = self._backoff.failed(fraction)
        self._until_ns = now_ns + delay_ns
        return delay_ns
