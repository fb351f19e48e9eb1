"""A simulated volume: what reads return, what is durable, and what a power cut may leave.

Content is one integer a sector of 512 bytes: the number of the write that filled it, 0 for zeroes.  Writes
go to a page cache: they are seen at once, are kept when the process dies, and become durable with a flush
that began after them (or at once with FUA).  When the power goes, each sector keeps one of the contents it
has had since the last flush, whichever the kernel happened to write back: any subset, sector by sector.

``content`` and ``durable`` are what an honest disk would hold; whoever checks what is owed looks at these.  A
sector that is *wrong* is read as something else (`SimDisk.seen`), until it is written again: for good once
that write is durable, else the wrong content may come back with a power cut.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from random import Random
from typing import NamedTuple, TypeAlias

from pairsync.core.messages import Buffer, OpKind, WriteOp
from pairsync.core.units import BLOCK_BYTES

__all__ = [
    "SECTORS_PER_BLOCK",
    "SECTOR_BYTES",
    "SimDisk",
    "Values",
    "ops_of_content",
    "values_of_op",
]

SECTOR_BYTES = 512
SECTORS_PER_BLOCK = BLOCK_BYTES // SECTOR_BYTES
_WORDS = SECTOR_BYTES // 8  # a sector is its number, in the first of so many words

Values: TypeAlias = "int | list[int]"
"""The content of a run of sectors: one number for all, or one each."""


class _Entry(NamedTuple):
    """A write that no flush has covered."""

    start: int
    stop: int
    values: Values
    certain: bool  # written through (FUA)


class _Wrong(NamedTuple):
    """What a sector holds in place of its content."""

    value: int
    since: int  # the position then: only writes from there on mend it


class SimDisk:
    """The content of one replica of one volume."""

    __slots__ = ("_base", "_log", "_wrong_durable", "content", "durable", "sector_count", "wrong")

    def __init__(self, sector_count: int, room: int = 0) -> None:
        """``room``: sectors of the device behind the volume, which it may grow into."""
        self.sector_count = sector_count
        self.content = [0] * (sector_count + room)  # what a read returns
        self.durable = self.content[:]  # what certainly survives, but for what `_log` may have replaced
        self._log: deque[_Entry] = deque()
        self._base = 0  # position of the first entry in `_log`
        self.wrong: dict[int, int] = {}  # sectors that are read as something else than their content
        self._wrong_durable: dict[int, _Wrong] = {}  # what a power cut would leave of that, or bring back

    @property
    def position(self) -> int:
        """How much was written so far: what a flush that begins now will cover."""
        return self._base + len(self._log)

    def write(self, start: int, stop: int, values: Values, *, fua: bool) -> None:
        """Fill sectors ``start <= sector < stop``."""
        filling = [values] * (stop - start) if isinstance(values, int) else values
        self.content[start:stop] = filling
        if fua:
            self.durable[start:stop] = filling
        if self._wrong_durable:
            self._mend(start, stop, fua=fua)
        self._log.append(_Entry(start, stop, values, fua))

    def _mend(self, start: int, stop: int, *, fua: bool) -> None:
        for sector in [sector for sector in self._wrong_durable if start <= sector < stop]:
            self.wrong.pop(sector, None)
            if fua:
                del self._wrong_durable[sector]

    def flush(self, position: int) -> list[tuple[int, int]]:
        """A flush that began at ``position`` has ended: the runs of sectors that it made durable."""
        touched: list[tuple[int, int]] = []
        log = self._log
        while log and self._base < position:
            entry = log.popleft()
            if self._wrong_durable:
                self._mend_durably(entry.start, entry.stop, self._base)
            self._base += 1
            _fill(self.durable, entry)
            touched.append((entry.start, entry.stop))
        if touched:
            for entry in log:
                if entry.certain:  # written through after what the flush covered
                    _fill(self.durable, entry)
        return touched

    def _mend_durably(self, start: int, stop: int, position: int) -> None:
        """What was written there at that position is durable."""
        wrong = self._wrong_durable
        for sector in [sector for sector in wrong if start <= sector < stop]:
            if position >= wrong[sector].since:
                del wrong[sector]

    def lose_cache(self, random: Random, keep: float) -> None:
        """The power goes: each unflushed sector of each write was written back with probability ``keep``."""
        survivor = self.durable
        for position, entry in enumerate(self._log, self._base):
            if entry.certain or keep >= 1.0:
                _fill(survivor, entry)
                if self._wrong_durable:
                    self._mend_durably(entry.start, entry.stop, position)
            elif keep > 0.0:
                values = entry.values
                for sector in range(entry.start, entry.stop):
                    if random.random() < keep:
                        survivor[sector] = values if isinstance(values, int) else values[sector - entry.start]
                        if self._wrong_durable:
                            self._mend_durably(sector, sector + 1, position)
        self.content = survivor[:]
        self._base += len(self._log)
        self._log.clear()
        wrong = {sector: each.value for sector, each in self._wrong_durable.items()}
        self.wrong = {sector: value for sector, value in wrong.items() if value != survivor[sector]}
        self._wrong_durable = {sector: self._wrong_durable[sector] for sector in self.wrong}

    # ------------------------------------------------------------------ what is wrong

    def damage(self, sector: int, value: int) -> None:
        """From now on, and after a power cut, the sector is read as that, until it is written again."""
        if value != self.content[sector]:
            self.wrong[sector] = value
            self._wrong_durable[sector] = _Wrong(value, self.position)

    def forget_damage(self, start: int, stop: int) -> bool:
        """These sectors hold what they should after all; whether any did not."""
        if not self._wrong_durable:
            return False
        found = [sector for sector in self._wrong_durable if start <= sector < stop]
        for sector in found:
            self.wrong.pop(sector, None)
            del self._wrong_durable[sector]
        return bool(found)

    def wrong_blocks(self) -> list[int]:
        """Blocks that are not read as what they should hold."""
        return sorted({sector // SECTORS_PER_BLOCK for sector in self.wrong})

    def seen(self) -> list[int]:
        """What a read of all of it returns."""
        if not self.wrong:
            return self.content
        seen = self.content[:]
        for sector, value in self.wrong.items():
            seen[sector] = value
        return seen

    def may_be_wrong(self, start: int, stop: int) -> bool:
        """Whether any of these sectors is wrong, or would be again after a power cut."""
        return any(start <= sector < stop for sector in self._wrong_durable)

    def untouched(self, block: int) -> bool:
        """Whether nothing of the block is in the page cache, nor wrong."""
        low, high = block * SECTORS_PER_BLOCK, (block + 1) * SECTORS_PER_BLOCK
        if self.may_be_wrong(low, high):
            return False
        return not any(entry.start < high and low < entry.stop for entry in self._log)

    # ------------------------------------------------------------------ questions

    def sectors_of(self, block: int) -> slice:
        """Where the block lies; of the last one there may be a part only."""
        return slice(block * SECTORS_PER_BLOCK, min((block + 1) * SECTORS_PER_BLOCK, self.sector_count))

    def copy(self) -> SimDisk:
        """A disk with the same content, all of it durable and none of it wrong (for a host that is down)."""
        twin = SimDisk(self.sector_count)
        twin.content = self.content[:]
        twin.durable = self.content[:]
        return twin

    def cached(self, blocks: Iterable[int]) -> list[int]:
        """Of these blocks those of which a power cut may leave something else, if only what they held between
        two flushes."""
        written = {
            block
            for entry in self._log
            for block in range(entry.start // SECTORS_PER_BLOCK, -(-entry.stop // SECTORS_PER_BLOCK))
        }
        return [block for block in blocks if block in written]

    def runs_with_content(self) -> list[tuple[int, int]]:
        """Runs of blocks that hold anything but zeroes."""
        runs: list[tuple[int, int]] = []
        content = self.content
        for block, start in enumerate(range(0, self.sector_count, SECTORS_PER_BLOCK)):
            if any(content[start : start + SECTORS_PER_BLOCK]):
                if runs and runs[-1][1] == block:
                    runs[-1] = (runs[-1][0], block + 1)
                else:
                    runs.append((block, block + 1))
        return runs


def _fill(content: list[int], entry: _Entry) -> None:
    values = entry.values
    if isinstance(values, int):
        content[entry.start : entry.stop] = [values] * (entry.stop - entry.start)
    else:
        content[entry.start : entry.stop] = values


def values_of_op(op: WriteOp) -> Values:
    """What an op writes: the guest's ops carry their number as it is, those of a resync carry real bytes."""
    if op.kind is not OpKind.DATA:
        return 0
    data: Buffer | int | None = op.data
    if isinstance(data, int):
        return data
    if data is None or len(data) != op.length:
        raise ValueError(f"an op of {op.length} bytes does not carry its data")
    return memoryview(data).cast("B").cast("Q")[::_WORDS].tolist()


def ops_of_content(content: list[int], start_block: int, stop_block: int, limit: int) -> Iterator[WriteOp]:
    """The sectors of these blocks below ``limit`` as a resync read finds them: data, or zeroes."""
    sector = start_block * SECTORS_PER_BLOCK
    end = min(stop_block * SECTORS_PER_BLOCK, limit)
    while sector < end:
        stop = sector
        zero = not any(content[sector : sector + SECTORS_PER_BLOCK])
        while stop < end and zero == (not any(content[stop : stop + SECTORS_PER_BLOCK])):
            stop = min(stop + SECTORS_PER_BLOCK, end)
        offset, length = sector * SECTOR_BYTES, (stop - sector) * SECTOR_BYTES
        if zero:
            yield WriteOp(OpKind.ZERO, offset, length)
        else:
            words = array("Q", bytes(length))
            words[::_WORDS] = array("Q", content[sector:stop])
            yield WriteOp(OpKind.DATA, offset, length, words.tobytes())
        sector = stop
