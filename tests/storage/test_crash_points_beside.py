"""Every crash point of what lies beside a volume's metadata: digests and overlays.

As ``test_every_crash_point``: recorded, cut everywhere, opened by the product's loader, held against the
rules, and the same with bugs planted.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pairsync.core.dirty import DirtyMap
from pairsync.core.messages import Condition, Generation, OpKind, WriteOp
from pairsync.core.superblock import Superblock
from pairsync.core.units import BLOCK_BYTES
from pairsync.errors import PairsyncError
from pairsync.storage.device import Device
from pairsync.storage.digestfile import LeafFile
from pairsync.storage.digests import DigestTable, digests_bytes, format_digests, load_digests
from pairsync.storage.file import RawFile
from pairsync.storage.metadata import format_metadata, load_metadata, metadata_bytes
from pairsync.storage.overlay import Overlays
from pairsync.storage.overlayfile import OverlayState
from pairsync.storage.overlaylog import OverlayLog
from pairsync.storage.undolog import UndoLog
from pairsync.testing.crashpoints import Budget, CrashState, explore
from pairsync.testing.disks import SimMedium
from pairsync.testing.recording import Flush, Recording, RecordingDirectory
from pairsync.testing.replica_ledger import SEGMENT_BYTES, Ledger, RuleBroken, found_blocks, life_superblock
from pairsync.testing.replica_life import ReplicaLife, hand_made, wander
from pairsync.testing.simfiles import SimDirectory

BLOCKS = 12
SIZE = BLOCKS * BLOCK_BYTES
VOLUME_ID = life_superblock(1, SIZE, clean=True).volume_id

FULL = Budget(exhaustive_max=512, subsets_max=512, draws=24)
BRIEF = Budget(exhaustive_max=16, subsets_max=16, draws=2)


def made(superblock: Superblock) -> SimMedium:
    """Metadata "m" and an empty volume "v", durable."""
    medium = SimMedium()
    medium.create("m", metadata_bytes(SIZE, SEGMENT_BYTES))
    file = medium.open("m")
    format_metadata(file, superblock, segment_bytes=SEGMENT_BYTES)
    file.close()
    medium.create("v", SIZE)
    return medium


def recording_of(medium: SimMedium) -> Recording:
    return Recording({name: medium.content(name) for name in medium.names()})


# -- digests -------------------------------------------------------------------------------------------------


class DigestLife(ReplicaLife):
    """A life that keeps digests: noted behind each apply, saved before a segment is released."""

    table: DigestTable

    def _apply(self, ops: Sequence[WriteOp], blocks: Sequence[int], stamp: int) -> None:
        super()._apply(ops, blocks, stamp)
        if self._device is not None:
            self.table.note(self._device, ops)

    def _save(self, pages: dict[int, bytes], release: tuple[int, ...]) -> None:
        if self.tracker.closing is not None:
            self.table.save()
        super()._save(pages, release)


def doubtful_of(superblock: Superblock, dirty: DirtyMap) -> DirtyMap:
    """Blocks whose digests an unclean end has put in doubt."""
    return DirtyMap(BLOCKS) if superblock.clean else dirty


def a_life_with_digests(live: Callable[[ReplicaLife], None]) -> int:
    """Used, ended in order or not, and opened again, with digests that go to their file early."""
    medium = made(life_superblock(1, SIZE, clean=True))
    medium.create("d", digests_bytes(SIZE))
    file = medium.open("d")
    format_digests(file, volume_id=VOLUME_ID, size_bytes=SIZE, blank=True)
    file.close()
    recording = recording_of(medium)
    ledger = Ledger(SIZE)
    recording.note(ledger.known())
    for _ in range(2):  # the second one finds what the first has left, and recovers
        opened = load_metadata(recording.watch(medium.open("m")))
        device = RawFile(recording.watch(medium.open("v")))
        found = found_blocks(opened).copy()
        opened = dataclasses.replace(opened, pages=opened.store.read_bitmap())
        life = DigestLife(opened, device, ledger, recording.note)
        life.table = load_digests(
            recording.watch(medium.open("d")),
            volume_id=VOLUME_ID,
            size_bytes=SIZE,
            doubtful=doubtful_of(opened.superblock, found),
        ).table
        life.table._pending_max = 3
        live(life)
        ledger = Ledger.after(ledger.known(), SIZE)
        medium.process_crash()
    return explore(recording, judge_digests, BRIEF).states


def judge_digests(state: CrashState) -> None:
    """A digest is that of the block, or unknown; and the file is never thrown away."""
    medium = state.medium()
    opened = load_metadata(medium.open("m"))
    found = found_blocks(opened)
    digests = load_digests(
        medium.open("d"),
        volume_id=VOLUME_ID,
        size_bytes=SIZE,
        doubtful=doubtful_of(opened.superblock, found),
    )
    bad = digests.table.mismatches(0, memoryview(medium.content("v")))
    if bad:
        raise RuleBroken(f"blocks {bad} are recorded otherwise than they are")
    if any("read once" in note for note in digests.notes):
        raise RuleBroken(f"the table was made anew: {digests.notes}")


def abandoned(life: ReplicaLife) -> None:
    hand_made(life)


def ended(life: ReplicaLife) -> None:
    hand_made(life)
    life.end()


def drawn(life: ReplicaLife) -> None:
    life.begin()
    wander(life, random.Random(7), 20, range(BLOCKS))


@pytest.mark.parametrize("live", [abandoned, ended, drawn])
def test_every_crash_point_of_digests(live: Callable[[ReplicaLife], None]) -> None:
    states = a_life_with_digests(live)
    print(f"{states} states examined")
    assert states > 500


def forgetful(self: DigestTable, device: Device, ops: Sequence[WriteOp]) -> None:
    note(self, device, [op for op in ops if op.kind is OpKind.DATA])


def none_in_doubt(superblock: Superblock, dirty: DirtyMap) -> DirtyMap:
    return DirtyMap(BLOCKS)


note = DigestTable.note


@pytest.mark.parametrize(
    ("where", "name", "planted"),
    [
        (DigestTable, "save", lambda self, point=None: None),
        (DigestTable, "note", forgetful),
        (LeafFile, "begin_flush", lambda self: lambda: None),
        (None, "doubtful_of", none_in_doubt),
    ],
    ids=["never saved", "zeroes not noted", "not flushed", "nothing in doubt"],
)
def test_a_planted_bug_of_digests_is_found(
    where: Any, name: str, planted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where is None:
        monkeypatch.setitem(globals(), name, planted)
    else:
        monkeypatch.setattr(where, name, planted)
    with pytest.raises(RuleBroken, match="recorded otherwise"):
        a_life_with_digests(ended)


# -- overlays ------------------------------------------------------------------------------------------------

TARGET = Generation(2, 1, 0x77)
OLD = dataclasses.replace(life_superblock(1, SIZE, clean=True), condition=Condition.CONSISTENT)
SYNCING = dataclasses.replace(OLD, condition=Condition.SYNCING, sync_target=TARGET, clean=False)
NEW = dataclasses.replace(OLD, lineage=(TARGET, *OLD.lineage), term=2)
OWN = frozenset({1, 5})  # blocks that the replica had written on its own


def data(letter: bytes, *blocks: int) -> list[WriteOp]:
    return [WriteOp(OpKind.DATA, block * BLOCK_BYTES, BLOCK_BYTES, letter * BLOCK_BYTES) for block in blocks]


BATCHES = [data(b"n", 1, 2), [WriteOp(OpKind.ZERO, 4 * BLOCK_BYTES, 3 * BLOCK_BYTES)], data(b"m", 2, 9)]


def own_map() -> DirtyMap:
    marked = DirtyMap(BLOCKS)
    for block in OWN:
        marked.mark(block, block + 1)
    return marked


def a_resync(*, completed: bool) -> tuple[Recording, bytes, bytes]:
    """Begun, and ended either way; with the volume's old and new content."""
    medium = made(OLD)
    file = medium.open("v")
    rng = random.Random(3)
    for block in (1, 2, 3, 5, 6, 9):
        file.write(block * BLOCK_BYTES, (rng.randbytes(BLOCK_BYTES),))
    file.flush()
    file.close()
    old = medium.content("v")
    recording = recording_of(medium)
    store = load_metadata(recording.watch(medium.open("m"))).store
    device = RawFile(recording.watch(medium.open("v")))
    overlays = Overlays(RecordingDirectory(SimDirectory(medium), recording), "v", SIZE)
    undo = overlays.begin(OLD, TARGET, 1_900_000_000)
    store.write_superblock(SYNCING)
    for ops in BATCHES:
        undo.preserve(device, ops)
        device.apply(ops)
    new = medium.content("v")
    if completed:
        device.flush()
        recording.note("complete")
        undo.finish(own_map())
        store.write_superblock(NEW)
    else:
        undo.revert(device)
        store.write_superblock(OLD)
        undo.discard()
    return recording, old, new


def judge_resync(state: CrashState, old: bytes, new: bytes) -> None:
    """Either label tells the truth, and as long as the resync is not complete there is a way back."""
    medium = state.medium()
    superblock = load_metadata(medium.open("m")).superblock
    overlays = Overlays(SimDirectory(medium), "v", SIZE)
    if overlays.problems:
        raise RuleBroken(f"overlays that cannot be read: {overlays.problems}")
    if superblock == SYNCING:
        undo = overlays.open_undo(superblock)
        if undo is not None:
            device = RawFile(medium.open("v"))
            undo.revert(device)
            undo.close()
            device.close()
    content = medium.content("v")
    if superblock == NEW or (superblock == SYNCING and state.notes and content == new):
        if content != new:
            raise RuleBroken("the resync was not complete")
        kept = next(iter(overlays.list()), None)
        if kept is None or kept.state is not OverlayState.KEPT:
            raise RuleBroken("what the replica had written on its own is not kept")
        found = {
            op.offset // BLOCK_BYTES + at // BLOCK_BYTES: bytes(op.data or bytes(op.length))[
                at : at + BLOCK_BYTES
            ]
            for ops in overlays.ops(kept.id)
            for op in ops
            for at in range(0, op.length, BLOCK_BYTES)
        }
        if found != {block: old[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] for block in OWN}:
            raise RuleBroken(f"the overlay holds blocks {sorted(found)}")
    elif content != old:
        raise RuleBroken(f"{superblock.condition.name}, and the content is not that of the consistent point")


def explored(*, completed: bool) -> int:
    recording, old, new = a_resync(completed=completed)
    return explore(recording, lambda state: judge_resync(state, old, new), FULL).states


@pytest.mark.parametrize("completed", [True, False])
def test_every_crash_point_of_an_overlay(completed: bool) -> None:
    states = explored(completed=completed)
    print(f"{states} states examined")
    assert states > 200


def preserve_late(self: UndoLog, device: Device, ops: Sequence[WriteOp]) -> None:
    """`UndoLog.preserve` that forgets what is zeroed."""
    preserve(self, device, [op for op in ops if op.kind is OpKind.DATA])


def append_lazily(self: OverlayLog, *args: Any, **options: Any) -> Any:
    """`OverlayLog.append` into the page cache only."""
    file = self.file
    write = file.write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file, "write", lambda at, buffers, durable=False: write(at, buffers))
        patch.setattr(file, "flush", lambda: None)
        return append(self, *args, **options)


def discard_all(self: UndoLog, own: DirtyMap | None, *, salvage: bool = False) -> None:
    """`UndoLog.finish` that keeps nothing."""
    self.discard()


def publish_first(self: RecordingDirectory, file: Any, name: str) -> None:
    """`Directory.publish` whose file has lost its flush."""
    operations = self._recording.operations
    number = self._recording.number(file.path)
    operations[:] = [each for each in operations if each != Flush(number)]
    publish(self, file, name)


preserve, append, publish = UndoLog.preserve, OverlayLog.append, RecordingDirectory.publish


@pytest.mark.parametrize(
    ("where", "name", "planted", "completed"),
    [
        (UndoLog, "preserve", preserve_late, False),
        (OverlayLog, "append", append_lazily, False),
        (UndoLog, "finish", discard_all, True),
        (RecordingDirectory, "publish", publish_first, True),
        (RawFile, "flush", lambda self: None, True),
    ],
    ids=["zeroing not kept", "kept in the cache", "nothing kept", "not flushed", "complete too early"],
)
def test_a_planted_bug_of_overlays_is_found(
    where: Any, name: str, planted: Any, completed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, name, planted)
    with pytest.raises((PairsyncError, RuleBroken)) as found:
        explored(completed=completed)
    assert found.value.__notes__[0].startswith("crash at operation")
