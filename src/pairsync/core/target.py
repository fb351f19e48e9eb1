"""The standby host's machine for one volume: it applies what the active sends, in its order.

* Before the first byte of a resync is written the superblock says ``SYNCING``: a half overwritten replica
  never passes for a whole one (DESIGN rule 3); but see `core.copier` for what leaves it whole.
* `Applied` leaves when a batch has been applied, `BarrierDone` when a flush has covered all that came before
  the barrier, `Adopted` when the new lineage is durable: nothing is promised before it is so.
* A question about digests is put behind the writes that came before it, and answered for that moment.
* A write of an older term, or out of its turn, is refused (rule 6).
* What waits here is bounded (`core.intake`, `BARRIERS_MAX`): who asks for more breaks the protocol.
* Reports that come after the session has ended belong to writes that were issued in it; they are dropped,
  and the local order of the next session's writes is kept by the shell's queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from pairsync.errors import ArbitrationError, InternalError, ProtocolError

from .dirty import PAGE_BYTES, DirtyMap
from .effects import Apply, DropSession, Effect, Emit, Examine, Flush, SavePages, Send
from .events import InSyncEvent, ResyncEvent, TroubleEvent
from .fetched import StandbyFetches
from .growth import StandbyGrowth
from .intake import Intake
from .messages import (
    Adopt,
    Adopted,
    Applied,
    Barrier,
    BarrierDone,
    Begin,
    Begun,
    Condition,
    Failed,
    Fetch,
    Grow,
    KeepOnly,
    Marked,
    Proof,
    Prove,
    Remember,
    SyncMode,
    Write,
    WriteOp,
)
from .points import TargetPoints
from .questions import DIGEST_BYTES, QUESTIONS_MAX, Examined, node_count
from .setup import VolumeSetup
from .standing import SuperblockWriter
from .superblock import STILL_COUNTS, Superblock
from .tracker import ops_bytes
from .trouble import errno_name
from .units import block_count_of, bounded_runs

__all__ = [
    "BARRIERS_MAX",
    "EXAMINING_MAX",
    "MARKED_EXTENTS_MAX",
    "MARKED_RUNS_MAX",
    "UNAPPLIED_BATCHES_MAX",
    "VolumeTarget",
]

MARKED_EXTENTS_MAX = 1024
"""Runs of blocks in one `Marked` message."""

MARKED_RUNS_MAX = 131_072
"""Runs that the active host is told of in all, some 2 MB, which any window of the link has room for.  A
replica that was written alone, at random, may have millions: then blocks between them are copied too."""

UNAPPLIED_BATCHES_MAX = 98_304
"""Batches received and not applied before the peer is taken for broken.  Its own bound is 65,536 ops, with
what it is copying at most 70,000 messages; a lane takes 131,072 jobs.  For data and ops see `core.intake`."""

BARRIERS_MAX = 16
"""Barriers and requests to adopt that no flush has answered.  An active host has two flushes under way at
most (``core.flushes``) and one request to adopt: a further plan gives up the last one."""

EXAMINING_MAX = 2 * QUESTIONS_MAX
"""Questions about digests that have no answer.  Those that an active host gave up when this one fell behind
are still being looked at when it asks again, after a flush at the earliest."""


class _Token(NamedTuple):
    """What an effect of one session is answered with."""

    session: int
    number: int  # of the write; of a flush: the last write that it covers
    data_bytes: int = 0  # what the write took from the intake
    op_count: int = 0
    milestone: int | None = None  # that the flush gives


class VolumeTarget:
    """See the module."""

    def __init__(
        self, index: int, setup: VolumeSetup, intake: Intake, points: TargetPoints, out: list[Effect]
    ) -> None:
        """``intake`` is shared by the volumes of the guest."""
        self.index = index
        self.points = points
        self.options = setup.options
        self.failed: str | None = None  # why this replica takes nothing any more, until the next session
        self._out = out
        self._intake = intake
        self._writer = SuperblockWriter(index, setup.superblock, out)
        self._milestone = setup.milestone  # above which it would go on if it became active
        self.given = setup.given  # the milestone that it was given last; recorded where digests are kept
        self._own_dirty = setup.recovered  # blocks written here alone in an earlier role, until a resync ends
        self._session = 0  # counts sessions; tokens of earlier ones are stale
        self._begun = False  # a plan was agreed in this session, and what it needs is recorded
        self._planned: SyncMode | None = None  # the last plan of this session, until a request to adopt
        self._asked_to_adopt = False  # in this session: all that came before makes this replica whole
        self.in_sync = False  # a lineage was adopted in this session, and no further plan has come since
        self._received = 0  # number of the last `Write`
        self._applied = 0  # number up to which all is applied
        self._applying = 0  # batches on their way to the disk, of earlier sessions too
        self._barriers: deque[tuple[int, Barrier | Adopt]] = deque()  # and the write each waits for
        self._flushing: list[Barrier | Adopt] = []  # of them, what the running flush will answer
        self._examining = 0  # questions about digests of this session that have no answer yet
        self._fetches = StandbyFetches(index, out)
        self._adopt: Adopt | None = None  # the lineage to take over once all before it is durable
        self._when_settled: Callable[[], None] | None = None  # what the superblock on its way allows
        self.growth = StandbyGrowth(index, self._writer, self._own_dirty, out)

    @property
    def superblock(self) -> Superblock:
        """What this replica is."""
        return self._writer.desired

    @property
    def reached(self) -> int:
        """As `VolumeState.reached`."""
        return max(self._milestone, self.given)

    @property
    def own_dirty(self) -> DirtyMap:
        """Blocks written here in an earlier role that the peer may lack."""
        return self._own_dirty

    @property
    def settled(self) -> bool:
        """Whether nothing is on its way to the superblock, nor to the disk from an earlier session.

        A disk that hangs would gather the writes of one session after the other.
        """
        return self._writer.settled and not self._applying and not self.growth.catching_up

    def open(self, boot_id: str) -> None:
        """The host takes the volume into use as a standby."""
        self._writer.want(replace(self.superblock, boot_id=boot_id))

    def outdated(self, known: bool) -> None:
        """As `Standing.outdated`."""
        self._writer.want(replace(self.superblock, outdated=known))

    # ------------------------------------------------------------------ messages

    def begin(self, message: Begin, agreed: SyncMode) -> None:
        """The active's plan; ``agreed`` is what this host's own comparison allows at the least.

        A further plan comes when this host fell too far behind (`async`); only what was written since it was
        asked to adopt can be missing then, and that request is given up.  Or nothing was to be copied, and
        the digests have told otherwise.
        """
        block, plan = self.superblock, message.plan
        if self._planned not in (None, SyncMode.NOTHING):
            raise ProtocolError(f"volume {block.name!r}: a further plan before the last one was carried out")
        least = SyncMode.INCREMENTAL if self._asked_to_adopt else agreed
        if plan.mode < least:
            raise ProtocolError(
                f"volume {block.name!r}: the active plans {plan.mode.name.lower()}, "
                f"at least {least.name.lower()} is needed"
            )
        self._check_term(message.term)
        # One that still counts may be told otherwise at any moment.
        self._planned = SyncMode.NOTHING if plan.rule == STILL_COUNTS else plan.mode
        self._adopt = None
        self._barriers = deque(each for each in self._barriers if not isinstance(each[1], Adopt))
        self.in_sync = False
        if plan.mode is SyncMode.NOTHING:
            self._begun = True
            self._writer.want(replace(block, term=message.term))
            return
        self._begun = False  # no write before the superblock says SYNCING, or says that it need not
        self._out.append(Emit(ResyncEvent(block.name, plan.mode.name.lower(), plan.rule, 0)))
        syncing = replace(block, term=message.term, condition=Condition.SYNCING, sync_target=plan.target)
        self._settle_with(block if block.stays_whole(message) else syncing, self._send_begun)

    def _send_begun(self) -> None:
        self._begun = True
        runs = bounded_runs(self._own_dirty.runs(), MARKED_RUNS_MAX)
        for first in range(0, len(runs), MARKED_EXTENTS_MAX):
            self._out.append(Send([Marked(self.index, tuple(runs[first : first + MARKED_EXTENTS_MAX]))]))
        self._out.append(Send([Begun(self.index)]))

    def _settle_with(self, superblock: Superblock, then: Callable[[], None]) -> None:
        """Make ``superblock`` durable, then go on; only the last wish counts."""
        self._writer.want(superblock)
        if self._writer.settled:
            self._when_settled = None
            then()
        else:
            self._when_settled = then

    def _check_term(self, term: int) -> None:
        if term < self.superblock.term:
            raise ArbitrationError(f"term {term} is stale: {self.superblock.term} is recorded here")

    def write(self, message: Write) -> None:
        """A batch of the stream."""
        self._check_term(message.term)
        if self.failed is not None:  # the session is about to end: nothing behind the failed write counts
            return
        if not self._begun:
            raise ProtocolError("a write before a plan was agreed")
        if message.number != self._received + 1:
            raise ProtocolError(f"write {message.number} after {self._received}")
        if message.number - self._applied > UNAPPLIED_BATCHES_MAX:
            raise ProtocolError(f"more than {UNAPPLIED_BATCHES_MAX} writes that were not applied")
        size = self.superblock.size_bytes
        for op in message.ops:
            if op.offset + op.length > size:
                raise ProtocolError(f"a write to {op.offset}+{op.length} of a volume of {size} bytes")
        token = _Token(self._session, message.number, ops_bytes(message.ops), len(message.ops))
        self._intake.take(token.data_bytes, token.op_count)
        self._received = message.number
        self._applying += 1
        self._out.append(Apply(self.index, token, message.ops))

    def barrier(self, message: Barrier) -> None:
        """Make durable what came before."""
        self._check_term(message.term)
        self._ask(message)

    def adopt(self, message: Adopt) -> None:
        """Everything that came before makes this replica what ``lineage`` says, once it is durable.

        Writes that the guest flushed while the peer did not count yet were never asked for by a barrier.
        """
        self._check_term(message.term)
        if not self._begun or not message.lineage:
            raise ProtocolError("a lineage to adopt without a plan")
        self._planned = None
        self._asked_to_adopt = True
        self._adopt = message
        self._ask(message)

    def prove(self, message: Prove) -> None:
        """What digests are there, of what came before?"""
        self._check_term(message.term)
        count = node_count(block_count_of(self.superblock.size_bytes), message.level)
        if not self._begun or not self.options.digests:
            raise ProtocolError("a question about digests without a plan, or where none are kept")
        if not message.first < message.stop <= count:
            raise ProtocolError(f"asked for digests {message.first}..{message.stop} of {count}")
        if self._examining >= EXAMINING_MAX:
            raise ProtocolError(f"more than {EXAMINING_MAX} questions about digests at once")
        self._examining += 1
        token = (self._session, message)
        self._out.append(Examine(self.index, token, message.level, message.first, message.stop, message.read))

    def examined(self, token: object, answer: Examined | int) -> None:
        """The digests are there; or why they cannot be had: an errno."""
        session, message = _question_of(token)
        if session != self._session or self.failed is not None:
            return
        self._examining -= 1
        if isinstance(answer, int):
            self._fail(answer, "the digests cannot be read")
            return
        if not 0 < len(answer.digests) <= (message.stop - message.first) * DIGEST_BYTES:
            raise InternalError(f"{len(answer.digests)} bytes of digests for {message}")
        proof = Proof(self.index, message.question, answer.digests, tuple(answer.bad))
        self._out.append(Send([proof]))

    def point(self, message: Remember | KeepOnly) -> None:
        """A moment to remember, or which to remember no longer."""
        self._check_term(message.term)
        if not self.options.digests:
            raise ProtocolError("points, where no digests are kept")
        self.points.take(message, begun=self._begun)

    def grow(self, message: Grow) -> None:
        """The volume is to have another size, once that is recorded here."""
        self._check_term(message.term)
        self.growth.take(message, begun=self._begun)

    def fetch(self, message: Fetch) -> None:
        """What does this replica hold there?"""
        self._check_term(message.term)
        if not self._begun:
            raise ProtocolError("a request for content without a plan")
        self._fetches.take(message, self.superblock.size_bytes)

    def read_done(self, number: int, ops: Sequence[WriteOp]) -> None:
        """Content that was asked for."""
        if self.failed is None:
            self._fetches.read_done(number, ops, self.superblock.term)

    def read_failed(self, number: int, error: int) -> None:
        """It cannot be had."""
        if self.failed is None:
            self._fetches.read_failed(number, error)

    def _ask(self, request: Barrier | Adopt) -> None:
        """Answer ``request`` once a flush has covered all that was received before it."""
        if len(self._barriers) + len(self._flushing) >= BARRIERS_MAX:
            raise ProtocolError(f"more than {BARRIERS_MAX} flushes asked for and not answered")
        self._barriers.append((self._received, request))
        self._flush()

    # ------------------------------------------------------------------ reports

    def applied(self, token: object, errnos: Sequence[int] | None) -> None:
        """A batch was applied, or failed."""
        if not isinstance(token, _Token):
            return
        self._applying -= 1
        self._intake.give_back(token.data_bytes, token.op_count)
        if token.session != self._session or self.failed is not None:
            return
        if errnos is not None and any(errnos):
            self._fail(next(error for error in errnos if error), "a write failed")
            return
        if token.number != self._applied + 1:
            raise InternalError(f"write {token.number} was applied after {self._applied}")
        self._applied = token.number
        self._out.append(Send([Applied(self.index, token.number)]))
        self._flush()

    def _flush(self) -> None:
        if self._flushing or not self._barriers or self._barriers[0][0] > self._applied:
            return
        while self._barriers and self._barriers[0][0] <= self._applied:
            self._flushing.append(self._barriers.popleft()[1])
        digests = any(isinstance(each, Adopt) or each.point > 0 for each in self._flushing)
        given = [each.milestone for each in self._flushing if each.milestone is not None]
        token = _Token(self._session, self._applied, milestone=given[-1] if given else None)
        self._out.append(Flush(self.index, token, digests, token.milestone))

    def flushed(self, token: object, error: int) -> None:
        """A flush has ended."""
        if not isinstance(token, _Token):
            return
        over = token.session != self._session
        if token.milestone is not None and not error:  # it is on the disk, whatever has become of the session
            self.given = max(self.given, token.milestone) if over else token.milestone
        if over or self.failed is not None:
            return
        if error:
            self._fail(error, "a flush failed")
            return
        done, self._flushing = self._flushing, []
        answers = [BarrierDone(self.index, each.barrier) for each in done if isinstance(each, Barrier)]
        if answers:
            self._out.append(Send(answers))
        for request in done:
            if request is self._adopt:
                self._take_over(self._adopt)
        self._flush()

    def _take_over(self, message: Adopt) -> None:
        self._adopt = None
        block = replace(
            self.superblock,
            condition=Condition.CONSISTENT,
            lineage=message.lineage,
            sync_target=None,
            term=message.term,
            peer_in_sync=True,
            map_base=message.lineage[0],
            parted=None,
            outdated=False,
        )
        self._settle_with(block, self._send_adopted)

    def _send_adopted(self) -> None:
        block = self.superblock
        newest = block.lineage[0]
        self.in_sync = True
        self._out.append(Emit(InSyncEvent(block.name, newest.describe())))
        self._out.append(Send([Adopted(self.index, newest)]))
        if self._own_dirty:  # only now: until here the union was still to be copied
            pages = dict.fromkeys(self._own_dirty.page_numbers(), bytes(PAGE_BYTES))
            self._own_dirty.take()
            self._out.append(SavePages(self.index, self, pages, release=(0, 1)))

    def saved(self, error: int) -> None:
        """The bitmap was cleared; a failure leaves bits too many, which costs a little resync."""
        if error:
            reason = f"the dirty bitmap could not be cleared: {errno_name(error)}"
            self._out.append(Emit(TroubleEvent(self.superblock.name, fatal=False, reason=reason)))

    def persisted(self, token: object, error: int) -> None:
        """The superblock is durable, or could not be written."""
        if error:
            self._writer.gave_up(token)
            self._fail(error, "the metadata cannot be written")
            return
        self._writer.persisted(token)
        self.growth.persisted()
        if self._writer.settled and self._when_settled is not None:
            then, self._when_settled = self._when_settled, None
            then()

    def _fail(self, error: int, what: str) -> None:
        """This replica cannot go on: say so and end the session."""
        if self.failed is not None:
            return
        self.failed = f"{what}: {errno_name(error)}"
        self._out.append(Emit(TroubleEvent(self.superblock.name, fatal=False, reason=self.failed)))
        self._out.append(Send([Failed(self.index, error, self.failed)]))
        self._out.append(DropSession(self.failed, refused=True))

    def retry(self) -> None:
        """Try again to write a superblock that could not be written; called before a session begins."""
        self.failed = None
        self._writer.retry()

    def session_over(self) -> None:
        """The session has ended; the next one starts anew."""
        self._session += 1
        self.points.session_over()
        self._begun = self._asked_to_adopt = self.in_sync = False
        self._examining = 0
        self._fetches.session_over()
        self.failed = self._planned = self._adopt = self._when_settled = None
        self._received = self._applied = 0
        self._barriers.clear()
        self._flushing.clear()
        self.growth.session_over()
        self._writer.forget_wishes()  # what only this session wanted must not be written in the next one


def _question_of(token: object) -> tuple[int, Prove]:
    """The session and the question that an answer about digests belongs to."""
    if isinstance(token, tuple) and len(token) == 2 and isinstance(token[1], Prove):
        return token
    raise InternalError(f"an answer to {token!r}, which is no question about digests")
