"""Fetcher: content that this host has lost, read from the peer's replica.

Either while both are in sync, or of blocks that the peer was just found to hold (`core.doubts`).

The peer reads behind all writes that were sent before the request, so what comes back is what the block held
at that place of the stream.  A block that the guest writes before the answer has been put in place is left
out of it: what was written is newer (the same rule as for the reads of a resync).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pairsync.errors import InternalError, ProtocolError

from .dirty import DirtyMap
from .effects import Effect, Send
from .messages import Fetch, Unfetched, Write, WriteOp
from .standing import Standing
from .units import BLOCK_BYTES, Extent, block_count_of

__all__ = ["FETCHES_MAX", "FETCH_BLOCKS_MAX", "Fetched", "Fetcher", "Repair"]

FETCHES_MAX = 64
"""Requests that the peer has not answered; who wants more waits (`Fetcher.room`)."""

FETCH_BLOCKS_MAX = 128
"""Blocks of one request, 512 KiB: as a resync reads them."""

Fetched = Callable[[Sequence[WriteOp] | None, int], None]
"""Hears the content of whole blocks, or None and an errno."""


class Repair:
    """The token of blocks that are written again here, with what was fetched."""

    __slots__ = ("then",)

    def __init__(self, then: Callable[[Sequence[int] | None], None]) -> None:
        self.then = then
        """Hears an errno for each op, or None: all well."""


class _Request:
    __slots__ = ("asked_ns", "extents", "then", "written")

    def __init__(self, extents: Sequence[Extent], block_count: int, asked_ns: int, then: Fetched) -> None:
        self.extents = extents
        self.asked_ns = asked_ns
        self.then = then
        self.written = DirtyMap(block_count)  # blocks of the request that the guest has written since


class Fetcher:
    """Requests of one volume; see the module."""

    def __init__(self, index: int, standing: Standing, out: list[Effect]) -> None:
        self._index = index
        self._standing = standing
        self._out = out
        self._next_number = 1  # never repeats, in later sessions neither
        self._asked: dict[int, _Request] = {}  # by number; at most FETCHES_MAX

    @property
    def room(self) -> bool:
        """Whether another request may be made."""
        return len(self._asked) < FETCHES_MAX

    @property
    def idle(self) -> bool:
        """Whether nothing is asked for."""
        return not self._asked

    @property
    def waiting_since_ns(self) -> int | None:
        """Since when the peer owes an answer."""
        return min((each.asked_ns for each in self._asked.values()), default=None)

    def ask(self, extents: Sequence[Extent], now_ns: int, then: Fetched) -> None:
        """Ask for these blocks, `FETCH_BLOCKS_MAX` at most."""
        if not self.room or sum(extent.block_count for extent in extents) > FETCH_BLOCKS_MAX:
            raise InternalError(f"too much to fetch: {len(extents)} extents, {len(self._asked)} requests")
        number = self._next_number
        self._next_number += 1
        block_count = block_count_of(self._standing.superblock.size_bytes)
        self._asked[number] = _Request(extents, block_count, now_ns, then)
        term = self._standing.superblock.term
        runs = tuple((start, stop) for start, stop in extents)
        self._out.append(Send([Fetch(term, self._index, number, runs)]))

    def written(self, ops: Sequence[WriteOp]) -> None:
        """A live write is issued: what is being fetched does not speak for its blocks any more."""
        for request in self._asked.values():
            for op in ops:
                if op.length > 0:
                    start = op.offset // BLOCK_BYTES
                    stop = (op.offset + op.length - 1) // BLOCK_BYTES + 1
                    request.written.grow(max(stop, request.written.block_count))  # the volume may have grown
                    request.written.mark(start, stop)

    def answered(self, message: Write | Unfetched) -> None:
        """The peer's answer; one that is refused leaves the request to `lost`."""
        if not 0 < message.number < self._next_number:
            raise ProtocolError(f"content for request {message.number}, which was not made")
        request = self._asked.get(message.number)
        if request is None:
            return  # given up meanwhile: the peer fell behind, and its session goes on
        if isinstance(message, Unfetched):
            del self._asked[message.number]
            request.then(None, message.errno)
            return
        size_bytes = self._standing.superblock.size_bytes
        for op in message.ops:
            if not any(
                start * BLOCK_BYTES <= op.offset
                and op.offset + op.length <= min(stop * BLOCK_BYTES, size_bytes)
                for start, stop in request.extents
            ):
                raise ProtocolError(f"content of {op.offset}+{op.length}, which was not asked for")
        del self._asked[message.number]
        request.then([op for op in message.ops if not self._is_written(request, op)], 0)

    def _is_written(self, request: _Request, op: WriteOp) -> bool:
        start = op.offset // BLOCK_BYTES
        return request.written.intersects(start, (op.offset + op.length - 1) // BLOCK_BYTES + 1)

    def lost(self, errno: int) -> None:
        """The session is over, or the peer fell behind: no answer counts any more."""
        asked, self._asked = list(self._asked.values()), {}
        for request in asked:
            request.then(None, errno)
