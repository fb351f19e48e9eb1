"""The narrow door between this room and an operating system: a `BlockFile`.

`RawFile` and `MetadataStore` do all their input and output through it, so that the same code runs over real
files (`OsFile`) and over a simulated medium whose power can be cut (`pairsync.testing.disks`).

The base class owns the one rule that every implementation needs.  **A flush that failed is never retried**:
Linux drops the dirty pages of a failed write-back and reports the error once, so a second ``fdatasync``
would say "durable" about data that is gone.  After such a failure the file accepts no durable operation any
more (`sound` is False); what is known is only what the last good flush covered.

Running out of space while *placing* data is no such failure, and space can be made.  A durable write tells
the two apart by writing again without the durability: if that fails too, it was the placing.

All methods block; one thread at a time, except that reads may run beside anything.
"""

from __future__ import annotations

import abc
import errno
import os
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from pairsync.core.messages import Buffer
from pairsync.errors import BackendError

__all__ = ["ALLOCATION_RUNS_MAX", "Allocation", "BlockFile", "OpenFile", "Resizable", "enlarge_file"]

Allocation = list[tuple[int, bool]]
"""Runs of a range in order: length in bytes, and whether it is a hole (reads as zero, holds no space)."""

ALLOCATION_RUNS_MAX = 8192
"""Runs that one question about allocation answers: a finely interleaved file would give millions; whoever
wants more asks again behind the last one (NBD's block status works that way too)."""

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class BlockFile(abc.ABC):
    """A file or block device, opened by nobody else; its size changes only where it is `Resizable`."""

    path: str
    """Absolute, for messages."""
    size_bytes: int
    memory_backed: bool
    """No access waits for a disk: it may be called from an event loop."""

    def __init__(self) -> None:
        self._lost: BackendError | None = None  # set once: why durability cannot be promised any more

    @property
    def sound(self) -> bool:
        """False after a failed flush: nothing written since the last good one is known to be durable."""
        return self._lost is None

    def write(self, offset: int, buffers: Sequence[Buffer], *, durable: bool = False) -> None:
        """Write the buffers one behind the other; ``durable``: on stable storage on return.

        Raises `BackendError`: then any part of the range may have been written.
        """
        if not durable:
            self._write(offset, buffers, durable=False)
            return
        self._check_sound()
        try:
            self._write(offset, buffers, durable=True)
        except BackendError as error:
            if error.errno in _NO_SPACE:
                # Without room to place the data this raises the same again, and the file stays sound.
                self._write(offset, buffers, durable=False)
            self._lost = error
            raise

    def flush(self) -> None:
        """Make durable all that was written."""
        self._check_sound()
        try:
            self._flush()
        except BackendError as error:
            self._lost = error
            raise

    def _check_sound(self) -> None:
        if self._lost is not None:
            raise BackendError(
                f"{self.path}: an earlier flush failed ({self._lost}); "
                "what was written since the last good one may be lost",
                self._lost.errno,
            ) from self._lost

    @abc.abstractmethod
    def _write(self, offset: int, buffers: Sequence[Buffer], *, durable: bool) -> None: ...

    @abc.abstractmethod
    def _flush(self) -> None: ...

    @abc.abstractmethod
    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` from ``offset``; `BackendError` also where the file ends too early."""

    @abc.abstractmethod
    def read_nowait(self, offset: int, view: memoryview) -> bool:
        """As `read_into` if no disk has to be waited for, else False (``view`` is then undefined)."""

    @abc.abstractmethod
    def zero(self, offset: int, length: int, *, keep_space: bool) -> None:
        """Make the range read as zero; its space is given back, or kept if ``keep_space``."""

    @abc.abstractmethod
    def allocation(self, offset: int, length: int) -> Allocation:
        """The range as runs of data and holes; covers less than ``length`` after `ALLOCATION_RUNS_MAX`."""

    @abc.abstractmethod
    def hole_bytes(self, offset: int, length: int) -> int:
        """How much of the range, from its beginning, is a hole."""

    @abc.abstractmethod
    def will_need(self, offset: int, length: int) -> None:
        """Advise that the range will be read soon."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give the file back; idempotent.  Nothing is flushed."""

    def read(self, offset: int, length: int) -> bytes:
        """`read_into` a buffer of its own."""
        buffer = bytearray(length)
        with memoryview(buffer) as view:
            self.read_into(offset, view)
        return bytes(buffer)


OpenFile: TypeAlias = Callable[[str | os.PathLike[str]], BlockFile]
"""Opens what exists, for this process alone (``OsFile``); errors as there."""


@runtime_checkable
class Resizable(Protocol):
    """A `BlockFile` whose size can be set, such as `OsFile`."""

    def resize(self, size_bytes: int) -> None:
        """Set the size; what is added reads as zero.  Durable with the next flush or durable write.

        `BackendError` if there is no room, or a device is smaller than that.
        """


def enlarge_file(file: BlockFile, size_bytes: int) -> None:
    """Let the file have that size at least; `BackendError` where it cannot."""
    if file.size_bytes >= size_bytes:
        return
    if not isinstance(file, Resizable):
        raise BackendError(f"{file.path}: has {file.size_bytes} bytes and cannot be enlarged to {size_bytes}")
    file.resize(size_bytes)
