"""The ordered, exactly-once stream of a session, and its in-flight window.

Each host numbers its frames from 0 within a session.  A frame is kept, by reference, until the peer has
acknowledged it; whichever path carries it, the peer takes the frames in the order of their numbers and each
of them once.  An acknowledgement is cumulative: it is the number of the next frame that the receiver
expects.

**Switching paths.**  The sender uses one path at a time.  When that path dies, or a better one comes up, it
rewinds: all that is unacknowledged is sent again on the other path.  So on any path a run of frames begins
at a number that the receiver has reached already: a lower number is a duplicate and is dropped, a higher
one is a gap and means that the peer broke the protocol.

**The window.**  ``room_bytes`` is what may be pushed before an acknowledgement is needed.  A message that is
due is never refused for want of room (an answer must leave even where the window is full), so the sender
takes `OVERDRAFT_BYTES` beyond it and refuses what is over that: its caller disregards the window.

**Several sessions in one stream.**  Who wants to begin anew says `Renew`, and drops what comes before the
peer's own: that answers it, or came by itself at the same time.  Either way the n-th session is what each
host sends behind its n-th `Renew`, and takes behind the peer's.  Connections, numbers and the window go on.

**When to acknowledge.**  Acknowledgements ride on records that leave anyway.  One is *due* on its own once
`ACKNOWLEDGE_BYTES` or `ACKNOWLEDGE_FRAMES` have arrived since the last; what is *owed* below that is sent
with the next heartbeat.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from pairsync.errors import InternalError, ProtocolError

from .units import MIB

__all__ = [
    "ACKNOWLEDGE_BYTES",
    "ACKNOWLEDGE_FRAMES",
    "OVERDRAFT_BYTES",
    "RENEW_BYTES_MAX",
    "WINDOW_BYTES_MIN",
    "WINDOW_FRAMES_MAX",
    "Renew",
    "Sized",
    "StreamReceiver",
    "StreamSender",
]

ACKNOWLEDGE_BYTES = 1 * MIB
"""An acknowledgement is due after so many bytes: the window moves in steps much smaller than itself."""

ACKNOWLEDGE_FRAMES = 512
"""The same in frames, for streams of small ones."""

WINDOW_BYTES_MIN = 4 * ACKNOWLEDGE_BYTES
"""Smallest window: with less, a sender would stop and wait for each acknowledgement."""

WINDOW_FRAMES_MAX = 65_536
"""Unacknowledged frames: each costs some 300 bytes beside its payload, so 20 MiB at most."""

OVERDRAFT_BYTES = 16 * MIB
"""Beyond the window: answers and control messages that must not wait; 100 times what a session needs."""


RENEW_BYTES_MAX = 4 * MIB
"""Unacknowledged data that a `Renew` may wait behind: what takes longer to arrive than to connect anew."""


@dataclass(frozen=True, slots=True)
class Renew:
    """What the sender has sent before belongs to a session that is over, and why."""

    reason: str


class Sized(Protocol):
    """What the sender needs to know of a frame."""

    @property
    def size_bytes(self) -> int:
        """Encoded size."""
        ...


F = TypeVar("F", bound=Sized)


class StreamSender(Generic[F]):
    """Numbers frames, hands them out for sending, and keeps them until they are acknowledged."""

    def __init__(self, window_bytes: int) -> None:
        if window_bytes < WINDOW_BYTES_MIN:
            raise InternalError(f"a window of {window_bytes} bytes; at least {WINDOW_BYTES_MIN} are needed")
        self._window_bytes = window_bytes
        self._limit_bytes = window_bytes + OVERDRAFT_BYTES
        # Invariants: _sent holds the frames base .. base + len(_sent) - 1, _unsent those behind them;
        # base <= reached <= base + len(_sent) + len(_unsent); _held_bytes is the size of both deques.
        self._base = 0
        self._sent: deque[F] = deque()
        self._unsent: deque[F] = deque()
        self._held_bytes = 0
        # One behind the highest number ever handed out, on whichever path: no acknowledgement may be above.
        self._reached = 0

    @property
    def room_bytes(self) -> int:
        """What may be pushed now; 0 or less: wait for an acknowledgement."""
        if len(self._sent) + len(self._unsent) >= WINDOW_FRAMES_MAX:
            return 0
        return self._window_bytes - self._held_bytes

    @property
    def held_bytes(self) -> int:
        """Size of all frames that are not acknowledged."""
        return self._held_bytes

    @property
    def unsent_frames(self) -> int:
        """Frames that wait to be taken for the present path."""
        return len(self._unsent)

    @property
    def unacknowledged_frames(self) -> int:
        """Frames that are held, taken or not."""
        return len(self._sent) + len(self._unsent)

    @property
    def base(self) -> int:
        """Number of the oldest frame that is not acknowledged; what it waits for is progress."""
        return self._base

    def push(self, frame: F) -> None:
        """Append a frame to the stream.

        Raises `InternalError` if the caller has gone beyond the window and the overdraft.
        """
        held_bytes = self._held_bytes + frame.size_bytes
        if held_bytes > self._limit_bytes or len(self._sent) + len(self._unsent) >= 2 * WINDOW_FRAMES_MAX:
            raise InternalError(
                f"the window of {self._window_bytes} bytes is overdrawn: "
                f"{self.unacknowledged_frames} frames of {self._held_bytes} bytes are unacknowledged"
            )
        self._held_bytes = held_bytes
        self._unsent.append(frame)

    def take(self, bytes_max: int, frames_max: int) -> tuple[int, list[F]]:
        """The next frames to send, in order, and the number of the first.

        At least one if any waits; another is added while those before it are below ``bytes_max``.
        """
        unsent, sent = self._unsent, self._sent
        first = self._base + len(sent)
        taken: list[F] = []
        size_bytes = 0
        while unsent and size_bytes < bytes_max and len(taken) < frames_max:
            frame = unsent.popleft()
            taken.append(frame)
            size_bytes += frame.size_bytes
        sent.extend(taken)
        reached = first + len(taken)
        self._reached = max(self._reached, reached)
        return first, taken

    def acknowledge(self, upto: int) -> bool:
        """The peer has all frames below ``upto``; returns whether that released any.

        A lower number than before is an older record that another path brought late.  Raises
        `ProtocolError` for a frame that was never sent.
        """
        if upto > self._reached:
            raise ProtocolError(f"acknowledges frame {upto - 1}; {self._reached} were sent")
        count = upto - self._base
        if count <= 0:
            return False
        sent, unsent = self._sent, self._unsent
        released_bytes = 0
        for _ in range(count):
            # after a rewind, what the old path had delivered is acknowledged before it is taken again
            released_bytes += (sent.popleft() if sent else unsent.popleft()).size_bytes
        self._held_bytes -= released_bytes
        self._base = upto
        return True

    def rewind(self) -> int:
        """Send all that is unacknowledged again, on another path; returns how many frames that are."""
        again = len(self._sent)
        self._unsent.extendleft(reversed(self._sent))
        self._sent.clear()
        return again

    def unacknowledged(self) -> list[F]:
        """All frames that are held, oldest first."""
        return [*self._sent, *self._unsent]

    def release(self) -> None:
        """The session is over: let go of every frame."""
        self._sent.clear()
        self._unsent.clear()
        self._held_bytes = 0


class StreamReceiver:
    """Takes the frames of the peer in order and each once, whichever path brings them."""

    def __init__(self) -> None:
        # Invariants: all frames below expected were accepted, and it is what any record that leaves now
        # acknowledges; acknowledged <= expected is what the peer was told last; bytes_since is the size of
        # the frames between them.
        self._expected = 0
        self._acknowledged = 0
        self._bytes_since = 0
        # The peer may not have got the last acknowledgement: it is repeated at once.
        self._repeat = False

    @property
    def expected(self) -> int:
        """Number of the next frame, and the acknowledgement that any record now carries."""
        return self._expected

    @property
    def acknowledgement_owed(self) -> bool:
        """Whether the peer may not know of all that arrived."""
        return self._repeat or self._acknowledged != self._expected

    @property
    def acknowledgement_due(self) -> bool:
        """Whether it should be told now, by a record of its own if need be."""
        return (
            self._repeat
            or self._bytes_since >= ACKNOWLEDGE_BYTES
            or self._expected - self._acknowledged >= ACKNOWLEDGE_FRAMES
        )

    def accept(self, first: int, frame_count: int, size_bytes: int) -> int:
        """A record with the frames ``first ..`` arrived; returns how many of them, in front, to drop.

        Raises `ProtocolError` for a gap.
        """
        duplicates = self._expected - first
        if not duplicates:
            self._expected = first + frame_count
            self._bytes_since += size_bytes
            return 0
        if duplicates < 0:
            raise ProtocolError(f"frame {first} came where {self._expected} is next: a gap in the stream")
        if frame_count:
            # the peer rewound without knowing how far this side is
            self._repeat = True
        if duplicates >= frame_count:
            return frame_count
        self._expected = first + frame_count
        self._bytes_since += size_bytes
        return duplicates

    def path_changed(self) -> None:
        """The path that carried the last acknowledgement may have died with it."""
        self._repeat = self._expected > 0

    def acknowledgement_sent(self) -> None:
        """A record with the present acknowledgement left."""
        self._acknowledged = self._expected
        self._bytes_since = 0
        self._repeat = False
