"""Scrubber: both hosts read what they have, piece by piece, and compare it with their own digests.

Each host compares in its data lane, between two writes, so however busy the guest is a block that does not
hold what its digest says has fallen over, and the host that finds it is the one that is wrong.  The digests
of both hosts are compared as well: a difference there is one of content that nobody noticed.

What is wrong is told, and with ``repair`` mended from the other side: the peer's blocks are marked as
lacking and copied by the resync, this host's are fetched (`core.fetcher`) and written again.  A block that is
wrong on both hosts is only told.

Foreground first: while the guest writes, a scrub reads for a quarter of the time, for a sixteenth while the
guest's writes take longer than their goal; on an idle guest as fast as the disks go.
"""

from __future__ import annotations

import enum
import errno
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from pairsync.errors import InternalError

from .effects import Apply, Complete, Effect, Emit
from .events import ScrubEvent, ScrubFindingEvent
from .fetcher import FETCH_BLOCKS_MAX, Fetched, Fetcher, Repair
from .messages import Unfetched, Write, WriteOp
from .prover import differing_nodes
from .questions import ANSWER_NODES_MAX, FAN_OUT, Answer, Questions, node_count
from .resync import Pacer
from .standing import Phase, Standing
from .tracker import Tracker
from .units import BLOCK_BYTES, NS_PER_S, Extent

__all__ = ["FINDINGS_MAX", "Fault", "Finding", "ScrubReport", "Scrubber"]

FINDINGS_MAX = 1000
"""Findings of one scrub that are told one by one; the rest is counted."""

QUESTIONS_AHEAD = 2
"""Pieces that are read at once on an idle guest: one is on its way while the other is compared."""

BUSY_WAITS = 3
PRESSED_WAITS = 15
"""Times of reading that are waited between two pieces, while the guest writes, and while that is slow."""


MENDING_MAX = 1024
"""Blocks that reads have found wrong and that wait for their repair; others are found again."""

REPAIRS_AT_ONCE = 8
"""Pieces that are fetched to be written again; guests whose reads fail want the others."""


class Fault(enum.Enum):
    """What is wrong with a block."""

    HERE = "here"
    """This host's copy is not what its digest says."""
    PEER = "peer"
    """The peer's is not."""
    BOTH = "both"
    """Neither is."""
    DIFFERENT = "different"
    """Each is what its own digest says, and the two are not the same."""
    DIGEST = "digest"
    """The digest of this host's copy is wrong: the peer has the same content, under another digest."""
    LOST = "lost"
    """This host's copy is not what its digest says, and the peer has neither that nor the same."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A block that is not as it should be."""

    block: int
    fault: Fault


@dataclass(slots=True)
class ScrubReport:
    """How far a scrub is, or was."""

    repair: bool
    total_bytes: int
    started_ns: int
    bytes: int = 0  # of the volume, holes included
    findings: int = 0
    repaired: int = 0
    found: list[Finding] | None = None  # the first `FINDINGS_MAX`
    ended_ns: int | None = None
    complete: bool = False

    @property
    def fraction(self) -> float:
        """Between 0 and 1."""
        return min(self.bytes / self.total_bytes, 1.0) if self.total_bytes else 1.0

    def seconds(self, now_ns: int) -> float:
        """How long it has taken so far, or in all."""
        return ((self.ended_ns or now_ns) - self.started_ns) / NS_PER_S


class Scrubber:
    """See the module; one a volume of an active host."""

    def __init__(
        self,
        index: int,
        tracker: Tracker,
        standing: Standing,
        questions: Questions,
        fetcher: Fetcher,
        pacer: Pacer,
        repairing: Callable[[Sequence[WriteOp]], None],
        lacking: Callable[[Sequence[Extent]], None],
        out: list[Effect],
    ) -> None:
        """``repairing`` hears what is written again here, before it is; ``lacking`` what the peer needs."""
        self._index = index
        self._tracker = tracker
        self._standing = standing
        self._questions = questions
        self._fetcher = fetcher
        self._pacer = pacer
        self._will_repair = repairing
        self._peer_lacks = lacking
        self._out = out
        self.report: ScrubReport | None = None
        """Of the scrub that runs, or of the last one."""
        self.possible = False  # whether both hosts keep digests; set before a session begins
        self._owners: list[object] = []  # who waits for its end
        # What is still to be looked at, in nodes of level 1, and then leaves of nodes that differ.
        self._waiting: deque[tuple[int, int, int]] = deque()
        self._to_fetch: deque[int] = deque()  # blocks here that are to be repaired
        self._repairing = 0  # requests and writes for them that are under way
        self._answered_ns: int | None = None  # when a question was asked that has been answered since
        self._not_before_ns = 0  # the guest's turn until then
        self._idle_since_ns: int | None = None  # when the last scrub has ended, or the volume was opened

    @property
    def running(self) -> bool:
        """Whether a scrub has begun and not ended."""
        return self.report is not None and not self.report.complete

    @property
    def idle(self) -> bool:
        """Whether `advance` would find nothing to do."""
        return not (self.running or self._to_fetch)

    def mend(self, block: int) -> None:
        """A read has found that this host's copy of a block is wrong: fetch it, unless that waits already."""
        if len(self._to_fetch) < MENDING_MAX and block not in self._to_fetch:
            event = ScrubFindingEvent(self._standing.name, block, Fault.HERE.value, repair=True)
            self._out.append(Emit(event))
            self._to_fetch.append(block)

    def tick(self, interval_ns: int, now_ns: int) -> None:
        """Time has passed: begin one that repairs so long after the last one, or after the first tick."""
        if self._idle_since_ns is None:
            self._idle_since_ns = now_ns
        if interval_ns and self.possible and not self.running and now_ns - self._idle_since_ns >= interval_ns:
            self.start(None, repair=True, now_ns=now_ns)

    def start(self, owner: object | None, *, repair: bool, now_ns: int) -> None:
        """Begin a scrub, or share the one that runs; ends in one `Complete` for the owner: with ENOTSUP where
        the peer keeps no digests."""
        if owner is not None:
            self._owners.append(owner)
        if self.report is not None and not self.report.complete:
            self.report.repair = self.report.repair or repair
            return
        size_bytes = self._standing.superblock.size_bytes
        self.report = ScrubReport(repair, size_bytes, now_ns, found=[])
        self._restart(0)

    def _restart(self, first: int) -> None:
        self._waiting.clear()
        stop = node_count(self._tracker.block_count, 1)
        if first < stop:
            self._waiting.append((1, first, stop))

    def stop(self, error: int) -> None:
        """The volume serves nothing any more, or there is nothing to compare with."""
        if self.report is not None:
            self.report.complete = True
        self._waiting.clear()
        self._to_fetch.clear()
        self._out.extend(Complete(owner, [error]) for owner in self._owners)
        self._owners.clear()

    def peer_lost(self) -> None:
        """The session is over; the scrub goes on with the next one, where it was."""
        self._go_on()
        self._fetcher.lost(errno.ENOTCONN)

    def _go_on(self) -> None:
        if self.report is not None and not self.report.complete:
            self._restart(self.report.bytes // (FAN_OUT * BLOCK_BYTES))

    def grow(self, size_bytes: int) -> None:
        """The volume has that size now, and so has its tracker; a scrub covers what was added too."""
        if self.report is not None and not self.report.complete:
            self.report.total_bytes = size_bytes
        self._go_on()

    @property
    def waiting_since_ns(self) -> int | None:
        """Since when the peer owes content."""
        return self._fetcher.waiting_since_ns

    def fetch(self, extents: Sequence[Extent], now_ns: int, then: Fetched) -> None:
        """Ask the peer for content that cannot be read here, on somebody else's account; what the peer lacks
        ends with EIO at once."""
        if any(self._tracker.todo.intersects(*extent) for extent in extents):
            then(None, errno.EIO)
            return
        self._fetcher.ask(extents, now_ns, then)

    def fetched(self, message: Write | Unfetched) -> None:
        """Content that was asked for has come, or cannot be had."""
        self._fetcher.answered(message)

    def written(self, ops: Sequence[WriteOp]) -> None:
        """They are sent to the peer: what is being fetched does not speak for their blocks any more."""
        if not self._fetcher.idle:
            self._fetcher.written(ops)

    # ------------------------------------------------------------------ asking

    def advance(self, now_ns: int, *, peer_has_all: bool) -> None:
        """Go on as far as possible; ``peer_has_all``: nothing is missing there that is not in the stream."""
        if self._standing.phase is not Phase.IN_SYNC:
            return
        if not self.possible:
            self.stop(errno.ENOTSUP)
            return
        if peer_has_all:  # else its copy may be one that is being copied over
            self._fetch(now_ns)
        report = self.report
        if report is None or report.complete:
            return
        if self._answered_ns is not None:
            self._pace(self._answered_ns, now_ns)
            self._answered_ns = None
        if not peer_has_all or now_ns < self._not_before_ns:
            return
        busy = self._pacer.busy(now_ns)
        while self._waiting and self._questions.count < (1 if busy else QUESTIONS_AHEAD):
            level, first, stop = self._waiting.popleft()
            if stop - first > ANSWER_NODES_MAX:
                self._waiting.appendleft((level, first + ANSWER_NODES_MAX, stop))
                stop = first + ANSWER_NODES_MAX
            if busy and level and stop > first + 1:
                self._waiting.appendleft((level, first + 1, stop))
                stop = first + 1
            self._questions.ask(level, first, stop, read=True, now_ns=now_ns, then=self._compare)
        if not (self._waiting or self._questions.count or self._to_fetch or self._repairing):
            self._end(report, now_ns)

    def _pace(self, asked_ns: int, now_ns: int) -> None:
        """A piece was read: how long the guest has the disks for itself."""
        if self._pacer.busy(now_ns):
            waits = PRESSED_WAITS if self._pacer.pressed else BUSY_WAITS
            self._not_before_ns = now_ns + waits * (now_ns - asked_ns)

    def _end(self, report: ScrubReport, now_ns: int) -> None:
        report.complete = True
        report.ended_ns = self._idle_since_ns = now_ns
        report.bytes = report.total_bytes
        seconds = report.seconds(now_ns)
        name = self._standing.name
        self._out.append(
            Emit(ScrubEvent(name, report.total_bytes, seconds, report.findings, report.repaired))
        )
        self._out.extend(Complete(owner, None) for owner in self._owners)
        self._owners.clear()

    # ------------------------------------------------------------------ findings

    def _compare(self, answer: Answer) -> None:
        report = self.report
        if report is None or report.complete:  # `stop`: nothing is said any more of a disk that has failed
            return
        self._answered_ns = answer.asked_ns
        if answer.stop < answer.asked_stop:
            self._waiting.appendleft((answer.level, answer.stop, answer.asked_stop))
        runs = differing_nodes(answer)
        if answer.level == 0:
            # A bad block is told already; its content must not be copied as if it was only a different one.
            bad = {*answer.mine.bad, *answer.theirs.bad}
            for start, end in runs:
                different = [block for block in range(start, end) if block not in bad]
                self._found(report, different, Fault.DIFFERENT)
            return
        limit = min(answer.stop * FAN_OUT, self._tracker.block_count)
        here = {block for block in answer.mine.bad if block < limit}
        there = {block for block in answer.theirs.bad if block < limit}
        self._found(report, sorted(here & there), Fault.BOTH)
        self._found(report, sorted(here - there), Fault.HERE)
        self._found(report, sorted(there - here), Fault.PEER)
        for start, end in reversed(runs):
            stop = min(end * FAN_OUT, self._tracker.block_count)
            self._waiting.appendleft((0, start * FAN_OUT, stop))
        report.bytes = max(report.bytes, min(limit * BLOCK_BYTES, report.total_bytes))

    def _found(self, report: ScrubReport, blocks: Sequence[int], fault: Fault) -> None:
        for block in blocks:
            if report.found is not None and report.findings < FINDINGS_MAX:
                report.found.append(Finding(block, fault))
                event = ScrubFindingEvent(self._standing.name, block, fault.value, repair=report.repair)
                self._out.append(Emit(event))
            report.findings += 1
        if not report.repair or fault is Fault.BOTH:
            return
        if fault is Fault.HERE:
            self._to_fetch.extend(blocks)
        elif blocks:
            self._peer_lacks([Extent(block, block + 1) for block in blocks])
            report.repaired += len(blocks)

    # ------------------------------------------------------------------ repairing here

    def _fetch(self, now_ns: int) -> None:
        while self._to_fetch and self._repairing < REPAIRS_AT_ONCE:
            count = min(len(self._to_fetch), FETCH_BLOCKS_MAX)
            blocks = sorted({self._to_fetch.popleft() for _ in range(count)})
            self._repairing += 1
            extents = [Extent(block, block + 1) for block in blocks]
            self._fetcher.ask(extents, now_ns, partial(self._put_in_place, blocks))

    def _put_in_place(self, blocks: Sequence[int], ops: Sequence[WriteOp] | None, error: int) -> None:
        self._repairing -= 1
        if error == errno.ENOTCONN:  # `peer_lost`: they are asked for again when it is back
            self._to_fetch.extend(blocks)
        if ops:
            self._repairing += 1
            self._will_repair(ops)
            self._out.append(Apply(self._index, Repair(partial(self._repaired, len(ops))), list(ops)))

    def _repaired(self, blocks: int, errnos: Sequence[int] | None) -> None:
        """Blocks were written again, or could not be."""
        self._repairing -= 1
        if self._repairing < 0:
            raise InternalError("a repair was reported that was not asked for")
        if self.report is not None:
            self.report.repaired += blocks if errnos is None else errnos.count(0)
