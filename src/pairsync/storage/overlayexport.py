"""An overlay as a raw image: a sparse file of the volume's size that any tool opens.

The image is written under another name beside its own, flushed and renamed, so it is there whole or not at
all.  What reads as zero is left out as far as it is found cheaply: holes, and whole pieces of `ZERO_BYTES`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Final

from pairsync.core.messages import OpKind, WriteOp
from pairsync.core.units import KIB, MIB
from pairsync.errors import ConfigError, MetadataError, MismatchError

from .device import Device
from .directory import OsDirectory
from .osfile import OsFile, whole_file
from .overlayfile import OverlayState
from .overlaylog import Damage, OverlayLog, open_log, write_ops

__all__ = ["UNFINISHED_SUFFIX", "overlay_ops", "write_image"]

UNFINISHED_SUFFIX: Final = ".pairsync-unfinished"
"""Of an image that is being written; a cut one is begun anew."""

COPY_BYTES: Final = MIB
"""Read from the device in one piece."""

ZERO_BYTES: Final = 64 * KIB
"""Zeroes of this length and alignment are not written: as small as pays against the calls they save."""

_ZEROES: Final = bytes(ZERO_BYTES)

Progress = Callable[[int, int], None]


def write_image(
    log: OverlayLog, device: Device, path: Path, *, only: bool, salvage: bool, progress: Progress
) -> list[Damage]:
    """Write the image: the content of ``device``, or none of it (``only``), and the overlay's blocks.

    What of the overlay is lost is returned (with ``salvage``), else raised.  Errors as `Overlays.export`.
    """
    final = path.absolute()
    if final.exists():
        raise ConfigError(f"{final}: exists already; nothing was changed")
    with whole_file(final, UNFINISHED_SUFFIX) as file:
        file.resize(device.size_bytes)
        base_bytes = 0 if only else device.size_bytes
        total_bytes = base_bytes + log.stop
        for done_bytes in () if only else _copy(device, file):
            progress(done_bytes, total_bytes)
        damage = list(log.damage)
        for record in log.records():
            chunks, lost = log.read(record)
            if lost is not None:
                damage.append(lost)
            if damage and not salvage:
                break
            for op in write_ops(chunks, log.header.size_bytes):
                if op.kind is OpKind.DATA and op.data is not None:
                    file.write(op.offset, (op.data,))
                else:
                    file.zero(op.offset, op.length, keep_space=False)
            progress(base_bytes + record.stop, total_bytes)
        if damage and not salvage:
            raise MetadataError(damage[0].what)
        file.flush()
    return damage


def _copy(device: Device, file: OsFile) -> Iterator[int]:
    """Copy what is allocated; how far it has come, each time."""
    buffer = memoryview(bytearray(COPY_BYTES))
    at = 0
    while at < device.size_bytes:
        hole = device.hole_bytes(at, device.size_bytes - at)
        if hole:
            at += hole
            yield at
            continue
        piece = buffer[: min(COPY_BYTES - at % COPY_BYTES, device.size_bytes - at)]
        device.read_into(at, piece)
        for start in range(0, len(piece), ZERO_BYTES):
            part = piece[start : start + ZERO_BYTES]
            if bytes(part) != _ZEROES[: len(part)]:  # a memoryview compares item by item
                file.write(at + start, (part,))
        at += len(piece)
        yield at


def overlay_ops(path: Path, volume_id: bytes, size_bytes: int) -> Generator[list[WriteOp], None, None]:
    """The content of a kept overlay's file as batches of writes, with at most 1 MiB of data each.

    Close the generator if it is not walked to its end.  `MismatchError` if it is another volume's or of a
    larger one, `ConfigError` for an undo log, `MetadataError` for damaged content.
    """
    where = path.absolute()
    log = open_log(OsDirectory(where.parent), where.name, alone=False)
    try:
        header = log.header
        if header.volume_id != volume_id or header.size_bytes > size_bytes:
            raise MismatchError(f"{where}: is of another volume, or of a larger one")
        if header.state is not OverlayState.KEPT:
            raise ConfigError(f"{where}: is the way back of a resync that is not complete")
        if log.damage:
            raise MetadataError(log.damage[0].what)
        for record in log.records():
            chunks, lost = log.read(record)
            if lost is not None:
                raise MetadataError(lost.what)
            yield write_ops(chunks, header.size_bytes)
    finally:
        log.close()
