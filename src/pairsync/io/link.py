"""The link to the peer host: an ordered, exactly-once stream of messages over several network paths.

::

    Link ── Hub ── Session ── Lane ...        the stream, over whichever lanes are up
             ├── Path ...                     heartbeats, watch, lane reader and writer; one a network path
             ├── Dialer  (one of the hosts)   keeps every configured path up
             └── Acceptor (the other)         tells the peer from strangers

The host whose fingerprint is smaller dials every path; the other listens.  (The dialing host listens as
well if it is given addresses, and refuses what comes, in words.)  The first path that comes up begins a
session, later ones join it; when the last is gone the session is lost and the next path begins another.

A link does nothing until `Link.set_handler`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass

import trio

from pairsync.core.messages import Message
from pairsync.errors import BackendError, BusyError, ConfigError, PeerLost

from .acceptor import Acceptor
from .config import LinkConfig
from .dialer import Dialer
from .hub import CLOSED, Hub
from .network import Address, Listener, Network, TcpNetwork, describe_address
from .session import LinkHandler, SessionInfo

__all__ = ["Link", "LinkStatistics", "PathStatistics", "open_link"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PathStatistics:
    """One path that is up."""

    name: str
    preferred: bool
    """Whether the stream is sent on it."""
    rtt_ns: int | None
    """Smoothed round-trip time of the control connection; ``None`` before the first answer."""
    rtt_min_ns: int | None
    silence_ns: int
    """Since something was heard on its control connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkStatistics:
    """Counters since the link was opened, and its present state."""

    connected: bool
    cut: bool
    sessions: int
    bytes_in: int
    """On the wire of all lanes; likewise the next."""
    bytes_out: int
    records_in: int
    records_out: int
    messages_in: int
    messages_out: int
    frames_resent: int
    """Sent once more because a path died or a better one came."""
    frames_dropped: int
    """Received once more than needed, for the same reasons."""
    unacknowledged_bytes: int
    half_open: int
    """Connections in the middle of a handshake."""
    paths: tuple[PathStatistics, ...]
    refused: Mapping[str, int]
    """Refusals by kind."""


class Link:
    """A link to one peer; made by `open_link`.  All methods belong to the trio thread."""

    def __init__(self, hub: Hub, listeners: Sequence[Listener], acceptor: Acceptor) -> None:
        self._hub = hub
        self._listeners = tuple(listeners)
        self._acceptor = acceptor
        self._ready = trio.Event()  # a handler is there
        self._scope = trio.CancelScope()
        self._closed = trio.Event()

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The addresses that are bound, with their real ports."""
        return tuple(listener.address for listener in self._listeners)

    @property
    def dials(self) -> bool:
        """Whether this is the host that dials."""
        return self._hub.dials

    @property
    def session(self) -> SessionInfo | None:
        """The running session, as the handler knows it."""
        session = self._hub.session
        return None if session is None else session.info

    @property
    def protocol(self) -> int | None:
        """The version that the connections to the peer speak, also between two sessions; None without any."""
        return self._hub.protocol if self._hub.paths else None

    def set_handler(self, handler: LinkHandler) -> None:
        """Say who is told of sessions and messages, once; from here on the link dials and accepts."""
        if self._hub.handler is not None:
            raise BusyError("the link has a handler already")
        self._hub.handler = handler
        self._ready.set()

    def send(self, messages: Sequence[Message]) -> None:
        """Append messages to the stream; they leave at once as far as the network takes them.

        Never blocks.  Payload is referred to until the peer has acknowledged it and must not change before.
        The caller keeps within `room_bytes`, except for answers.  Between `LinkHandler.connected` and
        `LinkHandler.lost` this never fails for what the network does; outside it raises `PeerLost`.  Raises
        `InternalError` for a message that the protocol does not allow, or far beyond the window.
        """
        session = self._hub.session
        if session is None:
            raise PeerLost("there is no session")
        session.send(messages)

    def set_vote_handler(self, handler: Callable[[bytes], None]) -> None:
        """Say who hears what the peer's half of the grant register says; must not block."""
        self._hub.vote_handler = handler

    def vote(self, content: bytes) -> None:
        """Say something to the peer's half of the grant register: on every path, beside all bulk data.

        Like a datagram: it may be lost or come twice, and nothing tells.  At most `VOTE_BYTES_MAX` bytes.
        """
        self._hub.vote(content)

    def take_rtt_peak_ns(self) -> int | None:
        """Largest round-trip time of a ping since the last call, on the path where it was the smallest.

        What is said on every path at once takes no longer.  ``None`` if no ping was answered since.
        """
        peaks = [path.monitor.take_rtt_peak_ns() for path in self._hub.paths.values()]
        return min((peak for peak in peaks if peak is not None), default=None)

    @property
    def room_bytes(self) -> int:
        """Bytes that may be sent now without waiting; 0 or less if none, and 0 without a session."""
        session = self._hub.session
        return 0 if session is None else session.room_bytes

    async def wait_room(self) -> None:
        """Wait until there is room, or until the session ends; raises `PeerLost` without a session."""
        session = self._hub.session
        if session is None:
            raise PeerLost("there is no session")
        await session.wait_room()

    def drop_session(self, reason: str) -> None:
        """End the session on purpose and tell the peer why; `LinkHandler.lost` follows, not from within.

        The link then connects anew, with back-off.  Without a session nothing happens.
        """
        self._hub.end_session(reason)

    def renew_session(self, reason: str) -> None:
        """Begin a new session on purpose, over the same connections where the peer can.

        `LinkHandler.lost` and `LinkHandler.connected` follow, here and there, not from within: for whoever
        needs a new beginning, and finds nothing wrong with the old one.  Without a session nothing happens.
        """
        self._hub.renew_session(reason)

    def cut(self) -> None:
        """Behave as if every cable were pulled, until `heal`: both sides find out by their heartbeats."""
        self._hub.gate.close()

    def heal(self) -> None:
        """End the `cut`; what was not given up in the meantime goes on."""
        self._hub.gate.open()
        session = self._hub.running()
        if session is not None:
            session.pump()

    def statistics(self) -> LinkStatistics:
        """A snapshot."""
        hub = self._hub
        session = hub.session
        now_ns = hub.network.now_ns()
        totals = hub.totals
        lanes = [path.lane for path in hub.paths.values()]
        return LinkStatistics(
            connected=session is not None,
            cut=hub.gate.shut,
            sessions=totals.sessions,
            bytes_in=totals.bytes_in + sum(lane.bytes_in for lane in lanes),
            bytes_out=totals.bytes_out + sum(lane.bytes_out for lane in lanes),
            records_in=totals.records_in + sum(lane.records_in for lane in lanes),
            records_out=totals.records_out + sum(lane.records_out for lane in lanes),
            messages_in=totals.messages_in + (session.messages_in if session else 0),
            messages_out=totals.messages_out + (session.messages_out if session else 0),
            frames_resent=totals.frames_resent + (session.frames_resent if session else 0),
            frames_dropped=totals.frames_dropped + (session.frames_dropped if session else 0),
            unacknowledged_bytes=session.unacknowledged_bytes if session else 0,
            half_open=self._acceptor.half_open,
            paths=tuple(
                PathStatistics(
                    name=path.name,
                    preferred=session is not None and session.is_sending_on(path.lane),
                    rtt_ns=path.monitor.rtt_ns,
                    rtt_min_ns=path.monitor.rtt_min_ns,
                    silence_ns=path.monitor.silence_ns(now_ns),
                )
                for path in hub.paths.values()
            ),
            refused=hub.refusals.counts(),
        )

    async def aclose(self) -> None:
        """End the session, tell the peer, and close everything; returns when that is done."""
        self._close()
        await self._closed.wait()

    def _close(self) -> None:
        self._hub.end_session(CLOSED)
        self._scope.cancel()

    async def _run(self) -> None:
        """The link's life: wait for the handler, then dial and accept until closed."""
        try:
            with self._scope:
                await self._ready.wait()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._hub.tell_renewals)
                    for listener in self._listeners:
                        nursery.start_soon(self._acceptor.run, listener)
                    if self._hub.dials:
                        nursery.start_soon(Dialer(self._hub).run)
        finally:
            for listener in self._listeners:
                listener.close()
            self._hub.gate.hang_up()
            self._closed.set()


@contextlib.asynccontextmanager
async def open_link(config: LinkConfig, *, network: Network | None = None) -> AsyncIterator[Link]:
    """Open a link; it is closed, with a farewell to the peer, when the context is left.

    Raises `ConfigError` for settings that cannot be, `BackendError` if an address cannot be bound.  What the
    handler raises comes out of the context in an exception group, as from any nursery.
    """
    config.check()
    world: Network = TcpNetwork() if network is None else network
    hub = Hub(config, world)
    if hub.dials and not config.paths:
        raise ConfigError(
            "link: this host dials (its fingerprint is the smaller one), but has no path to dial"
        )
    if not hub.dials and not config.listen:
        raise ConfigError("link: this host listens (its fingerprint is the larger one), but on no address")
    listeners: list[Listener] = []
    try:
        for address in config.listen:
            try:
                listeners.append(await world.listen(address))
            except OSError as error:
                where = describe_address(address)
                raise BackendError(
                    f"cannot listen on {where}: {error.strerror or error}", error.errno or 5
                ) from error
        link = Link(hub, listeners, Acceptor(hub))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link._run)  # the link's own factory
            try:
                yield link
            finally:
                link._close()
    finally:
        for listener in listeners:
            listener.close()
