"""`NbdClient`: a small NBD client on trio, for tests: it says what the protocol allows, and what it forbids.

The convenient calls (`negotiate`, `read`, `write`, `flush`, ...) keep the protocol and raise
`NbdReplyError` with the server's error.  The plain ones (`send`, `option`, `request`, `reply`) send whatever
they are told, in whatever order, so that a test can hang up half way or lie about a length.  It was written
from the protocol document and shares only `pairsync.nbd.constants` with the server.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import trio

from pairsync.errors import PeerLost, ProtocolError
from pairsync.nbd import constants as c

__all__ = ["NbdClient", "NbdReply", "NbdReplyError", "OptionReply"]

_GREETING = struct.Struct(">QQH")
_OPTION = struct.Struct(">QII")
_OPTION_REPLY = struct.Struct(">QIII")
_REQUEST = struct.Struct(">IHHQQI")
_SIMPLE_REST = struct.Struct(">IQ")
_CHUNK_REST = struct.Struct(">HHQI")
_U32 = struct.Struct(">I")

RECEIVE_BYTES = 256 * 1024


class NbdReplyError(Exception):
    """The server answered with an error: a number of the protocol's "Error values"."""

    def __init__(self, error: int, message: str) -> None:
        super().__init__(f"{error}: {message}")
        self.error = error
        self.message = message


@dataclass(frozen=True, slots=True)
class OptionReply:
    """One reply packet of the handshake."""

    option: int
    kind: int
    data: bytes

    @property
    def final(self) -> bool:
        """Whether no other reply to this option follows."""
        return self.kind == c.REP_ACK or bool(self.kind & c.REP_ERROR_BIT)


@dataclass(slots=True)
class NbdReply:
    """A whole reply of the transmission phase, its chunks put together."""

    cookie: int
    error: int = 0
    message: str = ""
    data: bytes = b""
    contexts: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    """Extents by the id of their meta context."""
    chunks: int = 0
    """0 for a simple reply."""

    def check(self) -> NbdReply:
        """Itself, or raises `NbdReplyError`."""
        if self.error:
            raise NbdReplyError(self.error, self.message)
        return self


class NbdClient:
    """One connection over a stream that it owns; see the module's text."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.structured = False
        self.contexts: dict[str, int] = {}
        self.size_bytes = 0
        self.flags = 0
        self._received = bytearray()
        self._reads: dict[int, int] = {}  # cookie -> length, to parse simple replies
        self._cookie = 0

    @classmethod
    async def connect_unix(cls, path: str) -> NbdClient:
        """Connect to a Unix socket; nothing is said yet."""
        return cls(await trio.open_unix_socket(path))

    @classmethod
    async def connect_tcp(cls, host: str, port: int) -> NbdClient:
        """Connect to a TCP socket; nothing is said yet."""
        return cls(await trio.open_tcp_stream(host, port))

    async def aclose(self) -> None:
        """Hang up."""
        await trio.aclose_forcefully(self.stream)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # -- bytes -----------------------------------------------------------------------------------------------

    async def send(self, data: bytes) -> None:
        """Send these bytes, whatever they are; raises `PeerLost`."""
        try:
            await self.stream.send_all(data)
        except trio.BrokenResourceError as error:
            raise PeerLost("the server hung up") from error

    async def receive(self, count: int) -> bytes:
        """Exactly ``count`` bytes; raises `PeerLost` if the server hangs up before."""
        while len(self._received) < count:
            try:
                data = await self.stream.receive_some(RECEIVE_BYTES)
            except trio.BrokenResourceError as error:
                raise PeerLost("the server hung up") from error
            if not data:
                raise PeerLost("the server hung up")
            self._received += data
        taken = bytes(self._received[:count])
        del self._received[:count]
        return taken

    async def wait_hang_up(self) -> bytes:
        """What the server still says until it hangs up."""
        rest = bytes(self._received)
        self._received.clear()
        while True:
            try:
                data = await self.stream.receive_some(RECEIVE_BYTES)
            except trio.BrokenResourceError:
                return rest
            if not data:
                return rest
            rest += data

    # -- handshake -------------------------------------------------------------------------------------------

    async def greet(self, flags: int = c.FLAG_C_FIXED_NEWSTYLE | c.FLAG_C_NO_ZEROES) -> int:
        """Take the server's greeting and send the client flags; returns the handshake flags."""
        init, magic, handshake_flags = _GREETING.unpack(await self.receive(_GREETING.size))
        if (init, magic) != (c.INIT_MAGIC, c.OPTION_MAGIC):
            raise ProtocolError("that is no newstyle server")
        await self.send(_U32.pack(flags))
        return int(handshake_flags)

    @staticmethod
    def option_bytes(option: int, data: bytes = b"", *, length: int | None = None) -> bytes:
        """An option, with its true length or another one."""
        return _OPTION.pack(c.OPTION_MAGIC, option, len(data) if length is None else length) + data

    async def option(self, option: int, data: bytes = b"") -> list[OptionReply]:
        """Send an option and take all its replies."""
        await self.send(self.option_bytes(option, data))
        return await self.option_replies()

    async def option_replies(self) -> list[OptionReply]:
        """Replies up to and including the next final one."""
        replies: list[OptionReply] = []
        while not replies or not replies[-1].final:
            magic, option, kind, length = _OPTION_REPLY.unpack(await self.receive(_OPTION_REPLY.size))
            if magic != c.OPTION_REPLY_MAGIC:
                raise ProtocolError(f"bad option reply magic {magic:#x}")
            replies.append(OptionReply(option, kind, await self.receive(length)))
        return replies

    @staticmethod
    def info_data(name: str, wanted: Sequence[int] = ()) -> bytes:
        """Data of OPT_INFO and OPT_GO."""
        raw = name.encode()
        return _U32.pack(len(raw)) + raw + struct.pack(f">H{len(wanted)}H", len(wanted), *wanted)

    @staticmethod
    def meta_data(name: str, queries: Sequence[str] = ()) -> bytes:
        """Data of OPT_LIST_META_CONTEXT and OPT_SET_META_CONTEXT."""
        raw = name.encode()
        parts = [_U32.pack(len(raw)), raw, _U32.pack(len(queries))]
        for query in queries:
            parts += [_U32.pack(len(query.encode())), query.encode()]
        return b"".join(parts)

    async def negotiate(
        self, name: str, *, structured: bool = True, contexts: Sequence[str] = ()
    ) -> NbdClient:
        """Greet, agree on what is wanted and enter transmission; raises `NbdReplyError`."""
        await self.greet()
        if structured:
            self._final(await self.option(c.OPT_STRUCTURED_REPLY))
            self.structured = True
        if contexts:
            replies = await self.option(c.OPT_SET_META_CONTEXT, self.meta_data(name, contexts))
            self._final(replies)
            self.contexts = {
                reply.data[4:].decode(): _U32.unpack_from(reply.data)[0] for reply in replies[:-1]
            }
        await self.go(name)
        return self

    async def negotiate_or_hang_up(self, name: str, **options: Any) -> NbdClient:
        """As `negotiate`, for one whose caller could not close it where that fails or is cancelled."""
        try:
            return await self.negotiate(name, **options)
        except BaseException:
            await self.aclose()
            raise

    async def go(self, name: str) -> None:
        """OPT_GO; raises `NbdReplyError`."""
        replies = await self.option(c.OPT_GO, self.info_data(name))
        self._final(replies)
        for reply in replies[:-1]:
            if reply.data[:2] == bytes(2):
                self.size_bytes, self.flags = struct.unpack(">QH", reply.data[2:])

    @staticmethod
    def _final(replies: Sequence[OptionReply]) -> None:
        last = replies[-1]
        if last.kind != c.REP_ACK:
            raise NbdReplyError(last.kind, last.data.decode())

    # -- transmission ----------------------------------------------------------------------------------------

    @staticmethod
    def request_bytes(
        kind: int, offset: int = 0, length: int = 0, *, flags: int = 0, cookie: int = 0, payload: bytes = b""
    ) -> bytes:
        """A request as it travels; nothing is checked."""
        return _REQUEST.pack(c.REQUEST_MAGIC, flags, kind, cookie, offset, length) + payload

    async def request(
        self, kind: int, offset: int = 0, length: int = 0, *, flags: int = 0, payload: bytes = b""
    ) -> int:
        """Send a request and return its cookie."""
        self._cookie += 1
        if kind == c.CMD_READ:
            self._reads[self._cookie] = length
        data = self.request_bytes(kind, offset, length, flags=flags, cookie=self._cookie, payload=payload)
        await self.send(data)
        return self._cookie

    async def reply(self) -> NbdReply:
        """The next whole reply; chunks of different requests must not be interleaved."""
        reply: NbdReply | None = None
        while True:
            magic: int = _U32.unpack(await self.receive(4))[0]
            if magic == c.SIMPLE_REPLY_MAGIC:
                return await self._simple_reply()
            if magic != c.STRUCTURED_REPLY_MAGIC or not self.structured:
                raise ProtocolError(f"bad reply magic {magic:#x}")
            flags, kind, cookie, length = _CHUNK_REST.unpack(await self.receive(_CHUNK_REST.size))
            if reply is None:
                reply = NbdReply(cookie)
            elif reply.cookie != cookie:
                raise ProtocolError("interleaved replies")
            self._chunk(reply, kind, await self.receive(length))
            if flags & c.REPLY_FLAG_DONE:
                self._reads.pop(cookie, None)
                return reply

    async def _simple_reply(self) -> NbdReply:
        error, cookie = _SIMPLE_REST.unpack(await self.receive(_SIMPLE_REST.size))
        length = self._reads.pop(cookie, None)
        if length is None or error:
            return NbdReply(cookie, error)
        if self.structured:
            raise ProtocolError("a simple reply to a read")
        return NbdReply(cookie, data=await self.receive(length))

    @staticmethod
    def _chunk(reply: NbdReply, kind: int, payload: bytes) -> None:
        reply.chunks += 1
        if kind == c.REPLY_TYPE_OFFSET_DATA:
            reply.data += payload[8:]
        elif kind == c.REPLY_TYPE_BLOCK_STATUS:
            extents = list(struct.iter_unpack(">II", payload[4:]))
            reply.contexts[_U32.unpack_from(payload)[0]] = [(length, flags) for length, flags in extents]
        elif kind == c.REPLY_TYPE_ERROR:
            reply.error, length = struct.unpack_from(">IH", payload)
            reply.message = payload[6 : 6 + length].decode()
        elif kind != c.REPLY_TYPE_NONE:
            raise ProtocolError(f"unexpected chunk type {kind}")

    async def command(
        self, kind: int, offset: int = 0, length: int = 0, *, flags: int = 0, payload: bytes = b""
    ) -> NbdReply:
        """Send a request and take its reply, which must be the next; does not raise for an error in it."""
        cookie = await self.request(kind, offset, length, flags=flags, payload=payload)
        reply = await self.reply()
        if reply.cookie != cookie:
            raise ProtocolError(f"a reply to {reply.cookie} instead of {cookie}")
        return reply

    async def read(self, offset: int, length: int) -> bytes:
        """READ; raises `NbdReplyError`."""
        return (await self.command(c.CMD_READ, offset, length)).check().data

    async def write(self, offset: int, data: bytes, *, flags: int = 0) -> None:
        """WRITE; raises `NbdReplyError`."""
        (await self.command(c.CMD_WRITE, offset, len(data), flags=flags, payload=data)).check()

    async def zero(self, offset: int, length: int, *, flags: int = 0) -> None:
        """WRITE_ZEROES; raises `NbdReplyError`."""
        (await self.command(c.CMD_WRITE_ZEROES, offset, length, flags=flags)).check()

    async def trim(self, offset: int, length: int, *, flags: int = 0) -> None:
        """TRIM; raises `NbdReplyError`."""
        (await self.command(c.CMD_TRIM, offset, length, flags=flags)).check()

    async def flush(self) -> None:
        """FLUSH; raises `NbdReplyError`."""
        (await self.command(c.CMD_FLUSH)).check()

    async def block_status(
        self, offset: int, length: int, *, flags: int = 0
    ) -> dict[str, list[tuple[int, int]]]:
        """BLOCK_STATUS by the names of the selected contexts; raises `NbdReplyError`."""
        reply = (await self.command(c.CMD_BLOCK_STATUS, offset, length, flags=flags)).check()
        return {name: reply.contexts[number] for name, number in self.contexts.items()}

    async def disconnect(self) -> bytes:
        """DISC, and what the server still says until it hangs up."""
        await self.request(c.CMD_DISC)
        return await self.wait_hang_up()
