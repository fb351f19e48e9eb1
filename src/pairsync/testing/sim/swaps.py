"""Disks that are swapped for others, and dirty maps that have lost bits: nobody has told the hosts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pairsync.core.effects import Apply
from pairsync.core.messages import Generation, Role, Write
from pairsync.core.units import BLOCK_BYTES

from .host import SimHost
from .media import Stores
from .operators import Operators
from .start import blank_replica

if TYPE_CHECKING:
    from .media import Replica
    from .world import World

__all__ = ["Swaps"]

BACKUPS_MAX = 4


class _Backup:
    """A copy of all volumes of a host: as it died, or of the active one when its peer was in sync."""

    __slots__ = ("digests_true", "floors", "volumes")

    def __init__(self, world: World, host: SimHost) -> None:
        self.volumes = [replica.stores.copy() for replica in host.replicas]
        # A host that died may keep a digest of a write that its disk has not, or the other way round: that is
        # made up for by the active's dirty map, which does not know of a restored copy.
        self.digests_true = not any(
            stores.digests.wrong_in(stores.disk, range(stores.digests.block_count)) for stores in self.volumes
        )
        self.floors = [history.copy_floors() for history in world.guest.histories]


class Swaps(Operators):
    """See the module."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._backups: dict[str, list[_Backup]] = {"active": [], "standby": []}
        # The active was rolled back, or replaced: the standby may be the newer one.
        self._restored_active = False
        self._forgotten = False  # it was rolled back, and the standby has what it has forgotten
        self._actions |= {
            "replace-active": self._replace_active,
            "replace-standby": self._replace_standby,
            "rollback-standby": lambda: self._roll_back(world.standby),
            "rollback-active": lambda: self._roll_back(world.active),
            "forget-dirty": self._forget_dirty,
        }

    def _back_up(self, host: SimHost) -> None:
        if self._mislaid is not None or any(
            self._world.damage.rotten(host, replica, saved=True) for replica in host.replicas
        ):
            return
        if self._random.random() < 0.3 and f"rollback-{host.name}" in self._world.profile.faults:
            backups = self._backups[host.name]
            backups.append(_Backup(self._world, host))
            if len(backups) > BACKUPS_MAX:
                backups.pop(self._random.randrange(BACKUPS_MAX))

    def begins(self, volume: int) -> None:
        """The active host is about to copy, or to prove."""
        if self._forgotten:
            self._world.fail("overwritten", f"volume {volume}: the standby has what the active has forgotten")

    def _replace_standby(self) -> None:
        """Its disks are lost: new ones, blank."""
        self._forgotten = False
        world = self._world
        standby = world.standby
        self._count("replace-standby")
        if standby.up:
            self._kill(standby, power=self._random.random() < 0.5)
        world.damage.swapped()
        for replica in standby.replicas:
            size = world.profile.sizes_bytes[replica.index]  # what it was made with, whatever it has become
            replica.stores = blank_replica(world, replica.index, size)
            world.checker.swapped(standby, replica.index)
        self._backups["standby"].clear()

    def _replace_active(self) -> None:
        """Its disks are lost, and it begins with blank ones: what the guest had is on the standby only."""
        world = self._world
        active = world.active
        self._count("replace-active")
        if active.up:
            self._kill(active, power=self._random.random() < 0.5)
        world.damage.swapped()
        for replica in active.replicas:
            size = world.profile.sizes_bytes[replica.index]
            replica.stores = blank_replica(world, replica.index, size)
            world.guest.histories[replica.index].nothing_owed()
            world.checker.swapped(active, replica.index)
        self._backups["active"].clear()
        self._restored_active = True

    def _roll_back(self, host: SimHost) -> None:
        """All its volumes are restored from a backup.

        Only from one that can be told apart (`_told_apart`).
        """
        world = self._world
        self._forgotten = self._forgotten and host.role is Role.ACTIVE
        usable = [backup for backup in self._backups[host.name] if self._told_apart(host, backup)]
        if not usable:
            return
        self._count(f"rollback-{host.name}")
        if host.up:
            self._kill(host, power=True)
        backup = self._random.choice(usable)
        if not self._told_apart(host, backup):
            return
        world.damage.swapped()
        for replica, stores in zip(host.replicas, backup.volumes, strict=True):
            replica.stores = stores.copy()
            if host.role is Role.ACTIVE:
                world.guest.histories[replica.index].restore_floors(backup.floors[replica.index])
            world.checker.swapped(host, replica.index)
        if host.role is Role.ACTIVE:
            self._restored_active = True
            self._forgotten = any(
                _behind(mine.stores, theirs.stores)
                for mine, theirs in zip(world.active.replicas, world.standby.replicas, strict=True)
            )

    def _told_apart(self, host: SimHost, backup: _Backup) -> bool:
        """By digests if it is the standby's (rule 8), else by lineage or milestones: where the standby was
        given none since, there is nothing that the original had and the backup lacks but the last writes.

        Nor by a superblock that the standby could not write, though its disk may have it: nothing was done
        yet that this one allows, and the standby goes back to the one before.
        """
        world = self._world
        if host.role is Role.STANDBY and world.profile.options.digests and backup.digests_true:
            return True
        if host.role is Role.ACTIVE and any(replica.unsettled for replica in world.standby.replicas):
            return False
        for index, stores in enumerate(backup.volumes):
            old = stores.metadata.superblock
            active = world.active.replicas[index].metadata.superblock
            standby = world.standby.replicas[index].metadata.superblock
            if host.role is Role.STANDBY:
                mine = [old.sync_target, *old.lineage[:1]]
                if any(_reached(active.lineage, active.map_base, each) for each in mine if each is not None):
                    return False
            elif not old.lineage or old.lineage[0] == standby.sync_target:
                return False
            elif old.lineage[0] in standby.lineage[:1]:
                if not _behind(stores, world.standby.replicas[index].stores):
                    return False
                world.coverage.reach("rolled-back-within-a-generation")
            elif old.lineage[0] not in active.lineage and not world.profile.options.digests:
                # Back to what it was before it had been put back: the map knows nothing of what was written
                # in between, and the standby may have it, in a generation that both lives share.
                theirs = [standby.sync_target, *standby.lineage[:1]]
                if any(_reached(old.lineage, old.map_base, each) for each in theirs if each is not None):
                    return False
        return True

    def _forget_dirty(self) -> None:
        """Bits of the active's dirty map are cleared on its disk, by hand or by a bug: digests must tell.

        Of blocks that are durable, and whose digests are true, on either disk, and of which nothing is on its
        way to the standby's: what a crash has left there, or will, only a scrub can tell.
        """
        world = self._world
        if not world.profile.options.digests:
            return
        if world.active.up:
            self._kill(world.active, power=self._random.random() < 0.5)
        for mine, theirs in zip(world.active.replicas, world.standby.replicas, strict=True):
            intents = mine.metadata.intents()
            dirty = [block for run in mine.metadata.recovered().runs() for block in range(*run)]
            doubtful = {*mine.doubtful(dirty), *theirs.doubtful(dirty), *self._unapplied(theirs)}
            blocks = [
                block
                for block in dirty
                if block not in doubtful and block not in intents and self._random.random() < 0.5
            ]
            if blocks:
                mine.metadata.forget(blocks)
                world.coverage.fault("forget-dirty", mine.index)
                world.checker.differences.swapped(mine.index)

    def _unapplied(self, theirs: Replica) -> Iterator[int]:
        """Blocks that the standby is about to write, or will be if it hears of it."""
        sent = [each for each in self._world.link.on_its_way(1) if isinstance(each, Write)]
        batches = [each.ops for each in sent if each.volume == theirs.index]
        batches += [job.ops for job in theirs.lane.jobs if isinstance(job, Apply)]
        for op in itertools.chain(*batches):
            yield from range(op.offset // BLOCK_BYTES, -(-(op.offset + op.length) // BLOCK_BYTES))


def _behind(mine: Stores, theirs: Stores) -> bool:
    """Whether a standby with ``theirs`` has what an active host with ``mine`` has forgotten."""
    old, standby = mine.metadata.superblock, theirs.metadata.superblock
    if not old.lineage or old.lineage[0] not in standby.lineage:
        return False
    if old.lineage[0] != standby.lineage[0] or standby.sync_target not in {None, *old.lineage}:
        return True
    reached = old.parted or max(mine.metadata.first_generation, mine.digests.given, old.lineage[0].epoch)
    return theirs.digests.given > reached


def _reached(lineage: tuple[Generation, ...], base: Generation | None, generation: Generation) -> bool:
    """Whether the map that begins with ``base`` is taken to hold all since ``generation``."""
    if base is None or base not in lineage or generation not in lineage:
        return False
    return lineage.index(base) >= lineage.index(generation)
