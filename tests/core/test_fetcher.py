"""Content from the peer: what was asked for, as of the moment of asking, and nothing that is older."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pairsync.core.effects import Effect, Send
from pairsync.core.fetcher import FETCH_BLOCKS_MAX, FETCHES_MAX, Fetcher
from pairsync.core.messages import Condition, Fetch, Generation, OpKind, Unfetched, Write, WriteOp
from pairsync.core.standing import Standing
from pairsync.core.units import BLOCK_BYTES, Extent
from pairsync.errors import InternalError, ProtocolError
from pairsync.testing.manual import blank_superblock

BLOCKS = 4096


class Desk:
    def __init__(self, size_bytes: int = BLOCKS * BLOCK_BYTES) -> None:
        self.out: list[Effect] = []
        block = replace(
            blank_superblock("vda", size_bytes),
            term=4,
            condition=Condition.CONSISTENT,
            lineage=(Generation(1, 1, 1),),
        )
        self.fetcher = Fetcher(0, Standing(0, block, lambda: 1, self.out), self.out)
        self.heard: list[tuple[Sequence[WriteOp] | None, int]] = []

    def ask(self, *extents: tuple[int, int], now_ns: int = 3) -> int:
        wanted = [Extent(*each) for each in extents]
        self.fetcher.ask(wanted, now_ns, lambda ops, error: self.heard.append((ops, error)))
        (send,) = self.out
        self.out.clear()
        assert isinstance(send, Send)
        (fetch,) = send.messages
        assert isinstance(fetch, Fetch)
        assert (fetch.term, fetch.extents) == (4, extents)
        return fetch.number

    def answer(self, number: int, *ops: WriteOp) -> None:
        self.fetcher.answered(Write(4, 0, number, True, list(ops)))


def content(block: int, count: int = 1) -> WriteOp:
    length = count * BLOCK_BYTES
    return WriteOp(OpKind.DATA, block * BLOCK_BYTES, length, bytes(length))


def test_what_comes_is_handed_on() -> None:
    desk = Desk()
    number = desk.ask((5, 6), (9, 11))
    assert desk.fetcher.waiting_since_ns == 3
    desk.answer(number, content(5), content(9, 2))
    assert desk.heard == [([content(5), content(9, 2)], 0)]
    assert desk.fetcher.waiting_since_ns is None


def test_a_block_that_was_written_since_is_left_out() -> None:
    desk = Desk()
    number = desk.ask((5, 6), (9, 10))
    desk.fetcher.written([WriteOp(OpKind.TRIM, 9 * BLOCK_BYTES + 512, 512)])
    desk.answer(number, content(5), content(9))
    assert desk.heard == [([content(5)], 0)]


def test_nobody_waits_for_an_answer_that_cannot_come() -> None:
    desk = Desk()
    number = desk.ask((5, 6))
    desk.fetcher.answered(Unfetched(0, number, errno.EIO))
    desk.ask((7, 8))
    desk.fetcher.lost(errno.ENOTCONN)
    assert desk.heard == [(None, errno.EIO), (None, errno.ENOTCONN)]


def test_content_that_was_not_asked_for_is_refused() -> None:
    desk = Desk()
    number = desk.ask((5, 6))
    with pytest.raises(ProtocolError, match="not made"):
        desk.answer(number + 1, content(5))
    with pytest.raises(ProtocolError, match="not asked"):
        desk.answer(number, content(5, 2))
    assert not desk.heard
    desk.fetcher.lost(errno.ENOTCONN)  # the session ends with what was refused
    assert desk.heard == [(None, errno.ENOTCONN)], "nobody is left waiting"


def test_the_answer_to_a_request_that_was_given_up_is_dropped() -> None:
    desk = Desk()
    number = desk.ask((5, 6))
    desk.fetcher.lost(errno.ENOTCONN)  # the peer fell behind
    desk.answer(number, content(5))
    desk.fetcher.answered(Unfetched(0, number, errno.EIO))
    assert desk.heard == [(None, errno.ENOTCONN)]


def test_requests_are_bounded() -> None:
    desk = Desk()
    with pytest.raises(InternalError):
        desk.ask((0, FETCH_BLOCKS_MAX + 1))
    for _ in range(FETCHES_MAX):
        desk.ask((5, 6))
    assert not desk.fetcher.room
    with pytest.raises(InternalError):
        desk.ask((5, 6))


def test_content_behind_the_end_of_the_volume_is_refused() -> None:
    """The last block may be a partial one: what lies behind it would end the process that writes it."""
    desk = Desk(BLOCKS * BLOCK_BYTES - 512)
    number = desk.ask((BLOCKS - 1, BLOCKS))
    with pytest.raises(ProtocolError, match="not asked for"):
        desk.answer(number, content(BLOCKS - 1))


# -- in any order --------------------------------------------------------------------------------------------

HALF_BYTES = BLOCK_BYTES // 2
ASKED_BLOCKS = 8
GROWN_BLOCKS = ASKED_BLOCKS + 4  # the volume grows while it is asked


@dataclass
class Asked:
    runs: list[tuple[int, int]]
    asked_ns: int
    written: set[int] = field(default_factory=set)  # blocks, since it was made


def blocks_of(op: WriteOp) -> set[int]:
    return {at // BLOCK_BYTES for at in range(op.offset, op.offset + op.length, HALF_BYTES)}


class FetcherMachine(RuleBasedStateMachine):
    """Requests, writes, answers and losses in any order: each request is heard of once, and never of a block
    that was written since it was made."""

    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk(ASKED_BLOCKS * BLOCK_BYTES)
        self.open: dict[int, Asked] = {}
        self.ended: list[int] = []
        self.now_ns = 0

    @rule(starts=st.sets(st.integers(0, ASKED_BLOCKS - 1), min_size=1), joined=st.booleans())
    def ask(self, starts: set[int], joined: bool) -> None:
        runs = [(min(starts), max(starts) + 1)] if joined else [(each, each + 1) for each in sorted(starts)]
        self.now_ns += 1
        number = self.desk.ask(*runs, now_ns=self.now_ns)
        assert number not in {*self.open, *self.ended}
        self.open[number] = Asked(runs, self.now_ns)

    @rule(half=st.integers(0, 2 * GROWN_BLOCKS - 1), halves=st.integers(0, 5))
    def write(self, half: int, halves: int) -> None:
        op = WriteOp(OpKind.ZERO, half * HALF_BYTES, min(halves, 2 * GROWN_BLOCKS - half) * HALF_BYTES)
        self.desk.fetcher.written([op])
        for asked in self.open.values():
            asked.written |= blocks_of(op)

    @precondition(lambda self: bool(self.open))
    @rule(data=st.data())
    def content_comes(self, data: st.DataObject) -> None:
        """All or a part of what was asked for, cut anywhere."""
        number = data.draw(st.sampled_from(sorted(self.open)))
        asked = self._end(number)
        ops = []
        for start, stop in asked.runs:
            cuts = data.draw(st.one_of(st.just({start, stop}), st.sets(st.integers(start, stop))))
            ops += [content(low, high - low) for low, high in itertools.pairwise(sorted(cuts))]
        self.desk.answer(number, *ops)
        assert self.desk.heard[-1] == ([op for op in ops if not blocks_of(op) & asked.written], 0)

    @precondition(lambda self: bool(self.open))
    @rule(data=st.data())
    def it_cannot_be_had(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.open)))
        self._end(number)
        self.desk.fetcher.answered(Unfetched(0, number, errno.EIO))
        assert self.desk.heard[-1] == (None, errno.EIO)

    @precondition(lambda self: bool(self.ended))
    @rule(data=st.data(), fails=st.booleans())
    def an_answer_comes_again(self, data: st.DataObject, fails: bool) -> None:
        number = data.draw(st.sampled_from(self.ended))
        message = Unfetched(0, number, errno.EIO) if fails else Write(4, 0, number, True, [])
        self.desk.fetcher.answered(message)

    @rule()
    def the_peer_is_lost(self) -> None:
        for number in list(self.open):
            self._end(number)
        self.desk.fetcher.lost(errno.ENOTCONN)

    def _end(self, number: int) -> Asked:
        self.ended.append(number)
        return self.open.pop(number)

    @invariant()
    def each_request_is_heard_of_once(self) -> None:
        assert len(self.desk.heard) == len(self.ended)
        first_ns = min((asked.asked_ns for asked in self.open.values()), default=None)
        assert self.desk.fetcher.waiting_since_ns == first_ns


TestFetcherMachine = FetcherMachine.TestCase
TestFetcherMachine.settings = settings(stateful_step_count=30)
