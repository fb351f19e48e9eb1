"""Arbiter: grants, witness, leases and failure detection of one guest on one host; what the shell talks to.

It is `core.decider`, which knows no time, with a clock around it::

    input, now ──▶ waits that are over ──▶ decider ──▶ waits become deadlines, questions get numbers
                                                   ──▶ what rests on a write waits for it ──▶ effects

**Lease.**  A heartbeat of the owner carries a number; its answer gives the guest the time until so long
after the heartbeat was *sent*.  An answer that comes later gives nothing, and neither does one to a
heartbeat of an earlier life: numbers begin at random.  The lease is looked at before anything else is: no
input is worked on in the belief that it still holds when it does not.  `LeaseUntil` is for the guard, which
acts on its own if this process does not; the guest is to be stopped some time before
(`Timing.yield_after_ns`).

**Promise.**  So long after the receipt of a heartbeat that it has answered, a standby does not take over.
After a start it waits as long as the longest promise that may bind it (`core.promises`): it does not know
what it has promised.

**One failover time.**  Both durations follow from it, each host's from its own.  So every heartbeat and every
answer names the sender's; to one that names another nothing is promised, and its promise is none (rule 10).
Such a peer is put out of the grant, so that no lease is needed, and stays out until the two are the same.

**Waits** end in `tick` alone, all but the lease: what has arrived is worked on first, so give the arbiter
what there is to hear before it is told the time.  One that is noticed late, because this host stood still,
is given another round trip: the others may not have been silent, but we deaf.

**Questions to a witness** (`core.enquiry`).  An answer that comes after its time is looked at all the same,
unless it tells of an older state than is known; it decides nothing.

Times are integer nanoseconds of CLOCK_BOOTTIME.  The order of effects is fixed; see `core.arbitration`.
"""

from __future__ import annotations

from collections.abc import Callable

from pairsync.errors import InternalError

from .acceptor import AcceptorState
from .arbitration import (
    Beat,
    BeatAnswer,
    Discord,
    Effect,
    InForce,
    LeaseUntil,
    Own,
    PeerMessage,
    PersistAcceptor,
    SendPeer,
    WitnessGet,
    WitnessSwap,
    WitnessView,
)
from .backoff import Backoff, Recurrence
from .decider import Decider
from .enquiry import Enquiry
from .grants import Grant, HostId
from .heartbeats import Heartbeats
from .heldback import HeldBack
from .outcomes import AskWitness, Guest, Outcome, Wait, Waiting
from .promises import Promises
from .timing import Timing
from .units import NS_PER_S

__all__ = ["Arbiter"]

HOME_NS_MAX = 600 * NS_PER_S
"""Between two looks whether the preferred witness is back, at the most."""

TICKS_MAX = 64
"""Waits that may end in one tick; more is a loop that nobody sees (DESIGN rule 11)."""


class Arbiter:
    """See the module.  Every input returns the effects to be performed, in order."""

    def __init__(
        self,
        host: HostId,
        peer: HostId,
        acceptor: AcceptorState,
        timing: Timing,
        *,
        witnesses: tuple[str, ...] = (),
        promise_ns: int | None,
        first_number: int,
        fraction: Callable[[], float],
    ) -> None:
        """``promise_ns``: what the memory holds beside ``acceptor`` (`core.acceptor.HostMemory`).

        ``first_number``: 62 random bits; ``fraction``: draws from ``[0, 1)``, for the jitter of pauses.
        """
        self.decider = Decider(host, peer, acceptor, witnesses)
        self.timing = timing
        self._fraction = fraction
        self._held = HeldBack()
        self._home = Recurrence(first_ns=timing.witness_lost_ns, limit_ns=HOME_NS_MAX)
        self._durations_ns = {
            Wait.BEAT: timing.heartbeat_ns,
            Wait.SILENCE: timing.silence_ns,
            Wait.PROBE: timing.witness_probe_ns,
            Wait.LOST: timing.witness_lost_ns,
        }
        self._promises = Promises(promise_ns, timing.promise_ns)
        # Invariant: the waits with a deadline are those of the decider.
        self._deadlines: dict[Wait, int] = {}
        self._late: set[Wait] = set()  # waits that were given more time because they were noticed late
        self._beats = Heartbeats(first_number)
        # When the heartbeat of the lease was sent; also of one that has run out, until the guest is down.
        self._leased_ns: int | None = None
        self._enquiry = Enquiry(first_number, timing.witness_wait_ns)
        self._backoff = Backoff(first_ns=self._attempt_ns, limit_ns=timing.failover_ns)
        self._in_force: InForce | None = None  # as told last
        self._until_ns: int | None = None  # as told last
        self._discord_ns: int | None = None  # the peer's failover time, if it is not ours
        self._peer_asks: bool | None = None  # as the peer has said last
        self.heard_ns: int | None = None
        """When the peer was heard last in this life."""

    # ------------------------------------------------------------------ questions

    @property
    def grant(self) -> Grant | None:
        """The grant in force: decided, and durable here."""
        return None if self._in_force is None else self._in_force.grant

    @property
    def both_in_sync(self) -> bool:
        """Whether the grant in force calls both replicas in sync: either host may own the guest."""
        return self.grant is not None and len(self.grant.in_sync) > 1

    @property
    def peer_excluded(self) -> bool:
        """Whether writes may be acknowledged without the peer now.

        The grant in force excludes the peer, it is the newest, and none that includes it may be decided.
        """
        return self.grant is not None and self.grant == self.decider.base and self.decider.peer_excluded

    def wants_proof(self, term: int) -> bool:
        """Whether this host owns the guest and nobody has vouched for the peer's replica yet (`peer_in`).

        Also where the grant calls it in sync already, say after a restart: only a memory that is vouched for
        may become a voter, or be moved to.  ``term``: of the session that could.  Where it is older than the
        grant's (an override of a host that served), no replica has recorded that, nor could be promoted.
        """
        base = self.decider.base
        recorded = base is not None and term >= base.term
        return recorded and not self.decider.vouched and self.decider.owns and self._discord_ns is None

    @property
    def owner_asks(self) -> bool:
        """Whether this host, which owns the guest, can have the next grant decided at the witness."""
        return not self.decider.witness_lost

    @property
    def standby_asks(self) -> bool:
        """Whether the peer could, as it has said last, by its own look at the witness that votes.

        A peer of an older version does not say: it is taken to, if this host can.
        """
        return self.owner_asks if self._peer_asks is None else self._peer_asks

    def owner_is_silent(self, now_ns: int) -> bool:
        """Whether this host would take over, and the owner has gone on without it by now, or has stopped.

        Not of an owner that was never heard in this life.
        """
        decider, base = self.decider, self.decider.base
        if base is None or base != self.grant or decider.owns or base.owner != decider.register.peer:
            return False
        if not decider.ready or decider.own not in base.voters or decider.own.name not in base.in_sync:
            return False
        return self.heard_ns is not None and now_ns - self.heard_ns >= self.timing.yield_after_ns

    def next_deadline_ns(self) -> int | None:
        """When `tick` has something to do."""
        due_ns = [*self._deadlines.values(), self._enquiry.until_ns, self._promises.next_deadline_ns()]
        return min((each for each in due_ns if each is not None), default=None)

    # ------------------------------------------------------------------ inputs

    def start(self, now_ns: int) -> list[Effect]:
        """The host has come up; first of all inputs, once."""
        self._promises.begin(now_ns)
        out = [] if self._promises.written else self._writes_promise()
        return out + self._done(self.decider.start(), now_ns)

    def _writes_promise(self) -> list[Effect]:
        state = self.decider.register.acceptor
        return self._released(self._held.passes([PersistAcceptor(state, self._promises.longest_ns)]))

    def hears(self, message: PeerMessage, now_ns: int) -> list[Effect]:
        """A message of the peer."""
        out = self._lease_ends(now_ns)
        self.heard_ns = now_ns
        if isinstance(message, Beat | BeatAnswer) and self._in_discord(message, out):
            if isinstance(message, Beat):
                message = message._replace(number=0)
            else:
                message = message._replace(granted=False)
            if self.decider.owns:
                out += self._done(self.decider.peer_out(), now_ns)
        if isinstance(message, BeatAnswer):
            self._peer_asks = message.asks
        sent_ns: int | None = None
        if isinstance(message, BeatAnswer) and message.granted:
            sent_ns = self._beats.sent_ns(message.number)
            if sent_ns is None or now_ns >= sent_ns + self.timing.yield_after_ns:
                message = message._replace(granted=False)
        return out + self._done(self.decider.hears(message), now_ns, sent_ns)

    def answered(self, number: int, witness: str, view: WitnessView, now_ns: int) -> list[Effect]:
        """What ``witness`` holds: the answer to the question of that number."""
        out = self._lease_ends(now_ns)
        self._enquiry.measures(number, now_ns)
        if self._enquiry.is_past(number):
            return out  # another question is open; its answer will be newer
        if self._enquiry.until_ns is None:
            known = self.decider.register.view(witness)
            if known is not None and view.version <= known.version:
                return out
        self._enquiry.until_ns = None
        return out + self._done(self.decider.answered(witness, view), now_ns)

    def unreachable(self, number: int, witness: str, now_ns: int) -> list[Effect]:
        """``witness`` will not answer the question of that number; what it asked for may happen yet."""
        out = self._lease_ends(now_ns)
        if self._enquiry.until_ns is None or number != self._enquiry.number:
            return out
        self._enquiry.until_ns = None
        return out + self._done(self.decider.unreachable(witness), now_ns)

    def persisted(self, now_ns: int) -> list[Effect]:
        """The oldest `PersistAcceptor` that was not reported yet is durable."""
        out = self._lease_ends(now_ns)
        return out + self._released(self._held.persisted())

    def tick(self, now_ns: int) -> list[Effect]:
        """Time has passed; to be called at `next_deadline_ns`, after all that has arrived was given."""
        out = self._lease_ends(now_ns)
        if self._enquiry.until_ns is not None and now_ns >= self._enquiry.until_ns:
            asked = self.decider.register.asking
            self._enquiry.until_ns = None
            if asked is not None:
                out += self._done(self.decider.unreachable(asked), now_ns)
        if self._promises.shrink(now_ns):
            out += self._writes_promise()
        for _ in range(TICKS_MAX):
            due = [(at_ns, wait) for wait, at_ns in self._deadlines.items() if at_ns <= now_ns]
            if not due:
                return out
            at_ns, wait = min(due, key=lambda each: each[0])
            if self._was_late(wait, at_ns, now_ns):
                continue
            out += self._done(self.decider.expired(wait), now_ns)
        raise InternalError("the waits of an arbiter do not come to rest")

    def link_up(self, now_ns: int) -> list[Effect]:
        """The peer can be reached again: greet it at once."""
        out = self._lease_ends(now_ns)
        if Wait.BEAT not in self._deadlines:
            return out
        return out + self._done(self.decider.expired(Wait.BEAT), now_ns)

    def stopped(self, now_ns: int) -> list[Effect]:
        """Nothing of the guest runs here any more: after `Stop`, by the guard, or by itself."""
        out = self._lease_ends(now_ns)
        return out + self._done(self.decider.stopped(), now_ns)

    def peer_is_down(self, now_ns: int) -> list[Effect]:
        """It is proven, by power fencing, that nothing of the guest runs on the peer."""
        out = self._lease_ends(now_ns)
        return out + self._done(self.decider.peer_is_down(), now_ns)

    def is_ready(self, ready: bool, now_ns: int, *, peer_newer: bool = False) -> list[Effect]:
        """Whether the data plane could serve the guest with what this host has (`claims.peer_is_newer`)."""
        out = self._lease_ends(now_ns)
        return out + self._done(self.decider.is_ready(ready, peer_newer=peer_newer), now_ns)

    def peer_out(self, now_ns: int) -> list[Effect]:
        """The data plane wants to go on without the peer's replica; it may once `peer_excluded`."""
        out = self._lease_ends(now_ns)
        return out + self._done(self.decider.peer_out(), now_ns)

    def peer_in(self, now_ns: int) -> tuple[bool, list[Effect]]:
        """The data plane vouches: the peer's replica holds all, and nothing is acknowledged without it.

        False: that cannot be asked for now; try again later.  Otherwise `peer_excluded` is False from now on,
        until `peer_out` was decided.
        """
        if self._discord_ns is not None:
            return False, self._lease_ends(now_ns)
        return self._wish(self.decider.peer_in, now_ns)

    def own_out(self, now_ns: int) -> tuple[bool, list[Effect]]:
        """The data plane wants to serve from the peer's replica alone; False: that is not in sync."""
        return self._wish(self.decider.own_out, now_ns)

    def own_in(self, now_ns: int) -> tuple[bool, list[Effect]]:
        """Like `peer_in`, of this host's own replica."""
        return self._wish(self.decider.own_in, now_ns)

    def _in_discord(self, message: Beat | BeatAnswer, out: list[Effect]) -> bool:
        """Whether the peer's failover time is another one; told when that changes."""
        ours_ns, theirs_ns = self.timing.failover_ns, message.failover_ns
        discord_ns = None if theirs_ns == ours_ns else theirs_ns
        if discord_ns != self._discord_ns:
            self._discord_ns = discord_ns
            out.append(Discord(discord_ns))
        return discord_ns is not None

    def _wish(self, ask: Callable[[], list[Outcome] | None], now_ns: int) -> tuple[bool, list[Effect]]:
        out = self._lease_ends(now_ns)
        outcomes = ask()
        return outcomes is not None, out + self._done(outcomes or [], now_ns)

    def move(self, now_ns: int, *, leaving: bool = False) -> tuple[str, list[Effect]]:
        """The peer is to own the guest; why that is refused, or "".  ``leaving``: our disk has failed."""
        out = self._lease_ends(now_ns)
        refusal, outcomes = self.decider.move(leaving=leaving)
        return refusal, out + self._done(outcomes, now_ns)

    def override(self, operator: str, fork: bytes, now_ns: int, term_seen: int = 0) -> list[Effect]:
        """An operator makes this host the owner, whatever was agreed.

        ``fork``: `FORK_BYTES` random bytes; ``term_seen``: the highest term that its replicas have recorded.
        """
        out = self._lease_ends(now_ns)
        return out + self._done(self.decider.override(operator, fork, term_seen), now_ns)

    # ------------------------------------------------------------------ time

    @property
    def _attempt_ns(self) -> int:
        """A round is taken for stuck after that: the answer of the slower one of peer and witness."""
        voter = self.decider.register.voting_witness()
        witness_ns = self._enquiry.wait_ns("" if voter is None else str(voter.name))
        return witness_ns + 2 * self.timing.delay_ns + self.timing.stall_ns

    def _lease_ends(self, now_ns: int) -> list[Effect]:
        at_ns = self._deadlines.get(Wait.LEASE)
        if at_ns is None or now_ns < at_ns:
            return []
        return self._done(self.decider.expired(Wait.LEASE), now_ns)

    def _was_late(self, wait: Wait, at_ns: int, now_ns: int) -> bool:
        """This host stood still: give those who are waited for another round trip, once."""
        if wait not in {Wait.SILENCE, Wait.PROMISE, Wait.LOST} or wait in self._late:
            self._late.discard(wait)
            return False
        if now_ns - at_ns <= self.timing.stall_ns:
            return False
        self._late.add(wait)
        self._deadlines[wait] = now_ns + self.timing.heartbeat_ns + 2 * self.timing.delay_ns
        return True

    def _begin(self, wait: Wait, now_ns: int, sent_ns: int | None) -> None:
        timing = self.timing
        self._late.discard(wait)
        if wait is Wait.LEASE:
            if sent_ns is None:
                raise InternalError("a lease without a heartbeat that asked for it")
            self._leased_ns = max(sent_ns, self._leased_ns or sent_ns)
            self._deadlines[wait] = self._leased_ns + timing.yield_after_ns
            return
        if wait is Wait.PROMISE:
            self._deadlines[wait] = self._promises.until_ns(now_ns)
            return
        if wait is Wait.HOME:
            duration_ns = self._home.next_ns(now_ns, self._fraction())
        elif wait is Wait.ROUND:
            paused = self.decider.register.paused
            duration_ns = self._backoff.failed(self._fraction()) if paused else self._attempt_ns
        else:
            duration_ns = self._durations_ns[wait]
        self._deadlines[wait] = now_ns + duration_ns

    # ------------------------------------------------------------------ effects

    def _done(self, outcomes: list[Outcome], now_ns: int, sent_ns: int | None = None) -> list[Effect]:
        """What the decider wants, with times and numbers."""
        effects: list[Effect] = []
        for outcome in outcomes:
            if isinstance(outcome, Waiting):
                if outcome.wait in self.decider.waits:
                    self._begin(outcome.wait, now_ns, sent_ns)
            elif isinstance(outcome, AskWitness):
                effects.append(self._asks(outcome, now_ns))
            elif isinstance(outcome, SendPeer) and isinstance(outcome.message, Beat):
                effects.append(SendPeer(self._numbered(outcome.message, now_ns)))
            elif isinstance(outcome, SendPeer) and isinstance(outcome.message, BeatAnswer):
                asks = self.decider.register.reaches_voter()
                answer = outcome.message._replace(failover_ns=self.timing.failover_ns, asks=asks)
                effects.append(SendPeer(answer))
            elif isinstance(outcome, PersistAcceptor):
                effects.append(outcome._replace(promise_ns=self._promises.longest_ns))
            else:
                if isinstance(outcome, InForce):
                    self._backoff.succeeded()
                effects.append(outcome)
        for wait in [each for each in self._deadlines if each not in self.decider.waits]:
            del self._deadlines[wait]
        if Wait.LEASE not in self._deadlines and self.decider.guest is Guest.DOWN:
            self._leased_ns = None
        return self._released(self._held.passes(effects))

    def _numbered(self, beat: Beat, now_ns: int) -> Beat:
        beat = beat._replace(failover_ns=self.timing.failover_ns)
        return beat._replace(number=self._beats.sends(now_ns)) if beat.number else beat

    def _asks(self, question: AskWitness, now_ns: int) -> Effect:
        number = self._enquiry.asks(question.witness, now_ns)
        if question.version is None or question.state is None:
            return WitnessGet(question.witness, number)
        return WitnessSwap(question.witness, number, question.version, question.state)

    def _released(self, effects: list[Effect]) -> list[Effect]:
        """These are done now.  The guard is told of the lease before the guest may run on it, and before
        anybody else hears of a grant that needs one."""
        out: list[Effect] = []
        for effect in effects:
            if isinstance(effect, Own):
                if self.decider.guest is not Guest.UP or self.decider.base != effect.grant:
                    continue  # overtaken while it was held back
                self._tell_lease(out)
            out.append(effect)
            if isinstance(effect, InForce):
                self._in_force = effect
                self._tell_lease(out)
        self._tell_lease(out)
        return out

    def _tell_lease(self, out: list[Effect]) -> None:
        """Without a lease only under a grant that is in force and needs none.

        Also while the guest stops: it may still have to flush, before it moves.
        """
        own = self.decider.own
        if not self.decider.owns or self.decider.guest is Guest.DOWN:
            return
        until_ns: int | None = None
        if self.grant is None or self.grant.decides_without(own):
            if self._leased_ns is None:
                return  # there is none yet: the guest waits for the write
            until_ns = self._leased_ns + self.timing.guard_after_ns
        if until_ns != self._until_ns:
            self._until_ns = until_ns
            out.append(LeaseUntil(until_ns))
