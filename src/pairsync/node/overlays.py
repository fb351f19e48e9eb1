"""Overlays of a host's replicas: listed, exported, undone; of a host that runs, and of one that is down.

A host that runs has its replicas open alone, so it is asked (`overlay_handlers`); the files of one that is
down are opened here (`StoppedReplica`).  An export runs in a thread of its own beside all else, and tells how
far it is to whoever asks meanwhile.  It ends when whoever asked for it leaves, and nobody waits for it then:
neither a host that ends, nor one that is to take the guest over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio

from pairsync.core.messages import OpKind
from pairsync.errors import BackendError, BusyError, ConfigError, MismatchError
from pairsync.guest.config import VolumeConfig
from pairsync.guest.guest import Guest
from pairsync.storage.file import open_volume
from pairsync.storage.metadata import metadata_path, open_metadata
from pairsync.storage.overlay import Overlays, overlays_beside
from pairsync.storage.overlayexport import overlay_ops
from pairsync.storage.overlayfile import OverlayInfo

from .control import Answer, Handler

__all__ = ["StoppedReplica", "describe_overlay", "open_stopped", "overlay_handlers", "overlay_path"]

Progress = Callable[[int, int], None]

THREADS_MAX = 2
"""Exports and undos of one host at once: they read disks that the guest needs."""


def describe_overlay(info: OverlayInfo) -> dict[str, Any]:
    """An overlay as JSON values."""
    return {
        "id": info.id,
        "state": info.state.name.lower(),
        "volume": info.volume,
        "created_s": info.created_s,
        "lineage": [generation.describe() for generation in info.lineage],
        "target": info.target.describe(),
        "whole": info.whole,
        "blocks": info.block_count,
        "data_bytes": info.data_bytes,
        "file_bytes": info.file_bytes,
    }


def overlay_path(volume: VolumeConfig, number: str) -> Path:
    """The file of an overlay of the replica on this host."""
    metadata = str(volume.metadata or metadata_path(volume.path))
    return Path(f"{metadata.removesuffix('.pairsync')}.pairsync-overlay-{number}").absolute()


def overlay_handlers(guest: Guest) -> dict[str, Handler]:
    """What the control socket of a host understands of them."""
    under_way: dict[str, list[int]] = {}  # bytes done and in all (0: not known) of what is written or undone
    limiter = trio.CapacityLimiter(THREADS_MAX)

    async def overlays(_: Mapping[str, Any]) -> Answer:
        await trio.lowlevel.checkpoint()
        found: dict[str, list[dict[str, Any]]] = {}
        unknown: dict[str, str] = {}
        for name in guest.volumes:
            try:
                found[name] = [describe_overlay(info) for info in _overlays_of(guest, name).list()]
            except BackendError as error:  # one disk that fails does not hide what lies on the others
                unknown[name] = str(error)
        return {"volumes": found, "unknown": unknown}

    async def export(request: Mapping[str, Any]) -> Answer:
        volume, number, file = (str(request.get(key)) for key in ("volume", "id", "file"))
        device = guest.replica(volume).device
        if file in under_way:
            raise BusyError(f"{file} is being written already")
        how_far = under_way[file] = [0, 0]

        def progress(*done_and_total: int) -> None:
            trio.from_thread.check_cancelled()
            how_far[:] = done_and_total

        job = partial(_overlays_of(guest, volume).export, number, device, file, progress=progress)
        try:
            await trio.to_thread.run_sync(job, abandon_on_cancel=True, limiter=limiter)
        finally:
            del under_way[file]
        return {"file": file}

    async def progress(request: Mapping[str, Any]) -> Answer:
        await trio.lowlevel.checkpoint()
        done, total = under_way.get(str(request.get("file")), [0, 0])
        return {"done": done, "total": total}

    async def undo(request: Mapping[str, Any]) -> Answer:
        volume, file = str(request.get("volume")), str(request.get("file"))
        if file in under_way:
            raise BusyError(f"{file} is being undone already")
        how_far = under_way[file] = [0, 0]
        try:
            await _undo(guest, volume, Path(file), limiter, how_far)
        finally:
            del under_way[file]
        return {"bytes": how_far[0]}

    return {
        "overlays": overlays,
        "overlay-export": export,
        "overlay-progress": progress,
        "overlay-undo": undo,
    }


def _overlays_of(guest: Guest, volume: str) -> Overlays:
    keeper = guest.replica(volume).keeper
    if keeper is None:
        raise ConfigError(f"volume {volume}: nothing is kept of what a resync overwrites")
    return keeper.overlays


async def _undo(
    guest: Guest, name: str, file: Path, limiter: trio.CapacityLimiter, how_far: list[int]
) -> None:
    """Write an overlay's content as the guest would, and flush; ``how_far`` begins with how many bytes."""
    volume = guest.volume(name)
    block = guest.replica(name).store.superblock
    with closing(overlay_ops(file, block.volume_id, block.size_bytes)) as batches:
        while True:
            ops = await trio.to_thread.run_sync(next, batches, None, limiter=limiter)
            if ops is None:
                break
            for op in ops:
                if op.kind is OpKind.DATA and op.data is not None:
                    await volume.write(op.offset, op.data)
                else:
                    await volume.zero(op.offset, op.length)
                how_far[0] += op.length
    await volume.flush()


class StoppedReplica:
    """The overlays of a replica whose host is down; made by `open_stopped`."""

    def __init__(self, volume: VolumeConfig, overlays: Overlays, size_bytes: int) -> None:
        self._volume = volume
        self._size_bytes = size_bytes
        self.overlays = overlays

    def export(self, overlay_id: str, file: Path, progress: Progress) -> None:
        """Write the image; errors as `Overlays.export`."""
        device = open_volume(self._volume.path, self._size_bytes)
        try:
            self.overlays.export(overlay_id, device, file, progress=progress)
        finally:
            device.close()


@contextmanager
def open_stopped(volume: VolumeConfig, pair_id: bytes) -> Iterator[StoppedReplica]:
    """Hold the replica's metadata, as its host would; `BusyError` if that runs."""
    metadata = str(volume.metadata or metadata_path(volume.path))
    opened = open_metadata(metadata)
    try:
        block = opened.superblock
        if block.pair_id != pair_id:
            raise MismatchError(f"{metadata}: belongs to another pair")
        overlays = overlays_beside(metadata, block.size_bytes, bytes_max=volume.options.overlay_bytes)
        yield StoppedReplica(volume, overlays, block.size_bytes)
    finally:
        opened.store.close()
