"""What Linux offers and the standard library does not: punching holes, asking what lies beneath a file.

Kept apart so that the one piece of ctypes, the ioctl numbers and the reading of ``/proc`` stand in one
place.  Nothing here knows volumes or metadata; errors are plain `OSError`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from pathlib import Path
from typing import Final

__all__ = [
    "IOVECS_MAX",
    "PUNCH_HOLE",
    "RESERVE",
    "ZERO_RANGE",
    "boot_id",
    "fallocate",
    "file_identity",
    "file_size_bytes",
    "identity_of",
    "is_memory_backed",
    "logical_block_bytes",
    "same_file",
]

IOVECS_MAX: Final = os.sysconf("SC_IOV_MAX") if os.sysconf("SC_IOV_MAX") > 0 else 1024
"""Buffers that one ``pwritev`` takes (IOV_MAX, 1024 on Linux)."""

_FALLOC_FL_KEEP_SIZE: Final = 0x01
_FALLOC_FL_PUNCH_HOLE: Final = 0x02
_FALLOC_FL_ZERO_RANGE: Final = 0x10

PUNCH_HOLE: Final = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
"""`fallocate` mode: the range reads as zero and its space is given back."""

ZERO_RANGE: Final = _FALLOC_FL_ZERO_RANGE | _FALLOC_FL_KEEP_SIZE
"""`fallocate` mode: the range reads as zero and keeps (or gets) its space."""

RESERVE: Final = 0
"""`fallocate` mode: the range gets its space; what was a hole still reads as zero and seeks as one."""

_BLKSSZGET: Final = 0x1268  # <linux/fs.h>: the logical block size of a block device

_MEMORY_FILE_SYSTEMS: Final = frozenset({"tmpfs", "ramfs"})

_LIBC: Final = ctypes.CDLL(None, use_errno=True)  # releases the interpreter lock during calls
_FALLOCATE: Final = getattr(_LIBC, "fallocate64", None) or _LIBC.fallocate
_FALLOCATE.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_FALLOCATE.restype = ctypes.c_int

_AT_EMPTY_PATH: Final = 0x1000
_STATX_BTIME: Final = 0x800
_STATX_BYTES: Final = 256  # struct statx of <linux/stat.h>
_STATX_BTIME_OFFSET: Final = 80
_STATX: Final = _LIBC.statx
_STATX.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)
_STATX.restype = ctypes.c_int

_FS_IOC_GETVERSION: Final = 0x80087601  # <linux/fs.h>, of a 64-bit kernel
_WORD: Final = (1 << 64) - 1
_IDENTITY: Final = struct.Struct("<QQQQ")  # file system, inode, time of birth, generation


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """``fallocate(2)`` with a mode (the standard library has ``posix_fallocate`` only)."""
    while _FALLOCATE(fd, mode, offset, length) != 0:
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


def file_identity(path: str) -> bytes:
    """`identity_of` the file of that name; `OSError`."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return identity_of(fd)
    finally:
        os.close(fd)


def identity_of(fd: int) -> bytes:
    """32 bytes that name this very file: not its name, not its content, and not a copy of it; `OSError`.

    File system (``statvfs``, a number made of its UUID where the kernel does so), inode, time of birth where
    the file system keeps it, and generation of the inode.  A file that was deleted and made again, copied,
    or restored from a backup has another one.  Renaming keeps it, and so does writing into it.  `same_file`
    compares.
    """
    about = os.fstat(fd)
    file_system = os.fstatvfs(fd).f_fsid & _WORD
    return _IDENTITY.pack(file_system, about.st_ino, _birth_ns(fd), _inode_generation(fd))


def same_file(written: bytes, found: bytes) -> bool:
    """Whether two identities are those of one file.

    The file system's number counts only where there is no time of birth: XFS, and whatever has no UUID, makes
    it of the device's number, which may be another one after the next boot.
    """
    if written == found or len(written) != _IDENTITY.size:
        return written == found
    _, inode, birth_ns, generation = _IDENTITY.unpack(written)
    return birth_ns != 0 and (inode, birth_ns, generation) == _IDENTITY.unpack(found)[1:]


def _birth_ns(fd: int) -> int:
    """When the file was made, in nanoseconds; 0 where the file system does not keep it."""
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    if _STATX(fd, b"", _AT_EMPTY_PATH, _STATX_BTIME, buffer) != 0:
        return 0
    (mask,) = struct.unpack_from("I", buffer, 0)
    if not mask & _STATX_BTIME:
        return 0
    seconds, nanoseconds = struct.unpack_from("qI", buffer, _STATX_BTIME_OFFSET)
    return int(seconds * 1_000_000_000 + nanoseconds) & _WORD


def _inode_generation(fd: int) -> int:
    """The number that tells an inode from the last user of its place; 0 where there is none."""
    try:
        answer = fcntl.ioctl(fd, _FS_IOC_GETVERSION, struct.pack("l", 0))
    except OSError:
        return 0
    return int(struct.unpack_from("I", answer)[0])


def file_size_bytes(fd: int) -> int:
    """Size of a regular file, or capacity of a block device."""
    about = os.fstat(fd)
    return os.lseek(fd, 0, os.SEEK_END) if stat.S_ISBLK(about.st_mode) else about.st_size


def logical_block_bytes(fd: int) -> int:
    """The unit in which a block device is addressed (512 or 4096, as a rule)."""
    answer = fcntl.ioctl(fd, _BLKSSZGET, struct.pack("i", 0))
    return int(struct.unpack("i", answer)[0])


def is_memory_backed(fd: int, mountinfo: str = "/proc/self/mountinfo") -> bool:
    """Whether the file lies in memory (tmpfs, ramfs), where no access waits for a disk.

    The mount table is searched for the file's device number; where it is unreadable, or does not list the
    device (btrfs subvolumes have numbers of their own), the answer is no: the careful one.
    """
    about = os.fstat(fd)
    if stat.S_ISBLK(about.st_mode):
        return False
    wanted = f"{os.major(about.st_dev)}:{os.minor(about.st_dev)}"
    try:
        with open(mountinfo, encoding="utf-8", errors="replace") as table:
            lines = table.read().splitlines()
    except OSError:
        return False
    for line in lines:
        # 25 24 0:23 / /dev/shm rw,relatime - tmpfs tmpfs rw   (proc(5): the type follows a lone hyphen)
        left, separator, right = line.partition(" - ")
        fields = left.split()
        if separator and len(fields) > 2 and fields[2] == wanted:
            return right.split(" ", 1)[0] in _MEMORY_FILE_SYSTEMS
    return False


def boot_id() -> str:
    """Names this run of the kernel: an unclean end under the same one has kept the page cache."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"
