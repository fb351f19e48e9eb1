"""One process of a lab: a host or the witness, supervised.

It says ``ready`` as a JSON line on standard output, then an event a line; its log goes to a file, whose last
lines explain a process that does not come up.  It ends when the supervisor ends, however that ends: its
standard input is a pipe that the supervisor holds.
"""

from __future__ import annotations

import errno
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import trio

from pairsync.errors import BackendError, ConfigError

from .hostlog import last_words

__all__ = ["ETCD_PROGRAM", "HOST_PROGRAM", "READY_S", "STOP_S", "WITNESS_PROGRAM", "LabProcess"]

HOST_PROGRAM = ("-m", "pairsync.testing.faultyhost")
WITNESS_PROGRAM = ("-m", "pairsync.node.witnessmain")
ETCD_PROGRAM = ("-m", "pairsync.node.etcdmain")
"""Arguments of the interpreter."""

READY_S = 30.0
"""How long a process may take until it serves."""

STOP_S = 40.0
"""How long it may take to close in order: a host's own limit and a reserve."""


class LabProcess:
    """See the module.

    ``said`` hears every line but ``ready``; ``gone`` the exit status.  ``before``: words in front of its
    command line, such as those that enter a network namespace.
    """

    def __init__(
        self,
        name: str,
        log: Path,
        nursery: trio.Nursery,
        said: Callable[[Mapping[str, Any]], None],
        gone: Callable[[int], None],
        before: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.log = log
        self.process: trio.Process | None = None  # None: not running
        self.about: Mapping[str, Any] = {}
        """What it said when it was ready; empty while it is not."""
        self.paused = False
        """Stopped by command (SIGSTOP)."""
        self.starting = trio.Lock()  # held from the decision to make a process until there is one
        self.ready = trio.Event()  # of the present or last process: it serves
        self.ended = trio.Event()  # likewise: it is gone
        self._log_begin_bytes = 0  # where its part of the log begins
        self._nursery = nursery
        self._said = said
        self._gone = gone
        self._before = tuple(before)

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return self.process is not None

    def running_process(self) -> trio.Process:
        """The process; `ConfigError` if there is none."""
        if self.process is None:
            raise ConfigError(f"{self.name} is not running")
        return self.process

    async def spawn(self, words: Sequence[str]) -> None:
        """Start it: these arguments of the interpreter.  `BackendError` where that cannot be."""
        try:
            with self.log.open("ab") as log:
                self._log_begin_bytes = log.tell()
                process = await trio.lowlevel.open_process(
                    [*self._before, sys.executable, *words],
                    stdin=-1,
                    stdout=-1,
                    stderr=log,
                    start_new_session=True,  # a Ctrl-C of the terminal is the supervisor's to handle
                )
        except OSError as error:  # its log lies on a disk that fails, or there are too many processes
            reason = f"{error.filename or sys.executable}: {error.strerror}"
            raise BackendError(
                f"{self.name} cannot be started: {reason}", error.errno or errno.EIO
            ) from error
        self.process = process
        self.paused = False
        self.ready = trio.Event()
        self.ended = trio.Event()
        self._nursery.start_soon(self._follow, process, self.ready)

    async def until_settled(self) -> None:
        """Return when it serves or has ended; or when it has taken too long for either."""
        ready, ended = self.ready, self.ended
        with trio.move_on_after(READY_S):
            async with trio.open_nursery() as nursery:

                async def watch_end() -> None:
                    await ended.wait()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(watch_end)
                await ready.wait()
                nursery.cancel_scope.cancel()

    async def until_ready(self) -> None:
        """Return when it serves; `BackendError`, with its fate and its last words, if it does not."""
        process, ready, ended = self.process, self.ready, self.ended
        await self.until_settled()
        if not ready.is_set():
            fate = _fate(process)
            if self.process is not None and self.ended is ended:
                self.process.kill()
            words = last_words(self.log, self._log_begin_bytes)
            raise BackendError(f"{self.name} did not come up ({fate}): {words or 'it said nothing'}")

    async def _follow(self, process: trio.Process, ready: trio.Event) -> None:
        """Pass on what it prints, until it ends.  Cancelled, it leaves the process to `stop`."""
        try:
            await self._pass_on(process, ready)
        finally:
            self.ended.set()

    async def _pass_on(self, process: trio.Process, ready: trio.Event) -> None:
        if process.stdout is None:
            raise BackendError(f"{self.name} has no standard output")
        buffer = bytearray()
        async for chunk in process.stdout:
            buffer += chunk
            while (end := buffer.find(b"\n")) >= 0:
                line = json.loads(bytes(buffer[:end]))
                del buffer[: end + 1]
                if line["event"] == "ready":
                    self.about = line
                    ready.set()
                else:
                    self._said(line)
        code = await process.wait()
        await process.stdout.aclose()
        if process.stdin is not None:
            await process.stdin.aclose()
        self.process = None
        self.about = {}
        self.paused = False
        self._gone(code)

    async def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        self.running_process().kill()
        await self.ended.wait()

    def pause(self) -> None:
        """SIGSTOP: it stands still, as a machine does that is paused or swaps."""
        self.running_process().send_signal(signal.SIGSTOP)
        self.paused = True

    def resume(self) -> None:
        """SIGCONT."""
        self.running_process().send_signal(signal.SIGCONT)
        self.paused = False

    async def stop(self) -> None:
        """End it in order, by force if it takes too long; nothing if it does not run."""
        process = self.process
        if process is None:
            return
        if self.paused:
            self.resume()
        process.terminate()
        with trio.move_on_after(STOP_S):
            await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()
        await self.ended.wait()  # its last lines have been passed on


def _fate(process: trio.Process | None) -> str:
    """How a process has ended, in words."""
    status = None if process is None else process.returncode
    if status is None:
        return f"not within {READY_S:g} s"
    return f"ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
