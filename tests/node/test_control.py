"""The control socket: what a client sends ends at worst its own connection."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from pathlib import Path

import pytest
import trio
import trio.testing

from pairsync.errors import ConfigError, PeerLost
from pairsync.node.control import CONNECTIONS_MAX, IDLE_CROWDED_S, IDLE_S, LINE_BYTES_MAX, ask, serve_control

HOSTILE = {
    "not JSON": b"{\n",
    "no object": b"[]\n",
    "brackets within brackets": b"[" * 200_000 + b"\n",
    "no text": b"\xff\xfe\n",
    "a line without an end": b"x" * (2 * LINE_BYTES_MAX),
}


@pytest.mark.parametrize("sent", HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_client_that_speaks_something_else_is_hung_up_on_and_others_are_served(
    tmp_path: Path, sent: bytes
) -> None:
    async def ping(_: object) -> dict[str, int]:
        await trio.lowlevel.checkpoint()
        return {"pong": 1}

    path = tmp_path / "control.sock"
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_control, path, {"ping": ping})
            async with await trio.open_unix_socket(path) as stream:
                with pytest.raises(trio.BrokenResourceError) if len(sent) > LINE_BYTES_MAX else nullcontext():
                    await stream.send_all(sent)
                    assert await stream.receive_some() == b""
            assert (await ask(path, {"do": "ping"}))["pong"] == 1
            nursery.cancel_scope.cancel()
    with pytest.raises(PeerLost):
        await ask(path, {"do": "ping"})


@asynccontextmanager
async def _served(path: Path) -> AsyncIterator[None]:
    """``ping`` answers at once, ``wait`` never, ``much`` with more than sockets hold."""

    async def ping(_: object) -> dict[str, str]:
        await trio.lowlevel.checkpoint()
        return {"pong": ""}

    async def wait(_: object) -> dict[str, str]:
        await trio.Event().wait()
        return {}

    async def much(_: object) -> dict[str, str]:
        await trio.lowlevel.checkpoint()
        return {"much": "x" * (8 << 20)}

    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, path, {"ping": ping, "wait": wait, "much": much})
        yield
        nursery.cancel_scope.cancel()


SILENT = {"nothing": b"", "half a request": b'{"do": "pi', "takes no answer": b'{"do": "much"}\n'}


async def test_what_the_system_refuses_a_handler_is_its_answer(tmp_path: Path) -> None:
    async def status(_: object) -> dict[str, int]:
        await trio.lowlevel.checkpoint()
        raise OSError(errno.EMFILE, "Too many open files")

    path = tmp_path / "control.sock"
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_control, path, {"status": status})
            for _ in range(2):
                with pytest.raises(ConfigError, match="Too many open files"):
                    await ask(path, {"do": "status"})
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("sent", SILENT.values(), ids=SILENT.keys())
async def test_idle_clients_make_room_for_others(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, sent: bytes
) -> None:
    path = tmp_path / "control.sock"
    async with _served(path), AsyncExitStack() as clients:
        for _ in range(CONNECTIONS_MAX):
            stream = await clients.enter_async_context(await trio.open_unix_socket(path))
            await stream.send_all(sent)
        await trio.testing.wait_all_tasks_blocked()
        begin = trio.current_time()
        assert "pong" in await ask(path, {"do": "ping"})
        assert trio.current_time() - begin <= IDLE_CROWDED_S


@pytest.mark.parametrize("sent", SILENT.values(), ids=SILENT.keys())
async def test_an_idle_client_is_hung_up_on_in_the_end(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, sent: bytes
) -> None:
    path = tmp_path / "control.sock"
    async with _served(path), await trio.open_unix_socket(path) as stream:
        await stream.send_all(sent)
        await trio.sleep(IDLE_S - 1)
        assert "pong" in await ask(path, {"do": "ping"})
        await trio.sleep(2)
        with pytest.raises(trio.BrokenResourceError):  # noqa: PT012 - either call may be the one that notices
            await stream.send_all(b"x")
            await stream.send_all(b"x")


async def test_waiting_for_an_answer_has_no_deadline(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    path = tmp_path / "control.sock"
    async with _served(path), AsyncExitStack() as clients:
        streams = [
            await clients.enter_async_context(await trio.open_unix_socket(path))
            for _ in range(CONNECTIONS_MAX)
        ]
        for stream in streams:
            await stream.send_all(b'{"do": "wait"}\n')
        with trio.move_on_after(2 * IDLE_S) as scope:
            await ask(path, {"do": "ping"})
        assert scope.cancelled_caught  # nobody was dropped for it
        await streams.pop().aclose()
        assert "pong" in await ask(path, {"do": "ping"})
