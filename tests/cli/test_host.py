"""`pairsync host`, of a host that is down, and of one that answers; more in tests/e2e/test_lost_host.py."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Command, Ended

from pairsync.cli import asking as asking_module
from pairsync.cli import host as host_module

SCRUBBED = {"bytes": 1 << 20, "seconds": 0.5, "findings": 1, "repaired": 1}


@pytest.fixture
def file(tmp_path: Path, command: Command) -> Path:
    """The file of a host that does not run."""
    volume = ("--volume", "vda=1M", "--name", "alpha", "--peer", "127.0.0.1")
    assert command("host", "init", str(tmp_path / "alpha"), *volume).status == 0
    return tmp_path / "alpha" / "host.toml"


def test_host_init_says_what_to_do_next(tmp_path: Path, command: Command) -> None:
    done = command("host", "init", str(tmp_path / "alpha"), "--volume", "vda=1M", "--name", "alpha")
    assert (done.status, done.err) == (0, "")
    pair_id = re.search(r"pair id +([0-9a-f]{32})\n", done.out)
    assert pair_id is not None
    assert f"host init DIRECTORY --pair {pair_id[1]} --volume vda=1048576 --peer ADDRESS" in done.out
    assert f"{tmp_path}/alpha/peer.pem" in done.out
    assert f"pairsync host run {tmp_path}/alpha/host.toml" in done.out
    assert re.search(r"Put the other host's address into .*host\.toml", done.out)


def test_the_other_host_is_told_each_path_and_each_port(tmp_path: Path, command: Command) -> None:
    peers = ("--peer", "192.0.2.2:10890", "--peer", "198.51.100.2:10890")
    volume = ("--volume", "vda=1M", "--listen", "0.0.0.0:10891")
    done = command("host", "init", str(tmp_path / "alpha"), *volume, *peers)
    assert "--peer ADDRESS:10891 --peer ADDRESS:10891 --listen 0.0.0.0:10890\n" in done.out


def test_a_host_that_does_not_run_or_cannot(file: Path, command: Command) -> None:
    for words in (["status"], ["wait", "--in-sync", "--timeout", "0.4"], ["scrub"], ["grow", "vda", "2M"]):
        name, *more = words
        done = command("host", name, str(file), *more)
        assert done == Ended(1, "", "pairsync: host alpha is not running\n")
    done = command("host", "run", str(file))
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith(f"pairsync: {file.parent}/peer.pem is missing: copy identity/host.crt of the")
    assert len(done.err.splitlines()) == 1


def test_waiting_needs_to_know_for_what(file: Path, command: Command) -> None:
    assert command("host", "wait", str(file)).err == "pairsync: say what to wait for: --in-sync\n"
    done = command("host", "wait", str(file), "--in-sync", "--timeout", "0")
    assert done.err == "pairsync: --timeout must be positive\n"


def test_waiting_includes_the_start_of_the_host(
    file: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [None, None, {"ok": True}]
    monkeypatch.setattr(asking_module, "LOOK_S", 0.01)
    monkeypatch.setattr(asking_module, "ask_host", lambda *_, **__: answers.pop(0))
    assert command("host", "wait", str(file), "--in-sync") == Ended(0, "", "")
    assert not answers


def _answering(
    asked: list[Mapping[str, Any]], answer: Mapping[str, Any]
) -> Callable[..., tuple[None, dict[str, Any]]]:
    def ask(_file: Path, request: Mapping[str, Any], **_: Any) -> tuple[None, dict[str, Any]]:
        asked.append(request)
        return None, {"ok": True, **answer}

    return ask


@pytest.mark.parametrize("repaired", [0, 1])
def test_a_scrub_tells_what_is_wrong_and_by_its_status_whether_it_was_mended(
    file: Path, command: Command, monkeypatch: pytest.MonkeyPatch, repaired: int
) -> None:
    asked: list[Mapping[str, Any]] = []
    found = {**SCRUBBED, "repaired": repaired, "found": [{"block": 3, "offset": 12288, "fault": "peer"}]}
    monkeypatch.setattr(host_module, "ask_running", _answering(asked, found))
    done = command("host", "scrub", str(file), "--repair")
    assert asked == [{"do": "scrub", "volume": "vda", "repair": True}]
    assert done.status == 1 - repaired
    assert done.out == f"vda: 1 blocks are wrong, {repaired} repaired (0.5 s, 2 MiB/s)\n  byte 12288: peer\n"
    said = json.loads(command("host", "scrub", str(file), "--volume", "vda", "--json").out)
    assert said == {"clean": bool(repaired), "volumes": {"vda": found}}
