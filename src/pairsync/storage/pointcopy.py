"""Making a point: a copy of the digest table as it is at one moment, while it goes on being written.

The moment is when the copy is begun, in the data lane, between two writes.  From then on `PointCopy.step`
copies the table piece by piece, and who changes a page of it that was not copied yet copies that page
first (`PointCopy.before`, called by ``digestfile.LeafFile``).  So no write waits for more than a piece, and
the copy is of the moment whatever the guest does meanwhile.

Both belong to whoever holds the table's write lock.  A copy that fails does not fail the table's own write.
"""

from __future__ import annotations

import errno
from itertools import islice
from typing import Final

from pairsync.core.dirty import DirtyMap
from pairsync.errors import BackendError

from .digestfile import LEAVES_PER_NODE
from .digeststate import TableState, mask_unknown
from .directory import GrowingFile
from .pointfile import PointFile

__all__ = ["PIECE_PAGES", "PointCopy", "known_below"]

PIECE_PAGES: Final = 64
"""Pages of leaves copied at a time, 256 KiB: 128 MiB of volume, 0.2 ms from the page cache."""

_STEP_PIECES: Final = 64
_STEP_PAGES: Final = 256
"""Pieces, holes included, and pages of one step, 2 ms: who waits for the table's lock waits no longer."""

_RUNS_LOOKED_AT: Final = 64
"""Runs of unknown blocks that `known_below` looks at: it works between two writes."""

_PAGE_SHIFT: Final = LEAVES_PER_NODE.bit_length() - 1


def known_below(unknown: DirtyMap) -> int:
    """Where the last run of unknown blocks begins, if it reaches the volume's end; else that end.

    Of a table that is being made anew that is nearly all of it: it is not copied as leaves.  It is looked for
    among the first runs only, where it is after a crash and while a table is filled.
    """
    for run in islice(unknown.runs(), _RUNS_LOOKED_AT):
        if run.stop == unknown.block_count:
            return run.start
    return unknown.block_count


class PointCopy:
    """A copy that is under way; see the module."""

    def __init__(self, state: TableState, point: PointFile, file: GrowingFile) -> None:
        """All that was noted is in the table's file."""
        self.point = point
        self.file = file
        self.failed: BackendError | None = None  # why it cannot be completed
        self.unflushed_pages = 0
        """Written since whoever counts has flushed the file."""
        self._leaves = state.leaves
        self._unknown = state.unknown.copy()
        self._page_count = -(-point.header.known_below // LEAVES_PER_NODE)
        self._next = 0  # pages below it are copied
        self._ahead = DirtyMap(max(self._page_count, 1))  # others that are
        state.leaves.before = self.before

    @property
    def copied(self) -> bool:
        """Whether nothing is left to be copied."""
        return self._next >= self._page_count

    def give_up(self) -> None:
        """It is not needed any more."""
        self._fail(BackendError(f"{self.file.path}: given up", errno.ECANCELED))

    def _fail(self, error: BackendError) -> None:
        self.failed = self.failed or error
        self._stop()

    def _stop(self) -> None:
        """The table may change without telling."""
        if self._leaves.before == self.before:
            self._leaves.before = None

    def before(self, page: int, stop: int) -> None:
        """These pages of the table are about to change."""
        at, stop = max(page, self._next), min(stop, self._page_count)
        try:
            while at < stop:
                done = self._ahead.next_run(at, stop)
                end = stop if done is None else done.start
                while at < end:
                    at = self._piece(at, end)
                at = stop if done is None else done.stop
        except BackendError as error:
            self._fail(error)
            return
        start = max(page, self._next)
        if start < stop:
            self._ahead.mark(start, stop)

    def step(self) -> bool:
        """Copy some more; whether there is still more to copy.  `BackendError` where that fails."""
        if self.failed is not None:
            raise self.failed
        enough = self.unflushed_pages + _STEP_PAGES
        for _ in range(_STEP_PIECES):
            if self.copied or self.unflushed_pages >= enough:
                break
            done = self._ahead.next_run(self._next, self._page_count)
            if done is not None and done.start == self._next:
                self._next = done.stop
                continue
            self._next = self._piece(self._next, self._page_count if done is None else done.start)
        if not self.copied:
            return True
        self._stop()
        return False

    def _piece(self, page: int, stop: int) -> int:
        """Copy some pages from ``page`` on, or pass over a hole; where it ends."""
        unknown = self._unknown.next_run(page << _PAGE_SHIFT)
        end = stop if unknown is None else min(unknown.start >> _PAGE_SHIFT, stop)
        quiet = self._leaves.zero_pages(page, end) if page < end else 0
        if quiet:
            return page + quiet
        end = page + self._leaves.data_pages(page, min(page + PIECE_PAGES, stop))
        raw = self._leaves.read(page << _PAGE_SHIFT, end << _PAGE_SHIFT)
        first, last = page << _PAGE_SHIFT, min(end << _PAGE_SHIFT, self._unknown.block_count)
        mask_unknown(raw, self._unknown, first, last)
        self.point.write_pages(page, raw)
        self.unflushed_pages += end - page
        return end
