"""`running_lab`: a ``pairsync lab`` as outsiders see it, driven from a test.

The lab is the real command in a process of its own, its hosts are grandchildren.  What it prints is taken in
as it comes: `RunningLab.ready` is the first line, `RunningLab.events` holds every later one.  Tests wait for
what they need by `RunningLab.wait_event` and `RunningLab.wait_status`, never by sleeping for luck::

    async with running_lab(directory, {"vda": 64 * MIB}) as lab:
        mark = lab.mark()
        await lab.kill("b")
        await lab.wait_event("peer-lost", host="a", since=mark)

The commands (`kill`, `start`, `cut` ...) go straight to the supervisor's control socket, which is what the
command line does after half a second of start-up; `RunningLab.command` runs the command line itself.

When the block is left the lab is ended as a person would end it, and its end is judged: exit status 0, no
process of it left, no socket left.  What fails raises `LabError`, with the end of the hosts' logs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from pairsync.node.control import ask
from pairsync.node.labfile import control_socket_of, nbd_socket_of

from .nbd_client import NbdClient

__all__ = [
    "LabError",
    "RunningLab",
    "differences",
    "is_alive",
    "pairsync_command",
    "run_program",
    "running_lab",
    "wait_gone",
]

COMMAND_S = 60.0
"""How long any command may take, unless the caller says otherwise: the machine may be busy with others."""

READY_S = 60.0
"""How long both hosts may take to come up."""

END_S = 60.0
"""How long the lab may take to end in order: it flushes two disks."""

POLL_S = 0.05
"""Between two looks at what tells nobody when it changes (a status, another process)."""

EVENTS_MAX = 100_000
"""Lines that are kept; a lab that says more in one test has gone mad."""

LOG_TAIL_BYTES = 4000
"""How much of each host's log an error quotes."""

COMPARED_AT_ONCE_BYTES = 1 << 20

Event = dict[str, Any]


class LabError(Exception):
    """The lab, or a program that was run against it, did not do what it must."""


def pairsync_command(*words: str | os.PathLike[str]) -> list[str]:
    """The command line of the ``pairsync`` that is installed beside this interpreter."""
    script = Path(sys.executable).with_name("pairsync")
    return [os.fspath(script), *(os.fspath(word) for word in words)]


async def run_program(
    *argv: str | os.PathLike[str],
    seconds: float = COMMAND_S,
    status: int | None = 0,
    stdin: bytes = b"",
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end.

    Raises `LabError`, with what it said, if it takes longer than ``seconds`` or ends with another exit status
    than ``status`` (None: any).
    """
    words = [os.fspath(word) for word in argv]
    what = " ".join(words)[:200]
    env = None if environment is None else {**os.environ, **environment}
    with trio.move_on_after(seconds):
        done = await trio.run_process(
            words, stdin=stdin, capture_stdout=True, capture_stderr=True, check=False, env=env
        )
        if status is None or done.returncode == status:
            return done
        said = (done.stdout + done.stderr).decode(errors="replace").strip()[-LOG_TAIL_BYTES:]
        raise LabError(f"exit status {done.returncode} instead of {status}: {what}\n{said}")
    raise LabError(f"not done after {seconds:g} s: {what}")


def is_alive(pid: int) -> bool:
    """Whether that process exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


async def wait_gone(pids: Collection[int], *, seconds: float = END_S) -> None:
    """Return when none of those processes is left; `LabError` if one stays."""
    with trio.move_on_after(seconds):
        while any(is_alive(pid) for pid in pids):  # noqa: ASYNC110 - nobody tells of a stranger's end
            await trio.sleep(POLL_S)
        return
    raise LabError(f"of the processes {sorted(pids)} some are left after {seconds:g} s")


def differences(directory: Path, volume: str, *, first_bytes: int | None = None) -> list[tuple[int, int]]:
    """Byte ranges (start, stop) of a volume that differ between the two hosts, by 4 KiB; at most 20.

    Reads both files with nothing of the package in between.  Files of different size differ at the end.
    """
    found: list[tuple[int, int]] = []
    paths = [directory / host / f"{volume}.img" for host in ("a", "b")]
    sizes = [path.stat().st_size for path in paths]
    stop = min(*sizes, sizes[0] if first_bytes is None else first_bytes)
    with paths[0].open("rb") as left, paths[1].open("rb") as right:
        for at in range(0, stop, COMPARED_AT_ONCE_BYTES):
            ours, theirs = left.read(COMPARED_AT_ONCE_BYTES), right.read(COMPARED_AT_ONCE_BYTES)
            if ours == theirs:
                continue
            found += [
                (at + block, at + block + 4096)
                for block in range(0, max(len(ours), len(theirs)), 4096)
                if ours[block : block + 4096] != theirs[block : block + 4096]
            ]
            if len(found) >= 20:
                return found[:20]
    if sizes[0] != sizes[1]:
        found.append((min(sizes), max(sizes)))
    return found


class RunningLab:
    """A lab that is up; made by `running_lab`."""

    def __init__(self, directory: Path, process: trio.Process) -> None:
        self.directory = directory
        self.process = process
        self.ready: Event = {}
        """The first line."""
        self.events: list[Event] = []
        """Every later line, as it comes."""
        self.stderr = bytearray()
        """What the supervisor said on standard error."""
        self.host_pids: set[int] = set()
        """Every host process that is known to have been part of this lab."""
        self.exit_status: int | None = None
        self._killed = False  # the supervisor, on purpose: it cannot end in order any more
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
        """The first event of that kind with those fields from ``since`` on; `LabError` if none comes."""
        with trio.move_on_after(seconds):
            async with self._moved:
                at = since
                while True:
                    while at < len(self.events):
                        if _fits(self.events[at], kind, fields):
                            return self.events[at]
                        at += 1
                    if self.exit_status is not None:
                        raise self.error(f"the lab ended without an event {kind} {fields}")
                    await self._moved.wait()
        raise self.error(f"no event {kind} {fields} within {seconds:g} s")

    async def follow(self) -> None:
        """Take in what it prints until it ends (run by `running_lab`)."""
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

    async def wait_ready(self, seconds: float = READY_S) -> None:
        """Return when the ready line has come; `LabError` if the lab ends before, or takes longer."""
        with trio.move_on_after(seconds):
            async with self._moved:
                while not self.ready:
                    if self.exit_status is not None:
                        raise self.error(f"the lab did not come up: exit status {self.exit_status}")
                    await self._moved.wait()
            return
        raise self.error(f"the lab is not ready after {seconds:g} s")

    def _take(self, line: Event) -> None:
        if self.ready:
            self.events.append(line)
            if len(self.events) > EVENTS_MAX:
                raise LabError(f"more than {EVENTS_MAX} events")
            return
        if line.get("event") != "ready":
            raise LabError(f"the first line is not the ready line: {line}")
        self.ready = line
        self.host_pids.update(host["pid"] for host in line["hosts"].values())

    def error(self, message: str) -> LabError:
        """An error with what would help to understand it."""
        parts = [message, f"stderr: {self.stderr.decode(errors='replace')[-LOG_TAIL_BYTES:]}"]
        parts += [json.dumps(event) for event in self.events[-20:] if event["event"] != "progress"]
        for host in ("a", "b"):
            path = self.directory / host / "log"
            if path.exists():
                tail = path.read_text(errors="replace")[-LOG_TAIL_BYTES:]
                parts.append(f"--- log of host {host}\n{tail}")
        return LabError("\n".join(parts))

    # ------------------------------------------------------------------ what it is made of

    def uri(self, volume: str = "vda") -> str:
        """NBD URI of a volume, as the ready line gives it."""
        return str(self.ready["hosts"]["a"]["volumes"][volume]["uri"])

    def path(self, host: str, volume: str = "vda") -> Path:
        """The replica of a volume on a host."""
        return Path(self.ready["hosts"][host]["volumes"][volume]["path"])

    def link_address(self, host: str) -> tuple[str, int]:
        """Where a host listens for its peer."""
        address, _, port = self.ready["hosts"][host]["link"].rpartition(":")
        return address, int(port)

    async def pid(self, host: str) -> int:
        """The process of a host that runs."""
        pid = (await self.status())["hosts"][host]["pid"]
        if not isinstance(pid, int):
            raise self.error(f"host {host} does not run")
        self.host_pids.add(pid)
        return pid

    async def connect(self, volume: str = "vda", **options: Any) -> NbdClient:
        """A client in transmission on that volume; the caller closes it."""
        client = await NbdClient.connect_unix(str(nbd_socket_of(self.directory, "a")))
        return await client.negotiate(volume, **options)

    # ------------------------------------------------------------------ commands

    async def request(self, do: str, *, seconds: float = COMMAND_S, **more: Any) -> dict[str, Any]:
        """Ask the supervisor; raises what `pairsync.node.control.ask` does, or `LabError` after a while."""
        with trio.move_on_after(seconds):
            return await ask(control_socket_of(self.directory), {"do": do, **more})
        raise self.error(f"no answer to {do} within {seconds:g} s")

    async def kill(self, host: str) -> None:
        """SIGKILL a host."""
        await self.request("kill", host=host)

    async def start(self, host: str) -> None:
        """Start a host that was killed."""
        answer = await self.request("start", host=host)
        self.host_pids.add(answer["host"]["pid"])

    async def cut(self) -> None:
        """Cut the link."""
        await self.request("cut")

    async def heal(self) -> None:
        """Mend the link."""
        await self.request("heal")

    async def status(self) -> dict[str, Any]:
        """What both hosts say of themselves."""
        return await self.request("status")

    async def wait_in_sync(self, seconds: float = COMMAND_S) -> None:
        """Wait until both hosts are in sync."""
        await self.request("wait", seconds=seconds)

    async def wait_status(
        self, condition: Callable[[dict[str, Any]], bool], what: str, *, seconds: float = COMMAND_S
    ) -> dict[str, Any]:
        """Ask for the status until ``condition`` holds; `LabError` if it does not in time."""
        with trio.move_on_after(seconds):
            while True:
                status = await self.status()
                if condition(status):
                    return status
                await trio.sleep(POLL_S)
        raise self.error(f"not within {seconds:g} s: {what}")

    async def command(
        self, command: str, *words: str, status: int | None = 0, seconds: float = COMMAND_S
    ) -> subprocess.CompletedProcess[bytes]:
        """``pairsync lab COMMAND DIR WORDS``, as a script would run it."""
        argv = pairsync_command("lab", command, self.directory, *words)
        return await run_program(*argv, status=status, seconds=seconds)

    # ------------------------------------------------------------------ the end

    async def kill_supervisor(self) -> None:
        """SIGKILL the supervisor; returns when its hosts have ended too, `LabError` if they do not."""
        self._killed = True
        self.process.send_signal(signal.SIGKILL)
        await self.wait_end()
        await wait_gone(self.host_pids)

    async def end(self, how: signal.Signals = signal.SIGINT) -> None:
        """Ask it to end, and judge how it does; a second call does nothing."""
        if self._killed:
            return
        if self.exit_status is None:
            self.process.send_signal(how)
        with trio.move_on_after(END_S):
            await self.wait_end()
        if self.exit_status is None:
            raise self.error(f"the lab did not end within {END_S:g} s after {how.name}")
        if self.exit_status != 0:
            raise self.error(f"the lab ended with exit status {self.exit_status}")
        left = sorted(pid for pid in self.host_pids if is_alive(pid))
        if left:
            raise self.error(f"host processes {left} outlived the lab")
        sockets = self.sockets()
        if sockets:
            raise self.error(f"sockets were left behind: {sockets}")

    async def wait_end(self) -> None:
        """Return when its process has ended and all that it said was taken in."""
        async with self._moved:
            while self.exit_status is None:
                await self._moved.wait()

    def sockets(self) -> list[Path]:
        """The socket files of the lab that exist."""
        place = control_socket_of(self.directory).parent
        return sorted(path for path in place.iterdir() if path.is_socket()) if place.exists() else []


def _pipe(stream: trio.abc.ReceiveStream | None) -> trio.abc.ReceiveStream:
    if stream is None:
        raise LabError("the lab was started without pipes")
    return stream


def _fits(event: Mapping[str, Any], kind: str, fields: Mapping[str, Any]) -> bool:
    return event.get("event") == kind and all(event.get(key) == value for key, value in fields.items())


async def _kill_all(lab: RunningLab) -> None:
    """After a failure: leave no process of the lab behind."""
    for pid in lab.host_pids:
        if is_alive(pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
    lab.process.kill()
    await lab.process.wait()


@asynccontextmanager
async def running_lab(
    directory: Path,
    volumes: Mapping[str, int] | None = None,
    *,
    level: str | None = None,
    in_sync: bool = True,
    more: Sequence[str] = (),
) -> AsyncIterator[RunningLab]:
    """Bring a lab up (or bring up again what is there), and end it in order when the block is left.

    ``volumes`` maps names to bytes.  ``in_sync``: wait until both hosts are.  Raises `LabError` with what the
    lab said if it does not come up or does not end in order; after an error of the block's own the lab is
    killed.
    """
    words = [f"--volume={name}={size}" for name, size in (volumes or {}).items()]
    words += [f"--level={level}"] if level is not None else []
    argv = pairsync_command("lab", "up", directory, *words, "--json", *more)
    try:
        async with trio.open_nursery() as nursery:
            process = await trio.lowlevel.open_process(argv, stdin=subprocess.DEVNULL, stdout=-1, stderr=-1)
            lab = RunningLab(directory, process)
            nursery.start_soon(lab.follow)
            try:
                await lab.wait_ready()
                if in_sync:
                    await lab.wait_in_sync()
                yield lab
                await lab.end()
            finally:
                with trio.CancelScope(shield=True):
                    await _kill_all(lab)
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        raise group.exceptions[0] from None  # the nursery is nobody's business
