"""What the demonstration shows: numbered steps, live progress within one, facts, and the commands that a
person would type.  On a terminal with rich's progress bars, else as plain lines of which none is rewritten.
"""

from __future__ import annotations

import sys
import time
from typing import IO, Any, Protocol

__all__ = ["PlainShow", "RichShow", "Show", "open_show"]

LINE_EVERY = 0.25
"""Fraction between two plain lines of progress."""


class Show(Protocol):
    """Where the demonstration is seen."""

    def step(self, text: str) -> None:
        """A new step begins."""

    def fact(self, text: str) -> None:
        """Something that was found."""

    def command(self, text: str) -> None:
        """What a person would type for this."""

    def progress(self, what: str, fraction: float, more: str = "") -> None:
        """How far something is within the step."""

    def verdict(self, text: str, *, good: bool) -> None:
        """The last word."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class PlainShow:
    """Lines."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._steps = 0
        self._begun = time.monotonic()
        self._shown: dict[str, float] = {}  # of this step: fraction of the last line of each progress

    def _print(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def step(self, text: str) -> None:
        """As `Show.step`."""
        self._steps += 1
        self._shown = {}
        self._print(f"{time.monotonic() - self._begun:5.1f} s  {self._steps}. {text}")

    def fact(self, text: str) -> None:
        """As `Show.fact`."""
        self._print(f"            {text}")

    def command(self, text: str) -> None:
        """As `Show.command`."""
        self._print(f"            $ {text}")

    def progress(self, what: str, fraction: float, more: str = "") -> None:
        """As `Show.progress`."""
        last = self._shown.get(what)
        if last is None or fraction >= last + LINE_EVERY or (fraction >= 1 > last):
            self._shown[what] = fraction
            self._print(f"            {what} {100 * fraction:3.0f} %{'  ' + more if more else ''}")

    def verdict(self, text: str, *, good: bool) -> None:
        """As `Show.verdict`."""
        del good  # the text says it
        self._print(f"\n{text}")

    def close(self) -> None:
        """As `Show.close`."""


class RichShow:
    """A terminal; the bars of a step stay when the next one begins."""

    def __init__(self, console: Any = None) -> None:
        from rich.console import Console  # noqa: PLC0415  # of an extra, and only for a terminal

        self._console = Console(highlight=False) if console is None else console
        self._bars: Any = None  # of this step, once it has any
        self._tasks: dict[str, Any] = {}
        self._steps = 0
        self._begun = time.monotonic()

    def _print(self, text: str, style: str = "") -> None:
        self._console.print(text, style=style, markup=False, soft_wrap=True)

    def _open_bars(self) -> Any:
        from rich.progress import (  # noqa: PLC0415  # of an extra, and only for a terminal
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
        )

        columns = (
            TextColumn("           {task.description}"),
            BarColumn(bar_width=32),
            TaskProgressColumn(),
            TextColumn("{task.fields[more]}"),
        )
        # no thread of its own: it is drawn when something has moved
        bars = Progress(*columns, console=self._console, auto_refresh=False)
        bars.start()
        return bars

    def step(self, text: str) -> None:
        """As `Show.step`."""
        self.close()
        self._steps += 1
        self._print(f"{time.monotonic() - self._begun:5.1f} s  {self._steps}. {text}", "bold")

    def fact(self, text: str) -> None:
        """As `Show.fact`."""
        self._print(f"            {text}")

    def command(self, text: str) -> None:
        """As `Show.command`."""
        self._print(f"            $ {text}", "dim")

    def progress(self, what: str, fraction: float, more: str = "") -> None:
        """As `Show.progress`."""
        if self._bars is None:
            self._bars = self._open_bars()
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=1.0, more="")
        self._bars.update(self._tasks[what], completed=fraction, more=more, refresh=True)

    def verdict(self, text: str, *, good: bool) -> None:
        """As `Show.verdict`."""
        self.close()
        self._print(f"\n{text}", "bold green" if good else "bold red")

    def close(self) -> None:
        """As `Show.close`."""
        if self._bars is not None:
            self._bars.stop()
        self._bars, self._tasks = None, {}


def open_show() -> Show:
    """Bars if standard output is a terminal and rich is installed, else lines."""
    if sys.stdout.isatty():
        try:
            return RichShow()
        except ImportError:
            return PlainShow()
    return PlainShow()
