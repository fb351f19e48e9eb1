"""The built-in witness from a host: one TLS connection, kept open, and the requests on it.

::

    async with open_witness(config) as witness:
        with trio.move_on_after(2):
            seen = await witness.get(key)

A task keeps the connection up: it dials, backs off with jitter and dials again.  A request that finds no
connection waits for the attempt that is being made, and raises what it failed with; while the dialler backs
off it raises that at once.  Preferred and alternate witnesses are separate stores: one client for each.

**Answers are held against their questions.**  They come in the order of the requests, each with its number;
an answer to nothing, or of the wrong kind, ends the connection (`ProtocolError`), and so does a register that
went back within its incarnation.  What a caller has given up is still answered, and dropped.

**At rest** a `Beat` every `WitnessTimings.beat_ns` goes there and back: some 30 bytes a second with all
headers.  A connection that brings nothing for ``silence_ns`` although it was asked is dead.
"""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import trio

from pairsync.core.backoff import Backoff
from pairsync.core.units import NS_PER_MS, NS_PER_S
from pairsync.core.witness import Conflict, Snapshot, WitnessKey, check_value
from pairsync.errors import (
    ClosedError,
    ConfigError,
    InternalError,
    PeerError,
    PeerLost,
    ProtocolError,
    RefusedError,
)
from pairsync.wire.hello import PAIR_ID_BYTES, negotiate
from pairsync.wire.witness import (
    WITNESS,
    WITNESS_PROTOCOL_MAX,
    WITNESS_PROTOCOL_MIN,
    Beat,
    Crossed,
    Declined,
    Failed,
    Greet,
    Greeted,
    Knowledge,
    Look,
    Request,
    Seen,
    Swap,
    Swapped,
    WitnessMessage,
)

from .channel import Channel
from .gate import Gate
from .keys import HostIdentity
from .network import Address, Connection, Network, TcpNetwork, describe_address
from .tls import TlsContexts, TlsStream

__all__ = ["REQUESTS_MAX", "WitnessClient", "WitnessConfig", "WitnessTimings", "open_witness"]

REQUESTS_MAX = 64
"""Requests that wait for their answers, those that were given up included: a witness that owes so many is of
no use, and the connection is made anew."""

KNOWN_MAX = 4096
"""Registers of which it is remembered how far they were: more guests than a host has."""

_log = logging.getLogger("pairsync.witness")

Answer = Seen | Swapped | Crossed | Failed


@dataclass(frozen=True, slots=True, kw_only=True)
class WitnessTimings:
    """Every interval and deadline of a witness connection, in nanoseconds."""

    beat_ns: int = 10 * NS_PER_S
    """Between two beats while nothing else is asked."""
    silence_ns: int = 10 * NS_PER_S
    """What was asked is answered within that time, or the connection is dead."""
    handshake_ns: int = 10 * NS_PER_S
    """From connecting to the witness's greeting: four round trips."""
    backoff_first_ns: int = 100 * NS_PER_MS
    backoff_limit_ns: int = 5 * NS_PER_S
    """Dialling again: doubling from the first to the limit, with jitter; from the start again once a
    connection has stood."""

    def check(self) -> None:
        """Raises `ConfigError`."""
        if min(self.beat_ns, self.silence_ns, self.handshake_ns) <= 0:
            raise ConfigError("witness timings: beat, silence and handshake need time")
        if not 0 < self.backoff_first_ns <= self.backoff_limit_ns:
            raise ConfigError("witness timings: 0 < first back-off <= limit of the back-off")


@dataclass(frozen=True, slots=True, kw_only=True)
class WitnessConfig:
    """One witness of one pair."""

    address: Address
    certificate_pem: bytes
    """The witness's own certificate: its key is pinned."""
    identity: HostIdentity
    pair_id: bytes
    local: str | None = None
    """Local address to dial from; ``None`` leaves it to the routing table."""
    timings: WitnessTimings = field(default_factory=WitnessTimings)

    def check(self) -> None:
        """Raises `ConfigError` naming what is wrong."""
        self.timings.check()
        if len(self.pair_id) != PAIR_ID_BYTES:
            raise ConfigError(f"witness: a pair id has {PAIR_ID_BYTES} bytes, not {len(self.pair_id)}")


class _Exchange:
    """A request, and what its caller waits for."""

    __slots__ = ("arrived", "failure", "key", "request", "result")

    def __init__(self, key: WitnessKey, request: Request) -> None:
        self.key = key
        self.request = request
        self.arrived = trio.Event()
        # Invariant: once arrived is set, one of the two is.
        self.result: Snapshot | Conflict | None = None
        self.failure: PeerError | None = None

    def fail(self, failure: PeerError) -> None:
        """There will be no result."""
        if not self.arrived.is_set():
            self.failure = failure
            self.arrived.set()


class _Line:
    """One connection that has been greeted."""

    def __init__(self, channel: Channel[WitnessMessage], now_ns: int) -> None:
        self.channel = channel
        # Invariant: requests that were not answered, in the order of their numbers; at most REQUESTS_MAX.
        self.waiting: deque[_Exchange] = deque()
        # Invariant: what is still to be sent, in order; all of `waiting` and one beat at most.
        self.outbox: deque[WitnessMessage] = deque()
        self.to_send = trio.Event()
        self.last_number = 0
        self.beats_sent = self.beats_seen = 0
        self.asked_ns = self.heard_ns = now_ns
        self.failure: PeerError | None = None  # why it is over
        self.scope = trio.CancelScope()

    @property
    def owed(self) -> bool:
        """Whether the witness has something to answer."""
        return bool(self.waiting) or self.beats_seen < self.beats_sent

    def ask(self, message: WitnessMessage, now_ns: int) -> None:
        """Have something sent that is to be answered."""
        if not self.owed:
            self.asked_ns = now_ns
        self.outbox.append(message)
        self.to_send.set()

    def end(self, failure: PeerError) -> None:
        """Give it up; whoever waits is told why."""
        if self.failure is None:
            self.failure = failure
        self.scope.cancel()


class WitnessClient:
    """A `WitnessStore` at a built-in witness; made by `open_witness`."""

    def __init__(self, config: WitnessConfig, network: Network) -> None:
        config.check()
        self._config = config
        self._network = network
        self._contexts = TlsContexts(config.identity, config.certificate_pem)
        self._who = f"witness at {describe_address(config.address)}"
        self._gate = Gate()
        # Invariant: _line is None unless a greeted connection stands; _attempt is set while none is being
        # made; _failure is what the last attempt or connection ended with.
        self._line: _Line | None = None
        self._attempt = trio.Event()
        self._failure: PeerError = PeerLost(f"{self._who}: not connected yet")
        # The farthest that each register was seen, the one asked last at the end; at most KNOWN_MAX.
        self._known: OrderedDict[WitnessKey, Snapshot] = OrderedDict()
        self._closed = False
        self.connections = 0
        """Connections that were greeted, since the client was opened."""

    @property
    def connected(self) -> bool:
        """Whether a greeted connection stands."""
        return self._line is not None

    @property
    def failure(self) -> PeerError | None:
        """Why there is no connection; None if there is one."""
        return None if self._line is not None else self._failure

    def cut(self) -> None:
        """Read and send nothing from now on, as if a cable were pulled."""
        self._gate.close()

    def heal(self) -> None:
        """Undo `cut`."""
        self._gate.open()

    # ------------------------------------------------------------------ the store

    async def get(self, key: WitnessKey) -> Snapshot:
        """As `WitnessStore.get`."""
        line = await self._ready(key)
        result = await self._exchange(line, key, Look(line.last_number + 1, key.guest, self._knowledge(key)))
        if not isinstance(result, Snapshot):
            raise InternalError("a look ended as a swap does")
        return result

    async def swap(self, key: WitnessKey, version: int, value: bytes) -> Snapshot | Conflict:
        """As `WitnessStore.swap`."""
        check_value(value)
        line = await self._ready(key)
        request = Swap(line.last_number + 1, key.guest, self._knowledge(key), version, value)
        return await self._exchange(line, key, request)

    async def _ready(self, key: WitnessKey) -> _Line:
        """A connection on which a request may be sent."""
        if key.pair_id != self._config.pair_id:
            raise ConfigError(f"{self._who}: asked for a guest of another pair")
        if self._line is None:
            await self._attempt.wait()
        if self._closed:
            raise ClosedError(f"{self._who}: the client is closed")
        line = self._line
        if line is None:
            raise _again(self._failure)
        if len(line.waiting) >= REQUESTS_MAX:
            failure = PeerLost(f"{self._who}: owes {REQUESTS_MAX} answers")
            line.end(failure)
            raise _again(failure)
        return line

    async def _exchange(self, line: _Line, key: WitnessKey, request: Request) -> Snapshot | Conflict:
        exchange = _Exchange(key, request)
        line.last_number = request.number
        line.ask(request, self._network.now_ns())
        line.waiting.append(exchange)
        await exchange.arrived.wait()
        if exchange.result is None:
            raise _again(exchange.failure or self._failure)
        return exchange.result

    def _knowledge(self, key: WitnessKey) -> Knowledge | None:
        known = self._known.get(key)
        return None if known is None else Knowledge(known.incarnation, known.version)

    # ------------------------------------------------------------------ the connection

    async def run(self) -> None:
        """Keep the connection up until cancelled."""
        try:
            await self._keep_up()
        finally:
            self._closed = True
            self._attempt.set()

    async def _keep_up(self) -> None:
        timings = self._config.timings
        backoff = Backoff(first_ns=timings.backoff_first_ns, limit_ns=timings.backoff_limit_ns)
        told = ""
        while True:
            await self._gate.wait_open()
            failure = await self._attempt_once(backoff)
            self._line, self._failure = None, failure
            self._attempt.set()
            if str(failure) != told:
                _log.warning("%s", failure)
            told = str(failure)
            fraction = int.from_bytes(self._network.entropy(4), "big") / 2**32
            await trio.sleep(backoff.failed(fraction) / 1e9)
            self._attempt = trio.Event()

    async def _attempt_once(self, backoff: Backoff) -> PeerError:
        """One connection, to its end; why it ended or did not come about."""
        held: list[Connection] = []
        line: _Line | None = None
        try:
            with trio.move_on_after(self._config.timings.handshake_ns / 1e9):
                line = await self._greet(held)
            if line is None:
                return PeerLost(f"{self._who}: no answer within the time for a handshake")
            backoff.succeeded()
            self.connections += 1
            self._line = line
            self._attempt.set()
            return await self._keep(line)
        except PeerError as error:
            return error
        finally:
            self._line = None
            for connection in held:
                self._gate.retire(connection)
            if line is not None:
                failure = line.failure or PeerLost(f"{self._who}: the client was closed")
                for exchange in line.waiting:
                    exchange.fail(failure)

    async def _greet(self, held: list[Connection]) -> _Line:
        try:
            connection = await self._network.connect(self._config.address, self._config.local)
        except OSError as error:
            raise PeerLost(f"{self._who}: {error.strerror or error}") from error
        held.append(connection)
        stream = TlsStream(connection, self._gate, self._contexts, dialing=True, who=self._who)
        await stream.handshake()
        channel = Channel(stream, WITNESS, self._who)
        protocols = (WITNESS_PROTOCOL_MIN, WITNESS_PROTOCOL_MAX)
        await channel.send(Greet(*protocols, "pairsync", self._config.pair_id))
        answer = await channel.receive()
        if isinstance(answer, Declined):
            raise RefusedError(f"{self._who} declined: {answer.reason}")
        if not isinstance(answer, Greeted):
            raise ProtocolError(f"{self._who}: {type(answer).__name__} in answer to Greet")
        negotiate(protocols, (answer.protocol, answer.protocol))
        return _Line(channel, self._network.now_ns())

    async def _keep(self, line: _Line) -> PeerError:
        """Run a greeted connection until it ends; why."""
        with line.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._guarded, line, self._receive)
                nursery.start_soon(self._guarded, line, self._send)
                nursery.start_soon(self._watch, line)
        return line.failure or PeerLost(f"{self._who}: the connection ended")

    async def _guarded(self, line: _Line, work: Callable[[_Line], Awaitable[None]]) -> None:
        try:
            await work(line)
        except PeerError as error:
            line.end(error)

    async def _send(self, line: _Line) -> None:
        while True:
            await line.to_send.wait()
            line.to_send = trio.Event()
            while line.outbox:
                await line.channel.send(line.outbox.popleft())

    async def _receive(self, line: _Line) -> None:
        while True:
            message = await line.channel.receive()
            line.heard_ns = self._network.now_ns()
            if isinstance(message, Beat):
                line.beats_seen += 1
                if message.number != line.beats_seen or line.beats_seen > line.beats_sent:
                    raise ProtocolError(f"{self._who}: answers beat {message.number}, which was not asked")
            elif isinstance(message, (Seen, Swapped, Crossed, Failed)):
                self._take(line, message)
            else:
                raise ProtocolError(f"{self._who}: sends {type(message).__name__} on its own")

    def _take(self, line: _Line, answer: Answer) -> None:
        """Hold an answer against the oldest question; raises `ProtocolError`."""
        exchange = line.waiting[0] if line.waiting else None
        if exchange is None or exchange.request.number != answer.number:
            raise ProtocolError(f"{self._who}: answers request {answer.number}, which is not the one due")
        request, key = exchange.request, exchange.key
        if isinstance(answer, Failed):
            exchange.fail(RefusedError(f"{self._who} refused: {answer.reason}"))
        elif isinstance(request, Swap) and isinstance(answer, Swapped) and answer.version > request.version:
            exchange.result = self._learn(key, Snapshot(answer.incarnation, answer.version, request.value))
        elif isinstance(request, Swap) and isinstance(answer, Crossed) and answer.version != request.version:
            now = Snapshot(answer.incarnation, answer.version, answer.value)
            exchange.result = Conflict(self._learn(key, now))
        elif isinstance(request, Look) and isinstance(answer, Seen):
            exchange.result = self._learn(key, Snapshot(answer.incarnation, answer.version, answer.value))
        else:
            raise ProtocolError(f"{self._who}: {type(answer).__name__} in answer to {type(request).__name__}")
        line.waiting.popleft()
        exchange.arrived.set()

    def _learn(self, key: WitnessKey, now: Snapshot) -> Snapshot:
        """Remember how far the register is; raises `ProtocolError` if it went back.

        It was told what we know, and had to begin a new incarnation.
        """
        known = self._known.get(key)
        if known is not None and now.is_behind(known):
            raise ProtocolError(
                f"{self._who}: register {key.guest!r} went back from {known.version} to {now.version}"
            )
        self._known[key] = now
        self._known.move_to_end(key)
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)
        return now

    async def _watch(self, line: _Line) -> None:
        """Beat while nothing is asked; end a line on which what was asked is not answered."""
        timings = self._config.timings
        while True:
            now_ns = self._network.now_ns()
            if line.owed:
                due_ns = max(line.asked_ns, line.heard_ns) + timings.silence_ns
                if now_ns >= due_ns:
                    line.end(PeerLost(f"{self._who}: silent for {timings.silence_ns / 1e9:g} s"))
                    return
            else:
                due_ns = line.heard_ns + timings.beat_ns
                if now_ns >= due_ns:
                    line.ask(Beat(line.beats_sent + 1), now_ns)
                    line.beats_sent += 1
                    continue
            await trio.sleep((due_ns - now_ns) / 1e9)


def _again(failure: PeerError) -> PeerError:
    """The same failure for another caller: an exception that is raised twice carries two tracebacks."""
    again = type(failure)(str(failure))
    again.__cause__ = failure
    return again


@contextlib.asynccontextmanager
async def open_witness(
    config: WitnessConfig, *, network: Network | None = None
) -> AsyncIterator[WitnessClient]:
    """A client of a built-in witness, connected as long as the context is open.

    Raises `ConfigError` where the configuration contradicts itself; that the witness cannot be reached is
    told by the requests.
    """
    client = WitnessClient(config, network or TcpNetwork())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        try:
            yield client
        finally:
            nursery.cancel_scope.cancel()
