"""The file of a volume's digests: what one digest is, and how they lie on disk.

``<volume path>.pairsync-digests``, format version 1, all numbers little endian::

    offset   bytes         what
    0        4 KiB         header, slot 0 (``storage.slots``)
    4 KiB    4 KiB         header, slot 1
    8 KiB    4 KiB a page  the leaves: 8 bytes for each block of 4 KiB, 512 leaves (2 MiB of volume) a page
    end

A leaf is the xxh3_64 of its block's content (of what there is of the volume's last block), with two values
set apart: `ZERO_DIGEST` for a block that reads as zero, so that a hole of the volume is a hole of this file,
and `UNKNOWN_DIGEST` for a block whose content has to be read.  Leaves behind the last block are 0.

A *node* sums up 512 of what lies below: the xxh3_64 of a page of leaves (level 1, 2 MiB of volume) or of 512
such nodes (level 2, 1 GiB), 0 where all of them are 0.  What is missing behind the volume's end counts as 0,
so volumes of different size are compared too.  Equal children have equal nodes; different children have
equal nodes with a probability of 2**-64.

**Leaves have no checksum.**  A leaf that fell over does not fit its block any more, and is told from a
block that fell over by the peer's.  A page torn by a power cut or by a failed write, which is between two
sectors, only mixes old and new leaves, and which of these can be wrong is known (``storage.digesttable``).
The header is replaced as a whole.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import msgpack
from xxhash import xxh3_64_intdigest

from pairsync.core.messages import Buffer
from pairsync.core.questions import DIGEST_BYTES, FAN_OUT, UNKNOWN_DIGEST
from pairsync.core.units import BLOCK_BYTES, KIB, VOLUME_BYTES_MAX, block_count_of
from pairsync.errors import BackendError, InternalError, MetadataError

from .blockfile import BlockFile
from .slots import DualSlot
from .superblock import ID_BYTES

__all__ = [
    "LEAF_BYTES",
    "LEAVES_PER_NODE",
    "PAGE_BYTES",
    "RESERVED_HASHES",
    "UNKNOWN_DIGEST",
    "ZERO_DIGEST",
    "Header",
    "LeafFile",
    "block_digest",
    "block_digests",
    "data_pages",
    "decode_header",
    "digests_bytes",
    "digests_path",
    "encode_header",
    "header_slots",
    "node_digest",
    "pack_leaves",
    "unpack_leaves",
    "whole_digests",
]

ZERO_DIGEST: Final = 0
"""The block reads as zero."""
LEAVES_PER_NODE: Final = FAN_OUT
LEAF_BYTES: Final = DIGEST_BYTES
PAGE_BYTES: Final = LEAVES_PER_NODE * LEAF_BYTES

_LEAVES_AT: Final = 8 * KIB
_HEADER_KIND: Final = 3
_HEADER_SLOT_BYTES: Final = 4 * KIB
_MILESTONE_MAX: Final = (1 << 64) - 1

_PAGE_SHIFT: Final = LEAVES_PER_NODE.bit_length() - 1
_PAGE_MASK: Final = LEAVES_PER_NODE - 1
_ZERO_BLOCK: Final = bytes(BLOCK_BYTES)
_ZERO_PAGE: Final = bytes(PAGE_BYTES)

_RAW_ZERO: Final = xxh3_64_intdigest(_ZERO_BLOCK)
RESERVED_HASHES: Final = frozenset({ZERO_DIGEST, UNKNOWN_DIGEST, _RAW_ZERO})
"""Hash values of whole blocks that need a second look."""
_APART: Final = 1 << 63
"""Makes a hash that happens to be 0 or 1 another number."""

_PATCH_WRITES_MAX: Final = 2
"""Up to so many leaves of a page are written one by one; beyond, the page is read and written: two calls."""


# ------------------------------------------------------------------ digests


def block_digest(data: Buffer) -> int:
    """The digest of one block's content: `ZERO_DIGEST` for zeroes of any length, never `UNKNOWN_DIGEST`."""
    digest = xxh3_64_intdigest(data)
    if digest in RESERVED_HASHES or len(data) != BLOCK_BYTES:
        return _settled(digest, data)
    return digest


def _settled(digest: int, data: Buffer) -> int:
    """The digest of a block whose hash may stand for something else."""
    if data == _ZERO_BLOCK[: len(data)]:
        return ZERO_DIGEST
    return digest ^ _APART if digest in (ZERO_DIGEST, UNKNOWN_DIGEST) else digest


def block_digests(view: memoryview) -> list[int]:
    """`block_digest` of every block of the view; the last one may be partial."""
    rest = len(view) % BLOCK_BYTES
    whole = [view[at : at + BLOCK_BYTES] for at in range(0, len(view) - rest, BLOCK_BYTES)]
    digests = whole_digests(whole)
    if rest:
        digests.append(block_digest(view[-rest:]))
    return digests


def whole_digests(blocks: Sequence[Buffer]) -> list[int]:
    """`block_digest` of each of many whole blocks."""
    digests = list(map(xxh3_64_intdigest, blocks))
    if not RESERVED_HASHES.isdisjoint(digests):
        for index, digest in enumerate(digests):
            if digest in RESERVED_HASHES:
                digests[index] = _settled(digest, blocks[index])
    return digests


def node_digest(children: Buffer) -> int:
    """The digest over `PAGE_BYTES` of packed children."""
    if children == _ZERO_PAGE:
        return ZERO_DIGEST
    digest = xxh3_64_intdigest(children)
    return digest ^ _APART if digest in (ZERO_DIGEST, UNKNOWN_DIGEST) else digest


def pack_leaves(leaves: Sequence[int]) -> bytes:
    """Digests as they stand on disk and travel: 8 bytes each, little endian."""
    packed = leaves if isinstance(leaves, array) else array("Q", leaves)
    if sys.byteorder == "big":
        packed = packed[:]
        packed.byteswap()
    return packed.tobytes()


def unpack_leaves(raw: Buffer) -> array[int]:
    """The inverse of `pack_leaves`."""
    leaves = array("Q")
    leaves.frombytes(raw)
    if sys.byteorder == "big":
        leaves.byteswap()
    return leaves


# ------------------------------------------------------------------ the header


class Header(NamedTuple):
    """What the header slots say."""

    volume_id: bytes
    size_bytes: int
    known_below: int
    """Blocks from here on are unknown, whatever their leaves say."""
    milestone: int
    """The last that the active host gave this one as its standby (``core.states``); 0: none."""
    settled: bool
    """False while a standby uses the table: it has no write-intent log, so after its unclean end leaves may
    be older than their blocks, and only the active host's dirty map knows which."""


_KEYS: Final = frozenset(Header._fields)
_KEYS_BEFORE: Final = _KEYS - {"milestone"} | {"point"}
"""Of releases before there were milestones: they counted something else."""


def encode_header(header: Header) -> bytes:
    """The payload of a header slot; `InternalError` for a value that could not be read back."""
    if (wrong := _wrong_with(header)) is not None:
        raise InternalError(f"header of a digest table: {wrong}")
    packed: bytes = msgpack.packb(header._asdict())
    return packed


def decode_header(payload: bytes) -> Header:
    """The inverse; `MetadataError` for anything that `encode_header` does not give."""
    try:
        fields = msgpack.unpackb(payload, strict_map_key=True)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise MetadataError("damaged: the header is not msgpack") from error
    if isinstance(fields, dict) and fields.keys() == _KEYS_BEFORE:
        del fields["point"]
        fields["milestone"] = 0
    if not isinstance(fields, dict) or fields.keys() != _KEYS:
        raise MetadataError("damaged: the header has other fields than expected")
    header = Header(**fields)
    if (wrong := _wrong_with(header)) is not None:
        raise MetadataError(f"damaged: header: {wrong}")
    return header


def _wrong_with(header: Header) -> str | None:
    expected = (bytes, int, int, int, bool)
    if any(type(value) is not kind for value, kind in zip(header, expected, strict=True)):
        return "a field of another type"
    if len(header.volume_id) != ID_BYTES:
        return "volume_id"
    if not 1 <= header.size_bytes <= VOLUME_BYTES_MAX:
        return f"a volume of {header.size_bytes} bytes"
    if not 0 <= header.known_below <= block_count_of(header.size_bytes):
        return f"known below block {header.known_below} of {block_count_of(header.size_bytes)}"
    return None if 0 <= header.milestone <= _MILESTONE_MAX else "milestone"


def header_slots(file: BlockFile) -> DualSlot:
    """The slots that hold the header.  An older one is harmless: it is never *less* cautious."""
    return DualSlot(
        file,
        what="digest table's header",
        kind=_HEADER_KIND,
        offset=0,
        slot_bytes=_HEADER_SLOT_BYTES,
        mirrored=False,
    )


def digests_path(metadata_file: str) -> str:
    """Where the digests of a volume lie: beside its metadata file."""
    return metadata_file + "-digests"


def digests_bytes(size_bytes: int) -> int:
    """Size of the file for a volume of that size; it takes room only for blocks that are not zero."""
    pages = -(-block_count_of(size_bytes) // LEAVES_PER_NODE)
    return _LEAVES_AT + pages * PAGE_BYTES


# ------------------------------------------------------------------ the leaves


def data_pages(file: BlockFile, leaves_at: int, page: int, stop: int) -> int:
    """How many pages of leaves from ``page`` on, below ``stop``, there are before the next hole; one at
    least."""
    runs = file.allocation(leaves_at + page * PAGE_BYTES, (stop - page) * PAGE_BYTES)
    length, hole = runs[0]
    return 1 if hole else -(-length // PAGE_BYTES)


class LeafFile:
    """The leaves in their file.  One thread writes at a time; reads may run beside it."""

    def __init__(self, file: BlockFile) -> None:
        self.file = file
        # Something was written since the last flush began; at first by the process before this one, which may
        # have been killed: what is read of it here would not survive a power cut.
        self._unflushed = True
        self.before: Callable[[int, int], None] | None = None
        """Hears which pages are about to change (first, stop): see ``storage.pointcopy``."""

    def _tell(self, first: int, stop: int) -> None:
        """The leaves of these blocks are about to change."""
        self._unflushed = True
        if self.before is not None:
            self.before(first >> _PAGE_SHIFT, ((stop - 1) >> _PAGE_SHIFT) + 1)

    def read(self, first: int, stop: int) -> bytearray:
        """The leaves of these blocks, packed."""
        raw = bytearray((stop - first) * LEAF_BYTES)
        with memoryview(raw) as view:
            self.file.read_into(_LEAVES_AT + first * LEAF_BYTES, view)
        return raw

    def zero_pages(self, page: int, stop: int) -> int:
        """How many pages from ``page`` on, below ``stop``, are a hole of the file: all their blocks zero."""
        length = (stop - page) * PAGE_BYTES
        return self.file.hole_bytes(_LEAVES_AT + page * PAGE_BYTES, length) // PAGE_BYTES

    def data_pages(self, page: int, stop: int) -> int:
        """How many pages from ``page`` on, below ``stop``, there are before the next hole; one at least."""
        return data_pages(self.file, _LEAVES_AT, page, stop)

    def write(self, first: int, packed: Buffer) -> None:
        """Replace the leaves from block ``first`` on."""
        self._tell(first, first + len(packed) // LEAF_BYTES)
        self.file.write(_LEAVES_AT + first * LEAF_BYTES, (packed,))

    def zero(self, first: int, stop: int) -> None:
        """Make the leaves of a range `ZERO_DIGEST`; its whole pages become holes."""
        offset, end = _LEAVES_AT + first * LEAF_BYTES, _LEAVES_AT + stop * LEAF_BYTES
        if self.file.hole_bytes(offset, end - offset) < end - offset:
            self._tell(first, stop)
            self.file.zero(offset, end - offset, keep_space=False)

    def patch(self, leaves: Mapping[int, int]) -> list[int]:
        """Replace single leaves, block to digest; the numbers of the pages that were touched, ascending."""
        self._unflushed = True
        pages: list[int] = []
        blocks = sorted(leaves)
        write = self.file.write
        at, count = 0, len(blocks)
        while at < count:
            block = blocks[at]
            page = block >> _PAGE_SHIFT
            pages.append(page)
            end = at + 1
            if end < count and blocks[end] >> _PAGE_SHIFT == page:
                end = bisect_left(blocks, (page + 1) << _PAGE_SHIFT, end)
            self._tell(block, block + 1)
            if end - at <= _PATCH_WRITES_MAX:
                for block in blocks[at:end]:
                    write(_LEAVES_AT + block * LEAF_BYTES, (leaves[block].to_bytes(LEAF_BYTES, "little"),))
            elif blocks[end - 1] - block == end - at - 1:  # one run without a gap
                packed = pack_leaves([leaves[block] for block in blocks[at:end]])
                write(_LEAVES_AT + block * LEAF_BYTES, (packed,))
            else:
                self._patch_page(page, blocks[at:end], leaves)
            at = end
        return pages

    def _patch_page(self, page: int, blocks: Sequence[int], leaves: Mapping[int, int]) -> None:
        first = page << _PAGE_SHIFT
        content = unpack_leaves(self.read(first, first + LEAVES_PER_NODE))
        for block in blocks:
            content[block & _PAGE_MASK] = leaves[block]
        self.write(first, pack_leaves(content))

    def begin_flush(self) -> Callable[[], None]:
        """What makes durable all that was written until now; writing may go on beside it."""
        needed, self._unflushed = self._unflushed, False
        return self._flush if needed else _nothing

    def _flush(self) -> None:
        try:
            self.file.flush()
        except BackendError:
            self._unflushed = True  # for good: a file whose flush failed is never flushed again
            raise


def _nothing() -> None:
    """There is nothing to flush."""
