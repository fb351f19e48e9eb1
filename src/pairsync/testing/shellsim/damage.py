"""Disks that lie: bits that fall over, writes that land elsewhere; as ``testing.sim.damage`` for the shell.

The files of a medium hold what an honest disk would: whoever checks what is owed looks at these.  What the
guest's code reads of them goes through `LyingFile`, which puts something else in place of sectors that are
*wrong*, until they are written again.

A block is struck while the peer is in sync, at rest and with its digest known on both hosts, so that a good
copy is left.  It is let off when it is written in part or a write of it fails, when a resync is about to keep
what the standby has, when the peer's copy is lost, and when a host comes up that does not know its digest
any more.  What is left has to be found where it is, and mended by the end; nothing of it may reach the other
disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pairsync.core.events import ScrubFindingEvent
from pairsync.core.messages import Buffer
from pairsync.core.standing import Phase
from pairsync.core.units import BLOCK_BYTES, block_count_of
from pairsync.errors import BackendError
from pairsync.storage.device import Device
from pairsync.testing.disks import SECTOR_BYTES, SimFile, SimMedium

from .start import data_name

if TYPE_CHECKING:
    from .host import SimHost
    from .world import World

__all__ = ["Damage", "LyingFile"]

BLOCK_SECTORS = BLOCK_BYTES // SECTOR_BYTES

TRIES = 24
"""Blocks that are looked at for one at rest."""

LOST_SHARE = 0.3
"""Of writes that went elsewhere those that left the volume: nothing is hit."""

MISDIRECTED_BLOCKS_MAX = 8


class LyingFile(SimFile):
    """The data of a volume as a host reads it."""

    def __init__(self, medium: SimMedium, damage: Damage, host: SimHost, volume: int) -> None:
        super().__init__(medium, medium.claim(data_name(volume)))
        self._damage = damage
        self._host = host
        self._volume = volume

    def read_into(self, offset: int, view: memoryview) -> None:
        """As `SimFile.read_into`."""
        super().read_into(offset, view)
        self._damage.distort(self._host, self._volume, offset, view)

    def _write(self, offset: int, buffers: Sequence[Buffer], *, durable: bool) -> None:
        length = sum(map(len, buffers))
        before = self._damage.about_to_write(self._host, self._volume, offset, length)
        super()._write(offset, buffers, durable=durable)
        if before is not None:
            self._damage.misdirected(self._host, self._volume, offset, before)

    def zero(self, offset: int, length: int, *, keep_space: bool) -> None:
        """As `SimFile.zero`."""
        self._damage.let_off(self._host, self._volume, offset, length)
        super().zero(offset, length, keep_space=keep_space)


class Damage:
    """Of both hosts; see the module."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._random = world.chance
        self._wrong: dict[tuple[str, int], dict[int, bytes]] = {}  # (host, volume): sector to what is read
        self._struck: set[tuple[str, int, int]] = set()  # (host, volume, block): ever
        self._armed: set[str] = set()  # hosts whose next write that can goes elsewhere
        self._last = False  # the last strike has been

    def _of(self, host: SimHost, volume: int) -> dict[int, bytes]:
        return self._wrong.setdefault((host.name, volume), {})

    def _content(self, host: SimHost, volume: int, block: int) -> bytes:
        medium = host.medium
        live = medium.platter(data_name(volume), medium.life).live
        return bytes(live[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES])

    def _read(self, host: SimHost, volume: int, block: int) -> bytes:
        content = bytearray(self._content(host, volume, block))
        self.distort(host, volume, block * BLOCK_BYTES, memoryview(content))
        return bytes(content)

    def _blocks(self, host: SimHost, volume: int) -> list[int]:
        return sorted({sector // BLOCK_SECTORS for sector in self._of(host, volume)})

    # ------------------------------------------------------------------ what is read and written

    def distort(self, host: SimHost, volume: int, offset: int, view: memoryview) -> None:
        """Put what is wrong into what was read."""
        for sector, content in self._of(host, volume).items():
            start = sector * SECTOR_BYTES
            low, high = max(start, offset), min(start + len(content), offset + len(view))
            if low < high:
                view[low - offset : high - offset] = content[low - start : high - start]

    def touches(self, host: SimHost, volume: int, offset: int, length: int) -> bool:
        """Whether any block of the range is wrong."""
        stop = block_count_of(offset + length)
        return any(offset // BLOCK_BYTES <= block < stop for block in self._blocks(host, volume))

    def let_off(self, host: SimHost, volume: int, offset: int, length: int) -> None:
        """Every block of the range is read as what it holds again."""
        wrong = self._of(host, volume)
        first = offset // BLOCK_BYTES * BLOCK_SECTORS
        stop = block_count_of(offset + length) * BLOCK_SECTORS
        for sector in [sector for sector in wrong if first <= sector < stop]:
            del wrong[sector]

    def about_to_write(self, host: SimHost, volume: int, offset: int, length: int) -> bytes | None:
        """What that range holds, if its write is going to go elsewhere."""
        self.let_off(host, volume, offset, length)
        if host.name not in self._armed or offset % BLOCK_BYTES or length % BLOCK_BYTES:
            return None
        other = self._other(host)
        if not 0 < length <= MISDIRECTED_BLOCKS_MAX * BLOCK_BYTES or not self._in_sync(volume):
            return None
        if self.touches(other, volume, offset, length):
            return None  # the same write went elsewhere there
        blocks = range(offset // BLOCK_BYTES, (offset + length) // BLOCK_BYTES)
        return b"".join(self._content(host, volume, block) for block in blocks)

    # ------------------------------------------------------------------ striking

    def _other(self, host: SimHost) -> SimHost:
        return self._world.standby if host is self._world.active else self._world.active

    def _in_sync(self, volume: int) -> bool:
        guest = self._world.active.guest
        sources = guest.session.sources if guest is not None else ()
        return bool(sources) and sources[volume].standing.phase is Phase.IN_SYNC

    def flip(self, host: SimHost) -> None:
        """Bits of some sectors fall over."""
        volume = self._random.randrange(len(self._world.profile.sizes_bytes))
        for _ in range(self._random.choice((1, 1, 3))):
            block = self._at_rest(volume)
            if block is None:
                return
            content = bytearray(self._content(host, volume, block))
            content[self._random.randrange(len(content))] ^= 1 << self._random.randrange(8)
            self._strike(host, volume, block, bytes(content))
            self._world.faults.struck(f"flip-{host.name}")

    def strike_last(self) -> None:
        """When all is whole, once: what strikes earlier is often let off before anybody has looked."""
        if not self._last:
            self._last = True
            for host in self._world.hosts:
                if f"flip-{host.name}" in self._world.profile.faults:
                    self.flip(host)

    def arm(self, host: SimHost) -> None:
        """A write will go elsewhere."""
        self._armed.add(host.name)

    def disarm(self) -> None:
        """No further write will."""
        self._armed.clear()

    def misdirected(self, host: SimHost, volume: int, offset: int, before: bytes) -> None:
        """What was just written there is somewhere else; ``before``: what it held."""
        first, count = offset // BLOCK_BYTES, len(before) // BLOCK_BYTES
        written = [self._content(host, volume, block) for block in range(first, first + count)]
        if not all(map(any, written)):
            return  # nobody reads what is a hole
        if self._random.random() >= LOST_SHARE:
            block = self._at_rest(volume)
            if block is None or first <= block < first + count:
                return
            self._strike(host, volume, block, written[0][: len(self._content(host, volume, block))])
        for at, block in enumerate(range(first, first + count)):
            self._strike(host, volume, block, before[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES])
        self._armed.discard(host.name)
        self._world.faults.struck(f"misdirect-{host.name}")

    def _strike(self, host: SimHost, volume: int, block: int, content: bytes) -> None:
        self._world.trace.note(host.name, "damage", f"volume {volume} block {block}")
        true, wrong = self._content(host, volume, block), self._of(host, volume)
        for sector, at in enumerate(range(0, len(true), SECTOR_BYTES), block * BLOCK_SECTORS):
            if content[at : at + SECTOR_BYTES] != true[at : at + SECTOR_BYTES]:
                wrong[sector] = content[at : at + SECTOR_BYTES]
        self._struck.add((host.name, volume, block))

    def _at_rest(self, volume: int) -> int | None:
        hosts = self._world.hosts
        if not self._in_sync(volume) or any(host.life is None or host.guest is None for host in hosts):
            return None
        size = min(len(host.medium.content(data_name(volume))) for host in hosts)
        for _ in range(TRIES):
            block = self._random.randrange(block_count_of(size))
            if all(self._rests(host, volume, block) for host in hosts):
                return block
        return None

    def _rests(self, host: SimHost, volume: int, block: int) -> bool:
        life, guest, other = host.life, self._world.active.guest, self._other(host)
        device = list(life.replicas.values())[volume].device if life is not None else None
        if guest is None or device is None or guest.session.sources[volume].tracker.is_dirty(block):
            return False
        content = self._content(host, volume, block)
        older = host.medium.platter(data_name(volume), host.medium.life).older
        sectors = range(block * BLOCK_SECTORS, (block + 1) * BLOCK_SECTORS)
        if not any(content) or any(sector in older for sector in sectors):
            return False  # nobody reads what is a hole
        if block in self._blocks(host, volume):
            return False
        if content != self._content(other, volume, block) or len(content) != self._length(device, block):
            return False
        return _is_known(device, block, content)

    def _length(self, device: Device, block: int) -> int:
        return min(device.size_bytes - block * BLOCK_BYTES, BLOCK_BYTES)

    # ------------------------------------------------------------------ who is let off, who has noticed

    def opened(self, host: SimHost, volume: int, device: Device) -> None:
        """A life has opened a volume: it may have lost the digests of what is wrong."""
        for block in self._blocks(host, volume):
            if not _differs(device, block, self._read(host, volume, block)):
                self.let_off(host, volume, block * BLOCK_BYTES, BLOCK_BYTES)

    def peer_parted(self) -> None:
        """The peer is away, or something of a disk was lost: is the good copy still there?"""
        for host in self._world.hosts:
            for volume in range(len(self._world.profile.sizes_bytes)):
                for block in self._blocks(host, volume):
                    there = self._content(self._other(host), volume, block)
                    if self._content(host, volume, block) != there:
                        self.let_off(host, volume, block * BLOCK_BYTES, BLOCK_BYTES)

    def forget(self, host: SimHost, volume: int) -> None:
        """All of it is let off."""
        self._of(host, volume).clear()

    def swapped(self) -> None:
        """The standby's disks are replaced: no other copy is left."""
        self._wrong.clear()

    def finding(self, volume: int, event: ScrubFindingEvent) -> None:
        """A bad block was told of."""
        host = {"here": self._world.active, "peer": self._world.standby}.get(event.fault)
        if host is None or (host.name, volume, event.block) not in self._struck:
            self._world.fail("false-alarm", event.describe())
        by = "scrub" if self._in_sync(volume) else "resync"
        self._world.reach(f"damage-found:{host.name}:{by}")

    def on(self, host: SimHost) -> bool:
        """Whether anything is wrong there."""
        return any(wrong for (name, _), wrong in self._wrong.items() if name == host.name)

    @property
    def outstanding(self) -> bool:
        """Whether anything is wrong anywhere."""
        return any(self._wrong.values())


def _differs(device: Device, block: int, content: bytes) -> bool:
    try:
        return device.mismatches(block * BLOCK_BYTES, memoryview(content)) == [block]
    except BackendError:
        return False


def _is_known(device: Device, block: int, content: bytes) -> bool:
    """Whether a digest is recorded, and is that of the content."""
    another = bytes([content[0] ^ 1]) + content[1:]
    return _differs(device, block, another) and not _differs(device, block, content)
