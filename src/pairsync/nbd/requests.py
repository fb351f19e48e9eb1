"""Requests of the transmission phase as a pure machine: received buffers in, batches out.  PURE.

Theory of operation.  `RequestParser.feed` takes one received buffer, whole, and keeps it.
`RequestParser.take` parses as many complete requests of it as the caller has room for and returns them as one
`Batch`, sorted by what is to be done with them.  Sorting is allowed: the document lets a server handle
requests in any order as long as FLUSH covers what was *answered* before it ("Ordering of messages and
writes").

Payload is touched once.  A payload that lies in the buffer whole is passed on as a view of it, so buffers
are owned by their batches and never reused.  One that does not gets its own memory; if it is large,
`RequestParser.window` is what is missing of that memory, for the socket to receive into, and
`RequestParser.filled` says how much has come.  Large writes come in rows: behind one, the window is the next
request's header alone, so that its payload too goes to its place without a copy.  A write is in a batch only
when its last byte is: a client that dies in the middle of a payload leaves nothing.

Every request is checked here against `RequestRules` ("Request types", "Error values", "Size constraints"), so
that what is in `Batch.reads`, `writes` and `others` can be done as it stands; what cannot is in
`Batch.rejections`, a refused WRITE once its payload has been skipped (a client may not look for the answer
to a request that it is still sending).  The document leaves open what a length of 0 does: here it is
EINVAL, as in nbdkit.  Broken framing raises `ProtocolError`, after the requests before it were handed out.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from pairsync.core.messages import OpKind, WriteOp
from pairsync.core.units import KIB
from pairsync.errors import InternalError, ProtocolError

from . import constants as c
from .limits import PAYLOAD_SKIP_BYTES_MAX

__all__ = ["WINDOW_BYTES_MIN", "Batch", "Read", "Rejection", "Request", "RequestParser", "RequestRules"]

WINDOW_BYTES_MIN: Final = 64 * KIB
"""Payload from which receiving straight into its memory beats one more copy of it."""

_HEADER: Final = struct.Struct(">Q8sQI")
"""Magic, flags and type in one number, which tells the common requests by one comparison; cookie, offset,
length."""

_READ_HEAD: Final = c.REQUEST_MAGIC << 32 | c.CMD_READ
_WRITE_HEAD: Final = c.REQUEST_MAGIC << 32 | c.CMD_WRITE
_FUA_BIT: Final = c.CMD_FLAG_FUA << 16
_WRITE_FUA_HEAD: Final = _WRITE_HEAD | _FUA_BIT

_DATA: Final = OpKind.DATA  # looked up once, see `core.tracker`

_WRITES: Final = frozenset({c.CMD_WRITE, c.CMD_WRITE_ZEROES, c.CMD_TRIM})

_FLAGS: Final[dict[int, int]] = {  # "Command flags": FUA is valid everywhere, the others where named
    c.CMD_READ: c.CMD_FLAG_FUA,  # and DF where structured replies were negotiated
    c.CMD_WRITE: c.CMD_FLAG_FUA,
    c.CMD_FLUSH: c.CMD_FLAG_FUA,
    c.CMD_TRIM: c.CMD_FLAG_FUA,
    c.CMD_CACHE: c.CMD_FLAG_FUA,
    c.CMD_WRITE_ZEROES: c.CMD_FLAG_FUA | c.CMD_FLAG_NO_HOLE | c.CMD_FLAG_FAST_ZERO,
    c.CMD_BLOCK_STATUS: c.CMD_FLAG_FUA | c.CMD_FLAG_REQ_ONE,
}


@dataclass(frozen=True, slots=True)
class RequestRules:
    """What the handshake agreed and the export can do."""

    size_bytes: int
    read_only: bool = False
    structured: bool = False
    fast_zero: bool = False
    block_status: bool = False
    """Whether a meta context was selected."""


Read: TypeAlias = tuple[bytes, int, int]
"""NBD_CMD_READ: cookie, offset, length (within the export, 1 byte to 32 MiB); a plain tuple, for there are
a hundred thousand a second.  DF needs no mention: a read is answered in one chunk anyway."""


class Request(NamedTuple):
    """NBD_CMD_FLUSH, NBD_CMD_CACHE or NBD_CMD_BLOCK_STATUS."""

    cookie: bytes
    kind: int
    offset: int
    length: int
    one_extent: bool


class Rejection(NamedTuple):
    """A request that is answered with an error and nothing else."""

    cookie: bytes
    kind: int
    error: int
    message: str


class Batch:
    """What one `RequestParser.take` found; `writes` and `write_cookies` run in parallel."""

    __slots__ = (
        "disconnect",
        "more",
        "others",
        "payload_bytes",
        "reads",
        "rejections",
        "write_cookies",
        "writes",
    )

    def __init__(self) -> None:
        self.reads: list[Read] = []
        self.writes: list[WriteOp] = []
        self.write_cookies: list[bytes] = []
        self.others: list[Request] = []
        self.rejections: list[Rejection] = []
        self.payload_bytes = 0  # of the writes; what is held until they are done
        self.disconnect = False  # NBD_CMD_DISC: nothing follows
        self.more = False  # the caller's room ended before the buffer did: take again

    def __len__(self) -> int:
        return len(self.reads) + len(self.writes) + len(self.others) + len(self.rejections)


class _Pending(NamedTuple):
    """A write whose payload is still arriving."""

    op: WriteOp  # its data is a view of all of `buffer`
    cookie: bytes
    buffer: memoryview


class RequestParser:
    """One connection's requests; see the module's theory."""

    def __init__(self, rules: RequestRules) -> None:
        self.shutting_down = False
        """From now on requests are answered with NBD_ESHUTDOWN."""
        self.arriving_bytes = 0
        """Memory that is held for a payload of which a part is still to come."""
        self._rules = rules
        self._data: bytes = b""
        self._view = memoryview(self._data)
        self._position = 0  # everything before it has been handed out
        self._pending: _Pending | None = None
        self._filled_bytes = 0  # of the pending payload
        self._streams = False  # the last request was a large write: the next header is received by itself
        self._head = memoryview(bytearray(c.REQUEST_BYTES))
        self._head_bytes = 0  # of it that have come; 0 once it is whole, for then it is in `_data`
        self._skip_bytes = 0  # of a refused payload, still to come; then _skipped is handed out
        self._skipped: Rejection | None = None
        self._violation: str | None = None  # broken framing, told once the requests before it are handed out
        self._closed = False  # DISC was seen: the rest is ignored

    @property
    def unfinished(self) -> bool:
        """Whether a part of a request has come, and not all of it."""
        return bool(self._pending or self._skipped or self._head_bytes or self._position < len(self._data))

    def feed(self, data: bytes) -> None:
        """Take a received buffer; it belongs to the parser from now on."""
        if self._closed:
            return
        rest = len(self._data) - self._position
        if rest:  # the head of a request, or the caller took less than everything
            data = self._data[self._position :] + data
        self._data = data
        self._view = memoryview(data)
        self._position = 0

    def window(self) -> memoryview | None:
        """Where to receive the missing payload of a large write, or the header behind one, straight away.

        None where it is better to receive whatever comes, or where what is here has not been taken.
        """
        if not self._streams or self._closed or self._position < len(self._data):
            return None
        if self._pending is None:
            return self._head[self._head_bytes :]
        return self._pending.buffer[self._filled_bytes :] or None

    def filled(self, count: int) -> None:
        """``count`` bytes were received into `window`."""
        if count > len(self.window() or b""):
            raise InternalError(f"{count} bytes received into a window that is not there")
        if self._pending is not None:
            self._filled_bytes += count
            return
        self._head_bytes += count
        if self._head_bytes == c.REQUEST_BYTES:
            self._head_bytes = 0
            self.feed(bytes(self._head))

    def take(self, requests_max: int, bytes_max: int, batch: Batch | None = None) -> Batch:
        """The next requests: at most ``requests_max``, and of at most ``bytes_max`` payload or one request.

        ``batch``: one that was taken just now, to be added to; both limits are those of all of it.
        `Batch.more` says that the limits cut it short.  Raises `ProtocolError` if the next request is none.
        """
        if batch is None:
            batch = Batch()
        if self._closed or (self._pending is not None and not self._fill_pending(batch)):
            return batch
        if self._skipped is not None and not self._skip(batch):
            return batch
        if self._violation is None and self._position < len(self._data):
            self._streams = False
            self._parse(batch, requests_max - len(batch), bytes_max - batch.payload_bytes)
        if self._violation is not None:
            if not len(batch):
                raise ProtocolError(self._violation)
            batch.more = True
        if batch.disconnect:
            self._closed = True
            self._data, self._position = b"", 0
            self._view = memoryview(self._data)
        return batch

    # -- the hot loop ----------------------------------------------------------------------------------------

    def _parse(self, batch: Batch, room: int, room_bytes: int) -> None:
        """Take requests off the buffer: reads by runs, whole writes here, the others one by one."""
        data, view, position, end = self._data, self._view, self._position, len(self._data)
        size_bytes = self._rules.size_bytes
        plain = not self.shutting_down
        writable = plain and not self._rules.read_only
        writes, write_cookies = batch.writes, batch.write_cookies
        unpack, new = _HEADER.unpack_from, tuple.__new__
        while end - position >= c.REQUEST_BYTES:
            head, cookie, offset, length = unpack(data, position)
            if room <= 0 or (length > room_bytes and head & 0xFFFF <= c.CMD_WRITE and len(batch)):
                batch.more = True
                break
            body = position + c.REQUEST_BYTES
            if (
                head | _FUA_BIT == _WRITE_FUA_HEAD
                and (stop := body + length) <= end
                and 0 < length <= c.PAYLOAD_BYTES_MAX
                and offset + length <= size_bytes
                and writable
            ):
                # past the named tuple's own constructor, which takes as long as all the rest
                op = new(WriteOp, (_DATA, offset, length, view[body:stop], head != _WRITE_HEAD))
                writes.append(op)
                write_cookies.append(cookie)
                batch.payload_bytes += length
                room_bytes -= length
                room -= 1
                position = stop
                continue
            if head == _READ_HEAD and plain:
                count, room_bytes = self._parse_reads(batch.reads, position, room, room_bytes)
                if count:
                    room -= count
                    position += count * c.REQUEST_BYTES
                    continue
            room -= 1
            room_bytes -= length if head & 0xFFFF == c.CMD_READ else 0
            self._position = position
            if not self._one(batch, head, cookie, offset, length):
                return
            position = self._position
        self._position = position

    def _parse_reads(self, reads: list[Read], position: int, room: int, room_bytes: int) -> tuple[int, int]:
        """Take the run of reads at ``position``; returns their count and the bytes of room that are left."""
        size_bytes = self._rules.size_bytes
        count = min(room, (len(self._data) - position) // c.REQUEST_BYTES)
        run = self._view[position : position + count * c.REQUEST_BYTES]
        before = len(reads)
        for head, cookie, offset, length in _HEADER.iter_unpack(run):
            if (
                head != _READ_HEAD
                or length > room_bytes
                or not 0 < length <= c.PAYLOAD_BYTES_MAX
                or offset + length > size_bytes
            ):
                break
            reads.append((cookie, offset, length))
            room_bytes -= length
        return len(reads) - before, room_bytes

    # -- everything that is not the common case --------------------------------------------------------------

    def _one(self, batch: Batch, head: int, cookie: bytes, offset: int, length: int) -> bool:
        """Handle the request whose header is at the position; False if no other can follow (yet)."""
        if head >> 32 != c.REQUEST_MAGIC:
            self._violation = f"bad request magic {head >> 32:#x}"
            return False
        flags, kind = head >> 16 & 0xFFFF, head & 0xFFFF
        self._position += c.REQUEST_BYTES
        if kind == c.CMD_DISC:
            batch.disconnect = True
            return False
        refusal = self._refusal(flags, kind, offset, length)
        if refusal is not None:
            rejection = Rejection(cookie, kind, *refusal)
            if kind == c.CMD_WRITE and length:
                self._begin_skip(batch, rejection, length)
            else:
                batch.rejections.append(rejection)
        elif kind == c.CMD_READ:
            batch.reads.append((cookie, offset, length))
        elif kind == c.CMD_WRITE:
            self._begin_payload(cookie, flags, offset, length)
        elif kind in {c.CMD_TRIM, c.CMD_WRITE_ZEROES}:
            fua = bool(flags & c.CMD_FLAG_FUA)
            batch.writes.append(WriteOp(_kind_of(kind, flags), offset, length, None, fua))
            batch.write_cookies.append(cookie)
        else:
            batch.others.append(Request(cookie, kind, offset, length, bool(flags & c.CMD_FLAG_REQ_ONE)))
        return not (self._pending or self._skipped or self._violation)

    def _begin_payload(self, cookie: bytes, flags: int, offset: int, length: int) -> None:
        """A payload that is not in the buffer whole: its own memory, filled as it comes."""
        buffer = memoryview(bytearray(length))
        op = WriteOp(OpKind.DATA, offset, length, buffer, bool(flags & c.CMD_FLAG_FUA))
        self._pending = _Pending(op, cookie, buffer)
        self._filled_bytes = 0
        self._streams = length >= WINDOW_BYTES_MIN
        self.arriving_bytes = length
        self._copy_payload(buffer)

    def _copy_payload(self, buffer: memoryview) -> None:
        count = min(len(buffer) - self._filled_bytes, len(self._data) - self._position)
        stop = self._position + count
        buffer[self._filled_bytes : self._filled_bytes + count] = self._view[self._position : stop]
        self._filled_bytes += count
        self._position = stop

    def _fill_pending(self, batch: Batch) -> bool:
        """Copy what has come of the pending payload; True once it is whole and in the batch."""
        pending = self._pending
        if pending is None:
            return True
        self._copy_payload(pending.buffer)
        if self._filled_bytes < len(pending.buffer):
            return False
        batch.writes.append(pending.op)
        batch.write_cookies.append(pending.cookie)
        batch.payload_bytes += pending.op.length
        self._pending = None
        self.arriving_bytes = 0
        return True

    def _begin_skip(self, batch: Batch, rejection: Rejection, length: int) -> None:
        if length > PAYLOAD_SKIP_BYTES_MAX:
            # "Size constraints": may be taken for a denial of service
            self._violation = f"a refused write announces {length} bytes of payload"
            return
        self._skipped = rejection
        self._skip_bytes = length
        self._skip(batch)

    def _skip(self, batch: Batch) -> bool:
        """Pass over a refused payload; True once it is behind us and its rejection in the batch."""
        count = min(self._skip_bytes, len(self._data) - self._position)
        self._position += count
        self._skip_bytes -= count
        if self._skip_bytes or self._skipped is None:
            return False
        batch.rejections.append(self._skipped)
        self._skipped = None
        return True

    def _refusal(self, flags: int, kind: int, offset: int, length: int) -> tuple[int, str] | None:
        """Why a request is refused: the error of "Error values" and a text, or None."""
        rules = self._rules
        if self.shutting_down:
            return c.ESHUTDOWN, "the server is shutting down"
        allowed = _FLAGS.get(kind)
        if allowed is None:
            return c.EINVAL, f"unknown command {kind}"
        if kind == c.CMD_READ and rules.structured:
            allowed |= c.CMD_FLAG_DF
        if flags & ~allowed:
            return c.EINVAL, f"command flags {flags:#x} do not apply to command {kind}"
        if kind == c.CMD_FLUSH:
            return (c.EINVAL, "a flush has no offset and no length") if offset or length else None
        if kind in _WRITES and rules.read_only:
            return c.EPERM, "the export is read-only"
        if length == 0:
            return c.EINVAL, "a request of no bytes"
        if offset + length > rules.size_bytes:
            error = c.ENOSPC if kind in {c.CMD_WRITE, c.CMD_WRITE_ZEROES} else c.EINVAL
            return error, f"bytes {offset}+{length} lie beyond the end at {rules.size_bytes}"
        if kind in {c.CMD_READ, c.CMD_WRITE} and length > c.PAYLOAD_BYTES_MAX:
            # a large read may be told so by EOVERFLOW ("NBD_CMD_READ", structured replies); nothing else may
            error = c.EOVERFLOW if kind == c.CMD_READ and rules.structured else c.EINVAL
            return error, f"{length} bytes are more than the maximum of {c.PAYLOAD_BYTES_MAX}"
        if kind == c.CMD_WRITE_ZEROES and flags & c.CMD_FLAG_FAST_ZERO and not rules.fast_zero:
            return c.ENOTSUP, "zeroing is no faster than writing here"
        if kind == c.CMD_BLOCK_STATUS and not rules.block_status:
            return c.EINVAL, "no meta context was selected"
        return None


def _kind_of(kind: int, flags: int) -> OpKind:
    if kind == c.CMD_TRIM:
        return OpKind.TRIM
    return OpKind.ZERO_ALLOCATE if flags & c.CMD_FLAG_NO_HOLE else OpKind.ZERO
