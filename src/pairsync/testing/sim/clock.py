"""Simulated time: an event queue over integer nanoseconds, and the running trace of what happened.

Nothing here knows a real clock.  Events of the same instant run in the order in which they were asked for,
so the order is a function of the seed alone.  The trace keeps the last lines for people and one running hash
over all of them, made of integers only, so that it is the same under every ``PYTHONHASHSEED``.
"""

from __future__ import annotations

import heapq
import zlib
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any

from pairsync.core.units import NS_PER_S

__all__ = ["TRACE_LINES", "Clock", "Trace"]

TRACE_LINES = 60
"""Lines of the trace that a failure shows: the last few milliseconds of a busy pair."""

_MASK = (1 << 64) - 1


class Clock:
    """The queue of what is going to happen."""

    __slots__ = ("_numbers", "_queue", "events", "now")

    def __init__(self) -> None:
        self.now = 0
        self.events = 0  # run so far
        self._queue: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = count()

    def at(self, when_ns: int, run: Callable[..., None], *arguments: Any) -> None:
        """Call ``run(*arguments)`` at that time, or now if it is past."""
        heapq.heappush(self._queue, (max(when_ns, self.now), next(self._numbers), run, arguments))

    def after(self, delay_ns: int, run: Callable[..., None], *arguments: Any) -> None:
        """Call ``run(*arguments)`` so much later."""
        heapq.heappush(self._queue, (self.now + delay_ns, next(self._numbers), run, arguments))

    def run_until(self, until_ns: int, *, stop: Callable[[], bool] | None = None) -> bool:
        """Run all events up to that time, or until ``stop()``, which is asked after every event."""
        queue = self._queue
        pop = heapq.heappop
        while queue and queue[0][0] <= until_ns:
            when, _, run, arguments = pop(queue)
            self.now = when
            self.events += 1
            run(*arguments)
            if stop is not None and stop():
                return True
        self.now = max(self.now, until_ns)
        return False


class Trace:
    """What happened: the last lines, and a hash of all."""

    __slots__ = ("_clock", "_codes", "_recent", "digest", "lines")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._codes: dict[str, int] = {}  # of words, by content, not by the salted hash of strings
        self._recent: deque[tuple[int, str, str, int, object]] = deque(maxlen=TRACE_LINES)
        self.digest = 0
        self.lines = 0

    def note(self, who: str, what: str, number: int = 0, detail: object = "") -> None:
        """One line; ``detail`` is rendered only if somebody looks (it must not change meanwhile)."""
        codes = self._codes
        code = codes.get(what)
        if code is None:
            code = codes[what] = zlib.crc32(what.encode())
        now = self._clock.now
        # Integers and tuples of integers hash to the same value in every process.
        self.digest = hash((self.digest, now, code, number)) & _MASK
        self.lines += 1
        self._recent.append((now, who, what, number, detail))

    def recent(self) -> list[str]:
        """The last lines, oldest first."""
        return [
            f"{now / NS_PER_S:13.6f} s  {who:<8} {what:<18} {number:>8}  {_render(detail)}".rstrip()
            for now, who, what, number, detail in self._recent
        ]


def _render(detail: object) -> str:
    if isinstance(detail, str):
        return detail
    describe = getattr(detail, "describe", None)
    if describe is not None:
        return str(describe())
    if isinstance(detail, tuple) and not hasattr(detail, "_fields"):
        return " ".join(_render(each) for each in detail)
    return str(detail)[:160]
