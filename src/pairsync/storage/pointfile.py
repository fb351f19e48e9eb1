"""The file of a point: the digests of all blocks of a volume as they were at one moment.

``<volume path>.pairsync-point-<name>``, format version 1, all numbers little endian::

    offset   bytes         what
    0        4 KiB         header, slot 0 (``storage.slots``)
    4 KiB    4 KiB         header, slot 1
    8 KiB    8 a page      the sum of each page of leaves, as a node of level 1; then zeroes to a whole 4 KiB
             4 KiB a page  the leaves, as in the digest table (``storage.digestfile``)
    end

A page all of whose leaves are 0 is a hole, and so is its sum.  Blocks from ``known_below`` (in the header)
on, and those whose leaf is `UNKNOWN_DIGEST`, were not known at that moment.

The digest table can do without checksums, since a leaf that fell over is told from its block.  Here nothing
else would tell: so a page that does not fit its sum counts as unknown, a page that was lost to zeroes
included.  An unknown block counts as changed: damage makes an increment larger, never wrong.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgpack

from pairsync.core.messages import PointMark, is_point_name
from pairsync.core.units import BLOCK_BYTES, KIB, VOLUME_BYTES_MAX, block_count_of
from pairsync.errors import InternalError, MetadataError

from .blockfile import BlockFile
from .digestfile import (
    LEAF_BYTES,
    LEAVES_PER_NODE,
    PAGE_BYTES,
    UNKNOWN_DIGEST,
    data_pages,
    node_digest,
    pack_leaves,
    unpack_leaves,
)
from .slots import DualSlot
from .superblock import ID_BYTES

__all__ = ["PointFile", "PointHeader", "load_point", "point_bytes"]

_SUMS_AT: Final = 8 * KIB
_HEADER_KIND: Final = 17
_HEADER_SLOT_BYTES: Final = 4 * KIB
_U64_MAX: Final = (1 << 64) - 1
_TIME_MAX: Final = 1 << 40

_PAGE_SHIFT: Final = LEAVES_PER_NODE.bit_length() - 1
_SUMS_BYTES: Final = 32 * KIB
"""Sums looked at for zeroes in one step: those of 8 GiB."""

_UNKNOWN_PAGE: Final = UNKNOWN_DIGEST.to_bytes(LEAF_BYTES, "little") * LEAVES_PER_NODE


class PointHeader(NamedTuple):
    """What the header slots say."""

    volume_id: bytes
    name: str
    tag: int
    created_s: int
    size_bytes: int
    """Of the volume, at that moment."""
    known_below: int
    """Blocks from here on are unknown, whatever their leaves say."""

    @property
    def mark(self) -> PointMark:
        """Which point it is."""
        return PointMark(self.name, self.tag, self.created_s)


def _wrong_with(header: PointHeader) -> str | None:
    expected = (bytes, str, int, int, int, int)
    if any(type(value) is not kind for value, kind in zip(header, expected, strict=True)):
        return "a field of another type"
    if len(header.volume_id) != ID_BYTES:
        return "volume_id"
    if not is_point_name(header.name):
        return "name"
    if not 0 <= header.tag <= _U64_MAX or not 0 <= header.created_s <= _TIME_MAX:
        return "tag or time"
    if not 1 <= header.size_bytes <= VOLUME_BYTES_MAX:
        return f"a volume of {header.size_bytes} bytes"
    if not 0 <= header.known_below <= block_count_of(header.size_bytes):
        return f"known below block {header.known_below} of {block_count_of(header.size_bytes)}"
    return None


def _encode(header: PointHeader) -> bytes:
    if (wrong := _wrong_with(header)) is not None:
        raise InternalError(f"header of a point: {wrong}")
    packed: bytes = msgpack.packb(header._asdict())
    return packed


def _decode(payload: bytes) -> PointHeader:
    try:
        fields = msgpack.unpackb(payload, strict_map_key=True)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise MetadataError("damaged: the header is not msgpack") from error
    if not isinstance(fields, dict) or fields.keys() != set(PointHeader._fields):
        raise MetadataError("damaged: the header has other fields than expected")
    header = PointHeader(**fields)
    if (wrong := _wrong_with(header)) is not None:
        raise MetadataError(f"damaged: header: {wrong}")
    return header


def _page_count(size_bytes: int) -> int:
    return -(-block_count_of(size_bytes) // LEAVES_PER_NODE)


def _leaves_at(size_bytes: int) -> int:
    sums_bytes = _page_count(size_bytes) * LEAF_BYTES
    return _SUMS_AT + -(-sums_bytes // PAGE_BYTES) * PAGE_BYTES


def point_bytes(size_bytes: int) -> int:
    """Size of the file for a volume of that size; it takes room only for blocks that are not zero."""
    return _leaves_at(size_bytes) + _page_count(size_bytes) * PAGE_BYTES


def _slots(file: BlockFile) -> DualSlot:
    return DualSlot(
        file,
        what="header of a point",
        kind=_HEADER_KIND,
        offset=0,
        slot_bytes=_HEADER_SLOT_BYTES,
        mirrored=False,
    )


def load_point(file: BlockFile) -> PointFile:
    """The point in that file; `MetadataError` if there is none or a newer version wrote it."""
    if file.size_bytes < point_bytes(1):
        raise MetadataError(f"{file.path}: damaged: {file.size_bytes} bytes are no point")
    payload, _ = _slots(file).load()
    try:
        header = _decode(payload)
    except MetadataError as error:
        raise MetadataError(f"{file.path}: {error}") from error
    if file.size_bytes < point_bytes(header.size_bytes):
        raise MetadataError(f"{file.path}: damaged: cut to {file.size_bytes} bytes")
    return PointFile(file, header)


class PointFile:
    """A point in its open file; reads may run beside each other."""

    def __init__(self, file: BlockFile, header: PointHeader) -> None:
        self.file = file
        self.header = header
        self._leaves_at = _leaves_at(header.size_bytes)

    @property
    def page_count(self) -> int:
        """Pages of leaves."""
        return _page_count(self.header.size_bytes)

    def known_below(self, size_bytes: int) -> int:
        """The first block that is unknown in a volume which has that size now.

        One that has grown since has another last block, if that was partial.
        """
        header = self.header
        if header.size_bytes == size_bytes:
            return header.known_below
        return min(header.known_below, min(header.size_bytes, size_bytes) // BLOCK_BYTES)

    def write_header(self) -> None:
        """Say what the file is; the caller flushes."""
        _slots(self.file).format(_encode(self.header))

    def write_pages(self, page: int, packed: bytearray) -> None:
        """Put in whole pages of leaves, as yet holes; those that are zero stay so."""
        # Slices, not views: these are compared by the byte.
        sums = [node_digest(packed[at : at + PAGE_BYTES]) for at in range(0, len(packed), PAGE_BYTES)]
        at, count = 0, len(sums)
        while at < count:
            if not sums[at]:
                at += 1
                continue
            end = at + 1
            while end < count and sums[end]:
                end += 1
            leaves = packed[at * PAGE_BYTES : end * PAGE_BYTES]
            self.file.write(self._leaves_at + (page + at) * PAGE_BYTES, (leaves,))
            self.file.write(_SUMS_AT + (page + at) * LEAF_BYTES, (pack_leaves(sums[at:end]),))
            at = end

    def zero_pages(self, page: int, stop: int) -> int:
        """How many pages from ``page`` on, below ``stop``, are certainly holes: all their blocks zero."""
        count = stop - page
        count = self.file.hole_bytes(self._leaves_at + page * PAGE_BYTES, count * PAGE_BYTES) // PAGE_BYTES
        sums_at, sums_bytes = _SUMS_AT + page * LEAF_BYTES, count * LEAF_BYTES
        hole_bytes = self.file.hole_bytes(sums_at, sums_bytes)
        if hole_bytes < sums_bytes:  # holes of a file are of whole file system blocks, 1 GiB of volume each
            sums = self.file.read(sums_at + hole_bytes, min(sums_bytes - hole_bytes, _SUMS_BYTES))
            hole_bytes += len(sums) - len(sums.lstrip(b"\0"))
        return hole_bytes // LEAF_BYTES

    def data_pages(self, page: int, stop: int) -> int:
        """How many pages from ``page`` on, below ``stop``, there are before the next hole; one at least."""
        return data_pages(self.file, self._leaves_at, page, stop)

    def read(self, first: int, stop: int) -> bytearray:
        """The leaves of these blocks, packed; `UNKNOWN_DIGEST` where they are damaged."""
        page, end = first >> _PAGE_SHIFT, ((stop - 1) >> _PAGE_SHIFT) + 1
        raw = bytearray((end - page) * PAGE_BYTES)
        with memoryview(raw) as view:
            self.file.read_into(self._leaves_at + page * PAGE_BYTES, view)
        sums = unpack_leaves(self.file.read(_SUMS_AT + page * LEAF_BYTES, (end - page) * LEAF_BYTES))
        for at, expected in zip(range(0, len(raw), PAGE_BYTES), sums, strict=True):
            if node_digest(raw[at : at + PAGE_BYTES]) != expected:
                raw[at : at + PAGE_BYTES] = _UNKNOWN_PAGE
        skipped = first - (page << _PAGE_SHIFT)
        return raw[skipped * LEAF_BYTES : (skipped + stop - first) * LEAF_BYTES]
