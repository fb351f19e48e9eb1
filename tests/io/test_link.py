"""Two links: the stream arrives in order and once, whatever happens to the paths under it."""

from __future__ import annotations

import pytest
import trio
from tests.io.conftest import StartRelay
from tests.io.harness import LOOPBACK, PAIR_ID, MemoryNetwork, Pair, Recorder, make_write

from pairsync.core.messages import Applied, Introduce, Role
from pairsync.core.stream import ACKNOWLEDGE_BYTES
from pairsync.core.units import MIB, NS_PER_S
from pairsync.errors import BackendError, BusyError, ConfigError, PeerLost
from pairsync.io import LinkTimings
from pairsync.io.link import open_link

TIMINGS = LinkTimings()


async def test_messages_cross_in_order_both_ways(pair: Pair) -> None:
    active, standby = Recorder(), Recorder(answer=True)
    async with pair.listen(standby) as listening, pair.dial(active, listening.addresses[0]) as dialing:
        assert (dialing.dials, listening.dials) == (True, False)
        await active.until_up()
        await standby.until_up()
        assert active.sessions[0].session_id == standby.sessions[0].session_id
        assert active.sessions[0].peer_fingerprint == pair.listener.fingerprint
        hello = Introduce(PAIR_ID, "guest", Role.ACTIVE, 1, ())
        listening.send([hello])
        dialing.send([hello, *(make_write(number) for number in range(1, 100))])
        for number in range(100, 200):
            dialing.send([make_write(number)])
        await active.until(lambda: len(active.messages) == 200)
    assert standby.messages[0] == active.messages[0] == hello
    assert standby.numbers() == active.numbers() == list(range(1, 200))


async def test_a_window_full_of_bulk_moves_on_acknowledgements(pair: Pair) -> None:
    active, standby = Recorder(), Recorder()
    window = 4 * ACKNOWLEDGE_BYTES
    async with (
        pair.listen(standby) as listening,
        pair.dial(active, listening.addresses[0], window_bytes=window) as link,
    ):
        await active.until_up()
        assert link.room_bytes == window
        for number in range(1, 65):
            while link.room_bytes <= 0:
                await link.wait_room()
            link.send([make_write(number, size=MIB)])
            assert link.statistics().unacknowledged_bytes <= window + 2 * MIB
        await standby.until(lambda: len(standby.messages) == 64)
        assert standby.numbers() == list(range(1, 65))
        statistics = link.statistics()
        assert statistics.bytes_out > 64 * MIB
        assert statistics.records_out >= 64
        assert statistics.connected
        (path,) = statistics.paths
        assert (path.name, path.preferred) == ("path0", True)


async def test_nothing_happens_without_a_handler(pair: Pair) -> None:
    standby = Recorder()
    async with (
        pair.listen(standby) as listening,
        open_link(pair.dialer_config(listening.addresses[0])) as link,
    ):
        await trio.testing.wait_all_tasks_blocked()
        assert listening.statistics().half_open == 0
        assert link.session is None
        assert link.room_bytes == 0
        with pytest.raises(PeerLost, match="no session"):
            link.send([Applied(0, 1)])
        with pytest.raises(PeerLost, match="no session"):
            await link.wait_room()
        active = Recorder()
        link.set_handler(active)
        with pytest.raises(BusyError):
            link.set_handler(active)
        await active.until_up()
        assert link.session == active.sessions[0]


async def test_closing_tells_the_peer_and_leaves_nothing(pair: Pair, leak_guard: object) -> None:
    active, standby = Recorder(), Recorder()
    async with pair.listen(standby) as listening:
        async with pair.dial(active, listening.addresses[0]) as link:
            await active.until_up()
            await standby.until_up()
            await link.aclose()
            assert active.reasons("lost") == ["the link was closed"]
        await standby.until(lambda: not standby.up)
        assert "the peer said: the link was closed" in standby.reasons("lost")[0]
        assert listening.statistics().paths == ()
    assert [event[0] for event in active.events] == ["connected", "up", "down", "lost"]
    assert [event[0] for event in standby.events] == ["connected", "up", "down", "lost"]


async def test_a_session_that_is_dropped_is_followed_by_another(pair: Pair) -> None:
    active, standby = Recorder(), Recorder()
    async with pair.listen(standby) as listening, pair.dial(active, listening.addresses[0]) as link:
        await active.until_up()
        link.drop_session("the guest room found a stale term")
        link.send([make_write(1)])  # between the drop and its announcement: lost, not refused
        await active.until(lambda: len(active.sessions) == 2 and active.up)
        await standby.until(lambda: len(standby.sessions) == 2 and standby.up)
        link.send([make_write(2)])
        await standby.until(lambda: standby.messages)
        assert standby.numbers() == [2]
        assert active.reasons("lost") == ["the guest room found a stale term"]
        assert "the guest room found a stale term" in standby.reasons("lost")[0]
        assert active.sessions[0].session_id != active.sessions[1].session_id


@pytest.mark.parametrize("version", [1, 2])
async def test_a_session_is_renewed_over_the_same_paths_where_the_peer_can(pair: Pair, version: int) -> None:
    active, standby = Recorder(), Recorder()
    async with (
        pair.listen(standby, protocol_max=version) as listening,
        pair.dial(active, listening.addresses[0]) as link,
    ):
        await active.until_up()
        await standby.until_up()
        for host in (link, listening):
            host.renew_session("a new role")
            host.send([make_write(1)])  # between the renewal and its announcement: lost, not refused
            count = len(active.sessions) + 1
            await active.until(lambda: len(active.sessions) >= count and active.up)  # noqa: B023
            await standby.until(lambda: len(standby.sessions) >= count and standby.up)  # noqa: B023
        link.send([make_write(2)])
        await standby.until(lambda: standby.messages)
        assert standby.numbers() == [2]
        assert len({session.session_id for session in active.sessions}) == (1 if version > 1 else 3)
        assert bool(active.reasons("down")) is (version == 1)
        assert "a new role" in standby.reasons("lost")[0]
        assert link.protocol == listening.protocol == version
    assert link.protocol is None


async def test_dropping_from_within_a_callback_does_not_call_back_from_within(pair: Pair) -> None:
    class Dropper(Recorder):
        def received(self, messages: list) -> None:  # type: ignore[type-arg]
            super().received(messages)
            assert self.link is not None
            self.link.drop_session("refused")
            assert self.up, "lost() was called inside received()"

    active, standby = Recorder(), Dropper()
    async with pair.listen(standby) as listening, pair.dial(active, listening.addresses[0]) as link:
        await active.until_up()
        link.send([make_write(1)])
        await standby.until(lambda: standby.reasons("lost"))
        assert standby.reasons("lost") == ["refused"]


async def test_one_of_two_paths_dies_under_traffic(pair: Pair, start_relay: StartRelay) -> None:
    active, standby = Recorder(), Recorder(answer=True)
    async with pair.listen(standby) as listening:
        first = await start_relay(listening.addresses[0])
        second = await start_relay(listening.addresses[0])
        async with pair.dial(active, first.address, second.address) as link:
            await active.until(lambda: len(active.paths) == 2)
            total = 1500
            for number in range(1, total + 1):
                link.send([make_write(number, size=16384)])
                if number % 20 == 0:
                    await link.wait_room()
                if number in (310, 610, 910):
                    # the preferred path, the spare, the preferred again: with what is in flight on it
                    await active.until(lambda: len(active.paths) == 2)
                    await standby.until(lambda: len(standby.paths) == 2)
                    (second if number == 610 else first).kill()
                if number in (330, 630, 930):
                    await active.until_down(number // 300)
                    await standby.until_down(number // 300)
            await active.until(lambda: len(active.messages) == total)
            statistics = link.statistics()
        assert len(active.sessions) == len(standby.sessions) == 1
        assert standby.numbers() == active.numbers() == list(range(1, total + 1))
        assert statistics.frames_resent > 0
        downs = [event[1] for event in active.events if event[0] == "down"]
        assert {"path0", "path1"} <= set(downs)


async def test_the_session_is_lost_only_with_the_last_path(pair: Pair, start_relay: StartRelay) -> None:
    active, standby = Recorder(), Recorder()
    async with pair.listen(standby) as listening:
        relays = [await start_relay(listening.addresses[0]) for _ in range(2)]
        async with pair.dial(active, *(relay.address for relay in relays)):
            await active.until(lambda: len(active.paths) == 2)
            await standby.until(lambda: len(standby.paths) == 2)
            relays[1].accepting = False
            relays[1].kill()
            await active.until(lambda: active.reasons("down"))
            assert active.up
            relays[0].accepting = False
            relays[0].kill()
            await active.until(lambda: not active.up)
            await standby.until(lambda: not standby.up)
            for relay in relays:
                relay.accepting = True
            await active.until(lambda: len(active.paths) == 2)
            assert len(active.sessions) == 2


async def test_both_paths_are_known_by_name_on_the_listening_host(pair: Pair) -> None:
    active, standby = Recorder(), Recorder()
    async with pair.listen(standby, listen=(LOOPBACK, LOOPBACK)) as listening:
        assert len(listening.addresses) == 2
        async with pair.dial(active, *listening.addresses):
            await standby.until(lambda: len(standby.paths) == 2)
            assert standby.paths == {"path0", "path1"}
            preferred = {path.name: path.preferred for path in listening.statistics().paths}
            assert preferred == {"path0": True, "path1": False}


async def test_configuration_that_cannot_be(pair: Pair) -> None:
    with pytest.raises(ConfigError, match="no path to dial"):
        async with open_link(pair.dialer_config()):
            pass
    with pytest.raises(ConfigError, match="on no address"):
        async with open_link(pair.listener_config(listen=())):
            pass
    with pytest.raises(BackendError, match=r"cannot listen on 192\.0\.2\.1:1"):
        async with open_link(pair.listener_config(listen=(("192.0.2.1", 1),))):
            pass


# -- under a mock clock, in memory ---------------------------------------------------------------------------


async def test_a_cut_is_found_by_silence_on_both_sides_and_healed(
    pair: Pair, memory: MemoryNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    pair.timings = TIMINGS
    active, standby = Recorder(), Recorder()
    async with pair.listen(standby) as listening, pair.dial(active, listening.addresses[0]) as link:
        await active.until_up()
        began = trio.current_time()
        link.cut()
        assert link.statistics().cut
        link.send([make_write(1)])
        await active.until(lambda: not active.up)
        await standby.until(lambda: not standby.up)
        assert trio.current_time() - began <= TIMINGS.silence_ns / NS_PER_S + 1
        assert "silent for" in active.reasons("lost")[0]
        assert "silent for" in standby.reasons("lost")[0]
        attempts = len(memory.attempts_ns)
        assert not any(connection.closed for connection in memory.connections[:2])
        await trio.sleep(60)
        assert len(memory.attempts_ns) == attempts  # not dialled while cut
        link.heal()
        await active.until_up()
        await standby.until_up()
        assert all(connection.closed for connection in memory.connections[:2])
        link.send([make_write(2)])
        await standby.until(lambda: standby.messages)
        assert standby.numbers() == [2]


async def test_a_cut_on_the_listening_side_is_found_too(
    pair: Pair, memory: MemoryNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    active, standby = Recorder(), Recorder()
    async with pair.listen(standby) as listening, pair.dial(active, listening.addresses[0]):
        await active.until_up()
        listening.cut()
        await active.until(lambda: not active.up)
        await standby.until(lambda: not standby.up)
        await trio.sleep(30)
        assert not active.up
        listening.heal()
        await active.until_up()


async def test_a_short_cut_loses_nothing(
    pair: Pair, memory: MemoryNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    pair.timings = TIMINGS
    active, standby = Recorder(), Recorder()
    async with pair.listen(standby) as listening, pair.dial(active, listening.addresses[0]) as link:
        await active.until_up()
        link.send([make_write(1)])
        link.cut()
        link.send([make_write(2)])
        await trio.sleep(1)
        link.heal()
        link.send([make_write(3)])
        await standby.until(lambda: len(standby.messages) == 3)
        assert standby.numbers() == [1, 2, 3]
        assert len(active.sessions) == 1


async def test_silence_of_the_network_is_found_within_its_limit(
    pair: Pair, memory: MemoryNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    pair.timings = TIMINGS
    active, standby = Recorder(), Recorder()
    async with pair.listen(standby) as listening, pair.dial(active, listening.addresses[0]):
        await active.until_up()
        await trio.sleep(300)  # heartbeats keep it
        assert len(active.sessions) == 1
        began = trio.current_time()
        memory.swallow()
        await active.until(lambda: not active.up)
        await standby.until(lambda: not standby.up)
        assert TIMINGS.silence_ns / NS_PER_S - 0.6 <= trio.current_time() - began <= 2.6
        await active.until_up()


async def test_a_lane_that_stalls_while_control_lives_is_given_up(
    pair: Pair, memory: MemoryNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    pair.timings = TIMINGS
    active, standby = Recorder(), Recorder()
    async with pair.listen(standby) as listening, pair.dial(active, listening.addresses[0]) as link:
        await active.until_up()
        memory.connections[1].blackhole = True  # the lane, from here to there
        link.send([make_write(1)])
        began = trio.current_time()
        await active.until(lambda: active.reasons("lost"))
        await standby.until(lambda: standby.reasons("lost"))
        assert "no progress" in active.reasons("lost")[0] + standby.reasons("lost")[0]
        assert trio.current_time() - began < TIMINGS.lane_silence_ns / NS_PER_S + 2
        await active.until_up()


async def test_the_preferred_path_is_taken_again_when_it_comes_back(
    pair: Pair, memory: MemoryNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    active, standby = Recorder(), Recorder()
    async with (
        pair.listen(standby, listen=(LOOPBACK, ("127.0.0.2", 0))) as listening,
        pair.dial(active, ("127.0.0.1", 7000), ("127.0.0.2", 7001)) as link,
    ):
        await active.until(lambda: len(active.paths) == 2)
        first = next(c for c in memory.connections if c.remote == listening.addresses[0])
        first.sever()
        await active.until(lambda: active.paths == {"path1"})
        assert [path.name for path in link.statistics().paths if path.preferred] == ["path1"]
        link.send([make_write(1)])
        await active.until(lambda: len(active.paths) == 2)
        assert [path.name for path in link.statistics().paths if path.preferred] == ["path0"]
        link.send([make_write(2)])
        await standby.until(lambda: len(standby.messages) == 2)
        assert standby.numbers() == [1, 2]
        assert len(active.sessions) == 1


async def test_traffic_one_way_is_acknowledged_by_heartbeat(
    pair: Pair, memory: MemoryNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    active, standby = Recorder(), Recorder()
    async with pair.listen(standby) as listening, pair.dial(active, listening.addresses[0]) as link:
        await active.until_up()
        link.send([make_write(1)])
        assert link.statistics().unacknowledged_bytes > 4096
        await trio.sleep(1)
        assert link.statistics().unacknowledged_bytes == 0


async def test_rtt_is_measured(
    pair: Pair, memory: MemoryNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    active, standby = Recorder(), Recorder()
    async with pair.listen(standby) as listening, pair.dial(active, listening.addresses[0]) as link:
        await active.until_up()
        await trio.sleep(5)
        (path,) = link.statistics().paths
        assert path.rtt_ns is not None
        assert path.rtt_min_ns is not None
        assert 0 <= path.rtt_min_ns <= path.rtt_ns
        assert path.silence_ns <= pair.timings.heartbeat_ns * 2
