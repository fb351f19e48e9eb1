"""A session: one ordered, exactly-once stream of messages over whichever lanes are up.

The session owns the stream (``core.stream``) and knows its lanes; it does not know connections, TLS or
dialling.  It sends on one lane at a time, the one of the lowest rank; the others are hot spares.  When the
sending lane goes away or a better one comes, the stream rewinds and what is unacknowledged is sent again.
The session is over when its last lane is gone, or when either end breaks the protocol inside it.

It can be *renewed* (``core.stream``): then it is over for the handler, and another one begins, in the same
stream and over the same lanes.  A new role takes that, and no new connections.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import trio

from pairsync.core.messages import Message
from pairsync.core.stream import RENEW_BYTES_MAX, Renew, StreamReceiver, StreamSender
from pairsync.errors import InternalError, ProtocolError
from pairsync.wire.codec import decode, encode
from pairsync.wire.frames import Frame, make_frame, parse_frames, parse_record
from pairsync.wire.hello import PROTOCOL_RENEWS, shorten
from pairsync.wire.limits import FRAMES_PER_RECORD_MAX, RECORD_COALESCE_BYTES

from .gate import Gate
from .lane import Lane

__all__ = ["LinkHandler", "Session", "SessionInfo"]


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What a handler is told when a session begins."""

    session_id: bytes
    protocol: int
    peer_fingerprint: bytes
    path: str
    """Name of the path that came up first."""


class LinkHandler(Protocol):
    """Who uses a link.  All calls come from the trio thread, one at a time, and must not block.

    ``connected`` and ``lost`` alternate; ``received`` is called only between them.  None of them may raise
    for what the peer sent: for that there is `Link.drop_session`.
    """

    def connected(self, session: SessionInfo) -> None:
        """A session has begun: an empty stream in either direction."""

    def received(self, messages: list[Message]) -> None:
        """The messages of one record, in order."""

    def lost(self, reason: str) -> None:
        """The session is over; what was sent and not answered may have arrived or not."""

    def path_changed(self, path: str, up: bool, reason: str) -> None:
        """A path of the link came up or went down; the session goes on while one is left."""


class Session:
    """The stream of one session over its lanes."""

    def __init__(
        self,
        info: SessionInfo,
        gate: Gate,
        *,
        window_bytes: int,
        received: Callable[[list[Message]], None],
        violated: Callable[[str], None],
        over: Callable[[str], None],
        begun: Callable[[], None],
    ) -> None:
        """``over`` and ``begun`` tell the handler of a renewal, one after the other."""
        self.info = info
        self.ended = False
        self.reason = ""
        self._gate = gate
        self._received = received
        self._violated = violated
        self._over = over
        self._begun = begun
        # Invariants: `_said` counts the renewals that were sent, `_heard` those of the peer.  While `_heard`
        # is less, what comes belongs to a session that is over.  `_untold`: why it is, until the handler
        # hears of that; then `_heard` is less, and nothing is sent.
        self._said = self._heard = 0
        self._untold: str | None = None
        # Invariants: _lanes holds every lane that is up with its rank and name, best first; _sending is the
        # first of them, or None when there is none or the session has ended.
        self._lanes: list[tuple[int, str, Lane]] = []
        self._sending: Lane | None = None
        self._sender: StreamSender[Frame] = StreamSender(window_bytes)
        self._receiver = StreamReceiver()
        self._room = trio.lowlevel.ParkingLot()
        self.messages_in = 0
        self.messages_out = 0
        self.frames_resent = 0
        self.frames_dropped = 0

    @property
    def room_bytes(self) -> int:
        """What may be sent before the peer must acknowledge something."""
        return self._sender.room_bytes

    @property
    def unacknowledged_bytes(self) -> int:
        """Size of what is held until the peer acknowledges it."""
        return self._sender.held_bytes

    @property
    def acknowledgement(self) -> int:
        """Number of the next frame that is expected: what a record that leaves now acknowledges."""
        return self._receiver.expected

    @property
    def lane_count(self) -> int:
        """Lanes that are up."""
        return len(self._lanes)

    def send(self, messages: Sequence[Message]) -> None:
        """Append to the stream and send what the lane takes now; never blocks.

        After the end of the session, or its renewal, until that has been announced, messages are dropped:
        they could only have been lost.
        """
        if self.ended or self._untold is not None:
            return
        self._push(messages)

    def _push(self, messages: Sequence[Message]) -> None:
        for frame in [make_frame(encode(message, self.info.protocol)) for message in messages]:
            self._sender.push(frame)
        self.messages_out += len(messages)
        self.pump()

    async def wait_room(self) -> None:
        """Wait until there is room, or the session has ended."""
        await trio.lowlevel.checkpoint()
        while not self.ended and self._sender.room_bytes <= 0:
            await self._room.park()

    def pump(self) -> None:
        """Send what waits, and an acknowledgement that is due, as far as the sending lane takes it."""
        lane = self._sending
        if lane is None or self._gate.shut:
            return
        sender, receiver = self._sender, self._receiver
        while sender.unsent_frames and not lane.blocked:
            first, frames = sender.take(RECORD_COALESCE_BYTES, FRAMES_PER_RECORD_MAX)
            lane.transmit(first, receiver.expected, frames)
            receiver.acknowledgement_sent()
        if receiver.acknowledgement_due and not lane.blocked:
            self._acknowledge(lane)

    def keep_alive(self, lane: Lane, *, idle: bool) -> None:
        """A heartbeat is due: send an acknowledgement on ``lane`` if it was idle, or if one is owed."""
        if self.ended or lane.blocked or self._gate.shut:
            return
        if idle or (lane is self._sending and self._receiver.acknowledgement_owed):
            self._acknowledge(lane)

    def _acknowledge(self, lane: Lane) -> None:
        lane.transmit(0, self._receiver.expected, ())
        if lane is self._sending:
            self._receiver.acknowledgement_sent()

    def receive(self, plaintext: memoryview) -> None:
        """One record arrived on any lane; the peer's violation of the protocol ends the session."""
        if self.ended:
            return
        if self._untold is not None:
            self.tell()
        try:
            messages = self._take(plaintext)
        except ProtocolError as error:
            self._violated(f"the peer broke the protocol: {error}")
            return
        if messages:
            self.messages_in += len(messages)
            self._hear(messages)
        if self._receiver.acknowledgement_due:
            self.pump()

    def _take(self, plaintext: memoryview) -> list[Message]:
        record = parse_record(plaintext)
        if self._sender.acknowledge(record.acknowledged) and self._room and self._sender.room_bytes > 0:
            self._room.unpark_all()
        if not record.frame_count:
            return []
        skip = self._receiver.accept(record.first, record.frame_count, len(plaintext))
        self.frames_dropped += skip
        protocol = self.info.protocol
        messages = [decode(header, payload, protocol) for header, payload in parse_frames(record, skip)]
        if protocol < PROTOCOL_RENEWS and Renew in map(type, messages):
            raise ProtocolError(f"a renewal in version {protocol}")
        return messages

    # ------------------------------------------------------------------ renewals

    def renew(self, reason: str) -> bool:
        """Begin a new session in this stream; `tell` is to follow, not from within a call of the handler.

        False, and nothing happens, where the peer does not know of that, or too much is under way.
        """
        if self._untold is not None:
            return True
        if self.info.protocol < PROTOCOL_RENEWS or self._sender.held_bytes > RENEW_BYTES_MAX:
            return False
        self._say(reason)
        self._untold = reason
        return True

    def tell(self) -> None:
        """Tell the handler of a `renew`, once."""
        reason, self._untold = self._untold, None
        if reason is not None and not self.ended:
            self._over(reason)
            self._begun()

    def _say(self, reason: str) -> None:
        self._said += 1
        self._push([Renew(shorten(reason))])

    def _hear(self, messages: list[Message]) -> None:
        if Renew not in map(type, messages):
            self._hand_on(messages)
            return
        start = 0
        for stop, message in enumerate(messages):
            if isinstance(message, Renew):
                self._hand_on(messages[start:stop])
                self._renewed(message.reason)
                start = stop + 1
        self._hand_on(messages[start:])

    def _hand_on(self, messages: list[Message]) -> None:
        """These came between two renewals."""
        if messages and self._heard == self._said and not self.ended:
            self._received(messages)

    def _renewed(self, reason: str) -> None:
        """The peer's has come: the answer to ours, or the reason for one."""
        self.tell()
        self._heard += 1
        if self._heard > self._said and not self.ended:
            self._over(f"the peer said: {reason}")
            self._say(reason)
            self._begun()

    def attach(self, lane: Lane, rank: int, name: str) -> None:
        """A lane is up."""
        if self.ended:
            raise InternalError("a lane was attached to a session that is over")
        self._lanes.append((rank, name, lane))
        self._lanes.sort(key=lambda entry: entry[:2])
        self._choose()

    def detach(self, lane: Lane) -> None:
        """A lane is gone; the caller ends the session if it was the last."""
        self._lanes = [entry for entry in self._lanes if entry[2] is not lane]
        if not self.ended:
            self._choose()

    def _choose(self) -> None:
        best = self._lanes[0][2] if self._lanes else None
        if best is self._sending:
            return
        if best is not None:
            # whatever the old lane had delivered, the peer drops; what it had not is sent again
            self.frames_resent += self._sender.rewind()
            self._receiver.path_changed()
        self._sending = best
        self.pump()

    def unacknowledged(self) -> tuple[int, int]:
        """Number of the oldest frame that waits for its acknowledgement, and how many wait."""
        return self._sender.base, self._sender.unacknowledged_frames

    def is_sending_on(self, lane: Lane) -> bool:
        """Whether the stream is sent on that lane."""
        return lane is self._sending

    def end(self, reason: str) -> None:
        """The session is over: let go of everything; idempotent, the first reason stands."""
        if self.ended:
            return
        self.ended = True
        self.reason = reason
        self._sending = None
        self._sender.release()
        self._room.unpark_all()
