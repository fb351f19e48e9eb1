"""The NBD server: accepts clients, takes each through its handshake, serves it, and counts.

Theory of operation.  One accept task a listener, one task a client (`connection` adds those that it needs).
A client is *handshaking* until it has chosen an export, within a deadline.  Strangers cannot shut the door:
when there is no room, the one among the handshaking that has been without progress for longest goes, and only
if all are established the new one is turned away.  An accept task takes a few clients a turn, so a flood of
connections does not starve those that are served.

Everything that is refused is counted by reason (`NbdStatistics.refused`) and logged: the first few of each
reason and then each time their number doubles, so that a flood does not fill the log.

What a server owns ends with `NbdServer.serve`: listeners, clients, tasks.  Exports belong to the caller.
"""

from __future__ import annotations

import collections
import errno
import logging
import socket
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import trio

from pairsync.errors import BackendError, ConfigError, InternalError, PeerLost, ProtocolError, RefusedError

from .budget import Budget
from .connection import Connection
from .export import Export
from .limits import NbdLimits
from .listen import NbdListener
from .negotiation import Chosen, Negotiation, StartTls, TlsMode
from .replies import SCRATCH_BYTES
from .traffic import Traffic
from .transport import SocketTransport, StreamTransport, Transport

__all__ = ["NbdServer", "NbdStatistics", "serve_nbd"]

_log = logging.getLogger("pairsync.nbd")

ACCEPTS_A_TURN = 8
"""Clients that an accept task takes before others have their turn: a handshake needs a few turns, and
`NbdLimits.handshakes_max` newcomers in that time would push it out."""

ACCEPT_BACK_OFF_S = 0.1
"""Pause when the process has no descriptors or memory for one more client; the kernel keeps them waiting."""

KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 60, 10, 6
"""A TCP client whose host has vanished is noticed within two minutes."""

LOGGED_FULLY = 8
"""Refusals of one reason that are all logged; from there on only each doubling."""

_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_NOT_LISTENING = frozenset({errno.EBADF, errno.EFAULT, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP})
"""Any other error of accept(2) is one of the new connection: its manual says to try the next."""


@dataclass(frozen=True, slots=True)
class NbdStatistics:
    """A moment's view of a server; the totals only grow."""

    connections: int
    """Clients in transmission."""
    handshaking: int
    clients: Mapping[str, int]
    """Clients in transmission, by the name of their export."""
    bytes_in_flight: int
    """Payload of requests that arrive or are in flight, and replies not taken yet."""
    accepted: int
    requests: int
    reads: int
    writes: int
    errors: int
    bytes_read: int
    bytes_written: int
    refused: Mapping[str, int]
    """Clients that were turned away or cut off, by reason."""


class _Handshake:
    """A client that has not chosen an export yet."""

    def __init__(self, transport: Transport, who: str, negotiation: Negotiation, deadline_s: float) -> None:
        self.transport = transport  # owned by the task that serves the client; replaced when TLS begins
        self.who = who
        self.negotiation = negotiation  # replaced when TLS begins
        self.scope = trio.CancelScope(deadline=trio.current_time() + deadline_s)
        self.evicted = False


class NbdServer:
    """Serves ``exports`` by their key; see the module's theory.

    The mapping is looked at for every option, so exports may come and go.  ``default_export`` is what a
    client gets that asks for the empty name.  Raises `ConfigError` if ``tls_mode`` needs a context.
    """

    def __init__(
        self,
        exports: Mapping[str, Export],
        *,
        tls: ssl.SSLContext | None = None,
        tls_mode: TlsMode = TlsMode.OFF,
        limits: NbdLimits | None = None,
        default_export: str | None = None,
    ) -> None:
        if (tls is None) != (tls_mode is TlsMode.OFF):
            need = "needs an SSL context" if tls is None else "takes no SSL context"
            raise ConfigError(f"TLS mode {tls_mode.value!r} {need}")
        self._exports = exports
        self._tls = tls
        self._tls_mode = tls_mode
        self._limits = limits or NbdLimits()
        self._default_export = default_export
        self._budget = Budget(self._limits.total_bytes_in_flight_max, self._limits.total_bytes_hard_max)
        self._traffic = Traffic()
        self._scratch = memoryview(bytearray(SCRATCH_BYTES))
        # handshaking clients, the one longest without progress first; a dict for its order
        self._handshakes: dict[_Handshake, None] = {}
        self._connections: dict[Connection, None] = {}
        self._accepting: set[trio.CancelScope] = set()
        self._accepted = 0
        self._refused: collections.Counter[str] = collections.Counter()
        self._draining = False

    def statistics(self) -> NbdStatistics:
        """What the server does now and has done so far."""
        traffic = self._traffic
        clients = collections.Counter(connection.export.name for connection in self._connections)
        return NbdStatistics(
            connections=len(self._connections),
            handshaking=len(self._handshakes),
            clients=dict(clients),
            bytes_in_flight=self._budget.used_bytes,
            accepted=self._accepted,
            requests=traffic.requests,
            reads=traffic.reads,
            writes=traffic.writes,
            errors=traffic.errors,
            bytes_read=traffic.bytes_read,
            bytes_written=traffic.bytes_written,
            refused=dict(self._refused),
        )

    async def serve(
        self,
        listeners: Iterable[NbdListener],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled or drained; closes the listeners.

        Raises `ConfigError` before anything is served if a listener can be reached from other hosts and TLS
        is not required.
        """
        owned = list(listeners)
        try:
            for listener in owned:
                if listener.exposed and self._tls_mode is not TlsMode.REQUIRE:
                    raise ConfigError(
                        f"{listener.address} can be reached from other hosts: serve it with TLS required, or "
                        "listen on loopback or a Unix socket"
                    )
            async with trio.open_nursery() as clients:
                for listener in owned:
                    clients.start_soon(self._accept, listener, clients)
                    _log.info("serving NBD on %s", listener.address)
                task_status.started()
        finally:
            for listener in owned:
                listener.close()

    async def serve_stream(self, stream: trio.abc.Stream, who: str = "stream") -> None:
        """Serve one client over a connected trio stream, which is closed at the end."""
        await self._serve_client(self._begin(StreamTransport(stream), who))

    def disconnect(self, export_name: str) -> int:
        """Hang up on every client of an export, at once; returns how many there were."""
        victims = [connection for connection in self._connections if connection.export.name == export_name]
        for connection in victims:
            connection.cancel()
        return len(victims)

    async def drain(self) -> None:
        """Accept nobody, answer what is in flight, refuse the rest as shutting down, hang up.

        "Terminating the transmission phase" of the protocol document.  Takes at most
        `NbdLimits.drain_deadline_s`; then `serve` returns.
        """
        self._draining = True
        for scope in self._accepting:
            scope.cancel()
        for handshake in self._handshakes:
            handshake.negotiation.shutting_down = True
        connections = list(self._connections)
        with trio.move_on_after(self._limits.drain_deadline_s):
            async with trio.open_nursery() as nursery:
                for connection in connections:
                    nursery.start_soon(connection.drain)
        for connection in self._connections:
            connection.cancel()
        for handshake in self._handshakes:
            handshake.scope.cancel()

    # -- accepting -------------------------------------------------------------------------------------------

    async def _accept(self, listener: NbdListener, clients: trio.Nursery) -> None:
        with trio.CancelScope() as scope:
            self._accepting.add(scope)
            try:
                while True:
                    await trio.lowlevel.wait_readable(listener.socket)
                    if not self._accept_some(listener, clients):
                        await trio.sleep(ACCEPT_BACK_OFF_S)
            finally:
                self._accepting.discard(scope)

    def _accept_some(self, listener: NbdListener, clients: trio.Nursery) -> bool:
        """Take what waits, a few at most; False if the process is out of descriptors or memory."""
        for _ in range(ACCEPTS_A_TURN):
            try:
                sock, address = listener.socket.accept()
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno in _NOT_LISTENING:
                    raise BackendError(f"cannot accept on {listener.address}", error.errno) from error
                scarce = error.errno in _OUT_OF_RESOURCES
                reason = "no descriptors" if scarce else "not accepted"
                self._refuse(reason, listener.address, f"accepting fails: {error.strerror}")
                if scarce:
                    return False
                continue
            self._accepted += 1
            self._admit(sock, f"{listener.address} {_describe(address)}", clients)
        return True

    def _admit(self, sock: socket.socket, who: str, clients: trio.Nursery) -> None:
        limits = self._limits
        in_all = len(self._connections) + len(self._handshakes)
        if in_all >= limits.connections_max and not self._handshakes:
            sock.close()
            self._refuse("full", who, f"{in_all} clients are connected")
            return
        if in_all >= limits.connections_max or len(self._handshakes) >= limits.handshakes_max:
            self._evict()
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            _tune_tcp(sock)
        clients.start_soon(self._serve_client, self._begin(SocketTransport(sock), who))

    def _begin(self, transport: Transport, who: str) -> _Handshake:
        negotiation = Negotiation(
            self._exports,
            tls_mode=self._tls_mode,
            default_export=self._default_export,
            options_max=self._limits.options_max,
        )
        negotiation.shutting_down = self._draining
        handshake = _Handshake(transport, who, negotiation, self._limits.handshake_deadline_s)
        self._handshakes[handshake] = None
        return handshake

    def _evict(self) -> None:
        """Drop the handshaking client that has been without progress for longest."""
        victim = next(iter(self._handshakes))
        del self._handshakes[victim]
        victim.evicted = True
        victim.scope.cancel()

    # -- one client ------------------------------------------------------------------------------------------

    async def _serve_client(self, handshake: _Handshake) -> None:
        try:
            chosen = await self._shake_hands(handshake)
            if chosen is not None:
                await self._transmit(handshake, chosen)
        except RefusedError as error:
            self._refuse("handshake", handshake.who, str(error))
        except ProtocolError as error:
            self._refuse("protocol", handshake.who, str(error))
        except PeerLost as error:
            _log.debug("%s: %s (%s)", handshake.who, error, error.__cause__)
        finally:
            self._handshakes.pop(handshake, None)
            with trio.move_on_after(self._limits.tls_close_deadline_s):
                await handshake.transport.aclose()

    async def _shake_hands(self, handshake: _Handshake) -> Chosen | None:
        """The handshake within its deadline; None if there will be no transmission."""
        with handshake.scope:
            chosen = await self._negotiate(handshake)
            self._handshakes.pop(handshake, None)
            return chosen
        if handshake.evicted:
            self._refuse("evicted", handshake.who, "no progress in its handshake, and others are waiting")
        elif not self._draining:
            deadline_s = self._limits.handshake_deadline_s
            self._refuse("deadline", handshake.who, f"no export chosen within {deadline_s:g} s")
        return None

    async def _negotiate(self, handshake: _Handshake) -> Chosen | None:
        await handshake.transport.send_all(handshake.negotiation.greeting())
        while True:
            negotiation, transport = handshake.negotiation, handshake.transport
            while (reply := negotiation.step()) is not None:
                await transport.send_all(reply)
                self._make_youngest(handshake)
            outcome = negotiation.outcome
            if outcome is None:
                data = await transport.receive()
                if not data:
                    raise PeerLost("hung up during the handshake")
                negotiation.feed(data)
            elif isinstance(outcome, Chosen):
                return outcome
            elif isinstance(outcome, StartTls):
                await self._start_tls(handshake, outcome)
            elif outcome.clean:
                _log.debug("%s: %s", handshake.who, outcome.reason)
                return None
            else:
                raise RefusedError(outcome.reason)

    async def _start_tls(self, handshake: _Handshake, outcome: StartTls) -> None:
        if self._tls is None:
            raise InternalError("a client was told to start TLS, and there is no TLS")
        if outcome.dropped_bytes:
            self._refuse(
                "plain text after STARTTLS", handshake.who, f"{outcome.dropped_bytes} bytes were thrown away"
            )
        handshake.transport = await handshake.transport.start_tls(self._tls)
        handshake.negotiation = handshake.negotiation.after_tls()

    def _make_youngest(self, handshake: _Handshake) -> None:
        if handshake in self._handshakes:
            del self._handshakes[handshake]
            self._handshakes[handshake] = None

    async def _transmit(self, handshake: _Handshake, chosen: Chosen) -> None:
        connection = Connection(
            handshake.transport,
            chosen,
            limits=self._limits,
            budget=self._budget,
            traffic=self._traffic,
            scratch=self._scratch,
        )
        self._connections[connection] = None
        _log.debug("%s: serving %r", handshake.who, chosen.export.name)
        try:
            reason = await connection.run()
        finally:
            del self._connections[connection]
            if connection.stalled is not None:
                self._refuse("stalled", handshake.who, connection.stalled)
        _log.debug("%s: %s", handshake.who, reason)

    def _refuse(self, reason: str, who: str, message: str) -> None:
        """Count, and log the first few and then each doubling."""
        self._refused[reason] += 1
        count = self._refused[reason]
        if count <= LOGGED_FULLY or count & (count - 1) == 0:
            _log.warning("%s: refused (%s, number %d): %s", who, reason, count, message)


def _describe(address: object) -> str:
    """The client of a TCP socket; those of a Unix socket have no name."""
    return f"from {address[0]}:{address[1]}" if isinstance(address, tuple) else "client"


def _tune_tcp(sock: socket.socket) -> None:
    """No delay for small replies ("Protocol phases"), and notice a client whose host has vanished."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)


async def serve_nbd(
    listeners: Iterable[NbdListener],
    exports: Mapping[str, Export],
    *,
    tls: ssl.SSLContext | None = None,
    tls_mode: TlsMode = TlsMode.OFF,
    limits: NbdLimits | None = None,
    default_export: str | None = None,
    task_status: trio.TaskStatus[NbdServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Make an `NbdServer` and serve; ``nursery.start`` returns the server once it accepts."""
    server = NbdServer(exports, tls=tls, tls_mode=tls_mode, limits=limits, default_export=default_export)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, listeners)
        task_status.started(server)
