"""Requests in pieces: any batch of a client's ranges, cut into what one message can carry.

Data is cut into pieces of at most one protocol message, ranges without data into pieces that one message can
name; the pieces go on in *parts*, each of which may wait for its room.  They keep their order, and their
owner hears of the batch that he gave.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

from pairsync.core.messages import Buffer, WriteOp
from pairsync.core.window import FRAME_DATA_BYTES_MAX, FRAME_OPS_MAX, RANGE_BYTES_MAX
from pairsync.errors import ConfigError

__all__ = ["Done", "Part", "bytes_of", "cut", "parts_of"]

Done: TypeAlias = Callable[[Sequence[int] | None], None]
"""Hears an errno for each op of a batch, or None: all well."""

Part: TypeAlias = tuple[list[WriteOp], Done]
"""Ranges that go on as one, and who hears of them."""


def bytes_of(data: Buffer, what: str) -> Buffer:
    """The same memory, whose length counts bytes; `ConfigError` naming ``what`` if it is of no use.

    Any buffer of Python will do that is one piece.  What is none must not get to the disk's thread: what
    happens there is the disk's fault, and all tasks of the guest would suffer for one that gave a ``str``.
    """
    if isinstance(data, bytes | bytearray):
        return data
    try:
        view = memoryview(data)
    except TypeError:
        raise ConfigError(f"{what}: must be a buffer of bytes, not {type(data).__name__}") from None
    if not view.c_contiguous:
        raise ConfigError(f"{what}: must be a buffer in one piece, not every so many bytes of one")
    return view.cast("B")


class _Pieces:
    """A batch that was cut: its owner hears of the ops that it gave, when the last part has ended."""

    __slots__ = ("_counts", "_done", "_errnos", "_left")

    def __init__(self, done: Done, counts: Sequence[int], parts: int) -> None:
        self._done = done
        self._counts = counts  # pieces of each op; 0 for one of no bytes
        self._errnos = [0] * sum(counts)  # of each piece
        self._left = parts  # parts that have not ended

    def part(self, first: int, errnos: Sequence[int] | None) -> None:
        """The part that begins with piece ``first`` has ended."""
        if errnos is not None:
            self._errnos[first : first + len(errnos)] = errnos
        self._left -= 1
        if self._left:
            return
        if not any(self._errnos):
            self._done(None)
            return
        merged: list[int] = []
        at = 0
        for count in self._counts:
            merged.append(next((e for e in self._errnos[at : at + count] if e), 0))
            at += count
        self._done(merged)


def parts_of(ops: Sequence[WriteOp], done: Done, bytes_max: int) -> list[Part]:
    """The batch in parts of at most ``bytes_max`` of data (one piece at least), in order.

    ``done`` is called when all of them have been told their end; at once, if there are none (no bytes).
    """
    pieces = [cut(op) for op in ops]
    parts = _gather([piece for each in pieces for piece in each], bytes_max)
    if not parts:
        done(None)
        return []
    owner = _Pieces(done, [len(each) for each in pieces], len(parts))
    found: list[Part] = []
    first = 0
    for part in parts:
        found.append((part, partial(owner.part, first)))
        first += len(part)
    return found


def cut(op: WriteOp) -> list[WriteOp]:
    """An op in pieces that one message can carry; none for one of no bytes."""
    if op.data is None:
        return [
            op._replace(offset=op.offset + at, length=min(RANGE_BYTES_MAX, op.length - at))
            for at in range(0, op.length, RANGE_BYTES_MAX)
        ]
    view = memoryview(op.data)
    return [
        WriteOp(op.kind, op.offset + at, len(piece), piece, op.fua)
        for at in range(0, op.length, FRAME_DATA_BYTES_MAX)
        for piece in (view[at : at + FRAME_DATA_BYTES_MAX],)
    ]


def _gather(pieces: Sequence[WriteOp], bytes_max: int) -> list[list[WriteOp]]:
    """The pieces in batches of at most ``bytes_max`` of data and `FRAME_OPS_MAX` ops."""
    parts: list[list[WriteOp]] = []
    data_bytes = 0
    for piece in pieces:
        size = 0 if piece.data is None else piece.length
        if not parts or len(parts[-1]) >= FRAME_OPS_MAX or data_bytes + size > bytes_max:
            parts.append([])
            data_bytes = 0
        parts[-1].append(piece)
        data_bytes += size
    return parts
