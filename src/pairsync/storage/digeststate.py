"""What a digest table has brought to its file: the leaves, which of them are unknown, and known nodes.

Below the layers of what is pending (``storage.digestlayer``).  Who changes any of it holds the table's write
lock, and who only looks does too.
"""

from __future__ import annotations

import threading
from array import array
from dataclasses import dataclass, field
from typing import Final

from pairsync.core.dirty import DirtyMap
from pairsync.core.units import Extent

from .digestfile import LEAF_BYTES, LEAVES_PER_NODE, UNKNOWN_DIGEST, LeafFile
from .digestlayer import Layer

__all__ = ["NodeCache", "TableState", "mask_unknown"]

_SPANS_MAX: Final = 4096
"""Level-2 nodes whose 512 children are kept, 4 KiB each: 16 MiB for 4 TiB that hold data everywhere."""

_UNKNOWN_LEAVES_MAX: Final = 262_144
"""Unknown blocks (1 GiB) up to which they are made leaves of the file."""

_ZERO_LOOKS_MAX: Final = 64
"""Looks for one run of zero leaves: at a page that was read (2 MiB of volume), or a hole of any length."""

_PAGE_SHIFT: Final = LEAVES_PER_NODE.bit_length() - 1
_PAGE_MASK: Final = LEAVES_PER_NODE - 1
_UNKNOWN_LEAF: Final = UNKNOWN_DIGEST.to_bytes(LEAF_BYTES, "little")


class NodeCache:
    """Nodes computed before: level 1 in an array for each level-2 node; `UNKNOWN_DIGEST` means stale."""

    def __init__(self) -> None:
        self._spans: dict[int, array[int]] = {}
        self._tops: dict[int, int] = {}  # level 2; a value only while none of its children is stale

    def page(self, page: int) -> int:
        """The level-1 node, or `UNKNOWN_DIGEST`."""
        nodes = self._spans.get(page >> _PAGE_SHIFT)
        return UNKNOWN_DIGEST if nodes is None else nodes[page & _PAGE_MASK]

    def span(self, span: int) -> int:
        """The level-2 node, or `UNKNOWN_DIGEST`."""
        return self._tops.get(span, UNKNOWN_DIGEST)

    def set_page(self, page: int, node: int) -> None:
        """Remember a level-1 node."""
        nodes = self._spans.get(page >> _PAGE_SHIFT)
        if nodes is None:
            if len(self._spans) >= _SPANS_MAX:
                self.clear()
            nodes = self._spans[page >> _PAGE_SHIFT] = array("Q", [UNKNOWN_DIGEST]) * LEAVES_PER_NODE
        nodes[page & _PAGE_MASK] = node

    def set_span(self, span: int, node: int) -> None:
        """Remember a level-2 node; all its children are as they were when it was summed up."""
        self._tops[span] = node

    def stale(self, page: int, stop: int) -> None:
        """The leaves of these pages have changed."""
        if stop - page == 1:
            self._tops.pop(page >> _PAGE_SHIFT, None)
            nodes = self._spans.get(page >> _PAGE_SHIFT)
            if nodes is not None:
                nodes[page & _PAGE_MASK] = UNKNOWN_DIGEST
            return
        first, last = page >> _PAGE_SHIFT, (stop - 1) >> _PAGE_SHIFT
        for span in [span for span in self._tops if first <= span <= last]:
            del self._tops[span]
        for span in [span for span in self._spans if first <= span <= last]:
            low = max(page - (span << _PAGE_SHIFT), 0)
            high = min(stop - (span << _PAGE_SHIFT), LEAVES_PER_NODE)
            self._spans[span][low:high] = array("Q", [UNKNOWN_DIGEST]) * (high - low)

    def clear(self) -> None:
        """Forget all of it."""
        self._spans.clear()
        self._tops.clear()


def mask_unknown(raw: bytearray, unknown: DirtyMap, first: int, stop: int) -> None:
    """Put `UNKNOWN_DIGEST` into the packed leaves of block ``first`` on, where the map says so."""
    if unknown.count:
        for run in unknown.runs(first, stop):
            low, high = (run.start - first) * LEAF_BYTES, (run.stop - first) * LEAF_BYTES
            raw[low:high] = _UNKNOWN_LEAF * run.block_count


@dataclass(slots=True)
class TableState:
    """What lies below the layers of pending changes; who changes any of it holds the table's write lock."""

    leaves: LeafFile
    size_bytes: int
    unknown: DirtyMap
    """Blocks that are unknown whatever the file says; changed under ``lock`` as well."""
    lock: threading.Lock
    nodes: NodeCache = field(default_factory=NodeCache)

    @property
    def block_count(self) -> int:
        """Blocks of the volume."""
        return self.unknown.block_count

    @property
    def page_count(self) -> int:
        """Pages of leaves."""
        return -(-self.unknown.block_count // LEAVES_PER_NODE)

    def read(self, first: int, stop: int) -> bytearray:
        """The packed leaves of these blocks, those that are unknown by the map included."""
        raw = self.leaves.read(first, stop)
        mask_unknown(raw, self.unknown, first, stop)
        return raw

    def known_pages_end(self, page: int, end: int) -> int:
        """The first page from ``page`` on, below ``end``, that has a block which is unknown by the map."""
        unknown = self.unknown.next_run(page << _PAGE_SHIFT)
        return end if unknown is None else min(unknown.start >> _PAGE_SHIFT, end)

    def make_known(self, first: int, stop: int) -> None:
        """The file has the leaves of these blocks."""
        if self.unknown.count:
            with self.lock:
                self.unknown.clear(first, stop)

    def zero_unknown(self, first: int, stop: int) -> int:
        """What is unknown by the map in this range reads as zero; how many blocks that were."""
        count = 0
        while (run := self.unknown.next_run(first, stop)) is not None:
            self.leaves.zero(*run)
            self.make_known(*run)
            self._stale(run)
            count += run.block_count
            first = run.stop
        return count

    def zero_stop(self, first: int, stop: int) -> int:
        """Where the blocks from ``first`` on end whose leaves in the file are zero; ``stop``, or perhaps
        more, if all are, less where it takes many looks to find out."""
        for _ in range(_ZERO_LOOKS_MAX):
            if first >= stop:
                break
            page = first >> _PAGE_SHIFT
            if quiet := self.leaves.zero_pages(page, self.page_count):
                first = (page + quiet) << _PAGE_SHIFT
                continue
            end = min((page + 1) << _PAGE_SHIFT, stop)
            raw = self.leaves.read(first, end)
            first += (len(raw) - len(raw.lstrip(b"\0"))) // LEAF_BYTES
            if first < end:
                break
        return first

    def write(self, layer: Layer) -> None:
        """Bring the layer to the file, not durably; `BackendError`: some of it may be there."""
        for run in layer.zero.runs():
            self.leaves.zero(*run)
            self._stale(run)
        for page in self.leaves.patch(layer.few):
            self.nodes.stale(page, page + 1)
        for run in layer.doubt.runs():
            self._stale(run)

    def _stale(self, run: Extent) -> None:
        self.nodes.stale(run.start >> _PAGE_SHIFT, ((run.stop - 1) >> _PAGE_SHIFT) + 1)

    def take_doubts(self, layer: Layer) -> None:
        """What of a layer that is in the file is known, and what is not; the caller holds ``lock``."""
        self.unknown.merge(layer.doubt)
        if self.unknown.count:
            for run in layer.zero.runs():
                self.unknown.clear(*run)
            for block in layer.few:
                if block in self.unknown:
                    self.unknown.clear(block, block + 1)

    def write_unknown(self, count_max: int) -> None:
        """Make unknown leaves of few unknown blocks, so that they need not hold down ``known_below``."""
        if not 0 < self.unknown.count <= _UNKNOWN_LEAVES_MAX:
            return
        left = count_max
        while left > 0 and (run := self.unknown.next_run(0)) is not None:
            if run.stop == self.block_count:
                return  # it is exactly what known_below says
            stop = min(run.stop, run.start + left)
            self.leaves.patch(dict.fromkeys(range(run.start, stop), UNKNOWN_DIGEST))
            self.make_known(run.start, stop)
            left -= stop - run.start
