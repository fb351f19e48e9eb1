"""The tracker against a model of both disks and of the metadata: what a crash would find, after every step.

The model knows the content of every half block on both sides, as written and as durable, and every image
that the metadata may have on disk.  It follows the tracker's rules of use, as the source does, and asks after
each step: **if this host crashed now, would every block that may differ be in what it recovers?**
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pairsync.core.dirty import PAGE_BLOCKS, PAGE_BYTES, DirtyMap
from pairsync.core.messages import OpKind, WriteOp
from pairsync.core.tracker import (
    PAGES_PER_SAVE_MAX,
    RECORDS_MAX,
    GenerationState,
    IntentGeneration,
    Tracker,
    ops_bytes,
)
from pairsync.core.units import BLOCK_BYTES, MIB, Extent
from pairsync.errors import InternalError

BLOCK_COUNT = 3 * PAGE_BLOCKS
HALF_BYTES = BLOCK_BYTES // 2
WINDOW_BYTES = 4 * BLOCK_BYTES
NEAR_BORDERS = [range(8), range(PAGE_BLOCKS - 4, PAGE_BLOCKS + 4), range(BLOCK_COUNT - 8, BLOCK_COUNT)]
OPS_MAX = 2  # of a batch
HALVES_MAX = 4  # of an op
LARGEST_BATCH_BYTES = OPS_MAX * (HALVES_MAX // 2 + 1) * BLOCK_BYTES
STEPS = 40

Half: TypeAlias = int  # index of a half block


def halves_of(ops: Iterable[WriteOp]) -> list[tuple[Half, OpKind]]:
    found = []
    for op in ops:
        first = op.offset // HALF_BYTES
        found += [(first + i, op.kind) for i in range(op.length // HALF_BYTES)]
    return found


@dataclass
class Batch:
    """A write of the guest."""

    ops: list[WriteOp]
    generation: int
    intents: Sequence[Extent]
    segment: int


@dataclass
class Save:
    """Bitmap pages on their way, and the segment that is given up behind them."""

    pages: dict[int, bytes]
    release: tuple[int, ...]
    closes: bool


@dataclass
class Metadata:
    """What is durable beside the volume."""

    pages: dict[int, bytes] = field(default_factory=dict)
    segments: dict[int, list[Extent]] = field(default_factory=lambda: {0: [], 1: []})

    def shows(self, block: int) -> bool:
        page = self.pages.get(block // PAGE_BLOCKS, bytes(PAGE_BYTES))
        bit = block % PAGE_BLOCKS
        if page[bit // 8] >> (bit % 8) & 1:
            return True
        return any(low <= block < high for extents in self.segments.values() for low, high in extents)

    def after(self, save: Save, written: Iterable[int], *, released: bool) -> Metadata:
        pages = self.pages | {number: save.pages[number] for number in written}
        segments = {k: [] if released and k in save.release else list(v) for k, v in self.segments.items()}
        return Metadata(pages, segments)

    def may_become(self, save: Save | None) -> list[Metadata]:
        """The worst that a crash in the middle of ``save`` may leave: torn before, or all of it done."""
        if save is None:
            return [self]
        torn = [self.after(save, part, released=False) for part in ((), *((n,) for n in save.pages))]
        return [*torn, self.after(save, save.pages, released=True)]


class TrackerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.tracker = Tracker(BLOCK_COUNT, DirtyMap(BLOCK_COUNT), window_bytes=WINDOW_BYTES)
        self.disk = Metadata()
        self.queue: deque[Batch | Save] = deque()  # of the metadata: one after the other
        self.applying: deque[Batch] = deque()
        self.version = 0
        # Versions of half blocks; absent: 0, the same everywhere.
        self.here: dict[Half, int] = {}
        self.here_durable: dict[Half, int] = {}
        self.sent: dict[Half, int] = {}  # what the peer has once it has applied all; -1: not known
        self.peer_durable: dict[Half, int] = {}
        self.is_data: dict[Half, bool] = {}
        self.connected = False
        self.barrier: tuple[dict[Half, int], dict[Half, int]] | None = None  # contents a flush will cover
        self.barrier_asked = False  # the peer was asked, in the session that still runs
        self.covered = False

    # ------------------------------------------------------------------ beginning

    @initialize(recovered=st.lists(st.sampled_from([b for r in NEAR_BORDERS for b in r]), max_size=4))
    def begin(self, recovered: list[int]) -> None:
        """A life begins with what the last one left in the bitmap and in the segments."""
        todo = DirtyMap(BLOCK_COUNT)
        for block in recovered:
            todo.mark(block, block + 1)
            self.disk.segments[block % 2].append(Extent(block, block + 1))
            self._write([(2 * block, OpKind.DATA)])
        self.tracker = Tracker(BLOCK_COUNT, todo, window_bytes=WINDOW_BYTES, first_generation=7)
        self.queue.append(Save(self.tracker.pages_to_save(), (0, 1), closes=False))
        self._next_of_metadata(fails=False)

    def _write(self, halves: Iterable[tuple[Half, OpKind]]) -> None:
        self.version += 1
        for half, kind in halves:
            self.here[half] = self.version
            self.is_data[half] = kind is OpKind.DATA

    # ------------------------------------------------------------------ writes

    @precondition(lambda self: not self.tracker.must_wait)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        ops: list[WriteOp] = []
        for _ in range(data.draw(st.integers(1, OPS_MAX), label="ops")):
            blocks = data.draw(st.sampled_from(NEAR_BORDERS), label="near")
            start = data.draw(st.integers(2 * blocks.start, 2 * blocks.stop - 1), label="half")
            halves = data.draw(st.integers(0, min(HALVES_MAX, 2 * blocks.stop - start)), label="halves")
            kind = data.draw(st.sampled_from([OpKind.DATA, OpKind.DATA, OpKind.ZERO, OpKind.TRIM]))
            ops.append(WriteOp(kind, start * HALF_BYTES, halves * HALF_BYTES))
        fresh = self.tracker.note(ops)
        batch = Batch(ops, self.tracker.open.number, fresh, self.tracker.open.segment)
        if fresh:
            self.queue.append(batch)
        else:
            self._issue(batch)
        if self.tracker.full and self.tracker.closing is None:
            self.cut()

    def _issue(self, batch: Batch) -> None:
        """To both disks; from now on either may have it."""
        if self.connected:
            self.tracker.mirrored(batch.ops)
        else:
            self.tracker.lacking(batch.ops)
        self._write(halves_of(batch.ops))
        if self.connected:
            for half, _ in halves_of(batch.ops):
                self.sent[half] = self.here[half]
        self.applying.append(batch)

    @precondition(lambda self: bool(self.applying))
    @rule(fails=st.sampled_from([False] * 9 + [True]))
    def next_is_applied(self, fails: bool) -> None:
        batch = self.applying.popleft()
        self.tracker.applied(batch.generation)
        if fails:  # nobody knows what the disk holds there now
            self._write(halves_of(batch.ops))
            self.tracker.lacking(batch.ops)
        self._drain()

    # ------------------------------------------------------------------ metadata

    @precondition(lambda self: bool(self.queue))
    @rule(fails=st.sampled_from([False] * 9 + [True]))
    def next_of_metadata(self, fails: bool) -> None:
        self._next_of_metadata(fails=fails)

    def _next_of_metadata(self, *, fails: bool) -> None:
        """A record may fail; a save that fails stops the volume, which is a crash like any other."""
        job = self.queue.popleft()
        if isinstance(job, Batch):
            if fails:
                self.tracker.applied(job.generation)  # it ends with an error, and is not written
                self._drain()
                return
            self.disk.segments[job.segment] += job.intents
            self.tracker.recorded(job.generation, job.intents)
            self._issue(job)
        else:
            self.disk = self.disk.after(job, job.pages, released=True)
            if job.closes:
                self.tracker.released()

    # ------------------------------------------------------------------ generations

    @precondition(lambda self: self.tracker.closing is None)
    @rule()
    def cut(self) -> None:
        assert self.tracker.cut() is self.tracker.closing
        self._drain()

    def _drain(self) -> None:
        closing = self.tracker.closing
        if closing is None or closing.state is not GenerationState.DRAINING or closing.outstanding:
            return
        self.tracker.begin_flush()
        self.covered = False
        if self.connected:
            self.barrier = (dict(self.here), dict(self.sent))
            self.barrier_asked = True
        else:
            self._save(peer=False)

    @precondition(lambda self: self.barrier_asked)
    @rule()
    def peer_flushes(self) -> None:
        assert self.barrier is not None
        for half, version in self.barrier[1].items():
            if version >= 0:
                self.peer_durable[half] = version
        self.barrier_asked = False
        self.covered = True

    @precondition(lambda self: self.barrier is not None and not self.barrier_asked)
    @rule()
    def flush_ends(self) -> None:
        assert self.barrier is not None
        self.here_durable |= self.barrier[0]
        self.barrier = None
        self._save(peer=self.covered)

    def _save(self, *, peer: bool) -> None:
        closing = self.tracker.closing
        assert closing is not None
        self.queue.append(Save(self.tracker.flushed(peer=peer), (closing.segment,), closes=True))

    @rule()
    def save_what_is_to_be_saved(self) -> None:
        self.queue.append(Save(self.tracker.pages_to_save(), (), closes=False))

    # ------------------------------------------------------------------ the peer

    @precondition(lambda self: not self.connected)
    @rule()
    def connect(self) -> None:
        self.connected = True

    @precondition(lambda self: self.connected)
    @rule()
    def lose(self) -> None:
        self.connected = False
        for half, version in self.sent.items():
            if version != self.peer_durable.get(half, 0):
                self.sent[half] = -1
        self.barrier_asked = False
        self.tracker.peer_lost()

    @precondition(lambda self: self.connected and bool(self.tracker.todo))
    @rule(data=st.data())
    def resync_a_run(self, data: st.DataObject) -> None:
        """What is read is what was issued: reads stand behind the writes before them."""
        run = data.draw(st.sampled_from(list(self.tracker.todo.runs())))
        extent = Extent(run.start, min(run.stop, run.start + data.draw(st.integers(1, 4))))
        halves = range(2 * extent.start, 2 * extent.stop)
        data_bytes = sum(HALF_BYTES for half in halves if self.is_data.get(half))
        self.tracker.resynced([extent], data_bytes)
        for half in halves:
            self.sent[half] = self.here.get(half, 0)

    @rule(data=st.data())
    def the_peer_marks(self, data: st.DataObject) -> None:
        blocks = data.draw(st.sampled_from(NEAR_BORDERS))
        start = data.draw(st.integers(blocks.start, blocks.stop - 1))
        self.tracker.want([(start, data.draw(st.integers(start + 1, blocks.stop)))])

    # ------------------------------------------------------------------ what must hold

    def truly_dirty(self) -> set[int]:
        """Blocks that may differ after some crash of either side."""
        return {
            half // 2
            for half in {*self.here, *self.sent}
            if len(
                {
                    self.here.get(half, 0),
                    self.here_durable.get(half, 0),
                    self.sent.get(half, 0),
                    self.peer_durable.get(half, 0),
                }
            )
            > 1
        }

    @invariant()
    def a_crash_now_forgets_nothing(self) -> None:
        dirty = self.truly_dirty()
        head = self.queue[0] if self.queue and isinstance(self.queue[0], Save) else None
        for found in self.disk.may_become(head):
            forgotten = {block for block in dirty if not found.shows(block)}
            assert not forgotten, (forgotten, head)

    @invariant()
    def the_dirty_set_in_memory_is_no_smaller(self) -> None:
        marked = self.tracker.dirty()
        for block in self.truly_dirty():
            assert block in marked
        near = [block for blocks in NEAR_BORDERS for block in blocks]
        assert [block in marked for block in near] == [self.tracker.is_dirty(block) for block in near]

    @invariant()
    def a_crash_costs_no_more_than_the_window(self) -> None:
        """Data that is only in the journal: what a crash adds to what the peer lacks anyway."""
        recorded = {
            block for segment in self.disk.segments.values() for run in segment for block in range(*run)
        }
        extra = {block for block in recorded if block not in self.tracker.todo}
        with_data = {half // 2 for half, is_data in self.is_data.items() if is_data}
        assert len(extra & with_data) * BLOCK_BYTES <= WINDOW_BYTES + 2 * LARGEST_BATCH_BYTES

    @invariant()
    def invariants_of_its_own(self) -> None:
        self.tracker.check_invariants()
        unflushed = self.tracker.unflushed
        assert unflushed or not self.applying

    def teardown(self) -> None:
        """Everything ends well: then the dirty set is empty, in memory and on disk."""
        if not self.connected:
            self.connect()
        self._settle()
        for run in list(self.tracker.todo.runs()):
            self.tracker.resynced([run], 0)
            for half in range(2 * run.start, 2 * run.stop):
                self.sent[half] = self.here.get(half, 0)
        for _ in range(2):  # what is closing, and what is open
            if self.tracker.closing is None:
                self.cut()
            self._settle()
        self.save_what_is_to_be_saved()
        self._settle()
        assert self.truly_dirty() == set()
        assert self.tracker.dirty().count == 0
        assert not self.tracker.unflushed
        assert self.tracker.pages_to_save() == {}
        assert not any(any(page) for page in self.disk.pages.values())
        assert self.disk.segments == {0: [], 1: []}

    def _settle(self) -> None:
        while self.queue or self.applying or self.barrier is not None:
            if self.queue:
                self._next_of_metadata(fails=False)
            elif self.applying:
                self.next_is_applied(fails=False)
            elif self.barrier_asked:
                self.peer_flushes()
            else:
                self.flush_ends()
            self.a_crash_now_forgets_nothing()


TestTrackerMachine = TrackerMachine.TestCase
TestTrackerMachine.settings = settings(stateful_step_count=STEPS)


# -- one rule each -------------------------------------------------------------------------------------------


def tracker_of(block_count: int, *, window_bytes: int = 8 * MIB) -> Tracker:
    return Tracker(block_count, DirtyMap(block_count), window_bytes=window_bytes)


def data_op(start: int, blocks: int = 1) -> WriteOp:
    return WriteOp(OpKind.DATA, start * BLOCK_BYTES, blocks * BLOCK_BYTES)


def is_full(tracker: Tracker) -> bool:
    return tracker.full


def has_to_wait(tracker: Tracker) -> bool:
    return tracker.must_wait


def zero_op(start: int, blocks: int = 1) -> WriteOp:
    return WriteOp(OpKind.ZERO, start * BLOCK_BYTES, blocks * BLOCK_BYTES)


def noted(tracker: Tracker, *ops: WriteOp) -> list[Extent]:
    """Note a batch, record it and apply it at once."""
    number = tracker.open.number
    fresh = tracker.note(ops)
    if fresh:
        tracker.recorded(number, fresh)
    tracker.applied(number)
    return fresh


def test_an_intent_is_recorded_once_a_generation() -> None:
    tracker = tracker_of(64)
    assert noted(tracker, data_op(3)) == [Extent(3, 4)]
    assert noted(tracker, data_op(3)) == []
    assert noted(tracker, data_op(2, 3)) == [Extent(2, 5)]  # whole, though one block of it is known
    assert tracker.open.data_bytes == 3 * BLOCK_BYTES
    tracker.cut()
    assert noted(tracker, data_op(3)) == [Extent(3, 4)]


def test_a_block_is_recorded_again_until_its_record_is_durable() -> None:
    tracker = tracker_of(64)
    first = tracker.note([data_op(3)])
    assert tracker.note([data_op(3), data_op(9)]) == [Extent(3, 4), Extent(9, 10)]
    tracker.recorded(1, first)
    assert tracker.note([data_op(3)]) == [Extent(3, 4)]  # the second record may yet fail
    tracker.recorded(1, [Extent(3, 4), Extent(9, 10)])
    tracker.recorded(1, [Extent(3, 4)])
    assert tracker.note([data_op(3), data_op(9)]) == []
    assert tracker.open.data_bytes == 2 * BLOCK_BYTES


def test_data_written_over_a_fresh_discard_counts_against_the_window() -> None:
    """A discard costs nothing to copy again; what is written over it a moment later does."""
    tracker = tracker_of(4 * PAGE_BLOCKS, window_bytes=8 * MIB)
    noted(tracker, zero_op(0, 4 * PAGE_BLOCKS))
    assert not is_full(tracker)
    noted(tracker, data_op(0, 512))
    assert tracker.open.data_bytes == 2 * MIB
    noted(tracker, data_op(0, 512))  # the same blocks again
    assert tracker.open.data_bytes == 2 * MIB
    noted(tracker, data_op(PAGE_BLOCKS, 512))
    assert is_full(tracker)


def test_partial_blocks_are_marked_whole_and_empty_ops_not_at_all() -> None:
    tracker = tracker_of(64)
    assert tracker.note([WriteOp(OpKind.DATA, 4095, 2)]) == [Extent(0, 2)]
    assert tracker.note([WriteOp(OpKind.DATA, 8192, 0)]) == []
    tracker.lacking([WriteOp(OpKind.DATA, 8192, 0)])
    tracker.lacking([WriteOp(OpKind.DATA, 4095, 2)])
    assert tracker.todo.describe() == "2[0..2]"
    tracker.mirrored([WriteOp(OpKind.DATA, 1, 4095), WriteOp(OpKind.DATA, 4096, 4095)])
    assert tracker.todo.describe() == "2[0..2]"  # neither block is filled
    tracker.mirrored([WriteOp(OpKind.DATA, 0, 4097)])
    assert tracker.todo.describe() == "1[1..2]"


def test_a_generation_ends_with_half_the_window_or_with_its_segment() -> None:
    tracker = tracker_of(PAGE_BLOCKS, window_bytes=4 * BLOCK_BYTES)
    noted(tracker, data_op(0))
    assert not is_full(tracker)
    noted(tracker, data_op(1))
    assert is_full(tracker)
    assert not has_to_wait(tracker)
    tracker.cut()
    assert not has_to_wait(tracker)
    noted(tracker, data_op(0, 2))
    assert has_to_wait(tracker)

    small = tracker_of(PAGE_BLOCKS)
    for start in range(RECORDS_MAX):
        assert not is_full(small)
        noted(small, zero_op(2 * start))
    assert is_full(small)


def test_a_batch_of_many_extents_takes_several_records() -> None:
    tracker = tracker_of(PAGE_BLOCKS)
    noted(tracker, *(zero_op(2 * start) for start in range(1200)))
    assert tracker.open.records >= 3


def test_one_save_is_bounded_where_nothing_depends_on_it() -> None:
    """Pages that a segment's release waits for are all written; those that are only inexact, in parts."""
    pages = PAGES_PER_SAVE_MAX + 10
    tracker = tracker_of(pages * PAGE_BLOCKS)
    tracker.want([(0, pages * PAGE_BLOCKS)])
    assert len(tracker.pages_to_save()) == pages
    tracker.resynced([Extent(0, pages * PAGE_BLOCKS)], 0)
    tracker.cut()
    tracker.begin_flush()
    assert len(tracker.flushed(peer=True)) == PAGES_PER_SAVE_MAX
    assert len(tracker.pages_to_save()) == 10
    assert tracker.pages_to_save() == {}


def test_a_page_shows_what_a_resync_sent_until_a_flush_covers_it() -> None:
    tracker = tracker_of(64)
    tracker.want([(0, 4)])
    assert set(tracker.pages_to_save()) == {0}
    tracker.resynced([Extent(0, 2)], 2 * BLOCK_BYTES)
    (page,) = tracker.pages_to_save().values()  # the bits may go now, but the blocks are not safe yet
    assert page[0] == 0b1111
    tracker.cut()
    tracker.resynced([Extent(2, 3)], BLOCK_BYTES)
    tracker.begin_flush()
    (page,) = tracker.flushed(peer=True).values()
    assert page[0] == 0b1100
    tracker.released()
    tracker.cut()
    tracker.begin_flush()
    (page,) = tracker.flushed(peer=True).values()
    assert page[0] == 0b1000


def test_a_lost_peer_needs_all_that_no_flush_covers() -> None:
    tracker = tracker_of(64)
    noted(tracker, data_op(1))
    tracker.cut()
    tracker.begin_flush()
    tracker.flushed(peer=True)  # covered: it is the peer's for good
    noted(tracker, data_op(2))
    tracker.resynced([Extent(3, 4)], BLOCK_BYTES)
    tracker.peer_lost()
    assert tracker.todo.describe() == "2[2..4]"
    tracker.released()
    tracker.cut()
    noted(tracker, data_op(4))
    tracker.peer_lost()
    assert tracker.todo.describe() == "3[2..5]"


def test_misuse_is_our_own_bug() -> None:
    with pytest.raises(InternalError, match="window of 4096 bytes"):
        tracker_of(64, window_bytes=BLOCK_BYTES)
    tracker = tracker_of(64)
    with pytest.raises(InternalError, match="more batches applied"):
        tracker.applied(1)
    tracker = tracker_of(64)
    with pytest.raises(InternalError, match="generation 2 is not live"):
        tracker.applied(2)
    with pytest.raises(InternalError, match="no generation is draining"):
        tracker.begin_flush()
    with pytest.raises(InternalError, match="no generation is saving"):
        tracker.released()
    with pytest.raises(InternalError, match="no generation is flushing"):
        tracker.flushed(peer=True)
    with pytest.raises(InternalError, match="volume of 64"):
        tracker.note([data_op(64)])
    tracker.note([data_op(0)])
    closing = tracker.cut()
    assert (closing.number, closing.segment, tracker.open.segment) == (1, 1, 0)
    with pytest.raises(InternalError, match="closing already"):
        tracker.cut()
    with pytest.raises(InternalError, match="1 writes to apply"):
        tracker.begin_flush()


def test_invariants_are_checked() -> None:
    tracker = tracker_of(64)
    tracker.check_invariants()
    tracker.open.state = GenerationState.DRAINING
    with pytest.raises(InternalError, match="open generation is draining"):
        tracker.check_invariants()
    tracker.open.state = GenerationState.OPEN
    tracker.open.data_bytes = -1
    with pytest.raises(InternalError, match="below zero"):
        tracker.check_invariants()
    tracker.open.data_bytes = 0
    tracker.closing = IntentGeneration(5, 64)
    with pytest.raises(InternalError, match="not consecutive"):
        tracker.check_invariants()


def test_only_data_has_bytes() -> None:
    assert ops_bytes([data_op(0), zero_op(1, 1000), WriteOp(OpKind.DATA, 7, 5)]) == BLOCK_BYTES + 5
