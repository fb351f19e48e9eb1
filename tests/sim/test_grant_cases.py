"""Cases that the simulator of grants has met, set up directly: seeds change their meaning, these do not."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from pairsync.core.limits import VolumeOptions
from pairsync.core.messages import Role
from pairsync.core.standing import Phase
from pairsync.core.timing import derive
from pairsync.core.units import NS_PER_MS, NS_PER_S
from pairsync.testing.grantsim import GrantProfile, GrantWorld, draw_profile
from pairsync.testing.grantsim.host import GrantHost
from pairsync.testing.grantsim.medium import FAILS, HANGS


def _quiet(**changes: object) -> GrantProfile:
    """No faults but what the case does."""
    return replace(draw_profile(Random(1)), faults={}, drill=False, **changes)  # type: ignore[arg-type]


def _new_guest() -> GrantWorld:
    """One that nobody has agreed on yet but who has it first."""
    worlds = (GrantWorld(seed, _quiet()) for seed in range(50))
    return next(each for each in worlds if each.checker.newest is not None and each.checker.newest.is_first)


def _everything_cut(world: GrantWorld) -> set[tuple[int, int]]:
    return {(one, other) for one in (0, 1, 2) for other in (0, 1, 2) if one != other}


def _pair_in_sync() -> tuple[GrantWorld, GrantHost, GrantHost]:
    """Whole, with a guest that writes: the world, the owner, the standby."""
    world = GrantWorld(3, _quiet(witnesses=("w",)))
    for host in world.hosts:
        host.start()
    world.guest.begin()
    world.run_until(6 * NS_PER_S)
    assert world.whole()
    owner = next(host for host in world.hosts if host.serves)
    return world, owner, world.hosts[1 - owner.index]


def test_an_owner_whose_disk_fails_before_the_guest_runs_leaves_it_to_the_standby() -> None:
    """It cannot run the guest, and its heartbeats keep the other one from taking over."""
    world, owner, standby = _pair_in_sync()
    world.network.set_cut(_everything_cut(world))
    owner.crash(power=False, why="stopped")
    owner.start()
    owner.media[0].sick = FAILS
    world.changed()
    world.run_until(world.clock.now + 4 * NS_PER_S)
    world.network.set_cut(set())
    world.changed()
    world.run_until(world.clock.now + 10 * NS_PER_S)
    assert standby.serves


def test_an_owner_whose_disk_hangs_while_it_waits_to_meet_its_standby_gives_the_guest_back() -> None:
    """As soon as the deadline of what the disk was asked has passed, well before a change has to be over."""
    world = GrantWorld(3, _quiet(witnesses=("w",), timing=derive(5 * NS_PER_S)))
    for host in world.hosts:
        host.start()
    world.run_until(NS_PER_S // 10)
    assert not world.hosts[0].serves
    assert world.faults.disks.sicken(world.hosts[0], HANGS, 60 * NS_PER_S)
    world.run_until(9 * NS_PER_S)  # fails by itself where nobody serves in time
    assert world.coverage.counts["gives-back"] == 1
    assert world.hosts[1].serves


def test_a_guest_that_moves_while_its_disk_hangs_leaves_that_replica_out_of_sync() -> None:
    """It was called in sync, and could not be promoted: its disk did not record the new term."""
    world, owner, standby = _pair_in_sync()
    assert world.faults.disks.sicken(owner, HANGS, 60 * NS_PER_S)
    assert owner.move() == ""
    world.run_until(9 * NS_PER_S)
    assert standby.serves
    assert world.coverage.counts["move-leaves"] == 1
    assert standby.base is not None
    assert standby.base.in_sync == {standby.id}


def test_who_died_while_it_gave_way_is_not_entitled_until_the_replicas_have_met() -> None:
    """Its disk has not recorded the new term: it could as well be one that was put back to the old one."""
    world, owner, standby = _pair_in_sync()
    assert owner.move() == ""
    while standby.base is None or len(standby.base.voters) == 1 or standby.base.term == 1:
        world.clock.run_until(world.clock.now + NS_PER_S // 10_000)
    owner.crash(power=False, why="crash")
    standby.crash(power=False, why="crash")
    owner.start()
    world.run_until(world.clock.now + 20 * NS_PER_S)  # fails by itself where who is entitled does not
    assert not owner.serves
    standby.start()
    world.run_until(world.clock.now + 5 * NS_PER_S)
    assert standby.serves
    assert world.whole()
    standby.crash(power=False, why="crash")
    world.run_until(world.clock.now + 10 * NS_PER_S)
    assert owner.serves


def _moves_where_the_metadata_hang() -> tuple[GrantWorld, GrantHost, GrantHost]:
    """The guest is about to begin on its new host, which cannot record that: the world, both hosts."""
    world, old, new = _pair_in_sync()
    assert old.move() == ""
    while new.plane is None or new.plane.role is Role.STANDBY:
        world.clock.run_until(world.clock.now + NS_PER_S // 10_000)
    assert world.faults.disks.sicken(new, HANGS, 60 * NS_PER_S)
    return world, new, old


def test_a_host_whose_metadata_hang_before_the_guest_runs_there_gives_it_back() -> None:
    world, new, old = _moves_where_the_metadata_hang()
    world.run_until(world.clock.now + 4 * NS_PER_S)  # fails by itself where nobody serves in time
    assert world.coverage.counts["gives-back"] == 1
    assert old.serves
    assert new.life == 1


def test_a_host_that_is_overruled_while_its_metadata_hang_serves_nothing() -> None:
    """Reads were answered meanwhile."""
    world, new, old = _moves_where_the_metadata_hang()
    world.faults.override(old)
    for _ in range(40):
        world.run_until(world.clock.now + NS_PER_S // 10)
        assert not new.serves
    assert world.coverage.counts["overtaken-opened"] == 1
    assert old.serves


def test_a_sick_disk_that_was_exchanged_with_its_host_is_not_mended_any_more() -> None:
    world = GrantWorld(3, _quiet())
    disks, standby = world.faults.disks, world.hosts[1]
    assert disks.sicken(standby, FAILS, NS_PER_S, swaps=True)
    sick = standby.media[:]
    disks.replace(standby)
    world.run_until(2 * NS_PER_S)
    assert not set(sick) & set(standby.media)
    assert not standby.sick


def test_a_guest_whose_first_owner_forgets_before_anything_is_written_is_made_once_more() -> None:
    """Nobody else votes, and what is blank is not served from later, not by an override either."""
    world = _new_guest()
    world.hosts[0].forget(restored=world.hosts[0].memory)
    world.run()
    assert world.coverage.counts["operator-begins-anew"] == 1
    assert world.guest.acknowledged


def test_an_owner_that_cannot_learn_what_others_have_decided_for_it_is_not_entitled() -> None:
    """It died while it put the standby out, which ended that with a witness, and the witness forgot it."""
    world = GrantWorld(3, _quiet(witnesses=("w",)))
    for host in world.hosts:
        host.start()
    world.run_until(6 * NS_PER_S)
    assert world.whole()
    owner = next(host for host in world.hosts if host.serves)
    standby = world.hosts[1 - owner.index]
    both = owner.memory.base
    assert both is not None
    owner.crash(power=False, why="crash")
    standby.crash(power=False, why="crash")
    alone = both._replace(
        epoch=both.epoch + 1, in_sync=frozenset({owner.id}), voters=frozenset({owner.voter})
    )
    standby.memory = standby.memory._replace(base=alone)
    world.witnesses["w"].lose()
    world.network.set_cut(_everything_cut(world) - {(owner.index, 2), (2, owner.index)})
    owner.start()
    standby.start()
    world.changed()
    world.run_until(world.clock.now + 20 * NS_PER_S)
    assert not owner.serves
    world.network.set_cut(set())
    world.changed()
    world.run_until(world.clock.now + 10 * NS_PER_S)
    assert owner.serves


def _put_back(witnesses: tuple[str, ...]) -> tuple[GrantWorld, GrantHost]:
    """The owner's machine has failed, and its disks are what they were; its standby has noticed."""
    world = GrantWorld(3, _quiet(witnesses=witnesses, timing=derive(5 * NS_PER_S)))  # time enough to meet
    for host in world.hosts:
        host.start()
    world.guest.begin()
    world.run_until(6 * NS_PER_S)
    owner = next(host for host in world.hosts if host.serves)
    world.faults.disks.back_up(owner)
    world.run_until(12 * NS_PER_S)
    copy = world.faults.disks.copy_for(owner)
    assert copy is not None
    owner.crash(power=True, why="power-cut")
    world.faults.disks.roll_back(owner, copy)
    world.run_until(14 * NS_PER_S)
    return world, owner


def _nobody_serves_until_a_person_decides(world: GrantWorld, owner: GrantHost) -> None:
    """The newer one may not take over: by the grant it is not in sync."""
    assert world.coverage.counts["rolled-back-told"] == 1
    assert not any(host.serves for host in world.hosts)
    for host in world.hosts:
        host.crash(power=False, why="crash")
    world.network.set_cut(_everything_cut(world))
    owner.start()
    world.changed()
    world.run_until(world.clock.now + 10 * NS_PER_S)
    assert not owner.serves  # its replicas have recorded it
    world.network.set_cut(set())
    world.hosts[1 - owner.index].start()
    world.changed()
    world.run_until(world.clock.now + 20 * NS_PER_S)
    assert not any(host.serves for host in world.hosts)
    world.faults.override(world.hosts[1 - owner.index])
    world.run_until(world.clock.now + 10 * NS_PER_S)
    assert world.whole()
    assert world.coverage.counts["rolled-back-unseen"] == 0


def test_an_owner_that_decides_alone_gives_the_guest_up_when_it_is_told_of_its_old_disk() -> None:
    """Nobody has vouched for the standby in this life but its replicas, which have more."""
    world, owner = _put_back(witnesses=())
    newest = world.checker.newest
    assert newest is not None
    assert newest.sole == owner.voter
    owner.start()
    world.changed()
    world.run_until(30 * NS_PER_S)
    assert world.coverage.counts["rolled-back-told"] == 1
    assert world.coverage.counts["rolled-back-given-up"] == 1
    assert world.hosts[1 - owner.index].serves
    assert world.whole()


def test_an_owner_that_is_told_of_its_old_disk_when_going_alone_is_agreed_does_not_serve() -> None:
    """Nor in another life.  Seed 282108: it asked whether the grant lets the other one own, which it does not
    any more."""
    world, owner = _put_back(witnesses=("w",))
    to_witness, to_owner = (owner.index, 2), (2, owner.index)
    world.network.set_cut(_everything_cut(world) - {to_witness, to_owner})
    owner.start()
    world.changed()
    arbiter, plane = owner.arbiter, owner.plane
    assert arbiter is not None
    assert plane is not None
    while not arbiter.decider.register.possible:  # the witness is asked to have the standby out
        world.run_until(world.clock.now + NS_PER_MS)
    world.network.set_cut(_everything_cut(world) - {to_witness, (0, 1), (1, 0)})  # and answers in vain
    world.network.link._connect()
    while not plane.session.outdated:
        world.run_until(world.clock.now + NS_PER_MS)
    when_told = arbiter.both_in_sync
    world.network.set_cut(set())
    world.changed()
    world.run_until(world.clock.now + 10 * NS_PER_S)
    assert (when_told, arbiter.both_in_sync) == (True, False)
    _nobody_serves_until_a_person_decides(world, owner)


def test_an_owner_that_cannot_meet_its_standby_serves_from_its_old_disk() -> None:
    """What was lost is not held against it: nobody could tell."""
    world, owner = _put_back(witnesses=())
    world.network.set_cut(_everything_cut(world))
    owner.start()
    world.changed()
    world.run_until(30 * NS_PER_S)
    assert owner.serves
    assert world.coverage.counts["rolled-back-unseen"] == 1
    assert world.coverage.counts["rolled-back-told"] == 0


def test_a_standby_that_is_back_before_it_was_put_out_takes_over_in_the_midst_of_the_copy() -> None:
    """It called itself half overwritten, and was still in sync by grant: nobody could run."""
    found = draw_profile(Random(1))
    slow = replace(found.speeds, disk_ns=3 * NS_PER_MS, link_ns=5 * NS_PER_MS)
    options = tuple(VolumeOptions() for _ in found.sizes_bytes)
    world = GrantWorld(
        3,
        _quiet(
            witnesses=("w",), timing=derive(5 * NS_PER_S), speeds=slow, options=options, think_ns=NS_PER_MS
        ),
    )
    for host in world.hosts:
        host.start()
    world.guest.begin()
    world.run_until(6 * NS_PER_S)
    assert world.whole()
    owner = next(host for host in world.hosts if host.serves)
    standby = world.hosts[1 - owner.index]
    world.network.loss = 1.0  # nobody can agree to anything
    world.network.link.drop(owner.index, "blip")
    assert owner.plane is not None
    standings = [source.standing for source in owner.plane.session.sources]
    world.clock.run_until(9 * NS_PER_S, stop=lambda: any(each.phase is Phase.SYNCING for each in standings))
    assert world.checker.newest is not None
    assert standby.id in world.checker.newest.in_sync
    assert not any(each.joined for each in standings)
    owner.crash(power=False, why="crash")
    world.network.loss = 0.0
    world.changed()
    world.run_until(world.clock.now + 10 * NS_PER_S)
    assert standby.serves
