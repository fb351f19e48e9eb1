"""Lines that never stall who writes them."""

from __future__ import annotations

import io
import json
import os
import threading
import time
from typing import Any

import pytest

from pairsync.node.lines import LINES_MAX, LineWriter


class _Gate(io.StringIO):
    """A stream whose reader is paused until it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.entered = threading.Event()

    def write(self, text: str) -> int:
        self.entered.set()
        assert self.open.wait(60)
        return super().write(text)


def _lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_lines_arrive_in_order_before_the_end() -> None:
    stream = io.StringIO()
    writer = LineWriter(stream)
    for number in range(100):
        writer({"number": number})
    writer.close()
    assert [line["number"] for line in _lines(stream)] == list(range(100))


def test_the_form_can_be_chosen() -> None:
    stream = io.StringIO()
    writer = LineWriter(stream, render=lambda line: f"<{line['event']}>")
    writer({"event": "ready"})
    writer.close()
    assert stream.getvalue() == "<ready>\n"


def test_a_reader_that_pauses_costs_lines_and_is_told_how_many() -> None:
    stream = _Gate()
    writer = LineWriter(stream)
    writer({"number": 0})
    assert stream.entered.wait(60)  # the writer's thread holds the first line
    for number in range(1, LINES_MAX + 6):
        writer({"number": number})
    stream.open.set()
    while len(_lines(stream)) < LINES_MAX + 1:
        time.sleep(0.001)
    writer({"number": "next"})
    writer({"number": "last"})
    writer.close()
    lines = _lines(stream)
    assert [line["number"] for line in lines] == [*range(LINES_MAX + 1), "next", "last"]
    assert [line.get("lines_dropped") for line in lines[-2:]] == [5, None]


def test_a_reader_that_is_gone_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        writer = LineWriter(stream)
        for _ in range(2 * LINES_MAX):
            writer({"event": "nobody reads this"})
        writer.close()
        with pytest.raises(BrokenPipeError):
            stream.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def test_ending_does_not_wait_for_a_reader_that_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pairsync.node.lines.END_S", 0.05)
    stream = _Gate()
    writer = LineWriter(stream)
    for _ in range(2 * LINES_MAX):
        writer({})
    begun = time.monotonic()
    writer.close()
    assert time.monotonic() - begun < 30
    stream.open.set()
