"""The life of a write-intent generation: effect by effect, and in any order of what ends."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pairsync.core.closer import Closer
from pairsync.core.dirty import DirtyMap
from pairsync.core.effects import Effect, Flush, SavePages, Send
from pairsync.core.flushes import Flushes, FlushOp
from pairsync.core.messages import Barrier, Condition, Generation, OpKind, WriteOp
from pairsync.core.standing import Phase, Standing
from pairsync.core.superblock import Superblock
from pairsync.core.tracker import Tracker
from pairsync.core.units import MIB, Extent
from pairsync.errors import InternalError

BLOCKS = 4096
GENERATION = Generation(1, 1, 7)


class World:
    """A closer with its neighbours; effects gather in `out`."""

    def __init__(self, dirty: int = 0) -> None:
        self.out: list[Effect] = []
        todo = DirtyMap(BLOCKS)
        todo.mark(0, dirty)
        self.tracker = Tracker(BLOCKS, todo, window_bytes=4 * MIB)
        block = Superblock(
            bytes(16), bytes(16), "vda", BLOCKS * 4096, 1, Condition.CONSISTENT, (GENERATION,), None, False,
            GENERATION, False, "boot",
        )  # fmt: skip
        self.standing = Standing(0, block, lambda: 1, self.out)
        self.flushes = Flushes(0, self.standing, self.out)
        self.closer = Closer(0, self.tracker, self.flushes, self.out)

    def write(self) -> None:
        """One batch, recorded and noted, not yet applied."""
        number = self.tracker.open.number
        fresh = self.tracker.note([WriteOp(OpKind.DATA, 0, 4096, bytes(4096))])
        self.tracker.recorded(number, fresh)
        self.closer.touched(10)

    def join(self) -> None:
        """The peer is there and mirrored."""
        self.standing.prepare()
        self.standing.begun()


def taken(world: World) -> list[Effect]:
    effects = world.out[:]
    world.out.clear()
    return effects


def test_recovery_saves_what_was_found_and_gives_both_segments_up() -> None:
    world = World(dirty=3)
    world.closer.recover()
    (save,) = taken(world)
    assert isinstance(save, SavePages)
    assert save.release == (0, 1)
    assert save.pages[0][0] == 0b111
    assert world.closer.saving
    assert world.closer.saved(save.token)
    assert not world.closer.saving


def test_a_cut_waits_for_its_writes_then_flushes_both_sides_then_releases() -> None:
    world = World()
    world.join()
    world.write()
    number = world.tracker.open.number
    world.closer.cut(20)
    assert taken(world) == [], "a write of it has not been applied"
    world.tracker.applied(number)
    world.closer.drain(21)
    flush, send = taken(world)
    assert isinstance(flush, Flush)
    assert isinstance(send, Send)
    (barrier,) = send.messages
    assert isinstance(barrier, Barrier)
    op = world.flushes.local_done(flush.token)
    assert not op.done
    world.closer.drain(22)
    assert world.tracker.is_dirty(0), "the peer has not made it durable yet"
    op = world.flushes.peer_done(barrier.barrier)
    world.flushes.finished(op, to_peer=True, now_ns=23)
    world.closer.flush_finished(op)
    (save,) = taken(world)
    assert isinstance(save, SavePages)
    assert save.release == (number % 2,)
    assert not world.tracker.is_dirty(0)
    assert world.tracker.closing is not None
    assert world.closer.saved(save.token)
    assert world.tracker.closing is None


def test_without_a_peer_the_blocks_go_to_the_bitmap() -> None:
    world = World()
    world.write()
    number = world.tracker.open.number
    world.tracker.applied(number)
    world.closer.cut(20)
    (flush,) = taken(world)
    assert isinstance(flush, Flush)
    assert flush.digests, "the digests of its blocks are made durable with it"
    op = world.flushes.local_done(flush.token)
    assert op.done
    world.flushes.finished(op, to_peer=False, now_ns=21)
    world.closer.flush_finished(op)
    (save,) = taken(world)
    assert isinstance(save, SavePages)
    assert save.pages[0][0] == 1
    assert world.tracker.is_dirty(0)


def test_a_flush_of_the_guest_closes_a_generation_that_holds_still_and_no_other() -> None:
    world = World()
    world.join()
    assert not world.closer.cut_if_quiet(), "nothing was written"
    world.write()
    assert not world.closer.cut_if_quiet(), "a write is under way"
    world.tracker.applied(world.tracker.open.number)
    assert world.closer.cut_if_quiet()
    assert not world.closer.cut_if_quiet(), "one is closing"


def test_what_was_written_is_due_after_a_time_counted_from_the_first_write() -> None:
    world = World()
    assert not world.closer.due(10**12, 100)
    world.write()
    world.closer.touched(90)
    assert not world.closer.due(109, 100)
    assert world.closer.due(110, 100)
    world.closer.cut(120)
    assert not world.closer.due(10**12, 100)


def test_reports_of_others_saves_are_not_ours() -> None:
    world = World(dirty=1)
    world.closer.recover()
    assert not world.closer.saved(object())
    assert world.closer.saving
    world.tracker.want([(5, 6)])
    with pytest.raises(InternalError, match="being saved already"):
        world.closer.save_rest()


def test_saving_the_rest_says_whether_there_was_any() -> None:
    world = World()
    assert not world.closer.save_rest()
    world.tracker.want([(5, 6)])
    assert world.closer.save_rest()
    (save,) = taken(world)
    assert isinstance(save, SavePages)
    assert save.release == ()


@pytest.mark.parametrize("joined", [False, True])
def test_a_generation_waits_while_pages_are_saved_for_another_reason(joined: bool) -> None:
    world = World(dirty=3)
    world.closer.recover()
    (first,) = taken(world)
    assert isinstance(first, SavePages)
    if joined:
        world.join()
    world.write()
    world.tracker.applied(1)
    world.closer.cut(20)
    flush = taken(world)[0]
    assert isinstance(flush, Flush)
    op = world.flushes.local_done(flush.token)
    if joined:
        world.flushes.peer_done(op.number)
    world.closer.flush_finished(op)
    assert taken(world) == []
    assert world.closer.busy
    assert world.closer.saved(first.token)
    (second,) = taken(world)
    assert isinstance(second, SavePages)
    assert second.release == (1,)
    assert world.closer.saved(second.token)
    assert world.tracker.closing is None


def test_saving_twice_at_once_or_without_a_generation_is_our_own_bug() -> None:
    world = World(dirty=3)
    with pytest.raises(InternalError, match="no generation is closing"):
        world.closer._save(peer=False)
    world.closer.recover()
    with pytest.raises(InternalError, match="being saved already"):
        world.closer.recover()


# -- in any order --------------------------------------------------------------------------------------------

NEAR = 6  # blocks that are written
UNKNOWN = -1  # the peer holds this or that


class CloserMachine(RuleBasedStateMachine):
    """Writes, flushes, saves and the peer's answers end in any order that the lanes leave open.

    The oracle knows of each block which version either host was given and holds durably, and which blocks
    the bitmap and the two segments show: a crash finds every block there that is not the same everywhere.
    """

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.now_ns = 0
        self.given: dict[int, int] = {}  # to this host's disk, applied or not
        self.applied: dict[int, int] = {}
        self.durable: dict[int, int] = {}
        self.sent: dict[int, int] = {}
        self.durable_there: dict[int, int] = {}
        self.bitmap: set[int] = set()
        self.segments: list[set[int]] = [set(), set()]
        self.applying: deque[tuple[int, int]] = deque()  # generation and block
        self.flushing: dict[FlushOp, dict[int, int]] = {}  # with what each will cover
        self.barriers: dict[int, dict[int, int]] = {}
        self.saves: deque[SavePages] = deque()  # one after the other
        self.foreign: list[object] = []  # tokens of saves that others have asked for
        self.flushes_asked = self.flushes_ended = 0
        self.touched_ns: int | None = None  # when the open generation was first written
        self.open_number = self.world.tracker.open.number

    def _perform(self) -> None:
        """What the source does after every report."""
        world = self.world
        if world.tracker.open.number != self.open_number:
            self.open_number, self.touched_ns = world.tracker.open.number, None
        world.closer.drain(self.now_ns)
        for effect in taken(world):
            if isinstance(effect, Flush):
                assert isinstance(effect.token, FlushOp)
                self.flushing[effect.token] = dict(self.applied)
            elif isinstance(effect, Send):
                (barrier,) = effect.messages
                assert isinstance(barrier, Barrier)
                self.barriers[barrier.barrier] = dict(self.sent)
            else:
                assert isinstance(effect, SavePages)
                self.saves.append(effect)
        assert sum(map(self._is_own, self.saves)) == world.closer.saving

    def _is_own(self, save: SavePages) -> bool:
        return all(save.token is not each for each in self.foreign)

    def _touch(self) -> None:
        self.now_ns += 1
        self.world.closer.touched(self.now_ns)
        self.touched_ns = self.now_ns if self.touched_ns is None else self.touched_ns

    # ------------------------------------------------------------------ the guest and the resync

    @rule(block=st.integers(0, NEAR - 1), at_once=st.booleans(), fills=st.booleans())
    def write(self, block: int, at_once: bool, fills: bool) -> None:
        tracker, ops = self.world.tracker, [WriteOp(OpKind.DATA, block * 4096, 4096)]
        number = tracker.open.number
        if fresh := tracker.note(ops):
            tracker.recorded(number, fresh)
            self.segments[number % 2].add(block)
        self._touch()
        self.given[block] = self.now_ns
        if self.world.standing.mirrored:
            tracker.mirrored(ops)
            self.sent[block] = self.now_ns
        else:
            tracker.lacking(ops)
        self.applying.append((number, block))
        if fills:  # the window
            self.world.closer.cut(self.now_ns)
        self._perform()
        while at_once and self.applying:
            self.a_write_is_applied()

    @precondition(lambda self: bool(self.applying))
    @rule()
    def a_write_is_applied(self) -> None:
        number, block = self.applying.popleft()
        self.world.tracker.applied(number)
        waiting = [each for _, each in self.applying]
        self.applied |= {b: v for b, v in self.given.items() if b == block and b not in waiting}
        self._perform()

    @precondition(lambda self: self.world.standing.mirrored and bool(self.world.tracker.todo))
    @rule(data=st.data())
    def a_block_is_copied(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from([b for b in range(NEAR) if b in self.world.tracker.todo]))
        self.world.tracker.resynced([Extent(block, block + 1)], 4096)
        self._touch()
        self.sent[block] = self.given.get(block, 0)

    @rule()
    def flush(self) -> None:
        to_peer = self.world.standing.mirrored
        closes = self.world.closer.cut_if_quiet() if to_peer else 0
        self.world.flushes.request(None, to_peer=to_peer, closes=closes, now_ns=self.now_ns)
        self.flushes_asked += 1
        self._perform()

    @rule()
    def cut(self) -> None:
        self.world.closer.cut(self.now_ns)
        self._perform()

    # ------------------------------------------------------------------ what ends

    @precondition(lambda self: bool(self.flushing))
    @rule(data=st.data())
    def a_flush_ends_here(self, data: st.DataObject) -> None:
        op = data.draw(st.sampled_from(list(self.flushing)))
        self.durable |= self.flushing.pop(op)
        self._step(self.world.flushes.local_done(op))

    @precondition(lambda self: bool(self.barriers))
    @rule(data=st.data())
    def a_flush_ends_there(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.barriers)))
        covered = self.barriers.pop(number)
        self.durable_there |= {block: version for block, version in covered.items() if version != UNKNOWN}
        self._step(self.world.flushes.peer_done(number))

    def _step(self, op: FlushOp) -> None:
        if op.done:
            self.world.flushes.finished(op, to_peer=self.world.standing.mirrored, now_ns=self.now_ns)
            self.world.closer.flush_finished(op)
            self.flushes_ended += len(op.owners)
        self._perform()

    @precondition(lambda self: bool(self.saves))
    @rule()
    def pages_are_saved(self) -> None:
        save = self.saves.popleft()
        for page in save.pages.values():
            self.bitmap = {block for block in range(NEAR) if page[0] >> block & 1}
        for segment in save.release:
            self.segments[segment].clear()
        assert self.world.closer.saved(save.token) == self._is_own(save)
        self._perform()

    @rule(block=st.integers(0, NEAR - 1), foreign=st.booleans())
    def more_is_saved(self, block: int, foreign: bool) -> None:
        """By somebody else; or here, where a volume is closed."""
        if foreign:
            self.world.tracker.want([(block, block + 1)])
            pages = self.world.tracker.pages_to_save()
            self.foreign.append(pages)
            self.saves.append(SavePages(0, pages, pages))
        elif not self.world.closer.saving:
            before = len(self.saves)
            asked = self.world.closer.save_rest()
            self._perform()
            assert asked == (len(self.saves) > before)

    # ------------------------------------------------------------------ the peer

    @initialize(there=st.booleans())
    def begin(self, there: bool) -> None:
        if there:
            self.world.join()

    @rule()
    def the_peer_comes_or_is_lost(self) -> None:
        world = self.world
        if not world.standing.mirrored:
            world.join()
            return
        world.tracker.peer_lost()
        world.standing.leave(Phase.ABSENT, at_once=False)
        self.barriers.clear()
        self.sent |= {b: UNKNOWN for b, v in self.sent.items() if v != self.durable_there.get(b, 0)}
        for op in world.flushes.peer_lost():
            self._step(op)

    # ------------------------------------------------------------------ what must hold

    @invariant()
    def a_crash_now_forgets_nothing(self) -> None:
        for block in {*range(NEAR)} - self.bitmap - self.segments[0] - self.segments[1]:
            held = [self.given, self.durable, self.sent, self.durable_there]
            assert len({each.get(block, 0) for each in held}) == 1, block

    @invariant()
    def a_time_is_counted_from_the_first_write(self) -> None:
        waited = -1 if self.touched_ns is None else self.now_ns - self.touched_ns
        assert [self.world.closer.due(self.now_ns, ns) for ns in range(5)] == [
            ns <= waited for ns in range(5)
        ]

    def teardown(self) -> None:
        """All ends, and one cut later no generation holds anything."""
        for cuts in range(2):
            while self.applying or self.flushing or self.barriers or self.saves:
                for _ in range(len(self.applying)):
                    self.a_write_is_applied()
                for op in list(self.flushing):
                    self.durable |= self.flushing.pop(op)
                    self._step(self.world.flushes.local_done(op))
                for number in list(self.barriers):
                    self.durable_there |= self.barriers.pop(number)
                    self._step(self.world.flushes.peer_done(number))
                for _ in range(len(self.saves)):
                    self.pages_are_saved()
            assert not self.world.closer.busy
            if not cuts:
                self.cut()
        assert self.flushes_ended == self.flushes_asked
        assert not self.world.tracker.unflushed
        assert self.segments == [set(), set()]


TestCloserMachine = CloserMachine.TestCase
TestCloserMachine.settings = settings(stateful_step_count=40, max_examples=80)
