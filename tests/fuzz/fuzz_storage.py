"""Fuzz targets of the storage room: what is read from a metadata file that anything may have happened to.

Digests keep noise away from what lies behind them, so besides the decoders as they are there are targets
that put a right digest in front of the fuzzer's bytes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable

from xxhash import xxh3_64_digest, xxh3_128_digest

from pairsync.core.dirty import PAGE_BYTES, DirtyMap
from pairsync.core.messages import Condition, Generation
from pairsync.core.superblock import Superblock
from pairsync.core.units import block_count_of
from pairsync.errors import InternalError, MetadataError
from pairsync.storage.bitmap import STORED_PAGE_BYTES, Bitmap, decode_page, encode_page
from pairsync.storage.metadata import format_metadata, load_metadata, metadata_bytes
from pairsync.storage.records import RECORD_BYTES, Record, decode_record, encode_record
from pairsync.storage.slots import SlotValue, decode_slot, encode_slot
from pairsync.storage.superblock import Layout, decode_superblock, encode_superblock
from pairsync.testing.disks import SimMedium

SEED = 5
KIND = 1
SEGMENT_BYTES = 16 * 1024
SIZE_BYTES = 5_000_001

_SUPERBLOCK = Superblock(
    pair_id=b"p" * 16,
    volume_id=b"v" * 16,
    name="vda",
    size_bytes=SIZE_BYTES,
    term=3,
    condition=Condition.SYNCING,
    lineage=(Generation(3, 1, 7), Generation(1, 1, 5)),
    sync_target=Generation(3, 2, 9),
    peer_in_sync=False,
    map_base=Generation(1, 1, 5),
    clean=True,
    boot_id="b",
)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise InternalError(what)


def fuzz_superblock(data: bytes) -> None:
    """A superblock, or damage; what is read is what would be written."""
    try:
        layout, superblock = decode_superblock(data)
    except MetadataError:
        return
    _require(encode_superblock(layout, superblock) == data, "two forms of one superblock")


def seeds_superblock() -> Iterable[bytes]:
    """Valid payloads."""
    yield encode_superblock(Layout(4096, SEED), _SUPERBLOCK)


def fuzz_slot(data: bytes) -> None:
    """A slot's value, nothing, or a newer version."""
    try:
        value = decode_slot(KIND, data)
    except MetadataError:
        return
    if value is not None:
        _require(
            encode_slot(KIND, value).startswith(data[: 48 + len(value.payload)]), "two forms of one slot"
        )


def seeds_slot() -> Iterable[bytes]:
    """A whole slot, and one of a newer version."""
    yield encode_slot(KIND, SlotValue(7, b"payload"))
    prefix = struct.pack("<8sI", b"PAIRSYNC", 2)
    yield prefix + struct.pack("<I", zlib.crc32(prefix)) + b"more"


def fuzz_record(data: bytes) -> None:
    """A journal record, or nothing."""
    record = decode_record(data, SEED)
    if record is not None:
        page = encode_record(record, SEED)
        _require(decode_record(page, SEED) == record, "a record that is read otherwise")
        record.extents()


def seeds_record() -> Iterable[bytes]:
    """A whole record."""
    yield encode_record(Record(0, 1, 0, 0, [1 | 1 << 40, 9 | 7 << 40]), SEED)


def fuzz_signed_record(data: bytes) -> None:
    """The same behind a right digest: the header's numbers are the fuzzer's."""
    page = data[:RECORD_BYTES].ljust(RECORD_BYTES, b"\0")
    (count,) = struct.unpack_from("<I", page, 4)
    payload = page[48 : 48 + 8 * count]
    fuzz_record(page[:32] + xxh3_128_digest(page[:32] + payload, SEED) + page[48:])


seeds_signed_record = seeds_record


def fuzz_bitmap_page(data: bytes) -> None:
    """Any sector is bits or counts as all dirty; the page always loads."""
    stored = data[:STORED_PAGE_BYTES].ljust(STORED_PAGE_BYTES, b"\0")
    content, damaged = decode_page(0, stored, SEED)
    _require(len(content) == PAGE_BYTES, "a page of another size")
    _require(0 <= damaged <= 9, "more damage than sectors")
    medium = SimMedium()
    medium.create("m", 8192)
    file = medium.open("m")
    file.write(0, (stored,))
    blocks = 1000
    dirty = DirtyMap(blocks)
    for page in Bitmap(file, offset=0, block_count=blocks, seed=SEED).read():
        dirty.load_page(page.number, page.content)


def seeds_bitmap_page() -> Iterable[bytes]:
    """A whole page, and one with a right digest over bits behind the volume."""
    yield encode_page(0, b"\x11" * PAGE_BYTES, SEED)
    bits = (b"\xff" * 456).ljust(504, b"\0")
    yield bits + xxh3_64_digest(bits, SEED)


def fuzz_file(data: bytes) -> None:
    """A whole metadata file with bytes replaced: it opens, or it says why not."""
    medium = SimMedium()
    medium.create("m", metadata_bytes(SIZE_BYTES, SEGMENT_BYTES))
    file = medium.open("m")
    format_metadata(file, _SUPERBLOCK, segment_bytes=SEGMENT_BYTES)
    store = load_metadata(file).store
    store.append_intents(0, 1, [(1, 3)])
    store.append_intents(1, 2, [(4, 9)])
    store.write_bitmap({0: b"\x01" * 150 + bytes(PAGE_BYTES - 150)})
    for at in range(0, len(data) - 8, 9):  # a place in the file, and what falls over there
        place = int.from_bytes(data[at : at + 8], "little") % file.size_bytes
        medium.damage("m", place, data[at + 8])
    medium.process_crash()
    try:
        opened = load_metadata(medium.open("m"))
    except MetadataError:
        return
    dirty = DirtyMap(block_count_of(opened.superblock.size_bytes))
    for start, stop in opened.intents:
        dirty.mark(start, stop)
    for page in opened.pages:
        dirty.load_page(page.number, page.content)


def seeds_file() -> Iterable[bytes]:
    """Hits in the slots, the mark, both segments and the bitmap."""
    for place in (0, 12, 20, 60, 16384 + 30, 32768 + 50, 65536 + 4, 65536 + 16384 + 48, 65536 + 32768 + 5):
        yield place.to_bytes(8, "little") + b"\x01"
