"""Questions to the witnesses: their numbers, and how long each is waited for.

One is open at a time, until it is answered or given up; an answer that comes later names its number.

`core.timing` allows a witness so much for an answer.  One that is farther away would never be heard if each
question to it were given up just then: its answers would come while the next one is open.  So from who has
answered later than is allowed the next answer is awaited for half as long again as that took, up to
`FAR_NS_MAX`.  The failover time is not kept then, as `core.timingjudge` says; but the witness votes.
"""

from __future__ import annotations

from collections import OrderedDict

from pairsync.errors import InternalError

from .units import NS_PER_S

__all__ = ["FAR_NS_MAX", "Enquiry"]

FAR_NS_MAX = 2 * NS_PER_S
"""No answer is awaited longer, but where the failover time allows more."""

ASKED_MAX = 16
"""Questions whose time of asking is remembered; an older answer says nothing of how far its witness is."""


class Enquiry:
    """See the module; times are integer nanoseconds of one clock."""

    def __init__(self, first_number: int, allowed_ns: int) -> None:
        """``first_number``: random, so that no number is one of an earlier life; ``allowed_ns``: for a round
        trip to a witness, by `core.timing`."""
        self.number = first_number
        """Of the question that was asked last."""
        self.until_ns: int | None = None
        """Until when its answer is awaited; None: no question is open."""
        self._allowed_ns = allowed_ns
        self._asked: OrderedDict[int, tuple[str, int]] = OrderedDict()  # oldest first; at most ASKED_MAX
        self._round_trips_ns: dict[str, int] = {}  # the last one to each witness

    def asks(self, witness: str, now_ns: int) -> int:
        """That witness is asked now: the number of the question."""
        self.number += 1
        self.until_ns = now_ns + self.wait_ns(witness)
        self._asked[self.number] = (witness, now_ns)
        if len(self._asked) > ASKED_MAX:
            self._asked.popitem(last=False)
        return self.number

    def measures(self, number: int, now_ns: int) -> None:
        """The answer to that question has come, in time or not; `InternalError` if it was never asked."""
        if number > self.number:
            raise InternalError(f"no question has had the number {number}")
        witness, asked_ns = self._asked.pop(number, (None, now_ns))
        if witness is not None:
            self._round_trips_ns[witness] = now_ns - asked_ns

    def is_past(self, number: int) -> bool:
        """Whether another question than that one is open."""
        return self.until_ns is not None and number < self.number

    def wait_ns(self, witness: str) -> int:
        """How long an answer of that witness is awaited."""
        took_ns = self._round_trips_ns.get(witness, 0)
        if took_ns <= self._allowed_ns:
            return self._allowed_ns
        return max(self._allowed_ns, min(took_ns + took_ns // 2, FAR_NS_MAX))
