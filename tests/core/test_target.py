"""The standby's machine: nothing is promised before it is so, and nothing out of turn is taken."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import replace

import pytest

from pairsync.core.dirty import DirtyMap
from pairsync.core.effects import (
    Apply,
    DropSession,
    Effect,
    Emit,
    Examine,
    Flush,
    Persist,
    SavePages,
    Send,
)
from pairsync.core.events import InSyncEvent, TroubleEvent
from pairsync.core.intake import Intake
from pairsync.core.limits import UNAPPLIED_BYTES_MAX, VolumeOptions
from pairsync.core.messages import (
    Adopt,
    Adopted,
    Applied,
    Barrier,
    BarrierDone,
    Begin,
    Begun,
    Condition,
    Failed,
    Generation,
    Marked,
    Message,
    OpKind,
    Prove,
    SyncMode,
    VolumePlan,
    Write,
    WriteOp,
)
from pairsync.core.points import TargetPoints
from pairsync.core.setup import VolumeSetup
from pairsync.core.superblock import Superblock
from pairsync.core.target import (
    BARRIERS_MAX,
    EXAMINING_MAX,
    MARKED_EXTENTS_MAX,
    UNAPPLIED_BATCHES_MAX,
    VolumeTarget,
)
from pairsync.core.units import BLOCK_BYTES, block_count_of
from pairsync.errors import ArbitrationError, InternalError, ProtocolError
from pairsync.testing.manual import blank_superblock

OLD, NEW, NEWER = Generation(1, 1, 1), Generation(1, 2, 2), Generation(1, 3, 3)
SIZE = 64 * BLOCK_BYTES


def consistent() -> Superblock:
    return replace(
        blank_superblock("vda", SIZE), condition=Condition.CONSISTENT, lineage=(OLD,), term=1, map_base=OLD
    )


class Standby:
    """A target whose disk and metadata do what they are told, when they are told."""

    def __init__(
        self, block: Superblock | None = None, own_dirty: Sequence[int] = (), *, given: int = 0
    ) -> None:
        self.out: list[Effect] = []
        block = block or consistent()
        dirty = DirtyMap(block_count_of(block.size_bytes))
        for each in own_dirty:
            dirty.mark(each, each + 1)
        self.intake = Intake()
        setup = VolumeSetup(block, dirty, VolumeOptions(), given=given)
        self.target = VolumeTarget(0, setup, self.intake, TargetPoints(0, (), self.out), self.out)

    def sent(self) -> list[Message]:
        """Messages since the last call."""
        found = [message for each in self.out if isinstance(each, Send) for message in each.messages]
        self.out[:] = [each for each in self.out if not isinstance(each, Send)]
        return found

    def take(self, kind: type[Effect]) -> Effect:
        """The oldest effect of that kind."""
        effect = next(each for each in self.out if isinstance(each, kind))
        self.out.remove(effect)
        return effect

    def has(self, kind: type[Effect]) -> bool:
        return any(isinstance(each, kind) for each in self.out)

    def in_sync(self) -> bool:
        return self.target.in_sync

    def persist(self, error: int = 0) -> Superblock:
        effect = self.take(Persist)
        assert isinstance(effect, Persist)
        self.target.persisted(effect.token, error)
        return effect.superblock

    def apply(self, errnos: Sequence[int] | None = None) -> None:
        effect = self.take(Apply)
        assert isinstance(effect, Apply)
        self.target.applied(effect.token, errnos)

    def flush(self, error: int = 0) -> None:
        effect = self.take(Flush)
        assert isinstance(effect, Flush)
        self.target.flushed(effect.token, error)

    def begin(
        self, mode: SyncMode = SyncMode.INCREMENTAL, *, agreed: SyncMode | None = None, term: int = 1
    ) -> None:
        plan = VolumePlan(mode, "rule", NEW)
        self.target.begin(Begin(term, 0, plan), mode if agreed is None else agreed)

    def write(self, number: int, block: int = 3, term: int = 1) -> None:
        op = WriteOp(OpKind.DATA, block * BLOCK_BYTES, BLOCK_BYTES, bytes(BLOCK_BYTES))
        self.target.write(Write(term, 0, number, False, [op]))

    def syncing(self) -> Standby:
        """A plan was agreed and recorded."""
        self.begin()
        self.persist()
        self.sent()
        return self


# -- the plan ------------------------------------------------------------------------------------------------


def test_it_says_syncing_durably_before_it_is_written() -> None:
    standby = Standby()
    standby.begin()
    assert standby.sent() == []
    with pytest.raises(ProtocolError, match="before a plan was agreed"):
        standby.write(1)
    block = standby.persist()
    assert (block.condition, block.sync_target, block.lineage) == (Condition.SYNCING, NEW, (OLD,))
    assert standby.sent() == [Begun(0)]
    standby.write(1)
    assert standby.has(Apply)


def test_a_plan_that_copies_nothing_changes_nothing_and_wants_no_answer() -> None:
    standby = Standby()
    standby.begin(SyncMode.NOTHING)
    assert standby.out == []
    standby.write(1)
    standby.apply()
    assert standby.sent() == [Applied(0, 1)]
    assert standby.target.superblock.condition is Condition.CONSISTENT


def test_the_term_of_a_plan_is_recorded() -> None:
    standby = Standby()
    standby.target.begin(Begin(9, 0, VolumePlan(SyncMode.NOTHING, "rule", OLD)), SyncMode.NOTHING)
    assert standby.persist().term == 9


def test_a_plan_that_was_recorded_already_is_answered_at_once() -> None:
    standby = Standby().syncing()
    standby.target.session_over()
    standby.begin()
    assert standby.sent() == [Begun(0)]
    assert not standby.has(Persist)


def test_the_active_may_plan_more_than_was_agreed_but_not_less() -> None:
    Standby().begin(SyncMode.FULL, agreed=SyncMode.INCREMENTAL)
    with pytest.raises(ProtocolError, match="plans incremental, at least full is needed"):
        Standby().begin(SyncMode.INCREMENTAL, agreed=SyncMode.FULL)


def test_its_own_dirty_blocks_are_told_in_pieces_before_it_is_ready() -> None:
    blocks = 2 * (MARKED_EXTENTS_MAX + 1)
    block = replace(consistent(), size_bytes=blocks * BLOCK_BYTES)
    standby = Standby(block, own_dirty=range(0, blocks, 2))
    standby.begin()
    standby.persist()
    first, second, third = standby.sent()
    assert isinstance(first, Marked)
    assert isinstance(second, Marked)
    assert len(first.extents) == MARKED_EXTENTS_MAX
    assert second.extents == ((blocks - 2, blocks - 1),)
    assert third == Begun(0)


def test_however_scattered_its_own_dirty_blocks_are_it_tells_of_a_bounded_number_of_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pairsync.core.target.MARKED_RUNS_MAX", 4)
    own_dirty = [*range(0, 20, 2), *range(100, 120, 2)]
    standby = Standby(replace(consistent(), size_bytes=200 * BLOCK_BYTES), own_dirty=own_dirty)
    standby.begin()
    standby.persist()
    marked, begun = standby.sent()
    assert isinstance(marked, Marked)
    assert marked.extents == ((0, 19), (100, 119))
    assert begun == Begun(0)


# -- writes --------------------------------------------------------------------------------------------------


def test_writes_are_applied_in_order_and_answered_one_by_one() -> None:
    standby = Standby().syncing()
    for number in (1, 2, 3):
        standby.write(number)
    assert standby.sent() == []
    for number in (1, 2, 3):
        standby.apply()
        assert standby.sent() == [Applied(0, number)]


@pytest.mark.parametrize("number", [0, 2, 3])
def test_a_write_out_of_its_turn_is_refused(number: int) -> None:
    standby = Standby().syncing()
    standby.write(1)
    if number != 2:
        with pytest.raises(ProtocolError, match=f"write {number} after 1"):
            standby.write(number)
    else:
        standby.write(number)


def test_a_stale_term_is_refused_in_every_message_that_changes_something() -> None:
    standby = Standby(replace(consistent(), term=5))
    plan = VolumePlan(SyncMode.NOTHING, "rule", OLD)
    with pytest.raises(ArbitrationError, match="term 4 is stale"):
        standby.target.begin(Begin(4, 0, plan), SyncMode.NOTHING)
    standby.target.begin(Begin(5, 0, plan), SyncMode.NOTHING)
    with pytest.raises(ArbitrationError, match="term 4 is stale"):
        standby.target.write(Write(4, 0, 1, False, []))
    with pytest.raises(ArbitrationError, match="term 4 is stale"):
        standby.target.barrier(Barrier(4, 0, 1))
    with pytest.raises(ArbitrationError, match="term 4 is stale"):
        standby.target.adopt(Adopt(4, 0, (NEW, OLD)))
    assert standby.out == []


def test_a_write_beyond_the_volume_is_refused_whole() -> None:
    standby = Standby().syncing()
    good = WriteOp(OpKind.ZERO, 0, BLOCK_BYTES)
    bad = WriteOp(OpKind.ZERO, SIZE - 1, 2)
    with pytest.raises(ProtocolError, match="of a volume of"):
        standby.target.write(Write(1, 0, 1, False, [good, bad]))
    assert not standby.has(Apply)


def test_a_flood_of_writes_is_refused() -> None:
    standby = Standby().syncing()
    for number in range(1, UNAPPLIED_BATCHES_MAX + 1):
        standby.target.write(Write(1, 0, number, False, []))
    with pytest.raises(ProtocolError, match="writes that were not applied"):
        standby.write(UNAPPLIED_BATCHES_MAX + 1)


def test_what_is_not_applied_is_counted_until_it_is_in_every_session() -> None:
    standby = Standby().syncing()
    for number in (1, 2):
        standby.write(number)
    standby.target.write(Write(1, 0, 3, False, [WriteOp(OpKind.TRIM, 0, BLOCK_BYTES)] * 5))
    assert (standby.intake.data_bytes, standby.intake.op_count) == (2 * BLOCK_BYTES, 7)
    standby.apply()
    assert (standby.intake.data_bytes, standby.intake.op_count) == (BLOCK_BYTES, 6)
    standby.target.session_over()
    assert (standby.intake.data_bytes, standby.intake.op_count) == (BLOCK_BYTES, 6), "still in memory"
    standby.apply([errno.EIO])
    standby.apply()
    assert (standby.intake.data_bytes, standby.intake.op_count) == (0, 0)


def test_a_write_that_is_too_much_is_refused_and_not_applied() -> None:
    standby = Standby().syncing()
    standby.write(1)
    standby.take(Apply)
    standby.intake.take(UNAPPLIED_BYTES_MAX - BLOCK_BYTES - BLOCK_BYTES, 1)  # another volume's
    standby.write(2)
    standby.take(Apply)
    with pytest.raises(ProtocolError, match="more than 1024 MiB of data that was not applied"):
        standby.write(3)
    assert not standby.has(Apply)


def test_a_failed_write_ends_the_session_and_what_follows_it_does_not_count() -> None:
    standby = Standby().syncing()
    standby.write(1)
    standby.write(2)
    standby.apply([errno.ENOSPC])
    (message,) = standby.sent()
    assert message == Failed(0, errno.ENOSPC, "a write failed: ENOSPC")
    assert standby.has(DropSession)
    standby.apply()
    standby.write(3)
    assert standby.sent() == []
    assert not standby.has(Apply)
    assert standby.target.failed == "a write failed: ENOSPC"
    standby.target.session_over()
    assert standby.target.failed is None


def test_an_answer_in_another_order_is_our_own_bug() -> None:
    standby = Standby().syncing()
    standby.write(1)
    standby.write(2)
    standby.take(Apply)
    with pytest.raises(InternalError, match="write 2 was applied after 0"):
        standby.apply()


# -- flushes -------------------------------------------------------------------------------------------------


def test_a_barrier_waits_for_the_writes_before_it_and_for_the_flush() -> None:
    standby = Standby().syncing()
    standby.write(1)
    standby.target.barrier(Barrier(1, 0, 7))
    standby.write(2)
    assert not standby.has(Flush)
    standby.apply()
    assert standby.sent() == [Applied(0, 1)]
    assert standby.has(Flush)
    standby.flush()
    assert standby.sent() == [BarrierDone(0, 7)]
    assert not standby.has(Flush)


def test_one_flush_answers_all_barriers_that_it_covers_and_no_later_one() -> None:
    standby = Standby().syncing()
    standby.target.barrier(Barrier(1, 0, 1))
    standby.target.barrier(Barrier(1, 0, 2))
    standby.write(1)
    standby.target.barrier(Barrier(1, 0, 3))
    standby.flush()  # issued for the first
    assert standby.sent() == [BarrierDone(0, 1)]
    standby.flush()
    assert standby.sent() == [BarrierDone(0, 2)]
    assert not standby.has(Flush)
    standby.apply()
    standby.flush()
    assert standby.sent() == [Applied(0, 1), BarrierDone(0, 3)]


@pytest.mark.parametrize("waits_for", ["a write", "a flush"])
def test_a_flood_of_barriers_is_refused(waits_for: str) -> None:
    standby = Standby().syncing()
    if waits_for == "a write":
        standby.write(1)
    for barrier in range(BARRIERS_MAX - 1):
        standby.target.barrier(Barrier(1, 0, barrier))
    standby.target.adopt(Adopt(1, 0, (NEW, OLD)))
    with pytest.raises(ProtocolError, match="more than 16 flushes asked for and not answered"):
        standby.target.barrier(Barrier(1, 0, BARRIERS_MAX))
    with pytest.raises(ProtocolError, match="more than 16 flushes asked for and not answered"):
        standby.target.adopt(Adopt(1, 0, (NEW, OLD)))
    if waits_for == "a write":
        standby.apply()
    standby.flush()
    standby.target.barrier(Barrier(1, 0, BARRIERS_MAX))


def test_a_failed_flush_ends_the_session() -> None:
    standby = Standby().syncing()
    standby.target.barrier(Barrier(1, 0, 1))
    standby.flush(errno.EIO)
    assert standby.sent() == [Failed(0, errno.EIO, "a flush failed: EIO")]
    assert standby.has(DropSession)


# -- taking the lineage over ---------------------------------------------------------------------------------


def test_it_adopts_only_what_is_applied_and_durable_and_says_so_only_when_it_is_recorded() -> None:
    standby = Standby(own_dirty=[5]).syncing()
    standby.write(1)
    standby.target.adopt(Adopt(1, 0, (NEW, OLD)))
    assert not standby.has(Flush)
    standby.apply()
    assert standby.sent() == [Applied(0, 1)]
    assert not standby.has(Persist)
    standby.flush()
    assert standby.sent() == []
    assert not standby.in_sync()
    block = standby.persist()
    assert (block.condition, block.lineage, block.sync_target) == (Condition.CONSISTENT, (NEW, OLD), None)
    assert (block.peer_in_sync, block.map_base) == (True, NEW)
    assert standby.sent() == [Adopted(0, NEW)]
    assert standby.in_sync()
    assert InSyncEvent("vda", NEW.describe()) in [e.event for e in standby.out if isinstance(e, Emit)]


def test_its_own_dirty_blocks_are_forgotten_when_it_has_adopted_and_not_before() -> None:
    standby = Standby(own_dirty=[5, 9]).syncing()
    standby.target.adopt(Adopt(1, 0, (NEW, OLD)))
    standby.flush()
    assert standby.target.own_dirty.count == 2
    standby.persist()
    save = standby.take(SavePages)
    assert isinstance(save, SavePages)
    assert set(save.pages) == {0}
    assert not any(save.pages[0])
    assert save.release == (0, 1)  # what an earlier role left in the journal is told too
    assert standby.target.own_dirty.count == 0
    standby.target.saved(0)
    standby.out.clear()
    standby.target.saved(errno.EIO)
    (effect,) = standby.out
    assert isinstance(effect, Emit)
    assert isinstance(effect.event, TroubleEvent)
    assert not effect.event.fatal


def test_a_replica_that_has_it_all_already_adopts_at_once() -> None:
    standby = Standby(replace(consistent(), peer_in_sync=True))
    standby.begin(SyncMode.NOTHING)
    standby.target.adopt(Adopt(1, 0, (OLD,)))
    standby.flush()
    assert standby.sent() == [Adopted(0, OLD)]
    assert not standby.has(Persist)


@pytest.mark.parametrize("lineage", [(), (NEW, OLD)])
def test_nothing_is_adopted_without_a_plan_and_a_lineage(lineage: tuple[Generation, ...]) -> None:
    standby = Standby()
    if not lineage:
        standby.syncing()
    with pytest.raises(ProtocolError, match="without a plan"):
        standby.target.adopt(Adopt(1, 0, lineage))


# -- falling behind ------------------------------------------------------------------------------------------


def test_a_further_plan_gives_the_request_to_adopt_up() -> None:
    """The flush for the first request ends after the second has come: it must not answer for it."""
    standby = Standby().syncing()
    standby.target.adopt(Adopt(1, 0, (NEW, OLD)))
    standby.begin(SyncMode.INCREMENTAL, agreed=SyncMode.FULL)  # less than was agreed is enough now
    assert standby.sent() == [Begun(0)]
    standby.write(1)
    standby.target.adopt(Adopt(1, 0, (NEWER, NEW, OLD)))
    standby.flush()
    assert not standby.has(Persist)
    standby.apply()
    standby.flush()
    assert standby.persist().lineage == (NEWER, NEW, OLD)
    assert standby.sent() == [Applied(0, 1), Adopted(0, NEWER)]


def test_requests_to_adopt_that_were_given_up_do_not_gather_behind_a_slow_flush() -> None:
    """An active host may fall behind and catch up many times in the few seconds that a flush takes."""
    standby = Standby().syncing()
    lineage = (NEW, OLD)
    for _ in range(2 * BARRIERS_MAX):
        standby.target.adopt(Adopt(1, 0, lineage))
        standby.begin(SyncMode.INCREMENTAL, agreed=SyncMode.FULL)
    standby.target.adopt(Adopt(1, 0, lineage))
    standby.flush()
    standby.flush()
    assert standby.persist().lineage == lineage


@pytest.mark.parametrize("mode", SyncMode)
def test_a_further_plan_before_the_last_one_was_carried_out_is_refused(mode: SyncMode) -> None:
    standby = Standby()
    standby.begin(SyncMode.FULL, agreed=SyncMode.NOTHING)
    for _ in range(2):
        with pytest.raises(ProtocolError, match="before the last one was carried out"):
            standby.begin(mode, agreed=SyncMode.NOTHING)
        if standby.has(Persist):
            standby.persist()
    standby.target.session_over()
    standby.begin(mode, agreed=SyncMode.NOTHING)


def test_a_further_plan_that_copies_nothing_is_refused() -> None:
    standby = Standby()
    standby.begin(SyncMode.NOTHING)
    standby.target.adopt(Adopt(1, 0, (OLD,)))
    with pytest.raises(ProtocolError, match="plans nothing, at least incremental"):
        standby.begin(SyncMode.NOTHING)


def test_a_further_plan_while_the_lineage_is_being_recorded_comes_after_it() -> None:
    standby = Standby().syncing()
    standby.target.adopt(Adopt(1, 0, (NEW, OLD)))
    standby.flush()
    standby.begin()
    assert standby.persist().condition is Condition.CONSISTENT
    assert standby.sent() == []
    assert standby.persist().condition is Condition.SYNCING
    assert standby.sent() == [Begun(0)]
    assert not standby.target.in_sync


# -- sessions ------------------------------------------------------------------------------------------------


def test_reports_of_an_earlier_session_are_dropped() -> None:
    standby = Standby().syncing()
    standby.write(1)
    standby.target.barrier(Barrier(1, 0, 1))
    standby.target.session_over()
    standby.begin()
    standby.sent()
    standby.apply()  # of the session before
    assert standby.sent() == []
    standby.write(1, block=4)
    standby.apply()
    assert standby.sent() == [Applied(0, 1)]
    standby.target.barrier(Barrier(1, 0, 2))
    late = standby.take(Flush)
    standby.target.session_over()
    standby.begin()
    standby.sent()
    assert isinstance(late, Flush)
    standby.target.flushed(late.token, 0)
    standby.target.flushed(late.token, errno.EIO)
    standby.target.applied(object(), None)
    assert standby.sent() == []


def test_what_only_the_last_session_wanted_is_not_written_in_the_next() -> None:
    standby = Standby()
    standby.begin(SyncMode.NOTHING, term=2)
    standby.target.adopt(Adopt(2, 0, (OLD,)))
    standby.begin(term=2)  # wanted while the term is being written
    standby.target.session_over()
    assert standby.persist().condition is Condition.CONSISTENT
    assert standby.target.settled
    assert standby.sent() == []


def test_a_superblock_that_cannot_be_written_is_written_before_the_next_session() -> None:
    standby = Standby()
    standby.begin()
    standby.persist(errno.EIO)
    assert standby.sent() == [Failed(0, errno.EIO, "the metadata cannot be written: EIO")]
    assert standby.has(DropSession)
    standby.target.session_over()
    assert not standby.has(Persist)
    standby.target.retry()
    assert standby.persist().condition is Condition.CONSISTENT
    assert standby.target.settled


def test_trouble_is_told_once_a_session() -> None:
    standby = Standby().syncing()
    standby.write(1)
    standby.target.adopt(Adopt(1, 0, (NEW, OLD)))
    standby.apply([errno.EIO])
    standby.begin(term=2)
    standby.persist(errno.EIO)
    assert [type(m) for m in standby.sent()].count(Failed) == 1


def test_the_next_session_waits_for_the_disk_to_be_done_with_the_last() -> None:
    standby = Standby().syncing()
    standby.write(1)
    assert not standby.target.settled
    standby.target.session_over()
    assert not standby.target.settled
    standby.apply()
    assert standby.target.settled


def test_a_replica_without_digests_is_not_asked_for_them() -> None:
    standby = Standby().syncing()
    standby.target.options = replace(standby.target.options, digests=False)
    with pytest.raises(ProtocolError, match="none are kept"):
        standby.target.prove(Prove(1, 0, 1, 0, 0, 1, read=False))
    assert not standby.has(Examine)


def test_questions_of_a_plan_that_was_given_up_leave_room_for_those_of_the_next() -> None:
    standby = Standby().syncing()
    for number in range(1, EXAMINING_MAX + 1):
        standby.target.prove(Prove(1, 0, number, 0, 0, 1, read=False))
    with pytest.raises(ProtocolError, match="at once"):
        standby.target.prove(Prove(1, 0, 99, 0, 0, 1, read=False))
