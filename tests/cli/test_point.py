"""`pairsync lab point` and `pairsync host point`: on a lab that runs, and on one that is down."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Command

from pairsync.cli import asking as asking_module
from pairsync.cli import point as point_module
from pairsync.errors import ConfigError
from pairsync.node.hostfile import HostFile
from pairsync.node.labfile import LabFile
from pairsync.node.labprepare import prepare

LAB = LabFile({"vda": 1 << 20}, "sync", single=False, pair_id="0f" * 16, ports={"a": 1, "b": 2})


def test_a_lab_that_is_down(tmp_path: Path, command: Command) -> None:
    prepare(tmp_path, LAB)
    LAB.save(tmp_path)
    for words in (["make", str(tmp_path), "vda", "x"], ["drop", str(tmp_path), "vda", "x"]):
        done = command("lab", "point", *words)
        assert (done.status, done.out) == (1, "")
        assert "no active host is running here" in done.err
    assert "no host is running" in command("lab", "point", "list", str(tmp_path), "vda").err
    file = str(tmp_path / "a" / "host.toml")
    assert "no host is running" in command("host", "point", "list", file, "vda").err


def test_a_host_whose_disk_fails_keeps_nobody_from_the_points_of_the_other(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No point could be made on the active host, while the disk of the standby was being opened anew."""
    prepare(tmp_path, LAB)
    LAB.save(tmp_path)
    point = {"name": "monday", "id": "00ff" * 4, "created_s": 1_700_000_000, "on_peer": False}
    reason = "volume vda: its disk could not be opened so far"

    def ask(host: HostFile, request: Mapping[str, Any], **_: Any) -> dict[str, Any]:
        if request["do"] == "status":
            if host.name == "a":
                raise ConfigError("host a did not answer within 10 s")
            return {"guest": {"role": "active", "paused": False}}
        if host.name == "a":
            raise ConfigError(reason)
        return {"role": "active", "points": [point], "point": point}

    monkeypatch.setattr(point_module, "ask_host", ask)
    monkeypatch.setattr(asking_module, "ask_host", ask)
    done = command("lab", "point", "list", str(tmp_path), "vda")
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines() == [
        "host b:",
        f"  {point_module._line(point)}",
        f"host a: not known: {reason}",
    ]
    told = json.loads(command("lab", "point", "list", str(tmp_path), "vda", "--json").out)
    assert told == {"hosts": {"b": [point]}, "unknown": {"a": reason}}
    for words in (["make", str(tmp_path), "vda", "monday"], ["drop", str(tmp_path), "vda", "monday"]):
        assert command("lab", "point", *words).status == 0
    assert command("host", "point", "list", str(tmp_path / "a" / "host.toml"), "vda").err.endswith(
        f"{reason}\n"
    )


def test_how_they_look() -> None:
    point = {"name": "monday", "id": "00ff" * 4, "created_s": 1_700_000_000, "on_peer": True}
    assert point_module._line(point) == (
        "monday               2023-11-14 22:13:20 UTC, on both hosts, id 00ff00ff00ff00ff"
    )
    assert "on this host only" in point_module._line({**point, "on_peer": False})
