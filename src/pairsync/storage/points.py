"""The points of one replica: names for what its volume held at moments of its write order.

A point is the digest table of that moment, kept beside the metadata (``storage.pointfile``).  *What has
changed since* is a comparison of digests, not a log of writes, so it is right whatever came between: a crash,
a resync, another host's turn, a dirty map that was lost.  It never misses a change: where a digest is not
known, now or then, the block counts as changed.

**After a crash** a point is there whole or not at all: it is copied under another name, flushed, and then
named.  Copies that were cut short are removed when the replica is opened.

**Bounds.**  There are at most `POINTS_MAX`, each of 8 bytes for a block that holds data.

**Threads.**  `begin` belongs to the data lane: the moment is there.  `go_on` and `keep` belong to the side
lane, `changed` and `digests` to any thread.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Final

from pairsync.core.messages import PointMark
from pairsync.core.points import POINTS_MAX
from pairsync.errors import BackendError, BusyError, ConfigError, MetadataError

from .digestfile import LEAF_BYTES, UNKNOWN_DIGEST
from .digesttable import DigestTable
from .directory import Directory, OsDirectory
from .pointcompare import ChangedRuns, changed_runs
from .pointcopy import PointCopy, known_below
from .pointfile import PointFile, PointHeader, load_point, point_bytes

__all__ = ["PAGES_AT_ONCE", "Points", "points_beside"]

PAGES_AT_ONCE: Final = 512
"""Pages of digests, or holes, compared with the table at rest: some 5 ms, 20 where each page lies apart."""

_FLUSH_PAGES: Final = 16_384
"""Pages of a copy between two flushes: 64 MiB that the disk has to write at once, so that none takes long
enough to be taken for a disk that hangs."""

_UNKNOWN: Final = UNKNOWN_DIGEST.to_bytes(LEAF_BYTES, "little")


class Points:
    """See the module.  Construction reads the headers; raises `BackendError`.

    Belongs to whoever has the replica's metadata open.
    """

    def __init__(self, directory: Directory, stem: str, volume_id: bytes, table: DigestTable) -> None:
        self._directory = directory
        self._prefix = f"{stem}-point-"
        self._volume_id = volume_id
        self._table = table
        self.problems: tuple[str, ...] = ()
        """Files that cannot be read as points, and why: for the log.  Each is left alone until a point of its
        name is made."""
        self._marks: dict[int, PointMark] = {}  # by tag; replaced as a whole: `list` may run in any thread
        self._copy: PointCopy | None = None  # under way
        self._reading = threading.Lock()  # over the next one, and over reading from it
        self._opened: PointFile | None = None  # the point that was asked about last
        self._load()

    # ------------------------------------------------------------------ what there is

    def _load(self) -> None:
        self._directory.sync()  # a killed process may have left a change of names half done
        marks: dict[int, PointMark] = {}
        problems: list[str] = []
        for name in self._directory.names(self._prefix):
            suffix = name.removeprefix(self._prefix)
            if suffix.startswith("."):
                self._directory.remove(name)  # a copy that was cut short
                continue
            try:
                point = self._open(suffix)
            except (BackendError, BusyError) as error:  # a damaged or foreign one is a `BackendError` too
                problems.append(str(error))
                continue
            point.file.close()
            marks[point.header.tag] = point.header.mark
        self._marks = marks
        self.problems = tuple(problems)

    def _open(self, name: str) -> PointFile:
        file = self._directory.open(self._prefix + name)
        try:
            point = load_point(file)
        except BaseException:
            file.close()
            raise
        if point.header.name == name and point.header.volume_id == self._volume_id:
            return point
        file.close()
        raise MetadataError(f"{file.path}: is point {point.header.name!r}, or of another volume")

    def list(self) -> tuple[PointMark, ...]:
        """All points, the oldest first."""
        return tuple(sorted(self._marks.values(), key=lambda mark: (mark.created_s, mark.name)))

    # ------------------------------------------------------------------ making one

    def begin(self, mark: PointMark) -> PointCopy:
        """The moment of this point is now, between two writes.

        One of that name is replaced, once this one is complete, and one that is under way is given up.
        `BackendError` where it cannot be begun: ENOSPC if there are too many.
        """
        self._give_up()
        others = [each for each in self._marks.values() if each.name != mark.name]
        if len(others) >= POINTS_MAX:
            raise BackendError(f"{self._prefix}*: there are {POINTS_MAX} points already", errno.ENOSPC)
        file = self._directory.create(f"{self._prefix}.{mark.tag:016x}")
        try:
            with self._table.settled() as state:
                size_bytes = state.size_bytes
                file.resize(point_bytes(size_bytes))
                known = known_below(state.unknown)
                header = PointHeader(self._volume_id, *mark, size_bytes, known)
                self._copy = PointCopy(state, PointFile(file, header), file)
        except BaseException:
            file.close()
            with suppress(BackendError):
                self._directory.remove(f"{self._prefix}.{mark.tag:016x}")
            raise
        return self._copy

    def _give_up(self) -> None:
        copy, self._copy = self._copy, None
        if copy is not None:
            with self._table.at_rest():
                copy.give_up()

    def go_on(self, copy: PointCopy) -> bool:
        """Copy some more; False once the point is there, durably.

        `BackendError` if it cannot be made, or another one was begun: nothing is left of it.
        """
        try:
            with self._table.at_rest():
                more = copy.step()
            if more and copy.unflushed_pages >= _FLUSH_PAGES:
                copy.file.flush()
                copy.unflushed_pages = 0
            if not more:
                self._publish(copy)
        except BaseException:
            self._discard(copy)
            raise
        return more

    def _publish(self, copy: PointCopy) -> None:
        mark = copy.point.header.mark
        copy.point.write_header()
        copy.file.flush()
        self._directory.publish(copy.file, self._prefix + mark.name)
        copy.file.close()
        self._marks = {
            mark.tag: mark,
            **{tag: each for tag, each in self._marks.items() if each.name != mark.name},
        }
        self._forget_opened()
        if self._copy is copy:
            self._copy = None

    def _discard(self, copy: PointCopy) -> None:
        if self._copy is copy:
            self._give_up()
        copy.file.close()
        with suppress(BackendError):  # else it is removed when the replica is opened next
            self._directory.remove(f"{self._prefix}.{copy.point.header.tag:016x}")

    # ------------------------------------------------------------------ dropping

    def under_way(self) -> PointCopy | None:
        """The copy that was begun last, unless it has ended; in the data lane."""
        return self._copy

    def keep(self, tags: Collection[int], copy: PointCopy | None = None) -> None:
        """Drop all points but these, and ``copy``, which was under way, if it is not one of them.

        Durable on return.  `BackendError` if one cannot be removed; those before it are gone.
        """
        if copy is not None and copy is self._copy and copy.point.header.tag not in tags:
            self._give_up()
        for mark in self.list():
            if mark.tag not in tags:
                self._directory.remove(self._prefix + mark.name)
                self._marks = {tag: each for tag, each in self._marks.items() if tag != mark.tag}
        self._forget_opened()

    def _forget_opened(self) -> None:
        with self._reading:
            if self._opened is not None:
                self._opened.file.close()
            self._opened = None

    # ------------------------------------------------------------------ asking

    def _point(self, tag: int) -> PointFile:
        """The caller holds `_reading`."""
        if self._opened is None or self._opened.header.tag != tag:
            mark = self._marks.get(tag)
            if mark is None:
                raise ConfigError(f"{self._prefix}*: there is no point {tag:016x} any more")
            if self._opened is not None:
                self._opened.file.close()
            self._opened = None
            point = self._open(mark.name)
            if point.header.tag != tag:
                point.file.close()
                raise ConfigError(f"point {mark.name} was replaced by another one of its name")
            self._opened = point
        return self._opened

    def changed(self, tag: int, first: int, stop: int, *, runs_max: int) -> ChangedRuns:
        """The blocks of a range that may hold something else than at that point; may stop early.

        All that was written before the call counts; of what is written meanwhile each block may or may not.
        `ConfigError` if there is no such point (any more), `BackendError` where the disk fails.
        """
        with self._reading:
            point = self._point(tag)
            with self._table.settled() as state:
                return changed_runs(state, point, first, stop, runs_max=runs_max, pages_max=PAGES_AT_ONCE)

    def digests(self, tag: int, first: int, stop: int) -> bytes:
        """The digests of a range at that point, 8 bytes each; `UNKNOWN_DIGEST` where that is not known.

        Errors as `changed`.
        """
        with self._reading:
            point = self._point(tag)
            known = min(max(point.known_below(point.header.size_bytes), first), stop)
            raw = bytes(point.read(first, known)) if known > first else b""
            return raw + _UNKNOWN * (stop - known)

    def close(self) -> None:
        """Give all files back; idempotent.  A copy that is under way is lost."""
        copy = self._copy
        self._give_up()
        if copy is not None:
            copy.file.close()
        self._forget_opened()


def points_beside(metadata: str, volume_id: bytes, table: DigestTable) -> Points:
    """The points of the replica with that metadata file."""
    where = Path(metadata).absolute()
    return Points(OsDirectory(where.parent), where.name, volume_id, table)
