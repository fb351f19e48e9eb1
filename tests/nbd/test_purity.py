"""The pure modules of the front door know no clock, socket, file or event loop."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import pairsync.nbd

ROOM = Path(pairsync.nbd.__file__).parent
PURE = ("budget", "constants", "export", "limits", "negotiation", "options", "replies", "requests", "stall")
ALLOWED = {
    "__future__", "collections", "dataclasses", "enum", "errno", "pairsync", "struct", "typing",
}  # fmt: skip


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_import_nothing_that_acts(name: str) -> None:
    tree = ast.parse((ROOM / f"{name}.py").read_text(encoding="utf-8"))
    imported: set[str] = set()
    inside: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                inside |= {node.module} if node.module else {alias.name for alias in node.names}
            else:
                imported.add((node.module or "").partition(".")[0])
    assert imported <= ALLOWED
    assert inside <= set(PURE)


def test_the_theory_names_them() -> None:
    assert pairsync.nbd.__doc__ is not None
    pure = pairsync.nbd.__doc__.partition("PURE are")[2].partition(";")[0]
    assert {name for name in PURE if f"`{name}`" in pure} == set(PURE)
