"""The command of a simulator: run seeds and say what came of them.

Exit code 0: all well and everything required was reached; 1: a seed failed; 2: something was not reached
(only judged from so many seeds on); 130: interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

from pairsync.core.units import NS_PER_S

from .runner import Summary, run_seeds
from .world import Outcome

__all__ = ["SimulatorCommand"]

FAILURES_SHOWN_MAX = 5
"""Traces of more failed seeds than these tell nothing new."""

SEEDS_A_LINE = 100
"""After so many comes a line of progress."""


@dataclass(frozen=True, slots=True)
class SimulatorCommand:
    """``python -m MODULE``.

    ``simulate``: a function of a module, for worker processes look it up there.  ``required``: what
    ``coverage_seeds`` of them or more have to have reached.
    """

    module: str
    simulate: Callable[[int], Outcome]
    required: Callable[[], list[str]]
    coverage_seeds: int
    seeds: int = 500
    """How many, unless it is said."""
    replay: Callable[[int], Outcome] | None = None
    """Runs one seed and shows more of it."""

    def main(self, arguments: list[str] | None = None) -> int:
        """Run it; its exit code."""
        options = self._parser().parse_args(arguments)
        if options.seed is not None:
            return self._one(options.seed)
        summary = Summary()
        interrupted = False

        def progress(so_far: Summary, outcome: Outcome) -> None:
            nonlocal summary
            summary = so_far
            if not options.json:
                self._progress(summary, outcome)

        seeds = range(options.start, options.start + options.seeds)
        try:
            run_seeds(seeds, jobs=options.jobs, progress=progress, run=self.simulate)
        except KeyboardInterrupt:
            interrupted = True
        missing = self.missing(summary.coverage) if summary.seeds >= self.coverage_seeds else []
        if options.json:
            _say(json.dumps(self._as_json(summary, missing)))
        else:
            self._say_all(summary, missing)
        if interrupted:
            return 130
        if summary.failures:
            return 1
        return 2 if missing else 0

    def missing(self, reached: Container[str]) -> list[str]:
        """Of what is required, what is not there."""
        return [name for name in self.required() if name not in reached]

    def replay_command(self, seed: int) -> str:
        """What runs that seed again."""
        return f"python -m {self.module} --seed {seed}"

    def report(self, outcome: Outcome) -> str:
        """A failed seed, for people."""
        lines = [f"seed {outcome.seed} failed: {outcome.failure}", *outcome.trace]
        return "\n".join([*lines, f"replay: {self.replay_command(outcome.seed)}"])

    def _parser(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(prog=f"python -m {self.module}", description=__doc__)
        parser.add_argument(
            "--seeds", type=int, default=self.seeds, help="how many seeds (default %(default)s)"
        )
        parser.add_argument("--start", type=int, default=0, help="the first of them")
        parser.add_argument("--seed", type=int, help="run this one alone and show its trace")
        parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
        parser.add_argument("--json", action="store_true", help="one JSON object at the end")
        return parser

    def _one(self, seed: int) -> int:
        outcome = (self.replay or self.simulate)(seed)
        if outcome.failure is not None:
            _say(self.report(outcome))
            return 1
        _say(
            f"seed {seed}: all well; {outcome.events} events, {outcome.requests} requests in "
            f"{outcome.simulated_ns / NS_PER_S:.0f} simulated seconds; trace {outcome.digest:016x}"
        )
        return 0

    def _progress(self, summary: Summary, outcome: Outcome) -> None:
        """A line now and then, and the first failures at once."""
        if outcome.failure is not None and len(summary.failures) <= FAILURES_SHOWN_MAX:
            _say(self.report(outcome))
        if summary.seeds % SEEDS_A_LINE == 0:
            _say(_figures(summary))

    def _say_all(self, summary: Summary, missing: list[str]) -> None:
        for line in _table(summary):
            _say(line)
        if missing:
            _say(f"not reached: {', '.join(missing)}")
        for outcome in summary.failures:
            _say(f"FAILED seed {outcome.seed}: {outcome.failure}\n  {self.replay_command(outcome.seed)}")
        _say(_figures(summary))

    def _as_json(self, summary: Summary, missing: list[str]) -> dict[str, Any]:
        return {
            "seeds": summary.seeds,
            "failed": [outcome.seed for outcome in summary.failures],
            "failures": {str(outcome.seed): outcome.failure for outcome in summary.failures},
            "missing": missing,
            "required": len(self.required()),
            "simulated_hours": summary.simulated_ns / NS_PER_S / 3600,
            "ratio": summary.ratio,
            "events": summary.events,
            "requests": summary.requests,
            "elapsed_s": summary.elapsed_s,
            "coverage": dict(sorted(summary.coverage.items())),
        }


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _figures(summary: Summary) -> str:
    return (
        f"{summary.seeds} seeds, {len(summary.failures)} failed; "
        f"{summary.simulated_ns / NS_PER_S / 3600:.2f} simulated hours, {summary.requests} requests, "
        f"{summary.ratio:.0f} x real time on one core, {summary.elapsed_s:.0f} s"
    )


def _table(summary: Summary) -> list[str]:
    """Faults down, phases of a session across; then what else was reached."""
    phases = ("absent", "preparing", "syncing", "behind", "adopting", "confirming", "in-sync")
    faults: dict[str, dict[str, int]] = {}
    for name, count in summary.coverage.items():
        fault, at, phase = name.partition("@")
        if at and phase in phases:
            faults.setdefault(fault, {})[phase] = count
    lines = ["fault".ljust(24) + "".join(phase.rjust(11) for phase in phases)] if faults else []
    lines += [
        fault.ljust(24) + "".join(str(counts.get(phase, "-")).rjust(11) for phase in phases)
        for fault, counts in sorted(faults.items())
    ]
    others = sorted(name for name in summary.coverage if name.partition("@")[2] not in phases)
    lines += [f"{name}: {summary.coverage[name]}" for name in others]
    return lines
