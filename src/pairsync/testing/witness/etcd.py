"""A real etcd cluster on loopback, of one member or several, for the checks.

Members can be killed and started again; nothing of it outlives the bench.  Times are short, for a machine
that has nobody but itself to talk to.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from pairsync.core.units import NS_PER_S
from pairsync.core.witness import WitnessKey
from pairsync.errors import PeerError
from pairsync.io.etcd import EtcdConfig, open_etcd
from pairsync.io.witnessstore import WitnessStore
from pairsync.testing.programs import ProgramError

from .bench import WitnessBench

__all__ = ["EtcdBench", "running_etcd"]

READY_S = 60.0
"""How long a cluster may take to elect its leader on a busy machine."""

LOOK_S = 0.05


class EtcdBench(WitnessBench):
    """A cluster in ``directory``; made by `running_etcd`."""

    def __init__(self, directory: Path, pair_id: bytes, members: int) -> None:
        super().__init__(pair_id)
        self._directory = directory
        with contextlib.ExitStack() as held:
            free = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2 * members)]
            urls = [f"http://127.0.0.1:{each.getsockname()[1]}" for each in free]
        self.endpoints = tuple(urls[:members])
        self._peers = urls[members:]
        self._processes: dict[int, trio.Process] = {}

    @property
    def members(self) -> int:
        """Of the whole cluster."""
        return len(self.endpoints)

    async def start(self, member: int) -> None:
        """Start a member, with what it has on its disk."""
        cluster = ",".join(f"m{number}={url}" for number, url in enumerate(self._peers))
        argv = ["etcd", "--name", f"m{member}", "--data-dir", str(self._directory / f"m{member}")]
        argv += [
            "--listen-client-urls",
            self.endpoints[member],
            "--advertise-client-urls",
            self.endpoints[member],
        ]
        argv += [
            "--listen-peer-urls",
            self._peers[member],
            "--initial-advertise-peer-urls",
            self._peers[member],
        ]
        argv += ["--initial-cluster", cluster, "--heartbeat-interval", "50", "--election-timeout", "500"]
        argv += ["--log-level", "error", "--logger", "zap"]
        with (self._directory / f"m{member}.log").open("ab") as log:
            self._processes[member] = await trio.lowlevel.open_process(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    async def kill(self, member: int) -> None:
        """SIGKILL a member."""
        process = self._processes.pop(member, None)
        if process is not None:
            with trio.CancelScope(shield=True):
                process.kill()
                await process.wait()

    async def ready(self) -> None:
        """Return when the cluster answers; `ProgramError` if it does not."""
        with trio.move_on_after(READY_S):
            async with open_etcd(EtcdConfig(endpoints=self.endpoints)) as store:
                while True:
                    with contextlib.suppress(PeerError):
                        await store.get(WitnessKey(self.pair_id, "warm"))
                        return
                    await trio.sleep(LOOK_S)
        logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in self._directory.glob("*.log"))
        raise ProgramError(f"etcd is not ready after {READY_S:g} s\n{logs}")

    async def restart(self) -> None:
        """As `WitnessBench.restart`: all members."""
        for member in range(self.members):
            await self.kill(member)
        for member in range(self.members):
            await self.start(member)
        await self.ready()

    async def forget(self) -> None:
        """As `WitnessBench.forget`: a new cluster under the same token, at the same addresses."""
        for member in range(self.members):
            await self.kill(member)
            shutil.rmtree(self._directory / f"m{member}")
        await self.restart()

    async def end(self) -> None:
        """Kill all members."""
        for member in range(self.members):
            await self.kill(member)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[WitnessStore]:
        """As `WitnessBench.open`."""
        async with open_etcd(EtcdConfig(endpoints=self.endpoints, try_ns=NS_PER_S)) as store:
            yield store


@asynccontextmanager
async def running_etcd(directory: Path, pair_id: bytes, *, members: int = 1) -> AsyncIterator[EtcdBench]:
    """A cluster that answers, and is gone when the context is left."""
    bench = EtcdBench(directory, pair_id, members)
    try:
        for member in range(members):
            await bench.start(member)
        await bench.ready()
        yield bench
    finally:
        await bench.end()
