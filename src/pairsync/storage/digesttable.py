"""The digest table of one volume: what every block holds, in 8 bytes, kept up with every write.

It answers *what is the digest of these blocks*, at three levels (``storage.digestfile``: leaf, 2 MiB, 1 GiB),
so that two hosts find where they differ in few round trips, and *is what the disk gives what was written*.
Inputs are the ops that were applied to the device, in order.

**Where a leaf stands.**  In the first of these that has it:

1. the *pending* layer: what was noted since the last write-out;
2. the *leaving* layer: what is being written to the file, or could not be written;
3. the map of unknown blocks: what the file says of them is worth nothing;
4. the file (and the page cache: a dense volume of 1 TiB has 2 GiB of leaves).

A long run goes to the file at once while there is no layer above it.  A layer goes to the file without
waiting for a disk once it holds `PENDING_MAX` leaves; sooner where the file lies in memory, for the event
loop stands still meanwhile.  What cannot be written stays pending; if that becomes too much, the blocks are
given up as unknown.

**What a crash leaves.**  The file may have any mixture of leaves as they were at the last `save` and since,
and a leaf may be durable without its data.  Both concern only blocks that were written since, and these are
in the recovered dirty map as long as its owner keeps two rules: a block is in the durable dirty map (or the
write-intent journal) before it is written, and leaves it only after a `save` that began after its last write
was noted.  So after an unclean end the blocks of that map are *doubtful*: unknown until they are noted or
read.  No order between `save` and the flush of the data is needed.

**Unknown blocks over a restart.**  Few unknown blocks among known ones are written to the file as
`UNKNOWN_DIGEST` leaves, a bounded number with each `save`; for the rest stands ``known_below`` in the header,
the lowest unknown block: whatever is at or above it counts as unknown at the next start.  A rebuild that
reads the volume in rising order (`DigestTable.examine` does) raises it as it goes.

Threads: `note`, `forget`, `compare`, `zero_bytes`, `examine`, `extend` and `resize` are called in the data
lane; `save` from another thread at the same time; `mismatches` from any.  Two locks: a short one over the
layers, never held across a call to the operating system; and one over writing to the file and what goes with
it, which `note` does not wait for.  Raises `BackendError` where the file fails; after a failed flush the
table is lost.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from xxhash import xxh3_64_intdigest

from pairsync.core.messages import OpKind, WriteOp
from pairsync.core.questions import BadBlock
from pairsync.core.units import BLOCK_BYTES, block_count_of
from pairsync.errors import BackendError, InternalError

from .blockfile import enlarge_file
from .device import Device
from .digestfile import (
    LEAVES_PER_NODE,
    RESERVED_HASHES,
    UNKNOWN_DIGEST,
    ZERO_DIGEST,
    block_digest,
    block_digests,
    digests_bytes,
    pack_leaves,
    unpack_leaves,
)
from .digestheader import HeaderKeeper
from .digestlayer import CROWDED, LEAVING_MAX, WIDE_BLOCKS, Layer, pending_bounds
from .digeststate import TableState
from .digestwalk import Examined, Walk

__all__ = ["DigestTable"]

_UNKNOWN_SAVE_MAX: Final = 16_384
_MEMORY_UNKNOWN_SAVE_MAX: Final = 256
"""Unknown leaves written with each `save`; the second where the file lies in memory."""

_LONG_BLOCKS: Final = 32
"""Runs from this length on go to the file at once where nothing stands before it."""

_PIECE_BLOCKS: Final = 512
"""Leaves that are looked up at a time."""

_BLOCK_SHIFT: Final = BLOCK_BYTES.bit_length() - 1
_BLOCK_MASK: Final = BLOCK_BYTES - 1
_PAGE_SHIFT: Final = LEAVES_PER_NODE.bit_length() - 1

_DATA: Final = OpKind.DATA  # looked up once, see storage.file


class DigestTable:
    """The open digest table of one volume; made by `storage.digests.open_digests`.  See the module."""

    def __init__(self, state: TableState, header: HeaderKeeper) -> None:
        file = state.leaves.file
        self._state = state
        self._header = header
        self._lock = state.lock  # over `_pending`, `_leaving` and the map of unknown blocks
        self._writing = threading.Lock()  # over writing leaves, and all of `_state`
        self._saving = threading.Lock()  # one `save` at a time
        self._pending = Layer(state.block_count)
        self._leaving: Layer | None = None
        in_memory = file.memory_backed
        self._pending_max, self._pages_max = pending_bounds(in_memory=in_memory)
        self._unknown_save_max = _MEMORY_UNKNOWN_SAVE_MAX if in_memory else _UNKNOWN_SAVE_MAX

    @property
    def milestone(self) -> int:
        """The last that a `save` has made durable (``core.states``), 0 before the first."""
        return self._header.milestone

    @property
    def path(self) -> str:
        """The file, for messages."""
        return self._state.leaves.file.path

    @property
    def may_block(self) -> bool:
        """Whether a call can wait for a disk; False on tmpfs and ramfs."""
        return not self._state.leaves.file.memory_backed

    @property
    def sound(self) -> bool:
        """False after a failed flush: the table is lost, and to be made anew."""
        return self._state.leaves.file.sound

    @property
    def size_bytes(self) -> int:
        """Size of the volume."""
        return self._state.size_bytes

    @property
    def known_below(self) -> int:
        """Where a rebuild goes on: blocks from here on are unknown unless noted or read since the start.

        Below, single blocks that were few and in doubt may be unknown too; whoever examines them reads them.
        """
        with self._lock:
            run = self._state.unknown.next_run(0)
        return self._state.block_count if run is None else run.start

    # ------------------------------------------------------------------ noting

    def note(self, device: Device, ops: Sequence[WriteOp]) -> None:
        """``ops`` were applied to ``device``, in this order, and nothing has been applied since.

        Never raises for the table's file: what cannot be written stays pending.
        """
        few: dict[int, int] = {}
        edges: set[int] = set()
        hashed = xxh3_64_intdigest
        for op in ops:
            kind, offset, length, data, _ = op
            if kind is _DATA and length == BLOCK_BYTES and not offset & _BLOCK_MASK and data is not None:
                digest = hashed(data)
                few[offset >> _BLOCK_SHIFT] = block_digest(data) if digest in RESERVED_HASHES else digest
            elif length > 0:
                self._note_range(op, few, edges)
        # Last, when all of the batch is there; what they hold now is what counts.
        for block in edges:
            few[block] = self._read_back(device, block)
        self._put(few)

    def _note_range(self, op: WriteOp, few: dict[int, int], edges: set[int]) -> None:
        """An op that is not just one block."""
        kind, offset, length, data, _ = op
        end = offset + length
        first = -(-offset // BLOCK_BYTES)
        stop = self._whole_stop(end)
        if offset & _BLOCK_MASK:
            edges.add(offset >> _BLOCK_SHIFT)
        if end & _BLOCK_MASK and end < self._state.size_bytes:
            edges.add(end >> _BLOCK_SHIFT)
        if first >= stop:
            return
        if kind is _DATA and data is not None:
            start = first * BLOCK_BYTES - offset
            with memoryview(data)[start : stop * BLOCK_BYTES - offset] as view:
                digests = block_digests(view)
            if few or stop - first < _LONG_BLOCKS or not self._write_run(first, digests):
                few.update(zip(range(first, stop), digests, strict=True))
        elif stop - first <= WIDE_BLOCKS:
            few.update(dict.fromkeys(range(first, stop), ZERO_DIGEST))
        else:
            with self._lock:
                self._pending.put(few)
                self._pending.put_range(first, stop, ZERO_DIGEST)
            few.clear()

    def _write_run(self, first: int, digests: Sequence[int]) -> bool:
        """Bring a long run to the file, if nothing stands before that: a third of the time of leaves."""
        state = self._state
        if not self._writing.acquire(blocking=False):
            return False
        try:
            with self._lock:
                if self._pending or self._leaving is not None or state.unknown.count:
                    return False
            state.leaves.write(first, pack_leaves(digests))
            state.nodes.stale(first >> _PAGE_SHIFT, ((first + len(digests) - 1) >> _PAGE_SHIFT) + 1)
        except BackendError:
            return False  # what the file has of it now is written again, or given up
        finally:
            self._writing.release()
        return True

    def _whole_stop(self, end: int) -> int:
        """The first block that a range which ends there does not hold to the block's end."""
        return self._state.block_count if end == self._state.size_bytes else end >> _BLOCK_SHIFT

    def _read_back(self, device: Device, block: int) -> int:
        offset = block * BLOCK_BYTES
        content = bytearray(min(BLOCK_BYTES, self._state.size_bytes - offset))
        with memoryview(content) as view:
            try:
                device.read_into(offset, view)
            except BackendError:
                return UNKNOWN_DIGEST  # whoever has to know what is there will see the error
            return block_digest(view)

    def _put(self, few: dict[int, int]) -> None:
        with self._lock:
            self._pending.put(few)
            count, page_count = len(self._pending.few), len(self._pending.pages)
        if count < self._pending_max and page_count <= self._pages_max:
            return
        if self._writing.acquire(blocking=count >= self._pending_max * CROWDED):
            try:
                with suppress(BackendError):  # nothing is lost; `save` and `examine` try again and tell
                    self._write_out()
            finally:
                self._writing.release()

    def forget(self, extents: Iterable[tuple[int, int]]) -> None:
        """What these blocks hold is in doubt (a failed write): unknown."""
        few: dict[int, int] = {}
        for start, stop in extents:
            if stop - start <= WIDE_BLOCKS:
                few.update(dict.fromkeys(range(start, stop), UNKNOWN_DIGEST))
                continue
            with self._lock:
                self._pending.put(few)
                self._pending.put_range(start, stop, UNKNOWN_DIGEST)
            few.clear()
        self._put(few)

    def compare(self, parts: Iterable[tuple[int, memoryview]]) -> list[BadBlock]:
        """This was read in the data lane (ascending offsets, content): unknown blocks that it holds whole
        become known.  Returns those that are not what is recorded.  `BackendError` says nothing of them."""
        different = list(self._differences(parts))
        few = {each.block: each.found for each in different if each.recorded == UNKNOWN_DIGEST}
        if few:
            self._put(few)
        return [each for each in different if each.block not in few]

    # ------------------------------------------------------------------ looking

    def zero_bytes(self, offset: int, length: int) -> int:
        """How much of the range, from its beginning, is recorded as zero; in the data lane.

        Less where that takes long to find out.  `BackendError` if the table fails.
        """
        with self.settled() as state:
            stop = state.zero_stop(offset >> _BLOCK_SHIFT, block_count_of(offset + length))
        return min(max(stop * BLOCK_BYTES - offset, 0), length)

    def _recorded(self, first: int, stop: int) -> array[int]:
        """The leaves of a few blocks as they stand; any thread."""
        over: dict[int, int] = {}
        with self._lock:
            if self._state.unknown.count:
                for run in self._state.unknown.runs(first, stop):
                    over.update(dict.fromkeys(range(run.start, run.stop), UNKNOWN_DIGEST))
            for layer in (self._leaving, self._pending):
                if layer is not None:
                    layer.collect(first, stop, over)
        if len(over) == stop - first:
            return array("Q", [over[block] for block in range(first, stop)])
        # Only after the look at the layers: what left them meanwhile is in the file.
        leaves = unpack_leaves(self._state.leaves.read(first, stop))
        for block, digest in over.items():
            leaves[block - first] = digest
        return leaves

    def mismatches(self, offset: int, view: memoryview) -> list[int]:
        """Blocks wholly within a range just read whose content is not what is recorded; any thread.

        Unknown blocks never count.  Beside writes to the same blocks either side may be the newer one: ask
        `examine` in the data lane before anything is called bad.  `BackendError` where the table cannot be
        read; that says nothing about the content.
        """
        different = self._differences([(offset, view)])
        return [each.block for each in different if each.recorded != UNKNOWN_DIGEST]

    def _differences(self, parts: Iterable[tuple[int, memoryview]]) -> Iterator[BadBlock]:
        """Of the blocks that lie wholly within the parts those that are not what is recorded, or unknown."""
        blocks: list[int] = []  # what is looked up at once: one look at the file costs as much as 50 blocks
        found: list[int] = []
        for offset, view in parts:
            first, stop = -(-offset // BLOCK_BYTES), self._whole_stop(offset + len(view))
            for piece in range(first, stop, _PIECE_BLOCKS):
                end = min(piece + _PIECE_BLOCKS, stop)
                if blocks and end - blocks[0] > _PIECE_BLOCKS:
                    yield from self._unlike(blocks, found)
                    blocks, found = [], []
                blocks += range(piece, end)
                found += block_digests(view[piece * BLOCK_BYTES - offset : end * BLOCK_BYTES - offset])
        if blocks:
            yield from self._unlike(blocks, found)

    def _unlike(self, blocks: Sequence[int], found: Sequence[int]) -> Iterator[BadBlock]:
        first = blocks[0]
        recorded = self._recorded(first, blocks[-1] + 1)
        if len(recorded) > len(blocks) or recorded != array("Q", found):
            for block, now in zip(blocks, found, strict=True):
                if recorded[block - first] != now:
                    yield BadBlock(block, recorded[block - first], now)

    def examine(
        self,
        device: Device,
        level: int,
        first: int,
        stop: int,
        *,
        read: bool = False,
        read_bytes_max: int,
        pages_max: int,
    ) -> Examined:
        """The digests of the nodes ``first`` to ``stop`` of a level (0: leaves), in the data lane.

        Unknown blocks are read and recorded first, so equal content gives equal nodes.  ``read``: all content
        that is not a hole of the device is read and compared with what is recorded; what differs is ``bad``
        and keeps its leaf.  A block that cannot be read is bad too.  The answer ends early, after one node at
        least, when ``read_bytes_max`` bytes were read or ``pages_max`` pages of leaves (4 KiB) were looked
        at; a node of level 2 with much unknown in it, or with ``read``, may be 1 GiB to read: ask at level 1.

        `BackendError` if the table fails; no answer is lost by asking again.
        """
        with self._writing:
            self._write_out()
            walk = Walk(self._state, device, read=read, read_bytes_max=read_bytes_max, pages_max=pages_max)
            return walk.answer(level, first, stop)

    @contextmanager
    def settled(self) -> Iterator[TableState]:
        """All that was noted is in the file, and rests there meanwhile.  `BackendError` if it cannot be."""
        with self._writing:
            self._write_out()
            yield self._state

    def at_rest(self) -> threading.Lock:
        """Nothing changes in the file while this is held."""
        return self._writing

    # ------------------------------------------------------------------ writing

    def _write_out(self) -> None:
        """Bring all that is pending to the file, not durably; the caller holds `_writing`.

        `BackendError`: it is all still there, in `_leaving`.
        """
        with self._lock:
            if not self._pending and self._leaving is None:
                return
            if self._leaving is None:
                self._leaving = self._pending
            else:
                self._leaving.put_layer(self._pending)
                if len(self._leaving.few) > LEAVING_MAX:
                    self._leaving.give_up()
            self._pending = Layer(self._state.block_count)
            layer = self._leaving
        self._state.write(layer)
        with self._lock:
            self._state.take_doubts(layer)
            self._leaving = None

    def save(self, milestone: int | None = None) -> None:
        """Make durable all that was noted before, and with it a ``milestone`` that the active host has given.

        `BackendError` if that fails: it may be tried again while the table is `sound`.
        """
        with self._saving:
            with self._writing:
                self._write_out()
                self._state.write_unknown(self._unknown_save_max)
                size_bytes, known_below = self._state.size_bytes, self.known_below
                flush = self._state.leaves.begin_flush()
            flush()
            self._header.store(size_bytes, known_below, milestone)

    def distrust(self) -> None:
        """A `save` has failed: until one succeeds again the file says, durably, that nothing in it is known.

        `BackendError` if not even that can be written.
        """
        with self._saving:
            self._header.store(self._state.size_bytes, 0)

    # ------------------------------------------------------------------ lives

    def begin_life(self, *, active: bool) -> None:
        """A host takes the volume into use; durable on return.  See `Header.settled`: what a standby has left
        in disorder is read again by an active host, and believed by a standby."""
        if self._header.begin_life(active=active):
            with self._writing, self._lock:  # nothing was noted yet
                self._state.unknown.mark(0, self._state.block_count)
                self._state.nodes.clear()
        self.save()

    def end_life(self) -> None:
        """The host gives the volume up in order; see `HeaderKeeper.begin_life`."""
        self._header.end_life()
        self.save()

    # ------------------------------------------------------------------ the whole

    def extend(self, size_bytes: int) -> None:
        """Make room for the leaves of a volume of that size; nothing else changes.  `BackendError`."""
        with self._writing:
            enlarge_file(self._state.leaves.file, digests_bytes(size_bytes))

    def resize(self, size_bytes: int) -> None:
        """The volume has grown, after `extend`; what was added is unknown until it is noted or examined.

        Nothing is durable before the next `save`; a table found too small for its volume at the next start
        grows then.  It does not fail: if what is pending cannot be written, all blocks become unknown.
        """
        with self._writing:
            state = self._state
            unknown_from = state.size_bytes >> _BLOCK_SHIFT  # a partial last block is another block now
            try:
                self._write_out()
            except BackendError:
                unknown_from = 0
            if size_bytes < state.size_bytes or state.leaves.file.size_bytes < digests_bytes(size_bytes):
                raise InternalError(f"{self.path}: from {state.size_bytes} to {size_bytes} bytes")
            with self._lock:
                state.unknown.grow(block_count_of(size_bytes))
                state.unknown.mark(unknown_from, state.block_count)
                state.size_bytes = size_bytes
                self._pending, self._leaving = Layer(state.block_count), None
                state.nodes.clear()

    def close(self) -> None:
        """Give the file back; idempotent.  Nothing is saved."""
        self._state.leaves.file.close()
