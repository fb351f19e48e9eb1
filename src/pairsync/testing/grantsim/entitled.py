"""Who is entitled to run the guest: a connected majority of the voters that includes a replica in sync.

From the outside, with what no host knows: which paths work, who lives, and what was decided.  It is the
definition of the promise, not a model of how it is kept.  Where a grant may have been decided that nobody
knows of yet, all that may be must agree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pairsync.core.claims import Claim, peer_is_newer
from pairsync.core.grants import Grant, VoterId, majority
from pairsync.wire.arbitration import VOTE_VERSION

from .network import WITNESS
from .releases import overlap

if TYPE_CHECKING:
    from .host import GrantHost
    from .witness import Witness
    from .world import GrantWorld

__all__ = ["entitled", "may_be_decided"]


def entitled(world: GrantWorld) -> GrantHost | None:
    """A host that may run the guest now, or can be made to; None if there is none."""
    newest = world.checker.newest
    if newest is None or world.checker.forked or world.network.loss or world.network.slow > 1:
        return None
    if world.hosts[0].timing != world.hosts[1].timing:
        return None  # they do not take over from each other
    grants = {newest, *may_be_decided(world)}
    able = [host for host in world.hosts if all(_able(world, host, grant) for grant in grants)]
    for host in able:
        if host.voter == newest.owner_id:
            return host
    return able[0] if able else None


def may_be_decided(world: GrantWorld) -> set[Grant]:
    """Grants beyond the newest one that was in force on any host: what is decided, and nobody has said so."""
    newest = world.checker.newest
    states = [host.memory for host in world.hosts]
    states += [host.arbiter.decider.register.acceptor for host in world.hosts if host.arbiter is not None]
    states += [each.view.state for each in world.witnesses.values() if each.view.state is not None]
    known = {grant for state in states for grant in (state.base, state.accepted) if grant is not None}
    return {grant for grant in known if newest is None or grant.order > newest.order}


def _able(world: GrantWorld, host: GrantHost, grant: Grant) -> bool:
    if not host.up or host.frozen or host.plane is None or host.sick:
        return False
    if not host.plane.could_serve(_claim(host, grant)):
        return False
    other = world.hosts[1 - host.index]
    if host.voter != grant.owner_id:
        if host.id not in grant.in_sync or not (host.voter in grant.voters or _is_proven(other, host, grant)):
            return False
        if other.up and _asks(world, other, host) and not _gives_way(world, other):
            return False  # the owner is there, and asks not to be replaced
        known = host.base
        if known is None or (known.order < grant.order and known.sole and not _told(world, host, grant)):
            return False  # the owner died before anybody heard that it had taken this one in
        if world.checker.died_while_it_gave_way(host, grant):
            return False  # nothing tells its replica from one that was put back
    elif host.id not in grant.in_sync:
        return False
    reached = {host.voter}
    network = world.network
    if other.up and not other.frozen and network.reaches(0, 1) and network.reaches(1, 0):
        reached.add(other.voter)
    reached |= {VoterId(each.name, each.view.incarnation) for each in _reached(world, host)}
    known = host.base
    finds_out = known is None or known.order >= grant.order or _told(world, host, grant)
    # Else those have to help who decide as far as it knows.
    deciding = grant.voters if finds_out or known is None else known.voters
    return all(len(reached & each) >= majority(each) for each in (grant.voters, deciding))


def _is_proven(owner: GrantHost, standby: GrantHost, grant: Grant) -> bool:
    """Whether the owner knows that its disks are old, and the standby's replica newer, whatever votes."""
    if not owner.up or owner.plane is None or not peer_is_newer(owner.plane.session):
        return False
    return all(voter.name != standby.id for voter in grant.voters)


def _claim(host: GrantHost, grant: Grant) -> Claim:
    """The rules make sure of its term."""
    return Claim(new=grant.is_first, insisted=grant.owner == host.id and bool(grant.override))


def _reached(world: GrantWorld, host: GrantHost) -> list[Witness]:
    if not world.network.connected(host.index, WITNESS):
        return []
    return [each for each in world.witnesses.values() if each.up and overlap(each.release, host.release)]


def _told(world: GrantWorld, host: GrantHost, grant: Grant) -> bool:
    """Whether a witness that the host reaches knows that the grant was decided."""
    states = [each.view.state for each in _reached(world, host)]
    return any(each is not None and each.base is not None and each.base == grant for each in states)


def _asks(world: GrantWorld, owner: GrantHost, standby: GrantHost) -> bool:
    """Whether its heartbeats make the standby keep still: not when they say that it is not heard."""
    network = world.network
    heard = owner.frozen or network.reaches(standby.index, owner.index) or network.protocol < VOTE_VERSION
    return heard and network.reaches(owner.index, standby.index)


def _gives_way(world: GrantWorld, owner: GrantHost) -> bool:
    """Whether it hands the guest over because of its disk, or of what that holds: not while it ends in order,
    which takes no longer than a failover, while a disk that hangs may still end what it was asked, nor if it
    does not hear of a standby that could take it."""
    plane = owner.plane
    hung = [] if plane is None else [disk for disk in plane.disks if disk.hangs]
    knows = owner.sick and (not hung or any(disk.overdue(owner.now_ns) for disk in hung))
    outdated = plane is not None and plane.session.outdated != ""
    gives_way = (knows or outdated) and not owner.ending
    return gives_way and (owner.frozen or world.network.connected(0, 1))
