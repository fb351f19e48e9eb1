"""The tester is tested: bugs planted in arbitration, each of which the simulator of grants has to find.

Every mutant forgets one thing.  It has to be found within `SEEDS_MAX` of CI's seeds that have the faults
which can show it, and by a rule that makes sense.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from random import Random
from typing import Any

import pytest

from pairsync.core import grants, policy
from pairsync.core.acceptor import AcceptorState
from pairsync.core.arbiter import Arbiter
from pairsync.core.arbitration import Beat, WitnessView
from pairsync.core.decider import Decider
from pairsync.core.footing import Footing
from pairsync.core.grants import Grant
from pairsync.core.outcomes import Guest, Wait
from pairsync.core.permit import Permit
from pairsync.core.promises import Promises
from pairsync.core.proposer import Round
from pairsync.core.session import Session
from pairsync.core.source import VolumeSource
from pairsync.core.standing import Standing
from pairsync.core.target import VolumeTarget
from pairsync.errors import RefusedError
from pairsync.testing.grantsim import draw_profile, roles, simulate
from pairsync.testing.grantsim.process import Process
from pairsync.testing.grantsim.witness import Witness
from pairsync.wire import hello

SEEDS_MAX = 160
CI_SEEDS = 2000

Mutant = Callable[[pytest.MonkeyPatch], None]
MUTANTS: dict[str, tuple[Mutant, set[str], frozenset[str]]] = {}


def mutant(*rules: str, faults: str = "") -> Callable[[Mutant], Mutant]:
    """Has to be found, by one of these rules, in seeds that have one of these faults, or are drills."""

    def take(plant: Mutant) -> Mutant:
        MUTANTS[plant.__name__] = (plant, set(rules), frozenset(faults.split()))
        return plant

    return take


@mutant("two-running", "lost-write", "stale-read", faults="pause-owner isolate-owner")
def run_without_a_lease(patch: pytest.MonkeyPatch) -> None:
    def may_run(self: Footing) -> bool:
        return self.base is not None and self.owns and self.ready and not self.moving and not self.ceding

    def tell_lease(self: Arbiter, out: list[Any]) -> None:
        return None

    patch.setattr(Footing, "may_run", property(may_run))
    patch.setattr(Arbiter, "_tell_lease", tell_lease)


@mutant("two-running", faults="failover-lowered")
def forget_a_longer_promise_with_the_failover_time(patch: pytest.MonkeyPatch) -> None:
    right = Promises.__init__

    def init(self: Promises, written_ns: int | None, promise_ns: int) -> None:
        right(self, promise_ns, promise_ns)

    patch.setattr(Promises, "__init__", init)


@mutant("two-running", faults="isolate-owner pause-owner cut-link")
def count_the_lease_from_the_answer(patch: pytest.MonkeyPatch) -> None:
    """Not from when the heartbeat was sent, and believe any answer, however late."""
    right = Arbiter._begin

    def begin(self: Arbiter, wait: Wait, now_ns: int, sent_ns: int | None) -> None:
        right(self, wait, now_ns, sent_ns)
        if wait is Wait.LEASE:
            self._leased_ns = now_ns + self.timing.lease_ns
            self._deadlines[wait] = self._leased_ns + self.timing.yield_after_ns

    patch.setattr(Arbiter, "_begin", begin)


@mutant("two-running", "liveness", faults="isolate-owner cut-link")
def take_over_at_once(patch: pytest.MonkeyPatch) -> None:
    """Also from an owner that runs, once its standby is in sync: the guest goes to and fro without end."""
    right = Decider._adapt

    def adapt(self: Decider, out: list[Any]) -> None:
        right(self, out)
        if not self.owns:
            self.promise_out = True

    patch.setattr(Decider, "_adapt", adapt)


@mutant("lost-write", "stale-read", faults="cut-link isolate-owner crash-standby isolate-standby")
def acknowledge_alone_without_a_grant(patch: pytest.MonkeyPatch) -> None:
    right = Permit.give

    def give(self: Permit, *, alone: bool, insisted: bool = False) -> None:
        right(self, alone=True, insisted=insisted)

    patch.setattr(Permit, "give", give)


@mutant("lost-write", "stale-read", "in-sync-claim")
def say_that_the_peer_is_excluded_when_that_is_only_wanted(patch: pytest.MonkeyPatch) -> None:
    def peer_excluded(self: Arbiter) -> bool:
        return self.grant is not None and self.decider.register.peer not in self.decider.wanted

    patch.setattr(Arbiter, "peer_excluded", property(peer_excluded))


@mutant("one-owner", "illegal-grant", "lost-write", "two-running", "raised")
def decide_with_the_own_vote_alone(patch: pytest.MonkeyPatch) -> None:
    def decided(self: Round, own: grants.VoterId) -> grants.Vote:
        return grants.Vote.PENDING if self.value is None else grants.Vote.WON

    patch.setattr(Round, "decided", decided)


@mutant("lost-write", "in-sync-claim", faults="crash-standby isolate-standby power-standby")
def never_exclude_a_peer_that_is_gone(patch: pytest.MonkeyPatch) -> None:
    """What is acknowledged without it is acknowledged under a grant that calls it in sync."""
    patch.setattr(Arbiter, "peer_excluded", property(lambda self: self.decider.owns))
    patch.setattr(Decider, "_excludes_peer", lambda self: None)


@mutant("one-owner", "illegal-grant", "lost-write", "two-running", "raised", "liveness")
def forget_what_the_witness_has_accepted(patch: pytest.MonkeyPatch) -> None:
    """A swap is answered as if it were done, and is not."""

    def ask(self: Witness, seen: Any, version: int | None, state: AcceptorState | None) -> WitnessView:
        if version is not None and version == self.view.version:
            return WitnessView(self.view.incarnation, version + 1, state)
        return self.view

    patch.setattr(Witness, "ask", ask)


@mutant(
    *("one-owner", "illegal-grant", "lost-write", "two-running", "in-sync-claim", "liveness"),
    faults="cut-link cut-one-way",
)
def swap_whatever_the_version_is(patch: pytest.MonkeyPatch) -> None:
    """By a standby that looks once and not again: an old view does no harm where versions are compared."""
    right = Decider._probe

    def ask(self: Witness, seen: Any, version: int | None, state: AcceptorState | None) -> WitnessView:
        if version is not None:
            self.view = WitnessView(self.view.incarnation, self.view.version + 1, state)
        return self.view

    def probe(self: Decider, out: list[Any]) -> None:
        voter = None if self.owns else self.register.voting_witness()
        if voter is None or self.register.view(str(voter.name)) is None:
            right(self, out)
        else:
            self._wait(Wait.PROBE, out)

    patch.setattr(Witness, "ask", ask)
    patch.setattr(Decider, "_probe", probe)


@mutant("two-running", "stale-read", "lost-write", faults="move")
def move_before_the_guest_is_down(patch: pytest.MonkeyPatch) -> None:
    def cedes(self: Footing) -> bool:
        return True if self.owns else self.promise_out

    right = Footing.situation

    def situation(self: Footing, base: Grant) -> policy.Situation:
        return right(self, base)._replace(guest_down=True)

    patch.setattr(Footing, "cedes", property(cedes))
    patch.setattr(Footing, "situation", situation)


@mutant("two-running", faults="move")
def take_the_guest_for_stopped_once_it_is_told(patch: pytest.MonkeyPatch) -> None:
    right = Decider._drive_guest

    def drive_guest(self: Decider, out: list[Any]) -> None:
        right(self, out)
        if self.guest is Guest.STOPPING:
            self.guest = Guest.DOWN

    patch.setattr(Decider, "_drive_guest", drive_guest)


@mutant("lost-write", "stale-read", "dirty-superset", "not-linearizable")
def acknowledge_before_the_new_generation_is_durable(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Standing, "may_acknowledge_alone", property(lambda self: True))


@mutant("lost-write", "in-sync-claim", "illegal-grant", faults="crash-standby disks-replaced memory-lost")
def take_the_peer_back_without_proof(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Session, "in_sync", property(lambda self: True))


@mutant("liveness", faults="witness-after-peer")
def leave_the_witness_among_the_voters(patch: pytest.MonkeyPatch) -> None:
    """Rule 4 forgotten: who goes on alone still needs the witness for the next change."""
    right = policy._voters

    def voters(now: policy.Situation, in_sync: frozenset[bytes]) -> frozenset[grants.VoterId]:
        if in_sync == frozenset({now.own.name}) and now.witness is not None and now.peer_id is not None:
            return frozenset({now.own, now.peer_id, now.witness})
        return right(now, in_sync)

    patch.setattr(policy, "_voters", voters)


@mutant("liveness", faults="crash-owner isolate-owner power-owner")
def never_take_over(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(policy, "_take_over", lambda now: None)


@mutant("liveness", faults="owner-deaf")
def keep_still_for_an_owner_that_hears_nobody(patch: pytest.MonkeyPatch) -> None:
    right = Decider._hears_beat

    def hears_beat(self: Decider, message: Beat, out: list[Any]) -> None:
        right(self, message._replace(hears=True), out)

    patch.setattr(Decider, "_hears_beat", hears_beat)


@mutant("lost-write", "stale-read", "dirty-superset", faults="disk-fails-standby disk-swapped-standby")
def take_a_write_that_failed_on_the_standby_for_done(patch: pytest.MonkeyPatch) -> None:
    right = VolumeTarget.applied
    patch.setattr(VolumeTarget, "applied", lambda self, token, errnos: right(self, token, None))


@mutant("lost-write", "stale-read", "not-linearizable", faults="disk-fails-owner")
def take_a_failed_flush_for_done(patch: pytest.MonkeyPatch) -> None:
    right = VolumeSource.flushed
    patch.setattr(VolumeSource, "flushed", lambda self, token, error, now_ns: right(self, token, 0, now_ns))


@mutant("outlook", faults="drill")
def stay_with_a_disk_that_is_dead(patch: pytest.MonkeyPatch) -> None:
    right = Arbiter.move

    def move(self: Arbiter, now_ns: int, *, leaving: bool = False) -> tuple[str, list[Any]]:
        return ("no", []) if leaving else right(self, now_ns)

    patch.setattr(Arbiter, "move", move)


@mutant("two-running", "stale-read", "lost-write", faults="suspend-owner")
def read_a_clock_that_stands_still_with_the_machine(patch: pytest.MonkeyPatch) -> None:
    """Of CLOCK_MONOTONIC, say: the lease seems to hold when the machine goes on."""
    since_ns: dict[Process, int] = {}
    stand_still, go_on = Process.stand_still, Process.go_on

    def stands_still(self: Process, *, asleep: bool) -> None:
        stand_still(self, asleep=asleep)
        since_ns[self] = self.now_ns

    def goes_on(self: Process) -> None:
        if self.asleep:
            self._offset_ns -= self.now_ns - since_ns[self]
        go_on(self)

    patch.setattr(Process, "stand_still", stands_still)
    patch.setattr(Process, "go_on", goes_on)


@mutant("liveness", faults="witness-preferred-down")
def stay_with_the_alternate_witness(patch: pytest.MonkeyPatch) -> None:
    def drive_witness(self: Decider, out: list[Any]) -> None:
        if self.owns and self.register.witnesses:
            self.register.teach(self.register.witnesses[self.current], out)

    patch.setattr(Decider, "_drive_witness", drive_witness)


@mutant("version", faults="upgrade-owner upgrade-standby upgrade-witness")
def speak_what_only_one_of_two_understands(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(hello, "negotiate", lambda ours, peer: min(ours[1], peer[1]))


@mutant("liveness", faults="upgrade-owner upgrade-standby")
def refuse_whoever_has_another_release(patch: pytest.MonkeyPatch) -> None:
    """Though both speak a version that the other one does."""
    right = hello.negotiate

    def negotiate(ours: tuple[int, int], peer: tuple[int, int]) -> int:
        if peer[0] < peer[1] and ours != peer:  # a range, not the version that was chosen
            raise RefusedError("another release")
        return right(ours, peer)

    patch.setattr(hello, "negotiate", negotiate)


@mutant("lost-write", "stale-read", faults="disks-rolled-back")
def serve_what_is_known_to_be_outdated(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Session, "outdated", "")


@mutant("lost-write", "stale-read", faults="disks-rolled-back")
def serve_before_the_peer_could_say_that_it_is_newer(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(roles, "has_to_meet", lambda arbiter, session: False)


@mutant("outlook", faults="drill")
def take_the_standby_to_reach_the_witness_if_the_owner_does(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Arbiter, "standby_asks", property(lambda self: self.owner_asks))


def _seeds(faults: frozenset[str]) -> Iterator[int]:
    for seed in range(CI_SEEDS):
        profile = draw_profile(Random(seed))
        kinds = {"drill"} if profile.drill else set(profile.faults)
        if faults & kinds or (not faults and not profile.drill):
            yield seed


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_planted_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, rules, faults = MUTANTS[name]
    plant(monkeypatch)
    for tried, seed in enumerate(islice(_seeds(faults), SEEDS_MAX), 1):
        outcome = simulate(seed)
        if outcome.failure is not None:
            assert outcome.rule in rules, outcome.failure
            assert tried <= SEEDS_MAX
            return
    pytest.fail(f"{SEEDS_MAX} seeds have not found it")


def test_enough_bugs_are_planted() -> None:
    assert len(MUTANTS) >= 8
