"""A volume's data in a raw file or on a block device.

`RawFile` turns batches of write ops into few calls: neighbouring ops of one kind become one run (one
``pwritev`` or one ``fallocate``), never across an op in between, so the order is kept.  TRIM reads as zero
afterwards, exactly like ZERO: two replicas must stay equal.

Durability of FUA ops: up to `FUA_RUNS_MAX` runs are written with ``RWF_DSYNC`` each, which waits for their
own range only; from there on one flush at the end is cheaper than so many waits.  Zeroing cannot be made
durable by itself and counts as "flush at the end".
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pairsync.core.messages import Buffer, OpKind, WriteOp
from pairsync.errors import BackendError, ConfigError, InternalError, MismatchError

from .blockfile import Allocation, BlockFile, OpenFile, enlarge_file
from .device import Device
from .osfile import OsFile, backend_error, sync_directory

__all__ = ["FUA_RUNS_MAX", "RawFile", "Run", "create_volume", "merge_ops", "open_volume"]

FUA_RUNS_MAX = 2
"""Separate FUA runs of a batch written with ``RWF_DSYNC`` (0.4 ms each on ext4, one after the other); a
flush of the whole file costs about as much as two of them."""


class Run(NamedTuple):
    """Neighbouring ops of one kind as one operation; ``buffers`` is empty where zeroes are meant."""

    kind: OpKind  # DATA, ZERO (TRIM is folded into it) or ZERO_ALLOCATE
    offset: int
    length: int
    buffers: Sequence[Buffer]
    fua: bool


# Looked up once: an attribute of an enum class costs as much as half of what happens to an op below.
_DATA, _ZERO, _TRIM = OpKind.DATA, OpKind.ZERO, OpKind.TRIM


def merge_ops(ops: Sequence[WriteOp], size_bytes: int) -> list[Run]:
    """The ops as runs, in order; `InternalError` for an op outside the volume or of the wrong length."""
    runs: list[Run] = []
    run_kind, start, stop, run_fua = _DATA, 0, -1, False  # the run being gathered; none while stop < 0
    buffers: list[Buffer] = []
    for kind, offset, length, data, fua in ops:
        if kind is _TRIM:
            kind = _ZERO  # noqa: PLW2901 - the two are one here
        fits = data is None if kind is not _DATA else data is not None and len(data) == length
        if not fits or offset < 0 or length < 0 or offset + length > size_bytes:
            raise InternalError(
                f"{kind.name} of {length} bytes at {offset} of a volume of {size_bytes}, "
                f"with {'no' if data is None else len(data)} bytes of data"
            )
        if length == 0:
            continue
        if offset != stop or kind is not run_kind:
            if stop >= 0:
                runs.append(Run(run_kind, start, stop - start, buffers, run_fua))
            run_kind, start, stop, run_fua, buffers = kind, offset, offset, False, []
        stop += length
        run_fua = run_fua or fua
        if data is not None:
            buffers.append(data)
    if stop >= 0:
        runs.append(Run(run_kind, start, stop - start, buffers, run_fua))
    return runs


class RawFile(Device):
    """A volume's data in a `BlockFile`, from its beginning; owns the file.

    The file may be larger than the volume: a device that was enlarged, or a growth that was cut short.  What
    lies behind the volume's end belongs to nobody until `extend` makes it read as zero.
    """

    def __init__(self, file: BlockFile, size_bytes: int | None = None) -> None:
        """``size_bytes``: of the volume; None: all of the file."""
        self._file = file
        self._size_bytes = file.size_bytes if size_bytes is None else size_bytes

    @property
    def path(self) -> str:
        """As `Device.path`."""
        return self._file.path

    @property
    def size_bytes(self) -> int:
        """As `Device.size_bytes`."""
        return self._size_bytes

    @property
    def may_block(self) -> bool:
        """False on tmpfs and ramfs only."""
        return not self._file.memory_backed

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self._size_bytes:
            raise InternalError(f"{self.path}: {length} bytes at {offset} lie outside the volume")

    def read_into(self, offset: int, view: memoryview) -> None:
        """As `Device.read_into`."""
        self._check(offset, len(view))
        self._file.read_into(offset, view)

    def read(self, offset: int, length: int) -> bytes:
        """As `Device.read`."""
        self._check(offset, length)
        return self._file.read(offset, length)

    def read_nowait(self, offset: int, view: memoryview) -> bool:
        """As `Device.read_nowait`."""
        self._check(offset, len(view))
        return self._file.read_nowait(offset, view)

    def apply(self, ops: Sequence[WriteOp]) -> None:
        """As `Device.apply`."""
        file = self._file
        if len(ops) == 1:  # most batches of a guest that waits for each answer
            kind, offset, length, data, fua = ops[0]
            within = 0 <= offset <= self._size_bytes - length
            if within and kind is _DATA and data is not None and len(data) == length > 0:
                file.write(offset, (data,), durable=fua)
                return
        runs = merge_ops(ops, self._size_bytes)
        fua_count = sum([run.fua for run in runs])
        singly = fua_count <= FUA_RUNS_MAX
        flush_after = not singly
        for kind, offset, length, buffers, fua in runs:
            if kind is _DATA:
                file.write(offset, buffers, durable=fua and singly)
            else:
                file.zero(offset, length, keep_space=kind is not _ZERO)
                flush_after = flush_after or fua
        if flush_after:
            file.flush()

    def flush(self) -> None:
        """As `Device.flush`."""
        self._file.flush()

    def extend(self, size_bytes: int) -> None:
        """As `Device.extend`."""
        file, end = self._file, self._size_bytes
        enlarge_file(file, size_bytes)
        added = size_bytes - end
        if added > 0 and file.hole_bytes(end, added) < added:
            file.zero(end, added, keep_space=False)
        file.flush()

    def enlarge(self, size_bytes: int) -> None:
        """As `Device.enlarge`."""
        if not self._size_bytes <= size_bytes <= self._file.size_bytes:
            raise InternalError(f"{self.path}: from {self._size_bytes} to {size_bytes} bytes")
        self._size_bytes = size_bytes

    def allocation(self, offset: int, length: int) -> Allocation:
        """As `Device.allocation`; a block device is all data."""
        self._check(offset, length)
        return self._file.allocation(offset, length)

    def hole_bytes(self, offset: int, length: int) -> int:
        """As `Device.hole_bytes`; a block device is all data."""
        self._check(offset, length)
        return self._file.hole_bytes(offset, length)

    def cache(self, offset: int, length: int) -> None:
        """As `Device.cache`."""
        self._check(offset, length)
        self._file.will_need(offset, length)

    def close(self) -> None:
        """As `Device.close`."""
        self._file.close()


def create_volume(path: str | os.PathLike[str], size_bytes: int) -> None:
    """Make a sparse file of that size, durably; it must not exist yet (`ConfigError`).

    `BackendError` if the file system cannot hold such a file; nothing is left behind then.
    """
    if size_bytes < 1:
        raise ConfigError(f"{os.fspath(path)}: a volume of {size_bytes} bytes; at least 1 is needed")
    where = Path(path).absolute()
    try:
        fd = os.open(where, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise ConfigError(f"{where}: exists already; nothing was changed") from error
    except OSError as error:
        raise backend_error(f"{where}: creating the volume", error) from error
    try:
        os.ftruncate(fd, size_bytes)
        os.fsync(fd)
    except OSError as error:
        where.unlink()
        raise backend_error(f"{where}: creating a volume of {size_bytes} bytes", error) from error
    finally:
        os.close(fd)
    sync_directory(where)


def open_volume(
    path: str | os.PathLike[str],
    size_bytes: int | None = None,
    *,
    exact: bool = False,
    open_file: OpenFile = OsFile,
) -> RawFile:
    """Open a raw file or block device for this process alone, through ``open_file``.

    Of a file that is larger than ``size_bytes`` (None: as large as it is) the rest is not touched.  Raises
    `BusyError` if it is in use, `MismatchError` if it is smaller (with ``exact``: or larger), `BackendError`
    if it cannot be opened.
    """
    file = open_file(path)
    if size_bytes is not None and (file.size_bytes < size_bytes or (exact and file.size_bytes > size_bytes)):
        found = file.size_bytes
        file.close()
        raise MismatchError(
            f"{file.path}: has {found} bytes, {size_bytes} expected; nothing was changed", errno.EINVAL
        )
    if file.size_bytes < 1:
        file.close()
        raise BackendError(f"{file.path}: is empty; a volume has at least 1 byte", errno.EINVAL)
    return RawFile(file, size_bytes)
