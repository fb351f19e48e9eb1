"""What the two hosts have behind them when a seed begins."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pairsync.core.dirty import DirtyMap
from pairsync.core.messages import Condition, Generation
from pairsync.core.superblock import Superblock, new_superblock
from pairsync.core.units import Extent, block_count_of

from .digests import SimDigests
from .disk import SECTOR_BYTES, SECTORS_PER_BLOCK, SimDisk
from .media import Replica, Stores
from .metadata import SimMetadata

if TYPE_CHECKING:
    from .world import World

__all__ = ["blank_replica", "blank_stores", "make_replicas"]


def _superblock(index: int, size_bytes: int) -> Superblock:
    volume_id = bytes([index]) * 16
    return new_superblock(pair_id=b"p" * 16, volume_id=volume_id, name=f"vd{index}", size_bytes=size_bytes)


def blank_replica(world: World, index: int, size_bytes: int) -> Stores:
    """A volume that was made and never written."""
    return blank_stores(index, size_bytes, world.profile.device_bytes(index) - size_bytes)


def blank_stores(index: int, size_bytes: int, room_bytes: int = 0) -> Stores:
    """Likewise, on a device that is so much larger."""
    disk = SimDisk(size_bytes // SECTOR_BYTES, room_bytes // SECTOR_BYTES)
    return _stores(_superblock(index, size_bytes), disk, known=True)


def _stores(superblock: Superblock, disk: SimDisk, *, known: bool) -> Stores:
    digests = SimDigests(block_count_of(superblock.size_bytes), known=known)
    return Stores(disk, SimMetadata(superblock), digests)


def make_replicas(world: World) -> tuple[list[Replica], list[Replica]]:
    """The volumes of both hosts, as the seed's profile begins."""
    mine: list[Replica] = []
    theirs: list[Replica] = []
    for index, size_bytes in enumerate(world.profile.sizes_bytes):
        ours, others = blank_replica(world, index, size_bytes), blank_replica(world, index, size_bytes)
        if world.profile.start != "fresh":
            _fill(world, index, ours.disk)
            superblock = replace(ours.metadata.superblock, condition=Condition.CONSISTENT)
            ours = _stores(superblock, ours.disk, known=False)
        if world.profile.start in {"in-sync", "switched"}:
            others = _same(world, ours)
        if world.profile.start == "switched":
            _write_alone(world, others)
        mine.append(Replica(index, ours))
        theirs.append(Replica(index, others))
    if world.profile.start == "switched":
        world.term = 2
    return mine, theirs


def _fill(world: World, index: int, disk: SimDisk) -> None:
    """Content that was there before pairsync."""
    random = world.random
    for _ in range(random.randrange(1, 12)):
        start = random.randrange(disk.sector_count)
        stop = min(start + random.randrange(1, 20 * SECTORS_PER_BLOCK), disk.sector_count)
        version = world.guest.next_version()
        disk.write(start, stop, version, fua=False)
        world.guest.histories[index].prefill(version, start, stop)
    disk.flush(disk.position)


def _same(world: World, ours: Stores) -> Stores:
    """Both in sync under one generation."""
    disk, metadata, _ = ours
    generation = Generation(1, 1, world.random.getrandbits(64))
    block = replace(
        metadata.superblock, term=1, lineage=(generation,), peer_in_sync=True, map_base=generation
    )
    metadata.superblock = block
    return _stores(block, disk.copy(), known=False)


def _write_alone(world: World, others: Stores) -> None:
    """The standby was active, and died with writes that were not acknowledged: its intents know of them."""
    disk, metadata, _ = others
    random = world.random
    blocks = block_count_of(metadata.superblock.size_bytes)
    marked = DirtyMap(blocks)
    for _ in range(random.randrange(1, 6)):
        block = random.randrange(blocks)
        marked.mark(block, block + 1)
        start = block * SECTORS_PER_BLOCK
        stop = min(start + SECTORS_PER_BLOCK, disk.sector_count)
        if random.random() < 0.8:
            disk.write(start, stop, world.guest.next_version(), fua=True)
    disk.flush(disk.position)
    if random.random() < 0.5:
        metadata.write_pages({page: marked.page_bytes(page) for page in marked.page_numbers()})
    else:
        metadata.append(1, 1, [Extent(*run) for run in marked.runs()])
    metadata.superblock = replace(metadata.superblock, clean=False)
