"""The built-in witness as a whole: the directory, the registers, the server, signals and the control socket.

`serve_witness` is the library's entry: it can run beside other things in one trio program.  The command line
runs it as a process of its own (``node.witnessmain``).
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio

from pairsync.errors import BackendError, ConfigError
from pairsync.io.keys import load_identity
from pairsync.io.network import Address, Listener, Network, TcpNetwork, describe_address
from pairsync.io.witnessserver import WitnessServer
from pairsync.storage.directory import OsDirectory
from pairsync.storage.linux import file_identity
from pairsync.storage.registerfile import LOST_NAME, RegisterFile

from .control import Answer, Handler, serve_control
from .memory import held
from .places import DirectoryLock, make_sockets
from .registers import Registers
from .witnessdir import control_path, read_roll, read_witness_file

__all__ = ["serve_witness"]

_log = logging.getLogger("pairsync.witness")


async def serve_witness(
    directory: Path,
    *,
    listen: Sequence[Address] | None = None,
    network: Network | None = None,
    task_status: trio.TaskStatus[dict[str, Any]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the witness of ``directory`` until cancelled.

    ``listen`` takes the place of what ``witness.toml`` says.  Started with `trio.Nursery.start` it returns
    the line that the command prints: ``{"event": "ready", "pid": ..., "address": "HOST:PORT", ...}``.  While
    it runs, the roll is read again on SIGHUP (in a program's main thread) and when the control socket asks.
    Raises `ConfigError`, `BusyError` if the witness runs already, and `BackendError`.
    """
    settings = read_witness_file(directory)
    roll = read_roll(directory)
    identity = load_identity(directory / "identity")
    world: Network = TcpNetwork() if network is None else network
    with DirectoryLock(directory, "witness"):
        file = await trio.to_thread.run_sync(_open_registers, directory)
        listeners: list[Listener] = []
        try:
            await trio.to_thread.run_sync(file.keep_only, roll.pairs)
            addresses = settings.listen if listen is None else listen
            listeners += [await _listen(world, address) for address in addresses]
            registers = Registers(file)
            server = WitnessServer(registers, identity, roll, world)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(registers.run)
                for listener in listeners:
                    nursery.start_soon(server.run, listener)
                keeping = _Keeping(
                    directory, registers, server, listeners, identity.fingerprint, len(roll.pairs)
                )
                make_sockets(directory)
                await nursery.start(serve_control, control_path(directory), keeping.handlers())
                nursery.start_soon(keeping.follow_hangups)
                task_status.started(keeping.ready())
        finally:
            for listener in listeners:
                listener.close()
            file.close()
            with suppress(OSError):  # a short one, say, in the place of one whose name is too long
                control_path(directory).parent.rmdir()


def _open_registers(directory: Path) -> RegisterFile:
    where = OsDirectory(directory)
    file = RegisterFile(where, identity=lambda each: file_identity(each.path), entropy=secrets.token_bytes)
    if file.distrust is not None:
        _log.error("%s: all registers begin anew; it was kept as %s", file.distrust, LOST_NAME)
    return file


async def _listen(network: Network, address: Address) -> Listener:
    try:
        return await network.listen(address)
    except OSError as error:
        where = describe_address(address)
        raise BackendError(
            f"cannot listen on {where}: {error.strerror or error}", error.errno or 5
        ) from error


class _Keeping:
    """The running witness, as signals and the control socket see it."""

    def __init__(
        self,
        directory: Path,
        registers: Registers,
        server: WitnessServer,
        listeners: Sequence[Listener],
        fingerprint: bytes,
        pair_count: int,
    ) -> None:
        self._directory = directory
        self._registers = registers
        self._server = server
        self._addresses = [describe_address(each.address) for each in listeners]
        self._fingerprint = fingerprint.hex()
        self._pair_count = pair_count
        self._since_s = time.monotonic()

    def ready(self) -> dict[str, Any]:
        """The line that says that the witness serves."""
        return {
            "event": "ready",
            "pid": os.getpid(),
            "address": self._addresses[0],
            "addresses": self._addresses,
            "fingerprint": self._fingerprint,
            "pairs": self._pair_count,
        }

    def handlers(self) -> dict[str, Handler]:
        """What the control socket understands."""

        async def status(_: Mapping[str, Any]) -> Answer:
            await trio.lowlevel.checkpoint()
            return {"witness": self._status()}

        async def reload(_: Mapping[str, Any]) -> Answer:
            return {"pairs": await self._read_roll()}

        return {"status": status, "reload": reload}

    def _status(self) -> dict[str, Any]:
        now = self._server.statistics()
        return {
            **{key: value for key, value in self.ready().items() if key != "event"},
            "uptime_s": round(time.monotonic() - self._since_s, 1),
            "pairs": self._pair_count,
            "registers": len(self._registers),
            "file_bytes": self._registers.size_bytes,
            "began_anew": self._registers.distrust,
            "connections": now.connections,
            "hosts_connected": len(now.connected),
            "half_open": now.half_open,
            "looks": now.looks,
            "swaps": now.swaps,
            "crossed": now.crossed,
            "failed": now.failed,
            "batches": self._registers.batches,
            "refusals": dict(now.refusals),
            **held(),
        }

    async def _read_roll(self) -> int:
        """Serve whom the directory names now; how many.  Raises `ConfigError`: then all is as before."""
        roll = await trio.to_thread.run_sync(read_roll, self._directory)
        self._server.admit(roll)
        self._pair_count = len(roll.pairs)
        await self._registers.keep_only(roll.pairs)
        return self._pair_count

    async def follow_hangups(self) -> None:
        """Read the roll again on every SIGHUP; only a program's main thread hears of signals."""
        if threading.current_thread() is not threading.main_thread():
            return
        with trio.open_signal_receiver(signal.SIGHUP) as signals:
            async for _ in signals:
                try:
                    _log.info("the roll was read: %d pairs", await self._read_roll())
                except (ConfigError, BackendError) as error:
                    _log.error("the roll was not read, all stays as it was: %s", error)
