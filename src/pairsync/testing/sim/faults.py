"""Faults: a storm of random ones, ambushes at the moments that matter, and what mends them again."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from pairsync.core.messages import Role
from pairsync.core.standing import Phase
from pairsync.core.units import NS_PER_MS, NS_PER_S

from .host import SimHost
from .media import Armed, Replica
from .swaps import Swaps

if TYPE_CHECKING:
    from .world import World

__all__ = ["Faults"]

STOP_NS_MAX = 120 * NS_PER_S
"""How long an orderly shutdown may take."""

HANG_NS_MAX = 30 * NS_PER_S

_DEATHS_OF_ACTIVE = ("crash-active", "crash-both", "power-active", "power-both")
_DIES_GROWING = 0.5
"""How likely it dies in just that moment, which nothing else would hit."""

_SHORT_LIVED = {Phase.BEHIND: 3, Phase.ADOPTING: 2, Phase.CONFIRMING: 3}
"""Phases that last for a moment or are rarely reached: an ambush is that much likelier."""


class Faults(Swaps):
    """See the module."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._clock = world.clock
        self._enabled = list(world.profile.faults)
        self._crashes = [
            fault
            for fault in self._enabled
            if fault.startswith(("crash", "power", "metadata", "journal", "flush"))
        ]
        self._refusal: str | None = None  # the last rule by which a session was refused
        self._actions |= {
            "crash-active": lambda: self._kill(world.active, power=False),
            "crash-standby": lambda: self._kill(world.standby, power=False),
            "crash-both": lambda: self._kill_both(world.hosts, power=False),
            "power-active": lambda: self._kill(world.active, power=True),
            "power-standby": lambda: self._kill(world.standby, power=True),
            "power-both": lambda: self._kill_both(world.hosts, power=True),
            "power-in-turn": self._power_in_turn,
            "stop-active": lambda: self._stop(world.active),
            "stop-standby": lambda: self._stop(world.standby),
            "cut": self._cut,
            "one-sided": lambda: self._reset(one_sided=True),
            "reset": lambda: self._reset(one_sided=False),
            "slow-link": self._slow_link,
            "slow-disk-active": lambda: self._slow_disk(world.active),
            "slow-disk-standby": lambda: self._slow_disk(world.standby),
            "hang-disk-active": lambda: self._hang(world.active),
            "hang-disk-standby": lambda: self._hang(world.standby),
            "flip-active": lambda: self._strike(world.damage.flip, world.active),
            "flip-standby": lambda: self._strike(world.damage.flip, world.standby),
            "digest-active": lambda: self._strike(world.damage.rot_digest, world.active),
            "digest-standby": lambda: self._strike(world.damage.rot_digest, world.standby),
        }

    # ------------------------------------------------------------------ when

    def _mend(self) -> None:
        world = self._world
        self.put_right()
        world.link.slow = 1.0
        world.link.heal()
        for host in world.hosts:
            for replica in host.replicas:
                replica.armed = Armed()
                replica.slow = 1.0

    def striking(self, kind: str) -> bool:
        """Whether that fault may strike now."""
        return self._active and kind in self._enabled

    def _note(self, kind: str) -> None:
        self._world.trace.note("fault", kind)

    def ambush(self, phase: Phase) -> None:
        """A volume's peer has just changed its phase: now would be a bad moment."""
        if phase is Phase.IN_SYNC and self._active:
            self._back_up(self._world.active)
        if self._enabled:
            self._ambush(_SHORT_LIVED.get(phase, 1), self._trap)

    def _trap(self) -> tuple[int, str]:
        random = self._random
        delay_ns = random.randrange(random.choice((1, NS_PER_MS // 4, NS_PER_MS, 20 * NS_PER_MS)))
        return delay_ns, random.choice(self._enabled)

    def drag(self) -> None:
        """At level ``async`` with ``fall-behind``: for a while a link so slow that the peer falls behind."""
        options = self._world.profile.options
        if self._active and options.at_bound == "fall-behind" and self._random.random() < 0.7:
            begin = self._random.randrange(2 * NS_PER_S)
            self._clock.after(begin, self._set_link_slow, 60.0)
            for step in range(4):
                self._clock.after(begin + step * 400 * NS_PER_MS, self._stir)
            self._clock.after(begin + 2 * NS_PER_S, self._set_link_slow, 1.0)

    def _set_link_slow(self, factor: float) -> None:
        if self._active:
            self._world.link.slow = factor

    def _stir(self) -> None:
        self._world.guest.stir(sure=True)

    def ambush_growth(self) -> None:
        """The standby has recorded a larger size, and the active host has not: it may forget it."""
        deaths = [kind for kind in _DEATHS_OF_ACTIVE if self.striking(kind)]
        if deaths and self._random.random() < _DIES_GROWING:
            self._clock.after(0, self.strike, self._random.choice(deaths))

    def ambush_generation(self) -> None:
        """A write-intent generation has moved on: likewise, for what costs the host its memory."""
        if self._crashes:
            self._ambush(1 / 8, self._crash_trap)

    def _crash_trap(self) -> tuple[int, str]:
        kind = self._random.choice(self._crashes)
        return self._random.randrange(2 * NS_PER_MS), kind

    # ------------------------------------------------------------------ hosts

    def _kill(self, host: SimHost, *, power: bool) -> None:
        if not host.up:
            return
        world = self._world
        self._count(f"{'power' if power else 'crash'}-{host.name}")
        in_sync = False
        session = host.session
        if host.role is Role.ACTIVE and session is not None:
            in_sync = session.in_sync
            for source in session.sources:
                closing = source.tracker.closing
                state = "open" if closing is None else closing.state.value
                world.coverage.reach(f"crash-active@generation:{state}")
        suspect = host.suspect  # a failed flush: the cache of that disk is not what it seems
        host.crash(power=power)
        if host.role is Role.ACTIVE:
            world.guest.host_died()
        world.checker.crashed(host, power=power or suspect, in_sync=in_sync)
        self._restart_later(host)

    def _power_in_turn(self) -> None:
        """Both lose their power, a moment apart: what the first one lost is still being told."""
        hosts = self._world.hosts
        if all(host.up for host in hosts):
            self._count("power-in-turn")
            first = self._random.randrange(2)
            self._kill(hosts[first], power=True)
            delay_ns = self._random.randrange(self._random.choice((NS_PER_MS, 100 * NS_PER_MS)))
            self._clock.after(delay_ns, self._cut_power, hosts[1 - first], hosts[1 - first].incarnation)

    def _cut_power(self, host: SimHost, incarnation: int) -> None:
        if host.incarnation == incarnation:
            self._kill(host, power=True)

    def _count(self, kind: str) -> None:
        self._world.coverage.fault(kind)

    def _restart_later(self, host: SimHost) -> None:
        self._back_up(host)
        super()._restart_later(host)

    def _restart(self, host: SimHost) -> None:
        world = self._world
        if host.up:
            return
        if host.role is Role.ACTIVE:
            world.term += self._random.random() < 0.2
            host.start(world.term)
            if world.guest.writing:
                world.guest.begin()
        else:
            host.start(world.term)

    def _stop(self, host: SimHost) -> None:
        """An orderly shutdown: the guest ends, volumes are closed, the peer is told."""
        if not host.up or host.closing or host.session is None:
            return
        self._count(f"stop-{host.name}")
        if host.role is Role.STANDBY:
            host.stop()
            self._restart_later(host)
            return
        host.closing = True
        self._wait_for_guest(host, host.incarnation, self._clock.now)

    def _wait_for_guest(self, host: SimHost, incarnation: int, since_ns: int) -> None:
        session = host.session
        if host.incarnation != incarnation or session is None:
            return
        if any(source.failed for source in session.sources):
            self._kill(host, power=False)
            return
        if self._world.guest.requests:
            self._clock.after(20 * NS_PER_MS, self._wait_for_guest, host, incarnation, since_ns)
            return
        host.stopping = {f"close {source.index}" for source in session.sources}
        for source in session.sources:
            source.close(f"close {source.index}", self._clock.now)
        host.perform()
        self._wait_for_close(host, incarnation, since_ns)

    def _wait_for_close(self, host: SimHost, incarnation: int, since_ns: int) -> None:
        if host.incarnation != incarnation or host.session is None:
            return
        if host.stopping:
            if self._clock.now - since_ns > STOP_NS_MAX:
                self._world.fail("hang", f"the active does not close: {sorted(host.stopping)}")
            self._clock.after(20 * NS_PER_MS, self._wait_for_close, host, incarnation, since_ns)
            return
        if host.suspect:
            self._kill(host, power=False)
            return
        host.stop()
        self._world.checker.crashed(host, power=False, in_sync=False)
        self._world.checker.closed(host)
        self._restart_later(host)

    # ------------------------------------------------------------------ the link and slowness

    def _cut(self) -> None:
        if self._world.link.up:
            self._count("cut")
            self._world.link.cut()
            delay = self._random.choice((NS_PER_S // 2, 4 * NS_PER_S, 20 * NS_PER_S))
            self._clock.after(int(delay * self._random.expovariate(1.0)), self._world.link.heal)

    def _reset(self, *, one_sided: bool) -> None:
        self._count("one-sided" if one_sided else "reset")
        self._world.link.reset(one_sided=one_sided)

    def _slow_link(self) -> None:
        self._count("slow-link")
        self._world.link.slow = self._random.choice((4.0, 20.0, 60.0))
        self._clock.after(self._random.randrange(NS_PER_S, 15 * NS_PER_S), self._set_link_slow, 1.0)

    def _slow_disk(self, host: SimHost) -> None:
        self._count(f"slow-disk-{host.name}")
        replica = self._random.choice(host.replicas)
        replica.slow = self._random.choice((5.0, 30.0))
        self._clock.after(self._random.randrange(NS_PER_S, 10 * NS_PER_S), self._quick_disk, replica)

    def _quick_disk(self, replica: Replica) -> None:
        replica.slow = 1.0

    def _hang(self, host: SimHost) -> None:
        self._count(f"hang-disk-{host.name}")
        for replica in host.replicas:
            delay_ns = self._random.randrange(NS_PER_S, HANG_NS_MAX)
            replica.lane.stall(delay_ns)
            replica.hung_until_ns = max(replica.hung_until_ns, self._clock.now + delay_ns)
            replica.flush_free_ns = max(replica.flush_free_ns, replica.hung_until_ns)
            if self._random.random() < 0.5:
                replica.metadata_lane.stall(delay_ns)

    def _strike(self, damage: Callable[[SimHost], None], host: SimHost) -> None:
        if self._mislaid is None and self._world.profile.options.digests:
            damage(host)

    def _arm(self, kind: str) -> None:
        """The next job of a kind fails; counted when it does."""
        world = self._world
        host = world.standby if kind.endswith("-standby") else world.active
        armed = self._random.choice(host.replicas).armed
        if kind.startswith("eio"):
            armed.apply = errno.EIO
        elif kind.startswith("enospc"):
            armed.apply = errno.ENOSPC
        elif kind.startswith("read"):
            armed.read = errno.EIO
        elif kind.startswith("journal"):
            armed.journal = errno.EIO
        elif kind.startswith("metadata"):
            armed.metadata = errno.EIO
        elif kind.startswith("misdirect"):
            armed.misdirect = world.profile.options.digests
        else:
            armed.flush = errno.EIO
        world.guest.stir(sure=True)

    # ------------------------------------------------------------------ what mends

    def refused(self, rule: str) -> None:
        """A session was refused."""
        if rule != "volume-failed" or self._refusal not in _REFUSED_FOR_ROLLED_BACK_ACTIVE:
            self._refusal = rule  # else the host has failed because of that

    def trouble(self, host: SimHost) -> None:
        """A disk has failed: an operator may want to know what else is wrong."""
        if self._active and host.role is Role.ACTIVE and self._random.random() < 0.5:
            self._clock.after(self._random.choice((0, 0, 5 * NS_PER_MS)), self.scrub)

    def scrub(self) -> None:
        """What an operator does who does not wait for the next scrub."""
        session = self._world.active.session
        for source in session.sources if session is not None else ():
            if source.failed is None:
                source.scrubber.start(None, repair=True, now_ns=self._clock.now)
                source.advance(self._clock.now)
        self._world.active.perform()

    def repair(self) -> None:
        """The liveness phase: what a supervisor and an operator do."""
        world = self._world
        for host in world.hosts:
            session = host.session
            if not host.up and self._random.random() < 0.2:
                self._restart(host)
            elif session is not None and host.suspect:
                self._kill(host, power=False)
        if self._refusal == "stale-term" and not self._restored_active:
            self._refusal = None  # somebody has used a higher term: the active host is given it too
            self._kill(world.active, power=False)
        active = world.active.session
        if active is not None and active.refusal is None:
            self._refusal = None  # a session has been agreed on since
        if self._restored_active and self._refusal in _REFUSED_FOR_ROLLED_BACK_ACTIVE:
            # The standby has newer data, or other data: rightly refused.  The operator gives the standby up.
            world.coverage.reach("operator-gives-standby-up")
            self._restored_active = False
            self._replace_standby()
            self._restart_later(world.standby)
            self._kill(world.active, power=False)


_REFUSED_FOR_ROLLED_BACK_ACTIVE = frozenset(
    {
        "active-behind",
        "active-rolled-back",
        "rolled-back-apart",
        "size-differs",
        "diverged",
        "unrelated",
        "interrupted-unrelated",
        "stale-term",
        "peer-left",
    }
)
