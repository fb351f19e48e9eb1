"""Points of a guest's volumes: the jobs that the lanes run for them, and what an embedder calls.

The order of the jobs is `guest.performer`'s, what they do is ``storage.points``'s, and when a point is made,
on which hosts, is decided by ``core.points``.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pairsync.core.messages import PointMark, is_point_name
from pairsync.core.points import POINTS_MAX, SourcePoints
from pairsync.core.questions import ANSWER_NODES_MAX
from pairsync.core.units import BLOCK_BYTES, extent_of
from pairsync.errors import ArbitrationError, BackendError, ClosedError, ConfigError
from pairsync.storage.blockfile import ALLOCATION_RUNS_MAX
from pairsync.storage.device import Device
from pairsync.storage.pointcompare import ChangedRuns
from pairsync.storage.pointcopy import PointCopy
from pairsync.storage.points import Points

from .waiting import Waiter

if TYPE_CHECKING:
    from .guest import Guest
    from .replica import Replica

__all__ = ["Point", "VolumePoints", "begin_point_job", "copy_point_job", "drop_points_job", "with_points"]


def with_points(device: Device, open_points: Callable[[], Points], notes: list[str]) -> Points:
    """The points of the replica that lies on ``device``, which is closed if they cannot be had."""
    try:
        points = open_points()
    except BaseException:
        device.close()
        raise
    notes += points.problems
    return points


# ---------------------------------------------------------------------- jobs


def begin_point_job(points: Points | None, mark: PointMark) -> PointCopy | int:
    """In the data lane: the moment of the point is now; an errno if it cannot be made."""
    if points is None:
        return errno.ENOTSUP
    try:
        return points.begin(mark)
    except BackendError as error:
        return error.errno or errno.EIO


def copy_point_job(points: Points, copy: PointCopy) -> bool | int:
    """In the side lane: True while there is more to copy, 0 once the point is there, or an errno."""
    try:
        return points.go_on(copy) or 0
    except BackendError as error:
        return error.errno or errno.EIO


def drop_points_job(points: Points | None, tags: Sequence[int], copy: PointCopy | None) -> int:
    """In the side lane: drop all points but these, and ``copy`` if it is not one of them; an errno or 0."""
    if points is None:
        return 0
    try:
        points.keep(tags, copy)
    except BackendError as error:
        return error.errno or errno.EIO
    return 0


# ---------------------------------------------------------------------- for embedders


@dataclass(frozen=True, slots=True)
class Point:
    """A name for what a volume held at one moment."""

    name: str
    id: str
    """Tells it from any other point that ever has the same name: 16 hexadecimal digits."""
    created_s: int
    """Unix time, of the host that was active."""
    on_peer: bool | None
    """Whether the other host is known to have it too; None: not known on a standby."""


class VolumePoints:
    """The points of one volume of an open guest; see `Volume.make_point` and those beside it."""

    def __init__(
        self,
        guest: Guest,
        index: int,
        in_thread: Callable[[Callable[[], Any]], Awaitable[Any]],
        now_s: Callable[[], int],
    ) -> None:
        self._guest = guest
        self._index = index
        self._in_thread = in_thread
        self._now_s = now_s

    def _source(self) -> SourcePoints:
        """The machine of this volume; `ArbitrationError` on a standby."""
        self._check_open()
        sources = self._guest.session.sources
        if not sources:
            raise ArbitrationError(f"guest {self._guest.name} does not run here: this host is its standby")
        return sources[self._index].points

    def _check_open(self) -> None:
        if self._guest.closed:  # nobody would ever answer
            raise ClosedError(f"guest {self._guest.name} is closed")

    def _kept(self, replica: Replica) -> Points:
        if replica.points is None:
            raise ConfigError(f"volume {replica.name} keeps no digests: there are no points of it")
        return replica.points

    def all(self, replica: Replica) -> tuple[Point, ...]:
        """All points, the oldest first; none where no digests are kept."""
        self._check_open()
        sources = self._guest.session.sources
        if sources:
            points = sources[self._index].points
            return tuple(_point(mark, on_peer=points.on_peer(mark.tag)) for mark in points.marks)
        return tuple(_point(mark, on_peer=None) for mark in replica.points.list()) if replica.points else ()

    async def make(self, replica: Replica, name: str) -> Point:
        """As `Volume.make_point`."""
        source = self._source()
        self._kept(replica)
        if not is_point_name(name):
            raise ConfigError(
                f"{name!r} is no name of a point: 1 to 64 letters, digits, '.', '_' and '-', "
                "the first of them a letter or digit"
            )
        if any(mark.name == name for mark in source.marks):
            raise ConfigError(f"volume {replica.name} has a point {name!r} already")
        if len(source.marks) >= POINTS_MAX:
            raise ConfigError(f"volume {replica.name} has {POINTS_MAX} points already: drop one first")
        mark = PointMark(name, self._guest.draw_tag(), self._now_s())
        waiter = Waiter()
        source.make(waiter, mark)
        self._go_on()
        await waiter.wait(f"volume {replica.name}: making point {name}")
        return _point(mark, on_peer=source.on_peer(mark.tag))

    async def drop(self, replica: Replica, name: str) -> None:
        """As `Volume.drop_point`."""
        source = self._source()
        self._find(source, replica, name)
        waiter = Waiter()
        source.drop(waiter, name)
        self._go_on()
        await waiter.wait(f"volume {replica.name}: dropping point {name}")

    def _go_on(self) -> None:
        self._guest.session.sources[self._index].advance(self._guest.now_ns())
        self._guest.perform()

    def _find(self, source: SourcePoints, replica: Replica, point: str | Point) -> PointMark:
        """`ConfigError` if there is none, or another one of that name."""
        name = point if isinstance(point, str) else point.name
        for mark in source.marks:
            if mark.name == name and (isinstance(point, str) or f"{mark.tag:016x}" == point.id):
                return mark
        known = ", ".join(mark.name for mark in source.marks) or "none"
        raise ConfigError(
            f"volume {replica.name} has no point {name!r} on this host; there is {known}. "
            "What has changed since is not known: take all of the volume"
        )

    async def changed_since(
        self, replica: Replica, point: str | Point, offset: int, length: int
    ) -> list[tuple[int, bool]]:
        """As `Volume.changed_since`."""
        kept = self._kept(replica)
        mark = self._find(self._source(), replica, point)
        start, stop = extent_of(offset, length)
        found: ChangedRuns = await self._in_thread(
            partial(kept.changed, mark.tag, start, stop, runs_max=ALLOCATION_RUNS_MAX)
        )
        return _byte_runs(found, offset, offset + length)

    async def digests(self, replica: Replica, offset: int, length: int, point: str | Point | None) -> bytes:
        """As `Volume.digests`."""
        kept, source = self._kept(replica), self._source()
        if offset % BLOCK_BYTES:
            raise ConfigError(f"offset {offset}: digests are those of whole blocks of {BLOCK_BYTES} bytes")
        start, stop = extent_of(offset, length)
        stop = min(stop, start + ANSWER_NODES_MAX)
        if start == stop:
            return b""
        if point is None:
            job = partial(replica.device.examine, 0, start, stop, read=False)
            return (await self._guest.in_data_lane(self._index, job)).digests
        mark = self._find(source, replica, point)
        taken: bytes = await self._in_thread(partial(kept.digests, mark.tag, start, stop))
        return taken


def _point(mark: PointMark, *, on_peer: bool | None) -> Point:
    return Point(mark.name, f"{mark.tag:016x}", mark.created_s, on_peer)


def _byte_runs(found: ChangedRuns, offset: int, end: int) -> list[tuple[int, bool]]:
    """Consecutive runs from ``offset`` on: bytes, and whether they have changed."""
    runs: list[tuple[int, bool]] = []
    at = offset
    for start, stop in found.runs:
        first, last = max(start * BLOCK_BYTES, offset), min(stop * BLOCK_BYTES, end)
        if first > at:
            runs.append((first - at, False))
        runs.append((last - first, True))
        at = last
    stop = min(found.stop * BLOCK_BYTES, end)
    if stop > at:
        runs.append((stop - at, False))
    return runs
