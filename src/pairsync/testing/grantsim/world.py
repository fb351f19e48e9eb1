"""The world of `pairsync.testing.grantsim`: two hosts, witnesses, paths, clients, faults, checks; one seed.

A seed has a *safety phase* with faults, in which the rules are checked after every step, and liveness too:
whenever somebody has been entitled to run the guest (`entitled`) for the time that the operator stated, and
an allowance, with nothing changing meanwhile, it runs.  In the *liveness phase* faults end, and everything
must become whole.  A seed that is a *drill* has no storm: it asks what would survive, and puts that to the
test.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import NoReturn

from pairsync.core.acceptor import AcceptorState
from pairsync.core.claims import INSISTED, MEET_NS, Claim
from pairsync.core.grants import FORK_BYTES, INCARNATION_BYTES, Grant, VoterId, genesis
from pairsync.core.messages import Condition, Generation
from pairsync.core.units import NS_PER_MS, NS_PER_S
from pairsync.testing.sim.clock import Clock, Trace
from pairsync.testing.sim.disk import SECTOR_BYTES
from pairsync.testing.sim.start import blank_stores
from pairsync.testing.sim.world import Outcome, SimulationFailure, outcome_of

from .checker import GrantChecker
from .coverage import GrantCoverage
from .drill import drill
from .entitled import entitled
from .faults import GrantFaults
from .guest import Clients
from .host import GrantHost, host_id
from .medium import Medium
from .network import Network
from .profile import GrantProfile, draw_profile
from .witness import Witness

__all__ = ["GrantWorld", "simulate"]

LOOK_NS = 100 * NS_PER_MS
ALLOWANCE_NS = 2 * NS_PER_S
"""Beside the failover time: opening the disks, a round that has to be begun again, our looks."""
WHOLE_NS_MAX = 200 * NS_PER_S
"""How long the liveness phase may take: hold-offs of refused sessions, above all."""
REQUEST_NS_MAX = 60 * NS_PER_S


class GrantWorld:
    """See the module."""

    def __init__(self, seed: int, profile: GrantProfile | None = None) -> None:
        self.seed = seed
        self.random = Random(seed)  # noqa: S311 - reproducible on purpose, nothing secret
        self.profile = draw_profile(self.random) if profile is None else profile
        self.clock = Clock()
        self.trace = Trace(self.clock)
        self.coverage = GrantCoverage(self)
        self.checker = GrantChecker(self)
        self.overridden = False
        self.two_may_run = False
        """A fault has struck after which rule 10 is not claimed."""
        self.witnesses = {name: Witness(name, self.random) for name in self.profile.witnesses}
        self.hosts = self._make_hosts(whole=self.random.random() < 0.6)
        self.network = Network(self)
        self.guest = Clients(self, [size // SECTOR_BYTES for size in self.profile.sizes_bytes])
        self.faults = GrantFaults(self)
        self.longest_ns = 0  # without service, though somebody was entitled
        self._changed_ns = 0
        self._entitled_ns: int | None = None

    # ------------------------------------------------------------------ the beginning

    def _make_hosts(self, *, whole: bool) -> tuple[GrantHost, GrantHost]:
        """A guest that has just been made, or one whose hosts have long been in sync."""
        random = self.random
        voters = [VoterId(host_id(index), random.randbytes(INCARNATION_BYTES)) for index in (0, 1)]
        grant = genesis(voters[0], random.randbytes(FORK_BYTES))
        memories = [AcceptorState(voters[0].incarnation, grant), AcceptorState(voters[1].incarnation)]
        media = [
            [Medium(blank_stores(index, size)) for index, size in enumerate(self.profile.sizes_bytes)]
            for _ in (0, 1)
        ]
        if whole:
            grant = self._whole(grant, voters)
            memories = [AcceptorState(each.incarnation, grant) for each in voters]
            self._make_equal(media)
        self.checker.begin(grant)
        return GrantHost(self, 0, media[0], memories[0]), GrantHost(self, 1, media[1], memories[1])

    def _whole(self, grant: Grant, voters: list[VoterId]) -> Grant:
        deciding = voters[:1]
        for witness in list(self.witnesses.values())[:1]:
            deciding = [*voters, VoterId(witness.name, witness.view.incarnation)]
        both = frozenset(host_id(index) for index in (0, 1))
        return grant._replace(epoch=2, in_sync=both, voters=frozenset(deciding))

    def _make_equal(self, media: list[list[Medium]]) -> None:
        for mine, theirs in zip(*media, strict=True):
            generation = Generation(1, 1, self.random.getrandbits(64))
            for each in (mine.stores.metadata, theirs.stores.metadata):
                each.superblock = replace(
                    each.superblock,
                    term=1,
                    condition=Condition.CONSISTENT,
                    lineage=(generation,),
                    peer_in_sync=True,
                    map_base=generation,
                )

    # ------------------------------------------------------------------ what the parts tell

    def fail(self, rule: str, text: str) -> NoReturn:
        """A rule is broken."""
        raise SimulationFailure(rule, text)

    def changed(self) -> None:
        """Somebody has come or gone, or a path has."""
        self._changed_ns = self.clock.now
        self._entitled_ns = None
        self.checker.step()

    # ------------------------------------------------------------------ the run

    def run(self) -> None:
        """Both phases; raises `SimulationFailure`."""
        for host in self.hosts:
            host.start()
        self.guest.begin()
        if self.profile.drill:
            drill(self)
        else:
            self.faults.begin()
            self.run_until(self.profile.safety_ns)
        self.trace.note("world", "heal")
        self.faults.end()
        self._become_whole()

    def run_until(self, until_ns: int) -> None:
        """Time passes; liveness is looked at."""
        while self.clock.now < until_ns:
            self.clock.run_until(min(self.clock.now + LOOK_NS, until_ns))
            self._check_liveness()

    def _check_liveness(self) -> None:
        """Whoever is entitled to run the guest does so in time."""
        now = self.clock.now
        oldest_ns = self.guest.oldest_ns()
        if oldest_ns is not None and now - oldest_ns > REQUEST_NS_MAX + self.profile.timing.failover_ns:
            self._check_request(oldest_ns)
        if any(host.serves for host in self.hosts):
            self._entitled_ns = None
            return
        host = entitled(self)
        if host is None:
            self._entitled_ns = None
            return
        if self._entitled_ns is None:
            self._entitled_ns = now
        waited_ns = now - self._entitled_ns
        self.longest_ns = max(self.longest_ns, waited_ns)
        if waited_ns > self.profile.timing.failover_ns + ALLOWANCE_NS:
            self.fail("liveness", f"host {host.name} may run the guest, and nobody does: {self._standing()}")

    def _check_request(self, oldest_ns: int) -> None:
        if self._changed_ns < oldest_ns and not any(host.frozen or host.sick for host in self.hosts):
            self.fail("hang", f"a request was made at {oldest_ns / NS_PER_S:.3f} s: {self._standing()}")

    def _become_whole(self) -> None:
        deadline_ns = self.clock.now + WHOLE_NS_MAX
        while not self.whole():
            if self.overridden and self._nothing_left():
                self.coverage.reach("operator-lost-all")
                return
            if self.clock.now > deadline_ns:
                self.fail("liveness", f"not whole: {self._standing()}")
            self.run_until(self.clock.now + NS_PER_S)
            self._operate()
        self.guest.rest()
        self.run_until(self.clock.now + 3 * NS_PER_S)
        if (
            not self.clock.run_until(self.clock.now + 30 * NS_PER_S, stop=self._at_rest)
            and not self._at_rest()
        ):
            self.fail("liveness", f"does not come to rest: {self._standing()}")
        if self.hosts[0].content() != self.hosts[1].content():
            self.fail("liveness", "in sync, and the disks differ")
        wrong = self.guest.registers.first_wrong()
        if wrong is not None:
            self.fail("not-linearizable", wrong)

    def _nothing_left(self) -> bool:
        """A person has chosen a host without a usable replica, and the other one's is gone too."""
        planes = [host.plane for host in self.hosts]
        return all(each is not None and not each.could_serve(INSISTED) for each in planes)

    def _at_rest(self) -> bool:
        planes = [host.plane for host in self.hosts]
        return self.whole() and not self.guest.busy and all(each is not None and each.idle for each in planes)

    def could_meet(self, host: GrantHost) -> bool:
        """Whether that one, which begins to serve, could have met the other one while it waited for that."""
        network, other = self.network, self.hosts[1 - host.index]
        there = other.up and not other.frozen and other.plane is not None and not other.plane.ill
        linked = network.reaches(0, 1) and network.reaches(1, 0)
        return there and linked and self.clock.now - max(other.since_ns, network.cut_ns) >= MEET_NS

    def whole(self) -> bool:
        """Both are in sync, by proof and by grant."""
        newest = self.checker.newest
        if newest is None or len(newest.in_sync) < 2 or not any(host.serves for host in self.hosts):
            return False
        preferred = {voter.name for voter in newest.voters} & set(self.profile.witnesses[:1])
        if self.witnesses and not preferred and not self.overridden:  # it may keep the other truth
            return False
        return all(host.plane is not None and host.plane.session.in_sync for host in self.hosts)

    def _operate(self) -> None:
        """What a person does where no machine may decide."""
        if self.clock.now - self._changed_ns < 4 * self.profile.timing.failover_ns + 5 * NS_PER_S:
            return
        serving = [host for host in self.hosts if host.serves]
        if not serving and entitled(self) is None:
            # Each may be newer in one volume and older in another: then a person insists on one of them.
            able = (
                [host for host in self.hosts if host.plane and host.plane.could_serve(claim)]
                for claim in (Claim(), INSISTED)
            )
            whole = next(filter(None, able), [])
            if whole:
                self.coverage.reach("operator-overrides")
                last = self.checker.served_last
                self.faults.override(last if last in whole else whole[0])
                self.changed()
            elif self.checker.newest is not None and self.checker.newest.is_first and self._nothing_left():
                self._begin_anew()
        elif serving and self.overridden and (self.checker.refused or self.checker.forked):
            keeps = next((host for host in serving if self.guest.counts(host)), serving[0])
            self._pick(keeps)

    def _begin_anew(self) -> None:
        """Its first owner has lost its memory before anything was written: the guest is made once more."""
        self.coverage.reach("operator-begins-anew")
        if self.guest.acknowledged:
            self.fail("lost-write", "both replicas are blank, and something was acknowledged")
        for host in self.hosts:
            if host.up:
                host.crash(power=False, why="stopped")
        voters = [VoterId(host.id, self.random.randbytes(INCARNATION_BYTES)) for host in self.hosts]
        grant = genesis(voters[0], self.random.randbytes(FORK_BYTES))
        self.hosts[0].memory = AcceptorState(voters[0].incarnation, grant)
        self.hosts[1].memory = AcceptorState(voters[1].incarnation)
        for witness in self.witnesses.values():
            witness.lose()
        self.checker.begin(grant)
        for host in self.hosts:
            self.faults.restart(host)

    def _pick(self, keeps: GrantHost) -> None:
        """Of two truths this host's is kept; the other host begins anew."""
        self.coverage.reach("operator-picks-a-side")
        self.checker.refused, self.checker.forked = None, False
        loser = self.hosts[1 - keeps.index]
        if loser.up:
            loser.crash(power=False, why="stopped")
        self.faults.disks.replace(loser)
        loser.forget(restored=None)
        self.faults.restart(loser)

    def _standing(self) -> str:
        parts = []
        for host in self.hosts:
            plane, arbiter = host.plane, host.arbiter
            if plane is None or arbiter is None:
                parts.append(f"{host.name} is down;")
                continue
            session = plane.session
            base = arbiter.decider.base
            parts.append(
                f"{host.name} {plane.role.name.lower()}{' paused' if plane.paused else ''}"
                f"{' frozen' if host.frozen else ''} session {session.phase.value} ({session.refusal})"
                f" guest {arbiter.decider.guest.value} ready {arbiter.decider.ready}"
                f" base {base.describe() if base else None};"
            )
        parts.append(f"cut {sorted(self.network.cut)}")
        return " ".join(parts)


def simulate(seed: int, profile: GrantProfile | None = None) -> Outcome:
    """Run one seed; never raises for what the core does."""
    return outcome_of(GrantWorld(seed, profile))
