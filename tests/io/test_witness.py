"""The client of the built-in witness: its connection, and answers that are not what was asked for."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Awaitable, Callable

import pytest
import trio
from tests.io.harness import MemoryConnection, MemoryNetwork
from tests.io.witness_harness import CAST, KEY, OTHER, QUICK, World
from trio.testing import MockClock as C

from pairsync.core.messages import Buffer
from pairsync.core.witness import Conflict, WitnessKey
from pairsync.errors import (
    ClosedError,
    ConfigError,
    PeerError,
    PeerLost,
    ProtocolError,
    RefusedError,
)
from pairsync.io.channel import Channel
from pairsync.io.witness import REQUESTS_MAX, WitnessClient, WitnessTimings
from pairsync.testing.witness import WITNESS_CHECKS, WitnessCheck
from pairsync.wire.witness import (
    Beat,
    Crossed,
    Failed,
    Greet,
    Greeted,
    Look,
    Request,
    Seen,
    Swap,
    Swapped,
    WitnessMessage,
)

ME = b"12345678"


@pytest.fixture
async def world(nursery: trio.Nursery) -> World:
    world = World()
    await nursery.start(world.serve)
    return world


# -- the connection ------------------------------------------------------------------------------------------


async def test_a_request_waits_for_the_first_connection(world: World, autojump_clock: C) -> None:
    async with world.client() as client:
        before = (client.connected, type(client.failure))
        assert before == (False, PeerLost)
        await client.get(KEY)
        assert (client.connected, client.failure) == (True, None)


async def test_an_unreachable_witness_is_told_at_once_and_tried_again(
    world: World, autojump_clock: C
) -> None:
    world.network.down = True
    async with world.client() as client:
        for _ in range(3):
            with pytest.raises(PeerLost, match=r"10\.0\.0\.9:10889.*refused"):
                await client.get(KEY)
        await trio.sleep(60)
        attempts = world.network.attempts_ns
        gaps = [later - earlier for earlier, later in itertools.pairwise(attempts)]
        assert max(gaps) <= 5.1e9
        assert min(gaps[6:]) >= 2.5e9
        world.network.down = False
        await trio.sleep(6)
        await client.get(KEY)


async def test_a_lost_connection_is_told_to_all_who_wait_and_made_anew(
    world: World, autojump_clock: C
) -> None:
    outcomes: list[str] = []

    async def ask(client: WitnessClient, request: Callable[[], Awaitable[object]]) -> None:
        try:
            await request()
            outcomes.append("answered")
        except PeerError as error:
            outcomes.append(str(error))

    async with world.client() as client:
        seen = await client.get(KEY)
        world.network.swallow()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask, client, lambda: client.get(KEY))
            nursery.start_soon(ask, client, lambda: client.swap(KEY, seen.version, b"x"))
        assert len(outcomes) == 4
        assert all("silent for 10 s" in each for each in outcomes)
        await trio.sleep(2)
        assert await client.get(KEY) == seen
        assert client.connections == 2


async def test_beats_keep_an_idle_connection_and_notice_that_it_died(world: World, autojump_clock: C) -> None:
    async with world.client(timings=QUICK) as client:
        await client.get(KEY)
        await trio.sleep(1000)
        assert client.connections == 1
        world.network.swallow()
        await trio.sleep(3.5)
        assert world.server.statistics().connections >= 1
        await trio.sleep(1)
        assert client.connections == 2


async def test_a_cut_is_a_pulled_cable(world: World, autojump_clock: C) -> None:
    async with world.client(timings=QUICK) as client:
        await client.get(KEY)
        client.cut()
        await trio.sleep(1)
        with pytest.raises(PeerLost, match="silent"):
            await client.get(KEY)
        client.heal()
        await trio.sleep(1)
        await client.get(KEY)


async def test_a_closed_client_says_so(world: World, autojump_clock: C) -> None:
    async with world.client() as client:
        await client.get(KEY)
    with pytest.raises(ClosedError):
        await client.get(KEY)
    world.network.down = True
    async with trio.open_nursery() as nursery, world.client() as client:
        client.cut()

        async def waits() -> None:
            with pytest.raises(ClosedError):
                await client.get(KEY)

        nursery.start_soon(waits)
        await trio.testing.wait_all_tasks_blocked()


async def test_a_caller_that_gives_up_leaves_the_connection_as_it_was(
    world: World, autojump_clock: C
) -> None:
    async with world.client() as client:
        seen = await client.get(KEY)
        for number in range(5):
            with trio.CancelScope() as scope:
                scope.cancel()
                await client.swap(KEY, seen.version, b"%d" % number)
        done = await client.swap(KEY, seen.version, b"late")
        assert isinstance(done, Conflict)
        assert done.current.value == b"0"
        assert client.connections == 1


async def test_what_cannot_be_asked_is_the_callers_fault(world: World, autojump_clock: C) -> None:
    async with world.client() as client:
        with pytest.raises(ConfigError, match="another pair"):
            await client.get(WitnessKey(OTHER, "db1"))
        with pytest.raises(ConfigError, match="1025 bytes"):
            await client.swap(KEY, 1, bytes(1025))


@pytest.mark.parametrize(
    "timings",
    [
        WitnessTimings(beat_ns=0),
        WitnessTimings(silence_ns=0),
        WitnessTimings(handshake_ns=0),
        WitnessTimings(backoff_first_ns=0),
        WitnessTimings(backoff_first_ns=2, backoff_limit_ns=1),
    ],
)
async def test_timings_that_cannot_be_are_refused(timings: WitnessTimings) -> None:
    with pytest.raises(ConfigError, match="witness timings"):
        WitnessClient(World().config(timings=timings), MemoryNetwork())


async def test_a_pair_id_has_sixteen_bytes() -> None:
    with pytest.raises(ConfigError, match="16 bytes"):
        WitnessClient(World().config(pair_id=b"short"), MemoryNetwork())


# -- a second away -------------------------------------------------------------------------------------------


class FarConnection(MemoryConnection):
    """What is sent arrives half a second later."""

    def __init__(self, remote: tuple[str, int], capacity_bytes: int, nursery: trio.Nursery) -> None:
        super().__init__(remote, capacity_bytes)
        self._nursery = nursery
        self._under_way: deque[bytes] = deque()  # who is woken takes the oldest: the order is kept

    def send_nowait(self, data: Buffer) -> int:
        self._under_way.append(bytes(data))
        self._nursery.start_soon(self._carry, trio.current_time() + 0.5)
        return len(data)

    async def _carry(self, when: float) -> None:
        await trio.sleep_until(when)
        data = self._under_way.popleft()
        if not self.closed and not self._other().closed:
            super().send_nowait(data)


class FarNetwork(MemoryNetwork):
    """A second there and back."""

    def __init__(self, nursery: trio.Nursery) -> None:
        super().__init__()
        self._nursery = nursery

    async def connect(self, address: tuple[str, int], local: str | None) -> MemoryConnection:
        await trio.sleep(1)
        near = FarConnection(address, 1 << 20, self._nursery)
        far = FarConnection(("10.0.0.1", 1), 1 << 20, self._nursery)
        near.peer, far.peer = far, near
        self.listeners[address].offer(far)
        return near


@pytest.mark.parametrize("check", WITNESS_CHECKS[:4], ids=lambda check: check.__name__)
async def test_a_witness_a_second_away_is_as_good(
    check: WitnessCheck, nursery: trio.Nursery, autojump_clock: C
) -> None:
    world = World(FarNetwork(nursery))
    await nursery.start(world.serve)
    await check(world)


async def test_a_swap_a_second_away_takes_one_round_trip(nursery: trio.Nursery, autojump_clock: C) -> None:
    world = World(FarNetwork(nursery))
    await nursery.start(world.serve)
    async with world.client() as client:
        began = trio.current_time()
        seen = await client.get(KEY)
        assert trio.current_time() - began <= 5.1  # TCP, TLS, greeting, look
        began = trio.current_time()
        await client.swap(KEY, seen.version, b"x")
        assert 0.9 <= trio.current_time() - began <= 1.1


# -- witnesses with the right key and wrong answers ----------------------------------------------------------


async def greeted(channel: Channel[WitnessMessage]) -> Request:
    """Greet the host, and take its first request."""
    assert isinstance(await channel.receive(), Greet)
    await channel.send(Greeted(1, "scripted"))
    request = await channel.receive()
    assert isinstance(request, (Look, Swap))
    return request


def forger(*answers: Callable[[int], WitnessMessage]) -> Callable[[Channel[WitnessMessage]], Awaitable[None]]:
    """Answer the first request with all of these, and what comes then with nothing."""

    async def play(channel: Channel[WitnessMessage]) -> None:
        number = (await greeted(channel)).number
        for answer in answers:
            await channel.send(answer(number))
        while True:
            await channel.receive()

    return play


@pytest.mark.parametrize(
    "answer",
    [
        lambda n: Seen(n + 1, ME, 5, None),
        lambda n: Swapped(n, ME, 5),
        lambda n: Crossed(n, ME, 5, None),
        lambda n: Beat(1),
        lambda n: Greeted(1, "again"),
        lambda n: Look(n, "db1", None),
        lambda n: Failed(n + 1, "no"),
    ],
)
async def test_a_wrong_answer_to_a_look_is_refused(
    answer: Callable[[int], WitnessMessage], nursery: trio.Nursery, autojump_clock: C
) -> None:
    world = World()
    await nursery.start(world.script, forger(answer))
    async with world.client() as client:
        with pytest.raises(ProtocolError):
            await client.get(KEY)


@pytest.mark.parametrize(
    "answer",
    [
        lambda n: Seen(n, ME, 8, None),
        lambda n: Swapped(n, ME, 7),
        lambda n: Swapped(n, ME, 3),
        lambda n: Crossed(n, ME, 7, b"other"),
    ],
)
async def test_a_wrong_answer_to_a_swap_is_refused(
    answer: Callable[[int], WitnessMessage], nursery: trio.Nursery, autojump_clock: C
) -> None:
    world = World()
    await nursery.start(world.script, forger(answer))
    async with world.client() as client:
        with pytest.raises(ProtocolError):
            await client.swap(KEY, 7, b"mine")


async def test_an_answer_that_comes_twice_ends_the_connection(
    nursery: trio.Nursery, autojump_clock: C
) -> None:
    world = World()
    await nursery.start(world.script, forger(lambda n: Seen(n, ME, 5, None), lambda n: Seen(n, ME, 6, None)))
    async with world.client() as client:
        assert (await client.get(KEY)).version == 5
        await trio.sleep(0.01)
        with pytest.raises(ProtocolError, match="answers request 1"):
            await client.get(KEY)


async def test_a_register_that_goes_back_is_refused(nursery: trio.Nursery, autojump_clock: C) -> None:
    async def play(channel: Channel[WitnessMessage]) -> None:
        request = await greeted(channel)
        for version in (5, 4):
            await channel.send(Seen(request.number, ME, version, None))
            message = await channel.receive()
            assert isinstance(message, Look)
            request = message

    world = World()
    await nursery.start(world.script, play)
    async with world.client() as client:
        assert (await client.get(KEY)).version == 5
        with pytest.raises(ProtocolError, match="went back from 5 to 4"):
            await client.get(KEY)


async def test_garbage_is_refused(nursery: trio.Nursery, autojump_clock: C) -> None:
    async def play(channel: Channel[WitnessMessage]) -> None:
        await greeted(channel)
        await channel._stream.send_all(b"\x00\x05nonsense of all kinds")
        await trio.sleep_forever()

    world = World()
    await nursery.start(world.script, play)
    async with world.client() as client:
        with pytest.raises(ProtocolError):
            await client.get(KEY)


async def test_a_witness_that_says_nothing_is_given_up(nursery: trio.Nursery, autojump_clock: C) -> None:
    async def play(channel: Channel[WitnessMessage]) -> None:
        await channel.receive()
        await trio.sleep_forever()

    world = World()
    await nursery.start(world.script, play)
    async with world.client() as client:
        with trio.move_on_after(2) as scope:
            await client.get(KEY)
        assert scope.cancelled_caught
        with pytest.raises(PeerLost, match="no answer within"):
            await client.get(KEY)


async def test_a_witness_that_says_nothing_else_is_given_up(nursery: trio.Nursery, autojump_clock: C) -> None:
    world = World()
    await nursery.start(world.script, forger())
    async with world.client() as client:
        with pytest.raises(PeerLost, match="silent for 10 s"):
            await client.get(KEY)


async def test_a_slow_witness_is_as_slow_as_the_caller_allows(
    nursery: trio.Nursery, autojump_clock: C
) -> None:
    async def play(channel: Channel[WitnessMessage]) -> None:
        request: WitnessMessage = await greeted(channel)
        while isinstance(request, (Look, Swap)):
            await trio.sleep(3)
            await channel.send(Seen(request.number, ME, request.number, None))
            request = await channel.receive()

    world = World()
    await nursery.start(world.script, play)
    async with world.client() as client:
        with trio.move_on_after(1) as scope:
            await client.get(KEY)
        assert scope.cancelled_caught
        with trio.fail_after(7):
            assert (await client.get(KEY)).version == 2
        assert client.connections == 1


async def test_a_witness_that_owes_too_much_is_given_up(nursery: trio.Nursery, autojump_clock: C) -> None:
    world = World()
    await nursery.start(world.script, forger())
    async with world.client() as client:
        for _ in range(REQUESTS_MAX):
            with trio.move_on_after(0.01):
                await client.get(KEY)
        with pytest.raises(PeerLost, match="owes 64 answers"):
            await client.get(KEY)


async def test_a_witness_with_a_wrong_key_is_refused(world: World, autojump_clock: C) -> None:
    async with world.client(certificate_pem=CAST.stranger.certificate_pem) as client:
        with pytest.raises(RefusedError, match="not the pinned one"):
            await client.get(KEY)


async def test_a_witness_of_another_version_is_refused(nursery: trio.Nursery, autojump_clock: C) -> None:
    async def play(channel: Channel[WitnessMessage]) -> None:
        await channel.receive()
        await channel.send(Greeted(9, "from the future"))
        await channel.receive()

    world = World()
    await nursery.start(world.script, play)
    async with world.client() as client:
        with pytest.raises(RefusedError, match=r"peer speaks 9\.\.9"):
            await client.get(KEY)
