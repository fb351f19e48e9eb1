"""The undo log against an oracle: old content comes back exactly, after any crash at any step."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pairsync.core.dirty import DirtyMap
from pairsync.core.messages import Condition, Generation, OpKind, WriteOp
from pairsync.core.superblock import Superblock
from pairsync.core.units import BLOCK_BYTES, GIB, MIB, TIB, block_count_of, extent_of
from pairsync.errors import ArbitrationError, BackendError, ClosedError, MetadataError
from pairsync.storage import undolog
from pairsync.storage.blockfile import Allocation
from pairsync.storage.file import RawFile
from pairsync.storage.overlay import Overlays
from pairsync.storage.overlayfile import RECORDS_AT, OverlayState
from pairsync.storage.undolog import UndoLog
from pairsync.testing.disks import Fault, PowerCut, SimAction, SimDisk, SimMedium, SimOperation
from pairsync.testing.simfiles import SimDirectory

BLOCKS = 24
SIZE = BLOCKS * BLOCK_BYTES - 1000  # the last block is partial
TARGET = Generation(2, 1, 0x77)
FILE = "v.pairsync-overlay-1"

Make = Callable[..., Superblock]


class Rig:
    """A replica on a simulated medium, with content, and its overlays."""

    def __init__(self, make: Make, *, size_bytes: int = SIZE, seed: int = 1, fill: str = "mixed") -> None:
        self.superblock = make(size_bytes=size_bytes)
        self.syncing = dataclasses.replace(self.superblock, condition=Condition.SYNCING)
        self.medium = SimMedium()
        self.medium.create("v", size_bytes)
        self.disk = SimDisk(self.medium, "v")
        rng = random.Random(seed)
        for block in range(block_count_of(size_bytes)):
            if fill == "data" or (fill == "mixed" and rng.random() < 0.6):
                length = min(BLOCK_BYTES, size_bytes - block * BLOCK_BYTES)
                self.disk.apply([WriteOp(OpKind.DATA, block * BLOCK_BYTES, length, rng.randbytes(length))])
        self.disk.flush()
        self.old = self.medium.content("v")
        self.medium.step = 0
        self.directory = SimDirectory(self.medium)

    def overlays(self, **options: Any) -> Overlays:
        return Overlays(self.directory, "v", self.superblock.size_bytes, **options)

    def begin(self) -> UndoLog:
        return self.overlays().begin(self.superblock, TARGET, 1_900_000_000)

    def reopen(self) -> UndoLog:
        """After a crash or a close, with the superblock that a resync leaves."""
        self.disk.close()
        self.disk = SimDisk(self.medium, "v")
        undo = self.overlays().open_undo(self.syncing)
        assert undo is not None
        return undo


@pytest.fixture
def rig(make_superblock: Make) -> Rig:
    return Rig(make_superblock)


def _random_ops(rng: random.Random, size_bytes: int) -> list[WriteOp]:
    ops = []
    for _ in range(rng.randrange(1, 5)):
        offset = rng.randrange(size_bytes)
        length = min(
            rng.choice([1, 100, BLOCK_BYTES, rng.randrange(1, 6 * BLOCK_BYTES)]), size_bytes - offset
        )
        kind = rng.choice(list(OpKind))
        ops.append(WriteOp(kind, offset, length, rng.randbytes(length) if kind is OpKind.DATA else None))
    return ops


def _note(seen: list[SimOperation], operation: SimOperation) -> None:
    seen.append(operation)


def _touched(ops: Sequence[WriteOp]) -> set[int]:
    return {block for op in ops for block in range(*extent_of(op.offset, op.length))}


def _blocks(marked: DirtyMap) -> set[int]:
    return {block for run in marked.runs() for block in range(*run)}


def _block(content: bytes, block: int) -> bytes:
    return content[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]


def _map(blocks: Sequence[int] | set[int], block_count: int = BLOCKS) -> DirtyMap:
    marked = DirtyMap(block_count)
    for block in blocks:
        marked.mark(block, block + 1)
    return marked


def _data(block: int, count: int = 1, letter: bytes = b"n") -> WriteOp:
    return WriteOp(OpKind.DATA, block * BLOCK_BYTES, count * BLOCK_BYTES, letter * (count * BLOCK_BYTES))


# -- keeping and putting back --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_whatever_was_overwritten_comes_back(
    make_superblock: Make, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if seed % 2:  # holes are asked for, and kept ahead, in so small a volume too
        monkeypatch.setattr(undolog, "ASK_BYTES", BLOCK_BYTES)
    rng = random.Random(seed)
    rig = Rig(make_superblock, seed=seed)
    undo = rig.begin()
    for _ in range(12):
        ops = _random_ops(rng, SIZE)
        undo.preserve(rig.disk, ops)
        changed = {b for b in range(BLOCKS) if _block(rig.medium.content("v"), b) != _block(rig.old, b)}
        rig.disk.apply(ops)
        now = rig.medium.content("v")
        changed |= {b for b in range(BLOCKS) if _block(now, b) != _block(rig.old, b)}
        assert changed <= _blocks(undo.kept)
        if rng.random() < 0.2:
            undo.close()
            undo = rig.overlays().begin(rig.syncing, TARGET, 5)
        elif rng.random() < 0.1:
            assert undo.revert(rig.disk) == []
            assert rig.medium.content("v") == rig.old
    undo.revert(rig.disk)
    assert rig.medium.content("v") == rig.old
    undo.discard()
    assert rig.medium.names() == ["v"]


def test_a_block_is_kept_once_and_whole(rig: Rig) -> None:
    undo = rig.begin()
    undo.preserve(rig.disk, [WriteOp(OpKind.DATA, 2 * BLOCK_BYTES + 5, 10, b"x" * 10)])
    assert _blocks(undo.kept) == {2}
    rig.disk.apply([_data(2)])
    step = rig.medium.step
    undo.preserve(rig.disk, [_data(2), WriteOp(OpKind.TRIM, 2 * BLOCK_BYTES, BLOCK_BYTES)])
    assert rig.medium.step == step  # nothing was written
    undo.revert(rig.disk)
    assert rig.medium.content("v") == rig.old
    undo.close()


def test_it_is_durable_on_return_with_one_append(rig: Rig) -> None:
    undo = rig.begin()
    seen: list[SimOperation] = []
    rig.medium.fault = lambda operation: _note(seen, operation)
    ops = [_data(1, 3), _data(8), WriteOp(OpKind.DATA, 20 * BLOCK_BYTES - 7, 14, b"y" * 14)]
    undo.preserve(rig.disk, ops)
    seen.clear()
    undo.preserve(rig.disk, [_data(12, 2)])
    assert [(each.action, each.durable) for each in seen if each.name == FILE] == [(SimAction.WRITE, True)]
    rig.medium.fault = None
    rig.medium.power_cut(lambda _: 0)
    undo = rig.reopen()
    assert _blocks(undo.kept) == {1, 2, 3, 8, 12, 13, 19, 20}
    undo.close()


class _Counting(RawFile):
    """A disk of any size that is all hole, but for a few blocks; counts what is asked."""

    def __init__(self, size_bytes: int, data: Sequence[int]) -> None:
        self._size = size_bytes
        self._data = sorted(data)
        self.asked = self.read_bytes = 0

    @property
    def size_bytes(self) -> int:
        return self._size

    def hole_bytes(self, offset: int, length: int) -> int:
        self.asked += 1
        stops = [block * BLOCK_BYTES for block in self._data if (block + 1) * BLOCK_BYTES > offset]
        return min(max(stops[0] - offset, 0), length) if stops else length

    def allocation(self, offset: int, length: int) -> Allocation:
        raise NotImplementedError

    def read_into(self, offset: int, view: memoryview) -> None:
        self.read_bytes += len(view)
        for block in self._data:
            at = block * BLOCK_BYTES - offset
            if 0 <= at < len(view):
                view[at : at + BLOCK_BYTES] = b"d" * BLOCK_BYTES


def test_discarding_a_terabyte_of_holes_costs_next_to_nothing(make_superblock: Make) -> None:
    size = TIB
    superblock = make_superblock(size_bytes=size)
    medium = SimMedium()
    undo = Overlays(SimDirectory(medium), "v", size).begin(superblock, TARGET, 5)
    step = medium.step
    device = _Counting(size, [])
    undo.preserve(device, [WriteOp(OpKind.TRIM, 0, size)])
    assert (device.asked, device.read_bytes, medium.step) == (1, 0, step)
    assert not undo.kept
    device = _Counting(size, [1000, 200_000_000])
    undo.preserve(device, [WriteOp(OpKind.TRIM, 0, size)])
    assert device.read_bytes <= 2 * MIB
    assert {1000, 200_000_000} <= _blocks(undo.kept)
    assert undo.info.data_bytes == 2 * BLOCK_BYTES
    # what is written there needs its old content, zeroes, and that is kept without data
    before = undo.info.file_bytes
    undo.preserve(device, [WriteOp(OpKind.DATA, GIB, 512 * 1024, bytes(512 * 1024))])
    assert undo.info.data_bytes == 2 * BLOCK_BYTES
    assert undo.info.file_bytes - before == BLOCK_BYTES
    undo.close()


def test_a_first_resync_of_an_empty_replica_takes_few_appends(make_superblock: Make) -> None:
    size = 64 * MIB
    device = _Counting(size, [10_000])
    medium = SimMedium()
    undo = Overlays(SimDirectory(medium), "v", size).begin(make_superblock(size_bytes=size), TARGET, 5)
    before = undo.info.file_bytes
    for at in range(0, size, MIB):
        undo.preserve(device, [WriteOp(OpKind.DATA, at, MIB, bytes(MIB))])
    assert undo.kept.count == size // BLOCK_BYTES
    assert undo.info.data_bytes == BLOCK_BYTES
    # the hole before the block, what is around it, and the hole behind it
    assert undo.info.file_bytes - before <= 4 * BLOCK_BYTES
    undo.close()


def test_a_batch_that_discards_much_data_is_kept_in_pieces(make_superblock: Make) -> None:
    blocks = 3000
    size = blocks * BLOCK_BYTES
    rig = Rig(make_superblock, size_bytes=size, fill="data")
    undo = rig.begin()
    ops = [WriteOp(OpKind.ZERO, 0, size)]
    seen: list[SimOperation] = []
    rig.medium.fault = lambda operation: _note(seen, operation)
    undo.preserve(rig.disk, ops)
    rig.medium.fault = None
    assert seen[-1].action is SimAction.FLUSH
    assert 2 <= sum(each.action is SimAction.WRITE for each in seen) <= 4
    rig.disk.apply(ops)
    rig.medium.power_cut(lambda _: 0)
    undo = rig.reopen()
    assert undo.kept.count == blocks
    undo.revert(rig.disk)
    assert rig.medium.content("v") == rig.old
    undo.close()


# -- crashes -------------------------------------------------------------------------------------------------


def test_every_cut_of_preserving_and_applying(
    make_superblock: Make, every_outcome: Callable[..., int]
) -> None:
    """Whatever is left, putting it back gives the old content."""
    batches = [
        [_data(1), _data(7)],
        [WriteOp(OpKind.ZERO, BLOCK_BYTES + 9, BLOCK_BYTES), WriteOp(OpKind.DATA, SIZE - 5, 5, b"final")],
    ]
    last: list[Rig] = []

    def attempt(step: int | None) -> tuple[SimMedium, Rig]:
        rig = Rig(make_superblock, seed=3)
        last[:] = [rig]
        undo = rig.begin()
        rig.medium.step = 0
        rig.medium.cut_at_step = step
        try:
            for ops in batches:
                undo.preserve(rig.disk, ops)
                rig.disk.apply(ops)
        except PowerCut:
            pass
        return rig.medium, rig

    def judge(medium: SimMedium, rig: Rig) -> None:
        undo = rig.reopen()
        undo.revert(rig.disk)
        assert medium.content("v") == rig.old
        undo.close()

    assert every_outcome(attempt, judge) > 100


def test_every_cut_of_going_back(make_superblock: Make, every_outcome: Callable[..., int]) -> None:
    """It is repeated, and gives the old content; then it was durable."""

    def attempt(step: int | None) -> tuple[SimMedium, Rig]:
        rig = Rig(make_superblock, seed=5)
        undo = rig.begin()
        for ops in ([_data(1, 3)], [_data(9, 2)]):
            undo.preserve(rig.disk, ops)
            rig.disk.apply(ops)
        rig.disk.flush()
        rig.medium.step = 0
        rig.medium.cut_at_step = step
        with contextlib.suppress(PowerCut):
            undo.revert(rig.disk)
        return rig.medium, rig

    def judge(medium: SimMedium, rig: Rig) -> None:
        undo = rig.reopen()
        undo.revert(rig.disk)
        medium.power_cut(lambda _: 0)
        assert medium.content("v") == rig.old

    assert every_outcome(attempt, judge) > 20


def test_a_power_cut_after_a_killed_process_went_on(
    make_superblock: Make, every_outcome: Callable[..., int]
) -> None:
    """What the next process found in the page cache, and relied on, was not durable yet."""
    batches = [[_data(1)], [_data(9), _data(20)]]

    def attempt(step: int | None) -> tuple[SimMedium, Rig]:
        rig = Rig(make_superblock, seed=3)
        undo = rig.begin()
        rig.medium.step = 0
        rig.medium.cut_at_step = step
        try:
            for ops in batches:
                undo.preserve(rig.disk, ops)
                rig.disk.apply(ops)
        except PowerCut:
            pass
        steps = rig.medium.step
        rig.medium.cut_at_step = None
        rig.medium.process_crash()
        undo = rig.reopen()
        for ops in batches:
            undo.preserve(rig.disk, ops)
            rig.disk.apply(ops)
        rig.medium.step = steps  # only the first part is cut
        return rig.medium, rig

    def judge(medium: SimMedium, rig: Rig) -> None:
        undo = rig.reopen()
        undo.revert(rig.disk)
        assert medium.content("v") == rig.old
        undo.close()

    assert every_outcome(attempt, judge) > 100


@pytest.mark.parametrize(
    "own", [{2, 9}, set(range(BLOCKS)), {5}, set()], ids=["some", "all", "none", "empty"]
)
def test_every_cut_of_finishing(
    make_superblock: Make, every_outcome: Callable[..., int], own: set[int]
) -> None:
    """The log is there whole, or the overlay is (or nothing, if nothing is kept)."""
    touched = {1, 2, 3, 9, 10}

    def attempt(step: int | None) -> tuple[SimMedium, Rig]:
        rig = Rig(make_superblock, seed=5)
        undo = rig.begin()
        for ops in ([_data(1, 3)], [_data(9, 2)]):
            undo.preserve(rig.disk, ops)
            rig.disk.apply(ops)
        rig.medium.step = 0
        rig.medium.cut_at_step = step
        try:
            undo.finish(_map(own))
        except PowerCut:
            pass
        else:
            rig.medium.cut_at_step = -2  # for the judge: it was complete
        return rig.medium, rig

    states: set[str] = set()

    def judge(medium: SimMedium, rig: Rig) -> None:
        complete = rig.medium.cut_at_step == -2
        rig.disk = SimDisk(medium, "v")
        overlays = rig.overlays()
        found = overlays.list()
        assert medium.names() == ["v", *([FILE] if found else [])]
        if not found:
            states.add("nothing")
            assert not own & touched
            return
        (info,) = found
        states.add(info.state.name)
        expected = touched if info.state is OverlayState.UNDO else own & touched
        assert info.block_count == len(expected)
        if info.state is OverlayState.UNDO:
            assert not complete
            undo = overlays.open_undo(rig.syncing)
            assert undo is not None
            assert _blocks(undo.kept) == expected
            undo.revert(rig.disk)
            assert medium.content("v") == rig.old
            undo.close()
        else:
            content: set[int] = set()
            for batch in overlays.ops(info.id):
                rig.disk.apply(batch)
                content |= _touched(batch)
            assert content == expected
            now = medium.content("v")
            assert all(_block(now, block) == _block(rig.old, block) for block in expected)

    assert every_outcome(attempt, judge) >= 2
    assert states == {"UNDO", "KEPT" if own & touched else "nothing"}


# -- the end -------------------------------------------------------------------------------------------------


def _overwritten(rig: Rig, *batches: Sequence[WriteOp]) -> UndoLog:
    undo = rig.begin()
    for ops in batches:
        undo.preserve(rig.disk, ops)
        rig.disk.apply(ops)
    return undo


@pytest.mark.parametrize("seed", range(20))
def test_finishing_keeps_exactly_the_own_blocks(make_superblock: Make, seed: int) -> None:
    rng = random.Random(seed)
    rig = Rig(make_superblock, seed=seed)
    undo = rig.begin()
    for _ in range(6):
        ops = _random_ops(rng, SIZE)
        undo.preserve(rig.disk, ops)
        rig.disk.apply(ops)
    own = {block for block in range(BLOCKS) if rng.random() < 0.4}
    expected = own & _blocks(undo.kept)
    info = undo.finish(_map(own))
    overlays = rig.overlays()
    assert list(overlays.list()) == ([] if info is None else [info])
    assert (info.block_count if info else 0) == len(expected)
    with pytest.raises(ClosedError):
        undo.preserve(rig.disk, [_data(0)])
    if info is None:
        return
    assert (info.state, info.lineage, info.target) == (OverlayState.KEPT, rig.superblock.lineage, TARGET)
    before = rig.medium.content("v")
    for batch in overlays.ops(info.id):
        rig.disk.apply(batch)
    after = rig.medium.content("v")
    for block in range(BLOCKS):
        assert _block(after, block) == _block(rig.old if block in expected else before, block)


def test_an_overlay_of_everything_stays_where_it_is(make_superblock: Make) -> None:
    rig = Rig(make_superblock, fill="data")
    undo = _overwritten(rig, [_data(1, 3)])
    seen: list[SimOperation] = []
    rig.medium.fault = lambda operation: _note(seen, operation)
    info = undo.finish(_map(range(BLOCKS)))
    assert info is not None
    assert info.file_bytes == RECORDS_AT + 4 * BLOCK_BYTES == len(rig.medium.content(FILE))
    assert sum(each.length for each in seen if each.action is SimAction.WRITE) == RECORDS_AT  # both headers


def test_narrowing_gives_the_way_back_up_and_keeps_what_is_own(make_superblock: Make) -> None:
    rig = Rig(make_superblock, fill="data")
    undo = _overwritten(rig, [_data(1, 6)])
    own = _map({2, 3, 12})
    undo.narrow(own)
    assert not undo.whole
    assert _blocks(undo.kept) == {2, 3}
    ops = [_data(10, 4)]
    undo.preserve(rig.disk, ops)
    rig.disk.apply(ops)
    assert _blocks(undo.kept) == {2, 3, 12}
    with pytest.raises(ArbitrationError, match="no way back"):
        undo.revert(rig.disk)
    undo.close()
    undo = rig.reopen()
    assert not undo.whole  # durably
    undo.narrow(own)
    undo.preserve(rig.disk, [_data(0)])
    info = undo.finish(own)
    assert info is not None
    assert (info.block_count, info.whole) == (3, False)


def test_a_log_that_was_begun_in_the_middle_is_no_way_back(rig: Rig) -> None:
    undo = rig.overlays().begin(rig.syncing, TARGET, 5)
    undo.preserve(rig.disk, [_data(1)])
    rig.disk.apply([_data(1)])
    assert not undo.whole
    with pytest.raises(ArbitrationError, match="no way back"):
        undo.revert(rig.disk)
    assert undo.revert(rig.disk, salvage=True) == []
    assert rig.medium.content("v") == rig.old
    undo.close()


# -- without room --------------------------------------------------------------------------------------------


def test_the_bound_stops_it_and_nothing_counts_as_kept(make_superblock: Make) -> None:
    rig = Rig(make_superblock, fill="data")
    overlays = rig.overlays(bytes_max=RECORDS_AT + 6 * BLOCK_BYTES)
    undo = overlays.begin(rig.superblock, TARGET, 5)
    undo.preserve(rig.disk, [_data(0, 2)])
    with pytest.raises(BackendError, match="more than the bound") as caught:
        undo.preserve(rig.disk, [_data(4, 3)])
    assert caught.value.errno == errno.ENOSPC
    assert _blocks(undo.kept) == {0, 1}
    undo.preserve(rig.disk, [_data(4, 2)])
    undo.close()
    undo = rig.reopen()
    assert _blocks(undo.kept) == {0, 1, 4, 5}
    undo.close()


@pytest.mark.parametrize("action", [SimAction.WRITE, SimAction.CHANGE])
@pytest.mark.parametrize("done_bytes", [0, BLOCK_BYTES, 3 * BLOCK_BYTES])
def test_a_full_disk_stops_it_and_it_may_be_tried_again(
    make_superblock: Make, action: SimAction, done_bytes: int
) -> None:
    rig = Rig(make_superblock, fill="data")
    undo = rig.begin()
    if action is SimAction.WRITE:  # else the first append makes the file grow
        undo.preserve(rig.disk, [_data(20)])
    rig.medium.fault = lambda operation: (
        Fault(errno.ENOSPC, done_bytes) if (operation.name, operation.action) == (FILE, action) else None
    )
    with pytest.raises(BackendError) as caught:
        undo.preserve(rig.disk, [_data(1, 3)])
    assert caught.value.errno == errno.ENOSPC
    assert not undo.kept.intersects(1, 4)
    rig.medium.fault = None
    undo.preserve(rig.disk, [_data(2, 3)])  # smaller, or not the same
    rig.disk.apply([_data(2, 3)])
    rig.medium.process_crash()
    undo = rig.reopen()
    undo.revert(rig.disk)
    assert rig.medium.content("v") == rig.old
    undo.close()


def test_a_failed_flush_is_not_tried_again(rig: Rig) -> None:
    undo = rig.begin()
    undo.preserve(rig.disk, [_data(20)])
    faults = iter([Fault(errno.EIO)])
    rig.medium.fault = lambda operation: next(faults, None) if operation.durable else None
    with pytest.raises(BackendError):
        undo.preserve(rig.disk, [_data(1)])
    with pytest.raises(BackendError, match="an earlier flush failed"):
        undo.preserve(rig.disk, [_data(1)])
    assert not undo.kept.intersects(1, 2)
    undo.close()


def test_no_room_for_the_smaller_file_leaves_the_log(make_superblock: Make) -> None:
    rig = Rig(make_superblock, fill="data")
    undo = _overwritten(rig, [_data(1, 6)])
    rig.medium.fault = lambda operation: (
        Fault(errno.ENOSPC) if operation.name.endswith(".new") and operation.length else None
    )
    calls: list[Callable[[DirtyMap], object]] = [undo.finish, undo.narrow]
    for call in calls:
        with pytest.raises(BackendError) as caught:
            call(_map({2}))
        assert caught.value.errno == errno.ENOSPC
        assert rig.medium.names() == ["v", FILE]
    assert not undo.whole  # narrowing has begun
    rig.medium.fault = None
    undo.revert(rig.disk, salvage=True)
    assert rig.medium.content("v") == rig.old
    info = undo.finish(_map({2}))
    assert info is not None
    assert info.block_count == 1


# -- damage --------------------------------------------------------------------------------------------------


def test_damaged_content_is_named_and_the_rest_put_back(make_superblock: Make) -> None:
    rig = Rig(make_superblock, fill="data")
    undo = _overwritten(rig, [_data(1, 3)], [_data(8, 2)])
    rig.medium.damage(FILE, RECORDS_AT + 2 * BLOCK_BYTES + 5, 1)  # block 2
    message = rf"{FILE}: damaged: content of record 0 at {RECORDS_AT}: blocks 2 lost"
    with pytest.raises(MetadataError, match=message):
        undo.revert(rig.disk)
    with pytest.raises(MetadataError, match=message):
        undo.finish(_map({2, 8}))
    (damage,) = undo.revert(rig.disk, salvage=True)
    assert (damage.offset, list(damage.extents)) == (RECORDS_AT, [(2, 3)])
    now = rig.medium.content("v")
    assert {b for b in range(BLOCKS) if _block(now, b) != _block(rig.old, b)} == {2}
    info = undo.finish(_map({2, 8}), salvage=True)
    assert info is not None
    assert info.block_count == 1
