"""Flushes: shared by all who ask meanwhile, never by one that they came too late for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pairsync.core.effects import Effect, Flush, Send
from pairsync.core.flushes import Flushes, FlushOp
from pairsync.core.messages import Barrier, Condition, Generation
from pairsync.core.standing import Standing
from pairsync.errors import InternalError, ProtocolError
from pairsync.testing.manual import blank_superblock

TERM = 6


class Bench:
    def __init__(self) -> None:
        self.out: list[Effect] = []
        first = Generation(TERM, 1, 1)
        block = replace(
            blank_superblock("vda", 1 << 20), term=TERM, condition=Condition.CONSISTENT, lineage=(first,)
        )
        self.asked: list[int] = []  # when a barrier was about to be sent
        standing = Standing(2, block, lambda: 1, self.out)
        standing.prepare()
        standing.begun()  # the peer is written to
        self.out.clear()
        self.flushes = Flushes(2, standing, self.out, self.asked.append)

    def request(self, owner: str, *, to_peer: bool = False, closes: int = 0, now_ns: int = 0) -> None:
        self.flushes.request(owner, to_peer=to_peer, closes=closes, now_ns=now_ns)

    def started(self) -> list[FlushOp]:
        """Local flushes that were asked for since the last call."""
        found = [effect.token for effect in self.out if isinstance(effect, Flush)]
        self.out[:] = [effect for effect in self.out if not isinstance(effect, Flush)]
        assert all(isinstance(op, FlushOp) for op in found)
        return [op for op in found if isinstance(op, FlushOp)]

    def barriers(self) -> list[int]:
        found = [m for e in self.out if isinstance(e, Send) for m in e.messages]
        self.out[:] = [effect for effect in self.out if not isinstance(effect, Send)]
        assert all(isinstance(m, Barrier) and (m.term, m.volume) == (TERM, 2) for m in found)
        return [m.barrier for m in found if isinstance(m, Barrier)]


def is_done(op: FlushOp) -> bool:
    return op.done


def test_alone_a_flush_is_a_local_one() -> None:
    bench = Bench()
    bench.request("f1")
    (op,) = bench.started()
    assert bench.barriers() == []
    assert bench.flushes.local_done(op) is op
    assert is_done(op)
    assert not op.peer_covered
    bench.flushes.finished(op, to_peer=False, now_ns=1)
    assert not bench.flushes.busy
    assert not bench.flushes.any


@pytest.mark.parametrize("peer_first", [False, True])
def test_with_a_peer_both_have_to_answer(peer_first: bool) -> None:
    bench = Bench()
    bench.request("f1", to_peer=True, now_ns=3)
    (op,) = bench.started()
    assert bench.barriers() == [op.number]
    assert bench.asked == [3]  # what the barrier is to cover was sent first
    for peer_answers in (peer_first, not peer_first):
        assert not is_done(op)
        if peer_answers:
            bench.flushes.peer_done(op.number)
        else:
            bench.flushes.local_done(op)
    assert is_done(op)
    assert op.peer_covered


def test_who_asks_while_one_runs_shares_the_next() -> None:
    bench = Bench()
    bench.request("f1")
    bench.request("f2")
    bench.request("f3")
    (first,) = bench.started()
    assert first.owners == ["f1"]
    bench.flushes.local_done(first)
    bench.flushes.finished(first, to_peer=True, now_ns=9)
    (second,) = bench.started()
    assert second.owners == ["f2", "f3"]
    assert bench.barriers() == [second.number]
    assert second.started_ns == 9
    bench.flushes.local_done(second)
    bench.flushes.peer_done(second.number)
    bench.flushes.finished(second, to_peer=True, now_ns=10)
    assert bench.started() == []


def test_a_generation_is_closed_beside_the_guests_flush() -> None:
    bench = Bench()
    bench.request("f1", to_peer=True)
    bench.flushes.start_closing(3, 5)
    guest, closing = bench.started()
    assert (guest.closes, closing.closes, closing.owners) == (0, 3, [])
    assert bench.barriers() == [guest.number, closing.number]
    assert bench.flushes.oldest_peer_wait_ns() == 0
    bench.flushes.local_done(closing)
    bench.flushes.peer_done(closing.number)
    bench.flushes.finished(closing, to_peer=True, now_ns=6)
    assert bench.flushes.busy
    assert bench.started() == []
    bench.flushes.peer_done(guest.number)
    assert bench.flushes.oldest_peer_wait_ns() is None


def test_only_a_flush_of_its_own_can_close_a_generation() -> None:
    bench = Bench()
    bench.request("f1", closes=True)
    (op,) = bench.started()
    assert op.closes
    with pytest.raises(InternalError, match="shared flush"):
        bench.request("f2", closes=True)


def test_a_lost_peer_answers_nothing_any_more() -> None:
    bench = Bench()
    bench.request("f1", to_peer=True)
    bench.flushes.start_closing(3, 0)
    guest, closing = bench.started()
    bench.flushes.local_done(guest)
    assert bench.flushes.peer_lost() == [guest]
    assert bench.flushes.peer_lost() == []
    assert guest.done
    assert not guest.peer_covered
    bench.flushes.local_done(closing)
    assert closing.done
    with pytest.raises(ProtocolError, match="was not asked"):
        bench.flushes.peer_done(closing.number)


@pytest.mark.parametrize("barrier", [0, 1, 99])
def test_a_barrier_that_was_not_asked_is_the_peers_fault(barrier: int) -> None:
    bench = Bench()
    bench.request("f1")  # number 1, without a barrier
    with pytest.raises(ProtocolError, match=f"barrier {barrier}, which was not asked"):
        bench.flushes.peer_done(barrier)


def test_a_report_twice_is_our_own_bug() -> None:
    bench = Bench()
    bench.request("f1")
    (op,) = bench.started()
    bench.flushes.local_done(op)
    for token in (op, object()):
        with pytest.raises(InternalError, match="not under way"):
            bench.flushes.local_done(token)


def test_giving_up_tells_everybody_who_waits() -> None:
    bench = Bench()
    bench.request("f1")
    bench.request("f2")
    bench.flushes.start_closing(3, 0)
    assert bench.flushes.abort() == ["f1", "f2"]
    assert not bench.flushes.any
    assert bench.flushes.abort() == []
