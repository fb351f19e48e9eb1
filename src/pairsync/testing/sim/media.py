"""What is durable of a simulated host, and what its disks do with a job.

A job is done (`Media.finish`) or torn (`Media.tear`): the process died in the middle of it, or the disk
failed.  How much of a torn job is there is drawn, as far as a disk may choose.  The checker hears of every
change.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pairsync.core.effects import Apply, Examine, Journal, Persist, SavePages
from pairsync.core.fetcher import Repair
from pairsync.core.questions import FAN_OUT, BadBlock, Examined
from pairsync.core.resync import Found
from pairsync.core.units import Extent

from .digests import SimDigests
from .disk import SECTOR_BYTES, SECTORS_PER_BLOCK, SimDisk, ops_of_content, values_of_op
from .lane import Lane
from .metadata import SimMetadata

if TYPE_CHECKING:
    from .host import SimHost
    from .world import World

__all__ = ["PIECE_BLOCKS", "Armed", "Media", "Replica", "Stores", "metadata_text"]

PIECE_BLOCKS = 128
"""Most data blocks that one read finds, as the shell does it."""


class Stores(NamedTuple):
    """What of a volume outlives its host's process."""

    disk: SimDisk
    metadata: SimMetadata
    digests: SimDigests

    def copy(self) -> Stores:
        """Independent copies (for a host that is down)."""
        return Stores(self.disk.copy(), self.metadata.copy(), self.digests.copy())


class Armed:
    """Failures that the next job of a kind will have: an errno, or 0."""

    __slots__ = ("apply", "flush", "journal", "metadata", "misdirect", "read", "repair")

    def __init__(self) -> None:
        self.apply = self.read = self.flush = self.journal = self.metadata = self.repair = 0
        self.misdirect = False  # the next write that can goes elsewhere, and nothing fails


class Replica:
    """One volume on one host: what is on its disks, and the queues in front of them."""

    __slots__ = (
        "applies_asked",
        "armed",
        "flush_free_ns",
        "hung_until_ns",
        "index",
        "lane",
        "metadata_lane",
        "slow",
        "stores",
        "unsettled",
        "unsound",
    )

    def __init__(self, index: int, stores: Stores) -> None:
        self.index = index
        self.stores = stores
        self.armed = Armed()
        self.slow = 1.0  # factor on all times of this volume
        self.flush_free_ns = 0  # when the flushes that were asked for have ended: one after the other
        self.hung_until_ns = 0  # nothing was acknowledged that its disk had to do before
        self.applies_asked = 0
        self.unsound = 0  # errno of a failed flush that nobody has heard of: until its files are opened anew
        self.unsettled = False  # a superblock may be there that could not be written: till one is, or is read
        self.lane: Lane
        self.metadata_lane: Lane

    @property
    def disk(self) -> SimDisk:
        """Its content."""
        return self.stores.disk

    @property
    def metadata(self) -> SimMetadata:
        """What is recorded beside it."""
        return self.stores.metadata

    @property
    def digests(self) -> SimDigests:
        """Of its blocks."""
        return self.stores.digests

    def grow(self) -> bool:
        """The disk gets the size that is recorded; whether it had another one."""
        sectors = self.metadata.superblock.size_bytes // SECTOR_BYTES
        grows, self.disk.sector_count = sectors != self.disk.sector_count, sectors
        return grows

    def doubtful(self, blocks: Sequence[int]) -> list[int]:
        """Of these blocks those whose digest is not true, or that a crash or a power cut would change."""
        here = [block for block in blocks if block < self.digests.block_count]  # it may be the smaller one
        return [*self.digests.wrong(self.disk, here), *self.digests.unsaved(here), *self.disk.cached(here)]

    def claims(self) -> bool:
        """Whether any superblock that a crash may leave calls the peer in sync."""
        if self.metadata.superblock.peer_in_sync:
            return True
        return any(
            isinstance(job, Persist) and job.superblock.peer_in_sync for job in self.metadata_lane.jobs
        )


class Media:
    """The disks of one host; see the module."""

    def __init__(self, world: World, host: SimHost) -> None:
        self._world = world
        self._host = host
        self._random = world.random

    def covered(self, disk: SimDisk, extent: Extent) -> Extent:
        """How far a read goes: one hole however long, or a piece of data; sometimes less."""
        content = disk.content
        start = extent.start * SECTORS_PER_BLOCK
        stop = extent.stop
        if any(content[start : extent.stop * SECTORS_PER_BLOCK]):
            stop = min(stop, extent.start + PIECE_BLOCKS)
        if self._random.random() < 0.2:
            stop = self._random.randrange(extent.start + 1, stop + 1)
        return Extent(extent.start, stop)

    def examine(self, replica: Replica, job: Examine) -> Examined:
        """What a question about digests finds: of a first part, sometimes."""
        stop = (
            job.stop if self._random.random() < 0.7 else self._random.randrange(job.first + 1, job.stop + 1)
        )
        disk, digests = replica.disk, replica.digests
        span = FAN_OUT**job.level
        blocks = range(job.first * span, min(stop * span, -(-disk.sector_count // SECTORS_PER_BLOCK)))
        digests.fill(disk, blocks)
        wrong = digests.wrong_in(disk, blocks)
        if wrong:
            rotten = self._world.damage.rotten(self._host, replica)
            untrue = [block for block in wrong if block not in rotten]
            self._world.checker.wrong_digests(self._host, replica.index, untrue)
        bad = digests.bad_in(disk, blocks) if job.read and disk.wrong else wrong
        if job.read and bad:
            self._world.damage.compared(self._host, replica, bad)
        return Examined(digests.answer(job.level, job.first, stop), bad if job.read else ())

    def read(self, replica: Replica, extents: Sequence[Extent]) -> Found:
        """The content of these blocks, and what of it is not what was recorded."""
        disk, digests = replica.disk, replica.digests
        wrong: list[BadBlock] = []
        for extent in extents:
            digests.fill(disk, range(*extent))
            if self._world.profile.options.digests:
                wrong += digests.bad_blocks(disk, range(*extent))
        if wrong:
            self._world.damage.compared(self._host, replica, [each.block for each in wrong])
        content = disk.seen()
        limit = disk.sector_count
        ops = [op for extent in extents for op in ops_of_content(content, *extent, limit)]
        return Found(extents, ops, wrong)

    def finish(self, replica: Replica, job: object) -> list[int] | None:
        """Do it; for an apply that is made to fail: the errnos."""
        if isinstance(job, Apply):
            return self._finish_apply(replica, job)
        if isinstance(job, Journal | SavePages | Persist):
            self._finish_metadata(replica, job)
        return None

    def tear(self, replica: Replica, job: object) -> None:
        """Do nothing of it, or a part."""
        if isinstance(job, Apply):
            self._tear_apply(replica, job)
        elif isinstance(job, SavePages):
            self._tear_pages(replica, job)

    def _finish_apply(self, replica: Replica, job: Apply) -> list[int] | None:
        failing = -1
        error, armed = 0, replica.armed
        if isinstance(job.token, Repair):
            error, armed.repair = armed.repair, 0
        if not error:
            error, armed.apply = armed.apply, 0
        if error:
            failing = self._random.randrange(len(job.ops))
            name = "enospc" if error == errno.ENOSPC else "eio"
            self._world.coverage.fault(f"{name}-{self._host.name}", job.volume)
        checker, damage, disk = self._world.checker, self._world.damage, replica.disk
        for index, op in enumerate(job.ops):
            if op.length <= 0:
                continue
            start, stop = op.offset // SECTOR_BYTES, (op.offset + op.length) // SECTOR_BYTES
            elsewhere = failing < 0 and damage.may_misdirect(self._host, replica, op)
            before = disk.seen()[start:stop] if elsewhere else []
            self._world.require(stop <= replica.disk.sector_count, "size", "a write behind the volume's end")
            if index == failing:
                self._tear_op(replica, start, stop, values_of_op(op))
                replica.digests.forget(disk, start, stop, values_of_op(op))
                if not isinstance(job.token, Repair):
                    damage.doubtful("failed", replica, start, stop)
            else:
                disk.write(start, stop, values_of_op(op), fua=op.fua)
                damage.doubtful("written-in-part", replica, start, stop)
                replica.digests.note(disk, start, stop)
            if elsewhere:
                damage.misdirected(self._host, replica, start, before)
            checker.differences.written(replica.index, start, stop)
        checker.applied(self._host, job)
        if failing < 0:
            return None
        whole = self._random.random() < 0.5  # the shell cannot always tell which op it was
        return [error if whole or index == failing else 0 for index in range(len(job.ops))]

    def _tear_op(self, replica: Replica, start: int, stop: int, values: int | list[int]) -> None:
        """Some sectors of it reach the page cache."""
        share = self._random.choice((0.0, 0.5, 1.0))
        for sector in range(start, stop):
            if self._random.random() < share:
                value = values if isinstance(values, int) else values[sector - start]
                replica.disk.write(sector, sector + 1, value, fua=False)

    def _tear_apply(self, replica: Replica, job: Apply) -> None:
        for op in job.ops:
            start, stop = op.offset // SECTOR_BYTES, (op.offset + op.length) // SECTOR_BYTES
            if start < stop:
                self._tear_op(replica, start, stop, values_of_op(op))
                self._world.checker.differences.written(replica.index, start, stop)
        self._world.checker.applied(self._host, job)

    def _finish_metadata(self, replica: Replica, job: Journal | SavePages | Persist) -> None:
        metadata = replica.metadata
        if isinstance(job, Journal):
            wrong = metadata.append(job.segment, job.generation, job.extents)
            if wrong is not None:
                self._world.fail("journal", wrong)
            return  # intents are only added
        if isinstance(job, SavePages):
            metadata.write_pages(job.pages)
            metadata.release(job.release)
        else:
            before = metadata.superblock
            metadata.superblock = job.superblock
            self._world.checker.persisted(self._host, replica.index, before, job.superblock)
        self._world.checker.metadata_changed(self._host, replica.index)

    def _tear_pages(self, replica: Replica, job: SavePages) -> None:
        """The crash, or the error, came while it was being written: nothing, or part of it, is there."""
        if self._random.random() < 0.3:  # all pages, and the segments not given up
            replica.metadata.write_pages(job.pages)
        else:
            replica.metadata.tear_pages(job.pages, self._random)
        self._world.checker.metadata_changed(self._host, replica.index)


def metadata_text(job: object) -> str:
    """A job, for the trace."""
    if isinstance(job, Journal):
        extents = " ".join(extent.describe() for extent in job.extents[:6])
        return f"segment {job.segment} generation {job.generation}: {extents}"
    if isinstance(job, SavePages):
        return f"pages {sorted(job.pages)[:8]}, release {job.release}"
    if isinstance(job, Persist):
        block = job.superblock
        newest = block.lineage[0].describe() if block.lineage else "-"
        base = block.map_base.describe() if block.map_base else "-"
        sync = " peer-in-sync" if block.peer_in_sync else ""
        return f"{block.condition.name} {newest} base {base}{sync}{' clean' if block.clean else ''}"
    return ""
