"""``truths``, ``concede``, ``lab override``: what they say, before and after, in words and as JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Command

from pairsync.cli import truths
from pairsync.core.messages import Condition, Generation
from pairsync.guest.replica import open_replica
from pairsync.node.hostfile import read_host_file
from pairsync.node.labfile import LabFile

FIRST, SECOND, THERE = Generation(1, 1, 1), Generation(1, 2, 2), Generation(2, 1, 3)


def give_past(file: Path, *lineage: Generation, volume_id: bytes = b"v" * 16) -> None:
    host = read_host_file(file)
    replica = open_replica(host.volumes[0], host.pair_id)
    block = replace(replica.store.superblock, condition=Condition.CONSISTENT, lineage=lineage)
    replica.store.write_superblock(
        replace(block, volume_id=volume_id, term=lineage[0].term if lineage else 0)
    )
    replica.close()


@pytest.fixture
def files(tmp_path: Path, command: Command) -> tuple[Path, Path]:
    """The files of two hosts that were written apart."""
    words = ["--volume", "vda=1M", "--peer", "127.0.0.1"]
    assert command("host", "init", str(tmp_path / "a"), *words, "--name", "a").status == 0
    first = tmp_path / "a" / "host.toml"
    pair = read_host_file(first).pair_id.hex()
    command("host", "init", str(tmp_path / "b"), *words, "--name", "b", "--pair", pair)
    second = tmp_path / "b" / "host.toml"
    give_past(first, SECOND, FIRST)
    give_past(second, THERE, FIRST)
    return first, second


def test_what_a_host_has(files: tuple[Path, Path], command: Command) -> None:
    first, second = map(str, files)
    done = command("host", "truths", first)
    assert done.status == 0
    assert "host a: not running, grant 1.1: this host owns the guest" in done.out
    assert "vda          generation 1.2/02; what the other host has is not known; last written" in done.out
    done = command("host", "truths", first, "--peer-file", second)
    assert "since generation 1.1/01: any block may be written on its own, in generations 1.2/02" in done.out
    found = json.loads(command("host", "truths", second, "--peer-file", first, "--json").out)
    assert (found["host"], found["volumes"]["vda"]["own_generations"]) == ("b", [THERE.describe()])
    give_past(files[1], SECOND, FIRST)
    assert (
        "has nothing that the other host lacks" in command("host", "truths", first, "--peer-file", second).out
    )
    give_past(files[1])  # a disk that was taken over with what it holds, and has no history
    told = command("host", "truths", second, "--peer-file", first).out
    assert "nothing in common: any block may be written on its own" in told
    give_past(files[1], FIRST, volume_id=b"f" * 16)
    assert "is another volume than the other" in command("host", "truths", first, "--peer-file", second).out


def test_giving_way_is_explained_and_then_done(files: tuple[Path, Path], command: Command) -> None:
    first, second = map(str, files)
    done = command("host", "concede", first)
    assert (done.status, done.out) == (1, "")
    assert "(--peer-file), or name it (--common vda=GENERATION)" in done.err
    assert "is given as" not in done.err
    assert "'vda': a generation is named as" in command("host", "concede", first, "--common", "vda").err
    done = command("host", "concede", first, "--peer-file", second)
    assert done.status == 1
    assert "vda: goes back to generation 1.1/01, does not claim 1.2/02 any more; all blocks count" in done.out
    assert "Nothing was changed" in done.out
    done = command("host", "concede", first, "--common", "vda=1.1/01", "--json")
    assert json.loads(done.out)["volumes"][0]["common"] == "1.1/01"
    done = command("host", "concede", first, "--peer-file", second, "--yes")
    assert done.status == 0
    assert "pairsync host override OTHER_HOST_TOML --above-term 1 --yes" in done.out
    done = command("host", "concede", first, "--peer-file", second, "--yes", "--json")
    again = json.loads(done.out)
    assert (again["done"], again["volumes"][0]["stays"]) == (True, True)
    assert "vda: stays as it is" in command("host", "concede", first, "--peer-file", second).out


def test_room_that_is_short_is_told(files: tuple[Path, Path], command: Command, monkeypatch: Any) -> None:
    monkeypatch.setattr("pairsync.storage.overlay.default_overlay_bytes", lambda _: 4096)
    done = command("host", "concede", str(files[0]), "--peer-file", str(files[1]))
    assert "WARNING: overlays of vda may take 4 KiB" in done.out


def test_a_fixed_role_is_named_in_what_comes_next(files: tuple[Path, Path], command: Command) -> None:
    text = files[1].read_text()
    begin, end = text.index("[register]"), text.index("[link]")
    files[1].write_text((text[:begin] + text[end:]).replace("pair_id", 'role = "standby"\npair_id', 1))
    done = command("host", "concede", str(files[1]), "--peer-file", str(files[0]), "--yes")
    assert 'role = "active" and term = 2 (or more) in its file' in done.out


def test_a_lab_that_is_down(files: tuple[Path, Path], tmp_path: Path, command: Command) -> None:
    LabFile({"vda": 1 << 20}, "sync", False, "00" * 16, {}).save(tmp_path)
    done = command("lab", "truths", str(tmp_path))
    assert done.status == 1
    assert done.out.startswith(
        "TWO TRUTHS: neither replica may be overwritten by a machine\nhost a: not running, grant 1.1"
    )
    assert "to pick a side: pairsync lab truths" in done.out
    give_past(files[1], SECOND, FIRST)
    assert command("lab", "truths", str(tmp_path)).out.startswith("one truth\n")
    done = command("lab", "truths", str(tmp_path), "--keep", "a")
    assert (done.status, "is not up" in done.err) == (1, True)
    done = command("lab", "override", str(tmp_path), "b")
    assert (done.status, "is not up" in done.err) == (1, True)


def test_a_side_that_was_picked(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes = [
        {"volume": "vda", "stays": False, "everything": True, "blocks": 9},
        {"volume": "vdb", "stays": False, "everything": False, "blocks": 7},
        {"volume": "vdc", "stays": True, "everything": False, "blocks": 0},
    ]
    answer = {"kept": "a", "conceded": "b", "forced": True, "volumes": volumes}
    asked: list[object] = []

    def ask(directory: Path, request: object, seconds: float) -> dict[str, Any]:
        asked.append(request)
        return answer

    monkeypatch.setattr(truths, "_ask_lab", ask)
    done = command("lab", "truths", str(tmp_path), "--keep", "a", "--operator", "me")
    assert asked == [{"do": "keep", "host": "a", "operator": "me"}]
    assert done.out.splitlines() == [
        "host b, vda: gives way; all blocks count as written there",
        "host b, vdb: gives way; 7 blocks count as written there",
        "host b, vdc: stays as it is",
        "host a owns the guest, by the word of me",
    ]
    assert json.loads(command("lab", "truths", str(tmp_path), "--keep", "a", "--json").out) == answer
    done = command("lab", "override", str(tmp_path), "b", "--operator", "me")
    assert done.out == "host b owns the guest, by the word of me\n"
    assert asked[-1] == {"do": "override", "host": "b", "operator": "me", "insist": False}
    command("lab", "override", str(tmp_path), "b", "--operator", "me", "--insist")
    assert asked[-1] == {"do": "override", "host": "b", "operator": "me", "insist": True}
