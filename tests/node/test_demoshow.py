"""What the demonstration shows, on a terminal and elsewhere."""

from __future__ import annotations

import io
import re
import sys

import pytest
from rich.console import Console

from pairsync.node.demoshow import PlainShow, RichShow, Show, open_show


def _tell(show: Show) -> None:
    show.step("Write")
    show.command("qemu-img convert [x] 'y'")
    for percent in range(0, 101, 5):
        show.progress("written", percent / 100, "10 MiB/s")
    show.fact("it is written")
    show.step("Compare")
    show.progress("written", 0.5)
    show.verdict("Verdict: fine.", good=True)
    show.close()


def test_plain_lines_are_few_and_never_rewritten() -> None:
    stream = io.StringIO()
    _tell(PlainShow(stream))
    lines = [re.sub(r"^ *[0-9.]+ s", "T s", line) for line in stream.getvalue().splitlines()]
    assert lines == [
        "T s  1. Write",
        "            $ qemu-img convert [x] 'y'",
        "            written   0 %  10 MiB/s",
        "            written  25 %  10 MiB/s",
        "            written  50 %  10 MiB/s",
        "            written  75 %  10 MiB/s",
        "            written 100 %  10 MiB/s",
        "            it is written",
        "T s  2. Compare",
        "            written  50 %",
        "",
        "Verdict: fine.",
    ]


def test_the_end_is_always_shown() -> None:
    stream = io.StringIO()
    show = PlainShow(stream)
    for fraction in (0.9, 1.0, 1.0):
        show.progress("written", fraction)
    assert stream.getvalue().count("100 %") == 1


def test_a_terminal_gets_bars_and_the_same_words() -> None:
    stream = io.StringIO()
    _tell(RichShow(Console(file=stream, force_terminal=True, width=100, highlight=False)))
    text = stream.getvalue()
    assert "━" in text
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    for words in ("1. Write", "$ qemu-img convert [x] 'y'", "100%", "it is written", "2. Compare", "Verdict"):
        assert words in plain
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h"), "the cursor is given back"


def test_closing_twice_and_without_bars_is_fine() -> None:
    show = RichShow(Console(file=io.StringIO(), force_terminal=True))
    show.close()
    show.close()


def test_lines_where_there_is_no_terminal_or_no_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(open_show(), PlainShow)  # pytest holds standard output
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert isinstance(open_show(), RichShow)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert isinstance(open_show(), PlainShow)
