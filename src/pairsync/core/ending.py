"""Ending: a volume of the active host is closed in order.

Everything that was taken in is acknowledged, flushed and, as far as the peer may lack it, in the bitmap on
disk; then the superblock says that the dirty map is exact (``clean``), and those who asked are told.
"""

from __future__ import annotations

from .closer import Closer
from .effects import Complete, Effect
from .standing import Standing
from .tracker import Tracker

__all__ = ["Ending"]


class Ending:
    """See the module."""

    def __init__(self, tracker: Tracker, standing: Standing, closer: Closer, out: list[Effect]) -> None:
        self._tracker = tracker
        self._standing = standing
        self._closer = closer
        self._out = out
        self.asked = False
        """Whether the volume is to be closed: no further writes."""
        self._owners: list[object] = []  # who waits for it

    def ask(self, owner: object) -> None:
        """Close; ends in one `Complete`."""
        self.asked = True
        self._owners.append(owner)

    def advance(self, now_ns: int, *, quiet: bool) -> None:
        """Go on as far as possible; ``quiet``: no write is under way or waiting."""
        if not self._owners or not quiet or self._closer.busy:
            return
        if not self._tracker.open.empty:
            self._closer.cut(now_ns)
            return
        if self._closer.save_rest():
            return
        if not self._standing.superblock.clean:
            self._standing.deactivate()
        if self._standing.settled:
            self._out.extend(Complete(owner, None) for owner in self.give_up())

    def give_up(self) -> list[object]:
        """Everybody who waits: they are told by the caller."""
        owners, self._owners = self._owners, []
        return owners
