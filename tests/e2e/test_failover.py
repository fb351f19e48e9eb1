"""Failover with real processes: two hosts, their guards, a witness, and a client that notices nothing.

Every single failure and every pair of them is in the failure table; here are the stories that a user meets.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from pairsync.node.etcdmain import etcd_endpoint
from pairsync.testing.lab import RunningLab, running_lab
from pairsync.testing.nbd_client import NbdClient

FAILOVER_S = 2.0
HANG_S = 5.0  # the deadline of an operation of a disk, as it is by default
BLOCK = 4096
BLOCKS = 512
MIB = 1 << 20

pytestmark = pytest.mark.slow


class Writer:
    """A client at one door that writes block after block and remembers what was acknowledged."""

    def __init__(self, client: NbdClient, first: int = 0) -> None:
        self.client = client
        self.first = first  # of the blocks that it has for itself
        self.acknowledged: dict[int, bytes] = {}
        self.longest_s = 0.0  # that a write has taken

    async def run(self) -> None:
        chance = random.Random(11)
        while True:
            block = self.first + chance.randrange(BLOCKS)
            content = chance.randbytes(BLOCK)
            began = time.monotonic()
            self.acknowledged.pop(block, None)  # until it is answered either may be there
            await self.client.write(block * BLOCK, content)
            self.acknowledged[block] = content
            self.longest_s = max(self.longest_s, time.monotonic() - began)

    async def check(self, client: NbdClient) -> None:
        """All that was acknowledged is there."""
        for block, content in self.acknowledged.items():
            assert await client.read(block * BLOCK, BLOCK) == content, f"block {block} was lost"


@asynccontextmanager
async def pair(directory: Path, witness: str = "builtin", *options: str) -> AsyncIterator[RunningLab]:
    more = [f"--failover={FAILOVER_S:g}", f"--witness={witness}", *options]
    async with running_lab(directory, {"vda": 8 * MIB}, more=more) as lab:
        assert lab.ready["witness"]["address"].startswith("127.0.0.1:")
        yield lab


async def test_the_active_host_is_killed_and_a_client_of_the_other_one_writes_on(tmp_path: Path) -> None:
    async with pair(tmp_path / "lab") as lab:
        writer = Writer(await lab.connect(host="b"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.run)
            await trio.sleep(0.3)
            await lab.kill("a")
            await lab.wait_active("b")
            await trio.sleep(0.3)
            nursery.cancel_scope.cancel()
        await writer.client.aclose()
        assert writer.longest_s < 2 * FAILOVER_S
        guest = await lab.guest()
        assert (guest["term"], guest["in_sync"], guest["survives"]["redundant"]) == (2, ["b"], False)
        await lab.start("a")
        await lab.wait_in_sync()
        guest = await lab.guest()
        assert (guest["active"], guest["in_sync"]) == ("b", ["a", "b"])
        fresh = await lab.connect(host="a")
        await writer.check(fresh)
        await fresh.aclose()


async def test_a_guest_goes_home_once_that_host_is_in_sync_again(tmp_path: Path) -> None:
    async with pair(tmp_path / "lab", "builtin", "--home=a") as lab:
        writer = Writer(await lab.connect(host="b"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.run)
            await lab.kill("a")
            await lab.wait_active("b")
            await lab.start("a")
            await lab.wait_in_sync()
            assert (await lab.guest())["active"] == "b"  # not at once
            await lab.wait_active("a")
            await lab.wait_in_sync()
            await trio.sleep(0.3)
            nursery.cancel_scope.cancel()
        await writer.client.aclose()
        assert (await lab.guest())["term"] == 3
        fresh = await lab.connect(host="a")
        await writer.check(fresh)
        await fresh.aclose()


async def test_an_active_host_that_stands_still_is_replaced_and_killed_by_its_guard(tmp_path: Path) -> None:
    async with pair(tmp_path / "lab") as lab:
        before = await lab.pid("a")
        mark = lab.mark()
        await lab.request("pause", host="a")
        await lab.wait_active("b")
        await lab.wait_event("host-ended", host="a", code=-9, since=mark)
        await lab.wait_in_sync()
        assert await lab.pid("a") != before  # it was started again, and is the standby
        assert (await lab.guest())["active"] == "b"


def guards_of(pid: int) -> list[int]:
    """The guard processes of a host process."""
    told = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]  # of each thread
    return [each for each in map(int, " ".join(told).split()) if b"pairsync.node.guard" in _words(each)]


def _words(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


async def test_a_guard_that_is_killed_holds_the_guest_up_for_a_moment_only(tmp_path: Path) -> None:
    async with pair(tmp_path / "lab") as lab:
        host = await lab.pid("a")
        (guard,) = guards_of(host)
        writer = Writer(await lab.connect(host="a"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.run)
            await trio.sleep(0.2)
            os.kill(guard, signal.SIGKILL)
            await trio.sleep(1.5)
            nursery.cancel_scope.cancel()
        await writer.client.aclose()
        assert writer.longest_s < FAILOVER_S
        assert (await lab.guest())["active"] == "a"
        assert await lab.pid("a") == host
        assert guard not in guards_of(host)
        fresh = await lab.connect(host="a")
        await writer.check(fresh)
        await fresh.aclose()


async def test_both_hosts_are_active_for_different_guests_and_one_machine_is_rebooted(tmp_path: Path) -> None:
    async with pair(tmp_path / "one") as one, pair(tmp_path / "two") as two:
        await two.request("move")
        await two.wait_active("b")
        writers = [Writer(await lab.connect(host="b")) for lab in (one, two)]
        async with trio.open_nursery() as nursery:
            for writer in writers:
                nursery.start_soon(writer.run)
            assert [(await lab.guest())["active"] for lab in (one, two)] == ["a", "b"]
            await trio.sleep(0.3)
            for lab in (one, two):  # all that runs on that machine is gone
                await lab.kill("a")
            for lab in (one, two):
                await lab.wait_active("b")
                await lab.start("a")
            for lab in (one, two):
                await lab.wait_in_sync()
            await one.request("move")
            await one.wait_active("a")
            assert (await two.guest())["active"] == "b"
            await trio.sleep(0.3)
            nursery.cancel_scope.cancel()
        for lab, writer in zip((one, two), writers, strict=True):
            await writer.client.aclose()
            fresh = await lab.connect(host="b")
            await writer.check(fresh)
            await fresh.aclose()
        assert writers[0].longest_s < 2 * FAILOVER_S
        assert writers[1].longest_s < FAILOVER_S  # it only lost its standby


AGENT = """#!/bin/sh
# A stand-in for a power switch: it kills the process whose number stands in the file.
while IFS= read -r line; do
    case "$line" in action=*) action=${line#action=} ;; esac
done
case "$action" in
metadata) echo '<action name="on"/><action name="off"/><action name="status"/>' ;;
off) kill -9 "$(cat HERE/pid)" && echo off > HERE/power ;;
on) echo on > HERE/power ;;
status) [ "$(cat HERE/power)" = on ] || exit 2 ;;
esac
"""


async def test_a_standby_has_a_silent_active_host_turned_off_and_takes_over(tmp_path: Path) -> None:
    async with running_lab(tmp_path / "lab", {"vda": 8 * MIB}, more=["--failover=10"]) as lab:
        await lab.kill("b")
        agent = tmp_path / "agent"
        agent.write_text(AGENT.replace("HERE", str(tmp_path)))
        agent.chmod(0o700)
        (tmp_path / "power").write_text("on")
        (tmp_path / "pid").write_text(str(await lab.pid("a")))
        with (lab.directory / "b" / "host.toml").open("a") as file:
            file.write(f'[fence]\ncommand = ["{agent}"]\nturn_on = false\n')
        await lab.start("b")
        await lab.wait_in_sync()
        await lab.wait_event("fence", host="b", state="ready")
        async with await lab.connect(host="a") as client:
            await client.write(0, b"x" * BLOCK)
            mark = lab.mark()
            await lab.cut("a-b")
            await lab.cut("a-witness")
            await lab.wait_event("host-ended", host="a", code=-9, since=mark)
        await lab.wait_event("fence", host="b", since=mark, state="proven")
        await lab.wait_active("b")
        async with await lab.connect(host="b") as fresh:
            assert await fresh.read(0, BLOCK) == b"x" * BLOCK
        assert (await lab.status())["hosts"]["b"]["guest"]["fence"]["state"] == "proven"
        for cable in ("a-b", "a-witness"):
            await lab.heal(cable)
        await lab.wait_in_sync()
        assert (await lab.guest())["active"] == "b"


async def test_a_planned_move_and_a_cut_lose_nothing(tmp_path: Path) -> None:
    async with pair(tmp_path / "lab") as lab:
        writer = Writer(await lab.connect(host="a"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.run)
            await lab.request("move")
            await lab.wait_active("b")
            await lab.wait_in_sync()
            await lab.cut("a-b")
            await trio.sleep(2 * FAILOVER_S)
            assert (await lab.guest())["active"] == "b"  # a lost path alone never moves a guest
            await lab.heal("a-b")
            await lab.wait_in_sync()
            await trio.sleep(0.2)
            nursery.cancel_scope.cancel()
        await writer.client.aclose()
        fresh = await lab.connect(host="b")
        await writer.check(fresh)
        await fresh.aclose()
    checked = await lab.command("check")
    assert b"equal" in checked.stdout


async def test_the_active_hosts_disk_fails_hangs_fills_up_and_is_replaced(tmp_path: Path) -> None:
    async with pair(tmp_path / "lab") as lab:
        writers = [Writer(await lab.connect(host="a")), Writer(await lab.connect(host="b"), BLOCKS)]
        active, other = "a", "b"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writers[0].run)
            nursery.start_soon(writers[1].run)
            for what in ("fail", "hang", "full", "replace"):
                await lab.request("disk", host=active, volume="vda", disk=what)
                if what == "full":  # what needs no new space goes on
                    fresh = await lab.connect(host=active)
                    await fresh.write(6 * MIB, b"x" * BLOCK)
                    await fresh.aclose()
                await lab.wait_active(other, HANG_S + 4 * FAILOVER_S)
                if what != "replace":
                    await lab.request("disk", host=active, volume="vda", disk="ok")
                await lab.wait_in_sync()
                active, other = other, active
            await trio.sleep(0.3)
            nursery.cancel_scope.cancel()
        for writer in writers:
            assert writer.acknowledged
            assert writer.longest_s < HANG_S + 2 * FAILOVER_S
            await writer.client.aclose()
        fresh = await lab.connect(host=other)
        for writer in writers:
            await writer.check(fresh)
        await fresh.aclose()
    checked = await lab.command("check")
    assert b"equal" in checked.stdout


@pytest.mark.tools("etcd")
async def test_an_etcd_cluster_is_as_good_a_witness(tmp_path: Path) -> None:
    async with pair(tmp_path / "lab", "etcd") as lab:
        port = int(lab.ready["witness"]["address"].rpartition(":")[2])
        assert etcd_endpoint(f"127.0.0.1:{port}") in (tmp_path / "lab" / "a" / "host.toml").read_text()
        await lab.kill("a")
        await lab.wait_active("b")
        await lab.kill("witness")
        await lab.start("a")
        await trio.sleep(FAILOVER_S)
        guest = await lab.guest()
        assert (guest["active"], guest["sole"]) == ("b", True)  # the grant outlives its witness
        await lab.start("witness")
        await lab.wait_status(lambda status: not status["guests"]["lab"]["sole"], "all three decide again")
        await lab.wait_in_sync()
