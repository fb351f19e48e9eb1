"""Standing: a peer that counts is needed until a generation without it is durable (DESIGN rule 2)."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from pairsync.core.effects import AskAlone, Effect, Emit, Persist
from pairsync.core.events import AloneEvent, InSyncEvent
from pairsync.core.messages import Condition, Generation
from pairsync.core.permit import Permit
from pairsync.core.standing import Phase, Standing, SuperblockWriter
from pairsync.core.superblock import LINEAGE_GENERATIONS_MAX, Superblock
from pairsync.errors import ArbitrationError, InternalError
from pairsync.testing.manual import blank_superblock

FIRST = Generation(1, 1, 0x11)


def in_sync_block(size_bytes: int = 1 << 20) -> Superblock:
    """Of a volume whose peer was in sync when it was last open."""
    return replace(
        blank_superblock("vda", size_bytes),
        term=1,
        condition=Condition.CONSISTENT,
        lineage=(FIRST,),
        peer_in_sync=True,
        map_base=FIRST,
    )


class Bench:
    """A standing, the effects it wants, and a disk that writes superblocks when told to."""

    def __init__(self, block: Superblock, milestone: int = 1) -> None:
        self.out: list[Effect] = []
        tags = itertools.count(0x21)
        self.permit = Permit(self.out, alone=True)
        self.standing = Standing(0, block, lambda: next(tags), self.out, self.permit, milestone)

    def activate(self, term: int = 1) -> Bench:
        self.standing.activate(term, "boot")
        self.write_all()
        self.out.clear()
        return self

    def persists(self) -> list[Superblock]:
        return [effect.superblock for effect in self.out if isinstance(effect, Persist)]

    def write_one(self) -> None:
        effect = next(each for each in self.out if isinstance(each, Persist))
        self.out.remove(effect)
        self.standing.persisted(effect.token)

    def write_all(self) -> None:
        while self.persists():
            self.write_one()

    def events(self) -> list[object]:
        return [effect.event for effect in self.out if isinstance(effect, Emit)]

    def joined(self) -> Bench:
        """Bring the peer in."""
        self.standing.prepare()
        self.standing.begun()
        self.standing.adopt()
        assert self.standing.adopted(self.standing.newest)
        self.write_all()
        assert self.phase() is Phase.IN_SYNC
        self.out.clear()
        return self

    def phase(self) -> Phase:
        return self.standing.phase

    def may_go_on_alone(self) -> bool:
        return self.standing.may_acknowledge_alone


# -- becoming active -----------------------------------------------------------------------------------------


def test_a_blank_volume_gets_its_first_generation_and_an_empty_map_that_speaks_for_it() -> None:
    bench = Bench(blank_superblock("vda", 1 << 20))
    bench.standing.activate(3, "boot")
    (block,) = bench.persists()
    assert block.condition is Condition.CONSISTENT
    assert block.lineage == (Generation(3, 1, 0x21),)
    assert block.map_base == block.lineage[0]
    assert (block.term, block.clean, block.boot_id) == (3, False, "boot")
    assert not bench.may_go_on_alone()
    bench.write_all()
    assert bench.may_go_on_alone()
    assert bench.standing.settled


def test_a_volume_with_content_and_no_history_has_a_map_that_proves_nothing() -> None:
    block = replace(blank_superblock("vda", 1 << 20), condition=Condition.CONSISTENT)
    bench = Bench(block).activate()
    assert bench.standing.superblock.lineage
    assert bench.standing.superblock.map_base is None


def test_a_half_overwritten_volume_cannot_be_active() -> None:
    with pytest.raises(ArbitrationError, match="being overwritten by a resync"):
        Bench(replace(in_sync_block(), condition=Condition.SYNCING))


def test_a_stale_term_cannot_be_active() -> None:
    bench = Bench(replace(in_sync_block(), term=5))
    with pytest.raises(ArbitrationError, match="term 4 is older than 5"):
        bench.standing.activate(4, "boot")


def test_a_new_term_keeps_the_lineage_until_something_is_written_alone() -> None:
    bench = Bench(in_sync_block()).activate(term=7)
    assert bench.standing.newest == FIRST
    bench.standing.request_alone()
    bench.write_all()
    assert bench.standing.superblock.lineage == (Generation(7, 2, 0x21), FIRST)


# -- milestones ----------------------------------------------------------------------------------------------


def test_a_milestone_is_given_once_the_peer_is_in_sync_durably_and_not_before() -> None:
    """A crash before that comes up with what was recorded in `activate`: no peer may know of more."""
    bench = Bench(in_sync_block(), milestone=5).activate()
    assert bench.standing.superblock.parted == 5
    bench.standing.recorded(8)
    bench.standing.prepare()
    bench.standing.begun()
    bench.standing.adopt()
    assert bench.standing.give() == 5
    assert bench.standing.adopted(FIRST)
    assert bench.standing.give() == 5
    (block,) = bench.persists()
    assert block.parted is None
    bench.write_all()
    assert bench.standing.give() == 9
    bench.standing.recorded(7)
    assert bench.standing.give() == 9


def test_a_superblock_that_still_counts_with_the_past_does_not_bring_the_peer_in() -> None:
    bench = Bench(in_sync_block(), milestone=5).activate()
    bench.standing.prepare()
    bench.standing.begun()
    bench.standing.adopt()
    bench.standing.grow(1 << 21)
    assert bench.standing.adopted(FIRST)
    bench.write_one()  # of the growth
    assert bench.phase() is Phase.CONFIRMING
    bench.write_all()
    assert bench.phase() is Phase.IN_SYNC


def test_a_new_generation_is_above_all_that_was_given_and_not_above_what_was_reached_since() -> None:
    bench = Bench(in_sync_block(), milestone=5).activate().joined()
    bench.standing.recorded(6)
    assert bench.standing.give() == 7
    bench.standing.leave(Phase.ABSENT, at_once=False)
    bench.standing.recorded(11)
    bench.standing.request_alone()
    bench.write_all()
    assert bench.standing.newest == Generation(1, 8, 0x21)
    bench.joined()
    bench.standing.leave(Phase.ABSENT, at_once=True)
    assert bench.standing.newest.epoch == 9  # nothing was given since, and it has a name of its own
    bench.standing.give()
    assert bench.standing.given == 7


# -- alone ---------------------------------------------------------------------------------------------------


def test_after_a_crash_with_a_peer_in_sync_nothing_is_acknowledged_before_a_new_generation() -> None:
    bench = Bench(in_sync_block()).activate()
    assert not bench.may_go_on_alone()
    bench.standing.request_alone()
    assert not bench.may_go_on_alone()
    bench.standing.request_alone()  # asked again while it is on its way
    (block,) = bench.persists()
    assert block.lineage == (Generation(1, 2, 0x21), FIRST)
    assert not block.peer_in_sync
    bench.write_all()
    assert bench.may_go_on_alone()
    assert bench.events() == [AloneEvent("vda", Generation(1, 2, 0x21).describe())]


def test_a_flap_over_an_idle_guest_writes_nothing() -> None:
    bench = Bench(in_sync_block()).activate().joined()
    bench.standing.leave(Phase.ABSENT, at_once=False)
    assert not bench.may_go_on_alone()
    bench.standing.prepare()
    bench.standing.begun()
    bench.standing.adopt()
    assert bench.standing.adopted(FIRST)
    assert bench.phase() is Phase.IN_SYNC
    assert bench.persists() == []
    assert bench.events() == [InSyncEvent("vda", FIRST.describe())]


def test_a_loss_with_something_in_flight_opens_a_generation_at_once() -> None:
    bench = Bench(in_sync_block()).activate().joined()
    bench.standing.leave(Phase.ABSENT, at_once=True)
    assert [block.lineage[0].epoch for block in bench.persists()] == [2]
    assert not bench.may_go_on_alone()
    bench.write_all()
    assert bench.may_go_on_alone()


def test_falling_behind_opens_a_generation_at_once() -> None:
    bench = Bench(in_sync_block()).activate().joined()
    bench.standing.leave(Phase.BEHIND, at_once=False)
    assert bench.phase() is Phase.BEHIND
    assert bench.standing.newest.epoch == 2
    assert not bench.standing.mirrored
    bench.standing.prepare()


def test_a_peer_that_never_counted_leaves_without_a_trace() -> None:
    bench = Bench(blank_superblock("vda", 1 << 20)).activate()
    bench.standing.prepare()
    bench.standing.begun()
    assert bench.standing.mirrored
    assert not bench.standing.joined
    assert bench.may_go_on_alone()
    bench.standing.leave(Phase.ABSENT, at_once=True)
    bench.standing.request_alone()
    assert bench.persists() == []
    assert bench.may_go_on_alone()


def test_asking_to_adopt_is_enough_to_count() -> None:
    """The peer may have adopted when the link dies: it may not be forgotten under the same generation."""
    bench = Bench(blank_superblock("vda", 1 << 20)).activate()
    first = bench.standing.newest
    bench.standing.prepare()
    bench.standing.begun()
    bench.standing.adopt()
    assert bench.standing.joined
    bench.standing.leave(Phase.ABSENT, at_once=False)
    assert not bench.may_go_on_alone()
    bench.standing.request_alone()
    bench.write_all()
    assert bench.standing.superblock.lineage[1] == first


def test_a_superblock_on_its_way_that_counts_on_the_peer_forbids_going_on_alone() -> None:
    bench = Bench(blank_superblock("vda", 1 << 20)).activate()
    bench.standing.prepare()
    bench.standing.begun()
    bench.standing.adopt()
    assert bench.standing.adopted(bench.standing.newest)
    assert bench.phase() is Phase.CONFIRMING
    bench.standing.leave(Phase.ABSENT, at_once=True)  # while "in sync" is being written
    assert not bench.may_go_on_alone()
    bench.write_one()
    assert not bench.may_go_on_alone()
    assert bench.phase() is Phase.ABSENT
    bench.write_all()
    assert bench.may_go_on_alone()
    assert bench.standing.superblock.lineage[0].epoch == 2


def test_no_request_is_granted_while_the_peer_counts() -> None:
    bench = Bench(in_sync_block()).activate()
    bench.standing.prepare()
    bench.standing.begun()
    bench.standing.adopt()
    bench.standing.request_alone()
    assert bench.persists() == []


def test_only_the_generation_in_force_is_adopted() -> None:
    bench = Bench(in_sync_block()).activate()
    assert not bench.standing.adopted(FIRST)  # nobody asked
    bench.standing.prepare()
    bench.standing.begun()
    bench.standing.adopt()
    assert not bench.standing.adopted(Generation(1, 9, 9))
    assert bench.standing.adopted(FIRST)


def test_the_lineage_is_bounded() -> None:
    bench = Bench(in_sync_block()).activate()
    for _ in range(LINEAGE_GENERATIONS_MAX + 5):
        bench.joined()
        bench.standing.leave(Phase.ABSENT, at_once=True)
        bench.write_all()
    lineage = bench.standing.superblock.lineage
    assert len(lineage) == LINEAGE_GENERATIONS_MAX
    assert [g.epoch for g in lineage] == sorted((g.epoch for g in lineage), reverse=True)


def test_a_full_copy_records_where_its_map_begins() -> None:
    bench = Bench(replace(in_sync_block(), map_base=None)).activate()
    bench.standing.map_begins()
    (block,) = bench.persists()
    assert block.map_base == FIRST


def test_closing_says_clean() -> None:
    bench = Bench(in_sync_block()).activate()
    bench.standing.deactivate()
    assert [block.clean for block in bench.persists()] == [True]


# -- the order of phases -------------------------------------------------------------------------------------


def test_steps_that_the_drawing_does_not_show_are_our_own_bug() -> None:
    steps = {
        "prepare": Standing.prepare,
        "begun": Standing.begun,
        "adopt": Standing.adopt,
        "absent": lambda standing: standing.leave(Phase.ABSENT, at_once=False),
        "behind": lambda standing: standing.leave(Phase.BEHIND, at_once=False),
    }
    allowed = {
        Phase.ABSENT: {"prepare"},
        Phase.PREPARING: {"begun", "absent"},
        Phase.SYNCING: {"adopt", "absent", "behind"},
        Phase.BEHIND: {"prepare", "absent"},
        Phase.ADOPTING: {"absent", "behind"},
        Phase.CONFIRMING: {"absent", "behind"},
        Phase.IN_SYNC: {"absent", "behind"},
    }
    for phase, (name, step) in itertools.product(Phase, steps.items()):
        bench = Bench(in_sync_block()).activate()
        bench.standing.phase = phase
        if name in allowed[phase]:
            step(bench.standing)
            assert bench.phase() is not phase
        else:
            with pytest.raises(InternalError, match=f"peer from {phase.value} to"):
                step(bench.standing)


# -- the writer of superblocks -------------------------------------------------------------------------------


def writer() -> tuple[SuperblockWriter, list[Effect]]:
    out: list[Effect] = []
    return SuperblockWriter(3, in_sync_block(), out), out


def is_settled(writes: SuperblockWriter) -> bool:
    return writes.settled


def test_one_write_at_a_time_and_the_last_wish_wins() -> None:
    writes, out = writer()
    blocks = [replace(in_sync_block(), term=term) for term in (2, 3, 4)]
    for block in blocks:
        writes.want(block)
    assert out == [Persist(3, blocks[0], blocks[0])]
    assert not is_settled(writes)
    assert writes.persisted(blocks[0]) == blocks[0]
    assert out[1:] == [Persist(3, blocks[2], blocks[2])]
    writes.persisted(blocks[2])
    assert is_settled(writes)
    writes.want(blocks[2])
    assert len(out) == 2


def test_reports_of_writes_that_are_not_under_way_are_our_own_bug() -> None:
    writes, _ = writer()
    block = replace(in_sync_block(), term=2)
    for report in (writes.persisted, writes.gave_up):
        with pytest.raises(InternalError):
            report(block)
    writes.want(block)
    for report in (writes.persisted, writes.gave_up):
        with pytest.raises(InternalError):
            report(replace(block, term=3))


def test_a_failed_write_is_tried_again_with_what_is_wanted_then() -> None:
    writes, out = writer()
    block = replace(in_sync_block(), term=2, condition=Condition.SYNCING)
    writes.retry()
    writes.want(block)
    writes.gave_up(block)
    assert not is_settled(writes)
    writes.want(replace(block, term=3))
    assert len(out) == 1  # nothing is written before it is asked for
    writes.forget_wishes()
    writes.retry()
    # what was durable, but with the term that may be on disk by now
    again = replace(in_sync_block(), term=2)
    (effect,) = out[1:]
    assert effect == Persist(3, again, again)
    assert isinstance(effect, Persist)
    writes.persisted(effect.token)
    assert is_settled(writes)


def test_wishes_that_are_forgotten_are_not_written_but_a_write_under_way_ends() -> None:
    writes, out = writer()
    writes.forget_wishes()
    assert is_settled(writes)
    first, second = replace(in_sync_block(), term=2), replace(in_sync_block(), term=3)
    writes.want(first)
    writes.want(second)
    writes.forget_wishes()
    writes.persisted(first)
    assert is_settled(writes)
    assert len(out) == 1


# ---------------------------------------------------------------------- arbitration


class Arbitrated(Bench):
    """The same where a permit is needed to go on alone."""

    def __init__(self, block: Superblock) -> None:
        super().__init__(block)
        self.permit = Permit(self.out, alone=False)
        self.standing = Standing(0, block, lambda: 0x31, self.out, self.permit)
        self.activate()

    @property
    def asked(self) -> int:
        return self.out.count(AskAlone())

    def give(self) -> None:
        self.permit.give(alone=True)
        self.standing.permitted()


def test_no_generation_without_the_peer_is_opened_before_the_permit_is_given() -> None:
    bench = Arbitrated(in_sync_block())
    bench.standing.request_alone()
    bench.standing.request_alone()  # by another write
    assert bench.asked == 1
    assert not bench.persists()
    assert not bench.may_go_on_alone()
    bench.give()
    assert [each.lineage[0].epoch for each in bench.persists()] == [2]
    assert not bench.may_go_on_alone()  # it is not durable yet
    bench.write_all()
    assert bench.may_go_on_alone()


def test_a_permit_that_nobody_asked_for_opens_no_generation() -> None:
    bench = Arbitrated(in_sync_block())
    bench.give()
    assert not bench.persists()
    bench.standing.request_alone()
    assert len(bench.persists()) == 1
    assert not bench.asked


def test_a_permit_is_not_used_once_the_peer_is_needed_again() -> None:
    bench = Arbitrated(in_sync_block())
    bench.standing.request_alone()
    bench.standing.prepare()
    bench.standing.begun()
    bench.standing.adopt()  # it lacked nothing
    bench.give()
    assert not bench.persists()
    assert bench.standing.adopted(FIRST)
    bench.write_all()
    assert bench.standing.phase is Phase.IN_SYNC


def test_a_peer_that_came_back_before_the_answer_did_is_asked_about_again_when_it_is_lost() -> None:
    bench = Arbitrated(in_sync_block())
    bench.standing.request_alone()
    assert bench.asked == 1
    bench.standing.prepare()
    bench.standing.begun()
    bench.standing.adopt()
    assert bench.standing.adopted(FIRST)
    bench.standing.leave(Phase.ABSENT, at_once=True)
    assert bench.asked == 2


def test_a_grant_that_counts_the_peer_again_takes_the_permit_back() -> None:
    bench = Arbitrated(replace(in_sync_block(), peer_in_sync=False))
    bench.give()
    assert bench.may_go_on_alone()
    bench.permit.give(alone=False)
    assert not bench.may_go_on_alone()
    bench.standing.request_alone()
    assert bench.asked == 1


def test_a_peer_that_left_still_counts_until_somebody_may_go_on_without_it() -> None:
    bench = Bench(in_sync_block()).activate()

    def counts() -> bool:
        return bench.standing.still_counts

    assert not counts()
    bench.permit.give(alone=False)
    assert not counts()  # in an earlier life
    bench.joined()
    bench.standing.leave(Phase.ABSENT, at_once=True)
    assert counts()
    bench.permit.give(alone=True)
    assert not counts()
    bench.standing.permitted()
    bench.write_all()
    bench.permit.give(alone=False)  # the peer is wanted in again, and has not taken the new generation over
    assert not counts()
