"""Pairs for the guest tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.guest.harness import Host, Pair

from pairsync.io.keys import HostIdentity, make_identity

MEMORY = Path("/dev/shm")


@pytest.fixture(scope="session")
def identities() -> dict[Host, HostIdentity]:
    return {"a": make_identity("host a"), "b": make_identity("host b")}


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, where a flush costs nothing (the test's own where there is none)."""
    if not MEMORY.is_dir():
        yield tmp_path
        return
    directory = Path(tempfile.mkdtemp(prefix="pairsync-guest-", dir=MEMORY))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def files(room: Path, identities: dict[Host, HostIdentity]) -> Pair:
    """A pair whose replicas are still to be made."""
    return Pair(room, identities)


@pytest.fixture
def pair(files: Pair) -> Pair:
    """A pair with one volume of 8 MiB."""
    files.create()
    return files


@pytest.fixture
def disk_pair(tmp_path: Path, identities: dict[Host, HostIdentity]) -> Pair:
    """The same where the tests' files lie, usually a disk: its lanes are threads."""
    pair = Pair(tmp_path, identities)
    pair.create()
    return pair
