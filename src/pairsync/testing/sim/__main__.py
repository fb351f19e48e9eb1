"""``python -m pairsync.testing.sim``: run seeds of the simulator and say what came of them.

Exit code 0: all well and everything required was reached; 1: a seed failed; 2: something was not reached
(only judged from `COVERAGE_SEEDS` seeds on); 130: interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from pairsync.core.units import NS_PER_S

from .coverage import required
from .runner import Summary, run_seeds
from .world import Outcome, simulate

COVERAGE_SEEDS = 500
"""Seeds from which on a run has to have reached everything that is required."""

FAILURES_SHOWN_MAX = 5


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pairsync.testing.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=500, help="how many seeds (default %(default)s)")
    parser.add_argument("--start", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="run this one alone and show its last trace lines")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--json", action="store_true", help="one JSON object at the end")
    return parser


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def replay_command(seed: int) -> str:
    """What runs that seed again."""
    return f"python -m pairsync.testing.sim --seed {seed}"


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


class _Progress:
    """A line now and then, and every failure at once."""

    def __init__(self, total: int, *, quiet: bool) -> None:
        self._total = total
        self._quiet = quiet
        self.summary = Summary()

    def __call__(self, summary: Summary, outcome: Outcome) -> None:
        self.summary = summary
        if self._quiet:
            return
        if outcome.failure is not None and len(summary.failures) <= FAILURES_SHOWN_MAX:
            _say(report(outcome))
        if summary.seeds % 100 == 0 or summary.seeds == self._total:
            _say(
                f"{summary.seeds}/{self._total} seeds, {len(summary.failures)} failed, "
                f"{summary.simulated_ns / NS_PER_S / 3600:.1f} simulated hours, "
                f"{summary.ratio:.0f} x real time, "
                f"{summary.elapsed_s:.0f} s"
            )


def _table(summary: Summary) -> list[str]:
    """Faults down, phases across."""
    phases = ("absent", "preparing", "syncing", "behind", "adopting", "confirming", "in-sync")
    faults: dict[str, dict[str, int]] = {}
    for name, count in summary.coverage.items():
        fault, at, phase = name.partition("@")
        if at and phase in phases:
            faults.setdefault(fault, {})[phase] = count
    lines = ["fault".ljust(24) + "".join(phase.rjust(11) for phase in phases)]
    lines += [
        fault.ljust(24) + "".join(str(counts.get(phase, "-")).rjust(11) for phase in phases)
        for fault, counts in sorted(faults.items())
    ]
    others = sorted(name for name in summary.coverage if name.partition("@")[2] not in phases)
    lines += [f"{name}: {summary.coverage[name]}" for name in others]
    return lines


def _figures(summary: Summary, *, judged: bool) -> dict[str, Any]:
    return {
        "seeds": summary.seeds,
        "failed": [outcome.seed for outcome in summary.failures],
        "failures": {str(outcome.seed): outcome.failure for outcome in summary.failures},
        "missing": summary.missing if judged else [],
        "required": len(required()),
        "simulated_hours": summary.simulated_ns / NS_PER_S / 3600,
        "ratio": summary.ratio,
        "events": summary.events,
        "requests": summary.requests,
        "elapsed_s": summary.elapsed_s,
        "coverage": dict(sorted(summary.coverage.items())),
    }


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit code."""
    options = _arguments().parse_args(arguments)
    if options.seed is not None:
        return _one(options.seed)
    progress = _Progress(options.seeds, quiet=options.json)
    interrupted = False
    try:
        run_seeds(range(options.start, options.start + options.seeds), jobs=options.jobs, progress=progress)
    except KeyboardInterrupt:
        interrupted = True
    summary = progress.summary
    judged = summary.seeds >= COVERAGE_SEEDS
    if options.json:
        _say(json.dumps(_figures(summary, judged=judged)))
    else:
        for line in _table(summary):
            _say(line)
        if judged and summary.missing:
            _say(f"not reached: {', '.join(summary.missing)}")
        for outcome in summary.failures:
            _say(f"FAILED seed {outcome.seed}: {outcome.failure}\n  {replay_command(outcome.seed)}")
        _say(
            f"{summary.seeds} seeds, {len(summary.failures)} failed; "
            f"{summary.simulated_ns / NS_PER_S / 3600:.2f} simulated hours, {summary.requests} requests, "
            f"{summary.ratio:.0f} x real time on one core, {summary.elapsed_s:.0f} s"
        )
    if interrupted:
        return 130
    if summary.failures:
        return 1
    return 2 if judged and summary.missing else 0


if __name__ == "__main__":
    sys.exit(main())
