"""Messages between a host and the built-in witness, on one TLS connection, and their version.

::

    host     Greet                    versions, pair
    witness  Greeted | Declined       the version chosen | why not (the connection ends)
    host     Look | Swap              numbered upwards from 1; several may be under way
    witness  Seen | Swapped | Crossed | Failed    in the order of the requests, with their numbers
    host     Beat                     while nothing else is sent; answered by a Beat of the same number

A request names what this host knows of the register (`Knowledge`).  A witness that is behind that has lost
its memory without having noticed it, for it was put back as a whole: it then begins a new incarnation.

Numbers are what refuses an answer that belongs to another question; TLS refuses what is replayed or forged.
`Greet` never changes its form, so that any version can be told from any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from pairsync.core.witness import GUEST_NAME_BYTES_MAX, INCARNATION_BYTES, VALUE_BYTES_MAX, VERSION_MAX

from .hello import PAIR_ID_BYTES
from .limits import NUMBER_MAX, REASON_BYTES_MAX, SOFTWARE_BYTES_MAX
from .shapes import Shape, binary, bounded_binary, optional, structure, text, unsigned
from .vocabulary import Vocabulary

__all__ = [
    "WITNESS",
    "WITNESS_MESSAGE_BYTES_MAX",
    "WITNESS_PROTOCOL_MAX",
    "WITNESS_PROTOCOL_MIN",
    "Beat",
    "Crossed",
    "Declined",
    "Failed",
    "Greet",
    "Greeted",
    "Knowledge",
    "Look",
    "Request",
    "Seen",
    "Swap",
    "Swapped",
    "WitnessMessage",
]

WITNESS_PROTOCOL_MIN = 1
"""Oldest version that this software speaks."""
WITNESS_PROTOCOL_MAX = 1
"""Newest version that this software speaks."""

WITNESS_MESSAGE_BYTES_MAX = 2048
"""The longest is a `Swap`: a name and a value (1.3 kB) and 60 bytes of numbers."""

_FIELDS_MAX = 8


@dataclass(frozen=True, slots=True)
class Greet:
    """The host introduces itself; first on every connection."""

    protocol_min: int
    protocol_max: int
    software: str
    pair_id: bytes


@dataclass(frozen=True, slots=True)
class Greeted:
    """The witness serves this pair, under this version."""

    protocol: int
    software: str


@dataclass(frozen=True, slots=True)
class Declined:
    """The witness does not serve this connection, and ends it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Knowledge:
    """The farthest that the host has seen a register."""

    incarnation: bytes
    version: int


@dataclass(frozen=True, slots=True)
class Look:
    """How is the register of that guest?"""

    number: int
    guest: str
    knows: Knowledge | None


@dataclass(frozen=True, slots=True)
class Swap:
    """Store ``value`` if the register is at ``version``."""

    number: int
    guest: str
    knows: Knowledge | None
    version: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Seen:
    """The answer to a `Look`."""

    number: int
    incarnation: bytes
    version: int
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Swapped:
    """The value of a `Swap` is stored, durably, under this version."""

    number: int
    incarnation: bytes
    version: int


@dataclass(frozen=True, slots=True)
class Crossed:
    """A `Swap` was not done: the register is as told here."""

    number: int
    incarnation: bytes
    version: int
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Failed:
    """The witness could not answer that request; what became of a `Swap` is not known."""

    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class Beat:
    """Somebody is there; numbered from 1 by the host on each connection."""

    number: int


Request: TypeAlias = Look | Swap
WitnessMessage: TypeAlias = (
    Greet | Greeted | Declined | Look | Swap | Seen | Swapped | Crossed | Failed | Beat
)

_protocol = unsigned(0xFFFF)
_number = unsigned(NUMBER_MAX, minimum=1)
_software = text(SOFTWARE_BYTES_MAX)
_reason = text(REASON_BYTES_MAX)
_guest = text(GUEST_NAME_BYTES_MAX)
_incarnation = binary(INCARNATION_BYTES)
_version = unsigned(VERSION_MAX)
_value = bounded_binary(VALUE_BYTES_MAX)
_knows = optional(structure(Knowledge, ("incarnation", _incarnation), ("version", _version)))

_TABLE: dict[int, tuple[type[WitnessMessage], Shape[Any]]] = {
    1: (
        Greet,
        structure(
            Greet,
            ("protocol_min", _protocol),
            ("protocol_max", _protocol),
            ("software", _software),
            ("pair_id", binary(PAIR_ID_BYTES)),
        ),
    ),
    2: (Greeted, structure(Greeted, ("protocol", _protocol), ("software", _software))),
    3: (Declined, structure(Declined, ("reason", _reason))),
    4: (Look, structure(Look, ("number", _number), ("guest", _guest), ("knows", _knows))),
    5: (
        Swap,
        structure(
            Swap,
            ("number", _number),
            ("guest", _guest),
            ("knows", _knows),
            ("version", _version),
            ("value", _value),
        ),
    ),
    6: (
        Seen,
        structure(
            Seen,
            ("number", _number),
            ("incarnation", _incarnation),
            ("version", _version),
            ("value", optional(_value)),
        ),
    ),
    7: (
        Swapped,
        structure(Swapped, ("number", _number), ("incarnation", _incarnation), ("version", _version)),
    ),
    8: (
        Crossed,
        structure(
            Crossed,
            ("number", _number),
            ("incarnation", _incarnation),
            ("version", _version),
            ("value", optional(_value)),
        ),
    ),
    9: (Failed, structure(Failed, ("number", _number), ("reason", _reason))),
    10: (Beat, structure(Beat, ("number", _number))),
}

WITNESS: Vocabulary[WitnessMessage] = Vocabulary(
    "witness message", _TABLE, bytes_max=WITNESS_MESSAGE_BYTES_MAX, fields_max=_FIELDS_MAX
)
"""All of them, to encode and to decode."""
