"""The in-flight window of one volume: what was sent to the peer and is not applied there yet.

Batches are cut into `Write` messages, numbered from 1 within a session.  The peer applies them in order and
answers with the highest number, so one answer may free many.  The window counts data bytes, remembers whom
each message belongs to, and tells since when the peer has owed something.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from pairsync.errors import ProtocolError

from .messages import OpKind, Write, WriteOp
from .tracker import ops_bytes
from .units import MIB, Extent

__all__ = ["FRAME_DATA_BYTES_MAX", "FRAME_OPS_MAX", "Ticket", "Window"]

FRAME_DATA_BYTES_MAX = MIB
"""Most data of one `Write` message; the embedder's door splits longer requests into ops of this size."""

FRAME_OPS_MAX = 512
"""Most ops of one `Write` message: a header of 7 KiB."""


class Ticket:
    """One batch of the embedder on its way."""

    __slots__ = ("errnos", "generation", "intents", "local", "number", "ops", "owner", "started_ns")

    def __init__(self, owner: object, ops: Sequence[WriteOp], now_ns: int) -> None:
        self.owner = owner  # what the embedder is told the result by
        self.ops = ops
        self.started_ns = now_ns
        self.generation = 0  # write-intent generation that counts it as outstanding
        self.intents: Sequence[Extent] = ()  # what the journal is asked to record for it
        self.number = 0  # of the last `Write` it was sent in; 0: not sent in this session
        self.local = False  # applied here, or failed here
        self.errnos: Sequence[int] | None = None


class Window:
    """See the module."""

    def __init__(self, volume: int) -> None:
        self._volume = volume
        # Sent and not applied by the peer, in order: (number, ticket, or None for a resync, data bytes,
        # when sent).
        self._sent: deque[tuple[int, Ticket | None, int, int]] = deque()
        self._next_number = 1  # of the next `Write` of this session
        self._heard_ns = 0  # when the peer last applied something
        self.data_bytes = 0
        """Data sent and not applied."""
        self.applied_number = 0
        """Highest number that the peer has applied in this session."""

    def send(self, ops: Sequence[WriteOp], ticket: Ticket | None, term: int, now_ns: int) -> list[Write]:
        """The messages that carry ``ops``; a ticket learns the number of the last one."""
        messages: list[Write] = []
        for part, data_bytes in _frames(ops):
            number = self._next_number
            self._next_number += 1
            messages.append(Write(term, self._volume, number, ticket is None, part))
            self._sent.append((number, ticket, data_bytes, now_ns))
            self.data_bytes += data_bytes
            if ticket is not None:
                ticket.number = number
        return messages

    def applied(self, number: int, now_ns: int) -> Iterator[tuple[Ticket | None, int]]:
        """The peer has applied all up to ``number``: whose messages those were, and their data bytes.

        A ticket is told of with its last message.  Raises `ProtocolError` for a number that was not sent.
        """
        if number >= self._next_number:
            raise ProtocolError(f"the peer applied write {number}, which was not sent")
        if number <= self.applied_number:
            return
        self.applied_number = number
        self._heard_ns = now_ns
        sent = self._sent
        while sent and sent[0][0] <= number:
            last, ticket, data_bytes, _ = sent.popleft()
            self.data_bytes -= data_bytes
            if ticket is None or ticket.number == last:
                yield ticket, data_bytes

    def lag_ns(self, now_ns: int) -> int:
        """Age of the oldest write that the peer has not applied."""
        return now_ns - self._sent[0][3] if self._sent else 0

    def owed_since_ns(self) -> int | None:
        """Since when the peer has owed an answer without giving any; None if it owes none."""
        return max(self._sent[0][3], self._heard_ns) if self._sent else None

    def reset(self) -> None:
        """The session is over: nothing that was sent will be answered, and numbers begin anew."""
        self._sent.clear()
        self.data_bytes = 0
        self._next_number = 1
        self.applied_number = 0


def _frames(ops: Sequence[WriteOp]) -> Iterator[tuple[Sequence[WriteOp], int]]:
    """Split a batch into messages of at most `FRAME_OPS_MAX` ops and `FRAME_DATA_BYTES_MAX` data."""
    total = ops_bytes(ops)
    if total <= FRAME_DATA_BYTES_MAX and len(ops) <= FRAME_OPS_MAX:
        yield ops, total
        return
    part: list[WriteOp] = []
    size = 0
    for op in ops:
        here = op.length if op.kind is OpKind.DATA else 0
        if part and (size + here > FRAME_DATA_BYTES_MAX or len(part) >= FRAME_OPS_MAX):
            yield part, size
            part, size = [], 0
        part.append(op)
        size += here
    yield part, size
