"""The disk in memory against a plain ``bytearray``, its promises and its faults."""

from __future__ import annotations

import errno

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from pairsync.core.messages import OpKind, WriteOp
from pairsync.core.units import TIB
from pairsync.errors import BackendError
from pairsync.nbd.constants import CONTEXT_ALLOCATION, STATE_HOLE, STATE_ZERO
from pairsync.testing.nbd_memory import CONTEXT_DIRTY, MemoryExport

SIZE = 40_000  # not a whole number of blocks
HOLE = STATE_HOLE | STATE_ZERO


def _status(
    disk: MemoryExport, context: str, offset: int, length: int, most: int = 99
) -> list[tuple[int, int]]:
    async def ask() -> list[tuple[int, int]]:
        return await disk.block_status(context, offset, length, most)

    return trio.run(ask)


@st.composite
def some_ops(draw: st.DrawFn) -> list[WriteOp]:
    ops = []
    for _ in range(draw(st.integers(0, 12))):
        offset = draw(st.integers(0, SIZE - 1))
        length = draw(st.integers(1, SIZE - offset))
        kind = draw(st.sampled_from(OpKind))
        data = bytes([draw(st.integers(1, 255))]) * length if kind is OpKind.DATA else None
        ops.append(WriteOp(kind, offset, length, data, draw(st.booleans())))
    return ops


@given(ops=some_ops())
def test_it_holds_what_a_bytearray_holds(ops: list[WriteOp]) -> None:
    disk, oracle = MemoryExport("vda", SIZE), bytearray(SIZE)
    results: list[object] = []
    for op in ops:
        oracle[op.offset : op.offset + op.length] = op.data or bytes(op.length)
        disk.submit([op], results.append)
    assert results == [None] * len(ops)
    into = memoryview(bytearray(SIZE))
    assert disk.read_nowait(0, into)
    assert into == oracle
    position = 0
    for length, flags in _status(disk, CONTEXT_ALLOCATION, 0, SIZE):
        if flags & STATE_ZERO:
            assert not any(oracle[position : position + length])
        position += length
    assert position == SIZE
    touched = {
        block for op in ops for block in range(op.offset // 4096, (op.offset + op.length - 1) // 4096 + 1)
    }
    position = 0
    for length, flags in _status(disk, CONTEXT_DIRTY, 0, SIZE):
        assert all(
            (block in touched) == bool(flags)
            for block in range(position // 4096, (position + length) // 4096)
        )
        position += length
    disk.close()


def test_flush_covers_what_was_done() -> None:
    disk = MemoryExport("vda", SIZE)
    disk.submit([WriteOp(OpKind.TRIM, 0, 10), WriteOp(OpKind.ZERO, 0, 10)], lambda _: None)
    assert (disk.writes_done, disk.flushed) == (2, 0)
    trio.run(disk.flush)
    assert disk.flushed == 2
    disk.submit([WriteOp(OpKind.TRIM, 0, 10, None, fua=True)], lambda _: None)
    assert disk.flushed == 3
    disk.close()


def test_hold_and_release_keep_the_order() -> None:
    disk = MemoryExport("vda", SIZE)
    done: list[int] = []
    disk.hold()
    for number in range(3):
        op = WriteOp(OpKind.DATA, 0, 1, bytes([number]))
        disk.submit([op], lambda _, number=number: done.append(number))  # type: ignore[misc]  # bound now
    assert disk.held_count == 3
    assert done == []
    disk.release()
    assert done == [0, 1, 2]
    assert disk.peek(0, 1) == b"\2"
    disk.close()


def test_faults() -> None:
    disk = MemoryExport("vda", SIZE)
    disk.write_error = errno.ENOSPC
    results: list[object] = []
    disk.submit([WriteOp(OpKind.DATA, 0, 1, b"x")] * 2, results.append)
    assert results == [[errno.ENOSPC] * 2]
    assert disk.peek(0, 1) == b"\0"
    into = memoryview(bytearray(4))
    disk.cold = True
    assert not disk.read_nowait(0, into)
    trio.run(disk.read, 0, into)
    disk.read_error = errno.EIO
    with pytest.raises(BackendError):
        trio.run(disk.read, 0, into)
    disk.cold = False
    with pytest.raises(BackendError):
        disk.read_nowait(0, into)
    disk.flush_error = errno.EIO
    for call, arguments in (
        (disk.flush, ()),
        (disk.cache, (0, 1)),
        (disk.block_status, (CONTEXT_DIRTY, 0, 1, 1)),
    ):
        with pytest.raises(BackendError):
            trio.run(call, *arguments)
    disk.close()


def test_a_terabyte_costs_what_is_written() -> None:
    disk = MemoryExport("vda", TIB)
    disk.submit([WriteOp(OpKind.DATA, TIB - 4096, 4096, b"x" * 4096)], lambda _: None)
    assert _status(disk, CONTEXT_ALLOCATION, 0, TIB) == [(TIB - 4096, HOLE), (4096, 0)]
    disk.submit([WriteOp(OpKind.TRIM, 0, TIB)], lambda _: None)
    assert _status(disk, CONTEXT_ALLOCATION, 0, TIB) == [(TIB, HOLE)]
    assert _status(disk, CONTEXT_DIRTY, 0, TIB, most=1) == [(TIB, 1)]
    disk.clean()
    assert _status(disk, CONTEXT_DIRTY, 0, TIB) == [(TIB, 0)]
    disk.close()
