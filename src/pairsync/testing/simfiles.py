"""A directory of a simulated medium: files that are made, grow, are renamed and removed, and crash.

`SimDirectory` is a ``storage.directory.Directory`` over a `SimMedium`.  What changes the directory is one
step: a cut at that step finds the directory as it was before.  A file that was renamed takes its undecided
sectors along, so content that was not flushed before is still lost with the power.

A file's size follows what was set at once, and survives.  A real file may come back shorter where this one
comes back with zeroes at its end; who reads a growing file treats the two alike.

Every change of the directory and of a size asks the medium's ``fault`` as a `SimAction.CHANGE` of the file.
"""

from __future__ import annotations

import errno
import os

from pairsync.errors import BackendError, ClosedError, ConfigError, InternalError
from pairsync.storage.directory import Directory, GrowingFile

from .disks import SECTOR_BYTES, Fault, SimAction, SimFile, SimMedium, SimOperation, _Platter

__all__ = ["SimDirectory", "SimGrowingFile"]


def _change(medium: SimMedium, name: str, what: str, size_bytes: int = 0) -> None:
    fault = medium.strike(SimOperation(name, SimAction.CHANGE, 0, size_bytes, durable=True))
    if fault is not None:
        raise BackendError(f"{name}: {what}: {os.strerror(fault.errno)}", fault.errno)
    medium.advance()


class SimGrowingFile(SimFile, GrowingFile):
    """A `SimFile` that was opened through a directory, and may be renamed or replaced under its name."""

    def __init__(self, medium: SimMedium, name: str, *, alone: bool = True) -> None:
        super().__init__(medium, name)
        self._platter = medium.platter(name, self._life)
        self._alone = alone

    def _begin(
        self, action: SimAction, offset: int, length: int, *, durable: bool = False
    ) -> tuple[_Platter, Fault | None]:
        begun = super()._begin(action, offset, length, durable=durable)
        if begun[0] is not self._platter:
            raise BackendError(f"{self.path}: replaced by another file while it was open", errno.ESTALE)
        return begun

    def close(self) -> None:
        """As `BlockFile.close`."""
        self._closed = True
        if self._alone and self._life == self.medium.life:
            self._platter.is_open = False

    def resize(self, size_bytes: int) -> None:
        """As `GrowingFile.resize`."""
        if self._closed:
            raise ClosedError(f"{self.path}: resize after it was closed")
        if size_bytes % SECTOR_BYTES:
            raise InternalError(f"{self.path}: {size_bytes} bytes are not whole sectors")
        platter = self.medium.platter(self.path, self._life)
        _change(self.medium, self.path, f"setting the size to {size_bytes}", size_bytes)
        platter.live[size_bytes:] = bytes(max(size_bytes - len(platter.live), 0))
        for sector in [sector for sector in platter.older if sector * SECTOR_BYTES >= size_bytes]:
            del platter.older[sector]
        self.size_bytes = size_bytes


class SimDirectory(Directory):
    """All files of a medium whose names begin with ``prefix``, which stands for the directory's name."""

    def __init__(self, medium: SimMedium, prefix: str = "") -> None:
        self.medium = medium
        self.path = prefix

    def names(self, prefix: str) -> list[str]:
        """As `Directory.names`."""
        wanted = self.path + prefix
        return [name.removeprefix(self.path) for name in self.medium.names() if name.startswith(wanted)]

    def sync(self) -> None:
        """Nothing to do: every change is durable at once."""

    def create(self, name: str) -> SimGrowingFile:
        """As `Directory.create`."""
        if self.path + name in self.medium.names():
            raise ConfigError(f"{self.path}{name}: exists already; nothing was changed")
        _change(self.medium, self.path + name, "creating it")
        self.medium.create(self.path + name, 0)
        return self.open(name)

    def open(self, name: str, *, alone: bool = True) -> SimGrowingFile:
        """As `Directory.open`."""
        where = self.path + name
        return SimGrowingFile(self.medium, self.medium.claim(where) if alone else where, alone=alone)

    def publish(self, file: GrowingFile, name: str) -> None:
        """As `Directory.publish`."""
        _change(self.medium, file.path, f"renaming to {name}")
        self.medium.rename(file.path, self.path + name)
        file.path = self.path + name

    def remove(self, name: str) -> None:
        """As `Directory.remove`."""
        if self.path + name in self.medium.names():
            _change(self.medium, self.path + name, "removing it")
            self.medium.remove(self.path + name)
