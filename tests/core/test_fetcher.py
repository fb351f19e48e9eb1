"""Content from the peer: what was asked for, as of the moment of asking, and nothing that is older."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import replace

import pytest

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
