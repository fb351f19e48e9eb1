"""The control channel of one path: messages over TLS, and the hello on it.

Reading and writing are independent; several tasks may send (a lock keeps messages whole).  A channel is made
by `dial_control` or `accept_control`, which return only after both ends are authenticated and agree on pair
and version; what is refused is refused in words that both ends can log.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from pairsync.errors import ProtocolError, RefusedError
from pairsync.wire.hello import CONTROL, ControlMessage, Hello, Refuse, Welcome, negotiate, shorten

from .channel import Channel, accept_handshake
from .tls import TlsStream

__all__ = ["ControlChannel", "Introduction", "accept_control", "dial_control"]


@dataclass(frozen=True, slots=True)
class Introduction:
    """Who this host is, as it says in a hello."""

    software: str
    pair_id: bytes
    fingerprint: bytes
    protocols: tuple[int, int]


class ControlChannel(Channel[ControlMessage]):
    """Messages of `wire.hello` over one TLS stream."""

    def __init__(self, stream: TlsStream, who: str) -> None:
        super().__init__(stream, CONTROL, who)


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
    await accept_handshake(stream)
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


def _check_peer(pair_id: bytes, fingerprint: bytes, me: Introduction, peer_fingerprint: bytes) -> None:
    if not hmac.compare_digest(pair_id, me.pair_id):
        raise RefusedError(f"pair {pair_id.hex()[:8]} asked for, this is pair {me.pair_id.hex()[:8]}")
    if fingerprint != peer_fingerprint:
        raise RefusedError(f"claims key {fingerprint.hex()[:16]}, but showed {peer_fingerprint.hex()[:16]}")
