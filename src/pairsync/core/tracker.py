"""Which blocks of a volume the peer is not known to hold durably, kept so that a crash cannot forget it.

The dirty set of a volume is the union of

* ``todo``: blocks whose content the peer lacks; a resync has to send them;
* the blocks written in the *open* and the *closing* write-intent generation: the peer has been, or is being,
  sent them, but no flush has covered them yet on both sides.

Blocks in a generation come in two kinds.  *Marked* ones were written by the guest; each has a write-intent
record on disk that was durable before the write was issued.  *Sent* ones were copied by a resync; they
have no record, because the bitmap on disk still shows them.

On disk the same set is the bitmap area plus the journal's two segments.  The rule that makes the crash-safe
superset hold: **a segment is given up only when every block it recorded is either durable on both hosts or
set in the bitmap on disk.**  Bits that are cleared in memory are cleared on disk whenever their page is
written next: a bit too many costs a little resync, a bit too few would cost data.

A generation ends ("cut") when it holds half the window, when the guest flushes, or when its journal segment
is full::

    open ──cut──▶ draining ──all its writes applied──▶ flushing ──both flushed──▶ saving ──▶ released
         new writes go to the other segment      (peer absent: to todo)   (bitmap pages)

Two generations exist at most, one for each journal segment; while one is closing and the other holds half
the window, new writes wait.  So a crash of the active host costs at most ``window_bytes`` of resync (DESIGN
rule 7).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence

from pairsync.errors import InternalError

from .dirty import PAGE_BLOCKS, DirtyMap, IntentSet
from .dirtyview import DirtyView
from .messages import OpKind, WriteOp
from .units import BLOCK_BYTES, MIB, Extent

__all__ = [
    "PAGES_PER_SAVE_MAX",
    "WINDOW_BYTES_DEFAULT",
    "GenerationState",
    "IntentGeneration",
    "Tracker",
    "ops_bytes",
]

_DATA = OpKind.DATA  # looked up once: an attribute of an enum class takes 0.1 to 0.3 us

WINDOW_BYTES_DEFAULT = 64 * MIB
"""Most data that a crash of the active host makes us copy again; two generations share it."""

RECORDS_MAX = 1900
"""Journal records of one generation before it is cut: a segment of 8 MiB holds 2048 records of 4 KiB, and
the writes that are on their way when the cut is asked for need room too."""

RECORD_EXTENTS = 500
"""Extents that certainly fit one journal record; a batch with more takes several."""

PAGES_PER_SAVE_MAX = 4096
"""Bitmap pages written in one go (16 MiB): keeps a save in the order of a tenth of a second.  Pages that lack
bits on disk go all at once, for the segment is released with the last of them: 8,192 for each TiB.  Full ones
are one object; scattered writes over a whole TiB take 32 MiB for as long as the save takes."""


class GenerationState(enum.Enum):
    """Where a generation stands; each state is left in one direction only."""

    OPEN = "open"
    DRAINING = "draining"
    FLUSHING = "flushing"
    SAVING = "saving"


class IntentGeneration:
    """One write-intent generation and the journal segment that belongs to it."""

    __slots__ = (
        "data_bytes",
        "marked",
        "number",
        "outstanding",
        "records",
        "sent",
        "state",
        "unrecorded",
        "zeroed",
    )

    def __init__(self, number: int, block_count: int) -> None:
        self.number = number  # from 1, rising; the journal segment is ``number % 2``
        self.state = GenerationState.OPEN
        self.marked = IntentSet(block_count)  # written by the guest, recorded in the journal
        self.sent = DirtyMap(block_count)  # copied by a resync, still set in the bitmap on disk
        # Blocks of `marked` that cost nothing to copy again: discarded, and not written with data since.  One
        # that was written before it was discarded may be among them: it counts twice, never not at all.
        self.zeroed = DirtyMap(block_count)
        self.outstanding = 0  # writes noted here and not applied locally yet; drained at 0
        self.data_bytes = 0  # data newly marked or sent, against the window
        self.records = 0  # journal records asked for
        # Intents of `marked` whose records are on their way, or could not be written: a mark alone does not
        # let another write of the same block overtake the record that it rests on.
        self.unrecorded: list[Sequence[Extent]] = []

    def awaits_record(self, start: int, stop: int) -> bool:
        """Whether a record of any of these blocks is not durable yet."""
        return any(low < stop and start < high for extents in self.unrecorded for low, high in extents)

    @property
    def segment(self) -> int:
        """The journal segment, 0 or 1."""
        return self.number % 2

    @property
    def empty(self) -> bool:
        """Whether nothing was written under it."""
        return not self.marked and not self.sent and self.outstanding == 0

    def contains(self, block: int) -> bool:
        """Whether the block was written under this generation."""
        return block in self.marked or block in self.sent


def _unflushed(generation: IntentGeneration) -> bool:
    """Whether its blocks still count as dirty: no flush has covered them on both sides."""
    return generation.state is not GenerationState.SAVING


class Tracker:
    """The dirty set of one volume and its image on disk; pure."""

    def __init__(
        self, block_count: int, todo: DirtyMap, *, window_bytes: int, first_generation: int = 1
    ) -> None:
        if window_bytes < 2 * BLOCK_BYTES:
            raise InternalError(f"a write-intent window of {window_bytes} bytes")
        self.block_count = block_count
        self.window_bytes = window_bytes
        self.half_window_bytes = window_bytes // 2
        """What one generation may hold."""
        self.todo = todo
        self.open = IntentGeneration(first_generation, block_count)
        self.closing: IntentGeneration | None = None
        # Pages of `todo` with bits that are in the journal only, not yet in the bitmap on disk.  After
        # recovery that is every page that has bits: what came from where is not worth knowing.
        self._unsaved: set[int] = set(todo.page_numbers())
        # Pages whose image on disk has bits that are no longer dirty: rewritten when convenient.
        self._stale: set[int] = set()
        self.loose = False
        """Whether `todo` has blocks that no log or bitmap may name: a record is awaited, or has failed."""

    def grow(self, block_count: int) -> None:
        """The volume has that many blocks now; those that were added are not dirty."""
        self.block_count = block_count
        self.todo.grow(block_count)
        for generation in (self.open, self.closing):
            if generation is not None:
                generation.marked.grow(block_count)
                generation.sent.grow(block_count)
                generation.zeroed.grow(block_count)

    # ------------------------------------------------------------------ writes of the guest

    def note(self, ops: Iterable[WriteOp]) -> list[Extent]:
        """A batch is about to be written: the extents whose intent has to be durable first, see `recorded`.

        Counts the batch as outstanding in the open generation until `applied`.
        """
        generation = self.open
        marked, zeroed, data_blocks = generation.marked, generation.zeroed, 0
        fresh: list[Extent] = []
        for kind, offset, length, _, _ in ops:
            start = offset // BLOCK_BYTES
            stop = (offset + length - 1) // BLOCK_BYTES + 1
            if stop <= start:
                continue
            added = marked.mark(start, stop)
            if added or (generation.unrecorded and generation.awaits_record(start, stop)):
                fresh.append(Extent(start, stop))
            if kind is _DATA:
                if zeroed.count:
                    added += zeroed.clear(start, stop)
                data_blocks += added
            elif added:
                zeroed.mark(start, stop)
        generation.data_bytes += data_blocks * BLOCK_BYTES
        generation.outstanding += 1
        if fresh:
            generation.records += 1 + len(fresh) // RECORD_EXTENTS
            generation.unrecorded.append(fresh)
        return fresh

    def recorded(self, generation_number: int, fresh: Sequence[Extent]) -> None:
        """What `note` returned is durable.  (If it could not be written, it is asked for again.)"""
        self._generation(generation_number).unrecorded.remove(fresh)

    def applied(self, generation_number: int) -> None:
        """A batch that was noted under that generation has been applied locally, or has failed."""
        generation = self._generation(generation_number)
        generation.outstanding -= 1
        if generation.outstanding < 0:
            raise InternalError(f"generation {generation_number}: more batches applied than noted")

    def _generation(self, number: int) -> IntentGeneration:
        if self.open.number == number:
            return self.open
        if self.closing is not None and self.closing.number == number:
            return self.closing
        raise InternalError(f"write-intent generation {number} is not live")

    def lacking(self, ops: Iterable[WriteOp]) -> None:
        """The peer is not sent these writes, or its copy of them is in doubt: it will need the blocks."""
        for op in ops:
            if op.length > 0:
                start = op.offset // BLOCK_BYTES
                self._want(start, (op.offset + op.length - 1) // BLOCK_BYTES + 1)

    def _want(self, start: int, stop: int) -> None:
        if self.todo.mark(start, stop):
            self._unsaved.update(range(start // PAGE_BLOCKS, (stop - 1) // PAGE_BLOCKS + 1))

    def mirrored(self, ops: Iterable[WriteOp]) -> None:
        """The peer is being sent these writes: blocks that they fill entirely need no resync any more."""
        if not self.todo:
            return
        for op in ops:
            start = -(-op.offset // BLOCK_BYTES)
            stop = (op.offset + op.length) // BLOCK_BYTES
            if start < stop:
                self._got(start, stop)

    def _got(self, start: int, stop: int) -> None:
        if self.todo.clear(start, stop):
            self._stale.update(range(start // PAGE_BLOCKS, (stop - 1) // PAGE_BLOCKS + 1))

    # ------------------------------------------------------------------ resync and loss of the peer

    def resynced(self, runs: Iterable[Extent], data_bytes: int) -> None:
        """A resync has sent these blocks: they are the peer's as soon as a flush covers them."""
        sent = self.open.sent
        for start, stop in runs:
            self._got(start, stop)
            sent.mark(start, stop)
        self.open.data_bytes += data_bytes

    def want(self, runs: Iterable[tuple[int, int]]) -> None:
        """The peer needs these blocks, whatever was known before (a full resync, the peer's own marks)."""
        for start, stop in runs:
            self._want(start, stop)

    def peer_lost(self) -> None:
        """Nothing that no flush covers is known to be the peer's: all of it becomes ``todo``."""
        for generation in (self.closing, self.open):
            if generation is not None and _unflushed(generation):
                self._reclaim(generation)

    def _reclaim(self, generation: IntentGeneration) -> None:
        self.loose = self.loose or bool(generation.unrecorded)
        pages = generation.marked.page_numbers() | set(generation.sent.page_numbers())
        generation.marked.merge_into(self.todo)
        self.todo.merge(generation.sent)
        generation.sent = DirtyMap(self.block_count)
        self._unsaved.update(pages)

    # ------------------------------------------------------------------ the life of a generation

    @property
    def full(self) -> bool:
        """Whether the open generation should be cut now."""
        generation = self.open
        return generation.data_bytes >= self.half_window_bytes or generation.records >= RECORDS_MAX

    @property
    def must_wait(self) -> bool:
        """Whether new writes have to wait until the closing generation is released."""
        return self.closing is not None and self.full

    def cut(self) -> IntentGeneration:
        """Close the open generation; new writes go to the other segment."""
        if self.closing is not None:
            raise InternalError("a generation is closing already")
        self.closing = self.open
        self.closing.state = GenerationState.DRAINING
        self.open = IntentGeneration(self.closing.number + 1, self.block_count)
        return self.closing

    def begin_flush(self) -> None:
        """The closing generation has drained: from now on it waits for the flushes."""
        generation = self._closing_in(GenerationState.DRAINING)
        if generation.outstanding:
            raise InternalError(
                f"generation {generation.number} has {generation.outstanding} writes to apply"
            )
        generation.state = GenerationState.FLUSHING

    def flushed(self, *, peer: bool) -> dict[int, bytes]:
        """Local flush done; ``peer``: the peer's too, otherwise the blocks are still to be sent.

        Those that it was sent included: a volume whose digests differ is not mirrored for a moment, and the
        peer is not lost.

        Returns the bitmap pages that have to be durable before `released` (often none).
        """
        generation = self._closing_in(GenerationState.FLUSHING)
        if not peer:
            self._reclaim(generation)
        generation.state = GenerationState.SAVING
        if peer and generation.sent:
            self._stale.update(generation.sent.page_numbers())
        return self._pages_to_save()

    def _closing_in(self, state: GenerationState) -> IntentGeneration:
        if self.closing is None or self.closing.state is not state:
            raise InternalError(f"no generation is {state.value}")
        return self.closing

    def _pages_to_save(self) -> dict[int, bytes]:
        must = sorted(self._unsaved)
        may = sorted(self._stale - self._unsaved)[: max(PAGES_PER_SAVE_MAX - len(must), 0)]
        self._unsaved.clear()
        self._stale.difference_update(must, may)
        return {number: self._image(number) for number in (*must, *may)}

    def _image(self, number: int) -> bytes:
        """The page as it must stand on disk: ``todo``, and what a resync sent and no flush covers yet."""
        sent = [g.sent for g in (self.open, self.closing) if g is not None and _unflushed(g)]
        if not any(number in each.page_numbers() for each in sent):
            return self.todo.page_bytes(number)
        merged = DirtyMap(self.block_count)
        for source in (self.todo, *sent):
            merged.load_page(number, source.page_bytes(number))
        self._stale.add(number)  # once those are flushed too, the page has bits too many
        return merged.page_bytes(number)

    def released(self) -> None:
        """The pages are durable: the segment may be used again."""
        self._closing_in(GenerationState.SAVING)
        self.closing = None

    def pages_to_save(self) -> dict[int, bytes]:
        """Bitmap pages to be written outside the life of a generation: at the start, or before a resync.

        Whoever takes them must make them durable before anything relies on it, or stop.
        """
        self.loose = False
        return self._pages_to_save()

    # ------------------------------------------------------------------ questions

    @property
    def unflushed(self) -> bool:
        """Whether anything was written that no flush has covered."""
        return (self.closing is not None and _unflushed(self.closing)) or not self.open.empty

    def is_dirty(self, block: int) -> bool:
        """Whether the peer is not known to hold the block durably."""
        if block in self.todo or self.open.contains(block):
            return True
        closing = self.closing
        return closing is not None and _unflushed(closing) and closing.contains(block)

    def dirty(self) -> DirtyView:
        """The whole dirty set, as it stands while it is looked at."""
        live = [each for each in (self.closing, self.open) if each is not None and _unflushed(each)]
        return DirtyView(self.block_count, (self.todo, *(g.sent for g in live)), [g.marked for g in live])

    def check_invariants(self) -> None:
        """What holds after every step (called by tests and by the simulator)."""
        if self.open.state is not GenerationState.OPEN:
            raise InternalError(f"the open generation is {self.open.state.value}")
        if self.closing is not None and self.closing.number != self.open.number - 1:
            raise InternalError("generations are not consecutive")
        if self.open.outstanding < 0 or self.open.data_bytes < 0:
            raise InternalError("a generation counts below zero")


def ops_bytes(ops: Sequence[WriteOp]) -> int:
    """Bytes of data that the ops carry."""
    if len(ops) == 1:  # most batches of a guest that waits for each answer
        return ops[0].length if ops[0].kind is _DATA else 0
    return sum([op.length for op in ops if op.kind is _DATA])
