"""A real directory of growing files: what it promises, and its refusals."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from pairsync.errors import BackendError, BusyError, ClosedError, ConfigError
from pairsync.storage.directory import OsDirectory
from pairsync.testing.disks import SimMedium
from pairsync.testing.simfiles import SimDirectory


def test_files_are_made_grow_and_are_renamed_over_others(tmp_path: Path) -> None:
    directory = OsDirectory(tmp_path)
    (tmp_path / "b").write_bytes(b"old")
    file = directory.create("a")
    file.resize(8192)
    file.write(4096, (b"new",), durable=True)
    with pytest.raises(BusyError):
        directory.open("a")
    directory.publish(file, "b")
    assert file.path == str(tmp_path / "b")
    assert directory.names("") == ["b"]
    file.flush()  # it is found under its new name
    file.close()
    again = directory.open("b")
    assert (again.size_bytes, again.read(4096, 3)) == (8192, b"new")
    again.close()
    directory.remove("b")
    directory.remove("b")
    assert directory.names("") == []


def test_the_space_of_a_removed_file_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = OsDirectory(tmp_path)
    file = directory.create("a")
    file.resize(8192)
    may_go = threading.Event()
    closed: list[str] = []
    close = os.close

    def slowly(fd: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            assert may_go.wait(20)
            closed.append(os.readlink(f"/proc/self/fd/{fd}"))
        close(fd)

    monkeypatch.setattr(os, "close", slowly)
    directory.remove("a")
    file.release()
    assert closed == []  # and here we are
    with pytest.raises(ClosedError):
        file.read(0, 1)
    may_go.set()
    for thread in threading.enumerate():
        if thread.name == "pairsync-release":
            thread.join(20)
    assert closed == [f"{tmp_path / 'a'} (deleted)"]
    file.release()


def test_names_begin_as_asked(tmp_path: Path) -> None:
    for name in ("v.2", "v.10", "w.1"):
        (tmp_path / name).touch()
    assert OsDirectory(tmp_path).names("v.") == ["v.10", "v.2"]


def test_refusals(tmp_path: Path) -> None:
    directory = OsDirectory(tmp_path)
    (tmp_path / "a").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="exists already"):
        directory.create("a")
    with pytest.raises(BackendError, match="No such file"):
        directory.open("b")
    (tmp_path / "d").mkdir()
    with pytest.raises(BackendError, match="removing it"):
        directory.remove("d")
    gone = OsDirectory(tmp_path / "gone")
    with pytest.raises(BackendError, match="listing the directory") as caught:
        gone.names("")
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(BackendError, match="fsync of the directory"):
        gone.sync()
    directory.sync()
    foreign = SimDirectory(SimMedium()).create("x")
    with pytest.raises(BackendError, match="no file of"):
        directory.publish(foreign, "y")
