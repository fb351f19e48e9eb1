"""A device that keeps digests of its blocks: what is applied to it is noted, in the same job.

So a digest belongs to the content that was written, whatever the disk makes of it later.  Where the table
fails, the data goes on: a table that could not be saved says durably that nothing in it is known, until it
can be saved again.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from pairsync.core.messages import OpKind, WriteOp
from pairsync.core.questions import ANSWER_NODES_MAX, BAD_BLOCKS_MAX, BadBlock, Examined
from pairsync.core.units import BLOCK_BYTES, MIB, extent_of
from pairsync.errors import BackendError

from .device import Device, WrappedDevice
from .digests import DigestTable

__all__ = ["DigestedDevice"]

READ_BYTES_MAX: Final = 4 * MIB
"""Read for one answer, a millisecond from memory: what the guest writes meanwhile waits behind it."""

PAGES_MAX: Final = 2048
"""Pages of leaves looked at for one answer (4 GiB of volume): some 10 ms."""


class DigestedDevice(WrappedDevice):
    """``device`` with its table; owns both.  See the module."""

    def __init__(self, device: Device, table: DigestTable) -> None:
        super().__init__(device)
        self._table = table

    @property
    def may_block(self) -> bool:
        """As `Device.may_block`."""
        return self._device.may_block or self._table.may_block

    def apply(self, ops: Sequence[WriteOp]) -> None:
        """As `Device.apply`."""
        try:
            self._device.apply(ops)
        except BackendError:
            self._forget(ops)
            raise
        self._table.note(self._device, ops)

    def _forget(self, ops: Sequence[WriteOp]) -> None:
        """They were not applied, or in part: what their blocks hold is unknown.

        But not where the same was to be written that is recorded (the repair of a bad block): that stays, or
        what is wrong there would be taken for right when it is read next.
        """
        extents = [extent_of(op.offset, op.length) for op in ops]
        doubtful = set(extents)
        ascending = sorted(extents)
        if all(one.stop <= other.start for one, other in pairwise(ascending)):
            same = {each for op, each in zip(ops, extents, strict=True) if self._is_recorded(op)}
            doubtful -= same
        self._table.forget(sorted(doubtful))

    def _is_recorded(self, op: WriteOp) -> bool:
        """Whether the op would write what its blocks, all of it whole, are recorded to hold."""
        if op.length > READ_BYTES_MAX or op.offset % BLOCK_BYTES or op.kind not in {OpKind.DATA, OpKind.ZERO}:
            return False
        end = op.offset + op.length
        if end % BLOCK_BYTES and end != self.size_bytes:
            return False
        try:
            with memoryview(bytes(op.length) if op.data is None else op.data) as view:
                return not self._table.mismatches(op.offset, view)
        except BackendError:
            return False

    def extend(self, size_bytes: int) -> None:
        """As `Device.extend`."""
        self._device.extend(size_bytes)
        self._table.extend(size_bytes)

    def enlarge(self, size_bytes: int) -> None:
        """As `Device.enlarge`."""
        end = self.size_bytes
        self._device.enlarge(size_bytes)
        self._table.resize(size_bytes)
        self._table.note(self._device, [WriteOp(OpKind.ZERO, end, size_bytes - end)])

    def begin_life(self, *, active: bool) -> None:
        """As `Device.begin_life`.

        What an earlier process of the active host has left in the page cache is made durable first: it will
        be read and become a digest, and could still be lost when no write-intent log tells of it any more.
        """
        if active:
            self._device.flush()
        self._table.begin_life(active=active)

    def end_life(self) -> None:
        """As `Device.end_life`."""
        self._table.end_life()

    def seen(self, parts: Sequence[tuple[int, memoryview]]) -> Sequence[BadBlock]:
        """As `Device.seen`."""
        return self._table.compare(parts)

    def mismatches(self, offset: int, view: memoryview) -> list[int]:
        """As `Device.mismatches`."""
        return self._table.mismatches(offset, view)

    def save_digests(self, milestone: int | None = None) -> None:
        """As `Device.save_digests`."""
        try:
            self._table.save(milestone)
        except BackendError:
            self._table.distrust()

    def examine(self, level: int, first: int, stop: int, *, read: bool) -> Examined:
        """As `Device.examine`."""
        found = self._table.examine(
            self._device,
            level,
            first,
            min(stop, first + ANSWER_NODES_MAX),
            read=read,
            read_bytes_max=READ_BYTES_MAX,
            pages_max=PAGES_MAX,
        )
        if not read and found.bad:
            bad = found.bad[0]
            raise BackendError(f"{self.path}: block {bad.block} cannot be read")
        return Examined(found.digests, [each.block for each in found.bad[:BAD_BLOCKS_MAX]])

    def hole_bytes(self, offset: int, length: int) -> int:
        """As `Device.hole_bytes`: what is recorded to hold anything has to be read, and compared."""
        hole = self._device.hole_bytes(offset, length)
        return self._table.zero_bytes(offset, hole) if hole else 0

    def close(self) -> None:
        """As `Device.close`."""
        self._device.close()
        self._table.close()
