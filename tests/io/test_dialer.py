"""The dialing end: back-off, other answers than a welcome, a session that the peer has lost."""

from __future__ import annotations

import contextlib
import dataclasses
from itertools import pairwise

import trio
from tests.io.harness import PAIR_ID, MemoryNetwork, Pair, Recorder

from pairsync.core.units import NS_PER_S
from pairsync.errors import PeerLost
from pairsync.io import LinkTimings
from pairsync.io.control import ControlChannel, Introduction, accept_control
from pairsync.io.dialer import Dialer
from pairsync.io.gate import Gate
from pairsync.io.hub import Hub
from pairsync.io.tls import TlsContexts, TlsStream
from pairsync.wire.hello import Bye, ControlMessage, LaneAccept, LaneOffer, LaneRefuse, Pong, Refuse

TIMINGS = LinkTimings()
PEER = ("10.0.0.2", 7000)


async def test_attempts_back_off_to_the_limit_and_stop_there(
    pair: Pair, memory: MemoryNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    pair.timings = TIMINGS
    memory.down = True
    active = Recorder()
    async with pair.dial(active, PEER):
        await trio.sleep(120)
        gaps = [(after - before) / NS_PER_S for before, after in pairwise(memory.attempts_ns)]
        assert 0.05 <= gaps[0] <= 0.1
        assert all(2.5 <= gap <= 5.0 for gap in gaps[8:])
        assert len(set(gaps[8:])) > 5  # jitter
        assert not active.events
        assert len(gaps) < 60


async def test_without_paths_nothing_is_dialled(
    pair: Pair, memory: MemoryNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    await Dialer(Hub(pair.dialer_config(), memory)).run()
    assert memory.attempts_ns == []


async def test_a_path_that_lasted_is_dialled_again_at_once(
    pair: Pair, memory: MemoryNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    pair.timings = TIMINGS
    active, standby = Recorder(), Recorder()
    memory.down = True
    async with pair.listen(standby) as listening, pair.dial(active, listening.addresses[0]):
        await trio.sleep(60)  # the back-off is at its limit
        memory.down = False
        await active.until_up()
        await trio.sleep(60)
        began = trio.current_time()
        memory.connections[-1].sever()
        await active.until(lambda: len(active.sessions) == 2)
        assert trio.current_time() - began < 0.2


async def test_a_listener_that_says_nothing_is_given_up_at_the_deadline(
    pair: Pair, memory: MemoryNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    pair.timings = TIMINGS
    active = Recorder()
    await memory.listen(PEER)
    async with pair.dial(active, PEER):
        await trio.sleep(30)
        first, second = memory.attempts_ns[:2]
        assert 5.0 <= (second - first) / NS_PER_S <= 5.2
        assert memory.connections[0].closed


class HandMade:
    """A listener whose answers to `LaneOffer` are written by the test."""

    def __init__(self, pair: Pair, network: MemoryNetwork, answers: list[ControlMessage | None]) -> None:
        self._contexts = TlsContexts(pair.listener, pair.dialer.certificate_pem)
        self._me = Introduction("by hand", PAIR_ID, pair.listener.fingerprint, (1, 1))
        self._network = network
        self._answers = answers
        self.offers: list[LaneOffer] = []
        self.heard: list[ControlMessage] = []

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listener = await self._network.listen(PEER)
        task_status.started()
        for answer in self._answers:
            connection = await listener.accept()
            stream = TlsStream(connection, Gate(), self._contexts, dialing=False, who="dialer")
            pinned = self._contexts.peer_fingerprint
            channel, _, _ = await accept_control(stream, self._me, pinned, who="dialer")
            offer = await channel.receive()
            assert isinstance(offer, LaneOffer)
            self.offers.append(offer)
            if answer is not None:
                if isinstance(answer, (LaneAccept, LaneRefuse)):
                    answer = dataclasses.replace(answer, lane_id=offer.lane_id)  # noqa: PLW2901
                await self._answer(channel, answer)

    async def _answer(self, channel: ControlChannel, answer: ControlMessage) -> None:
        await channel.send(answer)
        with trio.move_on_after(1), contextlib.suppress(PeerLost):
            self.heard.append(await channel.receive())


async def test_other_answers_than_an_accepted_lane(
    pair: Pair, memory: MemoryNetwork, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    pair.timings = TIMINGS
    active = Recorder()
    answers: list[ControlMessage | None] = [
        LaneRefuse(b"", False, "not now"),
        Refuse("too many"),
        Bye("away"),
        Pong(1),
        None,
    ]
    listener = HandMade(pair, memory, answers)
    await nursery.start(listener.run)
    async with pair.dial(active, PEER) as link:
        with trio.fail_after(60):
            while len(listener.offers) < 5:
                await trio.sleep(0.1)
        assert not active.events
        assert link.statistics().refused == {"dialling": 1}  # of all these only Pong breaks the protocol
    assert isinstance(listener.heard[-1], Bye)  # the peer is told that Pong is no answer
    assert len({offer.lane_id for offer in listener.offers}) == 5
    assert len({offer.session_id for offer in listener.offers}) == 5
    assert not any(offer.join for offer in listener.offers)


async def test_a_session_that_the_peer_has_lost_is_ended_here_too(
    pair: Pair, memory: MemoryNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    """The listening host lost the session by silence of both paths; the dialing one still holds to one."""
    pair.timings = TIMINGS
    active, standby = Recorder(), Recorder()
    async with (
        pair.listen(standby, listen=(("10.0.0.2", 0), ("10.0.0.3", 0))) as listening,
        pair.dial(active, *listening.addresses),
    ):
        await active.until(lambda: len(active.paths) == 2)
        await standby.until(lambda: len(standby.paths) == 2)
        for connection in memory.connections:  # one way only: the dialer hears, the listener does not
            connection.blackhole = True
        await standby.until(lambda: not standby.up)
        await active.until(lambda: len(active.sessions) == 2)
        await standby.until(lambda: len(standby.sessions) == 2)
        assert active.sessions[1].session_id == standby.sessions[1].session_id
        await active.until(lambda: len(active.paths) == 2)


async def test_a_session_that_was_ended_on_purpose_is_followed_by_another_at_once_each_time(
    pair: Pair, memory: MemoryNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    """A guest that changes its role ends the session: the pair must not be apart for longer each time."""
    pair.timings = TIMINGS
    active, standby = Recorder(), Recorder()
    async with pair.listen(standby) as listening, pair.dial(active, listening.addresses[0]) as link:
        await active.until_up()
        for number in range(2, 9):
            began = trio.current_time()
            link.drop_session("the role changes")
            await active.until(lambda: len(active.sessions) == number)  # noqa: B023 - awaited in this round
            assert trio.current_time() - began < 0.2
