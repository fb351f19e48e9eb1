"""Hostile sessions for a bounded time, beside a client that works on and a pair that stays in sync.

``PAIRSYNC_HOSTILE_S=60`` makes it the minute that a release wants.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.e2e.strangers import Attack, Capture, LinkStrangers, NbdStrangers, Toll, attack_until, hold_idle

from pairsync.core.units import MIB
from pairsync.node.labfile import nbd_socket_of
from pairsync.testing.lab import RunningLab, differences, running_lab
from pairsync.testing.ledger import BLOCK, Ledger
from pairsync.testing.programs import run_program

HOSTILE_S = float(os.environ.get("PAIRSYNC_HOSTILE_S", "3"))
SIZE = {"vda": 16 * MIB}
ATTACKERS = 12
IDLE_LINKS = 500
IDLE_CLIENTS = 1000
DESCRIPTORS = 4096
GROWTH_BYTES = 40 * MIB
"""Memory that a host may keep: buffers of its own, and what it is not worth giving back."""
SLOWEST_S = 10.0
"""The longest that a write of the healthy client may take, on a machine that is busy with strangers too."""


@pytest.fixture(autouse=True)
def many_descriptors() -> Iterator[None]:
    """Let this process open as many connections as the attacks want."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[0] < DESCRIPTORS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(DESCRIPTORS, before[1]), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def held(status: dict[str, Any]) -> dict[str, dict[str, int]]:
    return {name: host["process"] for name, host in status["hosts"].items()}


def given_back(before: dict[str, Any]) -> Callable[[dict[str, Any]], bool]:
    """Whether tasks, descriptors and memory are what they were."""

    def look(status: dict[str, Any]) -> bool:
        return all(
            now["tasks"] <= held(before)[name]["tasks"] + 2
            and now["descriptors"] <= held(before)[name]["descriptors"] + 2
            and now["resident_bytes"] <= held(before)[name]["resident_bytes"] + GROWTH_BYTES
            for name, now in held(status).items()
        )

    return look


class Siege:
    """Attackers, idle connections and one healthy client, for `HOSTILE_S` seconds."""

    def __init__(self, lab: RunningLab) -> None:
        self.lab = lab
        self.over = trio.Event()
        self.ledger = Ledger(31, first=4 * MIB // BLOCK, count=8 * MIB // BLOCK)

    async def work(self) -> None:
        """The healthy client."""
        async with await self.lab.connect() as client:
            assert await self.ledger.run(client, depth=8, stop=self.over.is_set), "the host hung up"
            await self.ledger.check(client)

    def attack(self, nursery: trio.Nursery, attacks: list[Attack], toll: Toll) -> None:
        """Start attackers."""
        for number in range(ATTACKERS):
            nursery.start_soon(attack_until, self.over.is_set, attacks, toll, number)


async def warm_up(lab: RunningLab) -> dict[str, Any]:
    """Have everything done once that costs memory once; what is held then."""
    ledger = Ledger(30, first=12 * MIB // BLOCK, count=MIB // BLOCK)
    async with await lab.connect() as client:
        assert await ledger.run(client, requests=500)
        for _ in range(4):
            await client.read(0, 8 * MIB)
    return await lab.status()


async def afterwards(lab: RunningLab, before: dict[str, Any]) -> None:
    """Everything has come back."""
    what = f"tasks, descriptors and memory come back to {held(before)}"
    after = await lab.wait_status(given_back(before), what, seconds=30)
    assert after["in_sync"]
    for host in after["hosts"].values():
        assert host["guest"]["link"]["half_open"] == 0


async def captured_streams(lab: RunningLab, port: int) -> list[bytes]:
    """What the dialing host sends when the pair connects anew and some data is written."""
    capture = Capture(port)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(capture.run)
        mark = lab.mark()
        await lab.cut()
        await lab.wait_event("peer-lost", host="a", since=mark)
        await lab.heal()
        await lab.wait_in_sync()
        async with await lab.connect() as client:
            await client.write(0, b"c" * 65536)
        nursery.cancel_scope.cancel()
    return capture.streams()


@pytest.mark.root
async def test_strangers_at_the_link_port_disturb_nobody(lab_directory: Path, tmp_path: Path) -> None:
    async with running_lab(lab_directory, SIZE) as lab:
        ports = {host: lab.link_address(host)[1] for host in ("a", "b")}
        streams = [await captured_streams(lab, port) for port in ports.values()]
        listening, captured = max(zip(ports.values(), streams, strict=True), key=lambda pair: len(pair[1]))
        assert len(captured) >= 2  # a control connection and a lane
        before = await warm_up(lab)
        mark = lab.mark()
        siege = Siege(lab)
        groups = [
            LinkStrangers(("127.0.0.1", port), source, captured, tmp_path, seed)
            for seed, (port, source) in enumerate(
                (p, s) for p in ports.values() for s in ("127.0.0.1", "127.0.0.2")
            )
        ]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(siege.work)
            for group in groups:
                siege.attack(nursery, group.attacks(), group.toll)
                nursery.start_soon(hold_idle, group.connect, IDLE_LINKS // 4, siege.over)
            await trio.sleep(HOSTILE_S)
            siege.over.set()
        assert not lab.seen("peer-lost", since=mark)
        assert not lab.seen("path", since=mark)
        assert not siege.ledger.errors
        assert siege.ledger.slowest_s < SLOWEST_S
        counts: dict[str, int] = {}
        for group in groups:
            assert not group.toll.told
            for name, count in group.toll.counts.items():
                counts[name] = counts.get(name, 0) + count
        assert set(counts) == {attack.__name__ for attack in groups[0].attacks()}
        await afterwards(lab, before)
        refused = (await lab.status())["hosts"]["a" if listening == ports["a"] else "b"]["guest"]["link"][
            "refused"
        ]
        assert sum(refused.values()) > 20
    assert not differences(lab_directory, "vda")


async def test_the_pair_finds_itself_again_amid_strangers(lab_directory: Path, tmp_path: Path) -> None:
    """The link is cut and mended, hosts are killed and started, while strangers occupy the port."""
    async with running_lab(lab_directory, SIZE) as lab:
        siege = Siege(lab)
        groups = [
            LinkStrangers(lab.link_address(host), source, [], tmp_path, 7)
            for host in ("a", "b")
            for source in ("127.0.0.1", "127.0.0.2")
        ]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(siege.work)
            for group in groups:
                nursery.start_soon(attack_until, siege.over.is_set, group.attacks(), group.toll, 1)
                nursery.start_soon(hold_idle, group.connect, 60, siege.over)
            for _ in range(2):
                mark = lab.mark()
                await lab.cut()
                await lab.wait_event("peer-lost", host="a", since=mark)
                await lab.heal()
                await lab.wait_in_sync()
                await lab.kill("b")
                await lab.start("b")
                await lab.wait_in_sync()
            siege.over.set()
        assert not siege.ledger.errors
    assert not differences(lab_directory, "vda")


@pytest.mark.tools("nbdinfo")
async def test_hostile_clients_disturb_nobody(lab_directory: Path) -> None:
    async with running_lab(lab_directory, SIZE) as lab:
        before = await warm_up(lab)
        mark = lab.mark()
        siege = Siege(lab)
        strangers = NbdStrangers(nbd_socket_of(lab_directory, "a"), 41)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(siege.work)
            siege.attack(nursery, strangers.attacks(), strangers.toll)
            nursery.start_soon(hold_idle, strangers.connect, IDLE_CLIENTS, siege.over)
            with trio.move_on_after(HOSTILE_S):
                while True:  # newcomers find the door open all the while
                    await run_program("nbdinfo", lab.uri(), seconds=20)
                    await trio.sleep(0.2)
            siege.over.set()
        assert set(strangers.toll.counts) == {attack.__name__ for attack in strangers.attacks()}
        assert not strangers.toll.told
        assert not siege.ledger.errors
        assert siege.ledger.slowest_s < SLOWEST_S
        assert not lab.seen("peer-lost", since=mark)
        async with await lab.connect() as client:  # nothing of a half write was applied
            assert b"\xee" not in await client.read(0, 65536)
        await afterwards(lab, before)
    assert not differences(lab_directory, "vda")
