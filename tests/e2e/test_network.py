"""Two hosts in network namespaces with two cables between them, which are unplugged for real.

The files are those that ``pairsync host init`` makes, the processes ``pairsync host run``.  All the while fio
verifies what it wrote, and a client counts every answer: none is an error, none is given twice.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from pairsync.core.units import MIB
from pairsync.node.control import ask
from pairsync.node.namespaces import Cable, Namespaces, open_namespaces
from pairsync.testing.ledger import BLOCK, Ledger
from pairsync.testing.nbd_client import NbdClient
from pairsync.testing.programs import EventStream, pairsync_command, run_program, running_service

FIO_BYTES = 12 * MIB
LEDGER_BLOCKS = 4 * MIB // BLOCK
SIZE = FIO_BYTES + 4 * MIB

ALONE_S = 20.0
"""A write may wait for the silence limit of the link (2 s); the rest is for a busy machine."""


CABLES = [
    Cable(f"cable{number}", {"a": f"10.231.{number}.1/24", "b": f"10.231.{number}.2/24"}) for number in (1, 2)
]


@dataclass
class Site:
    """One host: its namespace, its directory, its process."""

    name: str
    space: Namespaces
    directory: Path
    stream: EventStream | None = None

    @property
    def inside(self) -> tuple[str, ...]:
        """What enters the namespace."""
        return self.space.inside(self.name)

    async def link(self, cable: str, state: str) -> None:
        """Switch a cable off here, or on."""
        await run_program(*self.inside, "ip", "link", "set", cable, state)

    async def firewall(self, *words: str) -> None:
        """Change what the namespace lets through."""
        await run_program(*self.inside, "iptables", "--wait", *words)

    async def guest(self) -> dict[str, Any]:
        """What the host says of itself."""
        answer = await ask(self.directory / "control.sock", {"do": "status"})
        return dict(answer["guest"])


async def init(a: Site, b: Site) -> None:
    pair: list[str] = []
    for site, peer in ((a, 2), (b, 1)):
        words = ["host", "init", str(site.directory), "--name", site.name, f"--volume=vda={SIZE}", *pair]
        words += [f"--peer=10.231.{number}.{peer}" for number in (1, 2)]
        said = (await run_program(*pairsync_command(*words))).stdout.decode()
        if not pair:
            (pair_id,) = [line.split()[-1] for line in said.splitlines() if line.startswith("pair id")]
            pair = ["--pair", pair_id]
    for site, other in ((a, b), (b, a)):
        shutil.copy(other.directory / "identity" / "host.crt", site.directory / "peer.pem")


@asynccontextmanager
async def two_sites(directory: Path) -> AsyncIterator[tuple[Site, Site]]:
    """Both hosts up and in sync."""
    async with open_namespaces(CABLES) as space:
        a, b = (Site(name, space, directory / name) for name in "ab")
        await init(a, b)
        async with (
            running_service("host", "run", b.directory / "host.toml", before=b.inside) as b.stream,
            running_service("host", "run", a.directory / "host.toml", before=a.inside) as a.stream,
        ):
            await a.stream.wait_event("in-sync")
            yield a, b


async def verify(site: Site, over: Callable[[], bool]) -> None:
    """fio, again and again, until it is over."""
    passes = 0
    while not over():
        passes += 1
        words = [
            "fio", "--ioengine=nbd", f"--uri=nbd+unix:///vda?socket={site.directory / 'nbd.sock'}",
            "--name=job", f"--size={FIO_BYTES}", "--rw=randwrite", "--bsrange=4k-64k", "--iodepth=8",
            "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", f"--randseed={passes}",
        ]  # fmt: skip
        await run_program(*site.inside, *words)


async def count(site: Site, ledger: Ledger, over: Callable[[], bool]) -> None:
    """A client that never ends, and never gets an error."""
    async with await NbdClient.connect_unix(str(site.directory / "nbd.sock")) as client:
        await client.negotiate("vda")
        assert await ledger.run(client, depth=4, stop=over), "the host hung up"


async def wait_paths(site: Site, number: int) -> None:
    with trio.fail_after(60):
        while len((await site.guest())["link"]["paths"]) != number:
            await trio.sleep(0.05)


async def unplug_one_after_the_other(a: Site, b: Site, ledger: Ledger) -> None:
    assert a.stream is not None
    mark = a.stream.mark()
    await a.space.plug("cable1", up=False)
    await a.stream.wait_event("path", since=mark, up=False)
    await ledger.wait_acknowledged(50)
    status = await a.guest()
    assert status["in_sync"]
    assert len(status["link"]["paths"]) == 1
    assert not a.stream.seen("peer-lost", since=mark)  # one of two: replication runs on

    await a.space.plug("cable2", up=False)
    await a.stream.wait_event("alone", since=mark)
    await ledger.wait_acknowledged(50)

    mark = a.stream.mark()
    for cable in CABLES:
        await a.space.plug(cable.name, up=True)
    await a.stream.wait_event("in-sync", since=mark)
    await wait_paths(a, 2)

    mark = a.stream.mark()  # the other one first, and by a person who switches one end off
    await b.link("cable2", "down")
    await a.stream.wait_event("path", since=mark, up=False)
    await ledger.wait_acknowledged(50)
    assert not a.stream.seen("peer-lost", since=mark)
    await b.link("cable2", "up")
    await wait_paths(a, 2)


async def block_one_way(a: Site, b: Site, ledger: Ledger) -> None:
    """What one host says does not arrive, what the other one says does."""
    assert a.stream is not None
    for deaf in (b, a):
        mark = a.stream.mark()
        await deaf.firewall("-A", "INPUT", "-j", "DROP")
        await a.stream.wait_event("alone", since=mark)
        await ledger.wait_acknowledged(50)
        await deaf.firewall("-F", "INPUT")
        await a.stream.wait_event("in-sync", since=mark)
        await wait_paths(a, 2)
    mark = a.stream.mark()  # one way on one cable only: the other cable takes over
    await b.firewall("-A", "INPUT", "-i", "cable1", "-j", "DROP")
    await a.stream.wait_event("path", since=mark, up=False)
    await ledger.wait_acknowledged(50)
    assert not a.stream.seen("peer-lost", since=mark)
    assert (await a.guest())["in_sync"]
    await b.firewall("-F", "INPUT")


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.tools("ip", "iptables", "fio")
async def test_cables_are_unplugged_under_load(lab_directory: Path) -> None:
    ledger = Ledger(21, first=FIO_BYTES // BLOCK, count=LEDGER_BLOCKS)
    async with two_sites(lab_directory) as (a, b):
        over = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(verify, a, over.is_set)
            nursery.start_soon(count, a, ledger, over.is_set)
            await wait_paths(a, 2)
            await unplug_one_after_the_other(a, b, ledger)
            await block_one_way(a, b, ledger)
            over.set()
        await ask(a.directory / "control.sock", {"do": "wait-in-sync"})
        assert not ledger.errors
        assert ledger.slowest_s < ALONE_S
        # a long chain of failures left both with one history
        assert (await a.guest())["volumes"][0]["generation"] == (await b.guest())["volumes"][0]["generation"]
    images = [site.directory / "vda.img" for site in (a, b)]
    for image in images:
        ledger.check_file(image)
    await run_program("cmp", *images)
