"""A real disk that fails on command: `FaultyDisk` is the switch, `FaultyFile` a file that lies on it, and
`FaultyDirectory` a directory of such files.

Data, metadata and digests of a volume lie on one disk, so all of its files are opened through one switch
(``open_replica(..., open_file=disk.open)``)::

    ok        works
    fail      EIO for everything that touches the disk; reads from the page cache too
    hang      nothing returns until the state changes or the file is closed
    full      ENOSPC for what needs new space; overwriting, zeroing and reading go on

and beside the state every operation can be made slow (`FaultyDisk.slow_ns`).

**Nothing is paid for a disk that was never touched**: a `FaultyFile` is an `OsFile` and overrides nothing
until `FaultyDisk.arm` turns it, for good, into one that asks the switch before every operation.  An armed
file is not memory-backed any more, since it may keep its caller waiting: whoever uses it must call it from
threads first (`pairsync.guest.guest.Guest.use_threads`), or a hang stops his event loop.

Any thread may call anything.  Invariants: a file asks the switch before it touches the disk, never while it
holds anything; a disk that was pulled (`FaultyDisk.pull`) never comes back for the files that were open then.
"""

from __future__ import annotations

import enum
import errno
import os
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

from pairsync.core.messages import Buffer
from pairsync.core.units import NS_PER_S
from pairsync.errors import BackendError
from pairsync.storage.blockfile import Allocation
from pairsync.storage.directory import GrowingFile, OsDirectory, OsGrowingFile

__all__ = ["DiskState", "FaultyDirectory", "FaultyDisk", "FaultyFile"]

_SECTOR_BYTES = 512  # the unit of ``st_blocks``, whatever the disk's own is


class DiskState(enum.Enum):
    """See the module."""

    OK = "ok"
    FAIL = "fail"
    HANG = "hang"
    FULL = "full"


class FaultyDisk:
    """The switch of one disk; see the module."""

    def __init__(self, state: DiskState = DiskState.OK) -> None:
        self._changed = threading.Condition()  # guards all that follows
        self._state = state
        self._armed = state is not DiskState.OK  # what is opened from now on asks before every operation
        self._files: weakref.WeakSet[FaultyFile] = weakref.WeakSet()  # that were opened and not closed
        self.slow_ns = 0
        """What every operation takes longer."""

    @property
    def state(self) -> DiskState:
        """What it does now."""
        return self._state

    def arm(self) -> None:
        """From now on every operation asks; the callers of the files are in threads."""
        with self._changed:
            self._armed = True
            for file in self._files:
                file.__class__ = _ArmedFile

    def set(self, state: DiskState) -> None:
        """Change the state, and let go of what hangs; arms the disk."""
        self.arm()
        with self._changed:
            self._state = state
            self._changed.notify_all()

    def pull(self) -> None:
        """The disk is taken out: it fails, and the files that are open now do so for ever."""
        with self._changed:
            for file in self._files:
                file.pulled = True
        self.set(DiskState.FAIL)

    def open(self, path: str | os.PathLike[str], *, alone: bool = True) -> FaultyFile:
        """Open a file that lies on this disk; as `OsFile`, and `BackendError` while the disk fails."""
        self.ask(os.fspath(path), "open")
        with self._changed:
            kind = _ArmedFile if self._armed else FaultyFile
            file = kind(path, alone=alone)
            file.disk = self
            self._files.add(file)
        return file

    def forget(self, file: FaultyFile) -> None:
        """It was closed: what hangs in it ends."""
        with self._changed:
            self._files.discard(file)
            self._changed.notify_all()

    def ask(
        self, path: str, doing: str, file: FaultyFile | None = None, *, wait: bool = True
    ) -> DiskState | None:
        """Before an operation: wait while the disk hangs, raise if it fails; the state that lets it pass.

        None instead of waiting, if ``wait`` is false.
        """
        if self.slow_ns:
            if not wait:
                return None
            time.sleep(self.slow_ns / NS_PER_S)
        with self._changed:
            while self._state is DiskState.HANG and (file is None or self._usable(file)):
                if not wait:
                    return None
                self._changed.wait()
            state = self._state
            gone = file is not None and file.pulled
        if state is DiskState.FAIL or gone:
            why = "the disk was replaced" if gone else os.strerror(errno.EIO)
            raise BackendError(f"{path}: {doing}: {why} (injected)", errno.EIO)
        return state

    def _usable(self, file: FaultyFile) -> bool:
        return file in self._files and not file.pulled


class FaultyFile(OsGrowingFile):
    """An `OsFile` that lies on a `FaultyDisk`, which makes it (`FaultyDisk.open`)."""

    disk: FaultyDisk | None = None
    """None until it is open."""
    pulled = False
    """The disk below was taken out while this was open."""

    def close(self) -> None:
        """As `BlockFile.close`; ends what hangs in it."""
        super().close()
        if self.disk is not None:
            self.disk.forget(self)


class _ArmedFile(FaultyFile):
    """A `FaultyFile` that asks its disk before every operation."""

    @property
    def memory_backed(self) -> bool:
        """False: it may keep its caller waiting."""
        return False

    @memory_backed.setter
    def memory_backed(self, found: bool) -> None:
        """What the file found out when it was opened does not count."""

    def read_into(self, offset: int, view: memoryview) -> None:
        """As `BlockFile.read_into`."""
        self._ask("read")
        super().read_into(offset, view)

    def read(self, offset: int, length: int) -> bytes:
        """As `BlockFile.read`."""
        self._ask("read")
        return super().read(offset, length)

    def read_nowait(self, offset: int, view: memoryview) -> bool:
        """As `BlockFile.read_nowait`; False where the disk would keep the caller waiting."""
        if self._ask("read", wait=False) is None:
            return False
        return super().read_nowait(offset, view)

    def _ask(self, doing: str, *, wait: bool = True) -> DiskState | None:
        return DiskState.OK if self.disk is None else self.disk.ask(self.path, doing, self, wait=wait)

    def _write(self, offset: int, buffers: Sequence[Buffer], *, durable: bool) -> None:
        state = self._ask("write")
        if state is DiskState.FULL:
            self._check_room(offset, sum(map(len, buffers)))
        super()._write(offset, buffers, durable=durable)

    def _flush(self) -> None:
        self._ask("flush")
        super()._flush()

    def zero(self, offset: int, length: int, *, keep_space: bool) -> None:
        """As `BlockFile.zero`."""
        state = self._ask("zero")
        if state is DiskState.FULL and keep_space:
            self._check_room(offset, length)
        super().zero(offset, length, keep_space=keep_space)

    def allocation(self, offset: int, length: int) -> Allocation:
        """As `BlockFile.allocation`."""
        self._ask("asking what is allocated")
        return super().allocation(offset, length)

    def hole_bytes(self, offset: int, length: int) -> int:
        """As `BlockFile.hole_bytes`."""
        self._ask("asking what is allocated")
        return super().hole_bytes(offset, length)

    def will_need(self, offset: int, length: int) -> None:
        """As `BlockFile.will_need`."""
        self._ask("read-ahead")
        super().will_need(offset, length)

    def resize(self, size_bytes: int) -> None:
        """As `GrowingFile.resize`; what is added is a hole and needs no room."""
        self._ask("resize")
        super().resize(size_bytes)

    def rename(self, name: Path) -> None:
        """As `OsFile.rename`."""
        self._ask("rename")
        super().rename(name)

    def _check_room(self, offset: int, length: int) -> None:
        """`BackendError` (ENOSPC) if the range is not all there already.

        What was reserved and never written seeks as a hole: a file that has all its space needs none.
        """
        if os.fstat(self._fd).st_blocks * _SECTOR_BYTES >= self.size_bytes:
            return
        if any(hole for _, hole in super().allocation(offset, length)):
            what = f"{self.path}: {length} bytes at {offset}: {os.strerror(errno.ENOSPC)} (injected)"
            raise BackendError(what, errno.ENOSPC)


class FaultyDirectory(OsDirectory):
    """A directory on a `FaultyDisk`, with all of its files."""

    def __init__(self, path: str | os.PathLike[str], disk: FaultyDisk) -> None:
        super().__init__(path)
        self._disk = disk

    def names(self, prefix: str) -> list[str]:
        """As `Directory.names`."""
        self._disk.ask(self.path, "listing")
        return super().names(prefix)

    def sync(self) -> None:
        """As `Directory.sync`."""
        self._disk.ask(self.path, "flush")
        super().sync()

    def create(self, name: str) -> FaultyFile:
        """As `Directory.create`."""
        self._disk.ask(self.path, f"making {name}")
        super().create(name).close()
        return self.open(name)

    def open(self, name: str, *, alone: bool = True) -> FaultyFile:
        """As `Directory.open`."""
        return self._disk.open(Path(self.path) / name, alone=alone)

    def publish(self, file: GrowingFile, name: str) -> None:
        """As `Directory.publish`."""
        self._disk.ask(self.path, f"renaming to {name}")
        super().publish(file, name)

    def remove(self, name: str) -> None:
        """As `Directory.remove`."""
        self._disk.ask(self.path, f"removing {name}")
        super().remove(name)
