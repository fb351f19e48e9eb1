"""Messages of one vocabulary over one TLS stream, and how a connection is declined so that it is understood.

Reading and writing are independent; several tasks may send (TLS keeps what they send whole).
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

import trio

from pairsync.errors import PeerError, PeerLost, RefusedError
from pairsync.wire.vocabulary import StreamDecoder, Vocabulary

from .tls import TlsStream

__all__ = ["Channel", "accept_handshake"]

M = TypeVar("M")

_FAREWELL_S = 0.2
"""How long a refusal or farewell may take to arrive; the connection closes anyway."""


class Channel(Generic[M]):
    """Messages over one TLS stream; ``who`` is the other end, for errors and logs."""

    def __init__(self, stream: TlsStream, vocabulary: Vocabulary[M], who: str) -> None:
        self._stream = stream
        self._vocabulary = vocabulary
        self._who = who
        self._decoder = StreamDecoder(vocabulary)
        # Invariant: messages that arrived together with one that was asked for, in order.
        self._arrived: deque[M] = deque()

    @property
    def who(self) -> str:
        """The other end, for logs."""
        return self._who

    async def send(self, message: M) -> None:
        """Send one message; raises `PeerLost`."""
        data = self._vocabulary.encode(message)
        await self._stream.send_all(data)

    async def receive(self) -> M:
        """The next message; raises `PeerLost`, `RefusedError` or `ProtocolError`."""
        while not self._arrived:
            self._arrived.extend(self._decoder.feed(await self._stream.receive_some()))
        return self._arrived.popleft()

    async def farewell(self, message: M) -> None:
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


async def accept_handshake(stream: TlsStream) -> bytes:
    """The listener's half of the TLS handshake: the fingerprint of the other end's key.

    Raises `RefusedError`, `PeerLost`; the caller sets a deadline.
    """
    try:
        return await stream.handshake()
    except RefusedError:
        # in TLS 1.3 the dialer is talking already: hear it out, or a reset overtakes the alert
        with trio.move_on_after(_FAREWELL_S):
            await _drain(stream)
        raise


async def _drain(stream: TlsStream) -> None:
    try:
        await stream.drain()
    except PeerLost:
        return
