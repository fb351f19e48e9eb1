"""``python -m pairsync.testing.shellsim``: run seeds of the shell's simulator and say what came of them.

Exit code 0: all well and everything required was reached; 1: a seed failed; 2: something was not reached
(only judged from `COVERAGE_SEEDS` seeds on); 130: interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

from .runner import COVERAGE_SEEDS, Summary, be_quiet, replay_command, run_seeds
from .world import Outcome, simulate

__all__ = ["main"]


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pairsync.testing.shellsim", description=__doc__)
    parser.add_argument(
        "--seeds", type=int, default=COVERAGE_SEEDS, help="how many seeds (default %(default)s)"
    )
    parser.add_argument("--start", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="run this one alone and show its whole trace")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--json", action="store_true", help="one JSON object at the end")
    return parser


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _tell(outcome: Outcome) -> None:
    """A seed that failed, for people."""
    if outcome.failure is not None:
        _say(f"seed {outcome.seed} failed: {outcome.failure}")
        for line in outcome.trace:
            _say(f"    {line}")
        _say(f"replay: {replay_command(outcome.seed)}")


def _one(seed: int) -> int:
    be_quiet()
    outcome = simulate(seed, echo=_say)
    _say(f"seed {seed}: {outcome.failure or 'all well'}; trace {outcome.digest:016x}")
    return 0 if outcome.failure is None else 1


def _judge(summary: Summary) -> int:
    if summary.failures:
        return 1
    return 2 if summary.missing else 0


def _figures(summary: Summary) -> dict[str, object]:
    return {
        "seeds": summary.seeds,
        "failures": {str(outcome.seed): outcome.failure for outcome in summary.failures},
        "missing": summary.missing,
        "requests": summary.requests,
        "simulated_s": round(summary.simulated_s, 1),
        "elapsed_s": round(summary.real_s, 1),
        "ratio": round(summary.ratio, 1),
        "coverage": dict(sorted(summary.coverage.items())),
    }


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit code."""
    options = _arguments().parse_args(arguments)
    if options.seed is not None:
        return _one(options.seed)
    seeds = range(options.start, options.start + options.seeds)
    try:
        summary = run_seeds(seeds, jobs=options.jobs, progress=lambda o: None if options.json else _tell(o))
    except KeyboardInterrupt:
        return 130
    if options.json:
        _say(json.dumps(_figures(summary)))
        return _judge(summary)
    if summary.missing:
        _say(f"not reached: {', '.join(summary.missing)}")
    for outcome in summary.failures:
        _say(f"FAILED {replay_command(outcome.seed)}")
    _say(
        f"{summary.seeds} seeds of the shell, {len(summary.failures)} failed; "
        f"{summary.simulated_s:.0f} simulated seconds, {summary.requests} requests, "
        f"{summary.ratio:.0f} x real time on one core, {summary.real_s:.0f} s"
    )
    return _judge(summary)


if __name__ == "__main__":
    sys.exit(main())
