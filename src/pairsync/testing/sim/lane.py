"""Jobs of one simulated device, strictly one after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from .clock import Clock

__all__ = ["Lane"]


class Lane:
    """A queue with one worker."""

    __slots__ = ("_clock", "_done", "_free_ns", "_generation", "jobs")

    def __init__(self, clock: Clock, done: Callable[[object], None]) -> None:
        self._clock = clock
        self._done = done
        self._free_ns = 0
        self._generation = 0  # completions of jobs from before `clear` are stale
        self.jobs: deque[object] = deque()  # the first one is being done

    def push(self, job: object, cost_ns: int) -> None:
        """Do it after everything pushed before; then ``done(job)``."""
        self._free_ns = max(self._free_ns, self._clock.now) + cost_ns
        self.jobs.append(job)
        self._clock.at(self._free_ns, self._finish, self._generation)

    def _finish(self, generation: int) -> None:
        if generation == self._generation:
            self._done(self.jobs.popleft())

    def stall(self, delay_ns: int) -> None:
        """What is pushed from now on does not begin before that; hangs that overlap do not add up."""
        self._free_ns = max(self._free_ns, self._clock.now + delay_ns)

    def clear(self) -> list[object]:
        """The host died: the jobs that were not reported, in order."""
        self._generation += 1
        self._free_ns = 0
        jobs = list(self.jobs)
        self.jobs.clear()
        return jobs
