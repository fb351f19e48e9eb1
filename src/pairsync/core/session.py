"""Session: the thin router between one guest's volumes and the peer.

It introduces this host, compares what both have lived through (`core.lineage`), and hands each message and
each report to the machine of its volume.  It decides nothing about data.

::

    OFFLINE ──connected──▶ GREETING ──Introduce, plan agreed──▶ RUNNING ──lost──▶ OFFLINE
                              └── refused, or a rule broken ──▶ LEAVING (until the link reports the loss)

A guest with a failed volume refuses every session, so that the peer hears why.  So does an active host whose
replicas turn out to be older than the standby's (`lineage.outdated_by`): what it would serve is not what the
guest has written.  It fails, or, where grants are arbitrated, serves nothing, and leaves the guest to a peer
that may own it (`core.claims`).

Two standbys stay in GREETING: whichever of them becomes the owner begins a new session.

After a refusal or a failure the next session does not begin at once: the wait doubles from one second to a
minute and is forgotten after a session that held for that long (DESIGN rule 11), or was in sync when the
peer's disk failed: who mends that waits ever longer by himself.

Whatever the peer sends, the router raises nothing: a message that breaks the protocol or a rule ends the
session with its reason, and nothing of it is applied.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import replace

from pairsync.errors import ArbitrationError, ProtocolError

from .assembly import make_source, make_target, source_state, target_state
from .effects import DropSession, Effect, Emit, Send
from .events import PeerEvent, RefusedEvent
from .intake import Intake
from .lineage import NO_OWNER, WHAT_NOW, Decision, Verdict, outdated_by, plan_session
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
    Generation,
    Grow,
    Grown,
    Introduce,
    KeepOnly,
    Leave,
    Marked,
    Message,
    Proof,
    Prove,
    Remember,
    Remembered,
    Role,
    Unfetched,
    VolumePlan,
    Write,
)
from .permit import Permit
from .reports import Reports
from .setup import VolumeSetup
from .source import VolumeSource
from .standing import Phase, Standing
from .target import VolumeTarget
from .units import NS_PER_S
from .window import Window

__all__ = ["Session", "SessionPhase"]

HOLD_OFF_NS_MIN = 1 * NS_PER_S
HOLD_OFF_NS_MAX = 60 * NS_PER_S
"""Bounds of the wait after a refused or failed session."""

GREETING_NS_MAX = 70 * NS_PER_S
"""How long the peer may take to introduce itself: longer than its own longest wait."""


class SessionPhase(enum.Enum):
    """See the module."""

    OFFLINE = "offline"
    GREETING = "greeting"
    RUNNING = "running"
    LEAVING = "leaving"


_RUNNING, _LEAVING, _ACTIVE = SessionPhase.RUNNING, SessionPhase.LEAVING, Role.ACTIVE  # see `core.tracker`


class Session(Reports):
    """One guest on one host; pure.  Effects are taken with `take` after every call."""

    def __init__(
        self,
        *,
        guest: str,
        pair_id: bytes,
        role: Role,
        term: int,
        boot_id: str,
        volumes: Sequence[VolumeSetup],
        draw_tag: Callable[[], int],
        arbitrated: bool = False,
    ) -> None:
        """``arbitrated``: the owner goes on without its peer only when it is `permitted` to."""
        self.guest = guest
        self.pair_id = pair_id
        self.role = role
        self._term = term
        self.phase = SessionPhase.OFFLINE
        self.refusal: str | None = None  # why the last session was refused, until one runs again
        self.sources: list[VolumeSource] = []  # active only, one a volume
        self.targets: list[VolumeTarget] = []  # standby only, one a volume
        self._out: list[Effect] = []
        self._hold_off_ns = 0  # length of the last wait; 0 after a session that held
        self._not_before_ns = 0  # no session begins before
        self._since_ns = 0  # when the present phase began
        self._connected = False  # the link has a session
        self._ran = False  # in it both hosts agreed on a plan
        self.peer: Introduce | None = None  # what the peer said that it is, in this session of the link
        self.met: Introduce | None = None  # what it said last, in any session
        self._newer = ""  # why the peer has newer replicas, as met last in this life
        self._plans: tuple[VolumePlan, ...] = ()
        self._arbitrated = arbitrated
        self._permit = Permit(self._out, alone=not arbitrated)
        self._given = [setup.given for setup in volumes]
        self.abandoned = False
        """The guest does not run here any more: see `abandon`."""
        windows: list[Window] = []  # of all volumes, whose messages share the stream
        intake = Intake()  # of all volumes, which share this host's memory
        for index, setup in enumerate(volumes):
            if role is Role.ACTIVE:
                window = Window(index, windows)
                self.sources.append(make_source(index, setup, window, draw_tag, self._permit, self._out))
            else:
                self.targets.append(make_target(index, setup, intake, self._out))
        for source in self.sources:
            source.open(term, boot_id)
        for target in self.targets:
            target.open(boot_id)

    @property
    def term(self) -> int:
        """The highest term that this host knows of: a standby learns it from the active host's plans."""
        return max([self._term, *(target.superblock.term for target in self.targets)])

    def take(self) -> list[Effect]:
        """The effects that have gathered, to be performed in this order."""
        effects = self._out[:]
        self._out.clear()  # the machines share this list: it is emptied, never replaced
        return effects

    # ------------------------------------------------------------------ the link

    def connected(self, now_ns: int) -> None:
        """The link has agreed on a session."""
        self._connected = True
        self._greet(now_ns)

    def _greet(self, now_ns: int) -> None:
        if not self._connected or self.phase is not SessionPhase.OFFLINE or now_ns < self._not_before_ns:
            return
        for source in self.sources:
            if source.failed is not None:  # for good: the peer is told instead of being kept waiting
                self._refuse("volume-failed", f"{source.standing.name}: {source.failed}", now_ns)
                return
        for target in self.targets:
            target.retry()
        if any(not source.serving or source.growth.catching_up for source in self.sources):
            return  # `persisted` and `saved` come back here
        if any(not target.settled for target in self.targets):
            return  # likewise
        self._become(SessionPhase.GREETING, now_ns)
        for source in self.sources:
            source.growth.introduced = True
        self._out.append(Send([self.introduction()]))
        if self.peer is not None:
            self._agree(self.peer, now_ns)

    def _become(self, phase: SessionPhase, now_ns: int) -> None:
        self.phase = phase
        self._since_ns = now_ns

    def introduction(self) -> Introduce:
        """What this host says of itself."""
        states = [source_state(*each) for each in zip(self.sources, self._given, strict=False)]
        states += [target_state(each) for each in self.targets]
        return Introduce(self.pair_id, self.guest, self.role, self.term, tuple(states))

    def lost(self, reason: str, now_ns: int) -> None:
        """The link's session is over."""
        self._connected = False
        self._forget_hold_off(now_ns)
        self._become(SessionPhase.OFFLINE, now_ns)
        self.peer = None
        self._plans = ()
        if self._ran:
            self._ran = False
            self._out.append(Emit(PeerEvent(connected=False, reason=reason)))
        for source in self.sources:
            source.points.peer_lost()
            source.peer_lost(now_ns)
        for target in self.targets:
            target.session_over()

    def received(self, messages: Sequence[Message], now_ns: int) -> None:
        """Messages of the stream, in order."""
        for message in messages:
            if self.phase is _LEAVING:
                return
            try:
                self._receive(message, now_ns)
            except (ProtocolError, ArbitrationError) as error:
                self._refuse(type(error).__name__, str(error), now_ns)

    def _receive(self, message: Message, now_ns: int) -> None:
        if isinstance(message, Introduce):
            if self.peer is not None:
                raise ProtocolError("the peer introduced itself twice")
            self.peer = self.met = message
            if self.phase is SessionPhase.GREETING:
                self._agree(message, now_ns)
        elif isinstance(message, Leave):
            self._refuse("peer-left", message.reason, now_ns, tell=False)
        elif isinstance(message, Failed):  # also before the introductions: it may have no superblock to show
            if self.in_sync:  # who looks after that disk has a wait of his own
                self._hold_off_ns = 0
            self._refuse("peer-failed", message.reason, now_ns, tell=False)
        elif self.phase is not _RUNNING:
            raise ProtocolError(f"{type(message).__name__} before the introductions")
        elif self.role is _ACTIVE:
            self._receive_as_active(message, now_ns)
        else:
            self._receive_as_standby(message)

    def _agree(self, peer: Introduce, now_ns: int) -> None:
        mine = self.introduction()
        decision = plan_session(mine, peer)
        if (newer := outdated_by(mine, peer)) is not None:
            self._newer = newer
            for each in self._replicas:
                each.outdated(bool(newer))
        if decision.rule == NO_OWNER:  # it is about to be decided, over this very link
            self.refusal = self.outdated or f"{decision.rule}: {decision.evidence}"
            return
        if decision.verdict is Verdict.REFUSE:
            self._refuse(decision.rule, decision.evidence, now_ns)
            self._give_way()
            return
        if decision.verdict is Verdict.GROW:
            self._catch_up(decision, now_ns)
            return
        self._become(SessionPhase.RUNNING, now_ns)
        self._ran = True
        self.refusal = None
        self._permit.withheld = False  # the peer has given way
        self._plans = decision.plans
        self._out.append(Emit(PeerEvent(connected=True, reason=decision.evidence)))
        for source, plan, theirs in zip(self.sources, decision.plans, peer.volumes, strict=False):
            source.growth.introduced = False
            source.copier.proves = source.scrubber.possible = source.options.digests and theirs.proves
            source.begin(plan, blank=theirs.condition is Condition.BLANK, now_ns=now_ns)
            source.points.begin_session(theirs.points, peer_keeps=source.scrubber.possible)

    def _give_way(self) -> None:
        """If the peer has what this owner has forgotten, nothing is acknowledged here without it any more."""
        if self.outdated:
            self._permit.withheld = True
            for source in () if self._arbitrated else self.sources:
                source.abandon(self.outdated, fatal=True)

    def _catch_up(self, decision: Decision, now_ns: int) -> None:
        """The volumes have not the same size: who has a smaller one ends the session and grows first.

        The other one waits for that.  Where there is no room it is tried again, ever more seldom.
        """
        mine = self.introduction().volumes
        behind = [index for index, each in enumerate(mine) if each.size_bytes < decision.sizes[index]]
        if not behind:
            return
        self.refusal = f"{decision.rule}: {decision.evidence}"
        self._out.append(DropSession(f"this host grows first: {decision.evidence}", refused=False))
        self._leave(now_ns)
        for index in behind:
            if self.sources:
                self.sources[index].growth.catch_up(decision.sizes[index])
                self.sources[index].advance(now_ns)
            else:
                self.targets[index].growth.catch_up(decision.sizes[index])

    def _refuse(self, rule: str, evidence: str, now_ns: int, *, tell: bool = True) -> None:
        """End the session, and wait before the next one."""
        self.refusal = f"{rule}: {evidence}"
        self._out.append(Emit(RefusedEvent(rule, evidence)))
        if tell:
            self._out.append(Send([Leave(f"{rule}: {evidence}"[:400])]))
        self._out.append(DropSession(self.refusal, refused=True))
        self._leave(now_ns)

    def _forget_hold_off(self, now_ns: int) -> None:
        """A session that ends now and has held for long was worth its beginning."""
        if self.phase is SessionPhase.RUNNING and now_ns - self._since_ns > HOLD_OFF_NS_MAX:
            self._hold_off_ns = 0

    def _leave(self, now_ns: int) -> None:
        self._forget_hold_off(now_ns)
        self._become(SessionPhase.LEAVING if self._connected else SessionPhase.OFFLINE, now_ns)
        self._hold_off_ns = min(max(self._hold_off_ns * 2, HOLD_OFF_NS_MIN), HOLD_OFF_NS_MAX)
        self._not_before_ns = now_ns + self._hold_off_ns

    def dropped(self, now_ns: int) -> None:
        """The shell has performed a `DropSession` that a volume asked for."""
        if self.phase is not SessionPhase.LEAVING:
            self._leave(now_ns)

    def _receive_as_active(self, message: Message, now_ns: int) -> None:
        if isinstance(message, Applied):
            self._source(message.volume).peer_applied(message.number, now_ns)
        elif isinstance(message, BarrierDone):
            self._source(message.volume).peer_flushed(message.barrier, now_ns)
        elif isinstance(message, Marked):
            self._source(message.volume).copier.marked(message.extents)
        elif isinstance(message, Begun):
            self._source(message.volume).begun(now_ns)
        elif isinstance(message, Proof):
            source = self._source(message.volume)
            source.copier.questions.answered(message)
            source.advance(now_ns)
        elif isinstance(message, (Write, Unfetched)):
            source = self._source(message.volume)
            source.scrubber.fetched(message)
            source.advance(now_ns)
        elif isinstance(message, Remembered):
            source = self._source(message.volume)
            source.points.peer_made(message)
            source.advance(now_ns)
        elif isinstance(message, Grown):
            source = self._source(message.volume)
            source.growth.answered(message)
            source.advance(now_ns)
        elif isinstance(message, Adopted):
            source = self._source(message.volume)
            source.adopted(message, now_ns)
            self._has_adopted(message, source.standing.superblock.lineage)
        else:
            raise ProtocolError(f"{type(message).__name__} to the active host")

    def _has_adopted(self, message: Adopted, lineage: tuple[Generation, ...]) -> None:
        """The peer's replica is not any more what it introduced itself with."""
        if self.met is not None:
            volumes, past = list(self.met.volumes), lineage[lineage.index(message.generation) :]
            volumes[message.volume] = volumes[message.volume].adopted(past)
            self.met = replace(self.met, volumes=tuple(volumes))

    def _receive_as_standby(self, message: Message) -> None:
        if isinstance(message, Write):
            self._target(message.volume).write(message)
        elif isinstance(message, Barrier):
            self._target(message.volume).barrier(message)
        elif isinstance(message, Begin):
            self._target(message.volume).begin(message, self._plans[message.volume].mode)
        elif isinstance(message, Prove):
            self._target(message.volume).prove(message)
        elif isinstance(message, Fetch):
            self._target(message.volume).fetch(message)
        elif isinstance(message, (Remember, KeepOnly)):
            self._target(message.volume).point(message)
        elif isinstance(message, Grow):
            self._target(message.volume).grow(message)
        elif isinstance(message, Adopt):
            self._target(message.volume).adopt(message)
        else:
            raise ProtocolError(f"{type(message).__name__} to the standby host")

    def _source(self, volume: int) -> VolumeSource:
        if volume >= len(self.sources):
            raise ProtocolError(f"volume {volume} of {len(self.sources)}")
        return self.sources[volume]

    def _target(self, volume: int) -> VolumeTarget:
        if volume >= len(self.targets):
            raise ProtocolError(f"volume {volume} of {len(self.targets)}")
        return self.targets[volume]

    # ------------------------------------------------------------------ from outside

    def permitted(self, now_ns: int, *, alone: bool, insisted: bool = False) -> None:
        """The grant register: may this host acknowledge without its peer (see `core.permit`)?"""
        if self.abandoned:
            return  # whoever takes the guest up again, here too, does so with another session machine
        self._permit.give(alone=alone, insisted=insisted)
        if alone:
            for source in self.sources:
                source.permitted(now_ns)

    def abandon(self, reason: str) -> None:
        """The guest does not run here any more: nothing is served, whatever was asked for ends with EIO."""
        self._permit.give(alone=False)  # no generation is opened any more: the next owner's is the next
        self.abandoned = True
        for source in self.sources:
            source.abandon(reason)

    def tick(self, now_ns: int) -> None:
        """Time has passed; to be called at least every half second."""
        self._greet(now_ns)
        waits = self.phase is SessionPhase.GREETING and self.peer is None
        if waits and now_ns - self._since_ns > GREETING_NS_MAX:
            self._refuse("silent-peer", "the peer did not introduce itself", now_ns)
        for source in self.sources:
            source.points.tick(now_ns)
            source.tick(now_ns)

    # ------------------------------------------------------------------ questions

    @property
    def outdated(self) -> str:
        """Why this host's replicas are older than the peer's, for people; empty if that is not known."""
        old = [each.superblock.name for each in self._replicas if each.superblock.outdated]
        if not old:
            return ""
        return self._newer or f"volume {old[0]} was found to be older than the other host's; {WHAT_NOW}"

    @property
    def _replicas(self) -> list[Standing | VolumeTarget]:
        return [*(source.standing for source in self.sources), *self.targets]

    @property
    def synchronous(self) -> bool:
        """Whether every volume of an active host is of level ``sync``: a peer in sync has all of them."""
        return all(source.options.level == "sync" for source in self.sources)

    @property
    def awaits_peer(self) -> bool:
        """Whether this host, a standby, has not heard in this life whether it is `outdated`."""
        return bool(self.targets) and self.met is None

    @property
    def in_sync(self) -> bool:
        """Whether the peer is in sync for every volume (active), or this host's replicas are (standby)."""
        if self.sources:
            return all(source.standing.phase is Phase.IN_SYNC for source in self.sources)
        return self.phase is SessionPhase.RUNNING and all(target.in_sync for target in self.targets)
