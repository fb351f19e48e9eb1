"""What a volume's data lies on: a `Device`.

All methods block and are called from one lane's worker thread, or inline where `Device.may_block` is False
(see ``storage.lane``).  Ranges are bytes, need no alignment, and lie within the device: whoever calls has
checked them against the volume, so a range outside is our own bug (`InternalError`).

A failed operation raises `BackendError` with the errno and leaves any part of its range written; batches are
applied in order, so what came before the failed one is there.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

from pairsync.core.messages import WriteOp
from pairsync.core.questions import BadBlock, Examined
from pairsync.errors import InternalError

from .blockfile import Allocation

__all__ = ["Device", "WrappedDevice"]


class Device(abc.ABC):
    """A volume's data: random access, and a size that grows in two steps (`extend`, `enlarge`)."""

    @property
    @abc.abstractmethod
    def path(self) -> str:
        """The name, for messages."""

    @property
    @abc.abstractmethod
    def size_bytes(self) -> int:
        """Size of the volume."""

    @property
    @abc.abstractmethod
    def may_block(self) -> bool:
        """Whether an operation can wait for a disk; False only where the data lies in memory."""

    @abc.abstractmethod
    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` with the bytes from ``offset`` on."""

    @abc.abstractmethod
    def read(self, offset: int, length: int) -> bytes:
        """`read_into` a buffer of its own."""

    @abc.abstractmethod
    def read_nowait(self, offset: int, view: memoryview) -> bool:
        """As `read_into` if no disk has to be waited for; else False, and ``view`` is undefined."""

    @abc.abstractmethod
    def apply(self, ops: Sequence[WriteOp]) -> None:
        """Apply the ops in this order; those with ``fua`` are durable on return."""

    @abc.abstractmethod
    def flush(self) -> None:
        """Make durable all that was applied.  After a failure it fails for good: see `BlockFile`."""

    @abc.abstractmethod
    def extend(self, size_bytes: int) -> None:
        """Get ready for a volume of that size: what lies behind the present end reads as zero, durably.

        The size stays what it is.  `BackendError` where there is no room; nothing that counts has changed.
        """

    @abc.abstractmethod
    def enlarge(self, size_bytes: int) -> None:
        """The volume has that size, as its metadata say; after `extend`, between two applies."""

    def begin_life(self, *, active: bool) -> None:  # noqa: B027 - for who keeps digests, as the next few
        """A host takes the device into use; before the first apply."""

    def end_life(self) -> None:  # noqa: B027
        """It was given up in order; after the last apply."""

    def seen(self, parts: Sequence[tuple[int, memoryview]]) -> Sequence[BadBlock]:  # noqa: ARG002 - as above
        """Between two applies these offsets were read, ascending, and hold that; what of it is not what its
        digest says, where digests are kept."""
        return ()

    def mismatches(self, offset: int, view: memoryview) -> list[int]:
        """Blocks within a range just read, in any thread, whose content is perhaps not what is recorded.

        A write may have come between.  `BackendError` if that cannot be known; only where digests are kept.
        """
        raise InternalError(f"{self.path}: digests are not kept ({len(view)} bytes at {offset})")

    def save_digests(self, milestone: int | None = None) -> None:  # noqa: B027
        """Make durable the digests of all that was applied, and with them what the active host has given."""

    def examine(self, level: int, first: int, stop: int, *, read: bool) -> Examined:
        """The digests of these nodes, see `core.effects.Examine`; only where they are kept."""
        raise InternalError(f"{self.path}: digests {first}..{stop} of level {level} are not kept ({read=})")

    @abc.abstractmethod
    def allocation(self, offset: int, length: int) -> Allocation:
        """The range as runs of data and holes, in order; may stop early, see `ALLOCATION_RUNS_MAX`."""

    @abc.abstractmethod
    def hole_bytes(self, offset: int, length: int) -> int:
        """How much of the range, from its beginning, is a hole; 0 where it begins with data.

        Cheap where `allocation` is not: it never has to find the end of the data (a walk over every page of
        a file on tmpfs).
        """

    @abc.abstractmethod
    def cache(self, offset: int, length: int) -> None:
        """Advise that the range will be read soon."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give the device back; idempotent.  Nothing is flushed."""


class WrappedDevice(Device):
    """A device in front of another one, which it owns: what it does not do itself, that one does."""

    def __init__(self, device: Device) -> None:
        self._device = device

    @property
    def path(self) -> str:
        """As `Device.path`."""
        return self._device.path

    @property
    def size_bytes(self) -> int:
        """As `Device.size_bytes`."""
        return self._device.size_bytes

    @property
    def may_block(self) -> bool:
        """As `Device.may_block`."""
        return self._device.may_block

    def read_into(self, offset: int, view: memoryview) -> None:
        """As `Device.read_into`."""
        self._device.read_into(offset, view)

    def read(self, offset: int, length: int) -> bytes:
        """As `Device.read`."""
        return self._device.read(offset, length)

    def read_nowait(self, offset: int, view: memoryview) -> bool:
        """As `Device.read_nowait`."""
        return self._device.read_nowait(offset, view)

    def apply(self, ops: Sequence[WriteOp]) -> None:
        """As `Device.apply`."""
        self._device.apply(ops)

    def flush(self) -> None:
        """As `Device.flush`."""
        self._device.flush()

    def extend(self, size_bytes: int) -> None:
        """As `Device.extend`."""
        self._device.extend(size_bytes)

    def enlarge(self, size_bytes: int) -> None:
        """As `Device.enlarge`."""
        self._device.enlarge(size_bytes)

    def begin_life(self, *, active: bool) -> None:
        """As `Device.begin_life`."""
        self._device.begin_life(active=active)

    def end_life(self) -> None:
        """As `Device.end_life`."""
        self._device.end_life()

    def seen(self, parts: Sequence[tuple[int, memoryview]]) -> Sequence[BadBlock]:
        """As `Device.seen`."""
        return self._device.seen(parts)

    def mismatches(self, offset: int, view: memoryview) -> list[int]:
        """As `Device.mismatches`."""
        return self._device.mismatches(offset, view)

    def save_digests(self, milestone: int | None = None) -> None:
        """As `Device.save_digests`."""
        self._device.save_digests(milestone)

    def examine(self, level: int, first: int, stop: int, *, read: bool) -> Examined:
        """As `Device.examine`."""
        return self._device.examine(level, first, stop, read=read)

    def allocation(self, offset: int, length: int) -> Allocation:
        """As `Device.allocation`."""
        return self._device.allocation(offset, length)

    def hole_bytes(self, offset: int, length: int) -> int:
        """As `Device.hole_bytes`."""
        return self._device.hole_bytes(offset, length)

    def cache(self, offset: int, length: int) -> None:
        """As `Device.cache`."""
        self._device.cache(offset, length)

    def close(self) -> None:
        """As `Device.close`."""
        self._device.close()
