"""Files that are there, whole, after a power cut."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pairsync.node.durable import write_durably


def test_it_is_flushed_before_it_takes_the_name_and_the_name_is_flushed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "host.toml"
    path.write_bytes(b"old")
    steps: list[tuple[str, bytes]] = []  # what was flushed, and what stood under the name then

    def fsync(descriptor: int) -> None:
        steps.append((os.readlink(f"/proc/self/fd/{descriptor}"), path.read_bytes()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_durably(path, b"new")
    assert steps == [(f"{path}.new", b"old"), (str(tmp_path), b"new")]
    assert path.read_bytes() == b"new"


def test_after_an_error_the_old_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "host.toml"
    path.write_bytes(b"old")

    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output error"):
        write_durably(path, b"new")
    assert os.listdir(tmp_path) == ["host.toml"]
    assert path.read_bytes() == b"old"
