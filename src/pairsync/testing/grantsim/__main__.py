"""``python -m pairsync.testing.grantsim``: run seeds of the simulator of arbitration; what came of them.

Exit code 0: all well and everything required was reached; 1: a seed failed; 2: something was not reached
(only judged from `COVERAGE_SEEDS` seeds on); 130: interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys

from pairsync.core.units import NS_PER_S
from pairsync.testing.sim.runner import Summary, run_seeds
from pairsync.testing.sim.world import Outcome

from .coverage import missing
from .world import simulate

__all__ = ["main", "replay_command", "report"]

COVERAGE_SEEDS = 1500
"""Seeds from which on a run has to have reached everything that is required."""

FAILURES_SHOWN_MAX = 5


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pairsync.testing.grantsim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=500, help="how many seeds (default %(default)s)")
    parser.add_argument("--start", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="run this one alone and show its last trace lines")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    return parser


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def replay_command(seed: int) -> str:
    """What runs that seed again."""
    return f"python -m pairsync.testing.grantsim --seed {seed}"


def report(outcome: Outcome) -> str:
    """A failed seed, for people."""
    lines = [f"seed {outcome.seed} failed: {outcome.failure}", *outcome.trace]
    return "\n".join([*lines, f"replay: {replay_command(outcome.seed)}"])


def _one(seed: int) -> int:
    outcome = simulate(seed)
    if outcome.failure is not None:
        _say(report(outcome))
        return 1
    _say(
        f"seed {seed}: all well; {outcome.events} events, {outcome.requests} requests in "
        f"{outcome.simulated_ns / NS_PER_S:.0f} simulated seconds; trace {outcome.digest:016x}"
    )
    return 0


def _figures(summary: Summary) -> str:
    return (
        f"{summary.seeds} seeds, {len(summary.failures)} failed; "
        f"{summary.simulated_ns / NS_PER_S / 3600:.1f} simulated hours, {summary.requests} requests, "
        f"{summary.ratio:.0f} x real time on one core, {summary.elapsed_s:.0f} s"
    )


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit code."""
    options = _arguments().parse_args(arguments)
    if options.seed is not None:
        return _one(options.seed)
    summary = Summary()

    def progress(so_far: Summary, outcome: Outcome) -> None:
        nonlocal summary
        summary = so_far
        if outcome.failure is not None and len(summary.failures) <= FAILURES_SHOWN_MAX:
            _say(report(outcome))
        if summary.seeds % 500 == 0:
            _say(_figures(summary))

    interrupted = False
    seeds = range(options.start, options.start + options.seeds)
    try:
        run_seeds(seeds, jobs=options.jobs, progress=progress, run=simulate)
    except KeyboardInterrupt:
        interrupted = True
    for name, count in sorted(summary.coverage.items()):
        _say(f"{name}: {count}")
    lacking = missing(summary.coverage) if summary.seeds >= COVERAGE_SEEDS else []
    if lacking:
        _say(f"not reached: {', '.join(lacking)}")
    for outcome in summary.failures:
        _say(f"FAILED seed {outcome.seed}: {outcome.failure}\n  {replay_command(outcome.seed)}")
    _say(_figures(summary))
    if interrupted:
        return 130
    if summary.failures:
        return 1
    return 2 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())
