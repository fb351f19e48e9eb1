"""Comparing two replicas offline, byte by byte; what both have not allocated is equal without reading."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pairsync.core.units import MIB
from pairsync.storage.device import Device
from pairsync.storage.file import open_volume
from pairsync.storage.metadata import metadata_path, open_metadata

__all__ = ["Comparison", "compare_volumes"]

PIECE_BYTES = 4 * MIB
"""Read at once from each side."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """``first_difference`` is the offset of the first byte that differs, None if there is none."""

    size_bytes: int
    read_bytes: int
    first_difference: int | None

    @property
    def equal(self) -> bool:
        """Whether the two are the same."""
        return self.first_difference is None


def compare_volumes(
    first: Path, second: Path, progress: Callable[[int, int], None] | None = None
) -> Comparison:
    """Compare two volumes; ``progress`` hears (bytes done, bytes in all).

    A file may be longer than its volume (a growth that was cut short): what counts is the size that the
    metadata beside it name, if there are any, or what is left of it in a file that was truncated.  Volumes
    of different size differ at the end of the shorter one.  Raises `BusyError` if one is in use,
    `BackendError` if one cannot be read.
    """
    left = _open(first)
    try:
        right = _open(second)
        try:
            return _compare(left, right, progress)
        finally:
            right.close()
    finally:
        left.close()


def _open(path: Path) -> Device:
    metadata = Path(metadata_path(path))
    if not metadata.exists():
        return open_volume(path)
    opened = open_metadata(metadata)
    opened.store.close()
    volume = open_volume(path)
    if volume.size_bytes <= opened.superblock.size_bytes:
        return volume
    volume.close()
    return open_volume(path, opened.superblock.size_bytes)


def _compare(left: Device, right: Device, progress: Callable[[int, int], None] | None) -> Comparison:
    size = min(left.size_bytes, right.size_bytes)
    read = 0
    for start, stop in _candidates(left, right, size):
        for at in range(start, stop, PIECE_BYTES):
            length = min(PIECE_BYTES, stop - at)
            ours, theirs = bytearray(length), bytearray(length)
            left.read_into(at, memoryview(ours))
            right.read_into(at, memoryview(theirs))
            read += length
            if ours != theirs:
                where = next(i for i, (x, y) in enumerate(zip(ours, theirs, strict=True)) if x != y)
                return Comparison(size, read, at + where)
            if progress is not None:
                progress(at + length, size)
    if progress is not None:
        progress(size, size)
    return Comparison(size, read, size if left.size_bytes != right.size_bytes else None)


def _candidates(left: Device, right: Device, size: int) -> Iterator[tuple[int, int]]:
    """Byte ranges that at least one side has allocated."""
    at = 0
    while at < size:
        (run_left, hole_left), (run_right, hole_right) = (
            side.allocation(at, size - at)[0] for side in (left, right)
        )
        length = min(run_left, run_right)
        if not (hole_left and hole_right):
            yield at, at + length
        at += length
