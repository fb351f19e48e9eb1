"""Growing a replica: its jobs.  When they run is `core.growth`'s and `guest.performer`'s to say.

Data, metadata and digests get room first (`extend_job`), which changes nothing that counts; then the
superblock says the new size, and only then the open files have it (`recorded_job`).  A crash in between
leaves files that are larger than their volume, which is what `Device` and `MetadataStore` expect.
"""

from __future__ import annotations

import errno

from pairsync.core.superblock import Superblock
from pairsync.errors import BackendError
from pairsync.storage.device import Device
from pairsync.storage.kept import Keeper

from .keeping import kept_job
from .replica import Replica

__all__ = ["extend_job", "recorded_job"]


def extend_job(replica: Replica, size_bytes: int) -> int:
    """Get all files of the replica ready for a volume of that size; an errno or 0."""
    try:
        replica.device.extend(size_bytes)
        replica.store.extend(size_bytes)
    except BackendError as error:
        return error.errno or errno.EIO
    return 0


def recorded_job(device: Device, keeper: Keeper | None, durable: Superblock) -> int:
    """That superblock is durable: the open files have its size, and what a resync has overwritten is kept no
    longer than it says.  An errno or 0."""
    try:
        if durable.size_bytes > device.size_bytes:
            device.enlarge(durable.size_bytes)
    except BackendError as error:
        return error.errno or errno.EIO
    return 0 if keeper is None else kept_job(keeper, durable)
