"""The in-flight window of one volume: what was sent to the peer and is not applied there yet.

Batches are cut into `Write` messages, numbered from 1 within a session.  The peer applies them in order and
answers with the highest number, so one answer may free many.  The window counts data bytes, remembers whom
each message belongs to, and tells since when the peer has owed something.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from pairsync.errors import InternalError, ProtocolError

from .effects import Complete
from .messages import OpKind, Write, WriteOp
from .tracker import ops_bytes
from .units import KIB, MIB, NS_PER_MS, Extent

__all__ = [
    "FRAME_DATA_BYTES_MAX",
    "FRAME_OPS_MAX",
    "GATHER_DATA_BYTES_MAX",
    "OPS_MAX",
    "RANGE_BYTES_MAX",
    "Ticket",
    "Waiting",
    "Window",
    "ticket_of",
]

FRAME_DATA_BYTES_MAX = MIB
"""Most data of one `Write` message; the embedder's door splits longer requests into ops of this size."""

FRAME_OPS_MAX = 512
"""Most ops of one `Write` message: a header of 7 KiB."""

RANGE_BYTES_MAX = 256 * MIB
"""Most that one `Write` message zeroes or trims, and the longest range without data of one op: doors split
longer ones.  Where the peer's disk has no better way than to write the zeroes, 13 MB/s are enough to answer
the message within the default `VolumeOptions.peer_deadline_ns`; each answer gives the next one time anew."""

MESSAGES_MAX = 16_384
"""Messages that the peer has not answered, however little data they carry: each costs some 200 bytes here,
and the peer takes six times as many before it calls us broken."""

OPS_MAX = 65_536
"""Ops that the peer has not applied, of all volumes of a guest, each of which has its share: they are held at
both ends, 200 bytes each, and the stream takes as many frames.  At 4 KiB each they are 256 MiB."""

GATHER_DATA_BYTES_MAX = 256 * KIB
"""Most data of a gathered batch: beyond that the fixed cost of a batch is small beside its data's."""

BATCHES_AHEAD = 2
"""Batches that a near peer has not answered before further ones gather: one that it works on, and one that
is there when it has done."""

NEAR_NS = NS_PER_MS
"""A peer is near if it can answer within that time: then processors are what is short, and few large batches
beat many small ones.  Over a longer distance batches leave at once: waiting would cost another round trip."""


class Ticket:
    """A batch on its way: one of the embedder's, or several that were gathered while they had to wait."""

    __slots__ = ("errnos", "generation", "intents", "local", "number", "ops", "owners", "started_ns")

    def __init__(self, owner: object, ops: Sequence[WriteOp], now_ns: int) -> None:
        self.owners = [(owner, len(ops))]  # who is told the result, of how many of the ops
        self.ops = ops
        self.started_ns = now_ns
        self.generation = 0  # write-intent generation that counts it as outstanding
        self.intents: Sequence[Extent] = ()  # what was recorded for it there
        self.number = 0  # of the last `Write` it was sent in; 0: not sent in this session
        self.local = False  # applied here, or failed here
        self.errnos: Sequence[int] | None = None

    def complete(self, errnos: Sequence[int] | None) -> list[Complete]:
        """The end for every owner: ``errnos`` has one number for each op, or is None."""
        if errnos is None:
            return [Complete(owner, None) for owner, _ in self.owners]
        ends: list[Complete] = []
        at = 0
        for owner, count in self.owners:
            part = errnos[at : at + count]
            ends.append(Complete(owner, part if any(part) else None))
            at += count
        return ends

    def fail(self, error: int) -> list[Complete]:
        """The end for every owner: all ops failed with ``error``."""
        return self.complete([error] * len(self.ops))


def ticket_of(token: object) -> Ticket:
    """The batch that a report is about."""
    if not isinstance(token, Ticket):
        raise InternalError(f"a report about {token!r}, which is no batch")
    return token


class Waiting:
    """Batches that wait for their turn, in order; those that fit one message go on together.

    So a disk that syncs slowly, or a processor that is short, sees few large batches instead of many small
    ones (group commit).
    """

    def __init__(self) -> None:
        self._tickets: deque[Ticket] = deque()
        self.data_bytes = 0
        """Data of all of them."""

    def __bool__(self) -> bool:
        return bool(self._tickets)

    def push(self, ticket: Ticket) -> None:
        """At the end of the queue."""
        self._tickets.append(ticket)
        self.data_bytes += ops_bytes(ticket.ops)

    def gather(self) -> Ticket:
        """The first batch, with those behind it as far as `GATHER_DATA_BYTES_MAX` and `FRAME_OPS_MAX` go."""
        first = self._tickets.popleft()
        size = ops_bytes(first.ops)
        self.data_bytes -= size
        ops: list[WriteOp] | None = None
        while self._tickets:
            following = self._tickets[0]
            more = ops_bytes(following.ops)
            if size + more > GATHER_DATA_BYTES_MAX or len(first.ops) + len(following.ops) > FRAME_OPS_MAX:
                break
            self._tickets.popleft()
            self.data_bytes -= more
            size += more
            if ops is None:
                first.ops = ops = list(first.ops)
            ops.extend(following.ops)
            first.owners += following.owners
        return first

    def clear(self) -> list[Ticket]:
        """All of them, taken out."""
        tickets = list(self._tickets)
        self._tickets.clear()
        self.data_bytes = 0
        return tickets


class Window:
    """See the module."""

    def __init__(self, volume: int, together: list[Window] | None = None) -> None:
        """``together``: the windows of all volumes whose messages share a stream; this one is added."""
        self._volume = volume
        self._together = [] if together is None else together
        self._together.append(self)
        # Sent and not applied by the peer, in order: (number, ticket, or None for a resync, data bytes,
        # when sent, ops).
        self._sent: deque[tuple[int, Ticket | None, int, int, int]] = deque()
        self._next_number = 1  # of the next `Write` of this session
        self._heard_ns = 0  # when the peer last applied something
        # Since when the peer has had nothing to apply before it can answer a question; None: nobody waits, or
        # it has not applied all yet.
        self._free_ns: int | None = None
        self._batches = 0  # entries of `_sent` that are the last of a ticket
        # The least that the peer has taken to answer a batch, forgotten slowly: its distance, not its load.
        self._answer_ns: int | None = None
        self.data_bytes = 0
        """Data sent and not applied."""
        self.copied_bytes = 0
        """What of it a resync sent."""
        self.op_count = 0
        """Ops sent and not applied."""
        self.applied_number = 0
        """Highest number that the peer has applied in this session."""

    def send(self, ops: Sequence[WriteOp], ticket: Ticket | None, term: int, now_ns: int) -> list[Write]:
        """The messages that carry ``ops``; a ticket learns the number of the last one."""
        messages: list[Write] = []
        for part, data_bytes in _frames(ops):
            number = self._next_number
            self._next_number += 1
            messages.append(Write(term, self._volume, number, ticket is None, part))
            self._sent.append((number, ticket, data_bytes, now_ns, len(part)))
            self.data_bytes += data_bytes
            self.op_count += len(part)
            if ticket is not None:
                ticket.number = number
            else:
                self.copied_bytes += data_bytes
        if ticket is not None:
            self._batches += 1
        return messages

    def full(self, recording_ops: int = 0) -> bool:
        """Whether the peer owes as much as it may, however little data that is: `MESSAGES_MAX`, `OPS_MAX`.

        ``recording_ops``: ops that will follow whatever happens.
        """
        share = OPS_MAX // len(self._together)
        return len(self._sent) >= MESSAGES_MAX or self.op_count + recording_ops >= share

    @property
    def crowded(self) -> bool:
        """Whether it is better to let further batches gather (see `NEAR_NS`)."""
        if self._batches < BATCHES_AHEAD or self._answer_ns is None or self._answer_ns >= NEAR_NS:
            return False
        return self.data_bytes < GATHER_DATA_BYTES_MAX  # large batches are not worth waiting for

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
            last, ticket, data_bytes, sent_ns, op_count = sent.popleft()
            self.data_bytes -= data_bytes
            self.op_count -= op_count
            if ticket is None:
                self.copied_bytes -= data_bytes
                yield None, data_bytes
            elif ticket.number == last:
                self._batches -= 1
                self._learn(now_ns - sent_ns)
                yield ticket, data_bytes

    def _learn(self, answer_ns: int) -> None:
        """The peer took ``answer_ns`` for a batch; the least of all fades by a thousandth each time."""
        least_ns = self._answer_ns
        if least_ns is not None:
            answer_ns = min(answer_ns, least_ns + least_ns // 1024 + 1)
        self._answer_ns = answer_ns

    def lag_ns(self, now_ns: int) -> int:
        """Age of the oldest write that the peer has not applied."""
        return now_ns - self._sent[0][3] if self._sent else 0

    def owed_since_ns(self, asked_ns: int | None) -> int | None:
        """Since when the peer has owed an answer without giving any; None if it owes none.

        ``asked_ns``: since when something else waits for an answer, a barrier for instance.  The peer cannot
        give that before it has applied what was sent before, for any volume, and has the time for it while it
        goes on: over a slow link a full window alone may take longer than any deadline.  To be asked at every
        tick.
        """
        since_ns = max(self._sent[0][3], self._heard_ns) if self._sent else None
        if asked_ns is None or any(w._sent and w._sent[0][3] <= asked_ns for w in self._together):
            self._free_ns = None
            return since_ns
        if self._free_ns is None:
            self._free_ns = max(window._heard_ns for window in self._together)
        asked_ns = max(asked_ns, self._free_ns)
        return asked_ns if since_ns is None else min(asked_ns, since_ns)

    def reset(self) -> None:
        """The session is over: nothing that was sent will be answered, and numbers begin anew."""
        self._sent.clear()
        self.data_bytes = self.copied_bytes = self.op_count = 0
        self._batches = 0
        self._next_number = 1
        self.applied_number = 0


def _frames(ops: Sequence[WriteOp]) -> Iterator[tuple[Sequence[WriteOp], int]]:
    """Split a batch into messages within `FRAME_OPS_MAX`, `FRAME_DATA_BYTES_MAX` and `RANGE_BYTES_MAX`.

    An op is never split: one that is larger by itself goes alone.
    """
    total = ops_bytes(ops)
    if len(ops) == 1:
        yield ops, total
        return
    ranges = sum([op.length for op in ops]) - total  # bytes that carry no data
    if total <= FRAME_DATA_BYTES_MAX and ranges <= RANGE_BYTES_MAX and len(ops) <= FRAME_OPS_MAX:
        yield ops, total
        return
    part: list[WriteOp] = []
    size = ranges = 0
    for op in ops:
        data, empty = (op.length, 0) if op.kind is OpKind.DATA else (0, op.length)
        too_much = size + data > FRAME_DATA_BYTES_MAX or ranges + empty > RANGE_BYTES_MAX
        if part and (too_much or len(part) >= FRAME_OPS_MAX):
            yield part, size
            part, size, ranges = [], 0, 0
        part.append(op)
        size += data
        ranges += empty
    yield part, size
