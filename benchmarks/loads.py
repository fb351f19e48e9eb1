"""What several rows do: random loads in turns, standbys that go and come back, and what is told of them."""

from __future__ import annotations

import re
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import clients
from benchmarks.contest import MIB, SETTLE_S, Bench, alternate
from benchmarks.ours import CatchUp, Lab
from benchmarks.peers import Contender
from benchmarks.procs import log

__all__ = [
    "Samples",
    "fitting",
    "iops",
    "latencies",
    "lose_standby",
    "random_load",
    "sample",
    "sync_again",
    "sync_first",
    "sync_fully",
    "times",
]

Samples = Mapping[str, Sequence[clients.Sample]]

WARM_TIMES = 3
"""Memory that is touched before a timed sync, in sizes of the volume: with one, a fifth of the time of the
standby still went into getting memory back; without, half of it."""


def random_load(bench: Bench, contenders: Sequence[Contender], job: str, depth: int) -> Samples:
    """4 KiB at random by every contender in turns, in the sizes of the pass."""
    load = clients.Load(job=job, depth=depth, size_bytes=bench.sizes.random, seconds=bench.seconds)

    def measure(contender: Contender, turn: int) -> clients.Sample:
        return sample(load, contender, turn)

    return alternate(contenders, bench.rounds, measure)


def sample(load: clients.Load, contender: Contender, turn: int) -> clients.Sample:
    """One run of ``load``, shown."""
    seen = clients.random_io(load, contender.uri, seed=turn + 1, pids=contender.pids)
    log(f"  {contender.name}: {seen}")
    return seen


def iops(samples: Samples) -> dict[str, list[float]]:
    """The rates alone."""
    return {name: [each.iops for each in taken] for name, taken in samples.items()}


def latencies(samples: Samples) -> dict[str, Any]:
    """The medians of the rest, as details of a figure."""
    return {
        name: {
            "p50_us": statistics.median(each.p50_us for each in taken),
            "p99_us": statistics.median(each.p99_us for each in taken),
            "servers_cpu_us": statistics.median(each.cpu_us for each in taken),
        }
        for name, taken in samples.items()
    }


def lose_standby(lab: Lab) -> None:
    """Kill host b and return once the active host acknowledges writes alone."""
    lab.kill("b")
    clients.probe_write(lab.uri(), timeout_s=SETTLE_S)


def times(catch_ups: Sequence[CatchUp]) -> dict[str, Any]:
    """All three times of each catch-up, as details of a figure."""
    return {
        "timed_from": sorted({one.judged_from for one in catch_ups}),
        "from_command_s": [one.wall for one in catch_ups],
        "from_link_s": [one.link for one in catch_ups],
        "from_resync_s": [one.resync for one in catch_ups],
    }


def sync_fully(lab: Lab, size_bytes: int, *, seed: int) -> CatchUp:
    """Write every block while the standby is away, then let it catch up."""
    lose_standby(lab)
    clients.fill(lab.uri(), size_bytes=size_bytes, seed=seed)
    return lab.catch_up(timeout_s=2 * SETTLE_S)


def sync_first(bench: Bench, lab: Lab, size_bytes: int) -> CatchUp:
    """Put an empty disk in the place of the standby's, then let it catch up: nothing is kept."""
    lab.kill("b")
    lab.empty_disk("b")
    return _timed(bench, lab, size_bytes, "first full sync")


def sync_again(bench: Bench, lab: Lab, size_bytes: int, *, seed: int) -> CatchUp:
    """As `sync_fully`: the standby has old content, which is kept meanwhile."""
    lose_standby(lab)
    clients.fill(lab.uri(), size_bytes=size_bytes, seed=seed)
    return _timed(bench, lab, size_bytes, "resync over old content")


def _timed(bench: Bench, lab: Lab, size_bytes: int, what: str) -> CatchUp:
    _warm_up(bench, WARM_TIMES * size_bytes)
    took = lab.catch_up(timeout_s=2 * SETTLE_S)
    log(f"  {what}: {size_bytes / 1e6 / took.judged:.0f} MB/s, {took}")
    return took


def _warm_up(bench: Bench, size_bytes: int) -> None:
    """Take memory and give it back, where the volumes lie in memory.

    What a virtual machine has had free for a second or two has gone back to its host, and to get a page again
    takes several times as long as to copy one.  An empty disk is filled from what the one before it has left;
    what is kept of old content would have to be paid for.
    """
    if not bench.base.is_relative_to("/dev/shm"):
        return
    piece = bytes(MIB)
    path = bench.base / "warm"
    with path.open("wb", buffering=0) as file:
        for _ in range(min(size_bytes, _available_bytes() // 2) // MIB):
            file.write(piece)
    path.unlink()


def _available_bytes() -> int:
    """Memory that can be had: a file in memory may take less than its file system would allow."""
    available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    return int(available[1]) * 1024 if available else 0


def fitting(bench: Bench, wanted_bytes: int) -> int:
    """Halve the size until both replicas fit where the volumes lie, with an eighth to spare."""
    free = shutil.disk_usage(bench.base).free
    if bench.base.is_relative_to("/dev/shm"):
        free = min(free, _available_bytes() or free)
    size_bytes = wanted_bytes
    while size_bytes * 2.25 > free and size_bytes > 64 * MIB:
        size_bytes //= 2
    if size_bytes < wanted_bytes:
        log(f"  note: {size_bytes // MIB} instead of {wanted_bytes // MIB} MiB: {free // MIB} MiB are free")
    return size_bytes
