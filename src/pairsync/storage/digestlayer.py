"""Changes of leaves that are not in the file yet.

A layer holds single leaves in a dict, and wide ranges that became zero (a discard) or doubtful (a failed
write) as bits: a terabyte of either costs next to nothing.  A single leaf is newer than the bit of its block,
and a block has at most one of the two bits.
"""

from __future__ import annotations

from typing import Final

from pairsync.core.dirty import DirtyMap

from .digestfile import UNKNOWN_DIGEST, ZERO_DIGEST

__all__ = ["WIDE_BLOCKS", "Layer"]

WIDE_BLOCKS: Final = 1024
"""Zeroed or doubtful ranges longer than this (4 MiB) are kept as bits, as in ``core.dirty``."""


class Layer:
    """Changes of leaves that are not in the file; ``few`` is newer than the two maps, which are disjoint."""

    __slots__ = ("doubt", "few", "zero")

    def __init__(self, block_count: int) -> None:
        self.few: dict[int, int] = {}
        self.zero = DirtyMap(block_count)
        self.doubt = DirtyMap(block_count)

    def __bool__(self) -> bool:
        return bool(self.few) or self.zero.count > 0 or self.doubt.count > 0

    def put_range(self, start: int, stop: int, digest: int) -> None:
        """The blocks of a wide range become `ZERO_DIGEST` or `UNKNOWN_DIGEST`."""
        few = self.few
        if len(few) > stop - start:
            for block in range(start, stop):
                few.pop(block, None)
        else:
            for block in [block for block in few if start <= block < stop]:
                del few[block]
        put, other = (self.zero, self.doubt) if digest == ZERO_DIGEST else (self.doubt, self.zero)
        put.mark(start, stop)
        other.clear(start, stop)

    def put_layer(self, newer: Layer) -> None:
        """All that ``newer`` says, over what this one says."""
        for digest, ranges in ((ZERO_DIGEST, newer.zero), (UNKNOWN_DIGEST, newer.doubt)):
            for run in ranges.runs():
                self.put_range(run.start, run.stop, digest)
        self.few.update(newer.few)

    def give_up(self) -> None:
        """The single leaves become unknown: a bit each."""
        for block in self.few:
            self.doubt.mark(block, block + 1)
            self.zero.clear(block, block + 1)
        self.few = {}

    def collect(self, start: int, stop: int, into: dict[int, int]) -> None:
        """Put what this layer says of a range over what ``into`` says."""
        for digest, ranges in ((ZERO_DIGEST, self.zero), (UNKNOWN_DIGEST, self.doubt)):
            if ranges.count:
                for run in ranges.runs(start, stop):
                    into.update(dict.fromkeys(range(run.start, run.stop), digest))
        few = self.few
        if few:
            into.update((block, few[block]) for block in range(start, stop) if block in few)
