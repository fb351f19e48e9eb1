"""Wakeful: whether this process has stood still of late.

A process that is stopped, or whose machine is suspended, does not read its sockets, and clients do not wait
for ever: they hang up, and ask elsewhere.  What they had sent lies there, and looks fresh when it is read at
last.  So whoever reads it asks here whether it may be old: a loop that looks at the clock all the time knows.
CLOCK_BOOTTIME runs on while a machine is suspended.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from pairsync.core.units import NS_PER_MS, NS_PER_S

__all__ = ["STILL_NS", "WAKING_NS", "Wakeful"]

STILL_NS: Final = 300 * NS_PER_MS
"""Between two looks, from which on it has stood still: three times what is between them in a guest."""

WAKING_NS: Final = 60 * NS_PER_S
"""After it went on: so long at most until all is read that lay there, if there is no room for it at once."""


def _boottime_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Wakeful:
    """See the module; `look` is to be called all the time."""

    def __init__(self, now_ns: Callable[[], int] = _boottime_ns) -> None:
        self._now_ns = now_ns
        self._looked_ns = now_ns()
        self._wakes_until_ns = 0

    def look(self) -> None:
        """It runs."""
        now_ns = self._now_ns()
        if now_ns - self._looked_ns > STILL_NS:
            self._wakes_until_ns = now_ns + WAKING_NS
        self._looked_ns = now_ns

    @property
    def stood_still(self) -> bool:
        """Whether what is read now may have lain there while nobody looked."""
        now_ns = self._now_ns()
        return now_ns < self._wakes_until_ns or now_ns - self._looked_ns > STILL_NS
