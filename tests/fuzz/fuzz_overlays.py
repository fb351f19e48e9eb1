"""Fuzz targets of overlays: what is read of a file that holds what is about to be overwritten.

Digests keep noise away from what lies behind them, so besides the decoders as they are there are targets that
put right digests in front of the fuzzer's bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from xxhash import xxh3_128_digest

from pairsync.core.messages import Generation
from pairsync.core.units import block_count_of
from pairsync.errors import InternalError, MetadataError
from pairsync.storage.overlayfile import (
    PAGE_BYTES,
    RECORDS_AT,
    Chunk,
    OverlayHeader,
    OverlayState,
    chunks_of,
    decode_overlay_header,
    decode_overlay_record,
    encode_overlay_header,
    encode_overlay_record,
    overlay_seed,
)
from pairsync.storage.overlaylog import OverlayLog, create_log, kept_blocks, open_log
from pairsync.testing.disks import SimMedium
from pairsync.testing.simfiles import SimDirectory

HEADER = OverlayHeader(
    pair_id=b"p" * 16,
    volume_id=b"v" * 16,
    volume="vda",
    size_bytes=5_000_001,
    number=1,
    created_s=5,
    lineage=(Generation(3, 1, 7), Generation(1, 1, 5)),
    target=Generation(3, 2, 9),
    state=OverlayState.UNDO,
    whole=True,
)
BLOCKS = block_count_of(HEADER.size_bytes)
SEED = overlay_seed(HEADER)
HEAD_BYTES = 48
BODY_AT = 64
FILE_BYTES_MAX = 64 * 1024
ADDED = chunks_of(700, memoryview(b"\x55" * 8192))


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise InternalError(what)


def fuzz_header(data: bytes) -> None:
    """A header, or damage; what is read is what would be written."""
    try:
        header = decode_overlay_header(data)
    except MetadataError:
        return
    _require(encode_overlay_header(header) == data, "two forms of one header")


def seeds_header() -> Iterable[bytes]:
    """A valid one."""
    yield encode_overlay_header(HEADER)


def _sample() -> bytes:
    content = memoryview(bytes(4096) + b"\x11" * 8192)
    return encode_overlay_record(3, 2, RECORDS_AT, [*chunks_of(5, content), Chunk(20, 90)], SEED)[0]


def fuzz_record(data: bytes) -> None:
    """A record's page, or nothing; what it names lies within the volume."""
    record = decode_overlay_record(data, RECORDS_AT, SEED, BLOCKS)
    if record is not None:
        blocks = sum(stop - start for start, stop, has_content in record.extents if has_content)
        _require(blocks == len(record.digests), "content of other blocks")
        _require(all(0 <= start < stop <= BLOCKS for start, stop, _ in record.extents), "outside the volume")
        _require(record.stop >= RECORDS_AT + PAGE_BYTES, "a record that leads nowhere")
        record.chunks(memoryview(bytes(len(record.digests) * 4096)))


def seeds_record() -> Iterable[bytes]:
    """A whole one."""
    yield _sample()


def _signed(page: bytes) -> bytes:
    page = page[:PAGE_BYTES].ljust(PAGE_BYTES, b"\0")
    digest = xxh3_128_digest(page[:HEAD_BYTES] + page[BODY_AT:], SEED)
    return page[:HEAD_BYTES] + digest + page[BODY_AT:]


def fuzz_signed_record(data: bytes) -> None:
    """The same behind a right digest: the numbers are the fuzzer's."""
    fuzz_record(_signed(data))


seeds_signed_record = seeds_record


def _made(appends: int) -> tuple[SimMedium, OverlayLog]:
    medium = SimMedium()
    log = create_log(SimDirectory(medium), "o", HEADER)
    log.commit()
    for number in range(appends):
        log.append(chunks_of(10 * number, memoryview(bytes([number]) * 8192)), durable=True)
    return medium, log


def _walk(medium: SimMedium) -> None:
    """Open it and read it to its end; one that is not damaged takes more, and has that afterwards."""
    try:
        log = open_log(SimDirectory(medium), "o")
    except MetadataError:
        return
    for record in log.records():
        chunks, damage = log.read(record)
        lost = sum(stop - start for start, stop in damage.extents) if damage else 0
        there = sum(chunk.stop - chunk.start for chunk in chunks)
        _require(there + lost == sum(stop - start for start, stop, _ in record.extents), "blocks got lost")
    kept_blocks(log)
    if log.damage:
        return
    log.settle()
    log.trim()
    count = log.record_count
    log.append(ADDED, durable=True)
    medium.process_crash()
    log = open_log(SimDirectory(medium), "o")
    _require(log.record_count == count + 1 and not log.damage, "what was added is not there")
    *_, last = log.records()
    chunks, damage = log.read(last)
    _require(
        damage is None and [bytes(each.data or b"") for each in chunks] == [b"\x55" * 8192], "or differs"
    )


def fuzz_file(data: bytes) -> None:
    """A whole file with bytes replaced."""
    medium, log = _made(3)
    for at in range(0, len(data) - 8, 9):  # a place in the file, and what falls over there
        place = int.from_bytes(data[at : at + 8], "little") % log.file.size_bytes
        medium.damage("o", place, data[at + 8])
    medium.process_crash()
    _walk(medium)


def seeds_file() -> Iterable[bytes]:
    """Hits in both slots, in a record's page and in its content, and in the last one's."""
    places = (0, PAGE_BYTES, RECORDS_AT + 70, RECORDS_AT + PAGE_BYTES, RECORDS_AT + 2 * 12288 + 9)
    for place in places:
        yield place.to_bytes(8, "little") + b"\x01"
    yield b"".join(place.to_bytes(8, "little") + b"\x80" for place in places[2:])


def fuzz_records(data: bytes) -> None:
    """A file of pages with right digests, whatever else they say."""
    medium, log = _made(0)
    log.close()
    records = bytearray()
    while data and len(records) < FILE_BYTES_MAX:
        length = 1 + int.from_bytes(data[:2], "little") % PAGE_BYTES
        records += _signed(data[2 : 2 + length])
        data = data[2 + length :]
    directory = SimDirectory(medium)
    file = directory.open("o")
    file.resize(RECORDS_AT + len(records))
    file.write(RECORDS_AT, (bytes(records),), durable=True)
    medium.process_crash()
    _walk(medium)


def seeds_records() -> Iterable[bytes]:
    """Three records without content, in order, and two of which the second claims to be another one."""

    def page(number: int, settled: int, at: int) -> bytes:
        whole = encode_overlay_record(number, settled, at, [Chunk(number * 9, number * 9 + 4)], SEED)[0]
        body = whole[: BODY_AT + 8]
        return struct.pack("<H", len(body) - 1) + body

    ats = [RECORDS_AT + number * PAGE_BYTES for number in range(3)]
    yield b"".join(page(number, number, at) for number, at in enumerate(ats))
    yield page(0, 0, ats[0]) + page(2, 2, ats[1])
