"""Faults: a storm of random ones, ambushes at the moments that matter, and what mends them again."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from pairsync.core.messages import Role
from pairsync.core.standing import Phase
from pairsync.core.units import NS_PER_MS, NS_PER_S
from pairsync.testing.disks import SimAction
from pairsync.testing.swarm import Storm

from .host import Armed, Life, SimHost
from .network import SimPath
from .profile import AMBUSHES
from .start import lose_track, make_blank

if TYPE_CHECKING:
    from .world import World

__all__ = ["Faults"]

STEPS_INSIDE_MAX = 40
"""Steps of a medium until a death strikes in the middle: a few bundles."""

INSIDE_NS_MAX = NS_PER_S
"""If the medium has nothing to do, the death strikes after that time all the same."""

REPAIR_NS_MAX = 3 * NS_PER_S
"""How long a supervisor takes to notice that a volume has stopped."""

CUT_NS_MEAN = 3 * NS_PER_S

SLOW_FACTORS = (3, 10)

LOSES_TRACK = 0.7
"""How likely an active host whose disk lies comes up with a dirty map that proves nothing."""

FLEETING_FACTOR = 3
"""So much more often than others are those phases struck that last for a few messages."""

_WRITES = frozenset({SimAction.WRITE, SimAction.ZERO})
_ARMS: dict[str, tuple[bool, frozenset[SimAction], int]] = {
    "eio": (False, _WRITES, errno.EIO),
    "enospc": (False, _WRITES, errno.ENOSPC),
    "read-eio": (False, frozenset({SimAction.READ}), errno.EIO),
    "flush-fails": (False, frozenset({SimAction.FLUSH}), errno.EIO),
    "metadata-fails": (True, _WRITES, errno.EIO),
}
"""Kind: metadata or data, what fails, and how."""


class Faults(Storm[SimHost]):
    """See the module."""

    def __init__(self, world: World) -> None:
        super().__init__(world.profile, world.chance, world.timers)
        self._world = world
        self._ambushes = [kind for kind in world.profile.faults if kind in AMBUSHES]
        self._actions |= {
            "cut-path": lambda: self._cut([self._any_path()]),
            "cut-one-way": lambda: self._cut([self._any_path()], self._random.choice(world.net.hosts)),
            "cut-all": lambda: self._cut(list(world.net.paths.values())),
            "reset-path": lambda: self._reset([self._any_path()]),
            "reset-all": lambda: self._reset(list(world.net.paths.values())),
            "slow-link": self._slow,
            "flip-active": lambda: world.damage.flip(world.active),
            "flip-standby": lambda: world.damage.flip(world.standby),
            "misdirect-active": lambda: world.damage.arm(world.active),
            "misdirect-standby": lambda: world.damage.arm(world.standby),
            "replace-standby": self._replace_standby,
            "grow": self._grow,
            "crash-both": lambda: self._kill_both(world.hosts, power=False),
            "power-both": lambda: self._kill_both(world.hosts, power=True),
        }
        for host in (world.active, world.standby):
            self._actions[f"crash-{host.name}"] = lambda host=host: self._die(host, power=False)  # type: ignore[misc]
            self._actions[f"power-{host.name}"] = lambda host=host: self._die(host, power=True)  # type: ignore[misc]
            self._actions[f"stop-{host.name}"] = lambda host=host: self._stop(host)  # type: ignore[misc]

    # ------------------------------------------------------------------ when

    def _mend(self) -> None:
        self._world.net.heal()
        self._world.damage.disarm()
        for host in self._world.hosts:
            host.armed.clear()

    def _note(self, kind: str) -> None:
        self._world.trace.note("fault", kind)

    def ambush(self, phase: Phase) -> None:
        """A volume's peer has just changed its phase; those that do not last are struck more often."""
        if self._ambushes:
            self._ambush(1 if phase in {Phase.ABSENT, Phase.IN_SYNC} else FLEETING_FACTOR, self._trap)

    def standby_grew(self) -> None:
        """It has recorded the larger size, and the active host only does when it hears of that."""
        deaths = [kind for kind in ("crash-active", "power-active") if kind in self._ambushes]
        if deaths:
            self._ambush(FLEETING_FACTOR, lambda: (0, self._random.choice(deaths)))

    def _trap(self) -> tuple[int, str]:
        random = self._random
        delay_ns = random.choice((0, random.randrange(NS_PER_MS), random.randrange(20 * NS_PER_MS)))
        return delay_ns, random.choice(self._ambushes)

    # ------------------------------------------------------------------ deaths

    def _die(self, host: SimHost, *, power: bool) -> None:
        if not host.up:
            return
        if self._random.random() < self._world.profile.crash_inside:
            life = host.life
            steps = 1 + self._random.randrange(STEPS_INSIDE_MAX)
            host.medium.strike_in(steps, lambda: self._die_inside(host, power=power))
            self._timers.after(INSIDE_NS_MAX, self._die_late, host, life, power)
        else:
            self._kill(host, power=power)

    def _die_inside(self, host: SimHost, *, power: bool) -> None:
        self._world.reach(f"died-inside:{host.name}")
        self._kill(host, power=power)

    def _die_late(self, host: SimHost, life: Life | None, power: bool) -> None:
        if host.life is life and host.up:
            self._kill(host, power=power)

    def _kill(self, host: SimHost, *, power: bool) -> None:
        if not host.up:
            return
        world = self._world
        self._count(f"{'power' if power else 'crash'}-{host.name}")
        world.trace.note(host.name, "dies", "with its power" if power else "")
        cache_lost = power or host.suspect
        host.die(power=power)
        if host.role is Role.ACTIVE:
            world.writer.host_died()
        world.checker.crashed(host, cache_lost=cache_lost)
        self._restart_later(host)

    def did_not_open(self, host: SimHost) -> None:
        """A host was started and could not open its volumes."""
        self._restart_later(host)

    def _restart(self, host: SimHost) -> None:
        if not host.up and not self._world.ending:
            # What is wrong on the active host's disk is rarely copied: only what is at rest is struck.
            lies = host.role is Role.ACTIVE and self._world.damage.on(host)
            if lies and self._random.random() < LOSES_TRACK:
                lose_track(self._world, host)
            self._world.start(host)

    def _stop(self, host: SimHost) -> None:
        """An orderly shutdown."""
        life = host.life
        if life is None or not life.serves():
            return
        if host.suspect:  # nothing can be closed in order any more
            self._kill(host, power=False)
            return
        self._count(f"stop-{host.name}")
        life.stop.set()

    def life_ended(self, host: SimHost) -> None:
        """A host has closed in order."""
        if not self._world.ending:
            self._restart_later(host)

    def stopped_serving(self, life: Life) -> None:
        """Something has failed for good: a supervisor starts the process anew."""
        self._timers.after(self._random.randrange(REPAIR_NS_MAX), self._repair, life)

    def _repair(self, life: Life) -> None:
        if life.host.life is life and not life.stop.is_set():
            self._kill(life.host, power=False)

    # ------------------------------------------------------------------ the network

    def _any_path(self) -> SimPath:
        return self._random.choice(list(self._world.net.paths.values()))

    def _cut(self, paths: list[SimPath], *senders: str) -> None:
        self._count("cut-one-way" if senders else self._name("cut", paths))
        for path in paths:
            path.cut(*senders)
            self._timers.after(int(CUT_NS_MEAN * self._random.expovariate(1.0)), path.heal)

    def _name(self, what: str, paths: list[SimPath]) -> str:
        return f"{what}-{'path' if len(paths) < len(self._world.net.paths) else 'all'}"

    def _reset(self, paths: list[SimPath]) -> None:
        self._count(self._name("reset", paths))
        for path in paths:
            self._world.net.reset(path)

    def _slow(self) -> None:
        self._count("slow-link")
        for path in self._world.net.paths.values():
            factor = self._random.choice(SLOW_FACTORS)
            for wire in path.wires.values():
                wire.slow = factor
            self._timers.after(int(CUT_NS_MEAN * self._random.expovariate(1.0)), path.heal)

    # ------------------------------------------------------------------ disks

    def _arm(self, kind: str) -> None:
        what, _, name = kind.rpartition("-")
        metadata, actions, code = _ARMS[what]
        host = self._world.active if name == "active" else self._world.standby
        if host.up:
            host.armed.append(Armed(kind, metadata, actions, code, self._random.choice((1, 1, 2, 5))))

    def struck(self, kind: str) -> None:
        """A disk has just failed that was armed for it."""
        self._count(kind)

    def _replace_standby(self) -> None:
        """Its disks are lost: new ones, blank."""
        standby = self._world.standby
        if standby.up:
            self._kill(standby, power=self._random.random() < 0.5)
        self._count("replace-standby")
        self._world.checker.swapped()
        self._world.damage.swapped()
        make_blank(self._world, standby)

    def _grow(self) -> None:
        life = self._world.active.life
        if life is not None and life.users is not None and life.serves():
            self._count("grow")
            self._world.writer.grow(life, life.users)

    def _count(self, kind: str) -> None:
        """A fault strikes now: in which state?"""
        guest = self._world.active.guest
        for source in guest.session.sources if guest is not None else ():
            self._world.reach(f"{kind}@{source.standing.phase.value}")
