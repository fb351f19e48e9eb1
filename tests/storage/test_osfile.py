"""A real file: exclusive, complete reads and writes, and errors that name what happened."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pairsync.errors import BackendError, BusyError, ClosedError
from pairsync.storage import osfile
from pairsync.storage.linux import IOVECS_MAX
from pairsync.storage.osfile import OsFile, whole_file

MakeOsFile = Callable[..., OsFile]


@pytest.fixture
def os_file(tmp_path: Path) -> Iterator[MakeOsFile]:
    opened: list[OsFile] = []

    def make(content: bytes = b"", *, directory: Path = tmp_path, name: str = "f") -> OsFile:
        path = directory / name
        path.write_bytes(content)
        opened.append(OsFile(path))
        return opened[-1]

    yield make
    for file in opened:
        file.close()


def test_reads_and_writes_what_it_is_told(os_file: MakeOsFile) -> None:
    file = os_file(bytes(10_000))
    file.write(5000, (b"ab", memoryview(b"cd"), bytearray(b"e")))
    file.write(9999, (b"z",), durable=True)
    file.flush()
    assert file.read(4999, 7) == b"\0abcde\0"
    assert file.read(9999, 1) == b"z"


def test_more_buffers_than_one_call_takes(os_file: MakeOsFile) -> None:
    file = os_file(bytes(3 * IOVECS_MAX))
    buffers = [bytes([i % 251]) for i in range(2 * IOVECS_MAX + 7)]
    file.write(1, buffers)
    assert file.read(0, len(buffers) + 2) == b"\0" + b"".join(buffers) + b"\0"


def test_a_short_write_is_completed(os_file: MakeOsFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file = os_file(bytes(100))
    real = os.pwritev

    def stingy(fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
        first = next(b for b in buffers if len(b))
        return real(fd, [memoryview(first)[:3]], offset, flags)

    monkeypatch.setattr(os, "pwritev", stingy)
    file.write(10, (b"hello", b"", b"wide", b"world"))
    assert file.read(9, 16) == b"\0hellowideworld\0"


def test_a_write_that_gets_nowhere_is_an_error(os_file: MakeOsFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file = os_file(bytes(100))
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)
    with pytest.raises(BackendError, match="write of 5 bytes at 10") as caught:
        file.write(10, (b"hello",))
    assert caught.value.errno == errno.EIO


def test_a_read_beyond_the_end_is_an_error(os_file: MakeOsFile) -> None:
    file = os_file(bytes(100))
    with pytest.raises(BackendError, match="ends at 100"):
        file.read(90, 20)


def test_read_nowait_finds_what_is_cached(os_file: MakeOsFile, memory_path: Path) -> None:
    file = os_file(b"y" * 8192)
    view = memoryview(bytearray(4096))
    if file.read_nowait(4096, view):  # this file system may not know RWF_NOWAIT
        assert bytes(view) == b"y" * 4096
    in_memory = os_file(b"z" * 8192, directory=memory_path)
    assert in_memory.read_nowait(4096, view)
    assert bytes(view) == b"z" * 4096


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EOPNOTSUPP])
def test_read_nowait_says_no(os_file: MakeOsFile, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    file = os_file(b"y" * 8192)
    file.memory_backed = False
    flags_seen: list[int] = []

    def refusing(fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
        flags_seen.append(flags)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "preadv", refusing)
    view = memoryview(bytearray(16))
    assert not file.read_nowait(0, view)
    assert not file.read_nowait(0, view)
    # "not now" is asked again, "never" is not
    assert flags_seen == [os.RWF_NOWAIT] * (2 if number == errno.EAGAIN else 1)


def test_read_errors_are_reported(os_file: MakeOsFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file = os_file(b"y" * 8192)
    file.memory_backed = False

    def broken(*_: Any) -> int:
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(os, "preadv", broken)
    monkeypatch.setattr(os, "pread", broken)
    view = memoryview(bytearray(16))
    reads: list[Callable[[], object]] = [
        lambda: file.read_nowait(32, view),
        lambda: file.read_into(32, view),
        lambda: file.read(32, 16),
    ]
    for read in reads:
        with pytest.raises(BackendError, match="read of 16 bytes at 32") as caught:
            read()
        assert caught.value.errno == errno.EIO


def test_a_read_that_the_kernel_shortens_is_completed_or_an_error(
    os_file: MakeOsFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = os_file(b"x" * 4096 + b"y" * 4096)
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: real(fd, length // 2, offset))
    assert file.read(0, 8192) == b"x" * 4096 + b"y" * 4096
    with pytest.raises(BackendError, match="ends at 8192"):
        file.read(4096, 4097)


def test_only_one_may_have_it_open(os_file: MakeOsFile) -> None:
    file = os_file(b"x")
    with pytest.raises(BusyError, match="in use"):
        OsFile(file.path)
    script = (
        "import sys; from pairsync.storage.osfile import OsFile; from pairsync.errors import BusyError\n"
        "try: OsFile(sys.argv[1])\n"
        "except BusyError as error: print(error)"
    )
    other = subprocess.run([sys.executable, "-c", script, file.path], capture_output=True, text=True)
    assert other.stdout.strip() == f"{file.path}: in use by another process"
    file.close()
    OsFile(file.path).close()


@pytest.mark.parametrize("kind", ["missing", "directory", "device", "below a file"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    path = {
        "missing": tmp_path / "missing",
        "directory": tmp_path,
        "device": Path("/dev/null"),
        "below a file": tmp_path / "file" / "x",
    }[kind]
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BackendError, match=str(path)):
        OsFile(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_closed_file_says_so(os_file: MakeOsFile) -> None:
    file = os_file(bytes(16))
    file.close()
    file.close()
    with pytest.raises(ClosedError):
        file.read(0, 1)
    with pytest.raises(ClosedError):
        file.write(0, (b"x",))
    with pytest.raises(ClosedError):
        file.will_need(0, 1)


@pytest.mark.parametrize(
    ("what", "message"), [("unlink", "vanished"), ("replace", "replaced"), ("truncate", "cut from 4096")]
)
def test_a_flush_notices_that_the_file_is_gone(os_file: MakeOsFile, what: str, message: str) -> None:
    file = os_file(bytes(4096))
    path = Path(file.path)
    if what == "unlink":
        path.unlink()
    elif what == "replace":
        path.with_name("other").write_bytes(bytes(4096))
        path.with_name("other").rename(path)
    else:
        os.truncate(path, 10)
    with pytest.raises(BackendError, match=message):
        file.flush()
    assert not file.sound


def test_a_file_size_limit_is_a_clear_error(os_file: MakeOsFile) -> None:
    file = os_file(bytes(4096))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(BackendError, match="File too large") as caught:
            file.write(4096, (b"x" * 8192,))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert file.sound


@pytest.mark.parametrize("keep_space", [False, True])
@pytest.mark.parametrize("supported", [False, True])
def test_zeroing(
    os_file: MakeOsFile, monkeypatch: pytest.MonkeyPatch, keep_space: bool, supported: bool
) -> None:
    size = 3 * osfile.ZERO_PIECE_BYTES
    file = os_file(b"x" * size)
    if not supported:

        def refusing(*_: int) -> None:
            raise OSError(errno.EOPNOTSUPP, "not supported")

        monkeypatch.setattr(osfile, "fallocate", refusing)
    file.zero(100, size - 300, keep_space=keep_space)
    file.zero(5, 0, keep_space=keep_space)
    assert file.read(0, size) == b"x" * 100 + bytes(size - 300) + b"x" * 200


def test_zeroing_gives_space_back_or_keeps_it(os_file: MakeOsFile, memory_path: Path) -> None:
    file = os_file(b"x" * 65536, directory=memory_path)
    file.zero(0, 32768, keep_space=False)
    assert file.allocation(0, 65536) == [(32768, True), (32768, False)]
    file.zero(0, 65536, keep_space=True)  # tmpfs cannot: it is written
    assert file.allocation(0, 65536) == [(65536, False)]
    assert file.read(0, 65536) == bytes(65536)


def test_zeroing_errors_are_reported(os_file: MakeOsFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file = os_file(bytes(4096))

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(osfile, "fallocate", full)
    with pytest.raises(BackendError, match="zeroing 10 bytes at 20") as caught:
        file.zero(20, 10, keep_space=True)
    assert caught.value.errno == errno.ENOSPC


def test_allocation_is_cut_at_both_ends(os_file: MakeOsFile, memory_path: Path) -> None:
    path = memory_path / "sparse"
    with open(path, "wb") as raw:
        raw.truncate(1 << 20)
        os.pwrite(raw.fileno(), b"x" * 8192, 65536)
    file = OsFile(path)
    assert file.allocation(0, 1 << 20) == [(65536, True), (8192, False), ((1 << 20) - 73728, True)]
    assert file.allocation(65537, 10) == [(10, False)]
    assert file.allocation(3, 10) == [(10, True)]
    assert file.allocation(65530, 10) == [(6, True), (4, False)]
    assert file.allocation(7, 0) == []
    file.will_need(0, 1 << 20)
    file.close()


def test_allocation_is_bounded(os_file: MakeOsFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(osfile, "ALLOCATION_RUNS_MAX", 3)
    file = os_file(bytes(4096))
    monkeypatch.setattr(os, "lseek", lambda fd, offset, whence: offset + (whence == os.SEEK_HOLE) * 10)
    runs = file.allocation(0, 100)
    assert runs == [(10, False)] * 3


def test_a_whole_file_is_there_with_all_its_content_or_not_at_all(tmp_path: Path) -> None:
    path, aside = tmp_path / "file", tmp_path / "file.part"
    aside.write_bytes(b"what was left" * 100)

    def make(*, fails: bool) -> None:
        with whole_file(path, ".part") as file:
            assert file.size_bytes == 0
            with pytest.raises(BusyError):
                OsFile(aside)
            file.resize(4)
            if fails:
                raise BackendError("full", errno.ENOSPC)

    with pytest.raises(BackendError):
        make(fails=True)
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"the one before")
    make(fails=False)
    assert path.read_bytes() == bytes(4)
    assert list(tmp_path.iterdir()) == [path]
