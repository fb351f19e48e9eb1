"""All overlays of a replica: begun, found again, bounded, listed and undone."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pairsync.core.dirty import DirtyMap
from pairsync.core.messages import Condition, Generation, OpKind, WriteOp
from pairsync.core.superblock import Superblock
from pairsync.core.units import BLOCK_BYTES, GIB, TIB
from pairsync.errors import BackendError, BusyError, ConfigError, MetadataError, MismatchError
from pairsync.storage.file import create_volume, open_volume
from pairsync.storage.overlay import (
    OVERLAYS_MAX,
    OverlayInfo,
    Overlays,
    default_overlay_bytes,
    overlays_beside,
)
from pairsync.storage.overlayfile import PAGE_BYTES, RECORDS_AT, OverlayState
from pairsync.testing.disks import PowerCut, SimDisk, SimMedium
from pairsync.testing.simfiles import SimDirectory

BLOCKS = 16
SIZE = BLOCKS * BLOCK_BYTES
LINEAGE = (Generation(1, 1, 0xABCD),)
TARGET = Generation(2, 1, 0x77)

Make = Callable[..., Superblock]


class Bench:
    """A replica full of data on a simulated medium."""

    def __init__(self, make: Make) -> None:
        self.medium = SimMedium()
        self.medium.create("v", SIZE)
        self.disk = SimDisk(self.medium, "v")
        for block in range(BLOCKS):
            self.write([block], bytes([block + 1]))
        self.disk.flush()
        self.superblock = make(size_bytes=SIZE, lineage=LINEAGE)

    def at(self, condition: Condition = Condition.SYNCING, **changes: Any) -> Superblock:
        return dataclasses.replace(self.superblock, condition=condition, **changes)

    def write(self, blocks: list[int], letter: bytes) -> None:
        self.disk.apply(self.ops(blocks, letter))

    @staticmethod
    def ops(blocks: list[int], letter: bytes = b"n") -> list[WriteOp]:
        return [
            WriteOp(OpKind.DATA, block * BLOCK_BYTES, BLOCK_BYTES, letter * BLOCK_BYTES) for block in blocks
        ]

    def overlays(self, **options: Any) -> Overlays:
        return Overlays(SimDirectory(self.medium), "v", SIZE, **options)

    def keep(self, overlays: Overlays, blocks: list[int], created_s: int, **changes: Any) -> OverlayInfo:
        """A whole resync that leaves an overlay."""
        undo = overlays.begin(self.at(Condition.CONSISTENT, **changes), TARGET, created_s)
        undo.preserve(self.disk, self.ops(blocks))
        self.write(blocks, b"n")
        own = DirtyMap(BLOCKS)
        for block in blocks:
            own.mark(block, block + 1)
        info = undo.finish(own)
        assert info is not None
        return info


@pytest.fixture
def bench(make_superblock: Make) -> Bench:
    return Bench(make_superblock)


def _ids(overlays: Overlays) -> list[str]:
    return [info.id for info in overlays.list()]


def test_the_bound_is_a_quarter_and_at_least_a_gibibyte() -> None:
    assert default_overlay_bytes(GIB) == GIB + GIB // 32  # all of it, with the pages of its records
    assert default_overlay_bytes(TIB) == TIB // 4


def test_they_are_listed_with_size_time_and_lineage(bench: Bench) -> None:
    overlays = bench.overlays()
    assert list(overlays.list()) == []
    first = bench.keep(overlays, [1, 2], 100)
    second = bench.keep(overlays, [5], 200, lineage=(TARGET, *LINEAGE))
    undo = overlays.begin(bench.at(Condition.CONSISTENT), TARGET, 300)
    undo.preserve(bench.disk, bench.ops([7]))
    shown = overlays.list()
    assert [(info.id, info.state.name, info.created_s, info.block_count) for info in shown] == [
        ("1", "KEPT", 100, 2),
        ("2", "KEPT", 200, 1),
        ("3", "UNDO", 300, 1),
    ]
    assert shown[:2] == [first, second]
    assert first.file_bytes == RECORDS_AT + 3 * BLOCK_BYTES
    assert first.data_bytes == 2 * BLOCK_BYTES
    assert second.lineage == (TARGET, *LINEAGE)
    assert overlays.file_bytes == sum(info.file_bytes for info in shown)
    undo.close()
    assert [dataclasses.replace(info, file_bytes=0) for info in bench.overlays().list()] == [
        dataclasses.replace(info, file_bytes=0) for info in shown
    ]


def test_an_interrupted_resync_goes_on_with_its_log(bench: Bench) -> None:
    undo = bench.overlays().begin(bench.at(Condition.CONSISTENT), TARGET, 100)
    undo.preserve(bench.disk, bench.ops([3]))
    bench.medium.process_crash()
    newer = Generation(3, 1, 1)
    undo = bench.overlays().begin(bench.at(), newer, 200)
    assert undo.whole
    assert 3 in undo.kept
    assert (undo.info.target, undo.info.created_s) == (newer, 100)
    undo.close()
    assert [info.target for info in bench.overlays().list()] == [newer]


def test_a_log_of_a_resync_that_never_began_goes(bench: Bench) -> None:
    bench.overlays().begin(bench.at(Condition.CONSISTENT), TARGET, 100)
    bench.medium.process_crash()
    overlays = bench.overlays()
    assert overlays.open_undo(bench.at(Condition.CONSISTENT)) is None
    undo = overlays.begin(bench.at(Condition.CONSISTENT), TARGET, 200)
    assert _ids(overlays) == ["2"]
    undo.close()


def test_a_log_that_was_never_finished_is_kept(bench: Bench) -> None:
    undo = bench.overlays().begin(bench.at(Condition.CONSISTENT), TARGET, 100)
    undo.preserve(bench.disk, bench.ops([3]))
    bench.write([3], b"n")
    bench.medium.process_crash()
    bench.disk = SimDisk(bench.medium, "v")
    overlays = bench.overlays()
    adopted = bench.at(Condition.CONSISTENT, lineage=(TARGET, *LINEAGE))
    assert overlays.open_undo(dataclasses.replace(adopted, condition=Condition.SYNCING)) is None
    undo = overlays.begin(adopted, Generation(3, 1, 1), 200)
    assert [(info.id, info.state.name) for info in overlays.list()] == [("1", "KEPT"), ("2", "UNDO")]
    ((op,),) = overlays.ops("1")
    assert (op.offset, bytes(op.data or b"")) == (3 * BLOCK_BYTES, bytes([4]) * BLOCK_BYTES)
    undo.close()


def test_own_content_is_not_kept_a_second_time_after_it_was_overwritten(bench: Bench) -> None:
    """The resync was complete and finished here, but the superblock still says SYNCING: it runs again."""
    info = bench.keep(bench.overlays(), [1, 2], 100)
    bench.medium.process_crash()
    bench.disk = SimDisk(bench.medium, "v")
    overlays = bench.overlays()
    undo = overlays.begin(bench.at(), TARGET, 200)
    assert not undo.whole
    undo.preserve(bench.disk, bench.ops([1, 2, 3]))
    assert undo.kept.describe() == "1[3..4]"
    own = DirtyMap(BLOCKS)
    own.mark(1, 3)
    assert undo.finish(own) is None
    assert list(overlays.list()) == [info]


def test_one_log_at_a_time(bench: Bench) -> None:
    overlays = bench.overlays()
    undo = overlays.begin(bench.at(Condition.CONSISTENT), TARGET, 100)
    for call in (
        lambda: overlays.begin(bench.at(), TARGET, 100),
        lambda: overlays.open_undo(bench.at()),
        lambda: overlays.drop("1"),
        lambda: overlays.damage("1"),
        lambda: next(overlays.ops("1")),
    ):
        with pytest.raises(BusyError):
            call()
    with pytest.raises(ConfigError):
        overlays.set_aside("1")
    undo.close()
    undo.close()
    overlays.drop("1")
    assert bench.medium.names() == ["v"]


def test_who_reads_an_overlay_keeps_nobody_from_it(bench: Bench) -> None:
    overlays = bench.overlays()
    info = bench.keep(overlays, [3], 100)
    batches = overlays.ops("1")
    (first,) = next(batches)
    again = bench.overlays()
    assert list(again.list()) == [info]
    again.drop("1")
    assert list(batches) == []
    assert first.offset == 3 * BLOCK_BYTES


def test_a_volume_grows_and_its_overlays_stay(make_superblock: Make) -> None:
    small, large = 5 * BLOCK_BYTES - 1000, 9 * BLOCK_BYTES
    medium = SimMedium()
    disk = SimDisk(medium, "v", small)
    disk.apply([WriteOp(OpKind.DATA, 0, small, b"o" * small)])
    directory = SimDirectory(medium)
    superblock = make_superblock(size_bytes=small)
    syncing = dataclasses.replace(superblock, condition=Condition.SYNCING, size_bytes=large)
    undo = Overlays(directory, "v", small).begin(superblock, TARGET, 1)
    undo.preserve(disk, [WriteOp(OpKind.DATA, small - 1, 1, b"n")])
    disk = SimDisk(medium, "w", large)
    disk.apply([WriteOp(OpKind.DATA, 0, small, b"o" * small)])
    old = medium.content("w")
    undo.close()
    undo = Overlays(directory, "v", small).begin(syncing, TARGET, 1)
    writes = [WriteOp(OpKind.DATA, small - 1, 900, b"n" * 900), WriteOp(OpKind.DATA, large - 1, 1, b"n")]
    undo.preserve(disk, writes)
    disk.apply(writes)
    undo.close()
    overlays = Overlays(directory, "v", large)
    again = overlays.open_undo(syncing)
    assert again is not None
    assert again.kept.describe() == "2[4..5 8..9]"
    again.revert(disk)
    assert medium.content("w") == old
    own = DirtyMap(9)
    own.mark(4, 5)
    again.finish(own)
    # one more growth, with nothing under way: the kept overlay is still there
    assert [info.block_count for info in Overlays(directory, "v", 2 * large).list()] == [1]


def test_a_log_whose_file_was_deleted_says_so(tmp_path: Path, make_superblock: Make) -> None:
    create_volume(tmp_path / "v", SIZE)
    device = open_volume(tmp_path / "v")
    undo = overlays_beside(tmp_path / "v.pairsync", SIZE).begin(make_superblock(size_bytes=SIZE), TARGET, 1)
    (tmp_path / "v.pairsync-overlay-1").unlink()
    with pytest.raises(BackendError, match="vanished while it was open"):
        undo.preserve(device, Bench.ops([1]))
    undo.close()
    device.close()


def test_an_undo_log_of_another_volume_is_refused(bench: Bench, make_superblock: Make) -> None:
    with pytest.raises(MismatchError, match="has 4096 bytes, less than"):
        bench.overlays().begin(make_superblock(size_bytes=BLOCK_BYTES), TARGET, 1)


def test_every_cut_of_beginning(
    bench: Bench, make_superblock: Make, every_outcome: Callable[..., int]
) -> None:
    def attempt(step: int | None) -> tuple[SimMedium, bool]:
        fresh = Bench(make_superblock)
        fresh.medium.step = 0
        fresh.medium.cut_at_step = step
        try:
            fresh.overlays().begin(fresh.at(Condition.CONSISTENT), TARGET, 100)
        except PowerCut:
            return fresh.medium, False
        return fresh.medium, True

    def judge(medium: SimMedium, complete: bool) -> None:
        overlays = Overlays(SimDirectory(medium), "v", SIZE)
        assert overlays.problems == ()
        assert len(overlays.list()) <= 1
        undo = overlays.open_undo(bench.at())
        assert undo is not None or not complete
        if undo is not None:
            assert undo.whole
            undo.close()
        assert medium.names() in (["v"], ["v", "v.pairsync-overlay-1"])

    assert every_outcome(attempt, judge) > 5


def test_what_a_killed_process_has_kept_stays_kept(
    bench: Bench, make_superblock: Make, every_outcome: Callable[..., int]
) -> None:
    """The next process reads from the page cache that the log was finished, and begins another one."""

    def attempt(step: int | None) -> tuple[SimMedium, str]:
        fresh = Bench(make_superblock)
        undo = fresh.overlays().begin(fresh.at(Condition.CONSISTENT), TARGET, 100)
        undo.preserve(fresh.disk, fresh.ops([1]))
        fresh.medium.step = 0
        fresh.medium.cut_at_step = step
        own = DirtyMap(BLOCKS)
        own.mark(0, BLOCKS)
        with contextlib.suppress(PowerCut):
            undo.finish(own)
        steps = fresh.medium.step
        fresh.medium.cut_at_step = None
        fresh.medium.process_crash()
        fresh.disk = SimDisk(fresh.medium, "v")
        overlays = fresh.overlays()
        found = overlays.find("1").state.name
        undo = overlays.begin(fresh.at(), TARGET, 200)
        undo.preserve(fresh.disk, fresh.ops([2]))
        fresh.medium.step = steps
        return fresh.medium, found

    def judge(medium: SimMedium, found: str) -> None:
        left = Overlays(SimDirectory(medium), "v", SIZE).list()
        expected = [("UNDO", 2)] if found == "UNDO" else [("KEPT", 1), ("UNDO", 1)]
        assert [(info.state.name, info.block_count) for info in left] == expected

    assert every_outcome(attempt, judge) > 5


# -- bounds --------------------------------------------------------------------------------------------------


def test_room_is_made_by_dropping_the_oldest_after_a_warning(bench: Bench) -> None:
    overlays = bench.overlays()
    infos = [bench.keep(overlays, [n, n + 1], n, lineage=(Generation(n, 1, 1),)) for n in range(1, 5)]
    each = infos[0].file_bytes
    warned: list[tuple[str, list[str]]] = []

    def warn(info: OverlayInfo) -> None:
        warned.append((info.id, _ids(overlays)))

    assert overlays.make_room(0, warn, bytes_max=4 * each)
    assert not warned
    assert overlays.make_room(each, warn, bytes_max=4 * each)
    assert warned == [("1", ["1", "2", "3", "4"])]
    assert overlays.make_room(each + 1, warn, bytes_max=overlays.file_bytes)  # the file system is full
    assert [name for name, _ in warned] == ["1", "2", "3"]
    assert _ids(overlays) == _ids(bench.overlays()) == ["4"]
    assert not overlays.make_room(each, warn, bytes_max=each - 1)
    assert _ids(overlays) == ["4"]  # in vain


def test_a_warning_can_keep_it(bench: Bench) -> None:
    overlays = bench.overlays()
    bench.keep(overlays, [1], 1)

    def refuse(info: OverlayInfo) -> None:
        raise ConfigError(f"overlay {info.id} is wanted")

    with pytest.raises(ConfigError, match="overlay 1 is wanted"):
        overlays.make_room(1, refuse, bytes_max=overlays.file_bytes)
    assert _ids(overlays) == ["1"]


def test_an_undo_log_is_never_dropped_to_make_room(bench: Bench) -> None:
    overlays = bench.overlays(bytes_max=3 * RECORDS_AT + 5 * BLOCK_BYTES)
    bench.keep(overlays, [1, 2], 1)
    undo = overlays.begin(bench.at(Condition.CONSISTENT, lineage=(TARGET,)), Generation(3, 1, 1), 2)
    with pytest.raises(BackendError) as caught:
        undo.preserve(bench.disk, bench.ops([4, 5, 6, 7]))
    assert caught.value.errno == errno.ENOSPC
    warned: list[str] = []
    assert overlays.make_room(5 * BLOCK_BYTES, lambda info: warned.append(info.id))
    assert warned == ["1"]
    undo.preserve(bench.disk, bench.ops([4, 5, 6, 7]))
    assert not overlays.make_room(GIB, lambda info: warned.append(info.id))
    assert _ids(overlays) == ["2"]
    undo.close()


def test_there_are_only_so_many(bench: Bench) -> None:
    overlays = bench.overlays()
    for n in range(OVERLAYS_MAX):
        bench.keep(overlays, [n % BLOCKS], n, lineage=(Generation(n, 1, 1),))
    with pytest.raises(BackendError, match="64 overlays are kept already") as caught:
        overlays.begin(bench.at(Condition.CONSISTENT), TARGET, 1)
    assert caught.value.errno == errno.ENOSPC
    warned: list[str] = []
    assert overlays.make_room(0, lambda info: warned.append(info.id))
    assert warned == ["1"]
    overlays.begin(bench.at(Condition.CONSISTENT), TARGET, 1).close()


# -- damage and strangers ------------------------------------------------------------------------------------


def test_a_damaged_log_is_named_and_can_be_set_aside(bench: Bench) -> None:
    undo = bench.overlays().begin(bench.at(Condition.CONSISTENT), TARGET, 1)
    for block in (1, 2, 3):
        undo.preserve(bench.disk, bench.ops([block]))
    undo.close()
    bench.medium.damage("v.pairsync-overlay-1", RECORDS_AT + 2 * PAGE_BYTES + 1, 1)
    overlays = bench.overlays()
    assert [info.block_count for info in overlays.list()] == [2]
    calls: list[Callable[[], object]] = [
        lambda: overlays.begin(bench.at(), TARGET, 2),
        lambda: overlays.open_undo(bench.at()),
    ]
    for call in calls:
        with pytest.raises(MetadataError, match=r"v\.pairsync-overlay-1: damaged: record 1 at 16384"):
            call()
    overlays.set_aside("1")
    assert overlays.find("1").state is OverlayState.KEPT
    with pytest.raises(MetadataError, match="record 1 at 16384"):
        next(overlays.ops("1"))
    assert [op.offset // BLOCK_BYTES for ops in overlays.ops("1", salvage=True) for op in ops] == [1, 3]
    assert len(overlays.damage("1")) == 1
    undo = overlays.begin(bench.at(), TARGET, 2)
    assert not undo.whole
    undo.close()


def test_files_that_cannot_be_read_are_left_alone_and_named(bench: Bench) -> None:
    info = bench.keep(bench.overlays(), [1], 1)
    prefix = "v.pairsync-overlay-"
    raw = bench.medium.content(prefix + "1")
    for name, content in {"2": raw, "3": bytes(100), "x": b"", "4.new": b"", "07": raw}.items():
        bench.medium.create(prefix + name, len(content))
        with_content = bench.medium.open(prefix + name)
        with_content.write(0, (content,))
        with_content.close()
    overlays = bench.overlays()
    assert list(overlays.list()) == [info]
    assert [problem.split(":")[0].removeprefix(prefix) for problem in overlays.problems] == [
        "07",
        "2",
        "3",
        "x",
    ]
    assert prefix + "4.new" not in bench.medium.names()
    assert bench.keep(overlays, [2], 2, lineage=(TARGET,)).id == "4"


def test_they_lie_beside_the_metadata(tmp_path: Path, make_superblock: Make) -> None:
    overlays = overlays_beside(tmp_path / "disk.img.pairsync", SIZE, bytes_max=1 << 20)
    overlays.begin(make_superblock(size_bytes=SIZE), TARGET, 1).close()
    assert [each.name for each in tmp_path.iterdir()] == ["disk.img.pairsync-overlay-1"]
    assert overlays.bytes_max == 1 << 20
    assert _ids(overlays_beside(tmp_path / "disk.img.pairsync", SIZE)) == ["1"]
