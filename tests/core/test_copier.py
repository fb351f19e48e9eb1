"""The copier: what is durable before the peer is overwritten, what is sent, and when nothing is missing."""

from __future__ import annotations

import errno
import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pairsync.core.copier import READY_BYTES, READY_OPS, Copier
from pairsync.core.dirty import DirtyMap
from pairsync.core.effects import DropSession, Effect, Emit, MapAllocation, Persist, Read, SavePages, Send
from pairsync.core.events import ResyncEvent, TroubleEvent
from pairsync.core.fetcher import Fetcher
from pairsync.core.messages import (
    Adopt,
    Begin,
    Condition,
    Generation,
    Message,
    OpKind,
    SyncMode,
    VolumePlan,
    WriteOp,
)
from pairsync.core.permit import Permit
from pairsync.core.questions import Questions
from pairsync.core.resync import PIECE_BLOCKS, Found, Pacer
from pairsync.core.standing import Phase, Standing
from pairsync.core.tracker import Tracker
from pairsync.core.units import BLOCK_BYTES, MIB, NS_PER_MS, Extent
from pairsync.errors import InternalError, ProtocolError
from pairsync.testing.manual import blank_superblock

BLOCKS = 4096
SIZE = BLOCKS * BLOCK_BYTES - 1000  # the last block is partial
FIRST = Generation(1, 1, 1)


class Bench:
    """A copier with all that it needs, and metadata that is written when told to."""

    def __init__(
        self, *, peer_in_sync: bool = False, dirty: tuple[int, ...] = (), arbitrated: bool = False
    ) -> None:
        self.out: list[Effect] = []
        self.permit = Permit(self.out, alone=not arbitrated)
        todo = DirtyMap(BLOCKS)
        for block in dirty:
            todo.mark(block, block + 1)
        self.tracker = Tracker(BLOCKS, todo, window_bytes=8 * MIB)
        self.tracker.pages_to_save()
        superblock = replace(
            blank_superblock("vda", SIZE),
            condition=Condition.CONSISTENT,
            lineage=(FIRST,),
            term=1,
            map_base=None,
            peer_in_sync=peer_in_sync,
        )
        tags = itertools.count(2)
        self.standing = Standing(0, superblock, lambda: next(tags), self.out, self.permit)
        self.pacer = Pacer(NS_PER_MS, 16 * MIB)
        questions = Questions(0, self.standing, self.out)
        fetcher = Fetcher(0, self.standing, self.out)
        self.copier = Copier(0, SIZE, self.tracker, self.standing, questions, fetcher, self.pacer, self.out)

    def begin(self, mode: SyncMode, *, blank: bool = False) -> None:
        self.copier.begin(VolumePlan(mode, "rule", FIRST), blank=blank, now_ns=7)
        self.advance()

    def advance(self, *, room: bool = True) -> None:
        self.copier.advance(7, room=room)

    def take(self, kind: type[Effect]) -> list[Effect]:
        found = [effect for effect in self.out if isinstance(effect, kind)]
        self.out[:] = [effect for effect in self.out if not isinstance(effect, kind)]
        return found

    def sent(self) -> list[Message]:
        return [m for effect in self.take(Send) if isinstance(effect, Send) for m in effect.messages]

    def persist(self) -> None:
        for effect in self.take(Persist):
            assert isinstance(effect, Persist)
            self.standing.persisted(effect.token)
        self.advance()

    def reads(self) -> list[Read]:
        return [effect for effect in self.take(Read) if isinstance(effect, Read)]

    def copying(self, *blocks: int) -> Bench:
        """A resync of those blocks has begun."""
        self.tracker.want((block, block + 1) for block in blocks)
        self.begin(SyncMode.INCREMENTAL)
        self.persist()
        self.copier.begun(7)
        self.persist()
        self.out[:] = [effect for effect in self.out if isinstance(effect, Read)]
        return self

    def answer(self, read: Read, *, zero: bool = False) -> None:
        """All that was asked for is data, or a hole."""
        ops = []
        for extent in read.extents:
            start, stop = extent.start * BLOCK_BYTES, min(extent.stop * BLOCK_BYTES, SIZE)
            op = WriteOp(OpKind.DATA, start, stop - start, bytes(stop - start))
            ops.append(WriteOp(OpKind.ZERO, start, stop - start) if zero else op)
        self.copier.found(read.number, Found(read.extents, ops))

    def flush_generation(self) -> None:
        """What was sent becomes durable on both sides."""
        self.tracker.cut()
        self.tracker.begin_flush()
        self.tracker.flushed(peer=True)
        self.tracker.released()


# -- beginning -----------------------------------------------------------------------------------------------


def test_nothing_to_copy_asks_to_adopt_at_once() -> None:
    bench = Bench(peer_in_sync=True)
    bench.begin(SyncMode.NOTHING)
    begin, adopt = bench.sent()
    assert isinstance(begin, Begin)
    assert begin.plan.mode is SyncMode.NOTHING
    assert adopt == Adopt(1, 0, (FIRST,), milestone=1)
    assert bench.standing.phase is Phase.ADOPTING
    assert bench.copier.waiting_since_ns == 7
    assert bench.out == []


def test_nothing_to_copy_turns_into_a_little_if_something_was_written_since() -> None:
    bench = Bench(dirty=(3,))
    bench.begin(SyncMode.NOTHING)
    (begin,) = bench.sent()
    assert isinstance(begin, Begin)
    assert begin.plan.mode is SyncMode.INCREMENTAL


def test_the_peer_is_not_touched_while_a_superblock_calls_it_in_sync() -> None:
    bench = Bench(peer_in_sync=True, dirty=(3,))
    bench.begin(SyncMode.INCREMENTAL)
    assert bench.sent() == []
    bench.persist()
    assert [type(message) for message in bench.sent()] == [Begin]
    assert not bench.standing.superblock.peer_in_sync


def test_a_full_copy_has_everything_in_the_bitmap_and_a_base_before_it_begins() -> None:
    bench = Bench()
    bench.begin(SyncMode.FULL)
    (save,) = bench.take(SavePages)
    assert isinstance(save, SavePages)
    assert bench.tracker.todo.count == BLOCKS
    bench.copier.saved(object(), 7)
    assert bench.out == []
    for _ in range(2):
        bench.copier.saved(save.token, 7)
        assert bench.sent() == []
    bench.persist()
    assert bench.standing.superblock.map_base == FIRST
    assert [type(message) for message in bench.sent()] == [Begin]
    (event,) = bench.take(Emit)
    assert event == Emit(ResyncEvent("vda", "full", "rule", BLOCKS))


def test_to_a_blank_peer_only_what_is_allocated_is_copied() -> None:
    bench = Bench(dirty=(9,))
    bench.begin(SyncMode.FULL, blank=True)
    (ask,) = bench.take(MapAllocation)
    assert isinstance(ask, MapAllocation)
    bench.copier.mapped(object(), [(0, BLOCKS)])
    assert bench.tracker.todo.count == 1
    bench.copier.mapped(ask.token, [(0, 5), (20, 21)])
    assert bench.tracker.todo.describe() == "7[0..5 9..10 20..21]"
    bench.copier.mapped(ask.token, [(0, BLOCKS)])
    assert bench.tracker.todo.count == 7
    assert len(bench.take(SavePages)) == 1


def test_answers_to_what_was_given_up_are_stale() -> None:
    bench = Bench()
    bench.begin(SyncMode.FULL)
    (save,) = bench.take(SavePages)
    assert isinstance(save, SavePages)
    bench.copier.stop()
    bench.copier.saved(save.token, 7)
    bench.copier.mapped(None, [(0, 1)])
    assert bench.out == []
    assert bench.copier.waiting_since_ns is None


def test_what_an_earlier_session_found_is_in_the_bitmap_before_it_is_sent() -> None:
    bench = Bench()
    bench.begin(SyncMode.FULL)
    (save,) = bench.take(SavePages)
    assert isinstance(save, SavePages)
    bench.copier.stop()
    bench.standing.leave(Phase.ABSENT, at_once=False)
    bench.begin(SyncMode.INCREMENTAL)
    assert bench.sent() == []
    bench.copier.saved(save.token, 7)
    bench.advance()
    assert [type(message) for message in bench.sent()] == [Begin]
    assert bench.standing.superblock.map_base is None, "nobody has asked for a full copy since"


@pytest.mark.parametrize("durable", [True, False])
def test_what_no_log_names_is_in_the_bitmap_before_it_is_read(durable: bool) -> None:
    bench = Bench()
    fresh = bench.tracker.note([WriteOp(OpKind.ZERO, 20 * BLOCK_BYTES, BLOCK_BYTES)])
    if durable:
        bench.tracker.recorded(1, fresh)
    bench.tracker.applied(1)
    bench.tracker.peer_lost()
    bench.begin(SyncMode.INCREMENTAL)
    bench.persist()
    bench.copier.begun(7)
    bench.advance()
    assert bool(bench.reads()) is durable
    if not durable:
        bench.advance()
        (save,) = bench.take(SavePages)
        assert isinstance(save, SavePages)
        bitmap = DirtyMap(BLOCKS)
        bitmap.load_page(0, save.pages[0])
        assert bitmap.describe() == "1[20..21]"
        bench.copier.saved(save.token, 7)
        bench.advance()
        assert len(bench.reads()) == 1
    assert bench.take(SavePages) == []


def test_an_answer_to_a_plan_that_was_not_sent_is_the_peers_fault() -> None:
    bench = Bench()
    with pytest.raises(ProtocolError, match="a plan that was not sent"):
        bench.copier.begun(0)
    bench.begin(SyncMode.NOTHING)
    with pytest.raises(ProtocolError, match="a plan that was not sent"):
        bench.copier.begun(0)


def test_a_plan_is_sent_only_if_there_is_one() -> None:
    bench = Bench()
    with pytest.raises(InternalError, match="no plan to begin"):
        bench.copier._send_begin(0)


# -- copying -------------------------------------------------------------------------------------------------


def test_reads_wait_for_the_peer_to_be_ready_and_for_room() -> None:
    bench = Bench(dirty=(3, 9))
    bench.begin(SyncMode.INCREMENTAL)
    assert bench.reads() == []
    assert waits_since(bench) == 7
    bench.copier.begun(8)
    assert waits_since(bench) is None
    bench.advance(room=False)
    assert bench.reads() == []
    bench.advance()
    assert [list(read.extents) for read in bench.reads()] == [[Extent(3, 4), Extent(9, 10)]]
    progress = bench.copier.progress(8)
    assert progress is not None
    assert progress.remaining_blocks == 2


def test_what_was_found_is_sent_as_one_message_when_nothing_more_is_read() -> None:
    bench = Bench().copying(3, *range(9, 9 + PIECE_BLOCKS))
    first, second = bench.reads()
    bench.answer(first)
    assert bench.copier.take_ready(all_of_it=False) == []
    bench.answer(second, zero=True)
    ops = bench.copier.take_ready(all_of_it=False)
    assert [op.offset // BLOCK_BYTES for op in ops] == [3, 9]
    assert bench.copier.take_ready(all_of_it=True) == []
    assert not bench.tracker.todo
    assert bench.tracker.open.sent.count == 1 + PIECE_BLOCKS


def test_what_was_found_goes_at_once_before_a_live_write_or_a_barrier() -> None:
    bench = Bench().copying(3, *range(9, 9 + PIECE_BLOCKS))
    bench.answer(bench.reads()[0])
    assert len(bench.copier.take_ready(all_of_it=True)) == 1


@pytest.mark.parametrize(("zero", "ops"), [(False, READY_BYTES // BLOCK_BYTES), (True, READY_OPS)])
def test_what_is_worth_a_message_does_not_wait(zero: bool, ops: int) -> None:
    bench = Bench().copying(*range(0, 4 * ops, 2))
    answered = 0
    for read in bench.reads():
        bench.answer(read, zero=zero)
        answered += len(read.extents)
        if ready := bench.copier.take_ready(all_of_it=False):
            break
    assert ops <= len(ready) == answered < ops + PIECE_BLOCKS


def test_a_write_meanwhile_silences_the_read() -> None:
    bench = Bench().copying(3, 4, 5, 6)
    (read,) = bench.reads()
    bench.copier.written([WriteOp(OpKind.DATA, 4 * BLOCK_BYTES + 1, 1), WriteOp(OpKind.DATA, 0, 0)])
    bench.answer(read)
    ops = bench.copier.take_ready(all_of_it=True)
    assert [(op.offset // BLOCK_BYTES, op.length // BLOCK_BYTES) for op in ops] == [(3, 1), (5, 2)]
    bench.copier.written([WriteOp(OpKind.DATA, 0, BLOCK_BYTES)])  # nothing is being read


def test_the_last_block_of_a_volume_may_be_partial() -> None:
    bench = Bench().copying(BLOCKS - 1)
    (read,) = bench.reads()
    bench.answer(read)
    (op,) = bench.copier.take_ready(all_of_it=True)
    assert op.offset + op.length == SIZE


def test_holes_are_sent_as_holes() -> None:
    bench = Bench().copying(3, 4, 5, 6)
    (read,) = bench.reads()
    start = 3 * BLOCK_BYTES
    data = WriteOp(OpKind.DATA, start, BLOCK_BYTES, b"x" * BLOCK_BYTES)
    hole = WriteOp(OpKind.ZERO, start + BLOCK_BYTES, 3 * BLOCK_BYTES)
    bench.copier.found(read.number, Found(read.extents, [data, hole]))
    first, second = bench.copier.take_ready(all_of_it=True)
    assert (first.kind, second.kind, second.length) == (OpKind.DATA, OpKind.ZERO, 3 * BLOCK_BYTES)
    assert bench.tracker.open.data_bytes == BLOCK_BYTES


def test_only_what_is_still_wanted_is_cut_out_of_what_was_found() -> None:
    bench = Bench().copying(3, 4, 5, 6)
    (read,) = bench.reads()
    bench.tracker.mirrored([WriteOp(OpKind.DATA, 3 * BLOCK_BYTES, 2 * BLOCK_BYTES)])
    first, last = (
        WriteOp(OpKind.DATA, start * BLOCK_BYTES, 2 * BLOCK_BYTES, bytes([start]) * 2 * BLOCK_BYTES)
        for start in (3, 5)
    )
    bench.copier.found(read.number, Found(read.extents, [first, last]))
    (op,) = bench.copier.take_ready(all_of_it=True)
    assert (op.offset, op.data) == (last.offset, last.data)


def test_of_several_runs_each_gets_its_part() -> None:
    bench = Bench().copying(3, 4, 8, 9, 20)
    (read,) = bench.reads()
    bench.copier.written([WriteOp(OpKind.DATA, 4 * BLOCK_BYTES, 1)])
    zero, data = (
        WriteOp(OpKind.ZERO, 3 * BLOCK_BYTES, 2 * BLOCK_BYTES),
        WriteOp(OpKind.DATA, 8 * BLOCK_BYTES, 2 * BLOCK_BYTES, b"8" * 2 * BLOCK_BYTES),
    )
    bench.tracker.mirrored([WriteOp(OpKind.DATA, 8 * BLOCK_BYTES, BLOCK_BYTES)])
    last = WriteOp(OpKind.DATA, 20 * BLOCK_BYTES, BLOCK_BYTES, b"20" * (BLOCK_BYTES // 2))
    bench.copier.found(read.number, Found(read.extents, [zero, data, last]))
    ready = bench.copier.take_ready(all_of_it=True)
    assert [(op.kind, op.offset // BLOCK_BYTES, op.length // BLOCK_BYTES) for op in ready] == [
        (OpKind.ZERO, 3, 1),
        (OpKind.DATA, 9, 1),
        (OpKind.DATA, 20, 1),
    ]
    assert bytes(ready[1].data or b"") == b"8" * BLOCK_BYTES
    assert ready[2] is last, "what needs no cut is not copied"


def test_late_answers_are_dropped() -> None:
    bench = Bench().copying(3)
    (read,) = bench.reads()
    bench.copier.stop()
    bench.answer(read)
    assert bench.copier.take_ready(all_of_it=True) == []
    bench.copier.read_failed(read.number, errno.EIO)
    assert bench.take(DropSession) == []
    assert bench.tracker.todo.count == 1
    bench.copier.arrived(4096)


def test_a_failed_read_is_told_apart_from_a_late_one() -> None:
    bench = Bench().copying(3)
    (read,) = bench.reads()
    for _ in range(2):
        bench.copier.read_failed(read.number, errno.EIO)
    reason = "cannot read what the peer lacks: EIO"
    assert bench.take(DropSession) == [DropSession(reason, refused=True)]
    assert bench.take(Emit) == [Emit(TroubleEvent("vda", fatal=False, reason=reason))]
    bench.advance()
    assert bench.reads() == [], "it leads to nothing"


# -- ending --------------------------------------------------------------------------------------------------


def test_it_asks_to_adopt_when_all_is_durable_there() -> None:
    bench = Bench().copying(3)
    (read,) = bench.reads()
    assert not is_finishing(bench)
    bench.answer(read)
    assert is_finishing(bench)
    bench.advance()
    assert bench.sent() == []  # found, not sent
    bench.copier.take_ready(all_of_it=True)
    bench.advance()
    assert bench.sent() == []  # sent, not durable
    bench.flush_generation()
    assert not is_finishing(bench)
    bench.advance()
    (adopt,) = bench.sent()
    assert isinstance(adopt, Adopt)
    assert waits_since(bench) == 7
    bench.copier.adopted()
    assert waits_since(bench) is None
    assert bench.copier.progress(9) is None


def test_it_asks_to_adopt_nothing_that_is_not_recorded_here() -> None:
    """A permit to go on alone came while the peer was copied to, and the disk failed before the generation
    that it begins was there: the peer had it, and the two had diverged."""
    bench = Bench(peer_in_sync=True, dirty=(3,), arbitrated=True)
    bench.begin(SyncMode.INCREMENTAL)
    bench.copier.begun(7)
    bench.persist()
    bench.sent()
    bench.permit.give(alone=True)
    bench.standing.permitted()
    bench.answer(bench.reads()[0])
    bench.copier.take_ready(all_of_it=True)
    bench.flush_generation()
    bench.advance()
    assert bench.sent() == []
    bench.persist()
    (adopt,) = bench.sent()
    assert isinstance(adopt, Adopt)
    assert adopt.lineage == bench.standing.superblock.lineage
    assert len(adopt.lineage) == 2


def test_a_generation_that_is_closing_with_copied_blocks_is_waited_for() -> None:
    bench = Bench().copying(3)
    (read,) = bench.reads()
    bench.answer(read)
    bench.copier.take_ready(all_of_it=True)
    bench.tracker.cut()
    bench.advance()
    assert bench.sent() == []
    bench.tracker.begin_flush()
    bench.tracker.flushed(peer=True)
    bench.tracker.released()
    bench.advance()
    assert [type(message) for message in bench.sent()] == [Adopt]


def test_with_nothing_to_copy_after_all_it_asks_at_once() -> None:
    bench = Bench(peer_in_sync=True)
    bench.begin(SyncMode.INCREMENTAL)
    bench.persist()
    bench.copier.begun(7)
    bench.persist()
    assert [type(message) for message in bench.sent()] == [Begin, Adopt]


@pytest.mark.parametrize("mode", [SyncMode.INCREMENTAL, SyncMode.FULL])
def test_the_map_begins_anew_once_the_peer_is_being_brought_to_the_newest_generation(mode: SyncMode) -> None:
    """It was said to hold all that was written since the peer had left, though blocks that are copied leave
    it: an owner that gave way to a peer that was put back lost these, and no overlay kept them."""
    bench = Bench(peer_in_sync=True, dirty=(3,))
    bench.begin(mode)
    for effect in bench.take(SavePages):
        assert isinstance(effect, SavePages)
        bench.copier.saved(effect.token, 7)
    while bench.standing.newest == FIRST or not bench.standing.settled:
        bench.persist()
    (begin,) = bench.sent()
    assert isinstance(begin, Begin)
    assert begin.plan.target == bench.standing.newest != FIRST  # what was opened for it
    assert bench.standing.superblock.map_base != bench.standing.newest  # the peer may have left no trace yet
    bench.copier.begun(7)
    (effect,) = bench.take(Persist)
    assert isinstance(effect, Persist)
    assert effect.superblock.map_base == begin.plan.target


def test_a_block_that_failed_here_is_copied_in_passing() -> None:
    """In sync already: it is read and sent, and the lineage is not adopted again."""
    bench = Bench(peer_in_sync=True)
    bench.begin(SyncMode.NOTHING)
    bench.sent()
    assert bench.standing.adopted(FIRST)
    bench.copier.adopted()
    bench.tracker.lacking([WriteOp(OpKind.DATA, 5 * BLOCK_BYTES, BLOCK_BYTES)])
    bench.advance()
    (read,) = bench.reads()
    assert list(read.extents) == [Extent(5, 6)]
    bench.answer(read)
    assert len(bench.copier.take_ready(all_of_it=False)) == 1
    assert not is_finishing(bench)
    bench.advance()
    assert bench.sent() == []


def is_finishing(bench: Bench) -> bool:
    return bench.copier.finishing


def waits_since(bench: Bench) -> int | None:
    return bench.copier.waiting_since_ns


# -- in any order --------------------------------------------------------------------------------------------

NEAR = [0, 1, 149, 200, 201, 349, 4000]  # blocks that are written
RUNS = [(0, 150), (200, 350), (1, 2), (201, 202), (4000, 4001)]  # each of the first is a read of its own
MIXED = -1  # a part of this and a part of that
HALF_BYTES = BLOCK_BYTES // 2


def content_of(block: int, version: int | None) -> WriteOp:
    if version is None:
        return WriteOp(OpKind.ZERO, block * BLOCK_BYTES, BLOCK_BYTES)
    data = version.to_bytes(8, "little") * (BLOCK_BYTES // 8)
    return WriteOp(OpKind.DATA, block * BLOCK_BYTES, BLOCK_BYTES, data)


class CopierMachine(RuleBasedStateMachine):
    """Writes, reads, flushes and the peer's answers in any order, and the peer comes and goes: whatever is
    not called missing is equal once the stream is empty, what is not dirty is durable there, and it ends."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(peer_in_sync=True)
        self.tracker, self.copier, self.standing = self.bench.tracker, self.bench.copier, self.bench.standing
        self.version = 0
        self.here: dict[int, int] = {}
        self.there: dict[int, int] = {}
        self.durable_there: dict[int, int] = {}
        # What the peer has not taken: a block, what it was and is then (None: whatever it was), or a message.
        self.stream: deque[tuple[int, int | None, int] | Message | None] = deque()
        self.reads: deque[tuple[Read, dict[int, int]]] = deque()  # with what each finds

    @initialize(runs=st.sets(st.sampled_from(RUNS)))
    def begin(self, runs: set[tuple[int, int]]) -> None:
        self.tracker.want(sorted(runs))
        self.there = {block: MIXED for start, stop in runs for block in NEAR if start <= block < stop}
        self.durable_there = dict(self.there)

    def _perform(self) -> None:
        bench = self.bench
        self._send(all_of_it=False)
        bench.advance()
        self.reads += ((read, dict(self.here)) for read in bench.reads())
        self.stream += bench.sent()
        assert not bench.take(DropSession)

    def _send(self, *, all_of_it: bool) -> None:
        items = self._items(self.copier.take_ready(all_of_it=all_of_it))
        assert not items or self.standing.mirrored
        self.stream += items

    def _items(self, ops: Sequence[WriteOp]) -> list[tuple[int, int | None, int]]:
        items: list[tuple[int, int | None, int]] = []
        for op in ops:
            for block in NEAR:
                at = block * BLOCK_BYTES - op.offset
                if 0 <= at < op.length:
                    data = b"" if op.data is None else bytes(op.data[at : at + 8])
                    items.append((block, None, int.from_bytes(data, "little")))
        return items

    def _take(self, there: dict[int, int], block: int, before: int | None, after: int) -> None:
        there[block] = after if before is None or there.get(block, 0) == before else MIXED

    # ------------------------------------------------------------------ the guest and the disks

    @rule(block=st.sampled_from(NEAR), half=st.booleans())
    def write(self, block: int, half: bool) -> None:
        ops = [WriteOp(OpKind.DATA, block * BLOCK_BYTES, HALF_BYTES if half else BLOCK_BYTES)]
        number = self.tracker.open.number
        if fresh := self.tracker.note(ops):
            self.tracker.recorded(number, fresh)
        self.version += 1
        before, self.here[block] = self.here.get(block, 0), self.version
        self.copier.written(ops)
        if self.standing.mirrored:
            self._send(all_of_it=True)
            self.tracker.mirrored(ops)
            self.stream.append((block, before if half else None, self.version))
        else:
            self.tracker.lacking(ops)
        self.tracker.applied(number)
        self._perform()

    @rule(block=st.sampled_from(NEAR))
    def a_write_fails_here(self, block: int) -> None:
        """Nobody knows what it has left."""
        self.version += 1
        self.here[block] = self.version
        ops = [WriteOp(OpKind.DATA, block * BLOCK_BYTES, BLOCK_BYTES)]
        self.copier.written(ops)
        self.tracker.lacking(ops)
        self._perform()

    @precondition(lambda self: bool(self.reads))
    @rule(short=st.booleans())
    def a_read_ends(self, short: bool) -> None:
        """With all that was asked for, or the first blocks; it may be of an earlier session."""
        read, found = self.reads.popleft()
        covered = [Extent(start, start + 1 if short else stop) for start, stop in read.extents]
        ops = [content_of(block, found.get(block)) for part in covered for block in range(*part)]
        self.copier.found(read.number, Found(covered, ops))
        self._perform()

    @precondition(lambda self: self.tracker.closing is None)
    @rule()
    def flush(self) -> None:
        """A generation is closed, and the peer asked for its flush where it is there."""
        self.tracker.cut()
        self.tracker.begin_flush()
        if self.standing.mirrored:
            self._send(all_of_it=True)
            self.stream.append(None)
        else:
            self._flushed(peer=False)
        self._perform()

    def _flushed(self, *, peer: bool) -> None:
        self.tracker.flushed(peer=peer)
        self.tracker.released()

    # ------------------------------------------------------------------ metadata and the peer

    @rule()
    def metadata_are_durable(self) -> None:
        self.bench.persist()
        self._perform()

    @precondition(lambda self: bool(self.stream))
    @rule()
    def the_peer_does_something(self) -> None:
        item = self.stream.popleft()
        if item is None:
            self.durable_there = dict(self.there)
            self._flushed(peer=True)
        elif isinstance(item, tuple):
            self._take(self.there, *item)
        elif isinstance(item, Begin):
            if item.plan.mode is not SyncMode.NOTHING:
                assert not self.standing.superblock.peer_in_sync
                self.copier.begun(7)
        else:
            assert isinstance(item, Adopt)
            assert MIXED not in self.there.values(), "it is promoted as it is"
            for block in NEAR:
                written = any(g and block in g.marked for g in (self.tracker.open, self.tracker.closing))
                assert written or self.durable_there.get(block, 0) == self.there.get(block, 0)
            assert self.standing.adopted(item.lineage[0])
            self.copier.adopted()
        self._perform()

    @precondition(lambda self: self.standing.phase is Phase.ABSENT and self.standing.settled)
    @rule()
    def the_peer_comes(self) -> None:
        mode = SyncMode.NOTHING if self.standing.superblock.peer_in_sync else SyncMode.INCREMENTAL
        self.copier.begin(VolumePlan(mode, "rule", self.standing.newest), blank=False, now_ns=7)
        self._perform()

    @precondition(lambda self: self.standing.phase is not Phase.ABSENT)
    @rule(power=st.booleans())
    def the_peer_is_lost(self, power: bool) -> None:
        self.tracker.peer_lost()
        self.copier.stop()
        self.standing.leave(Phase.ABSENT, at_once=True)
        self.stream.clear()
        if power:
            self.there = dict(self.durable_there)
        if self.tracker.closing is not None:
            self._flushed(peer=False)
        self._perform()

    # ------------------------------------------------------------------ what must hold

    @invariant()
    def what_is_not_called_missing_is_there(self) -> None:
        dirty = self.tracker.dirty()
        clean = [block for block in NEAR if block not in dirty]
        assert [self.durable_there.get(b, 0) for b in clean] == [self.here.get(b, 0) for b in clean]
        if self.standing.mirrored:
            there = dict(self.there)
            for item in (*self.stream, *self._items(self.copier._ready)):
                if isinstance(item, tuple):
                    self._take(there, *item)
            sent = [block for block in NEAR if block not in self.tracker.todo]
            assert [there.get(b, 0) for b in sent] == [self.here.get(b, 0) for b in sent]

    def teardown(self) -> None:
        """Without writes it comes to its end: the peer is in sync, and has all."""
        for _ in range(100):
            self.metadata_are_durable()
            if self.standing.phase is Phase.ABSENT and self.standing.settled:
                self.the_peer_comes()
            for _ in range(len(self.reads)):
                self.a_read_ends(short=False)
            while self.stream:
                self.the_peer_does_something()
            if self.tracker.closing is None and self.copier.finishing:
                self.flush()
            self.what_is_not_called_missing_is_there()
        assert self.standing.phase is Phase.IN_SYNC
        assert self.copier.at_rest
        assert [self.there.get(b, 0) for b in NEAR] == [self.here.get(b, 0) for b in NEAR]


TestCopierMachine = CopierMachine.TestCase
TestCopierMachine.settings = settings(stateful_step_count=40)
