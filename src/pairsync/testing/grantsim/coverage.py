"""What a run has reached: each fault in each state of the pair that it can strike, and what came of it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from .profile import FAULTS

if TYPE_CHECKING:
    from .world import GrantWorld

__all__ = ["STATES", "GrantCoverage", "required"]

STATES = ("both", "both-sole", "alone", "changing")
"""Both are in sync, and two of three may go on; both, and the owner decides alone; one is; nobody serves."""

_WHERE: dict[str, tuple[str, ...]] = {
    "move": ("both", "both-sole"),
    "upgrade-owner": ("both", "both-sole", "alone"),
    "witness-after-peer": ("both", "both-sole"),
    "witness-preferred-down": ("both",),
    "witness-rolled-back": ("both",),  # both hosts have to have seen it farther: rare in other states
    "disks-rolled-back": ("both", "both-sole"),
    "override": ("both", "both-sole", "alone", "changing"),
}

OUTCOMES = (
    *(
        "guard-kills",
        "took-over",
        "moved",
        "returned",
        "hands-over",
        "hands-over-unmet",
        "falls-ill",
        "begins-ill",
        "is-well-again",
        "swapped",
        "rolled-back-told",
        "rolled-back-given-up",
        "async-lost",
    ),
    *("drill:goes-on", "drill:moves", "drill:stops", "drill:cut-cable"),
    *("rule:standby-still-counts", "rule:went-on-alone"),
    *("versions-differ", "refused:versions", "refused:witness-versions"),
)


def required() -> list[str]:
    """What a set of seeds has to reach."""
    names = [f"{fault}@{state}" for fault in FAULTS for state in _WHERE.get(fault, STATES)]
    return [*names, *OUTCOMES]


class GrantCoverage:
    """Counts for one seed."""

    def __init__(self, world: GrantWorld) -> None:
        self._world = world
        self.counts: Counter[str] = Counter()

    def state(self) -> str:
        """Of the pair, now."""
        world = self._world
        grant = world.checker.newest
        if grant is None or not any(host.serves for host in world.hosts):
            return "changing"
        if len(grant.in_sync) == 1:
            return "alone"
        return "both-sole" if grant.sole is not None else "both"

    def fault(self, kind: str) -> None:
        """It strikes now."""
        self.counts[f"{kind}@{self.state()}"] += 1

    def reach(self, name: str) -> None:
        """Something else that is worth counting."""
        self.counts[name] += 1
