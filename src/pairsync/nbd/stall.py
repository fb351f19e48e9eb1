"""When a client has stopped in the middle of something, and is to be cut off.  PURE.

A silent client is fine for ever: the machine behind it may have nothing to write for months.  One that has
sent half a request and no more, or takes none of its replies, holds memory that others may need (`budget`).

Nothing is measured where requests are handled.  The connection is looked at from time to time (`Stall.look`):
if it is where it was the last time, in the middle of the same request or of sending the same reply, that was
one *look* without progress, and after `LOOKS_MAX` of them it has stalled; after `LOOKS_CROWDED_MAX` if the
server's budget is exhausted.  Looks are counted instead of time, so that a server which was stopped itself
blames nobody when it goes on.
"""

from __future__ import annotations

__all__ = ["LOOKS_CROWDED_MAX", "LOOKS_MAX", "Stall"]

LOOKS_MAX = 30
"""Looks without progress, within `NbdLimits.stall_deadline_s`."""

LOOKS_CROWDED_MAX = 3
"""The same while the memory is needed: a tenth of the deadline."""


class Stall:
    """What the last looks at one connection saw."""

    __slots__ = ("_handled", "_handled_looks", "_sends", "_sends_looks")

    def __init__(self) -> None:
        self._handled = self._sends = 0  # as of the last look
        self._handled_looks = self._sends_looks = 0  # looks in a row without progress, of either kind

    def look(self, *, unfinished: bool, handled: int, unsent: bool, sends: int, crowded: bool) -> str | None:
        """Why the client is to be cut off, if it is.

        ``unfinished``: half a request has come and the server waits for the rest; ``handled`` counts
        requests.  ``unsent``: a reply waits for the client to take it; ``sends`` counts those that went.
        """
        self._handled_looks = self._handled_looks + 1 if unfinished and handled == self._handled else 0
        self._sends_looks = self._sends_looks + 1 if unsent and sends == self._sends else 0
        self._handled, self._sends = handled, sends
        looks_max = LOOKS_CROWDED_MAX if crowded else LOOKS_MAX
        if self._handled_looks > looks_max:  # the first look only found the state that the others compare to
            return "stopped in the middle of a request"
        if self._sends_looks > looks_max:
            return "stopped taking replies"
        return None
