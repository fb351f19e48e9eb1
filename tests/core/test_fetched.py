"""Content of the standby that the active host asks for."""

from __future__ import annotations

import errno

import pytest

from pairsync.core.effects import Effect, Read, Send
from pairsync.core.fetched import StandbyFetches
from pairsync.core.fetcher import FETCH_BLOCKS_MAX, FETCHES_MAX
from pairsync.core.messages import Fetch, OpKind, Unfetched, Write, WriteOp
from pairsync.core.resync import PIECE_BYTES
from pairsync.core.units import BLOCK_BYTES, Extent
from pairsync.errors import ProtocolError

SIZE = 1000 * BLOCK_BYTES
FOUND = [WriteOp(OpKind.ZERO, 0, BLOCK_BYTES)]


def bench() -> tuple[StandbyFetches, list[Effect]]:
    out: list[Effect] = []
    return StandbyFetches(2, out), out


def test_what_is_asked_for_is_read_and_answered_once() -> None:
    fetches, out = bench()
    fetches.take(Fetch(1, 2, 7, ((3, 5),)), SIZE)
    assert out == [Read(2, 7, [Extent(3, 5)], PIECE_BYTES)]
    out.clear()
    fetches.read_done(7, FOUND, 4)
    fetches.read_done(7, FOUND, 4)
    fetches.read_failed(7, errno.EIO)
    assert out == [Send([Write(4, 2, 7, resync=True, ops=FOUND)])]


def test_what_cannot_be_read_is_told() -> None:
    fetches, out = bench()
    fetches.take(Fetch(1, 2, 7, ((3, 5),)), SIZE)
    fetches.read_failed(7, errno.EIO)
    assert out[1:] == [Send([Unfetched(2, 7, errno.EIO)])]


@pytest.mark.parametrize(
    ("extents", "reason"),
    [
        ((), "a request for 0 blocks"),
        (((0, FETCH_BLOCKS_MAX + 1),), "a request for 129 blocks"),
        (((999, 1001),), "behind block 1000"),
    ],
)
def test_who_asks_for_what_cannot_be_breaks_the_protocol(
    extents: tuple[tuple[int, int], ...], reason: str
) -> None:
    fetches, out = bench()
    with pytest.raises(ProtocolError, match=reason):
        fetches.take(Fetch(1, 2, 7, extents), SIZE)
    assert not out


def test_no_more_is_asked_at_once_than_is_answered() -> None:
    fetches, out = bench()
    for number in range(1, FETCHES_MAX + 1):
        fetches.take(Fetch(1, 2, number, ((0, 1),)), SIZE)
    with pytest.raises(ProtocolError, match="with 64 before it"):
        fetches.take(Fetch(1, 2, 99, ((0, 1),)), SIZE)
    fetches.read_done(1, FOUND, 1)
    with pytest.raises(ProtocolError, match="request 2 for content"):
        fetches.take(Fetch(1, 2, 2, ((0, 1),)), SIZE)
    fetches.session_over()
    out.clear()
    fetches.read_done(2, FOUND, 1)
    assert not out
