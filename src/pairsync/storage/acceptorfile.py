"""The memory of a host as a voter: one small file, safe at every crash, that knows its copies.

::

    offset   bytes  what                                     module
    0        4 KiB  state, slot 0                            slots
    4 KiB    4 KiB  state, slot 1

A slot's payload is the identity of the file (`linux.file_identity`), 32 bytes, and the state as ``wire``
encodes it.  A file that was restored from a backup, or copied, has another identity than it says: what it
has promised since is not known, so it is the memory of another voter (DESIGN rule 4).  `AcceptorFile.open`
says so (``moved``), and whoever opens it draws a new incarnation.

The value is mirrored: no later damage to one slot may bring an older promise back.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from pairsync.core.units import KIB
from pairsync.errors import ConfigError

from .linux import file_identity
from .osfile import OsFile
from .slots import DualSlot

__all__ = ["STATE_BYTES_MAX", "AcceptorFile"]

_SLOT_BYTES: Final = 4 * KIB
_KIND: Final = 3
_IDENTITY_BYTES: Final = 32

STATE_BYTES_MAX: Final = 2 * KIB
"""Of an encoded state: two grants of three voters each take 600 bytes."""


class AcceptorFile:
    """The open file; made by `create` or `open`.  All methods block."""

    def __init__(self, file: OsFile, slots: DualSlot, identity: bytes, state: bytes, *, moved: bool) -> None:
        self._file = file
        self._slots = slots
        self._identity = identity
        self.state = state
        """What was last stored."""
        self.moved = moved
        """The file is a copy, or was restored: its memory is not to be believed, until the next `store`."""

    @property
    def path(self) -> str:
        """The file, for messages."""
        return self._file.path

    @property
    def may_block(self) -> bool:
        """Whether a call can wait for a disk."""
        return not self._file.memory_backed

    @classmethod
    def create(cls, path: str | os.PathLike[str], state: bytes) -> None:
        """Make the file, durable on return; `ConfigError` if it is there already, or `BackendError`."""
        target = Path(path)
        if target.exists():
            raise ConfigError(f"{target}: exists already; nothing was changed")
        aside = target.with_name(target.name + ".new")
        with suppress(FileNotFoundError):
            aside.unlink()
        file = OsFile(aside, create=True)
        try:
            file.resize(2 * _SLOT_BYTES)
            _slots(file).format(file_identity(str(aside)) + state)
            file.flush()
            file.rename(target)
        finally:
            file.close()

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open it for this process alone; `BusyError`, `MetadataError` or `BackendError`."""
        file = OsFile(path)
        try:
            slots = _slots(file)
            payload, _ = slots.load()
            slots.settle()
            identity = file_identity(file.path)
        except BaseException:
            file.close()
            raise
        written, state = payload[:_IDENTITY_BYTES], payload[_IDENTITY_BYTES:]
        return cls(file, slots, identity, state, moved=written != identity)

    def store(self, state: bytes) -> None:
        """Replace the state; durable on return, `BackendError` if it is not."""
        self._slots.store(self._identity + state)
        self.state = state
        self.moved = False

    def close(self) -> None:
        """Give the file back; idempotent."""
        self._file.close()


def _slots(file: OsFile) -> DualSlot:
    return DualSlot(file, what="register memory", kind=_KIND, offset=0, slot_bytes=_SLOT_BYTES, mirrored=True)
