"""Decider: what a host does about the grants of one guest, as a machine that knows no clock.

It knows that named waits have ended (`Wait`), in whatever order; how long they last is the business of
`core.arbiter`.  So its safety cannot rest on durations but for one: *an owner's lease is over before the
promise that it rests on is*.  `pairsync.testing.explore` runs this very machine through all interleavings.

**Who gives way.**  A grant that changes the owner may be decided only when the old owner's guest is down: the
owner itself stops it and waits until it is; the standby waits until its promise has run out, and makes no
new one while its own round is being decided.  An owner refuses to accept such a grant while its guest is up.

**A path that works one way only** counts as cut.  An owner that does not hear its standby says so with its
heartbeats, and is promised nothing then: it could not know, and the standby would keep still for ever.  So a
lease takes one exchange more where the owner has just come up.

**Rounds** (`core.register`) go by way of the peer or by way of the witness: whoever is more likely to answer.
One that gets stuck is begun again with a higher ballot; one that was overtaken waits first.

What it knows, whether the guest may run here and when to acknowledge alone: `core.footing`.
"""

from __future__ import annotations

from pairsync.errors import InternalError

from .arbitration import (
    Accept,
    Beat,
    BeatAnswer,
    InForce,
    Own,
    PeerMessage,
    Prepare,
    SendPeer,
    Stop,
    WitnessView,
    Yield,
)
from .footing import Footing
from .grants import Grant, forced
from .outcomes import Guest, Outcome, Wait, Waiting
from .policy import successor

__all__ = ["Decider"]

STEPS_MAX = 16
"""Grants and rounds that one input can bring about; more is a loop that nobody sees (DESIGN rule 11)."""


class Decider(Footing):
    """See the module.  Every input returns what is to be done, in order."""

    __slots__ = ()

    # ------------------------------------------------------------------ inputs

    def start(self) -> list[Outcome]:
        """The host has come up, with what its memory holds; whatever it had promised still binds it."""
        out: list[Outcome] = []
        self._adapt(out)
        self._probe(out)
        return self._finish(out)

    def hears(self, message: PeerMessage) -> list[Outcome]:
        """A message of the peer.  One of another host is dropped; the link does not let that happen."""
        out: list[Outcome] = []
        if message.sender.name != self.register.peer or not self.register.hears_of(message.base, out):
            return out
        self._adapt(out)
        self._meets(message, out)
        if isinstance(message, Beat):
            self._hears_beat(message, out)
        elif isinstance(message, BeatAnswer):
            self._hears_answer(message, out)
        elif isinstance(message, Prepare | Accept):
            self.register.votes(message, out, cedes=self.cedes or not self.owns)
        else:
            self.register.hears(message, out, cedes=self.cedes)
        return self._finish(out)

    def answered(self, witness: str, view: WitnessView) -> list[Outcome]:
        """What that witness holds: the answer to the one question that it was asked last."""
        out: list[Outcome] = []
        self.register.answered(witness, view, out, cedes=self.cedes)
        if self.owns and witness == self.register.witnesses[0]:
            self.current = 0  # the preferred one is back
        if self.owns and witness == self.register.witnesses[self.current]:
            self.witness_lost = False
            self._wait(Wait.LOST, out)
        return self._finish(out)

    def unreachable(self, witness: str) -> list[Outcome]:
        """That witness has not answered the question."""
        self.register.unreachable(witness)
        return self._finish([])

    def expired(self, wait: Wait) -> list[Outcome]:
        """A wait has ended; one that is not on any more is dropped."""
        out: list[Outcome] = []
        if wait not in self.waits:
            return out
        self.waits -= {wait}
        if wait is Wait.BEAT:
            self._beat(out, asks=self.owns)
        elif wait is Wait.SILENCE:
            self.peer_alive = self.unsure = False
            self._excludes_peer()
        elif wait is Wait.LEASE:
            self.leased_by = None
        elif wait is Wait.PROMISE:
            self.promise_out = True
        elif wait is Wait.ROUND:
            if self.register.round is not None:
                self.register.abandon(pause=False)
            self.register.paused = False
        elif wait is Wait.PROBE:
            self._probe(out)
        elif wait is Wait.LOST:
            self.witness_lost = True
            self._uses((self.current + 1) % len(self.register.witnesses), out)
            self._wait(Wait.LOST, out)
        return self._finish(out)

    def _probe(self, out: list[Outcome]) -> None:
        """The owner looks after the witness that new grants may name, a standby after the one that votes.

        A standby that knows of none, and has not heard the owner for long, asks them all in turn: the owner
        may have taken it in, have told a witness, and have died.
        """
        register = self.register
        if not register.witnesses:
            return
        self._wait(Wait.PROBE, out)
        voter = register.voting_witness()
        if self.owns:
            register.look(register.witnesses[self.current], out)
        elif voter is not None:
            register.look(str(voter.name), out)
        elif self.promise_out:
            register.look(register.witnesses[self.current], out)
            self.current = (self.current + 1) % len(register.witnesses)

    def stopped(self) -> list[Outcome]:
        """Nothing of the guest runs on this host any more, by `Stop` or by itself."""
        out: list[Outcome] = []
        self.guest = Guest.DOWN
        if self.base is not None and not self.owns:
            out.append(Yield(self.base))
        return self._finish(out)

    def peer_is_down(self) -> list[Outcome]:
        """It is proven that nothing of the guest runs on the peer: no promise is needed any more."""
        if not self.owns and Wait.PROMISE in self.waits:
            return self.expired(Wait.PROMISE)
        return []

    def is_ready(self, ready: bool, *, peer_newer: bool = False) -> list[Outcome]:
        """Whether the data plane could serve the guest with what this host has (`Situation.peer_newer`)."""
        self.ready, self.peer_newer = ready, peer_newer
        return self._finish([])

    def peer_out(self) -> list[Outcome]:
        """The data plane wants to go on without the peer's replica."""
        self._excludes_peer()
        return self._finish([])

    def peer_in(self) -> list[Outcome] | None:
        """The data plane vouches: the peer's replica holds all, and no write is acknowledged without it.

        None: that is not possible now; try again later.  Otherwise `peer_excluded` is False from now on.
        """
        base = self.base
        if base is None or not self.owns or not self.peer_alive or self.peer_id is None:
            return None
        self.vouched = True
        self.wanted |= {self.register.peer}
        return self._finish([])

    def own_out(self) -> list[Outcome] | None:
        """The data plane wants to serve from the peer's replica alone; None: the peer's is not in sync."""
        if not self.owns or not self.peer_proven:
            return None
        self.wanted -= {self.register.name}
        return self._finish([])

    def own_in(self) -> list[Outcome] | None:
        """Like `peer_in`, of this host's own replica."""
        if not self.owns:
            return None
        self.wanted |= {self.register.name}
        return self._finish([])

    def move(self, *, leaving: bool = False) -> tuple[str, list[Outcome]]:
        """The peer is to own the guest: why that is refused, or "", and what is to be done.

        ``leaving``: because this host's disk has failed; its replica is out of sync with the same grant.
        """
        base = self.base
        if base is None or not self.owns or self.guest is not Guest.UP:
            return "the guest does not run here", []
        if not self.peer_proven:
            return "the other host is not in sync", []
        if self.register.name not in base.in_sync:
            return "the other host must take over by itself", []
        if not self.peer_alive or not self.peer_ready:
            return "the other host is not ready", []
        self.moving = True
        if leaving:
            self.wanted -= {self.register.name}
        return "", self._finish([])

    def override(self, operator: str, fork: bytes, term_seen: int = 0) -> list[Outcome]:
        """An operator makes this host the owner, whatever anybody has agreed; see `grants.forced`."""
        register = self.register
        known = [register.acceptor.base, register.acceptor.accepted, *register.possible]
        for view in register.views:
            if view is not None and view.state is not None:
                known += [view.state.base, view.state.accepted]
        out: list[Outcome] = []
        grants = [grant for grant in known if grant is not None]
        self._excludes_peer()  # what was vouched for under another grant says nothing of this one
        register.override(forced(self.own, grants, fork, operator, term_seen=term_seen), out)
        self.unsure = False
        return self._finish(out)

    # ------------------------------------------------------------------ the peer

    def _meets(self, message: PeerMessage, out: list[Outcome]) -> None:
        """Whatever it says: it is there, this is its memory, and this is what it knows."""
        self.unsure = False
        self.peer_behind = message.base != self.base
        if self.peer_behind:
            self._wait_if_off(Wait.BEAT, out)
        if message.sender != self.peer_id:
            voter = self.register.voting_peer()
            stranger = self.peer_id is not None or (voter is not None and voter != message.sender)
            self.peer_id, self.peer_ready = message.sender, False
            if stranger:  # another memory than the one that was vouched for: its replica is proven anew
                self._excludes_peer()
        if self.owns:
            if not self.peer_alive:  # it has promised nothing to who did not hear it
                self.peer_alive = True
                self._beat(out, asks=True)
                self._wait(Wait.SILENCE, out)
            elif not isinstance(
                message, Beat | Prepare | Accept
            ):  # who asks and never answers does not hear us
                self._wait(Wait.SILENCE, out)

    def _hears_beat(self, message: Beat, out: list[Outcome]) -> None:
        base, register = self.base, self.register
        granted = message.number > 0 and message.hears and base is not None and message.base == base
        granted = granted and base is not None and message.sender == base.owner_id
        accepted = register.acceptor.accepted
        if accepted is not None and register.changes_owner(accepted):
            granted = False  # it may be decided: the owner must not rely on us
        if granted and register.round is not None:
            if register.round.value is not None:
                granted = False
            else:
                register.abandon(pause=False)
        if granted:
            self.promise_out = False
            self._wait(Wait.PROMISE, out)
        answer = BeatAnswer(self.own, base, message.number, granted, self.ready)
        out.append(SendPeer(answer))

    def _hears_answer(self, message: BeatAnswer, out: list[Outcome]) -> None:
        self.peer_ready = message.ready
        base = self.base
        if not message.granted or not self.owns or base is None or message.base is None:
            return
        if (message.base.term, message.base.fork) == (base.term, base.fork):
            self.leased_by = message.sender
            self._wait(Wait.LEASE, out)

    def _beat(self, out: list[Outcome], *, asks: bool) -> None:
        if asks or self.peer_behind:
            out.append(SendPeer(Beat(self.own, self.base, 1 if asks else 0, hears=self.peer_alive)))
            self._wait(Wait.BEAT, out)

    def _stays(self) -> None:
        """A move does not come about: this host's replica, that was to leave with it, is wanted as before."""
        if self.moving and self.base is not None:
            self.wanted |= self.base.in_sync & {self.register.name}
        self.moving = False

    def _excludes_peer(self) -> None:
        self._stays()
        self.vouched = False
        self.wanted = self.wanted - {self.register.peer} or self.wanted

    # ------------------------------------------------------------------ what follows

    def _finish(self, out: list[Outcome]) -> list[Outcome]:
        """Adapt to a new base, to who may run the guest and to what is wanted, until nothing changes."""
        for _ in range(STEPS_MAX):
            self._adapt(out)
            self._drive_guest(out)
            if not self._seek(out) and self.known == self.base:
                break
        else:
            raise InternalError("the grants of a guest do not come to rest")
        self._drive_witness(out)
        return out

    def _adapt(self, out: list[Outcome]) -> None:
        """The base has changed."""
        base, before = self.base, self.known
        if base is None or base == before:
            return
        self.known = base
        self.unsure = self.unsure and before is None
        owned_before = before is not None and before.owner_id == self.own
        self._stays()
        self.waits -= {Wait.ROUND}
        peer = frozenset({self.register.peer})
        # A host with another key is another host: the one that was meant is not there any more.
        ours = base.in_sync & (peer | {self.register.name}) or base.in_sync
        if self.owns and owned_before:
            joining = peer if self.vouched else frozenset()
            self.wanted = (self.wanted & base.in_sync) | (self.wanted & joining) or ours
        else:
            # Who has handed the guest over, by a planned move, has all that was acknowledged, and nothing is
            # acknowledged without it before another grant.
            handed = self.owns and before is not None and before.owner_id == self.peer_id
            handed = handed and before is not None and base.term == before.term + 1
            self.wanted, self.vouched = ours, handed and peer <= base.in_sync
        self.peer_behind = before is not None or not self.owns
        if self.owns:
            if not owned_before:
                self._uses(self._witness_of(base, before), out)
            self.waits -= {Wait.PROMISE}
            self._wait_if_off(Wait.SILENCE, out)
            if self.register.witnesses:
                self._wait_if_off(Wait.LOST, out)
        else:
            self.leased_by, self.peer_alive, self.peer_ready = None, False, False
            self.witness_lost = not self.register.witnesses
            self.waits -= {Wait.LEASE, Wait.SILENCE, Wait.LOST, Wait.HOME}
            if before is None or before.owner_id != base.owner_id:
                self.promise_out = False
                self._wait(Wait.PROMISE, out)
        out.append(InForce(base, self.peer_excluded))
        if self.guest is Guest.UP and self.may_run:
            out.append(Own(base))
        if self.guest is Guest.DOWN and not self.owns:
            out.append(Yield(base))
        self._beat(out, asks=self.owns)

    def _drive_guest(self, out: list[Outcome]) -> None:
        base = self.base
        if self.guest is Guest.DOWN and self.may_run and base is not None:
            self.guest = Guest.UP
            out.append(Own(base))
        elif self.guest is Guest.UP and not self.may_run:
            self.guest = Guest.STOPPING
            out.append(Stop(base, self.why_stopped()))

    def _seek(self, out: list[Outcome]) -> bool:
        """Begin a round for what is wanted, if there is none; whether one was begun."""
        register, base = self.register, self.base
        if base is None or register.round is not None or register.paused:
            return self._rest(out)
        if self.ceding and not self.cedes:
            return self._rest(out)  # the guest is being stopped
        if self.unsure and base.sole == self.own:
            return self._rest(out)
        wish = successor(self.situation(base))
        if wish is None:
            return self._rest(out)
        via_witness = not self.owns or not self.peer_alive or register.retried
        via_witness = via_witness or register.peer not in self.wanted
        self._wait(Wait.ROUND, out)
        register.begin(wish, out, via_witness=via_witness, cedes=self.cedes)
        return True

    def _rest(self, out: list[Outcome]) -> bool:
        if self.register.round is None and not self.register.paused:
            self.waits -= {Wait.ROUND}
        elif self.register.paused:
            self._wait_if_off(Wait.ROUND, out)
        return False

    def _drive_witness(self, out: list[Outcome]) -> None:
        """The owner keeps the witness informed, and looks for the preferred one while it uses another.

        If the wait for that ends while a witness owes an answer, the look comes after it.
        """
        register = self.register
        if not (self.owns and register.witnesses):
            return
        register.teach(register.witnesses[self.current], out)
        if self.current and Wait.HOME not in self.waits and register.asking is None:
            register.look(register.witnesses[0], out)
            self._wait(Wait.HOME, out)

    def _uses(self, index: int, out: list[Outcome]) -> None:
        """That witness is used for new grants; a wait for the preferred one lasts to its end, for where none
        answers the turn changes often."""
        self.current = index
        if index:
            self._wait_if_off(Wait.HOME, out)

    def _witness_of(self, *grants: Grant | None) -> int:
        """The witness that votes, or did until now, for it was there; else the preferred one."""
        names = {voter.name for grant in grants if grant is not None for voter in grant.voters}
        voting = (index for index, name in enumerate(self.register.witnesses) if name in names)
        return next(voting, 0)

    def _wait(self, wait: Wait, out: list[Outcome]) -> None:
        self.waits |= {wait}
        out.append(Waiting(wait))

    def _wait_if_off(self, wait: Wait, out: list[Outcome]) -> None:
        if wait not in self.waits:
            self._wait(wait, out)
