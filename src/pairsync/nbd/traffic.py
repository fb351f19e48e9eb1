"""What a server has done so far: counted by its connections, shown in its statistics."""

from __future__ import annotations

__all__ = ["Traffic"]


class Traffic:
    """Totals of a server; only ever grow."""

    __slots__ = ("bytes_read", "bytes_written", "errors", "reads", "requests", "writes")

    def __init__(self) -> None:
        self.requests = 0
        self.reads = 0
        self.writes = 0  # zeroes and trims included
        self.errors = 0  # error replies
        self.bytes_read = 0  # asked for
        self.bytes_written = 0  # payload received
