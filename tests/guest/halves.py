"""Two hosts that agree on who owns their guest, and a witness, in one process: real links, real files."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import trio
from tests.guest.harness import PAIR_ID, Host, Pair, noise

from pairsync.core.acceptor import AcceptorState, HostMemory
from pairsync.core.arbiter import Arbiter
from pairsync.core.grants import FORK_BYTES, VoterId, genesis
from pairsync.core.messages import Role
from pairsync.core.timing import Timing, derive
from pairsync.core.units import BLOCK_BYTES, NS_PER_S
from pairsync.core.witness import Conflict, Snapshot, WitnessKey
from pairsync.errors import PeerLost
from pairsync.guest.arbitration import Arbitration
from pairsync.guest.guest import Guest, open_guest
from pairsync.guest.replica import open_replica
from pairsync.storage.acceptorfile import AcceptorFile
from pairsync.testing.faulty import FaultyDisk
from pairsync.testing.witness.memory import MemoryWitness
from pairsync.wire.arbitration import decode_host_memory, encode_host_memory

TIMING: Timing = derive(2 * NS_PER_S)
KEY = WitnessKey(PAIR_ID, "guest")
FORK = b"f" * FORK_BYTES


class Cable:
    """A witness behind a cable."""

    def __init__(self, witness: MemoryWitness) -> None:
        self._witness = witness
        self.cut = False

    def _check(self) -> None:
        if self.cut:
            raise PeerLost("the cable is cut")

    async def get(self, key: WitnessKey) -> Snapshot:
        self._check()
        return await self._witness.get(key)

    async def swap(self, key: WitnessKey, version: int, value: bytes) -> Snapshot | Conflict:
        self._check()
        return await self._witness.swap(key, version, value)


class Warden:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.until_ns: int | None = None
        self.resting = True
        self.late_ns = 0
        self.valid = True

    def lease_until(self, until_ns: int | None) -> None:
        self.until_ns, self.resting = until_ns, False

    async def settled(self) -> None:
        await trio.lowlevel.checkpoint()

    def rest(self) -> None:
        self.until_ns, self.resting = None, True

    def lease_valid(self) -> bool:
        return self.valid

    def take_lateness_ns(self) -> int:
        return self.late_ns


class Half:
    """One host."""

    def __init__(self, guest: Guest, arbitration: Arbitration, cable: Cable, warden: Warden) -> None:
        self.guest = guest
        self.arbitration = arbitration
        self.cable = cable
        self.warden = warden

    @property
    def serves(self) -> bool:
        return self.guest.serves

    async def write(self, block: int) -> None:
        await self.guest.volume("vda").write(block * BLOCK_BYTES, noise(block))

    async def read(self, block: int) -> bytes:
        return await self.guest.volume("vda").read(block * BLOCK_BYTES, BLOCK_BYTES)


class Both:
    """The files of two hosts and their witness."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.timings: dict[Host, Timing] = {}
        self.protocol_max: dict[Host, int] = {}  # of a host of an older version
        self.disks: dict[Host, FaultyDisk] = {"a": FaultyDisk(), "b": FaultyDisk()}
        self.witness = MemoryWitness(random.Random(7).randbytes)
        self.fingerprints = {host: pair.identities[host].fingerprint for host in pair.identities}
        for host in pair.identities:
            incarnation = host.encode() * 8
            owner = VoterId(self.fingerprints[host], incarnation)
            state = AcceptorState(incarnation, genesis(owner, FORK) if host == "a" else None)
            AcceptorFile.create(self.memory(host), encode_host_memory(HostMemory(state, promise_ns=0)))

    def memory(self, host: Host) -> Path:
        return self.pair.base / host / "register"

    def remembers(self, host: Host) -> AcceptorState:
        file = AcceptorFile.open(self.memory(host))
        file.close()
        return decode_host_memory(file.state).acceptor

    @asynccontextmanager
    async def host(self, name: Host) -> AsyncIterator[Half]:
        peer: Host = "b" if name == "a" else "a"
        async with AsyncExitStack() as stack:
            config = replace(self.pair.config(name), role=Role.STANDBY)
            if name in self.protocol_max and config.link is not None:
                config = replace(config, link=replace(config.link, protocol_max=self.protocol_max[name]))
            opener = partial(open_replica, open_file=self.disks[name].open)
            guest = await stack.enter_async_context(open_guest(config, opener=opener))
            memory = AcceptorFile.open(self.memory(name))
            stack.callback(memory.close)
            cable, warden = Cable(self.witness), Warden()
            chance = random.Random(name)
            state, promise_ns = decode_host_memory(memory.state)
            arbiter = Arbiter(
                self.fingerprints[name],
                self.fingerprints[peer],
                state,
                self.timings.get(name, TIMING),
                witnesses=("hill",),
                promise_ns=promise_ns,
                first_number=chance.getrandbits(62),
                fraction=chance.random,
            )
            arbitration = Arbitration(
                guest,
                arbiter,
                memory,
                {"hill": cable},
                KEY,
                warden,
                host=self.fingerprints[name],
                now_ns=guest.now_ns,
            )
            nursery = await stack.enter_async_context(trio.open_nursery())
            stack.callback(nursery.cancel_scope.cancel)
            await nursery.start(arbitration.run)
            yield Half(guest, arbitration, cable, warden)

    @asynccontextmanager
    async def whole(self) -> AsyncIterator[tuple[Half, Half]]:
        """Both hosts, in sync under a grant that all three voted for."""
        async with self.host("b") as second, self.host("a") as first:
            await until(lambda: agreed(first) and agreed(second))
            yield first, second


def agreed(half: Half) -> bool:
    grant = half.arbitration.arbiter.grant
    return grant is not None and len(grant.in_sync) == 2 and len(grant.voters) == 3


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.sleep(0.01)
