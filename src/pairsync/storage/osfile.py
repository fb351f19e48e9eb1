"""`BlockFile` over a real file or block device.

Opened exclusively: ``flock`` on the file, and ``O_EXCL`` on a block device (the kernel then refuses mounts
and other exclusive users).  The name is looked at again with every flush: a file that was deleted or replaced
under its name would take writes that nobody can ever read again, so that is an error, not a success.

Reads and writes are positional; the file offset is used only to ask for holes.  Lengths that the kernel
shortens are completed here.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from pairsync.core.messages import Buffer
from pairsync.core.units import MIB
from pairsync.errors import BackendError, BusyError, ClosedError, PairsyncError

from .blockfile import ALLOCATION_RUNS_MAX, Allocation, BlockFile
from .linux import (
    IOVECS_MAX,
    PUNCH_HOLE,
    RESERVE,
    ZERO_RANGE,
    fallocate,
    file_size_bytes,
    identity_of,
    is_memory_backed,
    logical_block_bytes,
)

__all__ = ["OsFile", "backend_error", "sync_directory", "whole_file"]

ZERO_PIECE_BYTES = MIB
"""Zeroes written in one call where nothing cheaper zeroes a range: large enough to cost little, small
enough that the buffer does not matter."""

_ZEROES = bytes(ZERO_PIECE_BYTES)  # read only; untouched pages of it share one page of memory

_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.EINVAL})

T = TypeVar("T")


def backend_error(doing: str, error: OSError) -> BackendError:
    """An `OSError` as a `BackendError` that says what was being done."""
    number = error.errno if error.errno is not None else errno.EIO
    return BackendError(f"{doing}: {os.strerror(number)}", number)


def sync_directory(path: Path) -> None:
    """Make durable that the file of that name exists (or does not)."""
    directory = path.parent
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise backend_error(f"{directory}: fsync of the directory", error) from error


class OsFile(BlockFile):
    """A regular file or block device, open for reading and writing by this object alone.

    Construction raises `BusyError` if another process (or object) has it open, `BackendError` otherwise.
    ``create`` makes an empty file where there is none (mode 0600).  With ``alone`` False others may have a
    regular file open, and open it: it is only to be read.
    """

    def __init__(self, path: str | os.PathLike[str], *, create: bool = False, alone: bool = True) -> None:
        super().__init__()
        self._name = Path(path).absolute()
        self.path = str(self._name)
        self._fd = _open(self.path, create=create)  # -1 once closed
        try:
            if alone:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            about = os.fstat(self._fd)
            self.is_block_device = _is_block_device(self.path, about)
            self.size_bytes = file_size_bytes(self._fd)
            self.memory_backed = is_memory_backed(self._fd)
            self._alignment_bytes = logical_block_bytes(self._fd) if self.is_block_device else 1
        except BlockingIOError as error:
            self.close()
            raise BusyError(f"{self.path}: in use by another process") from error
        except OSError as error:
            self.close()
            raise backend_error(f"{self.path}: open", error) from error
        except BackendError:
            self.close()
            raise
        self._identity = _identity(about)
        self._nowait = True  # until the file system says that it cannot
        try:
            self._check_name()  # somebody may have replaced the file before the lock was ours
        except BackendError:
            self.close()
            raise

    # ------------------------------------------------------------------ reading

    def read_into(self, offset: int, view: memoryview) -> None:
        """As `BlockFile.read_into`."""
        done = self._preadv(offset, view, 0)
        while done < len(view):
            got = self._preadv(offset + done, view[done:], 0)
            if got == 0:
                raise BackendError(
                    f"{self.path}: ends at {offset + done}, not at {offset + len(view)} or later", errno.EIO
                )
            done += got

    def read(self, offset: int, length: int) -> bytes:
        """As `BlockFile.read`, without zeroing the buffer first and copying it afterwards."""
        try:
            content = os.pread(self._fd, length, offset)
        except OSError as error:
            raise self._error(f"read of {length} bytes at {offset}", error) from error
        return content if len(content) == length else super().read(offset, length)

    def read_nowait(self, offset: int, view: memoryview) -> bool:
        """As `BlockFile.read_nowait`."""
        if self.memory_backed:
            self.read_into(offset, view)
            return True
        if not self._nowait:
            return False
        try:
            return os.preadv(self._fd, [view], offset, os.RWF_NOWAIT) == len(view)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise self._error(f"read of {len(view)} bytes at {offset}", error) from error
            self._nowait = False
            return False

    def _preadv(self, offset: int, view: memoryview, flags: int) -> int:
        try:
            return os.preadv(self._fd, [view], offset, flags)
        except OSError as error:
            raise self._error(f"read of {len(view)} bytes at {offset}", error) from error

    # ------------------------------------------------------------------ writing

    def _write(self, offset: int, buffers: Sequence[Buffer], *, durable: bool) -> None:
        flags = os.RWF_DSYNC if durable else 0
        if len(buffers) > IOVECS_MAX:
            for first in range(0, len(buffers), IOVECS_MAX):
                batch = buffers[first : first + IOVECS_MAX]
                self._write(offset, batch, durable=durable)
                offset += sum(map(len, batch))
            return
        length = len(buffers[0]) if len(buffers) == 1 else sum(map(len, buffers))
        try:
            done = os.pwritev(self._fd, buffers, offset, flags)
            while done < length:  # rare: signals, quotas, more than 2 GiB
                done += self._write_rest(offset, buffers, done, flags)
        except OSError as error:
            raise self._error(f"write of {length} bytes at {offset}", error) from error

    def _write_rest(self, offset: int, buffers: Sequence[Buffer], done: int, flags: int) -> int:
        rest: list[Buffer] = []
        skip = done
        for buffer in buffers:
            if skip < len(buffer):
                rest.append(memoryview(buffer)[skip:])
            skip = max(skip - len(buffer), 0)
        got = os.pwritev(self._fd, rest, offset + done, flags)
        if got == 0:
            raise OSError(errno.EIO, "wrote nothing")
        return got

    def zero(self, offset: int, length: int, *, keep_space: bool) -> None:
        """As `BlockFile.zero`."""
        if length <= 0:
            return
        # A block device zeroes whole logical blocks only: the ends are written.
        unit = self._alignment_bytes
        start = min(-(-offset // unit) * unit, offset + length)
        stop = max((offset + length) // unit * unit, start)
        if start < stop and not self._zero_cheaply(start, stop - start, keep_space=keep_space):
            self._write_zeroes(start, stop - start)
        self._write_zeroes(offset, start - offset)
        self._write_zeroes(stop, offset + length - stop)

    def _zero_cheaply(self, offset: int, length: int, *, keep_space: bool) -> bool:
        # A device that cannot unmap refuses to punch, and may still zero a range by itself.
        modes = (ZERO_RANGE,) if keep_space else (PUNCH_HOLE, ZERO_RANGE)
        for mode in modes if self.is_block_device else modes[:1]:
            try:
                fallocate(self._fd, mode, offset, length)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise self._error(f"zeroing {length} bytes at {offset}", error) from error
            else:
                return True
        return False

    def _write_zeroes(self, offset: int, length: int) -> None:
        view = memoryview(_ZEROES)
        for at in range(offset, offset + length, ZERO_PIECE_BYTES):
            piece = view[: min(ZERO_PIECE_BYTES, offset + length - at)]
            self._write(at, (piece,), durable=False)

    def _flush(self) -> None:
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise self._error("flush", error) from error
        self._check_name()

    def _check_name(self) -> None:
        try:
            about = self._name.stat()
        except OSError as error:
            raise self._error("vanished while it was open", error) from error
        if _identity(about) != self._identity:
            raise BackendError(f"{self.path}: replaced by another file while it was open", errno.ESTALE)
        if not self.is_block_device and about.st_size < self.size_bytes:
            raise BackendError(
                f"{self.path}: cut from {self.size_bytes} to {about.st_size} bytes while it was open",
                errno.EIO,
            )

    # ------------------------------------------------------------------ allocation

    def allocation(self, offset: int, length: int) -> Allocation:
        """As `BlockFile.allocation`."""
        if self.is_block_device or length <= 0:
            return [(length, False)] if length > 0 else []
        runs: Allocation = []
        stop = offset + length
        while offset < stop and len(runs) < ALLOCATION_RUNS_MAX:
            data = self._seek(offset, os.SEEK_DATA, stop)
            if data > offset:
                runs.append((data - offset, True))
                offset = data
                continue
            hole = self._seek(offset, os.SEEK_HOLE, stop)
            runs.append((hole - offset, False))
            offset = hole
        return runs

    def hole_bytes(self, offset: int, length: int) -> int:
        """As `BlockFile.hole_bytes`."""
        if self.is_block_device or length <= 0:
            return 0
        return self._seek(offset, os.SEEK_DATA, offset + length) - offset

    def _seek(self, offset: int, whence: int, stop: int) -> int:
        try:
            return min(os.lseek(self._fd, offset, whence), stop)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing of that kind behind the offset
                return stop
            raise self._error(f"asking what is allocated at {offset}", error) from error

    def will_need(self, offset: int, length: int) -> None:
        """As `BlockFile.will_need`."""
        self._call(f"read-ahead at {offset}", lambda: os.posix_fadvise(self._fd, offset, length, _WILLNEED))

    # ------------------------------------------------------------------ the file as a whole

    def resize(self, size_bytes: int) -> None:
        """Set the size of a regular file; what is added is a hole.

        A block device cannot be set: it is looked at again, for it may have been enlarged since it was
        opened.  `BackendError` with ENOSPC if it is smaller than that.
        """
        if not self.is_block_device:
            self._call(f"setting the size to {size_bytes}", lambda: os.ftruncate(self._fd, size_bytes))
            self.size_bytes = size_bytes
            return
        found = self._call("asking for the size", lambda: file_size_bytes(self._fd))
        if found < size_bytes:
            raise BackendError(f"{self.path}: the device has {found} bytes, not {size_bytes}", errno.ENOSPC)
        self.size_bytes = found

    def reserve(self) -> None:
        """Give the whole of a regular file its space, if the file system can; what was a hole reads as zero.

        `BackendError` (ENOSPC) if there is not that much.
        """
        try:
            fallocate(self._fd, RESERVE, 0, self.size_bytes)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise self._error(f"reserving {self.size_bytes} bytes", error) from error

    def identity(self) -> bytes:
        """As `linux.identity_of`."""
        return self._call("looking which file it is", lambda: identity_of(self._fd))

    def rename(self, name: Path) -> None:
        """Give the file another name in the same directory, durably; it stays open and locked."""
        self._call(f"renaming to {name}", lambda: self._name.rename(name))
        self._name, self.path = name, str(name)
        sync_directory(name)

    def _call(self, doing: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except OSError as error:
            raise self._error(f"{doing}", error) from error

    def _error(self, doing: str, error: OSError) -> PairsyncError:
        if self._fd < 0:
            return ClosedError(f"{self.path}: {doing} after it was closed")
        return backend_error(f"{self.path}: {doing}", error)

    def close(self) -> None:
        """As `BlockFile.close`."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


_WILLNEED = os.POSIX_FADV_WILLNEED


def _identity(about: os.stat_result) -> tuple[int, int, int]:
    """What tells one file from another; the node of a block device may move, its number does not."""
    if stat.S_ISBLK(about.st_mode):
        return (0, 0, about.st_rdev)
    return (about.st_dev, about.st_ino, 0)


def _is_block_device(path: str, about: os.stat_result) -> bool:
    if stat.S_ISBLK(about.st_mode):
        return True
    if not stat.S_ISREG(about.st_mode):
        raise BackendError(f"{path}: neither a regular file nor a block device", errno.EINVAL)
    return False


def _open(path: str, *, create: bool) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    try:
        if stat.S_ISBLK(Path(path).stat().st_mode):
            flags |= os.O_EXCL
    except OSError:
        pass  # missing or unreachable: the open itself says so
    try:
        return os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise BusyError(f"{path}: the device is in use, perhaps mounted") from error
        raise backend_error(f"{path}: open", error) from error


@contextmanager
def whole_file(path: Path, suffix: str = ".new") -> Iterator[OsFile]:
    """A file that has that name, durably, once the block has ended, and is not there if it raises.

    It is made beside that name, where one that an earlier attempt has left is emptied first; what has to be
    durable of its content the block flushes.  `BusyError` if somebody else makes it, else `BackendError`.
    """
    file = OsFile(path.with_name(path.name + suffix), create=True)
    try:
        file.resize(0)
        yield file
        file.rename(path)
    except BaseException:
        with suppress(OSError):
            Path(file.path).unlink()
        raise
    finally:
        file.close()
