"""Changes of leaves that are not in the file yet.

A layer holds single leaves in a dict, and wide ranges that became zero (a discard) or doubtful (a failed
write) as bits: a terabyte of either costs next to nothing.  A single leaf is newer than the bit of its block,
and a block has at most one of the two bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pairsync.core.dirty import DirtyMap

from .digestfile import LEAVES_PER_NODE, UNKNOWN_DIGEST, ZERO_DIGEST

__all__ = [
    "CROWDED",
    "LEAVING_MAX",
    "WIDE_BLOCKS",
    "Layer",
    "pending_bounds",
]

_PENDING_MAX: Final = 16_384
"""Leaves that are pending before they go to the file: 64 MiB of scattered writes, 2 MiB of memory."""
_MEMORY_PENDING_MAX: Final = 8192
_MEMORY_PAGES_MAX: Final = 512
"""The same where the file lies in memory, and pages of the table that they lie in: what counts is two system
calls a page, 10 us, or one of 3 us for a leaf that is alone.  So 2 to 7 ms at a time; with half as many pages
writes all over 1 GiB went out leaf by leaf, 5 us each instead of 1.7."""
LEAVING_MAX: Final = 65_536
"""Leaves kept that cannot be written (a full file system), 8 MiB of memory; beyond they become unknown."""
CROWDED: Final = 4
"""So many times the bound of pending leaves are taken while the file is being written; then it waits."""

WIDE_BLOCKS: Final = 1024
"""Zeroed or doubtful ranges longer than this (4 MiB) are kept as bits, as in ``core.dirty``."""

_PAGE_SHIFT: Final = LEAVES_PER_NODE.bit_length() - 1


def pending_bounds(*, in_memory: bool) -> tuple[int, int]:
    """Leaves that are pending, and pages of the table that they lie in, before they go to the file.

    Less where the file lies in memory: the event loop stands still meanwhile.
    """
    return (_MEMORY_PENDING_MAX, _MEMORY_PAGES_MAX) if in_memory else (_PENDING_MAX, _PENDING_MAX)


class Layer:
    """Changes of leaves that are not in the file; ``few`` is newer than the two maps, which are disjoint."""

    __slots__ = ("doubt", "few", "pages", "zero")

    def __init__(self, block_count: int) -> None:
        self.few: dict[int, int] = {}
        self.pages: set[int] = set()  # of the table, that leaves which were `put` lie in
        self.zero = DirtyMap(block_count)
        self.doubt = DirtyMap(block_count)

    def __bool__(self) -> bool:
        return bool(self.few) or self.zero.count > 0 or self.doubt.count > 0

    def put(self, few: Mapping[int, int]) -> None:
        """Single leaves: block to digest."""
        self.few.update(few)
        pages = self.pages
        for block in few:
            pages.add(block >> _PAGE_SHIFT)

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
