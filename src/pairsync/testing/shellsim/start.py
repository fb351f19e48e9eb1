"""What the two hosts have behind them when a seed begins: the files on their disks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pairsync.core.messages import Condition, Generation
from pairsync.core.superblock import Superblock, new_superblock
from pairsync.core.units import BLOCK_BYTES, Extent, block_count_of
from pairsync.storage.digests import digests_bytes, digests_path, format_digests
from pairsync.storage.metadata import format_metadata, load_metadata, metadata_bytes, metadata_path
from pairsync.testing.disks import SECTOR_BYTES

from .writer import STAMP_BYTES

if TYPE_CHECKING:
    from .host import SimHost
    from .world import World

__all__ = ["OVERLAY_MARK", "PAIR_ID", "data_name", "lose_track", "make_blank", "make_start"]

PAIR_ID = b"p" * 16

FILLED_RUNS_MAX = 12
FILLED_SECTORS_MAX = 400
"""What was on a disk before pairsync: so many writes of so many sectors."""

OVERLAY_MARK = ".pairsync-overlay-"
"""In the name of every overlay."""

ALONE_BLOCKS_MAX = 6
"""Blocks that a host wrote alone before its roles were switched."""


def data_name(volume: int) -> str:
    """The file of a volume's data."""
    return f"vd{volume}"


def _blank_superblock(index: int, size: int) -> Superblock:
    name, volume_id = data_name(index), bytes([index]) * 16
    return new_superblock(pair_id=PAIR_ID, volume_id=volume_id, name=name, size_bytes=size)


def _format(world: World, host: SimHost, index: int, block: Superblock) -> None:
    medium, name = host.medium, data_name(index)
    metadata = metadata_path(name)
    sizes = {
        name: world.profile.device_bytes(index),
        metadata: metadata_bytes(block.size_bytes),
        digests_path(metadata): digests_bytes(block.size_bytes),
    }
    for each, size in sizes.items():
        if each in medium.names():
            medium.remove(each)
        medium.create(each, size)
    file = medium.open(metadata)
    format_metadata(file, block)
    file.close()
    file = medium.open(digests_path(metadata))
    blank = block.condition is Condition.BLANK
    format_digests(file, volume_id=block.volume_id, size_bytes=block.size_bytes, blank=blank)
    file.close()
    host.superblocks[index] = block


def make_blank(world: World, host: SimHost) -> None:
    """New disks with volumes that were made and never written."""
    for name in host.medium.names():
        if OVERLAY_MARK in name:
            host.medium.remove(name)
    for index, size in enumerate(world.profile.sizes_bytes):
        _format(world, host, index, _blank_superblock(index, size))


def make_start(world: World) -> None:
    """The volumes of both hosts, as the seed's profile begins (`swarm.START_KINDS`)."""
    kind = world.profile.start
    for index, size in enumerate(world.profile.sizes_bytes):
        mine = theirs = _blank_superblock(index, size)
        if kind != "fresh":
            mine = replace(mine, condition=Condition.CONSISTENT)
        if kind in {"in-sync", "switched"}:
            first = Generation(1, 1, world.habits.getrandbits(64))
            mine = replace(mine, term=1, lineage=(first,), peer_in_sync=True, map_base=first)
            theirs = replace(mine, clean=kind == "in-sync")
        _format(world, world.active, index, mine)
        _format(world, world.standby, index, theirs)
        hosts = [world.active] if kind == "prefilled" else list(world.hosts)
        if kind != "fresh":
            _fill(world, index, size, hosts)
        if kind == "switched":
            _write_alone(world, index, size)


def _stamped(world: World, length: int) -> tuple[int, bytes]:
    version = world.writer.next_version()
    return version, version.to_bytes(STAMP_BYTES, "little") * (length // STAMP_BYTES)


def _fill(world: World, index: int, size: int, hosts: list[SimHost]) -> None:
    """Content that was there before, durable."""
    random, sectors = world.habits, -(-size // SECTOR_BYTES)
    files = [host.medium.open(data_name(index)) for host in hosts]
    for _ in range(1 + random.randrange(FILLED_RUNS_MAX)):
        start = random.randrange(sectors)
        stop = min(start + 1 + random.randrange(FILLED_SECTORS_MAX), sectors)
        version, content = _stamped(world, min(stop * SECTOR_BYTES, size) - start * SECTOR_BYTES)
        for file in files:
            file.write(start * SECTOR_BYTES, [content])
        world.writer.histories[index].prefill(version, start, stop)
    for file in files:
        file.flush()
        file.close()


def _write_alone(world: World, index: int, size: int) -> None:
    """The standby was active, and died with writes that were not acknowledged: its intents know of them."""
    medium, random = world.standby.medium, world.habits
    data = medium.open(data_name(index))
    opened = load_metadata(medium.open(metadata_path(data_name(index))))
    extents: list[Extent] = []
    for _ in range(1 + random.randrange(ALONE_BLOCKS_MAX)):
        block = random.randrange(block_count_of(size))
        extents.append(Extent(block, block + 1))
        _, content = _stamped(world, min((block + 1) * BLOCK_BYTES, size) - block * BLOCK_BYTES)
        if random.random() < 0.8:
            data.write(block * BLOCK_BYTES, [content])
    world.checker.wrote_alone(index, extents)
    opened.store.append_intents(1, opened.generation_next, extents)
    data.close()
    opened.store.close()


def lose_track(world: World, host: SimHost) -> None:
    """The metadata of a host that is down say that its dirty map proves nothing: all will be copied again."""
    for index in range(len(world.profile.sizes_bytes)):
        opened = load_metadata(host.medium.open(metadata_path(data_name(index))))
        opened.store.write_superblock(replace(opened.superblock, map_base=None))
        opened.store.close()
