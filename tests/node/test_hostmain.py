"""The host's program: its words, its exit status, its end with its parent."""

from __future__ import annotations

import gc
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pairsync.core.units import MIB
from pairsync.guest.replica import create_replica
from pairsync.node.hostmain import GC_YOUNG_OBJECTS, main, run_host_file

PAIR_ID = bytes(range(16))
DEADLINE_S = 60.0


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A host's file; it is active, alone, and has one volume."""
    create_replica(tmp_path / "vda.img", name="vda", pair_id=PAIR_ID, volume_id=bytes(16), size_bytes=MIB)
    path = tmp_path / "host.toml"
    path.write_text(
        f"""
        host = {{ name = "a" }}
        guest = {{ name = "g", pair_id = "{PAIR_ID.hex()}", role = "active" }}
        nbd = {{ socket = "nbd.sock" }}
        volumes = [{{ name = "vda", path = "vda.img" }}]
        """
    )
    return path


@pytest.fixture
def same_collector() -> Iterator[None]:
    """The program tunes the collector of its process, which here is everybody's."""
    thresholds = gc.get_threshold()
    yield
    assert gc.get_threshold()[0] == GC_YOUNG_OBJECTS
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def spawn(*words: object) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "pairsync.node.hostmain", *map(str, words)]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def first_line(process: subprocess.Popen[bytes]) -> dict[str, object]:
    assert process.stdout is not None
    line: dict[str, object] = json.loads(process.stdout.readline())
    return line


def test_it_runs_until_a_signal(file: Path) -> None:
    with spawn(file) as process:
        assert first_line(process)["event"] == "ready"
        assert process.stdin is not None
        process.stdin.close()  # nobody asked it to follow that
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0
    assert not (file.parent / "nbd.sock").exists()


def test_it_takes_all_descriptors_that_it_may_have(file: Path) -> None:
    """Two front doors full of clients are all of the usual limit; the next look at its memory ended it."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[1]), before[1]))
    try:
        process = spawn(file)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    with process:
        assert first_line(process)["event"] == "ready"
        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (before[1], before[1])
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0


def test_it_ends_with_its_parent_if_asked_to(file: Path) -> None:
    with spawn("--follow-stdin", file) as process:
        assert first_line(process)["event"] == "ready"
        assert process.stdin is not None
        process.stdin.write(b"nothing that it reads")
        process.stdin.close()
        assert process.wait(DEADLINE_S) == 0
    assert not (file.parent / "nbd.sock").exists()


def test_its_end_and_its_reason_are_told(file: Path) -> None:
    with spawn("--cut", file) as process:  # there is no link to be cut
        _, said = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 1
        assert said.decode().splitlines()[-1] == "pairsync: guest g has no peer"


def test_what_is_wrong_is_one_line(
    file: Path, capsys: pytest.CaptureFixture[str], same_collector: None
) -> None:
    (file.parent / "vda.img").write_bytes(bytes(5))
    assert run_host_file(file) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith("pairsync: ")
    assert "has 5 bytes" in said[0]


@pytest.mark.parametrize("words", [[], ["one", "two"], ["--cut"], ["one", "--unknown"]])
def test_wrong_words_are_told(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["hostmain", *words])
    assert main() == 2
    assert "usage:" in capsys.readouterr().err
