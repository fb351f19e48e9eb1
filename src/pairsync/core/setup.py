"""What is known of a volume when its guest is opened: what its disk says of it, and how it is to be kept.

The machines of the volume begin with it (``core.assembly``).
"""

from __future__ import annotations

from collections.abc import Sequence

from .dirty import DirtyMap
from .limits import VolumeOptions
from .messages import PointMark
from .superblock import Superblock

__all__ = ["VolumeSetup"]


class VolumeSetup:
    """What is known of a volume when its guest is opened."""

    __slots__ = ("first_generation", "given", "milestone", "options", "points", "recovered", "superblock")

    def __init__(
        self,
        superblock: Superblock,
        recovered: DirtyMap,
        options: VolumeOptions,
        first_generation: int = 1,
        points: Sequence[PointMark] = (),
        given: int = 0,
    ) -> None:
        """``first_generation``: of the write-intent log, above every recorded one; ``given``: the milestone
        that this host was given last as a standby."""
        self.superblock = superblock
        self.recovered = recovered  # dirty map on disk, with the write-intent log unless closed in order
        self.options = options
        self.points = tuple(points)
        self.given = given
        # The log goes on above every milestone of the volume that is known: see `Standing.recorded`.
        opened = superblock.lineage[0].epoch if superblock.lineage else 1
        self.first_generation = max(first_generation, given, opened)
        # The highest that was reached here, or given by the peer.
        self.milestone = self.first_generation if superblock.parted is None else superblock.parted
