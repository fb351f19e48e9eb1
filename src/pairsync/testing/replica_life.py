"""The life of one replica on its disk, to be cut at every point.

A `ReplicaLife` does to a volume and its metadata what an active host does, through the same tracker
(``core.tracker``) and the same jobs (``guest.replica``): write-intent generations, resyncs of a peer that
comes and goes, bitmap saves, superblocks, recovery, an orderly end.  It does so one step after the other, and
after each it states what is `Known` (``testing.replica_ledger``, where the rules are).
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from typing import Final

from xxhash import xxh3_64_intdigest

from pairsync.core.dirty import PAGE_BLOCKS, DirtyMap
from pairsync.core.messages import OpKind, WriteOp
from pairsync.core.tracker import Tracker
from pairsync.core.units import BLOCK_BYTES, Extent, block_count_of
from pairsync.errors import BackendError
from pairsync.guest.replica import apply_job, flush_job, journal_job, persist_job, save_job
from pairsync.storage.device import Device
from pairsync.storage.metadata import MetadataStore, OpenedMetadata

from .replica_ledger import Known, Ledger, blocks_of, found_blocks, life_superblock, stamped

__all__ = ["ReplicaLife", "hand_made", "wander"]

_WINDOW_BYTES: Final = 16 * BLOCK_BYTES  # a generation is cut after eight blocks, if not before
_RESYNC_BLOCKS: Final = 3  # copied in one step


class ReplicaLife:
    """An open replica in the hands of an active host; ``device`` None: of its metadata only.

    ``ledger`` comes from the lives before, or is new; the superblock is the one that was found.  ``tell`` is
    called with what is known whenever that changes, and before anything is tried that would change it.
    Raises `BackendError` when the disk does.
    """

    def __init__(
        self, opened: OpenedMetadata, device: Device | None, ledger: Ledger, tell: Callable[[Known], None]
    ) -> None:
        self.store: MetadataStore = opened.store
        self._device = device
        self._ledger = ledger
        self._tell = tell
        self._peer = False  # present: writes are sent to it
        self._size_bytes = opened.superblock.size_bytes
        recovered = found_blocks(opened)
        # What was found need not be durable (a killed process leaves it in the page cache), and what it has
        # replaced may come back: both hold until they are written anew.
        ledger.image |= blocks_of(recovered.runs())
        ledger.sent = {}
        self.tracker = Tracker(
            recovered.block_count,
            recovered,
            window_bytes=_WINDOW_BYTES,
            first_generation=opened.generation_next,
        )

    def _say(self) -> None:
        self._tell(self._ledger.known())

    def _judge(self, doing: str, number: int) -> None:
        if number:
            raise BackendError(f"{self.store.path}: {doing}: {os.strerror(number)}", number)

    def begin(self) -> None:
        """As a host that becomes active: an unclean superblock, then what was recovered into the bitmap."""
        self.superblock(clean=False)
        self._save(self.tracker.pages_to_save(), (0, 1))
        self._ledger.must = blocks_of(self.tracker.dirty().runs())
        self._say()

    def superblock(self, *, clean: bool = False) -> None:
        """Replace the superblock by one of the next number."""
        self._replace(self._size_bytes, clean=clean)

    def _replace(self, size_bytes: int, *, clean: bool) -> None:
        ledger = self._ledger
        number = max(number for number, _, _ in ledger.superblocks) + 1
        ledger.superblocks += ((number, clean, size_bytes),)
        self._say()
        block = life_superblock(number, size_bytes, clean=clean)
        self._judge("writing the superblock", persist_job(self.store, block))
        ledger.superblocks = ((number, clean, size_bytes),)
        self._say()

    def grow(self, blocks: int) -> None:
        """So many blocks more: room first, then the superblock, then what is open."""
        size_bytes = self._size_bytes + blocks * BLOCK_BYTES
        if self._device is not None:
            self._device.extend(size_bytes)
        self.store.extend(size_bytes)
        self._replace(size_bytes, clean=False)
        self._size_bytes = size_bytes
        self.tracker.grow(block_count_of(size_bytes))
        if self._device is not None:
            self._device.enlarge(size_bytes)

    def write(self, blocks: Sequence[int], kind: OpKind = OpKind.DATA, *, fua: bool = False) -> None:
        """A batch of the guest: intents first, then the data, then the peer."""
        self._make_room()
        ledger, tracker = self._ledger, self.tracker
        data = kind is OpKind.DATA
        ledger.stamp += data
        stamp = ledger.stamp if data else 0
        content = stamped(stamp) if data else None
        ops = [WriteOp(kind, block * BLOCK_BYTES, BLOCK_BYTES, content, fua) for block in blocks]
        generation = tracker.open
        fresh = tracker.note(ops)
        if fresh:
            self._record(generation.segment, generation.number, fresh)
        self._apply(ops, blocks, stamp)
        tracker.applied(generation.number)
        if self._peer:
            tracker.mirrored(ops)
            ledger.sent |= dict.fromkeys(blocks, xxh3_64_intdigest(stamped(stamp)))
        else:
            tracker.lacking(ops)
        if fua:
            for block in blocks:
                ledger.settled[block] = (stamp,)
                ledger.written.pop(block, None)
        self._say()

    def _record(self, segment: int, number: int, fresh: Sequence[Extent]) -> None:
        ledger = self._ledger
        ledger.intents[segment] |= blocks_of(fresh)
        self._say()
        self._judge("recording intents", journal_job(self.store, segment, number, fresh))
        self.tracker.recorded(number, fresh)
        ledger.must |= blocks_of(fresh)
        ledger.generation = max(ledger.generation, number)
        self._say()

    def _apply(self, ops: Sequence[WriteOp], blocks: Sequence[int], stamp: int) -> None:
        if self._device is None:
            return
        for block in blocks:
            self._ledger.written.setdefault(block, []).append(stamp)
        self._say()
        errnos = apply_job(self._device, ops)
        self._judge("writing data", next(filter(None, errnos or ()), 0))

    def _make_room(self) -> None:
        if self.store.segment_room(self.tracker.open.segment) < 2 or self.tracker.full:
            if self.tracker.closing is not None:
                self.finish()
            self.tracker.cut()
            self.finish()

    def flush(self) -> None:
        """A flush of the guest, here only."""
        if self._device is not None:
            self._judge("flush", flush_job(self._device))
            self._ledger.flushed()
            self._say()

    def cut(self) -> None:
        """Close the open generation; `finish` ends what is closing."""
        if self.tracker.closing is None and not self.tracker.open.empty:
            self.tracker.cut()

    def finish(self) -> None:
        """Flush both sides, save the bitmap pages, release the segment of the closing generation."""
        closing = self.tracker.closing
        if closing is None:
            return
        self.tracker.begin_flush()
        self.flush()
        if self._peer:
            self._ledger.peer |= self._ledger.sent
            self._ledger.sent.clear()
        pages = self.tracker.flushed(peer=self._peer)
        self._ledger.must = blocks_of(self.tracker.dirty().runs())
        self._save(pages, (closing.segment,))
        self.tracker.released()

    def save(self) -> None:
        """Write the pages that are not as they should be, and release nothing."""
        pages = self.tracker.pages_to_save()
        if pages:
            self._save(pages, ())

    def _save(self, pages: dict[int, bytes], release: tuple[int, ...]) -> None:
        ledger = self._ledger
        images = DirtyMap(self.tracker.block_count)
        for number, content in pages.items():
            images.load_page(number, content)
        ledger.image_next = blocks_of(images.runs())
        self._say()
        self._judge("saving the dirty map", save_job(self.store, pages, release))
        kept = {block for block in ledger.image if block // PAGE_BLOCKS not in pages}
        ledger.image, ledger.image_next = kept | ledger.image_next, set()
        for segment in release:
            ledger.intents[segment] = set()
        self._say()

    def meet(self) -> None:
        """The peer comes back."""
        self._peer = True

    def part(self) -> None:
        """The peer is lost: what it was sent and has not flushed is in doubt."""
        self._peer = False
        self._ledger.sent.clear()
        self.tracker.peer_lost()

    def resync(self) -> None:
        """Send the peer some of the blocks that it lacks."""
        if not self._peer or self._device is None:
            return
        blocks = sorted(blocks_of(self.tracker.todo.runs()))[:_RESYNC_BLOCKS]
        for block in blocks:
            content = bytearray(BLOCK_BYTES)
            self._device.read_into(block * BLOCK_BYTES, memoryview(content))
            self._ledger.sent[block] = xxh3_64_intdigest(content)
        self.tracker.resynced([Extent(block, block + 1) for block in blocks], len(blocks) * BLOCK_BYTES)

    def end(self) -> None:
        """In order: all generations released, the bitmap exact, the superblock clean."""
        self.finish()
        self.cut()
        self.finish()
        self.save()
        self.superblock(clean=True)
        self.abandon()

    def abandon(self) -> None:
        """Give the files back as they are."""
        if self._device is not None:
            self._device.close()
        self.store.close()


def hand_made(life: ReplicaLife) -> None:
    """A life with every kind of step, in about forty writes and flushes; begun and not ended."""
    life.begin()
    life.write([1, 2])
    life.write([2, 9])
    life.write([5], OpKind.ZERO)
    life.cut()
    life.write([3, 1])  # the closing generation and the open one share a block
    life.finish()  # without a peer: everything to the bitmap
    life.superblock()
    life.meet()
    life.resync()
    life.write([9], fua=True)
    life.flush()
    life.cut()
    life.finish()  # with the peer: what was sent is forgotten
    life.write([4])
    life.resync()
    life.save()
    life.write([1], OpKind.TRIM)
    life.part()
    life.cut()
    life.write([7, 4])
    life.finish()


def wander(life: ReplicaLife, rng: random.Random, steps: int, blocks: Sequence[int]) -> None:
    """So many steps drawn from ``rng``, on these blocks, of a life that has begun."""
    kinds = [OpKind.DATA, OpKind.DATA, OpKind.DATA, OpKind.ZERO, OpKind.TRIM]
    others = (
        life.cut,
        life.finish,
        life.superblock,
        life.meet,
        life.part,
        life.resync,
        life.save,
        life.flush,
    )
    for _ in range(steps):
        if rng.random() < 0.5:
            some = sorted(rng.sample(blocks, rng.randint(1, 3)))
            life.write(some, rng.choice(kinds), fua=rng.random() < 0.1)
        else:
            rng.choice(others)()
