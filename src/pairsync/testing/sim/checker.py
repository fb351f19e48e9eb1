"""The safety rules, checked from outside after every step.

Names of rules are those of the design; each failure says which rule, where and why.

* ``lost-write`` (rule 2): no disk that counts holds a content that is older than what is owed: the active's
  always; the standby's as long as any superblock that the active may find after a crash calls it in sync.
* ``in-sync-claim`` (rules 3, 8): such a superblock goes with a standby that has adopted that generation and
  is not being overwritten.
* ``term``, ``lineage`` (rules 1, 6, 9): terms and generations only grow, nothing newer or unrelated is
  overwritten.
* ``window`` (rule 7): a crash of the active in sync costs no more than the write-intent window.

* ``size`` (rule 2): the size that is served is recorded by every replica that counts, and one that somebody
  was told of never falls.
* ``digest`` (rule 8): a digest that is recorded is true, on a disk that counts.
* ``false-alarm`` (rule 8): a proof finds a difference only where the dirty map or a disk was tampered with.

Others: ``dirty-superset`` in `differences`; ``mixture``, ``unrecorded``, ``refused`` and ``lag`` in
`stream_checks`; ``hang`` and ``liveness`` in `world`; ``journal`` in `metadata`; ``complete`` in `guest`;
``strange-disk`` and ``operator`` in `operators`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pairsync.core.effects import Apply, Persist
from pairsync.core.messages import Condition, OpKind, Role
from pairsync.core.standing import Phase
from pairsync.core.superblock import Superblock
from pairsync.core.tracker import GenerationState
from pairsync.core.units import BLOCK_BYTES

from .differences import Differences
from .disk import SECTOR_BYTES
from .history import History, WriteRecord
from .stream_checks import StreamChecks

if TYPE_CHECKING:
    from .host import SimHost
    from .media import Replica
    from .world import World

__all__ = ["Checker"]

FULL_CHECK_STEPS = 400
"""Steps between full comparisons; in between only what was touched is looked at."""


class _View:
    """What the checker keeps of one volume."""

    __slots__ = ("acked_there", "claims", "generation", "intact", "phase", "size_bytes")

    def __init__(self) -> None:
        self.claims = False  # a superblock that calls the peer in sync may be on disk
        self.intact = False  # the standby's disk is the one that this superblock speaks of
        self.acked_there = True  # it has had no power cut since: it owes what was acknowledged
        self.phase = Phase.ABSENT
        self.size_bytes = 0  # that the active serves
        self.generation: GenerationState | None = None  # state of the closing one


class Checker:
    """See the module."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._views = [_View() for _ in world.guest.histories]
        self._sync = world.profile.options.level == "sync"
        self._steps = 0
        self.differences = Differences(world, len(self._views))
        self.stream = StreamChecks(world, len(self._views))

    def begin(self, start: str) -> None:
        """How the seed begins: what the dirty set speaks of, what the superblock claims."""
        for volume, view in enumerate(self._views):
            self.differences.begin(volume, tracked=start != "prefilled")
            view.claims = self._world.active.replicas[volume].claims()
            view.intact = view.claims and start != "switched"

    def _pair(self, volume: int) -> tuple[Replica, Replica]:
        world = self._world
        return world.active.replicas[volume], world.standby.replicas[volume]

    def _fail(self, rule: str, volume: int, text: str) -> None:
        self._world.fail(rule, f"volume {volume}: {text}")

    def full(self) -> None:
        """Compare everything, the slow way."""
        for volume, view in enumerate(self._views):
            self.differences.check_all(volume)
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
        if host.role is Role.STANDBY:
            self.stream.applied(volume, job)
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
        if not self._sync:
            self.stream.check_lag(volume, self._views[volume].phase)
        if self._counts(volume):
            if self._views[volume].acked_there:
                self._owed(volume, "standby", standby.disk.content, history.acked, start, stop)
            if record.fua:
                self._owed(volume, "standby, durable", standby.disk.durable, history.flushed, start, stop)

    def read(self, volume: int, content: list[int], start: int, stop: int, owed: list[int]) -> None:
        """The guest was given that content of these sectors; ``owed``: the floor when it asked."""
        self._owed(volume, "read", content, owed, start, stop)

    def flush_acknowledged(self, volume: int, covered: list[tuple[int, int]]) -> None:
        """The guest was told that these sectors are durable."""
        history = self._world.guest.histories[volume]
        active, standby = self._pair(volume)
        for start, stop in covered:
            self._owed(volume, "active, durable", active.disk.durable, history.flushed, start, stop)
            if self._counts(volume):
                self._owed(volume, "standby, durable", standby.disk.durable, history.flushed, start, stop)

    def wrong_digests(self, host: SimHost, volume: int, blocks: list[int]) -> None:
        """These blocks do not hold what their digests say: a scrub would raise an alarm."""
        # A disk that has lost its cache keeps digests of what it had.  Of a standby's the active's dirty map
        # holds those blocks until it is in sync again; after a failed flush nothing is relied on.
        if host.suspect or not blocks:
            return
        if host.role is Role.ACTIVE or (self._counts(volume) and self._views[volume].acked_there):
            self._fail("digest", volume, f"{host.name}: digests of blocks {blocks[:8]} are not true")

    # ------------------------------------------------------------------ metadata

    def metadata_changed(self, host: SimHost, volume: int) -> None:
        """Bitmap pages or intents have become durable, or have been given up."""
        if host.role is Role.ACTIVE:
            self.differences.check(volume)

    def persist_asked(self, host: SimHost, effect: Persist) -> None:
        """A superblock may be on disk from now on."""
        if host.role is Role.ACTIVE and effect.superblock.peer_in_sync:
            self._claim(effect.volume)

    def _claim(self, volume: int) -> None:
        view = self._views[volume]
        if view.claims:
            return
        view.claims = True
        if self.differences.tracked(volume):  # it has adopted what the active has
            view.intact = True
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

    def adopted(self, volume: int) -> None:
        """The standby has taken over what the active is: from here on it owes what is acknowledged."""
        self._views[volume].acked_there = True

    def alarm(self, volume: int) -> None:
        """A proof has found blocks that differ: where the dirty set held every difference there are none."""
        if self.differences.tracked(volume):
            self._fail("false-alarm", volume, "a proof has found what does not differ, or was known")

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
            if after.size_bytes > max(
                before.size_bytes, self._pair(volume)[0].metadata.superblock.size_bytes
            ):
                self._world.faults.ambush_growth()
        if view.claims and view.intact:
            self._check_claim(volume)

    def _check_own_lineage(self, volume: int, before: Superblock, after: Superblock) -> None:
        old, new = before.lineage, after.lineage
        if new == old:
            return
        if not new or new[1:] != old[: len(new) - 1] or (old and new[0][:2] <= old[0][:2]):
            self._fail("lineage", volume, f"the active's lineage goes from {old[:3]} to {new[:3]}")

    def _check_standby_lineage(self, volume: int, before: Superblock, after: Superblock) -> None:
        if self.differences.from_before(volume, self._world.link.session_of(1)):
            return  # the last of a session with an active whose disk has been swapped since
        active = self._pair(volume)[0].metadata.superblock
        source = after.lineage[0] if after.lineage else None
        if after.condition is Condition.SYNCING:
            source = after.sync_target
        if source not in active.lineage:
            return  # a state of an earlier session is written again, after that failed
        overwritten = after.condition is Condition.SYNCING or after.lineage != before.lineage
        if overwritten and before.lineage and before.lineage[0] not in active.lineage:
            self._fail(
                "lineage",
                volume,
                f"a standby at {before.lineage[0].describe()} is overwritten from {active.lineage[:3]}",
            )

    # ------------------------------------------------------------------ steps and faults

    def step(self, host: SimHost) -> None:
        """A host has performed a bundle."""
        self._steps += 1
        session = host.session
        if session is not None and host.role is Role.ACTIVE:
            for volume, source in enumerate(session.sources):
                view = self._views[volume]
                if source.standing.phase is not view.phase:
                    self._phase(volume, source.standing.phase)
                if source.growth.size_bytes != view.size_bytes:
                    self._serves(volume, source.growth.size_bytes)
                closing = source.tracker.closing
                state = None if closing is None else closing.state
                if state is not view.generation:
                    view.generation = state
                    self._world.faults.ambush_generation()
                if self._steps % 16 == 0:
                    source.tracker.check_invariants()
        if self._steps % FULL_CHECK_STEPS == 0:
            self.full()

    def _serves(self, volume: int, size_bytes: int) -> None:
        """The active serves another size than before: it is recorded wherever it has to be."""
        view = self._views[volume]
        view.size_bytes = size_bytes
        active, standby = self._pair(volume)
        told = self._world.guest.histories[volume].volume_sectors * SECTOR_BYTES
        there = [active] + [standby] * (view.claims and view.intact)
        recorded = min(each.metadata.superblock.size_bytes for each in there)
        if not told <= size_bytes <= recorded:
            self._fail(
                "size", volume, f"{size_bytes} bytes are served, {recorded} recorded, {told} were told"
            )

    def _phase(self, volume: int, phase: Phase) -> None:
        view = self._views[volume]
        before, view.phase = view.phase, phase
        if phase in (Phase.SYNCING, Phase.ADOPTING) and not self._world.profile.options.digests:
            self.differences.agreed(volume)
        self._world.phase_changed(volume, before, phase)

    def cache_lost(self, host: SimHost, volume: int) -> None:
        """A disk has forgotten what was not flushed."""
        self.differences.recompute(volume)
        view = self._views[volume]
        history = self._world.guest.histories[volume]
        if host.role is Role.ACTIVE:
            self._owed(
                volume, "active after a power cut", host.replicas[volume].disk.content, history.flushed
            )
            history.power_lost()
        else:
            view.acked_there = False
        self.differences.check(volume)

    def crashed(self, host: SimHost, *, power: bool, in_sync: bool) -> None:
        """The host has just died: what would be recovered?"""
        for volume, view in enumerate(self._views):
            if host.role is Role.ACTIVE:
                view.claims = host.replicas[volume].claims()
                view.phase = Phase.ABSENT
            if power:
                self.cache_lost(host, volume)
            else:
                self.differences.check(volume)
                history = self._world.guest.histories[volume]
                self._owed(volume, "active", self._pair(volume)[0].disk.content, history.acked)
            if view.claims and view.intact:
                self._check_standby(volume, self._pair(volume)[1])
            if in_sync and host.role is Role.ACTIVE:
                self._check_window(volume)

    def _check_window(self, volume: int) -> None:
        """Data blocks to be copied again; zeroes cost nothing and do not count."""
        profile = self._world.profile
        if set(profile.habits.kinds) != {OpKind.DATA}:
            return
        recovered = self._pair(volume)[0].metadata.recovered().count * BLOCK_BYTES
        window = profile.options.intent_window_bytes + 2 * self.stream.batch_bytes
        if recovered > window:
            self._fail("window", volume, f"a crash in sync costs {recovered} bytes of resync, not {window}")

    def swapped(self, host: SimHost, volume: int) -> None:
        """A disk was replaced by another one."""
        view = self._views[volume]
        view.intact = False
        if host.role is Role.ACTIVE:
            view.claims = host.replicas[volume].claims()
        self.differences.swapped(volume)

    def mislaid(self, volume: int) -> tuple[bool, bool]:
        """The standby has a wrong disk for a while; what `found` is to be told."""
        view = self._views[volume]
        known = self.differences.tracked(volume), view.intact
        view.intact = False
        self.differences.swapped(volume)
        return known

    def found(self, volume: int, known: tuple[bool, bool]) -> None:
        """It has its own one again."""
        tracked, self._views[volume].intact = known
        self.differences.found(volume, tracked=tracked)

    def closed(self, host: SimHost) -> None:
        """The host has closed its volumes in order."""
        for replica in host.replicas:
            if not replica.metadata.superblock.clean:
                self._fail("closed", replica.index, "closed in order, and not recorded as clean")
