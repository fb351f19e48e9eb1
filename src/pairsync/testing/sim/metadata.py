"""Simulated metadata of one volume: what ``storage.metadata`` promises, and what a crash may leave of it.

Durable at once on completion; a crash before that leaves a superblock as old or new, a journal append there
or not, and bitmap pages old or new *for each sector of bits* on its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from random import Random

from pairsync.core.dirty import PAGE_BYTES, DirtyMap
from pairsync.core.superblock import Superblock
from pairsync.core.units import Extent, block_count_of

__all__ = ["SimMetadata"]

BITS_BYTES_PER_SECTOR = 456  # as storage.bitmap lays them out
EXTENTS_PER_RECORD = 506
SEGMENT_RECORDS = 2048
"""As ``storage.records`` and a segment of 8 MiB have it: an append beyond is a bug of the core."""


class _Segment:
    """One journal segment."""

    __slots__ = ("generation", "intents", "records")

    def __init__(self, block_count: int) -> None:
        self.generation = 0  # 0: never used, or given up
        self.records = 0
        self.intents = DirtyMap(block_count)


class SimMetadata:
    """The metadata file of one replica."""

    __slots__ = ("_block_count", "_generation_max", "_pages", "_segments", "_superblock")

    def __init__(self, superblock: Superblock) -> None:
        self._superblock = superblock
        self._block_count = block_count_of(superblock.size_bytes)
        self._pages: dict[int, bytes] = {}
        self._segments = [_Segment(self._block_count) for _ in range(2)]
        self._generation_max = 0

    @property
    def superblock(self) -> Superblock:
        """The durable one."""
        return self._superblock

    @superblock.setter
    def superblock(self, superblock: Superblock) -> None:
        self._superblock = superblock
        self._block_count = block_count_of(superblock.size_bytes)
        for segment in self._segments:
            segment.intents.grow(self._block_count)

    @property
    def first_generation(self) -> int:
        """Above every generation in the file."""
        return self._generation_max + 1

    def append(self, number: int, generation: int, extents: Sequence[Extent]) -> str | None:
        """Record intents; what is wrong with the request, if anything."""
        segment = self._segments[number]
        if segment.generation != generation:
            if segment.generation:
                return f"segment {number} holds generation {segment.generation}, which was not given up"
            if generation <= self._generation_max:
                return f"generation {generation} after {self._generation_max}"
            self._generation_max = generation
            segment.generation = generation
        segment.records += max(-(-len(extents) // EXTENTS_PER_RECORD), 1)
        for start, stop in extents:
            segment.intents.mark(start, stop)
        if segment.records > SEGMENT_RECORDS:
            return f"segment {number} takes {SEGMENT_RECORDS} records, not {segment.records}"
        return None

    def release(self, numbers: Sequence[int]) -> None:
        """Give up what these segments hold."""
        for number in numbers:
            self._segments[number] = _Segment(self._block_count)

    def write_pages(self, pages: Mapping[int, bytes]) -> None:
        """Replace bitmap pages."""
        for number, content in pages.items():
            if any(content):
                self._pages[number] = content
            else:
                self._pages.pop(number, None)

    def tear_pages(self, pages: Mapping[int, bytes], random: Random) -> None:
        """A crash came while these were being written."""
        keep = random.random()
        for number, content in pages.items():
            old = self._pages.get(number, bytes(PAGE_BYTES))
            mixed = bytearray(old)
            for at in range(0, PAGE_BYTES, BITS_BYTES_PER_SECTOR):
                if random.random() < keep:
                    mixed[at : at + BITS_BYTES_PER_SECTOR] = content[at : at + BITS_BYTES_PER_SECTOR]
            self.write_pages({number: bytes(mixed)})

    def forget(self, blocks: Iterable[int]) -> None:
        """Clear the bits of these blocks on the disk."""
        for block in blocks:
            number, bit = divmod(block, PAGE_BYTES * 8)
            page = bytearray(self._pages.get(number, bytes(PAGE_BYTES)))
            page[bit >> 3] &= ~(1 << (bit & 7))
            self.write_pages({number: bytes(page)})

    def intents(self) -> DirtyMap:
        """What the segments hold."""
        found = DirtyMap(self._block_count)
        for segment in self._segments:
            found.merge(segment.intents)
        return found

    def recovered(self) -> DirtyMap:
        """The dirty set that is found when the volume is opened now."""
        found = DirtyMap(self._block_count)
        for number, content in self._pages.items():
            found.load_page(number, content)
        if not self.superblock.clean:
            found.merge(self.intents())
        return found

    def covers(self, block: int) -> bool:
        """Whether `recovered` would hold the block."""
        page = self._pages.get(block // (PAGE_BYTES * 8))
        if page is not None:
            bit = block % (PAGE_BYTES * 8)
            if page[bit >> 3] >> (bit & 7) & 1:
                return True
        return not self.superblock.clean and self.logged(block)

    def logged(self, block: int) -> bool:
        """Whether the write-intent log names the block."""
        return block in self._segments[0].intents or block in self._segments[1].intents

    def copy(self) -> SimMetadata:
        """An independent copy (for a host that is down)."""
        twin = SimMetadata(self.superblock)
        twin._pages = dict(self._pages)
        twin._generation_max = self._generation_max
        for mine, theirs in zip(self._segments, twin._segments, strict=True):
            theirs.generation = mine.generation
            theirs.records = mine.records
            theirs.intents = mine.intents.copy()
        return twin
