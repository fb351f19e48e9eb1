"""Reports: what the shell has done, and to whom that is told.

Each answers an effect (`core.effects`) of one volume, to the machine of that volume.  A part of `Session`.
"""

from __future__ import annotations

import abc
import errno
from collections.abc import Sequence

from .questions import Examined
from .resync import Found
from .source import VolumeSource
from .target import VolumeTarget

__all__ = ["Reports"]


class Reports(abc.ABC):
    """See the module."""

    sources: list[VolumeSource]  # active only, one a volume
    targets: list[VolumeTarget]  # standby only, one a volume

    @abc.abstractmethod
    def _greet(self, now_ns: int) -> None:
        """Introduce this host, if that was waited for."""

    def journaled(self, volume: int, token: object, error: int, now_ns: int) -> None:
        """Answer to `Journal`; ``error`` is an errno or 0."""
        self.sources[volume].journaled(token, error, now_ns)

    def applied(self, volume: int, token: object, errnos: Sequence[int] | None, now_ns: int) -> None:
        """Answer to `Apply`."""
        if self.sources:
            self.sources[volume].applied(token, errnos, now_ns)
        else:
            self.targets[volume].applied(token, errnos)

    def examined(self, volume: int, token: object, answer: Examined | int, now_ns: int) -> None:
        """Answer to `Examine`; an errno where the digests cannot be had."""
        if self.targets:
            self.targets[volume].examined(token, answer)
        else:
            self.sources[volume].copier.examined(token, answer)
            self.sources[volume].advance(now_ns)

    def flushed(self, volume: int, token: object, error: int, now_ns: int) -> None:
        """Answer to `Flush`."""
        if self.sources:
            self.sources[volume].flushed(token, error, now_ns)
        else:
            self.targets[volume].flushed(token, error)

    def saved(self, volume: int, token: object, error: int, now_ns: int) -> None:
        """Answer to `SavePages`."""
        if self.sources:
            self.sources[volume].saved(token, error, now_ns)
            self._greet(now_ns)
        else:
            self.targets[volume].saved(error)

    def persisted(self, volume: int, token: object, error: int, now_ns: int) -> None:
        """Answer to `Persist`."""
        if self.sources:
            self.sources[volume].persisted(token, error, now_ns)
        else:
            self.targets[volume].persisted(token, error)
        if not error:
            self._greet(now_ns)

    def point_made(self, volume: int, token: object, error: int, now_ns: int) -> None:
        """Answer to `MakePoint`."""
        if self.sources:
            self.sources[volume].points.made(token, error)
            self.sources[volume].advance(now_ns)
        else:
            self.targets[volume].points.made(token, error)

    def points_dropped(self, volume: int, token: object, error: int) -> None:
        """Answer to `DropPoints`."""
        if self.sources:
            self.sources[volume].points.dropped(token, error)
        else:
            self.targets[volume].points.dropped(token, error)

    def extended(self, volume: int, token: object, size_bytes: int, error: int, now_ns: int) -> None:
        """Answer to `Extend`."""
        if self.sources:
            self.sources[volume].growth.extended(error)
            self.sources[volume].advance(now_ns)
        else:
            self.targets[volume].growth.extended(token, size_bytes, error)
        self._greet(now_ns)

    def mapped(self, volume: int, token: object, runs: Sequence[tuple[int, int]], now_ns: int) -> None:
        """Answer to `MapAllocation`: runs of blocks that may hold anything but zeroes."""
        self.sources[volume].copier.mapped(token, runs)
        self.sources[volume].advance(now_ns)

    def read_done(self, volume: int, number: int, found: Found, now_ns: int) -> None:
        """Answer to `Read`."""
        if self.sources:
            self.sources[volume].read_done(number, found, now_ns)
        elif found.wrong:  # the peer, which has lost the content, would not notice
            self.targets[volume].read_failed(number, errno.EIO)
        else:
            self.targets[volume].read_done(number, found.ops)

    def read_failed(self, volume: int, number: int, error: int, now_ns: int) -> None:
        """Answer to `Read` that could not be read."""
        if self.targets:
            self.targets[volume].read_failed(number, error)
        else:
            self.sources[volume].copier.read_failed(number, error)
            self.sources[volume].advance(now_ns)
