"""Lines that never stall who writes them."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from pairsync.node import lines
from pairsync.node.lines import LINES_MAX, LineWriter, LogStream


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


class _FullDisk(io.StringIO):
    """A file that has no room for some attempts."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.left = 3
        self.number = number

    def flush(self) -> None:
        self.left -= 1
        if self.left >= 0:
            raise OSError(self.number, "no")


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


def test_a_log_arrives_as_it_was_written() -> None:
    stream = io.StringIO()
    log = LogStream(stream)
    log.write("one record\n  of two lines\n")
    log.write("another\n")
    log.flush()
    log.close()
    assert stream.getvalue() == "one record\n  of two lines\nanother\n"


def test_a_log_that_nobody_reads_stalls_nobody_and_says_what_it_lacks() -> None:
    stream = _Gate()
    log = LogStream(stream)
    log.write("the first\n")
    assert stream.entered.wait(60)
    for _ in range(LINES_MAX + 7):
        log.write("x\n")
    stream.open.set()
    while stream.getvalue().count("\n") < LINES_MAX + 1:
        time.sleep(0.001)
    log.write("the last\n")
    log.close()
    assert stream.getvalue().splitlines()[-1] == "the last (7 records were not logged)"


LOG_MUCH = """
import logging
from pairsync.node.lines import log_to_stderr
log = log_to_stderr()
for _ in range(2000):
    logging.getLogger("pairsync").warning("x" * 100)
print("went on", flush=True)
log.close()
"""


def test_a_process_goes_on_whose_log_is_not_read() -> None:
    """Its loop stood still in the middle of a line: the guard killed the host."""
    with subprocess.Popen(
        [sys.executable, "-c", LOG_MUCH], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        timer = threading.Timer(60, process.kill)
        timer.start()
        assert process.stdout.readline() == "went on\n"
        assert "WARNING pairsync xxx" in process.stderr.read()
        assert process.wait() == 0
        timer.cancel()


def test_a_log_goes_on_when_its_disk_has_room_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "RETRY_S", 0.01)
    stream = _FullDisk(errno.ENOSPC)
    writer = LineWriter(stream)
    for number in range(3):
        writer({"number": number})
    writer.close()
    assert [line["number"] for line in _lines(stream)] == [0, 1, 2]


def test_a_log_ends_where_nobody_reads_any_more() -> None:
    stream = _FullDisk(errno.EPIPE)
    writer = LineWriter(stream)
    for number in range(3):
        writer({"number": number})
    writer.close()
    assert [line["number"] for line in _lines(stream)] == [0]
