"""Held back: effects that rest on something that is being made durable wait until it is.

`PersistAcceptor` leaves at once; whatever was wanted after it follows when it was written, in order.
Stopping is never held back: it is safe at any time.  What would have let the guest run before it then is
dropped with it.

Bound: while a disk is slow, heartbeats and their answers pile up; they may be lost, so the oldest are.
"""

from __future__ import annotations

from collections import deque

from pairsync.errors import InternalError

from .arbitration import Effect, Own, PersistAcceptor, SendPeer, Stop

__all__ = ["HELD_EFFECTS_MAX", "HeldBack"]

HELD_EFFECTS_MAX = 256
"""Effects that wait for a disk: at ten heartbeats a second that is a hang of half a minute."""


class HeldBack:
    """See the module."""

    def __init__(self) -> None:
        # None stands for a write under way: what is behind it waits for it.
        self._held: deque[Effect | None] = deque()  # bounded by `_make_room`

    @property
    def writes(self) -> int:
        """Writes under way."""
        return sum(1 for each in self._held if each is None)

    def passes(self, effects: list[Effect]) -> list[Effect]:
        """What of these may be done now."""
        out: list[Effect] = []
        for effect in effects:
            if isinstance(effect, PersistAcceptor):
                out.append(effect)
                self._held.append(None)
            elif isinstance(effect, Stop):
                self._held = deque(each for each in self._held if not isinstance(each, Own))
                out.append(effect)
            elif self._held:
                self._held.append(effect)
            else:
                out.append(effect)
        self._make_room()
        return out

    def _make_room(self) -> None:
        over = len(self._held) - HELD_EFFECTS_MAX
        if over <= 0:
            return
        kept: deque[Effect | None] = deque()
        for effect in self._held:
            if over > 0 and isinstance(effect, SendPeer):
                over -= 1
            else:
                kept.append(effect)
        self._held = kept

    def persisted(self) -> list[Effect]:
        """The oldest write under way is durable: what may be done now.  `InternalError` if there is none."""
        if not self._held or self._held.popleft() is not None:
            raise InternalError("nothing is being written")
        out: list[Effect] = []
        while self._held and self._held[0] is not None:
            effect = self._held.popleft()
            if effect is not None:
                out.append(effect)
        return out
