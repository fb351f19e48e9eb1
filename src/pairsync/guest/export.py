"""A volume behind the NBD front door: what `pairsync.nbd.export.Export` asks for, from a `Volume`.

Two metadata contexts: ``base:allocation`` (holes of the local replica) and ``pairsync:dirty``, whose one
flag says that the peer is not known to hold the range durably.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from pairsync.errors import ConfigError
from pairsync.nbd.constants import CONTEXT_ALLOCATION, STATE_HOLE, STATE_ZERO

from .volume import Volume

__all__ = ["CONTEXT_DIRTY", "STATE_DIRTY", "VolumeExport"]

CONTEXT_DIRTY = "pairsync:dirty"
STATE_DIRTY = 1
"""Flag of `CONTEXT_DIRTY`."""


class VolumeExport:
    """One volume as an NBD export."""

    read_only = False
    fast_zero = True

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self.read_nowait = volume.read_nowait
        self.submit = volume.submit
        self.wait_writable = volume.wait_writable
        self.flush = volume.flush
        self.cache = volume.cache

    @property
    def name(self) -> str:
        """The export's name is the volume's."""
        return self._volume.name

    @property
    def description(self) -> str:
        """A line for people."""
        return f"pairsync volume {self._volume.name}"

    @property
    def size_bytes(self) -> int:
        """Size of the volume."""
        return self._volume.size_bytes

    def meta_contexts(self) -> Sequence[str]:
        """What BLOCK_STATUS can be asked for."""
        return (CONTEXT_ALLOCATION, CONTEXT_DIRTY)

    async def read(self, offset: int, into: memoryview) -> None:
        """Fill ``into``."""
        await self._volume.read_into(offset, into)

    async def block_status(
        self, context: str, offset: int, length: int, extents_max: int
    ) -> list[tuple[int, int]]:
        """Extents from ``offset``: (bytes, flags)."""
        if context == CONTEXT_ALLOCATION:
            runs = await self._volume.allocation(offset, length)
            return [(run, STATE_HOLE | STATE_ZERO if hole else 0) for run, hole in runs[:extents_max]]
        if context != CONTEXT_DIRTY:
            raise ConfigError(f"no metadata context {context!r}")
        await trio.lowlevel.checkpoint()
        return self._dirty(offset, length, extents_max)

    def _dirty(self, offset: int, length: int, extents_max: int) -> list[tuple[int, int]]:
        extents: list[tuple[int, int]] = []
        at = offset
        for first, run in self._volume.dirty_runs(offset, length):
            if first > at:
                extents.append((first - at, 0))
            extents.append((run, STATE_DIRTY))
            at = first + run
            if len(extents) >= extents_max:
                return extents[:extents_max]
        if at < offset + length:
            extents.append((offset + length - at, 0))
        return extents
