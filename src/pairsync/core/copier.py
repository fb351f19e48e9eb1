"""Copier: how the active host brings the peer's replica of one volume to its own state.

::

    session ──▶ FULL: find what is allocated ──▶ bitmap durable ──▶ map base durable ──┐
            └─▶ INCREMENTAL ───────────────────────────────────────────────────────────┴▶ Begin
    Begin ──Begun──▶ reads ──▶ resync writes ──▶ todo empty, all durable there ──▶ digests equal ──▶ Adopt
    (NOTHING: the digests are asked for at once)   ▲                                 │
                                                   └── bitmap durable ◀── blocks that differ

Before a full copy begins, the dirty map (everything) is durable and the superblock says that the map starts
here: whatever is interrupted later, the next session finds in the map what is still missing.

From Begun on the map begins with the generation that the peer is brought to.  Of what was written before, it
holds what was not copied yet: too little for a peer that is put back, and too little to say what this host
has written on its own, should it have to give way to that one (`core.truths`).

Labels and dirty maps say what to copy; that nothing else differs is proven before the peer counts
(`core.prover`).  What a proof or a scrub has found is durable in the map before any of it is sent: a peer
that loses its power may keep the digest of a block and not the block, which no proof would find again.  So is
what a guest could not write because its intent was not recorded (`Tracker.loose`).

What was read here and is not what its digest says is not sent (`core.doubts`).

**A peer that still counts** (`core.superblock`).  Where grants are arbitrated, a peer may be back before it
was put out.  Until the permit has come nothing is acknowledged without it: at level ``sync`` it has all that
ever was, and so has this host.  So each of its blocks holds enough, before it is overwritten and after, and
its replica may be promoted in the midst of the copy: it does not call itself a mixture.  If the permit comes
meanwhile, a further plan is sent before anything is acknowledged that the peer may lack.

At level ``async`` it lacks writes that were acknowledged, and would get later ones before earlier ones.  An
owner that was begun anew may have lost, unflushed, what the peer has; what its guest writes by what it finds
here would stand there beside what it did not find, as on no disk ever.  Then the peer is a mixture.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence

from pairsync.errors import InternalError, ProtocolError

from .doubts import Doubts
from .effects import DropSession, Effect, Emit, MapAllocation, Read, SavePages, Send
from .events import DifferenceEvent, ResyncEvent, TroubleEvent
from .fetcher import Fetcher
from .lineage import SAME_GENERATION
from .messages import Adopt, Begin, SyncMode, VolumePlan, WriteOp
from .prover import Prover
from .questions import Examined, Questions
from .resync import Found, Pacer, Progress, ResyncSource, cut_out
from .standing import Phase, Standing
from .superblock import STILL_COUNTS
from .tracker import Tracker, ops_bytes
from .trouble import errno_name
from .units import BLOCK_BYTES, KIB, Extent

__all__ = ["PROOF_ROUNDS_MAX", "Copier"]

READY_BYTES = 256 * KIB
READY_OPS = 256
"""What is worth a message: beyond that its fixed costs (a frame, a write, an answer) are small."""

PROOF_ROUNDS_MAX = 4
"""Proofs of one session that find a difference.  The first says that a dirty map was wrong, further ones that
a disk or one of us is; that is for a person to know, and the session ends (DESIGN rule 11)."""


class _Stage(enum.Enum):
    IDLE = "idle"
    MAPPING = "mapping"  # waiting for what is allocated
    SAVING = "saving"  # waiting for the bitmap: all that is allocated
    BASING = "basing"  # waiting for the superblock: the map base, and that the peer is not in sync
    BEGINNING = "beginning"  # waiting for Begun
    COPYING = "copying"
    PROVING = "proving"  # nothing is missing: waiting for digests
    KEEPING = "keeping"  # waiting for the bitmap: blocks that differ
    ADOPTING = "adopting"  # waiting for Adopted


_IDLE, _COPYING = _Stage.IDLE, _Stage.COPYING  # looked up once, see `core.tracker`: asked at each write


class Copier:
    """See the module."""

    def __init__(
        self,
        index: int,
        size_bytes: int,
        tracker: Tracker,
        standing: Standing,
        questions: Questions,
        fetcher: Fetcher,
        pacer: Pacer,
        out: list[Effect],
        *,
        sync: bool = True,
    ) -> None:
        """``sync``: nothing is acknowledged that a peer in sync lacks."""
        self.pacer = pacer
        self._sync = sync
        self._index = index
        self._size_bytes = size_bytes
        self._tracker = tracker
        self._standing = standing
        self._out = out
        self._resync = ResyncSource(tracker.todo, pacer)
        self._prover = Prover(tracker, questions)
        self._doubts = Doubts(
            index, tracker, standing, questions, fetcher, self._resync.release, self._peer_should_have, out
        )
        self.questions = questions
        self.proves = False  # whether both hosts keep digests; set before a session begins
        self._rounds = 0  # proofs of this session that have found a difference
        self._stage = _Stage.IDLE
        self._plan: VolumePlan | None = None
        self._token: object = None  # of the mapping that is awaited; others are stale
        # The last pages that `want` had saved, in an earlier session perhaps: until they are durable nothing
        # is read.
        self._saving: dict[int, bytes] | None = None
        self._ready: list[WriteOp] = []  # found, not sent yet: scattered blocks share a message
        self._ready_bytes = 0  # data in it
        self._waiting_since_ns: int | None = None  # since when the peer owes Begun or Adopted
        self._gave_up = False  # in this session, which is about to end

    # ------------------------------------------------------------------ beginning

    def begin(self, plan: VolumePlan, *, blank: bool, now_ns: int) -> None:
        """A session has begun with ``plan``; ``blank``: the peer's replica reads as zero everywhere."""
        self._rounds = 0
        self._begin(plan, blank=blank, now_ns=now_ns)

    def begin_again(self, rule: str, now_ns: int) -> None:
        """The peer, whose session goes on, is behind after all."""
        plan = VolumePlan(SyncMode.INCREMENTAL, rule, self._standing.newest)
        self._begin(plan, blank=False, now_ns=now_ns)

    def _begin(self, plan: VolumePlan, *, blank: bool, now_ns: int) -> None:
        self._standing.prepare()
        mode, rule = plan.mode, plan.rule
        if mode is SyncMode.NOTHING and self._tracker.dirty():
            mode = SyncMode.INCREMENTAL
        same = mode is SyncMode.INCREMENTAL and rule == SAME_GENERATION
        if same and self._sync and self._standing.still_counts:
            rule = STILL_COUNTS
        self._plan = VolumePlan(mode, rule, plan.target)
        if mode is SyncMode.FULL:
            self._stage = _Stage.MAPPING
            if blank:
                self._token = object()
                self._out.append(MapAllocation(self._index, self._token))
            else:
                self._stage = _Stage.SAVING
                self.want([(0, self._tracker.block_count)])
        elif mode is SyncMode.NOTHING or rule == STILL_COUNTS:
            self._send_begin(now_ns)
        else:
            self._base()

    def grow(self, size_bytes: int) -> None:
        """The volume has that size now, and so has its tracker; a proof covers what was added too."""
        self._size_bytes = size_bytes
        self._resync.grow()
        if self._stage is _Stage.PROVING:
            self._prover.start()

    def mapped(self, token: object, runs: Sequence[tuple[int, int]]) -> None:
        """What is allocated has been found out."""
        if self._stage is _Stage.MAPPING and token is self._token:
            self._stage = _Stage.SAVING
            self.want(runs)

    def want(self, runs: Iterable[tuple[int, int]]) -> None:
        """The peer needs these blocks; no map or log on disk says so yet."""
        self._tracker.want(runs)
        self._saving = pages = self._tracker.pages_to_save()
        self._out.append(SavePages(self._index, pages, pages))

    def saved(self, token: object, now_ns: int) -> None:
        """Bitmap pages are durable, and all that were asked for before."""
        if token is not self._saving:
            return
        self._saving = None
        if self._stage is _Stage.SAVING:
            self._standing.map_begins()
            self._base()
        elif self._stage is _Stage.KEEPING:
            self._copy_differences(now_ns)

    def _base(self) -> None:
        """The peer is about to be overwritten: no superblock here may call it in sync any more by then."""
        self._stage = _Stage.BASING
        self._standing.request_alone()

    def _send_begin(self, now_ns: int) -> None:
        plan = self._plan
        if plan is None:
            raise InternalError("no plan to begin")
        if plan.mode is not SyncMode.NOTHING and plan.rule != STILL_COUNTS:
            # What was agreed, but towards the generation that `_base` may have opened since.
            plan = self._plan = VolumePlan(plan.mode, plan.rule, self._standing.newest)
        dirty = self._tracker.dirty().count
        term = self._standing.superblock.term
        self._out.append(Send([Begin(term, self._index, plan)]))
        if plan.mode is SyncMode.NOTHING:
            # The peer has left no trace, and need not leave one while its digests are asked for: it is sent
            # every write in order, so acknowledgements may as well wait for it.
            self._standing.begun()
            self._standing.adopt()
            self._prove(now_ns)
            return
        self._waiting_since_ns = now_ns
        self._stage = _Stage.BEGINNING
        self._out.append(Emit(ResyncEvent(self._standing.name, plan.mode.name.lower(), plan.rule, dirty)))

    @property
    def overtaken(self) -> bool:
        """Whether a peer is written to as one that still counts, and does no more: it needs another plan."""
        plan = self._plan
        if plan is None or plan.rule != STILL_COUNTS or not self._standing.mirrored:
            return False
        return plan.target != self._standing.newest

    def marked(self, extents: Sequence[tuple[int, int]]) -> None:
        """The peer's own dirty blocks: the union is copied."""
        for start, stop in extents:
            if not 0 <= start < stop <= self._tracker.block_count:
                raise ProtocolError(f"the peer marks blocks {start}..{stop} of {self._tracker.block_count}")
        self._tracker.want(extents)

    def begun(self, now_ns: int) -> None:
        """The peer is ready to be written to."""
        if self._stage is not _Stage.BEGINNING:
            raise ProtocolError("the peer answered a plan that was not sent")
        self._stage = _Stage.COPYING
        self._waiting_since_ns = None
        if not (self._plan and self._plan.rule == STILL_COUNTS):
            self._standing.map_begins()
        self._standing.begun()
        self._resync.start(now_ns)

    def stop(self) -> None:
        """The session is over, or begins again."""
        self._stage = _Stage.IDLE
        self._plan = self._token = None
        self._ready, self._ready_bytes = [], 0  # its blocks are "sent" without a flush: they become todo
        self._resync.stop()
        self._doubts.stop()
        self._prover.forget()
        self._waiting_since_ns = None
        self._gave_up = False

    @property
    def waiting_since_ns(self) -> int | None:
        """Since when the peer owes Begun, Adopted or digests."""
        return self.questions.waiting_since_ns if self.questions.count else self._waiting_since_ns

    # ------------------------------------------------------------------ copying

    def advance(self, now_ns: int, *, room: bool) -> None:
        """Go on as far as possible; ``room``: the stream has room for more data."""
        if self._gave_up:
            return
        if self._stage is _Stage.BASING and self._standing.settled and self._saving is None:
            self._send_begin(now_ns)
        if self._tracker.loose and self._standing.mirrored and self._saving is None:
            self.want(())
        may_read = self._standing.mirrored and self._saving is None
        if may_read and room and self._tracker.todo and not self._doubts.full:
            for ticket in self._resync.next_reads(now_ns):
                self._out.append(Read(self._index, *ticket))
        if self._doubts:
            self._doubts.advance(now_ns, proves=self.proves)
            if (reason := self._doubts.hopeless()) is not None:
                self._give_up(reason)
        if self._stage is _Stage.COPYING and self._nothing_missing():
            self._prove(now_ns)
        elif self._stage is _Stage.PROVING:
            self._advance_proof(now_ns)

    @property
    def idle(self) -> bool:
        """Whether `advance` would find nothing to do."""
        return self._stage is _IDLE and not self._tracker.todo

    @property
    def at_rest(self) -> bool:
        """Whether the peer lacks nothing that is not in the stream, and nothing is being proven."""
        return self.idle and not self._resync.reading and not self._ready

    def examined(self, token: object, answer: Examined | int) -> None:
        """Digests of this replica are there, or why they cannot be had: an errno."""
        if isinstance(answer, int):
            self._give_up(f"nothing can be proven: {errno_name(answer)}")
        else:
            self.questions.examined(token, answer)

    def _peer_should_have(self, block: int) -> bool:
        """Whether the peer is taken to hold what was last written to a block of ``todo``."""
        return self._standing.phase is Phase.IN_SYNC or block in self._prover.found

    def _give_up(self, reason: str) -> None:
        """This session leads to nothing."""
        if not self._gave_up:
            self._gave_up = True
            self._out.append(Emit(TroubleEvent(self._standing.name, fatal=False, reason=reason)))
            self._out.append(DropSession(reason, refused=True))

    @property
    def finishing(self) -> bool:
        """Whether all has been sent, and only a flush of what was sent is missing."""
        todo, sent = self._tracker.todo, self._tracker.open.sent
        return self._stage is _COPYING and bool(sent) and not (todo or self._resync.reading)

    def _nothing_missing(self) -> bool:
        tracker = self._tracker
        if tracker.todo or self._resync.reading or self._ready or tracker.open.sent:
            return False
        return tracker.closing is None or not tracker.closing.sent

    def _prove(self, now_ns: int) -> None:
        """The peer lacks nothing, as far as is known here."""
        if not self.proves:
            self._stage = _Stage.COPYING
            self._adopt(now_ns)
            return
        self._stage = _Stage.PROVING
        self._prover.start()
        self._advance_proof(now_ns)

    def _advance_proof(self, now_ns: int) -> None:
        prover = self._prover
        if not prover.finished:
            if not self._tracker.todo:
                prover.advance(now_ns)
                return
            if self.questions.count:
                return  # what is being asked is answered first
        if prover.differing:
            self._keep_differences()
        elif self._tracker.todo:  # a write failed here: what it has left has to be copied first
            self._stage = _Stage.COPYING
        else:
            self._adopt(now_ns)

    def _keep_differences(self) -> None:
        """Blocks differ that no dirty map held."""
        differing, name = self._prover.differing, self._standing.name
        self._out.append(Emit(DifferenceEvent(name, differing.count, next(differing.runs()).start)))
        self._rounds += 1
        if self._rounds >= PROOF_ROUNDS_MAX:
            self._give_up(f"{name}: blocks differ again and again, {differing.count} of them now")
        else:
            self._stage = _Stage.KEEPING
            self.want(differing.runs())

    def _copy_differences(self, now_ns: int) -> None:
        """The dirty map holds them."""
        plan = self._plan
        if plan is not None and (plan.mode is SyncMode.NOTHING or plan.rule == STILL_COUNTS):
            self._standing.leave(Phase.BEHIND, at_once=True)
            self.begin_again("digests-differ", now_ns)
        else:
            self._stage = _Stage.COPYING

    def _adopt(self, now_ns: int) -> None:
        """Have the peer take the lineage over, once that is recorded here: a permit to go on alone that came
        while it was copied to has begun a new generation, which would be the peer's alone if that failed."""
        if not self._standing.settled:
            return
        self._stage = _Stage.ADOPTING
        if not self._standing.joined:
            self._standing.adopt()
        block, milestone = self._standing.superblock, self._standing.give()
        self._out.append(Send([Adopt(block.term, self._index, block.lineage, milestone)]))
        self._waiting_since_ns = now_ns

    def adopted(self) -> None:
        """The peer has taken the lineage over."""
        self._stage = _Stage.IDLE
        self._waiting_since_ns = None
        self._resync.stop_counting()

    def written(self, ops: Sequence[WriteOp]) -> None:
        """A live write is issued: reads under way do not speak for its blocks."""
        if self._doubts:
            self._doubts.written(ops)
        if not self._resync.reading:
            return
        for op in ops:
            if op.length > 0:
                start = op.offset // BLOCK_BYTES
                stop = (op.offset + op.length - 1) // BLOCK_BYTES + 1
                self._resync.written(Extent(start, stop))

    def found(self, number: int, found: Found) -> None:
        """A read has ended; what of it is to be sent is kept ready."""
        runs = self._resync.read_done(number, found)
        if runs is not None and found.wrong:
            self._doubts.add([each for each in found.wrong if each.block in self._resync.aside])
        if not runs:
            return
        parts = list(cut_out(found.ops, runs, self._size_bytes))
        data_bytes = ops_bytes(parts)
        self._resync.sent(data_bytes)
        self._tracker.resynced(runs, data_bytes)
        self._ready += parts
        self._ready_bytes += data_bytes

    def take_ready(self, *, all_of_it: bool) -> list[WriteOp]:
        """What is ready to be sent, once it is worth a message or nothing more is being read.

        ``all_of_it``: now.  The caller must ask so before it sends a live write or a barrier: in the stream
        what was read earlier stands before what was written later (else older content would overwrite
        newer), and a flush covers only what stands before it.
        """
        if not self._ready:
            return []
        enough = self._ready_bytes >= READY_BYTES or len(self._ready) >= READY_OPS
        if not (all_of_it or enough or not self._resync.reading):
            return []
        ready, self._ready, self._ready_bytes = self._ready, [], 0
        return ready

    def read_failed(self, number: int, error: int) -> None:
        """A read failed: without the source's content the copy cannot be completed."""
        if self._resync.read_failed(number):
            self._give_up(f"cannot read what the peer lacks: {errno_name(error)}")

    def arrived(self, data_bytes: int) -> None:
        """The peer has applied that much of the resync."""
        self._resync.arrived(data_bytes)

    def progress(self, now_ns: int) -> Progress | None:
        """How far the resync is; None while there is none."""
        return self._resync.progress(now_ns)
