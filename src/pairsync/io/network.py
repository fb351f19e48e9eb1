"""What a link needs of the world: connections, a clock, entropy.  TCP here; the simulator has its own.

A link is written against `Network`, so that the same code runs over real sockets and over simulated ones
under a mock clock.  A `Connection` is lower than ``trio.abc.Stream`` on purpose: a lane must be able to try
a send from whichever task has data, at once and without a checkpoint, and to receive into its own buffer.

Errors: every method may raise ``OSError`` (the connection is of no use afterwards) except `close`.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol, TypeAlias

import trio

from pairsync.core.messages import Buffer
from pairsync.polling import attend

__all__ = [
    "LISTEN_BACKLOG",
    "Address",
    "Connection",
    "Listener",
    "Network",
    "TcpConnection",
    "TcpListener",
    "TcpNetwork",
    "describe_address",
]

Address: TypeAlias = tuple[str, int]
"""Host (a name, or a numeric IPv4 or IPv6 address) and port."""

LISTEN_BACKLOG = 64
"""Connections that wait in the kernel to be accepted; beyond that a dialer is made to retry."""

_WOULD_BLOCK = (BlockingIOError, InterruptedError)


def describe_address(address: Address) -> str:
    """``host:port``, with brackets around an IPv6 address."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Connection(Protocol):
    """An ordered byte stream; one task may receive and one may wait to send at a time."""

    @property
    def remote(self) -> Address:
        """The other end, for logs and for limits an address."""
        ...

    def send_nowait(self, data: Buffer) -> int:
        """Take some of ``data`` without blocking; returns how many bytes, 0 if there is no room now."""
        ...

    def wait_writable(self) -> Awaitable[None]:
        """Wait until `send_nowait` may take something."""
        ...

    def wait_readable(self) -> Awaitable[None]:
        """Wait until `receive_nowait` may return something."""
        ...

    def attend(self, take: Callable[[], bool]) -> Awaitable[None]:
        """Call ``take`` whenever `receive_nowait` may return something, until that returns False.

        It must not wait; it may be called outside of any task, while the caller's waits here.  What it raises
        comes out here.
        """
        ...

    def receive_nowait(self, buffer: memoryview) -> int | None:
        """Receive into ``buffer``; returns the bytes, 0 at the end, ``None`` if there is nothing now."""
        ...

    def close(self) -> None:
        """Hang up at once; waiting tasks get `trio.ClosedResourceError`.  May be called twice."""
        ...


class Listener(Protocol):
    """Accepts connections."""

    @property
    def address(self) -> Address:
        """The address that is bound, with the real port."""
        ...

    async def accept(self) -> Connection:
        """Wait for the next connection."""
        ...

    def close(self) -> None:
        """Stop listening."""
        ...


class Network(Protocol):
    """Connections, clock and entropy."""

    async def connect(self, address: Address, local: str | None) -> Connection:
        """Connect; ``local`` is the local address to bind to, which selects the network path."""
        ...

    async def listen(self, address: Address) -> Listener:
        """Bind and listen; port 0 takes a free one."""
        ...

    def now_ns(self) -> int:
        """A monotonic clock."""
        ...

    def entropy(self, count: int) -> bytes:
        """That many random bytes, fit for keys."""
        ...


class TcpConnection:
    """A non-blocking TCP socket, without Nagle's delay."""

    __slots__ = ("_remote", "_socket")

    def __init__(self, sock: socket.socket, remote: Address) -> None:
        self._socket = sock
        self._remote = remote
        sock.setblocking(False)
        # Buffer sizes are left to the kernel: setting them would switch its tuning off, and cap them.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def remote(self) -> Address:
        """The other end."""
        return self._remote

    def send_nowait(self, data: Buffer) -> int:
        """Send without blocking."""
        try:
            return self._socket.send(data)
        except _WOULD_BLOCK:
            return 0

    def wait_writable(self) -> Awaitable[None]:
        """Wait for room in the socket."""
        return trio.lowlevel.wait_writable(self._socket)  # noqa: ASYNC105  # the caller awaits it

    def attend(self, take: Callable[[], bool]) -> Awaitable[None]:
        """Wait for data in the socket, and polls where its process does (`pairsync.polling`)."""
        return attend(self._socket, take)

    def wait_readable(self) -> Awaitable[None]:
        """Wait for data in the socket."""
        return trio.lowlevel.wait_readable(self._socket)  # noqa: ASYNC105  # the caller awaits it

    def receive_nowait(self, buffer: memoryview) -> int | None:
        """Receive without blocking."""
        try:
            return self._socket.recv_into(buffer)
        except _WOULD_BLOCK:
            return None

    def close(self) -> None:
        """Hang up."""
        _hang_up(self._socket)


class TcpListener:
    """A listening TCP socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._address: Address = sock.getsockname()[:2]

    @property
    def address(self) -> Address:
        """The address that is bound."""
        return self._address

    async def accept(self) -> TcpConnection:
        """Wait for the next connection; one that vanished meanwhile is skipped."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                accepted, remote = self._socket.accept()
            except (*_WOULD_BLOCK, ConnectionAbortedError):
                continue
            with _closing_on_error(accepted):
                return TcpConnection(accepted, remote[:2])

    def close(self) -> None:
        """Hang up."""
        _hang_up(self._socket)


class TcpNetwork:
    """The real network, the system's monotonic clock, the operating system's entropy."""

    async def connect(self, address: Address, local: str | None) -> TcpConnection:
        """Connect a TCP socket; the caller sets a deadline."""
        family, remote = await _resolve(address)
        sock = socket.socket(family, socket.SOCK_STREAM)
        with _closing_on_error(sock):
            sock.setblocking(False)
            if local is not None:
                sock.bind((local, 0))
            code = sock.connect_ex(remote)
            if code == errno.EINPROGRESS:
                await trio.lowlevel.wait_writable(sock)
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, f"connect to {describe_address(address)}: {errno.errorcode.get(code)}")
            return TcpConnection(sock, remote[:2])

    async def listen(self, address: Address) -> TcpListener:
        """Bind and listen."""
        family, local = await _resolve(address)
        sock = socket.socket(family, socket.SOCK_STREAM)
        with _closing_on_error(sock):
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(local)
            sock.listen(LISTEN_BACKLOG)
            return TcpListener(sock)

    now_ns = staticmethod(time.monotonic_ns)
    """The system's monotonic clock."""

    def entropy(self, count: int) -> bytes:
        """From the operating system."""
        return secrets.token_bytes(count)


async def _resolve(address: Address) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """The first address that the resolver gives, with its family."""
    host, port = address
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, _, _, _, where = found[0]
    return family, where  # type: ignore[return-value]  # IPv6 has two fields more, which connect accepts


def _hang_up(sock: socket.socket) -> None:
    if sock.fileno() != -1:
        trio.lowlevel.notify_closing(sock)
        sock.close()


@contextlib.contextmanager
def _closing_on_error(sock: socket.socket) -> Iterator[None]:
    try:
        yield
    except BaseException:
        sock.close()
        raise
