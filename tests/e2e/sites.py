"""Two real hosts and their witnesses, as a person sets them up by the commands of the README."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from pairsync.node.labfile import free_ports
from pairsync.node.labstatus import all_decide
from pairsync.testing.nbd_client import NbdClient
from pairsync.testing.programs import POLL_S, EventStream, pairsync_command, run_program

FAILOVER_S = 2.0
DEADLINE_S = 120.0
WITNESSES = {"w": "witness", "v": "alternate"}
"""By their directories: what hosts call them."""
CERTIFICATE = Path("identity") / "host.crt"


class Site:
    """Two hosts and their witnesses in one directory, set up by the commands that a person types."""

    def __init__(self, directory: Path, nursery: trio.Nursery, witnesses: Sequence[str]) -> None:
        """``witnesses``: of `WITNESSES`, the preferred one first."""
        self.directory = directory
        self.witnesses = witnesses
        self._nursery = nursery
        names = ("a", "b", *witnesses)
        ports = free_ports(len(names))
        self._ports = {name: f"127.0.0.1:{port}" for name, port in zip(names, ports, strict=True)}
        self.running: dict[str, EventStream] = {}

    async def command(self, *words: str | Path) -> str:
        return (await run_program(*pairsync_command(*words))).stdout.decode()

    async def init_host(self, name: str, *more: str) -> str:
        """Make a host; what the command said."""
        peer = "b" if name == "a" else "a"
        words = [f"--listen={self._ports[name]}", f"--peer={self._ports[peer]}", f"--name={name}"]
        words += [f"--witness={self._ports[each]}" for each in self.witnesses]
        words += [f"--failover={FAILOVER_S:g}", "--volume=vda=16M", *more]
        said = await self.command("host", "init", self.directory / name, *words)
        for each in self.witnesses:
            shutil.copy(self.directory / each / CERTIFICATE, self.directory / name / f"{WITNESSES[each]}.pem")
        return said

    def introduce(self) -> None:
        """Give each host the other's certificate."""
        for name, peer in (("a", "b"), ("b", "a")):
            shutil.copy(self.directory / peer / CERTIFICATE, self.directory / name / "peer.pem")

    async def init(self) -> str:
        """Make all of them; the pair's id."""
        for each in self.witnesses:
            await self.command("witness", "init", self.directory / each, f"--listen={self._ports[each]}")
        said = await self.init_host("a")
        (pair,) = [line.split()[-1] for line in said.splitlines() if line.startswith("pair id")]
        await self.init_host("b", f"--pair={pair}")
        self.introduce()
        await self.admit(pair)
        return pair

    async def admit(self, pair: str, *more: str) -> None:
        """Let the hosts as they are now use the witnesses."""
        hosts = [f"--host={self.directory / name / CERTIFICATE}" for name in ("a", "b")]
        for each in self.witnesses:
            await self.command("witness", "add", self.directory / each, f"--pair={pair}", *hosts, *more)

    async def start(self, name: str) -> None:
        words = ("witness", "serve", self.directory / name)
        argv = pairsync_command(*(words if name in WITNESSES else ("host", "run", self.file(name))))
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

    async def agreed(self, name: str) -> dict[str, Any]:
        """What that host says was agreed."""
        said = await self.command("host", "status", self.file(name), "--json")
        grant: dict[str, Any] = json.loads(said)["grant"]
        return grant

    async def grant(self, name: str) -> dict[str, Any]:
        """What that host says was agreed, both being in sync and all three deciding.

        It hears from its peer how that stands, and a witness that is met a moment late has its vote then.
        """
        while True:
            await self.command("host", "wait", self.file(name), "--in-sync", "--timeout=60")
            said = json.loads(await self.command("host", "status", self.file(name), "--json"))
            if all_decide(said):
                grant: dict[str, Any] = said["grant"]
                return grant
            await trio.sleep(POLL_S)

    async def client(self, name: str) -> NbdClient:
        client = await NbdClient.connect_unix(str(self.directory / name / "nbd.sock"))
        await client.negotiate("vda")
        return client


@asynccontextmanager
async def a_site(directory: Path, witnesses: Sequence[str] = ("w",)) -> AsyncIterator[Site]:
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            site = Site(directory, nursery, witnesses)
            try:
                yield site
            finally:
                with trio.CancelScope(shield=True):
                    for name in list(site.running):
                        await site.end(name, signal.SIGKILL)
