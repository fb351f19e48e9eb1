"""The dirty bitmap on disk: one bit a block, every sector vouching for itself.

The map comes in pages of 4096 bytes (32,768 blocks, 128 MiB of volume; bit ``i`` of byte ``j`` is block
``8j + i``), as ``core.dirty`` keeps them.  A page is stored as nine sectors of 512 bytes, each 456 bytes of
bits, zeroes up to 504, and an xxh3_64 seeded with the file's seed and the sector's number.  A sector that is
all zeroes has never been written: its blocks are clean, and it may be a hole.

Why this survives a crash while pages are being written: a disk writes a sector of 512 bytes whole or not at
all, so after a power cut each sector is an old or a new one.  Old bits are right as long as the journal's
segment with the new ones is not released, and the caller releases it only when the write has returned
(``core.tracker``).  Where even that fails - a sector torn within itself, bit rot, a write that went astray -
the digest does not fit, and **all blocks of that sector count as dirty**: 3648 blocks, 14 MiB of resync
instead of lost data.  Nothing about the bitmap can make a file unreadable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from xxhash import xxh3_64_digest

from pairsync.core.dirty import PAGE_BLOCKS, PAGE_BYTES
from pairsync.core.units import KIB, MIB
from pairsync.errors import InternalError

from .blockfile import BlockFile

__all__ = [
    "STORED_PAGE_BYTES",
    "Bitmap",
    "BitmapPage",
    "bitmap_area_bytes",
    "decode_page",
    "encode_page",
    "page_count_of",
]

_SECTOR_BYTES: Final = 512
_BITS_BYTES: Final = 456  # of a page, in each sector; the last holds 448
_SECTORS: Final = 9
_DIGEST_AT: Final = 504
_ZERO_SECTOR: Final = bytes(_SECTOR_BYTES)
_ALL_DIRTY: Final = b"\xff" * _BITS_BYTES

STORED_PAGE_BYTES: Final = _SECTORS * _SECTOR_BYTES

_ALIGNMENT_BYTES: Final = 4 * KIB
_PIECE_PAGES: Final = MIB // STORED_PAGE_BYTES
"""Pages read at a time: about 1 MiB."""


class BitmapPage(NamedTuple):
    """One page with a set bit; ``damaged_sectors`` of it were unreadable and are taken as dirty."""

    number: int
    content: bytes
    damaged_sectors: int


def page_count_of(block_count: int) -> int:
    """Pages of a bitmap for that many blocks."""
    return -(-block_count // PAGE_BLOCKS)


def bitmap_area_bytes(block_count: int) -> int:
    """Room of the bitmap in the file, whole 4 KiB."""
    stored = page_count_of(block_count) * STORED_PAGE_BYTES
    return -(-stored // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES


def encode_page(number: int, content: bytes, seed: int) -> bytes:
    """A page of `PAGE_BYTES` bytes as it is stored."""
    if len(content) != PAGE_BYTES:
        raise InternalError(f"a bitmap page of {len(content)} bytes")
    parts: list[bytes] = []
    mark = seed ^ number * _SECTORS
    for index in range(_SECTORS):
        bits = content[index * _BITS_BYTES : (index + 1) * _BITS_BYTES].ljust(_DIGEST_AT, b"\0")
        parts += (bits, xxh3_64_digest(bits, mark + index))
    return b"".join(parts)


def decode_page(number: int, stored: bytes | memoryview, seed: int) -> tuple[bytes, int]:
    """The page, and how many of its sectors did not fit their digest (their bits are all set)."""
    parts: list[bytes] = []
    damaged = 0
    mark = seed ^ number * _SECTORS
    for index in range(_SECTORS):
        sector = bytes(stored[index * _SECTOR_BYTES : (index + 1) * _SECTOR_BYTES])
        fits = sector[_DIGEST_AT:] == xxh3_64_digest(sector[:_DIGEST_AT], mark + index)
        if fits or sector == _ZERO_SECTOR:
            parts.append(sector[:_BITS_BYTES])
        else:
            parts.append(_ALL_DIRTY)
            damaged += 1
    return b"".join(parts)[:PAGE_BYTES], damaged


class Bitmap:
    """The bitmap area of one metadata file."""

    def __init__(self, file: BlockFile, *, offset: int, block_count: int, seed: int) -> None:
        self._file = file
        self._offset = offset
        self._block_count = block_count
        self._page_count = page_count_of(block_count)
        self._seed = seed

    def grow(self, block_count: int) -> None:
        """The volume has that many blocks now, and the file room for their bits."""
        self._block_count = block_count
        self._page_count = page_count_of(block_count)

    def write(self, pages: Mapping[int, bytes]) -> None:
        """Replace these pages; durable on return.  Neighbouring pages go in one call."""
        gathered: list[bytes] = []
        first = -1
        for number in sorted(pages):
            if not 0 <= number < self._page_count:
                raise InternalError(f"bitmap page {number} of {self._page_count}")
            if gathered and (number != first + len(gathered) or len(gathered) >= _PIECE_PAGES):
                self._file.write(self._place(first), gathered)
                gathered = []
            if not gathered:
                first = number
            gathered.append(encode_page(number, pages[number], self._seed))
        if gathered:
            self._file.write(self._place(first), gathered)
            self._file.flush()

    def _place(self, number: int) -> int:
        return self._offset + number * STORED_PAGE_BYTES

    def read(self) -> Iterator[BitmapPage]:
        """The pages that hold a set bit, ascending; holes of the file are not read."""
        at = 0
        while at < self._page_count:
            length = (self._page_count - at) * STORED_PAGE_BYTES
            runs = self._file.allocation(self._place(at), length)
            start = self._place(at)
            for run_bytes, is_hole in runs:
                if not is_hole:
                    first = (start - self._offset) // STORED_PAGE_BYTES
                    stop = -(-(start + run_bytes - self._offset) // STORED_PAGE_BYTES)
                    yield from self._read_pages(max(first, at), stop)
                    at = max(at, stop)  # a run may begin within the page that the last one ended in
                start += run_bytes
            at = max(at, (start - self._offset) // STORED_PAGE_BYTES)

    def _read_pages(self, first: int, stop: int) -> Iterator[BitmapPage]:
        for piece in range(first, stop, _PIECE_PAGES):
            count = min(_PIECE_PAGES, stop - piece)
            stored = memoryview(self._file.read(self._place(piece), count * STORED_PAGE_BYTES))
            for index in range(count):
                number = piece + index
                raw = stored[index * STORED_PAGE_BYTES : (index + 1) * STORED_PAGE_BYTES]
                content, damaged = decode_page(number, raw, self._seed)
                content = self._within_volume(number, content)
                if any(content):
                    yield BitmapPage(number, content, damaged)

    def _within_volume(self, number: int, content: bytes) -> bytes:
        """Without bits behind the last block (a damaged sector sets them)."""
        limit = self._block_count - number * PAGE_BLOCKS
        if limit >= PAGE_BLOCKS:
            return content
        kept = int.from_bytes(content, "little") & ((1 << limit) - 1)
        return kept.to_bytes(PAGE_BYTES, "little")
