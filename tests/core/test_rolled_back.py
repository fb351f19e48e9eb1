"""The active host's disk is put back, labels and all, to what it was within the very same generation.

Whole stories of two sessions; the numbers by which it is told stand in ``core.states``.
"""

from __future__ import annotations

import copy
import errno
from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.core.test_session import block_write, clear, sent, synced

from pairsync.core.claims import INSISTED, Claim, obstacle
from pairsync.core.events import RefusedEvent
from pairsync.core.limits import VolumeOptions
from pairsync.core.lineage import outdated_by
from pairsync.core.messages import Adopt, Barrier, Condition, Leave, Role
from pairsync.core.truths import concession
from pairsync.core.units import NS_PER_S
from pairsync.testing.manual import ManualDisk, ManualHost, ManualMetadata, ManualPair, blank_superblock


def put_back_later(host: ManualHost) -> Callable[[], None]:
    """Take a copy of all its disks; what is returned puts it back, and the host is down then."""
    kept = copy.deepcopy((host.disks, host.metadata))

    def put_back() -> None:
        host.crash(power=False)
        host.disks[:], host.metadata[:] = copy.deepcopy(kept[0]), copy.deepcopy(kept[1])

    return put_back


def write(pair: ManualPair, block: int, fill: int) -> None:
    """Written, flushed, and the write-intent generation closed."""
    pair.a.write(f"write {block} {fill}", block_write(block, fill))
    pair.settle()
    pair.a.flush(f"flush {block} {fill}")
    pair.settle()


def quiet_pair(options: VolumeOptions | None = None) -> ManualPair:
    pair = synced(options=options)
    write(pair, 1, 1)
    return pair


def meet(pair: ManualPair) -> None:
    """As long as it takes to be allowed another session."""
    if pair.linked:
        pair.cut()
    pair.settle()
    for _ in range(100):
        pair.tick(NS_PER_S)
    pair.connect()
    pair.settle()


def put_back_pair() -> ManualPair:
    """The owner, which is down, has its disk as it was before the last write; the standby has that."""
    pair = quiet_pair()
    put_back = put_back_later(pair.a)
    write(pair, 2, 7)
    pair.cut()
    put_back()
    return pair


def rules(pair: ManualPair) -> set[str]:
    """By which the owner refused a session."""
    return {event.rule for event in pair.a.events if isinstance(event, RefusedEvent)}


def in_sync(pair: ManualPair) -> bool:
    return pair.a.session.in_sync and pair.b.session.in_sync


def test_the_standby_is_given_what_the_owner_has_reached_and_records_it() -> None:
    pair = quiet_pair()
    first = pair.b.metadata[0].given
    write(pair, 2, 2)
    (barrier,) = [each for each in sent(pair.a) if isinstance(each, Barrier) and each.point][-1:]
    assert barrier.milestone == pair.b.metadata[0].given > first
    assert pair.a.metadata[0].generation_max + 1 >= barrier.milestone  # durable there, before it was given


def test_a_newer_standby_is_not_overwritten_by_a_disk_that_was_put_back() -> None:
    pair = quiet_pair()
    put_back = put_back_later(pair.a)
    write(pair, 2, 7)
    held = bytes(pair.b.disks[0].content)
    pair.cut()
    put_back()
    clear(pair)
    pair.a.start(Role.ACTIVE, 1)
    pair.settle()
    meet(pair)
    assert rules(pair) == {"active-rolled-back"}
    assert any(isinstance(each, Leave) for each in sent(pair.a))
    assert bytes(pair.b.disks[0].content) == held
    pair.a.write("late", block_write(3))
    pair.settle()
    assert [each.errnos for each in pair.a.completed if each.ticket == "late"] == [
        [errno.EIO]
    ]  # it serves nothing


@pytest.mark.parametrize("fails", [False, True])
def test_what_a_standby_is_given_by_a_flush_that_outlasts_its_session_counts(fails: bool) -> None:
    """It is on its disk, and so are the writes before it; or neither is known to be."""
    pair = quiet_pair()
    put_back = put_back_later(pair.a)
    first = pair.b.metadata[0].given
    pair.a.write("write", block_write(2, 7))
    pair.settle()
    pair.a.flush("flush")
    while not pair.b.waiting("side") and pair.step():
        pass
    pair.cut()
    pair.b.complete("side", error=errno.EIO if fails else 0)
    assert (pair.b.metadata[0].given == first) is fails
    held = bytes(pair.b.disks[0].content)
    put_back()
    clear(pair)
    pair.a.start(Role.ACTIVE, 1)
    pair.settle()
    meet(pair)
    assert (rules(pair) == {"active-rolled-back"}) is not fails
    assert (bytes(pair.b.disks[0].content) == held) is not fails


def test_however_often_it_starts_and_writes_before_they_meet_it_is_told_apart() -> None:
    """What is recorded in a life in which the peer was not there does not make it newer."""
    pair = put_back_pair()
    for life in range(4):
        pair.a.start(Role.ACTIVE, 1)
        while pair.a.busy and pair.a.waiting("meta"):
            pair.a.complete("meta")  # it becomes active
        pair.a.write(f"early {life}", block_write(4))
        pair.a.complete("meta")  # the intent is recorded; nothing else is
        pair.a.crash(power=False)
    assert pair.a.metadata[0].generation_max + 1 > pair.b.metadata[0].given
    clear(pair)
    pair.a.start(Role.ACTIVE, 1)
    pair.settle()
    meet(pair)
    assert rules(pair) == {"active-rolled-back"}


def test_one_that_has_written_alone_since_is_refused_too_and_goes_on() -> None:
    pair = quiet_pair()
    put_back = put_back_later(pair.a)
    write(pair, 2, 7)
    held = bytes(pair.b.disks[0].content)
    pair.cut()
    put_back()
    pair.a.start(Role.ACTIVE, 1)
    pair.settle()
    for fill in range(1, 6):  # more than the standby was ever given
        write(pair, 5, fill)
    clear(pair)
    meet(pair)
    assert rules(pair) == {"rolled-back-apart"}
    assert bytes(pair.b.disks[0].content) == held
    write(pair, 6, 1)
    assert [each.errnos for each in pair.a.completed if each.ticket == "write 6 1"] == [None]


@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("moment", range(0, 40, 3))
def test_no_crash_of_an_owner_makes_it_look_put_back(moment: int, power: bool) -> None:
    """Wherever it comes: each milestone that was given is durable on the owner."""
    pair = quiet_pair()
    for block in range(3):
        pair.a.write(f"write {block}", block_write(block, 9))
        pair.a.flush(f"flush {block}")
    steps = 0
    while steps < moment and pair.step():
        steps += 1
    pair.cut()
    pair.a.crash(power=power)
    pair.settle()
    pair.a.start(Role.ACTIVE, 1)
    pair.settle()
    clear(pair)
    meet(pair)
    assert not rules(pair)
    assert in_sync(pair)


def test_roles_that_change_to_and_fro_go_on_counting_together() -> None:
    pair = quiet_pair()
    for turn in range(6):
        owner, other = (pair.a, pair.b) if turn % 2 == 0 else (pair.b, pair.a)
        pair.cut()
        for host in (pair.a, pair.b):
            host.crash(power=False)
        owner.start(Role.ACTIVE, 1)
        other.start(Role.STANDBY, 1)
        pair.settle()
        clear(pair)
        meet(pair)
        assert in_sync(pair), turn
        before = other.metadata[0].given
        owner.write("w", block_write(turn, turn + 1))
        pair.settle()
        owner.flush("f")
        pair.settle()
        assert other.metadata[0].given > before


def test_a_standby_that_has_forgotten_what_it_was_given_is_no_worse() -> None:
    pair = quiet_pair()
    pair.cut()
    pair.b.crash(power=True)
    pair.b.metadata[0].given = 0
    pair.b.start(Role.STANDBY, 1)
    pair.settle()
    clear(pair)
    meet(pair)
    assert in_sync(pair)
    assert (
        pair.b.metadata[0].given == [each for each in sent(pair.a) if isinstance(each, Adopt)][-1].milestone
    )


def test_an_arbitrated_owner_does_not_ask_to_put_out_who_is_newer() -> None:
    pair = put_back_pair()
    pair.a.start(Role.ACTIVE, 1, arbitrated=True)
    pair.settle()
    clear(pair)
    meet(pair)
    assert pair.a.session.outdated
    pair.a.write("w", block_write(3))
    pair.settle()
    assert pair.a.asked_alone == 0
    assert pair.a.session.sources[0].failed is None  # who arbitrates halts it, and nobody hears an error
    assert not [each for each in pair.a.completed if each.ticket == "w"]


def test_an_owner_that_may_go_on_alone_acknowledges_nothing_any_more_once_it_is_told() -> None:
    """It had not met its peer when that was agreed; it is halted in a moment, and some writes are quick."""
    pair = put_back_pair()
    pair.a.start(Role.ACTIVE, 1, arbitrated=True)
    pair.a.session.permitted(0, alone=True)
    pair.settle()
    clear(pair)
    meet(pair)
    assert pair.a.session.outdated
    write(pair, 3, 9)
    pair.a.session.permitted(0, alone=True)  # once more: by a grant that changes nothing else, say
    pair.settle()
    assert not [each for each in pair.a.completed if each.ticket == "write 3 9"]
    assert pair.a.session.outdated  # else both hosts would have written apart


def test_two_standbys_know_which_of_them_is_older_before_any_serves() -> None:
    pair = put_back_pair()
    pair.a.start(Role.STANDBY, 1, arbitrated=True)
    pair.settle()
    session = pair.a.session
    before = session.awaits_peer
    meet(pair)
    assert (before, session.awaits_peer) == (True, False)
    assert session.outdated
    assert "put back to an older state" in session.outdated
    assert not pair.b.session.outdated


def _told_as_standby() -> ManualPair:
    """Before either serves, a has heard that b is newer; then its process dies."""
    pair = put_back_pair()
    pair.b.crash(power=False)
    for host in (pair.a, pair.b):
        host.start(Role.STANDBY, 1, arbitrated=True)
    meet(pair)
    assert pair.a.metadata[0].superblock.outdated
    assert not pair.b.metadata[0].superblock.outdated
    pair.a.crash(power=True)
    return pair


def test_what_an_owner_was_told_of_its_old_disk_its_next_life_knows() -> None:
    pair = _told_as_standby()
    pair.a.start(Role.STANDBY, 1, arbitrated=True)
    pair.settle()
    session = pair.a.session
    assert session.awaits_peer
    assert "was found to be older" in session.outdated
    assert obstacle(session, Claim()) == session.outdated
    assert obstacle(session, INSISTED) == ""


def test_an_owner_that_served_notes_it_too() -> None:
    pair = put_back_pair()
    pair.a.start(Role.ACTIVE, 1, arbitrated=True)
    pair.settle()
    assert obstacle(pair.a.session, Claim()) == ""
    clear(pair)
    meet(pair)
    assert "active-rolled-back" in obstacle(pair.a.session, Claim())
    assert "active-rolled-back" in obstacle(pair.a.session, Claim(), halted=True)
    assert pair.a.metadata[0].superblock.outdated


def test_a_disk_that_was_put_back_is_as_good_as_any_once_it_has_what_it_had_forgotten() -> None:
    pair = _told_as_standby()
    pair.b.crash(power=False)
    pair.a.start(Role.STANDBY, 1, arbitrated=True)
    pair.b.start(Role.ACTIVE, 2)
    meet(pair)
    assert in_sync(pair)
    assert pair.a.session.outdated == obstacle(pair.a.session, Claim()) == ""
    assert not pair.a.metadata[0].superblock.outdated


def test_a_person_who_has_the_old_disk_served_or_the_new_one_give_way_ends_it() -> None:
    pair = _told_as_standby()
    pair.a.start(Role.ACTIVE, 2, arbitrated=True)
    pair.settle()
    assert pair.a.session.outdated == ""
    assert not pair.a.metadata[0].superblock.outdated

    pair = _told_as_standby()
    pair.a.start(Role.STANDBY, 1, arbitrated=True)
    pair.settle()
    theirs = pair.a.session.introduction().volumes[0]
    pair.b.crash(power=False)
    made = concession(pair.b.metadata[0].superblock, theirs, pair.b.metadata[0].given)
    assert made is not None
    pair.b.metadata[0].superblock = made.after
    pair.b.start(Role.STANDBY, 1, arbitrated=True)
    meet(pair)
    assert pair.a.session.outdated == ""
    assert not pair.a.metadata[0].superblock.outdated


def _gives_way(pair: ManualPair) -> None:
    made = concession(
        pair.b.metadata[0].superblock,
        pair.a.session.introduction().volumes[0],
        pair.b.metadata[0].given,
    )
    assert made is not None
    pair.b.metadata[0].superblock = made.after


def _thrown_away(pair: ManualPair) -> None:
    size_bytes = len(pair.b.disks[0].content)
    pair.b.disks[0] = ManualDisk(size_bytes)
    pair.b.metadata[0] = ManualMetadata(blank_superblock("vda", size_bytes))


@pytest.mark.parametrize("ends", [_gives_way, _thrown_away])
def test_an_old_disk_on_which_a_person_insists_is_as_good_as_any_once_the_other_has_it(
    ends: Callable[[ManualPair], None],
) -> None:
    """It serves, and is told once more; the newer one gives way, or an empty one takes its place."""
    pair = _told_as_standby()
    pair.a.start(Role.ACTIVE, 2, arbitrated=True)
    pair.a.session.permitted(0, alone=True, insisted=True)
    pair.settle()
    meet(pair)
    told = pair.a.metadata[0].superblock.outdated
    write(pair, 0, 2)
    assert "write 0 2" in [each.ticket for each in pair.a.completed]
    pair.cut()
    pair.b.crash(power=False)
    ends(pair)
    pair.b.start(Role.STANDBY, 1, arbitrated=True)
    pair.settle()
    meet(pair)
    assert in_sync(pair)
    assert obstacle(pair.a.session, Claim()) == ""
    assert (told, pair.a.metadata[0].superblock.outdated) == (True, False)
    pair.a.session.permitted(0, alone=False)  # a grant calls both in sync
    pair.cut()
    pair.a.write("late", block_write(3))
    pair.settle()
    assert pair.a.asked_alone  # or it would wait for ever


@pytest.mark.parametrize("role", Role)
def test_neither_an_empty_disk_nor_one_that_serves_makes_an_old_one_new(role: Role) -> None:
    """What was newer is gone, or being brought: it is not here yet."""
    pair = _told_as_standby()
    pair.a.start(Role.STANDBY, 1, arbitrated=True)
    pair.settle()
    mine = pair.a.session.introduction()
    (volume,) = mine.volumes
    empty = replace(volume, condition=Condition.BLANK, lineage=(), given=0)
    theirs = replace(mine, role=role, volumes=(empty if role is Role.STANDBY else volume,))
    assert outdated_by(mine, theirs) is None
    pair.a.linked = True
    pair.a.session.connected(pair.a.now_ns)
    pair.a.session.received([theirs], pair.a.now_ns)
    pair.a.perform()
    assert pair.a.session.outdated


def test_where_no_digests_are_kept_nothing_is_recorded() -> None:
    pair = quiet_pair(VolumeOptions(digests=False))
    assert pair.b.metadata[0].given == 0
