"""Punching holes, and asking what lies beneath a file."""

from __future__ import annotations

import errno
import os
import shutil
import struct
from pathlib import Path

import pytest

from pairsync.storage.linux import (
    PUNCH_HOLE,
    boot_id,
    fallocate,
    file_identity,
    file_size_bytes,
    is_memory_backed,
    same_file,
)


def test_fallocate_punches_a_hole_that_reads_as_zero(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 16384)
    fd = os.open(path, os.O_RDWR)
    try:
        fallocate(fd, PUNCH_HOLE, 4096, 8192)
        assert file_size_bytes(fd) == 16384
    finally:
        os.close(fd)
    assert path.read_bytes() == b"x" * 4096 + bytes(8192) + b"x" * 4096


def test_fallocate_reports_the_errno(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x")
    fd = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            fallocate(fd, PUNCH_HOLE, 0, 1)
        assert caught.value.errno == errno.EBADF
    finally:
        os.close(fd)


def test_tmpfs_is_memory(memory_path: Path) -> None:
    with open(memory_path / "f", "wb") as file:
        assert is_memory_backed(file.fileno())


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("22 27 {dev} / /proc rw,relatime - tmpfs tmpfs rw", True),
        ("22 27 {dev} / /a rw shared:1 master:2 - ramfs none rw", True),
        ("22 27 {dev} / / rw,relatime - ext4 /dev/vda rw", False),
        ("22 27 999:999 / / rw,relatime - tmpfs tmpfs rw", False),
        ("a line that is no mount", False),
        ("", False),
    ],
)
def test_the_mount_table_is_read(tmp_path: Path, line: str, answer: bool) -> None:
    with open(tmp_path / "f", "wb") as file:
        device = os.fstat(file.fileno()).st_dev
        table = tmp_path / "mountinfo"
        table.write_text(line.format(dev=f"{os.major(device)}:{os.minor(device)}") + "\n")
        assert is_memory_backed(file.fileno(), str(table)) is answer


def test_without_a_mount_table_the_careful_answer(tmp_path: Path) -> None:
    with open(tmp_path / "f", "wb") as file:
        assert not is_memory_backed(file.fileno(), str(tmp_path / "missing"))


def test_a_copy_has_another_identity_and_a_renamed_file_the_same(tmp_path: Path, memory_path: Path) -> None:
    for place in (tmp_path, memory_path):
        file = place / "file"
        file.write_bytes(b"x")
        before = file_identity(str(file))
        assert len(before) == 32
        copy = Path(shutil.copy2(file, place / "copy"))
        assert file_identity(str(copy)) != before
        file.rename(place / "renamed")
        (place / "renamed").write_bytes(b"other content")
        assert file_identity(str(place / "renamed")) == before
        (place / "renamed").unlink()
        file.write_bytes(b"x")
        assert file_identity(str(file)) != before


def test_a_file_is_the_same_after_its_device_got_another_number() -> None:
    """XFS makes the file system's number of it: after such a boot no memory of a voter was believed."""
    there = struct.pack("<QQQQ", 0x700, 131, 1_700_000_000_123_456_789, 0x81D63DF4)
    assert same_file(there, struct.pack("<Q", 0x705) + there[8:])
    for at in (8, 16, 24):
        assert not same_file(there, there[:at] + bytes([there[at] ^ 1]) + there[at + 1 :])
    unborn = there[:16] + bytes(8) + there[24:]
    assert same_file(unborn, unborn)
    assert not same_file(unborn, struct.pack("<Q", 0x705) + unborn[8:]), "nothing else tells a copy then"
    assert not same_file(b"", there)


def test_boots_are_told_apart() -> None:
    assert boot_id() == boot_id() != "unknown"
    assert len(boot_id()) == 36
