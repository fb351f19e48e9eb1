"""Counts and logs what a link refuses, without letting strangers fill the log."""

from __future__ import annotations

import logging
from collections.abc import Callable

from pairsync.core.units import NS_PER_S

__all__ = ["LOG_BURST", "Refusals"]

LOG_BURST = 20
"""Lines a second about refusals, of all kinds; what is over that is counted and told with the next line."""

_log = logging.getLogger("pairsync.link")


class Refusals:
    """Refusals by kind (a small fixed set of words, never what a stranger sent)."""

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self._now_ns = now_ns
        self._counts: dict[str, int] = {}
        # Invariants: lines <= LOG_BURST were logged since second_ns; suppressed were not.
        self._second_ns = 0
        self._lines = 0
        self._suppressed = 0

    def counts(self) -> dict[str, int]:
        """How often each kind was refused."""
        return dict(self._counts)

    def count(self, kind: str) -> None:
        """Something was refused, and whoever did it has told so."""
        self._counts[kind] = self._counts.get(kind, 0) + 1

    def refuse(self, kind: str, detail: str) -> None:
        """Something was refused; ``detail`` names who and why."""
        self.count(kind)
        now_ns = self._now_ns()
        if now_ns - self._second_ns >= NS_PER_S:
            self._second_ns, self._lines = now_ns, 0
        if self._lines >= LOG_BURST:
            self._suppressed += 1
            return
        self._lines += 1
        if self._suppressed:
            _log.warning("%d refusals were not logged", self._suppressed)
            self._suppressed = 0
        _log.warning("refused (%s): %s", kind, detail)
