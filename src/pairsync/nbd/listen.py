"""Listening sockets of the front door: a Unix socket for the owner only, or TCP.

A Unix socket gets mode 0600 between bind and listen, so before anybody can connect.  The socket of a server
that is gone is replaced; one that still answers, and a file that is no socket, are left alone.  When it is
closed its file is removed, if it still is ours.

TCP beyond loopback carries a guest's disk over a network: `NbdListener.exposed` says so, and the server
refuses it unless TLS is required.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
from pathlib import Path

import trio

from pairsync.errors import BackendError, BusyError, ConfigError, PairsyncError

__all__ = ["NbdListener", "open_tcp_listeners", "open_unix_listener"]

BACKLOG_CONNECTIONS = 512
"""Connections the kernel may hold for us; as many as are served in all."""

UNIX_PATH_BYTES_MAX = 107
"""``sun_path`` of Linux without its closing NUL."""


class NbdListener:
    """A listening, non-blocking stream socket, which it owns."""

    def __init__(self, sock: socket.socket, *, address: str, exposed: bool, path: Path | None = None) -> None:
        self.socket = sock
        self.address = address
        """For people and logs: ``unix:/run/vda.sock`` or ``tcp:127.0.0.1:10809``."""
        self.exposed = exposed
        """Whether other hosts can reach it."""
        self.path = path
        """The file of a Unix socket."""
        self._identity = _identity(path) if path is not None else None

    @property
    def port(self) -> int | None:
        """The TCP port, also where 0 was asked for; None for a Unix socket."""
        if self.path is not None:
            return None
        port: int = self.socket.getsockname()[1]
        return port

    def close(self) -> None:
        """Stop listening, and remove the file of a Unix socket if it still is this one's.  Idempotent."""
        if self.socket.fileno() < 0:
            return
        if self.path is not None and _identity(self.path) == self._identity:
            self.path.unlink()
        self.socket.close()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _is_served(path: Path) -> bool:
    """Whether somebody listens on that Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full backlog answers EAGAIN, which means: somebody listens
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:
            return True
    return True


def _clear(place: Path) -> None:
    """Remove the socket of a server that is gone."""
    try:
        mode = place.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{place} exists and is not a socket")
    if _is_served(place):
        raise BusyError(f"another server listens on {place}")
    place.unlink()


def open_unix_listener(path: str | os.PathLike[str]) -> NbdListener:
    """Listen on a Unix socket of mode 0600.

    Raises `ConfigError` for a path that cannot be one, `BusyError` if another server answers there, and
    `BackendError` if the operating system refuses.
    """
    place = Path(path)
    path_bytes = len(os.fsencode(place))
    if path_bytes > UNIX_PATH_BYTES_MAX:
        raise ConfigError(
            f"the socket path {place} is too long: {path_bytes} bytes, {UNIX_PATH_BYTES_MAX} are possible"
        )
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _clear(place)
        sock.bind(str(place))
        place.chmod(0o600)
        sock.listen(BACKLOG_CONNECTIONS)
    except OSError as error:
        sock.close()
        raise BackendError(f"cannot listen on {place}: {error.strerror}", error.errno or errno.EIO) from error
    except PairsyncError:
        sock.close()
        raise
    sock.setblocking(False)
    return NbdListener(sock, address=f"unix:{place}", exposed=False, path=place)


async def open_tcp_listeners(host: str, port: int) -> list[NbdListener]:
    """Listen on every address of ``host`` (port 0: a free one each); the protocol's own port is 10809.

    Raises `ConfigError` if the name has no address and `BackendError` if one cannot be bound.
    """
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise ConfigError(f"{host!r} has no address to listen on: {error.strerror}") from error
    listeners: list[NbdListener] = []
    try:
        for family, kind, protocol, _, address in found:
            listeners.append(_open_tcp(family, kind, protocol, address))
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _open_tcp(family: int, kind: int, protocol: int, address: tuple[object, ...]) -> NbdListener:
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(BACKLOG_CONNECTIONS)
    except OSError as error:
        sock.close()
        raise BackendError(
            f"cannot listen on {address[0]} port {address[1]}: {error.strerror}", error.errno or errno.EIO
        ) from error
    sock.setblocking(False)
    name = sock.getsockname()
    host = f"[{name[0]}]" if family == socket.AF_INET6 else str(name[0])
    exposed = not ipaddress.ip_address(str(name[0]).partition("%")[0]).is_loopback
    return NbdListener(sock, address=f"tcp:{host}:{name[1]}", exposed=exposed)
