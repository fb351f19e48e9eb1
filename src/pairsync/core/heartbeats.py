"""Heartbeats that were sent: their numbers, and when; a lease counts from the sending."""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["BEATS_OPEN_MAX", "Heartbeats"]

BEATS_OPEN_MAX = 64
"""Heartbeats whose time of sending is remembered; an answer to an older one gives no lease anyhow."""


class Heartbeats:
    """See the module; times are integer nanoseconds of one clock."""

    def __init__(self, first_number: int) -> None:
        """``first_number``: random, so that no number is one of an earlier life."""
        self._number = first_number
        self._sent: OrderedDict[int, int] = OrderedDict()  # by number, oldest first; at most BEATS_OPEN_MAX

    def __len__(self) -> int:
        return len(self._sent)

    def sends(self, now_ns: int) -> int:
        """One is sent now: its number."""
        self._number += 1
        self._sent[self._number] = now_ns
        if len(self._sent) > BEATS_OPEN_MAX:
            self._sent.popitem(last=False)
        return self._number

    def sent_ns(self, number: int) -> int | None:
        """When that one was sent; None for one that is too old, or was never sent."""
        return self._sent.get(number)
