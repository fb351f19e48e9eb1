"""A guard that is lost is replaced: the door closes meanwhile, and the new one knows all of the old one."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from pairsync.core.units import NS_PER_MS, NS_PER_S
from pairsync.errors import BackendError
from pairsync.node.guard import NEVER_NS, boottime_ns
from pairsync.node.guardclient import GuardClient, open_guard
from pairsync.node.guardkeeper import LOSSES_MAX, GuardKeeper, keep_guard
from pairsync.testing.guarding import read_times, start_victim

WAIT_S = 20.0
RENEWED_NS = 4 * NS_PER_S
"""A lease that outlives the start of another guard: a process that is to come up on a busy machine."""


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(WAIT_S):
        while not condition():
            await trio.sleep(0.002)


async def lose(guard: GuardKeeper) -> int:
    """Kill the present guard; its process id."""
    pid = guard.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await until(lambda: guard.pid != pid)
    return pid


async def test_another_guard_holds_the_same(tmp_path: Path) -> None:
    async with keep_guard(kill_host=False) as guard:
        assert not guard.lease_valid(boottime_ns())
        victim = await start_victim(tmp_path / "victim")
        await guard.add_group(victim.pid)
        deadline_ns = boottime_ns() + RENEWED_NS
        guard.arm(deadline_ns)
        guard.arm(deadline_ns - 100 * NS_PER_MS)
        await guard.settled()
        assert guard.lease_valid(boottime_ns())
        old = await lose(guard)
        assert not guard.lease_valid(boottime_ns()), "closed until another one holds it"
        await guard.settled()
        assert guard.pid not in {None, old}
        assert guard.valid_until_ns == deadline_ns
        assert guard.lease_valid(deadline_ns - 1)
        assert guard.about["memory"]
        assert guard.take_lateness_ns() > 0
        await victim.wait()
        assert boottime_ns() >= deadline_ns, "not before"
        assert read_times(tmp_path / "victim")[-1] < deadline_ns + NS_PER_S
        with trio.fail_after(WAIT_S):
            await guard.lost.wait()
        assert guard.lost_reason == "it has died, and the lease has run out meanwhile"
        with pytest.raises(BackendError, match="the guard is lost: it has died"):
            await guard.settled()
        with pytest.raises(BackendError, match="the guard is lost"):
            await guard.add_group(1)
        assert (guard.valid_until_ns, guard.about, guard.take_lateness_ns()) == (0, {}, 0)


async def test_without_a_deadline_too(tmp_path: Path) -> None:
    async with keep_guard(kill_host=False) as guard:
        victim, other = [await start_victim(tmp_path / name) for name in ("victim", "other")]
        for process in (victim, other):
            await guard.add_group(process.pid)
        guard.disarm()
        await guard.settled()
        await lose(guard)
        guard.drop_group(other.pid)  # while there is none
        victim.kill()
        await victim.wait()  # what has ended meanwhile is no hindrance
        await guard.settled()
        assert guard.valid_until_ns == NEVER_NS
        with pytest.raises(BackendError, match="cannot be guarded"):
            await guard.add_group(victim.pid)
    assert other.poll() is None, "it was dropped"
    other.kill()
    await other.wait()


async def test_a_lease_that_runs_out_meanwhile_is_lost() -> None:
    async with keep_guard(kill_host=False) as guard:
        guard.arm(boottime_ns() + 50 * NS_PER_MS)
        await lose(guard)
        with trio.fail_after(WAIT_S):
            await guard.lost.wait()
        assert not guard.lease_valid(boottime_ns())


async def test_guards_that_are_lost_again_and_again() -> None:
    async with keep_guard(kill_host=False) as guard:
        guard.disarm()
        for _ in range(LOSSES_MAX + 1):
            await until(lambda: guard.pid is not None)
            await lose(guard)
        with trio.fail_after(WAIT_S):
            await guard.lost.wait()
        assert guard.lost_reason == f"{LOSSES_MAX + 1} were lost in a row, the last one: it has died"


async def test_what_is_asked_while_there_is_none_is_asked_of_the_next(tmp_path: Path) -> None:
    wanted = trio.Event()

    @asynccontextmanager
    async def opener() -> AsyncIterator[GuardClient]:
        if victims:  # not of the first one
            await wanted.wait()
        async with open_guard(kill_host=False) as client:
            yield client

    guard = GuardKeeper(opener)
    victims: list[trio.Process] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(guard.keep)
        victims.append(victim := await start_victim(tmp_path / "victim"))
        await lose(guard)
        assert guard.pid is None
        deadline_ns = boottime_ns() + RENEWED_NS
        guard.arm(deadline_ns)
        wanted.set()
        await guard.add_group(victim.pid)
        await guard.settled()
        assert guard.valid_until_ns == deadline_ns
        await victim.wait()
        with trio.fail_after(WAIT_S):
            await guard.lost.wait()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("change", ["disarm", "rest", "arm"])
async def test_a_change_of_mind_while_another_one_is_told(tmp_path: Path, change: str) -> None:
    """What is asked between the telling and its answer is not forgotten."""
    victim = await start_victim(tmp_path / "victim")
    old_ns = boottime_ns() + 20 * NS_PER_S
    wanted_ns = {"disarm": NEVER_NS, "rest": 0, "arm": old_ns + NS_PER_S}[change]
    changed = False

    class Slow(GuardKeeper):
        async def _restore(self, client: GuardClient) -> None:
            settled = client.settled

            async def settled_later() -> None:
                nonlocal changed
                await settled()
                if not changed and self._groups:
                    changed = True
                    self.drop_group(victim.pid)
                    if change == "arm":
                        self.arm(wanted_ns)
                    else:
                        getattr(self, change)()

            client.settled = settled_later  # type: ignore[method-assign]
            await super()._restore(client)
            client.settled = settled  # type: ignore[method-assign]

    guard = Slow(lambda: open_guard(kill_host=False))
    async with trio.open_nursery() as nursery:
        await nursery.start(guard.keep)
        await guard.add_group(victim.pid)
        guard.arm(old_ns)
        await guard.settled()
        await lose(guard)
        await guard.settled()
        assert changed
        assert guard.valid_until_ns == wanted_ns
        nursery.cancel_scope.cancel()
    assert victim.poll() is None, "it was dropped"
    victim.kill()
    await victim.wait()


async def test_one_that_is_lost_in_the_middle_of_a_question(tmp_path: Path) -> None:
    async with keep_guard(kill_host=False) as guard:
        victim = await start_victim(tmp_path / "victim")
        assert guard.pid is not None
        os.kill(guard.pid, signal.SIGSTOP)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(guard.add_group, victim.pid)
            guard.disarm()
            nursery.start_soon(guard.settled)
            await trio.sleep(0.05)
            os.kill(guard.pid, signal.SIGKILL)
        assert guard.valid_until_ns == NEVER_NS
    await victim.wait()  # the end kills what is left


async def test_one_that_does_not_start_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 1)
        with pytest.raises(ExceptionGroup) as caught:
            async with keep_guard(kill_host=False):
                pytest.fail("it started")
    assert caught.group_contains(BackendError, match="the guard did not start")


async def test_a_second_one_that_does_not_start_is_tried_again() -> None:
    opened = 0

    @asynccontextmanager
    async def opener() -> AsyncIterator[GuardClient]:
        nonlocal opened
        opened += 1
        if opened == 2:
            raise BackendError("no more processes")
        async with open_guard(kill_host=False) as client:
            yield client

    guard = GuardKeeper(opener)
    async with trio.open_nursery() as nursery:
        await nursery.start(guard.keep)
        guard.disarm()
        await lose(guard)
        await guard.settled()
        assert opened == 3
        nursery.cancel_scope.cancel()
