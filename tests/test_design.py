"""The design page is what the code refers to: its rules, its sections, and the rooms."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
SECTIONS = {int(number) for number in re.findall(r"^## (\d+)\. ", PAGE, re.MULTILINE)}
RULES = {int(number) for number in re.findall(r"^(\d+)\. \*\*", PAGE, re.MULTILINE)}
TREES = ("src", "tests", "benchmarks", "examples")
FILES = [ROOT / "pyproject.toml", *(path for tree in TREES for path in (ROOT / tree).rglob("*.py"))]


def _references(what: str) -> dict[int, str]:
    """The numbers that the code names, each with a file that does; a reference may go over a line's end."""
    found: dict[int, str] = {}
    for path in FILES:
        text = re.sub(r"\s*\n\s*(#\s*)?", " ", path.read_text(encoding="utf-8"))
        for numbers in re.findall(rf"DESIGN {what}s? (\d+(?:(?:, | and | to )\d+)*)", text):
            found.update(dict.fromkeys(map(int, re.findall(r"\d+", numbers)), path.name))
    return found


@pytest.mark.parametrize(("what", "there"), [("rule", RULES), ("section", SECTIONS)])
def test_what_the_code_refers_to_is_there(what: str, there: set[int]) -> None:
    assert there == set(range(1, len(there) + 1))
    named = _references(what)
    assert named
    assert {number: file for number, file in named.items() if number not in there} == {}


def test_the_rooms_are_those_that_are_checked() -> None:
    _, _, rest = PAGE.partition("## 5. Rooms\n")
    rows = [line.split("|")[1] for line in rest.splitlines() if line.startswith("| `")]
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    assert [re.findall(r"`(\w+)`", row) for row in rows] == [
        re.findall(r"pairsync\.(\w+)", layer) for layer in layers
    ]
