"""The narrow door to the files beside a volume whose number and size change: a `Directory`.

Overlays come and go, grow and are replaced as a whole.  They do it through this door, so that the same code
runs over a real directory (`OsDirectory`) and over a simulated medium (`pairsync.testing.simfiles`).

**What is promised.**  `Directory.create`, `publish` and `remove` are durable on return, each by itself and
all or nothing: after a crash inside one of them the directory is as before it or as after it.  That says
nothing of a file's content: who publishes a file flushes it first.  A size set by `GrowingFile.resize` is as
durable as what is written: a crash may bring an earlier size back until the file is flushed, and what
was added reads as zero.

All methods block; one thread at a time.
"""

from __future__ import annotations

import abc
import os
import threading
from contextlib import suppress
from pathlib import Path

from pairsync.errors import BackendError, ConfigError

from .blockfile import BlockFile
from .osfile import OsFile, backend_error, sync_directory

__all__ = ["Directory", "GrowingFile", "OsDirectory", "OsGrowingFile"]


class GrowingFile(BlockFile):
    """A `BlockFile` whose size can be set."""

    @abc.abstractmethod
    def resize(self, size_bytes: int) -> None:
        """Set the size; what is added reads as zero.  Durable with the next flush or durable write."""

    def release(self) -> None:
        """`close` a file that was removed.  Its space comes back in a while: nobody waits for that."""
        self.close()


class Directory(abc.ABC):
    """A place for files that belong together."""

    path: str
    """For messages."""

    @abc.abstractmethod
    def names(self, prefix: str) -> list[str]:
        """Names of the files that begin so, sorted."""

    @abc.abstractmethod
    def sync(self) -> None:
        """Make durable what is found in it: a killed process may have left a change half done."""

    @abc.abstractmethod
    def create(self, name: str) -> GrowingFile:
        """Make an empty file and open it alone; `ConfigError` if there is one of that name."""

    @abc.abstractmethod
    def open(self, name: str, *, alone: bool = True) -> GrowingFile:
        """Open a file alone: `BusyError` if it is in use, `BackendError` if there is none.

        With ``alone`` False it is only to be read, beside whoever has it open or opens it.
        """

    @abc.abstractmethod
    def publish(self, file: GrowingFile, name: str) -> None:
        """Give an open file of this directory another name; a file that had it is gone."""

    @abc.abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, open or not; nothing happens if there is none."""


class OsGrowingFile(OsFile, GrowingFile):
    """An `OsFile` that was opened through a directory."""

    def release(self) -> None:
        """As `GrowingFile.release`: to free 1 GiB took 0.15 s, on tmpfs and on ext4."""
        spare = None
        with suppress(OSError):  # closed already, or too many are open: then it takes its time
            spare = os.dup(self._fd)
        self.close()
        if spare is not None:
            threading.Thread(target=os.close, args=(spare,), name="pairsync-release", daemon=True).start()


class OsDirectory(Directory):
    """A directory of the operating system; it exists."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._where = Path(path).absolute()
        self.path = str(self._where)

    def names(self, prefix: str) -> list[str]:
        """As `Directory.names`."""
        try:
            return sorted(each.name for each in self._where.iterdir() if each.name.startswith(prefix))
        except OSError as error:
            raise backend_error(f"{self.path}: listing the directory", error) from error

    def sync(self) -> None:
        """As `Directory.sync`."""
        sync_directory(self._where / "*")  # of whatever name: it is the parent that is synced

    def create(self, name: str) -> OsGrowingFile:
        """As `Directory.create`."""
        where = self._where / name
        if os.path.lexists(where):
            raise ConfigError(f"{where}: exists already; nothing was changed")
        file = OsGrowingFile(where, create=True)
        try:
            sync_directory(where)
        except BaseException:
            file.close()
            raise
        return file

    def open(self, name: str, *, alone: bool = True) -> OsGrowingFile:
        """As `Directory.open`."""
        return OsGrowingFile(self._where / name, alone=alone)

    def publish(self, file: GrowingFile, name: str) -> None:
        """As `Directory.publish`."""
        if not isinstance(file, OsGrowingFile):
            raise BackendError(f"{file.path}: no file of {self.path}")
        file.rename(self._where / name)

    def remove(self, name: str) -> None:
        """As `Directory.remove`."""
        where = self._where / name
        try:
            where.unlink(missing_ok=True)
        except OSError as error:
            raise backend_error(f"{where}: removing it", error) from error
        sync_directory(where)
