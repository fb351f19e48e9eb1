"""When a loop polls before it sleeps, and that trio's loop can be polled at all."""

from __future__ import annotations

import os
import select
import time

import pytest
import trio

from pairsync.core.units import NS_PER_MS, NS_PER_S, NS_PER_US
from pairsync.io import polling
from pairsync.io.polling import (
    DENSE_NS,
    HOPE_MAX,
    VAIN_NS_MAX,
    VAIN_SHARE,
    WAIT_NS_MAX,
    BusyPolling,
    Prospect,
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
                    await trio.sleep(0.001)
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
