"""The safety rules, checked from outside: from the two simulated disks, and what each host has recorded.

* ``dirty-superset`` (DESIGN rule 7): a block whose content differs on the two disks, or is not durable on
  either, is in the active host's dirty set; and after every crash in the set that it recovers.  It holds from
  the moment at which a standby is written to; a standby's disk that was swapped is told apart by its lineage
  only, so the rule rests until a session has agreed on a plan for it.
* ``lost-write`` (rule 2): no disk that counts holds a content that is older than what is owed: the
  active's always, the standby's as long as the active's superblock calls it in sync; after a power cut what
  is durable.
* ``in-sync-claim`` (rules 3, 8): such a superblock goes with a standby that has adopted that generation and
  is not being overwritten; no host whose replica is being overwritten calls itself in sync.
* ``mixture`` (rule 3): a standby that calls itself blank is not written to.
* ``term``, ``lineage`` (rules 1, 6): they only grow.
* ``size`` (rule 2): what is served is recorded by every replica that counts, and never falls once told.
* ``way-back``, ``own-kept`` (rule 9): see ``wayback``.

The contents of disks are read as lists of authors (`writer`), and judged by the history of the core
simulator, which knows nothing of replication.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NoReturn

from pairsync.core.effects import DropSession, Effect, Emit
from pairsync.core.events import InSyncEvent, RefusedEvent
from pairsync.core.messages import Condition, Role
from pairsync.core.standing import Phase
from pairsync.core.superblock import Superblock
from pairsync.core.units import BLOCK_BYTES, block_count_of
from pairsync.guest.replica import Replica
from pairsync.testing.disks import SECTOR_BYTES
from pairsync.testing.sim.history import WriteRecord

from .host import Life, SimHost
from .start import data_name
from .wayback import WayBack
from .writer import STAMP_BYTES

if TYPE_CHECKING:
    from .world import World

__all__ = ["Checker"]

BLOCK_SECTORS = BLOCK_BYTES // SECTOR_BYTES

FULL_CHECK_STEPS = 200
"""Bundles of effects between two comparisons of everything."""


class _View:
    """What the checker keeps of one volume."""

    __slots__ = ("acked_there", "claims", "intact", "own", "phase", "swap_session", "tracked")

    def __init__(self, start: str) -> None:
        self.tracked = start != "prefilled"  # the standby's disk is the one that the active's map speaks of
        self.intact = start != "switched"  # it is the one that the active's superblock speaks of
        self.own: frozenset[int] = frozenset()  # what the standby wrote in an earlier role, and will name
        # The standby has had no power cut since it was in sync: it owes what was acknowledged.
        self.acked_there = start != "switched"
        self.claims = False  # the active's durable superblock calls the peer in sync
        self.phase = Phase.ABSENT
        self.swap_session: bytes | None = None  # of the active's link when the standby's disk was swapped


class Checker:
    """See the module."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._views = [_View(world.profile.start) for _ in world.profile.sizes_bytes]
        self._sync = world.profile.options.level == "sync"
        self._steps = 0
        self.way_back = WayBack(world)

    def _fail(self, rule: str, volume: int, text: str) -> NoReturn:
        self._world.fail(rule, f"volume {volume}: {text}")

    # ------------------------------------------------------------------ contents

    def _live(self, host: SimHost, volume: int) -> bytearray:
        medium = host.medium
        return medium.platter(data_name(volume), medium.life).live

    def _older(self, host: SimHost, volume: int) -> dict[int, list[bytes]]:
        """Of the sectors that are not durable, what they held, what is durable first."""
        medium = host.medium
        return medium.platter(data_name(volume), medium.life).older

    def authors(self, host: SimHost, volume: int) -> list[int]:
        """Who wrote each sector."""
        return _authors(self._live(host, volume))

    def _durable_authors(self, host: SimHost, volume: int) -> list[int]:
        authors = self.authors(host, volume)
        for sector, contents in self._older(host, volume).items():
            authors[sector] = int.from_bytes(contents[0][:STAMP_BYTES], "little")
        return authors

    def _unequal(self, volume: int) -> list[int]:
        """Blocks that differ on the two disks, or after a power cut of either might."""
        active, standby = self._world.active, self._world.standby
        found = {s // BLOCK_SECTORS for host in (active, standby) for s in self._older(host, volume)}
        ours, theirs = self._live(active, volume), self._live(standby, volume)
        if ours != theirs:
            for block in range(block_count_of(len(ours))):
                part = slice(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES)
                if ours[part] != theirs[part]:
                    found.add(block)
        return sorted(found)

    # ------------------------------------------------------------------ what is known to differ

    def check_dirty(self, volume: int) -> None:
        """Every block that differs is known to differ."""
        guest = self._world.active.guest
        if guest is not None and self._views[volume].tracked:
            tracker = guest.session.sources[volume].tracker
            self._check_superset(volume, tracker.is_dirty, "is not in the dirty set")

    def _check_superset(self, volume: int, known: Callable[[int], bool], otherwise: str) -> None:
        own = self._views[volume].own
        forgotten = [block for block in self._unequal(volume) if not known(block) and block not in own]
        if forgotten:
            shown = " ".join(map(str, forgotten[:8]))
            self._fail("dirty-superset", volume, f"differs or is not durable, and {otherwise}: block {shown}")

    def recovered(self, host: SimHost, volume: int, replica: Replica) -> None:
        """A life has opened a volume: what does it remember?"""
        view, block = self._views[volume], replica.setup.superblock
        if host.role is Role.STANDBY:
            view.own = frozenset(block for run in replica.setup.recovered.runs() for block in range(*run))
            if view.own and self._world.profile.start != "switched":
                self._fail("dirty-superset", volume, "a host that was never active recovers dirty blocks")
            return
        view.claims = block.peer_in_sync
        view.phase = Phase.ABSENT
        if view.tracked:
            recovered = replica.setup.recovered
            self._check_superset(volume, recovered.__contains__, "what was recovered has forgotten it")
        self._check_owed(volume, "active, recovered", self.authors(host, volume), self._acked(volume))
        if view.claims and view.intact:
            self._check_claim(volume)
            self._check_standby(volume)

    def wrote_alone(self, volume: int, extents: Iterable[tuple[int, int]]) -> None:
        """The standby wrote these blocks in an earlier role."""
        self._views[volume].own = frozenset(block for run in extents for block in range(*run))

    def full(self) -> None:
        """Look at everything."""
        for volume, view in enumerate(self._views):
            self.check_dirty(volume)
            self._check_owed(volume, "active", self.authors(self._world.active, volume), self._acked(volume))
            if view.claims and view.intact:
                self._check_standby(volume)

    # ------------------------------------------------------------------ what is owed

    def _acked(self, volume: int) -> list[int]:
        return self._world.writer.histories[volume].acked

    def _flushed(self, volume: int) -> list[int]:
        return self._world.writer.histories[volume].flushed

    def _check_owed(
        self, volume: int, where: str, authors: list[int], floor: list[int], start: int = 0, stop: int = -1
    ) -> None:
        """That range of a disk holds nothing older than what is owed."""
        history = self._world.writer.histories[volume]
        wrong = history.first_wrong(authors, start, len(authors) if stop < 0 else stop, floor)
        if wrong is not None:
            self._fail("lost-write", volume, f"{where}: {history.explain(wrong, authors[wrong], floor)}")

    def _check_standby(self, volume: int) -> None:
        """All of a standby that the active's superblock calls in sync."""
        if self._sync:
            standby = self._world.standby
            if self._views[volume].acked_there:
                self._check_owed(volume, "standby", self.authors(standby, volume), self._acked(volume))
            durable = self._durable_authors(standby, volume)
            self._check_owed(volume, "standby, durable", durable, self._flushed(volume))

    def _places(self, volume: int) -> Iterable[tuple[SimHost, bool]]:
        """The hosts whose disks count, and whether they owe what was acknowledged and not flushed."""
        view = self._views[volume]
        yield self._world.active, True
        if self._sync and view.claims and view.intact:
            yield self._world.standby, view.acked_there

    def write_acknowledged(self, volume: int, record: WriteRecord) -> None:
        """The guest was told that a write is there."""
        start, stop = record.start, record.stop
        for host, owes_acked in self._places(volume):
            if owes_acked:
                authors = self.authors(host, volume)
                self._check_owed(volume, host.name, authors, self._acked(volume), start, stop)
            if record.fua:
                durable = self._durable_authors(host, volume)
                self._check_owed(volume, f"{host.name}, durable", durable, self._flushed(volume), start, stop)
        self.check_dirty(volume)

    def flush_acknowledged(self, volume: int, covered: Sequence[tuple[int, int]]) -> None:
        """The guest was told that these sectors are durable."""
        for host, _ in self._places(volume):
            durable = self._durable_authors(host, volume)
            for start, stop in covered:
                self._check_owed(volume, f"{host.name}, durable", durable, self._flushed(volume), start, stop)
        self.check_dirty(volume)

    def read(self, volume: int, start: int, stop: int, content: memoryview) -> None:
        """The guest has read these sectors."""
        authors = [0] * start + _authors(content)
        self._check_owed(volume, "read", authors, self._acked(volume), start, stop)

    # ------------------------------------------------------------------ superblocks

    def about_to_write(self, host: SimHost, volume: int, before: Superblock, after: Superblock) -> None:
        """A superblock is about to be replaced."""
        if host.role is Role.STANDBY:
            if after.condition is Condition.SYNCING:  # what it holds is about to be kept
                self._world.damage.forget(host, volume)
            self.way_back.about_to_write(volume, before, after)

    def superblock_written(self, host: SimHost, volume: int, before: Superblock, after: Superblock) -> None:
        """A superblock has become durable."""
        view = self._views[volume]
        if after.term < before.term:
            self._fail("term", volume, f"{host.name} goes back from term {before.term} to {after.term}")
        if host.role is Role.ACTIVE:
            old, new = before.lineage, after.lineage
            if new != old and (
                not new or new[1:] != old[: len(new) - 1] or (old and new[0][:2] <= old[0][:2])
            ):
                self._fail("lineage", volume, f"the active's lineage goes from {old[:3]} to {new[:3]}")
            if after.peer_in_sync and not view.claims:
                view.intact = view.tracked
                view.acked_there = True
            view.claims = after.peer_in_sync
        else:
            self.way_back.written(volume, after, view.own)
            if after.size_bytes > before.size_bytes:
                self._world.faults.standby_grew()
        if view.claims and view.intact:
            self._check_claim(volume)
            self._check_standby(volume)

    def _check_claim(self, volume: int) -> None:
        """What the active's superblock says of the standby is so."""
        mine = self._world.active.superblocks[volume]
        theirs = self._world.standby.superblocks[volume]
        if mine is None or theirs is None:
            return
        if theirs.condition is not Condition.CONSISTENT:
            self._fail("in-sync-claim", volume, f"a {theirs.condition.name} standby is called in sync")
        if not theirs.lineage or theirs.lineage[0] != mine.lineage[0]:
            self._fail(
                "in-sync-claim", volume, f"{theirs.lineage[:2]} is called in sync with {mine.lineage[:2]}"
            )

    def standby_changes(self, name: str) -> None:
        """A volume of the standby is about to be written."""
        for volume, block in self._world.standby.superblocks.items():
            if data_name(volume) == name and block is not None and block.condition is Condition.BLANK:
                self._fail("mixture", volume, "a standby that calls itself blank is written to")

    # ------------------------------------------------------------------ steps

    def step(self, life: Life, effects: Sequence[Effect]) -> None:
        """A host is about to perform a bundle."""
        self._steps += 1
        guest = life.guest
        if guest is None:
            return
        for index, source in enumerate(guest.session.sources):
            if source.standing.phase is not self._views[index].phase:
                self._phase(life, index, source.standing.phase)
            self._check_size(index, source.growth.size_bytes)
        if guest.session.targets and guest.in_sync:
            for index, block in life.host.superblocks.items():
                if block is not None and block.condition is not Condition.CONSISTENT:
                    self._fail(
                        "in-sync-claim", index, f"a {block.condition.name} standby calls itself in sync"
                    )
        for effect in effects:
            if isinstance(effect, DropSession) and "grows first" in effect.reason:
                self._world.reach(f"grows-first:{life.host.name}")
            if isinstance(effect, Emit):
                if isinstance(effect.event, RefusedEvent):
                    self._world.refused(effect.event)
                elif isinstance(effect.event, InSyncEvent) and guest.session.sources:
                    self._in_sync()
                self._world.event(life, effect.event)
        if self._steps % FULL_CHECK_STEPS == 0:
            self.full()
            for source in guest.session.sources:
                source.tracker.check_invariants()

    def _check_size(self, volume: int, served_bytes: int) -> None:
        view = self._views[volume]
        told = self._world.writer.histories[volume].volume_sectors * SECTOR_BYTES
        if -(-served_bytes // SECTOR_BYTES) * SECTOR_BYTES < told:
            self._fail("size", volume, f"{served_bytes} bytes are served, and {told} were told")
        hosts = [self._world.active] + [self._world.standby] * (view.claims and view.intact)
        for host in hosts:
            block = host.superblocks[volume]
            if block is not None and block.size_bytes < served_bytes:
                text = f"{served_bytes} bytes are served, {block.size_bytes} recorded by {host.name}"
                self._fail("size", volume, text)

    def _phase(self, life: Life, volume: int, phase: Phase) -> None:
        view = self._views[volume]
        before, view.phase = view.phase, phase
        if phase in (Phase.SYNCING, Phase.ADOPTING) and not view.tracked:
            link = None if life.guest is None else life.guest.link
            session = None if link is None else link.session
            if session is not None and session.session_id != view.swap_session:
                view.tracked = True
                self.check_dirty(volume)
        self._world.phase_changed(volume, before, phase)

    def _in_sync(self) -> None:
        """A volume is in sync again: it is as if nothing had ever happened."""
        for view in self._views:
            if view.phase is Phase.IN_SYNC and view.tracked:
                view.acked_there = view.intact = True
                view.own = frozenset()
        self.full()

    # ------------------------------------------------------------------ faults

    def crashed(self, host: SimHost, *, cache_lost: bool) -> None:
        """The host has just died."""
        self._world.damage.peer_parted()
        self.way_back.host_died(cache_lost=cache_lost and host.role is Role.STANDBY)
        for volume, view in enumerate(self._views):
            if host.role is Role.ACTIVE:
                view.phase = Phase.ABSENT
                if cache_lost:
                    floor = self._flushed(volume)
                    self._check_owed(volume, "active after a power cut", self.authors(host, volume), floor)
                    self._world.writer.histories[volume].power_lost()
                else:
                    self._check_owed(volume, "active", self.authors(host, volume), self._acked(volume))
            else:
                view.acked_there = view.acked_there and not cache_lost
                self.check_dirty(volume)
                if view.claims and view.intact:
                    self._check_standby(volume)

    def swapped(self) -> None:
        """The standby's disks were replaced."""
        self.way_back.swapped()
        guest = self._world.active.guest
        session = None if guest is None or guest.link is None else guest.link.session
        for view in self._views:
            view.tracked = view.intact = False
            view.own = frozenset()
            view.swap_session = None if session is None else session.session_id


def _authors(content: bytearray | memoryview) -> list[int]:
    """The first stamp of every sector."""
    with memoryview(content) as view, view.cast("Q") as stamps:
        return stamps[:: SECTOR_BYTES // STAMP_BYTES].tolist()
