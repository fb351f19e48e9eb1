"""Many seeds, in one process or several, and what they come to together."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

from pairsync.core.units import NS_PER_S

from .world import Outcome, simulate

__all__ = ["Summary", "run_seeds"]

CHUNK = 4
"""Seeds that a worker takes at a time: a second of work."""


@dataclass(slots=True)
class Summary:
    """What a set of seeds has come to."""

    seeds: int = 0
    failures: list[Outcome] = field(default_factory=list)
    coverage: Counter[str] = field(default_factory=Counter)
    events: int = 0
    requests: int = 0
    simulated_ns: int = 0
    busy_s: float = 0.0  # processor time of the workers
    elapsed_s: float = 0.0

    @property
    def ratio(self) -> float:
        """Simulated time against processor time."""
        return self.simulated_ns / NS_PER_S / self.busy_s if self.busy_s else 0.0

    def add(self, outcome: Outcome, busy_s: float) -> None:
        """Another seed has been run."""
        self.seeds += 1
        self.events += outcome.events
        self.requests += outcome.requests
        self.simulated_ns += outcome.simulated_ns
        self.busy_s += busy_s
        self.coverage.update(outcome.coverage)
        if outcome.failure is not None:
            self.failures.append(outcome)


def _timed(seed: int, run: Callable[[int], Outcome]) -> tuple[Outcome, float]:
    begun = time.process_time()
    outcome = run(seed)
    return outcome, time.process_time() - begun


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides


def _outcomes(
    seeds: Iterable[int], jobs: int, run: Callable[[int], Outcome]
) -> Iterator[tuple[Outcome, float]]:
    if jobs <= 1:
        for seed in seeds:
            yield _timed(seed, run)
        return
    context = multiprocessing.get_context("spawn")  # a fresh process each: nothing is inherited
    with context.Pool(jobs, initializer=_ignore_interrupts) as pool:
        yield from pool.imap_unordered(partial(_timed, run=run), seeds, chunksize=CHUNK)


def run_seeds(
    seeds: Iterable[int],
    *,
    jobs: int = 1,
    progress: Callable[[Summary, Outcome], None] | None = None,
    run: Callable[[int], Outcome] = simulate,
) -> Summary:
    """Run them all; ``progress`` hears of each.  ``run``: of another simulator, a function of a module."""
    summary = Summary()
    begun = time.monotonic()
    for outcome, busy_s in _outcomes(seeds, jobs, run):
        summary.add(outcome, busy_s)
        summary.elapsed_s = time.monotonic() - begun
        if progress is not None:
            progress(summary, outcome)
    return summary
