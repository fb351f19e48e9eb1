"""Fuzz targets of digests and points: files beside a volume that anything may have happened to.

A digest table is a summary of what lies elsewhere: a damaged one opens, made anew at worst.  A point that is
damaged is refused, or what is damaged of it counts as unknown.  Slots keep noise away from what lies behind
them, so the fuzzer's bytes come as the payload of a slot that is right.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgpack

from pairsync.core.dirty import DirtyMap
from pairsync.core.questions import UNKNOWN_DIGEST
from pairsync.core.units import block_count_of
from pairsync.errors import InternalError, MetadataError
from pairsync.storage import digestfile, pointfile
from pairsync.storage.digestfile import (
    LEAF_BYTES,
    LEAVES_PER_NODE,
    Header,
    decode_header,
    digests_bytes,
    encode_header,
    node_digest,
)
from pairsync.storage.digests import DigestTable, load_digests
from pairsync.storage.pointfile import PointHeader, load_point, point_bytes
from pairsync.storage.slots import SlotValue, encode_slot
from pairsync.testing.disks import SimDisk, SimMedium

ID = b"v" * 16
SIZE_BYTES = 1100 * 4096 - 100
BLOCKS = block_count_of(SIZE_BYTES)
SLOT_BYTES = 4096
BEHIND_SLOTS = 2 * SLOT_BYTES
NO_LIMIT = 1 << 40
UNKNOWN_PAGE = UNKNOWN_DIGEST.to_bytes(LEAF_BYTES, "little") * LEAVES_PER_NODE


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise InternalError(what)


def _medium(data: bytes, kind: int, size_bytes: int) -> SimMedium:
    """A file ``f``: the first byte says how long the payload of its slot is, the rest lies behind."""
    payload, rest = data[1 : 1 + data[0]] if data else b"", data[1 + data[0] :] if data else b""
    medium = SimMedium()
    medium.create("f", size_bytes)
    live = medium.platter("f", medium.life).live
    slot = encode_slot(kind, SlotValue(7, payload))
    live[: len(slot)] = slot
    live[BEHIND_SLOTS : BEHIND_SLOTS + len(rest)] = rest
    del live[size_bytes:]
    return medium


def _seed(payload: bytes, rest: bytes) -> bytes:
    return bytes([len(payload)]) + payload + rest


def _header(known_below: int) -> Header:
    return Header(ID, SIZE_BYTES, known_below, 3, settled=True)


# -- the table -----------------------------------------------------------------------------------------------


def fuzz_header(data: bytes) -> None:
    """A header, or damage; what is read can be written, and is the same then."""
    try:
        header = decode_header(data)
    except MetadataError:
        return
    _require(decode_header(encode_header(header)) == header, "a header that is read otherwise")


def seeds_header() -> Iterable[bytes]:
    """One of today, and one of before there were milestones."""
    yield encode_header(_header(5))
    fields = _header(BLOCKS)._asdict()
    del fields["milestone"]
    yield msgpack.packb({**fields, "point": 9})


def fuzz_table(data: bytes) -> None:
    """It opens, answers for all blocks, and once it is saved there is nothing to be said against it."""
    medium = _medium(data, digestfile._HEADER_KIND, digests_bytes(SIZE_BYTES))
    device = SimDisk(SimMedium(), "vda", SIZE_BYTES)
    table = _loaded(medium)
    _require(0 <= table.known_below <= BLOCKS, "more known than there is")
    answer = table.examine(device, 0, 0, BLOCKS, read_bytes_max=NO_LIMIT, pages_max=NO_LIMIT)
    _require(len(answer.digests) == BLOCKS * LEAF_BYTES, "not as many digests as blocks")
    table.mismatches(0, memoryview(bytes(20 * 4096)))
    _require(0 <= table.zero_bytes(0, SIZE_BYTES) <= SIZE_BYTES, "more zeroes than bytes")
    table.save()
    table.close()
    again = _loaded(medium, notes=0)
    _require(again.known_below == BLOCKS, "what was examined is not known")
    again.close()


def _loaded(medium: SimMedium, *, notes: int | None = None) -> DigestTable:
    opened = load_digests(medium.open("f"), volume_id=ID, size_bytes=SIZE_BYTES, doubtful=DirtyMap(BLOCKS))
    _require(notes in {None, len(opened.notes)}, f"notes of a table that is whole: {opened.notes}")
    return opened.table


def seeds_table() -> Iterable[bytes]:
    """All known, little known, of a smaller volume, of another one."""
    leaves = bytes(range(256)) * 16
    yield _seed(encode_header(_header(BLOCKS)), leaves)
    yield _seed(encode_header(_header(5)), leaves)
    yield _seed(encode_header(_header(5)._replace(size_bytes=4096 * 600 + 1)), leaves)
    yield _seed(encode_header(_header(5)._replace(volume_id=b"w" * 16)), b"")


# -- a point -------------------------------------------------------------------------------------------------


def fuzz_point(data: bytes) -> None:
    """It is refused, or can be read to its end; a page that does not fit its sum is unknown."""
    medium = _medium(data, pointfile._HEADER_KIND, point_bytes(SIZE_BYTES))
    try:
        point = load_point(medium.open("f"))
    except MetadataError:
        return
    blocks = block_count_of(point.header.size_bytes)
    _require(0 <= point.known_below(SIZE_BYTES) <= blocks, "more known than there is")
    page = 0
    while page < point.page_count:
        zero_pages = point.zero_pages(page, point.page_count)
        _require(0 <= zero_pages <= point.page_count - page, "more holes than pages")
        if not zero_pages:
            _require(point.data_pages(page, point.page_count) > 0, "neither data nor a hole")
        page += max(zero_pages, 1)
    sums = medium.content("f")[BEHIND_SLOTS:]
    for page in range(point.page_count):
        packed = point.read(page * LEAVES_PER_NODE, (page + 1) * LEAVES_PER_NODE)
        fits = node_digest(packed).to_bytes(LEAF_BYTES, "little") == sums[page * LEAF_BYTES :][:LEAF_BYTES]
        _require(fits or packed == UNKNOWN_PAGE, "a page that does not fit its sum is taken for good")


def seeds_point() -> Iterable[bytes]:
    """One whose first page fits its sum, and a smaller one."""
    header = PointHeader(ID, "monday", 7, 99, SIZE_BYTES, BLOCKS)
    page = bytes(range(256)) * 16
    sums = node_digest(page).to_bytes(LEAF_BYTES, "little").ljust(4096, b"\0")
    yield _seed(pointfile._encode(header), sums + page)
    yield _seed(pointfile._encode(header._replace(size_bytes=1, known_below=0)), sums)
