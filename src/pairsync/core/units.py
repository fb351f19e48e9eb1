"""Units and the few value types that every room shares.

Index, count and bytes are different things and are named so: ``block`` is an index, ``block_count`` a
count, ``*_bytes`` bytes, ``*_ns`` integer nanoseconds.  Ranges are half open.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

__all__ = [
    "BLOCK_BYTES",
    "GIB",
    "KIB",
    "MIB",
    "NS_PER_MS",
    "NS_PER_S",
    "NS_PER_US",
    "TIB",
    "VOLUME_BYTES_MAX",
    "Extent",
    "block_count_of",
    "bounded_runs",
    "extent_of",
]

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

NS_PER_US = 1_000
NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000

BLOCK_BYTES = 4 * KIB
"""Tracking granularity: one bit of a dirty map.  Fixed in this format version (DESIGN section 1)."""

VOLUME_BYTES_MAX = (1 << 40) * BLOCK_BYTES
"""The largest volume, 4 PiB: block numbers of 40 bits, as the journal's records have them."""


class Extent(NamedTuple):
    """A half-open run of blocks: ``start <= block < stop``."""

    start: int
    stop: int

    @property
    def block_count(self) -> int:
        """How many blocks the extent holds."""
        return self.stop - self.start

    def intersects(self, other: Extent) -> bool:
        """Whether the two share a block."""
        return self.start < other.stop and other.start < self.stop

    def describe(self) -> str:
        """Terse form for logs and transcripts, such as ``3..7``."""
        return f"{self.start}..{self.stop}"


def extent_of(offset_bytes: int, length_bytes: int) -> Extent:
    """The blocks that the byte range touches, rounded outwards; an empty range touches none."""
    start = offset_bytes // BLOCK_BYTES
    if length_bytes <= 0:
        return Extent(start, start)
    return Extent(start, (offset_bytes + length_bytes - 1) // BLOCK_BYTES + 1)


def block_count_of(size_bytes: int) -> int:
    """Blocks of a volume of that size; the last one may be partial."""
    return -(-size_bytes // BLOCK_BYTES)


def bounded_runs(runs: Iterable[tuple[int, int]], runs_max: int) -> list[Extent]:
    """At most ``runs_max`` runs that cover all of ``runs``, which ascend; narrow gaps are filled first."""
    joined: list[Extent] = []
    gap_blocks = 0  # runs that are no farther apart than that are one
    for run in runs:
        _join(joined, run, gap_blocks)
        while len(joined) > runs_max:
            gap_blocks = 2 * gap_blocks or 1
            before, joined = joined, []
            for each in before:
                _join(joined, each, gap_blocks)
    return joined


def _join(runs: list[Extent], run: tuple[int, int], gap_blocks: int) -> None:
    start, stop = run
    if runs and start - runs[-1].stop <= gap_blocks:
        runs[-1] = Extent(runs[-1].start, max(stop, runs[-1].stop))
    else:
        runs.append(Extent(start, stop))
