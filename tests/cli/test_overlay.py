"""`pairsync lab overlay` and `host overlay` of hosts that are down; more in tests/e2e."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Command

from pairsync.cli import overlay as overlay_module
from pairsync.errors import ConfigError
from pairsync.node.hostfile import HostFile
from pairsync.node.labfile import LabFile
from pairsync.node.labprepare import prepare

LAB = LabFile({"vda": 1 << 20}, "sync", single=False, pair_id="0f" * 16, ports={"a": 1, "b": 2})

KEPT: dict[str, Any] = {
    "id": "b/vda/3",
    "host": "b",
    "volume": "vda",
    "state": "kept",
    "whole": True,
    "created_s": 1_700_000_000,
    "lineage": ["1.2/03"],
    "target": "1.3/04",
    "blocks": 2,
    "data_bytes": 8192,
    "file_bytes": 20480,
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    prepare(tmp_path, LAB)
    LAB.save(tmp_path)
    return tmp_path


def test_a_lab_without_any(directory: Path, command: Command) -> None:
    assert command("lab", "overlay", "list", str(directory)) == (0, "no overlays\n", "")
    done = command("lab", "overlay", "list", str(directory), "--json")
    assert json.loads(done.out) == {"overlays": []}
    for words in (["export", str(directory), "b/vda/1", str(directory / "x")], ["undo", str(directory), "1"]):
        done = command("lab", "overlay", *words)
        assert (done.status, done.out) == (1, "")
        assert "no overlay " in done.err
        assert "there is none" in done.err


def test_how_they_look(directory: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    undo = {**KEPT, "id": "a/vda/1", "state": "undo", "lineage": []}
    shown = [KEPT, undo, {**undo, "whole": False}]
    monkeypatch.setattr(overlay_module, "_list", lambda _: (shown, {}))
    lines = command("lab", "overlay", "list", str(directory)).out.splitlines()
    assert lines == [
        "b/vda/3          kept, 8 KiB in 2 blocks, 2023-11-14 22:13:20 UTC, of generation 1.2/03",
        "a/vda/1          undo, 8 KiB in 2 blocks, 2023-11-14 22:13:20 UTC, of generation none",
        "a/vda/1          undo, not whole, 8 KiB in 2 blocks, 2023-11-14 22:13:20 UTC, of generation none",
    ]
    done = command("lab", "overlay", "undo", str(directory), "b/vda/3")
    through = "pairsync: an overlay is written back through the host that is active, and "
    assert done.err == f"{through}none is\n"
    done = command("host", "overlay", "undo", str(directory / "b" / "host.toml"), "b/vda/3")
    assert done.err == f"{through}b is not: `host move` makes it so\n"
    done = command("lab", "overlay", "undo", str(directory), "a/vda/1")
    assert "see host promote" in done.err
    done = command("lab", "overlay", "export", str(directory), "b/vda/3", str(directory / "x"))
    assert (done.status, done.out) == (1, "")
    assert "no overlay '3'" in done.err


def test_a_host_that_goes_away_in_the_middle_of_an_export_is_not_kept_from_its_disks(
    directory: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was written here then, and the host could not come back for as long as that took."""

    def ask(host: HostFile, request: Mapping[str, Any], **_: Any) -> dict[str, Any] | None:
        kept = [{**KEPT, "id": "3"}] if host.name == "b" else []
        return {"ok": True, "volumes": {"vda": kept}} if request["do"] == "overlays" else None

    monkeypatch.setattr(overlay_module, "ask_host", ask)
    image = directory / "image"
    done = command("lab", "overlay", "export", str(directory), "b/vda/3", str(image))
    assert (done.status, done.out) == (1, "")
    assert done.err == f"pairsync: host b has gone away, and {image} is not written\n"


def test_a_host_that_runs_with_fewer_volumes_than_its_file_names(
    directory: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlay_module, "ask_host", lambda *_, **__: {"ok": True, "volumes": {}})
    assert command("lab", "overlay", "list", str(directory)) == (0, "no overlays\n", "")


def test_what_one_disk_does_not_tell_hides_nothing_of_the_others(
    directory: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(host: HostFile, _: Mapping[str, Any], **__: Any) -> dict[str, Any]:
        if host.name == "a":
            return {"ok": True, "volumes": {"vda": [{**KEPT, "id": "3"}]}, "unknown": {}}
        return {"ok": True, "volumes": {}, "unknown": {"vda": "volume vda: its disk is being opened anew"}}

    monkeypatch.setattr(overlay_module, "ask_host", ask)
    reason = "volume vda: its disk is being opened anew"
    done = command("lab", "overlay", "list", str(directory))
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines()[0].startswith("a/vda/3          kept")
    assert done.out.splitlines()[1:] == [f"b/vda            not known: {reason}"]
    told = json.loads(command("lab", "overlay", "list", str(directory), "--json").out)
    assert [each["id"] for each in told["overlays"]] == ["a/vda/3"]
    assert told["unknown"] == {"b/vda": reason}
    done = command("lab", "overlay", "undo", str(directory), "b/vda/1")
    assert done.err == f"pairsync: no overlay 'b/vda/1' here; there is a/vda/3; b/vda: {reason}\n"


def test_a_host_that_is_down_and_lacks_its_metadata_hides_nothing_of_the_other(
    directory: Path, command: Command
) -> None:
    (directory / "a" / "vda.img.pairsync").unlink()
    done = command("lab", "overlay", "list", str(directory))
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("a/vda            not known: ")
    assert "vda.img.pairsync: open: No such file or directory" in done.out


def test_a_host_that_does_not_answer_hides_nothing_of_the_other(
    directory: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(host: HostFile, _: Mapping[str, Any], **__: Any) -> dict[str, Any]:
        if host.name == "a":
            raise ConfigError("host a did not answer within 10 s")
        return {"ok": True, "volumes": {"vda": [{**KEPT, "id": "3"}]}}

    monkeypatch.setattr(overlay_module, "ask_host", ask)
    told = json.loads(command("lab", "overlay", "list", str(directory), "--json").out)
    assert [each["id"] for each in told["overlays"]] == ["b/vda/3"]
    assert told["unknown"] == {"a/vda": "host a did not answer within 10 s"}


def test_how_far_an_undo_is_is_shown(
    directory: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes as long as an export, and was silent."""
    told: list[tuple[int, int]] = []

    @contextmanager
    def shown(what: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
        assert (what, quiet) == ("b/vda/3", False)
        yield lambda done, total: told.append((done, total))

    def ask(host: HostFile, request: Mapping[str, Any], *, watch: Any = None, **_: Any) -> dict[str, Any]:
        question, show = watch
        assert question == {"do": "overlay-progress", "file": request["file"]}
        show({"done": 4096, "total": 0})
        return {"bytes": 8192}

    monkeypatch.setattr(overlay_module, "_list", lambda _: ([KEPT], {}))
    monkeypatch.setattr(overlay_module, "active_of", lambda hosts, **_: hosts[0])
    monkeypatch.setattr(overlay_module, "show_progress", shown)
    monkeypatch.setattr(overlay_module, "ask_host", ask)
    done = command("lab", "overlay", "undo", str(directory), "b/vda/3")
    assert done == (0, "b/vda/3: 8 KiB written back\n", "")
    assert told == [(4096, 8192)]
