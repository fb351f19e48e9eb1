"""The local replica of a volume: its data, its metadata, and the jobs that are run on them.

A replica is made once (`create_replica`) and opened by one process at a time (`open_replica`).  What was
recovered is the union of the bitmap and the write-intent journal, unless the volume was closed in order.

The job functions at the end are what the lanes run: they block, they touch nothing but the device and the
metadata, and they turn a failing disk into errnos.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

from pairsync.core.dirty import DirtyMap
from pairsync.core.effects import Examine
from pairsync.core.messages import Condition, OpKind, WriteOp
from pairsync.core.questions import Examined
from pairsync.core.resync import Found
from pairsync.core.setup import VolumeSetup
from pairsync.core.superblock import Superblock, new_superblock
from pairsync.core.units import BLOCK_BYTES, KIB, Extent, bounded_runs
from pairsync.errors import BackendError, ConfigError, MismatchError
from pairsync.storage.blockfile import OpenFile
from pairsync.storage.device import Device
from pairsync.storage.digested import DigestedDevice
from pairsync.storage.digests import (
    DigestTable,
    OpenedDigests,
    create_digests,
    digests_path,
    discard_digests,
    open_digests,
)
from pairsync.storage.file import create_volume, open_volume
from pairsync.storage.kept import Keeper
from pairsync.storage.metadata import (
    MetadataStore,
    OpenedMetadata,
    create_metadata,
    metadata_path,
    open_metadata,
)
from pairsync.storage.osfile import OsFile
from pairsync.storage.overlay import Overlays, overlays_beside
from pairsync.storage.points import Points, points_beside
from pairsync.storage.superblock import check_identity, check_new

from .config import VolumeConfig
from .keeping import with_overlays
from .points import with_points

__all__ = [
    "Replica",
    "apply_job",
    "create_replica",
    "examine_job",
    "flush_job",
    "journal_job",
    "map_job",
    "open_replica",
    "persist_job",
    "read_job",
    "recover_replica",
    "save_job",
]

_ZERO_BLOCK = bytes(BLOCK_BYTES)
_WORD_BYTES = 8
_BLOCK_WORDS = BLOCK_BYTES // _WORD_BYTES

ASK_BYTES = 64 * KIB
"""Up to here a range is read without asking for holes first: the question costs as much."""

MAP_RUNS_MAX = 32_768
"""Runs of one answer about what is allocated: 5 MB, and some 50 ms of marking them on the loop.  A file that
was written at random may have millions."""


class Replica:
    """An open volume on this host."""

    def __init__(
        self,
        device: Device,
        store: MetadataStore,
        setup: VolumeSetup,
        notes: Sequence[str],
        keeper: Keeper | None = None,
        points: Points | None = None,
    ) -> None:
        self.device = device
        self.store = store
        self.setup = setup
        self.keeper = keeper  # below the device; None: what a resync overwrites is not kept
        self.points = points  # beside the digests; None: there are none of these
        self.notes = tuple(notes)  # damage that could be made up for, for the log

    @property
    def name(self) -> str:
        """The volume's name."""
        return self.setup.superblock.name

    def close(self) -> None:
        """Give all files back; idempotent."""
        if self.points is not None:
            self.points.close()
        self.device.close()
        self.store.close()


def create_replica(
    path: str | os.PathLike[str],
    *,
    name: str,
    pair_id: bytes,
    volume_id: bytes,
    size_bytes: int | None = None,
    metadata: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> None:
    """Make a new replica at ``path``: a sparse file of ``size_bytes``, or what is there already.

    An existing file or block device is taken over with its content, which counts as written, with a life of
    its own: it is never overwritten by a resync.  With ``overwrite`` it is worthless instead: such a replica
    can only be a standby's, and its first session copies everything over it.  Raises `MismatchError` if it
    has not ``size_bytes``, `ConfigError` if it has metadata already, if there is nothing and no size, or for
    what cannot be (an id has 16 bytes), `BackendError` if the disk says no.
    """
    existing = Path(path).exists()
    if existing:
        device = open_volume(path, size_bytes, exact=True)
        size_bytes = device.size_bytes
        device.close()
    elif size_bytes is None:
        raise ConfigError(f"{os.fspath(path)}: does not exist, and no size was given")
    block = new_superblock(
        pair_id=pair_id,
        volume_id=volume_id,
        name=name,
        size_bytes=size_bytes,
        condition=_condition_of_new(existing=existing, overwrite=overwrite),
    )
    check_new(block)
    metadata = metadata_path(path) if metadata is None else os.fspath(metadata)
    if Path(metadata).exists():
        raise ConfigError(f"{metadata}: exists already; nothing was changed")
    digests = digests_path(metadata)
    if not existing:
        create_volume(path, size_bytes)
    try:
        create_digests(digests, volume_id=volume_id, size_bytes=size_bytes, blank=not existing)
        create_metadata(metadata, block)
    except BaseException:
        if not existing:  # then all of it is ours
            Path(path).unlink(missing_ok=True)
            Path(digests).unlink(missing_ok=True)
        raise


def _condition_of_new(*, existing: bool, overwrite: bool) -> Condition:
    if not existing:
        return Condition.BLANK
    # worthless content is what an interrupted resync leaves: of use as a target only
    return Condition.SYNCING if overwrite else Condition.CONSISTENT


def open_replica(volume: VolumeConfig, pair_id: bytes, *, open_file: OpenFile = OsFile) -> Replica:
    """Open a replica for this process alone, every file of it through ``open_file``.

    Raises `BusyError` if it is open elsewhere, `MismatchError` if it is another pair's, another volume or
    of another size, `MetadataError` if the metadata is damaged or newer, else `BackendError`.
    """
    metadata = os.fspath(volume.metadata or metadata_path(volume.path))
    opened = open_metadata(metadata, open_file=open_file)
    if not volume.options.digests:
        try:
            discard_digests(digests_path(metadata))
        except BaseException:
            opened.store.close()
            raise

    def open_table(block: Superblock, doubtful: DirtyMap) -> OpenedDigests:
        return open_digests(
            digests_path(metadata),
            volume_id=block.volume_id,
            size_bytes=block.size_bytes,
            doubtful=doubtful,
            open_file=open_file,
        )

    def open_overlays(block: Superblock) -> Overlays:
        return overlays_beside(metadata, block.size_bytes, bytes_max=volume.options.overlay_bytes)

    open_device = partial(open_volume, volume.path, open_file=open_file)
    return recover_replica(
        opened,
        open_device,
        volume,
        pair_id,
        open_table,
        open_overlays,
        open_points=lambda block, table: points_beside(metadata, block.volume_id, table),
    )


OpenTable: TypeAlias = Callable[[Superblock, DirtyMap], OpenedDigests]
"""Opens the digests of a volume; the blocks of the map may hold anything."""


def recover_replica(
    opened: OpenedMetadata,
    open_device: Callable[[int], Device],
    volume: VolumeConfig,
    pair_id: bytes,
    open_table: OpenTable | None = None,
    open_overlays: Callable[[Superblock], Overlays] | None = None,
    now_s: Callable[[], int] = lambda: int(time.time()),
    open_points: Callable[[Superblock, DigestTable], Points] | None = None,
) -> Replica:
    """A replica from its opened metadata, which it closes, its device, its digests where they are kept, its
    overlays and its points.

    ``open_device`` is given the size that the metadata names.  ``now_s`` is the Unix time.
    """
    keeper: Keeper | None = None
    points: Points | None = None
    given = 0
    try:
        block = opened.superblock
        check_identity(block, pair_id=pair_id)
        _check_name(block, volume)
        recovered, doubtful, damaged = opened.dirty_map()
        notes = list(opened.notes)
        device = open_device(block.size_bytes)
        if open_overlays is not None:
            device, keeper = with_overlays(
                device, partial(open_overlays, block), opened, recovered.copy(), now_s, notes
            )
        if open_table is not None and volume.options.digests:
            device, table = _with_digests(device, partial(open_table, block, doubtful), notes)
            given = table.milestone
            if open_points is not None:
                points = with_points(device, partial(open_points, block, table), notes)
    except BaseException:
        opened.store.close()
        raise
    marks = points.list() if points is not None else ()
    setup = VolumeSetup(block, recovered, volume.options, opened.generation_next, marks, given)
    if damaged:
        notes.append(f"{damaged} sectors of the dirty bitmap were unreadable: their blocks are copied again")
    return Replica(device, opened.store, setup, notes, keeper, points)


def _with_digests(
    device: Device, open_table: Callable[[], OpenedDigests], notes: list[str]
) -> tuple[Device, DigestTable]:
    """The device, keeping digests; `Device.begin_life` records durably what a crash has left in doubt."""
    try:
        opened = open_table()
    except BaseException:
        device.close()
        raise
    notes += opened.notes
    return DigestedDevice(device, opened.table), opened.table


def _check_name(block: Superblock, volume: VolumeConfig) -> None:
    if block.name != volume.name:
        raise MismatchError(f"{os.fspath(volume.path)} is volume {block.name!r}, not {volume.name!r}")


# ---------------------------------------------------------------------- jobs


def apply_job(device: Device, ops: Sequence[WriteOp]) -> Sequence[int] | None:
    """Apply a batch; an errno for each op, or None: all well.

    A batch that fails is written once more, op by op in its order: how much of it was written is not known,
    and one request without room must not fail those that merely stood beside it.
    """
    try:
        device.apply(ops)
    except BackendError as error:
        errnos = [error.errno] if len(ops) == 1 else [_apply_one(device, op) for op in ops]
        return errnos if any(errnos) else None
    return None


def _apply_one(device: Device, op: WriteOp) -> int:
    try:
        device.apply((op,))
    except BackendError as error:
        return error.errno
    return 0


def flush_job(device: Device, *, digests: bool = False, milestone: int | None = None) -> int:
    """Make the data durable, and ``digests`` of its blocks too, with a ``milestone``; an errno or 0."""
    try:
        device.flush()
        if digests:
            device.save_digests(milestone)
    except BackendError as error:
        return error.errno
    return 0


def examine_job(device: Device, effect: Examine) -> Examined | int:
    """Digests of these nodes, or an errno."""
    try:
        return device.examine(effect.level, effect.first, effect.stop, read=effect.read)
    except BackendError as error:
        return error.errno or errno.EIO


def journal_job(store: MetadataStore, segment: int, generation: int, extents: Sequence[Extent]) -> int:
    """Record intents durably; an errno or 0."""
    try:
        store.append_intents(segment, generation, extents)
    except BackendError as error:
        return error.errno
    return 0


def save_job(store: MetadataStore, pages: Mapping[int, bytes], release: Sequence[int]) -> int:
    """Write bitmap pages durably and release segments; an errno or 0."""
    try:
        if pages:
            store.write_bitmap(pages)
        for segment in release:
            store.release_segment(segment)
    except BackendError as error:
        return error.errno
    return 0


def persist_job(store: MetadataStore, superblock: Superblock) -> int:
    """Replace the superblock durably; an errno or 0."""
    try:
        store.write_superblock(superblock)
    except BackendError as error:
        return error.errno
    return 0


def map_job(device: Device) -> list[Extent]:
    """Runs of blocks that hold all that is allocated, ascending and apart; at most `MAP_RUNS_MAX`.

    A volume of more runs gets its narrowest holes counted in: they are found to be zero when they are read.
    """
    return bounded_runs(_allocated(device), MAP_RUNS_MAX)


def _allocated(device: Device) -> Iterator[tuple[int, int]]:
    at = 0
    while at < device.size_bytes:
        for length, hole in device.allocation(at, device.size_bytes - at):
            if not hole:
                yield at // BLOCK_BYTES, (at + length - 1) // BLOCK_BYTES + 1
            at += length


def read_job(device: Device, extents: Sequence[Extent], piece_bytes: int) -> Found | int:
    """Find out about ``extents``: of one the beginning (a hole of any length, or ``piece_bytes`` of data).

    Several are read whole.
    """
    try:
        return _find(device, extents[0], piece_bytes) if len(extents) == 1 else _find_all(device, extents)
    except BackendError as error:
        return error.errno or errno.EIO


def _find(device: Device, extent: Extent, piece_bytes: int) -> Found:
    offset = extent.start * BLOCK_BYTES
    length = min(extent.stop * BLOCK_BYTES, device.size_bytes) - offset
    piece = min(length, piece_bytes)
    hole = device.hole_bytes(offset, length) if length > ASK_BYTES else 0
    if hole and hole >= piece:
        if hole < length:
            hole -= hole % BLOCK_BYTES
        stop = -(-(offset + hole) // BLOCK_BYTES)
        return Found([Extent(extent.start, stop)], [WriteOp(OpKind.ZERO, offset, hole)])
    content = device.read(offset, piece)
    wrong = device.seen([(offset, memoryview(content))])
    stop = -(-(offset + piece) // BLOCK_BYTES)
    ops: list[WriteOp] = []
    _add_without_zeroes(ops, content, 0, piece, offset)
    return Found([Extent(extent.start, stop)], ops, wrong)


def _find_all(device: Device, extents: Sequence[Extent]) -> Found:
    """Runs that are small together, in one buffer."""
    content = bytearray(sum(extent.block_count for extent in extents) * BLOCK_BYTES)
    view = memoryview(content)
    ops: list[WriteOp] = []
    parts: list[tuple[int, memoryview]] = []
    at = 0
    for start, stop in extents:
        offset = start * BLOCK_BYTES
        length = min(stop * BLOCK_BYTES, device.size_bytes) - offset
        device.read_into(offset, view[at : at + length])
        parts.append((offset, view[at : at + length]))
        _add_without_zeroes(ops, content, at, length, offset)
        at += length
    return Found(extents, ops, device.seen(parts))


def _add_without_zeroes(
    ops: list[WriteOp], content: bytes | bytearray, first: int, length: int, offset: int
) -> None:
    """Add ``length`` bytes of content as data and zero ops; blocks of zeroes carry no payload."""
    view = memoryview(content).toreadonly()
    end = first + length
    if not length % _WORD_BYTES and 0 not in view[first:end].cast("Q")[::_BLOCK_WORDS].tolist():
        ops.append(WriteOp(OpKind.DATA, offset, length, view[first:end]))  # no block begins with zeroes
        return
    start = first
    zero = content.startswith(_ZERO_BLOCK, first, end)
    for at in range(first + BLOCK_BYTES, end + BLOCK_BYTES, BLOCK_BYTES):
        here = content.startswith(_ZERO_BLOCK, at, end) if at < end else not zero
        if here is zero:
            continue
        stop = min(at, end)
        where = offset + start - first
        if zero:
            ops.append(WriteOp(OpKind.ZERO, where, stop - start))
        else:
            ops.append(WriteOp(OpKind.DATA, where, stop - start, view[start:stop]))
        start, zero = stop, here
