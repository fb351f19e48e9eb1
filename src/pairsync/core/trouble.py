"""Telling of trouble with a disk: what goes on now and then, what ends it once."""

from __future__ import annotations

import errno
from typing import Final

from .effects import DiskFailed, Effect, Emit
from .events import TroubleEvent
from .units import NS_PER_S

__all__ = ["TROUBLE_EVENT_NS", "TroubleLog", "errno_name"]

TROUBLE_EVENT_NS: Final = NS_PER_S
"""Failing requests of one volume are told once in that time, not once each."""


def errno_name(number: int) -> str:
    """An errno as people know it, such as ``EIO``."""
    return errno.errorcode.get(number, str(number))


class TroubleLog:
    """Of one volume."""

    __slots__ = ("_index", "_name", "_out", "_told_ns")

    def __init__(self, index: int, name: str, out: list[Effect]) -> None:
        self._index = index
        self._name = name
        self._out = out
        self._told_ns: int | None = None  # when it was last told

    def report(self, reason: str, now_ns: int) -> None:
        """Something went wrong that the volume lives with."""
        if self._told_ns is None or now_ns - self._told_ns >= TROUBLE_EVENT_NS:
            self._told_ns = now_ns
            self._out.append(Emit(TroubleEvent(self._name, fatal=False, reason=reason)))

    def failed(self, reason: str, now_ns: int) -> None:
        """Something that was asked of the disk cannot be done; before its error is told."""
        self._out.append(DiskFailed(self._index, reason))
        self.report(reason, now_ns)

    def fatal(self, reason: str) -> None:
        """Likewise, and the volume serves nothing any more."""
        self._out.append(DiskFailed(self._index, reason))
        self._out.append(Emit(TroubleEvent(self._name, fatal=True, reason=reason)))
