"""Fuzz targets of arbitration: votes of the peer, and the memories of voters (a file, a witness's store)."""

from __future__ import annotations

from collections.abc import Iterable

from pairsync.core.acceptor import AcceptorState, HostMemory
from pairsync.core.arbitration import Accept, Beat
from pairsync.core.grants import Ballot, Grant, VoterId
from pairsync.core.witness import Snapshot
from pairsync.errors import ProtocolError
from pairsync.wire.arbitration import (
    decode_host_memory,
    decode_message,
    decode_view,
    encode_acceptor,
    encode_host_memory,
    encode_message,
)

HOST = VoterId(b"h" * 32, b"i" * 8)
WITNESS = VoterId("hill", b"j" * 8)
GRANT = Grant(3, 2, b"h" * 32, b"i" * 8, frozenset({b"h" * 32}), frozenset({HOST, WITNESS}), b"f" * 8)
BALLOT = Ballot(5, b"h" * 32, b"i" * 8)


def fuzz_vote(data: bytes) -> None:
    """What is understood is what is written."""
    try:
        message = decode_message(data)
    except ProtocolError:
        return
    if decode_message(encode_message(message)) != message:
        raise RuntimeError("another vote after it was written anew")


def seeds_vote() -> Iterable[bytes]:
    """A short one and a long one."""
    yield encode_message(Beat(HOST, GRANT, 7, 5 * 10**9))
    yield encode_message(Accept(HOST, GRANT, BALLOT, GRANT._replace(epoch=3)))


def fuzz_memory(data: bytes) -> None:
    """Likewise."""
    try:
        memory = decode_host_memory(data)
    except ProtocolError:
        return
    if decode_host_memory(encode_host_memory(memory)) != memory:
        raise RuntimeError("another memory after it was written anew")


def seeds_memory() -> Iterable[bytes]:
    """An empty one of the version before, and a full one."""
    yield encode_acceptor(AcceptorState(b"i" * 8))
    full = AcceptorState(b"i" * 8, GRANT, BALLOT, BALLOT, GRANT._replace(epoch=3))
    yield encode_host_memory(HostMemory(full, 3_385_000_000))


def fuzz_register(data: bytes) -> None:
    """What a witness hands out, which anybody may have put there: a memory of that incarnation, or none."""
    try:
        view = decode_view(Snapshot(data[:8].ljust(8, b"i"), 5, data[8:]))
    except ProtocolError:
        return
    if view.state is not None:
        if view.state.incarnation != view.incarnation:
            raise RuntimeError("the memory of another incarnation")
        if decode_view(Snapshot(view.incarnation, 5, encode_acceptor(view.state))) != view:
            raise RuntimeError("another memory after it was written anew")


def seeds_register() -> Iterable[bytes]:
    """Of that incarnation, and of another one."""
    full = encode_acceptor(AcceptorState(b"i" * 8, GRANT, BALLOT, BALLOT, GRANT._replace(epoch=3)))
    yield b"i" * 8 + full
    yield b"j" * 8 + full
