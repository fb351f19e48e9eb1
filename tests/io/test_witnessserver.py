"""The witness server: who may ask for what, what a crowd costs, and that hosts are served all the while."""

from __future__ import annotations

import pytest
import trio
from tests.io.harness import MemoryNetwork
from tests.io.witness_harness import ADDRESS, CAST, KEY, OTHER, PAIR, World
from trio.testing import MockClock as C

from pairsync.core.witness import Snapshot, WitnessKey
from pairsync.errors import BackendError, PeerLost, RefusedError
from pairsync.io.keys import HostIdentity, certificate_der
from pairsync.io.witnessserver import CONNECTIONS_HOST_MAX, HANDSHAKE_S, PLACES, SILENCE_S, Roll
from pairsync.testing.witness import WITNESS_CHECKS, MemoryWitness, WitnessCheck
from pairsync.wire.witness import (
    Beat,
    Crossed,
    Declined,
    Failed,
    Greet,
    Greeted,
    Knowledge,
    Look,
    Seen,
    Swap,
    Swapped,
    WitnessMessage,
)

GREET = Greet(1, 1, "by hand", PAIR)


@pytest.fixture
async def world(nursery: trio.Nursery) -> World:
    world = World()
    await nursery.start(world.serve)
    return world


@pytest.mark.parametrize("check", WITNESS_CHECKS, ids=lambda check: check.__name__)
async def test_the_suite_over_tls_in_memory(world: World, autojump_clock: C, check: WitnessCheck) -> None:
    await check(world)


# -- who may ask ---------------------------------------------------------------------------------------------


async def test_a_host_with_a_wrong_key_is_refused(world: World, autojump_clock: C) -> None:
    async with world.client(CAST.stranger) as client:
        with pytest.raises(RefusedError, match="does not accept our certificate"):
            await client.get(KEY)
    assert world.server.statistics().refusals == {"handshake": 1}


@pytest.mark.parametrize("identity", [CAST.c, CAST.d])
async def test_a_host_of_another_pair_is_refused(
    world: World, autojump_clock: C, identity: HostIdentity
) -> None:
    async with world.client(identity) as client:
        with pytest.raises(RefusedError, match="is no host of pair"):
            await client.get(KEY)
    async with world.client(identity, pair_id=OTHER) as client:
        await client.swap(
            WitnessKey(OTHER, "db1"), (await client.get(WitnessKey(OTHER, "db1"))).version, b"x"
        )
    assert world.keeper.look(KEY).value is None


async def test_a_pair_that_is_not_on_the_roll_is_refused(world: World, autojump_clock: C) -> None:
    async with world.client(pair_id=b"never heard of..") as client:
        with pytest.raises(RefusedError, match="no host of pair"):
            await client.get(WitnessKey(b"never heard of..", "db1"))


async def test_a_pair_that_is_struck_off_is_dropped_and_others_are_not(
    world: World, autojump_clock: C
) -> None:
    async with world.client() as mine, world.client(CAST.c, pair_id=OTHER) as theirs:
        await mine.get(KEY)
        await theirs.get(WitnessKey(OTHER, "db1"))
        world.server.admit(Roll({OTHER: CAST.roll.pairs[OTHER]}))
        await trio.sleep(1)
        with pytest.raises(RefusedError):
            await mine.get(KEY)
        await theirs.get(WitnessKey(OTHER, "db1"))
        assert theirs.connections == 1
        world.server.admit(CAST.roll)
        await trio.sleep(10)
        await mine.get(KEY)


async def test_a_host_that_was_replaced_is_dropped(world: World, autojump_clock: C) -> None:
    async with world.client() as old, world.client(CAST.b) as other:
        await old.get(KEY)
        seen = await other.get(KEY)
        hosts = frozenset(certificate_der(one.certificate_pem) for one in (CAST.stranger, CAST.b))
        world.server.admit(Roll({PAIR: hosts}))
        await trio.sleep(1)
        with pytest.raises(RefusedError):
            await old.get(KEY)
        async with world.client(CAST.stranger) as new:
            assert await new.get(KEY) == seen
        assert other.connections == 1


async def test_an_unknown_version_is_refused_in_words(world: World, autojump_clock: C) -> None:
    connection, channel = await world.dial()
    await channel.send(Greet(7, 9, "from the future", PAIR))
    answer = await channel.receive()
    assert isinstance(answer, Declined)
    assert "peer speaks 7..9" in answer.reason
    connection.close()


# -- requests by hand ----------------------------------------------------------------------------------------


async def test_requests_are_answered_in_order_with_their_numbers(world: World, autojump_clock: C) -> None:
    connection, channel = await world.dial()
    await channel.send(GREET)
    assert isinstance(await channel.receive(), Greeted)
    await channel.send(Look(1, "db1", None))
    seen = await channel.receive()
    assert isinstance(seen, Seen)
    requests: list[WitnessMessage] = [
        Beat(1),
        Swap(5, "db1", None, seen.version, b"x"),
        Swap(6, "db1", Knowledge(seen.incarnation, seen.version + 1), seen.version, b"y"),
        Look(9, "", None),
        Look(10, "db1", None),
    ]
    for request in requests:
        await channel.send(request)
    version = seen.version + 1
    assert [await channel.receive() for _ in requests] == [
        Beat(1),
        Swapped(5, seen.incarnation, version),
        Crossed(6, seen.incarnation, version, b"x"),
        Failed(9, "witness: a guest's name of 0 bytes, 1 to 255 are possible"),
        Seen(10, seen.incarnation, version, b"x"),
    ]
    connection.close()


@pytest.mark.parametrize(
    "replayed", [Look(3, "db1", None), Swap(2, "db1", None, 1, b"x"), GREET, Greeted(1, "")]
)
async def test_a_number_that_was_used_and_what_is_no_request_end_the_connection(
    world: World, autojump_clock: C, replayed: Look | Swap | Greet | Greeted
) -> None:
    connection, channel = await world.dial()
    await channel.send(GREET)
    await channel.receive()
    await channel.send(Look(3, "db1", None))
    await channel.receive()
    await channel.send(replayed)
    with pytest.raises(PeerLost):
        await channel.receive()
    assert world.server.statistics().refusals == {"protocol": 1}
    connection.close()


async def test_a_witness_that_is_behind_what_a_host_has_seen_begins_anew(
    world: World, autojump_clock: C
) -> None:
    async with world.client() as client:
        first = await client.get(KEY)
        second = await client.swap(KEY, first.version, b"x")
        assert isinstance(second, Snapshot)
        world.keeper._registers[KEY] = first  # the whole machine was put back
        again = await client.get(KEY)
        assert again.incarnation != first.incarnation
        assert again.value is None


async def test_a_disk_that_fails_is_told_and_the_connection_stays(world: World, autojump_clock: C) -> None:
    class Failing(MemoryWitness):
        broken = True

        async def get(self, key: WitnessKey) -> Snapshot:
            if self.broken:
                raise BackendError("no space left")
            return await super().get(key)

    keeper = Failing()
    world.server._keeper = keeper
    async with world.client() as client:
        with pytest.raises(RefusedError, match="no space left"):
            await client.get(KEY)
        keeper.broken = False
        await client.get(KEY)
        assert client.connections == 1
    assert world.server.statistics().failed == 1


# -- crowds --------------------------------------------------------------------------------------------------


async def test_ten_thousand_strangers_are_bounded_and_hosts_are_served(
    autojump_clock: C, nursery: trio.Nursery
) -> None:
    world = World(MemoryNetwork(capacity_bytes=1 << 14))
    await nursery.start(world.serve)
    most = 0
    async with world.client() as client:
        await client.get(KEY)
        strangers = []
        for number in range(10_000):
            address = f"10.9.{number // 4 % 100}.{number % 50}"
            strangers.append(await world.network.connect(ADDRESS, address))
            if number % 100 == 0:
                await trio.sleep(0.05)  # at ten times the pace
                most = max(most, world.server.statistics().half_open)
                await client.get(KEY)
        assert 100 < most <= PLACES.strangers
        # a host that comes back is let in beside them: its address is known
        assert client._line is not None
        client._line.end(PeerLost("cut"))
        with trio.fail_after(10):
            while True:
                try:
                    await client.get(KEY)
                    break
                except PeerLost:
                    await trio.sleep(0.1)
        refusals = world.server.statistics().refusals
        assert refusals["too many"] > 5_000
        await trio.sleep(HANDSHAKE_S + 1)
        await client.get(KEY)
        assert world.server.statistics().half_open == 0
        assert all(stranger._other().closed for stranger in strangers)


async def test_one_address_cannot_take_all_places(world: World, autojump_clock: C) -> None:
    for _ in range(PLACES.address + 20):
        await world.network.connect(ADDRESS, "10.9.9.9")
    await trio.testing.wait_all_tasks_blocked()
    assert world.server.statistics().half_open == PLACES.address


async def test_the_newest_connection_of_a_host_pushes_the_oldest_out(world: World, autojump_clock: C) -> None:
    connections = []
    for _ in range(CONNECTIONS_HOST_MAX + 1):
        connection, channel = await world.dial()
        await channel.send(GREET)
        await channel.receive()
        connections.append(connection)
    await trio.testing.wait_all_tasks_blocked()
    assert [each._other().closed for each in connections] == [True, False, False]
    statistics = world.server.statistics()
    assert (statistics.connections, statistics.connected) == (2, {CAST.a.fingerprint: 2})


async def test_a_silent_host_is_dropped(world: World, autojump_clock: C) -> None:
    connection, channel = await world.dial()
    await channel.send(GREET)
    await channel.receive()
    await trio.sleep(SILENCE_S - 1)
    await channel.send(Beat(1))
    await trio.sleep(SILENCE_S - 1)
    assert world.server.statistics().connections == 1
    await trio.sleep(2)
    assert world.server.statistics().connections == 0
    assert connection._other().closed


async def test_who_does_not_say_which_pair_is_dropped(world: World, autojump_clock: C) -> None:
    connection, _ = await world.dial()
    await trio.sleep(HANDSHAKE_S + 1)
    assert connection._other().closed
    assert world.server.statistics().refusals == {"half-open": 1}
