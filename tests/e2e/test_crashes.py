"""Hosts that are killed while a client writes: nothing that was acknowledged may be gone, or differ."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from tests.e2e.conftest import STAYS

from pairsync.core.tracker import WINDOW_BYTES_DEFAULT
from pairsync.core.units import MIB
from pairsync.nbd import constants as c
from pairsync.testing.lab import RunningLab, differences, running_lab
from pairsync.testing.ledger import BLOCK, Ledger

SIZE = {"vda": 128 * MIB}
BLOCKS = 128 * MIB // BLOCK

SLOWEST_S = 20.0
"""A write may wait for the silence limit of the link (2 s); the rest is for a busy machine."""


async def write_until_the_end(lab: RunningLab, ledger: Ledger) -> None:
    async with await lab.connect() as client:
        assert not await ledger.run(client), "the server should have hung up"


def under_way(status: dict[str, Any]) -> bool:
    """Whether a resync has copied something (or everything: it was quick)."""
    guest = status["hosts"]["a"]["guest"]
    fraction = None if guest is None else guest["volumes"][0]["resync_fraction"]
    return status["in_sync"] or (fraction is not None and fraction > 0.05)


async def test_the_active_host_is_killed_under_load(lab_directory: Path) -> None:
    """Several times, also together with the standby, and while it is being resynced."""
    ledger = Ledger(1, count=BLOCKS, blocks_max=64)
    async with running_lab(lab_directory, SIZE, more=STAYS) as lab:
        for victims in ("a", "ab", "ba"):
            mark = lab.mark()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write_until_the_end, lab, ledger)
                await ledger.wait_acknowledged(750)  # 90 MiB and more: beyond the window
                for victim in victims:
                    await lab.kill(victim)
            for victim in victims:
                await lab.start(victim)
            async with await lab.connect() as client:
                await ledger.check(client)
                resync = await lab.wait_event("resync", host="a", since=mark)
                assert resync["mode"] == "incremental"
                assert 0 < resync["blocks"] * BLOCK <= WINDOW_BYTES_DEFAULT
                assert await ledger.run(client, requests=200)  # it serves on meanwhile
        await lab.wait_in_sync()
        async with await lab.connect() as client:
            await ledger.check(client)
        paths = [lab.path(host) for host in ("a", "b")]
    assert not ledger.errors
    for path in paths:
        ledger.check_file(path)
    assert not differences(lab_directory, "vda")


async def test_resyncs_are_interrupted_anywhere(lab_directory: Path) -> None:
    """Either host is killed, or the link cut, in the middle of a resync; the next one goes on from there."""
    ledger = Ledger(2, count=BLOCKS, blocks_max=128)

    async with running_lab(lab_directory, SIZE, more=STAYS) as lab:
        for what in ("b", "cut", "a", "ab"):
            await lab.kill("b")
            async with await lab.connect() as client:
                assert await ledger.run(client, requests=300)
            mark = lab.mark()
            await lab.start("b")
            first = await lab.wait_event("resync", host="a", since=mark)
            assert first["mode"] == "incremental"
            await lab.wait_status(under_way, "a resync that is under way")
            mark = lab.mark()
            if what == "cut":
                await lab.cut()
                await lab.wait_event("peer-lost", host="a", since=mark)
                await lab.heal()
            else:
                for victim in what:
                    await lab.kill(victim)
                for victim in what:
                    await lab.start(victim)
            await lab.wait_event("connected", host="a", since=mark)
            for second in lab.seen("resync", host="a", since=mark):
                assert second["mode"] == "incremental"
                assert second["blocks"] <= first["blocks"]
            async with await lab.connect() as client:
                await ledger.check(client)
            await lab.wait_in_sync()
        paths = [lab.path(host) for host in ("a", "b")]
    for path in paths:
        ledger.check_file(path)
    assert not differences(lab_directory, "vda")


@pytest.mark.parametrize("level", ["sync", "async"])
async def test_hosts_that_stand_still_hold_nobody_up_for_long(lab_directory: Path, level: str) -> None:
    """SIGSTOP, then SIGCONT: to the other host it is gone for a while; to itself no time has passed."""
    ledger = Ledger(4, count=BLOCKS, blocks_max=64)
    over = trio.Event()
    async with running_lab(lab_directory, SIZE, level=level) as lab:

        async def work() -> None:
            async with await lab.connect() as client:
                assert await ledger.run(client, depth=32, stop=over.is_set), "the host hung up"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            await ledger.wait_acknowledged(200)
            for host, other in (("b", "a"), ("a", "b")):
                mark = lab.mark()
                pid = await lab.pid(host)
                os.kill(pid, signal.SIGSTOP)
                try:
                    await lab.wait_event("peer-lost", host=other, since=mark)
                    if host == "b":
                        await ledger.wait_acknowledged(1000)  # far more than may be in flight
                finally:
                    os.kill(pid, signal.SIGCONT)
                await lab.wait_event("peer-lost", host=host, since=mark)
                await lab.wait_event("in-sync", host="a", since=mark)
            over.set()
        await lab.wait_in_sync()
        assert not ledger.errors
        assert ledger.slowest_s < SLOWEST_S
        paths = [lab.path(host) for host in ("a", "b")]
    for path in paths:
        ledger.check_file(path)
    assert not differences(lab_directory, "vda")


async def test_a_client_that_dies_in_mid_write_leaves_a_whole_volume(lab_directory: Path) -> None:
    async with running_lab(lab_directory, {"vda": 16 * MIB}) as lab:
        async with await lab.connect() as client:
            await client.write(0, b"\x01" * (4 * MIB))
        for cut_at in (0, 1, 27, 28, 29, 4096, 1 << 20, (4 << 20) + 27):
            request = client.request_bytes(c.CMD_WRITE, 0, 4 * MIB, payload=b"\x02" * (4 * MIB))
            dying = await lab.connect()
            await dying.send(request[:cut_at])
            await dying.aclose()
        for _ in range(20):  # whole requests whose answers nobody takes
            dying = await lab.connect()
            for index in range(8):
                await dying.request(c.CMD_WRITE, (8 + index % 8) * MIB, MIB, payload=b"\x03" * MIB)
            for _ in range(8):
                await dying.request(c.CMD_READ, 0, MIB)
            await dying.aclose()
        async with await lab.connect() as client:
            assert await client.read(0, 4 * MIB) == b"\x01" * (4 * MIB)
            rest = await client.read(8 * MIB, 8 * MIB)
            assert set(rest) <= {0, 3}
        pid = await lab.pid("a")
        await lab.wait_status(lambda _: len(os.listdir(f"/proc/{pid}/fd")) < 64, "descriptors given back")
    assert not differences(lab_directory, "vda")


@pytest.mark.parametrize("victims", ["b", "a", "ba"])
async def test_a_first_sync_is_interrupted_anywhere(lab_directory: Path, victims: str) -> None:
    """A standby that is half overwritten is never taken for whole, whatever is killed."""
    content = Random(3).randbytes(SIZE["vda"])
    for host in ("a", "b"):
        (lab_directory / host).mkdir(parents=True)
    (lab_directory / "a" / "vda.img").write_bytes(content)
    async with running_lab(lab_directory, SIZE, in_sync=False) as lab:
        await lab.wait_event("resync", host="a")
        await lab.wait_status(under_way, "a resync that is under way")
        for victim in victims:
            await lab.kill(victim)
        for victim in victims:
            await lab.start(victim)
        await lab.wait_in_sync()
    for host in ("a", "b"):
        assert (lab_directory / host / "vda.img").read_bytes() == content
