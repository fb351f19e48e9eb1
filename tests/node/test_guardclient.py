"""A host and its guard, as processes that are killed, stopped and continued: rule 10 holds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from pairsync.core.timing import derive
from pairsync.core.units import NS_PER_MS, NS_PER_S
from pairsync.errors import BackendError, ConfigError, InternalError
from pairsync.node.guard import DEADLINE_AHEAD_NS, NEVER_NS, Say
from pairsync.node.guardclient import LOOK_S, LOOKS_MAX, boottime_ns, open_guard
from pairsync.testing.guarding import describe, measure_kill_delays, read_times, start_victim
from pairsync.testing.programs import EventStream, wait_gone

BOUND_NS = derive().stall_ns + derive().stop_ns  # what the default timing allows for a kill
LEASE_NS = 500 * NS_PER_MS
PAUSE_S = 1.0  # longer than the lease


class Host(EventStream):
    """The host of ``pairsync.testing.guarding``."""

    def __init__(self, process: trio.Process, directory: Path) -> None:
        super().__init__(process)
        self.directory = directory

    @property
    def guard(self) -> int:
        return int(self.ready["guard"])

    @property
    def victim(self) -> int:
        return int(self.ready["victim"])

    async def order(self, word: str) -> int:
        """Until when the lease lasts then."""
        assert self.process.stdin is not None
        await self.process.stdin.send_all(word.encode() + b"\n")
        return int((await self.wait_event(word))["until_ns"])

    def last_sign_ns(self) -> int:
        return read_times(self.directory / "victim")[-1]

    def acks(self) -> list[int]:
        return read_times(self.directory / "acks")

    async def wait_acks(self) -> None:
        """The door is open."""
        with trio.fail_after(20):
            while not (self.directory / "acks").exists() or len(self.acks()) < 10:
                await trio.sleep(0.01)


@asynccontextmanager
async def running(directory: Path, *more: str) -> AsyncIterator[Host]:
    words = ["-m", "pairsync.testing.guarding", "--host", str(directory), *more]
    process = await trio.lowlevel.open_process([sys.executable, *words], stdin=-1, stdout=-1, stderr=-1)
    host = Host(process, directory)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.follow)
            await host.wait_ready()
            await host.wait_acks()
            yield host
            nursery.cancel_scope.cancel()
    finally:
        if host.ready:
            send(signal.SIGCONT, host.guard, host.victim, process.pid)
            send(signal.SIGKILL, host.guard, host.victim)
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


def send(number: signal.Signals, *pids: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


async def gone(pids: Iterable[int]) -> None:
    await wait_gone(list(pids), seconds=20)


async def test_a_stopped_host_loses_its_guest_and_itself(tmp_path: Path) -> None:
    async with running(tmp_path) as host:
        send(signal.SIGSTOP, host.process.pid)
        stopped_ns = boottime_ns()
        await gone([host.victim, host.process.pid, host.guard])
        assert host.last_sign_ns() < stopped_ns + LEASE_NS + BOUND_NS
        assert host.last_sign_ns() > stopped_ns, "the guest itself was not stopped"
        await host.wait_end()
        assert host.exit_status == -signal.SIGKILL
        assert "the lease has run out" in host.logs()
        assert host.acks()[-1] < stopped_ns + LEASE_NS


async def test_a_killed_host_takes_its_guest_with_it(tmp_path: Path) -> None:
    async with running(tmp_path) as host:
        await host.order("disarm")  # without any lease, too
        send(signal.SIGKILL, host.process.pid)
        killed_ns = boottime_ns()
        await gone([host.victim, host.guard])
        assert host.last_sign_ns() < killed_ns + BOUND_NS


async def test_a_lease_that_is_not_renewed_ends_punctually(tmp_path: Path) -> None:
    async with running(tmp_path, "--spare-host") as host:
        until_ns = await host.order("hold")
        assert 0 < until_ns - boottime_ns() <= LEASE_NS
        await host.wait_event("lost", reason="it has died")
        await gone([host.victim])
        assert host.last_sign_ns() < until_ns + BOUND_NS
        assert host.acks()[-1] < until_ns
        await host.wait_end()
        assert host.exit_status == 0


@pytest.mark.parametrize("guard_last", [True, False])
async def test_a_machine_that_stood_still(tmp_path: Path, guard_last: bool) -> None:
    """All is stopped for longer than the lease, and goes on in either order: no door opens again."""
    async with running(tmp_path) as host:
        pids = [host.victim, host.process.pid, host.guard]
        send(signal.SIGSTOP, *pids)
        stopped_ns = boottime_ns()
        await trio.sleep(PAUSE_S)
        resumed_ns = boottime_ns()
        send(signal.SIGCONT, *(pids if guard_last else reversed(pids)))
        await gone(pids)
        assert host.last_sign_ns() < resumed_ns + BOUND_NS
        assert host.acks()[-1] < stopped_ns + LEASE_NS, "nothing was acknowledged after the lease"
        await host.wait_end()
        assert host.exit_status == -signal.SIGKILL


async def test_a_short_pause_of_the_machine_is_survived(tmp_path: Path) -> None:
    async with running(tmp_path, "--lease-ms", "5000") as host:
        pids = [host.victim, host.process.pid, host.guard]
        send(signal.SIGSTOP, *pids)
        await trio.sleep(PAUSE_S)
        resumed_ns = boottime_ns()
        send(signal.SIGCONT, *pids)
        with trio.fail_after(20):
            while host.acks()[-1] < resumed_ns + LEASE_NS:
                await trio.sleep(0.01)
        assert host.last_sign_ns() > resumed_ns


async def test_a_host_without_its_guard_serves_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as host:
        await host.order("disarm")
        send(signal.SIGKILL, host.guard)
        killed_ns = boottime_ns()
        await host.wait_event("lost", reason="it has died")
        assert host.acks()[-1] < killed_ns + BOUND_NS
        await gone([host.victim])


async def test_a_host_whose_guard_stands_still_stops_with_its_lease(tmp_path: Path) -> None:
    async with running(tmp_path) as host:
        send(signal.SIGSTOP, host.guard)
        stopped_ns = boottime_ns()
        lost = await host.wait_event("lost")
        assert lost["reason"] == f"it has not answered for {LOOK_S * LOOKS_MAX:g} s"
        assert host.acks()[-1] < stopped_ns + LEASE_NS, "renewals that no guard holds count for nothing"
        await host.wait_end()
        assert host.exit_status == 0
        await gone([host.guard])


async def test_without_a_deadline_all_goes_on_until_the_end(tmp_path: Path) -> None:
    async with running(tmp_path) as host:
        assert await host.order("disarm") == NEVER_NS
        disarmed_ns = boottime_ns()
        with trio.fail_after(20):
            while host.acks()[-1] < disarmed_ns + 2 * LEASE_NS:
                await trio.sleep(0.01)
        assert host.process.stdin is not None
        await host.process.stdin.send_all(b"end\n")
        await host.wait_end()
        assert host.exit_status == 0
        await gone([host.victim, host.guard])


# -- the client in this process ------------------------------------------------------------------------------


async def test_nothing_is_valid_before_it_is_held(tmp_path: Path) -> None:
    async with open_guard(kill_host=False) as guard:
        assert not guard.lease_valid(boottime_ns())
        await trio.sleep(0.05)  # its looks are answered meanwhile
        assert not guard.lease_valid(boottime_ns())
        deadline_ns = boottime_ns() + 20 * NS_PER_S
        guard.arm(deadline_ns)
        assert not guard.lease_valid(boottime_ns()), "told is not held"
        await guard.settled()
        assert guard.valid_until_ns == deadline_ns
        assert guard.lease_valid(deadline_ns - 1)
        assert not guard.lease_valid(deadline_ns)
        assert 0 < guard.take_lateness_ns() < NS_PER_S
        assert guard.take_lateness_ns() == 0
        guard.disarm()
        guard.rest()
        assert not guard.lease_valid(boottime_ns()), "at once"
        guard._take(Say.HELD, guard._told - 1, NEVER_NS, 0)  # the answer to `disarm`
        assert not guard.lease_valid(boottime_ns())
        await guard.settled()
        assert guard.valid_until_ns == 0
        victim = await start_victim(tmp_path / "victim")
        await guard.add_group(victim.pid)
        guard.drop_group(victim.pid)
        victim.kill()
        await victim.wait()
        with pytest.raises(BackendError, match=f"group {victim.pid} cannot be guarded: No such process"):
            await guard.add_group(victim.pid)


async def test_the_first_deadline_counts_though_the_guard_does_not_hear_of_it() -> None:
    """It stood still: what it had said of no deadline at all kept the door open for a second and more."""
    async with open_guard(kill_host=False) as guard:
        guard.disarm()
        await guard.settled()
        assert guard.valid_until_ns == NEVER_NS
        send(signal.SIGSTOP, guard.pid)
        try:
            deadline_ns = boottime_ns() + 20 * NS_PER_S
            guard.arm(deadline_ns)
            assert guard.valid_until_ns == deadline_ns
            guard._take(Say.HELD, guard._told - 1, NEVER_NS, 0)  # the answer to an earlier look
            assert guard.valid_until_ns == deadline_ns
        finally:
            send(signal.SIGCONT, guard.pid)
        await guard.settled()
        assert guard.valid_until_ns == deadline_ns


@pytest.mark.parametrize("deadline_ns", [0, -1, NEVER_NS, 3 * DEADLINE_AHEAD_NS + 10**18])
async def test_a_deadline_that_cannot_be_is_our_own_bug(deadline_ns: int) -> None:
    async with open_guard(kill_host=False) as guard:
        with pytest.raises(InternalError, match="no near moment"):
            guard.arm(deadline_ns)


async def test_who_waits_for_a_lost_guard_is_told() -> None:
    async with open_guard(kill_host=False) as guard:
        guard.disarm()
        await guard.settled()
        assert guard.lease_valid(boottime_ns())
        send(signal.SIGKILL, guard.pid)
        await guard.lost.wait()
        with pytest.raises(BackendError, match="the guard is lost: it has died"):
            await guard.settled()
        guard.arm(boottime_ns() + NS_PER_S)  # does no harm
        assert not guard.lease_valid(boottime_ns())


async def test_a_guard_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with pytest.raises(BackendError, match="the guard did not start"):
        async with open_guard(kill_host=False):
            pytest.fail("it started")


async def test_a_watchdog_time_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="watchdog: 0 s"):
        async with open_guard(watchdog_s=0):
            pytest.fail("it started")


async def test_a_watchdog_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with open_guard(kill_host=False, watchdog=Path("/dev/full")) as guard:
        with trio.fail_after(20):
            while "the watchdog device has failed: No space left on device" not in caplog.text:
                await trio.sleep(0.01)
        guard.disarm()
        await guard.settled()
    async with open_guard(kill_host=False):
        assert "no watchdog device" in caplog.text


async def test_kills_are_punctual_beside_busy_cores() -> None:
    delays = await measure_kill_delays(5, busy=2 * (os.cpu_count() or 1))
    lasts = [each.last_ns for each in delays]
    assert max(lasts) < BOUND_NS, describe("last sign of life", lasts)
    assert sorted(lasts)[2] < 50 * NS_PER_MS, "by its timer, and not by the next look at everything"


def test_the_measurement_runs_by_hand() -> None:
    command = [sys.executable, "-m", "pairsync.testing.guarding", "--runs", "1", "--busy", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[0].startswith("last sign of life after the deadline: p50 ")
