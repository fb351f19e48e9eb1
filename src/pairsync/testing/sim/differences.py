"""Where the two disks of a volume differ, kept up to date block by block, and whether that is known.

The rule ``dirty-superset`` (DESIGN rule 7): a block whose contents differ on the two disks - as read, or as
either disk may remember it after a power cut - is in the active host's dirty set, and in the set that it
would recover if it crashed now.  It holds from the moment at which a standby is written to.  A standby's disk
that was swapped is told apart by its lineage, or by its digests only, and so is a dirty map that has lost
bits: then the rule rests until a session has agreed on a plan, or has proven the standby.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pairsync.core.dirty import PAGE_BLOCKS, DirtyMap
from pairsync.core.dirtyview import DirtyView

from .disk import SECTORS_PER_BLOCK

if TYPE_CHECKING:
    from .media import Replica
    from .world import World

__all__ = ["Differences"]


class Differences:
    """Of all volumes."""

    def __init__(self, world: World, volume_count: int) -> None:
        self._world = world
        self._unequal = [0] * volume_count  # a bit for each block that differs in any of the four contents
        self._tracked = [True] * volume_count  # the standby's disk is the one that the dirty set speaks of
        self._swapped_in = [0] * volume_count  # the link's session when a disk was swapped last

    def _pair(self, volume: int) -> tuple[Replica, Replica]:
        world = self._world
        return world.active.replicas[volume], world.standby.replicas[volume]

    def _fail(self, rule: str, volume: int, text: str) -> None:
        self._world.fail(rule, f"volume {volume}: {text}")

    # ------------------------------------------------------------------ which disks are spoken of

    def tracked(self, volume: int) -> bool:
        """Whether the dirty set has to hold every difference."""
        return self._tracked[volume]

    def begin(self, volume: int, *, tracked: bool) -> None:
        """How the seed begins."""
        self._tracked[volume] = tracked
        self.recompute(volume)

    def swapped(self, volume: int) -> None:
        """A disk was replaced by another one."""
        self._tracked[volume] = False
        self._swapped_in[volume] = self._world.link.last_session
        self.recompute(volume)

    def found(self, volume: int, *, tracked: bool) -> None:
        """The disk that was swapped is there again."""
        self._tracked[volume] = tracked
        self.recompute(volume)
        self.check(volume)

    def from_before(self, volume: int, session: int) -> bool:
        """Whether that session of the link began before a disk was swapped."""
        return session <= self._swapped_in[volume]

    def agreed(self, volume: int) -> None:
        """A plan was agreed; where digests are kept: the standby has been proven."""
        if not self._tracked[volume] and not self.from_before(volume, self._world.link.session_of(0)):
            self._tracked[volume] = True
            self.check(volume)

    # ------------------------------------------------------------------ contents

    def differs(self, volume: int, block: int) -> bool:
        """Whether the block is not equal and durable on both disks."""
        return bool(self._unequal[volume] >> block & 1)

    def written(self, volume: int, start: int, stop: int) -> None:
        """Sectors of a disk have changed, or have become durable."""
        active, standby = self._pair(volume)
        first, last = start // SECTORS_PER_BLOCK, (stop - 1) // SECTORS_PER_BLOCK + 1
        low, high = first * SECTORS_PER_BLOCK, last * SECTORS_PER_BLOCK
        ours, theirs = active.disk, standby.disk
        content = ours.content[low:high]
        if (
            content == theirs.content[low:high]
            and content == ours.durable[low:high]
            and content == theirs.durable[low:high]
        ):
            self._unequal[volume] &= ~(((1 << (last - first)) - 1) << first)
            return
        found = 0  # bit 0 is the first block: the volume's own mask is long
        for block in range(first, last):
            low = block * SECTORS_PER_BLOCK
            high = low + SECTORS_PER_BLOCK
            content = ours.content[low:high]
            if (
                content != theirs.content[low:high]
                or content != ours.durable[low:high]
                or content != theirs.durable[low:high]
            ):
                found |= 1 << (block - first)
        before = self._unequal[volume]
        known = before >> first & ((1 << (last - first)) - 1)
        self._unequal[volume] = before ^ (known ^ found) << first
        fresh = (found & ~known) << first
        if fresh and self._tracked[volume]:
            if fresh & (fresh - 1):
                self._check_mask(volume, fresh)
            else:  # one block: the usual case
                self._check_block(volume, fresh.bit_length() - 1)

    def recompute(self, volume: int) -> None:
        """A disk was swapped, or lost its cache: compare all of it."""
        self._unequal[volume] = self._compare(volume)

    def _compare(self, volume: int) -> int:
        active, standby = self._pair(volume)
        ours, theirs = active.disk, standby.disk
        count = len(ours.content)
        suspects = [(0, count)]
        for step in (64 * SECTORS_PER_BLOCK, SECTORS_PER_BLOCK):
            ranges, suspects = suspects, []
            for start, stop in ranges:
                for low in range(start, stop, step):
                    high = min(low + step, stop)
                    content = ours.content[low:high]
                    if (
                        content != theirs.content[low:high]
                        or content != ours.durable[low:high]
                        or content != theirs.durable[low:high]
                    ):
                        suspects.append((low, high))
        found = 0
        for low, _ in suspects:
            found |= 1 << low // SECTORS_PER_BLOCK
        return found

    def _check_block(self, volume: int, block: int) -> None:
        """A block that has just become different: is it known?"""
        active, standby = self._pair(volume)
        if standby.metadata.covers(block):  # it wrote the block in an earlier role, and will say so
            return
        session = self._world.active.session
        if session is not None and not session.sources[volume].tracker.is_dirty(block):
            self._fail("dirty-superset", volume, f"block {block} differs and is not in the dirty set")
        if not active.metadata.covers(block):
            self._fail("dirty-superset", volume, f"block {block} differs and a crash now would forget it")

    def check(self, volume: int) -> None:
        """Every block that differs is known to differ."""
        if self._tracked[volume] and self._unequal[volume]:
            self._check_mask(volume, self._unequal[volume])

    def _check_mask(self, volume: int, unequal: int) -> None:
        active, standby = self._pair(volume)
        unequal &= ~_mask(standby.metadata.recovered())
        session = self._world.active.session
        if session is not None:
            forgotten = unequal & ~_mask(session.sources[volume].tracker.dirty())
            if forgotten:
                self._fail(
                    "dirty-superset", volume, f"{_blocks(forgotten)} differ and are not in the dirty set"
                )
        forgotten = unequal & ~_mask(active.metadata.recovered())
        if forgotten:
            self._fail(
                "dirty-superset", volume, f"{_blocks(forgotten)} differ and a crash now would forget them"
            )

    def check_all(self, volume: int) -> None:
        """Compare everything, the slow way."""
        unequal = self._compare(volume)
        if unequal != self._unequal[volume]:
            lost = _blocks(unequal ^ self._unequal[volume])
            self._fail("checker", volume, f"the incremental comparison lost {lost}")
        self.check(volume)


def _mask(dirty: DirtyMap | DirtyView) -> int:
    """A bit for each block."""
    mask = 0
    for number in dirty.page_numbers():
        mask |= int.from_bytes(dirty.page_bytes(number), "little") << number * PAGE_BLOCKS
    return mask


def _blocks(mask: int) -> str:
    shown = [str(block) for block in range(mask.bit_length()) if mask >> block & 1]
    return f"blocks {' '.join(shown[:8])}{' ...' if len(shown) > 8 else ''}"
