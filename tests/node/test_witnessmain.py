"""The witness's program: its words, its exit status, its end with its parent."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pairsync.node.witnessdir import control_path, init_witness
from pairsync.node.witnessmain import main, run_witness

DEADLINE_S = 60.0


@pytest.fixture
def place(tmp_path: Path) -> Path:
    init_witness(tmp_path / "w", [("127.0.0.1", 0)])
    return tmp_path / "w"


def spawn(*words: object) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "pairsync.node.witnessmain", *map(str, words)]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_it_says_where_it_serves_and_ends_on_a_signal(place: Path) -> None:
    with spawn(place) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["event"] == "ready"
        assert ready["pid"] == process.pid
        assert ready["address"].rpartition(":")[0] == "127.0.0.1"
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0


def test_it_leaves_no_directory_of_sockets_behind(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    init_witness(deep, [("127.0.0.1", 0)])
    sockets = control_path(deep).parent
    assert sockets.parent != deep
    with spawn(deep) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert sockets.exists()
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0
    assert not sockets.exists()


def test_it_follows_its_parent(place: Path) -> None:
    with spawn(place, "--follow-stdin") as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(DEADLINE_S) == 0


def test_what_is_wrong_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_witness(tmp_path) == 1
    assert capsys.readouterr().err.startswith(f"pairsync: no witness in {tmp_path}")


def test_wrong_words_are_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["witnessmain"])
    assert main() == 2
    assert "usage" in capsys.readouterr().err
