"""Power fencing by a standby: when, when not, and what comes of it (the agent: ``node.test_fence``)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from tests.guest.halves import KEY, TIMING, Both, Half, agreed, until
from tests.guest.harness import Pair, in_time

from pairsync.core.events import FenceEvent
from pairsync.core.units import NS_PER_S
from pairsync.errors import ConfigError
from pairsync.node.fence import FenceResult, PowerState
from pairsync.node.fencing import Fencer

FAILOVER_S = TIMING.failover_ns / NS_PER_S
SLOW = replace(TIMING, promise_ns=60 * NS_PER_S)
"""A promise that nobody waits for in a test."""


class Switch:
    """A fence device; ``works`` is whether it turns anything off."""

    def __init__(self) -> None:
        self.works = True
        self.calls = 0
        self.on_off: Callable[[], None] = lambda: None
        self.agent: PowerState | None = PowerState.ON
        self.meanwhile: Callable[[], None] = lambda: None

    async def check_agent(self) -> PowerState:
        await trio.lowlevel.checkpoint()
        if self.agent is None:
            raise ConfigError("no such agent")
        return self.agent

    async def fence(self, *, wanted: Callable[[], bool], proven: Callable[[str], None]) -> FenceResult:
        await trio.lowlevel.checkpoint()
        assert wanted()
        self.calls += 1
        self.meanwhile()
        if self.works:
            self.on_off()
            proven("turned off, and seen to be off")
        await trio.lowlevel.checkpoint()
        return FenceResult(self.works, "" if self.works else "no answer", 1, 1)


@asynccontextmanager
async def fencing(half: Half, switch: Switch) -> AsyncIterator[list[FenceEvent]]:
    """``half`` fences by that switch; what it tells of it."""
    fencer = Fencer(half.arbitration, half.guest, switch, {"hill": half.cable}, KEY, half.guest.now_ns)  # type: ignore[arg-type]
    told: list[FenceEvent] = []
    emit = half.guest.emit

    def tell(event: object) -> None:
        if isinstance(event, FenceEvent):
            told.append(event)
        emit(event)  # type: ignore[arg-type]

    half.guest.emit = tell  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fencer.run)
        yield told
        nursery.cancel_scope.cancel()


def states(told: list[FenceEvent]) -> list[str]:
    return [event.state for event in told]


@pytest.fixture
def both(pair: Pair) -> Both:
    return Both(pair)


async def test_a_standby_has_the_silent_owner_turned_off_and_does_not_wait_for_its_promise(
    both: Both,
) -> None:
    both.timings["b"] = SLOW  # a minute, if it had to wait for it
    async with in_time(), both.host("b") as second:
        switch = Switch()
        async with both.host("a") as first, fencing(second, switch) as told:
            await until(lambda: agreed(first) and agreed(second))
            assert first.guest.link is not None
            first.guest.link.cut()
            first.cable.cut = True
            await until(lambda: second.serves)
        assert states(told) == ["ready", "begun", "proven"]
        assert switch.calls == 1


async def test_the_owner_that_has_lost_its_peer_does_not_fence_and_neither_does_who_is_out(
    both: Both,
) -> None:
    async with in_time(), both.whole() as (first, second):
        switches = Switch(), Switch()
        async with fencing(first, switches[0]), fencing(second, switches[1]):
            assert first.guest.link is not None
            first.guest.link.cut()
            await until(lambda: (now := first.arbitration.standing()) is not None and now.sole)
            await trio.sleep(2 * FAILOVER_S)
            assert first.serves
            assert [switch.calls for switch in switches] == [0, 0]


async def test_nobody_is_fenced_while_the_witness_cannot_be_asked(both: Both) -> None:
    async with in_time(), both.whole() as (first, second):
        switch = Switch()
        async with fencing(second, switch) as told:
            second.cable.cut = True
            assert first.guest.link is not None
            first.guest.link.cut()
            await trio.sleep(2 * FAILOVER_S)
            assert (switch.calls, states(told)) == (0, ["ready"])
            assert first.serves


async def test_an_owner_that_was_never_heard_is_left_alone(both: Both) -> None:
    async with in_time():
        async with both.whole():
            pass
        async with both.host("b") as second:
            switch = Switch()
            async with fencing(second, switch):
                await until(lambda: second.serves)  # by its own promise, as ever
                assert switch.calls == 0


async def test_a_fencing_that_fails_is_told_and_the_take_over_goes_on_without_it(both: Both) -> None:
    async with in_time(), both.host("b") as second:
        switch = Switch()
        switch.works = False
        switch.agent = None
        async with both.host("a") as first, fencing(second, switch) as told:
            await until(lambda: agreed(first) and agreed(second))
            assert first.guest.link is not None
            first.guest.link.cut()
            first.cable.cut = True
            await until(lambda: second.serves)
            await trio.sleep(FAILOVER_S)
            assert states(told) == ["unready", "begun", "failed"]
            assert switch.calls == 1  # the next one only after a pause, and then it owns
            assert told[0].reason == "no such agent"


async def test_a_proof_is_not_believed_of_an_owner_that_was_heard_meanwhile(both: Both) -> None:
    both.timings["b"] = SLOW
    async with in_time(), both.host("b") as second:
        switch = Switch()
        async with both.host("a") as first, fencing(second, switch) as told:
            await until(lambda: agreed(first) and agreed(second))

            def heard() -> None:
                second.arbitration.arbiter.heard_ns = second.guest.now_ns()

            switch.meanwhile = heard
            assert first.guest.link is not None
            first.guest.link.cut()
            first.cable.cut = True
            await until(lambda: "proven" in states(told))
            await trio.sleep(0.3)
            assert not second.serves
