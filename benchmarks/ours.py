"""Our side: a whole pair on this machine, driven by nothing but the fixed interface of ``pairsync lab``.

`Lab` starts ``lab up`` and reads its standard output: the ready line, then an event a line.  Commands
(``kill``, ``start``, ``wait`` ...) are separate programs.  What the ready line and the events mean:

- ``hosts.NAME.pid``, ``.link`` ("address:port") and ``.volumes.VOLUME.uri`` / ``.path`` of the ready line;
- the ``event`` of a line is its name, ``host`` who says so, ``monotonic_ns`` when by that clock; a line
  without that clock is timed when it arrives.

Invariant: when the ``with`` block of a `Lab` is left, none of its processes is alive.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from benchmarks.procs import BenchError, log, run, stop_group, until, with_children

__all__ = ["CatchUp", "Event", "Lab", "find_command"]

READY_S = 60.0
"""How long ``lab up`` may take until it is ready."""
COMMAND_S = 60.0
"""How long a lab command may take, beyond what it was asked to wait."""
EVENT_S = 3.0
"""How long an event may trail the command that waited for what it reports."""

_Found = TypeVar("_Found")

# What marks the ends of a catch-up in the events of the active host.
IN_SYNC = "in-sync"
LINK_UP = "connected"
LINK_DOWN = "peer-lost"
RESYNC = "resync"
SETBACKS = frozenset({"peer-lost", "refused", "trouble"})
"""What should not happen in a catch-up: shown, for it explains an odd time."""


@dataclass(frozen=True)
class Event:
    """One line of the lab: its name, when it arrived (monotonic), and all it says."""

    name: str
    at_ns: int
    body: dict[str, Any]


@dataclass(frozen=True)
class CatchUp:
    """How long a standby took to be in sync again, in seconds, from three starting points.

    ``wall`` begins at the command that brought the standby or the link back (so it holds the start of a
    process); ``link`` at the first event of a standing link, ``resync`` at the first of a running resync;
    None where the lab did not report it.
    """

    wall: float
    link: float | None
    resync: float | None

    def __str__(self) -> str:
        parts = {"command": self.wall, "link": self.link, "resync": self.resync}
        known = [f"{seconds:.3f} s from the {name}" for name, seconds in parts.items() if seconds is not None]
        return ", ".join(known)

    @property
    def judged(self) -> float:
        """From the standing link, so without the start of a process; else the next best."""
        return next(seconds for seconds in (self.link, self.resync, self.wall) if seconds is not None)

    @property
    def judged_from(self) -> str:
        """Which of the three `judged` is."""
        return "link" if self.link is not None else "resync" if self.resync is not None else "wall"


def find_command(given: str | None) -> str:
    """Return the pairsync command: `given`, or the one beside this Python, or that of the PATH.

    Raises `BenchError` if there is none with a lab.
    """
    beside = Path(sys.executable).with_name("pairsync")
    command = given or (str(beside) if beside.exists() else shutil.which("pairsync"))
    if not command:
        raise BenchError("no pairsync command beside this Python: `make install` makes one")
    try:
        run([command, "lab", "--help"], timeout_s=COMMAND_S)
    except (BenchError, OSError) as problem:
        raise BenchError(f"{command} has no lab: {problem}") from problem
    return command


def _name(word: object) -> str:
    return str(word).lower().replace("_", "-")


class Lab:
    """A pair (or, `single`, one host without replication) that lives as long as the ``with`` block."""

    def __init__(
        self,
        command: str,
        directory: Path,
        volumes: dict[str, int],
        *,
        level: str = "sync",
        single: bool = False,
        digests: bool = True,
        witness: str = "builtin",
    ) -> None:
        self._command = command
        self._directory = directory
        self._argv = [command, "lab", "up", str(directory)]
        for name, size_bytes in volumes.items():
            self._argv += ["--volume", f"{name}={size_bytes >> 20}M"]
        self._argv += ["--single"] if single else ["--level", level, "--witness", witness]
        self._argv += [] if digests else ["--no-digests"]
        self._argv += ["--json"]
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        # Only grows; filled by the reader thread, guarded by the condition.
        self._events: list[Event] = []
        self._ended = False
        self._changed = threading.Condition()
        self._hosts: dict[str, Any] = {}

    def __enter__(self) -> Self:
        log_path = self._directory.with_name(f"{self._directory.name}.log")
        with log_path.open("ab") as sink:
            self._process = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=sink,
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self._hosts = self._ready(log_path)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _ready(self, log_path: Path) -> dict[str, Any]:
        first = self._await(lambda events: events[0] if events else None, READY_S)
        if first is None or first.name != "ready":
            tail = log_path.read_text(errors="replace")[-800:]
            said = first.body if first else "nothing"
            raise BenchError(f"{' '.join(self._argv)}: the first line is not ready but {said}\n{tail}")
        hosts: dict[str, Any] = first.body["hosts"]
        return hosts

    def _read(self) -> None:
        stream = self._process.stdout if self._process else None
        if stream is None:
            return
        with stream:
            for line in stream:
                at_ns = time.monotonic_ns()
                try:
                    body = json.loads(line)
                except ValueError:
                    body = {"event": "not-json", "line": line.decode(errors="replace")}
                if not isinstance(body, dict):
                    body = {"event": "not-json", "line": body}
                with self._changed:
                    self._events.append(Event(_name(body.get("event")), at_ns, body))
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _await(self, find: Callable[[Sequence[Event]], _Found | None], timeout_s: float) -> _Found | None:
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                found = find(self._events)
                left = deadline - time.monotonic()
                if found is not None or self._ended or left <= 0:
                    return found
                self._changed.wait(left)

    def _stop(self) -> None:
        if self._process is None:
            return
        stop_group(self._process, polite=signal.SIGINT)
        if self._process.returncode not in {0, -signal.SIGINT, 130}:
            log(f"note: `lab up` ended with {self._process.returncode}")
        # A host that was started by `lab start` may be in no group of ours: found by its command line.
        for pid in self._strays():
            log(f"note: process {pid} outlived its lab; killed")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._reader is not None:
            self._reader.join(EVENT_S)
        self._process = None

    def _strays(self) -> list[int]:
        mark, found = os.fsencode(self._directory), []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if mark in (entry / "cmdline").read_bytes():
                        found.append(int(entry.name))
        return found

    # What the ready line says.

    def uri(self, volume: str = "vda", host: str = "a") -> str:
        """The NBD address of a volume."""
        return str(self._hosts[host]["volumes"][volume]["uri"])

    def path(self, volume: str = "vda", host: str = "a") -> Path:
        """The file that holds a volume."""
        return Path(self._hosts[host]["volumes"][volume]["path"])

    def link_ports(self) -> list[int]:
        """The TCP ports of the link."""
        links = [str(host["link"]) for host in self._hosts.values() if host.get("link")]
        return sorted({int(link.rpartition(":")[2]) for link in links})

    def pid(self, host: str) -> int:
        """The process of a host now (a restart changes it)."""
        return int(self.status()["hosts"][host]["pid"])

    def pids(self) -> list[int]:
        """All processes of the lab now."""
        children = with_children(self._process.pid) if self._process else []
        return sorted({*children, *self._strays()})

    # Commands.

    def _lab(self, *words: str, timeout_s: float = COMMAND_S) -> str:
        return run([self._command, "lab", words[0], str(self._directory), *words[1:]], timeout_s=timeout_s)

    def status(self) -> dict[str, Any]:
        """What the lab says about itself."""
        answer: dict[str, Any] = json.loads(self._lab("status", "--json"))
        return answer

    def kill(self, host: str) -> None:
        """SIGKILL a host; return when its process is gone."""
        pid = self.pid(host)
        self._lab("kill", host)
        until(lambda: not _alive(pid), timeout_s=10.0, what=f"host {host} is gone")

    def start(self, host: str) -> None:
        """Start a host that was killed."""
        self._lab("start", host)

    def wait_in_sync(self, timeout_s: float = 120.0) -> None:
        """Wait until both hosts are in sync."""
        self._lab("wait", "--in-sync", "--timeout", f"{timeout_s:.0f}", timeout_s=timeout_s + COMMAND_S)

    def empty_disk(self, host: str, volume: str = "vda") -> None:
        """Put an empty disk in the place of a replica."""
        self._lab("disk", host, volume, "replace")

    def cut(self) -> None:
        """Cut the link; return when the active host has noticed."""
        seen = len(self._events)
        self._lab("cut")
        if self._await(lambda events: _first(events[seen:], LINK_DOWN), COMMAND_S) is None:
            raise BenchError("the link was cut and the active host has not told")

    def scrub(self, *, timeout_s: float) -> list[dict[str, Any]]:
        """Scrub all volumes on demand; what is told of each."""
        text = self._lab("scrub", "--json", timeout_s=timeout_s)
        volumes: dict[str, dict[str, Any]] = json.loads(text).get("volumes", {})
        told = list(volumes.values())
        if not told or not all({"bytes", "seconds", "findings"} <= each.keys() for each in told):
            raise BenchError(f"`lab scrub` told {text}")
        return told

    def events_since(self, seen: int) -> tuple[list[Event], int]:
        """What was told after the first ``seen`` events, and how many there are now."""
        with self._changed:
            return self._events[seen:], len(self._events)

    def await_event(self, name: str, *, seen: int, timeout_s: float) -> Event:
        """The first event of that name by the active host after the first ``seen``."""
        found = self._await(lambda events: _first(events[seen:], name), timeout_s)
        if found is None:
            raise BenchError(f"no {name} within {timeout_s:g} s")
        return found

    def catch_up(self, *, timeout_s: float, command: Sequence[str] = ("start", "b")) -> CatchUp:
        """Start host b (or ``heal`` the link) and time how long the pair takes to be in sync."""
        seen = len(self._events)
        started_ns = time.monotonic_ns()
        self._lab(*command)
        self.wait_in_sync(timeout_s)
        waited_ns = time.monotonic_ns()
        synced = self._await(lambda events: _first(events[seen:], IN_SYNC), EVENT_S)
        if synced is None:
            # Only the wait says so.
            return CatchUp(wall=(waited_ns - started_ns) / 1e9, link=None, resync=None)
        news = self._events[seen:]
        for event in news:
            if event.name in SETBACKS:
                log(f"  note: {event.body.get('host', '?')}: {event.body.get('text', event.body)}")
        return CatchUp(
            wall=(max(waited_ns, synced.at_ns) - started_ns) / 1e9,
            link=_between(_first(news, LINK_UP), synced),
            resync=_between(_first(news, RESYNC), synced),
        )


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in {"Z", "X"}


def _first(events: Sequence[Event], name: str) -> Event | None:
    """The first event of that name, of the active host where the lines say whose they are."""
    for event in events:
        if event.name == name and event.body.get("host", "a") == "a":
            return event
    return None


def _between(earlier: Event | None, later: Event) -> float | None:
    """Seconds between two events of one host, by its own clock if it states it."""
    if earlier is None:
        return None
    stamps = [event.body.get("monotonic_ns") for event in (earlier, later)]
    if isinstance(stamps[0], int) and isinstance(stamps[1], int):
        return (stamps[1] - stamps[0]) / 1e9
    return (later.at_ns - earlier.at_ns) / 1e9
