"""The tester is tested: bugs planted in the core, each of which the simulator has to find within 100 seeds.

Every mutant changes one method so that it forgets one thing that the core must not forget.  What is checked
is only *that* it is found, and by a rule that makes sense; where several rules may see it first, all of them
are named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from pairsync.core import lineage
from pairsync.core.closer import Closer
from pairsync.core.copier import Copier, _Stage
from pairsync.core.effects import Flush, SavePages, Send
from pairsync.core.flushes import Flushes, FlushOp
from pairsync.core.lineage import Relation, compare
from pairsync.core.messages import BarrierDone, Condition, SyncMode
from pairsync.core.resync import ResyncSource
from pairsync.core.source import VolumeSource
from pairsync.core.standing import Standing
from pairsync.core.target import VolumeTarget
from pairsync.core.tracker import IntentGeneration, Tracker
from pairsync.core.units import Extent
from pairsync.testing.sim import simulate

SEEDS_MAX = 100

Mutant = Callable[[pytest.MonkeyPatch], None]
MUTANTS: dict[str, tuple[Mutant, set[str]]] = {}


def mutant(*rules: str) -> Callable[[Mutant], Mutant]:
    def register(plant: Mutant) -> Mutant:
        MUTANTS[plant.__name__] = (plant, set(rules))
        return plant

    return register


@mutant("lost-write")
def acknowledge_before_the_peer_has_applied(patch: pytest.MonkeyPatch) -> None:
    right = VolumeSource._acknowledgeable
    patch.setattr(
        VolumeSource, "_acknowledgeable", lambda self, number: self.standing.joined or right(self, number)
    )


@mutant("lost-write")
def acknowledge_alone_before_the_new_generation_is_durable(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Standing, "may_acknowledge_alone", property(lambda self: not self._renewal_due))


@mutant("dirty-superset")
def ask_only_the_local_disk_to_flush(patch: pytest.MonkeyPatch) -> None:
    right = Flushes._start

    def start(self: Flushes, owners: list[object], *, to_peer: bool, **more: Any) -> FlushOp:
        op = right(self, owners, to_peer=to_peer and bool(owners), **more)
        op.peer_covered = to_peer
        return op

    patch.setattr(Flushes, "_start", start)


@mutant("dirty-superset")
def write_without_recording_the_intent(patch: pytest.MonkeyPatch) -> None:
    right = Tracker.note

    def note(self: Tracker, ops: Any) -> list[Any]:
        right(self, ops)
        return []

    patch.setattr(Tracker, "note", note)


@mutant("dirty-superset")
def trust_an_intent_that_is_still_on_its_way(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(IntentGeneration, "awaits_record", lambda self, start, stop: False)


@mutant("mixture", "dirty-superset")
def write_to_the_standby_before_it_says_syncing(patch: pytest.MonkeyPatch) -> None:
    right = VolumeTarget._settle_with

    def settle_with(self: VolumeTarget, superblock: Any, then: Callable[[], None]) -> None:
        if superblock.condition is Condition.SYNCING:
            then()
        else:
            right(self, superblock, then)

    patch.setattr(VolumeTarget, "_settle_with", settle_with)


@mutant("in-sync-claim")
def begin_a_resync_while_the_superblock_calls_the_peer_in_sync(patch: pytest.MonkeyPatch) -> None:
    def base(self: Copier) -> None:
        self._stage = _Stage.BASING

    patch.setattr(Copier, "_base", base)


@mutant("lost-write", "dirty-superset", "liveness", "checker")
def send_a_resync_read_that_a_write_has_overtaken(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ResyncSource, "written", lambda self, extent: None)


@mutant("dirty-superset")
def release_the_segment_before_the_pages_are_saved(patch: pytest.MonkeyPatch) -> None:
    def start_save(self: Closer, pages: dict[int, bytes], release: tuple[int, ...]) -> None:
        self._saving = pages
        self._out.append(SavePages(self._index, object(), {}, release))
        self._out.append(SavePages(self._index, pages, pages, ()))

    patch.setattr(Closer, "_start_save", start_save)


@mutant("dirty-superset")
def copy_nothing_because_the_labels_are_equal(patch: pytest.MonkeyPatch) -> None:
    right = lineage.plan_volume

    def plan_volume(active: Any, standby: Any) -> Any:
        decision = right(active, standby)
        if compare(active.lineage, standby.lineage).relation is Relation.SAME and decision.plans:
            return replace(
                decision, plans=tuple(replace(plan, mode=SyncMode.NOTHING) for plan in decision.plans)
            )
        return decision

    patch.setattr(lineage, "plan_volume", plan_volume)


@mutant("dirty-superset")
def believe_that_the_dirty_map_reaches_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lineage, "_map_reaches", lambda active, since: True)


@mutant("lineage", "lost-write", "liveness")
def overwrite_a_newer_standby(patch: pytest.MonkeyPatch) -> None:
    right = lineage.plan_volume

    def plan_volume(active: Any, standby: Any) -> Any:
        decision = right(active, standby)
        if decision.rule in {"active-behind", "diverged"}:
            return lineage._proceed(SyncMode.FULL, decision.rule, active.lineage[0], "whatever")
        return decision

    patch.setattr(lineage, "plan_volume", plan_volume)


@mutant("lost-write", "dirty-superset")
def answer_a_barrier_before_the_flush(patch: pytest.MonkeyPatch) -> None:
    right = VolumeTarget.barrier

    def barrier(self: VolumeTarget, message: Any) -> None:
        right(self, message)
        self._barriers = type(self._barriers)(each for each in self._barriers if each[1] != message.barrier)
        self._flushing = [each for each in self._flushing if each != message.barrier]
        self._out.append(Send([BarrierDone(self.index, message.barrier)]))

    patch.setattr(VolumeTarget, "barrier", barrier)


@mutant("lost-write", "dirty-superset")
def adopt_without_a_flush(patch: pytest.MonkeyPatch) -> None:
    right = VolumeTarget._flush

    def flush(self: VolumeTarget) -> None:
        right(self)
        last = self._out[-1] if self._out else None
        if isinstance(last, Flush) and not any(isinstance(each, int) for each in self._flushing):
            self._out.pop()
            self.flushed(last.token, 0)

    patch.setattr(VolumeTarget, "_flush", flush)


@mutant("lost-write")
def complete_a_flush_without_the_peer(patch: pytest.MonkeyPatch) -> None:
    right = Flushes.request

    def request(self: Flushes, owner: object, *, to_peer: bool, closes: bool, now_ns: int) -> None:
        right(self, owner, to_peer=to_peer and closes, closes=closes, now_ns=now_ns)

    patch.setattr(Flushes, "request", request)


@mutant("dirty-superset")
def forget_what_was_in_flight_when_the_peer_was_lost(patch: pytest.MonkeyPatch) -> None:
    right = Tracker._reclaim

    def reclaim(self: Tracker, generation: IntentGeneration) -> None:
        if generation is self.open:
            right(self, generation)

    patch.setattr(Tracker, "_reclaim", reclaim)


@mutant("dirty-superset")
def forget_a_resynced_block_when_it_is_sent(patch: pytest.MonkeyPatch) -> None:
    def resynced(self: Tracker, runs: Iterable[Extent], data_bytes: int) -> None:
        for run in runs:
            self._got(*run)

    patch.setattr(Tracker, "resynced", resynced)


@mutant("liveness", "hang")
def lose_the_completions_of_writes_when_the_peer_is_lost(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(VolumeSource, "_settle_all", lambda self, now_ns: None)


@mutant("liveness", "hang")
def wait_for_ever_for_the_last_flush_of_a_resync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Copier, "finishing", property(lambda self: False))


@pytest.mark.parametrize("name", MUTANTS)
def test_planted_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, rules = MUTANTS[name]
    plant(monkeypatch)
    for seed in range(SEEDS_MAX):
        outcome = simulate(seed)
        if outcome.failure is not None:
            assert outcome.rule in rules | {"raised"}, outcome.failure
            return
    pytest.fail(f"not found within {SEEDS_MAX} seeds")
