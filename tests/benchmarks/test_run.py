"""The whole harness for a moment: tiny volumes, one short round, peers only; and its ways to end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.procs import until, with_children

_ROOT = Path(__file__).resolve().parent.parent.parent
_RUN = [sys.executable, str(_ROOT / "benchmarks" / "run.py")]
_TOOLS = ("fio", "nbdcopy", "nbdkit", "qemu-io", "qemu-nbd", "qemu-storage-daemon", "ss")
_DEADLINE_S = 120.0
_LOADED = {"fio", "nbdkit", "qemu-nbd"}
"""What runs while the quorum driver in both its forms is under load."""


@pytest.mark.tools(*_TOOLS)
def test_peers_are_measured(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    work = tmp_path / "volumes"
    work.mkdir()
    options = ["--peers-only", "--rounds", "1", "--seconds", "0.3", "--shrink", "64", "--dir", str(work)]
    argv = [*_RUN, *options, "--only", "2,3,4,5,8,9,10,11,12,13,14,15", "--json", str(result), "--check"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=_DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(result.read_text())
    rows = {(figure["row"], figure["peer_name"]): figure for figure in document["figures"]}
    of_peers = {"2", "2 p99", "3", "4", "4 fresh", "5", "5 kept"}
    of_ours_alone = {"8", "9", "9 wide", "10 cold", "10 flap", "11 depth 1", "11 depth 8", "12", "13", "14"}
    of_ours_alone |= {"15 wire", "15 memory", "15 swaps"}
    assert {row for row, _ in rows} == of_peers | of_ours_alone
    for key in [("2", "quorum, nbdkit remote"), ("2", "quorum, qemu-nbd remote"), ("3", "nbdkit memory")]:
        assert rows[key]["peer_median"] > 10
    assert {figure["verdict"] for figure in document["figures"]} == {"not run", "info"}
    assert rows["5", "plain TCP copy"]["peer_median"] > 1
    assert "nbdkit memory" in done.stdout
    assert list(work.iterdir()) == [], "volumes are removed"


@pytest.mark.tools(*_TOOLS)
def test_the_witness_is_measured(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    options = ["--seconds", "0.2", "--shrink", "200", "--dir", str(tmp_path)]  # no bar for so few
    argv = [*_RUN, *options, "--only", "15", "--json", str(result)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=_DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr
    figures = {figure["row"]: figure for figure in json.loads(result.read_text())["figures"]}
    assert set(figures) == {"15 wire", "15 memory", "15 swaps"}
    assert figures["15 swaps"]["ours_median"] > 5
    assert figures["15 wire"]["details"]["resident_mib"] > 1
    assert list(tmp_path.iterdir()) == [result]


@pytest.mark.slow
@pytest.mark.tools(*_TOOLS)
def test_ours_is_measured(tmp_path: Path) -> None:
    # Rows 6 and 7 need all of the lab: pair and single, kill, start, wait, events, status, the link's port.
    result = tmp_path / "result.json"
    options = ["--rounds", "1", "--seconds", "0.3", "--shrink", "64", "--dir", str(tmp_path)]
    argv = [*_RUN, *options, "--only", "6,7", "--json", str(result)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=2 * _DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr
    figures = {figure["row"]: figure for figure in json.loads(result.read_text())["figures"]}
    assert set(figures) == {"6 bytes", "6 time", "7"}
    assert figures["6 bytes"]["ratio_median"] > 1, "no block gets to the other host without crossing the link"
    assert figures["6 time"]["details"]["resync"]["timed_from"] == ["link"]
    assert figures["7"]["ours_median"] > 10
    assert list(tmp_path.iterdir()) == [result]


@pytest.mark.slow
@pytest.mark.tools(*_TOOLS)
def test_digests_and_resyncs_are_measured(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    options = ["--rounds", "1", "--seconds", "0.3", "--shrink", "64", "--dir", str(tmp_path)]
    argv = [*_RUN, *options, "--only", "9,10,12", "--json", str(result)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=3 * _DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr
    figures = {figure["row"]: figure for figure in json.loads(result.read_text())["figures"]}
    assert set(figures) == {"9", "9 wide", "10 cold", "10 flap", "12"}
    assert figures["9"]["peer_name"] == "pairsync, no digests"
    for row in ("10 cold", "10 flap"):
        assert figures[row]["details"]["timed_from"] == ["link"]
        assert 0 < figures[row]["ours_median"] < 60
    assert figures["12"]["ours_median"] > 1
    assert list(tmp_path.iterdir()) == [result]


@pytest.mark.tools(*_TOOLS)
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    options = ["--peers-only", "--rounds", "9", "--seconds", "9", "--shrink", "64", "--dir", str(tmp_path)]
    with subprocess.Popen([*_RUN, *options, "--only", "1"], stderr=subprocess.PIPE, text=True) as harness:
        try:
            until(lambda: set(_family(harness.pid).values()) >= _LOADED, timeout_s=_DEADLINE_S, what="a load")
            family = _family(harness.pid)
            harness.send_signal(number)
            _, said = harness.communicate(timeout=_DEADLINE_S)
        finally:
            harness.kill()
    assert harness.returncode == 130
    assert "everything is cleaned up" in said
    assert len(family) >= 6, "the quorum driver twice, each with a remote end, the client, the harness"
    assert {pid: name for pid, name in family.items() if _name(pid) == name} == {}
    assert list(tmp_path.iterdir()) == []


def _name(pid: int) -> str:
    """What the process is called; nothing if it has ended."""
    try:
        name, _, state = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
    except OSError:
        return ""
    return "" if state.split()[0] in {"Z", "X"} else name


def _family(pid: int) -> dict[int, str]:
    """The process and its descendants, by their names."""
    return {one: _name(one) for one in with_children(pid)}


def test_unknown_rows_are_refused() -> None:
    argv = [*_RUN, "--only", "1,99"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=_DEADLINE_S, check=False)
    assert done.returncode == 2
    assert "no such row: 99" in done.stderr
