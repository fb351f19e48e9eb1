"""What the guest has written to one volume, and hence what a sector may hold.

An oracle that knows nothing of replication.  A write has a beginning (submitted) and an end (acknowledged,
failed, or its host crashed); writes that overlap in time may land in either order.  So a sector may hold
write ``x`` unless a write ``w`` of it was *acknowledged* that was submitted after ``x`` had ended.  A
*floor* a sector keeps the latest submission among the writes that count:

* ``acked``: all acknowledged ones - what a process crash may not lose;
* ``flushed``: those acknowledged before a completed flush was submitted, or written through (FUA) - what a
  power cut may not lose.

Zeroes have no author (content 0): a zero is right if any zeroing write of the sector could be the last.
"""

from __future__ import annotations

from collections import deque

__all__ = ["History", "WriteRecord"]


class WriteRecord:
    """One op of a write of the guest."""

    __slots__ = ("fua", "start", "stop", "submitted", "zero")

    def __init__(self, start: int, stop: int, submitted: int, *, zero: bool, fua: bool) -> None:
        self.start = start
        self.stop = stop
        self.submitted = submitted
        self.zero = zero
        self.fua = fua


class History:
    """See the module."""

    __slots__ = (
        "_acked_log",
        "_ended",
        "_live_zeroes",
        "_span",
        "acked",
        "flushed",
        "number",
        "volume_sectors",
        "zero_ended",
    )

    def __init__(self, sector_count: int) -> None:
        self.volume_sectors = 0  # the size that somebody was told of
        self.number = 1  # counts beginnings and ends of writes, and beginnings of flushes
        self.acked: list[int] = [
            -1
        ] * sector_count  # content that ended no later is lost; -1: nothing is owed
        self.flushed: list[int] = [-1] * sector_count
        self.zero_ended: list[int] = [0] * sector_count  # the latest end of a zeroing write
        self._span: dict[int, tuple[int, int]] = {}  # write -> its sectors
        self._ended: dict[int, int] = {}  # write -> when it ended; missing: it has not
        self._live_zeroes: dict[int, tuple[int, int]] = {}
        self._acked_log: deque[tuple[int, WriteRecord]] = deque()  # acknowledged, not covered by a flush

    def tick(self) -> int:
        """A moment of its own."""
        self.number += 1
        return self.number

    def prefill(self, version: int, start: int, stop: int) -> None:
        """Content that was there before."""
        self._span[version] = (start, stop)
        self._ended[version] = 1
        self.acked[start:stop] = [0] * (stop - start)
        self.flushed[start:stop] = [0] * (stop - start)
        self.zero_ended[start:stop] = [0] * (stop - start)

    def begin(self, version: int, record: WriteRecord) -> None:
        """The guest submits a write under that number."""
        if record.zero:
            self._live_zeroes[version] = (record.start, record.stop)
        else:
            self._span[version] = (record.start, record.stop)

    def end(self, version: int, record: WriteRecord, *, acknowledged: bool) -> None:
        """The write was acknowledged, or ended in some other way."""
        now = self.tick()
        start, stop = record.start, record.stop
        if record.zero:
            self._live_zeroes.pop(version, None)
            self.zero_ended[start:stop] = [now] * (stop - start)
        else:
            self._ended[version] = now
        if acknowledged:
            _raise(self.acked, start, stop, record.submitted)
            if record.fua:
                _raise(self.flushed, start, stop, record.submitted)
            else:
                self._acked_log.append((now, record))

    def flush_done(self, submitted: int) -> list[tuple[int, int]]:
        """A flush that was submitted then has completed: the runs of sectors that are durable now."""
        log = self._acked_log
        covered: list[tuple[int, int]] = []
        while log and log[0][0] <= submitted:
            _, record = log.popleft()
            _raise(self.flushed, record.start, record.stop, record.submitted)
            covered.append((record.start, record.stop))
        return covered

    def power_lost(self) -> None:
        """The only authority lost its cache: from here on only what was flushed is owed."""
        self.acked = self.flushed[:]
        self._acked_log.clear()

    def nothing_owed(self) -> None:
        """The authority was replaced by an empty one."""
        self.volume_sectors = 0
        self.acked = [-1] * len(self.acked)
        self.flushed = self.acked[:]
        self._acked_log.clear()

    def first_wrong(self, content: list[int], start: int, stop: int, floor: list[int]) -> int | None:
        """The first sector of the range whose content may not be; ``content`` is the whole disk's."""
        at = start
        while at < stop:
            value = content[at]
            end = _end_of_run(content, at, stop)
            check = self._first_wrong_in_run if value else self._first_wrong_zero
            wrong = check(value, at, end, floor)
            if wrong is not None:
                return wrong
            at = end
        return None

    def _first_wrong_in_run(self, value: int, start: int, stop: int, floor: list[int]) -> int | None:
        span = self._span.get(value)
        if span is None or start < span[0]:
            return start
        if stop > span[1]:
            return max(start, span[1])
        ended = self._ended.get(value)
        if ended is None or ended > max(floor[start:stop]):
            return None
        return next(sector for sector in range(start, stop) if ended <= floor[sector])

    def _first_wrong_zero(self, _: int, start: int, stop: int, floor: list[int]) -> int | None:
        owed = max(floor[start:stop])
        if owed < 0 or min(self.zero_ended[start:stop]) > owed:
            return None
        live = [span for span in self._live_zeroes.values() if span[0] < stop and start < span[1]]
        if any(low <= start and stop <= high for low, high in live):
            return None
        ends = zip(self.zero_ended[start:stop], floor[start:stop], strict=True)
        for sector, (ended, last) in enumerate(ends, start):
            if ended <= last >= 0 and not any(low <= sector < high for low, high in live):
                return sector
        return None

    def explain(self, sector: int, value: int, floor: list[int]) -> str:
        """Why a content is wrong, for people."""
        if value and value not in self._span:
            return f"sector {sector} holds {value}, which was never written"
        ended = self.zero_ended[sector] if value == 0 else self._ended.get(value)
        return (
            f"sector {sector} holds write {value}, which ended at {ended}; owed is one after {floor[sector]}"
        )

    def copy_floors(self) -> tuple[list[int], list[int], list[int]]:
        """What is owed now, for a backup."""
        return self.acked[:], self.flushed[:], self.zero_ended[:]

    def restore_floors(self, floors: tuple[list[int], list[int], list[int]]) -> None:
        """The authority was restored from a backup: what was written since is not owed any more."""
        self.acked, self.flushed = floors[0][:], floors[1][:]
        self.volume_sectors = 0
        self._acked_log.clear()


_PIECE = 32


def _end_of_run(content: list[int], start: int, stop: int) -> int:
    """Where the run of equal values that begins at ``start`` ends."""
    value = content[start]
    end = start + 1
    piece = [value] * _PIECE
    while end + _PIECE <= stop and content[end : end + _PIECE] == piece:
        end += _PIECE
    while end < stop and content[end] == value:
        end += 1
    return end


def _raise(floor: list[int], start: int, stop: int, number: int) -> None:
    if max(floor[start:stop]) <= number:
        floor[start:stop] = [number] * (stop - start)
        return
    for sector in range(start, stop):
        floor[sector] = max(floor[sector], number)
