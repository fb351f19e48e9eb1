"""Simulated time for callbacks, and the running trace of what happened.

`Timers` runs plain functions at virtual instants, in one task; those of one instant run in the order in which
they were asked for.  `Trace` keeps the last lines for people and one digest over all of them.  Only what the
seed decides may enter a line: names, numbers and the virtual time, never bytes that TLS drew at random, never
an ``id()``.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any

import trio
from xxhash import xxh3_64

from pairsync.core.units import NS_PER_S

__all__ = ["TRACE_LINES", "Timers", "Trace"]

TRACE_LINES = 80
"""Lines of the trace that a failure shows."""

LINES_MAX = 2_000_000
"""Lines of a seed that is still sane: fifty times the busiest; more means that something runs in circles."""


class Timers:
    """The queue of what is going to happen; `run` is its task."""

    def __init__(self) -> None:
        self._queue: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = count()
        self._sleep: trio.CancelScope | None = None  # while `run` waits; its deadline is the head's time

    @staticmethod
    def now_ns() -> int:
        """The virtual time."""
        return round(trio.current_time() * NS_PER_S)

    def at(self, when_ns: int, call: Callable[..., None], *arguments: Any) -> None:
        """Call ``call(*arguments)`` at that time, or soon if it is past."""
        heapq.heappush(self._queue, (when_ns, next(self._numbers), call, arguments))
        if self._sleep is not None and when_ns / NS_PER_S < self._sleep.deadline:
            self._sleep.deadline = when_ns / NS_PER_S

    def after(self, delay_ns: int, call: Callable[..., None], *arguments: Any) -> None:
        """Call ``call(*arguments)`` so much later."""
        self.at(self.now_ns() + delay_ns, call, *arguments)

    async def run(self) -> None:
        """Serve the queue until cancelled."""
        queue = self._queue
        while True:
            while queue and queue[0][0] / NS_PER_S <= trio.current_time():
                _, _, call, arguments = heapq.heappop(queue)
                call(*arguments)
            deadline = queue[0][0] / NS_PER_S if queue else math.inf
            with trio.CancelScope(deadline=deadline) as self._sleep:
                await trio.sleep_forever()
            self._sleep = None


class Trace:
    """What happened: the last lines, and a digest of all."""

    def __init__(self, too_long: Callable[[], None]) -> None:
        self._recent: deque[str] = deque(maxlen=TRACE_LINES)
        self._digest = xxh3_64()
        self._too_long = too_long
        self.echo: Callable[[str], None] | None = None
        """Told every line at once, for whoever replays a seed."""
        self.lines = 0

    def note(self, who: str, what: str, detail: object = "") -> None:
        """One line."""
        line = f"{trio.current_time():13.6f} s  {who:<8} {what:<14} {detail}".rstrip()
        self._digest.update(line.encode())
        self._recent.append(line)
        self.lines += 1
        if self.echo is not None:
            self.echo(line)
        if self.lines > LINES_MAX:
            self._too_long()

    def aside(self, who: str, text: str) -> None:
        """A line for people only, which is not part of what has to be the same every time."""
        line = f"{trio.current_time():13.6f} s  {who:<8} # {text}"
        self._recent.append(line)
        if self.echo is not None:
            self.echo(line)

    def recent(self) -> list[str]:
        """The last lines, oldest first."""
        return list(self._recent)

    @property
    def digest(self) -> int:
        """Of all lines."""
        return self._digest.intdigest()
