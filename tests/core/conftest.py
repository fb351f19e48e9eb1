"""What the tests of the core share: the snapshot files, which are rewritten when asked.

``PAIRSYNC_REWRITE=1 pytest tests/core tests/test_transcripts.py`` writes what was found into the files under
``testdata``; the diff is then read like any other change.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

TESTDATA = Path(__file__).parent / "testdata"


@pytest.fixture
def snapshot() -> Callable[[str, str], None]:
    """``snapshot("name.txt", text)``: the text is what the file says, or becomes that when rewritten."""

    def compare(name: str, found: str) -> None:
        path = TESTDATA / name
        if os.environ.get("PAIRSYNC_REWRITE"):
            path.write_text(found, encoding="utf-8")
        expected = path.read_text(encoding="utf-8") if path.exists() else ""
        assert found == expected, f"{path.name} differs; PAIRSYNC_REWRITE=1 rewrites it, to be read as a diff"

    return compare
