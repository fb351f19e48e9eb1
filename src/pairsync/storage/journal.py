"""The write-intent journal: which blocks are being written, durable before they are.

Two segments of records (``storage.records``), used in turn.  All records of one filling of a segment carry
one *generation*, a number that only rises, so a segment is started anew without erasing it.  What a crash may
leave, and how it is told apart:

* **Torn tail.**  Records are written one append at a time, each durable before the next begins, so only the
  pages of the last append can be torn.  Replay ends at the first page that is no whole record of the
  generation at its place.
* **Damage.**  Every record says how many records were durable before it was written (``settled``).  A page
  that is not whole although a later one of the same generation counts it as settled is no torn tail: replay
  would forget intents, so opening fails with `MetadataError`.  (Damage to the very last append looks like a
  torn tail and cannot be told from it.)
* **Released segments.**  The *release mark* (a `DualSlot` of its own) names for each segment the highest
  generation that was given up; records up to that are dead, for good, once `release` has returned.  Losing
  the newer copy of the mark brings back an older one: then dead records are replayed, which costs resync but
  never data.

Why release has to be durable: else the first, torn append to a segment that is used again would leave a
damaged page 0 in front of the old generation's settled records, and that is what damage looks like.

The room of the journal is fixed and written with zeroes when the file is made, so an append overwrites
allocated space: it cannot run out of space, and making it durable writes data only, no file-system metadata.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from pairsync.core.units import MIB, Extent
from pairsync.errors import InternalError, MetadataError

from .blockfile import BlockFile
from .records import EXTENTS_PER_RECORD, RECORD_BYTES, Record, decode_record, encode_record, pack_extents
from .slots import DualSlot

__all__ = ["SEGMENT_COUNT", "Journal", "Replay", "decode_release_mark", "encode_release_mark"]

SEGMENT_COUNT: Final = 2

_ZERO_PIECE: Final = bytes(MIB)
_PENDING_EXTENTS_MAX: Final = 65536  # merged beyond this while replaying: bounds memory (about 8 MiB)
_MARK: Final = struct.Struct(f"<{SEGMENT_COUNT}Q")


class Replay(NamedTuple):
    """What the journal says after a crash."""

    extents: tuple[Extent, ...]
    """Every block with a live intent: sorted, disjoint."""
    generation_next: int
    """Higher than any generation in the file: the first to be used now."""
    notes: tuple[str, ...]


class _Segment:
    """One segment's place in the file and how far it is filled."""

    __slots__ = ("base", "generation", "live", "number", "record_count", "writable")

    def __init__(self, number: int, base: int) -> None:
        self.number = number
        self.base = base
        self.generation = 0  # of the last filling; 0: never used
        self.live = False  # holds records of `generation` that are not released
        self.writable = False  # appended to by this process; a replayed segment is only released
        self.record_count = 0  # records of `generation` that are durable


class Journal:
    """The journal of one metadata file."""

    def __init__(
        self, file: BlockFile, mark: DualSlot, *, offset: int, segment_bytes: int, block_count: int, seed: int
    ) -> None:
        self._file = file
        self._mark = mark
        self._segment_bytes = segment_bytes
        self._records_max = segment_bytes // RECORD_BYTES
        self._block_count = block_count
        self._seed = seed
        self._segments = [_Segment(i, offset + i * segment_bytes) for i in range(SEGMENT_COUNT)]
        self._released = [0] * SEGMENT_COUNT  # what the durable release mark says
        self._generation_max = 0  # the highest ever seen

    def grow(self, block_count: int) -> None:
        """The volume has that many blocks now."""
        self._block_count = block_count

    # ------------------------------------------------------------------ writing

    def append(self, segment: int, generation: int, extents: Sequence[tuple[int, int]]) -> None:
        """Note the intents; durable on return.  A generation not seen yet opens the segment anew."""
        filling = self._segments[segment]
        if filling.generation != generation:
            self.open_segment(segment, generation)
        if not filling.writable:
            raise InternalError(f"journal segment {segment} of generation {generation} was released")
        words = pack_extents(extents, self._block_count)
        if not words:
            return
        settled = filling.record_count
        if len(words) <= EXTENTS_PER_RECORD:
            pages = [encode_record(Record(segment, generation, settled, settled, words), self._seed)]
        else:
            pages = [
                encode_record(
                    Record(segment, generation, number, settled, words[at : at + EXTENTS_PER_RECORD]),
                    self._seed,
                )
                for number, at in enumerate(range(0, len(words), EXTENTS_PER_RECORD), settled)
            ]
        if settled + len(pages) > self._records_max:
            raise InternalError(
                f"journal segment {segment} has room for {self._records_max - settled} records, "
                f"not {len(pages)}"
            )
        self._mark.settle()  # a segment is used again only once its release is durable
        filling.live = True
        self._file.write(filling.base + settled * RECORD_BYTES, pages, durable=True)
        filling.record_count += len(pages)

    def open_segment(self, segment: int, generation: int) -> None:
        """Start the segment anew under a generation that must be the highest so far; writes nothing."""
        filling = self._segments[segment]
        if filling.live:
            raise InternalError(
                f"journal segment {segment} holds generation {filling.generation}: not released"
            )
        if generation <= self._generation_max:
            raise InternalError(f"generation {generation} after {self._generation_max}")
        self._generation_max = generation
        filling.generation = generation
        filling.record_count = 0
        filling.writable = True

    def release(self, segment: int) -> None:
        """Give the segment's intents up; durable on return.  Nothing is written if it holds none."""
        filling = self._segments[segment]
        if filling.live:
            released = list(self._released)
            released[segment] = filling.generation
            self._mark.store(encode_release_mark(released))
            self._released = released
        filling.live = filling.writable = False
        filling.record_count = 0

    def room(self, segment: int) -> int:
        """How many appends of few extents the segment takes (a released one: when it is opened again)."""
        return self._records_max - self._segments[segment].record_count

    def format(self) -> None:
        """Write the mark and the zeroes of a new file; the caller flushes."""
        self._mark.format(encode_release_mark(self._released))
        for filling in self._segments:
            for at in range(0, self._segment_bytes, len(_ZERO_PIECE)):
                piece = memoryview(_ZERO_PIECE)[: self._segment_bytes - at]
                self._file.write(filling.base + at, (piece,))

    # ------------------------------------------------------------------ replay

    def settle(self) -> None:
        """Make durable what `replay` has found to be released; `BackendError` if that fails."""
        self._mark.settle()

    def replay(self) -> Replay:
        """Read what a crash left.  Replayed segments stay live until they are released."""
        payload, notes = self._mark.load()
        self._released = decode_release_mark(payload, self._file.path)
        extents: list[Extent] = []
        for filling in self._segments:
            extents = _merged([*extents, *self._replay_segment(filling)])
            self._generation_max = max(
                self._generation_max, filling.generation, self._released[filling.number]
            )
        return Replay(tuple(extents), self._generation_max + 1, notes)

    def _replay_segment(self, filling: _Segment) -> list[Extent]:
        filling.generation = newest = self._newest_generation(filling)
        if newest <= self._released[filling.number]:
            return []
        filling.live = True
        pending: list[Extent] = []
        whole = 0  # records up to the first page that is not one
        for place, record in self._records(filling, newest):
            if place != whole:
                if record.settled > whole:
                    raise MetadataError(
                        f"{self._file.path}: damaged: record {whole} of journal segment {filling.number} "
                        f"(at {filling.base + whole * RECORD_BYTES}) was durable and is not whole"
                    )
                continue
            whole += 1
            pending += self._checked_extents(filling, record)
            if len(pending) > _PENDING_EXTENTS_MAX:
                pending = _merged(pending)
        filling.record_count = whole
        return pending

    def _checked_extents(self, filling: _Segment, record: Record) -> list[Extent]:
        extents = record.extents()
        for extent in extents:
            if not extent.start < extent.stop <= self._block_count:
                raise MetadataError(
                    f"{self._file.path}: damaged: record {record.number} of journal segment "
                    f"{filling.number} names blocks {extent.describe()} of {self._block_count}"
                )
        return extents

    def _newest_generation(self, filling: _Segment) -> int:
        return max((record.generation for _, record in self._records(filling, None)), default=0)

    def _records(self, filling: _Segment, generation: int | None) -> Iterator[tuple[int, Record]]:
        """Whole records that lie where they say, with their places; of one generation, or of all."""
        buffer = bytearray(MIB)
        for at in range(0, self._segment_bytes, MIB):
            piece = memoryview(buffer)[: self._segment_bytes - at]
            self._file.read_into(filling.base + at, piece)
            if buffer == _ZERO_PIECE:  # as most of it, often; a guest that changes its host waits for this
                continue
            for start in range(0, len(piece), RECORD_BYTES):
                place = (at + start) // RECORD_BYTES
                record = decode_record(piece[start : start + RECORD_BYTES], self._seed)
                if record is None or (record.segment, record.number) != (filling.number, place):
                    continue
                if generation is None or record.generation == generation:
                    yield place, record


def encode_release_mark(released: Sequence[int]) -> bytes:
    """For each segment the highest generation that was given up."""
    return _MARK.pack(*released)


def decode_release_mark(payload: bytes, path: str = "release mark") -> list[int]:
    """The inverse; `MetadataError` for any other length."""
    if len(payload) != _MARK.size:
        raise MetadataError(f"{path}: damaged: a release mark of {len(payload)} bytes")
    return list(_MARK.unpack(payload))


def _merged(extents: Iterable[Extent]) -> list[Extent]:
    """Sorted and disjoint."""
    result: list[Extent] = []
    for extent in sorted(extents):
        if result and extent.start <= result[-1].stop:
            if extent.stop > result[-1].stop:
                result[-1] = Extent(result[-1].start, extent.stop)
        else:
            result.append(extent)
    return result
