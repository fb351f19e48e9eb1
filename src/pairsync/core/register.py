"""Register: one host's part in deciding the grants of one guest; voter and proposer in one.

As a voter it answers the peer's rounds (`core.acceptor`).  As a proposer it runs one round at a time
(`core.proposer`), by way of the peer or by way of the witness, and works the witness's store.  What is
wanted and who may run the guest is `core.decider`'s business; it says with every call whether a grant that
changes the owner may be decided now (`cedes`).

What is known of a witness is a `WitnessView`: what its store held when it was last read or written.  An old
one does no harm: a swap that rests on it fails, and brings the new one.

State is made of immutable values, so that it can be copied and compared.
"""

from __future__ import annotations

from pairsync.errors import InternalError

from .acceptor import AcceptorState, accept, commit, is_news, learn, prepare
from .arbitration import (
    Accept,
    Accepted,
    PeerMessage,
    PersistAcceptor,
    Prepare,
    Promise,
    Refusal,
    SendPeer,
    TwoTruths,
    WitnessView,
)
from .grants import Ballot, Grant, HostId, Vote, VoterId, malformed, objection
from .outcomes import AskWitness, Outcome
from .proposer import Phase, Round, new_round

__all__ = ["Register"]


_NONE: frozenset[Grant] = frozenset()


class Register:
    """See the module.  Everything that is to be done is appended to ``out``, in order."""

    __slots__ = (
        "acceptor",
        "asking",
        "name",
        "paused",
        "peer",
        "possible",
        "retried",
        "round",
        "top_counter",
        "via_witness",
        "views",
        "wish",
        "witnesses",
    )

    def __init__(
        self, name: HostId, peer: HostId, acceptor: AcceptorState, witnesses: tuple[str, ...]
    ) -> None:
        self.name = name
        self.peer = peer
        self.witnesses = witnesses
        self.acceptor = acceptor
        # The round that is under way, what it is to decide if nothing was accepted before, and whether the
        # witness may be used for it.  Invariants: round is None or round.base == acceptor.base; wish is None
        # if and only if round is.
        self.round: Round | None = None
        self.wish: Grant | None = None
        self.via_witness = False
        # After a round that came to nothing: no other one begins while paused; retried until the base
        # changes.
        self.paused = False
        self.retried = False
        self.top_counter = 0  # the highest counter of a ballot heard of; until the base changes
        self.possible = _NONE
        """Successors of the base that may be decided, as far as this life knows: those that were asked for
        or found.  Empty whenever the base changes."""
        self.views: tuple[WitnessView | None, ...] = (None,) * len(witnesses)
        self.asking: str | None = None
        """The witness that owes an answer; there is one question at a time."""

    @property
    def own(self) -> VoterId:
        """This host as a voter."""
        return VoterId(self.name, self.acceptor.incarnation)

    @property
    def base(self) -> Grant | None:
        """The newest grant known to be decided."""
        return self.acceptor.base

    def view(self, witness: str) -> WitnessView | None:
        """What that witness held last."""
        return self.views[self.witnesses.index(witness)]

    def voting_witness(self) -> VoterId | None:
        """The witness among the voters of the base, if it is one of ours."""
        voters = self.acceptor.base.voters if self.acceptor.base is not None else ()
        return next((voter for voter in voters if voter.name in self.witnesses), None)

    def reaches_voter(self) -> bool:
        """Whether the witness that votes has answered last, with the memory that is meant."""
        voter = self.voting_witness()
        view = None if voter is None else self.view(str(voter.name))
        return voter is not None and view is not None and view.incarnation == voter.incarnation

    def voting_peer(self) -> VoterId | None:
        """The peer among the voters of the base."""
        voters = self.acceptor.base.voters if self.acceptor.base is not None else ()
        return next((voter for voter in voters if voter.name == self.peer), None)

    # ------------------------------------------------------------------ what others know

    def hears_of(self, grant: Grant | None, out: list[Outcome]) -> bool:
        """Somebody says that ``grant`` was decided; False if it cannot be, or not of our chain."""
        base = self.acceptor.base
        if grant is None or grant == base:
            return True
        if malformed(grant) is not None:
            return False
        if base is not None and grant.order == base.order:
            out.append(TwoTruths(base, grant))
            return False
        if is_news(base, grant):
            if base is not None and grant.fork != base.fork:
                out.append(TwoTruths(base, grant))  # it rules; what was written under ours is another matter
            self._take(learn(self.acceptor, grant), out)
        return True

    def _take(self, state: AcceptorState, out: list[Outcome]) -> None:
        """A new base, durably; all that was going on was about the old one."""
        self.acceptor = state
        self.round = self.wish = None
        self.via_witness = self.paused = self.retried = False
        self.top_counter = 0
        self.possible = _NONE
        out.append(PersistAcceptor(state))

    def override(self, grant: Grant, out: list[Outcome]) -> None:
        """An operator has forced ``grant``."""
        self._take(learn(self.acceptor, grant), out)

    # ------------------------------------------------------------------ as a voter

    def votes(self, message: Prepare | Accept, out: list[Outcome], *, cedes: bool) -> None:
        """A round of the peer; its base is known here by now (`hears_of`)."""
        answer: PeerMessage | None = None
        if message.base == self.acceptor.base:
            answer = (
                self._promises(message, out)
                if isinstance(message, Prepare)
                else self._accepts(message, out, cedes=cedes)
            )
        if answer is None:
            promised = self.acceptor.promised
            answer = Refusal(self.own, self.acceptor.base, message.ballot, promised)
        out.append(SendPeer(answer))

    def _promises(self, message: Prepare, out: list[Outcome]) -> PeerMessage | None:
        before = self.acceptor
        state = prepare(before, message.ballot)
        if state is None:
            return None
        self._holds(state, out)
        return Promise(self.own, state.base, message.ballot, before.accepted_ballot, before.accepted)

    def _accepts(self, message: Accept, out: list[Outcome], *, cedes: bool) -> PeerMessage | None:
        state = accept(self.acceptor, message.ballot, message.grant)
        if state is None or (self.changes_owner(message.grant) and not cedes):
            return None
        self._holds(state, out)
        return Accepted(self.own, state.base, message.ballot)

    def _holds(self, state: AcceptorState, out: list[Outcome]) -> None:
        if state != self.acceptor:
            self.acceptor = state
            out.append(PersistAcceptor(state))
        if self.round is not None and state.promised > self.round.ballot:
            self.abandon(pause=True)  # its own voter would refuse to commit

    def changes_owner(self, grant: Grant) -> bool:
        """Whether the guest would belong to another memory."""
        return self.acceptor.base is not None and grant.owner_id != self.acceptor.base.owner_id

    # ------------------------------------------------------------------ as a proposer

    def begin(self, wish: Grant, out: list[Outcome], *, via_witness: bool, cedes: bool) -> None:
        """Try to have ``wish`` decided as the successor of the base."""
        base = self.acceptor.base
        if base is None or self.round is not None or objection(base, wish) is not None:
            raise InternalError(f"no round can begin for {wish}")
        ballot = Ballot(1 + self._known_counter(), self.name, self.acceptor.incarnation)
        state = prepare(self.acceptor, ballot)
        if state is None:
            raise InternalError("a ballot above all others was refused")
        started, own = new_round(base, ballot), self.own
        if own in base.voters:
            started = started.hears_promise(own, state.accepted_ballot, state.accepted)
        self.round, self.wish, self.via_witness = started, wish, via_witness
        if base.sole == own:
            self.acceptor = state
            self._fix(started, out, cedes=cedes)
            if self.acceptor is state:
                out.append(PersistAcceptor(state))  # nothing was decided: the promise is all there is
            return
        self._holds(state, out)
        if via_witness and self._by_witness(out, cedes=cedes):
            return
        if self.voting_peer() is not None:
            out.append(SendPeer(Prepare(own, base, ballot)))

    def _known_counter(self) -> int:
        known = max(self.top_counter, self.acceptor.promised.counter)
        for view in self.views:
            if view is not None and view.state is not None and view.state.base == self.acceptor.base:
                known = max(known, view.state.promised.counter)
        return known

    def hears(self, message: Promise | Accepted | Refusal, out: list[Outcome], *, cedes: bool) -> None:
        """The peer answers; what does not belong to the round under way is dropped."""
        current = self.round
        if current is None or message.ballot != current.ballot or message.base != current.base:
            return
        if isinstance(message, Promise):
            if current.phase is Phase.PREPARING and _may_follow(current.base, message.accepted):
                heard = current.hears_promise(message.sender, message.accepted_ballot, message.accepted)
                self.round = heard
                if heard.prepared() is Vote.WON:
                    self._fix(heard, out, cedes=cedes)
        elif isinstance(message, Accepted):
            if current.phase is Phase.DECIDING:
                self._counts(current.hears_acceptance(message.sender), out)
        else:
            self.top_counter = max(self.top_counter, message.promised.counter)
            self.abandon(pause=True)

    def _fix(self, prepared: Round, out: list[Outcome], *, cedes: bool) -> bool:
        """A majority has promised, perhaps on condition: fix the value and ask for acceptances."""
        if self.wish is None:
            raise InternalError("a round without a wish")
        fixed = prepared.fixes(self.wish)
        value = fixed.value
        if value is None:
            raise InternalError("a fixed round has no value")
        refused = self.changes_owner(value) and not cedes
        if prepared.found is not None or not refused:  # else nobody has been asked for it, nor will be
            self.possible |= {value}
        if refused:
            self.abandon(pause=False)
            return False
        self.round = fixed
        self._counts(fixed, out)
        peer = self.voting_peer()
        if self.round is fixed and peer is not None and fixed.may_ask(peer):
            out.append(SendPeer(Accept(self.own, fixed.base, fixed.ballot, value)))
        return True

    def _counts(self, current: Round, out: list[Outcome]) -> None:
        """Is it decided?  The own voter is the last to vote."""
        self.round = current
        if current.value is None or current.decided(self.own) is not Vote.WON:
            return
        if self.own in current.base.voters:
            state = commit(self.acceptor, current.ballot, current.value)
        else:
            state = None
        if state is None and current.decided_by_others():
            state = learn(self.acceptor, current.value)
        if state is None:
            self.abandon(pause=True)
        else:
            self._take(state, out)

    def abandon(self, *, pause: bool) -> None:
        """The round came to nothing here; what it asked for may be decided all the same, by another one."""
        self.round = self.wish = None
        self.via_witness = False
        self.paused = pause
        self.retried = True

    # ------------------------------------------------------------------ the witness

    def _by_witness(self, out: list[Outcome], *, cedes: bool) -> bool:
        """Promise and acceptance of the witness in one swap, if that decides; whether it was asked."""
        current, voter = self.round, self.voting_witness()
        if current is None or current.phase is not Phase.PREPARING or voter is None:
            return False
        name = str(voter.name)
        if self.asking == name:
            return False
        self.asking = None  # what another one says is not worth waiting for
        view = self.view(name)
        if view is None:
            self.look(name, out)
            return False
        if view.incarnation != voter.incarnation:
            return False  # it has lost its memory: what it says does not count
        state = learn(view.state or AcceptorState(view.incarnation), current.base)
        gated = current.witnessed(voter, state.accepted_ballot, state.accepted)
        promise = prepare(state, current.ballot)
        if promise is None:
            self.abandon(pause=self.retried)  # overtaken; the next ballot will be higher
            return True
        if state.base != current.base or gated is None:
            return False
        if not self._fix(gated, out, cedes=cedes):
            return True
        fixed = self.round
        if fixed is None or fixed.value is None:
            raise InternalError("a majority that needs the witness was found without it")
        accepted = accept(promise, fixed.ballot, fixed.value)
        if accepted is None:
            raise InternalError("the value of a round is no successor of its base")
        self._swap(name, view.version, accepted, out)
        return True

    def look(self, witness: str, out: list[Outcome]) -> None:
        """Read what the witness holds, unless one is being asked."""
        if self.asking is None:
            self.asking = witness
            out.append(AskWitness(witness, None, None))

    def _swap(self, witness: str, version: int, state: AcceptorState, out: list[Outcome]) -> None:
        self.asking = witness
        out.append(AskWitness(witness, version, state))

    def teach(self, witness: str, out: list[Outcome]) -> None:
        """Tell the witness the base, if it does not know it."""
        view, base = self.view(witness), self.acceptor.base
        if self.asking or self.round is not None or view is None or base is None:
            return
        state = view.state or AcceptorState(view.incarnation)
        if is_news(state.base, base):
            self._swap(witness, view.version, learn(state, base), out)

    def leftover(self) -> bool:
        """Whether the voting witness holds something for the next grant that nobody decides any more."""
        voter = self.voting_witness()
        view = self.view(str(voter.name)) if voter is not None else None
        if self.round is not None or view is None or view.state is None:
            return False
        return view.state.base == self.acceptor.base and view.state.accepted is not None

    def answered(self, witness: str, view: WitnessView, out: list[Outcome], *, cedes: bool) -> None:
        """What the witness holds now: the answer to the question."""
        self.asking = None
        index = self.witnesses.index(witness)
        self.views = (*self.views[:index], view, *self.views[index + 1 :])
        state, current = view.state, self.round
        if state is not None and (state.base is None or not _may_follow(state.base, state.accepted)):
            view, state = view._replace(state=None), None  # no voter holds such a thing: it is overwritten
            self.views = (*self.views[:index], view, *self.views[index + 1 :])
        if not self.hears_of(state.base if state is not None else None, out):
            self.views = (*self.views[:index], None, *self.views[index + 1 :])
        if self.round is not current or current is None:
            return
        if current.gate is not None and current.gate.name == witness:
            accepted = state is not None and state.base == current.base
            if accepted and state is not None and state.accepted_ballot == current.ballot:
                self._counts(current.hears_acceptance(current.gate), out)
            else:
                self.abandon(pause=self.retried)  # the first time it was only an old view
        elif self.via_witness:
            self._by_witness(out, cedes=cedes)

    def unreachable(self, witness: str) -> None:
        """The witness did not answer; a swap may have happened, or happen yet."""
        self.asking = None
        index = self.witnesses.index(witness)
        self.views = (*self.views[:index], None, *self.views[index + 1 :])
        current = self.round
        voter = self.voting_witness()
        if current is not None and current.gate is not None and current.gate.name == witness:
            self.abandon(pause=True)
        elif voter is not None and voter.name == witness:
            self.via_witness = False  # until the round is begun again


def _may_follow(base: Grant, accepted: Grant | None) -> bool:
    """Whether an honest voter may have accepted that."""
    return accepted is None or objection(base, accepted) is None
