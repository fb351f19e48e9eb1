"""What arbitration writes: votes between the two hosts, and the memory of a voter (its file, the witness).

Each is one msgpack array ``[version, type, field, ...]``; a grant is an array of its fields, sets are sorted
arrays.  A reader refuses a version that it does not know, so a host never guesses at what another one means:
it does not answer, and is silent for the other.  Decoding is strict (``wire.shapes``).

**Votes are written in what both hosts understand**, which is what their session was begun with: in protocol
version 1 those of version 1, which lack the fields that came later (`_LATER`); a reader takes their defaults.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias, TypeVar

from pairsync.core.acceptor import AcceptorState, HostMemory
from pairsync.core.arbitration import (
    Accept,
    Accepted,
    Beat,
    BeatAnswer,
    PeerMessage,
    Prepare,
    Promise,
    Refusal,
    WitnessView,
)
from pairsync.core.grants import (
    FORK_BYTES,
    HOST_ID_BYTES,
    IN_SYNC_MAX,
    INCARNATION_BYTES,
    OPERATOR_BYTES_MAX,
    VOTERS_MAX,
    Ballot,
    Grant,
    VoterId,
)
from pairsync.core.messages import Buffer
from pairsync.core.witness import Snapshot
from pairsync.errors import InternalError, ProtocolError

from .limits import NUMBER_MAX, VOTE_BYTES_MAX
from .shapes import (
    Shape,
    binary,
    boolean,
    bounded_binary,
    optional,
    pack,
    sequence,
    structure,
    text,
    unpack_array,
    unsigned,
)

__all__ = [
    "MEMORY_BYTES_MAX",
    "VERSION",
    "VOTE_VERSION",
    "WITNESS_NAME_BYTES_MAX",
    "decode_acceptor",
    "decode_host_memory",
    "decode_message",
    "decode_view",
    "encode_acceptor",
    "encode_host_memory",
    "encode_message",
]

VERSION: Final = 1
"""Of a voter's memory at a witness, which hosts of all versions share."""

VOTE_VERSION: Final = 2
"""The newest of votes."""

HOST_MEMORY_VERSION: Final = 2
"""Version 1 was a voter's memory alone: it does not tell of promises."""

WITNESS_NAME_BYTES_MAX: Final = 64
"""Name of a witness, in UTF-8: operators see it beside those of hosts."""

MEMORY_BYTES_MAX: Final = 1024
"""An encoded memory: two grants of three voters each are 700 bytes at most.  A witness takes as much."""

_FIELDS_MAX: Final = 16

T = TypeVar("T")

_incarnation = binary(INCARNATION_BYTES)
_host_id = binary(HOST_ID_BYTES)
_count = unsigned(NUMBER_MAX, minimum=1)
_number = unsigned(NUMBER_MAX)


def _holder(value: object) -> bytes | str:
    """A host by its fingerprint, a witness by its name."""
    return _witness_name(value) if isinstance(value, str) else _host_id(value)


_witness_name = text(WITNESS_NAME_BYTES_MAX)
_voter = structure(VoterId, ("name", _holder), ("incarnation", _incarnation))
_ballot = structure(
    Ballot,
    ("counter", _number),
    ("proposer", bounded_binary(HOST_ID_BYTES)),
    ("incarnation", bounded_binary(INCARNATION_BYTES)),
)


def _set(item: Shape[T], count_max: int) -> Shape[frozenset[T]]:
    """An array of different values, which is not empty."""
    array = sequence(item, count_max)

    def read(value: object) -> frozenset[T]:
        items = array(value)
        if not items or len(set(items)) != len(items):
            raise ProtocolError("a set that is empty, or has a member twice")
        return frozenset(items)

    return read


_grant = structure(
    Grant,
    ("term", _count),
    ("epoch", _count),
    ("owner", _host_id),
    ("holder", _incarnation),
    ("in_sync", _set(_host_id, IN_SYNC_MAX)),
    ("voters", _set(_voter, VOTERS_MAX)),
    ("fork", binary(FORK_BYTES)),
    ("override", text(OPERATOR_BYTES_MAX)),
)
_memory = structure(
    AcceptorState,
    ("incarnation", _incarnation),
    ("base", optional(_grant)),
    ("promised", _ballot),
    ("accepted_ballot", _ballot),
    ("accepted", optional(_grant)),
)
_promise = optional(_number)
_HEAD: tuple[tuple[str, Shape[Any]], ...] = (("sender", _voter), ("base", optional(_grant)))
_TABLE: dict[int, tuple[type[PeerMessage], Shape[PeerMessage]]] = {
    1: (Beat, structure(Beat, *_HEAD, ("number", _number), ("failover_ns", _number), ("hears", boolean))),
    2: (
        BeatAnswer,
        structure(
            BeatAnswer,
            *_HEAD,
            ("number", _number),
            ("granted", boolean),
            ("ready", boolean),
            ("failover_ns", _number),
            ("asks", optional(boolean)),
        ),
    ),
    3: (Prepare, structure(Prepare, *_HEAD, ("ballot", _ballot))),
    4: (
        Promise,
        structure(
            Promise,
            *_HEAD,
            ("ballot", _ballot),
            ("accepted_ballot", _ballot),
            ("accepted", optional(_grant)),
        ),
    ),
    5: (Accept, structure(Accept, *_HEAD, ("ballot", _ballot), ("grant", _grant))),
    6: (Accepted, structure(Accepted, *_HEAD, ("ballot", _ballot))),
    7: (Refusal, structure(Refusal, *_HEAD, ("ballot", _ballot), ("promised", _ballot))),
}
_LATER: dict[type, list[Any]] = {Beat: [True], BeatAnswer: [None]}
"""What votes of version 1 lack at their ends, and what is read in its place: an owner that does not say that
it does not hear us does."""
_NUMBER_OF: dict[type, int] = {made: number for number, (made, _) in _TABLE.items()}

_Plain: TypeAlias = int | str | bytes | bool | list[Any] | None


def _plain(value: object) -> _Plain:
    """Named tuples and sets as arrays; sets in one order, so that equal values have equal encodings."""
    if isinstance(value, frozenset):
        return sorted((_plain(each) for each in value), key=repr)
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, int | str | bytes):
        return value
    raise InternalError(f"{type(value).__name__} is not part of arbitration")


def _checked(encoded: bytes, bytes_max: int, what: str) -> bytes:
    if len(encoded) > bytes_max:
        raise InternalError(f"{what} of {len(encoded)} bytes; at most {bytes_max} are allowed")
    return encoded


def encode_message(message: PeerMessage, protocol: int = VOTE_VERSION) -> bytes:
    """The bytes of a vote, in a session of that version; `InternalError` for what no peer would take."""
    number, version = _NUMBER_OF[type(message)], min(protocol, VOTE_VERSION)
    fields = [_plain(field) for field in message]
    if version == 1:
        fields = fields[: len(fields) - len(_LATER.get(type(message), []))]
    return _checked(pack([version, number, *fields]), VOTE_BYTES_MAX, "a vote")


def decode_message(encoded: Buffer) -> PeerMessage:
    """A vote of the peer; raises `ProtocolError` for anything else."""
    version, fields = _versioned(encoded, VOTE_BYTES_MAX, VOTE_VERSION)
    kind = fields[0] if fields else None
    entry = _TABLE.get(kind) if type(kind) is int else None
    if entry is None:
        raise ProtocolError(f"unknown type of a vote {kind!r:.40}")
    return entry[1](fields[1:] + (_LATER.get(entry[0], []) if version == 1 else []))


def encode_acceptor(state: AcceptorState) -> bytes:
    """The bytes of a voter's memory; `InternalError` for one that nobody could read back."""
    return _checked(pack([VERSION, *_readable(state)]), MEMORY_BYTES_MAX, "a memory")


def _readable(state: AcceptorState) -> list[Any]:
    """Its fields.  A host whose memory cannot be read never starts again: better that it ends before."""
    fields = [_plain(field) for field in state]
    try:
        _memory(fields)
    except ProtocolError as error:
        raise InternalError(f"a memory that could not be read back: {error}") from error
    return fields


def decode_acceptor(encoded: Buffer) -> AcceptorState:
    """A voter's memory; raises `ProtocolError` for anything else."""
    return _memory(_versioned(encoded, MEMORY_BYTES_MAX, VERSION)[1])


def decode_view(snapshot: Snapshot) -> WitnessView:
    """What a witness holds, errors as `decode_acceptor`; a memory that was written for another incarnation is
    none."""
    state = None if snapshot.value is None else decode_acceptor(snapshot.value)
    if state is not None and state.incarnation != snapshot.incarnation:
        state = None
    return WitnessView(snapshot.incarnation, snapshot.version, state)


def encode_host_memory(memory: HostMemory) -> bytes:
    """The bytes of what a host writes down; errors as `encode_acceptor`."""
    fields = [*_readable(memory.acceptor), memory.promise_ns]
    return _checked(pack([HOST_MEMORY_VERSION, *fields]), MEMORY_BYTES_MAX, "a memory")


def decode_host_memory(encoded: Buffer) -> HostMemory:
    """What a host has written down, in this version or the one before; else `ProtocolError`."""
    version, fields = _versioned(encoded, MEMORY_BYTES_MAX, HOST_MEMORY_VERSION)
    promise_ns = _promise(fields.pop()) if version > 1 and fields else None
    return HostMemory(_memory(fields), promise_ns)


def _versioned(encoded: Buffer, bytes_max: int, newest: int) -> tuple[int, list[Any]]:
    version, *fields = unpack_array(encoded, bytes_max=bytes_max, count_max=_FIELDS_MAX)
    if type(version) is not int or not VERSION <= version <= newest:
        raise ProtocolError(f"votes of version {version!r:.40}; this software knows {newest}")
    return version, fields
