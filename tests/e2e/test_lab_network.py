"""A lab in network namespaces: cables are pulled for real, and nothing of it outlives the lab."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import trio
from tests.conftest import namespaces_in_use

from pairsync.core.units import MIB
from pairsync.testing.lab import RunningLab, differences, running_lab
from pairsync.testing.programs import run_program

ONE = {"vda": 8 * MIB}
NAMESPACES = ("--network=namespaces", "--failover=2")
FAILOVER_S = 2.0

pytestmark = [pytest.mark.root, pytest.mark.tools("ip")]


def namespaces_of(lab: RunningLab) -> set[str]:
    pids = [host["pid"] for host in lab.ready["hosts"].values()] + [lab.ready["witness"]["pid"]]
    return {os.readlink(f"/proc/{pid}/ns/net") for pid in pids}


async def carrier(lab: RunningLab, host: str, cable: str) -> bool:
    """Whether a host's end of a cable has one."""
    words = ("nsenter", f"--net=/proc/{await lab.pid(host)}/ns/net", "ip", "-json", "link", "show", cable)
    (link,) = json.loads((await run_program(*words)).stdout)
    return "NO-CARRIER" not in link["flags"]


async def test_a_cable_is_pulled_and_whoever_is_at_its_ends_finds_out(lab_directory: Path) -> None:
    async with running_lab(lab_directory, ONE, more=NAMESPACES) as lab:
        assert set(lab.ready) == {"event", "hosts", "witness"}
        assert [lab.link_address(host)[0] for host in "ab"] == ["10.231.1.1", "10.231.1.2"]
        assert lab.ready["witness"]["address"].startswith("10.231.2.2:")
        assert len(namespaces_of(lab)) == 3
        mark = lab.mark()
        await lab.command("cut", "a-b")
        lost = await lab.wait_event("peer-lost", host="a", since=mark)
        assert "silent for" in lost["text"]
        assert [await carrier(lab, host, "a-b") for host in "ab"] == [False, False]
        assert [await carrier(lab, host, f"{host}-witness") for host in "ab"] == [True, True]
        status = await lab.status()
        assert status["cut"] == ["a-b"]
        assert not status["hosts"]["a"]["guest"]["link"]["cut"]  # nobody has told it
        await lab.kill("b")
        await lab.start("b")  # a cable that was pulled is still pulled
        async with await lab.connect() as client:
            await client.write(0, b"alone" * 1000)
        await lab.wait_event("alone", host="a", since=mark)
        assert not lab.seen("connected", since=mark, connected=True)
        await lab.command("heal", "a-b")
        await lab.wait_in_sync()
        assert (await lab.status())["cut"] == []
        await lab.cut("a-b")
        await lab.cut("a-witness")
        await lab.wait_active("b")  # a is alone with itself
        await lab.heal("all")
        await lab.wait_in_sync()
    assert not differences(lab_directory, "vda")


async def test_labs_beside_each_other_and_one_whose_supervisor_is_killed(lab_directory: Path) -> None:
    other = lab_directory.with_name("other")
    async with (
        running_lab(lab_directory, ONE, more=NAMESPACES) as lab,
        running_lab(other, ONE, more=NAMESPACES) as neighbour,
    ):
        assert len(namespaces_of(lab) | namespaces_of(neighbour)) == 6
        async with await lab.connect() as client:
            await client.write(0, b"x" * 4096)
            await lab.cut()
            own = namespaces_of(lab)
            await lab.kill_supervisor()
        assert not own & namespaces_in_use()
        assert (await neighbour.status())["cut"] == []
        await neighbour.wait_in_sync()
    async with running_lab(lab_directory) as lab, await lab.connect() as client:  # as it was, and not cut
        assert len(namespaces_of(lab)) == 3
        assert await client.read(0, 4096) == b"x" * 4096
    assert not differences(lab_directory, "vda")
    async with running_lab(lab_directory, more=["--network=loopback"]) as lab:
        assert namespaces_of(lab) == {os.readlink("/proc/self/ns/net")}
        assert lab.ready["witness"]["address"].startswith("127.0.0.1:")
    assert not differences(lab_directory, "vda")


@pytest.mark.tools("etcd")
async def test_an_etcd_is_behind_cables_too(lab_directory: Path) -> None:
    async with running_lab(lab_directory, ONE, more=[*NAMESPACES, "--witness=etcd"]) as lab:
        assert lab.ready["witness"]["address"].startswith("10.231.2.2:")
        assert len(namespaces_of(lab)) == 3
        await lab.cut("a-witness")
        await lab.wait_status(lambda status: bool(status["guests"]["lab"]["sole"]), "the two agree on it")
        await lab.heal("a-witness")
        await lab.wait_status(lambda status: not status["guests"]["lab"]["sole"], "three voters again")
        await lab.kill("a")
        await lab.wait_active("b")


async def test_without_a_witness_there_is_one_cable(lab_directory: Path) -> None:
    async with running_lab(lab_directory, ONE, more=[*NAMESPACES, "--witness=none"]) as lab:
        await lab.command("cut", "a-witness", status=1)
        await lab.cut("all")
        assert (await lab.status())["cut"] == ["a-b"]
        await trio.sleep(FAILOVER_S)
        assert (await lab.guest())["active"] == "a"
        await lab.heal()
        await lab.wait_in_sync()
