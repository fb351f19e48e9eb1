"""The examples run, as programs of their own, and say what they promise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize(
    ("name", "promise"),
    [
        ("embed_trio.py", "in sync"),
        ("embed_asyncio.py", "in sync"),
        ("own_witness.py", "passed: histories are linearizable"),
    ],
)
def test_an_example_ends_well(name: str, promise: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert promise in done.stdout
    assert "Traceback" not in done.stderr


def test_an_incremental_backup_is_equal_to_the_volume(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "incremental_backup.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is equal to the volume" in done.stdout
    assert "65536 KiB copied" in done.stdout.splitlines()[0]  # the full one, and no other
    assert done.stdout.count("65536 KiB copied") == 1


def test_every_example_opens_by_saying_what_it_shows() -> None:
    for path in sorted(EXAMPLES.glob("*.py")):
        assert path.read_text(encoding="utf-8").startswith('"""'), path.name
