#!/usr/bin/env python3
"""Profile one host process of a loaded pair: where its time goes, function by function.

``python benchmarks/hostprofile.py --host a --job randwrite --depth 32 --seconds 8`` starts a lab, loads it
with the job of the benchmark, samples the host with py-spy (``pip install py-spy``; not a dependency) and
prints the functions by their own time and by the time below them.  ``--syscalls`` counts system calls with
strace instead, which slows the host down: read the counts, not the rates.  Needs leave to trace (root).
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

# Run as a script: see run.py.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import clients
from benchmarks.contest import MIB, SETTLE_S
from benchmarks.ours import Lab, find_command
from benchmarks.procs import BenchError, log, stop_group

SHOWN = 30
"""Lines of each list."""
RATE_HZ = 200
"""Samples a second: few enough that two cores stay for the work."""
WAITING = ("Condition.wait ", "EpollIOManager.get_events ", "epoll_wait ", "wait (threading.py")
"""Where a thread that has nothing to do stands."""
GRACE_S = 30.0
"""How long the profiler may take to write what it has."""


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--host", choices=("a", "b"), default="a")
    parser.add_argument("--job", choices=("randwrite", "randread"), default="randwrite")
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--size", type=int, default=256, metavar="MIB")
    parser.add_argument("--dir", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--single", action="store_true", help="one host without replication")
    parser.add_argument("--syscalls", action="store_true", help="count system calls with strace")
    parser.add_argument("--native", action="store_true", help="C functions too, and threads that wait")
    parser.add_argument("--output", type=Path, help="keep the collapsed stacks (for a flame graph) there")
    parser.add_argument("--pairsync", metavar="COMMAND", help="our command (beside this Python)")
    return parser.parse_args(words)


def _spy() -> str:
    beside = Path(sys.executable).with_name("py-spy")
    command = str(beside) if beside.exists() else shutil.which("py-spy")
    if command is None:
        raise BenchError("py-spy is not installed: `pip install py-spy`, or use --syscalls")
    return command


@contextlib.contextmanager
def _beside(argv: Sequence[str]) -> Iterator[None]:
    """Run a tracer while the block lasts, and let it write its result."""
    tracer = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
        with contextlib.suppress(subprocess.TimeoutExpired):
            tracer.wait(GRACE_S)
    finally:
        stop_group(tracer, polite=signal.SIGINT)


def _show(stacks: str) -> None:
    """Print collapsed stacks (``a;b;c 12`` a line) as functions by own and by whole time."""
    waited = 0
    own: collections.Counter[str] = collections.Counter()
    whole: collections.Counter[str] = collections.Counter()
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        if frames[-1].startswith(WAITING):
            waited += int(count)
            continue
        own[frames[-1]] += int(count)
        for frame in set(frames):
            whole[frame] += int(count)
    total = max(1, own.total())
    print(f"{total} samples at work, {waited} of waiting threads (not shown)")
    for title, counts in (("own time", own), ("with everything below", whole)):
        print(f"\n{title}")
        for frame, samples in counts.most_common(SHOWN):
            print(f"{samples / total:7.1%}  {frame}")


def _profile(options: argparse.Namespace, base: Path) -> None:
    size_bytes = options.size * MIB
    command = find_command(options.pairsync)
    result = base / "result.txt"
    with Lab(command, base / "lab", {"vda": size_bytes}, single=options.single) as lab:
        if not options.single:
            lab.wait_in_sync(SETTLE_S)
        clients.fill(lab.uri(), size_bytes=size_bytes, seed=1)
        pid = str(lab.pid(options.host))
        if options.syscalls:
            seconds = f"{options.seconds + 2:.0f}"
            argv = ["timeout", "-s", "INT", seconds, "strace", "-f", "-c", "-o", str(result), "-p", pid]
        else:
            argv = [_spy(), "record", "--pid", pid, "--duration", f"{options.seconds:.0f}"]
            argv += ["--rate", str(RATE_HZ), "--format", "raw", "--output", str(result)]
            # With native frames py-spy cannot tell who waits: idle threads are shown too.
            argv += ["--native"] if options.native else []
        load = clients.Load(
            job=options.job, depth=options.depth, size_bytes=size_bytes, seconds=options.seconds + 1
        )
        with _beside(argv):
            sample = clients.random_io(load, lab.uri(), seed=1, pids=lambda: [int(pid)])
    log(f"while traced: {sample}")
    text = result.read_text()
    if options.syscalls:
        print(text)
        print(f"operations: {sample.iops * load.seconds:.0f}")
    else:
        _show(text)
        if options.output:
            options.output.write_text(text)


def main(words: Sequence[str] | None = None) -> int:
    """Profile, print, and return the exit code."""
    options = _arguments(words)
    base = Path(tempfile.mkdtemp(prefix="pairsync-bench-", dir=options.dir))
    try:
        _profile(options, base)
    except BenchError as problem:
        print(f"profile: {problem}", file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(base, ignore_errors=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
