"""Resync: copying what the peer lacks while the guest goes on writing.

The source walks its ``todo`` map in rising order and asks for reads.  Live writes meanwhile are mirrored, so
a block is copied right as soon as *either* it is written whole *or* a read of it that no write has touched
is sent in the same ordered stream.  Hence one rule instead of locks: **a block that was written while it was
being read is not sent from that read**; if the write did not fill it, it stays in ``todo`` and is read again.

Scattered blocks are asked for together, for what a read costs beside its data is many times what 4 KiB cost.
Reads come back as what was found: data, or a run that reads as zero (a hole, or zeroes), which is sent
without payload, or not at all where the target is blank.

A block that is not what its digest says is *set aside*: it is neither sent nor read again until somebody has
found out what it should be (`core.doubts`).

Foreground first: how much a resync may have under way is set by `Pacer` from the latency that the guest's
writes see.  There is no fixed floor or ceiling; with an idle guest the whole window is used.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pairsync.errors import InternalError

from .dirty import DirtyMap
from .messages import WriteOp
from .questions import BadBlock
from .units import BLOCK_BYTES, KIB, MIB, NS_PER_MS, NS_PER_S, Extent
from .window import RANGE_BYTES_MAX

__all__ = [
    "NARROW_PIECE_BYTES",
    "PIECE_BLOCKS",
    "PIECE_BYTES",
    "RUNS_PER_READ_MAX",
    "RUN_BLOCKS_MAX",
    "WIDE_PIECE_BYTES",
    "Found",
    "Pacer",
    "Progress",
    "ReadTicket",
    "ResyncSource",
    "cut_out",
]

PIECE_BYTES = 512 * KIB
"""Most data of one resync read of several runs: large enough that a read, a record and a write each amortise
their fixed costs."""

NARROW_PIECE_BYTES = 64 * KIB
"""Most data of any read beside a guest that writes: a live write waits behind one at either host.  One write
in a hundred took 0.9 ms beside pieces of 512 KiB, 0.8 ms beside 128 KiB, and 0.5 ms beside these."""

WIDE_PIECE_BYTES = MIB
"""Most data of a read of one run where nobody writes: one `Write` message.  What a piece costs beside its
bytes, 200 us at the active host and 150 us at the peer, was nearly half of the processor time of pieces half
as large."""

_WIDE_PIECES = 8
"""So many of them must fit into what may be under way: one is read while others are sent and applied."""

PIECE_BLOCKS = PIECE_BYTES // BLOCK_BYTES

RUN_BLOCKS_MAX = RANGE_BYTES_MAX // BLOCK_BYTES
"""Most blocks of one read request: a hole of that size is one step, and one message."""

RUNS_PER_READ_MAX = PIECE_BLOCKS
"""Most runs that are sent of one read: as many as a piece of data has blocks.  The rest of a hole that was
written in more places while it was looked for is read again; so what the reads under way send is bounded."""


class ReadTicket(NamedTuple):
    """One read that is under way."""

    number: int
    """Rising within a session; late answers are told by it."""
    extents: Sequence[Extent]
    """Blocks asked for, ascending; disjoint from those of every other ticket.  Either one run of any length,
    or runs of ``piece_bytes`` together, `PIECE_BYTES` at most."""
    piece_bytes: int
    """Most data that is read, and what the read counts until it has ended."""


class Found(NamedTuple):
    """What a read found: the content of ``covered``, of each extent asked for a first part, or all."""

    covered: Sequence[Extent]
    ops: Sequence[WriteOp]
    """Data, or that it reads as zero; ascending."""
    wrong: Sequence[BadBlock] = ()
    """Blocks of it that are not what their digests say, where digests are kept."""


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
    `_ADJUST_NS`), otherwise it grows by `NARROW_PIECE_BYTES`; with no write for `_IDLE_NS` it is the maximum
    at once.  At the minimum one piece is always allowed: a resync never stands still (DESIGN rule 11).
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
        idle = not self.busy(now_ns)
        self._foreground_ns = now_ns
        if idle:
            self._quota_bytes = min(self._quota_bytes, 4 * NARROW_PIECE_BYTES)  # start gently
            self._adjusted_ns = now_ns
            return
        if now_ns - self._adjusted_ns < self._ADJUST_NS:
            return
        self._adjusted_ns = now_ns
        if latency_ns > self.goal_ns:
            self._quota_bytes = max(self._quota_bytes // 2, NARROW_PIECE_BYTES)
        else:
            self._quota_bytes = min(self._quota_bytes + NARROW_PIECE_BYTES, self.quota_bytes_max)

    def busy(self, now_ns: int) -> bool:
        """Whether the guest writes."""
        return self._foreground_ns is not None and now_ns - self._foreground_ns <= self._IDLE_NS

    @property
    def pressed(self) -> bool:
        """Whether its writes have taken longer than the goal for long."""
        return self._quota_bytes <= NARROW_PIECE_BYTES

    def quota_bytes(self, now_ns: int) -> int:
        """Bytes that may be read or sent and not yet applied."""
        if not self.busy(now_ns):
            self._quota_bytes = self.quota_bytes_max
        return self._quota_bytes

    def piece_bytes(self, now_ns: int) -> int:
        """Most data of one read of one run."""
        if self.busy(now_ns):
            return NARROW_PIECE_BYTES
        return WIDE_PIECE_BYTES if self.quota_bytes_max >= _WIDE_PIECES * WIDE_PIECE_BYTES else PIECE_BYTES


class ResyncSource:
    """Which block is read next, and what of a finished read may be sent.  Does not own ``todo``."""

    def __init__(self, todo: DirtyMap, pacer: Pacer) -> None:
        self._todo = todo
        self._pacer = pacer
        self._cursor = 0  # where the walk goes on; wraps until todo is empty
        self._next_number = 1
        self._reading: dict[int, ReadTicket] = {}  # by number
        self._claimed = DirtyMap(todo.block_count)  # the blocks of all of them, which are disjoint
        self._overwritten = DirtyMap(todo.block_count)  # those of them that were written since
        self.aside: set[int] = set()  # blocks of todo that must not be read; claimed, for no ticket
        # Blocks of todo when none of them was free, or less; no use to look again before there are more or a
        # read ends.  -1: not known.
        self._claimed_todo_count = -1
        self._under_way_bytes = 0  # asked for or sent, and not applied by the peer
        self._started_ns: int | None = None
        self._total_blocks = 0
        self._rate = 0.0  # bytes a second, exponentially averaged
        self._sampled_ns = 0
        self._sampled_blocks = 0

    def grow(self) -> None:
        """``todo`` has grown."""
        self._claimed.grow(self._todo.block_count)
        self._overwritten.grow(self._todo.block_count)

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
        self._claimed_todo_count = -1
        self._claimed.take()
        self._overwritten.take()
        self.aside.clear()
        self._under_way_bytes = 0
        self._started_ns = None

    def stop_counting(self) -> None:
        """Nothing is missing any more: no progress to show."""
        self._started_ns = None

    def next_reads(self, now_ns: int) -> list[ReadTicket]:
        """Reads to issue now, within the quota."""
        quota, piece_bytes = self._pacer.quota_bytes(now_ns), self._pacer.piece_bytes(now_ns)
        together_bytes = min(piece_bytes, PIECE_BYTES)  # of several runs
        tickets: list[ReadTicket] = []
        if self._todo.count <= self._claimed_todo_count:
            self._claimed_todo_count = self._todo.count
            return tickets
        while self._under_way_bytes + piece_bytes <= quota or not (self._reading or self._under_way_bytes):
            extents = self._next_extents(together_bytes // BLOCK_BYTES)
            if not extents:
                self._claimed_todo_count = self._todo.count if self._reading or self.aside else -1
                break
            wide = extents[0].block_count * BLOCK_BYTES > together_bytes
            ticket = ReadTicket(self._next_number, extents, piece_bytes if wide else together_bytes)
            self._next_number += 1
            self._reading[ticket.number] = ticket
            self._under_way_bytes += ticket.piece_bytes
            tickets.append(ticket)
        return tickets

    def _next_extents(self, room: int) -> list[Extent]:
        """The next run of ``todo`` that nobody is reading, claimed, or runs of ``room`` blocks together; the
        walk wraps around once.
        """
        found: list[Extent] = []
        for start, stop in ((self._cursor, self._todo.block_count), (0, self._cursor)):
            for part in self._free_parts(start, stop):
                if found and part.block_count > room:
                    return found
                self._claimed.mark(*part)
                self._cursor = part.stop if part.stop < self._todo.block_count else 0
                found.append(part)
                room -= part.block_count
                if room <= 0:
                    return found
            if found:  # they ascend
                return found
        return found

    def _free_parts(self, start: int, stop: int) -> Iterator[Extent]:
        """What of ``todo`` no read under way covers; a part may be claimed before the next is asked for."""
        while (part := self._todo.next_run_beside(self._claimed, start, stop, RUN_BLOCKS_MAX)) is not None:
            yield part
            start = part.stop

    def written(self, extent: Extent) -> None:
        """A live write touches these blocks: reads under way do not speak for them any more."""
        for run in self._claimed.runs(*extent):
            self._overwritten.mark(*run)

    def read_done(self, number: int, found: Found) -> list[Extent] | None:
        """The read has ended.

        Returns the runs of it that may be sent now, `RUNS_PER_READ_MAX` at most: not written meanwhile, still
        wanted, and not wrong; None if the read belongs to an earlier session.  Blocks that are wrong are set
        ``aside``.  The caller reports what it sent with `sent` and then `arrived`.
        """
        covered = found.covered
        ticket = self._reading.pop(number, None)
        if ticket is None:
            return None
        if len(covered) != len(ticket.extents):
            raise InternalError(f"read of {len(ticket.extents)} extents answered for {len(covered)}")
        for asked, part in zip(ticket.extents, covered, strict=True):
            if part.start != asked.start or not part.start <= part.stop <= asked.stop:
                raise InternalError(f"read of {asked.describe()} answered for {part.describe()}")
            if part.stop < asked.stop:
                self._cursor = min(self._cursor, part.stop) if self._cursor else part.stop
        wrong = [
            each.block
            for each in found.wrong
            if each.block in self._todo and each.block not in self._overwritten
        ]
        for block in wrong:
            self._overwritten.mark(block, block + 1)
        runs = list(itertools.islice(self._sendable(covered), RUNS_PER_READ_MAX))
        self._end(ticket)
        for block in wrong:
            self._claimed.mark(block, block + 1)
        self.aside.update(wrong)
        return runs

    def release(self, block: int) -> None:
        """A block that was set aside may be read again."""
        self.aside.discard(block)
        self._claimed.clear(block, block + 1)
        self._claimed_todo_count = -1

    def _sendable(self, covered: Sequence[Extent]) -> Iterator[Extent]:
        for part in covered:
            for run in self._todo.runs(*part):
                yield from self._not_overwritten(run)

    def _not_overwritten(self, run: Extent) -> Iterator[Extent]:
        if not self._overwritten:
            yield run
            return
        at = run.start
        for hit in self._overwritten.runs(*run):
            if hit.start > at:
                yield Extent(at, hit.start)
            at = hit.stop
        if at < run.stop:
            yield Extent(at, run.stop)

    def _end(self, ticket: ReadTicket) -> None:
        """The ticket has been taken out: nobody reads its blocks any more."""
        self._under_way_bytes -= ticket.piece_bytes
        self._claimed_todo_count = -1
        for extent in ticket.extents:
            self._claimed.clear(*extent)
            if self._overwritten:
                self._overwritten.clear(*extent)

    def read_failed(self, number: int) -> bool:
        """The read failed: its blocks stay in ``todo``.  False if it belongs to an earlier session."""
        ticket = self._reading.pop(number, None)
        if ticket is None:
            return False
        self._end(ticket)
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


def cut_out(ops: Sequence[WriteOp], runs: Sequence[Extent], size_bytes: int) -> Iterator[WriteOp]:
    """The parts of ``ops`` within the runs; both ascend."""
    rest = iter(ops)
    op = next(rest, None)
    for run in runs:
        start, stop = run.start * BLOCK_BYTES, min(run.stop * BLOCK_BYTES, size_bytes)
        while op is not None and op.offset < stop:
            end = op.offset + op.length
            if end > start:
                yield op if start <= op.offset and end <= stop else _part_of(op, start, stop)
            if end > stop:
                break  # the next run may have a part of it too
            op = next(rest, None)


def _part_of(op: WriteOp, start: int, stop: int) -> WriteOp:
    low, high = max(op.offset, start), min(op.offset + op.length, stop)
    if op.data is None:
        return WriteOp(op.kind, low, high - low)
    return WriteOp(op.kind, low, high - low, memoryview(op.data)[low - op.offset : high - op.offset])
