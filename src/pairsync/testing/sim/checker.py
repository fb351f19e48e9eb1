"""The safety rules, checked from outside after every step.

Names of rules are those of the design; each failure says which rule, where and why.

* ``dirty-superset`` (rule 7): a block whose contents differ on the two disks - as read, or as either disk
  may remember it after a power cut - is in the active host's dirty set, and in the set that it would recover
  if it crashed now.  It holds from the moment at which a standby is written to; a standby's disk that was
  swapped is told apart by its lineage only, so the rule rests until a session has agreed on a plan for it.
* ``lost-write`` (rule 2): no disk that counts holds a content that is older than what is owed: the active's
  always; the standby's as long as any superblock that the active may find after a crash calls it in sync.
* ``in-sync-claim`` (rules 3, 8): such a superblock goes with a standby that has adopted that generation and
  is not being overwritten.
* ``mixture`` (rule 3): a standby that calls itself consistent is written only in a session that has brought
  it up to date; before anything else touches it, it says SYNCING, durably.
* ``term``, ``lineage`` (rules 1, 6, 9): terms and generations only grow, nothing newer or unrelated is
  overwritten.
* ``refused``: a session that was refused has changed nothing on the standby.
* ``window`` (rule 7): a crash of the active in sync costs no more than the write-intent window.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pairsync.core.dirty import PAGE_BLOCKS, DirtyMap
from pairsync.core.effects import Apply, Persist
from pairsync.core.messages import Condition, Generation, OpKind, Role, Write
from pairsync.core.standing import Phase
from pairsync.core.superblock import Superblock
from pairsync.core.units import BLOCK_BYTES

from .disk import SECTOR_BYTES, SECTORS_PER_BLOCK
from .history import History, WriteRecord

if TYPE_CHECKING:
    from .host import Replica, SimHost
    from .world import World

__all__ = ["Checker"]

FULL_CHECK_STEPS = 400
"""Steps between full comparisons; in between only what was touched is looked at."""


class _View:
    """What the checker keeps of one volume."""

    __slots__ = (
        "acked_there",
        "applies_before",
        "claims",
        "intact",
        "phase",
        "swapped_in",
        "tracked",
        "unequal",
    )

    def __init__(self) -> None:
        self.unequal = 0  # a bit for each block that differs in any of the four contents
        self.tracked = True  # the standby's disk is the one that the active's dirty set speaks of
        self.intact = True  # it is the one that the active's superblock speaks of
        self.acked_there = (
            True  # the standby has had no power cut since it was in sync: it owes what was acked
        )
        self.claims = False  # a superblock that calls the peer in sync may be on disk
        self.phase = Phase.ABSENT
        self.swapped_in = 0  # the link's session when a disk was swapped last
        self.applies_before = 0  # of the standby, when its present session began


class Checker:
    """See the module."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._views = [_View() for _ in world.guest.histories]
        self._sync = world.profile.options.level == "sync"
        # What the active knew when it sent each write that is on its way: by identity of its ops, which
        # are kept here so that no identity is used twice.
        self._notes: dict[int, tuple[object, Phase, Generation, bool]] = {}
        self._steps = 0

    def _pair(self, volume: int) -> tuple[Replica, Replica]:
        world = self._world
        return world.active.replicas[volume], world.standby.replicas[volume]

    def _fail(self, rule: str, volume: int, text: str) -> None:
        self._world.fail(rule, f"volume {volume}: {text}")

    # ------------------------------------------------------------------ contents

    def written(self, volume: int, start: int, stop: int) -> None:
        """Sectors of a disk have changed, or have become durable."""
        view = self._views[volume]
        active, standby = self._pair(volume)
        first, last = start // SECTORS_PER_BLOCK, (stop - 1) // SECTORS_PER_BLOCK + 1
        low, high = first * SECTORS_PER_BLOCK, last * SECTORS_PER_BLOCK
        ours, theirs = active.disk, standby.disk
        content = ours.content[low:high]
        if (
            content == theirs.content[low:high]
            and content == ours.durable[low:high]
            and content == theirs.durable[low:high]
        ):
            view.unequal &= ~(((1 << (last - first)) - 1) << first)
            return
        fresh = 0
        for block in range(first, last):
            low = block * SECTORS_PER_BLOCK
            high = low + SECTORS_PER_BLOCK
            content = ours.content[low:high]
            if (
                content == theirs.content[low:high]
                and content == ours.durable[low:high]
                and content == theirs.durable[low:high]
            ):
                view.unequal &= ~(1 << block)
            elif not view.unequal >> block & 1:
                view.unequal |= 1 << block
                fresh |= 1 << block
        if fresh and view.tracked:
            if fresh & (fresh - 1):
                self._check_mask(volume, fresh)
            else:  # one block: the usual case
                self._check_block(volume, fresh.bit_length() - 1)

    def recompute(self, volume: int) -> None:
        """A disk was swapped, or lost its cache: compare all of it."""
        self._views[volume].unequal = self._compare(volume)

    def _compare(self, volume: int) -> int:
        active, standby = self._pair(volume)
        ours, theirs = active.disk, standby.disk
        count = ours.sector_count
        suspects = [(0, count)]
        for step in (64 * SECTORS_PER_BLOCK, SECTORS_PER_BLOCK):
            ranges, suspects = suspects, []
            for start, stop in ranges:
                for low in range(start, stop, step):
                    high = min(low + step, stop)
                    content = ours.content[low:high]
                    if (
                        content != theirs.content[low:high]
                        or content != ours.durable[low:high]
                        or content != theirs.durable[low:high]
                    ):
                        suspects.append((low, high))
        found = 0
        for low, _ in suspects:
            found |= 1 << low // SECTORS_PER_BLOCK
        return found

    def _check_block(self, volume: int, block: int) -> None:
        """A block that has just become different: is it known?"""
        active, standby = self._pair(volume)
        if standby.metadata.covers(block):  # it wrote the block in an earlier role, and will say so
            return
        session = self._world.active.session
        if session is not None and not session.sources[volume].tracker.is_dirty(block):
            self._fail("dirty-superset", volume, f"block {block} differs and is not in the dirty set")
        if not active.metadata.covers(block):
            self._fail("dirty-superset", volume, f"block {block} differs and a crash now would forget it")

    def check_dirty(self, volume: int) -> None:
        """Every block that differs is known to differ."""
        view = self._views[volume]
        if view.tracked and view.unequal:
            self._check_mask(volume, view.unequal)

    def _check_mask(self, volume: int, unequal: int) -> None:
        active, standby = self._pair(volume)
        unequal &= ~_mask(standby.metadata.recovered())
        session = self._world.active.session
        if session is not None:
            forgotten = unequal & ~_mask(session.sources[volume].tracker.dirty())
            if forgotten:
                self._fail(
                    "dirty-superset", volume, f"{_blocks(forgotten)} differ and are not in the dirty set"
                )
        forgotten = unequal & ~_mask(active.metadata.recovered())
        if forgotten:
            self._fail(
                "dirty-superset", volume, f"{_blocks(forgotten)} differ and a crash now would forget them"
            )

    def full(self) -> None:
        """Compare everything, the slow way."""
        for volume, view in enumerate(self._views):
            unequal = self._compare(volume)
            if unequal != view.unequal:
                self._fail(
                    "checker", volume, f"the incremental comparison lost {_blocks(unequal ^ view.unequal)}"
                )
            self.check_dirty(volume)
            history = self._world.guest.histories[volume]
            active, standby = self._pair(volume)
            self._owed(volume, "active", active.disk.content, history.acked)
            if view.claims and view.intact:
                self._check_standby(volume, standby)

    # ------------------------------------------------------------------ what is owed

    def _owed(
        self, volume: int, where: str, content: list[int], floor: list[int], start: int = 0, stop: int = -1
    ) -> None:
        """That range of a disk holds nothing older than what is owed."""
        stop = len(content) if stop < 0 else stop
        history: History = self._world.guest.histories[volume]
        wrong = history.first_wrong(content, start, stop, floor)
        if wrong is not None:
            self._fail("lost-write", volume, f"{where}: {history.explain(wrong, content[wrong], floor)}")

    def _check_standby(self, volume: int, standby: Replica) -> None:
        """All of a standby that the active's superblock calls in sync."""
        if self._sync:
            history = self._world.guest.histories[volume]
            if self._views[volume].acked_there:
                self._owed(volume, "standby", standby.disk.content, history.acked)
            self._owed(volume, "standby, durable", standby.disk.durable, history.flushed)

    def _counts(self, volume: int) -> bool:
        view = self._views[volume]
        return self._sync and view.claims and view.intact

    def applied(self, host: SimHost, job: Apply) -> None:
        """A batch was applied, wholly or partly."""
        volume = job.volume
        history = self._world.guest.histories[volume]
        replica = host.replicas[volume]
        if host.role is Role.STANDBY and not (self._counts(volume) and self._views[volume].acked_there):
            return
        for op in job.ops:
            if op.length > 0:
                start, stop = op.offset // SECTOR_BYTES, (op.offset + op.length) // SECTOR_BYTES
                self._owed(volume, host.name, replica.disk.content, history.acked, start, stop)

    def write_acknowledged(self, volume: int, record: WriteRecord) -> None:
        """The guest was told that a write is there."""
        history = self._world.guest.histories[volume]
        active, standby = self._pair(volume)
        start, stop = record.start, record.stop
        self._owed(volume, "active", active.disk.content, history.acked, start, stop)
        if record.fua:
            self._owed(volume, "active, durable", active.disk.durable, history.flushed, start, stop)
        if self._counts(volume):
            if self._views[volume].acked_there:
                self._owed(volume, "standby", standby.disk.content, history.acked, start, stop)
            if record.fua:
                self._owed(volume, "standby, durable", standby.disk.durable, history.flushed, start, stop)

    def flush_acknowledged(self, volume: int, covered: list[tuple[int, int]]) -> None:
        """The guest was told that these sectors are durable."""
        history = self._world.guest.histories[volume]
        active, standby = self._pair(volume)
        for start, stop in covered:
            self._owed(volume, "active, durable", active.disk.durable, history.flushed, start, stop)
            if self._counts(volume):
                self._owed(volume, "standby, durable", standby.disk.durable, history.flushed, start, stop)

    # ------------------------------------------------------------------ metadata

    def metadata_changed(self, host: SimHost, volume: int) -> None:
        """Bitmap pages or intents have become durable, or have been given up."""
        if host.role is Role.ACTIVE:
            self.check_dirty(volume)

    def persist_asked(self, host: SimHost, effect: Persist) -> None:
        """A superblock may be on disk from now on."""
        if host.role is Role.ACTIVE and effect.superblock.peer_in_sync:
            self._claim(effect.volume)

    def _claim(self, volume: int) -> None:
        view = self._views[volume]
        if view.claims:
            return
        view.claims = True
        if view.tracked:  # it has adopted what the active has
            view.intact = view.acked_there = True
            self._check_claim(volume)
            self._check_standby(volume, self._pair(volume)[1])

    def _check_claim(self, volume: int) -> None:
        """What a superblock on disk that calls the peer in sync says is so."""
        active, standby = self._pair(volume)
        mine, theirs = active.metadata.superblock, standby.metadata.superblock
        if not mine.peer_in_sync:
            return
        if theirs.condition is not Condition.CONSISTENT:
            self._fail("in-sync-claim", volume, f"a {theirs.condition.name} standby is called in sync")
        if not theirs.lineage or theirs.lineage[0] != mine.lineage[0]:
            self._fail(
                "in-sync-claim", volume, f"{theirs.lineage[:2]} is called in sync with {mine.lineage[:2]}"
            )

    def persisted(self, host: SimHost, volume: int, before: Superblock, after: Superblock) -> None:
        """A superblock has become durable."""
        view = self._views[volume]
        if after.term < before.term:
            self._fail("term", volume, f"{host.name} goes back from term {before.term} to {after.term}")
        if host.role is Role.ACTIVE:
            self._check_own_lineage(volume, before, after)
            view.claims = host.replicas[volume].claims()
        else:
            self._check_standby_lineage(volume, before, after)
        if view.claims and view.intact:
            self._check_claim(volume)

    def _check_own_lineage(self, volume: int, before: Superblock, after: Superblock) -> None:
        old, new = before.lineage, after.lineage
        if new == old:
            return
        if not new or new[1:] != old[: len(new) - 1] or (old and new[0][:2] <= old[0][:2]):
            self._fail("lineage", volume, f"the active's lineage goes from {old[:3]} to {new[:3]}")

    def _check_standby_lineage(self, volume: int, before: Superblock, after: Superblock) -> None:
        if self._world.link.session_of(1) <= self._views[volume].swapped_in:
            return  # the last of a session with an active whose disk has been swapped since
        active = self._pair(volume)[0].metadata.superblock
        overwritten = after.condition is Condition.SYNCING or after.lineage != before.lineage
        if overwritten and before.lineage and before.lineage[0] not in active.lineage:
            self._fail(
                "lineage",
                volume,
                f"a standby at {before.lineage[0].describe()} is overwritten from {active.lineage[:3]}",
            )

    # ------------------------------------------------------------------ the stream

    def session_begins(self, host: SimHost) -> None:
        """A session of the link has begun at that host."""
        if host.role is Role.STANDBY:
            for view, replica in zip(self._views, host.replicas, strict=True):
                view.applies_before = replica.applies_asked

    def refused(self) -> None:
        """A session was refused by what the two hosts said of themselves."""
        for volume, view in enumerate(self._views):
            if self._world.standby.replicas[volume].applies_asked != view.applies_before:
                self._fail("refused", volume, "the standby was written to in a session that was refused")

    def write_leaves(self, message: Write) -> None:
        """The active sends it: what does it know?"""
        session = self._world.active.session
        if session is not None:
            standing = session.sources[message.volume].standing
            note = (message.ops, standing.phase, standing.newest, message.resync)
            self._notes[id(message.ops)] = note

    def write_arrives(self, message: Write) -> None:
        """The standby has received it."""

    def apply_asked(self, host: SimHost, effect: Apply) -> None:
        """The standby is about to write."""
        note = self._notes.pop(id(effect.ops), None)
        if note is None:
            self._fail("mixture", effect.volume, "the standby writes what was not sent")
            return
        _, phase, newest, _ = note
        block = host.replicas[effect.volume].metadata.superblock
        if block.condition is Condition.SYNCING:
            return
        if phase is Phase.SYNCING or not block.lineage or block.lineage[0] != newest:
            self._fail(
                "mixture",
                effect.volume,
                f"a standby that calls itself {block.condition.name} is written in a resync ({phase.value})",
            )

    # ------------------------------------------------------------------ steps and faults

    def step(self, host: SimHost) -> None:
        """A host has performed a bundle."""
        self._steps += 1
        session = host.session
        if session is not None and host.role is Role.ACTIVE:
            for volume, source in enumerate(session.sources):
                if source.standing.phase is not self._views[volume].phase:
                    self._phase(volume, source.standing.phase)
                if self._steps % 16 == 0:
                    source.tracker.check_invariants()
        if self._steps % FULL_CHECK_STEPS == 0:
            self.full()

    def _phase(self, volume: int, phase: Phase) -> None:
        view = self._views[volume]
        before, view.phase = view.phase, phase
        agreed = self._world.link.session_of(0) > view.swapped_in
        if phase in (Phase.SYNCING, Phase.ADOPTING) and agreed and not view.tracked:
            view.tracked = True
            self.check_dirty(volume)
        self._world.phase_changed(volume, before, phase)

    def cache_lost(self, host: SimHost, volume: int) -> None:
        """A disk has forgotten what was not flushed."""
        self.recompute(volume)
        view = self._views[volume]
        history = self._world.guest.histories[volume]
        if host.role is Role.ACTIVE:
            self._owed(
                volume, "active after a power cut", host.replicas[volume].disk.content, history.flushed
            )
            history.power_lost()
        else:
            view.acked_there = False
        self.check_dirty(volume)

    def crashed(self, host: SimHost, *, power: bool, in_sync: bool) -> None:
        """The host has just died: what would be recovered?"""
        for volume, view in enumerate(self._views):
            if host.role is Role.ACTIVE:
                view.claims = host.replicas[volume].claims()
                view.phase = Phase.ABSENT
            if power:
                self.cache_lost(host, volume)
            else:
                self.check_dirty(volume)
                history = self._world.guest.histories[volume]
                self._owed(volume, "active", self._pair(volume)[0].disk.content, history.acked)
            if view.claims and view.intact:
                self._check_standby(volume, self._pair(volume)[1])
            if in_sync and host.role is Role.ACTIVE:
                self._check_window(volume)

    def _check_window(self, volume: int) -> None:
        """Data blocks to be copied again; zeroes cost nothing and do not count."""
        profile = self._world.profile
        if set(profile.guest.kinds) != {OpKind.DATA}:
            return
        recovered = self._pair(volume)[0].metadata.recovered().count * BLOCK_BYTES
        batch = profile.guest.ops_max * (profile.guest.op_sectors_max * SECTOR_BYTES + 2 * BLOCK_BYTES)
        window = profile.options.intent_window_bytes + 2 * batch
        if recovered > window:
            self._fail("window", volume, f"a crash in sync costs {recovered} bytes of resync, not {window}")

    def swapped(self, host: SimHost, volume: int) -> None:
        """A disk was replaced by another one."""
        view = self._views[volume]
        view.tracked = view.intact = False
        view.swapped_in = self._world.link.last_session
        if host.role is Role.ACTIVE:
            view.claims = host.replicas[volume].claims()
        self.recompute(volume)

    def adopt_start(self, volume: int, start: str) -> None:
        """How the seed begins: what the dirty set speaks of, what the superblock claims."""
        view = self._views[volume]
        active = self._pair(volume)[0]
        view.tracked = start != "prefilled"
        view.claims = active.claims()
        view.intact = view.claims
        view.acked_there = start != "switched"

    def closed(self, host: SimHost) -> None:
        """The host has closed its volumes in order."""
        for replica in host.replicas:
            if not replica.metadata.superblock.clean:
                self._fail("closed", replica.index, "closed in order, and not recorded as clean")


def _mask(dirty: DirtyMap) -> int:
    """A bit for each block."""
    mask = 0
    for number in dirty.page_numbers():
        mask |= int.from_bytes(dirty.page_bytes(number), "little") << number * PAGE_BLOCKS
    return mask


def _blocks(mask: int) -> str:
    shown = [str(block) for block in range(mask.bit_length()) if mask >> block & 1]
    return f"blocks {' '.join(shown[:8])}{' ...' if len(shown) > 8 else ''}"
