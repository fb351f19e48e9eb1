"""The built-in witness as a process of its own, for the checks and others: killed, emptied, restarted.

Each host that reaches it has a key of the pair's two; the process ends with the bench.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from pairsync.core.units import NS_PER_MS
from pairsync.core.witness import WitnessKey
from pairsync.io.keys import HostIdentity, host_subject, make_identity
from pairsync.io.witness import WitnessClient, WitnessConfig, WitnessTimings, open_witness
from pairsync.io.witnessstore import WitnessStore
from pairsync.node.control import ask
from pairsync.node.witnessdir import add_pair, control_path, init_witness
from pairsync.storage.registerfile import FILE_NAME
from pairsync.testing.programs import ProgramError

from .bench import WitnessBench

__all__ = ["BuiltinBench", "running_witness"]

READY_S = 30.0
"""How long a witness may take to come up on a busy machine."""

LINE_BYTES = 4096
"""Read at once of what it prints."""

QUICK = WitnessTimings(backoff_first_ns=10 * NS_PER_MS, backoff_limit_ns=100 * NS_PER_MS)


class BuiltinBench(WitnessBench):
    """A witness process in ``directory``, which serves one pair; made by `running_witness`."""

    def __init__(self, directory: Path, pair_id: bytes) -> None:
        super().__init__(pair_id)
        self.directory = directory
        self.hosts = (make_identity(host_subject("a")), make_identity(host_subject("b")))
        self.ready: dict[str, Any] = {}
        """The line that the process printed."""
        self._process: trio.Process | None = None
        self._opened = 0
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address: tuple[str, int] = free.getsockname()
        init_witness(directory, [self.address])
        self.enroll(pair_id, self.hosts)

    def enroll(self, pair_id: bytes, hosts: tuple[HostIdentity, HostIdentity]) -> None:
        """Put a pair on the roll, for the next start or reload."""
        files = [self.directory.parent / f"{self.directory.name}-{name}.crt" for name in "ab"]
        for file, host in zip(files, hosts, strict=True):
            file.write_bytes(host.certificate_pem)
        add_pair(self.directory, pair_id.hex(), files)

    @property
    def pid(self) -> int:
        """Of the witness process."""
        if self._process is None:
            raise ProgramError("the witness does not run")
        return self._process.pid

    async def start(self) -> None:
        """Start the process; return when it serves."""
        argv = [sys.executable, "-m", "pairsync.node.witnessmain", str(self.directory), "--follow-stdin"]
        with (self.directory / "log").open("ab") as log:
            self._process = await trio.lowlevel.open_process(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
        line = bytearray()
        with trio.move_on_after(READY_S):
            while b"\n" not in line and self._process.stdout is not None:
                chunk = await self._process.stdout.receive_some(LINE_BYTES)
                if not chunk:
                    break
                line += chunk
        if b"\n" not in line:
            raise ProgramError(f"the witness did not come up:\n{(self.directory / 'log').read_text()}")
        self.ready = json.loads(line)

    async def end(self, how: signal.Signals = signal.SIGKILL) -> int:
        """End the process and wait for it; its exit status."""
        process, self._process = self._process, None
        if process is None:
            return 0
        with trio.CancelScope(shield=True):
            process.send_signal(how)
            status = await process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    await pipe.aclose()
        return status

    async def restart(self) -> None:
        """As `WitnessBench.restart`."""
        await self.end()
        await self.start()

    async def forget(self) -> None:
        """As `WitnessBench.forget`."""
        await self.end()
        (self.directory / FILE_NAME).unlink()
        await self.start()

    async def status(self) -> dict[str, Any]:
        """What the process says of itself."""
        answer: dict[str, Any] = (await ask(control_path(self.directory), {"do": "status"}))["witness"]
        return answer

    def config(self, host: HostIdentity, pair_id: bytes, timings: WitnessTimings = QUICK) -> WitnessConfig:
        """For a host that is on the roll."""
        return WitnessConfig(
            address=self.address,
            certificate_pem=(self.directory / "identity" / "host.crt").read_bytes(),
            identity=host,
            pair_id=pair_id,
            timings=timings,
        )

    @asynccontextmanager
    async def client(self, host: int = 0) -> AsyncIterator[WitnessClient]:
        """A client of one of the two hosts, connected."""
        async with open_witness(self.config(self.hosts[host], self.pair_id)) as client:
            await client.get(WitnessKey(self.pair_id, "warm"))
            yield client

    @asynccontextmanager
    async def open(self) -> AsyncIterator[WitnessStore]:
        """As `WitnessBench.open`."""
        self._opened += 1
        async with self.client(self._opened % 2) as client:
            yield client


@asynccontextmanager
async def running_witness(directory: Path, pair_id: bytes) -> AsyncIterator[BuiltinBench]:
    """A witness in a new directory, killed when the context is left."""
    bench = BuiltinBench(directory, pair_id)
    try:
        await bench.start()
        yield bench
    finally:
        await bench.end()
