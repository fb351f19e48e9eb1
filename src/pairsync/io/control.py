"""The control channel of one path: messages over TLS, and the hello on it.

Reading and writing are independent; several tasks may send (a lock keeps messages whole).  A channel is made
by `dial_control` or `accept_control`, which return only after both ends are authenticated and agree on pair
and version; what is refused is refused in words that both ends can log.
"""

from __future__ import annotations

import hmac
from collections import deque
from dataclasses import dataclass

import trio

from pairsync.errors import PeerError, PeerLost, ProtocolError, RefusedError
from pairsync.wire.hello import (
    Bye,
    ControlDecoder,
    ControlMessage,
    Hello,
    Refuse,
    Welcome,
    encode_control,
    negotiate,
    shorten,
)

from .tls import TlsStream

__all__ = ["ControlChannel", "Introduction", "accept_control", "dial_control"]

_FAREWELL_S = 0.2
"""How long a refusal or farewell may take to arrive; the connection closes anyway."""


@dataclass(frozen=True, slots=True)
class Introduction:
    """Who this host is, as it says in a hello."""

    software: str
    pair_id: bytes
    fingerprint: bytes
    protocols: tuple[int, int]


class ControlChannel:
    """Messages of `wire.hello` over one TLS stream."""

    def __init__(self, stream: TlsStream, who: str) -> None:
        self._stream = stream
        self._who = who
        self._decoder = ControlDecoder()
        # Invariant: messages that arrived together with one that was asked for, in order.
        self._arrived: deque[ControlMessage] = deque()

    @property
    def who(self) -> str:
        """The other end, for logs."""
        return self._who

    async def send(self, message: ControlMessage) -> None:
        """Send one message; raises `PeerLost`."""
        data = encode_control(message)
        await self._stream.send_all(data)

    async def receive(self) -> ControlMessage:
        """The next message; raises `PeerLost`, `RefusedError` or `ProtocolError`."""
        while not self._arrived:
            self._arrived.extend(self._decoder.feed(await self._stream.receive_some()))
        return self._arrived.popleft()

    async def farewell(self, message: Refuse | Bye) -> None:
        """Send a last message and give the other end a moment to read it and hang up first.

        Whoever closes with data unread resets the connection, and a reset may overtake what was sent
        before.  Nobody else may be receiving on this channel any more.
        """
        with trio.move_on_after(_FAREWELL_S, shield=True):
            try:
                await self.send(message)
                while True:
                    await self.receive()
            except (PeerError, trio.ClosedResourceError):
                return


async def dial_control(
    stream: TlsStream, me: Introduction, peer_fingerprint: bytes, *, path: str, rank: int, who: str
) -> tuple[ControlChannel, Welcome]:
    """Handshake and hello of the dialer; the caller sets a deadline.

    Raises `RefusedError` (either end declined), `PeerLost` or `ProtocolError`.
    """
    await stream.handshake()
    channel = ControlChannel(stream, who)
    hello = Hello(*me.protocols, me.software, me.pair_id, me.fingerprint, path, rank)
    await channel.send(hello)
    answer = await channel.receive()
    if isinstance(answer, Refuse):
        raise RefusedError(f"{who} refused: {answer.reason}")
    if not isinstance(answer, Welcome):
        raise ProtocolError(f"{who}: {type(answer).__name__} in answer to Hello")
    try:
        _check_peer(answer.pair_id, answer.fingerprint, me, peer_fingerprint)
        negotiate(me.protocols, (answer.protocol, answer.protocol))
    except RefusedError as error:
        await channel.farewell(Refuse(shorten(str(error))))
        raise RefusedError(f"{who}: {error}") from error
    return channel, answer


async def accept_control(
    stream: TlsStream, me: Introduction, peer_fingerprint: bytes, *, who: str
) -> tuple[ControlChannel, Hello, int]:
    """Handshake and hello of the listener: the channel, the hello, the version; the caller sets a deadline.

    Raises `RefusedError`, `PeerLost` or `ProtocolError`.
    """
    try:
        await stream.handshake()
    except RefusedError:
        # in TLS 1.3 the dialer is talking already: hear it out, or a reset overtakes the alert
        with trio.move_on_after(_FAREWELL_S):
            await _drain(stream)
        raise
    channel = ControlChannel(stream, who)
    hello = await channel.receive()
    if not isinstance(hello, Hello):
        raise ProtocolError(f"{who}: begins with {type(hello).__name__}, not with Hello")
    try:
        version = negotiate(me.protocols, (hello.protocol_min, hello.protocol_max))
        _check_peer(hello.pair_id, hello.fingerprint, me, peer_fingerprint)
    except RefusedError as error:
        await channel.farewell(Refuse(shorten(str(error))))
        raise RefusedError(f"{who}: {error}") from error
    await channel.send(Welcome(version, me.software, me.pair_id, me.fingerprint))
    return channel, hello, version


async def _drain(stream: TlsStream) -> None:
    try:
        await stream.drain()
    except PeerLost:
        return


def _check_peer(pair_id: bytes, fingerprint: bytes, me: Introduction, peer_fingerprint: bytes) -> None:
    if not hmac.compare_digest(pair_id, me.pair_id):
        raise RefusedError(f"pair {pair_id.hex()[:8]} asked for, this is pair {me.pair_id.hex()[:8]}")
    if fingerprint != peer_fingerprint:
        raise RefusedError(f"claims key {fingerprint.hex()[:16]}, but showed {peer_fingerprint.hex()[:16]}")
