"""A host that is started with a disk that does not work comes up, votes, and comes back by itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.e2e.test_failover import HANG_S, MIB, Writer, pair

from pairsync.testing.lab import RunningLab, differences

BACK_S = 30.0
"""Some seconds until the disk is opened anew, and until the owner asks again; on a machine that is busy."""

SERVED_S = HANG_S + 10.0
"""The deadline of opening, and what it takes then until the other host owns."""

pytestmark = pytest.mark.slow


class Fault:
    """Of the disk of a host that is down, and its repair."""

    def __init__(self, lab: RunningLab, host: str, what: str) -> None:
        self._lab, self._host, self._what = lab, host, what
        self._image = lab.path(host)
        self._metadata = self._image.with_name(f"{self._image.name}.pairsync")
        self._away = self._image.with_name("away")

    async def begin(self) -> None:
        if self._what in {"fail", "hang"}:
            await self._lab.request("disk", host=self._host, volume="vda", disk=self._what)
        elif self._what == "missing":
            self._image.rename(self._away)
        elif self._what == "too small":
            os.truncate(self._image, MIB)
        else:
            self._metadata.rename(self._away)
            self._metadata.write_bytes(bytes(self._away.stat().st_size))

    async def mend(self) -> None:
        if self._what == "missing":
            self._away.rename(self._image)
        elif self._what == "damaged":
            self._away.replace(self._metadata)
        else:  # who has lost data needs an empty disk
            how = "replace" if self._what == "too small" else "ok"
            await self._lab.request("disk", host=self._host, volume="vda", disk=how)


REASONS = {
    "fail": "Input/output error",
    "hang": "the disk hangs while it is opened",
    "missing": "No such file or directory",
    "too small": "bytes",
    "damaged": "neither copy of the superblock",
}


async def volume_of(lab: RunningLab, host: str) -> dict[str, Any]:
    volume: dict[str, Any] = (await lab.status())["hosts"][host]["guest"]["volumes"][0]
    return volume


@pytest.mark.parametrize("what", REASONS)
async def test_an_owner_that_is_started_without_its_disk_leaves_the_guest_to_the_other_host(
    tmp_path: Path, what: str
) -> None:
    """It is back before the other one has taken over: by its memory it is the owner, and its heartbeats would
    keep the other one from that for ever."""
    async with pair(tmp_path / "lab") as lab:
        writer = Writer(await lab.connect(host="b"))
        fault = Fault(lab, "a", what)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.run)
            await trio.sleep(0.3)
            await lab.kill("a")
            await fault.begin()
            await lab.start("a")
            pid = await lab.pid("a")
            with trio.fail_after(SERVED_S):
                await lab.wait_active("b")
                async with await lab.connect(host="b") as other:
                    await other.write(4 * MIB, b"z" * 4096)
            volume = await volume_of(lab, "a")
            assert volume["state"] == "failed"
            assert REASONS[what] in volume["failed"]
            assert (await lab.guest())["in_sync"] == ["b"]
            await fault.mend()
            await lab.wait_in_sync(BACK_S)
            nursery.cancel_scope.cancel()
        await writer.client.aclose()
        assert await lab.pid("a") == pid
        await lab.request("move", host="a")
        await lab.wait_active("a")
        fresh = await lab.connect(host="a")
        await writer.check(fresh)
        assert await fresh.read(4 * MIB, 4096) == b"z" * 4096
        await fresh.aclose()
        await lab.end()
    assert not differences(tmp_path / "lab", "vda")


async def test_a_standby_that_is_started_without_its_disk_votes(tmp_path: Path) -> None:
    """With it the owner outlives its witness; and while the disk hangs it may not own, whoever asks."""
    async with pair(tmp_path / "lab") as lab, await lab.connect(host="a") as client:
        await lab.kill("b")
        await lab.request("disk", host="b", volume="vda", disk="hang")
        await lab.start("b")
        await client.write(0, b"x" * 4096)
        assert (await lab.guest())["in_sync"] == ["a"]
        moved = await lab.command("move", status=1)
        assert b"the other host is not" in moved.stderr
        await lab.kill("witness")
        await client.write(4096, b"y" * 4096)
        await lab.request("disk", host="b", volume="vda", disk="replace")
        await lab.start("witness")
        await lab.wait_in_sync(BACK_S)
        await lab.kill("a")
        await lab.wait_active("b")
        async with await lab.connect(host="b") as other:
            assert await other.read(0, 8192) == b"x" * 4096 + b"y" * 4096
        await lab.start("a")
        await lab.wait_in_sync(BACK_S)
