"""Ending: a volume is called clean when nothing is left to do, and not before."""

from __future__ import annotations

from dataclasses import replace

from pairsync.core.closer import Closer
from pairsync.core.dirty import DirtyMap
from pairsync.core.effects import Complete, Effect, Flush, Persist, SavePages
from pairsync.core.ending import Ending
from pairsync.core.flushes import Flushes
from pairsync.core.messages import Condition, Generation, OpKind, WriteOp
from pairsync.core.standing import Standing
from pairsync.core.tracker import Tracker
from pairsync.core.units import BLOCK_BYTES
from pairsync.testing.manual import blank_superblock

BLOCKS = 64


class Desk:
    """All that an ending looks at."""

    def __init__(self) -> None:
        self.out: list[Effect] = []
        first = Generation(1, 1, 1)
        block = replace(
            blank_superblock("vda", BLOCKS * BLOCK_BYTES),
            term=1,
            condition=Condition.CONSISTENT,
            lineage=(first,),
            clean=False,
        )
        self.tracker = Tracker(BLOCKS, DirtyMap(BLOCKS), window_bytes=1 << 22)
        self.standing = Standing(0, block, lambda: 1, self.out)
        self.flushes = Flushes(0, self.standing, self.out)
        self.closer = Closer(0, self.tracker, self.flushes, self.out)
        self.ending = Ending(self.tracker, self.standing, self.closer, self.out)

    def only(self) -> Effect:
        (effect,) = self.out
        self.out.clear()
        return effect


def test_what_was_written_is_flushed_and_saved_before_the_superblock_says_clean() -> None:
    desk = Desk()
    ops = [WriteOp(OpKind.DATA, 0, BLOCK_BYTES, bytes(BLOCK_BYTES))]
    number = desk.tracker.open.number
    desk.tracker.recorded(number, desk.tracker.note(ops))
    desk.tracker.lacking(ops)
    desk.ending.ask("close")
    desk.ending.advance(1, quiet=False)
    assert not desk.out, "a write is under way"
    desk.tracker.applied(number)
    desk.ending.advance(2, quiet=True)
    flush = desk.only()
    assert isinstance(flush, Flush)
    assert flush.digests
    desk.ending.advance(3, quiet=True)
    assert not desk.out
    op = desk.flushes.local_done(flush.token)
    desk.flushes.finished(op, to_peer=False, now_ns=4)
    desk.closer.flush_finished(op)
    save = desk.only()
    assert isinstance(save, SavePages)
    desk.ending.advance(5, quiet=True)
    assert not desk.out
    desk.closer.saved(save.token)
    desk.ending.advance(6, quiet=True)
    persist = desk.only()
    assert isinstance(persist, Persist)
    assert persist.superblock.clean
    desk.standing.persisted(persist.token)
    desk.ending.advance(7, quiet=True)
    assert desk.only() == Complete("close", None)
    desk.ending.advance(8, quiet=True)
    assert not desk.out


def test_nobody_is_told_before_he_asks_and_who_is_given_up_is_not_told_here() -> None:
    desk = Desk()
    desk.ending.advance(1, quiet=True)
    assert not desk.out
    desk.ending.ask("close")
    assert desk.ending.asked
    assert desk.ending.give_up() == ["close"]
    desk.ending.advance(2, quiet=True)
    assert not desk.out
