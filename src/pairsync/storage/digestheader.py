"""The header of an open digest table: what is stored, and what is to be stored next.

A header that claims less than the stored one goes to both slots: no later damage to one of them may bring
back the one that claims more.
"""

from __future__ import annotations

from .digestfile import Header, encode_header
from .slots import DualSlot

__all__ = ["HeaderKeeper"]


class HeaderKeeper:
    """See the module.  One thread stores at a time."""

    def __init__(self, slots: DualSlot, header: Header, *, whole: bool) -> None:
        """``header`` is what the table begins with; ``whole``: both slots say that, or less."""
        self._slots = slots
        self._volume_id = header.volume_id
        self._stored = header if whole else None  # the durable one; None: neither slot can be relied on
        self.milestone = header.milestone
        """The last milestone that was made durable, 0 before the first."""
        self.settled = header.settled
        """As it is to be stored next; see `Header`."""
        self._true = header.settled  # every leaf is, if this life ends in order

    def begin_life(self, *, active: bool) -> bool:
        """A host takes the volume into use; whether it must not believe any leaf.

        A standby believes what an earlier one has left in disorder, and leaves it in disorder: that its own
        life ends in order says nothing of blocks that nobody has written since.
        """
        doubted = active and not self.settled
        self._true = active or self.settled
        self.settled = active
        return doubted

    def end_life(self) -> None:
        """It gives the volume up in order."""
        self.settled = self._true

    def store(self, size_bytes: int, known_below: int, milestone: int | None = None) -> None:
        """Make that durable; nothing is written where it is so already.  `BackendError` if it fails."""
        milestone = self.milestone if milestone is None else milestone
        header = Header(self._volume_id, size_bytes, known_below, milestone, self.settled)
        stored = self._stored
        if header != stored:
            payload = encode_header(header)
            self._slots.store(payload)
            if stored is None or known_below < stored.known_below:
                self._slots.store(payload)
            self._stored = header
        self.milestone = milestone
