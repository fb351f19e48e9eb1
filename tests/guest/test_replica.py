"""The local replica: made once, opened by one, refused where it does not belong; the jobs of the lanes."""

from __future__ import annotations

import errno
import os
import random
import shutil
import struct
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pairsync.core.limits import VolumeOptions
from pairsync.core.messages import Condition, Generation, OpKind, WriteOp
from pairsync.core.resync import PIECE_BYTES
from pairsync.core.units import BLOCK_BYTES, MIB, Extent
from pairsync.errors import BackendError, BusyError, ConfigError, MetadataError, MismatchError
from pairsync.guest.config import VolumeConfig
from pairsync.guest.replica import (
    Replica,
    apply_job,
    create_replica,
    flush_job,
    journal_job,
    map_job,
    open_replica,
    persist_job,
    read_job,
    save_job,
)
from pairsync.storage.blockfile import Allocation
from pairsync.storage.digestfile import block_digest, pack_leaves
from pairsync.storage.file import open_volume
from pairsync.storage.osfile import OsFile
from pairsync.testing.disks import Fault, SimAction, SimDisk, SimMedium

PAIR, VOLUME = b"p" * 16, b"v" * 16
SIZE = 1 * MIB


def _create(path: Path, **more: Any) -> None:
    settings: dict[str, Any] = {"name": "vda", "pair_id": PAIR, "volume_id": VOLUME, **more}
    create_replica(path, **settings)


def _open(path: Path, *, name: str = "vda", pair_id: bytes = PAIR, metadata: Path | None = None) -> Replica:
    return open_replica(VolumeConfig(name, path, VolumeOptions(), metadata), pair_id)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "vda.img"
    _create(path, size_bytes=SIZE)
    return path


def test_what_was_written_without_digests_is_read_once_they_are_kept_again(image: Path) -> None:
    old, new = (WriteOp(OpKind.DATA, 0, BLOCK_BYTES, bytes([each]) * BLOCK_BYTES) for each in (1, 2))
    replica = _open(image)
    replica.device.apply([old])
    replica.device.save_digests(1)
    replica.close()
    replica = open_replica(VolumeConfig("vda", image, VolumeOptions(digests=False)), PAIR)
    replica.device.apply([new])
    replica.close()
    replica = _open(image)
    assert "there was no digest table" in " ".join(replica.notes)
    found = replica.device.examine(0, 0, 1, read=True)
    assert (found.digests, list(found.bad)) == (pack_leaves([block_digest(new.data or b"")]), [])
    replica.close()


# -- making one ----------------------------------------------------------------------------------------------


def test_a_new_one_is_blank_sparse_and_private(tmp_path: Path) -> None:
    path = tmp_path / "big.img"
    _create(path, size_bytes=1 << 40)
    assert path.stat().st_size == 1 << 40
    assert path.stat().st_blocks == 0
    assert path.stat().st_mode & 0o777 == 0o600
    replica = _open(path)
    block = replica.setup.superblock
    assert (block.condition, block.lineage, block.clean) == (Condition.BLANK, (), True)
    assert replica.setup.recovered.count == 0
    replica.close()
    replica.close()


def test_what_exists_is_taken_over_as_written(tmp_path: Path) -> None:
    path = tmp_path / "old.img"
    path.write_bytes(b"precious" * 512)
    _create(path)
    replica = _open(path)
    assert replica.setup.superblock.condition is Condition.CONSISTENT
    assert replica.device.size_bytes == 4096
    replica.close()
    assert path.read_bytes() == b"precious" * 512


def test_what_exists_may_be_declared_worthless(tmp_path: Path) -> None:
    path = tmp_path / "old.img"
    path.write_bytes(b"junk" * 1024)
    _create(path, overwrite=True)
    replica = _open(path)
    # a resync target, and never a source
    assert (replica.setup.superblock.condition, replica.setup.superblock.lineage) == (Condition.SYNCING, ())
    replica.close()
    new = tmp_path / "new.img"
    _create(new, size_bytes=SIZE, overwrite=True)  # nothing was there that could be worthless
    replica = _open(new)
    assert replica.setup.superblock.condition is Condition.BLANK
    replica.close()


def test_metadata_may_lie_elsewhere(tmp_path: Path) -> None:
    metadata = tmp_path / "meta" / "vda"
    metadata.parent.mkdir()
    _create(tmp_path / "vda.img", size_bytes=SIZE, metadata=metadata)
    assert metadata.exists()
    _open(tmp_path / "vda.img", metadata=metadata).close()
    with pytest.raises(BackendError, match=r"vda\.img\.pairsync"):
        _open(tmp_path / "vda.img")


@pytest.mark.parametrize(
    ("existing", "size_bytes", "error"),
    [(None, None, ConfigError), (b"x" * 4096, 8192, MismatchError), (b"", None, BackendError)],
)
def test_sizes_that_cannot_be(
    tmp_path: Path, existing: bytes | None, size_bytes: int | None, error: type[Exception]
) -> None:
    path = tmp_path / "vda.img"
    if existing is not None:
        path.write_bytes(existing)
    with pytest.raises(error):
        _create(path, size_bytes=size_bytes)
    assert [entry.name for entry in tmp_path.iterdir()] == ([] if existing is None else ["vda.img"])


def test_a_second_time_is_refused_and_changes_nothing(image: Path) -> None:
    before = Path(f"{image}.pairsync").read_bytes()
    with pytest.raises(ConfigError, match="exists already"):
        _create(image, size_bytes=SIZE)
    assert Path(f"{image}.pairsync").read_bytes() == before
    _open(image).close()


@pytest.mark.parametrize(
    ("settings", "finding"),
    [
        ({"pair_id": b"short"}, "an id that has not 16 bytes"),
        ({"pair_id": "p" * 16}, "pair_id of a new replica: must be bytes, not str"),
        ({"volume_id": None}, "volume_id of a new replica: must be bytes, not NoneType"),
        ({"name": "v" * 256}, "name of 256 bytes"),
        ({"size_bytes": 4096.0}, "size_bytes of a new replica: must be int, not float"),
        ({"size_bytes": 0}, "a volume of 0 bytes"),
        ({"size_bytes": 1 << 60}, "a volume of 1152921504606846976 bytes"),
    ],
)
def test_what_no_replica_can_have_is_refused_before_anything_is_made(
    tmp_path: Path, settings: dict[str, Any], finding: str
) -> None:
    known = {"name": "vda", "pair_id": PAIR, "volume_id": VOLUME, "size_bytes": SIZE}
    with pytest.raises(ConfigError, match=finding):
        create_replica(tmp_path / "vda.img", **{**known, **settings})
    assert list(tmp_path.iterdir()) == []


def test_a_creation_for_which_there_is_no_room_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_file: OsFile) -> None:
        raise BackendError("no room", errno.ENOSPC)

    monkeypatch.setattr(OsFile, "reserve", full)
    with pytest.raises(BackendError, match="no room"):
        _create(tmp_path / "vda.img", size_bytes=SIZE)
    assert list(tmp_path.iterdir()) == []


def test_a_creation_that_fails_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(BackendError):
        _create(tmp_path / "vda.img", size_bytes=SIZE, metadata=tmp_path / "nowhere" / "meta")
    assert list(tmp_path.iterdir()) == []


# -- opening one ---------------------------------------------------------------------------------------------


def test_one_opens_it_at_a_time(image: Path) -> None:
    replica = _open(image)
    with pytest.raises(BusyError, match="in use"):
        _open(image)
    replica.close()
    _open(image).close()


def test_data_in_use_elsewhere_is_busy_too(image: Path) -> None:
    device = open_volume(image)
    with pytest.raises(BusyError):
        _open(image)
    device.close()
    _open(image).close()  # and the metadata was given back


@pytest.mark.parametrize(
    ("settings", "finding"),
    [
        ({"pair_id": b"q" * 16}, "belongs to pair 7070"),
        ({"name": "vdb"}, "is volume 'vda', not 'vdb'"),
    ],
)
def test_what_does_not_belong_is_refused(image: Path, settings: dict[str, Any], finding: str) -> None:
    with pytest.raises(MismatchError, match=finding):
        _open(image, **settings)
    _open(image).close()


def test_a_file_that_was_cut_is_refused(image: Path) -> None:
    os.truncate(image, SIZE - 1)
    with pytest.raises(MismatchError, match=f"has {SIZE - 1} bytes, {SIZE} expected"):
        _open(image)
    assert image.stat().st_size == SIZE - 1


def test_of_a_larger_file_the_rest_is_not_touched(image: Path) -> None:
    with image.open("ab") as file:
        file.write(b"rest" * 1024)
    replica = _open(image)
    assert replica.device.size_bytes == SIZE
    replica.close()
    assert image.read_bytes()[SIZE:] == b"rest" * 1024


def test_what_is_taken_over_has_the_size_that_was_said(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(SIZE + 4096))
    with pytest.raises(MismatchError, match=f"has {SIZE + 4096} bytes, {SIZE} expected"):
        _create(tmp_path / "image", size_bytes=SIZE)


def test_a_missing_file_says_which(image: Path) -> None:
    image.unlink()
    with pytest.raises(BackendError, match=r"vda\.img"):
        _open(image)


def test_damaged_metadata_are_refused_and_left_alone(image: Path) -> None:
    metadata = Path(f"{image}.pairsync")
    content = bytearray(metadata.read_bytes())
    content[: 32 * 1024] = random.Random(1).randbytes(32 * 1024)  # both slots of the superblock
    metadata.write_bytes(content)
    with pytest.raises(MetadataError, match="damaged"):
        _open(image)
    assert metadata.read_bytes() == content


def test_one_damaged_slot_is_made_up_for_and_told(image: Path) -> None:
    metadata = Path(f"{image}.pairsync")
    content = bytearray(metadata.read_bytes())
    content[100] ^= 1
    metadata.write_bytes(content)
    replica = _open(image)
    assert replica.setup.superblock.name == "vda"
    assert replica.notes
    replica.close()


def test_metadata_of_a_newer_version_are_refused_and_left_alone(image: Path) -> None:
    metadata = Path(f"{image}.pairsync")
    content = bytearray(metadata.read_bytes())
    for slot in (0, 16 * 1024):
        magic, version = struct.unpack_from("<8sI", content, slot)
        assert magic == b"PAIRSYNC"
        struct.pack_into("<I", content, slot + 8, version + 1)
        struct.pack_into("<I", content, slot + 12, zlib.crc32(content[slot : slot + 12]))
    metadata.write_bytes(content)
    with pytest.raises(MetadataError, match="newer version"):
        _open(image)
    assert metadata.read_bytes() == content


# -- what a crash leaves -------------------------------------------------------------------------------------


def _crashed_copy(image: Path, name: str) -> Path:
    """The files as they lie there now, as after the end of a process that had no time to say good-bye."""
    copy = image.with_name(name)
    shutil.copy(image, copy)
    shutil.copy(f"{image}.pairsync", f"{copy}.pairsync")
    return copy


def _unclean(replica: Replica) -> None:
    block = replica.setup.superblock
    changes = {"condition": Condition.CONSISTENT, "lineage": (Generation(1, 1, 7),), "clean": False}
    fields = {name: getattr(block, name) for name in block.__dataclass_fields__}
    assert persist_job(replica.store, type(block)(**{**fields, **changes})) == 0


def test_intents_count_as_written_after_a_crash(image: Path) -> None:
    replica = _open(image)
    _unclean(replica)
    generation = replica.setup.first_generation
    assert save_job(replica.store, {}, (0, 1)) == 0
    replica.store.open_segment(0, generation)
    assert journal_job(replica.store, 0, generation, [Extent(3, 5), Extent(9, 10)]) == 0
    crashed = _open(_crashed_copy(image, "crashed.img"))
    assert [tuple(run) for run in crashed.setup.recovered.runs(0, SIZE // BLOCK_BYTES)] == [(3, 5), (9, 10)]
    assert crashed.setup.first_generation > generation
    crashed.close()
    replica.close()


def test_the_bitmap_and_the_intents_are_united(image: Path) -> None:
    replica = _open(image)
    _unclean(replica)
    generation = replica.setup.first_generation
    replica.setup.recovered.mark(20, 22)
    page = replica.setup.recovered.page_bytes(0)
    assert save_job(replica.store, {0: page}, (0, 1)) == 0
    replica.store.open_segment(1, generation)
    assert journal_job(replica.store, 1, generation, [Extent(21, 24)]) == 0
    crashed = _open(_crashed_copy(image, "crashed.img"))
    assert [tuple(run) for run in crashed.setup.recovered.runs(0, SIZE // BLOCK_BYTES)] == [(20, 24)]
    crashed.close()
    replica.close()


def test_intents_of_a_volume_that_was_closed_in_order_do_not(image: Path) -> None:
    replica = _open(image)
    generation = replica.setup.first_generation
    assert save_job(replica.store, {}, (0, 1)) == 0
    replica.store.open_segment(0, generation)
    assert journal_job(replica.store, 0, generation, [Extent(3, 5)]) == 0
    replica.close()  # its superblock says "clean"
    again = _open(image)
    assert again.setup.recovered.count == 0
    again.close()


# -- jobs ----------------------------------------------------------------------------------------------------


def _disk(size_bytes: int = 4 * PIECE_BYTES) -> tuple[SimMedium, SimDisk]:
    medium = SimMedium()
    medium.create("data", size_bytes)
    return medium, SimDisk(medium, "data", size_bytes)


def _data(offset: int, content: bytes) -> WriteOp:
    return WriteOp(OpKind.DATA, offset, len(content), content)


def test_a_failing_disk_becomes_errnos() -> None:
    medium, disk = _disk()
    assert apply_job(disk, [_data(0, b"x" * 4096)]) is None
    assert flush_job(disk) == 0
    faults = {SimAction.WRITE: Fault(errno.ENOSPC), SimAction.FLUSH: Fault(errno.EIO)}
    medium.fault = lambda operation: faults.get(operation.action)
    assert apply_job(disk, [_data(0, b"y"), _data(9, b"z")]) == [errno.ENOSPC, errno.ENOSPC]
    assert flush_job(disk) == errno.EIO


def test_a_request_without_room_fails_alone() -> None:
    medium, disk = _disk()
    medium.fault = lambda operation: (
        Fault(errno.ENOSPC)
        if operation.action is SimAction.WRITE
        and operation.offset <= 5000 < operation.offset + operation.length
        else None
    )
    ops = [_data(0, b"a" * 100), _data(5000, b"?" * 10), _data(0, b"b" * 50), _data(9000, b"c")]
    assert apply_job(disk, ops) == [0, errno.ENOSPC, 0, 0]
    content = bytearray(BLOCK_BYTES * 3)
    disk.read_into(0, memoryview(content))
    assert content[:100] == b"b" * 50 + b"a" * 50  # the order is kept
    assert content[5000:5010] == bytes(10)
    assert content[9000:9001] == b"c"


def test_reading_finds_data_zeroes_and_holes() -> None:
    _, disk = _disk()
    block = BLOCK_BYTES
    disk.apply([_data(0, b"a" * block), _data(block, bytes(2 * block)), _data(3 * block, b"b" * block)])
    found = read_job(disk, [Extent(0, 4)], PIECE_BYTES)
    assert not isinstance(found, int)
    assert found.covered == [Extent(0, 4)]
    assert [(op.kind, op.offset, op.length) for op in found.ops] == [
        (OpKind.DATA, 0, block),
        (OpKind.ZERO, block, 2 * block),
        (OpKind.DATA, 3 * block, block),
    ]
    assert bytes(found.ops[0].data or b"") == b"a" * block


def test_a_block_that_only_begins_with_zeroes_is_data_and_one_of_zeroes_between_others_is_not() -> None:
    _, disk = _disk(size_bytes=4 * BLOCK_BYTES + 3)
    block = BLOCK_BYTES
    disk.apply([_data(0, b"a" * block + bytes(block - 1) + b"b" + bytes(block) + b"c" * (block + 3))])
    found = read_job(disk, [Extent(0, 5)], PIECE_BYTES)
    assert not isinstance(found, int)
    assert [(op.kind, op.offset, op.length) for op in found.ops] == [
        (OpKind.DATA, 0, 2 * block),
        (OpKind.ZERO, 2 * block, block),
        (OpKind.DATA, 3 * block, block + 3),
    ]
    some = read_job(disk, [Extent(0, 2)], PIECE_BYTES)
    assert not isinstance(some, int)
    assert [(op.kind, op.offset, op.length) for op in some.ops] == [(OpKind.DATA, 0, 2 * block)]


def test_reading_takes_a_piece_of_data_or_a_hole_of_any_length() -> None:
    _, disk = _disk()
    blocks = disk.size_bytes // BLOCK_BYTES
    disk.apply([_data(0, b"a" * (PIECE_BYTES + BLOCK_BYTES))])
    found = read_job(disk, [Extent(0, blocks)], PIECE_BYTES)
    assert not isinstance(found, int)
    assert found.covered == [Extent(0, PIECE_BYTES // BLOCK_BYTES)]
    less = read_job(disk, [Extent(0, blocks)], 3 * BLOCK_BYTES)
    assert not isinstance(less, int)
    assert less.covered == [Extent(0, 3)]
    hole = read_job(disk, [Extent(2 * PIECE_BYTES // BLOCK_BYTES, blocks)], PIECE_BYTES)
    assert not isinstance(hole, int)
    assert hole.covered == [Extent(2 * PIECE_BYTES // BLOCK_BYTES, blocks)]
    assert [op.kind for op in hole.ops] == [OpKind.ZERO]


def test_reading_scattered_blocks_at_once() -> None:
    size_bytes = 9 * BLOCK_BYTES + 100
    _, disk = _disk(size_bytes)
    block = BLOCK_BYTES
    disk.apply([_data(0, b"a" * block), _data(3 * block, b"b" * block), _data(9 * block, b"c" * 100)])
    extents = [Extent(0, 1), Extent(3, 5), Extent(7, 8), Extent(9, 10)]
    found = read_job(disk, extents, PIECE_BYTES)
    assert not isinstance(found, int)
    assert found.covered == extents
    assert [(op.kind, op.offset, op.length, bytes(op.data or b"")[:1]) for op in found.ops] == [
        (OpKind.DATA, 0, block, b"a"),
        (OpKind.DATA, 3 * block, block, b"b"),
        (OpKind.ZERO, 4 * block, block, b""),
        (OpKind.ZERO, 7 * block, block, b""),
        (OpKind.DATA, 9 * block, 100, b"c"),
    ]


def test_reading_the_partial_last_block() -> None:
    size_bytes = BLOCK_BYTES + 100
    _, disk = _disk(size_bytes)
    disk.apply([_data(0, b"a" * size_bytes)])
    found = read_job(disk, [Extent(0, 2)], PIECE_BYTES)
    assert not isinstance(found, int)
    assert found.covered == [Extent(0, 2)]
    assert sum(op.length for op in found.ops) == size_bytes


def test_reading_from_a_failing_disk() -> None:
    medium, disk = _disk()
    disk.apply([_data(0, b"a" * BLOCK_BYTES)])
    medium.fault = lambda operation: Fault(errno.EIO) if operation.action is SimAction.READ else None
    assert read_job(disk, [Extent(0, 1)], PIECE_BYTES) == errno.EIO


def test_the_map_of_what_is_allocated() -> None:
    _, disk = _disk()
    disk.apply([_data(5 * BLOCK_BYTES, b"a" * BLOCK_BYTES), _data(100 * BLOCK_BYTES, b"b")])
    blocks = {block for start, stop in map_job(disk) for block in range(start, stop)}
    assert {5, 100} <= blocks
    assert len(blocks) < disk.size_bytes // BLOCK_BYTES
    starts = [start for start, _ in map_job(disk)]
    assert starts == sorted(starts)


class Holes(SimDisk):
    """A volume with data in ``data`` (pairs of blocks) and holes elsewhere; as many runs at once as asked."""

    def __init__(self, data: Sequence[tuple[int, int]], at_once: int) -> None:
        super().__init__(SimMedium(), "data", SIZE)
        self._data, self._at_once = list(data), at_once

    def allocation(self, offset: int, length: int) -> Allocation:
        runs: Allocation = []
        for start, stop in [*self._data, (self.size_bytes // BLOCK_BYTES,) * 2]:
            for edge, hole in ((start, True), (stop, False)):
                if edge * BLOCK_BYTES > offset and len(runs) < self._at_once:
                    runs.append((edge * BLOCK_BYTES - offset, hole))
                    offset = edge * BLOCK_BYTES
        return runs


@pytest.mark.parametrize("seed", range(20))
def test_the_map_of_a_volume_of_many_holes_is_bounded_and_leaves_nothing_out(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr("pairsync.guest.replica.MAP_RUNS_MAX", 8)
    edges = sorted(chance.sample(range(1, 256), 2 * chance.randrange(1, 100)))
    data = list(zip(edges[::2], edges[1::2], strict=True))
    disk = Holes(data, at_once=chance.randrange(1, 9))
    runs = map_job(disk)
    assert len(runs) <= 8
    assert all(a[1] < b[0] for a, b in pairwise(runs))
    assert all(any(low <= start and stop <= high for low, high in runs) for start, stop in data)
    assert {runs[0][0], runs[-1][1]} == {edges[0], edges[-1]}  # and no more than what lies between
    if len(data) <= 8:
        assert runs == data  # exact as long as there is room


def test_the_widest_holes_stay_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pairsync.guest.replica.MAP_RUNS_MAX", 4)
    data = [(block, block + 1) for base in (0, 100, 200) for block in range(base, base + 50, 2)]
    assert map_job(Holes(data, at_once=100)) == [(0, 49), (100, 149), (200, 249)]


def test_metadata_jobs_end_with_errnos(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replica = _open(image)
    store = replica.store

    def full(*_: object) -> None:
        raise BackendError("no space", errno.ENOSPC)

    for name in ("append_intents", "write_bitmap", "release_segment", "write_superblock"):
        monkeypatch.setattr(store, name, full)
    assert journal_job(store, 0, 1, [Extent(0, 1)]) == errno.ENOSPC
    assert save_job(store, {0: bytes(4096)}, ()) == errno.ENOSPC
    assert save_job(store, {}, (0,)) == errno.ENOSPC
    assert save_job(store, {}, ()) == 0  # nothing to write, nothing to release
    assert persist_job(store, replica.setup.superblock) == errno.ENOSPC
    replica.close()
