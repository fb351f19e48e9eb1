"""The clients that load a contender: fio with its NBD engine, and nbdcopy.  The same for everybody.

Every job stands in ``jobs/*.fio`` and takes what varies from the environment, so what was run can be run
again by hand.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.procs import BenchError, cpu_seconds, run

__all__ = ["Load", "Sample", "copy_in", "fill", "probe_write", "random_io", "scatter", "sprinkle", "trim"]

_JOBS = Path(__file__).parent / "jobs"
_SLACK_S = 60.0
"""How much longer than planned a client may take before it counts as hung."""
_SLOWEST_BYTES_S = 20_000_000
"""A contender slower than this is taken for hung."""


@dataclass(frozen=True)
class Sample:
    """What one run of fio saw; `cpu_us` is the processor time of the servers an operation."""

    iops: float
    p50_us: float
    p99_us: float
    cpu_us: float

    def __str__(self) -> str:
        rate = f"{self.iops:.0f} IOPS, p50 {self.p50_us:.0f} us, p99 {self.p99_us:.0f} us"
        return f"{rate}, servers' processor time {self.cpu_us:.1f} us an operation"


@dataclass(frozen=True)
class Load:
    """A time-based random load: ``job`` is ``randread`` or ``randwrite``."""

    job: str
    depth: int
    size_bytes: int
    seconds: float


def _fio(job: str, uri: str, *, timeout_s: float, values: Mapping[str, object]) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(prefix="pairsync-bench-", suffix=".json") as output:
        run(
            ["fio", "--output-format=json", f"--output={output.name}", _JOBS / f"{job}.fio"],
            timeout_s=timeout_s,
            env={"URI": uri, **{name: str(value) for name, value in values.items()}},
        )
        text = Path(output.name).read_text()
    # fio puts notices of its engines in front of the document.
    result: dict[str, Any] = json.loads(text[text.index("{") :])["jobs"][0]
    if result["error"]:
        raise BenchError(f"fio {job} at {uri}: error {result['error']}")
    return result


def random_io(load: Load, uri: str, *, seed: int, pids: Callable[[], Sequence[int]]) -> Sample:
    """Run `load` and return what it saw."""
    busy = cpu_seconds(pids())
    result = _fio(
        load.job,
        uri,
        timeout_s=load.seconds + _SLACK_S,
        values={
            "DEPTH": load.depth,
            "SIZE": load.size_bytes,
            "SECONDS_EACH": f"{load.seconds * 1000:.0f}ms",
            "SEED": seed,
        },
    )
    busy = cpu_seconds(pids()) - busy
    side = result["read" if load.job == "randread" else "write"]
    percentile = side["lat_ns"]["percentile"]
    return Sample(
        iops=side["iops"],
        p50_us=percentile["50.000000"] / 1000,
        p99_us=percentile["99.000000"] / 1000,
        cpu_us=busy * 1e6 / max(1, side["total_ios"]),
    )


def fill(uri: str, *, size_bytes: int, seed: int) -> float:
    """Write `size_bytes` of random data from the start; return bytes a second."""
    timeout_s = _SLACK_S + size_bytes / _SLOWEST_BYTES_S
    result = _fio("fill", uri, timeout_s=timeout_s, values={"SIZE": size_bytes, "SEED": seed})
    return float(result["write"]["bw_bytes"])


def scatter(uri: str, *, size_bytes: int, count: int, seed: int) -> int:
    """Overwrite `count` different 4 KiB blocks all over the volume; return the bytes written."""
    result = _fio(
        "scatter", uri, timeout_s=_SLACK_S, values={"SIZE": size_bytes, "COUNT": count, "SEED": seed}
    )
    written = int(result["write"]["io_bytes"])
    if written != count * 4096:
        raise BenchError(f"fio wrote {written} bytes, not {count} blocks")
    return written


def sprinkle(uri: str, *, size_bytes: int, piece_bytes: int, bytes_: int, seed: int) -> None:
    """Write ``bytes_`` of random data in different pieces all over the volume."""
    result = _fio(
        "sprinkle",
        uri,
        timeout_s=_SLACK_S + bytes_ / _SLOWEST_BYTES_S,
        values={
            "SIZE": size_bytes,
            "PIECE": piece_bytes,
            "COUNT": max(1, bytes_ // piece_bytes),
            "SEED": seed,
        },
    )
    if not result["write"]["io_bytes"]:
        raise BenchError("fio wrote nothing")


def probe_write(uri: str, *, timeout_s: float) -> None:
    """Write one block; return when it was acknowledged."""
    _fio("scatter", uri, timeout_s=timeout_s, values={"SIZE": 4096, "COUNT": 1, "SEED": 1})


def trim(uri: str, *, size_bytes: int) -> None:
    """Discard the first `size_bytes` of the export."""
    run(["qemu-io", "-f", "raw", "-c", f"discard 0 {size_bytes}", uri], timeout_s=_SLACK_S)


def copy_in(source: Path, uri: str) -> float:
    """Copy the file `source` to the start of the export with nbdcopy, flushed; return bytes a second."""
    size_bytes = source.stat().st_size
    started_ns = time.monotonic_ns()
    run(["nbdcopy", "--flush", source, uri], timeout_s=_SLACK_S + size_bytes / _SLOWEST_BYTES_S)
    return size_bytes * 1e9 / (time.monotonic_ns() - started_ns)
