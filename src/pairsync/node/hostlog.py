"""What the log of a host that has ended says about why: one line for people.

Who ends a host in order, or refuses to begin, says so in the last line (``pairsync: ...``).  Our own bugs end
it with a traceback.  The last line of one of an exception group is a piece of its frame: there the first line
that names an exception of the group is the reason.
"""

from __future__ import annotations

import re
from pathlib import Path

from pairsync.core.units import KIB

__all__ = ["TAIL_BYTES", "last_words"]

TAIL_BYTES = 64 * KIB
"""Looked at from the end of a log: many times a traceback through a few nurseries."""

_TRACEBACK = re.compile(r"^(?:  \+ Exception Group )?Traceback \(most recent call last\):$")
"""Where one begins that is not part of another one."""

_EXCEPTION = re.compile(r"^(?: *\| )?([A-Za-z_][\w.<>]*(?:: .*)?)$")
"""A line that names an exception, in a traceback; the frame's lines and the source lines are indented."""

_GROUP = re.compile(r"[\w.<>]*ExceptionGroup\b")


def last_words(log: Path, since_bytes: int = 0) -> str | None:
    """The line that says why the host ended, of what it logged behind ``since_bytes``; None if nothing."""
    with log.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(since_bytes, size - TAIL_BYTES))
        text = file.read(TAIL_BYTES).decode(errors="replace")
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    begins = [number for number, line in enumerate(lines) if _TRACEBACK.match(line)]
    if begins and not lines[-1].startswith("pairsync: "):
        named = [match[1] for line in lines[begins[-1] :] if (match := _EXCEPTION.match(line))]
        leaves = [name for name in named if not _GROUP.match(name)]
        for name in leaves or named:
            return name
    return lines[-1]
