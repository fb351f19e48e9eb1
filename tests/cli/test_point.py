"""`pairsync lab point` and `pairsync host point`: on a lab that runs, and on one that is down."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Command

from pairsync.cli import point as point_module
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


def test_how_they_look() -> None:
    point = {"name": "monday", "id": "00ff" * 4, "created_s": 1_700_000_000, "on_peer": True}
    assert point_module._line(point) == (
        "monday               2023-11-14 22:13:20 UTC, on both hosts, id 00ff00ff00ff00ff"
    )
    assert "on this host only" in point_module._line({**point, "on_peer": False})
