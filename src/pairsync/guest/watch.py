"""Watching the disks of a guest: what hangs, and what works no more though nobody uses it.

* **A hang is told from slowness by a deadline** (``VolumeOptions.disk_deadline_ns``).  An observer that did
  not run himself for a while judges nothing until operations have had their time again.
* **A disk that nobody uses** is asked now and then whether it is still there (`PROBE_NS`): what a pair relies
  on should not be found out when it is needed.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from pairsync.core.units import NS_PER_S

from .disks import Disks, describe_hang
from .replica import flush_job

if TYPE_CHECKING:
    from .guest import Guest

__all__ = ["LOOK_S", "Ailment", "DiskWatch"]

LOOK_S: Final = 0.1
"""Between two looks at running operations: a fiftieth of their deadline."""

STALL_NS: Final = NS_PER_S
"""A look that comes later than that after the last one finds an observer that slept."""

GRACE_NS: Final = 5 * NS_PER_S
"""For so long he then judges nothing: the time that an operation has by default."""

PROBE_NS: Final = 2 * NS_PER_S
"""Between two questions to a disk that nobody uses; a flush without anything to write costs microseconds."""


class Ailment(NamedTuple):
    """What is wrong with the disk of a volume."""

    volume: str
    reason: str


class DiskWatch:
    """See the module; to be asked every `LOOK_S`."""

    def __init__(self, guest: Guest, disks: Disks, unused: Callable[[], Iterable[int]]) -> None:
        """``unused``: the volumes whose disks may have failed without anybody hearing of it."""
        self._guest = guest
        self._disks = disks
        self._unused = unused
        self._looked_ns = self._probed_ns = self._judge_from_ns = guest.now_ns()
        self._probed: Ailment | None = None  # what a probe has found

    def look(self) -> Ailment | None:
        """What is wrong, if anything."""
        now_ns = self._guest.now_ns()
        if now_ns - self._looked_ns >= STALL_NS:
            self._judge_from_ns = now_ns + GRACE_NS
        self._looked_ns = now_ns
        if now_ns - self._probed_ns >= PROBE_NS:
            self._probed_ns = now_ns
            self._probe()
        if self._probed is not None or now_ns < self._judge_from_ns:
            return self._probed
        for index, volume in enumerate(self._guest.volumes.values()):
            age_ns = self._disks.overdue_ns(index, volume.read_age_ns)
            if age_ns:
                return Ailment(volume.name, describe_hang(age_ns))
        return None

    def _probe(self) -> None:
        if not self._disks.lanes:
            return  # they are closed
        for index in self._unused():
            replica, side = self._disks.replicas[index], self._disks.lanes[index].side
            if not side.backlog:
                side.submit(partial(flush_job, replica.device), partial(self._answered, replica.name))

    def _answered(self, name: str, result: int | BaseException) -> None:
        if isinstance(result, int) and result:
            self._probed = Ailment(
                name, f"it was asked whether it works: {errno.errorcode.get(result, result)}"
            )
