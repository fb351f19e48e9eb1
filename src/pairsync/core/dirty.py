"""Dirty maps: which blocks of a volume the peer is not known to hold.

Two shapes for two jobs:

* `DirtyMap` holds any number of blocks: one bit a block, in pages of 32,768 bits (4 KiB of bits, 128 MiB of
  volume) that exist only while they hold a set bit.  A clean map of 1 TiB costs nothing, one with a bit in
  every page 32 MiB; pages that were marked as a whole (a discard, a full resync) are all the same object.
  The pages are the pages of the bitmap on disk, little endian bit order (the layout of KVM's dirty log), so
  saving and loading copy no bit twice.
* `IntentSet` holds the few thousand blocks of one write-intent generation.  A page map would cost 4 KiB for
  every scattered block; a set of integers costs 60 bytes.  Wide extents (a discard of a terabyte) go to
  a `DirtyMap` at its side, where they fill whole pages.

``core.dirtyview`` shows several of either as one set without a copy of them.

Both shapes count what was *newly* marked, because that is what costs: an intent for a block that is marked
already is not written again.  Ranges outside the volume are the caller's mistake and raise `InternalError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bitarray import bitarray, frozenbitarray

from pairsync.errors import InternalError

from .units import Extent

__all__ = [
    "PAGE_BLOCKS",
    "PAGE_BYTES",
    "PAGE_MASK",
    "PAGE_SHIFT",
    "DirtyMap",
    "IntentSet",
    "describe_runs",
]

PAGE_BYTES = 4096
"""Bytes of one bitmap page, in memory and on disk: one sector group that a disk writes at once."""

PAGE_BLOCKS = PAGE_BYTES * 8
"""Blocks a page covers: 128 MiB of volume."""

PAGE_SHIFT = PAGE_BLOCKS.bit_length() - 1
PAGE_MASK = PAGE_BLOCKS - 1

_FULL = frozenbitarray([1] * PAGE_BLOCKS, endian="little")
"""The page of all maps that has every bit; changing one bit of it raises, see `DirtyMap._own`."""
_FULL_BYTES = _FULL.tobytes()

INTENT_WIDE_BLOCKS = 1024
"""Extents longer than this (4 MiB) are kept as bits: as integers they would cost more than a page."""


class DirtyMap:
    """A set of block numbers below ``block_count``."""

    __slots__ = ("_pages", "_present", "block_count", "count")

    def __init__(self, block_count: int) -> None:
        if block_count < 0:
            raise InternalError(f"a volume of {block_count} blocks")
        self.block_count = block_count
        # page number -> bits; every page holds at least one set bit; a full one may be the shared `_FULL`
        self._pages: dict[int, bitarray] = {}
        self._present = bitarray(-(-block_count // PAGE_BLOCKS))  # one bit a page that is in `_pages`
        self.count = 0
        """How many blocks are marked: the set bits in all pages; for others to read only."""

    def __bool__(self) -> bool:
        return self.count > 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DirtyMap):
            return NotImplemented
        return self.block_count == other.block_count and self._pages == other._pages

    __hash__ = None  # type: ignore[assignment]  # mutable

    def _check(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.block_count:
            raise InternalError(f"blocks {start}..{stop} of a volume of {self.block_count}")

    def grow(self, block_count: int) -> None:
        """The volume has that many blocks now; those that were added are not marked."""
        if block_count < self.block_count:
            raise InternalError(f"a volume of {self.block_count} blocks cannot shrink to {block_count}")
        self._present.extend(bitarray([0]) * (-(-block_count // PAGE_BLOCKS) - len(self._present)))
        self.block_count = block_count

    def mark(self, start: int, stop: int) -> int:
        """Mark ``start <= block < stop``; how many of them were not marked before."""
        self._check(start, stop)
        added = 0
        while start < stop:
            number = start >> PAGE_SHIFT
            low = start & PAGE_MASK
            high = min(stop - (number << PAGE_SHIFT), PAGE_BLOCKS)
            page = self._pages.get(number)
            if page is None:
                page = self._pages[number] = bitarray(PAGE_BLOCKS, endian="little")
                self._present[number] = 1
            if high - low == PAGE_BLOCKS:
                added += page.count(0)
                self._pages[number] = _FULL
            elif page is _FULL:
                pass
            elif high - low == 1:
                if not page[low]:
                    page[low] = 1
                    added += 1
            else:
                added += page.count(0, low, high)
                page[low:high] = 1
            start = (number << PAGE_SHIFT) + high
        self.count += added
        return added

    def clear(self, start: int, stop: int) -> int:
        """Forget ``start <= block < stop``; how many of them were marked."""
        self._check(start, stop)
        removed = 0
        while start < stop:
            number = start >> PAGE_SHIFT
            high = min(stop - (number << PAGE_SHIFT), PAGE_BLOCKS)
            page = self._pages.get(number)
            if page is not None:
                low = start & PAGE_MASK
                here = page.count(1, low, high)
                if here:
                    removed += here
                    if high - low < PAGE_BLOCKS:
                        page = self._own(number)
                        page[low:high] = 0
                    if high - low == PAGE_BLOCKS or not page.any():
                        del self._pages[number]
                        self._present[number] = 0
            start = (number << PAGE_SHIFT) + high
        self.count -= removed
        return removed

    def _own(self, number: int) -> bitarray:
        """The page, to be changed in place."""
        page = self._pages[number]
        if page is _FULL:
            page = self._pages[number] = bitarray(_FULL)
        return page

    def __contains__(self, block: int) -> bool:
        page = self._pages.get(block >> PAGE_SHIFT)
        return page is not None and bool(page[block & PAGE_MASK])

    def intersects(self, start: int, stop: int) -> bool:
        """Whether any block of the range is marked."""
        return bool(self.count) and self.next_run(start, stop) is not None

    def merge(self, other: DirtyMap) -> None:
        """Mark all that ``other`` marks."""
        if other.block_count > self.block_count:
            raise InternalError("merging the map of a larger volume")
        for number, bits in other._pages.items():
            mine = self._pages.get(number)
            if mine is None:
                self._pages[number] = bits if bits is _FULL else bits.copy()
                self._present[number] = 1
                self.count += bits.count()
            elif bits is _FULL:
                self.count += mine.count(0)
                self._pages[number] = _FULL
            elif mine is not _FULL:
                before = mine.count()
                mine |= bits
                self.count += mine.count() - before

    def take(self) -> DirtyMap:
        """Swap out: return all that is marked as a map of its own and leave this one empty."""
        taken = DirtyMap(self.block_count)
        taken._pages, self._pages = self._pages, {}
        taken._present, self._present = self._present, taken._present
        taken.count, self.count = self.count, 0
        return taken

    def copy(self) -> DirtyMap:
        """An independent map with the same marks."""
        twin = DirtyMap(self.block_count)
        twin.merge(self)
        return twin

    def next_run(self, start: int, stop: int | None = None) -> Extent | None:
        """The first run of marked blocks from ``start`` on, cut at ``stop``."""
        stop = self.block_count if stop is None else stop
        first = self._find_marked(start, stop)
        return None if first is None else Extent(first, self._find_clear(first + 1, stop))

    def next_run_beside(self, other: DirtyMap, start: int, stop: int, longest: int) -> Extent | None:
        """As `next_run`, of the blocks that ``other`` does not mark, and cut after ``longest``.

        What ``other`` marks is passed over by the page, however scattered it is.
        """
        first = self._find_marked(start, stop, other)
        if first is None:
            return None
        end = self._find_clear(first + 1, min(stop, first + longest))
        taken = other._find_marked(first + 1, end)
        return Extent(first, end if taken is None else taken)

    def _find_marked(self, start: int, stop: int, beside: DirtyMap | None = None) -> int | None:
        if start >= stop:
            return None
        end = ((stop - 1) >> PAGE_SHIFT) + 1
        number = self._present.find(1, start >> PAGE_SHIFT, end)
        while number >= 0:
            found = self._find_in_page(number, start, stop, beside)
            if found is not None:
                return found
            number = self._present.find(1, number + 1, end)
        return None

    def _find_in_page(self, number: int, start: int, stop: int, beside: DirtyMap | None) -> int | None:
        base = number << PAGE_SHIFT
        page = self._pages[number]
        if beside is not None and number in beside._pages:
            page = page & ~beside._pages[number]
        index = page.find(1, max(start - base, 0), min(stop - base, PAGE_BLOCKS))
        return None if index < 0 else base + index

    def _find_clear(self, start: int, stop: int) -> int:
        while start < stop:
            number = start >> PAGE_SHIFT
            page = self._pages.get(number)
            if page is None:
                return start
            base = number << PAGE_SHIFT
            high = min(stop - base, PAGE_BLOCKS)
            index = page.find(0, start - base, high)
            if index >= 0:
                return base + index
            start = base + high
        return stop

    def runs(self, start: int = 0, stop: int | None = None) -> Iterator[Extent]:
        """All runs of marked blocks within the range, ascending; the map may not change meanwhile."""
        while (run := self.next_run(start, stop)) is not None:
            yield run
            start = run.stop

    def page_numbers(self) -> Iterable[int]:
        """Numbers of the pages that hold a set bit."""
        return self._pages.keys()

    def page_bytes(self, number: int) -> bytes:
        """The page as it stands on disk: `PAGE_BYTES` bytes, bit ``i`` of byte ``j`` is block ``8j + i``."""
        page = self._pages.get(number)
        if page is None:
            return bytes(PAGE_BYTES)
        return _FULL_BYTES if page is _FULL else page.tobytes()

    def load_page(self, number: int, content: bytes) -> None:
        """Merge a page as `page_bytes` gave it; bits beyond the volume are refused."""
        if len(content) != PAGE_BYTES:
            raise InternalError(f"a bitmap page of {len(content)} bytes")
        bits = bitarray(endian="little")
        bits.frombytes(content)
        limit = self.block_count - (number << PAGE_SHIFT)
        if limit < PAGE_BLOCKS and bits.find(1, max(limit, 0)) >= 0:
            raise InternalError(f"bitmap page {number} marks blocks beyond the volume")
        if not bits.any():
            return
        page = DirtyMap(self.block_count)
        page._pages[number] = _FULL if bits.all() else bits
        page._present[number] = 1
        page.count = bits.count()
        self.merge(page)

    def describe(self) -> str:
        """Terse form for logs and transcripts."""
        return describe_runs(self.count, self.runs())


class IntentSet:
    """The blocks of one write-intent generation; each is held in one of the two shapes."""

    __slots__ = ("_few", "_wide", "block_count")

    def __init__(self, block_count: int) -> None:
        self.block_count = block_count
        self._few: set[int] = set()  # blocks marked by narrow extents; disjoint from `_wide`
        self._wide = DirtyMap(block_count)  # extents of more than INTENT_WIDE_BLOCKS

    def grow(self, block_count: int) -> None:
        """As `DirtyMap.grow`."""
        self._wide.grow(block_count)
        self.block_count = block_count

    def __bool__(self) -> bool:
        return bool(self._few) or bool(self._wide)

    def __contains__(self, block: int) -> bool:
        return block in self._few or (bool(self._wide) and block in self._wide)

    def mark(self, start: int, stop: int) -> int:
        """Mark the range; how many blocks were not marked before."""
        if not 0 <= start <= stop <= self.block_count:
            raise InternalError(f"blocks {start}..{stop} of a volume of {self.block_count}")
        few, wide = self._few, self._wide
        if stop - start == 1:
            if start in few or (wide.count and start in wide):
                return 0
            few.add(start)
            return 1
        if stop - start > INTENT_WIDE_BLOCKS:
            swallowed = {block for block in few if start <= block < stop}
            few -= swallowed
            return wide.mark(start, stop) - len(swallowed)
        before = len(few)
        if wide and wide.intersects(start, stop):
            few.update(block for block in range(start, stop) if block not in wide)
        else:
            few.update(range(start, stop))
        return len(few) - before

    def runs(self) -> Iterator[Extent]:
        """Every block once, in runs that ascend within each of the two shapes."""
        yield from _runs_of(sorted(self._few))
        yield from self._wide.runs()

    def merge_into(self, target: DirtyMap) -> None:
        """Mark all of it in ``target``."""
        for run in _runs_of(sorted(self._few)):
            target.mark(run.start, run.stop)
        target.merge(self._wide)

    def page_numbers(self) -> set[int]:
        """Numbers of the bitmap pages that cover any marked block."""
        return {block >> PAGE_SHIFT for block in self._few} | set(self._wide.page_numbers())


def describe_runs(count: int, runs: Iterator[Extent]) -> str:
    """How many blocks, and the first runs of them."""
    shown = [run.describe() for run, _ in zip(runs, range(8), strict=False)]
    return f"{count}[{' '.join(shown)}]"


def _runs_of(blocks: Iterable[int]) -> Iterator[Extent]:
    start = stop = -1
    for block in blocks:
        if block == stop:
            stop += 1
            continue
        if start >= 0:
            yield Extent(start, stop)
        start, stop = block, block + 1
    if start >= 0:
        yield Extent(start, stop)
