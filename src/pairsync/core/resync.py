"""Resync: copying what the peer lacks while the guest goes on writing.

The source walks its ``todo`` map in rising order and asks for reads.  Live writes meanwhile are mirrored, so
a block is copied right as soon as *either* it is written whole *or* a read of it that no write has touched
is sent in the same ordered stream.  Hence one rule instead of locks: **a block that was written while it was
being read is not sent from that read**; if the write did not fill it, it stays in ``todo`` and is read again.

Reads come back as what was found: data, or a run that reads as zero (a hole, or zeroes), which is sent
without payload, or not at all where the target is blank.

Foreground first: how much a resync may have under way is set by `Pacer` from the latency that the guest's
writes see.  There is no fixed floor or ceiling; with an idle guest the whole window is used.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from pairsync.errors import InternalError

from .dirty import DirtyMap
from .units import BLOCK_BYTES, KIB, MIB, NS_PER_MS, NS_PER_S, Extent
from .window import RANGE_BYTES_MAX

__all__ = [
    "PIECE_BYTES",
    "RUNS_PER_READ_MAX",
    "RUN_BLOCKS_MAX",
    "Pacer",
    "Progress",
    "ReadTicket",
    "ResyncSource",
]

PIECE_BYTES = 512 * KIB
"""Most data of one resync read: large enough that a read, a record and a write each amortise their fixed
costs (about 50 us), small enough that a live write never waits for more than a millisecond behind one."""

RUN_BLOCKS_MAX = RANGE_BYTES_MAX // BLOCK_BYTES
"""Most blocks of one read request: a hole of that size is one step, and one message."""

RUNS_PER_READ_MAX = PIECE_BYTES // BLOCK_BYTES
"""Most runs that are sent of one read: as many as a piece of data has blocks.  The rest of a hole that was
written in more places while it was looked for is read again; so what the reads under way send is bounded."""


class ReadTicket:
    """One read that is under way."""

    __slots__ = ("extent", "number", "overwritten")

    def __init__(self, number: int, extent: Extent) -> None:
        self.number = number  # rising within a session; late answers are told by it
        self.extent = extent  # blocks asked for; disjoint from those of every other ticket
        self.overwritten: DirtyMap | None = None  # blocks of it written since the read was asked for


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a resync is; ``remaining_s`` is None while no rate is known."""

    total_blocks: int
    remaining_blocks: int
    bytes_per_s: float
    remaining_s: float | None

    @property
    def fraction(self) -> float:
        """Between 0 and 1."""
        if self.total_blocks == 0:
            return 1.0
        return 1.0 - self.remaining_blocks / self.total_blocks


class Pacer:
    """How many bytes a resync may have under way: additive increase, multiplicative decrease.

    While the guest's writes take longer than ``goal_ns`` the quota halves (at most once per
    `_ADJUST_NS`), otherwise it grows by a piece; with no write for `_IDLE_NS` it is the maximum at once.
    At the minimum one piece is always allowed: a resync never stands still (DESIGN rule 11).
    """

    _ADJUST_NS = 20 * NS_PER_MS
    _IDLE_NS = 250 * NS_PER_MS

    def __init__(self, goal_ns: int, quota_bytes_max: int = 16 * MIB) -> None:
        if goal_ns <= 0 or quota_bytes_max < PIECE_BYTES:
            raise InternalError("a pacer without a goal or without room for one piece")
        self.goal_ns = goal_ns
        self.quota_bytes_max = quota_bytes_max
        self._quota_bytes = quota_bytes_max
        self._adjusted_ns = 0  # when the quota was changed last
        self._foreground_ns: int | None = None  # when the guest's last write ended; None: never

    def foreground(self, latency_ns: int, now_ns: int) -> None:
        """A write of the guest was acknowledged after ``latency_ns``."""
        idle = self._foreground_ns is None or now_ns - self._foreground_ns > self._IDLE_NS
        self._foreground_ns = now_ns
        if idle:
            self._quota_bytes = min(self._quota_bytes, 4 * PIECE_BYTES)  # start gently beside the guest
            self._adjusted_ns = now_ns
            return
        if now_ns - self._adjusted_ns < self._ADJUST_NS:
            return
        self._adjusted_ns = now_ns
        if latency_ns > self.goal_ns:
            self._quota_bytes = max(self._quota_bytes // 2, PIECE_BYTES)
        else:
            self._quota_bytes = min(self._quota_bytes + PIECE_BYTES, self.quota_bytes_max)

    def quota_bytes(self, now_ns: int) -> int:
        """Bytes that may be read or sent and not yet applied."""
        if self._foreground_ns is None or now_ns - self._foreground_ns > self._IDLE_NS:
            self._quota_bytes = self.quota_bytes_max
        return self._quota_bytes


class ResyncSource:
    """Which block is read next, and what of a finished read may be sent.  Does not own ``todo``."""

    def __init__(self, todo: DirtyMap, pacer: Pacer) -> None:
        self._todo = todo
        self._pacer = pacer
        self._cursor = 0  # where the walk goes on; wraps until todo is empty
        self._next_number = 1
        self._reading: dict[int, ReadTicket] = {}  # by number; extents are disjoint
        self._under_way_bytes = 0  # asked for or sent, and not applied by the peer
        self._started_ns: int | None = None
        self._total_blocks = 0
        self._rate = 0.0  # bytes a second, exponentially averaged
        self._sampled_ns = 0
        self._sampled_blocks = 0

    @property
    def reading_count(self) -> int:
        """Reads under way."""
        return len(self._reading)

    @property
    def reading(self) -> bool:
        """Whether reads are under way."""
        return bool(self._reading)

    def start(self, now_ns: int) -> None:
        """A resync begins (or blocks were added)."""
        self._started_ns = now_ns
        self._total_blocks = self._todo.count
        self._sampled_ns, self._sampled_blocks = now_ns, self._todo.count
        self._rate = 0.0

    def stop(self) -> None:
        """The session ended: answers to reads that are under way will be dropped."""
        self._reading.clear()
        self._under_way_bytes = 0
        self._started_ns = None

    def stop_counting(self) -> None:
        """Nothing is missing any more: no progress to show."""
        self._started_ns = None

    def next_reads(self, now_ns: int) -> list[ReadTicket]:
        """Reads to issue now, within the quota."""
        quota = self._pacer.quota_bytes(now_ns)
        tickets: list[ReadTicket] = []
        while self._under_way_bytes + PIECE_BYTES <= quota or not (self._reading or self._under_way_bytes):
            extent = self._next_extent()
            if extent is None:
                break
            ticket = ReadTicket(self._next_number, extent)
            self._next_number += 1
            self._reading[ticket.number] = ticket
            self._under_way_bytes += PIECE_BYTES
            tickets.append(ticket)
        return tickets

    def _next_extent(self) -> Extent | None:
        """The next run of ``todo`` that nobody is reading; wraps around once."""
        if not self._todo:
            return None
        for start, stop in ((self._cursor, self._todo.block_count), (0, self._cursor)):
            at = start
            while (run := self._todo.next_run(at, stop)) is not None:
                run = Extent(run.start, min(run.stop, run.start + RUN_BLOCKS_MAX))
                free = self._free_part(run)
                if free is not None:
                    self._cursor = free.stop if free.stop < self._todo.block_count else 0
                    return free
                at = run.stop
        return None

    def _free_part(self, run: Extent) -> Extent | None:
        """The first part of ``run`` that no read under way covers."""
        start, stop = run
        for other in sorted(ticket.extent for ticket in self._reading.values()):
            if other.stop <= start or other.start >= stop:
                continue
            if other.start > start:
                return Extent(start, other.start)
            start = other.stop
            if start >= stop:
                return None
        return Extent(start, stop)

    def written(self, extent: Extent) -> None:
        """A live write touches these blocks: reads under way do not speak for them any more."""
        for ticket in self._reading.values():
            start, stop = max(extent.start, ticket.extent.start), min(extent.stop, ticket.extent.stop)
            if start < stop:
                if ticket.overwritten is None:
                    ticket.overwritten = DirtyMap(self._todo.block_count)
                ticket.overwritten.mark(start, stop)

    def read_done(self, number: int, covered: Extent) -> list[Extent] | None:
        """The read found out about ``covered`` (a prefix of what was asked for, possibly all of it).

        Returns the runs of it that may be sent now, `RUNS_PER_READ_MAX` at most: not written meanwhile and
        still wanted; None if the read belongs to an earlier session.  The caller reports what it sent with
        `sent` and then `arrived`.
        """
        ticket = self._reading.pop(number, None)
        if ticket is None:
            return None
        if covered.start != ticket.extent.start or not covered.start <= covered.stop <= ticket.extent.stop:
            raise InternalError(f"read of {ticket.extent.describe()} answered for {covered.describe()}")
        self._under_way_bytes -= PIECE_BYTES
        if covered.stop < ticket.extent.stop:
            self._cursor = min(self._cursor, covered.stop) if self._cursor else covered.stop
        return list(itertools.islice(self._sendable(ticket, covered), RUNS_PER_READ_MAX))

    def _sendable(self, ticket: ReadTicket, covered: Extent) -> Iterator[Extent]:
        for run in self._todo.runs(covered.start, covered.stop):
            if ticket.overwritten is None:
                yield run
                continue
            at = run.start
            for hit in ticket.overwritten.runs(run.start, run.stop):
                if hit.start > at:
                    yield Extent(at, hit.start)
                at = hit.stop
            if at < run.stop:
                yield Extent(at, run.stop)

    def read_failed(self, number: int) -> bool:
        """The read failed: its blocks stay in ``todo``.  False if it belongs to an earlier session."""
        ticket = self._reading.pop(number, None)
        if ticket is None:
            return False
        self._under_way_bytes -= PIECE_BYTES
        return True

    def sent(self, data_bytes: int) -> None:
        """That much resync data left for the peer."""
        self._under_way_bytes += data_bytes

    def arrived(self, data_bytes: int) -> None:
        """The peer has applied that much of it."""
        self._under_way_bytes = max(self._under_way_bytes - data_bytes, 0)

    def progress(self, now_ns: int) -> Progress | None:
        """How far it is; None while no resync runs.  Call it no more often than it is to be shown."""
        if self._started_ns is None:
            return None
        remaining = self._todo.count
        self._total_blocks = max(self._total_blocks, remaining)
        elapsed_ns = now_ns - self._sampled_ns
        if elapsed_ns > 0:
            rate = max(self._sampled_blocks - remaining, 0) * BLOCK_BYTES * NS_PER_S / elapsed_ns
            self._rate = rate if self._rate == 0.0 else 0.5 * self._rate + 0.5 * rate
            self._sampled_ns, self._sampled_blocks = now_ns, remaining
        left = remaining * BLOCK_BYTES / self._rate if self._rate > 0 else None
        return Progress(self._total_blocks, remaining, self._rate, left)
