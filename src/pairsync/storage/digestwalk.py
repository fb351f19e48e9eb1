"""Answering from a digest table: finding what is unknown, comparing content, summing up.

A `Walk` answers one question about the leaves or nodes of a range, with the table at rest: all that was noted
is in the file, nobody else writes it, and nothing is applied to the device meanwhile (the data lane).  Then a
leaf is what the map of unknown blocks and the file say.  It goes up through the pages of leaves (2 MiB of
volume each), and what makes it cheap is what it passes over:

* pages that are a hole of the table, with no unknown block, are zero: any number of them in one step;
* unknown blocks in a hole of the *device* become zero without a read, likewise;
* a node that was computed before and is not stale is not computed again (`digeststate.NodeCache`).

Everything else is one page at a time: load its leaves, read what is unknown (or all of it, for a scrub) and
record that, hash.
"""

from __future__ import annotations

from array import array
from typing import Final, NamedTuple

from pairsync.core.questions import BAD_BLOCKS_MAX, BadBlock
from pairsync.core.units import BLOCK_BYTES, KIB, block_count_of
from pairsync.errors import BackendError, InternalError

from .device import Device
from .digestfile import (
    LEAF_BYTES,
    LEAVES_PER_NODE,
    PAGE_BYTES,
    UNKNOWN_DIGEST,
    ZERO_DIGEST,
    block_digest,
    block_digests,
    node_digest,
    pack_leaves,
    unpack_leaves,
    whole_digests,
)
from .digeststate import TableState

__all__ = ["ANSWER_NODES_MAX", "Examined", "Walk"]

ANSWER_NODES_MAX: Final = 65_536
"""Nodes in one answer: 512 KiB, half of what a frame holds; at level 1 the sum of 128 GiB."""

_BAD_MAX: Final = BAD_BLOCKS_MAX - LEAVES_PER_NODE
"""Bad blocks after which an answer ends at the next node of level 1: a message has room for all of them."""

_PIECE_BYTES: Final = 128 * KIB
"""Read and hashed at a time: stays in the processor's cache between the two."""

_PAGE_SHIFT: Final = LEAVES_PER_NODE.bit_length() - 1
_PAGE_MASK: Final = LEAVES_PER_NODE - 1
_UNKNOWN_LEAF: Final = UNKNOWN_DIGEST.to_bytes(LEAF_BYTES, "little")
_ZERO_PAGE: Final = bytes(PAGE_BYTES)


class Examined(NamedTuple):
    """An answer about the nodes ``first`` (of the question) to ``stop``."""

    stop: int
    """Where it ends; short of what was asked for where a bound was reached."""
    digests: bytes
    """8 bytes little endian a node."""
    bad: tuple[BadBlock, ...]
    """Ascending; they keep what was recorded."""
    filled: int
    """Unknown blocks that are known now."""


class Walk:
    """One question; see the module.  ``read``: compare all content with the leaves."""

    def __init__(
        self, state: TableState, device: Device, *, read: bool, read_bytes_max: int, pages_max: int
    ) -> None:
        if device.size_bytes < state.size_bytes:
            raise InternalError(
                f"{device.path}: has {device.size_bytes} bytes, its digest table is of {state.size_bytes}"
            )
        self._state = state
        self._device = device
        self._read = read
        self._read_bytes_left = read_bytes_max
        self._pages_left = pages_max
        self._digests = bytearray()
        self._bad: list[BadBlock] = []
        self._filled = 0
        self._incomplete = False
        """A block could neither be read nor is it recorded: sums over it will change, and are not kept."""
        self._view = memoryview(bytearray(_PIECE_BYTES))
        self._view_blocks = [self._view[at : at + BLOCK_BYTES] for at in range(0, _PIECE_BYTES, BLOCK_BYTES)]

    def answer(self, level: int, first: int, stop: int) -> Examined:
        """The nodes of that level; `BackendError` where the table fails."""
        if level not in (0, 1, 2):
            raise InternalError(f"level {level} of a digest table")
        node_count = -(-self._state.block_count // LEAVES_PER_NODE**level)
        if not 0 <= first <= stop <= node_count:
            raise InternalError(f"nodes {first}..{stop} of {node_count} at level {level}")
        step = (self._blocks, self._pages, self._spans)[level]
        at, limit = first, min(stop, first + ANSWER_NODES_MAX)
        while at < limit and (at == first or not self._spent()):
            at = step(at, limit)
        return Examined(at, bytes(self._digests), tuple(self._bad), self._filled)

    def _spent(self) -> bool:
        return self._read_bytes_left <= 0 or self._pages_left <= 0 or len(self._bad) >= _BAD_MAX

    # ------------------------------------------------------------------ one step of each level

    def _blocks(self, block: int, stop: int) -> int:
        """Answer some leaves; where the next ones begin."""
        page = block >> _PAGE_SHIFT
        if not block & _PAGE_MASK:
            quiet = self._quiet(page, self._pages_below(stop))
            if quiet:
                end = min((page + quiet) << _PAGE_SHIFT, stop)
                self._digests += bytes((end - block) * LEAF_BYTES)
                return end
        end = min((page + 1) << _PAGE_SHIFT, stop)
        if self._read:
            end = min(end, block + max(self._read_bytes_left // BLOCK_BYTES, 1))
        self._digests += self._leaves(block, end)
        return end

    def _pages_below(self, stop: int) -> int:
        """Pages that lie wholly below the block ``stop``; the volume's last one ends with it."""
        return self._state.page_count if stop == self._state.block_count else stop >> _PAGE_SHIFT

    def _pages(self, page: int, stop: int) -> int:
        quiet = self._quiet(page, stop)
        if quiet:
            self._digests += bytes(quiet * LEAF_BYTES)
            return page + quiet
        self._digests += self._page(page).to_bytes(LEAF_BYTES, "little")
        return page + 1

    def _spans(self, span: int, stop: int) -> int:
        page, end = span << _PAGE_SHIFT, min(stop << _PAGE_SHIFT, self._state.page_count)
        if not self._read and (known := self._state.nodes.span(span)) != UNKNOWN_DIGEST:
            self._digests += known.to_bytes(LEAF_BYTES, "little")
            return span + 1
        quiet = self._quiet(page, end)
        whole = stop - span if page + quiet == end else quiet >> _PAGE_SHIFT
        if whole:
            self._digests += bytes(whole * LEAF_BYTES)
            return span + whole
        children = array("Q", bytes(PAGE_BYTES))
        page_end = min(page + LEAVES_PER_NODE, end)
        page += quiet
        while page < page_end:
            children[page & _PAGE_MASK] = self._page(page)
            page += 1
            if page < page_end:
                page += self._quiet(page, page_end)
        node = node_digest(pack_leaves(children))
        self._digests += node.to_bytes(LEAF_BYTES, "little")
        if not self._incomplete:
            self._state.nodes.set_span(span, node)
        return span + 1

    # ------------------------------------------------------------------ pages

    def _quiet(self, page: int, stop: int) -> int:
        """How many pages from ``page`` on hold nothing but zeroes, as far as that is cheaply known."""
        end = max(page, stop)
        if self._read:
            end = self._settle_hole(page, end)
        elif self._state.unknown.count:
            known_end = self._state.known_pages_end(page, end)
            if known_end == page:  # the next pages have unknown blocks; a hole makes them known
                known_end = self._settle_hole(page, end)
            end = known_end
        return self._state.leaves.zero_pages(page, end) if page < end else 0

    def _settle_hole(self, page: int, stop: int) -> int:
        """Where the pages from ``page`` on end that are a hole of the device; their blocks become known."""
        if page >= stop:
            return page
        end = page + self._hole_pages(page, stop)
        first, last = page << _PAGE_SHIFT, min(end << _PAGE_SHIFT, self._state.block_count)
        if self._state.unknown.count and first < last:
            self._filled += self._state.zero_unknown(first, last)
        return end

    def _hole_pages(self, page: int, stop: int) -> int:
        """How many whole pages from ``page`` on are a hole of the device."""
        page_bytes = LEAVES_PER_NODE * BLOCK_BYTES
        offset = page * page_bytes
        end = min(stop * page_bytes, self._state.size_bytes)
        hole_bytes = self._hole_bytes(offset, end - offset)
        return stop - page if offset + hole_bytes == end else hole_bytes // page_bytes

    def _hole_bytes(self, offset: int, length: int) -> int:
        try:
            return self._device.hole_bytes(offset, length)
        except BackendError:
            return 0  # whether there is anything to read is shown by reading it

    def _page(self, page: int) -> int:
        """The level-1 node, computed where it is not known."""
        nodes = self._state.nodes
        if not self._read and (known := nodes.page(page)) != UNKNOWN_DIGEST:
            return known
        first = page << _PAGE_SHIFT
        leaves = self._leaves(first, min(first + LEAVES_PER_NODE, self._state.block_count))
        node = node_digest(leaves.ljust(PAGE_BYTES, b"\0"))
        if not self._incomplete:
            nodes.set_page(page, node)
        return node

    def _leaves(self, first: int, stop: int) -> bytearray:
        """The packed leaves of blocks of one page, after what is unknown was read."""
        state = self._state
        raw = state.read(first, stop)
        self._pages_left -= 1
        filled = self._compare(raw, first, stop) if self._read else self._fill(raw, first)
        if filled:
            self._filled += filled
            state.leaves.write(first, raw)
            state.make_known(first, stop)
            state.nodes.stale(first >> _PAGE_SHIFT, (first >> _PAGE_SHIFT) + 1)
        return raw

    def _fill(self, raw: bytearray, first: int) -> int:
        """Read the unknown blocks of these leaves and put them in; how many became known."""
        # No false "no"; a false "yes" is looked at more closely.  From the end: among zeroes, as most leaves
        # of a sparse volume are, that takes 6 us a page and from the start 31.
        if raw.rfind(_UNKNOWN_LEAF) < 0:
            return 0
        leaves = unpack_leaves(raw)
        filled = index = 0
        while index < len(leaves):
            if leaves[index] != UNKNOWN_DIGEST:
                index += 1
                continue
            end = index + 1
            while end < len(leaves) and leaves[end] == UNKNOWN_DIGEST:
                end += 1
            found = self._content(first + index, first + end)
            for block, digest in enumerate(found, first + index):
                if digest == UNKNOWN_DIGEST:
                    self._incomplete = True
                    self._bad.append(BadBlock(block, UNKNOWN_DIGEST, UNKNOWN_DIGEST))
                else:
                    filled += 1
            raw[index * LEAF_BYTES : end * LEAF_BYTES] = pack_leaves(found)
            index = end
        return filled

    def _compare(self, raw: bytearray, first: int, stop: int) -> int:
        """Read all blocks of these leaves; put in what was unknown, and say what is bad."""
        found = self._content(first, stop)
        if pack_leaves(found) == raw and UNKNOWN_DIGEST not in found:
            return 0
        leaves = unpack_leaves(raw)
        filled = 0
        for index, digest in enumerate(found):
            recorded = leaves[index]
            if recorded == digest != UNKNOWN_DIGEST:
                continue
            if recorded == UNKNOWN_DIGEST != digest:
                leaves[index] = digest
                filled += 1
            else:
                self._incomplete = self._incomplete or recorded == UNKNOWN_DIGEST
                self._bad.append(BadBlock(first + index, recorded, digest))
        raw[:] = pack_leaves(leaves)
        return filled

    # ------------------------------------------------------------------ content

    def _content(self, first: int, stop: int) -> list[int]:
        """The digests of the blocks as they are on the device; `UNKNOWN_DIGEST` where it cannot be read."""
        digests: list[int] = []
        end = min(stop * BLOCK_BYTES, self._state.size_bytes)
        at = first * BLOCK_BYTES
        while at < end:
            hole_bytes = self._hole_bytes(at, end - at)
            hole_blocks = block_count_of(end - at) if at + hole_bytes == end else hole_bytes // BLOCK_BYTES
            if hole_blocks:
                digests += [ZERO_DIGEST] * hole_blocks
                at = min(at + hole_blocks * BLOCK_BYTES, end)
                continue
            length = min(_PIECE_BYTES, end - at)
            digests += self._piece(at, length)
            self._read_bytes_left -= length
            at += length
        return digests

    def _piece(self, offset: int, length: int) -> list[int]:
        view = self._view[:length]
        try:
            self._device.read_into(offset, view)
        except BackendError:
            # Which of its blocks it is, is found one by one.
            blocks = range(0, length, BLOCK_BYTES)
            return [self._single(offset + at, view[at : at + BLOCK_BYTES]) for at in blocks]
        if length % BLOCK_BYTES:
            return block_digests(view)
        return whole_digests(self._view_blocks[: length // BLOCK_BYTES])

    def _single(self, offset: int, view: memoryview) -> int:
        try:
            self._device.read_into(offset, view)
        except BackendError:
            return UNKNOWN_DIGEST  # the caller reports the block
        return block_digest(view)
