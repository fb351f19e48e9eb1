"""What a run has reached: faults in states, plans and rules, states of the write-intent log at crashes.

A simulator that reports no failure has shown something only about what it has reached.  Every fault is
counted together with the phase of the peer of each volume at that moment; a set of seeds that has not reached
every combination that `required` names has failed, and says which are missing.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pairsync.core.standing import Phase

from .profile import FAULTS

if TYPE_CHECKING:
    from .world import World

__all__ = ["Coverage", "required"]

_ALL = tuple(Phase)
_LASTING = (Phase.ABSENT, Phase.PREPARING, Phase.SYNCING, Phase.ADOPTING, Phase.IN_SYNC)

_WHERE: dict[str, tuple[Phase, ...]] = {
    # Where a fault is not required it cannot strike (nothing is written to the standby while it is absent),
    # or it needs a certain job in a phase of a millisecond and comes up in a thousand seeds, not in each
    # five hundred.
    "slow-link": tuple(phase for phase in Phase if phase is not Phase.BEHIND),
    "slow-disk-active": tuple(phase for phase in Phase if phase is not Phase.BEHIND),
    "slow-disk-standby": tuple(phase for phase in Phase if phase is not Phase.BEHIND),
    "hang-disk-active": tuple(phase for phase in Phase if phase is not Phase.BEHIND),
    "hang-disk-standby": tuple(phase for phase in Phase if phase is not Phase.BEHIND),
    "flip-active": _LASTING,
    "flip-standby": _LASTING,
    "digest-active": (Phase.ABSENT, Phase.IN_SYNC),
    "digest-standby": (Phase.ABSENT, Phase.IN_SYNC),
    "misdirect-active": (Phase.IN_SYNC,),  # else what it writes has one copy only
    "misdirect-standby": (Phase.SYNCING, Phase.ADOPTING, Phase.IN_SYNC),
    "eio-active": _LASTING,
    "enospc-active": _LASTING,
    "journal-fails": _LASTING,
    "eio-standby": (Phase.SYNCING, Phase.ADOPTING, Phase.IN_SYNC),
    "enospc-standby": (Phase.SYNCING, Phase.ADOPTING, Phase.IN_SYNC),
    "flush-fails-active": (Phase.ABSENT, Phase.SYNCING, Phase.IN_SYNC),
    "flush-fails-standby": (Phase.SYNCING, Phase.ADOPTING, Phase.IN_SYNC),
    "metadata-fails-active": (Phase.ABSENT, Phase.SYNCING, Phase.CONFIRMING, Phase.IN_SYNC),
    "metadata-fails-standby": (Phase.ABSENT, Phase.PREPARING, Phase.ADOPTING),
    "read-eio-active": (Phase.SYNCING,),
    "replace-active": (Phase.ABSENT, Phase.IN_SYNC),
    "replace-standby": tuple(phase for phase in Phase if phase is not Phase.BEHIND),
    "rollback-standby": _LASTING,
    "rollback-active": _LASTING,
    "forget-dirty": (),  # while the active is down: see RULES
    # A person does it, at no particular moment.
    "power-in-turn": (Phase.ABSENT, Phase.SYNCING, Phase.IN_SYNC),
    "wrong-active": (Phase.ABSENT, Phase.IN_SYNC),
    "swap-volumes": (Phase.ABSENT,),
    "strange-volume": (Phase.ABSENT,),
    "resized-volume": (Phase.ABSENT,),
    "grow": _LASTING,
}

MODES = ("mode:full", "mode:incremental", "mode:nothing")
RULES = (
    "rule:standby-blank",
    "rule:newest-generations-equal",
    "rule:peer-newest-in-local-history",
    "rule:resume-interrupted",
    "rule:map-does-not-reach-back",
    "rule:interrupted-map-lost",
    "rule:interrupted-for-another",
    "rule:fell-behind",
    "refused:active-behind",
    "refused:active-rolled-back",
    "refused:rolled-back-apart",
    "refused:another-volume",
    "refused:size-differs",
    "refused:two-owners",
    "refused:volumes-differ",
    "refused:diverged",
    "refused:interrupted-unrelated",
    "refused:peer-failed",
    "operator-gives-standby-up",
    "rolled-back-within-a-generation",
    "forget-dirty@down",
    "scrub",
    "damage-found:active",
    "damage-found:standby",
    "damage-read",
    "digest-told:digest",
    "grown",
    "no-room",
    "grows-first:active",
    "grows-first:standby",
)
GENERATIONS = (
    "crash-active@generation:open",
    "crash-active@generation:draining",
    "crash-active@generation:flushing",
    "crash-active@generation:saving",
)


def required() -> list[str]:
    """What a set of seeds has to reach."""
    names = [f"{fault}@{phase.value}" for fault in FAULTS for phase in _WHERE.get(fault, _ALL)]
    return [*names, *MODES, *RULES, *GENERATIONS]


class Coverage:
    """Counts for one seed."""

    __slots__ = ("_world", "counts")

    def __init__(self, world: World) -> None:
        self._world = world
        self.counts: Counter[str] = Counter()

    def fault(self, kind: str, volume: int | None = None) -> None:
        """A fault strikes now: in one volume, or in all."""
        session = self._world.active.session
        if session is None:
            self.counts[f"{kind}@down"] += 1
            return
        sources = session.sources if volume is None else session.sources[volume : volume + 1]
        for source in sources:
            self.counts[f"{kind}@{source.standing.phase.value}"] += 1

    def reach(self, name: str) -> None:
        """Something else that is worth counting."""
        self.counts[name] += 1
