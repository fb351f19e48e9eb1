"""What people do wrong: the wrong host made active, the wrong disks put into the standby.

All of it has to be refused with nothing changed, and to be as if it had never been once it is put right.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pairsync.core.messages import Condition, Role
from pairsync.core.units import NS_PER_S
from pairsync.errors import ArbitrationError
from pairsync.testing.swarm import Storm

from .host import SimHost
from .start import blank_replica

if TYPE_CHECKING:
    from .media import Stores
    from .world import World

__all__ = ["NEEDS_OWN_DISKS", "Operators"]

NOTICE_NS_MAX = 15 * NS_PER_S
"""How long it takes until somebody has noticed."""

NEEDS_OWN_DISKS = frozenset(
    {
        "forget-dirty",
        "replace-active",
        "grow",
        "replace-standby",
        "resized-volume",
        "rollback-active",
        "rollback-standby",
        "strange-volume",
        "swap-volumes",
        "wrong-active",
    }
)
"""Before any of these the standby gets its own disks back."""


class _Mislaid:
    """The standby's disks, while it has others."""

    __slots__ = ("applies_asked", "own", "tracked", "volumes")

    def __init__(self, own: list[Stores], volumes: list[int]) -> None:
        self.own = own
        self.volumes = volumes
        self.tracked: list[tuple[bool, bool]] = []  # what the checker knew of these
        self.applies_asked = 0  # of the whole host, when it was given the wrong ones


class Operators(Storm[SimHost]):
    """See the module."""

    def __init__(self, world: World) -> None:
        super().__init__(world.profile, world.random, world.clock)
        self._world = world
        self._mislaid: _Mislaid | None = None
        self._usurper = 0  # the incarnation of the standby that was started as active
        self._actions |= {
            "wrong-active": self._start_wrong_active,
            "swap-volumes": self._swap_volumes,
            "strange-volume": self._strange_volume,
            "resized-volume": self._resized_volume,
            "grow": self._grow,
        }

    def strike(self, kind: str) -> None:
        """As `Storm.strike`."""
        if kind in NEEDS_OWN_DISKS:
            self.put_right()
        super().strike(kind)

    @property
    def own_stores(self) -> list[Stores]:
        """The standby's, though others may be in their place."""
        mislaid = self._mislaid
        return [each.stores for each in self._world.standby.replicas] if mislaid is None else mislaid.own

    def put_right(self) -> None:
        """Undo all that was done wrong."""
        self._put_back()
        self._depose()

    # ------------------------------------------------------------------ a larger volume

    def _grow(self) -> None:
        """Rightly, for once: a volume is to be larger."""
        host = self._world.active
        if host.up and not host.closing:
            volume = self._random.choice(host.replicas).index
            self._world.coverage.fault("grow", volume)
            self._world.guest.grow(volume)

    # ------------------------------------------------------------------ the wrong host

    def _start_wrong_active(self) -> None:
        """The standby's host is started as the active one, with the term as it is or a higher one."""
        world = self._world
        standby = world.standby
        if any(not replica.metadata.superblock.lineage for replica in standby.replicas):
            return  # an empty replica is served: to make one active is how a guest begins
        if standby.up:
            self._kill(standby, power=self._random.random() < 0.3)
        self._count("wrong-active")
        blocks = [replica.metadata.superblock for replica in standby.replicas]
        term = world.term + self._random.randrange(2)
        mixture = any(block.condition is Condition.SYNCING for block in blocks)
        try:
            standby.start(term, role=Role.ACTIVE)
        except ArbitrationError:
            world.require(mixture, "operator", "a whole replica could not be made active")
            world.coverage.reach("refused:mixture-active")
            return
        world.require(not mixture, "operator", "half a resync was made active")
        world.term = term
        self._usurper = standby.incarnation
        self._timers.after(self._random.randrange(NOTICE_NS_MAX), self._depose)

    def _depose(self) -> None:
        standby = self._world.standby
        usurper, self._usurper = self._usurper, 0
        if usurper and standby.up and standby.incarnation == usurper:
            self._kill(standby, power=False)

    # ------------------------------------------------------------------ the wrong disks

    def _swap_volumes(self) -> None:
        """The disks of two volumes are mixed up."""
        count = len(self._world.standby.replicas)
        if count > 1:
            stores = [replica.stores for replica in self._world.standby.replicas]
            self._mislay("swap-volumes", {index: stores[index - 1] for index in range(count)})

    def _strange_volume(self) -> None:
        """The file of another volume, which has the same name and even the same history."""
        replica = self._random.choice(self._world.standby.replicas)
        stores = replica.stores.copy()
        stores.metadata.superblock = replace(stores.metadata.superblock, volume_id=b"s" * 16)
        self._mislay("strange-volume", {replica.index: stores})

    def _resized_volume(self) -> None:
        """A new and empty file, larger than the volume will ever be: a smaller one would grow with it."""
        replica = self._random.choice(self._world.standby.replicas)
        size = self._world.profile.device_bytes(replica.index)
        self._mislay("resized-volume", {replica.index: blank_replica(self._world, replica.index, size)})

    def _mislay(self, kind: str, stores: dict[int, Stores]) -> None:
        standby = self._world.standby
        if standby.up:
            self._kill(standby, power=False)
        self._count(kind)
        mislaid = _Mislaid([replica.stores for replica in standby.replicas], sorted(stores))
        for index in mislaid.volumes:
            standby.replicas[index].stores = stores[index]
            mislaid.tracked.append(self._world.checker.mislaid(index))
        mislaid.applies_asked = sum(replica.applies_asked for replica in standby.replicas)
        self._mislaid = mislaid
        self._timers.after(self._random.randrange(NOTICE_NS_MAX), self._found, mislaid)

    def _found(self, mislaid: _Mislaid) -> None:
        if self._mislaid is mislaid:
            self._put_back()

    def _put_back(self) -> None:
        mislaid = self._mislaid
        if mislaid is None:
            return
        world = self._world
        if world.standby.up:
            self._kill(world.standby, power=False)
        self._mislaid = None
        asked = sum(replica.applies_asked for replica in world.standby.replicas)
        world.require(asked == mislaid.applies_asked, "strange-disk", "a wrong disk was written to")
        for replica, own in zip(world.standby.replicas, mislaid.own, strict=True):
            replica.stores = own
        for index, known in zip(mislaid.volumes, mislaid.tracked, strict=True):
            world.checker.found(index, known)
