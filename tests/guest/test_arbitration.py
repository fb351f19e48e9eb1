"""A guest's half of the grant register: two hosts and a witness in one process, with real links and files.

What is agreed is explored elsewhere; here it is *done*: roles change, permits are given and taken back,
leases reach the warden, memories are durable before anybody hears of them.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
import trio
from tests.guest.harness import PAIR_ID, Host, Pair, in_time

from pairsync.core.acceptor import AcceptorState
from pairsync.core.arbiter import Arbiter
from pairsync.core.events import DiscordEvent, GrantEvent, TimingEvent
from pairsync.core.grants import FORK_BYTES, VoterId, genesis
from pairsync.core.messages import Role
from pairsync.core.timing import Timing, derive
from pairsync.core.timingjudge import Measure, TimingVerdict
from pairsync.core.units import BLOCK_BYTES, NS_PER_S
from pairsync.core.witness import Conflict, Snapshot, WitnessKey
from pairsync.errors import ArbitrationError, PeerLost
from pairsync.guest.arbitration import Arbitration
from pairsync.guest.guest import Guest, open_guest
from pairsync.storage.acceptorfile import AcceptorFile
from pairsync.testing.witness.memory import MemoryWitness
from pairsync.wire.arbitration import decode_acceptor, encode_acceptor

TIMING: Timing = derive(2 * NS_PER_S)
KEY = WitnessKey(PAIR_ID, "guest")
E = TypeVar("E")
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

    def lease_until(self, until_ns: int | None) -> None:
        self.until_ns, self.resting = until_ns, False

    async def settled(self) -> None:
        await trio.lowlevel.checkpoint()

    def rest(self) -> None:
        self.until_ns, self.resting = None, True

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


def noise(seed: int) -> bytes:
    return random.Random(seed).randbytes(BLOCK_BYTES)


class Both:
    """The files of two hosts and their witness."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.timings: dict[Host, Timing] = {}
        self.witness = MemoryWitness(random.Random(7).randbytes)
        self.fingerprints = {host: pair.identities[host].fingerprint for host in pair.identities}
        for host in pair.identities:
            incarnation = host.encode() * 8
            owner = VoterId(self.fingerprints[host], incarnation)
            state = AcceptorState(incarnation, genesis(owner, FORK) if host == "a" else None)
            AcceptorFile.create(self.memory(host), encode_acceptor(state))

    def memory(self, host: Host) -> Path:
        return self.pair.base / host / "register"

    def remembers(self, host: Host) -> AcceptorState:
        file = AcceptorFile.open(self.memory(host))
        file.close()
        return decode_acceptor(file.state)

    @asynccontextmanager
    async def host(self, name: Host) -> AsyncIterator[Half]:
        peer: Host = "b" if name == "a" else "a"
        async with AsyncExitStack() as stack:
            config = replace(self.pair.config(name), role=Role.STANDBY)
            guest = await stack.enter_async_context(open_guest(config))
            memory = AcceptorFile.open(self.memory(name))
            stack.callback(memory.close)
            cable, warden = Cable(self.witness), Warden()
            chance = random.Random(name)
            arbiter = Arbiter(
                self.fingerprints[name],
                self.fingerprints[peer],
                decode_acceptor(memory.state),
                self.timings.get(name, TIMING),
                witnesses=("hill",),
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


@pytest.fixture
def both(pair: Pair) -> Both:
    return Both(pair)


async def test_the_first_owner_serves_and_all_three_agree_once_both_are_in_sync(both: Both) -> None:
    async with in_time(), both.whole() as (first, second):
        assert first.serves
        assert not second.serves
        assert first.warden.until_ns is not None  # others could take over: it has a lease
        assert second.warden.resting
        standing = second.arbitration.standing()
        assert standing is not None
        assert (standing.owner, standing.in_sync, standing.sole) == ("peer", ("here", "peer"), False)
        assert standing.witness == "hill"
        seen = first.arbitration.outlook()
        assert seen is not None
        assert seen.redundant
        assert second.arbitration.outlook() is None
    grants = [both.remembers(host).base for host in ("a", "b")]
    assert grants[0] == grants[1]


async def test_a_lost_owner_is_replaced_and_is_a_standby_when_it_is_back(both: Both) -> None:
    async with in_time(), both.host("b") as second:
        async with both.host("a") as first:
            await until(lambda: agreed(first) and agreed(second))
            await first.write(3)
        began = trio.current_time()
        await until(lambda: second.serves)
        assert trio.current_time() - began < TIMING.failover_ns / NS_PER_S
        assert await second.read(3) == noise(3)
        assert second.warden.until_ns is None  # it decides alone: no lease
        await second.write(4)
        async with both.host("a") as first:
            await until(lambda: agreed(first) and agreed(second))
            assert not first.serves
            assert second.serves
            await second.guest.volume("vda").flush()
    assert both.pair.same()


async def test_a_cut_link_leaves_the_guest_where_it_is_and_the_peer_out(both: Both) -> None:
    async with in_time(), both.whole() as (first, second):
        assert first.guest.link is not None
        first.guest.link.cut()
        await first.write(5)  # acknowledged only when the peer is out by grant
        grant = first.arbitration.arbiter.grant
        assert grant is not None
        assert grant.in_sync == {both.fingerprints["a"]}
        await trio.sleep(TIMING.failover_ns / NS_PER_S)
        assert first.serves
        assert not second.serves
        first.guest.link.heal()
        await until(lambda: agreed(first) and agreed(second))


async def test_an_owner_that_reaches_nobody_stops_before_the_other_one_starts(both: Both) -> None:
    async with in_time(), both.whole() as (first, second):
        assert first.guest.link is not None
        first.guest.link.cut()
        first.cable.cut = True
        overlap = False

        async def look() -> None:
            nonlocal overlap
            while True:
                overlap = overlap or (first.serves and second.serves)
                await trio.sleep(0.001)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            await until(lambda: second.serves)
            assert not first.serves
            await second.write(6)
            nursery.cancel_scope.cancel()
        assert not overlap
        first.guest.link.heal()
        first.cable.cut = False
        await until(lambda: agreed(first) and agreed(second))
        assert second.serves
        assert not first.serves


async def test_the_owner_outlives_its_witness_and_then_its_peer(both: Both) -> None:
    async with in_time(), both.host("a") as first:
        async with both.host("b") as second:
            await until(lambda: agreed(first) and agreed(second))
            for half in (first, second):
                half.cable.cut = True
            await until(lambda: (now := first.arbitration.standing()) is not None and now.sole)
        await first.write(7)
        assert first.serves


async def test_a_planned_move_goes_there_and_back(both: Both) -> None:
    async with in_time(), both.whole() as (first, second):
        for source, target in ((first, second), (second, first)):
            await source.write(8)
            with target.guest.subscribe() as events:
                await source.arbitration.move()
                await until(lambda: target.serves)  # noqa: B023 - awaited in this round
                assert (await first_of(events, GrantEvent)).owner == "here"
            assert await target.read(8) == noise(8)
            await target.write(9)
            await until(lambda: agreed(first) and agreed(second))
        assert first.serves


async def first_of(events: AsyncIterator[object], kind: type[E]) -> E:
    async for event in events:
        if isinstance(event, kind):
            return event
    raise AssertionError(f"no {kind.__name__}")


async def test_a_move_that_cannot_be_says_why(both: Both) -> None:
    async with in_time(), both.host("a") as first:
        await until(lambda: first.serves)
        with pytest.raises(ArbitrationError, match="the other host is not in sync"):
            await first.arbitration.move()
    async with in_time(), both.host("b") as second:
        with pytest.raises(ArbitrationError, match="the guest does not run here"):
            await second.arbitration.move()


async def test_a_person_may_overrule_and_it_is_told_as_two_truths(both: Both) -> None:
    async with in_time():
        async with both.whole() as (first, second):
            assert first.guest.link is not None
            first.guest.link.cut()
            await first.write(10)  # it goes on alone
        async with both.host("b") as second:
            await trio.sleep(2 * TIMING.failover_ns / NS_PER_S)
            assert not second.serves  # nobody lets it
            second.arbitration.override("Dr Weber", b"o" * FORK_BYTES)
            await until(lambda: second.serves)
            grant = second.arbitration.arbiter.grant
            assert grant is not None
            assert grant.override == "Dr Weber"
            assert await second.read(10) == bytes(BLOCK_BYTES)


async def test_hosts_with_different_failover_times_say_so_and_the_owner_serves_alone(both: Both) -> None:
    async with in_time():
        async with both.whole() as (first, second):
            assert second.guest.in_sync
        both.timings["b"] = derive(3 * NS_PER_S)
        async with both.host("b") as second, both.host("a") as first:
            with first.guest.subscribe() as here, second.guest.subscribe() as there:
                told = [await first_of(here, DiscordEvent), await first_of(there, DiscordEvent)]
                assert told == [DiscordEvent(2.0, 3.0), DiscordEvent(3.0, 2.0)]
            await until(lambda: first.serves)
            await until(lambda: (now := first.arbitration.standing()) is not None and now.sole)
            await first.write(11)  # needs nobody
            assert not first.arbitration.in_sync
            assert first.warden.until_ns is None
        del both.timings["b"]
        async with both.host("b") as second, both.host("a") as first:
            await until(lambda: agreed(first) and agreed(second))
            assert await first.read(11) == noise(11)


async def test_what_it_takes_is_measured_while_it_runs(both: Both) -> None:
    async with in_time(), both.whole() as (first, second):
        measured = dict.fromkeys(Measure, 0)
        take = first.arbitration.punctuality.measured

        def count(what: Measure, sample_ns: int, now_ns: int) -> None:
            measured[what] += 1
            take(what, sample_ns, now_ns)

        first.arbitration.punctuality.measured = count  # type: ignore[method-assign]
        first.warden.late_ns = 2 * TIMING.stall_ns
        with first.guest.subscribe() as events:
            event = await first_of(events, TimingEvent)
        assert event.verdict == "broken"
        assert first.arbitration.punctuality.judgement.verdict is TimingVerdict.BROKEN
        assert first.guest.link is not None
        first.guest.link.cut()
        first.cable.cut = True
        await until(lambda: second.serves)
        first.guest.link.heal()
        first.cable.cut = False
        await until(lambda: agreed(first) and agreed(second))
        await second.arbitration.move()
        await until(lambda: first.serves)
        assert min(measured.values()) > 0, measured
