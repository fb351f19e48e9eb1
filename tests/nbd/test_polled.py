"""A server whose loop polls: requests are handled where they are found, outside of any task."""

from __future__ import annotations

import os
import select
import socket
from pathlib import Path

import pytest
import trio
import trio.testing

from pairsync import polling
from pairsync.core.units import KIB, MIB, NS_PER_S
from pairsync.nbd import constants as c
from pairsync.polling import BusyPolling
from pairsync.testing.nbd_client import NbdClient
from pairsync.testing.nbd_memory import MemoryExport
from pairsync.testing.nbd_service import serving_nbd

WRITES = 300


class Outside(trio.abc.Instrument):
    """Whether a task runs."""

    def __init__(self) -> None:
        self.here = True

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        del task
        self.here = False

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        del task
        self.here = True


def block_of(number: int) -> bytes:
    return number.to_bytes(2, "big") * 2 * KIB


def write_many(client: NbdClient) -> None:
    """One after the other, by a thread: a client that runs beside the loop of the server."""
    stream = client.stream
    assert isinstance(stream, trio.SocketStream)
    with socket.socket(fileno=os.dup(stream.socket.fileno())) as sock:
        for number in range(WRITES):
            at = number % 100 * 4 * KIB
            request = NbdClient.request_bytes(
                c.CMD_WRITE, at, 4 * KIB, cookie=number, payload=block_of(number)
            )
            assert sock.send(request) == len(request)
            assert select.select([sock], [], [], 10)[0]
            assert sock.recv(100)[8:] == number.to_bytes(8, "big")


def test_requests_of_all_kinds_where_the_loop_polls(
    disk: MemoryExport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "DENSE_NS", -1)
    monkeypatch.setattr(polling, "WAIT_NS_MAX", NS_PER_S)  # however long a busy machine keeps the client
    monkeypatch.setattr(polling, "VAIN_NS_MAX", 1000 * NS_PER_S)
    outside, submitted_outside = Outside(), 0
    submit = disk.submit

    def count(*arguments: object) -> None:
        nonlocal submitted_outside
        submitted_outside += outside.here
        submit(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(disk, "submit", count)

    async def main() -> None:
        async with serving_nbd(tmp_path, [disk]) as service:
            client = await service.client()
            await trio.to_thread.run_sync(write_many, client)
            assert disk.peek(99 * 4 * KIB, 4 * KIB) == block_of(WRITES - 1)
            large = bytes(range(256)) * (MIB // 256)  # received into its own memory, by the task
            await client.write(MIB, large)
            await client.write(0, b"small")
            assert await client.read(MIB, MIB) == large
            disk.write_gate = trio.Event()  # the task waits, and goes on
            cookie = await client.request(c.CMD_WRITE, 0, 4, payload=b"abcd")
            await trio.testing.wait_all_tasks_blocked()
            disk.write_gate.set()
            assert (await client.reply()).cookie == cookie
            await client.flush()
            assert await client.read(0, 4) == b"abcd"
            await client.request(c.CMD_WRITE, 0, 4, payload=b"last")
            assert len(await client.disconnect()) == 16, "what was asked for before is answered"
            with trio.fail_after(5):
                while service.server.statistics().connections:
                    await trio.sleep(0.001)
            assert disk.peek(0, 4) == b"last"
            broken = await service.client()
            await broken.send(bytes(28))
            assert await broken.wait_hang_up() == b""
            assert service.server.statistics().refused == {"protocol": 1}

    trio.run(main, instruments=[outside, BusyPolling()])
    assert submitted_outside > WRITES // 2
