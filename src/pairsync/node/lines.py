"""Lines on standard output, and a log on standard error, that can never stall a host.

A terminal that is paused, a script that reads only the first line or a log service that hangs leaves a pipe
full; a process that writes into it stops, and its guard kills its guest for that.  So a thread of its own
writes, from a bounded queue, and what finds it full is dropped (and counted in the next line that gets
through).  So too where they go to a file whose disk is full: it is written on when there is room again.
"""

from __future__ import annotations

import errno
import json
import logging
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import IO, Any

__all__ = ["LINES_MAX", "LineWriter", "LogStream", "log_to_stderr"]

LINES_MAX = 1000
"""Lines that wait for the reader."""

RETRY_S = 1.0
"""Between two attempts to write where the disk is full, or fails."""

_NOBODY_READS = frozenset({errno.EPIPE, errno.EBADF})

END_S = 1.0
"""How long the last lines may take when the program ends."""


class LineWriter:
    """Writes objects as lines; ``render`` makes the text (JSON by default)."""

    def __init__(
        self, stream: IO[str] | None = None, render: Callable[[Mapping[str, Any]], str] | None = None
    ) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._render: Callable[[Mapping[str, Any]], str] = json.dumps if render is None else render
        self._queue: queue.Queue[str | None] = queue.Queue(LINES_MAX)
        self._dropped = 0  # lines that found the queue full, since the last that did not
        self._thread = threading.Thread(target=self._write, name="pairsync-lines", daemon=True)
        self._thread.start()

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Write a line soon; never blocks."""
        if self._dropped:
            line = {**line, "lines_dropped": self._dropped}
        try:
            self._queue.put_nowait(self._render(line))
        except queue.Full:
            self._dropped += 1
        else:
            self._dropped = 0

    def close(self) -> None:
        """Wait a moment for the last lines to leave."""
        try:
            self._queue.put(None, timeout=END_S)
        except queue.Full:
            return
        self._thread.join(END_S)

    def _write(self) -> None:
        while (text := self._queue.get()) is not None:
            try:
                self._put(text)
            except (OSError, ValueError):
                return  # nobody reads any more

    def _put(self, text: str) -> None:
        _done(lambda: self._stream.write(text + "\n"))  # what the stream does not keep of it is lost
        while not _done(self._stream.flush):
            time.sleep(RETRY_S)


def _done(write: Callable[[], object]) -> bool:
    """Whether it could be done now; raises where that makes no sense any more."""
    try:
        write()
    except OSError as error:
        if error.errno in _NOBODY_READS:
            raise
        return False
    return True


class LogStream:
    """What `logging` writes into: one line, or several of one record, with each call."""

    def __init__(self, stream: IO[str]) -> None:
        self._lines = LineWriter(stream, render=_text)

    def write(self, text: str) -> None:
        """Write soon; never blocks."""
        self._lines({"text": text.removesuffix("\n")})

    def flush(self) -> None:
        """Nothing is waited for."""

    def close(self) -> None:
        """Wait a moment for the last lines to leave."""
        self._lines.close()


def _text(line: Mapping[str, Any]) -> str:
    dropped = line.get("lines_dropped")
    return str(line["text"]) if dropped is None else f"{line['text']} ({dropped} records were not logged)"


def log_to_stderr() -> LogStream:
    """Have this program log there; to be closed in the end."""
    stream = LogStream(sys.stderr)
    logging.basicConfig(
        level=logging.INFO,
        handlers=[logging.StreamHandler(stream)],
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # else a line for each question to an etcd
    return stream
