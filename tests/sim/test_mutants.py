"""The tester is tested: bugs planted in the core, each of which the simulator has to find within 100 seeds.

Every mutant changes one method so that it forgets one thing that the core must not forget.  What is checked
is only *that* it is found, and by a rule that makes sense; where several rules may see it first, all of them
are named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from random import Random
from typing import Any

import pytest

from pairsync.core import lineage, prover, session
from pairsync.core.closer import Closer
from pairsync.core.copier import Copier, _Stage
from pairsync.core.doubts import Doubts
from pairsync.core.effects import Flush, SavePages, Send
from pairsync.core.fetcher import Fetcher
from pairsync.core.flushes import Flushes, FlushOp
from pairsync.core.lineage import Relation, compare
from pairsync.core.messages import BarrierDone, Condition, Introduce, SyncMode, VolumeState
from pairsync.core.prover import differing_nodes
from pairsync.core.questions import Answer, Questions
from pairsync.core.resync import ResyncSource
from pairsync.core.scrubber import Fault, Scrubber, ScrubReport
from pairsync.core.source import VolumeSource
from pairsync.core.standing import Standing
from pairsync.core.superblock import Superblock
from pairsync.core.target import VolumeTarget
from pairsync.core.tracker import IntentGeneration, Tracker
from pairsync.core.units import Extent
from pairsync.testing.sim import draw_profile, simulate
from pairsync.testing.sim.digests import Save, SimDigests
from pairsync.testing.sim.disk import SECTORS_PER_BLOCK, SimDisk

SEEDS_MAX = 100
"""That are tried; most mutants need fewer than ten."""

VOLUMES_BYTES_MAX = 1 << 20

CI_SEEDS = 1000
"""Those of ``test_core_sim``."""

Mutant = Callable[[pytest.MonkeyPatch], None]
MUTANTS: dict[str, tuple[Mutant, set[str], bool | None, str]] = {}


def mutant(*rules: str, digests: bool | None = None, fault: str = "") -> Callable[[Mutant], Mutant]:
    """Has to be found, by one of these rules.

    Tried are those of CI's seeds in which digests are kept, or not, and which have these faults.
    """

    def register(plant: Mutant) -> Mutant:
        MUTANTS[plant.__name__] = (plant, set(rules), digests, fault)
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


@mutant("dirty-superset", digests=False)
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


@mutant("dirty-superset", "false-alarm", digests=False)
def believe_that_the_dirty_map_reaches_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lineage, "_map_reaches", lambda active, since: True)


@mutant("overwritten", "lineage", "lost-write", "liveness")
def overwrite_a_newer_standby(patch: pytest.MonkeyPatch) -> None:
    right = lineage.plan_volume

    def plan_volume(active: Any, standby: Any) -> Any:
        decision = right(active, standby)
        if decision.rule in {"active-behind", "active-rolled-back", "diverged"}:
            return lineage._proceed(SyncMode.FULL, decision.rule, active.lineage[0], "whatever")
        return decision

    patch.setattr(lineage, "plan_volume", plan_volume)


@mutant("overwritten", fault="rollback-active")
def believe_that_half_a_resync_has_nothing_to_lose(patch: pytest.MonkeyPatch) -> None:
    right = lineage.outlived

    def outlived(active: VolumeState, standby: VolumeState) -> bool:
        return standby.condition is Condition.CONSISTENT and right(active, standby)

    patch.setattr(lineage, "outlived", outlived)


@mutant("lost-write", "dirty-superset", "liveness")
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


# -- rule 8: in sync only by proof ---------------------------------------------------------------------------


@mutant("dirty-superset", digests=True, fault="forget-dirty")
def adopt_without_proof(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Copier, "_prove", Copier._adopt)


@mutant("dirty-superset", digests=True, fault="rollback-standby")
def compare_only_the_first_leaves(patch: pytest.MonkeyPatch) -> None:
    def first_half(answer: Answer) -> list[Extent]:
        stop = answer.first + max((answer.stop - answer.first) // 2, 1)
        runs = differing_nodes(answer)
        return runs if answer.level else [run for run in runs if run.start < stop]

    patch.setattr(prover, "differing_nodes", first_half)


@mutant("dirty-superset", digests=True, fault="forget-dirty")
def see_a_difference_and_copy_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Copier, "_keep_differences", lambda self: self._adopt(0))


@mutant("liveness", digests=True, fault="forget-dirty")
def count_a_difference_and_do_not_mark_it(patch: pytest.MonkeyPatch) -> None:
    right = Copier.want
    patch.setattr(
        Copier, "want", lambda self, runs: right(self, () if self._stage is _Stage.KEEPING else runs)
    )


@mutant("unrecorded", digests=True, fault="forget-dirty")
def send_a_difference_before_the_map_holds_it(patch: pytest.MonkeyPatch) -> None:
    right = Copier.want

    def want(self: Copier, runs: Iterable[tuple[int, int]]) -> None:
        right(self, runs)
        self._out.pop()
        self.saved(self._saving, 0)

    patch.setattr(Copier, "want", want)


@mutant("false-alarm", "liveness", digests=True, fault="crash-active")
def ask_for_proof_while_something_is_unsent(patch: pytest.MonkeyPatch) -> None:
    """Neither before a proof nor while it walks does anybody look whether something is missing.

    Nor does a resync ask for its last flush: a guest that is quiet leaves its blocks in the map for ever.
    """
    right = Copier._advance_proof

    def advance_proof(self: Copier, now_ns: int) -> None:
        if self._prover.finished:
            right(self, now_ns)
        else:
            self._prover.advance(now_ns)

    patch.setattr(Copier, "_advance_proof", advance_proof)
    patch.setattr(Copier, "_nothing_missing", lambda self: True)


@mutant("digest", "false-alarm", "liveness")
def note_digests_before_the_apply(patch: pytest.MonkeyPatch) -> None:
    right = SimDisk.write
    stale: dict[SimDisk, list[int]] = {}

    def write(self: SimDisk, start: int, stop: int, values: Any, *, fua: bool) -> None:
        stale[self] = self.content[:]
        right(self, start, stop, values, fua=fua)

    def note(self: SimDigests, disk: SimDisk, start: int, stop: int) -> None:
        before = SimDisk(disk.sector_count)
        before.content = stale.get(disk, disk.content)
        for block in range(start // SECTORS_PER_BLOCK, -(-stop // SECTORS_PER_BLOCK)):
            self._record(block, self.content_of(before, block))

    patch.setattr(SimDisk, "write", write)
    patch.setattr(SimDigests, "note", note)


@mutant("digest", "false-alarm", "liveness", digests=True, fault="crash-active")
def note_digests_after_the_save(patch: pytest.MonkeyPatch) -> None:
    """Leaves that were noted while the save was under way count as saved, though they were not in it."""

    right = SimDigests.saved

    def saved(self: SimDigests, save: Save, milestone: int | None = None) -> None:
        right(self, save._replace(records=self._records), milestone)

    patch.setattr(SimDigests, "saved", saved)


@mutant("digest", "false-alarm", "liveness")
def release_a_segment_before_digests_are_saved(patch: pytest.MonkeyPatch) -> None:
    """The flush that closes a generation does not say so: no leaf is saved with it."""
    real = SimDigests.saving
    patch.setattr(
        SimDigests, "saving", lambda self, milestone=None: real(self, milestone)._replace(leaves={})
    )


@mutant("digest", "false-alarm", "liveness")
def trust_the_digests_of_the_write_intent_log_after_a_crash(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SimDigests, "opened", lambda self, intents: None)


# -- scrub, verified reads, repair ---------------------------------------------------------------------------


@mutant("false-alarm", digests=True, fault="flip-standby")
def blame_the_other_side(patch: pytest.MonkeyPatch) -> None:
    right = Scrubber._found
    other = {Fault.HERE: Fault.PEER, Fault.PEER: Fault.HERE}

    def found(self: Scrubber, report: ScrubReport, blocks: Any, fault: Fault) -> None:
        right(self, report, blocks, other.get(fault, fault))

    patch.setattr(Scrubber, "_found", found)


@mutant("missed", "liveness", digests=True, fault="flip-standby")
def scrub_without_reading(patch: pytest.MonkeyPatch) -> None:
    right = Questions.ask

    def ask(self: Questions, *place: int, read: bool, **more: Any) -> None:
        right(self, *place, read=False, **more)

    patch.setattr(Questions, "ask", ask)


@mutant("missed", "liveness", digests=True, fault="misdirect-standby")
def scrub_only_what_the_digests_say_differs(patch: pytest.MonkeyPatch) -> None:
    """A block that went elsewhere has the digest that it should have."""
    right = Scrubber._compare

    def compare(self: Scrubber, answer: Answer) -> None:
        if differing_nodes(answer):
            right(self, answer)
        else:
            right(self, answer._replace(theirs=replace(answer.theirs, bad=())))

    patch.setattr(Scrubber, "_compare", compare)


@mutant("liveness", digests=True, fault="flip-active")
def find_and_repair_nothing_here(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Scrubber, "_fetch", lambda self, now_ns: self._to_fetch.clear())


@mutant("liveness", digests=True, fault="flip-standby")
def leave_a_repaired_peer_unflushed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(VolumeSource, "_send_copied", _without_touching(VolumeSource._send_copied))


def _without_touching(right: Callable[..., None]) -> Callable[..., None]:
    def send_copied(self: VolumeSource, *arguments: Any, **more: Any) -> None:
        touched = self._closer._touched_ns
        right(self, *arguments, **more)
        self._closer._touched_ns = touched

    return send_copied


@mutant("lost-write", "dirty-superset", digests=True, fault="flip-active")
def put_fetched_content_over_what_was_written_since(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Fetcher, "written", lambda self, ops: None)


@mutant("lost-write", "dirty-superset", "liveness", digests=True, fault="flip-active cut")
def copy_what_does_not_fit_its_digest(patch: pytest.MonkeyPatch) -> None:
    right = Copier.found
    patch.setattr(Copier, "found", lambda self, number, found: right(self, number, found._replace(wrong=())))


@mutant("liveness", digests=True, fault="digest-active")
def find_a_wrong_digest_and_record_nothing_anew(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Doubts, "_fetch", lambda self, doubts, now_ns: True)


@mutant("digest", "false-alarm", "lost-write", "liveness", digests=True, fault="flip-active eio-active")
def forget_the_digest_of_a_block_whose_repair_fails(patch: pytest.MonkeyPatch) -> None:
    def forget(self: SimDigests, disk: SimDisk, start: int, stop: int, values: Any) -> None:
        for block in range(start // SECTORS_PER_BLOCK, -(-stop // SECTORS_PER_BLOCK)):
            self._record(block, 1)

    patch.setattr(SimDigests, "forget", forget)


# -- rules 1, 3, 6 and 9: who may speak to whom --------------------------------------------------------------


@mutant("term", fault="wrong-active")
def obey_a_stale_term(patch: pytest.MonkeyPatch) -> None:
    right = lineage.plan_session

    def plan_session(local: Introduce, peer: Introduce) -> Any:
        top = max(local.term, peer.term)
        return right(replace(local, term=top), replace(peer, term=top))

    patch.setattr(session, "plan_session", plan_session)
    patch.setattr(VolumeTarget, "_check_term", lambda self, term: None)


@mutant("operator", fault="wrong-active")
def make_half_a_resync_active(patch: pytest.MonkeyPatch) -> None:
    right = Standing.__init__

    def init(self: Standing, volume: int, superblock: Superblock, *more: Any) -> None:
        right(self, volume, replace(superblock, condition=Condition.CONSISTENT), *more)

    patch.setattr(Standing, "__init__", init)


@mutant("strange-disk", "lineage", "in-sync-claim", "dirty-superset", fault="strange-volume")
def take_another_volume_of_the_same_name(patch: pytest.MonkeyPatch) -> None:
    right = lineage.plan_volume

    def plan_volume(active: VolumeState, standby: VolumeState) -> Any:
        return right(active, replace(standby, volume_id=active.volume_id))

    patch.setattr(lineage, "plan_volume", plan_volume)


@mutant("lineage", "in-sync-claim", "mixture", "lost-write", "overwritten", fault="rollback-active")
def swap_the_direction_after_an_interrupted_resync(patch: pytest.MonkeyPatch) -> None:
    right = lineage._plan_interrupted

    def plan_interrupted(active: VolumeState, standby: VolumeState, *more: Any) -> Any:
        decision = right(active, standby, *more)
        if decision.rule == "interrupted-unrelated":
            return lineage._proceed(SyncMode.FULL, decision.rule, active.lineage[0], "whatever")
        return decision

    patch.setattr(lineage, "_plan_interrupted", plan_interrupted)


@pytest.mark.parametrize("name", MUTANTS)
def test_planted_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, rules, digests, fault = MUTANTS[name]
    plant(monkeypatch)
    for seed in islice(_seeds(digests, fault), SEEDS_MAX):
        outcome = simulate(seed)
        if outcome.failure is not None:
            print(f"seed {seed}: {outcome.failure[:150]}")
            assert outcome.rule in rules | {"raised"}, outcome.failure
            return
    pytest.fail(f"not found within {SEEDS_MAX} seeds")


def _seeds(digests: bool | None, fault: str) -> Iterator[int]:
    """Of CI's seeds; those with large volumes take too long."""
    for seed in range(CI_SEEDS):
        profile = draw_profile(Random(seed))
        if sum(profile.sizes_bytes) > VOLUMES_BYTES_MAX:
            continue
        if digests in {None, profile.options.digests} and set(fault.split()) <= set(profile.faults):
            yield seed
