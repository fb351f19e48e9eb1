"""What the guest has asked and was told, one sector one register, and whether that can be.

Two judges that know nothing of replication:

* `Floors`, after every step: a sector may hold write ``x`` unless a write of it was acknowledged that was
  submitted after ``x`` had ended.  It is asked of disks, too.
* `first_nonlinear`, at the end: is the history of a register linearizable?  Every write has a value of its
  own, so that is decided exactly by zones (Gibbons and Korach, 1997): all operations of one value, from the
  first end to the last beginning.  A *forward* zone, whose first end comes before its last beginning, is a
  time in which the register must have had that value; no two of them may overlap, and no other zone may lie
  within one.

A write whose end nobody was told may happen at any later moment, but not after a write of the same sector
that was submitted after its host had died, and acknowledged.

Until then a read may see it, on the host that has it, and a failover may undo it: nobody was told that it is
there.  Such reads are left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

__all__ = ["Floors", "Operation", "Registers", "first_nonlinear"]

NEVER = 1 << 62


class Operation(NamedTuple):
    """One read or write of a register; ``end`` is `NEVER` for a write that may happen at any time."""

    value: int
    begin: int
    end: int
    write: bool


class _Zone(NamedTuple):
    first_end: int
    last_begin: int
    value: int

    @property
    def forward(self) -> bool:
        return self.first_end < self.last_begin

    @property
    def span(self) -> tuple[int, int]:
        return min(self.first_end, self.last_begin), max(self.first_end, self.last_begin)


def first_nonlinear(operations: Iterable[Operation], initial: int) -> str | None:
    """Why this history of one register is not linearizable; None if it is."""
    by_value: dict[int, list[Operation]] = {initial: [Operation(initial, -1, -1, write=True)]}
    reads: list[Operation] = []
    for each in operations:
        if each.write:
            by_value[each.value] = [each]
        else:
            reads.append(each)
    for read in reads:
        cluster = by_value.get(read.value)
        if cluster is None:
            return f"{read.value} was read at {read.end}, and never written"
        if read.end < cluster[0].begin:
            return f"{read.value} was read at {read.end}, before it was written at {cluster[0].begin}"
        cluster.append(read)
    zones = [
        _Zone(min(each.end for each in cluster), max(each.begin for each in cluster), value)
        for value, cluster in by_value.items()
        if len(cluster) > 1 or cluster[0].end != NEVER
    ]
    forward = sorted((*zone.span, zone.value) for zone in zones if zone.forward)
    for (low, high, value), (low_next, _, other) in itertools.pairwise(forward):
        if low_next < high:
            return f"it must have held {value} from {low} to {high}, and {other} from {low_next}"
    for zone in zones:
        if not zone.forward:
            begin, end = zone.span
            for low, high, value in forward:
                if low < begin and end < high:
                    return f"{zone.value} was written within {begin} to {end}, where it held {value}"
    return None


class _Write(NamedTuple):
    version: int
    begin: int
    life_end: int  # `NEVER` while its host lives and it has not ended
    acknowledged: int | None


class Registers:
    """The history of all sectors."""

    def __init__(self, initial: Sequence[int]) -> None:
        self._initial = list(initial)
        self._writes: list[dict[int, _Write]] = [{} for _ in initial]
        self._reads: list[list[Operation]] = [[] for _ in initial]

    def write_begins(self, version: int, start: int, stop: int, now: int) -> None:
        """These sectors are to hold ``version``."""
        for sector in range(start, stop):
            self._writes[sector][version] = _Write(version, now, NEVER, None)

    def write_ends(self, version: int, start: int, stop: int, now: int, *, acknowledged: bool) -> None:
        """It was acknowledged, or has failed, or its host has died."""
        for sector in range(start, stop):
            write = self._writes[sector][version]
            self._writes[sector][version] = write._replace(
                life_end=now, acknowledged=now if acknowledged else None
            )

    def read(self, start: int, values: Sequence[int], begin: int, end: int) -> None:
        """The guest was given these values."""
        for sector, value in enumerate(values, start):
            self._reads[sector].append(Operation(value, begin, end, write=False))

    def first_wrong(self) -> str | None:
        """The first register whose history cannot be, and why."""
        for sector, writes in enumerate(self._writes):
            acknowledged = [each for each in writes.values() if each.acknowledged is not None]
            operations = [
                Operation(
                    each.version, each.begin, each.acknowledged or self._until(each, acknowledged), write=True
                )
                for each in writes.values()
            ]
            reads = [
                each
                for each in self._reads[sector]
                if not self._meets(each, writes.get(each.value), acknowledged)
            ]
            wrong = first_nonlinear([*operations, *reads], self._initial[sector])
            if wrong is not None:
                return f"sector {sector}: {wrong}"
        return None

    def _meets(self, read: Operation, write: _Write | None, acknowledged: Iterable[_Write]) -> bool:
        """Whether it has read what was never acknowledged, and may yet be undone."""
        if write is None or write.acknowledged is not None:
            return False
        return read.begin < self._until(write, acknowledged)

    def _until(self, write: _Write, acknowledged: Iterable[_Write]) -> int:
        later = [each.acknowledged or NEVER for each in acknowledged if each.begin > write.life_end]
        return min(later, default=NEVER)


class Floors:
    """See the module; times are any numbers that grow."""

    def __init__(self, initial: Sequence[int]) -> None:
        self._initial = list(initial)
        self._span: dict[int, tuple[int, int]] = {}
        self._ended: dict[int, int] = {}
        self.owed = [0] * len(initial)  # the latest submission of what was acknowledged; 0: nothing was

    def begins(self, version: int, start: int, stop: int) -> None:
        """A write is submitted."""
        self._span[version] = (start, stop)

    def ends(self, version: int, begun: int, now: int, *, acknowledged: bool) -> None:
        """It was acknowledged, or has failed, or its host has died."""
        self._ended[version] = now
        if acknowledged:
            for sector in range(*self._span[version]):
                self.owed[sector] = max(self.owed[sector], begun)

    def ended(self, version: int) -> int:
        """When that write was."""
        return self._ended.get(version, NEVER)

    def missing(self, version: int, begun: int, content: Sequence[int], start: int) -> bool:
        """Whether any of these sectors, all written by ``version``, holds what was written before it."""
        for sector, value in enumerate(content, start):
            if value != version and (value == self._initial[sector] or self.ended(value) < begun):
                return True
        return False

    def first_wrong(self, content: Sequence[int], start: int, owed: Sequence[int]) -> str | None:
        """Why these sectors may not hold that; ``owed``: of them, as it was when they were asked for."""
        for sector, (value, floor) in enumerate(zip(content, owed, strict=True), start):
            if value == self._initial[sector]:
                right = not floor
            else:
                low, high = self._span.get(value, (0, 0))
                right = low <= sector < high and self._ended.get(value, NEVER) > floor
            if not right:
                return f"sector {sector} holds {value}, and a write that was submitted at {floor} is owed"
        return None
