"""Embed a replicated volume in an asyncio program; nothing here knows trio.

Shows: two guests in one loop (`beside`; a thread has one trio run, which they share); awaiting reads and
writes; many writers at once; an asyncio timeout that cancels a call; an error that arrives where the call was
made; events as an async iterator.

Leaves to you: as embed_trio.py, what two machines need; and that a loop's first guest is closed last, which
the nesting of the blocks does here.

    python examples/embed_asyncio.py [DIRECTORY]
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import sys
import tempfile
from pathlib import Path

import pairsync

MIB = 1 << 20
LOCALHOST = "127.0.0.1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOCALHOST, 0))
        port: int = probe.getsockname()[1]
    return port


def configure(directory: Path) -> tuple[pairsync.GuestConfig, pairsync.GuestConfig]:
    """Make both replicas; each host is told its key, the other's certificate, and where that one is."""
    pair_id, volume_id = secrets.token_bytes(16), secrets.token_bytes(16)
    identities = [pairsync.make_identity(f"host {name}") for name in "ab"]
    ports = [free_port(), free_port()]
    configs = []
    for me, peer, role in [(0, 1, pairsync.Role.ACTIVE), (1, 0, pairsync.Role.STANDBY)]:
        replica = directory / f"vda-{'ab'[me]}.img"
        pairsync.create_replica(
            replica, name="vda", pair_id=pair_id, volume_id=volume_id, size_bytes=64 * MIB
        )
        link = pairsync.LinkConfig(
            identity=identities[me],
            peer_certificate_pem=identities[peer].certificate_pem,
            pair_id=pair_id,
            listen=((LOCALHOST, ports[me]),),
            paths=(pairsync.PathConfig("loopback", (LOCALHOST, ports[peer])),),
        )
        volumes = [pairsync.VolumeConfig("vda", replica)]
        configs.append(pairsync.GuestConfig("example", pair_id, role, volumes, link))
    return configs[0], configs[1]


async def show_events(guest: pairsync.AsyncioGuest) -> None:
    with guest.subscribe() as events:
        async for event in events:
            print(f"  event: {event.describe()}")


async def use(guest: pairsync.AsyncioGuest) -> None:
    await guest.wait_in_sync()
    async with asyncio.TaskGroup() as group:
        for number in range(50):
            group.create_task(guest.write("vda", number * 8192, secrets.token_bytes(4096)))
    await guest.flush("vda")
    print("50 writes at once, on both hosts, durable")

    try:
        async with asyncio.timeout(1e-6):
            await guest.flush("vda")
    except TimeoutError:
        print("a timeout of asyncio cancels the call")

    try:
        await guest.read("vda", 64 * MIB, 1)
    except pairsync.ConfigError as error:
        print(f"an error arrives where the call was made: {error}")


async def main(directory: Path) -> None:
    active, standby = configure(directory)
    async with pairsync.AsyncioGuest(active) as guest, guest.beside(standby):
        watcher = asyncio.create_task(show_events(guest))
        await use(guest)
    await watcher  # the events end with the guest
    equal = (directory / "vda-a.img").read_bytes() == (directory / "vda-b.img").read_bytes()
    print(f"both replicas are {'equal' if equal else 'DIFFERENT'}")
    if not equal:
        raise SystemExit(1)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(main(Path(sys.argv[1])))
    else:
        with tempfile.TemporaryDirectory(prefix="pairsync-example-") as temporary:
            asyncio.run(main(Path(temporary)))
