"""The life of a write-intent generation, effect by effect."""

from __future__ import annotations

import pytest

from pairsync.core.closer import Closer
from pairsync.core.dirty import DirtyMap
from pairsync.core.effects import Effect, Flush, SavePages, Send
from pairsync.core.flushes import Flushes
from pairsync.core.messages import Barrier, Condition, Generation, OpKind, WriteOp
from pairsync.core.standing import Standing
from pairsync.core.superblock import Superblock
from pairsync.core.tracker import Tracker
from pairsync.core.units import MIB
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
