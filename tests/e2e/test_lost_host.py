"""A host that is lost with all it had, and the new machine that takes its place: as the README says it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from tests.e2e.conftest import MakeDirectory

from pairsync.node.labfile import free_ports
from pairsync.testing.nbd_client import NbdClient
from pairsync.testing.programs import EventStream, pairsync_command, run_program

FAILOVER_S = 2.0
DEADLINE_S = 120.0
CERTIFICATE = Path("identity") / "host.crt"
CONTENT = bytes(range(256)) * 4096


class Site:
    """Two hosts and a witness in one directory, set up by the commands that a person types."""

    def __init__(self, directory: Path, nursery: trio.Nursery) -> None:
        self.directory = directory
        self._nursery = nursery
        self._ports = dict(zip(("a", "b", "w"), (f"127.0.0.1:{each}" for each in free_ports(3)), strict=True))
        self.running: dict[str, EventStream] = {}

    async def command(self, *words: str | Path) -> str:
        return (await run_program(*pairsync_command(*words))).stdout.decode()

    async def init_host(self, name: str, *more: str) -> str:
        """Make a host; what the command said."""
        peer = "b" if name == "a" else "a"
        words = [f"--listen={self._ports[name]}", f"--peer={self._ports[peer]}", f"--name={name}"]
        words += [f"--witness={self._ports['w']}", f"--failover={FAILOVER_S:g}", "--volume=vda=16M", *more]
        said = await self.command("host", "init", self.directory / name, *words)
        shutil.copy(self.directory / "w" / CERTIFICATE, self.directory / name / "witness.pem")
        return said

    def introduce(self) -> None:
        """Give each host the other's certificate."""
        for name, peer in (("a", "b"), ("b", "a")):
            shutil.copy(self.directory / peer / CERTIFICATE, self.directory / name / "peer.pem")

    async def init(self) -> str:
        """Make all three; the pair's id."""
        await self.command("witness", "init", self.directory / "w", f"--listen={self._ports['w']}")
        said = await self.init_host("a")
        (pair,) = [line.split()[-1] for line in said.splitlines() if line.startswith("pair id")]
        await self.init_host("b", f"--pair={pair}")
        self.introduce()
        await self.admit(pair)
        return pair

    async def admit(self, pair: str, *more: str) -> None:
        """Let the hosts as they are now use the witness."""
        hosts = [f"--host={self.directory / name / CERTIFICATE}" for name in ("a", "b")]
        await self.command("witness", "add", self.directory / "w", f"--pair={pair}", *hosts, *more)

    async def start(self, name: str) -> None:
        words = ("witness", "serve", self.directory / "w")
        argv = pairsync_command(*(words if name == "w" else ("host", "run", self.file(name))))
        process = await trio.lowlevel.open_process(argv, stdin=subprocess.DEVNULL, stdout=-1, stderr=-1)
        self.running[name] = EventStream(process)
        self._nursery.start_soon(self.running[name].follow)
        await self.running[name].wait_ready()

    async def end(self, name: str, how: signal.Signals) -> None:
        service = self.running.pop(name)
        service.process.send_signal(how)
        await service.wait_end()

    def file(self, name: str) -> Path:
        return self.directory / name / "host.toml"

    async def grant(self, name: str) -> dict[str, Any]:
        """What that host says was agreed, both being in sync."""
        await self.command("host", "wait", self.file(name), "--in-sync", "--timeout=60")
        grant: dict[str, Any] = json.loads(await self.command("host", "status", self.file(name), "--json"))[
            "grant"
        ]
        return grant

    async def client(self, name: str) -> NbdClient:
        client = await NbdClient.connect_unix(str(self.directory / name / "nbd.sock"))
        await client.negotiate("vda")
        return client


@asynccontextmanager
async def a_site(directory: Path) -> AsyncIterator[Site]:
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            site = Site(directory, nursery)
            try:
                yield site
            finally:
                with trio.CancelScope(shield=True):
                    for name in list(site.running):
                        await site.end(name, signal.SIGKILL)


async def test_a_new_machine_takes_the_place_of_a_lost_one(make_directory: MakeDirectory) -> None:
    async with a_site(make_directory()) as site:
        pair = await site.init()
        for name in ("w", "b", "a"):
            await site.start(name)
        await site.grant("a")
        async with await site.client("a") as client:
            await client.write(4096, CONTENT)
            await client.flush()

        await site.end("b", signal.SIGKILL)
        shutil.rmtree(site.directory / "b")
        await site.running["a"].wait_event("grant", sole=True)

        # a new machine: another key, empty disks, no memory of what was agreed
        await site.init_host("b", f"--pair={pair}")
        site.introduce()
        await site.admit(pair, "--replace")
        await site.start("b")
        await site.end("a", signal.SIGTERM)  # it reads the new certificate when it starts
        await site.start("a")
        grant = await site.grant("a")
        assert (grant["owner"], sorted(grant["in_sync"]), grant["sole"]) == ("here", ["here", "peer"], False)
        said = await site.command("host", "status", site.file("a"))
        assert "guest guest: runs here; in sync: this host and the other host" in said
        assert "any single failure is survived" in said
        assert "all well" in await site.command("host", "scrub", site.file("a"))

        # and it counts: it takes over, with all that was acknowledged
        await site.end("a", signal.SIGKILL)
        async with await site.client("b") as client:
            assert await client.read(4096, len(CONTENT)) == CONTENT
            await client.write(0, b"goes on")
