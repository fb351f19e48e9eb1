"""Reads that this host's disk cannot answer, answered by the peer while it is in sync.

The peer reads behind everything that was sent before the question, so what comes back is as new as a read
here would be.  Blocks that the guest has written since the question are read here again: what was just
written can be read, as a rule, and if not the peer is asked again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import trio

from pairsync.core.fetcher import FETCH_BLOCKS_MAX
from pairsync.core.messages import WriteOp
from pairsync.core.source import VolumeSource
from pairsync.core.standing import Phase
from pairsync.core.units import BLOCK_BYTES, Extent, extent_of
from pairsync.errors import BackendError

if TYPE_CHECKING:
    from .guest import Guest

__all__ = ["QUESTIONS_AT_ONCE", "PeerReader"]

QUESTIONS_AT_ONCE: Final = 16
"""Pieces of 512 KiB that are asked for and not answered: a quarter of what the peer takes."""

TRIES_MAX: Final = 8
"""Times that a block is asked for which the guest writes again and again meanwhile."""


class PeerReader:
    """Of one volume of an active guest; see the module."""

    def __init__(self, guest: Guest, index: int) -> None:
        self._guest = guest
        self._index = index
        self._limiter = trio.CapacityLimiter(QUESTIONS_AT_ONCE)

    def _source(self) -> VolumeSource | None:
        """The session machine's half, while the peer is in sync."""
        sources = self._guest.session.sources
        if not sources or sources[self._index].standing.phase is not Phase.IN_SYNC:
            return None
        return sources[self._index]

    @property
    def ready(self) -> bool:
        """Whether the peer could answer now."""
        return self._source() is not None

    async def read_into(self, offset: int, into: memoryview, error: BackendError) -> None:
        """Fill ``into``; raises ``error``, which a read here has ended with, where the peer cannot help."""
        source = self._source()
        if source is None:
            raise error
        source.trouble.report(f"a read failed and is answered by the peer: {error}", self._guest.now_ns())
        self._guest.perform()
        end = offset + len(into)
        start, stop = extent_of(offset, len(into))
        for at in range(start, stop, FETCH_BLOCKS_MAX):
            extent = Extent(at, min(at + FETCH_BLOCKS_MAX, stop))
            content = bytearray(extent.block_count * BLOCK_BYTES)
            async with self._limiter:
                await self._fill(extent, content, error)
            base = extent.start * BLOCK_BYTES
            low, high = max(base, offset), min(extent.stop * BLOCK_BYTES, end)
            into[low - offset : high - offset] = content[low - base : high - base]

    async def _fill(self, extent: Extent, content: bytearray, error: BackendError) -> None:
        missing = set(range(*extent))
        source = self._source()  # the guest may have left this host while there was no room for a question
        if source is None:
            raise error
        limit = source.standing.superblock.size_bytes
        for _ in range(TRIES_MAX):
            for op in await self._fetch(_runs(missing), error):
                at = op.offset - extent.start * BLOCK_BYTES
                content[at : at + op.length] = bytes(op.length) if op.data is None else op.data
                last = min(op.offset + op.length, limit) - 1
                missing.difference_update(range(op.offset // BLOCK_BYTES, last // BLOCK_BYTES + 1))
            if not missing:
                return
        raise error

    async def _fetch(self, extents: Sequence[Extent], error: BackendError) -> Sequence[WriteOp]:
        source = self._source()
        if source is None:
            raise error
        answered = trio.Event()
        found: list[Sequence[WriteOp] | None] = []

        def then(ops: Sequence[WriteOp] | None, _errno: int) -> None:
            found.append(ops)
            answered.set()

        source.scrubber.fetch(extents, self._guest.now_ns(), then)
        self._guest.perform()
        await answered.wait()  # the peer's deadline ends the session, and with it the question
        (ops,) = found
        if ops is None:
            raise error
        return ops


def _runs(blocks: set[int]) -> list[Extent]:
    runs: list[Extent] = []
    for block in sorted(blocks):
        if runs and runs[-1].stop == block:
            runs[-1] = Extent(runs[-1].start, block + 1)
        else:
            runs.append(Extent(block, block + 1))
    return runs
