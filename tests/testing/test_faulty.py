"""The switch of a real disk: each state, what it lets through, and what it costs a disk that works."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pairsync.core.units import BLOCK_BYTES, MIB, NS_PER_MS
from pairsync.errors import BackendError, BusyError, ClosedError
from pairsync.storage.file import RawFile, create_volume
from pairsync.storage.osfile import OsFile
from pairsync.testing.faulty import DiskState, FaultyDirectory, FaultyDisk, FaultyFile

DEADLINE_S = 30.0  # for what takes milliseconds: only a hang meets it
BLOCK = bytes(range(256)) * (BLOCK_BYTES // 256)


@pytest.fixture
def disk() -> FaultyDisk:
    return FaultyDisk()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    where = tmp_path / "vda.img"
    create_volume(where, MIB)
    return where


@pytest.fixture
def file(disk: FaultyDisk, path: Path) -> Iterator[FaultyFile]:
    opened = disk.open(path)
    yield opened
    opened.close()


class Thread:
    """A call in a thread of its own."""

    def __init__(self, file: FaultyFile) -> None:
        self.error: BackendError | ClosedError | None = None
        self.entered = threading.Event()
        self._file = file
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self.entered.wait(DEADLINE_S)

    def _run(self) -> None:
        self.entered.set()
        try:
            self._file.write(0, [BLOCK])
        except (BackendError, ClosedError) as error:
            self.error = error

    @property
    def hangs(self) -> bool:
        return self._thread.is_alive()

    def end(self) -> BackendError | ClosedError | None:
        self._thread.join(DEADLINE_S)
        assert not self.hangs
        return self.error


def test_a_disk_that_was_never_touched_overrides_nothing(file: FaultyFile) -> None:
    reads = ("read_into", "read", "read_nowait")
    names = (*reads, "_write", "_flush", "zero", "allocation", "hole_bytes", "will_need")
    assert all(getattr(type(file), name) is getattr(OsFile, name) for name in names)


def test_everything_fails_and_works_again(disk: FaultyDisk, file: FaultyFile) -> None:
    file.write(0, [BLOCK], durable=True)
    disk.set(DiskState.FAIL)
    into = memoryview(bytearray(BLOCK_BYTES))
    for call in (
        lambda: file.read_into(0, into),
        lambda: file.read(0, BLOCK_BYTES),
        lambda: file.read_nowait(0, into),  # from the page cache too
        lambda: file.write(0, [bytes(BLOCK_BYTES)]),
        lambda: file.zero(0, BLOCK_BYTES, keep_space=False),
        lambda: file.allocation(0, MIB),
        lambda: file.hole_bytes(0, MIB),
        lambda: file.will_need(0, MIB),
    ):
        with pytest.raises(BackendError, match="Input/output error") as failure:
            call()
        assert failure.value.errno == errno.EIO
    disk.set(DiskState.OK)
    assert file.sound
    assert file.read(0, BLOCK_BYTES) == BLOCK
    file.write(0, [BLOCK], durable=True)


def test_a_failed_flush_is_for_good_as_on_any_disk(disk: FaultyDisk, file: FaultyFile, path: Path) -> None:
    disk.set(DiskState.FAIL)
    with pytest.raises(BackendError):
        file.flush()
    disk.set(DiskState.OK)
    with pytest.raises(BackendError, match="an earlier flush failed"):
        file.flush()
    file.close()
    again = disk.open(path)
    again.flush()
    again.close()


def test_nothing_is_opened_on_a_disk_that_fails(disk: FaultyDisk, path: Path) -> None:
    disk.set(DiskState.FAIL)
    with pytest.raises(BackendError, match=r"vda\.img: open: Input/output error"):
        disk.open(path)
    disk.set(DiskState.OK)
    file = disk.open(path)
    with pytest.raises(BusyError):
        disk.open(path)
    file.close()


@pytest.mark.parametrize("then", [DiskState.OK, DiskState.FAIL, DiskState.FULL])
def test_a_hang_ends_with_the_state(disk: FaultyDisk, file: FaultyFile, then: DiskState) -> None:
    file.write(0, [bytes(BLOCK_BYTES)])
    disk.set(DiskState.HANG)
    thread = Thread(file)
    into = memoryview(bytearray(BLOCK_BYTES))
    assert not file.read_nowait(0, into)  # whoever must not wait is told so
    assert thread.hangs
    disk.set(then)
    error = thread.end()
    disk.set(DiskState.OK)
    if then is DiskState.FAIL:
        assert isinstance(error, BackendError)
        assert file.read(0, BLOCK_BYTES) == bytes(BLOCK_BYTES)
    else:
        assert error is None
        assert file.read(0, BLOCK_BYTES) == BLOCK


def test_a_hang_ends_when_the_file_is_closed(disk: FaultyDisk, file: FaultyFile) -> None:
    disk.set(DiskState.HANG)
    thread = Thread(file)
    file.close()
    assert isinstance(thread.end(), ClosedError)
    disk.set(DiskState.OK)


def test_what_is_opened_later_hangs_too(disk: FaultyDisk, path: Path) -> None:
    disk.set(DiskState.OK)  # armed
    file = disk.open(path)
    assert not file.memory_backed
    assert RawFile(file).may_block
    disk.set(DiskState.HANG)
    thread = Thread(file)
    assert thread.hangs
    disk.set(DiskState.OK)
    assert thread.end() is None
    file.close()


def test_a_full_disk_takes_what_has_its_room(disk: FaultyDisk, file: FaultyFile, path: Path) -> None:
    file.write(0, [BLOCK])
    disk.set(DiskState.FULL)
    file.write(0, [BLOCK[::-1]], durable=True)
    with pytest.raises(BackendError, match="No space left on device") as failure:
        file.write(BLOCK_BYTES, [BLOCK])
    assert failure.value.errno == errno.ENOSPC
    with pytest.raises(BackendError, match="No space left"):
        file.write(BLOCK_BYTES, [BLOCK], durable=True)
    with pytest.raises(BackendError, match="No space left"):
        file.zero(0, 2 * BLOCK_BYTES, keep_space=True)
    file.zero(0, MIB, keep_space=False)
    file.flush()  # no failure of this kind is for good
    disk.set(DiskState.OK)
    file.write(BLOCK_BYTES, [BLOCK])
    assert file.read(0, 2 * BLOCK_BYTES) == bytes(BLOCK_BYTES) + BLOCK


def test_what_was_reserved_has_its_room(disk: FaultyDisk, file: FaultyFile, path: Path) -> None:
    file.reserve()
    if os.stat(path).st_blocks * 512 < MIB:
        pytest.skip("this file system reserves nothing")
    disk.set(DiskState.FULL)
    file.write(MIB - BLOCK_BYTES, [BLOCK], durable=True)
    file.zero(0, MIB, keep_space=True)


def test_a_disk_that_was_taken_out_never_comes_back(disk: FaultyDisk, file: FaultyFile, path: Path) -> None:
    disk.set(DiskState.HANG)
    thread = Thread(file)
    disk.pull()
    assert "was replaced" in str(thread.end())
    path.unlink()
    create_volume(path, MIB)
    disk.set(DiskState.OK)
    with pytest.raises(BackendError, match="was replaced"):
        file.write(0, [BLOCK])
    new = disk.open(path)
    new.write(0, [BLOCK])
    new.close()


def test_a_directory_fails_with_its_disk(disk: FaultyDisk, tmp_path: Path) -> None:
    directory = FaultyDirectory(tmp_path, disk)
    file = directory.create("one.new")
    file.resize(2 * BLOCK_BYTES)
    file.write(0, [BLOCK], durable=True)
    directory.publish(file, "one")
    directory.sync()
    assert directory.names("one") == ["one"]
    disk.set(DiskState.FAIL)
    for call in (
        lambda: directory.names(""),
        directory.sync,
        lambda: directory.create("two"),
        lambda: directory.open("one"),
        lambda: directory.publish(file, "other"),
        lambda: directory.remove("one"),
        lambda: file.resize(BLOCK_BYTES),
        lambda: file.rename(tmp_path / "other"),
    ):
        with pytest.raises(BackendError, match="Input/output error"):
            call()
    disk.set(DiskState.OK)
    assert directory.names("") == ["one"]
    assert file.read(0, BLOCK_BYTES) == BLOCK
    file.close()
    directory.remove("one")
    assert directory.names("") == []


def test_slowness_makes_nothing_fail(disk: FaultyDisk, file: FaultyFile) -> None:
    disk.set(DiskState.OK)
    disk.slow_ns = NS_PER_MS
    file.write(0, [BLOCK], durable=True)
    assert not file.read_nowait(0, memoryview(bytearray(BLOCK_BYTES)))
    assert file.read(0, BLOCK_BYTES) == BLOCK
