"""Requests in pieces: nothing is lost, nothing is too large, and the owner hears of what he gave."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from pairsync.core.messages import OpKind, WriteOp
from pairsync.core.tracker import ops_bytes
from pairsync.core.units import MIB
from pairsync.core.window import FRAME_DATA_BYTES_MAX, FRAME_OPS_MAX, RANGE_BYTES_MAX
from pairsync.guest.pieces import Done, parts_of

LENGTHS = st.one_of(st.integers(0, 5000), st.integers(0, 5 * MIB // 2))
ZEROES = bytes(5 * MIB // 2)


@st.composite
def batches(draw: st.DrawFn) -> list[WriteOp]:
    ops = []
    for _ in range(draw(st.integers(0, 6))):
        offset, length = draw(st.integers(0, 1 << 40)), draw(LENGTHS)
        if draw(st.booleans()):
            ops.append(WriteOp(OpKind.DATA, offset, length, memoryview(ZEROES)[:length], draw(st.booleans())))
        else:
            ops.append(WriteOp(OpKind.ZERO, offset, length * 300))
    return ops


@given(ops=batches(), bytes_max=st.sampled_from([FRAME_DATA_BYTES_MAX, 4 * MIB]), data=st.data())
def test_a_batch_in_parts(ops: list[WriteOp], bytes_max: int, data: st.DataObject) -> None:
    heard: list[Sequence[int] | None] = []
    parts = parts_of(ops, heard.append, bytes_max)
    pieces = [piece for part, _ in parts for piece in part]
    assert all(piece.length <= (FRAME_DATA_BYTES_MAX if piece.data else RANGE_BYTES_MAX) for piece in pieces)
    assert all(len(part) <= FRAME_OPS_MAX and ops_bytes(part) <= bytes_max for part, _ in parts)
    # every range, in order, byte by byte
    whole = iter(pieces)
    failing: list[int] = []
    at = -1
    chosen = data.draw(st.sets(st.integers(0, max(len(pieces) - 1, 0))))
    for op in ops:
        done, failed = 0, 0
        while done < op.length:
            piece = next(whole)
            at += 1
            assert (piece.kind, piece.offset, piece.fua) == (op.kind, op.offset + done, op.fua)
            done += piece.length
            failed = failed or (5 if at in chosen else 0)
        failing.append(failed)
    assert not list(whole)
    # the parts end in any order
    ends: list[tuple[Done, list[int] | None]] = []
    first = 0
    for part, ended in parts:
        errnos = [5 if first + index in chosen else 0 for index in range(len(part))]
        ends.append((ended, errnos if any(errnos) else None))
        first += len(part)
    for ended, result in data.draw(st.permutations(ends)):
        assert heard == []
        ended(result)
    assert heard == [failing if any(failing) else None]
