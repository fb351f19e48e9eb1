"""Where labs of the end-to-end tests live, and what a failing one says."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

MEMORY = Path("/dev/shm")

MakeDirectory: TypeAlias = Callable[[], Path]

STAYS = ("--failover=20",)
"""Options of a lab whose active host is killed and started again: it is back before the other one takes over,
on a machine that is busy with others too."""


@pytest.fixture
def make_directory(tmp_path: Path) -> Iterator[MakeDirectory]:
    """Directories in memory, where a flush costs nothing (beside the test's own where there is no such)."""
    made: list[Path] = []

    def make() -> Path:
        place = MEMORY if MEMORY.is_dir() else tmp_path
        made.append(Path(tempfile.mkdtemp(prefix="pairsync-e2e-", dir=place)))
        return made[-1]

    yield make
    for directory in made:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def lab_directory(make_directory: MakeDirectory) -> Path:
    """A directory in memory that does not exist yet, for one lab."""
    return make_directory() / "lab"
