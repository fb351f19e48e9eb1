"""Where a connection's bytes come from and go to: a socket, or any trio stream (TLS).

The common interface is what the data plane needs: `Transport.receive` hands out a buffer that nobody else
has, `Transport.send_nowait` sends what goes without waiting, so that a reply needs no task switch.  A socket
is used without `trio.SocketStream`, whose every receive and send costs a pass through the scheduler more.

One task receives and one task waits in `send_all`; `send_nowait` may be called by anybody while no
`send_all` is under way.  A peer that is gone is `PeerLost`, an orderly end is an empty buffer.
"""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Callable
from typing import Protocol

import trio

from pairsync.core.messages import Buffer
from pairsync.errors import PeerLost
from pairsync.polling import attend

__all__ = ["RECEIVE_BYTES", "SocketTransport", "StreamTransport", "Transport"]

RECEIVE_BYTES = 256 * 1024
"""Most that one receive asks for: 62 writes of 4 KiB, about a tenth of a millisecond of work."""


class Transport(Protocol):
    """One connected client."""

    async def receive(self) -> bytes:
        """At most `RECEIVE_BYTES`; empty at the end; raises `PeerLost`."""

    async def attend(self, take: Callable[[bytes], bool]) -> None:
        """Call ``take`` with all that is received, as by `receive`, until it returns False.

        It must not wait; it may be called outside of any task, while the caller's waits here.  What it raises
        comes out here.
        """

    async def receive_into(self, window: memoryview) -> int:
        """How many bytes were put at the start of ``window``; 0 at the end; raises `PeerLost`."""

    def receive_nowait_into(self, window: memoryview) -> int | None:
        """As `receive_into` if something is here already, else None; no checkpoint."""

    def send_nowait(self, data: Buffer) -> int:
        """How many bytes were taken at once, maybe none; raises `PeerLost`."""

    async def send_all(self, data: Buffer) -> None:
        """Send everything; raises `PeerLost`."""

    def hung_up(self) -> bool:
        """Whether the peer has closed its side, though more that it has sent may be here to be received."""

    async def start_tls(self, context: ssl.SSLContext) -> Transport:
        """Do the server's side of a TLS handshake; the result owns what this one owned.

        Raises `PeerLost`; until it returns, this one is still to be closed.
        """

    async def aclose(self) -> None:
        """Close, saying so where the protocol can; when cancelled, close without."""


class SocketTransport:
    """A connected non-blocking stream socket, which it owns."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    async def receive(self) -> bytes:
        """See `Transport.receive`.  Always a checkpoint, so a busy client lets others have their turn."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                return self._socket.recv(RECEIVE_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                raise PeerLost("receiving failed") from error

    async def attend(self, take: Callable[[bytes], bool]) -> None:
        """See `Transport.attend`."""
        receive = self._socket.recv

        def step() -> bool:
            try:
                data = receive(RECEIVE_BYTES)
            except BlockingIOError:
                return True
            except OSError as error:
                raise PeerLost("receiving failed") from error
            return take(data)

        await attend(self._socket, step)

    async def receive_into(self, window: memoryview) -> int:
        """See `Transport.receive_into`.  Always a checkpoint, likewise."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            count = self.receive_nowait_into(window)
            if count is not None:
                return count

    def receive_nowait_into(self, window: memoryview) -> int | None:
        """See `Transport.receive_nowait_into`."""
        try:
            return self._socket.recv_into(window)
        except BlockingIOError:
            return None
        except OSError as error:
            raise PeerLost("receiving failed") from error

    def send_nowait(self, data: Buffer) -> int:
        """See `Transport.send_nowait`."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise PeerLost("sending failed") from error

    async def send_all(self, data: Buffer) -> None:
        """See `Transport.send_all`."""
        rest = memoryview(data)
        while True:
            rest = rest[self.send_nowait(rest) :]
            if not rest:
                break
            await trio.lowlevel.wait_writable(self._socket)
        await trio.lowlevel.checkpoint()

    def hung_up(self) -> bool:
        """See `Transport.hung_up`."""
        return _hung_up(self._socket.fileno())

    async def start_tls(self, context: ssl.SSLContext) -> StreamTransport:
        """See `Transport.start_tls`."""
        return await _start_tls(trio.SocketStream(trio.socket.from_stdlib_socket(self._socket)), context)

    async def aclose(self) -> None:
        """Close the socket; the kernel still delivers what was sent."""
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()
        await trio.lowlevel.checkpoint()


class StreamTransport:
    """A trio stream, which it owns: TLS over a socket, or a stream in memory."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream

    async def receive(self) -> bytes:
        """See `Transport.receive`."""
        try:
            return bytes(await self._stream.receive_some(RECEIVE_BYTES))
        except trio.BrokenResourceError as error:
            raise PeerLost("receiving failed") from error

    async def attend(self, take: Callable[[bytes], bool]) -> None:
        """See `Transport.attend`."""
        while take(await self.receive()):
            pass

    async def receive_into(self, window: memoryview) -> int:
        """See `Transport.receive_into`; a stream can only give a buffer, so this copies."""
        try:
            data = await self._stream.receive_some(min(len(window), RECEIVE_BYTES))
        except trio.BrokenResourceError as error:
            raise PeerLost("receiving failed") from error
        window[: len(data)] = data
        return len(data)

    def receive_nowait_into(self, window: memoryview) -> int | None:  # noqa: ARG002 - as below
        """See `Transport.receive_nowait_into`: what is here cannot be known."""
        return None

    def send_nowait(self, data: Buffer) -> int:  # noqa: ARG002 - a stream has no way to send without waiting
        """See `Transport.send_nowait`: nothing goes at once."""
        return 0

    async def send_all(self, data: Buffer) -> None:
        """See `Transport.send_all`."""
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError as error:
            raise PeerLost("sending failed") from error

    def hung_up(self) -> bool:
        """See `Transport.hung_up`; of a stream that has no socket below it, it is not known."""
        stream = self._stream
        if isinstance(stream, trio.SSLStream):
            stream = stream.transport_stream
        return isinstance(stream, trio.SocketStream) and _hung_up(stream.socket.fileno())

    async def start_tls(self, context: ssl.SSLContext) -> StreamTransport:
        """See `Transport.start_tls`."""
        return await _start_tls(self._stream, context)

    async def aclose(self) -> None:
        """Close the stream; over TLS that sends close_notify."""
        await self._stream.aclose()


def _hung_up(descriptor: int) -> bool:
    if descriptor < 0:
        return True  # closed here
    poll = select.poll()
    poll.register(descriptor, select.POLLRDHUP)  # errors are told in any case
    return bool(poll.poll(0))


async def _start_tls(stream: trio.abc.Stream, context: ssl.SSLContext) -> StreamTransport:
    encrypted = trio.SSLStream(stream, context, server_side=True)
    try:
        await encrypted.do_handshake()
    except trio.BrokenResourceError as error:
        raise PeerLost(f"the TLS handshake failed: {error.__cause__ or error}") from error
    return StreamTransport(encrypted)
