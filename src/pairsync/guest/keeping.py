"""Keeping what a resync overwrites, in the life of a replica: how it begins, and its jobs in the data lane.

The order of the jobs and of the superblock is `guest.performer`'s; what they do is ``storage.kept``'s.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack

from pairsync.core.dirty import DirtyMap
from pairsync.core.events import Event
from pairsync.core.superblock import Superblock
from pairsync.errors import BackendError
from pairsync.storage.device import Device
from pairsync.storage.kept import Keeper, KeepingDevice
from pairsync.storage.metadata import OpenedMetadata
from pairsync.storage.overlay import Overlays

__all__ = ["keep_job", "kept_events", "kept_job", "with_overlays"]


def with_overlays(
    device: Device,
    open_overlays: Callable[[], Overlays],
    opened: OpenedMetadata,
    own: DirtyMap,
    now_s: Callable[[], int],
    notes: list[str],
) -> tuple[Device, Keeper]:
    """The device, keeping what a resync overwrites; goes on with an undo log that was left."""
    may_block = opened.store.may_block
    with ExitStack() as stack:
        stack.callback(device.close)
        overlays = open_overlays()
        name = opened.superblock.name
        keeper = Keeper(overlays, device, name, own, now_s, may_block=may_block or device.may_block)
        stack.callback(keeper.close)
        keeper.recover(opened.superblock)
        stack.pop_all()
    notes += overlays.problems
    return KeepingDevice(device, keeper, may_block=may_block), keeper


def kept_events(keepers: Iterable[Keeper | None]) -> Iterator[Event]:
    """What the lanes have told of overlays since the last time."""
    for keeper in keepers:
        if keeper is not None:
            yield from keeper.take_events()


def keep_job(keeper: Keeper, durable: Superblock, wanted: Superblock) -> int:
    """Get ready for that superblock; an errno or 0."""
    try:
        keeper.before(durable, wanted)
    except BackendError as error:
        return error.errno or errno.EIO
    return 0


def kept_job(keeper: Keeper, durable: Superblock) -> int:
    """That superblock is durable; an errno or 0."""
    try:
        keeper.after(durable)
    except BackendError as error:
        return error.errno or errno.EIO
    return 0
