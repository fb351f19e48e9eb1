"""Faults of disks: one fails or hangs for a while, or is empty when it is back; or all of a host's are new,
or put back to what they were.

What a pair cannot live through is not done to it: the last replica that has everything stays.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from pairsync.core.messages import Condition
from pairsync.core.units import NS_PER_MS, NS_PER_S
from pairsync.testing.sim.media import Stores
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
COPIES_MAX = 3


def _is_behind(copy: list[Stores], other: GrantHost) -> bool:
    """Whether the replicas of ``other`` are newer, and can be told to be."""
    mine = [stores.metadata.superblock.lineage for stores in copy]
    theirs = [medium.stores.metadata.superblock.lineage for medium in other.media]
    if any(not old or not new or old[0] not in new for old, new in zip(mine, theirs, strict=True)):
        return False
    return any(
        old[0] != new[0] or medium.stores.digests.given > _reached(stores)
        for old, new, medium, stores in zip(mine, theirs, other.media, copy, strict=True)
    )


def _reached(stores: Stores) -> int:
    block, metadata = stores.metadata.superblock, stores.metadata
    return block.parted or max(metadata.first_generation, stores.digests.given, block.lineage[0].epoch)


class DiskFaults:
    """See the module."""

    def __init__(self, world: GrantWorld) -> None:
        self._world = world
        self._clock = world.clock
        self._random = world.random
        self._ambushes = Random(world.seed)  # noqa: S311 - likewise; its own, for most seeds have none
        self._copies: dict[int, list[list[Stores]]] = {}  # of the disks of each host

    # ------------------------------------------------------------------ copies

    def back_up(self, owner: GrantHost) -> None:
        """A copy of its disks is made as it serves, and the other host has everything."""
        if owner.serves and not owner.sick and self.is_spare(owner):
            copies = self._copies.setdefault(owner.index, [])
            copies.append([medium.stores.copy() for medium in owner.media])
            del copies[:-COPIES_MAX]

    def copy_for(self, host: GrantHost) -> list[Stores] | None:
        """A copy that can be told from its disks as they are, if the other host could serve instead."""
        world, other = self._world, self._world.hosts[1 - host.index]
        if world.overridden or world.guest.lags or not other.up or not self.is_spare(host):
            return None
        if not all(each.digests for each in world.profile.options):  # no volume's copy could be told for sure
            return None
        told = [copy for copy in self._copies.get(host.index, []) if _is_behind(copy, other)]
        return self._random.choice(told) if told else None

    def roll_back(self, host: GrantHost, copy: list[Stores]) -> None:
        """That host, which is down, gets its disks as they were."""
        for medium, stores in zip(host.media, copy, strict=True):
            medium.stores = stores.copy()
        self._world.checker.replaced_ns[host.index] = self._clock.now
        self._world.checker.rolled_back[host.index] = False
        host.digests_settled = True

    # ------------------------------------------------------------------ other disks, and sick ones

    def replace(self, host: GrantHost) -> None:
        """That host, which is down, gets new disks."""
        for index in range(len(host.media)):
            self._swap(host, index)
        host.digests_settled = True

    def _swap(self, host: GrantHost, index: int) -> None:
        """An empty disk in the place of that one, which nobody has open."""
        host.media[index] = Medium(blank_stores(index, self._world.profile.sizes_bytes[index]))
        self._world.checker.replaced(host)
        self._copies.pop(host.index, None)
        self._world.checker.replaced_ns[host.index] = self._clock.now

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
        """That host is about to serve the guest: if it was moved there, maybe the disk fails at once."""
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
        if other.index in world.checker.rolled_back:  # it has old disks, and this one alone has what is newer
            return False
        blocks = [each.stores.metadata.superblock for each in other.media]
        return all(each.condition is Condition.CONSISTENT for each in blocks)

    def cure(self, host: GrantHost, medium: Medium) -> None:
        """It works."""
        if medium.sick:
            medium.sick = ""
            self._world.trace.note(host.name, "works-again")
            host.wake()
