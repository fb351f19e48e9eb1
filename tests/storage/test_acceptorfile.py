"""The memory of a host as a voter: safe at every crash, and not to be believed when it is a copy."""

from __future__ import annotations

import errno
import resource
import shutil
from pathlib import Path
from unittest.mock import Mock, patch

import pytest

from pairsync.errors import BackendError, BusyError, ConfigError, MetadataError
from pairsync.storage import acceptorfile
from pairsync.storage.acceptorfile import STATE_BYTES_MAX, AcceptorFile


def stored(path: Path) -> tuple[bytes, bool]:
    file = AcceptorFile.open(path)
    file.close()
    return file.state, file.moved


def test_what_was_stored_last_is_there(tmp_path: Path) -> None:
    path = tmp_path / "register"
    AcceptorFile.create(path, b"first")
    assert stored(path) == (b"first", False)
    file = AcceptorFile.open(path)
    for number in range(5):
        file.store(b"%d" % number * STATE_BYTES_MAX)
    file.close()
    assert stored(path) == (b"4" * STATE_BYTES_MAX, False)
    assert [each.name for each in tmp_path.iterdir()] == ["register"]


def test_it_is_not_made_twice_and_not_opened_twice(tmp_path: Path) -> None:
    path = tmp_path / "register"
    AcceptorFile.create(path, b"first")
    with pytest.raises(ConfigError, match="exists already; nothing was changed"):
        AcceptorFile.create(path, b"second")
    file = AcceptorFile.open(path)
    with pytest.raises(BusyError):
        AcceptorFile.open(path)
    file.close()
    assert stored(path) == (b"first", False)


def test_one_slot_that_is_torn_brings_no_older_state_back(tmp_path: Path) -> None:
    path = tmp_path / "register"
    AcceptorFile.create(path, b"older")
    file = AcceptorFile.open(path)
    file.store(b"newer")
    file.close()
    whole = path.read_bytes()
    for slot in (0, 4096):
        path.write_bytes(whole[:slot] + b"torn" * 20 + whole[slot + 80 :])
        assert stored(path) == (b"newer", False)


def test_a_file_that_was_put_back_knows_it_until_it_is_written_again(tmp_path: Path) -> None:
    path, backup = tmp_path / "register", tmp_path / "backup"
    AcceptorFile.create(path, b"promised little")
    shutil.copy2(path, backup)
    path.unlink()
    shutil.copy2(backup, path)
    assert stored(path) == (b"promised little", True)
    file = AcceptorFile.open(path)
    file.store(b"another voter")
    assert not file.moved
    file.close()
    assert stored(path) == (b"another voter", False)


def test_an_older_state_that_was_put_into_the_same_file_is_noticed(tmp_path: Path) -> None:
    path, backup = tmp_path / "register", tmp_path / "backup"
    AcceptorFile.create(path, b"promised little")
    shutil.copy2(path, backup)
    file = AcceptorFile.open(path)
    file.store(b"promised much")
    file.close()
    inode = path.stat().st_ino
    shutil.copyfile(backup, path)
    assert path.stat().st_ino == inode
    assert stored(path) == (b"promised little", True)


def test_where_there_is_no_room_for_the_next_file_there_was_for_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "register"
    AcceptorFile.create(path, b"first")
    file = AcceptorFile.open(path)

    with monkeypatch.context() as patch:
        patch.setattr(acceptorfile, "OsFile", Mock(side_effect=BackendError("full", errno.ENOSPC)))
        file.store(b"second")
        with pytest.raises(BackendError, match="full"):
            file.store(b"third")
    assert file.state == b"second"
    file.store(b"third")
    file.close()
    assert stored(path) == (b"third", False)


def test_what_an_earlier_process_left_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "register"
    AcceptorFile.create(path, b"first")
    (tmp_path / "register.new").write_bytes(b"left")
    file = AcceptorFile.open(path)
    file.store(b"second")
    file.close()
    assert stored(path) == (b"second", False)
    assert [each.name for each in tmp_path.iterdir()] == ["register"]


def test_a_renamed_file_is_the_same(tmp_path: Path) -> None:
    AcceptorFile.create(tmp_path / "old", b"state")
    (tmp_path / "old").rename(tmp_path / "new")
    assert stored(tmp_path / "new") == (b"state", False)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "register"
    AcceptorFile.create(path, b"state")
    path.write_bytes(b"\xff" * 8192)
    with pytest.raises(MetadataError, match="neither copy of the register memory"):
        AcceptorFile.open(path)


@pytest.mark.parametrize("content", [b"\xff" * 8192, b"", b"\0" * 8192, b"x" * 2730])
def test_what_is_damaged_is_a_memory_that_was_lost(tmp_path: Path, content: bytes) -> None:
    """Such a host did not start, until somebody had removed the file."""
    path = tmp_path / "register"
    AcceptorFile.create(path, b"state")
    path.write_bytes(content)
    assert AcceptorFile.peek(path) is None
    file = AcceptorFile.open_or_begin(path, b"begun anew")
    assert (file.state, file.moved) == (b"begun anew", False)
    file.store(b"second")
    file.close()
    assert AcceptorFile.peek(path) == b"second"
    assert (tmp_path / "register.damaged").read_bytes() == content
    again = AcceptorFile.open_or_begin(path, b"begun anew")
    again.close()
    assert again.state == b"second"


def test_a_missing_memory_is_begun_anew(tmp_path: Path) -> None:
    assert AcceptorFile.peek(tmp_path / "register") is None
    file = AcceptorFile.open_or_begin(tmp_path / "register", b"first")
    file.close()
    assert file.state == b"first"


def test_what_is_no_damaged_memory_stays_where_it_is(tmp_path: Path) -> None:
    """A file of another kind by that name, and what a newer version wrote."""
    volume = tmp_path / "vda.img"
    volume.write_bytes(bytes(1 << 20))
    with pytest.raises(MetadataError, match="neither copy"):
        AcceptorFile.open_or_begin(volume, b"first")
    path = tmp_path / "register"
    AcceptorFile.create(path, b"state")
    newer = MetadataError("written by a newer version", errno.EPROTONOSUPPORT)
    with (
        patch("pairsync.storage.slots.DualSlot.load", side_effect=newer),
        pytest.raises(MetadataError, match="newer version"),
    ):
        AcceptorFile.open_or_begin(path, b"first")
    assert AcceptorFile.peek(path) == b"state"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["register", "vda.img"]


def test_a_host_without_descriptors_says_so(tmp_path: Path) -> None:
    """The file made ahead is open already; only its directory is to be opened."""
    path = tmp_path / "register"
    AcceptorFile.create(path, b"first")
    file = AcceptorFile.open(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(BackendError, match="fsync of the directory: Too many open files"):
            file.store(b"second")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    file.close()
