"""When a guest goes back to the host that it belongs to.

By default a guest stays where it is: each move is a pause, and one host is as good as the other.  Where one
of them is its home, by the operator's word, the other one, on which it runs after a take-over or a move, has
it go back::

    runs here, the home in sync and ready ──▶ for so long without a break ──▶ a planned move
        ▲                                         │ a break: from the start
        └─────────────────────────────────────────┘

A home that is lost again each time would make a guest go to and fro for ever, and so would two hosts that
name each other.  So every attempt, whatever becomes of it, doubles what the next one waits for, up to
`HOME_NS_MAX`; it begins anew once the guest was not moved for twice that.

Pure: times are integer nanoseconds of one clock that never falls.
"""

from __future__ import annotations

from .units import NS_PER_S

__all__ = ["HOME_NS_MAX", "Homing"]

HOME_NS_MAX = 3600 * NS_PER_S
"""A home that was lost again and again is trusted again after an hour in sync, where less was asked for."""


class Homing:
    """Of a guest that is not at home while it runs here."""

    def __init__(self, after_ns: int) -> None:
        """``after_ns``: how long the home must have been in sync and ready, positive."""
        self._first_ns = after_ns
        self._limit_ns = max(after_ns, HOME_NS_MAX)
        # Invariant: first_ns <= after_ns <= limit_ns.
        self._after_ns = after_ns
        self._since_ns: int | None = None  # since when it could go; None: it cannot
        self._last_ns: int | None = None  # when it was to go last

    def goes(self, could: bool, now_ns: int) -> bool:
        """Whether it is to be moved now; ``could``: it runs here, and the home is in sync and ready."""
        if not could:
            self._since_ns = None
            return False
        if self._since_ns is None:
            self._since_ns = now_ns
        if self._last_ns is not None and now_ns - self._last_ns > 2 * self._limit_ns:
            self._after_ns, self._last_ns = self._first_ns, None
        if now_ns - self._since_ns < self._after_ns:
            return False
        self._since_ns, self._last_ns = None, now_ns
        self._after_ns = min(2 * self._after_ns, self._limit_ns)
        return True
