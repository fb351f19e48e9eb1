"""Lanes: strict order, every job reported once, nothing swallowed, nothing left behind."""

from __future__ import annotations

import errno
import functools
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from pairsync.errors import BackendError, BusyError, ClosedError, InternalError
from pairsync.storage import lane as lane_module
from pairsync.storage.lane import InlineLane, IoLane, Lane, start_lane

BOTH = pytest.mark.parametrize("may_block", [True, False], ids=["thread", "inline"])


def _boom(error: BaseException) -> Callable[[], None]:
    def job() -> None:
        raise error

    return job


@asynccontextmanager
async def open_lane(name: str, *, may_block: bool) -> AsyncIterator[Lane]:
    """A served lane; drained and closed at the end of the block."""
    async with trio.open_nursery() as nursery:
        lane = await start_lane(nursery, name, may_block=may_block)
        yield lane
        await lane.aclose()


async def _backlog_gone(lane: Lane) -> None:
    with trio.fail_after(5):
        while lane.backlog:
            await trio.lowlevel.checkpoint()


@BOTH
async def test_jobs_run_in_order_and_are_reported_in_order(may_block: bool, leak_guard: Any) -> None:
    ran: list[int] = []
    reported: list[object] = []
    async with open_lane("t", may_block=may_block) as lane:
        for number in range(1000):

            def job(number: int = number) -> int:
                ran.append(number)
                return -number

            lane.submit(job, reported.append)
        assert await lane.run(lambda: 5) == 5
        assert lane.backlog == 0
    assert ran == list(range(1000))
    assert reported == [-number for number in range(1000)]


async def test_jobs_run_in_one_other_thread(leak_guard: Any) -> None:
    async with open_lane("disk", may_block=True) as lane:
        threads = {await lane.run(threading.current_thread) for _ in range(20)}
    (thread,) = threads
    assert thread.name == "pairsync-lane-disk"
    assert thread is not threading.current_thread()
    assert not thread.is_alive()


async def test_an_inline_lane_runs_at_once() -> None:
    lane = InlineLane()
    results: list[object] = []
    lane.submit(threading.current_thread, results.append)
    assert results == [threading.current_thread()]


async def test_the_event_loop_goes_on_while_a_job_waits(leak_guard: Any) -> None:
    gate = threading.Event()
    async with open_lane("t", may_block=True) as lane:
        finished: list[object] = []
        lane.submit(gate.wait, finished.append)
        for _ in range(10):
            await trio.lowlevel.checkpoint()
        assert finished == []
        assert lane.backlog == 1
        gate.set()
        await _backlog_gone(lane)
        assert finished == [True]


@BOTH
async def test_what_a_job_raises_is_its_result(may_block: bool) -> None:
    reported: list[object] = []
    failure = BackendError("no", errno.ENOSPC)
    async with open_lane("t", may_block=may_block) as lane:
        lane.submit(_boom(failure), reported.append)
        with pytest.raises(BackendError) as caught:
            await lane.run(_boom(failure))
        assert caught.value is failure
        assert await lane.run(lambda: 1) == 1
    assert reported == [failure]


@BOTH
async def test_what_is_meant_for_a_thread_is_our_own_bug(may_block: bool) -> None:
    async with open_lane("t", may_block=may_block) as lane:
        with pytest.raises(InternalError, match="ended with SystemExit") as caught:
            await lane.run(_boom(SystemExit(1)))
        assert isinstance(caught.value.__cause__, SystemExit)
        assert await lane.run(lambda: 1) == 1


async def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch, leak_guard: Any) -> None:
    monkeypatch.setattr(lane_module, "LANE_JOBS_MAX", 4)
    gate = threading.Event()
    async with open_lane("t", may_block=True) as lane:
        lane.submit(gate.wait, lambda _: None)
        for _ in range(3):
            lane.submit(gate.is_set, lambda _: None)
        with pytest.raises(BusyError, match="4 jobs are waiting"):
            lane.submit(gate.is_set, lambda _: None)
        gate.set()
        await _backlog_gone(lane)
        assert await lane.run(gate.is_set)


async def test_the_queue_of_an_inline_lane_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_module, "LANE_JOBS_MAX", 3)
    lane = InlineLane()
    refused: list[BusyError] = []

    def fill(_: object) -> None:
        for _ in range(3):
            lane.submit(int, lambda _: None)
        with pytest.raises(BusyError, match="3 jobs are waiting") as caught:
            lane.submit(int, lambda _: None)
        refused.append(caught.value)

    lane.submit(int, fill)
    assert len(refused) == 1
    assert lane.backlog == 0


async def test_an_inline_lane_does_not_nest() -> None:
    lane = InlineLane()
    order: list[str] = []

    def first_done(_: object) -> None:
        order.append("first done begins")
        lane.submit(lambda: order.append("second runs"), lambda _: order.append("second done"))
        assert lane.backlog == 2
        order.append("first done ends")

    lane.submit(lambda: order.append("first runs"), first_done)
    assert order == ["first runs", "first done begins", "first done ends", "second runs", "second done"]


@BOTH
async def test_what_is_submitted_for_later_lets_others_have_their_turn(
    may_block: bool, leak_guard: Any
) -> None:
    ran: list[int] = []

    def again(_: object) -> None:
        ran.append(len(ran))
        if len(ran) < 20:
            lane.submit_later(int, again)

    async with open_lane("t", may_block=may_block) as lane:
        lane.submit_later(int, again)
        assert ran == []
        assert lane.backlog == 1
        turns = 0
        while len(ran) < 20:
            await trio.lowlevel.checkpoint()
            turns += 1
        assert turns >= 10 or may_block


async def test_an_inline_lane_that_is_closed_or_cancelled_says_so_of_what_was_to_run_later() -> None:
    reported: list[object] = []
    async with open_lane("t", may_block=False) as lane:
        lane.submit_later(int, reported.append)
        await lane.aclose()
        assert lane.backlog == 0
        with pytest.raises(ClosedError):
            lane.submit_later(int, reported.append)
    async with trio.open_nursery() as nursery:
        lane = await start_lane(nursery, "t", may_block=False)
        lane.submit_later(int, reported.append)  # its turn may have come already
        lane.submit_later(int, reported.append)
        nursery.cancel_scope.cancel()
    assert len(reported) == 3
    assert [str(reported[index]) for index in (0, 2)] == ["lane t was closed before the job ran"] * 2


async def test_what_a_report_of_a_later_job_raises_ends_the_nursery_like_any_other_error() -> None:
    """It ended the event loop where it was called back by that.  Seed 22 of the simulator of the shell."""

    def done(_: object) -> None:
        raise InternalError("the disk's power was cut")

    with pytest.RaisesGroup(pytest.RaisesExc(InternalError, match="power")):
        async with open_lane("t", may_block=False) as lane:
            lane.submit_later(int, done)
            await trio.sleep_forever()


async def test_an_inline_lane_hands_over_what_was_to_run_later(leak_guard: Any) -> None:
    reported: list[object] = []
    inline = InlineLane()
    inline.submit_later(threading.current_thread, reported.append)
    async with open_lane("t", may_block=True) as lane:
        inline.hand_over(lane)
        assert inline.backlog == 0
        await _backlog_gone(lane)
    assert reported != [threading.current_thread()]


@BOTH
async def test_closing_drains(may_block: bool, leak_guard: Any) -> None:
    reported: list[object] = []
    async with open_lane("t", may_block=may_block) as lane:
        for number in range(100):
            lane.submit(functools.partial(int, number), reported.append)
        await lane.aclose()
        assert reported == list(range(100))
        with pytest.raises(ClosedError):
            lane.submit(int, reported.append)
        with pytest.raises(ClosedError):
            await lane.run(int)
        await lane.aclose()


async def test_a_lane_that_was_never_served_reports_its_jobs() -> None:
    lane = IoLane("t")
    reported: list[object] = []
    lane.submit(int, reported.append)
    await lane.aclose()
    assert [type(each) for each in reported] == [ClosedError]


async def test_jobs_submitted_before_it_is_served_are_run(leak_guard: Any) -> None:
    lane = IoLane("t")
    reported: list[object] = []
    lane.submit(lambda: 1, reported.append)
    async with trio.open_nursery() as nursery:
        await nursery.start(lane.serve)
        assert await lane.run(lambda: 2) == 2
        assert reported == [1]
        with pytest.raises(InternalError, match="served twice"):
            await lane.serve()
        await lane.aclose()
    with pytest.raises(InternalError, match="served twice"):
        await lane.serve()


async def test_cancelled_it_ends_the_running_job_and_drops_the_rest(leak_guard: Any) -> None:
    gate, running = threading.Event(), threading.Event()
    reported: list[object] = []
    ran: list[int] = []

    def slow() -> str:
        running.set()
        gate.wait(5)
        return "slow"

    with trio.CancelScope() as scope:
        async with open_lane("t", may_block=True) as lane:
            lane.submit(slow, reported.append)
            lane.submit(lambda: ran.append(1), reported.append)
            while not running.is_set():
                await trio.lowlevel.checkpoint()
            scope.cancel()
            gate.set()
            await trio.lowlevel.checkpoint()
    assert reported[0] == "slow"
    assert len(reported) == 2
    assert isinstance(reported[1], ClosedError) is not bool(ran)  # it ran, or it was refused


async def test_run_is_not_cancelled_while_the_job_uses_the_buffers(leak_guard: Any) -> None:
    gate, running = threading.Event(), threading.Event()

    def slow() -> int:
        running.set()
        gate.wait(5)
        return 7

    async with open_lane("t", may_block=True) as lane:
        results: list[int] = []
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def runner() -> None:
                    results.append(await lane.run(slow))

                nursery.start_soon(runner)
                while not running.is_set():
                    await trio.lowlevel.checkpoint()
                scope.cancel()
                for _ in range(5):
                    with trio.CancelScope(shield=True):
                        await trio.lowlevel.checkpoint()
                assert results == []
                gate.set()
        assert results == [7]


async def test_a_done_that_raises_ends_the_nursery_and_the_others_are_told(leak_guard: Any) -> None:
    gate = threading.Event()
    told: list[object] = []

    def bad(_: object) -> None:
        raise ValueError("done")

    with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="done"), flatten_subgroups=True):
        async with open_lane("t", may_block=True) as lane:
            lane.submit(gate.wait, bad)
            lane.submit(int, told.append)
            lane.submit(int, bad)
            lane.submit(int, told.append)
            gate.set()
            await trio.sleep_forever()
    assert len(told) == 2


async def test_a_disk_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_module, "LANE_CLOSE_S", 0.01)
    monkeypatch.setattr(lane_module, "LANE_STOP_S", 0.01)
    gate = threading.Event()
    reported: list[object] = []

    async def hang() -> None:
        async with open_lane("t", may_block=True) as lane:
            assert isinstance(lane, IoLane)
            lane.submit(gate.wait, reported.append)
            lane.submit(int, reported.append)
            with trio.fail_after(5):
                while lane.job_age_ns == 0:
                    await trio.lowlevel.checkpoint()

    with pytest.RaisesGroup(BackendError, BackendError, flatten_subgroups=True) as caught:
        await hang()
    assert [error.errno for error in caught.value.exceptions if isinstance(error, BackendError)] == [
        errno.ETIMEDOUT
    ] * 2
    assert [type(each) for each in reported] == [BackendError] * 2
    gate.set()


@BOTH
async def test_job_age(may_block: bool) -> None:
    async with open_lane("t", may_block=may_block) as lane:
        if isinstance(lane, IoLane):
            await lane.run(int)
            assert lane.job_age_ns == 0
            assert await lane.run(lambda: lane.job_age_ns) > 0
        assert await lane.run(lambda: 3) == 3


async def test_a_job_submitted_while_the_worker_falls_asleep_is_seen(leak_guard: Any) -> None:
    """The submitter finds the worker awake and does not wake it; the worker has to look once more."""
    falling_asleep, submitted = threading.Event(), threading.Event()

    class SlowToSleep(IoLane):
        def __setattr__(self, name: str, value: object) -> None:
            if name == "_worker_idle" and value and not falling_asleep.is_set():
                falling_asleep.set()
                submitted.wait(5)
            super().__setattr__(name, value)

    lane = SlowToSleep("t")
    reported: list[object] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(lane.serve)
        while not falling_asleep.is_set():
            await trio.lowlevel.checkpoint()
        lane.submit(lambda: 5, reported.append)
        submitted.set()
        await _backlog_gone(lane)
        assert reported == [5]
        await lane.aclose()


async def test_bursts_and_pauses_lose_no_wake_up(leak_guard: Any) -> None:
    """Both sides fall asleep and wake again thousands of times, at every point of each other's work."""
    total = 0

    def count(result: object) -> None:
        nonlocal total
        total += 1

    with trio.fail_after(30):
        async with open_lane("t", may_block=True) as lane:
            for round_number in range(3000):
                for _ in range(round_number % 4):
                    lane.submit(int, count)
                if round_number % 3 == 0:
                    await lane.run(int)
                elif round_number % 3 == 1:
                    await trio.lowlevel.checkpoint()
    assert total == sum(n % 4 for n in range(3000))
