"""Faults of hosts, paths, witnesses, clocks and people: a storm of random ones, and what ends them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from pairsync.core.timing import FAILOVER_NS_MIN, derive
from pairsync.core.units import NS_PER_MS, NS_PER_S

from .diskfaults import DiskFaults
from .medium import FAILS, HANGS
from .network import WITNESS
from .profile import RATE_BEYOND_PPM
from .releases import CURRENT, RELEASES, Release, overlap

if TYPE_CHECKING:
    from pairsync.core.acceptor import AcceptorState

    from .host import GrantHost
    from .witness import Witness
    from .world import GrantWorld

__all__ = ["GrantFaults"]

PAUSE_NS_MAX = 8 * NS_PER_S
BETWEEN_NS_MAX = NS_PER_S // 2
"""Between the loss of a peer and that of the witness, at the most."""
LOSS_MAX = 0.6


class GrantFaults:
    """See the module."""

    def __init__(self, world: GrantWorld) -> None:
        self._world = world
        self._clock = world.clock
        self._random = world.random
        self.disks = DiskFaults(world)
        self.active = False
        self._lowered = derive(FAILOVER_NS_MIN)
        self._copies: list[AcceptorState | None] = [None, None]  # of the hosts' memories
        self._actions: dict[str, Callable[[], bool]] = {
            "crash-owner": lambda: self._kill(self._owner(), power=False),
            "crash-standby": lambda: self._kill(self._standby(), power=False),
            "crash-both": lambda: self._kill_both(power=False),
            "power-owner": lambda: self._kill(self._owner(), power=True),
            "power-standby": lambda: self._kill(self._standby(), power=True),
            "power-both": lambda: self._kill_both(power=True),
            "pause-owner": lambda: self._pause(self._owner()),
            "pause-standby": lambda: self._pause(self._standby()),
            "suspend-owner": lambda: self._pause(self._owner(), asleep=True),
            "suspend-standby": lambda: self._pause(self._standby(), asleep=True),
            "cut-link": lambda: self._cut((0, 1), (1, 0)),
            "cut-one-way": self._cut_one_way,
            "cut-owner-witness": lambda: self._cut_witness(self._owner()),
            "cut-standby-witness": lambda: self._cut_witness(self._standby()),
            "isolate-owner": lambda: self._isolate(self._owner()),
            "isolate-standby": lambda: self._isolate(self._standby()),
            "owner-deaf": self._owner_deaf,
            "witness-down": self._witness_down,
            "witness-preferred-down": self._witness_preferred_down,
            "witness-after-peer": self._witness_after_peer,
            "witness-lost": self._witness_lost,
            "witness-rolled-back": self._witness_rolled_back,
            "lossy": self._lossy,
            "memory-lost": lambda: self._memory(lost=True),
            "memory-restored": lambda: self._memory(lost=False),
            "disks-replaced": self._disks_replaced,
            "disks-rolled-back": self._disks_rolled_back,
            "disk-fails-owner": lambda: self._sicken(self._owner(), FAILS),
            "disk-fails-standby": lambda: self._sicken(self._standby(), FAILS),
            "disk-hangs-owner": lambda: self._sicken(self._owner(), HANGS),
            "disk-hangs-standby": lambda: self._sicken(self._standby(), HANGS),
            "disk-swapped-owner": lambda: self._sicken(self._owner(), FAILS, swaps=True),
            "disk-swapped-standby": lambda: self._sicken(self._standby(), FAILS, swaps=True),
            "upgrade-owner": lambda: self._upgrade(self._owner()),
            "upgrade-standby": lambda: self._upgrade(self._standby()),
            "upgrade-witness": self._upgrade_witness,
            "move": self._move,
            "override": self._override,
            "failover-lowered": self._failover_lowered,
            "rate-beyond": self._rate_beyond,
        }

    # ------------------------------------------------------------------ when

    def begin(self) -> None:
        """Faults may strike from now on."""
        self.active = True
        if self._world.profile.faults:
            self._next()
            self._copy()

    def _next(self) -> None:
        self._clock.after(int(self._world.profile.storm_ns * self._random.expovariate(1.0)), self._storm)

    def _storm(self) -> None:
        if self.active:
            faults = self._world.profile.faults
            self.strike(self._random.choices(list(faults), list(faults.values()))[0])
            self._next()

    def strike(self, kind: str) -> None:
        """That fault, now, if it can."""
        state = self._world.coverage.state()
        self._world.trace.note("fault", kind)
        if self._actions[kind]():
            self._world.coverage.reach(f"{kind}@{state}")

    def ambush(self, host: GrantHost) -> None:
        """That host writes its memory down: what depends on it is about to leave."""
        profile = self._world.profile
        if not self.active or not profile.faults or self._random.random() >= profile.ambush:
            return
        delay_ns = self._random.randrange(2 * profile.memory_ns + 2 * profile.control_ns)
        if self._random.random() < 0.5:
            self._clock.after(delay_ns, self._kill_again, host, False)
        else:
            self._clock.after(delay_ns, self._spring, self._random.choice(list(profile.faults)))

    def _spring(self, kind: str) -> None:
        if self.active:
            self.strike(kind)

    def _copy(self) -> None:
        """Backups are made now and then."""
        if self.active:
            self._copies = [host.memory for host in self._world.hosts]
            self.disks.back_up(self._owner())
            for witness in self._world.witnesses.values():
                witness.back_up()
            self._clock.after(self._random.randrange(10 * NS_PER_S), self._copy)

    def _for_a_while(self) -> int:
        return self._random.randrange(self._random.choice((NS_PER_S, 5 * NS_PER_S, 20 * NS_PER_S)))

    def end(self) -> None:
        """No more faults; everything works again."""
        world = self._world
        self.active = False
        world.network.loss, world.network.slow = 0.0, 1.0
        world.network.set_cut(set())
        for witness in world.witnesses.values():
            witness.up = True
        for host, rate_ppm in zip(world.hosts, world.profile.rates_ppm, strict=True):
            host.thaw()
            for medium in host.media:
                self.disks.cure(host, medium)
            if host.rate_ppm != rate_ppm:
                host.set_rate(rate_ppm)
            self._failover_as_before(host)
            self.restart(host)
        self._finish_upgrades()
        world.changed()

    # ------------------------------------------------------------------ hosts

    def _owner(self) -> GrantHost:
        newest, hosts = self._world.checker.newest, self._world.hosts
        return hosts[1] if newest is not None and newest.owner == hosts[1].id else hosts[0]

    def _standby(self) -> GrantHost:
        return self._world.hosts[1 - self._owner().index]

    def _kill(self, host: GrantHost, *, power: bool) -> bool:
        if not host.up:
            return False
        host.crash(power=power, why="power-cut" if power else "crash")
        self.restart_later(host)
        return True

    def _kill_both(self, *, power: bool) -> bool:
        if not all(host.up for host in self._world.hosts):
            return False
        first = self._random.randrange(2)
        self._kill(self._world.hosts[first], power=power)
        self._clock.after(
            self._random.randrange(BETWEEN_NS_MAX), self._kill_again, self._world.hosts[1 - first], power
        )
        return True

    def _kill_again(self, host: GrantHost, power: bool) -> None:
        if self.active:
            self._kill(host, power=power)

    def restart_later(self, host: GrantHost) -> None:
        """Somebody, or something, starts it again."""
        delay_ns = int(self._world.profile.restart_ns * self._random.expovariate(1.0))
        self._clock.after(delay_ns, self.restart, host)

    def restart(self, host: GrantHost) -> None:
        """Start it, if it is down."""
        if not host.up:
            host.start()
            self._world.changed()

    def _pause(self, host: GrantHost, *, asleep: bool = False) -> bool:
        if not host.up or host.frozen:
            return False
        host.freeze(asleep=asleep)
        longest_ns = self._random.choice((NS_PER_S // 4, self._world.profile.timing.lease_ns, PAUSE_NS_MAX))
        self._clock.after(self._random.randrange(longest_ns), self._thaw, host, host.life)
        return True

    def _thaw(self, host: GrantHost, life: int) -> None:
        if host.life == life:
            host.thaw()

    # ------------------------------------------------------------------ paths

    def _cut(self, *ways: tuple[int, int]) -> bool:
        network = self._world.network
        fresh = set(ways) - network.cut
        if not fresh:
            return False
        network.set_cut(network.cut | fresh)
        self._world.changed()
        self._clock.after(self._for_a_while(), self._heal, fresh)
        return True

    def _heal(self, ways: set[tuple[int, int]]) -> None:
        network = self._world.network
        if network.cut & ways:
            network.set_cut(network.cut - ways)
            self._world.changed()

    def _cut_one_way(self) -> bool:
        sender = self._random.randrange(2)
        receiver = self._random.choice((1 - sender, WITNESS))
        return self._cut(self._random.choice([(sender, receiver), (receiver, sender)]))

    def _cut_witness(self, host: GrantHost) -> bool:
        return self._cut((host.index, WITNESS), (WITNESS, host.index))

    def _isolate(self, host: GrantHost) -> bool:
        others = [(host.index, 1 - host.index), (host.index, WITNESS)]
        return self._cut(*others, *((other, here) for here, other in others))

    def _owner_deaf(self) -> bool:
        """Its heartbeats are heard, and that is all that works."""
        owner = self._owner().index
        return self._cut((1 - owner, owner), (owner, WITNESS), (WITNESS, owner))

    def _lossy(self) -> bool:
        network = self._world.network
        network.loss = self._random.random() * LOSS_MAX
        network.slow = self._random.choice((1.0, 1.0, 3.0, 20.0))
        network.repeats = self._random.choice((0.02, 0.3))
        self._world.changed()
        self._clock.after(self._for_a_while(), self._calm)
        return True

    def _calm(self) -> None:
        network = self._world.network
        network.loss, network.slow, network.repeats = 0.0, 1.0, 0.02
        self._world.changed()

    # ------------------------------------------------------------------ the witness

    def _witness_down(self) -> bool:
        witnesses = [each for each in self._world.witnesses.values() if each.up]
        if not witnesses:
            return False
        self._takes_down(self._random.choice(witnesses), self._for_a_while())
        return True

    def _witness_preferred_down(self) -> bool:
        """Of two, and so long that the other one takes its place."""
        witnesses = list(self._world.witnesses.values())
        if len(witnesses) < 2 or not witnesses[0].up:
            return False
        self._takes_down(witnesses[0], 2 * self._world.profile.timing.witness_lost_ns + self._for_a_while())
        return True

    def _takes_down(self, witness: Witness, for_ns: int) -> None:
        witness.up = False
        self._world.changed()
        self._clock.after(for_ns, self._witness_back, witness.name)

    def _witness_back(self, name: str) -> None:
        self._world.witnesses[name].up = True
        self._world.changed()

    def _witness_after_peer(self) -> bool:
        """The peer dies, and the witness a moment later."""
        if not self._world.witnesses or not self._kill(self._standby(), power=False):
            return False
        self._clock.after(self._random.randrange(BETWEEN_NS_MAX), self._witness_dies)
        return True

    def _witness_dies(self) -> None:
        if self.active:
            self._witness_down()

    def _witness_lost(self) -> bool:
        """Its store is lost, or put back from a copy of the file."""
        for witness in self._world.witnesses.values():
            witness.lose()
        self._world.changed()
        return bool(self._world.witnesses)

    def _witness_rolled_back(self) -> bool:
        """Its machine is put back to a snapshot.  Noticed by hosts that have seen more: both must live."""
        if not all(host.up and not host.frozen for host in self._world.hosts):
            return False
        went_back = False
        for witness in self._world.witnesses.values():
            view = witness.view
            seen = [host.seen.get(witness.name) for host in self._world.hosts]
            if all(each is not None and each == (view.incarnation, view.version) for each in seen):
                went_back = witness.roll_back() or went_back
        self._world.changed()
        return went_back

    # ------------------------------------------------------------------ memories and disks

    def _memory(self, *, lost: bool) -> bool:
        """A host comes back without its memory, or with one that was put back from a copy."""
        host = self._random.choice(self._world.hosts)
        copy = None if lost else self._copies[host.index]
        if not host.up or (copy is None and not lost):
            return False
        self._kill(host, power=False)
        host.forget(restored=copy)
        return True

    def _sicken(self, host: GrantHost, how: str, *, swaps: bool = False) -> bool:
        return self.disks.sicken(host, how, self._for_a_while(), swaps=swaps)

    def _disks_replaced(self) -> bool:
        """A standby gets new disks, and perhaps is a new machine altogether."""
        host = self._standby()
        if host.serves or not host.up or not self.disks.is_spare(host):
            return False
        self._kill(host, power=True)
        self.disks.replace(host)
        if self._random.random() < 0.5:
            host.forget(restored=None)
        return True

    def _disks_rolled_back(self) -> bool:
        """The owner's disks are put back from a copy, and not its memory."""
        host = self._owner()
        copy = self.disks.copy_for(host)
        if copy is None or not self._kill(host, power=True):
            return False
        self.disks.roll_back(host, copy)
        return True

    # ------------------------------------------------------------------ releases

    def _another(self, release: Release) -> Release:
        return self._random.choice([each for each in RELEASES if each != release])

    def _upgrade(self, host: GrantHost) -> bool:
        """Another release is installed, newer or older, and the host begun anew, in order."""
        if not host.up or host.frozen or host.ending:
            return False
        host.installed = self._another(host.installed)
        self._world.trace.note(host.name, "install", 0, str(host.installed))
        host.end(lambda: self.restart_later(host))
        return True

    def _upgrade_witness(self) -> bool:
        """Likewise."""
        witnesses = [each for each in self._world.witnesses.values() if each.up]
        if not witnesses:
            return False
        witness = self._random.choice(witnesses)
        witness.release = self._another(witness.release)
        witness.up = False
        self._world.changed()
        self._clock.after(self._random.randrange(5 * NS_PER_S), self._witness_back, witness.name)
        return True

    def _finish_upgrades(self) -> None:
        """People do not leave behind what cannot agree."""
        world = self._world
        parts = [
            *(host.installed for host in world.hosts),
            *(each.release for each in world.witnesses.values()),
        ]
        if all(overlap(one, other) for one in parts for other in parts):
            return
        for witness in world.witnesses.values():
            witness.release = CURRENT
        for host in world.hosts:
            host.installed = CURRENT
            if host.release != CURRENT and not host.ending:
                host.end(partial(self.restart, host))

    # ------------------------------------------------------------------ people

    def _move(self) -> bool:
        host = self._owner()
        refusal = host.move()
        self._world.trace.note(host.name, "move", 0, refusal)
        if not refusal:
            self._world.coverage.reach("moved")
        return not refusal

    def _override(self) -> bool:
        host = self._random.choice(self._world.hosts)
        if not host.up or host.frozen:
            return False
        self.override(host)
        return True

    def override(self, host: GrantHost) -> None:
        """A person makes that host the owner."""
        self._world.overridden = self._world.two_may_run = True
        self._world.trace.note(host.name, "override")
        host.override()

    def _failover_lowered(self) -> bool:
        """The standby is restarted with the shortest failover time, and the owner cut off meanwhile."""
        host = self._standby()
        if not host.up or self._world.profile.timing == self._lowered:
            return False
        self._isolate(self._owner())
        host.crash(power=False, why="stopped")
        host.timing = self._lowered
        self._clock.after(self._random.randrange(BETWEEN_NS_MAX), self.restart, host)
        self._clock.after(BETWEEN_NS_MAX + self._for_a_while(), self._failover_as_before, host)
        return True

    def _failover_as_before(self, host: GrantHost) -> None:
        if host.timing != self._world.profile.timing:
            host.timing = self._world.profile.timing
            if host.up:
                host.crash(power=False, why="stopped")
                self.restart(host)

    # ------------------------------------------------------------------ clocks

    def _rate_beyond(self) -> bool:
        """A clock breaks: two may run at once, and nothing is lost all the same."""
        host = self._random.choice(self._world.hosts)
        self._world.two_may_run = True
        host.set_rate(self._random.choice((-RATE_BEYOND_PPM, RATE_BEYOND_PPM)))
        self._clock.after(NS_PER_MS + self._for_a_while(), self._rate_back, host)
        return True

    def _rate_back(self, host: GrantHost) -> None:
        host.set_rate(self._world.profile.rates_ppm[host.index])
