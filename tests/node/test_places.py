"""One at a time in a directory, and sockets where they fit and are ours."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pairsync.errors import BusyError, ConfigError
from pairsync.node.places import DirectoryLock, make_sockets, sockets_of


def test_one_supervisor_at_a_time(tmp_path: Path) -> None:
    with DirectoryLock(tmp_path), pytest.raises(BusyError, match=f"the lab in {tmp_path} is up"):
        DirectoryLock(tmp_path)
    with DirectoryLock(tmp_path):
        pass


def test_sockets_lie_in_tmp_if_the_name_of_every_other_place_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("t" * 80)))
    assert sockets_of(tmp_path / ("d" * 80)).parent == Path("/tmp")


def test_sockets_of_somebody_else_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_sockets(tmp_path / "d")
    assert sockets_of(tmp_path / "d").stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    with pytest.raises(ConfigError, match="belongs to somebody else"):
        make_sockets(tmp_path / "d")
