"""One overlay on disk: old content of blocks, appended record by record.

``<volume>.pairsync-overlay-<number>``, all numbers little endian, everything in pages of 4 KiB::

    offset  bytes    what
    0       4 KiB    header, slot 0                     storage.slots; the payload is msgpack
    4 KiB   4 KiB    header, slot 1
    8 KiB            records, one behind the other

    a record: one page, then the content of its blocks that hold data, in the order of its extents
    0       4        magic "PSov"
    4       4        how many extents
    8       8        number of this record, from 0
    16      8        settled: how many records were durable before this one was written
    24      8        offset of this record in the file
    32      4        how many blocks of content follow
    36      12       zero
    48      16       xxh3_128 of the rest of the page, seeded with the file's seed
    64      8 each   extents: first block in the low 40 bits, length in blocks in the next 23; the highest bit
                     is set where content follows; else the blocks read as zero
            8 each   xxh3_64 of each block of content; then zeroes

A digest for every block lets a single lost block be named, and all others be used.  The last block of a
volume may be partial: it is filled up with zeroes here.  A file of one number and volume never has two lives
(its seed names volume, number and time), and a record names its own place and number, so nothing that merely
looks like a record is taken for one.

**What a crash leaves.**  All records of one append are durable before the next append begins and before any
of their blocks is overwritten.  So a place that holds no whole record is the torn end, and is cut off, unless
a later whole record counts it as settled, or the header does (`OverlayHeader.record_count`): then it is
damage.  Content is verified when it is read, and for the last append when the file is opened.  Damage to the
last append of a log that was not closed in order looks like a torn end and cannot be told from it.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import msgpack
from xxhash import xxh3_64_intdigest, xxh3_128_digest

from pairsync.core.messages import Buffer, Generation
from pairsync.core.superblock import LINEAGE_GENERATIONS_MAX
from pairsync.core.units import BLOCK_BYTES, KIB, block_count_of
from pairsync.errors import InternalError, MetadataError

from .superblock import ID_BYTES, NAME_BYTES_MAX

__all__ = [
    "BLOCKS_PER_RECORD",
    "EXTENTS_PER_RECORD",
    "OVERLAY_KIND",
    "PAGE_BYTES",
    "RECORDS_AT",
    "Chunk",
    "OverlayHeader",
    "OverlayInfo",
    "OverlayRecord",
    "OverlayState",
    "chunks_of",
    "decode_overlay_header",
    "decode_overlay_record",
    "encode_overlay_header",
    "encode_overlay_record",
    "overlay_info",
    "overlay_seed",
    "pack_chunks",
]

PAGE_BYTES: Final = 4 * KIB
RECORDS_AT: Final = 2 * PAGE_BYTES

OVERLAY_KIND: Final = 16
"""Of the header's slots; sets them apart from those of a metadata file."""

BLOCKS_PER_RECORD: Final = 256
"""1 MiB of content: what is read, verified and put back in one piece."""
EXTENTS_PER_RECORD: Final = 248
"""What is left of the page beside the head and 256 digests."""

_HEAD: Final = struct.Struct("<4sIQQQI12x")
_HEAD_BYTES: Final = 64  # with the digest
_MAGIC: Final = b"PSov"
_START_BITS: Final = 40
_START_MASK: Final = (1 << _START_BITS) - 1
_LENGTH_MAX: Final = (1 << 23) - 1  # blocks: 32 GiB; a longer extent is several
_DATA_BIT: Final = 1 << 63

_ZERO_BLOCK: Final = bytes(BLOCK_BYTES)
_ZERO_DIGEST: Final = xxh3_64_intdigest(_ZERO_BLOCK)

_U64_MAX: Final = (1 << 64) - 1


class OverlayState(enum.IntEnum):
    """What an overlay is for."""

    UNDO = 0
    """A resync is under way: the way back to the last consistent point."""
    KEPT = 1
    """The resync is complete: what the replica had written on its own."""


@dataclass(frozen=True, slots=True)
class OverlayHeader:
    """What the file as a whole says; the counts are exact once `OverlayState.KEPT`, else lower bounds."""

    pair_id: bytes
    volume_id: bytes
    volume: str
    size_bytes: int  # of the volume
    number: int
    created_s: int  # Unix time
    lineage: tuple[Generation, ...]  # of the replica whose content this is, newest first
    target: Generation  # towards which it was overwritten
    state: OverlayState
    whole: bool  # begun on a consistent replica, nothing left out since: putting it back is consistent
    record_count: int = 0  # records that are certainly durable
    block_count: int = 0  # blocks kept
    data_block_count: int = 0  # of them, with content


@dataclass(frozen=True, slots=True)
class OverlayInfo:
    """One overlay, for people and for the command line."""

    id: str
    """Names it among those of its replica; never used again while a newer one exists."""
    state: OverlayState
    volume: str
    created_s: int
    """Unix time, of the host that keeps it, when the resync began."""
    lineage: tuple[Generation, ...]
    """Of the replica whose content it holds, newest first."""
    target: Generation
    """Towards which that replica was overwritten."""
    whole: bool
    """Everything that the resync had overwritten is there: with `OverlayState.UNDO`, putting it back leads to
    the last consistent point."""
    block_count: int
    data_bytes: int
    """Content; the other blocks read as zero."""
    file_bytes: int


def overlay_info(header: OverlayHeader, file_bytes: int) -> OverlayInfo:
    """A header as it is told to people."""
    return OverlayInfo(
        id=str(header.number),
        state=header.state,
        volume=header.volume,
        created_s=header.created_s,
        lineage=header.lineage,
        target=header.target,
        whole=header.whole,
        block_count=header.block_count,
        data_bytes=header.data_block_count * BLOCK_BYTES,
        file_bytes=file_bytes,
    )


class Chunk(NamedTuple):
    """Content of a run of blocks: ``data`` and a digest for each block, or neither: they read as zero."""

    start: int
    stop: int
    data: memoryview | None = None
    digests: Sequence[int] = ()

    def part(self, start: int, stop: int) -> Chunk:
        """The blocks ``start <= block < stop`` of it, which are all within."""
        if self.data is None:
            return Chunk(start, stop)
        first, last = start - self.start, stop - self.start
        return Chunk(
            start, stop, self.data[first * BLOCK_BYTES : last * BLOCK_BYTES], self.digests[first:last]
        )


class OverlayRecord(NamedTuple):
    """What a record's page says."""

    number: int
    settled: int
    offset: int  # of the page, in the file
    extents: Sequence[tuple[int, int, bool]]  # start, stop, whether content follows
    digests: Sequence[int]

    @property
    def stop(self) -> int:
        """Where the next record begins."""
        return self.offset + PAGE_BYTES + len(self.digests) * BLOCK_BYTES

    def chunks(self, content: memoryview) -> tuple[list[Chunk], list[tuple[int, int]]]:
        """The record with its ``content``: what is whole, and the blocks whose content is not."""
        found: list[Chunk] = []
        lost: list[tuple[int, int]] = []
        at = 0
        for start, stop, has_data in self.extents:
            if not has_data:
                found.append(Chunk(start, stop))
                continue
            count = stop - start
            data = content[at * BLOCK_BYTES : (at + count) * BLOCK_BYTES]
            whole = Chunk(start, stop, data, self.digests[at : at + count])
            at += count
            bad = [start + i for i, each in enumerate(_digests_of(data)) if each != whole.digests[i]]
            lost += [(block, block + 1) for block in bad]
            edges = [start, *(edge for block in bad for edge in (block, block + 1)), stop]
            found += [
                whole.part(*run) for run in zip(edges[::2], edges[1::2], strict=True) if run[0] < run[1]
            ]
        return found, lost


def _digests_of(data: memoryview) -> list[int]:
    return [xxh3_64_intdigest(data[at : at + BLOCK_BYTES]) for at in range(0, len(data), BLOCK_BYTES)]


def chunks_of(start: int, data: memoryview) -> list[Chunk]:
    """Content of whole blocks from ``start`` on, as chunks; blocks of zeroes carry none."""
    digests = _digests_of(data) if len(data) > BLOCK_BYTES else [xxh3_64_intdigest(data)]
    stop = start + len(digests)
    if _ZERO_DIGEST not in digests:
        return [Chunk(start, stop, data, digests)]
    whole = Chunk(start, stop, data, digests)
    zeroes = [
        each == _ZERO_DIGEST and bytes(data[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES]) == _ZERO_BLOCK
        for at, each in enumerate(digests)
    ]
    found: list[Chunk] = []
    first = 0
    for at in range(1, len(zeroes) + 1):
        if at == len(zeroes) or zeroes[at] is not zeroes[first]:
            run = start + first, start + at
            found.append(Chunk(*run) if zeroes[first] else whole.part(*run))
            first = at
    return found


def pack_chunks(chunks: Sequence[Chunk]) -> Iterator[list[Chunk]]:
    """The chunks as the contents of records, in order; those that are too long are split."""
    record: list[Chunk] = []
    room = BLOCKS_PER_RECORD
    for chunk in chunks:
        start = chunk.start
        while start < chunk.stop:
            if len(record) == EXTENTS_PER_RECORD or (chunk.data is not None and not room):
                yield record
                record, room = [], BLOCKS_PER_RECORD
            longest = _LENGTH_MAX if chunk.data is None else room
            stop = min(chunk.stop, start + longest)
            record.append(chunk if stop - start == chunk.stop - chunk.start else chunk.part(start, stop))
            if chunk.data is not None:
                room -= stop - start
            start = stop
    if record:
        yield record


def encode_overlay_record(
    number: int, settled: int, offset: int, chunks: Sequence[Chunk], seed: int
) -> tuple[bytes, list[Buffer]]:
    """The page of a record, and the content that goes behind it."""
    words = [
        chunk.start | chunk.stop - chunk.start << _START_BITS | (0 if chunk.data is None else _DATA_BIT)
        for chunk in chunks
    ]
    digests = [digest for chunk in chunks for digest in chunk.digests]
    contents: list[Buffer] = [chunk.data for chunk in chunks if chunk.data is not None]
    content_bytes = sum(map(len, contents))
    if (
        len(words) > EXTENTS_PER_RECORD
        or len(digests) > BLOCKS_PER_RECORD
        or content_bytes != len(digests) * BLOCK_BYTES
    ):
        raise InternalError(
            f"an overlay record of {len(words)} extents, {len(digests)} digests, {content_bytes} bytes"
        )
    head = _HEAD.pack(_MAGIC, len(words), number, settled, offset, len(digests))
    body = struct.pack(f"<{len(words) + len(digests)}Q", *words, *digests)
    body = body.ljust(PAGE_BYTES - _HEAD_BYTES, b"\0")
    return head + xxh3_128_digest(head + body, seed) + body, contents


def decode_overlay_record(
    page: bytes, offset: int, seed: int, volume_block_count: int
) -> OverlayRecord | None:
    """What the page at ``offset`` says; None if it is no whole record of this file that lies there."""
    if len(page) != PAGE_BYTES or not page.startswith(_MAGIC):
        return None
    _, word_count, number, settled, place, digest_count = _HEAD.unpack_from(page)
    if place != offset or word_count > EXTENTS_PER_RECORD or digest_count > BLOCKS_PER_RECORD:
        return None
    if xxh3_128_digest(page[:48] + page[_HEAD_BYTES:], seed) != page[48:_HEAD_BYTES]:
        return None
    numbers = struct.unpack_from(f"<{word_count + digest_count}Q", page, _HEAD_BYTES)
    extents = [
        (word & _START_MASK, (word & _START_MASK) + (word >> _START_BITS & _LENGTH_MAX), bool(word >> 63))
        for word in numbers[:word_count]
    ]
    content = sum(stop - start for start, stop, has_data in extents if has_data)
    if content != digest_count or any(not start < stop <= volume_block_count for start, stop, _ in extents):
        return None
    return OverlayRecord(number, settled, offset, extents, numbers[word_count:])


# ---------------------------------------------------------------------- the header


def overlay_seed(header: OverlayHeader) -> int:
    """Sets the digests of one overlay apart from those of any other, 64 bits."""
    return xxh3_64_intdigest(
        header.pair_id + header.volume_id + struct.pack("<QQ", header.number, header.created_s)
    )


def encode_overlay_header(header: OverlayHeader) -> bytes:
    """The payload of a header slot; `InternalError` for a value that could not be read back."""
    what = _judge_header(header)
    if what is not None:
        raise InternalError(f"overlay header: {what}")
    return _pack_header(header)


def decode_overlay_header(payload: bytes) -> OverlayHeader:
    """The inverse; `MetadataError` for anything that `encode_overlay_header` does not give."""
    try:
        fields = msgpack.unpackb(payload, strict_map_key=True)  # its limits follow from the length
        header = _unpack_header(fields)
        what = _judge_header(header)
        if what is None and _pack_header(header) != payload:
            what = "not in the one form that is written"
    except (ValueError, TypeError, KeyError, msgpack.exceptions.UnpackException) as error:
        raise MetadataError("damaged: overlay header: other fields than expected") from error
    if what is not None:
        raise MetadataError(f"damaged: overlay header: {what}")
    return header


def _pack_header(header: OverlayHeader) -> bytes:
    fields = {name: getattr(header, name) for name in OverlayHeader.__dataclass_fields__}
    fields["lineage"] = [list(generation) for generation in header.lineage]
    fields["target"] = list(header.target)
    fields["state"] = int(header.state)
    packed: bytes = msgpack.packb(fields)
    return packed


def _unpack_header(fields: Any) -> OverlayHeader:
    if not isinstance(fields, dict) or fields.keys() != OverlayHeader.__dataclass_fields__.keys():
        raise ValueError("other fields than expected")
    return OverlayHeader(
        **{
            **fields,
            "lineage": tuple(Generation(*each) for each in fields["lineage"]),
            "target": Generation(*fields["target"]),
            "state": OverlayState(fields["state"]),
        }
    )


def _judge_header(header: OverlayHeader) -> str | None:
    """What is wrong with it: types and ranges, on the way out as on the way in."""
    kinds = (bytes, bytes, str, bool)
    values = (header.pair_id, header.volume_id, header.volume, header.whole)
    if any(type(value) is not kind for value, kind in zip(values, kinds, strict=True)):
        return "a value of another type than expected"
    if any(len(each) != ID_BYTES for each in (header.pair_id, header.volume_id)):
        return f"an id that has not {ID_BYTES} bytes"
    if len(header.volume.encode()) > NAME_BYTES_MAX or len(header.lineage) > LINEAGE_GENERATIONS_MAX:
        return "the volume's name, or its lineage, is too long"
    numbers = [header.size_bytes, header.number, header.created_s, *header.target]
    numbers += [header.record_count, header.block_count, header.data_block_count]
    numbers += [number for generation in header.lineage for number in generation]
    if any(type(each) is not int or not 0 <= each <= _U64_MAX for each in numbers):
        return "a number beyond 64 bits"
    if not 1 <= header.size_bytes <= _START_MASK * BLOCK_BYTES:
        return f"a volume of {header.size_bytes} bytes"
    if not header.data_block_count <= header.block_count <= block_count_of(header.size_bytes):
        return f"{header.block_count} blocks kept, {header.data_block_count} with content"
    return None
