"""The memory of a host as a voter: one small file, safe at every crash, that knows its copies.

::

    offset   bytes  what                                     module
    0        4 KiB  state, slot 0                            slots
    4 KiB    4 KiB  state, slot 1

A slot's payload is the identity of the file (`linux.identity_of`), 32 bytes, and the state as ``wire``
encodes it.  Both slots of a file hold the same, and are written once: **each state has a file of its own**,
which takes the name of the one before.  So a file that was restored from a backup, or copied, has another
identity than it says, and so has an older state that was put back into the file that is there: what was
promised since is not known, so it is the memory of another voter (DESIGN rule 4).  `AcceptorFile.open` says
so (``moved``), and whoever opens it draws a new incarnation.  What goes unnoticed: a whole file system that
was put back (a snapshot of a virtual machine, an image of a disk).

A file that is missing or **damaged** is a memory that was lost: it is begun anew, as that of another voter
(`AcceptorFile.open_or_begin`).  A host that did not start would serve nobody any better.

A new file needs space, and a full disk must not keep a voter from voting.  So the next file is made ahead,
right after the one before it was given back (``.new``).
"""

from __future__ import annotations

import errno
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from pairsync.core.units import KIB
from pairsync.errors import BackendError, ConfigError, MetadataError

from .linux import same_file
from .osfile import OsFile, backend_error
from .slots import DualSlot

__all__ = ["STATE_BYTES_MAX", "AcceptorFile"]

_log = logging.getLogger("pairsync.storage")

_SLOT_BYTES: Final = 4 * KIB
_KIND: Final = 3
_IDENTITY_BYTES: Final = 32

STATE_BYTES_MAX: Final = 2 * KIB
"""Of an encoded state: two grants of three voters each take 600 bytes."""


class AcceptorFile:
    """The open file; made by `create` or `open`.  All methods block."""

    def __init__(self, file: OsFile, state: bytes, *, moved: bool) -> None:
        self._file = file
        self._next: OsFile | None = None  # made ahead, all its space taken; None: there was none to be had
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
        file = _blank(target)
        try:
            _fill(file, state)
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
            identity = file.identity()
        except BaseException:
            file.close()
            raise
        written, state = payload[:_IDENTITY_BYTES], payload[_IDENTITY_BYTES:]
        opened = cls(file, state, moved=not same_file(written, identity))
        opened._make_next()
        return opened

    @classmethod
    def open_or_begin(cls, path: str | os.PathLike[str], state: bytes) -> Self:
        """Open it, with ``state`` if it is missing or damaged; what is damaged is kept beside it.

        Errors as `open`.  What a newer version wrote is not damaged, nor what is larger than any register
        memory: a file of another kind, by a mistake of whoever named it.
        """
        target = Path(path)
        if target.exists():
            try:
                return cls.open(target)
            except MetadataError as error:
                if error.errno == errno.EPROTONOSUPPORT or target.stat().st_size > 2 * _SLOT_BYTES:
                    raise
                _set_aside(target, str(error))
        cls.create(target, state)
        return cls.open(target)

    @classmethod
    def peek(cls, path: str | os.PathLike[str]) -> bytes | None:
        """What is stored there; None if it is missing or damaged.  `BusyError` or `BackendError`."""
        if not Path(path).exists():
            return None
        try:
            file = cls.open(path)
        except MetadataError:
            return None
        file.close()
        return file.state

    def store(self, state: bytes) -> None:
        """Replace the state; durable on return, `BackendError` if it is not."""
        target = Path(self._file.path)
        fresh, self._next = self._next or _blank(target), None
        try:
            _fill(fresh, state)
            fresh.rename(target)
        except BaseException:
            fresh.close()
            raise
        self._file.close()
        self._file, self.state, self.moved = fresh, state, False
        self._make_next()

    def _make_next(self) -> None:
        with suppress(BackendError):  # `store` tries again, and says so
            self._next = _blank(Path(self._file.path))

    def close(self) -> None:
        """Give the file back; idempotent."""
        self._file.close()
        if self._next is not None:
            with suppress(OSError):  # whoever comes next removes it
                Path(self._next.path).unlink()
            self._next.close()
            self._next = None


def _set_aside(target: Path, why: str) -> None:
    """Give it another name, for whoever wants to know what became of it."""
    aside = target.with_name(target.name + ".damaged")
    try:
        target.rename(aside)
    except OSError as error:
        raise backend_error(f"{why}; renaming it", error) from error
    _log.error("%s; kept as %s, and begun anew: this host is another voter now", why, aside.name)


def _blank(target: Path) -> OsFile:
    """An empty file beside ``target`` with all its space, never used before."""
    aside = target.with_name(target.name + ".new")
    try:
        aside.unlink(missing_ok=True)
    except OSError as error:
        raise backend_error(f"{aside}: removing what was left", error) from error
    file = OsFile(aside, create=True)
    try:
        file.resize(2 * _SLOT_BYTES)
        file.write(0, (bytes(2 * _SLOT_BYTES),))
    except BaseException:
        file.close()
        raise
    return file


def _fill(file: OsFile, state: bytes) -> None:
    """Make it hold ``state``, durably."""
    _slots(file).format(file.identity() + state)
    file.flush()


def _slots(file: OsFile) -> DualSlot:
    if file.size_bytes < 2 * _SLOT_BYTES:
        raise MetadataError(f"{file.path}: damaged: {file.size_bytes} bytes are no register memory")
    return DualSlot(file, what="register memory", kind=_KIND, offset=0, slot_bytes=_SLOT_BYTES, mirrored=True)
