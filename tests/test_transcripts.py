"""Scenario transcripts: every story in ``tests/core/testdata/*.txt`` is told as it is written there.

``PAIRSYNC_REWRITE=1 pytest tests/test_transcripts.py`` writes what happens today into the files; the diff is
then read like any other change.  The language is that of ``pairsync.testing.scenario``.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pairsync.testing.scenario import run_scenario

SCENARIOS = sorted((Path(__file__).parent / "core" / "testdata").glob("scenario_*.txt"))


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem.removeprefix("scenario_"))
def test_scenario(path: Path) -> None:
    expected = path.read_text(encoding="utf-8")
    found = run_scenario(expected)
    if os.environ.get("PAIRSYNC_REWRITE"):
        path.write_text(found, encoding="utf-8")
        return
    assert found == expected, f"{path.name} differs; PAIRSYNC_REWRITE=1 rewrites it, to be read as a diff"


def test_there_are_stories_and_each_says_what_it_is_about() -> None:
    assert len(SCENARIOS) >= 8
    for path in SCENARIOS:
        assert path.read_text(encoding="utf-8").startswith("# "), path.name
