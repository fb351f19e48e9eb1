#!/usr/bin/env python3
"""Run the benchmark: ``python benchmarks/run.py`` (what ``make bench`` does), ``--help`` for the rest.

Progress goes to stderr, the table to stdout, everything to ``--json FILE``.  Exit code 0 if all that was
asked for was measured (a missed bar is shown, and fails only with ``--check``: 1); 2 if a row could not be
measured; 130 after Ctrl-C.  Whatever happens, no process and no file is left behind.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

# Run as a script: the package beside us, not the modules in it, is what is to be found.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import report
from benchmarks.contest import Bench, Sizes
from benchmarks.ours import find_command
from benchmarks.procs import BenchError, log, require, run
from benchmarks.rows import ROWS, Row

_PROGRAMS = ("fio", "nbdcopy", "nbdkit", "qemu-io", "qemu-nbd", "qemu-storage-daemon", "ss")


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks/run.py",
        description="pairsync and its peers, measured in turns in one run.",
        epilog="rows: " + "; ".join(f"{row.number} {row.what}" for row in ROWS),
    )
    parser.add_argument("--only", metavar="ROW[,ROW]", help="only these rows")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each contender (default: 5)")
    parser.add_argument("--seconds", type=float, default=4.0, help="seconds of a timed load (default: 4)")
    parser.add_argument("--quick", action="store_true", help="2 rounds of 2 s")
    parser.add_argument("--dir", type=Path, default=Path("/dev/shm"), help="where volumes lie (/dev/shm)")
    parser.add_argument("--also-disk", action="store_true", help="repeat rows 1, 2, 4, 7 and 9 in --disk-dir")
    parser.add_argument("--disk-dir", type=Path, default=Path("/var/tmp"), help="a real disk (/var/tmp)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bar is missed")
    parser.add_argument("--pairsync", metavar="COMMAND", help="our command (beside this Python)")
    parser.add_argument("--peers-only", action="store_true", help="measure the peers without pairsync")
    parser.add_argument("--shrink", type=int, default=1, help="divide sizes: for trying the harness only")
    return parser.parse_args(words)


def _first_line(argv: Sequence[str]) -> str:
    try:
        return run(argv, timeout_s=10.0).strip().splitlines()[0]
    except (BenchError, OSError, IndexError):
        return "unknown"


def machine() -> dict[str, Any]:
    """What a reader must know to compare figures: processors, memory, kernel, versions."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "cores": os.cpu_count(),
        "processor": models[0] if models else os.uname().machine,
        "memory_gib": round(pages * page_bytes / 2**30, 1),
        "kernel": os.uname().release,
        "python": sys.version.split()[0],
        "pairsync": metadata.version("pairsync"),
        "commit": _first_line(["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]),
        "cryptography": metadata.version("cryptography"),
        "trio": metadata.version("trio"),
        "qemu": _first_line(["qemu-storage-daemon", "--version"]),
        "nbdkit": _first_line(["nbdkit", "--version"]),
        "fio": _first_line(["fio", "--version"]),
        "nbdcopy": _first_line(["nbdcopy", "--version"]),
        "load_before": os.getloadavg()[0],
    }


def _chosen(only: str | None) -> list[Row]:
    if only is None:
        return list(ROWS)
    wanted = [word.strip() for word in only.split(",")]
    unknown = sorted(set(wanted) - {row.number for row in ROWS})
    if unknown:
        raise BenchError(f"no such row: {', '.join(unknown)}")
    return [row for row in ROWS if row.number in wanted]


def _quote_logs(base: Path) -> None:
    """Show the ends of the logs of our labs: the last row failed, they may say why."""
    for path in sorted(base.glob("*.log")):
        for line in path.read_text(errors="replace").splitlines()[-12:]:
            log(f"  {path.name}: {line}")
        path.unlink()


def _measure(rows: Sequence[Row], bench: Bench, place: str) -> list[report.Figure]:
    figures: list[report.Figure] = []
    for row in rows:
        log(f"row {row.number}, {place}: {row.what}")
        started = time.monotonic()
        try:
            taken = row.measure(bench)
        except BenchError as problem:
            log(f"  FAILED: {problem}")
            _quote_logs(bench.base)
            judge = report.Judge.OURS_OVER_PEER
            taken = [report.Figure(row=row.number, what=row.what, unit="", judge=judge, failure=str(problem))]
        took = {"place": place, "row_seconds": time.monotonic() - started, "load_after": os.getloadavg()[0]}
        figures += [dataclasses.replace(one, details={**one.details, **took}) for one in taken]
    return figures


def _all_passes(options: argparse.Namespace) -> list[report.Figure]:
    rows = _chosen(options.only)
    require(*_PROGRAMS)
    command = None if options.peers_only else find_command(options.pairsync)
    passes: list[tuple[Path, str, list[Row]]] = [(options.dir, str(options.dir), rows)]
    if options.also_disk:
        on_disk = [row for row in rows if row.on_disk_too]
        passes.append((options.disk_dir, str(options.disk_dir), on_disk))
    figures: list[report.Figure] = []
    for parent, place, chosen in passes:
        base = Path(tempfile.mkdtemp(prefix="pairsync-bench-", dir=parent))
        try:
            bench = Bench(
                base=base,
                rounds=2 if options.quick else options.rounds,
                seconds=2.0 if options.quick else options.seconds,
                sizes=Sizes().shrunk(options.shrink),
                command=command,
            )
            taken = _measure(chosen, bench, place)
        finally:
            shutil.rmtree(base, ignore_errors=True)
        if parent is not options.dir:
            taken = [dataclasses.replace(one, row=f"{one.row} disk") for one in taken]
        figures += taken
    return figures


def _interrupt(_number: int, _frame: object) -> NoReturn:
    # One is enough: a second signal must not cut the cleaning up short.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    raise KeyboardInterrupt


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, and return the exit code."""
    options = _arguments(words)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    started = time.time()
    try:
        facts = machine()
        figures = _all_passes(options)
    except BenchError as problem:
        print(f"benchmark: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("benchmark: interrupted; everything is cleaned up", file=sys.stderr)
        return 130
    print(f"{facts['cores']} x {facts['processor']}, Linux {facts['kernel']}, Python {facts['python']};")
    print("; ".join(str(facts[name]) for name in ("qemu", "nbdkit", "fio", "nbdcopy")))
    print(f"pairsync {facts['pairsync']} ({facts['commit']}); load before the run {facts['load_before']:.2f}")
    print("medians; the ratio is the median of the ratios of neighbours [least .. greatest]; our link is")
    print("encrypted, the peers' is not\n")
    print(report.as_table(figures))
    print(f"\n{time.time() - started:.0f} s in all")
    if options.json:
        settings = {name: str(value) for name, value in vars(options).items()}
        document = {
            "format": 1,
            "started_unix": started,
            "seconds": time.time() - started,
            "machine": facts,
            "settings": settings,
            "figures": report.as_json(figures),
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    if any(figure.failure for figure in figures):
        return 2
    missed = any(figure.verdict is report.Verdict.MISSED for figure in figures)
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
