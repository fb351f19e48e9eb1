"""Our side of the benchmark speaks the fixed form of the lab, here to a double that only plays it back."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from benchmarks.ours import Lab, find_command
from benchmarks.procs import BenchError

pytestmark = pytest.mark.usefixtures("interruptible")  # the double, or each test waits until it is killed

_DOUBLE = '''#!{python}
"""Plays back what a lab says: DIR/../script.json maps a verb to lines of output."""
import json, pathlib, sys, time

words = sys.argv[1:]
if words == ["lab", "--help"]:
    sys.exit(0)
verb, directory = words[1], pathlib.Path(words[2])
script = json.loads(directory.with_name("script.json").read_text())
with directory.with_name("commands.log").open("a") as log:
    log.write(" ".join(words[:2] + words[3:]) + "\\n")
if verb != "up":
    if verb == "start":
        directory.with_name("started").touch()
    print("\\n".join(json.dumps(line) for line in script.get(verb, [])))
    sys.exit(0)
for line in script["up"]:
    print(json.dumps(line), flush=True)
if not script.get("stays", True):
    sys.exit(3)
while True:
    if directory.with_name("started").exists():
        directory.with_name("started").unlink()
        for line in script["events"]:
            print(json.dumps(line), flush=True)
            time.sleep(0.01)
    time.sleep(0.01)
'''

_READY = {
    "event": "ready",
    "hosts": {
        "a": {
            "pid": 1,
            "link": "127.0.0.1:7001",
            "volumes": {"vda": {"uri": "nbd+unix:///vda", "path": "/a"}},
        },
        "b": {"pid": 2, "link": "127.0.0.1:7002", "volumes": {"vda": {"uri": "nbd+unix:///b", "path": "/b"}}},
    },
}


def _double(tmp_path: Path, **script: object) -> Lab:
    command = tmp_path / "pairsync"
    command.write_text(_DOUBLE.replace("{python}", sys.executable))
    command.chmod(0o700)
    (tmp_path / "script.json").write_text(json.dumps({"up": [_READY], **script}))
    return Lab(find_command(str(command)), tmp_path / "lab", {"vda": 256 << 20, "data": 1 << 40})


def _commands(tmp_path: Path) -> list[str]:
    return (tmp_path / "commands.log").read_text().splitlines()


def test_ready_line_and_commands(tmp_path: Path) -> None:
    with _double(tmp_path, status=[{"hosts": {"b": {"pid": 4_000_000}}}]) as lab:
        assert lab.uri() == "nbd+unix:///vda"
        assert lab.path(host="b") == Path("/b")
        assert lab.link_ports() == [7001, 7002]
        assert lab.pids(), "the lab itself is among its processes"
        lab.kill("b")
        lab.wait_in_sync(7.0)
    assert _commands(tmp_path) == [
        "lab up --volume vda=256M --volume data=1048576M --level sync --witness builtin --json",
        "lab status --json",
        "lab kill b",
        "lab wait --in-sync --timeout 7",
    ]
    assert lab.pids() == [], "nothing is left"


def test_catch_up_is_timed_from_the_link(tmp_path: Path) -> None:
    events = [{"event": "connected"}, {"event": "resync"}, {"event": "progress"}, {"event": "in-sync"}]
    with _double(tmp_path, events=events) as lab:
        took = lab.catch_up(timeout_s=5.0)
    assert took.link is not None
    assert took.resync is not None
    # The lines may reach us in one piece, so there is no least time between them.
    assert took.wall >= took.link >= took.resync >= 0
    assert took.judged == took.link
    assert took.judged_from == "link"


def test_catch_up_takes_the_clock_of_the_active_host(tmp_path: Path) -> None:
    events = [
        {"event": "connected", "host": "b", "monotonic_ns": 1},
        {"event": "connected", "host": "a", "monotonic_ns": 7_000_000_000},
        {"event": "in_sync", "host": "b", "monotonic_ns": 2},
        {"event": "resync", "host": "a", "monotonic_ns": 7_250_000_000},
        {"event": "in-sync", "host": "a", "monotonic_ns": 9_000_000_000},
    ]
    with _double(tmp_path, events=events) as lab:
        took = lab.catch_up(timeout_s=5.0)
    assert (took.link, took.resync) == (2.0, 1.75)


def test_a_scrub_tells_of_every_volume(tmp_path: Path) -> None:
    told = {name: {"bytes": 4096, "seconds": 0.5, "findings": 0, "found": []} for name in ("vda", "data")}
    with _double(tmp_path, scrub=[{"clean": True, "volumes": told}]) as lab:
        assert lab.scrub(timeout_s=5.0) == list(told.values())
    assert _commands(tmp_path)[-1] == "lab scrub --json"


@pytest.mark.parametrize("told", [[{}], [{"clean": True, "volumes": {"vda": {"bytes": 4096}}}]])
def test_a_scrub_that_tells_nothing_is_an_error(tmp_path: Path, told: list[object]) -> None:
    with _double(tmp_path, scrub=told) as lab, pytest.raises(BenchError, match="`lab scrub` told"):
        lab.scrub(timeout_s=5.0)


def test_catch_up_without_events_is_timed_by_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.ours.EVENT_S", 0.05)
    with _double(tmp_path, events=[]) as lab:
        took = lab.catch_up(timeout_s=5.0)
    assert (took.link, took.resync) == (None, None)
    assert took.judged == took.wall > 0
    assert took.judged_from == "wall"


@pytest.mark.parametrize("first", [[], [{"event": "error", "reason": "no space"}]])
def test_a_lab_that_is_not_ready_is_an_error(tmp_path: Path, first: list[object]) -> None:
    with (
        pytest.raises(BenchError, match="the first line is not ready"),
        _double(tmp_path, up=first, stays=False),
    ):
        pytest.fail("entered")


def test_a_command_without_a_lab_is_an_error() -> None:
    with pytest.raises(BenchError, match="has no lab"):
        find_command("/bin/false")
    with pytest.raises(BenchError, match="has no lab"):
        find_command(os.devnull)
