"""The active host's machine for one volume: the write path, its flushes, and what the peer is sent.

A write takes these steps; each arrow is an effect that the shell performs and reports back::

    write ──▶ (accepted?) ──▶ intents durable ──▶ applied here ∥ sent ──▶ applied by the peer ──▶ acknowledged
                waits while        only for blocks      same order on
                a window is        not marked in this   both hosts
                full               generation

* The intent is durable before the write is issued to *either* disk, so that no crash of both hosts at once
  can leave a difference that the dirty map does not show (DESIGN rule 7).
* An acknowledgement needs the local replica and, while the peer is joined and the level is ``sync``, the
  peer's `Applied`; without the peer it needs a durable generation that does not count on it (rule 2).
* A flush of the guest makes durable what was *acknowledged*: see `core.flushes`.

What is taken in is decided by `core.admission`, what the peer lacks is copied by `core.copier`, and whether
it counts is decided by `core.standing`.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from pairsync.errors import ProtocolError

from .admission import Admission
from .closer import Closer
from .copier import Copier
from .effects import Apply, Complete, DropSession, Effect, Emit, Journal, Send
from .ending import Ending
from .events import BehindEvent
from .fetcher import Repair
from .flushes import Flushes, FlushOp
from .growth import Growth
from .limits import VolumeOptions
from .messages import Adopted, VolumePlan, WriteOp
from .points import SourcePoints
from .resync import Found
from .scrubber import Scrubber
from .standing import Phase, Standing
from .tracker import Tracker
from .trouble import TroubleLog, errno_name
from .units import NS_PER_S
from .window import Ticket, Window, ticket_of

__all__ = ["VolumeSource"]


class VolumeSource:
    """See the module.  Times that are passed in never fall."""

    def __init__(
        self,
        index: int,
        tracker: Tracker,
        standing: Standing,
        copier: Copier,
        scrubber: Scrubber,
        growth: Growth,
        window: Window,
        options: VolumeOptions,
        out: list[Effect],
    ) -> None:
        self.index = index
        self.tracker, self.standing = tracker, standing
        self.copier, self.scrubber, self.growth = copier, scrubber, growth
        self.points = SourcePoints(index, standing, out)
        self.options = options
        self.failed: str | None = None  # why nothing is served any more
        self._out = out
        self._flushes = Flushes(index, standing, out, before_barrier=self._send_copied)
        self._closer = Closer(index, tracker, self._flushes, out)
        self._ending = Ending(tracker, standing, self._closer, out)
        self._live: dict[Ticket, None] = {}  # noted and not acknowledged, in order of submission
        self._window = window
        self._admission = Admission(tracker, self._window, options)
        self._held: list[FlushOp] = []  # guest flushes that wait for the permit to go on alone
        self.trouble = TroubleLog(index, standing.name, out)

    # ------------------------------------------------------------------ opening and closing

    def open(self, term: int, boot_id: str) -> None:
        """Make what was recovered durable and become active under ``term``; writes wait until then."""
        self.standing.activate(term, boot_id)
        self._closer.recover()

    @property
    def serving(self) -> bool:
        """Whether writes are taken (they are queued before)."""
        return self._admission.opened and self.failed is None

    def close(self, owner: object, now_ns: int) -> None:
        """Flush, write the exact dirty map and say so; ends in one `Complete`.  No write may follow."""
        if self.failed is not None:
            self._out.append(Complete(owner, [errno.EIO]))
            return
        self._ending.ask(owner)
        self.growth.end(failed=False)
        self.advance(now_ns)

    # ------------------------------------------------------------------ the embedder's side

    @property
    def accepting(self) -> bool:
        """Whether another batch is welcome (it is queued, not refused, if given all the same).

        One that would end with EIO at once is: nobody may wait for room that never comes.
        """
        return self.failed is not None or self._admission.welcome(len(self._live))

    @property
    def inflight_bytes(self) -> int:
        """Data sent and not applied by the peer."""
        return self._window.data_bytes

    def write(self, owner: object, ops: Sequence[WriteOp], now_ns: int) -> None:
        """A batch of the embedder; ends in one `Complete`."""
        if self.failed is not None or self._ending.asked:
            self._out.append(Complete(owner, [errno.EIO] * len(ops)))
            return
        ticket = Ticket(owner, ops, now_ns)
        if self._admission.at_once(len(self._live)):
            self._note(ticket, now_ns)
        else:
            self._admission.waiting.push(ticket)

    def flush(self, owner: object, now_ns: int) -> None:
        """Make durable all that was acknowledged; ends in one `Complete`."""
        if self.failed is not None:
            self._out.append(Complete(owner, [errno.EIO]))
            return
        to_peer = self._admission.sync and self.standing.joined
        closes = self._closer.cut_if_quiet() if to_peer else 0
        self._flushes.request(owner, to_peer=to_peer, closes=closes, now_ns=now_ns)

    # ------------------------------------------------------------------ the write path

    def _note(self, ticket: Ticket, now_ns: int) -> None:
        tracker = self.tracker
        fresh = tracker.note(ticket.ops)
        generation = tracker.open
        ticket.generation = generation.number
        self._live[ticket] = None
        self._closer.touched(now_ns)
        if fresh:
            ticket.intents = fresh
            self._admission.recording(ticket.ops)
            self._out.append(Journal(self.index, ticket, generation.segment, generation.number, fresh))
        else:
            self._release(ticket, now_ns)
        if tracker.full:
            self._closer.cut(now_ns)

    def journaled(self, token: object, error: int, now_ns: int) -> None:
        """The intents of a batch are durable, or could not be written (``error``: an errno)."""
        ticket = ticket_of(token)
        self._admission.recorded(ticket.ops)
        if error:
            self.tracker.applied(ticket.generation)
            self.trouble.failed(f"the write-intent log cannot be written: {errno_name(error)}", now_ns)
            if self._live.pop(ticket, self) is None:
                self._out.extend(ticket.fail(error))
            self.advance(now_ns)
            return
        self.tracker.recorded(ticket.generation, ticket.intents)
        self.standing.recorded(ticket.generation)
        if self.failed is not None:  # it has ended with EIO: it is not issued any more
            self.tracker.applied(ticket.generation)
            return
        self._release(ticket, now_ns)
        self._admit(now_ns)

    def _admit(self, now_ns: int) -> None:
        """Take in what has been waiting, as far as there is room for it now."""
        while (ticket := self._admission.next(len(self._live))) is not None:
            self._note(ticket, now_ns)

    def _release(self, ticket: Ticket, now_ns: int) -> None:
        """Issue the batch to both disks; from here its place in the order is fixed."""
        self.copier.written(ticket.ops)
        self.scrubber.written(ticket.ops)
        if self._admission.falls_behind and self._admission.too_much:
            self._check_lag(now_ns)  # the bound holds for every write, not from tick to tick
        standing = self.standing
        if standing.mirrored and self._admission.mirrors(joined=standing.joined):
            self._send_copied(now_ns)
            self.tracker.mirrored(ticket.ops)
            self._out.append(Send(self._window.send(ticket.ops, ticket, standing.superblock.term, now_ns)))
        else:
            self.tracker.lacking(ticket.ops)
        self._out.append(Apply(self.index, ticket, ticket.ops))

    def applied(self, token: object, errnos: Sequence[int] | None, now_ns: int) -> None:
        """A batch was applied here; ``errnos``: one for each op, if any failed."""
        if isinstance(token, Repair):
            token.then(errnos)
            self._closer.touched(now_ns)  # no write of the guest may come that would ask for its flush
            self.advance(now_ns)
            return
        ticket = ticket_of(token)
        self.tracker.applied(ticket.generation)
        ticket.local = True
        if errnos is not None and any(errnos):
            # What the failed ranges hold here is unknown, and the peer may hold what was asked for: the
            # replicas are made equal again by copying those blocks.
            ticket.errnos = errnos
            self.tracker.lacking(ticket.ops)
            self.trouble.failed(f"a write failed: {errno_name(next(e for e in errnos if e))}", now_ns)
        self._settle(ticket, now_ns)
        self.advance(now_ns)

    def _settle(self, ticket: Ticket, now_ns: int) -> None:
        """Acknowledge the batch if all that it needs is there."""
        if not ticket.local or ticket not in self._live:
            return
        if (ticket.errnos is None or not all(ticket.errnos)) and not self._acknowledgeable(ticket.number):
            return  # an op that succeeded in a batch that failed is acknowledged like any other
        del self._live[ticket]
        self.copier.pacer.foreground(now_ns - ticket.started_ns, now_ns)
        self._out.extend(ticket.complete(ticket.errnos))

    def _acknowledgeable(self, number: int) -> bool:
        """Whether a write that was sent as ``number`` (0: not in this session) may be acknowledged."""
        standing = self.standing
        if standing.joined:
            # A write that was issued before this session was not sent, but stood in `todo`, and a peer joins
            # only when that is empty and durable there: it has that write.
            return not self._admission.sync or number <= self._window.applied_number
        if not standing.may_acknowledge_alone:
            standing.request_alone()
            return False
        return True

    def _settle_all(self, now_ns: int) -> None:
        for ticket in list(self._live):
            self._settle(ticket, now_ns)
        held, self._held = self._held, []
        for op in held:
            self._complete_flush(op)

    # ------------------------------------------------------------------ generations and flushes

    def saved(self, token: object, error: int, now_ns: int) -> None:
        """Bitmap pages are durable, or could not be written."""
        if error:
            self.abandon(f"the dirty bitmap cannot be written: {errno_name(error)}", fatal=True)
            return
        if not self._closer.saved(token):
            self.copier.saved(token, now_ns)
        self._check_opened()
        self.advance(now_ns)

    def _check_opened(self) -> None:
        if not self._admission.opened and not self._closer.saving and self.standing.settled:
            self._admission.opened = True

    def flushed(self, token: object, error: int, now_ns: int) -> None:
        """A local flush has ended."""
        if error:
            # After a failed flush the kernel may have dropped what it could not write: nothing here can be
            # trusted any more, and trying again would report success for data that is gone.
            self.abandon(f"a flush failed: {errno_name(error)}", fatal=True)
            return
        if self.failed is None:
            self._flush_step(self._flushes.local_done(token), now_ns)

    def peer_flushed(self, barrier: int, now_ns: int) -> None:
        """`BarrierDone` arrived."""
        if self.failed is None:
            self._flush_step(self._flushes.peer_done(barrier), now_ns)

    def _flush_step(self, op: FlushOp, now_ns: int) -> None:
        if not op.done:
            return
        self._flushes.finished(op, to_peer=self._admission.sync and self.standing.joined, now_ns=now_ns)
        self._closer.flush_finished(op)
        self._complete_flush(op)
        self.advance(now_ns)

    def _complete_flush(self, op: FlushOp) -> None:
        """Tell the guest, unless the peer that it counted on is gone and the permit is not durable yet."""
        if not op.owners:
            return
        if not (op.peer_covered or self.standing.joined or self.standing.may_acknowledge_alone):
            self.standing.request_alone()
            self._held.append(op)
            return
        self._out.extend(Complete(owner, None) for owner in op.owners)
        op.owners = []

    # ------------------------------------------------------------------ the peer

    def begin(self, plan: VolumePlan, *, blank: bool, now_ns: int) -> None:
        """A session has begun, and ``plan`` was agreed."""
        self.copier.begin(plan, blank=blank, now_ns=now_ns)
        self.advance(now_ns)

    def begun(self, now_ns: int) -> None:
        """The peer is ready to be written to."""
        self.copier.begun(now_ns)
        self.advance(now_ns)

    def peer_applied(self, number: int, now_ns: int) -> None:
        """The peer holds everything sent up to ``number``."""
        for ticket, data_bytes in self._window.applied(number, now_ns):
            if ticket is None:
                self.copier.arrived(data_bytes)
            else:
                self._settle(ticket, now_ns)
        if not self._admission.sync:  # the bound on the lag is that of ``async``
            self._admission.look(now_ns, joined=self.standing.joined)
        self.advance(now_ns)

    def adopted(self, message: Adopted, now_ns: int) -> None:
        """The peer has taken the lineage over."""
        if message.generation in self.standing.superblock.lineage[1:]:
            return  # it had adopted before it heard that it fell too far behind
        if not self.standing.adopted(message.generation):
            raise ProtocolError(f"the peer adopted {message.generation.describe()}, which is not in force")
        self.copier.adopted()
        self._settle_all(now_ns)  # a peer that never left holds what was waiting for the permit to do without
        self.advance(now_ns)

    def persisted(self, token: object, error: int, now_ns: int) -> None:
        """The superblock is durable, or could not be written."""
        if error:
            self.abandon(f"the metadata cannot be written: {errno_name(error)}", fatal=True)
            return
        self.standing.persisted(token)
        self.growth.persisted()
        self._check_opened()
        self._settle_all(now_ns)
        self.advance(now_ns)

    def permitted(self, now_ns: int) -> None:
        """The grant register has said whether the guest may go on without its peer."""
        self.standing.permitted()
        self._settle_all(now_ns)
        self.advance(now_ns)

    def peer_lost(self, now_ns: int) -> None:
        """The session is over."""
        if self.standing.phase is not Phase.ABSENT:
            self._part(Phase.ABSENT)
        self._window.reset()
        self.growth.peer_lost()
        self._admission.look(now_ns, joined=self.standing.joined)
        for ticket in self._live:
            ticket.number = 0
        for op in self._flushes.peer_lost():
            self._flush_step(op, now_ns)
        self._settle_all(now_ns)
        self.advance(now_ns)

    def _part(self, phase: Phase) -> None:
        at_once = bool(self._live) or self.tracker.unflushed or self._flushes.any
        self.tracker.peer_lost()
        self.copier.stop()
        self.scrubber.peer_lost()
        self.standing.leave(phase, at_once=at_once)

    # ------------------------------------------------------------------ progress

    def advance(self, now_ns: int) -> None:
        """Do whatever has become possible; called after every report."""
        if self.failed is not None:
            return
        if self.copier.overtaken:
            self._part(Phase.BEHIND)
            self.copier.begin_again("went-on-alone", now_ns)
        if self.tracker.closing is not None:
            self._closer.drain(now_ns)
        if self._admission.waiting:
            self._admit(now_ns)
        if self.tracker.full or self.copier.finishing:
            self._closer.cut(now_ns)
        asks = self.growth.idle or self.growth.advance(now_ns)
        if asks and not self.copier.idle and self.standing.phase is not Phase.ABSENT:
            room = self._admission.room_to_copy and not self._ending.asked  # the next start goes on with it
            self.copier.advance(now_ns, room=room)
        if asks and not self.scrubber.idle:
            self.scrubber.advance(now_ns, peer_has_all=self.copier.at_rest)
        if not self.points.idle:
            self.points.advance(now_ns, peer_has_all=self.copier.at_rest)
        if self._ending.asked:
            self._ending.advance(now_ns, quiet=not (self._live or self._admission.waiting))

    def read_done(self, number: int, found: Found, now_ns: int) -> None:
        """A resync read has ended."""
        self.copier.found(number, found)
        self.scrubber.written(found.ops)  # what the peer gets now is newer than what was asked of it
        self._send_copied(now_ns, all_of_it=False)
        self.advance(now_ns)

    def _send_copied(self, now_ns: int, *, all_of_it: bool = True) -> None:
        if ops := self.copier.take_ready(all_of_it=all_of_it):
            if self.standing.phase is Phase.IN_SYNC:  # a repair: no resync will ask for its flush
                self._closer.touched(now_ns)
            self._out.append(Send(self._window.send(ops, None, self.standing.superblock.term, now_ns)))

    def tick(self, now_ns: int) -> None:
        """Time has passed: bounds, deadlines, flushes that are due; at least every half second."""
        options, standing = self.options, self.standing
        if self.failed is not None:
            return
        if self._closer.due(now_ns, options.flush_after_ns):
            self._closer.cut(now_ns)
        if standing.phase is Phase.ABSENT:
            return
        self.scrubber.tick(options.scrub_interval_ns, now_ns)
        self._check_lag(now_ns)
        waits = (self.copier, self.scrubber, self.growth)
        asked = [self._flushes.oldest_peer_wait_ns(), *(each.waiting_since_ns for each in waits)]
        since_ns = self._window.owed_since_ns(min((ns for ns in asked if ns is not None), default=None))
        if since_ns is not None and now_ns - since_ns > options.peer_deadline_ns:
            reason = f"the peer owes an answer for more than {options.peer_deadline_ns / NS_PER_S:g} s"
            self._out.append(DropSession(reason, refused=True))
        self.advance(now_ns)

    def _check_lag(self, now_ns: int) -> None:
        """``async``: leave a peer that lags by more than the bound; take it back when it has caught up."""
        standing, window = self.standing, self._window
        too_far = self._admission.look(now_ns, joined=self.standing.joined)
        if standing.phase is Phase.BEHIND and window.data_bytes < self.options.lag_bytes // 4:
            self.copier.begin_again("fell-behind", now_ns)
            self.advance(now_ns)
        elif too_far and self._admission.falls_behind and standing.joined:
            self._out.append(Emit(BehindEvent(standing.name, window.data_bytes, window.lag_ns(now_ns))))
            self._part(Phase.BEHIND)
            self._settle_all(now_ns)

    def abandon(self, reason: str, *, fatal: bool = False) -> None:
        """Serve nothing any more: every request ends with EIO; ``fatal``: something here has failed."""
        if self.failed is not None:
            return
        self.failed = reason
        if fatal:
            self.trouble.fatal(reason)
        self.scrubber.stop(errno.EIO)
        self.growth.end(failed=True)
        for ticket in (*self._live, *self._admission.waiting.clear()):
            self._out.extend(ticket.fail(errno.EIO))
        self._live.clear()
        held, self._held = [owner for op in self._held for owner in op.owners], []
        owners = [*self._flushes.abort(), *self._ending.give_up(), *self.points.give_up(), *held]
        self._out.extend(Complete(owner, [errno.EIO]) for owner in owners)
        if fatal:
            self._out.append(DropSession(reason, refused=True))
