"""How far an ``async`` standby may be behind, with real processes: in bytes, in seconds, and what is then.

What it lacks of what was acknowledged is read from its file, with nothing of the package in between, while
its disk hangs: no more than that a loss of the active host could cost.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from pairsync.core.window import GATHER_DATA_BYTES_MAX
from pairsync.errors import PeerLost
from pairsync.testing.lab import RunningLab, differences, running_lab
from pairsync.testing.nbd_client import NbdClient

pytestmark = pytest.mark.slow

MIB = 1 << 20
PIECE = 60 << 10  # the bound is no multiple of it
SIZE = 128 * MIB
WRITERS = 4  # each waits for its answer
LAG_BYTES = 2 * MIB
BEYOND_BYTES = GATHER_DATA_BYTES_MAX  # a batch that is let in below the bound may go beyond it
FAILOVER_S = 2.0
STILL_S = 1.0  # so long nothing is acknowledged: the writers wait
TICK_S = 0.5  # so seldom a host looks at the time, at the least
BUSY_S = 1.5  # what a busy machine adds
DEADLINE_S = 30.0


@asynccontextmanager
async def lagging_lab(directory: Path, **options: Any) -> AsyncIterator[RunningLab]:
    """A lab in sync whose volume is ``async`` and has these options; a disk that hangs is waited for."""
    async with running_lab(
        directory, {"vda": SIZE}, level="async", more=[f"--failover={FAILOVER_S:g}"]
    ) as lab:
        for host in ("a", "b"):
            await lab.kill(host)
        for host in ("a", "b"):
            file = lab.directory / host / "host.toml"
            lines = [f"{name} = {value!r}" for name, value in (options | {"disk_deadline_s": 15}).items()]
            file.write_text(file.read_text() + "\n".join(lines) + "\n")  # the last table is the volume's
        async with trio.open_nursery() as nursery:
            for host in ("a", "b"):
                nursery.start_soon(lab.start, host)
        await lab.wait_in_sync()
        yield lab


class Pieces:
    """Several clients write one piece after the other, each in its own place."""

    def __init__(self, *, pause_s: float = 0.0) -> None:
        self.pause_s = pause_s
        self.content = [random.Random(number).randbytes(PIECE) for number in range(SIZE // PIECE)]
        self.next = 0
        self.acknowledged: list[int] = []
        self.last_s = 0.0  # when a write was acknowledged last
        self.longest_s = 0.0  # that one has taken

    async def run(self, client: NbdClient) -> None:
        while self.next < len(self.content):
            number, self.next = self.next, self.next + 1
            began_s = trio.current_time()
            try:
                await client.write(number * PIECE, self.content[number])
            except PeerLost:  # its host was killed
                return
            self.acknowledged.append(number)
            self.last_s = trio.current_time()
            self.longest_s = max(self.longest_s, self.last_s - began_s)
            await trio.sleep(self.pause_s)

    async def until(self, count: int) -> None:
        """Until so many more are acknowledged."""
        count += len(self.acknowledged)
        with trio.fail_after(DEADLINE_S):
            while len(self.acknowledged) < count:
                await trio.sleep(0.01)

    async def until_still(self) -> None:
        """Until the writers wait."""
        with trio.fail_after(DEADLINE_S):
            while trio.current_time() - self.last_s < STILL_S:
                await trio.sleep(0.01)

    def missing(self, path: Path) -> list[int]:
        """What is acknowledged and not in that file."""
        image = path.read_bytes()
        return [
            number
            for number in self.acknowledged
            if image[number * PIECE : (number + 1) * PIECE] != self.content[number]
        ]


@asynccontextmanager
async def writing(lab: RunningLab, pieces: Pieces, writers: int = WRITERS) -> AsyncIterator[None]:
    """Clients of host a that write, until the block is left."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(await lab.connect()) for _ in range(writers)]
        nursery = await stack.enter_async_context(trio.open_nursery())
        for client in clients:
            nursery.start_soon(pieces.run, client)
        await pieces.until(8)
        yield
        nursery.cancel_scope.cancel()


async def set_disk(lab: RunningLab, what: str) -> None:
    await lab.request("disk", host="b", volume="vda", disk=what)


async def test_a_writer_waits_before_the_standby_lacks_more_than_the_bound(lab_directory: Path) -> None:
    pieces = Pieces()
    async with lagging_lab(lab_directory, lag_bytes=LAG_BYTES, lag_s=60, at_bound="throttle") as lab:
        b = lab.path("b")
        async with writing(lab, pieces):
            for _ in range(2):
                await set_disk(lab, "hang")
                await pieces.until_still()
                lacking = len(pieces.missing(b)) * PIECE
                assert LAG_BYTES // 2 < lacking < LAG_BYTES + BEYOND_BYTES, "the writers wait just in time"
                assert (await lab.guest())["in_sync"] == ["a", "b"]
                await set_disk(lab, "ok")
                await pieces.until(64)
            await set_disk(lab, "hang")
            await pieces.until_still()
            await lab.kill("a")  # for good, as far as the guest knows
        await set_disk(lab, "ok")
        await lab.wait_active("b")
        assert len(pieces.missing(b)) * PIECE < LAG_BYTES + BEYOND_BYTES
        await lab.start("a")
        await lab.wait_in_sync()
        await lab.end()
    assert not differences(lab_directory, "vda")


async def test_a_standby_falls_behind_rather_than_that_a_writer_waits(lab_directory: Path) -> None:
    pieces = Pieces()
    async with lagging_lab(lab_directory, lag_bytes=LAG_BYTES, lag_s=60, at_bound="fall-behind") as lab:
        async with writing(lab, pieces):
            mark = lab.mark()
            await set_disk(lab, "hang")
            await pieces.until(8 * LAG_BYTES // PIECE)
            behind = await lab.wait_event("behind", host="a", since=mark)
            assert LAG_BYTES < behind["lag_bytes"] < LAG_BYTES + BEYOND_BYTES
            assert pieces.longest_s < STILL_S + BUSY_S
            assert (await lab.guest())["in_sync"] == ["a"]
            await lab.kill("a")
        await set_disk(lab, "ok")
        await trio.sleep(2 * FAILOVER_S)
        assert (await lab.guest())["active"] is None, "the other host lacks more than was promised"
        await lab.start("a")
        await lab.wait_in_sync()
        assert (await lab.guest())["active"] == "a"
        assert not pieces.missing(lab.path("a"))
        await lab.end()
    assert not differences(lab_directory, "vda")


@pytest.mark.parametrize("at_bound", ["throttle", "fall-behind"])
async def test_what_the_standby_lacks_is_no_older_than_the_bound(lab_directory: Path, at_bound: str) -> None:
    lag_s = 2.0
    pieces = Pieces(pause_s=0.05)
    async with lagging_lab(lab_directory, lag_bytes=64 * MIB, lag_s=lag_s, at_bound=at_bound) as lab:
        async with writing(lab, pieces, writers=1):
            mark = lab.mark()
            await set_disk(lab, "hang")
            hung_s = trio.current_time()
            if at_bound == "throttle":
                await pieces.until_still()
                assert lag_s - 0.1 < pieces.last_s - hung_s < lag_s + TICK_S + BUSY_S
                assert (await lab.guest())["in_sync"] == ["a", "b"]
            else:
                behind = await lab.wait_event("behind", host="a", since=mark)
                assert lag_s < behind["lag_ns"] / 1e9 < lag_s + TICK_S + BUSY_S
                await pieces.until(20)
                assert pieces.longest_s < STILL_S + BUSY_S
                assert (await lab.guest())["in_sync"] == ["a"]
            await set_disk(lab, "ok")
            await pieces.until(20)
        await lab.wait_in_sync()
        await lab.end()
    assert not differences(lab_directory, "vda")
    assert not pieces.missing(lab_directory / "a" / "vda.img")
