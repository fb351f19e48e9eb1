"""``pairsync lab disk``: a disk fails by command; the guest goes on, and the pair comes back by itself."""

from __future__ import annotations

import errno
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from pairsync.core.units import MIB
from pairsync.errors import PeerLost
from pairsync.nbd import constants as c
from pairsync.testing.lab import differences, running_lab
from pairsync.testing.ledger import BLOCK, Ledger
from pairsync.testing.nbd_client import NbdClient, NbdReplyError

SIZE = {"vda": 16 * MIB}
BLOCKS = 4 * MIB // BLOCK
HOLES = 8 * MIB  # from here on the ledger writes nothing

HANG_S = 5.0
"""The deadline of an operation, as it is by default."""

BACK_S = 30.0
"""Some seconds until a disk is opened anew, and until the active host asks again."""


def standby(status: dict[str, Any]) -> dict[str, Any]:
    volume: dict[str, Any] = status["hosts"]["b"]["guest"]["volumes"][0]
    return volume


async def hole(client: NbdClient) -> None:
    """A write that needs new space on both hosts."""
    done = await client.command(c.CMD_WRITE, HOLES, BLOCK, payload=b"\x5a" * BLOCK)
    assert not done.error


@pytest.mark.parametrize("directory_in", ["memory", "file system"])
async def test_the_standby_leaves_and_comes_back(
    lab_directory: Path, tmp_path: Path, directory_in: str
) -> None:
    directory = lab_directory if directory_in == "memory" else tmp_path / "lab"
    ledger = Ledger(31, count=BLOCKS)
    async with running_lab(directory, SIZE) as lab, await lab.connect() as client:
        assert await ledger.run(client, requests=100)
        for what, reason in (("fail", "EIO"), ("full", "ENOSPC"), ("hang", "the disk hangs")):
            mark = lab.mark()
            await lab.request("disk", host="b", volume="vda", disk=what)
            started = trio.current_time()
            await hole(client)
            assert await ledger.run(client, requests=50)
            await client.flush()
            assert trio.current_time() - started < HANG_S + 10  # a silent peer is given 20 s
            trouble = await lab.wait_event("trouble", host="b", since=mark)
            assert reason in trouble["text"]
            await lab.wait_event("peer-lost", host="a", since=mark)
            status = await lab.status()
            assert status["hosts"]["b"]["disks"] == {"vda": what}
            assert status["hosts"]["a"]["disks"] == {"vda": "ok"}
            if what != "full":  # that one tries again and again
                assert standby(status)["state"] == "failed"
                assert not status["in_sync"]
            await lab.request("disk", host="b", volume="vda", disk="ok")
            assert await ledger.run(client, requests=50)
            await lab.wait_in_sync(BACK_S)
            assert (await lab.status())["hosts"]["b"]["disks"] == {"vda": "ok"}
            await client.trim(HOLES, BLOCK)  # for the next round
        paths = [lab.path(host) for host in ("a", "b")]
        assert not ledger.errors
        await lab.end()
    for path in paths:
        ledger.check_file(path)
    assert not differences(directory, "vda")


async def test_an_empty_disk_is_filled_again(lab_directory: Path) -> None:
    ledger = Ledger(32, count=BLOCKS)
    async with running_lab(lab_directory, SIZE) as lab, await lab.connect() as client:
        assert await ledger.run(client, requests=100)
        pid = await lab.pid("b")
        mark = lab.mark()
        await lab.request("disk", host="b", volume="vda", disk="replace")  # while nothing is written
        await lab.wait_event("trouble", host="b", since=mark)
        resync = await lab.wait_event("resync", host="a", since=mark)
        assert resync["mode"] == "full"
        await lab.wait_in_sync(BACK_S)
        await lab.request("disk", host="b", volume="vda", disk="hang")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(ledger.run, client, requests=20))
            await lab.request("disk", host="b", volume="vda", disk="replace")
        await lab.wait_in_sync(BACK_S)
        assert await lab.pid("b") == pid
        await lab.kill("b")
        await lab.request("disk", host="b", volume="vda", disk="replace")  # of a host that is down
        await lab.start("b")
        await lab.wait_in_sync(BACK_S)
        assert await ledger.run(client, requests=50)
        paths = [lab.path(host) for host in ("a", "b")]
        await lab.end()
    for path in paths:
        ledger.check_file(path)
    assert not differences(lab_directory, "vda")


async def test_an_active_host_that_is_alone_tells_the_guest(lab_directory: Path) -> None:
    async with running_lab(lab_directory, SIZE) as lab:
        await lab.kill("b")
        async with await lab.connect() as client:
            await client.write(0, b"a" * BLOCK)
            await lab.request("disk", host="a", volume="vda", disk="full")
            done = await client.command(c.CMD_WRITE, HOLES, BLOCK, payload=b"b" * BLOCK)
            assert done.error == errno.ENOSPC
            await client.write(0, b"c" * BLOCK)
            await lab.request("disk", host="a", volume="vda", disk="fail")
            with pytest.raises(NbdReplyError):
                await client.read(0, BLOCK)
            await lab.request("disk", host="a", volume="vda", disk="ok")
            assert await client.read(0, BLOCK) == b"c" * BLOCK
            await lab.request("disk", host="a", volume="vda", disk="hang")
            with trio.move_on_after(0.3) as scope:
                await client.read(0, BLOCK)
            assert scope.cancelled_caught
            status = await lab.status()  # the host itself does not hang
            assert status["hosts"]["a"]["disks"] == {"vda": "hang"}
        await lab.request("disk", host="a", volume="vda", disk="ok")
        async with await lab.connect() as client:
            assert await client.read(0, BLOCK) == b"c" * BLOCK
            await client.flush()
        await lab.start("b")
        await lab.wait_in_sync(BACK_S)


async def test_the_command_and_what_the_status_shows(lab_directory: Path) -> None:
    async with running_lab(lab_directory, SIZE) as lab:
        said = await lab.command("disk", "b", "vda", "fail", "--json")
        assert json.loads(said.stdout) == {"host": "b", "volume": "vda", "disk": "fail"}
        assert "DISK made to fail by `lab disk`" in (await lab.command("status")).stdout.decode()
        await lab.kill("b")
        await lab.command("start", "b")  # it is still the same disk
        assert "Input/output error (injected)" in standby(await lab.status())["failed"]
        shown = (await lab.command("status")).stdout.decode()
        assert re.search(r"vda +unknown +failed +.*FAILED: .*Input/output error", shown)
        with pytest.raises(PeerLost, match="hung up"):  # as by a host that is starting: clients come again
            await lab.connect(host="b")
        failed = await lab.command("disk", "b", "vdb", "ok", status=1)
        assert failed.stderr == b"pairsync: no volume 'vdb'; there are vda\n"
        await lab.request("disk", host="b", volume="vda", disk="ok")
        await lab.wait_in_sync(BACK_S)
        await (await lab.connect(host="b")).aclose()


async def test_a_lab_ends_while_its_disks_hang(lab_directory: Path) -> None:
    async with running_lab(lab_directory, SIZE) as lab:
        for host in ("a", "b"):
            await lab.request("disk", host=host, volume="vda", disk="hang")
        async with await lab.connect() as client:
            with trio.move_on_after(0.3):
                await client.write(0, b"a" * BLOCK)
        started = trio.current_time()
        await lab.end()
        assert trio.current_time() - started < 20
