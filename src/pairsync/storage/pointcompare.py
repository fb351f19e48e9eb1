"""What has changed since a point: its digests beside those that the table has now.

Both are sparse, and what is a hole in both is passed over in one step, however large.  A block counts as
changed if its digests differ, or if either of them is not known.
"""

from __future__ import annotations

from typing import Final

from pairsync.core.units import Extent

from .digestfile import LEAF_BYTES, LEAVES_PER_NODE, PAGE_BYTES, UNKNOWN_DIGEST, unpack_leaves
from .digeststate import TableState
from .pointfile import PointFile

__all__ = ["ChangedRuns", "changed_runs"]

_PIECE_PAGES: Final = 64
"""Pages compared at a time."""

_PAGE_SHIFT: Final = LEAVES_PER_NODE.bit_length() - 1
_UNKNOWN_LEAF: Final = UNKNOWN_DIGEST.to_bytes(LEAF_BYTES, "little")


class ChangedRuns:
    """Runs of changed blocks, ascending and apart, among the blocks up to ``stop``."""

    def __init__(self, first: int) -> None:
        self.runs: list[Extent] = []
        self.stop = first

    def _add(self, start: int, stop: int) -> None:
        if self.runs and self.runs[-1].stop == start:
            self.runs[-1] = Extent(self.runs[-1].start, stop)
        else:
            self.runs.append(Extent(start, stop))

    def changed(self, stop: int) -> None:
        """All blocks up to ``stop`` are."""
        if stop > self.stop:
            self._add(self.stop, stop)
            self.stop = stop

    def compare(self, mine: bytearray, theirs: bytearray) -> None:
        """The next blocks have these digests, now and then."""
        first = self.stop
        self.stop += len(mine) // LEAF_BYTES
        if mine == theirs and mine.rfind(_UNKNOWN_LEAF) < 0:  # no false "no", see `Walk`
            return
        for at in range(0, len(mine), PAGE_BYTES):
            one, other = mine[at : at + PAGE_BYTES], theirs[at : at + PAGE_BYTES]
            if one == other and one.rfind(_UNKNOWN_LEAF) < 0:
                continue
            for block, (now, then) in enumerate(
                zip(unpack_leaves(one), unpack_leaves(other), strict=True), first + at // LEAF_BYTES
            ):
                if now != then or now == UNKNOWN_DIGEST:
                    self._add(block, block + 1)


def changed_runs(
    state: TableState, point: PointFile, first: int, stop: int, *, runs_max: int, pages_max: int
) -> ChangedRuns:
    """The blocks of a range that have changed since the point, with the table at rest.

    Ends early, after one piece at least, once it has ``runs_max`` runs (some more are possible) or has
    compared ``pages_max`` pages of digests.
    """
    found = ChangedRuns(first)
    known = min(point.known_below(state.size_bytes), stop)
    pages_left = pages_max
    while found.stop < known and len(found.runs) < runs_max and pages_left > 0:
        page, limit = found.stop >> _PAGE_SHIFT, ((known - 1) >> _PAGE_SHIFT) + 1
        quiet = _quiet_pages(state, point, page, limit)
        pages_left -= 1
        if quiet:
            found.stop = min((page + quiet) << _PAGE_SHIFT, known)
            continue
        limit = min(page + _PIECE_PAGES, limit)
        pages = max(state.leaves.data_pages(page, limit), point.data_pages(page, limit))
        end = min((page + pages) << _PAGE_SHIFT, known)
        pages_left -= pages - 1
        found.compare(state.read(found.stop, end), point.read(found.stop, end))
    if found.stop >= known:
        found.changed(stop)
    return found


def _quiet_pages(state: TableState, point: PointFile, page: int, stop: int) -> int:
    """How many pages from ``page`` on are all zeroes, now and then, as far as that is cheaply known."""
    end = state.known_pages_end(page, stop)
    if end == page:
        return 0
    end = page + state.leaves.zero_pages(page, end)
    return point.zero_pages(page, end) if end > page else 0
