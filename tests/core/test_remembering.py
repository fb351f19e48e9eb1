"""Names of points: parts of file names and of meta contexts."""

from __future__ import annotations

from pairsync.core.remembering import is_point_name


def test_names() -> None:
    for name in ("a", "2026-11-30", "A.b_c-9", "x" * 64):
        assert is_point_name(name)
    for name in ("", ".a", "-a", "a/b", "a b", "ä", "x" * 65, "a\n", "a@b", "a:b"):
        assert not is_point_name(name)
