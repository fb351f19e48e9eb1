"""The rooms lean one way: the contracts of pyproject.toml hold, cover every room, and bite."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "pairsync"
LINT = "from importlinter.cli import lint_imports_command as main; main()"
DEADLINE_S = 60.0


def _contracts() -> list[dict[str, Any]]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts: list[dict[str, Any]] = settings["tool"]["importlinter"]["contracts"]
    return contracts


def _rooms() -> set[str]:
    """Top-level modules and packages, without the package's own front and its `python -m` door."""
    return {
        f"pairsync.{path.stem}"
        for path in PACKAGE.iterdir()
        if (path.is_dir() and (path / "__init__.py").exists()) or path.suffix == ".py"
    } - {"pairsync.__init__", "pairsync.__main__"}


def _lint(directory: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on the tree in `directory`, which is found before the installed one."""
    command = [sys.executable, "-P", "-c", LINT, "--no-cache", "--no-logo"]
    environment = os.environ | {"PYTHONPATH": str(directory / "src"), "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(
        command,
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def test_contracts_hold() -> None:
    done = _lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"{len(_contracts())} kept, 0 broken", done.stdout)


def test_every_room_is_under_contract() -> None:
    contracts = _contracts()
    (layers,) = (contract for contract in contracts if contract["type"] == "layers")
    (no_testing,) = (
        contract for contract in contracts if contract.get("forbidden_modules") == ["pairsync.testing"]
    )
    in_layers = {room.strip() for layer in layers["layers"] for room in re.split(r"[|:]", layer)}
    rooms = _rooms()
    assert rooms <= in_layers, "a room that no layer names may import anything"
    assert rooms - {"pairsync.testing"} <= set(no_testing["source_modules"])


@pytest.mark.parametrize(
    ("room", "line", "broken"),
    [
        ("core", "import trio", "The pure rooms"),
        ("wire", "import random", "The pure rooms"),
        ("core", "import pairsync.wire", "The rooms lean one way"),
        ("storage", "import pairsync.io", "The rooms lean one way"),
        ("guest", "import pairsync.node", "The rooms lean one way"),
        ("cli", "import pairsync.testing", "Nothing in the package imports its test room"),
    ],
)
def test_contracts_bite(tmp_path: Path, room: str, line: str, broken: str) -> None:
    shutil.copytree(PACKAGE, tmp_path / "src" / "pairsync", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    planted = tmp_path / "src" / "pairsync" / room / "planted_by_the_test.py"
    planted.write_text(f"{line}\n", encoding="utf-8")
    done = _lint(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(rf"^{broken}.* BROKEN$", done.stdout, flags=re.MULTILINE), done.stdout
    assert "planted_by_the_test" in done.stdout
