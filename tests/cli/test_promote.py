"""`pairsync host promote`: what it says before and after, in words and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.conftest import Command

from pairsync.cli.promote import host_promote
from pairsync.guest import promote as guest_promote
from pairsync.guest.promote import Reversion

REVERTED = Reversion("vda", True, "3.1/07", 1_700_000_000, 12, 4)
WHOLE = Reversion("vdb", False, "3.2/08", None, 0, 4)


@pytest.fixture
def host_file(tmp_path: Path, command: Command) -> Path:
    command("host", "init", str(tmp_path / "h"), "--volume", "vda=1M", "--name", "h", "--peer", "127.0.0.1")
    return tmp_path / "h" / "host.toml"


def test_it_says_what_it_would_do(host_file: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_promote, "look_at_replicas", lambda *_: [REVERTED, WHOLE])
    done = command("host", "promote", str(host_file))
    assert done.status == 1
    assert "vda: 12 blocks would be put back; its last consistent point, generation 3.1/07, is" in done.out
    assert "2023-11-14 22:13:20 UTC" in done.out
    assert "vdb: whole, at generation 3.2/08; stays as it is" in done.out
    assert "different moments" in done.out
    assert f"pairsync host promote {host_file} --revert" in done.out
    done = command("host", "promote", str(host_file), "--json")
    assert (done.status, json.loads(done.out)["done"]) == (1, False)


def test_it_says_what_to_do_next(host_file: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_promote, "promote_replicas", lambda *_: [REVERTED])
    done = command("host", "promote", str(host_file), "--revert")
    assert done.status == 0
    assert "12 blocks were put back" in done.out
    assert f"pairsync host override {host_file} --above-term 4 --yes" in done.out
    assert "role" not in done.out
    done = command("host", "promote", str(host_file), "--revert", "--json")
    assert json.loads(done.out) == {
        "done": True,
        "volumes": [
            {
                "volume": "vda",
                "reverts": True,
                "generation": "3.1/07",
                "resync_began_s": 1_700_000_000,
                "blocks": 12,
                "term": 4,
            }
        ],
    }


def test_where_the_roles_are_fixed_it_says_to_state_another_one(
    host_file: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_promote, "promote_replicas", lambda *_: [REVERTED])
    text = host_file.read_text()
    start, stop = text.index("[register]"), text.index("[link]")
    host_file.write_text(text[:start].rstrip() + '\nrole = "standby"\n\n' + text[stop:])
    done = command("host", "promote", str(host_file), "--revert")
    assert done.status == 0, done.err
    assert 'role = "active" and term = 4' in done.out
    assert "override" not in done.out


def test_a_replica_that_was_never_written(host_file: Path, command: Command) -> None:
    done = command("host", "promote", str(host_file))
    assert (done.status, done.out) == (1, "")
    assert done.err == "pairsync: volume vda: was never written: there is nothing to go back to\n"


def test_its_help_says_what_is_lost(command: Command) -> None:
    done = command("host", "promote", "--help")
    assert done.status == 0
    assert host_promote.__doc__ is not None
    assert "What it had written since" in host_promote.__doc__
