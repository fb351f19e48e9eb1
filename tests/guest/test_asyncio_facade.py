"""The asyncio facade: results, errors, cancellation and endings cross the border both ways.

Every test is a program of its own that calls `asyncio.run`, as an embedder's is.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.conftest import LeakGuard
from tests.guest.harness import DEADLINE_S, Pair

import pairsync
from pairsync.core.events import AloneEvent, InSyncEvent
from pairsync.core.messages import Role
from pairsync.core.units import MIB
from pairsync.errors import (
    ArbitrationError,
    BackendError,
    BusyError,
    ClosedError,
    ConfigError,
    MismatchError,
)
from pairsync.guest.asyncio_facade import AsyncioGuest
from pairsync.guest.config import GuestConfig

SRC = Path(pairsync.__file__).parent.parent


def _run(program: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """As `asyncio.run`, with a deadline; debug mode finds callbacks that were never awaited."""

    async def main() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await program()

    asyncio.run(main(), debug=True)


@pytest.fixture
def alone(pair: Pair) -> GuestConfig:
    """A guest without any peer."""
    return pair.config("a", link=False)


# -- the same as with trio -----------------------------------------------------------------------------------


def test_two_hosts_in_one_loop(pair: Pair) -> None:
    async def program() -> None:
        async with (
            AsyncioGuest(pair.config("b")) as standby,
            standby.beside(pair.config("a")) as active,
        ):
            await active.wait_in_sync()
            assert active.in_sync
            assert (active.name, active.role, standby.role) == ("guest", Role.ACTIVE, Role.STANDBY)
            async with asyncio.TaskGroup() as group:
                for number in range(100):
                    group.create_task(active.write("vda", number * 8192, bytes([number]) * 4096))
            await active.zero("vda", 0, 4096)
            await active.zero("vda", 8192, 4096, allocate=True)
            await active.trim("vda", 16384, 4096)
            await active.write("vda", 5, b"fua", fua=True)
            await active.flush("vda")
            assert await active.read("vda", 4, 5) == b"\0fua\0"
            await active.wait_in_sync()  # a machine that stood still for a second had gone on alone
            assert await standby.read("vda", 24576, 2) == b"\x03\x03"
            assert active.statistics().volumes[0].state == "in-sync"
            grown = active.guest.volume("vda").size_bytes + MIB
            await active.grow("vda", grown)
            assert await active.read("vda", grown - 2, 2) == b"\0\0"
            assert (await active.scrub("vda")).findings == 0
            with pytest.raises(ArbitrationError):
                await standby.write("vda", 0, b"x")

    _run(program)
    assert pair.same()


def test_what_has_changed_since_a_point(alone: GuestConfig) -> None:
    async def program() -> None:
        async with AsyncioGuest(alone) as guest:
            size_bytes = guest.guest.volume("vda").size_bytes
            point = await guest.make_point("vda", "monday")
            await guest.write("vda", 4096, b"x" * 4096)
            assert guest.points("vda") == (point,)
            assert guest.dirty_runs("vda", 0, size_bytes) == [(4096, 4096)]
            changed = [(4096, False), (4096, True), (size_bytes - 8192, False)]
            assert await guest.changed_since("vda", point, 0, size_bytes) == changed
            assert await guest.digests("vda", 4096, 4096, point="monday") == bytes(8)
            assert await guest.digests("vda", 4096, 4096) != bytes(8)
            await guest.drop_point("vda", "monday")
            assert guest.points("vda") == ()

    _run(program)


def test_a_program_may_open_one_guest_after_the_other(alone: GuestConfig) -> None:
    async def program() -> None:
        for number in range(3):
            async with AsyncioGuest(alone) as guest:
                await guest.write("vda", number, b"x")
                assert await guest.read("vda", 0, 3) == b"x" * (number + 1) + bytes(2 - number)

    _run(program)
    _run(_reads(alone, b"xxx"))


def _reads(config: GuestConfig, content: bytes) -> Callable[[], Coroutine[Any, Any, None]]:
    async def program() -> None:
        async with AsyncioGuest(config) as guest:
            assert await guest.read("vda", 0, len(content)) == content

    return program


def test_nothing_is_left_behind(disk_pair: Pair, leak_guard: LeakGuard) -> None:
    async def program() -> None:
        async with (
            AsyncioGuest(disk_pair.config("b")) as standby,
            standby.beside(disk_pair.config("a")) as active,
        ):
            await active.wait_in_sync()
            await active.write("vda", 0, b"x" * MIB)

    _run(program)
    assert disk_pair.same()


# -- errors --------------------------------------------------------------------------------------------------


def test_errors_arrive_where_the_call_was_made(alone: GuestConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def program() -> None:
        async with AsyncioGuest(alone) as guest:
            with pytest.raises(ConfigError, match="has 8388608 bytes"):
                await guest.write("vda", 8 * MIB, b"x")
            with pytest.raises(ConfigError, match="no volume 'vdb'"):
                await guest.read("vdb", 0, 1)

            def fail(*_: object) -> bool:
                raise BackendError("the disk is gone", errno.EIO)

            with monkeypatch.context() as patch:
                patch.setattr(guest.guest.volume("vda")._replica.device, "read_nowait", fail)
                with pytest.raises(BackendError, match="the disk is gone") as failure:
                    await guest.read("vda", 0, 1)
                assert failure.value.errno == errno.EIO
            assert await guest.read("vda", 0, 1) == b"\0"

    _run(program)


def test_what_is_raised_in_the_block_comes_out_as_it_is(alone: GuestConfig) -> None:
    async def program() -> None:
        async with AsyncioGuest(alone):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _run(program)


@pytest.mark.parametrize(
    ("change", "error"),
    [({"pair_id": b"q" * 16}, MismatchError), ({"volumes": ()}, ConfigError), ({"term": 0}, ConfigError)],
)
def test_what_keeps_it_from_opening_is_raised_as_it_is(
    pair: Pair, change: dict[str, Any], error: type[Exception]
) -> None:
    impossible = dataclasses.replace(pair.config("b", role=Role.ACTIVE, link=False), **change)

    async def program() -> None:
        with pytest.raises(error):
            async with AsyncioGuest(impossible):
                pytest.fail("opened what cannot be")
        async with AsyncioGuest(pair.config("a", link=False)) as guest:  # the trio run of the first was ended
            with pytest.raises(error):
                async with guest.beside(impossible):
                    pytest.fail("opened what cannot be")
            assert await guest.read("vda", 0, 1) == b"\0"

    _run(program)


def test_a_volume_in_use_is_busy(alone: GuestConfig) -> None:
    async def program() -> None:
        async with AsyncioGuest(alone) as guest:
            with pytest.raises(BusyError, match="in use"):
                async with guest.beside(alone):
                    pytest.fail("opened a volume twice")
            await guest.write("vda", 0, b"x")

    _run(program)


def test_an_own_function_runs_in_trio(alone: GuestConfig) -> None:
    async def seconds(count: float, *, then: str) -> str:
        await trio.sleep(count)
        return f"{then} in thread {threading.get_ident()}"

    async def fail() -> None:
        await trio.sleep(0)
        raise KeyError("lost")

    async def program() -> None:
        async with AsyncioGuest(alone) as guest:
            assert await guest.call(seconds, 0.001, then="done") == f"done in thread {threading.get_ident()}"
            with pytest.raises(KeyError, match="lost"):
                await guest.call(fail)

    _run(program)


# -- cancellation --------------------------------------------------------------------------------------------


class _Probe:
    """A trio function that notes how it ended."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.ended = ""

    async def wait(self) -> None:
        self.begun.set()
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.01)  # it takes a moment to end
            self.ended = "cancelled"
            raise


def test_a_cancelled_task_has_ended_in_trio_too(alone: GuestConfig) -> None:
    async def program() -> None:
        async with AsyncioGuest(alone) as guest:
            probe = _Probe()
            task = asyncio.create_task(guest.call(probe.wait))
            await probe.begun.wait()
            task.cancel()
            task.cancel()  # an impatient one
            with pytest.raises(asyncio.CancelledError):
                await task
            assert probe.ended == "cancelled"
            await guest.write("vda", 0, b"goes on")

    _run(program)


def test_timeouts_of_asyncio_work(alone: GuestConfig) -> None:
    async def program() -> None:
        async with AsyncioGuest(alone) as guest:
            first, second = _Probe(), _Probe()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await guest.call(first.wait)
            assert first.ended == "cancelled"
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(guest.call(second.wait), 0.01)
            assert second.ended == "cancelled"

    _run(program)


def test_a_result_that_comes_with_a_cancellation_is_dropped_quietly(alone: GuestConfig) -> None:
    async def shielded() -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(0.01)
        return "too late"

    async def failing() -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(0.01)
        raise BackendError("too late", errno.EIO)

    async def program() -> None:
        async with AsyncioGuest(alone) as guest:
            for function in (shielded, failing):
                task = asyncio.create_task(guest.call(function))
                await asyncio.sleep(0.001)
                task.cancel()
                with pytest.raises(asyncio.CancelledError) as cancelled:
                    await task
                assert isinstance(cancelled.value.__cause__, BackendError) == (function is failing)

    _run(program)


def test_a_task_group_that_fails_cancels_its_calls(alone: GuestConfig) -> None:
    async def program() -> None:
        async with AsyncioGuest(alone) as guest:
            probes = [_Probe() for _ in range(5)]

            async def fail() -> None:
                for probe in probes:
                    await probe.begun.wait()
                raise ZeroDivisionError

            async def all_at_once() -> None:
                async with asyncio.TaskGroup() as tasks:
                    for probe in probes:
                        tasks.create_task(guest.call(probe.wait))
                    tasks.create_task(fail())

            with pytest.raises(ExceptionGroup) as group:
                await all_at_once()
            assert [type(error) for error in group.value.exceptions] == [ZeroDivisionError]
            assert [probe.ended for probe in probes] == ["cancelled"] * 5

    _run(program)


def test_cancelled_while_it_opens(pair: Pair) -> None:
    async def program() -> None:
        for turns in range(12):  # at each of its steps
            task = asyncio.create_task(_open_and_stay(pair.config("a")))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        async with AsyncioGuest(pair.config("a")) as guest:
            await guest.write("vda", 0, b"all was given back")

    _run(program)


async def _open_and_stay(config: GuestConfig) -> None:
    async with AsyncioGuest(config):
        await asyncio.Event().wait()


def test_cancelled_while_it_closes(pair: Pair) -> None:
    async def program() -> None:
        async with AsyncioGuest(pair.config("b")) as standby:
            active = standby.beside(pair.config("a"))
            async with active:
                await active.wait_in_sync()
                await active.write("vda", 0, b"x" * MIB)
                closing = asyncio.create_task(active.aclose())
                await asyncio.sleep(0)
                closing.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await closing
            async with standby.beside(pair.config("a", link=False)) as again:
                assert again.statistics().volumes[0].dirty_blocks == 0  # it was closed in order

    _run(program)


# -- endings -------------------------------------------------------------------------------------------------


def test_closing_ends_what_is_in_flight(alone: GuestConfig) -> None:
    answers: list[object] = []

    async def wait(guest: AsyncioGuest, probe: _Probe) -> None:
        try:
            await guest.call(probe.wait)
        except ClosedError as error:
            answers.append(str(error))

    async def write(guest: AsyncioGuest, number: int) -> None:
        try:
            await guest.write("vda", number * 4096, b"x" * 4096)
        except ClosedError as error:
            answers.append(str(error))
        else:
            answers.append("done")

    async def program() -> None:
        probe = _Probe()
        tasks = []
        async with AsyncioGuest(alone) as guest:
            tasks.append(asyncio.create_task(wait(guest, probe)))
            tasks += [asyncio.create_task(write(guest, number)) for number in range(50)]
            await probe.begun.wait()
        await asyncio.gather(*tasks)
        assert probe.ended == "cancelled"

    _run(program)
    assert len(answers) == 51
    assert set(answers) <= {"done", "guest guest was closed"}
    assert "guest guest was closed" in answers


def test_before_and_afterwards_it_is_closed(alone: GuestConfig) -> None:
    async def refuses(guest: AsyncioGuest) -> None:
        for call in (
            lambda: guest.read("vda", 0, 1),
            lambda: guest.write("vda", 0, b"x"),
            lambda: guest.flush("vda"),
            lambda: guest.call(trio.sleep, 0),
            guest.wait_in_sync,
        ):
            with pytest.raises(ClosedError, match="guest guest is not open"):
                await call()
        for look in (guest.statistics, guest.subscribe, lambda: guest.guest, lambda: guest.in_sync):
            with pytest.raises(ClosedError, match="not open"):
                look()

    async def program() -> None:
        guest = AsyncioGuest(alone)
        await guest.aclose()  # nothing to close
        await refuses(guest)
        with pytest.raises(ClosedError):
            async with guest.beside(alone):
                pytest.fail("opened beside a guest that is not open")
        async with guest:
            await guest.write("vda", 0, b"x")
            with pytest.raises(BusyError, match="opened already"):
                await guest.__aenter__()
        await guest.aclose()
        await refuses(guest)
        with pytest.raises(BusyError, match="opened already"):
            await guest.__aenter__()

    _run(program)


def test_a_thread_has_one_trio_run(alone: GuestConfig) -> None:
    async def program() -> None:
        async with AsyncioGuest(alone) as guest:
            with pytest.raises(BusyError, match="open a further guest with `beside`"):
                async with AsyncioGuest(alone):
                    pytest.fail("a second trio run in one thread")
            assert await guest.read("vda", 0, 1) == b"\0"

    _run(program)


def test_another_loop_is_refused(alone: GuestConfig) -> None:
    async def program() -> None:
        async with AsyncioGuest(alone) as guest:

            def elsewhere() -> str:
                with pytest.raises(BusyError, match="belongs to another loop"):
                    asyncio.run(guest.read("vda", 0, 1))
                return "refused"

            assert await asyncio.to_thread(elsewhere) == "refused"

    _run(program)


def test_a_guest_that_breaks_is_told_once(alone: GuestConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own bug: calls fail as closed, and the error itself comes out of the block."""

    async def program() -> None:
        async with AsyncioGuest(alone) as guest:
            probe = _Probe()
            waiting = asyncio.create_task(guest.call(probe.wait))
            await probe.begun.wait()

            def broken(*_: object) -> None:
                raise ZeroDivisionError

            monkeypatch.setattr(guest.guest.session, "tick", broken)
            with pytest.raises(ClosedError):
                await waiting
            with pytest.raises(ClosedError):
                await guest.read("vda", 0, 1)

    with pytest.raises(ZeroDivisionError):
        _run(program)
    monkeypatch.undo()
    _run(_reads(alone, b"\0"))


# -- events --------------------------------------------------------------------------------------------------


def test_events_are_an_async_iterator(pair: Pair) -> None:
    heard: list[str] = []

    async def listen(guest: AsyncioGuest) -> None:
        with guest.subscribe() as events:
            heard.extend([event.kind async for event in events])
            assert events.lost_count == 0

    async def program() -> None:
        async with AsyncioGuest(pair.config("a")) as active:
            listener = asyncio.create_task(listen(active))
            with active.subscribe() as events:
                async with active.beside(pair.config("b")):
                    while not isinstance(await events.receive(), InSyncEvent):
                        pass
                await active.write("vda", 0, b"x")
                while not isinstance(await events.receive(), AloneEvent):
                    pass
        await listener  # it ends with the guest

    _run(program)
    assert [kind for kind in heard if kind in {"connected", "in-sync", "peer-lost", "alone"}] == [
        *("connected", "in-sync", "peer-lost", "alone")
    ]


def test_a_subscriber_may_stop_listening(pair: Pair) -> None:
    async def program() -> None:
        async with AsyncioGuest(pair.config("a")) as active:
            events = active.subscribe()
            listener = asyncio.create_task(events.receive())
            await asyncio.sleep(0.01)
            listener.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listener
            events.close()
            with pytest.raises(ClosedError):
                await events.receive()

    _run(program)


# -- Ctrl-C --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_closes_in_order(pair: Pair, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            f"""
            import asyncio, sys
            import pairsync

            async def main():
                volumes = [pairsync.VolumeConfig("vda", sys.argv[1])]
                config = pairsync.GuestConfig("guest", {bytes(range(16))!r}, pairsync.Role.ACTIVE, volumes)
                async with pairsync.AsyncioGuest(config) as guest:
                    await guest.write("vda", 0, b"written")
                    print("ready", flush=True)
                    try:
                        await asyncio.Event().wait()
                    finally:
                        print("cancelled", flush=True)
                        await guest.write("vda", 10, b"in the end")
                print("never reached")

            asyncio.run(main())
            """
        )
    )
    process = subprocess.Popen(
        [sys.executable, "-W", "error", str(program), str(pair.image("a"))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SRC)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert out == "cancelled\n"
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert "never retrieved" not in err
    assert process.returncode == -signal.SIGINT
    assert pair.image("a").read_bytes()[:20] == b"written\0\0\0in the end"
