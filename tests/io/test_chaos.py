"""Random cuts, severed and silent connections under traffic: within a session all arrives in order, once."""

from __future__ import annotations

import random
from typing import Any

import pytest
import trio
from tests.io.harness import MemoryNetwork, Pair, Recorder, make_write

from pairsync.core.messages import Message
from pairsync.core.units import NS_PER_S
from pairsync.io import LinkTimings, SessionInfo
from pairsync.io.link import Link

SEEDS = 6
ROUNDS = 40
TIMINGS = LinkTimings(backoff_limit_ns=1 * NS_PER_S)


class Split(Recorder):
    """Keeps the numbers of each session apart."""

    def __init__(self) -> None:
        super().__init__()
        self.by_session: dict[bytes, list[int]] = {}

    def connected(self, session: SessionInfo) -> None:
        super().connected(session)
        self.by_session[session.session_id] = []

    def received(self, messages: list[Message]) -> None:
        super().received(messages)
        self.by_session[self.sessions[-1].session_id] += [m.number for m in messages]  # type: ignore[union-attr]


class Talker:
    """Sends numbered writes, counted anew in each session."""

    def __init__(self, recorder: Split) -> None:
        self.recorder = recorder
        self.sent: dict[bytes, int] = {}

    def send(self, link: Link, count: int) -> None:
        if link.session is None:
            return
        name = link.session.session_id
        first = self.sent.get(name, 0) + 1
        link.send([make_write(number, 512) for number in range(first, first + count)])
        self.sent[name] = first + count - 1


def harm(chance: random.Random, memory: MemoryNetwork, links: list[Link]) -> None:
    """One fault, or the end of one."""
    open_ones = [one for one in memory.connections if not one.closed and not one.broken]
    what = chance.choice(
        ["sever", "swallow one", "cut", "heal", "heal", "down", "up", "up", "drop", "nothing"]
    )
    if what == "sever" and open_ones:
        chance.choice(open_ones).sever()
    elif what == "swallow one" and open_ones:
        one = chance.choice(open_ones)
        (one if chance.random() < 0.5 else one._other()).blackhole = True
    elif what == "cut":
        chance.choice(links).cut()
    elif what == "heal":
        for link in links:
            link.heal()
    elif what in {"down", "up"}:
        memory.down = what == "down"
    elif what == "drop" and chance.random() < 0.3:
        chance.choice(links).drop_session("chaos")


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_chaos(
    seed: int, pair: Pair, memory: MemoryNetwork, autojump_clock: trio.testing.MockClock, leak_guard: Any
) -> None:
    chance = random.Random(seed)
    pair.timings = TIMINGS
    active, standby = Split(), Split()
    up, down = Talker(active), Talker(standby)
    async with (
        pair.listen(standby, listen=(("10.0.0.2", 0), ("10.0.0.3", 0))) as listening,
        pair.dial(active, *listening.addresses) as link,
    ):
        for _ in range(ROUNDS):
            harm(chance, memory, [link, listening])
            for _ in range(chance.randrange(20)):
                up.send(link, chance.randrange(1, 20))
                down.send(listening, chance.randrange(1, 5))
                await trio.sleep(chance.choice([0, 0.001, 0.3, 2.5]) * chance.random())
        memory.down = False
        link.heal()
        listening.heal()
        with trio.fail_after(120):
            await active.until(lambda: len(active.paths) == 2)
            await standby.until(lambda: len(standby.paths) == 2)
        up.send(link, 10)
        down.send(listening, 10)
        last = active.sessions[-1].session_id
        assert standby.sessions[-1].session_id == last
        with trio.fail_after(60):
            await standby.until(lambda: len(standby.by_session[last]) == up.sent[last])
            await active.until(lambda: len(active.by_session[last]) == down.sent[last])
    for here, there in ((up, standby), (down, active)):
        for name, numbers in there.by_session.items():
            assert numbers == list(range(1, len(numbers) + 1))
            assert len(numbers) <= here.sent.get(name, 0)
    assert len(standby.by_session) >= 1
