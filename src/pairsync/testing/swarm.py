"""What the two simulators (`sim` of the core, `shellsim` of the shell) draw and do alike.

Swarm testing: every seed switches on a random subset of the faults and of the writer's habits, so that some
seeds see one thing only, often, and combinations are not drowned by whatever is most frequent.

`Storm` strikes: at random times, at moments that a simulator finds interesting, and it brings back what went
down.  Everything is drawn from one random stream, in the order in which things happen: to draw once more, or
once less, gives every seed another meaning.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Generic, Protocol, TypeVar

from pairsync.core.limits import VolumeOptions
from pairsync.core.messages import OpKind

__all__ = ["START_KINDS", "Habits", "Storm", "SwarmProfile", "between", "draw_faults", "draw_kinds"]

START_KINDS = ("fresh", "prefilled", "in-sync", "switched")
"""What the two hosts have behind them: nothing; a filled disk without lineage here and nothing there; both
the same; the roles were the other way round, and the standby crashed with writes of its own."""

FAULT_SHARE = 0.5
"""Of the faults there are, in a seed."""

SINGLE_SHARE = 0.1
"""Of seeds that have one fault only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """How the guest writes."""

    depth: int  # requests at once, a volume
    burst_requests: int
    idle_ns: int  # between bursts, mean
    think_ns: int  # between requests of a burst, mean
    ops_max: int  # in a batch
    op_sectors_max: int
    flush_share: float
    read_share: float = 0.0
    fua_share: float
    hot_share: float  # of writes that go to an eighth of the volume
    aligned: bool  # whole blocks only
    kinds: tuple[OpKind, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmProfile:
    """What a seed of either simulator decides at the start."""

    sizes_bytes: tuple[int, ...]
    options: VolumeOptions
    habits: Habits
    start: str
    faults: dict[str, float]  # enabled, with weights
    storm_ns: int  # mean time between faults
    ambush: float  # probability of a fault at a change of phase
    cache_keep: float | None  # share of unflushed sectors that a power cut keeps; None: drawn each time
    safety_ns: int
    restart_ns: int  # mean time until a host that went down is up again


def between(random: Random, low: int, high: int) -> int:
    """Log-uniform."""
    return int(low * (high / low) ** random.random())


def draw_faults(random: Random, faults: Mapping[str, float]) -> dict[str, float]:
    """A subset, with its weights."""
    enabled = {fault: weight for fault, weight in faults.items() if random.random() < FAULT_SHARE}
    if random.random() < SINGLE_SHARE:
        only = random.choice(tuple(faults))
        enabled = {only: faults[only]}
    return enabled


def draw_kinds(random: Random) -> tuple[OpKind, ...]:
    """What the guest does, as often as it stands there."""
    others = (OpKind.ZERO, OpKind.TRIM, OpKind.ZERO_ALLOCATE)
    return (OpKind.DATA,) * random.choice((1, 3, 6)) + tuple(k for k in others if random.random() < 0.5)


class _Timers(Protocol):
    """Simulated time."""

    def after(self, delay_ns: int, call: Callable[..., None], /, *arguments: Any) -> None: ...


class _Host(Protocol):
    """A simulated host."""

    @property
    def up(self) -> bool: ...


H = TypeVar("H", bound=_Host)


class Storm(ABC, Generic[H]):
    """When faults strike; what they do is the simulator's (`_actions`, else `_arm`)."""

    def __init__(self, profile: SwarmProfile, random: Random, timers: _Timers) -> None:
        self._profile = profile
        self._random = random
        self._timers = timers
        self._active = False  # faults may strike
        self._ambush_pending = False  # one at a time
        self._actions: dict[str, Callable[[], None]] = {}

    # ------------------------------------------------------------------ when

    def begin(self) -> None:
        """Faults may strike from now on."""
        self._active = True
        if self._profile.faults:
            self._next()

    def end(self) -> None:
        """No more faults; what they have done is to be mended."""
        self._active = False
        self._mend()

    def _next(self) -> None:
        self._timers.after(int(self._profile.storm_ns * self._random.expovariate(1.0)), self._storm)

    def _storm(self) -> None:
        if self._active:
            faults = self._profile.faults
            self.strike(self._random.choices(list(faults), list(faults.values()))[0])
            self._next()

    def _ambush(self, likelier: float, draw: Callable[[], tuple[int, str]]) -> None:
        """Maybe set a trap: ``draw`` says when and which; ``likelier`` is a factor."""
        if not self._active or self._ambush_pending:
            return
        if self._random.random() < self._profile.ambush * likelier:
            self._ambush_pending = True
            delay_ns, kind = draw()
            self._timers.after(delay_ns, self._spring, kind)

    def _spring(self, kind: str) -> None:
        self._ambush_pending = False
        if self._active:
            self.strike(kind)

    def strike(self, kind: str) -> None:
        """That fault, now."""
        self._note(kind)
        action = self._actions.get(kind)
        if action is not None:
            action()
        else:
            self._arm(kind)

    # ------------------------------------------------------------------ deaths

    def _kill_both(self, hosts: tuple[H, H], *, power: bool) -> None:
        """Both at once, in either order."""
        if all(host.up for host in hosts):
            self._count(f"{'power' if power else 'crash'}-both")
            first = self._random.randrange(2)
            self._kill(hosts[first], power=power)
            self._kill(hosts[1 - first], power=power)

    def _restart_later(self, host: H) -> None:
        delay_ns = int(self._profile.restart_ns * self._random.expovariate(1.0))
        self._timers.after(delay_ns, self._restart, host)

    # ------------------------------------------------------------------ the simulator's

    @abstractmethod
    def _mend(self) -> None:
        """The network works, disks are quick and do not fail."""

    @abstractmethod
    def _note(self, kind: str) -> None:
        """A line for the trace: that fault strikes."""

    @abstractmethod
    def _count(self, kind: str) -> None:
        """It has an effect: for the coverage."""

    @abstractmethod
    def _arm(self, kind: str) -> None:
        """A fault without an action: what a disk does next fails."""

    @abstractmethod
    def _kill(self, host: H, *, power: bool) -> None:
        """Its process dies, with ``power`` the machine; it is started again later."""

    @abstractmethod
    def _restart(self, host: H) -> None:
        """Start it, if it is down."""
