"""A witness in memory for the tests of client and server: one network, a mock clock, hosts with keys."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import trio
from tests.io.harness import MemoryConnection, MemoryNetwork

from pairsync.core.witness import WitnessKey
from pairsync.errors import PeerError
from pairsync.io import HostIdentity, make_identity
from pairsync.io.channel import Channel, accept_handshake
from pairsync.io.gate import Gate
from pairsync.io.keys import certificate_der
from pairsync.io.tls import ListenerPins, TlsContexts, TlsStream
from pairsync.io.witness import WitnessClient, WitnessConfig, WitnessTimings, open_witness
from pairsync.io.witnessserver import Roll, WitnessServer
from pairsync.io.witnessstore import WitnessStore
from pairsync.testing.witness import MemoryWitness, WitnessBench
from pairsync.wire.witness import WITNESS, WitnessMessage

PAIR, OTHER = b"one pair of two!", b"another of two.."
KEY = WitnessKey(PAIR, "db1")
ADDRESS = ("10.0.0.9", 10889)

Script = Callable[[Channel[WitnessMessage]], Awaitable[None]]


@dataclasses.dataclass(frozen=True)
class Cast:
    """Who is in the play; keys are costly enough to be made once."""

    witness: HostIdentity
    a: HostIdentity
    b: HostIdentity
    c: HostIdentity
    """Of the other pair, as is d."""
    d: HostIdentity
    stranger: HostIdentity

    @property
    def roll(self) -> Roll:
        def ders(*hosts: HostIdentity) -> frozenset[bytes]:
            return frozenset(certificate_der(one.certificate_pem) for one in hosts)

        return Roll({PAIR: ders(self.a, self.b), OTHER: ders(self.c, self.d)})


CAST = Cast(*(make_identity() for _ in range(6)))


class World(WitnessBench):
    """A network with a witness server on it."""

    def __init__(self, network: MemoryNetwork | None = None, keeper: MemoryWitness | None = None) -> None:
        super().__init__(PAIR)
        self.network = network or MemoryNetwork()
        self.keeper = keeper or MemoryWitness()
        self._opened = 0
        self.server = WitnessServer(self.keeper, CAST.witness, CAST.roll, self.network)

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        listener = await self.network.listen(ADDRESS)
        try:
            task_status.started()
            await self.server.run(listener)
        finally:
            listener.close()

    async def script(
        self, play: Script, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """In the server's place: a witness with the right key that does what ``play`` says."""
        listener = await self.network.listen(ADDRESS)
        task_status.started()
        async with trio.open_nursery() as nursery:
            while True:
                nursery.start_soon(self._play, await listener.accept(), play)

    async def _play(self, connection: MemoryConnection, play: Script) -> None:
        pins = ListenerPins(CAST.witness, [certificate_der(CAST.a.certificate_pem)])
        stream = TlsStream(connection, Gate(), pins, dialing=False, who="host")
        try:
            with contextlib.suppress(PeerError):  # the host has had enough
                await accept_handshake(stream)
                await play(Channel(stream, WITNESS, "host"))
        finally:
            connection.close()

    def config(self, identity: HostIdentity = CAST.a, **changes: Any) -> WitnessConfig:
        values: dict[str, Any] = {
            "address": ADDRESS,
            "certificate_pem": CAST.witness.certificate_pem,
            "identity": identity,
            "pair_id": PAIR,
            **changes,
        }
        return WitnessConfig(**values)

    @contextlib.asynccontextmanager
    async def client(self, identity: HostIdentity = CAST.a, **changes: Any) -> AsyncIterator[WitnessClient]:
        async with open_witness(self.config(identity, **changes), network=self.network) as client:
            yield client

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[WitnessStore]:
        self._opened += 1
        async with self.client((CAST.a, CAST.b)[self._opened % 2]) as client:
            yield client

    async def dial(self, identity: HostIdentity = CAST.a) -> tuple[MemoryConnection, Channel[WitnessMessage]]:
        """A connection of a host that speaks for itself, after the TLS handshake."""
        connection = await self.network.connect(ADDRESS, None)
        contexts = TlsContexts(identity, CAST.witness.certificate_pem)
        stream = TlsStream(connection, Gate(), contexts, dialing=True, who="witness")
        await stream.handshake()
        return connection, Channel(stream, WITNESS, "witness")


QUICK = WitnessTimings(beat_ns=1_000_000_000, silence_ns=2_000_000_000)
