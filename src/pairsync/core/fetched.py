"""Fetched: the standby answers what the active host wants to know of the content of its blocks.

As of all that came before the question, see `core.fetcher`.  Who asks for too much breaks the protocol.
"""

from __future__ import annotations

from collections.abc import Sequence

from pairsync.errors import ProtocolError

from .effects import Effect, Read, Send
from .fetcher import FETCH_BLOCKS_MAX, FETCHES_MAX
from .messages import Fetch, Unfetched, Write, WriteOp
from .resync import PIECE_BYTES
from .units import Extent, block_count_of

__all__ = ["StandbyFetches"]


class StandbyFetches:
    """Of one volume."""

    def __init__(self, index: int, out: list[Effect]) -> None:
        self._index = index
        self._out = out
        self._asked: set[int] = set()  # numbers of the requests of this session that have no answer yet

    def take(self, message: Fetch, size_bytes: int) -> None:
        """What does this replica, of ``size_bytes``, hold there?"""
        limit = block_count_of(size_bytes)
        blocks = sum(stop - start for start, stop in message.extents)
        if not message.extents or blocks > FETCH_BLOCKS_MAX:
            raise ProtocolError(f"a request for {blocks} blocks of content")
        if any(stop > limit for _, stop in message.extents):
            raise ProtocolError(f"a request for content behind block {limit}")
        if message.number in self._asked or len(self._asked) >= FETCHES_MAX:
            raise ProtocolError(f"request {message.number} for content, with {len(self._asked)} before it")
        self._asked.add(message.number)
        extents = [Extent(*each) for each in message.extents]
        self._out.append(Read(self._index, message.number, extents, PIECE_BYTES))

    def read_done(self, number: int, ops: Sequence[WriteOp], term: int) -> None:
        """Content that was asked for."""
        if number in self._asked:
            self._asked.discard(number)
            self._out.append(Send([Write(term, self._index, number, resync=True, ops=ops)]))

    def read_failed(self, number: int, error: int) -> None:
        """It cannot be had."""
        if number in self._asked:
            self._asked.discard(number)
            self._out.append(Send([Unfetched(self._index, number, error)]))

    def session_over(self) -> None:
        """Nobody waits any more."""
        self._asked.clear()
