"""A lane: sealed records over one plain TCP connection.  The fast path of replication.

**Sending.**  `transmit` packs and seals one record into the lane's one send buffer and tries to send it
there and then, from the task that had the data: no queue, no wake-up.  If the socket takes only a part, the
lane is *blocked* until the writer task has sent the rest; meanwhile frames wait, by reference, in the
session's stream, and leave in one record as soon as the lane is free again.  So records are small while
the lane is idle and large while it is busy, without a timer.

**Receiving.**  The reader task, or whoever polls, without a switch to it (`Connection.attend`), receives into
one reused buffer that holds two records of the largest size, and opens each whole record into a buffer of its
own, so that the payload can be referred to for as long as anybody needs it.  A record's length is checked
before anything is done for it.

A failure while sending is not raised to the caller of `transmit`, who may be anybody: the lane fails, its
tasks raise `PeerLost`, and the path goes down in its own task.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence

import trio

from pairsync.errors import PeerLost, ProtocolError
from pairsync.wire.frames import Frame, pack_record
from pairsync.wire.limits import RECORD_BYTES_MAX, RECORD_HEADER_BYTES, TAG_BYTES
from pairsync.wire.seals import LENGTH_BYTES, Opener, Sealer, record_length

from .gate import Gate
from .network import Connection

__all__ = ["FIRST_RECORD_BYTES", "RECEIVE_BUFFER_BYTES", "Lane"]

FIRST_RECORD_BYTES = RECORD_HEADER_BYTES + TAG_BYTES
"""The first record in either direction carries no frame: it proves the key and brings the acknowledgement.
Nothing larger is read from a connection that has not proved itself."""

RECEIVE_BUFFER_BYTES = 2 * (LENGTH_BYTES + RECORD_BYTES_MAX)
"""Room for the largest record behind the beginning of another: what is left is moved at most once."""


def _lazy_buffer(size_bytes: int) -> memoryview:
    """A buffer whose memory is taken page by page as it is used: a spare lane costs next to nothing."""
    return memoryview(mmap.mmap(-1, size_bytes))


class _Inbox:
    """What has been received and not opened, in one reused buffer."""

    __slots__ = ("_buffer", "_end", "_start", "stop")

    def __init__(self) -> None:
        self._buffer = _lazy_buffer(RECEIVE_BUFFER_BYTES)
        self._start = self._end = 0  # it lies between
        self.stop = 0
        """Where the first record of it ends; 0 if not all of that is there."""

    def room(self) -> memoryview:
        """Where to receive into; moves what is left, so nothing of what `take` gave may be in use."""
        start, end = self._start, self._end
        if start == end:
            self._start = self._end = 0
        elif RECEIVE_BUFFER_BYTES - start < LENGTH_BYTES + RECORD_BYTES_MAX:
            self._buffer[: end - start] = self._buffer[start:end]
            self._start, self._end = 0, end - start
        return self._buffer[self._end :]

    def received(self, count: int) -> None:
        """So much was received into `room`; raises `ProtocolError` for a length that no record has."""
        self._end += count
        self._look()

    def take(self) -> memoryview:
        """The first record, which must be whole, without its length."""
        sealed = self._buffer[self._start + LENGTH_BYTES : self.stop]
        self._start = self.stop
        self._look()
        return sealed

    def _look(self) -> None:
        start, end = self._start, self._end
        self.stop = 0
        if end - start >= LENGTH_BYTES:
            stop = start + LENGTH_BYTES + record_length(self._buffer, start)
            self.stop = stop if stop <= end else 0


class Lane:
    """One direction-pair of sealed records; belongs to one path of one session."""

    __slots__ = (
        "_connection",
        "_failure",
        "_freed",
        "_gate",
        "_opener",
        "_out",
        "_pending",
        "_sealer",
        "_who",
        "blocked",
        "bytes_in",
        "bytes_out",
        "records_in",
        "records_out",
    )

    def __init__(self, connection: Connection, sealer: Sealer, opener: Opener, gate: Gate, who: str) -> None:
        self._connection = connection
        self._sealer = sealer
        self._opener = opener
        self._gate = gate
        self._who = who
        # Invariants: `blocked` exactly while `_pending` holds bytes of a sealed record or the lane has
        # failed; `_pending` is a slice of `_out`, so nothing is sealed while blocked.
        self._out = _lazy_buffer(LENGTH_BYTES + RECORD_BYTES_MAX)
        self._pending: memoryview | None = None
        self.blocked = False
        self._failure: OSError | None = None
        self._freed = trio.Event()
        self.bytes_in = 0
        self.bytes_out = 0
        self.records_in = 0
        self.records_out = 0

    @property
    def who(self) -> str:
        """The other end, for logs."""
        return self._who

    def transmit(self, first: int, acknowledged: int, frames: Sequence[Frame]) -> None:
        """Seal one record and send what the socket takes now; the lane must not be blocked."""
        size_bytes = self._sealer.seal(pack_record(first, acknowledged, frames), self._out)
        self.records_out += 1
        self.bytes_out += size_bytes
        sealed = self._out[:size_bytes]
        try:
            sent_bytes = self._connection.send_nowait(sealed)
        except OSError as error:
            self._failure = error
            sent_bytes = 0
        if sent_bytes != size_bytes:
            self._pending = sealed[sent_bytes:]
            self.blocked = True
            self._freed.set()

    async def run_writer(self, resume: Callable[[], None]) -> None:
        """Send what `transmit` could not, then call ``resume``, which transmits what has gathered.

        Raises `PeerLost` once the lane has failed.
        """
        while True:
            await self._freed.wait()
            self._freed = trio.Event()
            while (pending := self._pending) is not None:
                if self._failure is not None:
                    raise PeerLost(f"{self._who}: {self._failure}") from self._failure
                try:
                    await self._connection.wait_writable()
                    await self._gate.wait_open()
                    pending = pending[self._connection.send_nowait(pending) :]
                except OSError as error:
                    self._failure = error
                    continue
                if pending:
                    self._pending = pending
                else:
                    self._pending = None
                    self.blocked = False
                    resume()

    async def run_reader(self, deliver: Callable[[memoryview], None]) -> None:
        """Receive, open and ``deliver`` records, in order, until the connection ends.

        Raises `PeerLost` at the end, `ProtocolError` for a record that is not one, and whatever
        ``deliver`` raises.
        """
        connection, gate, opener, inbox = self._connection, self._gate, self._opener, _Inbox()

        def take() -> bool:
            if gate.shut:
                return False
            received = connection.receive_nowait(inbox.room())
            if received is None:
                return True
            if not received:
                raise PeerLost(f"{self._who}: the other end hung up")
            self.bytes_in += received
            inbox.received(received)
            if inbox.stop:
                deliver_one()
            return not inbox.stop

        def deliver_one() -> None:
            self.records_in += 1
            deliver(opener.open(inbox.take()))

        while True:
            try:
                await connection.attend(take)
            except OSError as error:
                raise PeerLost(f"{self._who}: {error}") from error
            await gate.wait_open()
            while inbox.stop:
                # What one record sets off may take a millisecond (a resync reads and sends the next
                # piece), and dozens may be here: others, such as the guest's writes, go in between.
                await trio.lowlevel.checkpoint()
                await gate.wait_open()
                deliver_one()

    async def receive_first(self) -> memoryview:
        """The first record of a new lane, read exactly, before any task runs.

        Raises `PeerLost` or `ProtocolError`.  The caller sets a deadline.
        """
        head = memoryview(bytearray(LENGTH_BYTES))
        await self._receive_exactly(head)
        sealed_bytes = record_length(head)
        if sealed_bytes > FIRST_RECORD_BYTES:
            raise ProtocolError(f"{self._who}: a first record of {sealed_bytes} bytes")
        sealed = memoryview(bytearray(sealed_bytes))
        await self._receive_exactly(sealed)
        self.records_in += 1
        return self._opener.open(sealed)

    async def _receive_exactly(self, buffer: memoryview) -> None:
        while buffer:
            try:
                await self._connection.wait_readable()
                await self._gate.wait_open()
                received = self._connection.receive_nowait(buffer)
            except OSError as error:
                raise PeerLost(f"{self._who}: {error}") from error
            if received == 0:
                raise PeerLost(f"{self._who}: the other end hung up")
            if received:
                self.bytes_in += received
                buffer = buffer[received:]
