"""Many seeds in several processes, and what came of them."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context

from pairsync.core.units import NS_PER_S

from .coverage import missing
from .world import Outcome, simulate

__all__ = ["COVERAGE_SEEDS", "Summary", "be_quiet", "replay_command", "run_seeds"]

COVERAGE_SEEDS = 64
"""Seeds from which on a run has to have reached everything that is required."""


@dataclass(slots=True)
class Summary:
    """What came of many seeds."""

    seeds: int = 0
    failures: list[Outcome] = field(default_factory=list)
    coverage: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    simulated_s: float = 0.0
    busy_s: float = 0.0  # processor time of all processes
    real_s: float = 0.0

    def add(self, outcome: Outcome, busy_s: float) -> None:
        """One more."""
        self.seeds += 1
        self.busy_s += busy_s
        self.coverage.update(outcome.coverage)
        self.requests += outcome.requests
        self.simulated_s += outcome.simulated_ns / NS_PER_S
        if outcome.failure is not None:
            self.failures.append(outcome)

    @property
    def missing(self) -> list[str]:
        """What should have been reached and was not; nothing is asked of a few seeds."""
        return missing(self.coverage) if self.seeds >= COVERAGE_SEEDS else []

    @property
    def ratio(self) -> float:
        """Simulated time over processor time."""
        return self.simulated_s / self.busy_s if self.busy_s else 0.0


def replay_command(seed: int) -> str:
    """What runs that seed again, with its whole trace."""
    return f"python -m pairsync.testing.shellsim --seed {seed}"


def be_quiet() -> None:
    """What the hosts log is not worth a line for each of thousands of faults."""
    logging.getLogger("pairsync").setLevel(logging.CRITICAL + 1)


def run_seeds(seeds: range, *, jobs: int, progress: Callable[[Outcome], None]) -> Summary:
    """Run all of them; ``progress`` is told of each, in their order."""
    summary = Summary()
    began = time.perf_counter()
    if jobs <= 1 or len(seeds) <= 1:
        be_quiet()
        _gather(map(_timed, seeds), summary, progress)
    else:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=be_quiet) as pool:
            _gather(pool.map(_timed, seeds), summary, progress)
    summary.real_s = time.perf_counter() - began
    return summary


def _timed(seed: int) -> tuple[Outcome, float]:
    begun = time.process_time()
    outcome = simulate(seed)
    return outcome, time.process_time() - begun


def _gather(
    outcomes: Iterable[tuple[Outcome, float]], summary: Summary, progress: Callable[[Outcome], None]
) -> None:
    for outcome, busy_s in outcomes:
        summary.add(outcome, busy_s)
        progress(outcome)
