"""Outside programs under control: every one has a deadline, its own process group, and is gone afterwards.

Invariants: `run` returns only when the program and its group have ended; a `Server` that was entered is
stopped and reaped when its ``with`` block is left, by whatever way (Ctrl-C included).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

__all__ = [
    "BenchError",
    "Server",
    "cpu_seconds",
    "free_port",
    "log",
    "require",
    "run",
    "stop_group",
    "until",
    "with_children",
]

STOP_S = 15.0
"""How long a program may take to end after it was asked to; then it is killed."""

_STARTED = time.monotonic()


class BenchError(Exception):
    """A measurement could not be taken; the message says which program failed and what it said."""


def log(text: str) -> None:
    """Write one line of progress on stderr, with the seconds since the start."""
    print(f"[{time.monotonic() - _STARTED:6.1f}] {text}", file=sys.stderr, flush=True)


def require(*programs: str) -> None:
    """Raise `BenchError` naming every one of `programs` that is not installed."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise BenchError(
            f"not installed: {', '.join(missing)} (`make install` says which packages have them)"
        )


def stop_group(process: subprocess.Popen[bytes], *, polite: signal.Signals, wait_s: float = STOP_S) -> None:
    """End `process` and its group: first politely, after `wait_s` seconds by SIGKILL; reap it."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(polite)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait_s)
    # The group outlives its leader if that left children behind.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a program to its end and return its standard output.

    Raises `BenchError` with the tail of its output if it fails or takes longer than `timeout_s` seconds.
    """
    name = " ".join(str(word) for word in argv)[:200]
    with subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **(env or {})},
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as problem:
            raise BenchError(f"not done after {timeout_s:g} s: {name}") from problem
        finally:
            stop_group(process, polite=signal.SIGTERM, wait_s=1.0)
    if process.returncode != 0:
        tail = (out + err).decode(errors="replace").strip()[-800:]
        raise BenchError(f"exit code {process.returncode}: {name}\n{tail}")
    return out.decode(errors="replace")


def until(condition: Callable[[], bool], *, timeout_s: float, what: str, pause_s: float = 0.02) -> None:
    """Ask `condition` every `pause_s` seconds until it holds; raise `BenchError` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"not within {timeout_s:g} s: {what}")
        time.sleep(pause_s)


def free_port() -> int:
    """Return a TCP port of the loopback interface that nobody listens on right now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _answers(address: str | tuple[str, int]) -> bool:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(address)
        except OSError:
            return False
    return True


class Server:
    """A program that serves until it is stopped; its output goes to a log file that errors quote."""

    def __init__(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        listens_on: str | tuple[str, int],
        log_path: Path,
    ) -> None:
        self._argv = argv
        self._listens_on = listens_on
        self._log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id; the server must have been entered."""
        if self._process is None:
            raise BenchError(f"not started: {self._argv[0]}")
        return self._process.pid

    def __enter__(self) -> Self:
        sink: IO[bytes]
        with self._log_path.open("ab") as sink:
            self._process = subprocess.Popen(
                self._argv, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True
            )
        try:
            until(self._up, timeout_s=10.0, what=f"{self._argv[0]} listens on {self._listens_on}")
        except BaseException:
            stop_group(self._process, polite=signal.SIGTERM, wait_s=1.0)
            raise
        return self

    def _up(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            tail = self._log_path.read_text(errors="replace")[-800:]
            raise BenchError(f"{self._argv[0]} ended at once:\n{tail}")
        return _answers(self._listens_on)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            stop_group(self._process, polite=signal.SIGTERM)


def _parents() -> Iterator[tuple[int, int]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                yield int(entry.name), int(fields[1])


def with_children(pid: int) -> list[int]:
    """Return `pid` and all its living descendants."""
    children: dict[int, list[int]] = {}
    for child, parent in _parents():
        children.setdefault(parent, []).append(child)
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def cpu_seconds(pids: Sequence[int]) -> float:
    """Return the processor time, user and system, that the processes have used so far."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
