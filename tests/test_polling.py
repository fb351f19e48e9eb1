"""When a loop polls before it sleeps, and that trio's loop can be polled at all."""

from __future__ import annotations

import itertools
import os
import select
import socket
import time
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from pairsync import polling
from pairsync.core.units import NS_PER_MS, NS_PER_S, NS_PER_US
from pairsync.polling import (
    DENSE_NS,
    HOPE_MAX,
    VAIN_NS_MAX,
    VAIN_SHARE,
    WAIT_NS_MAX,
    BusyPolling,
    Prospect,
    attend,
)


def after_waits(*waits_ns: int) -> Prospect:
    prospect = Prospect(0)
    for number, wait_ns in enumerate(waits_ns, 1):
        prospect.waited(wait_ns, number * NS_PER_MS)
    return prospect


def test_nobody_polls_who_has_nothing_to_expect() -> None:
    assert not Prospect(0).good
    assert not after_waits(*[NS_PER_S] * 5).good


def test_a_short_wait_is_a_reason_and_long_ones_end_it() -> None:
    assert after_waits(300 * NS_PER_US).good
    busy = [300 * NS_PER_US] * 100
    assert after_waits(*busy, *[NS_PER_S] * (HOPE_MAX - 1)).good
    assert not after_waits(*busy, *[NS_PER_S] * HOPE_MAX).good


def test_dense_work_is_left_to_gather() -> None:
    assert not after_waits(*[DENSE_NS // 2] * 100).good
    assert after_waits(*[DENSE_NS // 2, DENSE_NS * 10] * 50).good


def test_polling_in_vain_has_a_share_of_the_processor() -> None:
    prospect = after_waits(*[300 * NS_PER_US] * 10)
    began_ns = now_ns = 10 * NS_PER_MS
    polled_ns = 0
    while now_ns < 20 * NS_PER_S:
        # one short wait between long ones keeps the hope alive
        for wait_ns in (2 * NS_PER_MS, 300 * NS_PER_US):
            if prospect.good and wait_ns > WAIT_NS_MAX:
                prospect.vain(WAIT_NS_MAX)
                polled_ns += WAIT_NS_MAX
            now_ns += wait_ns
            prospect.waited(wait_ns, now_ns)
    assert VAIN_NS_MAX < polled_ns <= VAIN_NS_MAX + (now_ns - began_ns) * VAIN_SHARE


class Looks:
    """Counts the looks of the instrument."""

    def __init__(self, poll: select.poll) -> None:
        self._poll = poll
        self.answers: list[bool] = []

    def poll(self, timeout: int) -> list[tuple[int, int]]:
        found = self._poll.poll(timeout)
        self.answers.append(bool(found))
        return found


def polled(instrument: BusyPolling) -> Looks:
    assert instrument._poll is not None, "trio's epoll was not found"
    looks = Looks(instrument._poll)
    instrument._poll = looks  # type: ignore[assignment]
    return looks


def test_the_loop_of_trio_is_polled_and_what_comes_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "WAIT_NS_MAX", 50 * NS_PER_MS)
    monkeypatch.setattr(polling, "VAIN_NS_MAX", NS_PER_S)
    instrument = BusyPolling()

    async def main() -> Looks:
        readable, writable = os.pipe()
        started = time.monotonic()
        looks = polled(instrument)
        async with trio.open_nursery() as nursery:

            async def write() -> None:
                for _ in range(20):
                    await trio.sleep(0.01)
                    os.write(writable, b"x")

            nursery.start_soon(write)
            for _ in range(20):
                await trio.lowlevel.wait_readable(readable)
                os.read(readable, 1)
        assert time.monotonic() - started < 10
        os.close(readable)
        os.close(writable)
        return looks

    looks = trio.run(main, instruments=[instrument])
    assert looks.answers.count(False) > 20, "it looked again and again"


def test_a_loop_that_cannot_be_found_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "_descriptors", list)
    instrument = BusyPolling()

    async def main() -> str:
        await trio.sleep(0.001)
        return "done"

    assert trio.run(main, instruments=[instrument]) == "done"
    assert instrument._poll is None


def test_a_cancelled_wait_and_a_deadline_end_in_time() -> None:
    instrument = BusyPolling()

    async def main() -> None:
        for _ in range(10):
            with trio.move_on_after(0.0005) as scope:
                await trio.sleep_forever()
            assert scope.cancelled_caught

    trio.run(main, instruments=[instrument])


class Steps(trio.abc.Instrument):
    """Counts the turns that tasks had."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        del task
        self.count += 1


class Bouncing:
    """Two tasks that send a byte to each other and back, ``times`` in all."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.ends = socket.socketpair()
        for end in self.ends:
            end.setblocking(False)

    def take(self, end: socket.socket) -> bool:
        assert end.recv(10) == b"x"
        self.left -= 1
        if self.left:
            end.send(b"x")
        return self.left > 0

    async def run(self) -> None:
        near, far = self.ends
        with near, far:
            await self._bounce()

    async def _bounce(self) -> None:
        async with trio.open_nursery() as nursery:

            async def attending(end: socket.socket) -> None:
                await attend(end, lambda: self.take(end))
                nursery.cancel_scope.cancel()

            for end in self.ends:
                nursery.start_soon(attending, end)
            self.ends[0].send(b"x")


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """No wait is too short for polling."""
    monkeypatch.setattr(polling, "DENSE_NS", -1)


TIMES = 2000


@pytest.mark.usefixtures("eager")
def test_what_comes_is_taken_without_a_turn_of_the_loop() -> None:
    steps, bouncing = Steps(), Bouncing(TIMES)
    trio.run(bouncing.run, instruments=[BusyPolling(), steps])
    assert bouncing.left == 0
    assert steps.count < TIMES / 10


class Pausing:
    """Finds nothing at every other look."""

    def __init__(self, poll: select.poll) -> None:
        self._poll = poll
        self._looks = 0
        self.register, self.unregister = poll.register, poll.unregister

    def poll(self, timeout: int) -> list[tuple[int, int]]:
        self._looks += 1
        return [] if self._looks % 2 else self._poll.poll(timeout)


def steps_with_pauses(bouncing: Bouncing, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often the loop turns until all has bounced, where every other look finds nothing, in 100 us."""
    clock = itertools.count(0, 100 * NS_PER_US)
    monkeypatch.setattr(polling, "time", SimpleNamespace(monotonic_ns=lambda: next(clock)))
    instrument, steps = BusyPolling(), Steps()

    async def main() -> None:
        assert instrument._poll is not None
        instrument._poll = Pausing(instrument._poll)  # type: ignore[assignment]
        await bouncing.run()

    trio.run(main, instruments=[instrument, steps])
    assert bouncing.left == 0
    return steps.count


@pytest.mark.usefixtures("eager")
def test_a_loop_whose_messages_pause_need_not_turn_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert steps_with_pauses(Bouncing(TIMES), monkeypatch) < TIMES / 10


@pytest.mark.usefixtures("eager")
def test_a_loop_whose_messages_pause_ends_its_looks_once_they_do_not_pay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bouncing = Bouncing(TIMES)
    take = bouncing.take

    def grow_dense(end: socket.socket) -> bool:
        if bouncing.left == TIMES // 2:
            monkeypatch.setattr(polling, "DENSE_NS", NS_PER_S)
        return take(end)

    bouncing.take = grow_dense  # type: ignore[method-assign]
    steps = steps_with_pauses(bouncing, monkeypatch)
    assert steps > TIMES / 3, "who comes back at once finds several requests, and not one"


def test_without_an_instrument_it_is_taken_by_its_task() -> None:
    steps, bouncing = Steps(), Bouncing(TIMES)
    trio.run(bouncing.run, instruments=[steps])
    assert bouncing.left == 0
    assert steps.count > TIMES


@pytest.mark.usefixtures("eager")
def test_who_has_something_to_do_gets_a_turn_though_messages_never_pause() -> None:
    bouncing = Bouncing(10**9)
    woken = trio.Event()
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await trio.sleep(0.005)
            ticks += 1

    async def main() -> None:
        with trio.move_on_after(0.3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tick)
                nursery.start_soon(bouncing.run)
                nursery.start_soon(woken.wait)
                await trio.sleep(0.1)
                take = bouncing.take

                def take_and_tell(end: socket.socket) -> bool:
                    woken.set()
                    return take(end)

                bouncing.take = take_and_tell  # type: ignore[method-assign]

    began = time.monotonic()
    trio.run(main, instruments=[BusyPolling()])
    assert time.monotonic() - began < 5
    assert woken.is_set()
    assert ticks >= 5
    assert bouncing.left < 10**9 - TIMES


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("number", [1, 2, 500])
def test_what_take_raises_comes_out_of_its_task(number: int) -> None:
    instrument, bouncing = BusyPolling(), Bouncing(TIMES)
    take = bouncing.take

    def fail(end: socket.socket) -> bool:
        if bouncing.left == TIMES - number:
            raise RuntimeError("broken")
        return take(end)

    bouncing.take = fail  # type: ignore[method-assign]
    with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="broken")):
        trio.run(bouncing.run, instruments=[instrument])
    assert not instrument._takers, "nothing is polled for a task that has ended"


def test_a_number_that_is_given_again_stays_with_its_new_owner() -> None:
    instrument = BusyPolling()

    async def main() -> None:
        old, far = socket.socketpair()
        number = old.fileno()
        taken: list[bytes] = []
        async with trio.open_nursery() as nursery:

            async def wait_for_the_old() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await attend(old, lambda: True)

            async def wait_for_the_new() -> None:
                def take() -> bool:
                    taken.append(new.recv(10))
                    return False

                await attend(new, take)

            nursery.start_soon(wait_for_the_old)
            await trio.testing.wait_all_tasks_blocked()
            trio.lowlevel.notify_closing(old)
            old.close()
            new, other = socket.socketpair()
            assert new.fileno() == number
            nursery.start_soon(wait_for_the_new)
            await trio.testing.wait_all_tasks_blocked()
            assert number in instrument._takers
            other.send(b"x")
        assert taken == [b"x"]
        for end in (far, new, other):
            end.close()

    trio.run(main, instruments=[instrument])
