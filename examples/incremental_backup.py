"""Back up a replicated volume incrementally, while it is written, and check that the copy is exact.

Shows: points (`make_point`, `drop_point`), what has changed since one (`changed_since`), and how digests tell
that what was read is what the volume held at the point: a copy that is made beside writes is a mixture until
every block of it has the digest that the point says. Here those that have not are copied again, against a new
point; a guest that never stops writing has to be paused for the last of them (say, by `fsfreeze`).

Leaves to you: where the copies go (here one image that each round brings up to date; an archive would keep
the ranges), and what to do when a host has no such point any more: take all of the volume, as the first time.

The same without Python: `pairsync lab point make DIR vda NAME`, then
`nbdinfo --map=pairsync:changed:NAME URI` says what to read.

    python examples/incremental_backup.py [DIRECTORY]
"""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import trio
from xxhash import xxh3_64_intdigest

import pairsync

MIB = 1 << 20
BLOCK = 4096
ROUNDS = 50  # until the guest would have to be paused


def digest(block: bytes) -> bytes:
    """As `Volume.digests` has them."""
    if not any(block):
        return bytes(8)
    number = xxh3_64_intdigest(block)
    return (number if number > 1 else number ^ (1 << 63)).to_bytes(8, "little")


async def changed_since(volume: pairsync.Volume, point: str) -> AsyncIterator[tuple[int, int]]:
    """All ranges (offset, length) that may have changed."""
    at = 0
    while at < volume.size_bytes:
        for length, changed in await volume.changed_since(point, at, volume.size_bytes - at):
            if changed:
                yield at, length
            at += length


async def copy(volume: pairsync.Volume, image: Path, offset: int, length: int) -> int:
    with image.open("r+b") as file:
        for at in range(offset, offset + length, MIB):
            file.seek(at)
            file.write(await volume.read(at, min(MIB, offset + length - at)))
    return length


async def wrong_blocks(volume: pairsync.Volume, image: Path, point: str) -> int:
    """Blocks of the image that are not what the volume held at the point."""
    wrong = at = 0
    with image.open("rb") as file:
        while at < volume.size_bytes:
            digests = await volume.digests(at, volume.size_bytes - at, point=point)
            for first in range(0, len(digests), 8):
                wrong += digest(file.read(BLOCK)) != digests[first : first + 8]
            at += len(digests) // 8 * BLOCK
    return wrong


async def back_up(volume: pairsync.Volume, image: Path, since: str | None) -> str:
    """Bring the image up to date, ``since`` the point of the last backup; the point that it is exact for."""
    for _ in range(ROUNDS):
        point = f"backup-{secrets.token_hex(4)}"  # a name is used once
        await volume.make_point(point)
        if since is None:
            ranges = [(0, volume.size_bytes)]
        else:
            ranges = [each async for each in changed_since(volume, since)]
            await volume.drop_point(since)
        copied = sum([await copy(volume, image, *each) for each in ranges])
        wrong = await wrong_blocks(volume, image, point)
        print(f"{point}: {copied // 1024} KiB copied, {wrong} blocks were written meanwhile")
        if not wrong:
            return point
        since = point
    raise SystemExit("the guest writes faster than it is copied: pause it for the last round")


async def guest_writes(volume: pairsync.Volume, count: int) -> None:
    for number in range(count):
        await volume.write(number * 37 % 64 * MIB + number * BLOCK, os.urandom(BLOCK))


async def main(directory: Path) -> None:
    pair_id, volume_id = secrets.token_bytes(16), secrets.token_bytes(16)
    replica, image = directory / "vda.img", directory / "backup.img"
    pairsync.create_replica(replica, name="vda", pair_id=pair_id, volume_id=volume_id, size_bytes=64 * MIB)
    volumes = [pairsync.VolumeConfig("vda", replica)]
    config = pairsync.GuestConfig("example", pair_id, pairsync.Role.ACTIVE, volumes)  # link=...: the peer
    image.touch()
    os.truncate(image, 64 * MIB)

    async with pairsync.open_guest(config) as guest:
        volume = guest.volume("vda")
        await guest_writes(volume, 200)
        point = await back_up(volume, image, None)  # the full one
    async with pairsync.open_guest(config) as guest:  # points outlive restarts, crashes, and this host's turn
        volume = guest.volume("vda")
        await volume.trim(8 * MIB, MIB)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(guest_writes, volume, 50)
            point = await back_up(volume, image, point)
        point = await back_up(volume, image, point)
        same = await volume.read(0, volume.size_bytes) == image.read_bytes()
    print(f"the backup of {point} is {'equal to the volume' if same else 'WRONG'}")
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        trio.run(main, Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            trio.run(main, Path(temporary))
