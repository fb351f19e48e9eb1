"""Wishes: what the latest wish of the arbiter asks of a guest in the role that it has.

The arbiter wishes (`Own`, `Stop`, `Yield`); a change of the role takes as long as disks and peer do.  One who
follows makes one change after the other, always by the latest wish: the shell (``guest.arbitration``), and
the simulator of grants.
"""

from __future__ import annotations

import enum
from typing import Final, TypeAlias

from .arbitration import Own, Stop, Yield
from .grants import Grant, HostId
from .timing import Timing
from .units import NS_PER_S

__all__ = [
    "CLOSE_NS",
    "MOVE_NS",
    "Step",
    "Wish",
    "end_within_ns",
    "halt_within_ns",
    "has_handed_over",
    "step_of",
]

CLOSE_NS: Final = 30 * NS_PER_S
"""How long closing waits for flushes and metadata before the volumes are left as after a crash."""

MOVE_NS: Final = NS_PER_S
"""So long the guest stands still, before it moves, for what has been asked; what is not done by then is done
by the next owner, or after all here (``guest.roles.halt``)."""

Wish: TypeAlias = Own | Stop | Yield


class Step(enum.Enum):
    """A change of the guest's role."""

    NOTHING = "nothing"
    SERVE = "serve"
    SERVE_ANEW = "serve-anew"
    """Halt in order, and serve under a higher term: after an override of the host that serves, so that both
    replicas record the term, as with any owner."""
    STOP = "stop"
    STAND_BY = "stand-by"


def step_of(wish: Wish, *, active: bool, halted: bool, term: int) -> Step:
    """What ``wish`` asks of a guest that is ``active`` or a standby, perhaps ``halted``.

    ``term``: of its session.
    """
    match wish:
        case Stop():
            return Step.STOP
        case Own(grant=grant) if active and not halted:
            return Step.NOTHING if term >= grant.term else Step.SERVE_ANEW
        case Own():
            return Step.SERVE
        case Yield():
            return Step.STAND_BY if active or halted else Step.NOTHING


def has_handed_over(grant: Grant, host: HostId, *, active: bool, term: int) -> bool:
    """Whether the replica of ``host``, which gives way to ``grant``, counts as in sync under its term.

    It has all that was acknowledged until then: it was the ``active`` one, under the ``term`` before.
    """
    return active and host in grant.in_sync and grant.term == term + 1


def halt_within_ns(until_ns: int | None, now_ns: int, timing: Timing) -> int:
    """How long an orderly halt may take under a lease ``until_ns``; None: there is none.

    The guard does not wait for it, and the lease may not be renewed meanwhile.
    """
    if until_ns is None:
        return MOVE_NS
    return min(MOVE_NS, max(until_ns - timing.stop_ns - now_ns, 0))


def end_within_ns(timing: Timing, *, goes_on: bool) -> int:
    """How long an orderly end of the host may take, whose guest stands still meanwhile.

    ``goes_on``: the peer has all and takes over then; it would not wait longer for a host that had died.
    """
    return min(CLOSE_NS, timing.failover_ns) if goes_on else CLOSE_NS
