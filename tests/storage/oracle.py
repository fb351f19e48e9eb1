"""Batches of ops for a device, and the bytes that have to come of them."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from pairsync.core.messages import OpKind, WriteOp
from pairsync.storage.device import Device

__all__ = ["apply_to_oracle", "op_batches", "read_all"]


@st.composite
def op_batches(draw: st.DrawFn, size: int) -> list[WriteOp]:
    """Batches for a device of that size, in which neighbours touch often."""
    ops: list[WriteOp] = []
    at = 0
    for _ in range(draw(st.integers(1, 8))):
        if draw(st.booleans()):
            at = draw(st.integers(0, size))
        length = min(draw(st.sampled_from([0, 1, 100, 511, 512, 4096, 5000])), size - at)
        kind, fill, fua = draw(st.sampled_from(OpKind)), draw(st.integers(1, 255)), draw(st.booleans())
        ops.append(WriteOp(kind, at, length, bytes([fill]) * length if kind is OpKind.DATA else None, fua))
        at += length
    return ops


def apply_to_oracle(oracle: bytearray, ops: Sequence[WriteOp]) -> None:
    """What the ops do."""
    for op in ops:
        oracle[op.offset : op.offset + op.length] = op.data if op.data is not None else bytes(op.length)


def read_all(device: Device) -> bytes:
    """All that the device holds."""
    return device.read(0, device.size_bytes)
