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

COVERAGE_SEEDS = 50
"""Seeds from which on a run has to have reached everything that is required."""


@dataclass(slots=True)
class Summary:
    """What came of many seeds."""

    seeds: int = 0
    failures: list[Outcome] = field(default_factory=list)
    coverage: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    simulated_s: float = 0.0
    real_s: float = 0.0

    def add(self, outcome: Outcome) -> None:
        """One more."""
        self.seeds += 1
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
        """Simulated time over real time, all processes together."""
        return self.simulated_s / self.real_s if self.real_s else 0.0


def replay_command(seed: int) -> str:
    """What runs that seed again, with its whole trace."""
    return f"python -m pairsync.testing.shellsim --seed {seed}"


def be_quiet() -> None:
    """What the hosts log is not worth a line for each of thousands of faults."""
    logging.getLogger("pairsync").addHandler(logging.NullHandler())


def run_seeds(seeds: range, *, jobs: int, progress: Callable[[Outcome], None]) -> Summary:
    """Run all of them; ``progress`` is told of each, in their order."""
    summary = Summary()
    began = time.perf_counter()
    if jobs <= 1 or len(seeds) <= 1:
        be_quiet()
        _gather(map(simulate, seeds), summary, progress)
    else:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=be_quiet) as pool:
            _gather(pool.map(simulate, seeds), summary, progress)
    summary.real_s = time.perf_counter() - began
    return summary


def _gather(outcomes: Iterable[Outcome], summary: Summary, progress: Callable[[Outcome], None]) -> None:
    for outcome in outcomes:
        summary.add(outcome)
        progress(outcome)
