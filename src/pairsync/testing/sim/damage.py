"""Disks that lie: bits that fall over, writes that land elsewhere, and who has to notice.

A block that is damaged reads as something that was never written there, though nothing has failed; or the
digest that is recorded of it has become another one.  Only blocks *at rest* are struck: equal and durable on
both disks, their digests durable and true, in no dirty map and no write-intent log, and whole on the other
host, so that one good copy is left.  A write that went elsewhere leaves two blocks damaged: its own, which
keeps what it had, and the one that was hit.

What is claimed then is checked here: each damaged block is named by a scrub that reads all of the volume, on
the side where it is, and no other block ever is; reads that are verified get the right content; nothing of it
reaches the other disk, whatever is copied (``lost-write``, ``dirty-superset``: what was never written is owed
by nobody); and in the end both disks and their digests are whole.  Of what was struck only a digest may be
told to be lost, where the block stood in a dirty map for no reason: then a person writes the block anew.

Some damage is *excused*, as the fault atlas says, and mended by nobody: of a block that is written in part,
or whose write fails, before it was found; of one that the write-intent log names when the active host dies,
or whose volume has just grown when its host dies; of one that the standby does not hold when it parts,
or has no true digest of when it has died; of all when a disk is swapped for another one.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from pairsync.core.events import DifferenceEvent, ScrubEvent, ScrubFindingEvent
from pairsync.core.messages import OpKind, Role, WriteOp
from pairsync.core.scrubber import Fault
from pairsync.core.standing import Phase
from pairsync.core.units import NS_PER_S

from .disk import SECTOR_BYTES, SECTORS_PER_BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .host import SimHost
    from .media import Replica
    from .world import World

__all__ = ["Damage"]

TRIES = 48
"""Blocks that are looked at for one at rest."""

FLIPPED_BIT = 40
"""From this bit on a number is none of a write: a flipped sector holds what was never written."""

OVERTAKEN = 0.2
"""How likely a repair meets a write of the guest."""

REPAIR_FAILS = 0.5
"""How likely the disk fails to write it, where disks fail."""

LOST_SHARE = 0.3
"""Of writes that went elsewhere those that left the volume: nothing is hit."""

MISDIRECTED_BLOCKS_MAX = 16

WRITES_ANEW_NS_MAX = 20 * NS_PER_S
"""How long it takes until somebody has heard of a block that is lost, and has written it again."""


class Damage:
    """Of both hosts; see the module."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._random = world.random
        self._since: dict[tuple[int, int, int], int] = {}  # (host, volume, block): when it was damaged
        self._seen: set[tuple[int, int, int]] = set()  # blocks that were compared with their digest, and bad
        # Digests that were damaged, and what they have become; most of them have been mended since.
        self._leaves: dict[tuple[int, int, int], int] = {}

    # ------------------------------------------------------------------ striking

    def flip(self, host: SimHost) -> None:
        """Bits of a sector, or of some, fall over."""
        replica = self._random.choice(host.replicas)
        for _ in range(self._random.choice((1, 1, 1, 3))):
            block = self._at_rest(replica.index, 1)
            if block is None:
                return
            low = block * SECTORS_PER_BLOCK
            sector = self._random.randrange(low, low + SECTORS_PER_BLOCK)
            bit = 1 << self._random.randrange(FLIPPED_BIT, 62)
            self._strike(host, replica, sector, [replica.disk.content[sector] ^ bit])
            self._world.coverage.fault(f"flip-{host.name}", replica.index)

    def rot_digest(self, host: SimHost) -> None:
        """The digest of a block becomes another one."""
        replica = self._random.choice(host.replicas)
        block = self._at_rest(replica.index, 1)
        if block is not None:
            self._world.trace.note(host.name, "digest-damage", block, f"volume {replica.index}")
            key = host.index, replica.index, block
            leaf = self._leaves[key] = self._random.getrandbits(63) | 1 << 63
            replica.digests.damage(block, leaf)
            self._since[key] = self._world.clock.now
            self._world.coverage.fault(f"digest-{host.name}", replica.index)

    def may_misdirect(self, host: SimHost, replica: Replica, op: WriteOp) -> bool:
        """Whether the host's disk is about to put this write somewhere else."""
        if not replica.armed.misdirect or op.kind is not OpKind.DATA or not self._whole_blocks(op):
            return False
        other = self._world.hosts[1 - host.index].replicas[replica.index].disk
        if other.may_be_wrong(op.offset // SECTOR_BYTES, (op.offset + op.length) // SECTOR_BYTES):
            return False  # the same write went elsewhere there: no good copy would be left
        if host.role is Role.STANDBY:
            return True
        # An active host alone has the only copy of what it writes.
        session = host.session
        return session is not None and session.sources[replica.index].standing.phase is Phase.IN_SYNC

    def _whole_blocks(self, op: WriteOp) -> bool:
        bytes_each = SECTORS_PER_BLOCK * 512
        return not (op.offset % bytes_each or op.length % bytes_each) and op.length > 0

    def misdirected(self, host: SimHost, replica: Replica, start: int, before: list[int]) -> None:
        """What was just written to these sectors is somewhere else; ``before``: what they held."""
        disk = replica.disk
        count = min(len(before), MISDIRECTED_BLOCKS_MAX * SECTORS_PER_BLOCK)
        values = disk.content[start : start + count]
        if self._random.random() >= LOST_SHARE:
            block = self._at_rest(replica.index, count // SECTORS_PER_BLOCK)
            if block is None:
                return
            self._strike(host, replica, block * SECTORS_PER_BLOCK, values)
        replica.armed.misdirect = False
        self._strike(host, replica, start, before[:count])
        self._world.coverage.fault(f"misdirect-{host.name}", replica.index)

    def _strike(self, host: SimHost, replica: Replica, start: int, values: list[int]) -> None:
        first, stop = start // SECTORS_PER_BLOCK, -(-(start + len(values)) // SECTORS_PER_BLOCK)
        self._world.trace.note(host.name, "damage", first, f"{stop - first} blocks of volume {replica.index}")
        for sector, value in enumerate(values, start):
            replica.disk.damage(sector, value)
        for block in range(first, stop):
            self._since[host.index, replica.index, block] = self._world.clock.now

    def _at_rest(self, volume: int, blocks: int) -> int | None:
        """The first of so many blocks that lie at rest and are whole on both disks."""
        sectors = min(host.replicas[volume].disk.sector_count for host in self._world.hosts)
        limit = sectors // SECTORS_PER_BLOCK - blocks
        for _ in range(TRIES if limit >= 0 else 0):
            first = self._random.randrange(limit + 1)
            if all(self._rests(volume, block) for block in range(first, first + blocks)):
                return first
        return None

    def _rests(self, volume: int, block: int) -> bool:
        world = self._world
        if world.checker.differences.differs(volume, block):
            return False
        session = world.active.session
        if session is not None and session.sources[volume].tracker.is_dirty(block):
            return False
        replicas = [host.replicas[volume] for host in world.hosts]
        return all(
            not replica.metadata.covers(block)
            and not replica.metadata.logged(block)
            and replica.digests.settled(replica.disk, block)
            and replica.disk.untouched(block)
            for replica in replicas
        )

    # ------------------------------------------------------------------ what is excused

    def excuse(self, why: str, replica: Replica, blocks: Iterable[tuple[int, int]]) -> None:
        """Damage of these blocks is beyond what is claimed: it is as if it had not been."""
        for start, stop in blocks:
            if replica.disk.forget_damage(start * SECTORS_PER_BLOCK, stop * SECTORS_PER_BLOCK):
                self._world.coverage.reach(f"damage-excused:{why}")

    def doubtful(self, why: str, replica: Replica, start: int, stop: int) -> None:
        """The digests of these sectors' blocks are made anew of what the blocks hold, or unknown."""
        disk = replica.disk
        if disk.wrong:
            blocks = range(start // SECTORS_PER_BLOCK, -(-stop // SECTORS_PER_BLOCK))
            wrong = [block for block in disk.wrong_blocks() if block in blocks]
            kept = replica.digests.bad_in(disk, blocks) if why == "failed" else []
            self.excuse(why, replica, [(block, block + 1) for block in wrong if block not in kept])

    def parted(self) -> None:
        """The standby is away, or has died: of a write that went elsewhere here it has perhaps no copy, or
        none that it can vouch for."""
        for mine, theirs in zip(self._world.active.replicas, self._world.faults.own_stores, strict=True):
            for block in mine.disk.wrong_blocks():
                span = mine.disk.sectors_of(block)
                if mine.disk.content[span] != theirs.disk.content[span] or theirs.digests.wrong(
                    theirs.disk, [block]
                ):
                    self.excuse("not-there", mine, [(block, block + 1)])

    def swapped(self) -> None:
        """A disk is about to be swapped for another one: a block may be left on the other host only."""
        for host in self._world.hosts:
            for replica in host.replicas:
                self.excuse("swapped", replica, [(0, replica.digests.block_count)])
                for block in {*self.rotten(host, replica), *self.rotten(host, replica, saved=True)}:
                    replica.digests.damage(block, replica.digests.content_of(replica.disk, block))

    # ------------------------------------------------------------------ who has noticed

    def compared(self, host: SimHost, replica: Replica, bad: Iterable[int]) -> None:
        """The host has read blocks, and found that these are not what their digests say."""
        wrong = self._wrong(host, replica)
        self._seen.update((host.index, replica.index, block) for block in bad if block in wrong)

    def rotten(self, host: SimHost, replica: Replica, *, saved: bool = False) -> list[int]:
        """Blocks whose digest is a damaged one; ``saved``: that may be one after a crash."""
        return [
            block
            for (index, volume, block), leaf in self._leaves.items()
            if (index, volume) == (host.index, replica.index)
            and replica.digests.recorded(block, saved=saved) == leaf
        ]

    def _wrong(self, host: SimHost, replica: Replica) -> list[int]:
        return [*replica.disk.wrong_blocks(), *self.rotten(host, replica)]

    def explains(self, volume: int, event: DifferenceEvent) -> bool:
        """Whether that many blocks differ because digests were damaged."""
        struck = {block for _, where, block in self._leaves if where == volume}
        return event.blocks <= len(struck) and event.first_block in struck

    def finding(self, volume: int, event: ScrubFindingEvent) -> None:
        """A bad block was told of."""
        world = self._world
        host = world.standby if event.fault == Fault.PEER.value else world.active
        key = host.index, volume, event.block
        if key not in self._seen or event.fault in {Fault.BOTH.value, Fault.DIFFERENT.value}:
            world.fail("false-alarm", event.describe())  # of all that was struck there is a good copy
        if event.fault in {Fault.DIGEST.value, Fault.LOST.value}:
            world.require(key in self._leaves, "false-alarm", event.describe())
            world.coverage.reach(f"digest-told:{event.fault}")
        if event.fault == Fault.LOST.value:
            delay_ns = self._random.randrange(WRITES_ANEW_NS_MAX)
            world.clock.after(delay_ns, self._write_anew, host.replicas[volume], event.block)
        world.coverage.reach(f"damage-found:{host.name}")
        if event.repair:
            self._ambush(host.replicas[volume], event.block)

    def _write_anew(self, replica: Replica, block: int) -> None:
        """What a person does: in the guest, the block is written with what it holds."""
        key = self._world.active.index, replica.index, block
        if replica.digests.recorded(block) == self._leaves[key]:
            replica.digests.damage(block, replica.digests.content_of(replica.disk, block))

    def _ambush(self, replica: Replica, block: int) -> None:
        """A block is about to be repaired: a bad moment for a write of it, and for a disk to fail."""
        if self._random.random() < OVERTAKEN:
            self._world.guest.write_soon(replica.index, block)
        elif self._world.faults.striking("eio-active") and self._random.random() < REPAIR_FAILS:
            replica.armed.repair = errno.EIO

    def scrubbed(self, volume: int, event: ScrubEvent) -> None:
        """A scrub has read all of the volume: it has seen whatever was wrong when it began."""
        world = self._world
        began = world.clock.now - int(event.seconds * NS_PER_S)
        for host in world.hosts:
            for block in self._wrong(host, host.replicas[volume]):
                key = host.index, volume, block
                if self._since[key] < began and key not in self._seen:
                    world.fail(
                        "missed", f"volume {volume}: a scrub has not found block {block} of {host.name}"
                    )

    def back(self, host: SimHost) -> None:
        """The host has died, and what had mended a block or its digest may be lost with it."""
        self.parted()
        for replica in host.replicas:
            for block in self._wrong(host, replica):
                self._since[host.index, replica.index, block] = self._world.clock.now

    @property
    def outstanding(self) -> bool:
        """Whether any disk is wrong anywhere."""
        return any(self._wrong(host, replica) for host in self._world.hosts for replica in host.replicas)
