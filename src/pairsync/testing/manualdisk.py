"""What a host that is driven by hand has on its disks: see ``testing.manual``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from pairsync.core.dirty import DirtyMap
from pairsync.core.effects import Journal, SavePages
from pairsync.core.messages import OpKind, PointMark, WriteOp
from pairsync.core.questions import BadBlock
from pairsync.core.resync import PIECE_BYTES
from pairsync.core.superblock import Superblock, new_superblock
from pairsync.core.units import BLOCK_BYTES, Extent, block_count_of
from pairsync.errors import InternalError

from .tree import leaf_of

__all__ = ["PAIR_ID", "ManualDisk", "ManualMetadata", "blank_superblock"]

PAIR_ID = b"manual pair id.."


def blank_superblock(name: str, size_bytes: int) -> Superblock:
    """The superblock of a volume that was just made."""
    volume_id = name.encode().ljust(16, b".")[:16]
    return new_superblock(pair_id=PAIR_ID, volume_id=volume_id, name=name, size_bytes=size_bytes)


class ManualDisk:
    """One replica's content: as read, and as durable."""

    def __init__(self, size_bytes: int) -> None:
        self.content = bytearray(size_bytes)
        self.durable = bytearray(size_bytes)
        self.written: set[int] = set()  # blocks ever written: allocated
        self._recorded: dict[int, int] = {}  # digests of blocks that were written

    def found(self, block: int) -> int:
        """The digest of what a block holds."""
        return leaf_of(self.content[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES])

    def leaf(self, block: int) -> int:
        """Its digest as it was recorded when it was written."""
        return self._recorded.get(block, 0)

    def record(self, block: int, digest: int) -> None:
        """Its digest has become another one, whatever it holds."""
        self._recorded[block] = digest

    def wrong(self, start: int, stop: int) -> list[int]:
        """Blocks that do not hold what is recorded: somebody has changed `content`."""
        return [each.block for each in self.bad(start, stop)]

    def bad(self, start: int, stop: int) -> list[BadBlock]:
        """The same, with their digests."""
        found = [BadBlock(block, self.leaf(block), self.found(block)) for block in range(start, stop)]
        return [each for each in found if each.found != each.recorded]

    def apply(self, ops: Sequence[WriteOp]) -> None:
        """Write the ops in their order."""
        for op in ops:
            stop = op.offset + op.length
            if stop > len(self.content):
                raise InternalError(f"a write to {op.offset}+{op.length} of {len(self.content)} bytes")
            data = bytes(op.length) if op.data is None else op.data
            self.content[op.offset : stop] = data
            if op.fua:
                self.durable[op.offset : stop] = data
            if op.length:
                blocks = range(op.offset // BLOCK_BYTES, -(-stop // BLOCK_BYTES))
                self.written.update(blocks)
                self._recorded.update((block, self.found(block)) for block in blocks)

    def find(self, extent: Extent) -> tuple[Extent, list[WriteOp]]:
        """What a resync read finds: a prefix of ``extent``, zeroes in one go, data in pieces."""
        start, limit = extent.start * BLOCK_BYTES, min(extent.stop * BLOCK_BYTES, len(self.content))
        stop, zero = start, not any(self.content[start : start + BLOCK_BYTES])
        while stop < limit and any(self.content[stop : stop + BLOCK_BYTES]) is not zero:
            if not zero and stop - start >= PIECE_BYTES:
                break
            stop = min(stop + BLOCK_BYTES, limit)
        covered = Extent(extent.start, -(-stop // BLOCK_BYTES))
        if zero:
            return covered, [WriteOp(OpKind.ZERO, start, stop - start)]
        return covered, [WriteOp(OpKind.DATA, start, stop - start, bytes(self.content[start:stop]))]

    def enlarge(self, size_bytes: int) -> None:
        """The volume has grown; what was added reads as zero."""
        before = len(self.content)
        for content in (self.content, self.durable):
            content.extend(bytes(size_bytes - before))
        last = before // BLOCK_BYTES
        if last in self._recorded:
            self._recorded[last] = self.found(last)

    def power_cut(self) -> None:
        """All that was not made durable is gone."""
        self.content[:] = self.durable
        self._recorded = {block: self.found(block) for block in self._recorded}


@dataclass
class ManualMetadata:
    """What is durable beside one replica."""

    superblock: Superblock
    pages: dict[int, bytes] = field(default_factory=dict)
    segments: list[tuple[int, list[Extent]]] = field(default_factory=lambda: [(0, []), (0, [])])
    """For each journal segment the generation that uses it (0: released) and what it recorded."""
    generation_max: int = 0
    points: dict[PointMark, bytes] = field(default_factory=dict)
    """For each point what the volume held."""
    given: int = 0
    """The milestone that the active host has given last."""

    def remember(self, mark: PointMark, content: bytes | bytearray) -> None:
        """A point, in place of one of the same name."""
        self.points = {each: held for each, held in self.points.items() if each.name != mark.name}
        self.points[mark] = bytes(content)

    def keep_points(self, tags: Collection[int]) -> None:
        """Drop all others."""
        self.points = {each: held for each, held in self.points.items() if each.tag in tags}

    def append(self, effect: Journal) -> None:
        """Record intents; the segment must be that generation's, or released."""
        generation, extents = self.segments[effect.segment]
        if generation not in {0, effect.generation}:
            raise InternalError(f"segment {effect.segment} holds generation {generation}, not released")
        self.segments[effect.segment] = (effect.generation, [*extents, *effect.extents])
        self.generation_max = max(self.generation_max, effect.generation)

    def save(self, effect: SavePages) -> None:
        """Write pages, then give segments up."""
        self.pages.update(effect.pages)
        for segment in effect.release:
            self.segments[segment] = (0, [])

    def recovered(self) -> DirtyMap:
        """The dirty map that a start finds."""
        found = DirtyMap(block_count_of(self.superblock.size_bytes))
        for number, content in self.pages.items():
            found.load_page(number, content)
        if not self.superblock.clean:
            for _, extents in self.segments:
                for extent in extents:
                    found.mark(*extent)
        return found
