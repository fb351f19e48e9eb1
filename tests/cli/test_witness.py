"""``pairsync witness``: a witness made, told whom it serves, asked how it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.conftest import Command

from pairsync.cli import witness as module
from pairsync.io.keys import make_identity

PAIR_ID = "00112233445566778899aabbccddeeff"


@pytest.fixture
def hosts(tmp_path: Path) -> list[Path]:
    files = [tmp_path / "a.crt", tmp_path / "b.crt"]
    for file in files:
        file.write_bytes(make_identity().certificate_pem)
    return files


def test_from_nothing_to_a_pair(command: Command, tmp_path: Path, hosts: list[Path]) -> None:
    place = str(tmp_path / "w")
    made = command("witness", "init", place, "--listen", "127.0.0.1:0")
    assert made.status == 0
    assert "pairsync witness add" in made.out
    assert command("witness", "list", place).out == "no pairs: pairsync witness add\n"
    words = ("--pair", PAIR_ID, "--host", str(hosts[0]), "--host", str(hosts[1]))
    added = command("witness", "add", place, *words)
    assert (added.status, added.out.startswith(f"pair {PAIR_ID}: hosts ")) == (0, True)
    assert "does not run yet" in added.out
    again = command("witness", "add", place, *words)
    assert (again.status, "say --replace" in again.err) == (1, True)
    assert command("witness", "add", place, *words, "--replace").status == 0
    (pair,) = json.loads(command("witness", "list", place, "--json").out)["pairs"]
    assert pair["pair_id"] == PAIR_ID
    assert pair["hosts"][0][:16] in command("witness", "list", place).out
    assert command("witness", "remove", place, "--pair", PAIR_ID).status == 0
    gone = command("witness", "remove", place, "--pair", PAIR_ID)
    assert (gone.status, gone.err) == (1, f"pairsync: pair {PAIR_ID} is not served\n")


def test_a_witness_that_does_not_run_says_so(command: Command, tmp_path: Path) -> None:
    place = str(tmp_path / "w")
    missing = command("witness", "status", place)
    assert (missing.status, "make one with pairsync witness init" in missing.err) == (1, True)
    command("witness", "init", place)
    down = command("witness", "status", place)
    assert (down.status, down.err) == (1, f"pairsync: the witness in {place} is not running\n")


def test_status_is_shown(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = {
        "pid": 17,
        "addresses": ["127.0.0.1:10889"],
        "pairs": 2,
        "hosts_connected": 4,
        "half_open": 0,
        "registers": 3,
        "file_bytes": 1 << 20,
        "swaps": 5,
        "uptime_s": 12.0,
        "crossed": 1,
        "failed": 0,
        "resident_bytes": 40 << 20,
        "descriptors": 9,
        "began_anew": "registers is a copy",
        "refusals": {"handshake": 2},
    }
    monkeypatch.setattr(module, "_ask", lambda directory, do: {"witness": now})
    shown = command("witness", "status", str(tmp_path))
    assert shown.status == 0
    for words in ("2 pairs at 127.0.0.1:10889", "4 hosts", "1 MiB", "BEGAN ANEW", "2 handshake"):
        assert words in shown.out
    assert json.loads(command("witness", "status", str(tmp_path), "--json").out) == now
