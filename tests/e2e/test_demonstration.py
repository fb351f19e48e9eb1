"""The demonstration, from its first line to its verdict, as a program of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pairsync.node.demo import run_demo

COMMAND = [sys.executable, "-c", "from pairsync.cli import main; main()", "demo"]

pytestmark = pytest.mark.tools("mkfs.ext4", "e2fsck", "debugfs", "qemu-img")


def test_it_ends_with_a_verdict_and_leaves_nothing_behind(tmp_path: Path) -> None:
    assert callable(run_demo)
    done = subprocess.run(
        [*COMMAND, "--directory", str(tmp_path)], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Verdict: the disk outlived the loss of its active host" in done.stdout
    assert "host b took over and served" in done.stdout
    assert "both replicas are the same" in done.stdout
    assert list(tmp_path.iterdir()) == []
