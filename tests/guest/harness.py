"""What the guest tests share: a pair of guests in one process, over loopback, on real files."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import trio

from pairsync.core.limits import VolumeOptions
from pairsync.core.messages import Role
from pairsync.core.units import BLOCK_BYTES, MIB, NS_PER_MS
from pairsync.guest.config import GuestConfig, VolumeConfig
from pairsync.guest.events import Subscription
from pairsync.guest.guest import Guest, open_guest
from pairsync.guest.replica import create_replica
from pairsync.io.config import LinkConfig, LinkTimings, PathConfig
from pairsync.io.keys import HostIdentity
from pairsync.node.labfile import free_ports

Host: TypeAlias = Literal["a", "b"]

T = TypeVar("T")

PAIR_ID = bytes(range(16))
DEADLINE_S = 60.0  # for what takes milliseconds: only a hang meets it
QUICK = LinkTimings(heartbeat_ns=250 * NS_PER_MS, silence_ns=1000 * NS_PER_MS)


@asynccontextmanager
async def in_time() -> AsyncIterator[None]:
    """Nothing here may hang."""
    with trio.fail_after(DEADLINE_S):
        yield


async def await_event(subscription: Subscription, kind: type[T]) -> T:
    """The next event of that kind; the others are dropped."""
    async for event in subscription:
        if isinstance(event, kind):
            return event
    raise AssertionError(f"the guest ended without any {kind.__name__}")


class Pair:
    """Two hosts' files and settings; ``a`` is active unless said otherwise."""

    def __init__(self, base: Path, identities: Mapping[Host, HostIdentity]) -> None:
        self.base = base
        base.mkdir(exist_ok=True)
        self.identities = identities
        self._ports = dict(zip(("a", "b"), free_ports(2), strict=True))
        for host in "ab":
            (base / host).mkdir()

    def image(self, host: Host, name: str = "vda") -> Path:
        return self.base / host / f"{name}.img"

    def create(self, name: str = "vda", size_bytes: int = 8 * MIB, hosts: str = "ab") -> None:
        """New replicas."""
        for host in hosts:
            create_replica(
                self.base / host / f"{name}.img",
                name=name,
                pair_id=PAIR_ID,
                volume_id=name.encode().ljust(16, b"."),
                size_bytes=size_bytes,
            )

    def config(
        self,
        host: Host,
        *,
        role: Role | None = None,
        names: tuple[str, ...] = ("vda",),
        options: VolumeOptions | None = None,
        link: bool = True,
        term: int = 1,
    ) -> GuestConfig:
        """What a host is told."""
        peer: Host = "b" if host == "a" else "a"
        volumes = [VolumeConfig(name, self.image(host, name), options or VolumeOptions()) for name in names]
        return GuestConfig(
            "guest",
            PAIR_ID,
            (Role.ACTIVE if host == "a" else Role.STANDBY) if role is None else role,
            volumes,
            self.link(host, peer) if link else None,
            term,
        )

    def link(self, host: Host, peer: Host) -> LinkConfig:
        return LinkConfig(
            identity=self.identities[host],
            peer_certificate_pem=self.identities[peer].certificate_pem,
            pair_id=PAIR_ID,
            listen=(("127.0.0.1", self._ports[host]),),
            paths=(PathConfig("loopback", ("127.0.0.1", self._ports[peer])),),
            timings=QUICK,
        )

    @asynccontextmanager
    async def both(self, *, options: VolumeOptions | None = None) -> AsyncIterator[tuple[Guest, Guest]]:
        """Both guests, in sync; the active one is closed first, so that its last flush reaches the other."""
        async with (
            open_guest(self.config("b", options=options)) as standby,
            open_guest(self.config("a", options=options)) as active,
        ):
            await active.wait_in_sync()
            yield active, standby

    def same(self, name: str = "vda") -> bool:
        """Whether the two replicas are equal byte for byte."""
        return self.image("a", name).read_bytes() == self.image("b", name).read_bytes()


def noise(seed: int, size: int = BLOCK_BYTES) -> bytes:
    """Bytes that tell whose they are."""
    return random.Random(seed).randbytes(size)


async def move(source: Guest, target: Guest, term: int) -> None:
    """A planned switch-over."""
    await source.become(Role.STANDBY, term, in_order=True)
    await target.become(Role.ACTIVE, term, in_order=True)
