"""What may fail, in which order, and what has to come of it.

**A** is the host on which the guest runs when a cell begins, **B** the other one; both names stay with their
hosts when the guest moves.  What has to come of a failure is the model's word (`core.outlook.after`), applied
to the state that the failures before it have left.  The model knows roles, a cell knows hosts: `World` holds
the two together, and adds what the model leaves out, which all is of hosts that are still there:

* a cable between a host and the witness: the loss of the owner's makes the two agree that the owner decides
  alone, as the loss of the witness does; that of the standby's changes only what the pair says;
* a host that stands still is the owner lost.  Where somebody else could take over it has a lease, so its
  guard kills it, and whoever supervises hosts starts it again: it comes back by itself, as the standby or, if
  the other host could not take over, as what it was.
"""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass, replace
from itertools import permutations

from pairsync.core.outlook import Failure, Fate, State, after

__all__ = ["DELAYS_MS", "WHOLE", "Cell", "Fault", "Step", "World", "all_cells", "foreseen", "sample", "step"]


class Fault(enum.Enum):
    """What is made to fail.

    A **host** is its process, which is killed: its connections end, and its peer knows at once.  The
    **power** of a host takes its cables with it: it is silent, and others learn of it only as that lasts.
    """

    HOST_A = "host A"
    HOST_B = "host B"
    POWER_A = "power of A"
    POWER_B = "power of B"
    WITNESS = "witness"
    LINK = "link A-B"
    A_WITNESS = "link A-witness"
    B_WITNESS = "link B-witness"
    DISK_A = "disk of A"
    DISK_B = "disk of B"
    PAUSE = "pause of the active"


DELAYS_MS = (0, 50, 100, 200, 300, 400, 500)
"""The witness is killed so long after a host was, or lost its power."""


@dataclass(frozen=True, slots=True)
class Cell:
    """Failures in turn.

    ``delay_ms``: the second one comes so long after the first, whatever has become of that; None: when it
    has been dealt with.
    """

    faults: tuple[Fault, ...]
    delay_ms: int | None = None

    @property
    def name(self) -> str:
        """For people: ``host A, then witness``."""
        between = ", then " if self.delay_ms is None else f", {self.delay_ms} ms later "
        return between.join(fault.value for fault in self.faults)


@dataclass(frozen=True, slots=True)
class World:
    """A pair in which some things have failed."""

    active: str
    """``A`` or ``B``: where the guest runs, or ran last."""
    state: State

    @property
    def other(self) -> str:
        """The host that is not the active one."""
        return "B" if self.active == "A" else "A"


_ENDS = {"A": (Fault.HOST_A, Fault.POWER_A), "B": (Fault.HOST_B, Fault.POWER_B)}
"""What a host is gone after; it cannot be twice."""

WHOLE = World("A", State(in_sync=True, sole=False))
"""Nothing has failed."""


@dataclass(frozen=True, slots=True)
class Step:
    """What has to come of one failure.

    ``failure``: what the pair's own statement calls it; None if that does not speak of it.  ``fates``: what
    may become of the guest; one, but for failures that strike while another is dealt with.  ``then``: the
    pair when all that comes by itself has come.  ``restarted``: a host is killed by its guard and comes back.
    """

    failure: Failure | None
    fates: frozenset[Fate]
    then: World
    restarted: bool = False


def step(world: World, fault: Fault) -> Step:
    """What has to come of ``fault``."""
    active, state = world.active, world.state
    match fault:
        case Fault.PAUSE:
            return _paused(world)
        case Fault.A_WITNESS | Fault.B_WITNESS:
            if fault is (Fault.A_WITNESS if active == "A" else Fault.B_WITNESS):
                sole = state.sole or state.owner_asks
                then = replace(state, owner_asks=False, sole=sole)
            else:
                then = replace(state, standby_asks=False)
            return Step(None, frozenset({Fate.GOES_ON}), World(active, then))
        case Fault.HOST_A | Fault.HOST_B | Fault.POWER_A | Fault.POWER_B:
            owns = fault in _ENDS[active]
            failure = Failure.OWNER if owns else Failure.STANDBY
        case Fault.DISK_A | Fault.DISK_B:
            owns = fault is (Fault.DISK_A if active == "A" else Fault.DISK_B)
            failure = Failure.OWNER_DISK if owns else Failure.STANDBY_DISK
        case _:
            failure = Failure.WITNESS if fault is Fault.WITNESS else Failure.LINK
    fate, then = after(state, failure)
    return Step(failure, frozenset({fate}), World(world.other if fate is Fate.MOVES else active, then))


def _paused(world: World) -> Step:
    state = world.state
    fate, _ = after(state, Failure.OWNER)
    fates = frozenset({fate})
    if fate is Fate.MOVES:
        back = State(
            in_sync=True,
            sole=not state.standby_asks,
            owner_asks=state.standby_asks,
            standby_asks=state.owner_asks,
        )
        return Step(Failure.OWNER, fates, World(world.other, back), restarted=True)
    return Step(Failure.OWNER, fates, world, restarted=not state.sole)


def foreseen(cell: Cell) -> list[Step]:
    """What has to come of each failure of a cell that begins with nothing failed."""
    steps = [step(WHOLE, cell.faults[0])]
    for fault in cell.faults[1:]:
        steps.append(step(steps[-1].then, fault))
    if cell.delay_ms is None:
        return steps
    # The second one strikes while the first is dealt with: whether that still succeeds is a race, and if it
    # does not, the guest waits for either to return.
    return [replace(each, fates=steps[0].fates | {Fate.STOPS}) for each in steps]


def all_cells() -> list[Cell]:
    """The whole table: singles, ordered pairs, and those with the witness killed soon after a host."""
    singles = [Cell((fault,)) for fault in Fault]
    pairs = [Cell(faults) for faults in permutations(Fault, 2) if {*faults} not in map(set, _ENDS.values())]
    soon = [
        Cell((gone, Fault.WITNESS), delay_ms)
        for host in ("B", "A")
        for gone in _ENDS[host]
        for delay_ms in DELAYS_MS
    ]
    return [*singles, *pairs, *soon]


def sample(seed: int, count: int) -> list[Cell]:
    """All singles, and ``count`` of the other cells."""
    cells = all_cells()
    singles = [cell for cell in cells if len(cell.faults) == 1]
    others = [cell for cell in cells if cell not in singles]
    return [*singles, *random.Random(seed).sample(others, count)]  # noqa: S311 - reproducible on purpose
