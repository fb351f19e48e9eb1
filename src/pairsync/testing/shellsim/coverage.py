"""What a run has reached: faults in states, plans, paths that took over, deaths in the middle of a step.

A simulator that reports no failure has shown something only about what it has reached: a set of seeds that
has not reached everything in `required` has failed, and says what is missing.  The finer states are the core
simulator's matter; here it is what only the real shell has.
"""

from __future__ import annotations

from pairsync.core.standing import Phase

from .profile import FAULTS

__all__ = ["required"]

_ESSENTIAL = (Phase.ABSENT, Phase.SYNCING, Phase.IN_SYNC)

_WHERE: dict[str, tuple[Phase, ...]] = {
    "eio-active": (Phase.ABSENT, Phase.IN_SYNC),
    "enospc-active": (Phase.ABSENT, Phase.IN_SYNC),
    "eio-standby": (Phase.IN_SYNC,),  # a standby's disk is written only by what a session brings
    "enospc-standby": (Phase.IN_SYNC,),
    "flush-fails-standby": (Phase.IN_SYNC,),
    "flush-fails-active": (Phase.ABSENT, Phase.IN_SYNC),
    "metadata-fails-standby": (Phase.PREPARING, Phase.ADOPTING),  # when it records what it is
    "metadata-fails-active": (Phase.ABSENT, Phase.IN_SYNC),
    "read-eio-active": (Phase.SYNCING,),
    "flip-active": (Phase.IN_SYNC,),  # at other times no good copy would be left
    "flip-standby": (Phase.IN_SYNC,),
    "misdirect-active": (Phase.IN_SYNC,),
    "misdirect-standby": (Phase.IN_SYNC,),
    "replace-standby": (Phase.ABSENT,),
    "slow-link": (Phase.IN_SYNC,),
    "stop-active": (Phase.ABSENT, Phase.IN_SYNC),
    "stop-standby": (Phase.ABSENT, Phase.IN_SYNC),
}

OTHERS = (
    "mode:full",
    "mode:incremental",
    "in-sync",
    "behind",
    "died-inside:active",
    "died-inside:standby",
    "took-over",
    "level:sync",
    "level:async",
    "session-lost",
    "reopened",
    "way-back",
    "own-kept",
    "damage-found:active:scrub",
    "damage-found:standby:scrub",
    "grown",
    "grows-first:active",
    "grows-first:standby",
)
"""``took-over``: a session went on over another path; ``died-inside``: in the middle of a disk operation;
``reopened``: a standby has opened its disks anew; ``way-back``: a half resynced standby was put back;
``own-kept``: what it had written alone was overwritten; ``grows-first``: a host had the smaller volume."""


def required() -> list[str]:
    """What a set of seeds has to reach."""
    return [f"{fault}@{phase.value}" for fault in FAULTS for phase in _WHERE.get(fault, _ESSENTIAL)] + [
        *OTHERS
    ]
