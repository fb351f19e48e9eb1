"""Relay: requests of one host's clients, done by the host that owns the guest.

Each host has both halves, of which the grant decides which one works::

    RelayClient   (not the owner)                            RelayServer   (the owner)
        ◀──────────────── Serving(term, true) ───────────────────
        ── Relay | RelayRead | RelayFlush, numbered ────────────▶   done on its own volume
        ◀──────────── Relayed | Relay, in any order ─────────────
        ◀──────────────── Serving(term, false) ──────────────────   what is open is not answered any more

**Unknown outcomes.**  When the session or the serving ends, what was asked for and not answered may have
been done, be on its way, or never happen.  The client's caller then asks again, whoever owns by then
(``guest.door``).  So that a late first copy can never overwrite what was acknowledged after the second,
*a server serves nobody before all writes that it has taken in earlier sessions have ended*: it says
`Serving` only then.  (Copies at different owners: see ``guest.door``.)

**Whose volumes.**  A request names its volume by its number, in the order of the two hosts' own files.  A
client asks nobody who has not the same guest with the same volumes in the same order: the other host's file
may say something else, and replication alone is refused then (`core.lineage`).

**Bounds.**  The client has at most `RELAY_REQUESTS_MAX` requests and `RELAY_BYTES_MAX` of data open, of all
volumes; the server takes a client that has more for broken.  This is their own share of either window
(``guest.config``): replication and relay never wait for each other, only each for its own answers, and
whoever receives never waits to send.  So both directions may be full without a dead-lock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

from pairsync.errors import InternalError, ProtocolError

from .messages import Message, OpKind, Relay, Relayed, RelayFlush, RelayRead, Serving, WriteOp
from .tracker import ops_bytes
from .units import MIB

__all__ = [
    "RELAY_BYTES_MAX",
    "RELAY_MESSAGES",
    "RELAY_REQUESTS_MAX",
    "Answer",
    "Job",
    "RelayClient",
    "RelayRequest",
    "RelayServer",
]

RELAY_REQUESTS_MAX = 1024
"""Requests that are not answered; each holds some 300 bytes at both ends, beside its data."""

RELAY_BYTES_MAX = 8 * MIB
"""Data of these requests, either direction together: ten gigabits a second for 6 ms."""

RelayRequest: TypeAlias = Relay | RelayRead | RelayFlush
R = TypeVar("R", Relay, RelayRead, RelayFlush)

RELAY_MESSAGES = frozenset({Serving, Relay, RelayRead, RelayFlush, Relayed})
"""What belongs to this module and not to the session of the replicas."""

Answer = Callable[[Relayed | Relay | None], None]
"""Hears the end of a request; None: it is not known whether, or when, it is done."""


def _data_bytes(request: RelayRequest) -> int:
    """Data that a request carries, or asks for."""
    if isinstance(request, Relay):
        return ops_bytes(request.ops)
    return request.length if isinstance(request, RelayRead) else 0


class _Open(NamedTuple):
    request: RelayRequest
    data_bytes: int
    answer: Answer


class RelayClient:
    """The half that asks; see the module."""

    def __init__(self, names: tuple[str, ...]) -> None:
        """``names`` as in `Serving`."""
        self._names = names
        self.term: int | None = None
        """Under which the peer serves; None: it does not."""
        self._next_number = 1  # never repeats, in later sessions neither
        self._open: dict[int, _Open] = {}  # by number
        self._open_bytes = 0  # their data

    def room(self, data_bytes: int) -> bool:
        """Whether a request with so much data may be made now; who has none open may make one in any case."""
        if self.term is None or len(self._open) >= RELAY_REQUESTS_MAX:
            return False
        return not self._open_bytes or self._open_bytes + data_bytes <= RELAY_BYTES_MAX

    def write(self, volume: int, ops: Sequence[WriteOp], answer: Answer) -> Relay:
        """What to send; ``ops`` fit one message."""
        return self._ask(Relay(self._serving_term(), volume, self._next_number, ops), answer)

    def read(self, volume: int, offset: int, length: int, answer: Answer) -> RelayRead:
        """What to send; the ``length`` fits one message."""
        return self._ask(RelayRead(self._serving_term(), volume, self._next_number, offset, length), answer)

    def flush(self, volume: int, answer: Answer) -> RelayFlush:
        """What to send."""
        return self._ask(RelayFlush(self._serving_term(), volume, self._next_number), answer)

    def _serving_term(self) -> int:
        if self.term is None:
            raise InternalError("a request to a peer that does not serve")
        return self.term

    def _ask(self, request: R, answer: Answer) -> R:
        data_bytes = _data_bytes(request)
        if not self.room(data_bytes):
            raise InternalError(f"too much is relayed: {len(self._open)} requests, {self._open_bytes} bytes")
        self._next_number += 1
        self._open[request.number] = _Open(request, data_bytes, answer)
        self._open_bytes += data_bytes
        return request

    def heard(self, message: Serving, term: int) -> None:
        """Whether the peer serves; ``term`` is the highest that this host knows, a lower one is stale."""
        same = message.names in {None, self._names}
        self.term = message.term if message.serves and same and message.term >= term else None
        self._forget()

    def answered(self, message: Relayed | Relay) -> None:
        """A request has ended.  Raises `ProtocolError` for an answer to what was not asked."""
        if message.number >= self._next_number:
            raise ProtocolError(f"an answer to request {message.number}, which was not made")
        one = self._open.get(message.number)
        if one is None:
            return  # given up meanwhile
        _check_answer(one.request, message)
        del self._open[message.number]
        self._open_bytes -= one.data_bytes
        one.answer(message)

    def lost(self) -> None:
        """The session is over."""
        self.term = None
        self._forget()

    def _forget(self) -> None:
        """Whatever is open is unknown."""
        given_up, self._open = self._open, {}
        self._open_bytes = 0
        for one in given_up.values():
            one.answer(None)


def _check_answer(request: RelayRequest, message: Relayed | Relay) -> None:
    if isinstance(message, Relay):
        if isinstance(request, RelayRead) and len(message.ops) == 1:
            op = message.ops[0]
            if (op.kind, op.offset, op.length) == (OpKind.DATA, request.offset, request.length):
                return
    elif isinstance(request, Relay):
        if len(message.errnos) in {0, len(request.ops)}:
            return
    elif len(message.errnos) == 1 or (isinstance(request, RelayFlush) and not message.errnos):
        return
    raise ProtocolError(f"request {message.number} was answered with something else")


class Job(NamedTuple):
    """A request that was taken."""

    request: RelayRequest
    stretch: int
    """Counts the stretches in which one peer is served; answers of earlier ones are not sent."""


class RelayServer:
    """The half that is asked; see the module."""

    def __init__(self, names: tuple[str, ...], size_of: Callable[[int], int | None]) -> None:
        """``names`` as in `Serving`; ``size_of`` a volume in bytes, None if there is no such volume."""
        self._names = names
        self._size_of = size_of
        self._connected = False
        self._own_term: int | None = None  # under which the guest is served here
        self._told: int | None = None  # what the peer was told of it in this session
        self._stretch = 0
        # Of this stretch: requests that have not ended, their data, and the last number.
        self._requests = 0
        self._bytes = 0
        self._last_number = 0
        # Writes that have not ended, of all stretches: of this one, and of earlier ones.
        self._writes = 0
        self._earlier_writes = 0

    def connected(self) -> list[Message]:
        """A session has begun; what to send."""
        self._connected = True
        self._last_number = 0
        return self._tell()

    def lost(self) -> None:
        """It is over."""
        self._connected = False
        self._end_stretch()

    def serve(self, term: int | None) -> list[Message]:
        """The guest is served here under ``term``, or (None) not any more; what to send."""
        if term == self._own_term:
            return []
        self._own_term = term
        messages: list[Message] = []
        if self._told is not None:
            messages.append(Serving(self._told, serves=False))
            self._end_stretch()
        return messages + self._tell()

    def _end_stretch(self) -> None:
        self._told = None
        self._stretch += 1
        self._earlier_writes += self._writes
        self._requests = self._bytes = self._writes = 0

    def _tell(self) -> list[Message]:
        if not self._connected or self._own_term is None or self._told is not None or self._earlier_writes:
            return []
        self._told = self._own_term
        return [Serving(self._told, serves=True, names=self._names)]

    def take(self, request: RelayRequest) -> Job | None:
        """A request has come; None: it is not done, nobody is served (the peer hears of it, or has).

        Raises `ProtocolError` for one that is out of turn, beyond the bounds or outside of the volume.
        """
        if request.number <= self._last_number:
            raise ProtocolError(f"request {request.number} after {self._last_number}")
        self._last_number = request.number
        if self._told is None or request.term != self._told:
            return None
        self._check(request)
        self._requests += 1
        self._bytes += _data_bytes(request)
        self._writes += isinstance(request, Relay)
        return Job(request, self._stretch)

    def _check(self, request: RelayRequest) -> None:
        data_bytes = _data_bytes(request)
        if self._requests >= RELAY_REQUESTS_MAX or (
            self._bytes and self._bytes + data_bytes > RELAY_BYTES_MAX
        ):
            raise ProtocolError(f"too much is relayed: {self._requests} requests, {self._bytes} bytes")
        size_bytes = self._size_of(request.volume)
        if size_bytes is None:
            raise ProtocolError(f"a request for volume {request.volume}, which there is not")
        if isinstance(request, Relay):
            ranges = [(op.offset, op.length) for op in request.ops]
        elif isinstance(request, RelayRead):
            ranges = [(request.offset, request.length)]
        else:
            ranges = []
        for offset, length in ranges:
            if offset + length > size_bytes:
                raise ProtocolError(f"a request for {offset}+{length} of a volume of {size_bytes} bytes")

    def ended(self, job: Job, answer: Relayed | Relay) -> list[Message]:
        """A job has ended; what to send.  Nobody waits any more for one of an earlier stretch."""
        if job.stretch != self._stretch:
            self._earlier_writes -= isinstance(job.request, Relay)
            return self._tell()
        self._requests -= 1
        self._bytes -= _data_bytes(job.request)
        self._writes -= isinstance(job.request, Relay)
        return [answer]
