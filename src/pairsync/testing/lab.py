"""`running_lab`: a ``pairsync lab`` as outsiders see it, driven from a test.

The lab is the real command in a process of its own, its hosts are grandchildren.  What it prints is taken in
as it comes (`EventStream`)::

    async with running_lab(directory, {"vda": 64 * MIB}) as lab:
        mark = lab.mark()
        await lab.kill("b")
        await lab.wait_event("peer-lost", host="a", since=mark)

The commands (`kill`, `start`, `cut` ...) go straight to the supervisor's control socket, which is what the
command line does after half a second of start-up; `RunningLab.command` runs the command line itself.

When the block is left the lab is ended as a person would end it, and its end is judged: exit status 0, no
process of it left, no socket left.  What fails raises `ProgramError`, with the end of the hosts' logs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import trio

from pairsync.errors import PairsyncError
from pairsync.node.control import ask
from pairsync.node.labfile import control_socket_of, nbd_socket_of

from .nbd_client import NbdClient
from .programs import (
    COMMAND_S,
    POLL_S,
    TAIL_BYTES,
    Event,
    EventStream,
    is_alive,
    pairsync_command,
    run_program,
    wait_gone,
)

__all__ = ["RunningLab", "differences", "running_lab"]

COMPARED_AT_ONCE_BYTES = 1 << 20

LAST_LOOK_S = 5.0
"""How long the status is asked for that an error quotes."""


def differences(directory: Path, volume: str, *, first_bytes: int | None = None) -> list[tuple[int, int]]:
    """Byte ranges (start, stop) of a volume that differ between the two hosts, by 4 KiB; at most 20.

    Reads both files with nothing of the package in between.  Files of different size differ at the end; with
    ``first_bytes``, where that is all that is looked at, only if one has not as many.
    """
    found: list[tuple[int, int]] = []
    paths = [directory / host / f"{volume}.img" for host in ("a", "b")]
    sizes = [path.stat().st_size for path in paths]
    wanted = max(sizes) if first_bytes is None else first_bytes
    stop = min(*sizes, wanted)
    with paths[0].open("rb") as left, paths[1].open("rb") as right:
        for at in range(0, stop, COMPARED_AT_ONCE_BYTES):
            count = min(COMPARED_AT_ONCE_BYTES, wanted - at)
            ours, theirs = left.read(count), right.read(count)
            if ours == theirs:
                continue
            found += [
                (at + block, at + block + 4096)
                for block in range(0, max(len(ours), len(theirs)), 4096)
                if ours[block : block + 4096] != theirs[block : block + 4096]
            ]
            if len(found) >= 20:
                return found[:20]
    if sizes[0] != sizes[1] and min(sizes) < wanted:
        found.append((min(sizes), max(sizes)))
    return found


class RunningLab(EventStream):
    """A lab that is up; made by `running_lab`."""

    def __init__(self, directory: Path, process: trio.Process) -> None:
        super().__init__(process)
        self.directory = directory
        self.host_pids: set[int] = set()
        """Every host process that is known to have been part of this lab."""
        self._killed = False  # the supervisor, on purpose: it cannot end in order any more
        self._seen: tuple[float, dict[str, Any]] | None = None  # the last status, and when (seconds)

    def _take(self, line: Event) -> None:
        super()._take(line)
        if line is self.ready:
            self.host_pids.update(host["pid"] for host in line["hosts"].values())

    def logs(self) -> str:
        """What the supervisor and its hosts said last, and the last status that was seen."""
        parts = [super().logs()]
        if self._seen is not None:
            at_s, status = self._seen
            age_s = trio.current_time() - at_s
            parts.append(f"--- status {age_s:.1f} s ago\n{json.dumps(status, separators=(',', ':'))}")
        for host in ("a", "b"):
            path = self.directory / host / "log"
            if path.exists():
                tail = path.read_text(errors="replace")[-TAIL_BYTES:]
                parts.append(f"--- log of host {host}\n{tail}")
        return "\n".join(parts)

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

    async def connect(self, volume: str = "vda", host: str = "a", **options: Any) -> NbdClient:
        """A client in transmission on that volume, by a host's door; the caller closes it."""
        client = await NbdClient.connect_unix(str(nbd_socket_of(self.directory, host)))
        return await client.negotiate_or_hang_up(volume, **options)

    # ------------------------------------------------------------------ commands

    async def request(self, do: str, *, seconds: float = COMMAND_S, **more: Any) -> dict[str, Any]:
        """Ask the supervisor; raises what `pairsync.node.control.ask` does, `ProgramError` after a while."""
        with trio.move_on_after(seconds):
            return await self._ask(do, **more)
        with trio.move_on_after(LAST_LOOK_S), suppress(PairsyncError):
            await self._ask("status")  # for the error
        raise self.error(f"no answer to {do} within {seconds:g} s")

    async def _ask(self, do: str, **more: Any) -> dict[str, Any]:
        answer = await ask(control_socket_of(self.directory), {"do": do, **more})
        if do == "status":
            self._seen = (trio.current_time(), answer)
        return answer

    async def kill(self, host: str) -> None:
        """SIGKILL a host."""
        await self.request("kill", host=host)

    async def start(self, host: str) -> None:
        """Start a host that was killed."""
        answer = await self.request("start", host=host)
        self.host_pids.add(answer["host"]["pid"])

    async def cut(self, cable: str = "a-b") -> None:
        """Cut the link, or another cable."""
        await self.request("cut", cable=cable)

    async def heal(self, cable: str = "a-b") -> None:
        """Mend it."""
        await self.request("heal", cable=cable)

    async def guest(self) -> dict[str, Any]:
        """What the two hosts together say of the guest."""
        guest: dict[str, Any] = (await self.status())["guests"]["lab"]
        return guest

    async def wait_active(self, host: str, seconds: float = COMMAND_S) -> None:
        """Wait until the guest runs on that host."""

        def there(status: dict[str, Any]) -> bool:
            return bool(status["guests"]["lab"]["active"] == host)

        await self.wait_status(there, f"the guest runs on host {host}", seconds=seconds)

    async def status(self) -> dict[str, Any]:
        """What both hosts say of themselves."""
        return await self.request("status")

    async def wait_in_sync(self, seconds: float = COMMAND_S) -> None:
        """Wait until both hosts are in sync, and a witness that both can ask has its vote."""
        await self.request("wait", seconds=seconds)

    async def wait_status(
        self, condition: Callable[[dict[str, Any]], bool], what: str, *, seconds: float = COMMAND_S
    ) -> dict[str, Any]:
        """Ask for the status until ``condition`` holds; `ProgramError` if it does not in time."""
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
        """SIGKILL the supervisor; returns when its hosts have ended too, `ProgramError` if they do not."""
        self._killed = True
        self.process.send_signal(signal.SIGKILL)
        await self.wait_end()
        await wait_gone(self.living_hosts())

    async def end(self, how: signal.Signals = signal.SIGINT) -> None:
        """Ask it to end, and judge how it does; a second call does nothing."""
        if self._killed:
            return
        await self.stop(how)
        left = self.living_hosts()
        if left:
            raise self.error(f"host processes {left} outlived the lab")
        sockets = self.sockets()
        if sockets:
            raise self.error(f"sockets were left behind: {sockets}")

    def living_hosts(self) -> list[int]:
        """Those of `host_pids` that are still what they were: the system gives numbers out again."""
        return sorted(pid for pid in self.host_pids if self._is_host(pid))

    def _is_host(self, pid: int) -> bool:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            return False
        return is_alive(pid) and any(word.startswith(os.fsencode(self.directory)) for word in words)

    def sockets(self) -> list[Path]:
        """The socket files of the lab that exist."""
        place = control_socket_of(self.directory).parent
        return sorted(path for path in place.iterdir() if path.is_socket()) if place.exists() else []


async def _kill_all(lab: RunningLab) -> None:
    """After a failure: leave no process of the lab behind."""
    for pid in lab.living_hosts():
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

    ``volumes`` maps names to bytes.  ``in_sync``: `RunningLab.wait_in_sync`.  Raises `ProgramError` with what
    the lab said if it does not come up or does not end in order; after an error of the block's own the lab
    is killed.
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
