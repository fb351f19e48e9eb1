"""One path of a running session: what takes it down, and how the peer is told."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator

import pytest
import trio
from tests.io.harness import MemoryNetwork, Pair, Recorder, make_write

from pairsync.core.units import NS_PER_S
from pairsync.io import Link, LinkTimings
from pairsync.io.path import VOTES_WAITING_MAX, Path
from pairsync.wire.hello import Hello, Ping, Pong

TIMINGS = LinkTimings()


@dataclasses.dataclass
class Two:
    active: Recorder
    standby: Recorder
    link: Link
    listening: Link

    def path(self) -> Path:
        """The dialer's only path."""
        (path,) = self.link._hub.paths.values()
        return path


@contextlib.asynccontextmanager
async def two(pair: Pair) -> AsyncIterator[Two]:
    pair.timings = TIMINGS
    active, standby = Recorder(), Recorder()
    async with pair.listen(standby) as listening, pair.dial(active, listening.addresses[0]) as link:
        await active.until_up()
        await standby.until_up()
        yield Two(active, standby, link, listening)


async def test_the_heartbeat_is_answered_and_costs_little(
    pair: Pair, memory: MemoryNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    async with two(pair) as hosts:
        before = hosts.link.statistics()
        await trio.sleep(100)
        after = hosts.link.statistics()
        beats = 100 * NS_PER_S / TIMINGS.heartbeat_ns
        assert after.records_out - before.records_out <= beats + 1
        assert after.bytes_out - before.bytes_out < beats * 50
        assert len(hosts.active.sessions) == 1


async def test_a_message_out_of_place_takes_the_path_down_and_the_peer_is_told(
    pair: Pair, memory: MemoryNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    async with two(pair) as hosts:
        await hosts.path()._control.send(Hello(1, 1, "again", b"p" * 16, b"f" * 32, "x", 0))
        await hosts.standby.until(lambda: hosts.standby.reasons("down"))
        await hosts.active.until(lambda: hosts.active.reasons("down"))
        assert "Hello on an established control connection" in hosts.standby.reasons("down")[0]
        assert "the peer said: Hello on an established" in hosts.active.reasons("down")[0]


async def test_an_answer_to_no_ping_is_harmless(
    pair: Pair, memory: MemoryNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    async with two(pair) as hosts:
        await hosts.path()._control.send(Pong(12345))
        await hosts.path()._control.send(Ping(7))
        await trio.sleep(3)
        assert hosts.active.up
        assert not hosts.active.reasons("down")


async def test_a_broken_lane_takes_the_path_down_though_control_lives(
    pair: Pair, memory: MemoryNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    async with two(pair) as hosts:
        began = trio.current_time()
        memory.connections[1].sever()
        await hosts.active.until(lambda: not hosts.active.up)
        await hosts.standby.until(lambda: not hosts.standby.up)
        assert trio.current_time() - began < 0.3
        assert memory.connections[0].closed or memory.connections[0].ended


async def test_stopping_twice_keeps_the_first_reason(
    pair: Pair, memory: MemoryNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    async with two(pair) as hosts:
        path = hosts.path()
        path.stop("first", farewell=True)
        path.stop("second", farewell=False)
        await hosts.standby.until(lambda: hosts.standby.reasons("down"))
        assert hosts.active.reasons("down") == ["first"]
        assert "the peer said: first" in hosts.standby.reasons("down")[0]
        assert "last path is down: path0: first" in hosts.active.reasons("lost")[0]


async def test_an_error_of_the_handler_is_not_swallowed(
    pair: Pair, memory: MemoryNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    class Broken(Recorder):
        def received(self, messages: list) -> None:  # type: ignore[type-arg]  # the harness's own
            raise ZeroDivisionError("a bug of the embedder")

    active, standby = Recorder(), Broken()
    with pytest.RaisesGroup(pytest.RaisesExc(ZeroDivisionError), flatten_subgroups=True):
        async with pair.listen(standby) as listening, pair.dial(active, listening.addresses[0]) as link:
            await active.until_up()
            link.send([make_write(1)])
            await trio.sleep_forever()


async def test_votes_arrive_beside_the_stream_and_not_through_a_cut(
    pair: Pair, memory: MemoryNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    async with two(pair) as hosts:
        heard: list[bytes] = []
        hosts.listening.set_vote_handler(heard.append)
        hosts.link.vote(b"one")
        hosts.link.vote(b"two")
        await trio.sleep(0.1)
        assert heard == [b"one", b"two"]
        hosts.link.cut()
        hosts.link.vote(b"lost")
        hosts.link.heal()
        hosts.link.vote(b"three")
        await trio.sleep(0.1)
        assert heard == [b"one", b"two", b"three"]


async def test_a_path_that_takes_nothing_keeps_a_bounded_number_of_votes(
    pair: Pair, memory: MemoryNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    async with two(pair) as hosts:
        heard: list[bytes] = []
        hosts.listening.set_vote_handler(heard.append)
        for number in range(3 * VOTES_WAITING_MAX):  # no other task has a turn meanwhile
            hosts.link.vote(b"%d" % number)
        await trio.sleep(0.1)
        assert heard == [b"%d" % number for number in range(2 * VOTES_WAITING_MAX, 3 * VOTES_WAITING_MAX)]
