"""A bar where somebody sees it, and nothing where nobody does."""

from __future__ import annotations

import io
import sys

import pytest

from pairsync.cli.progress import show_progress


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_nobody_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with show_progress("vda", quiet=False) as show:
        assert show is None
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with show_progress("vda", quiet=True) as show:
        assert show is None
    assert terminal.getvalue() == ""


def test_a_terminal_is_shown_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with show_progress("vda", quiet=False) as show:
        assert show is not None
        show(1, 4)
    assert "vda" in terminal.getvalue()
    assert "25%" in terminal.getvalue()
