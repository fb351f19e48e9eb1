"""Embed a replicated volume in a trio program.

Shows: two hosts in one program (two directories stand for two machines); a volume written, read, trimmed and
flushed; the link cut and mended; the resync that follows; typed events; what happens on the standby.

Leaves to you: a program on each machine, each with its own half of `configure`; keeping the identities
(`pairsync.open_identity` makes them once and keeps them in a directory) and exchanging the certificates;
deciding which host is active, for roles are fixed by configuration so far.

    python examples/embed_trio.py [DIRECTORY]
"""

from __future__ import annotations

import secrets
import socket
import sys
import tempfile
from pathlib import Path

import trio

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


async def show_events(guest: pairsync.Guest) -> None:
    with guest.subscribe() as events:
        async for event in events:
            print(f"  event: {event.describe()}")


async def cut_the_link(guest: pairsync.Guest, volume: pairsync.Volume) -> None:
    """As if a cable were pulled: writes go on, and what the peer lacks is remembered."""
    if guest.link is None:
        raise SystemExit("this guest has no peer")
    guest.link.cut()
    for block in range(100):
        await volume.write(block * 8192, secrets.token_bytes(4096))
    print(f"without the peer: {guest.statistics().volumes[0].dirty_blocks} dirty blocks")
    guest.link.heal()
    await guest.wait_in_sync()
    print(f"in sync again: {guest.statistics().volumes[0].dirty_blocks} dirty blocks")


async def main(directory: Path) -> None:
    active, standby = configure(directory)
    async with (
        trio.open_nursery() as nursery,
        pairsync.open_guest(active) as guest,
        pairsync.open_guest(standby) as other,
    ):
        nursery.start_soon(show_events, guest)  # ends with the guest
        await guest.wait_in_sync()

        volume = guest.volume("vda")
        await volume.write(0, b"on both hosts when this returns")
        await volume.write(MIB, b"and durable there too", fua=True)
        await volume.trim(2 * MIB, MIB)
        await volume.flush()
        print(f"read: {await volume.read(0, 13)!r}")

        await cut_the_link(guest, volume)

        try:
            await other.volume("vda").write(0, b"x")
        except pairsync.ArbitrationError as error:
            print(f"the standby refuses: {error}")
    equal = (directory / "vda-a.img").read_bytes() == (directory / "vda-b.img").read_bytes()
    print(f"both replicas are {'equal' if equal else 'DIFFERENT'}")
    if not equal:
        raise SystemExit(1)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        trio.run(main, Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory(prefix="pairsync-example-") as temporary:
            trio.run(main, Path(temporary))
