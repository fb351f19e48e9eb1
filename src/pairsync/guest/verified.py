"""Verified reads: what is read is compared with its digest before the guest sees it.

The first comparison runs beside writes, in any thread, so a difference may only mean that a write came
between.  It is asked again in the data lane, where nothing can come between: what differs there has fallen
over.  Such a block is read from the peer, if that is in sync, and mended here; else the read fails, which is
better than wrong data.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from pairsync.core.units import BLOCK_BYTES, extent_of
from pairsync.errors import BackendError
from pairsync.storage.device import Device

from .remote import PeerReader

if TYPE_CHECKING:
    from .guest import Guest

__all__ = ["VerifiedReader"]

InThread = Callable[[Callable[[], Any]], Awaitable[Any]]


class VerifiedReader:
    """Of one volume of an active guest; see the module."""

    def __init__(self, guest: Guest, index: int, peer: PeerReader, in_thread: InThread) -> None:
        self._guest = guest
        self._index = index
        self._peer = peer
        self._in_thread = in_thread

    async def read_into(self, device: Device, offset: int, into: memoryview) -> None:
        """Fill ``into``; `BackendError` if a block is wrong here and cannot be had from the peer."""
        if not into:
            return
        start, stop = extent_of(offset, len(into))
        base = start * BLOCK_BYTES
        content = memoryview(bytearray(min(stop * BLOCK_BYTES, device.size_bytes) - base))
        suspects = await self._in_thread(partial(_read_and_compare, device, base, content))
        for block in suspects:
            at = block * BLOCK_BYTES - base
            await self._settle(device, block, content[at : at + BLOCK_BYTES])
        into[:] = content[offset - base : offset - base + len(into)]

    async def _settle(self, device: Device, block: int, view: memoryview) -> None:
        """Fill ``view`` with what the block should hold."""
        if await self._guest.in_data_lane(self._index, partial(_read_if_right, device, block, view)):
            return
        wrong = BackendError(f"{device.path}: block {block} does not hold what its digest says", errno.EIO)
        await self._peer.read_into(block * BLOCK_BYTES, view, wrong)
        sources = self._guest.session.sources
        if sources:  # else the guest has left this host, and its new owner's replica is what counts
            sources[self._index].scrubber.mend(block)
            sources[self._index].advance(self._guest.now_ns())
            self._guest.perform()


def _read_and_compare(device: Device, offset: int, view: memoryview) -> list[int]:
    device.read_into(offset, view)
    return device.mismatches(offset, view)


def _read_if_right(device: Device, block: int, view: memoryview) -> bool:
    if device.examine(0, block, block + 1, read=True).bad:
        return False
    device.read_into(block * BLOCK_BYTES, view)
    return True
