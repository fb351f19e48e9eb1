"""Faults of disks: one fails or hangs for a while, or is empty when it is back; or all of a host's are new.

What a pair cannot live through is not done to it: the last replica that has everything stays.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from pairsync.core.messages import Condition
from pairsync.core.units import NS_PER_MS, NS_PER_S
from pairsync.testing.sim.start import blank_stores

from .medium import FAILS, Medium

if TYPE_CHECKING:
    from .host import GrantHost
    from .world import GrantWorld

__all__ = ["DiskFaults"]

AMBUSHED = 0.5
"""Of guests that were moved: their new owner's disk fails, in seeds that have that fault."""
UNMET_NS_MAX = 50 * NS_PER_MS
"""So long at most after the change: about what the replicas take to meet again."""


class DiskFaults:
    """See the module."""

    def __init__(self, world: GrantWorld) -> None:
        self._world = world
        self._clock = world.clock
        self._random = world.random
        self._ambushes = Random(world.seed)  # noqa: S311 - likewise; its own, for most seeds have none

    def replace(self, host: GrantHost) -> None:
        """That host, which is down, gets new disks."""
        for index in range(len(host.media)):
            self._swap(host, index)
        host.digests_settled = True

    def _swap(self, host: GrantHost, index: int) -> None:
        """An empty disk in the place of that one, which nobody has open."""
        host.media[index] = Medium(blank_stores(index, self._world.profile.sizes_bytes[index]))
        self._world.checker.replaced(host)

    def sicken(self, host: GrantHost, how: str, lasts_ns: int, *, swaps: bool = False) -> bool:
        """One of its disks fails, or hangs, for a while; ``swaps``: an empty one comes back."""
        medium = self._random.choice(host.media)
        if medium.sick:
            return False
        medium.sick = how
        self._world.trace.note(host.name, how, host.media.index(medium))
        self._world.changed()
        self._clock.after(lasts_ns, self._heals, host, medium, swaps)
        return True

    def ambush(self, host: GrantHost) -> None:
        """That host has begun to serve the guest: if it was moved there, maybe the disk fails at once."""
        arbiter, faults = host.arbiter, self._world.profile.faults
        if arbiter is None or not arbiter.decider.vouched or "disk-fails-owner" not in faults:
            return
        if self._ambushes.random() < AMBUSHED:
            self._clock.after(self._ambushes.randrange(UNMET_NS_MAX), self._spring, host, host.life)

    def _spring(self, host: GrantHost, life: int) -> None:
        if self._world.faults.active and host.life == life:
            self.sicken(host, FAILS, self._random.randrange(5 * NS_PER_S))

    def _heals(self, host: GrantHost, medium: Medium, swaps: bool) -> None:
        if not medium.sick or medium not in host.media:
            return  # the storm is over, or it was exchanged with all the others
        if swaps and self.is_spare(host) and not self._world.overridden:
            if host.up and not (host.plane is not None and host.plane.ill and host.plane.idle):
                self._clock.after(NS_PER_S, self._heals, host, medium, swaps)  # somebody has it open
                return
            self._world.coverage.reach("swapped")
            self._swap(host, host.media.index(medium))
        self.cure(host, medium)
        self._world.changed()

    def is_spare(self, host: GrantHost) -> bool:
        """Whether the other host has all that this one has."""
        world = self._world
        newest, other = world.checker.newest, world.hosts[1 - host.index]
        if newest is None or other.id not in newest.in_sync or other.sick:
            return False
        blocks = [each.stores.metadata.superblock for each in other.media]
        return all(each.condition is Condition.CONSISTENT for each in blocks)

    def cure(self, host: GrantHost, medium: Medium) -> None:
        """It works."""
        if medium.sick:
            medium.sick = ""
            self._world.trace.note(host.name, "works-again")
            host.wake()
