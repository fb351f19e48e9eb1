"""Watch a guest: typed events as they happen, figures every now and then.

Shows: telling events apart by their class; that a slow watcher slows nobody down (it loses the oldest events
and is told how many); statistics as frozen values, and what to look at in them.

Leaves to you: where it all goes (a log, a metrics page, a pager); here it is printed.

    python examples/watch_events.py [DIRECTORY]
"""

from __future__ import annotations

import secrets
import socket
import sys
import tempfile
from pathlib import Path

import trio

import pairsync
from pairsync import events

MIB = 1 << 20
LOCALHOST = "127.0.0.1"


def explain(event: pairsync.Event) -> str:
    """What an operator would want to read."""
    match event:
        case events.AloneEvent(volume=volume):
            return f"ATTENTION: writes to {volume} are on one host only from now on"
        case events.InSyncEvent(volume=volume):
            return f"fine: {volume} is on both hosts"
        case events.ResyncEvent(volume=volume, mode=mode, blocks=blocks):
            return f"{volume}: {blocks} blocks to copy ({mode})"
        case events.TroubleEvent(fatal=True):
            return f"ALARM: {event.describe()}"
        case _:
            return event.describe()


async def watch(guest: pairsync.Guest) -> None:
    with guest.subscribe() as subscription:
        async for event in subscription:
            print(f"[{event.kind}] {explain(event)}")
            if subscription.lost_count:
                print(f"  (too slow: {subscription.lost_count} events were lost so far)")


async def sample(guest: pairsync.Guest, seconds: float) -> None:
    while True:
        figures = guest.statistics()
        for volume in figures.volumes:
            behind = volume.dirty_blocks * 4096 / MIB
            sent = 0.0 if figures.link is None else figures.link.bytes_out / MIB
            print(f"  {volume.name}: {volume.state}, {behind:.1f} MiB not durable there, {sent:.1f} MiB sent")
        await trio.sleep(seconds)


async def main(directory: Path) -> None:
    active, standby = configure(directory)
    async with pairsync.open_guest(active) as guest, trio.open_nursery() as nursery:
        nursery.start_soon(watch, guest)
        nursery.start_soon(sample, guest, 0.2)
        volume = guest.volume("vda")
        async with pairsync.open_guest(standby):
            await guest.wait_in_sync()
            await volume.write(0, secrets.token_bytes(4 * MIB))
            await volume.flush()
        # the standby was closed: the guest goes on
        await volume.write(8 * MIB, secrets.token_bytes(4 * MIB))
        async with pairsync.open_guest(standby):
            await guest.wait_in_sync()
            await trio.sleep(0.3)
        nursery.cancel_scope.cancel()


def configure(directory: Path) -> tuple[pairsync.GuestConfig, pairsync.GuestConfig]:
    """Two hosts in one program: see embed_trio.py."""
    pair_id, volume_id = secrets.token_bytes(16), secrets.token_bytes(16)
    identities = [pairsync.make_identity(f"host {name}") for name in "ab"]
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind((LOCALHOST, 0))
            ports.append(probe.getsockname()[1])
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


if __name__ == "__main__":
    if len(sys.argv) > 1:
        trio.run(main, Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory(prefix="pairsync-example-") as temporary:
            trio.run(main, Path(temporary))
