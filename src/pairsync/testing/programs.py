"""Outside programs in tests: every one has a deadline and is gone afterwards; what it says is taken in.

`run_program` runs one to its end.  `EventStream` is a program of ours that prints a ready line and then an
event a line: tests wait for what they need by `EventStream.wait_event`, never by sleeping for luck.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import trio

__all__ = [
    "EventStream",
    "ProgramError",
    "descendants",
    "is_alive",
    "kill_now",
    "pairsync_command",
    "run_program",
    "running_service",
    "wait_gone",
]

COMMAND_S = 60.0
"""How long any command may take, unless the caller says otherwise: the machine may be busy with others."""

READY_S = 60.0
"""How long a program may take until it serves."""

END_S = 60.0
"""How long a program may take to end in order: it flushes disks."""

POLL_S = 0.05
"""Between two looks at what tells nobody when it changes (another process)."""

EVENTS_MAX = 100_000
"""Lines that are kept; a program that says more in one test has gone mad."""

TAIL_BYTES = 4000
"""How much of what a program said an error quotes."""

Event = dict[str, Any]


class ProgramError(Exception):
    """A program did not do what it must."""


def pairsync_command(*words: str | os.PathLike[str]) -> list[str]:
    """The command line of the ``pairsync`` that is installed beside this interpreter."""
    script = Path(sys.executable).with_name("pairsync")
    return [os.fspath(script), *(os.fspath(word) for word in words)]


async def run_program(
    *argv: str | os.PathLike[str], seconds: float = COMMAND_S, status: int | None = 0, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end.

    Raises `ProgramError`, with what it said, if it takes longer than ``seconds`` or ends with another exit
    status than ``status`` (None: any).
    """
    words = [os.fspath(word) for word in argv]
    what = " ".join(words)[:200]
    with trio.move_on_after(seconds):
        done = await trio.run_process(
            words, stdin=stdin, capture_stdout=True, capture_stderr=True, check=False
        )
        if status is None or done.returncode == status:
            return done
        said = (done.stdout + done.stderr).decode(errors="replace").strip()[-TAIL_BYTES:]
        raise ProgramError(f"exit status {done.returncode} instead of {status}: {what}\n{said}")
    raise ProgramError(f"not done after {seconds:g} s: {what}")


def is_alive(pid: int) -> bool:
    """Whether that process exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def kill_now(pid: int) -> None:
    """SIGKILL it, if it is still there."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """All processes below that one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid:
                child = int(path.parent.name)
                found += [child, *descendants(child)]
    return found


async def wait_gone(pids: Collection[int], *, seconds: float = END_S) -> None:
    """Return when none of those processes is left; `ProgramError` if one stays."""
    with trio.move_on_after(seconds):
        while any(is_alive(pid) for pid in pids):  # noqa: ASYNC110 - nobody tells of a stranger's end
            await trio.sleep(POLL_S)
        return
    raise ProgramError(f"of the processes {sorted(pids)} some are left after {seconds:g} s")


class EventStream:
    """A program that prints a ready line and then events, each a JSON object a line."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.ready: Event = {}
        """The first line."""
        self.events: list[Event] = []
        """Every later line, as it comes."""
        self.stderr = bytearray()
        """What it said on standard error."""
        self.exit_status: int | None = None
        self._moved = trio.Condition()  # notified with every line, and at the end

    # ------------------------------------------------------------------ what it says

    def mark(self) -> int:
        """A place in `events`: what comes from here on."""
        return len(self.events)

    def seen(self, kind: str, *, since: int = 0, **fields: Any) -> list[Event]:
        """The events of that kind with those fields so far."""
        return [event for event in self.events[since:] if _fits(event, kind, fields)]

    async def wait_event(
        self, kind: str, *, since: int = 0, seconds: float = COMMAND_S, **fields: Any
    ) -> Event:
        """The first event of that kind with those fields from ``since`` on; `ProgramError` if none comes."""
        with trio.move_on_after(seconds):
            async with self._moved:
                at = since
                while True:
                    while at < len(self.events):
                        if _fits(self.events[at], kind, fields):
                            return self.events[at]
                        at += 1
                    if self.exit_status is not None:
                        raise self.error(f"the program ended without an event {kind} {fields}")
                    await self._moved.wait()
        raise self.error(f"no event {kind} {fields} within {seconds:g} s")

    async def wait_ready(self, seconds: float = READY_S) -> None:
        """Return when the ready line has come; `ProgramError` if the program ends before, or takes longer."""
        with trio.move_on_after(seconds):
            async with self._moved:
                while not self.ready:
                    if self.exit_status is not None:
                        raise self.error(f"it did not come up: exit status {self.exit_status}")
                    await self._moved.wait()
            return
        raise self.error(f"it is not ready after {seconds:g} s")

    async def wait_end(self) -> None:
        """Return when the process has ended and all that it said was taken in."""
        async with self._moved:
            while self.exit_status is None:
                await self._moved.wait()

    async def follow(self) -> None:
        """Take in what it prints until it ends; runs beside everything else."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._take_errors)
            buffer = bytearray()
            async for chunk in _pipe(self.process.stdout):
                buffer += chunk
                while (end := buffer.find(b"\n")) >= 0:
                    self._take(json.loads(buffer[:end]))
                    del buffer[: end + 1]
                await self._notify()
        self.exit_status = await self.process.wait()
        await self._notify()

    async def _take_errors(self) -> None:
        async for chunk in _pipe(self.process.stderr):
            self.stderr += chunk

    async def _notify(self) -> None:
        async with self._moved:
            self._moved.notify_all()

    def _take(self, line: Event) -> None:
        if self.ready:
            self.events.append(line)
            if len(self.events) > EVENTS_MAX:
                raise ProgramError(f"more than {EVENTS_MAX} events")
            return
        if line.get("event") != "ready":
            raise ProgramError(f"the first line is not the ready line: {line}")
        self.ready = line

    # ------------------------------------------------------------------ the end

    async def stop(self, how: signal.Signals) -> None:
        """Ask it to end; `ProgramError` if it takes too long, or does not end with status 0."""
        if self.exit_status is None:
            self.process.send_signal(how)
        with trio.move_on_after(END_S):
            await self.wait_end()
        if self.exit_status is None:
            raise self.error(f"it did not end within {END_S:g} s after {how.name}")
        if self.exit_status != 0:
            raise self.error(f"it ended with exit status {self.exit_status}")

    def logs(self) -> str:
        """What else would help to understand a failure."""
        return self.stderr.decode(errors="replace")[-TAIL_BYTES:]

    def error(self, message: str) -> ProgramError:
        """An error with the latest events and the logs."""
        events = [json.dumps(event) for event in self.events[-20:] if event["event"] != "progress"]
        return ProgramError("\n".join([message, *events, self.logs()]))


def _pipe(stream: trio.abc.ReceiveStream | None) -> trio.abc.ReceiveStream:
    if stream is None:
        raise ProgramError("the program was started without pipes")
    return stream


def _fits(event: Mapping[str, Any], kind: str, fields: Mapping[str, Any]) -> bool:
    return event.get("event") == kind and all(event.get(key) == value for key, value in fields.items())


@asynccontextmanager
async def running_service(
    *words: str | os.PathLike[str], before: tuple[str, ...] = ()
) -> AsyncIterator[EventStream]:
    """``pairsync WORDS``, ready, and ended in order when the block is left.

    ``before``: words in front of the command, such as those that enter a network namespace.
    """
    argv = [*before, *pairsync_command(*words)]
    async with trio.open_nursery() as nursery:
        process = await trio.lowlevel.open_process(argv, stdin=subprocess.DEVNULL, stdout=-1, stderr=-1)
        service = EventStream(process)
        nursery.start_soon(service.follow)
        try:
            await service.wait_ready()
            yield service
            await service.stop(signal.SIGTERM)
        finally:
            with trio.CancelScope(shield=True):
                process.kill()
                await process.wait()
            nursery.cancel_scope.cancel()
