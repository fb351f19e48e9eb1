"""Messages of a control connection, and the choice of the protocol version.

A control connection is TLS 1.3 between two pinned keys; on it travel messages of at most
`CONTROL_MESSAGE_BYTES_MAX` bytes, each a 16-bit big-endian length and a msgpack array ``[type, ...]``::

    dialer    Hello                          versions, pair, who I am, which path this is
    listener  Welcome | Refuse               the version chosen | why not
    dialer    LaneOffer                      a lane for this path: join that session, or begin it
    listener  LaneAccept | LaneRefuse        its half of the secret | why not, and whether the session is gone
    dialer    (opens the lane: plain TCP, `LanePreamble`, first sealed record; answered by a sealed record)
    both      Ping, Pong ...                 heartbeats, until silence, a hang-up or
    both      Vote ...                       what the two halves of the grant register say to each other
    either    Bye                            a farewell with its reason

`Hello` is the one message whose form never changes: a host of any version can read the versions of any
other and refuse it in words that both sides can log.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from pairsync.core.messages import Buffer
from pairsync.errors import ProtocolError, RefusedError

from .limits import (
    CONTROL_MESSAGE_BYTES_MAX,
    NUMBER_MAX,
    PATH_NAME_BYTES_MAX,
    PATHS_MAX,
    REASON_BYTES_MAX,
    SOFTWARE_BYTES_MAX,
    VOTE_BYTES_MAX,
)
from .seals import FINGERPRINT_BYTES, LANE_ID_BYTES, SECRET_BYTES, SESSION_ID_BYTES
from .shapes import Shape, binary, boolean, bounded_binary, structure, text, unsigned
from .vocabulary import Vocabulary

__all__ = [
    "CONTROL",
    "LANE_PREAMBLE_BYTES",
    "PAIR_ID_BYTES",
    "PROTOCOL_MAX",
    "PROTOCOL_MILESTONES",
    "PROTOCOL_MIN",
    "PROTOCOL_RENEWS",
    "Bye",
    "ControlMessage",
    "Hello",
    "LaneAccept",
    "LaneOffer",
    "LaneRefuse",
    "Ping",
    "Pong",
    "Refuse",
    "Vote",
    "Welcome",
    "negotiate",
    "pack_lane_preamble",
    "parse_lane_preamble",
    "shorten",
]

PROTOCOL_MIN = 1
"""Oldest version that this software speaks."""
PROTOCOL_MAX = 3
"""Newest version that this software speaks.  2: votes of version 2 (`wire.arbitration`), and renewals.  3:
milestones, and whose volumes are served (``wire.codec``)."""
PROTOCOL_RENEWS = 2
"""From this version on a new session needs no new connections (``core.stream``)."""
PROTOCOL_MILESTONES = 3
"""From this version on replicas and barriers have milestones (``core.states``)."""
PAIR_ID_BYTES = 16

_LANE_MAGIC = b"PSLANE\r\n"  # no TLS record begins so, and text-mode transport would break it
LANE_PREAMBLE_BYTES = len(_LANE_MAGIC) + LANE_ID_BYTES
"""What a dialer sends first on the plain TCP connection of a lane."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The dialer introduces itself; first on every control connection."""

    protocol_min: int
    protocol_max: int
    software: str
    pair_id: bytes
    fingerprint: bytes
    path: str
    rank: int  # 0 is the dialer's preferred path


@dataclass(frozen=True, slots=True)
class Welcome:
    """The listener accepts, under this version."""

    protocol: int
    software: str
    pair_id: bytes
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class Refuse:
    """Either declines the connection and closes it."""

    reason: str


@dataclass(frozen=True, slots=True)
class LaneOffer:
    """The dialer offers a lane; ``join`` if its session is running, else the session begins with it."""

    lane_id: bytes
    session_id: bytes
    join: bool
    secret: bytes

    def __repr__(self) -> str:
        return (
            f"LaneOffer(lane={self.lane_id.hex()[:8]}, session={self.session_id.hex()[:8]}, join={self.join})"
        )


@dataclass(frozen=True, slots=True)
class LaneAccept:
    """The listener expects that lane, for a limited time, and adds its half of the secret."""

    lane_id: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"LaneAccept(lane={self.lane_id.hex()[:8]})"


@dataclass(frozen=True, slots=True)
class LaneRefuse:
    """The listener declines a lane; ``session_gone`` if it has no such session (any more)."""

    lane_id: bytes
    session_gone: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Ping:
    """A heartbeat, numbered from 1 on each connection."""

    number: int


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to the `Ping` of that number."""

    number: int


@dataclass(frozen=True, slots=True)
class Bye:
    """The sender closes this connection on purpose."""

    reason: str


@dataclass(frozen=True, slots=True)
class Vote:
    """What this host's half of the grant register says to the peer's.

    Like a datagram: it may be lost with its path, come twice (over two paths) or late; ``content`` is
    opaque here.
    """

    content: bytes


ControlMessage: TypeAlias = (
    Hello | Welcome | Refuse | LaneOffer | LaneAccept | LaneRefuse | Ping | Pong | Bye | Vote
)

_version = unsigned(0xFFFF)
_lane_id = binary(LANE_ID_BYTES)
_secret = binary(SECRET_BYTES)
_pair_id = binary(PAIR_ID_BYTES)
_fingerprint = binary(FINGERPRINT_BYTES)
_software = text(SOFTWARE_BYTES_MAX)
_reason = text(REASON_BYTES_MAX)
_number = unsigned(NUMBER_MAX)

_TABLE: dict[int, tuple[type[ControlMessage], Shape[Any]]] = {
    1: (
        Hello,
        structure(
            Hello,
            ("protocol_min", _version),
            ("protocol_max", _version),
            ("software", _software),
            ("pair_id", _pair_id),
            ("fingerprint", _fingerprint),
            ("path", text(PATH_NAME_BYTES_MAX)),
            ("rank", unsigned(PATHS_MAX - 1)),
        ),
    ),
    2: (
        Welcome,
        structure(
            Welcome,
            ("protocol", _version),
            ("software", _software),
            ("pair_id", _pair_id),
            ("fingerprint", _fingerprint),
        ),
    ),
    3: (Refuse, structure(Refuse, ("reason", _reason))),
    4: (
        LaneOffer,
        structure(
            LaneOffer,
            ("lane_id", _lane_id),
            ("session_id", binary(SESSION_ID_BYTES)),
            ("join", boolean),
            ("secret", _secret),
        ),
    ),
    5: (LaneAccept, structure(LaneAccept, ("lane_id", _lane_id), ("secret", _secret))),
    6: (
        LaneRefuse,
        structure(LaneRefuse, ("lane_id", _lane_id), ("session_gone", boolean), ("reason", _reason)),
    ),
    7: (Ping, structure(Ping, ("number", _number))),
    8: (Pong, structure(Pong, ("number", _number))),
    9: (Bye, structure(Bye, ("reason", _reason))),
    10: (Vote, structure(Vote, ("content", bounded_binary(VOTE_BYTES_MAX)))),
}
_FIELDS_MAX = 8


def negotiate(ours: tuple[int, int], peer: tuple[int, int]) -> int:
    """The highest version that both ranges (lowest, highest) hold.

    Raises `RefusedError` naming both ranges if there is none, or if the peer's range is upside down.
    """
    chosen = min(ours[1], peer[1])
    if chosen < max(ours[0], peer[0]) or peer[0] > peer[1]:
        raise RefusedError(
            f"no common protocol version: peer speaks {peer[0]}..{peer[1]}, we speak {ours[0]}..{ours[1]}"
        )
    return chosen


def shorten(reason: str) -> str:
    """``reason`` cut to what a message may carry; surrogates and control characters are replaced."""
    clean = "".join(letter if letter.isprintable() else "?" for letter in reason)
    return clean.encode("utf-8", "replace")[:REASON_BYTES_MAX].decode("utf-8", "ignore")


CONTROL: Vocabulary[ControlMessage] = Vocabulary(
    "control message", _TABLE, bytes_max=CONTROL_MESSAGE_BYTES_MAX, fields_max=_FIELDS_MAX
)
"""All of them, to encode and to decode."""


def pack_lane_preamble(lane_id: bytes) -> bytes:
    """What the dialer sends first on a lane."""
    return _LANE_MAGIC + lane_id


def parse_lane_preamble(preamble: Buffer) -> bytes:
    """The lane id; raises `ProtocolError` if this is not the beginning of a lane."""
    if len(preamble) != LANE_PREAMBLE_BYTES or bytes(preamble[: len(_LANE_MAGIC)]) != _LANE_MAGIC:
        raise ProtocolError(f"neither TLS nor a lane: begins with {bytes(preamble[:8]).hex(' ')}")
    return bytes(preamble[len(_LANE_MAGIC) :])
