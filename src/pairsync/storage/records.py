"""One page of the write-intent journal: bytes and back, no file.

A record is exactly one page of 4 KiB, written durably::

    offset  bytes  what
    0       4      magic "PSij"
    4       4      how many extents
    8       8      generation
    16      4      number of this record in its segment, from 0
    20      4      settled: records of the segment that were durable before this one was written
    24      4      segment
    28      4      zero
    32      16     xxh3_128 of bytes 0..31 and the extents, seeded with the file's seed
    48      8 each extents: first block in the low 40 bits, length in blocks (1 and up) in the high 24

The seed keeps records of another file out, the segment and number those of another place.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from xxhash import xxh3_128_digest

from pairsync.core.units import KIB, Extent
from pairsync.errors import InternalError

__all__ = [
    "BLOCK_COUNT_MAX",
    "EXTENTS_PER_RECORD",
    "RECORD_BYTES",
    "Record",
    "decode_record",
    "encode_record",
    "pack_extents",
]

RECORD_BYTES: Final = 4 * KIB
"""A page of the page cache and a block of the disk: a whole-page write reads nothing back first."""

BLOCK_COUNT_MAX: Final = 1 << 40
"""Blocks that 40 bits number: volumes of 4 PiB."""

_HEADER: Final = struct.Struct("<4sIQIIII")
_MAGIC: Final = b"PSij"
_HEAD_BYTES: Final = 48  # with the digest
_LENGTH_SHIFT: Final = 40
_LENGTH_MAX: Final = (1 << 24) - 1
_START_MASK: Final = BLOCK_COUNT_MAX - 1
_WORD_MAX: Final = (1 << 64) - 1

EXTENTS_PER_RECORD: Final = (RECORD_BYTES - _HEAD_BYTES) // 8


class Record(NamedTuple):
    """What a whole page says; ``words`` are packed extents."""

    segment: int
    generation: int
    number: int
    settled: int
    words: Sequence[int]

    def extents(self) -> list[Extent]:
        """The extents as they were noted; long ones may come in pieces."""
        return [
            Extent(word & _START_MASK, (word & _START_MASK) + (word >> _LENGTH_SHIFT)) for word in self.words
        ]


def pack_extents(extents: Sequence[tuple[int, int]], block_count: int) -> list[int]:
    """Extents as 64-bit words; too long ones are split.  `InternalError` for one that is not of the volume.

    Strict, because a record that does not make sense would make the whole file unreadable later.
    """
    words = [start | stop - start << _LENGTH_SHIFT for start, stop in extents]
    # A good word lies in this range: an empty extent is below it, a negative number or a length below zero
    # makes it negative, a length of more than 24 bits puts it above.
    if words and (min(words) <= _START_MASK or max([stop for _, stop in extents]) > block_count):
        raise InternalError(f"blocks {list(extents)[:8]} of a volume of {block_count}")
    return words if not words or max(words) <= _WORD_MAX else _pack_split(extents)


def _pack_split(extents: Iterable[tuple[int, int]]) -> list[int]:
    """The same for extents of which some are too long for one word."""
    return [
        piece | min(stop - piece, _LENGTH_MAX) << _LENGTH_SHIFT
        for start, stop in extents
        for piece in range(start, stop, _LENGTH_MAX)
    ]


def encode_record(record: Record, seed: int) -> bytes:
    """The page; at most `EXTENTS_PER_RECORD` words."""
    words = record.words
    if len(words) > EXTENTS_PER_RECORD:
        raise InternalError(f"a record of {len(words)} extents")
    head = _HEADER.pack(
        _MAGIC, len(words), record.generation, record.number, record.settled, record.segment, 0
    )
    payload = struct.pack(f"<{len(words)}Q", *words)
    return (head + xxh3_128_digest(head + payload, seed) + payload).ljust(RECORD_BYTES, b"\0")


def decode_record(page: bytes | memoryview, seed: int) -> Record | None:
    """What the page says; None if it is no whole record of this file (empty, torn, damaged, foreign)."""
    if len(page) < _HEAD_BYTES:
        return None
    magic, count, generation, number, settled, segment, zero = _HEADER.unpack_from(page)
    if magic != _MAGIC or count > EXTENTS_PER_RECORD or zero:
        return None
    payload = bytes(page[_HEAD_BYTES : _HEAD_BYTES + 8 * count])
    if len(payload) != 8 * count:
        return None
    if xxh3_128_digest(bytes(page[:32]) + payload, seed) != page[32:_HEAD_BYTES]:
        return None
    words = struct.unpack(f"<{count}Q", payload)
    return Record(segment, generation, number, settled, words)
