"""Bytes in flight over all connections of a server, so that many clients cannot do what one may not.

A connection that finds the budget exhausted takes no more requests until it has nothing in flight itself;
then it may begin one.  So each makes progress by its own replies, and nobody has to be woken by others.  Many
connections that begin one at once are many times the largest request, though, so there is a second, hard
limit: above it nobody begins anything until the sum has fallen.  It does fall: the export ends what it has,
and clients that stop in the middle are cut off (`stall`).
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Budget"]


class Budget:
    """A counter with limits: payload of requests that arrive or are in flight, and replies not taken."""

    __slots__ = ("hard_limit_bytes", "limit_bytes", "used_bytes", "waiting")

    def __init__(self, limit_bytes: int, hard_limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.hard_limit_bytes = hard_limit_bytes
        self.used_bytes = 0
        """Each connection adds what it takes and subtracts it again; 0 when none has anything."""
        self.waiting: dict[object, Callable[[], None]] = {}
        """Connections that wait until it is no longer overdrawn, and what wakes them; then whoever subtracts
        calls `notice`."""

    @property
    def exhausted(self) -> bool:
        """Whether the limit is reached."""
        return self.used_bytes >= self.limit_bytes

    @property
    def overdrawn(self) -> bool:
        """Whether the hard limit is reached."""
        return self.used_bytes >= self.hard_limit_bytes

    def notice(self) -> None:
        """Something was subtracted: wake those who wait, the longest first, unless it is still overdrawn."""
        if not self.overdrawn:
            waiting, self.waiting = self.waiting, {}
            for wake in waiting.values():
                wake()
