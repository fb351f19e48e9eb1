"""A process of a simulated host: its clock, its lives, and how it stands still (SIGSTOP), or its machine.

What reaches it while it stands still it finds when it goes on, in order.  Timers run by its own clock, which
may be off; what was asked for in an earlier life is dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from pairsync.core.units import NS_PER_S
from pairsync.testing.sim.clock import Clock

__all__ = ["Process"]

MILLION = 1_000_000


class Process:
    """See the module."""

    def __init__(self, clock: Clock, random: Random, rate_ppm: int) -> None:
        self.frozen = False  # it stands still
        self.asleep = False  # with its whole machine: its guard, too
        self.slept = False  # its machine did, in this life
        self.life = 0  # answers to an earlier one are dropped
        self.since_ns = 0  # so long it has been there without a gap, if it is
        self.rate_ppm = rate_ppm
        self._clock = clock
        self._random = random
        self._offset_ns = random.randrange(1000) * NS_PER_S
        self._rate_since_ns = 0
        # Of this life, while it stands still.
        self._backlog: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    # ------------------------------------------------------------------ time

    @property
    def now_ns(self) -> int:
        """By this host's own clock."""
        passed_ns = self._clock.now - self._rate_since_ns
        return self._offset_ns + passed_ns + passed_ns * self.rate_ppm // MILLION

    def set_rate(self, rate_ppm: int) -> None:
        """From now on its clock runs so much faster than true time."""
        self._offset_ns, self._rate_since_ns = self.now_ns, self._clock.now
        self.rate_ppm = rate_ppm

    def true_ns(self, duration_ns: int) -> int:
        """In true time, the shortest that is no less by this clock."""
        return -(-max(duration_ns, 0) * MILLION // (MILLION + self.rate_ppm)) + 1

    def defer(self, run: Callable[..., None], *arguments: Any) -> None:
        """Do it now, or when this host goes on."""
        if self.frozen:
            self._backlog.append((run, arguments))
        else:
            run(*arguments)

    def after(self, delay_ns: int, run: Callable[..., None], *arguments: Any) -> None:
        """In so much time of its own clock, if this life lasts."""
        self._clock.after(self.true_ns(delay_ns), self.due, self.life, run, arguments)

    def due(self, life: int, run: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        """Do it now, if that life lasts, or when this host goes on."""
        if life == self.life:
            self.defer(run, *arguments)

    # ------------------------------------------------------------------ standing still

    def new_life(self) -> None:
        """Whatever was under way is not any more."""
        self.life += 1
        self.since_ns = self._clock.now
        self.frozen = self.asleep = self.slept = False
        self._backlog = []

    def stand_still(self, *, asleep: bool) -> None:
        """From now on; ``asleep``: its guard does, too."""
        self.frozen, self.asleep = True, asleep
        self.slept = self.slept or asleep

    def go_on(self) -> None:
        """With what has come in meanwhile; that may end this life."""
        self.frozen = self.asleep = False
        self.since_ns = self._clock.now
        life, backlog = self.life, self._backlog
        self._backlog = []
        for run, arguments in backlog:
            if self.life == life:
                self.defer(run, *arguments)
