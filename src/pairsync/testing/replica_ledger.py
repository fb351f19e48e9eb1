"""What is known of a replica in the middle of its life, and the rules for what a crash leaves of it.

A `ReplicaLife` (``testing.replica_life``) keeps a `Ledger` and states after each step what is `Known`.
`check_found` and `check_content` are the rules, for whatever is found later:

* the superblock is one of those written, and not older than the last one that was confirmed;
* the dirty set (bitmap and journal together) holds every block that the peer is not known to hold durably,
  once its intent was confirmed, and none that nobody has touched;
* generation numbers go on above all that were confirmed;
* every sector of the volume holds something that was written there, and nothing older than a flush that was
  confirmed;
* every block whose content is not what the peer is known to hold is in the dirty set (DESIGN rule 7).

The peer is a model: what it was sent, and what its flushes have covered.  Blocks hold *stamps*, 8 bytes over
and over, each used once, so what is read tells when it was written.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

from pairsync.core.dirty import DirtyMap
from pairsync.core.messages import Condition, Generation
from pairsync.core.superblock import Superblock
from pairsync.core.units import BLOCK_BYTES, KIB
from pairsync.storage.device import Device
from pairsync.storage.metadata import OpenedMetadata

from .disks import SECTOR_BYTES

__all__ = [
    "PAIR_ID",
    "SEGMENT_BYTES",
    "VOLUME_NAME",
    "Known",
    "Ledger",
    "RuleBroken",
    "blocks_of",
    "check_content",
    "check_found",
    "found_blocks",
    "life_superblock",
    "stamped",
]

PAIR_ID: Final = b"p" * 16
VOLUME_NAME: Final = "vda"

SEGMENT_BYTES: Final = 16 * KIB
"""Journal segments of four records: they fill up, and are used again, within a short life."""

_LINEAGE: Final = 40  # generations in a superblock, some 15 bytes each: a slot that can be torn


class RuleBroken(Exception):
    """What a crash has left breaks a rule."""


def life_superblock(number: int, size_bytes: int, *, clean: bool) -> Superblock:
    """The superblock of that number: no two look alike, and none fits one sector."""
    lineage = tuple(Generation(1, 1, number << 32 | each) for each in range(_LINEAGE, 0, -1))
    return Superblock(
        pair_id=PAIR_ID,
        volume_id=b"v" * 16,
        name=VOLUME_NAME,
        size_bytes=size_bytes,
        term=number,
        condition=Condition.CONSISTENT,
        lineage=lineage,
        sync_target=None,
        peer_in_sync=number % 3 == 0,
        map_base=lineage[-1],
        clean=clean,
        boot_id=f"boot-{number}",
    )


def stamped(stamp: int) -> bytes:
    """A block full of that stamp; 0 is a block of zeroes."""
    return struct.pack("<Q", stamp) * (BLOCK_BYTES // 8)


_ZERO_DIGEST: Final = xxh3_64_intdigest(bytes(BLOCK_BYTES))


# ---------------------------------------------------------------------- what is known


class Known(NamedTuple):
    """What holds at one moment, whatever happens now."""

    superblocks: tuple[tuple[int, bool, int], ...]
    """Number, cleanness and size of the confirmed one, and of the one that is being written."""
    generation: int
    """The highest one that was confirmed."""
    must: frozenset[int]
    """Blocks that have to be found dirty."""
    may: frozenset[int]
    """All that may be found dirty."""
    stamps: dict[int, tuple[int, ...]]
    """For blocks that were written: what any of its sectors may hold."""
    peer: dict[int, int]
    """The digest of what the peer is known to hold durably of a block; zeroes for all that are not here."""

    def to_json(self) -> str:
        """One line."""
        plain = self._asdict() | {
            "must": sorted(self.must),
            "may": sorted(self.may),
            "stamps": sorted(self.stamps.items()),
            "peer": sorted(self.peer.items()),
        }
        return json.dumps(plain, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> Known:
        """The inverse."""
        plain = json.loads(line)
        return cls(
            tuple((number, clean, size_bytes) for number, clean, size_bytes in plain["superblocks"]),
            plain["generation"],
            frozenset(plain["must"]),
            frozenset(plain["may"]),
            {block: tuple(stamps) for block, stamps in plain["stamps"]},
            dict(plain["peer"]),
        )


@dataclass(slots=True)
class Ledger:
    """What a life, or several lives of one replica, know; the moving form of `Known`."""

    size_bytes: int  # that a life begins with
    superblocks: tuple[tuple[int, bool, int], ...] = ()  # any of them may be on disk
    generation: int = 0
    must: set[int] = field(default_factory=set)
    image: set[int] = field(default_factory=set)  # set in the bitmap on disk
    image_next: set[int] = field(default_factory=set)  # set in the pages that are being written
    intents: dict[int, set[int]] = field(default_factory=lambda: {0: set(), 1: set()})  # of each segment
    stamp: int = 0  # the last one used
    settled: dict[int, tuple[int, ...]] = field(default_factory=dict)  # as of the last confirmed flush
    written: dict[int, list[int]] = field(default_factory=dict)  # since
    sent: dict[int, int] = field(default_factory=dict)  # to the peer, not covered by a flush of it
    peer: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.superblocks:
            self.superblocks = ((1, True, self.size_bytes),)

    @classmethod
    def after(cls, known: Known, size_bytes: int) -> Ledger:
        """Of a new life after a crash, before anything was made durable anew."""
        ledger = cls(size_bytes, known.superblocks, known.generation, set(known.must), set(known.may))
        ledger.settled = dict(known.stamps)
        ledger.stamp = max((stamp for stamps in known.stamps.values() for stamp in stamps), default=0)
        ledger.peer = dict(known.peer)
        return ledger

    def known(self) -> Known:
        """As it stands now."""
        stamps = {block: self.settled.get(block, (0,)) for block in self.settled.keys() | self.written.keys()}
        for block, newer in self.written.items():
            stamps[block] += tuple(newer)
        return Known(
            self.superblocks,
            self.generation,
            frozenset(self.must),
            frozenset().union(self.image, self.image_next, *self.intents.values()),
            stamps,
            dict(self.peer),
        )

    def flushed(self) -> None:
        """All that was written is durable here."""
        self.settled |= {block: (stamps[-1],) for block, stamps in self.written.items()}
        self.written.clear()


def found_blocks(opened: OpenedMetadata) -> DirtyMap:
    """The dirty set as ``guest.replica.recover_replica`` takes it; reads ``opened.pages``."""
    block_count = -(-opened.superblock.size_bytes // BLOCK_BYTES)
    found = DirtyMap(block_count)
    for page in opened.pages:
        found.load_page(page.number, page.content)
    if not opened.superblock.clean:
        for start, stop in opened.intents:
            found.mark(start, stop)
    return found


def blocks_of(runs: Iterable[tuple[int, int]]) -> set[int]:
    """The blocks of extents, one by one."""
    return {block for start, stop in runs for block in range(start, stop)}


def check_found(superblock: Superblock, dirty: DirtyMap, generation_next: int, known: Known) -> None:
    """The rules of superblock, dirty set and generations; `RuleBroken`."""
    allowed = [life_superblock(number, size, clean=clean) for number, clean, size in known.superblocks]
    if superblock not in allowed:
        raise RuleBroken(f"superblock {superblock.term} was found, one of {known.superblocks} was to be")
    found = blocks_of(dirty.runs())
    if known.must - found:
        raise RuleBroken(f"dirty blocks are forgotten: {sorted(known.must - found)[:20]}")
    if found - known.may:
        raise RuleBroken(f"blocks are dirty that nobody has touched: {sorted(found - known.may)[:20]}")
    if generation_next <= known.generation:
        raise RuleBroken(f"generation {generation_next} comes next, {known.generation} was used")


def check_content(device: Device, dirty: DirtyMap, known: Known) -> None:
    """The rules of the volume's content; `RuleBroken`."""
    content = bytearray(device.size_bytes)
    device.read_into(0, memoryview(content))
    for block in range(device.size_bytes // BLOCK_BYTES):
        here = content[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
        stamps = known.stamps.get(block, (0,))
        allowed = {struct.pack("<Q", stamp) * (SECTOR_BYTES // 8) for stamp in stamps}
        for at in range(0, BLOCK_BYTES, SECTOR_BYTES):
            sector = bytes(here[at : at + SECTOR_BYTES])
            if sector not in allowed:
                found = struct.unpack_from("<Q", sector)[0]
                raise RuleBroken(f"block {block} holds stamp {found} at {at}, not one of {stamps}")
        if xxh3_64_intdigest(here) != known.peer.get(block, _ZERO_DIGEST) and block not in dirty:
            raise RuleBroken(f"block {block} differs from the peer's and is not dirty")
