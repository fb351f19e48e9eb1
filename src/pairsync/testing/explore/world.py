"""The world around two deciders: a network, a witness's store, guests, an abstract data plane, and faults.

**Messages** of rounds are a set; what is in it may arrive at any time, any number of times, or never.  Of
heartbeats one in each direction is under way at most, the newest, which may arrive or not: they are sent over
and over anyhow.  With `Bounds.prompt` that is settled before anything else happens, and those that are not
sent because they are due are lost.  What can only teach its receiver what a heartbeat teaches too is lost.

**Time** is no number.  Whatever a host waits for may end at any moment, with one exception, which is what the
inequality of `core.timing` is for: a host's promise ends after the lease that was asked for with it, or after
the life of the host that asked.  When a lease ends the guard has stopped the guest by then.

**The witness** carries out a swap at any later time, also long after the host has given it up.  Reading it is
one step: a host could read again later, so nothing is gained by an answer that is under way.

**Data** are two bits: whether a host's replica lacks an acknowledged write.  An owner that runs acknowledges
alone if `Decider.peer_excluded` says so; otherwise with all that its grant calls in sync, which changes
nothing.  A host that loses its memory has lost its replica too.

**A person** may make a host the owner at any time (`Bounds.overrides`): what it has is the truth then, and
the other's replica lacks something until it is proven anew.  From then on the rules hold for the new chain: a
host that has not heard of it yet may run beside, and what it acknowledges counts for nothing.

Checked, after every step: the grants of one place are one (rule 1), guests run on one host (rules 1 and 10),
what runs lacks nothing (rules 2 and 3), nobody acknowledges alone once another owner was agreed on (rule 6),
who is alone needs nobody (rule 4), and nothing is said before it is durable (`hosts`).
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from pairsync.core.acceptor import AcceptorState
from pairsync.core.arbitration import WitnessView

__all__ = [
    "BUDGETS",
    "CHAIN",
    "DOWN",
    "FRESH",
    "HOSTS",
    "NOTHING",
    "STALE",
    "WITNESSES",
    "Bounds",
    "Draft",
    "Swap",
    "World",
]

HOSTS = (b"A", b"B")
WITNESSES = ("W", "V")
"""The preferred one, and an alternate."""
CHAIN = b"fork"
"""The chain of grants that nobody has overruled yet."""
FRESH, STALE = 1, 2
"""Numbers of heartbeats: whether the answer may still give a lease."""
NOTHING = -1
"""Where the number of something stands: there is none."""
DOWN = -1
"""In place of the number of a host's state."""

World: TypeAlias = tuple[int, ...]
"""The fields of a `Draft`, as numbers of the tables of `Model`; of bits the first is host A's."""

BUDGETS = 17
"""Where in a world the budgets begin: crashes, amnesias, alarms, moves, overrides."""


class Bounds(NamedTuple):
    """How far is explored.

    ``crashes``: of hosts and the witness, all together; ``amnesias``: how many of these lose what they had.
    ``alarms``: how often a wait for somebody ends before he is heard (lease, promise, silence, round,
    witness).
    ``witness``: how many there are.  ``overrides``: how often a person makes a host the owner.
    ``paired``: begin with both in sync and the witness voting; else with the first grant.  ``prompt``:
    heartbeats and their answers are not under way for long.
    """

    terms: int = 3
    epochs: int = 3
    ballots: int = 2
    crashes: int = 2
    amnesias: int = 1
    alarms: int = 4
    moves: int = 1
    witness: int = 1
    paired: bool = True
    prompt: bool = True
    overrides: int = 0


class Swap(NamedTuple):
    """A swap under way to a witness, or its answer under way back (``view``)."""

    witness: int
    version: int
    state: AcceptorState
    view: WitnessView | None


class Draft:
    """A world that is being changed; `sealed` makes a value of it."""

    __slots__ = (
        "agreed",
        "alarms",
        "amnesias",
        "answers",
        "beats",
        "crashes",
        "disks",
        "hosts",
        "lacking",
        "leases",
        "moves",
        "orphans",
        "overrides",
        "running",
        "stores",
        "swaps",
        "votes",
    )

    def __init__(self, world: World) -> None:
        self.hosts = [world[0], world[1]]
        self.disks = [world[2], world[3]]
        self.beats = [world[4], world[5]]  # by sender
        self.answers = [world[6], world[7]]  # by sender
        self.swaps = [world[8], world[9]]
        (
            self.running,
            self.lacking,
            self.leases,  # the host may have a lease that was promised, or may yet get it
            self.votes,  # messages of rounds, as a set of bits
            self.stores,  # what the witnesses hold
            self.orphans,  # swaps that their hosts gave up, as a set of bits
            self.agreed,  # grants that anybody took for decided
            self.crashes,
            self.amnesias,
            self.alarms,
            self.moves,
            self.overrides,
        ) = world[10:]

    def sealed(self) -> World:
        """As a value."""
        return (
            *self.hosts,
            *self.disks,
            *self.beats,
            *self.answers,
            *self.swaps,
            self.running,
            self.lacking,
            self.leases,
            self.votes,
            self.stores,
            self.orphans,
            self.agreed,
            self.crashes,
            self.amnesias,
            self.alarms,
            self.moves,
            self.overrides,
        )
