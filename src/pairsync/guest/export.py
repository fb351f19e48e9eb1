"""A volume behind the NBD front door: what `pairsync.nbd.export.Export` asks for, from a `Volume`.

Metadata contexts: ``base:allocation`` (holes of the local replica); ``pairsync:dirty``, whose one flag says
that the peer is not known to hold the range durably; and for each point of the volume
``pairsync:changed:NAME``, whose one flag says that the range may hold something else than at that point.

A client that has selected the context of a point asks about that very point: if it is dropped, or made again
under its name, the answer is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import trio

from pairsync.core.messages import WriteOp
from pairsync.errors import ConfigError
from pairsync.nbd.constants import CONTEXT_ALLOCATION, STATE_HOLE, STATE_ZERO
from pairsync.nbd.export import HungUp

from .pieces import Done
from .points import Point
from .volume import Volume

__all__ = [
    "CONTEXT_CHANGED",
    "CONTEXT_DIRTY",
    "STATE_CHANGED",
    "STATE_DIRTY",
    "VolumeExport",
    "unknown_state",
]

CONTEXT_DIRTY = "pairsync:dirty"
STATE_DIRTY = 1
"""Flag of `CONTEXT_DIRTY`."""

CONTEXT_CHANGED = "pairsync:changed:"
"""The name of a point follows; here, behind a ``@``, its id."""
STATE_CHANGED = 1
"""Flag of these contexts."""


def unknown_state(context: str) -> int:
    """The flags of a range of which a host knows nothing: it holds data, is dirty, and has changed."""
    if context.startswith(CONTEXT_CHANGED):
        return STATE_CHANGED
    return STATE_DIRTY if context == CONTEXT_DIRTY else 0


class VolumeExport:
    """One volume as an NBD export."""

    read_only = False
    fast_zero = True

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self.read_nowait = volume.read_nowait
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

    @property
    def writable(self) -> bool:
        """As `Volume.writable`."""
        return self._volume.writable

    def meta_contexts(self) -> Mapping[str, str]:
        """What BLOCK_STATUS can be asked for."""
        contexts = {name: name for name in (CONTEXT_ALLOCATION, CONTEXT_DIRTY)}
        for point in self._volume.points():
            name = f"{CONTEXT_CHANGED}{point.name}"
            contexts[name] = f"{name}@{point.id}"
        return contexts

    def submit(self, ops: Sequence[WriteOp], done: Done, hung_up: HungUp | None = None) -> None:
        """Take a batch; what is taken is done, or ended, in the time that a disk is given."""
        del hung_up
        self._volume.submit(ops, done)

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
        if context.startswith(CONTEXT_CHANGED):
            runs = await self._volume.changed_since(_point_of(context), offset, length)
            return [(run, STATE_CHANGED if changed else 0) for run, changed in runs[:extents_max]]
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


def _point_of(context: str) -> Point:
    name, _, number = context.removeprefix(CONTEXT_CHANGED).partition("@")
    return Point(name, number, created_s=0, on_peer=None)
