"""Victims for the guard, and how quickly they die: ``python -m pairsync.testing.guarding --runs 200``.

`VICTIM` is a program that appends the time to a file for as long as it lives; ``--host DIR`` makes one that
keeps such a victim under guard, renews its lease, and writes down each time at which its own door would let
an acknowledgement out.  Tests kill, stop and continue both; their files tell afterwards what ran when.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from pairsync.core.units import NS_PER_MS, NS_PER_S, NS_PER_US
from pairsync.node.guardclient import boottime_ns, open_guard

__all__ = [
    "VICTIM",
    "KillDelay",
    "describe",
    "main",
    "measure_kill_delays",
    "read_times",
    "run_host",
    "start_victim",
]

VICTIM = (
    "import os, struct, sys, time\n"
    "file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n"
    "while True:\n"
    "    os.write(file, struct.pack('<q', time.clock_gettime_ns(time.CLOCK_BOOTTIME)))\n"
    "    time.sleep(0.0002)\n"
)
"""With a file's name as its argument."""

BUSY = "while True:\n    pass\n"

_TIME = struct.Struct("<q")
DOOR_S = 0.001  # between two acknowledgements of the host here
SAW_S = 30.0  # how long a victim may take to write its first time on a busy machine
LEASE_NS = 150 * NS_PER_MS  # of a run that measures


def read_times(path: Path) -> list[int]:
    """What was written there, in nanoseconds of CLOCK_BOOTTIME; a half-written end is left out."""
    content = path.read_bytes()
    return [each[0] for each in _TIME.iter_unpack(content[: len(content) // _TIME.size * _TIME.size])]


async def start_victim(path: Path) -> trio.Process:
    """A victim that leads a process group of its own and has begun to write."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        command = [sys.executable, "-I", "-S", "-c", VICTIM, os.fspath(path)]
        process = await trio.lowlevel.open_process(command, stdin=subprocess.DEVNULL, start_new_session=True)
        with trio.fail_after(SAW_S):
            while not os.fstat(file).st_size:  # noqa: ASYNC110 - nobody tells
                await trio.sleep(DOOR_S)
    finally:
        os.close(file)
    return process


# ------------------------------------------------------------------ a host


async def run_host(
    directory: Path, *, lease_ns: int, renew_ns: int, spare: bool, watchdog: Path | None
) -> None:
    """See the module; ``victim`` and ``acks`` in the directory take the times.

    A line on standard input: ``hold`` ends the renewals, ``disarm`` the deadline too, ``end`` everything.
    """

    def tell(event: str, **fields: object) -> None:
        sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
        sys.stdout.flush()

    async with open_guard(kill_host=not spare, watchdog=watchdog) as guard, trio.open_nursery() as nursery:
        victim = await start_victim(directory / "victim")
        await guard.add_group(victim.pid)
        renewing = trio.CancelScope()

        async def renew() -> None:
            with renewing:
                while True:
                    guard.arm(boottime_ns() + lease_ns)
                    await trio.sleep(renew_ns / NS_PER_S)

        async def door() -> None:
            file = os.open(directory / "acks", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            while True:
                now_ns = boottime_ns()
                if guard.lease_valid(now_ns):
                    os.write(file, _TIME.pack(now_ns))
                await trio.sleep(DOOR_S)

        async def mourn() -> None:
            await guard.lost.wait()
            tell("lost", reason=guard.lost_reason)
            os.killpg(victim.pid, signal.SIGKILL)
            await victim.wait()
            nursery.cancel_scope.cancel()

        for task in (renew, door, mourn):
            nursery.start_soon(task)
        tell("ready", guard=guard.pid, victim=victim.pid, about=guard.about)
        async for chunk in trio.lowlevel.FdStream(os.dup(0)):
            for word in chunk.decode().split():
                if word == "end":
                    nursery.cancel_scope.cancel()
                    break
                renewing.cancel()
                if word == "disarm":
                    guard.disarm()
                await guard.settled()
                tell(word, until_ns=guard.valid_until_ns)


# ------------------------------------------------------------------ how quickly


@dataclass(frozen=True, slots=True)
class KillDelay:
    """From the deadline: until the victim's last sign of life, and until its process was gone."""

    last_ns: int
    gone_ns: int


async def _measure_one(directory: Path) -> KillDelay:
    async with open_guard(kill_host=False) as guard:
        victim = await start_victim(directory / "victim")
        await guard.add_group(victim.pid)
        deadline_ns = boottime_ns() + LEASE_NS
        guard.arm(deadline_ns)
        await guard.settled()
        await victim.wait()
        gone_ns = boottime_ns()
    return KillDelay(read_times(directory / "victim")[-1] - deadline_ns, gone_ns - deadline_ns)


async def measure_kill_delays(runs: int, *, busy: int = 0) -> list[KillDelay]:
    """So many victims, one after the other, beside ``busy`` processes that do nothing but compute."""
    command = [sys.executable, "-I", "-S", "-c", BUSY]
    async with trio.open_nursery() as nursery:
        for _ in range(busy):
            nursery.start_soon(trio.run_process, command)
        with tempfile.TemporaryDirectory() as directory:
            results = [await _measure_one(Path(directory)) for _ in range(runs)]
        nursery.cancel_scope.cancel()
    return results


def describe(name: str, values_ns: Sequence[int]) -> str:
    """Median, 99th percentile and maximum in microseconds."""
    ordered = sorted(values_ns)
    figures = (statistics.median(ordered), ordered[(len(ordered) * 99 - 1) // 100], ordered[-1])
    p50, p99, most = (f"{value / NS_PER_US:.0f}" for value in figures)
    return f"{name}: p50 {p50} us, p99 {p99} us, max {most} us, n = {len(ordered)}"


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="pairsync.testing.guarding")
    parser.add_argument("--host", type=Path, help="be a host with its files in that directory")
    parser.add_argument("--lease-ms", type=int, default=500)
    parser.add_argument("--renew-ms", type=int, default=50)
    parser.add_argument("--spare-host", action="store_true")
    parser.add_argument("--watchdog", type=Path)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--busy", type=int, default=2 * (os.cpu_count() or 1))
    given = parser.parse_args()
    if given.host is not None:
        lease_ns, renew_ns = given.lease_ms * NS_PER_MS, given.renew_ms * NS_PER_MS
        trio.run(
            partial(
                run_host,
                given.host,
                lease_ns=lease_ns,
                renew_ns=renew_ns,
                spare=given.spare_host,
                watchdog=given.watchdog,
            )
        )
        return 0
    delays = trio.run(partial(measure_kill_delays, given.runs, busy=given.busy))
    print(describe("last sign of life after the deadline", [each.last_ns for each in delays]))  # noqa: T201
    print(describe("process gone after the deadline", [each.gone_ns for each in delays]))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
