"""The row of the witness: a thousand pairs at rest against one process, and how fast they may swap.

The hosts are one program (``witnessload.py``), the witness is the command as a user runs it.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.contest import Bench, Goal
from benchmarks.counters import LinkCounter
from benchmarks.procs import BenchError, Server, cpu_seconds, free_port, log, run, stop_group
from benchmarks.report import Figure, Judge

__all__ = ["witness"]

_REST_SHARE = 8
"""A rest lasts so many times longer than a timed load: half a minute unless told otherwise."""
_INIT_S = 60.0
_SETTLE_SHARE = 8
"""From the last connection to the rest: the first beats of all hosts, each of which takes a buffer for good,
come within ten seconds."""


def _resident_bytes(pid: int) -> int:
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


class _Hosts:
    """The program that is all hosts."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def hear(self) -> dict[str, Any]:
        """Its next line."""
        if self._process.stdout is None:
            raise BenchError("the hosts have no output")
        line = self._process.stdout.readline()
        if not line:
            raise BenchError("the hosts of the witness have ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def tell(self, words: str) -> dict[str, Any]:
        """Have something done; what it says of it."""
        if self._process.stdin is None:
            raise BenchError("the hosts have no input")
        self._process.stdin.write(words.encode() + b"\n")
        self._process.stdin.flush()
        return self.hear()


@contextlib.contextmanager
def _hosts(directory: Path, port: int, count: int) -> Iterator[_Hosts]:
    program = Path(__file__).with_name("witnessload.py")
    argv = [sys.executable, str(program), str(directory), f"127.0.0.1:{port}", str(count)]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            yield _Hosts(process)
        finally:
            stop_group(process, polite=signal.SIGTERM)


def witness(bench: Bench) -> list[Figure]:
    """Row 15: bytes and memory at rest, a pair and second; for information, swaps a second."""
    count = bench.sizes.pairs
    what = f"witness, {count} pairs"
    wire = Goal(
        row="15 wire",
        what=f"{what} at rest: traffic of a pair",
        unit="B/s",
        judge=Judge.OURS_ALONE,
        bar=1000.0,
        aim=100.0,
    )
    memory = Goal(
        row="15 memory",
        what=f"{what} at rest: growth of memory, a pair and second",
        unit="B",
        judge=Judge.OURS_ALONE,
        bar=100.0,
        aim=10.0,
    )
    swaps = Goal(
        row="15 swaps", what=f"{what}: swaps", unit="1/s", judge=Judge.OURS_ALONE, bar=None, aim=None
    )
    if bench.command is None:
        return [goal.figure() for goal in (wire, memory, swaps)]
    port = free_port()
    with bench.directory("witness") as directory, contextlib.ExitStack() as stack:
        run(
            [bench.command, "witness", "init", str(directory), "--listen", f"127.0.0.1:{port}"],
            timeout_s=60.0,
        )
        hosts = stack.enter_context(_hosts(directory, port, count))
        log(f"  {hosts.hear()}")
        argv = [bench.command, "witness", "serve", str(directory)]
        log_path = bench.base / "witness.log"
        server = stack.enter_context(Server(argv, listens_on=("127.0.0.1", port), log_path=log_path))
        log(f"  {hosts.tell('connect')}")
        time.sleep(bench.seconds * _SETTLE_SHARE)
        rest = _rest(server.pid, port, bench.seconds * _REST_SHARE)
        rates = [float(hosts.tell(f"swap {bench.seconds}")["swaps_per_s"]) for _ in range(bench.heavy_rounds)]
    log(f"  {rest}, {rates} swaps a second")
    pair_seconds = count * rest["seconds"]
    return [
        wire.figure(ours=[rest["bytes"] / pair_seconds], details=rest),
        memory.figure(ours=[rest["grown_bytes"] / pair_seconds]),
        swaps.figure(ours=rates),
    ]


def _rest(pid: int, port: int, seconds: float) -> dict[str, Any]:
    """What a witness that nobody asks anything costs."""
    with LinkCounter([port]).counting() as counter:
        payload = counter.payload()
        before, cpu = _resident_bytes(pid), cpu_seconds([pid])
        time.sleep(seconds)
        grown = _resident_bytes(pid) - before
        counted, source = counter.judged(counter.payload() - payload)
        return {
            "seconds": seconds,
            "bytes": counted,
            "counter": source,
            "grown_bytes": max(grown, 0),
            "resident_mib": before / 2**20,
            "cpu_share": (cpu_seconds([pid]) - cpu) / seconds,
        }
