"""Two registers and a witness's store against a naive model: who has voted for what, and what a majority is.

The model knows no rounds, no promises and no shortcuts.  It sees what leaves a host and what a store holds:
an acceptance that is sent, a swap that has happened, a grant that a host takes for decided (its own vote,
the last one).  From that it counts: of each place of the chain, one value at the most has the acceptances
of a majority of the voters under one ballot, and nobody ever takes anything else for decided.

Messages are lost, doubled and overtake each other; a question to the witness may be answered late or never,
and have its effect all the same; hosts die before and after they have written down what they promise, and
voters lose their memories, which makes others of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from pairsync.core.acceptor import AcceptorState
from pairsync.core.arbitration import (
    Accept,
    Accepted,
    PeerMessage,
    PersistAcceptor,
    Prepare,
    Promise,
    Refusal,
    SendPeer,
    WitnessView,
)
from pairsync.core.grants import VOTERS_MAX, Ballot, Grant, HostId, VoterId, genesis, objection
from pairsync.core.outcomes import AskWitness, Outcome
from pairsync.core.register import Register

A, B, W = b"a" * 32, b"b" * 32, "w"
STEPS = 500
MESSAGES_MAX = 12
"""On their way to one host; the oldest is lost then."""


@dataclass
class Model:
    """Who has accepted what, by place of the chain (its base) and ballot; and what was decided so far."""

    chain: list[Grant]
    votes: dict[tuple[Grant, Ballot], dict[VoterId, Grant]] = field(default_factory=dict)

    def accepts(self, voter: VoterId, base: Grant, ballot: Ballot, grant: Grant) -> None:
        """Under one ballot a voter accepts one value, and so do all."""
        there = self.votes.setdefault((base, ballot), {})
        assert set(there.values()) <= {grant}, "a ballot has one value"
        there[voter] = grant

    def chosen(self, base: Grant) -> set[Grant]:
        """What has the acceptances of a majority of the voters that ``base`` names, under one ballot."""
        return {
            value
            for (place, _), there in self.votes.items()
            if place == base and 2 * len(there.keys() & base.voters) > len(base.voters)
            for value in there.values()
        }

    def takes_for_decided(self, base: Grant) -> None:
        """A host does, as the first one."""
        assert self.chosen(self.chain[-1]) == {base}, "nobody takes for decided what is not"
        self.chain.append(base)


@dataclass
class Store:
    """The witness's: a register with a version, which rises for ever."""

    incarnation: bytes = b"w0"
    version: int = 0
    state: AcceptorState | None = None

    @property
    def view(self) -> WitnessView:
        return WitnessView(self.incarnation, self.version, self.state)


@dataclass
class Question:
    """What a host has asked the witness for; ``awaited``: it still waits for the answer."""

    version: int | None
    state: AcceptorState | None
    awaited: bool = True


class Site:
    """A host: its register, what it has written down, and what is on its way to it."""

    def __init__(self, name: HostId, peer: HostId, state: AcceptorState) -> None:
        self.name, self.peer = name, peer
        self.durable = state
        self.inbox: list[PeerMessage] = []
        self.questions: list[Question] = []
        self.begin_life()

    def begin_life(self) -> None:
        for question in self.questions:
            question.awaited = False
        self.register = Register(self.name, self.peer, self.durable, (W,))


def successors(base: Grant, hosts: list[VoterId], witness: VoterId) -> list[Grant]:
    """All that may follow, as `grants.objection` says, with the voters that there are."""
    voters = [frozenset(each) for count in (1, 2, 3) for each in combinations([*hosts, witness], count)]
    in_sync = [frozenset(each) for count in (1, 2) for each in combinations((A, B), count)]
    owners = [(base.term, base.epoch + 1, base.owner_id), *((base.term + 1, 1, host) for host in hosts)]
    found = [
        Grant(term, epoch, owner.name, owner.incarnation, replicas, electorate, base.fork)
        for term, epoch, owner in owners
        for replicas in in_sync
        for electorate in voters
        if isinstance(owner.name, bytes)
    ]
    return [each for each in found if objection(base, each) is None]


class World:
    """Two hosts, their witness, and all that can happen to them."""

    def __init__(self, random: Random) -> None:
        self.random = random
        first = genesis(VoterId(A, b"a0"), b"fork")
        self.model = Model([first])
        self.store = Store()
        self.sites = [Site(A, B, AcceptorState(b"a0", first)), Site(B, A, AcceptorState(b"b0"))]
        self.memories = 0  # that were lost

    def walk(self) -> None:
        """Some steps, and what must hold after each."""
        names, weights = zip(*self._weights().items(), strict=True)
        for step in self.random.choices(names, weights, k=STEPS):
            step(self.random.choice(self.sites))
            for base in {place for place, _ in self.model.votes}:
                assert len(self.model.chosen(base)) <= 1, base.describe()
            for state in (self.store.state, *(site.durable for site in self.sites)):
                assert state is None or state.base is None or state.base in self.model.chain

    def _weights(self) -> dict[Callable[[Site], None], float]:
        return {
            self.hear: 8,
            self.answer: 6,
            self.want: 4,
            self.ask: 2,
            self.give_up_round: 0.4,
            self.give_up_question: 0.4,
            self.lose_messages: 0.3,
            self.die: 0.3,
            self.lose_memory: 0.03,
        }

    def _happens(self, chance: float) -> bool:
        return self.random.random() < chance

    # ------------------------------------------------------------------ what a host does

    def _done(self, site: Site, before: Register, out: list[Outcome]) -> None:
        """Perform the effects in order; a host may die before its first write is durable."""
        dies = self._happens(0.03)
        for each in out:
            if isinstance(each, PersistAcceptor):
                if dies:
                    site.begin_life()
                    return
                self._write(site, each.state, before)
            elif isinstance(each, SendPeer):
                message = each.message
                if isinstance(message, Accepted):
                    accepted = site.durable.accepted
                    assert message.base is not None
                    assert accepted is not None
                    self.model.accepts(message.sender, message.base, message.ballot, accepted)
                other = self.sites[site.name == A]
                other.inbox = [*other.inbox, message][-MESSAGES_MAX:]
            elif isinstance(each, AskWitness):
                site.questions.append(Question(each.version, each.state))

    def _write(self, site: Site, state: AcceptorState, before: Register) -> None:
        base, was = state.base, site.durable.base
        site.durable = state
        if base is None or base in self.model.chain:
            return
        if was is not None and before.own in was.voters:  # its own vote is the last one
            assert before.round is not None or was.sole == before.own
            alone = Ballot(len(self.model.votes) + 1, site.name, b"alone")  # it did not say which
            self.model.accepts(before.own, was, before.round.ballot if before.round else alone, base)
        self.model.takes_for_decided(base)

    def want(self, site: Site) -> None:
        """Whatever may follow; now and then in the place of a round that is under way."""
        register = site.register
        if register.base is None or (register.round is not None and self._happens(0.8)):
            return
        register.abandon(pause=False)
        hosts = [each.register.own for each in self.sites]
        wishes = successors(register.base, hosts, VoterId(W, self.store.incarnation))
        if self._happens(0.5):  # where one voter is lost the others go on
            wishes = [each for each in wishes if len(each.voters) == VOTERS_MAX]
        if wishes:
            out: list[Outcome] = []
            register.begin(
                self.random.choice(wishes), out, via_witness=self._happens(0.5), cedes=self._happens(0.8)
            )
            self._done(site, _copied(register, round_too=False), out)

    def hear(self, site: Site) -> None:
        """One of the messages on their way, mostly the oldest, mostly once."""
        if not site.inbox:
            return
        place = 0 if self._happens(0.8) else self.random.randrange(len(site.inbox))
        message = site.inbox[place] if self._happens(0.1) else site.inbox.pop(place)
        before, register = _copied(site.register), site.register
        out: list[Outcome] = []
        cedes = self._happens(0.8)
        if register.hears_of(message.base, out):
            if isinstance(message, Prepare | Accept):
                register.votes(message, out, cedes=cedes)
            elif isinstance(message, Promise | Accepted | Refusal):
                register.hears(message, out, cedes=cedes)
        self._done(site, before, out)

    def give_up_round(self, site: Site) -> None:
        site.register.abandon(pause=self._happens(0.5))

    # ------------------------------------------------------------------ the witness

    def ask(self, site: Site) -> None:
        out: list[Outcome] = []
        (site.register.teach if self._happens(0.5) else site.register.look)(W, out)
        self._done(site, site.register, out)

    def answer(self, site: Site) -> None:
        """One of the questions on their way, mostly the oldest; the host may not hear of it."""
        if not site.questions:
            return
        place = 0 if self._happens(0.8) else self.random.randrange(len(site.questions))
        question, store = site.questions.pop(place), self.store
        asked = question.state
        if question.version == store.version and asked is not None:
            if asked.accepted is not None:
                assert asked.base is not None
                voter = VoterId(W, store.incarnation)
                self.model.accepts(voter, asked.base, asked.accepted_ballot, asked.accepted)
            store.state, store.version = asked, store.version + 1
        if question.awaited:
            before = _copied(site.register)
            out: list[Outcome] = []
            if self._happens(0.9):
                site.register.answered(W, store.view, out, cedes=self._happens(0.8))
            else:
                site.register.unreachable(W)
            self._done(site, before, out)

    def give_up_question(self, site: Site) -> None:
        """What was asked for may happen all the same, later."""
        for question in site.questions:
            if question.awaited:
                question.awaited = False
                site.register.unreachable(W)

    # ------------------------------------------------------------------ faults

    def lose_messages(self, site: Site) -> None:
        site.inbox.clear()

    def die(self, site: Site) -> None:
        site.begin_life()

    def lose_memory(self, site: Site) -> None:
        """Whose it was is another voter then: a host, which may know what was decided, or the witness."""
        self.memories += 1
        if self._happens(0.3):
            self.store = Store(b"w%d" % self.memories, self.store.version + 1)
            return
        known = site.durable.base if self._happens(0.7) else None
        site.durable = AcceptorState(b"%c%d" % (site.name[0], self.memories), known)
        site.begin_life()


def _copied(register: Register, *, round_too: bool = True) -> Register:
    """Who it is as a voter, and the round that is under way."""
    copy = Register(register.name, register.peer, register.acceptor, register.witnesses)
    copy.round = register.round if round_too else None
    return copy


@given(st.randoms(use_true_random=True))
def test_one_value_at_most_is_chosen_and_nobody_takes_another_for_decided(random: Random) -> None:
    World(random).walk()


def test_much_of_what_is_hard_happens() -> None:
    """Else the model has seen nothing: long chains, new owners, and places for which two values had votes."""
    long = owners = contested = memories = 0
    for seed in range(100):
        world = World(Random(seed))
        world.walk()
        values: dict[Grant, set[Grant]] = {}
        for (base, _), there in world.model.votes.items():
            values.setdefault(base, set()).update(there.values())
        contested += any(len(each) > 1 for each in values.values())
        long += len(world.model.chain) > 5
        owners += len({each.owner_id for each in world.model.chain}) > 1
        memories += world.memories > 0
    assert min(long, owners, memories) > 40
    assert contested > 20
