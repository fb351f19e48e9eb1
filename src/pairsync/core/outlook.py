"""Outlook: what would survive now, of every single failure and of every pair of failures in turn.

A model of what the pair *does* (`core.arbiter`, `guest.arbitration`), small enough to be read at once: a
state, the failures that may strike it, and the state after the pair has dealt with one.  The simulators hold
it against what then really happens.

::

    owner in service ──failure──▶ goes on | moves to the other host | stops, until something returns

The rules, in its order (DESIGN rules 2 to 4):

* Who decides alone (``sole``) goes on whatever else fails, but for its own host and disk.
* An owner with other voters goes on without its peer if it can ask the witness.  If it cannot, the peer takes
  over, if *it* can; otherwise nobody may run.
* A lost witness changes nothing at once: owner and peer agree that the owner decides alone.  From then on
  only the owner's own end stops the guest.
* A standby is promoted only if it is in sync, its disk works and the other voters let it.

The second failure of a pair is taken to strike when the first has been dealt with.  What strikes while it is
dealt with, some seconds at most, is not foreseen here.  Both are named by who owns the guest *now*: if it has
moved by then, the loss of the standby is that of the host where it runs.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .arbiter import Arbiter
from .source import VolumeSource

__all__ = ["Failure", "Fate", "Outlook", "Prospect", "State", "after", "outlook", "state_of"]


class Failure(enum.Enum):
    """What may be lost."""

    OWNER = "owner"
    STANDBY = "standby"
    LINK = "link"
    WITNESS = "witness"
    OWNER_DISK = "owner-disk"
    STANDBY_DISK = "standby-disk"

    @property
    def once_moved(self) -> Failure:
        """The same loss, named by the other host's being the owner."""
        return _ONCE_MOVED.get(self, self)


_ONCE_MOVED = {
    Failure.OWNER: Failure.STANDBY,
    Failure.STANDBY: Failure.OWNER,
    Failure.OWNER_DISK: Failure.STANDBY_DISK,
    Failure.STANDBY_DISK: Failure.OWNER_DISK,
}


class Fate(enum.Enum):
    """What becomes of the guest."""

    GOES_ON = "goes-on"
    MOVES = "moves"
    STOPS = "stops"


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A pair at one moment, as far as its guest depends on it.

    ``sole``: the owner decides the next grant alone.  ``owner_asks``, ``standby_asks``: that host reaches the
    witness that is one of the voters.  ``in_sync``: the grant counts the standby, and its host is up.
    ``lag_bytes``: what an in-sync standby may lack of what was acknowledged (level ``async``).  ``leaves``:
    the owner hands the guest over when its disk fails; it does not where the standby may lack something.
    ``hang_ns``: so long a disk that hangs may be waited for.
    """

    in_sync: bool
    sole: bool
    link: bool = True
    owner_asks: bool = True
    standby_asks: bool = True
    owner_disk: bool = True
    lag_bytes: int = 0
    leaves: bool = True
    hang_ns: int = 0


@dataclass(frozen=True, slots=True)
class Prospect:
    """What one failure would mean: ``lost_bytes`` of what was acknowledged, ``within_ns`` without service."""

    fate: Fate
    within_ns: int
    lost_bytes: int


@dataclass(frozen=True, slots=True)
class Outlook:
    """Each failure alone, and the pairs, in their order, after which the guest runs with nothing lost.

    All are named by who owns the guest before the first of them.
    """

    single: dict[Failure, Prospect]
    safe_pairs: tuple[tuple[Failure, Failure], ...]

    @property
    def redundant(self) -> bool:
        """Whether no single failure stops the guest or loses anything."""
        return all(each.fate is not Fate.STOPS and not each.lost_bytes for each in self.single.values())


_ALONE = State(in_sync=False, sole=True)
"""A host that goes on without its peer, as far as it depends on others: not at all."""


def state_of(arbiter: Arbiter, sources: Sequence[VolumeSource], *, linked: bool) -> State | None:
    """The pair as the host can see it on which the guest runs, from ``sources``; None without a grant.

    ``linked``: the link has a session.  A peer that was called in sync a moment ago, and has not said yet
    that it could serve, is taken not to be.
    """
    grant, decider = arbiter.grant, arbiter.decider
    if grant is None:
        return None
    lagging = [each for each in sources if each.options.level != "sync"]
    both = decider.own.name in grant.in_sync and len(grant.in_sync) > 1
    return State(
        in_sync=both and linked and decider.peer_ready,
        sole=grant.sole == decider.own,
        link=linked,
        owner_asks=arbiter.owner_asks,
        standby_asks=arbiter.standby_asks,
        owner_disk=all(each.failed is None for each in sources),
        lag_bytes=sum(each.inflight_bytes for each in lagging),
        leaves=not lagging,
        hang_ns=max((each.options.hang_ns for each in sources), default=0),
    )


def after(state: State, failure: Failure) -> tuple[Fate, State]:
    """What becomes of the guest, and the state once the pair has dealt with it."""
    alone = replace(_ALONE, owner_disk=state.owner_disk, owner_asks=state.owner_asks, link=state.link)
    taken_over = replace(_ALONE, link=False, owner_asks=state.standby_asks)
    standby_may = state.in_sync and not state.sole and state.standby_asks
    match failure:
        case Failure.OWNER:
            return (Fate.MOVES, taken_over) if standby_may else (Fate.STOPS, state)
        case Failure.OWNER_DISK if state.in_sync and state.link and state.leaves:
            return Fate.MOVES, replace(taken_over, link=True)
        case Failure.OWNER_DISK:
            return Fate.STOPS, state
        case Failure.WITNESS:
            return Fate.GOES_ON, replace(state, owner_asks=False, standby_asks=False, sole=True)
        case Failure.STANDBY_DISK:  # its host still votes, over the link; if that is down it is out already
            return Fate.GOES_ON, alone
        case Failure.STANDBY | Failure.LINK if state.sole or not state.in_sync or state.owner_asks:
            return Fate.GOES_ON, replace(alone, link=False)
        case Failure.LINK if standby_may:
            return Fate.MOVES, taken_over
        case _:
            return Fate.STOPS, state


def outlook(state: State, *, failover_ns: int) -> Outlook:
    """What would survive; ``failover_ns`` is what the operator stated (`core.timing`)."""
    single = {failure: _prospect(state, failure, failover_ns) for failure in Failure}
    pairs = []
    for first in Failure:
        fate, then = after(state, first)
        if fate is Fate.STOPS or single[first].lost_bytes:
            continue
        pairs += [
            (first, second)
            for second in Failure
            if second is not first
            and _harmless(_prospect(then, second.once_moved if fate is Fate.MOVES else second, failover_ns))
        ]
    return Outlook(single, tuple(pairs))


def _prospect(state: State, failure: Failure, failover_ns: int) -> Prospect:
    fate, _ = after(state, failure)
    moves = fate is Fate.MOVES
    # A peer that is silent is given up, or takes over, within the stated time; writes wait meanwhile.  So it
    # is for a disk once it is known not to work: at worst it hangs.
    disk = failure in {Failure.OWNER_DISK, Failure.STANDBY_DISK}
    waits = moves or failure in {Failure.STANDBY, Failure.LINK, Failure.STANDBY_DISK}
    within_ns = failover_ns + (state.hang_ns if disk else 0)
    lost_bytes = state.lag_bytes if moves and failure in {Failure.OWNER, Failure.LINK} else 0
    return Prospect(fate, within_ns if waits and state.in_sync else 0, lost_bytes)


def _harmless(prospect: Prospect) -> bool:
    return prospect.fate is not Fate.STOPS and not prospect.lost_bytes
