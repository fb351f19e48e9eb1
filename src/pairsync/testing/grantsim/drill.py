"""A drill: in a quiet moment, what would survive is asked (`core.outlook`); then that failure strikes.

First the pair becomes whole.  Then up to two failures strike, one after the other has been dealt with, and
each time what was foretold is held against what happens: the guest goes on where it is, moves, or stops.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pairsync.core.outlook import Failure, Fate, Outlook, Prospect, State, outlook, state_of
from pairsync.core.units import NS_PER_S

from .medium import FAILS, HANGS
from .network import WITNESS

if TYPE_CHECKING:
    from .host import GrantHost
    from .world import GrantWorld

__all__ = ["drill"]

WHOLE_NS_MAX = 60 * NS_PER_S
UNUSED_NS = 3 * NS_PER_S
"""After that a disk that nobody uses has been asked whether it works (`guest.watch`)."""
SETTLE_NS = 3 * NS_PER_S
"""Beside the failover time: a failure is dealt with, and what it leads to is agreed upon."""


def drill(world: GrantWorld) -> None:
    """See the module; raises through `GrantWorld.fail`."""
    deadline_ns = world.clock.now + WHOLE_NS_MAX
    while not world.whole():
        if world.clock.now > deadline_ns:
            world.fail("liveness", "a pair to which nothing happens does not become whole")
        world.run_until(world.clock.now + NS_PER_S)
    world.run_until(
        world.clock.now + SETTLE_NS
    )  # a standby that was taken in has asked the witness, and says so
    if world.random.random() < 0.4:
        _cut_a_cable(world)
    failures = world.random.sample(tuple(Failure), 2)
    foretold: Outlook | None = None
    first_owner: GrantHost | None = None
    for number, failure in enumerate(failures):
        owner = next((host for host in world.hosts if host.serves), None)
        if owner is None:
            return
        world.run_until(world.clock.now + world.random.randrange(2 * NS_PER_S))
        seen = outlook(_state(world, owner), failover_ns=world.profile.timing.failover_ns)
        fate = seen.single[failure].fate
        first_owner = first_owner or owner
        named = failure if owner is first_owner else failure.once_moved
        if number and foretold is not None and (failures[0], named) in foretold.safe_pairs:
            _require(
                world, fate is not Fate.STOPS, failure, "a pair of failures that was called safe is none"
            )
        foretold = seen
        world.trace.note("drill", failure.value, 0, fate.value)
        world.coverage.reach(f"drill:{fate.value}")
        life = owner.life
        _strike(world, owner, failure)
        _watch(world, owner, life, failure, seen.single[failure])
        if fate is Fate.STOPS:
            return


def _state(world: GrantWorld, owner: GrantHost) -> State:
    """As ``guest.standing.outlook_of`` sees it."""
    arbiter, plane = owner.arbiter, owner.plane
    linked = world.network.link.session_of(owner.index) != 0
    state = None
    if arbiter is not None and plane is not None:
        state = state_of(arbiter, plane.session.sources, linked=linked)
    if state is None:
        world.fail("outlook", "a host serves without a grant")
    return state


def _cut_a_cable(world: GrantWorld) -> None:
    """From a host to the witnesses, until the owner knows of it and has agreed to what follows."""
    host = world.random.randrange(2)
    world.trace.note("drill", "cut", host)
    world.coverage.reach("drill:cut-cable")
    world.network.set_cut({(host, WITNESS), (WITNESS, host)})
    world.changed()
    world.run_until(world.clock.now + world.profile.timing.witness_lost_ns + SETTLE_NS)


def _strike(world: GrantWorld, owner: GrantHost, failure: Failure) -> None:
    standby = world.hosts[1 - owner.index]
    power = world.random.random() < 0.5 and not world.guest.plain
    strikes: dict[Failure, Callable[[], None]] = {
        Failure.OWNER: lambda: owner.crash(power=power, why="drill") if owner.up else None,
        Failure.STANDBY: lambda: standby.crash(power=power, why="drill") if standby.up else None,
        Failure.LINK: lambda: world.network.set_cut(world.network.cut | {(0, 1), (1, 0)}),
        Failure.WITNESS: lambda: _witness_dies(world),
        Failure.OWNER_DISK: lambda: _disk_dies(world, owner),
        Failure.STANDBY_DISK: lambda: _disk_dies(world, standby),
    }
    strikes[failure]()
    world.changed()


def _disk_dies(world: GrantWorld, host: GrantHost) -> None:
    world.random.choice(host.media).sick = world.random.choice((FAILS, HANGS))


def _witness_dies(world: GrantWorld) -> None:
    if world.random.random() < 0.5:
        ways = {(host, WITNESS) for host in (0, 1)} | {(WITNESS, host) for host in (0, 1)}
        world.network.set_cut(world.network.cut | ways)
    for witness in world.witnesses.values():
        witness.up = False


def _watch(world: GrantWorld, owner: GrantHost, life: int, failure: Failure, said: Prospect) -> None:
    """What happens within the time that was said, and what has become of the guest then."""
    struck_ns, fate = world.clock.now, said.fate
    within_ns = max(world.profile.timing.failover_ns, said.within_ns)
    if failure in {Failure.OWNER_DISK, Failure.STANDBY_DISK}:
        within_ns += UNUSED_NS  # nobody waits for it then
    world.run_until(struck_ns + within_ns)
    there = owner.life == life and owner.serves
    other = world.hosts[1 - owner.index].serves
    if fate is Fate.GOES_ON:
        _require(world, there, failure, "the guest was to go on")
    elif fate is Fate.MOVES:
        _require(world, other, failure, "the guest was to move within the failover time")
    elif failure is Failure.OWNER_DISK:  # the host stands there as the owner, and serves nothing
        may_lag = world.guest.lags  # or it has left at last, for a standby that may lack something
        _require(world, may_lag or not other, failure, "the guest was to stop")
        return
    else:
        _require(world, not other and not there, failure, "the guest was to stop")
        return
    world.run_until(world.clock.now + SETTLE_NS)
    oldest_ns = world.guest.oldest_ns()
    served = oldest_ns is None or oldest_ns > struck_ns + within_ns
    _require(world, served, failure, "what is asked after it is not answered")


def _require(world: GrantWorld, holds: bool, failure: Failure, text: str) -> None:
    if not holds:
        world.fail("outlook", f"{failure.value}: {text}")
