"""``pairsync host move`` and ``override``: said plainly, and not by accident."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pairsync.cli import register
from pairsync.cli.register import host_move, host_override
from pairsync.errors import ConfigError
from pairsync.node.hostinit import HostPlan, init_host


def host(tmp_path: Path) -> Path:
    init_host(tmp_path, HostPlan(volumes={"vda": 1 << 20}, name="a", peers=[("127.0.0.1", 1)]))
    return tmp_path / "host.toml"


def test_a_host_that_does_not_run_is_named(tmp_path: Path) -> None:
    file = host(tmp_path)
    with pytest.raises(ConfigError, match="host a is not running"):
        host_move(file)
    with pytest.raises(ConfigError, match="host a is not running"):
        host_override(file, yes=True)


def test_fixed_roles_do_not_move(tmp_path: Path) -> None:
    file = host(tmp_path)
    text = file.read_text()
    begin, end = text.index("[register]"), text.index("[link]")
    file.write_text(text[:begin] + text[end:].replace("[link]", "[link]", 1))
    file.write_text(file.read_text().replace("pair_id", 'role = "active"\npair_id', 1))
    with pytest.raises(ConfigError, match="the roles of this host are fixed"):
        host_move(file)


def test_an_override_is_explained_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert host_override(host(tmp_path)) == 1
    assert "Nothing was changed" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="none: No such file"):
        host_override(tmp_path / "none")


def test_what_was_done_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[dict[str, object]] = []

    def ask(_: Path, request: dict[str, object], *, seconds: float) -> None:
        assert seconds > 0
        asked.append(request)

    monkeypatch.setattr(register, "ask_running", ask)
    file = host(tmp_path)
    assert host_move(file, json_=True) == 0
    assert json.loads(capsys.readouterr().out) == {"moved": True}
    assert host_override(file, operator="Dr Weber", above_term=7, yes=True) == 0
    assert "by the word of Dr Weber" in capsys.readouterr().out
    assert host_override(file, operator="me", insist=True, yes=True) == 0
    assert asked == [
        {"do": "move"},
        {"do": "override", "operator": "Dr Weber", "above": 7, "insist": False},
        {"do": "override", "operator": "me", "above": 0, "insist": True},
    ]
