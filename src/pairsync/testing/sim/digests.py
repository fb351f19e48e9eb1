"""Simulated digests of one replica: what ``storage.digests`` promises, and what a crash may leave of them.

A leaf is recorded with the write that it belongs to, and durable with a save that began after it.  Saves end
in the order in which they began.  A crash leaves of what was not saved the old leaf or the new one, block by
block; blocks of the write-intent log are unknown then.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import NamedTuple

from pairsync.core.dirty import DirtyMap
from pairsync.core.questions import UNKNOWN_DIGEST, BadBlock
from pairsync.testing.tree import digests_of

from .disk import SECTORS_PER_BLOCK, SimDisk, Values

__all__ = ["Save", "SimDigests"]

_MASK = (1 << 64) - 1

_PIECE_BLOCKS = 64
"""Looked at together: a volume is mostly empty."""


def _leaf(content: list[int]) -> int:
    return max(hash(tuple(content)) & _MASK, UNKNOWN_DIGEST + 1) if any(content) else 0


class Save(NamedTuple):
    """What a save will make durable, as of when it began."""

    leaves: dict[int, int]
    records: int  # how many leaves had been recorded
    growths: int


class SimDigests:
    """See the module."""

    __slots__ = ("_giving", "_grown_from", "_growths", "_recorded", "_records", "_saved", "_unsaved", "given")

    def __init__(self, block_count: int, *, known: bool) -> None:
        self._recorded = [0 if known else UNKNOWN_DIGEST] * block_count
        self._saved = self._recorded[:]
        self._records = 0  # how often a leaf was recorded
        # Blocks that no save has covered since their leaf was recorded, by the number of that record.  Until
        # then an older save may end and leave an older leaf, also where what is saved is right by now.
        self._unsaved: dict[int, int] = {}
        # The size that a save has made durable ends in or before this block; None: it is the present one.
        self._grown_from: int | None = None
        self._growths = 0
        self.given = 0
        """The milestone that was saved last."""
        self._giving: int | None = None  # one that is being saved

    @property
    def block_count(self) -> int:
        """Leaves in all."""
        return len(self._recorded)

    def content_of(self, disk: SimDisk, block: int) -> int:
        """The leaf that the block should have; of the last one there may be a part only."""
        return _leaf(disk.content[disk.sectors_of(block)])

    def grow(self, disk: SimDisk, *, known: bool) -> None:
        """The disk has grown; ``known``: while it was open, else what was added has to be read once."""
        before, after = len(self._recorded), -(-disk.sector_count // SECTORS_PER_BLOCK)
        added = [0 if known else UNKNOWN_DIGEST] * (after - before)
        self._recorded += added
        self._saved += added
        self._growths += 1
        if self._grown_from is None:
            self._grown_from = before - 1
        self._record(before - 1, self.content_of(disk, before - 1) if known else UNKNOWN_DIGEST)

    def damage(self, block: int, leaf: int) -> None:
        """The block's leaf is that from now on, on the disk too."""
        self._recorded[block] = self._saved[block] = leaf
        self._unsaved.pop(block, None)

    def recorded(self, block: int, *, saved: bool = False) -> int:
        """The block's leaf; ``saved``: what a crash may leave of it.  -1 behind the last block."""
        leaves = self._saved if saved else self._recorded
        return leaves[block] if block < len(leaves) else -1

    def settled(self, disk: SimDisk, block: int) -> bool:
        """Whether the leaf is known, true, and as durable as it will ever be."""
        return block not in self._unsaved and self._recorded[block] == self.content_of(disk, block)

    def note(self, disk: SimDisk, start: int, stop: int) -> None:
        """These sectors were written."""
        for block in range(start // SECTORS_PER_BLOCK, -(-stop // SECTORS_PER_BLOCK)):
            self._record(block, self.content_of(disk, block))

    def forget(self, disk: SimDisk, start: int, stop: int, values: Values) -> None:
        """A write of these sectors has failed: what their blocks hold is not known.

        But where they were to be filled with what is recorded: that stays, whether it is there or not.
        """
        for block in range(start // SECTORS_PER_BLOCK, -(-stop // SECTORS_PER_BLOCK)):
            low, high = block * SECTORS_PER_BLOCK, min((block + 1) * SECTORS_PER_BLOCK, disk.sector_count)
            if start <= low and high <= stop:
                wanted = (
                    [values] * (high - low) if isinstance(values, int) else values[low - start : high - start]
                )
                if self._recorded[block] == _leaf(wanted):
                    continue
            self._record(block, UNKNOWN_DIGEST)

    def _record(self, block: int, leaf: int) -> None:
        self._records += 1
        self._recorded[block] = leaf
        self._unsaved[block] = self._records

    # ------------------------------------------------------------------ durability

    def saving(self, milestone: int | None = None) -> Save:
        """A save begins, and with it that of a ``milestone``."""
        if milestone is not None:
            self._giving = milestone
        leaves = {block: self._recorded[block] for block in self._unsaved}
        return Save(leaves, self._records, self._growths)

    def saved(self, save: Save, milestone: int | None = None) -> None:
        """It has ended, and a ``milestone`` was saved with it."""
        if milestone is not None:
            self.given, self._giving = milestone, None
        if save.growths == self._growths:
            self._grown_from = None
        for block, leaf in save.leaves.items():
            self._saved[block] = leaf
            if self._unsaved.get(block, 0) <= save.records:
                self._unsaved.pop(block, None)

    def crashed(self, random: Random) -> tuple[int, int]:
        """The process is gone; the run of blocks that are unknown now because no save came after a growth."""
        if self._giving is not None and random.random() < 0.5:
            self.given = self._giving
        self._giving = None
        for block in sorted(self._unsaved):
            if random.random() < 0.5:
                self._saved[block] = self._recorded[block]
        first = self.block_count if self._grown_from is None else self._grown_from
        self._saved[first:] = [UNKNOWN_DIGEST] * (self.block_count - first)
        self._grown_from = None
        self._recorded = self._saved[:]
        self._unsaved.clear()
        return first, self.block_count

    def opened(self, intents: DirtyMap) -> None:
        """A process begins after one that did not end in order: these blocks may hold anything."""
        for start, stop in intents.runs():
            self._recorded[start:stop] = self._saved[start:stop] = [UNKNOWN_DIGEST] * (stop - start)

    def copy(self) -> SimDigests:
        """An independent copy, all of it durable (for a host that is down)."""
        twin = SimDigests(0, known=True)
        twin._recorded, twin._saved = self._recorded[:], self._recorded[:]
        twin.given = self.given
        return twin

    # ------------------------------------------------------------------ questions

    def fill(self, disk: SimDisk, blocks: range) -> None:
        """Read these blocks where their leaf is unknown."""
        if UNKNOWN_DIGEST not in self._recorded[blocks.start : blocks.stop]:
            return
        seen = disk.seen()
        for block in blocks:
            if self._recorded[block] == UNKNOWN_DIGEST:
                self._record(block, _leaf(seen[disk.sectors_of(block)]))

    def unsaved(self, blocks: Iterable[int]) -> list[int]:
        """Of these blocks those whose leaf a crash may turn into another one, now or later."""
        return [block for block in blocks if block in self._unsaved]

    def wrong(self, disk: SimDisk, blocks: Iterable[int]) -> list[int]:
        """Of these blocks those whose content is not what is recorded."""
        recorded = self._recorded
        return [
            block
            for block in blocks
            if recorded[block] != UNKNOWN_DIGEST and recorded[block] != self.content_of(disk, block)
        ]

    def bad_in(self, disk: SimDisk, blocks: range) -> list[int]:
        """Of these blocks those that are not read as what is recorded."""
        bad = set(self.wrong_in(disk, blocks))
        seen = disk.seen()
        for block in disk.wrong_blocks():
            if block in blocks and self._recorded[block] != UNKNOWN_DIGEST:
                leaf = _leaf(seen[disk.sectors_of(block)])
                (bad.discard if leaf == self._recorded[block] else bad.add)(block)
        return sorted(bad)

    def bad_blocks(self, disk: SimDisk, blocks: range) -> list[BadBlock]:
        """The same, with their digests."""
        bad = self.bad_in(disk, blocks)
        seen = disk.seen() if bad else []
        return [BadBlock(block, self._recorded[block], _leaf(seen[disk.sectors_of(block)])) for block in bad]

    def wrong_in(self, disk: SimDisk, blocks: range) -> list[int]:
        """Likewise, of many: quick where there is nothing."""
        found: list[int] = []
        for start in range(blocks.start, blocks.stop, _PIECE_BLOCKS):
            piece = range(start, min(start + _PIECE_BLOCKS, blocks.stop))
            content = disk.content[start * SECTORS_PER_BLOCK : piece.stop * SECTORS_PER_BLOCK]
            if any(content) or any(self._recorded[start : piece.stop]):
                found += self.wrong(disk, piece)
        return found

    def answer(self, level: int, first: int, stop: int) -> bytes:
        """The digests of these nodes."""
        recorded = self._recorded
        return digests_of(recorded.__getitem__, len(recorded), level, first, stop)
