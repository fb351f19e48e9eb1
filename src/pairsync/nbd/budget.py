"""Bytes in flight over all connections of a server, so that many clients cannot do what one may not.

A connection that finds the budget exhausted takes no more requests until it has nothing in flight itself;
then it may begin one.  So each makes progress by its own replies, and nobody has to be woken by others.
"""

from __future__ import annotations

__all__ = ["Budget"]


class Budget:
    """A counter with a limit: payload of requests in flight, and replies that clients have not taken."""

    __slots__ = ("limit_bytes", "used_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        """Each connection adds what it takes and subtracts it again; 0 when none has anything."""

    @property
    def exhausted(self) -> bool:
        """Whether the limit is reached."""
        return self.used_bytes >= self.limit_bytes
