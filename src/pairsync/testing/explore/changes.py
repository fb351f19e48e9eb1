"""Inputs of deciders as changes of worlds.

What an input does is worked out once (`hosts`) and remembered as numbers: which state the host is in then,
which messages are added to the set, and so on; applying it is a handful of assignments.  A world that comes
of it is checked, and rid of what can do nothing any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pairsync.core.acceptor import AcceptorState
from pairsync.core.arbitration import (
    Accept,
    Accepted,
    Beat,
    BeatAnswer,
    InForce,
    Own,
    PeerMessage,
    Prepare,
    SendPeer,
    TwoTruths,
    WitnessView,
)
from pairsync.core.decider import Decider
from pairsync.core.grants import Grant
from pairsync.core.outcomes import AskWitness, Guest, Wait

from .hosts import Table, Violation, Worked, Worker
from .world import CHAIN, DOWN, HOSTS, NOTHING, STALE, WITNESSES, Bounds, Draft, Swap, World

__all__ = ["Change", "Changes", "Facts", "bits", "chain_of"]


class Change(NamedTuple):
    """What an input of one host does to a world."""

    state: int
    disk: int
    votes: int
    beat: int
    answer: int
    grants_lease: bool
    swap: int
    starts: bool
    agreed: tuple[int, ...]
    refused: bool


class Facts(NamedTuple):
    """What is asked of a host's state over and over."""

    waits: tuple[Wait, ...]
    guest: Guest
    asking: int
    """Which witness owes it an answer; NOTHING: none."""
    alone: bool
    in_sync: bool
    base: Grant | None
    probes: frozenset[int]
    """The witnesses that it may look at next."""
    vouched: bool
    views: tuple[int, ...]
    """What it knows of each witness; NOTHING if that is nothing, or if it takes them for lost."""


class Changes:
    """See the module."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.worker = Worker()
        self.witnesses = WITNESSES[: bounds.witness]
        self.disks: Table[AcceptorState] = Table()
        self.beats: Table[Beat] = Table()
        self.answers: Table[BeatAnswer] = Table()
        self.votes: Table[tuple[int, PeerMessage]] = Table()
        self.swaps: Table[Swap] = Table()
        self.orphans: Table[Swap] = Table()
        self.views: Table[WitnessView] = Table()
        self.stores: Table[tuple[WitnessView, ...]] = Table()
        self.grants: Table[Grant] = Table()
        self.agreed: Table[tuple[Grant, ...]] = Table()
        self.changes: dict[tuple[int, int, str, int], Change] = {}
        self.facts: list[Facts] = []
        self._kept: dict[tuple[int, int, int, int, int], int] = {}
        self._joined: dict[tuple[int, int], int] = {}
        self._trimmed: dict[tuple[int, int, int], int] = {}

    # ------------------------------------------------------------------ what comes of it

    def works(self, world: World, host: int, verb: str, key: int, *arguments: object) -> World:
        """The world after that input: method ``verb`` of the decider; ``key`` tells its arguments apart."""
        return self.works_on(Draft(world), host, verb, key, *arguments)

    def works_on(self, draft: Draft, host: int, verb: str, key: int, *arguments: object) -> World:
        """Likewise, of a world that is being changed."""
        self.work(draft, host, verb, key, *arguments)
        return self.sealed(draft)

    def work(self, draft: Draft, host: int, verb: str, key: int, *arguments: object) -> bool:
        """Likewise, unsealed; whether the input was taken."""
        state = draft.hosts[host]
        found = self.changes.get((host, state, verb, key))
        if found is None:
            method = verb.partition(" ")[0]
            if arguments and isinstance(arguments[0], Wait):
                method = "expired"
            found = self.change(host, self.worker.work(state, method, *arguments))
            self.changes[host, state, verb, key] = found
        if found.refused:
            return False
        self.apply(draft, host, found)
        if self.bounds.prompt and verb != Wait.BEAT.value:
            draft.beats = [NOTHING, NOTHING]  # lost: they can be sent again at any time
        return True

    def change(self, host: int, worked: Worked) -> Change:
        """An input's outcomes as a change of worlds."""
        votes, beat, answer, swap = 0, NOTHING, NOTHING, NOTHING
        grants_lease = starts = False
        agreed: list[int] = []
        for outcome in worked.outcomes:
            if isinstance(outcome, SendPeer):
                message = outcome.message
                if isinstance(message, Beat):
                    beat = self.beats.number(message)
                elif isinstance(message, BeatAnswer):
                    if message.number != STALE:
                        answer = self.answers.number(message)
                        grants_lease = grants_lease or message.granted
                else:
                    votes |= 1 << self.votes.number((1 - host, message))
            elif isinstance(outcome, AskWitness):
                if outcome.version is not None and outcome.state is not None:
                    witness = WITNESSES.index(outcome.witness)
                    swap = self.swaps.number(Swap(witness, outcome.version, outcome.state, None))
            elif isinstance(outcome, Own):
                starts = True
            elif isinstance(outcome, InForce):
                agreed.append(self.grants.number(outcome.grant))
            elif isinstance(outcome, TwoTruths) and outcome.ours.fork == outcome.theirs.fork:
                raise Violation(f"one-grant: {outcome.ours.describe()} and {outcome.theirs.describe()}")
        self._learn(worked.state)
        disk = self.disks.number(worked.disk)
        return Change(
            *(worked.state, disk, votes, beat, answer, grants_lease, swap, starts, tuple(agreed)),
            refused=worked.refused,
        )

    def _learn(self, state: int) -> None:
        if state < len(self.facts):
            return
        decider = self.worker.deciders[state]
        base = decider.base
        register = decider.register
        views = () if decider.witness_lost else register.views
        self.facts.append(
            Facts(
                waits=tuple(sorted(decider.waits, key=lambda wait: wait.value)),
                guest=decider.guest,
                asking=NOTHING if register.asking is None else WITNESSES.index(register.asking),
                alone=decider.peer_excluded,
                in_sync=base is not None and register.name in base.in_sync,
                base=base,
                probes=_probes(decider),
                vouched=decider.vouched and register.peer in decider.wanted,
                views=tuple(NOTHING if view is None else self.views.number(view) for view in views),
            )
        )

    def apply(self, draft: Draft, host: int, change: Change) -> None:
        """Make the change."""
        draft.hosts[host] = change.state
        draft.disks[host] = change.disk
        draft.votes |= change.votes
        if change.beat != NOTHING:
            draft.beats[host] = change.beat
        if change.answer != NOTHING:
            draft.answers[host] = change.answer
        if change.grants_lease:
            draft.leases |= 1 << (1 - host)
        under_way = draft.swaps[host]
        if under_way != NOTHING and self.swaps.values[under_way].witness != self.facts[change.state].asking:
            self.orphan(draft, host)  # it does not wait for it any more
        if change.swap != NOTHING:
            draft.swaps[host] = change.swap
        if change.starts:
            draft.running |= 1 << host
        for grant in change.agreed:
            key = draft.agreed, grant
            joined = self._joined.get(key)
            if joined is None:
                before = self.agreed.values[draft.agreed]
                joined = self.agreed.number(_agree(before, self.grants.values[grant]))
                self._joined[key] = joined
            draft.agreed = joined

    def sealed(self, draft: Draft) -> World:
        """Checked, and without what can do nothing any more."""
        if draft.running:
            self._check(draft)
        if draft.votes:
            key = (draft.votes, *draft.disks, *draft.hosts)
            kept = self._kept.get(key)  # type: ignore[arg-type]
            if kept is None:
                kept = 0
                for number in bits(draft.votes):
                    if self._matters(draft, *self.votes.values[number]):
                        kept |= 1 << number
                self._kept[key] = kept  # type: ignore[index]
            draft.votes = kept
        if draft.orphans:
            for number in bits(draft.orphans):
                swap = self.orphans.values[number]
                store = self.stores.values[draft.stores][swap.witness]
                if swap.version < store.version or swap.state.incarnation != store.incarnation:
                    draft.orphans &= ~(1 << number)
        trim = draft.agreed, draft.disks[0], draft.disks[1]
        trimmed = self._trimmed.get(trim)
        if trimmed is None:
            bases = [self.disks.values[disk].base for disk in draft.disks]
            oldest = min((0, 0) if base is None else base.order for base in bases)
            agreed = self.agreed.values[draft.agreed]
            newer = tuple(grant for grant in agreed if grant.order >= oldest)
            trimmed = self._trimmed[trim] = self.agreed.number(newer or agreed[-1:])
        draft.agreed = trimmed
        return draft.sealed()

    def orphan(self, draft: Draft, host: int) -> None:
        """The host has given its swap up; it may happen yet."""
        if draft.swaps[host] != NOTHING:
            swap = self.swaps.values[draft.swaps[host]]
            if swap.view is None:
                draft.orphans |= 1 << self.orphans.number(swap)
            draft.swaps[host] = NOTHING

    def rules(self, draft: Draft, host: int) -> bool:
        """Whether the host's grant is of the chain that counts: the one that a person has begun last."""
        base = self.facts[draft.hosts[host]].base
        spoken = draft.overrides != self.bounds.overrides
        return not spoken or (base is not None and base.fork == chain_of(draft.overrides + 1))

    def _check(self, draft: Draft) -> None:
        if draft.running == 3 and self._may_not_both(draft):
            raise Violation("two-guests: the guest runs on both hosts")
        for host in (0, 1):
            lacks = draft.running >> host & draft.lacking >> host & 1
            if lacks and self.facts[draft.hosts[host]].in_sync and self.rules(draft, host):
                raise Violation(f"lost-write: {HOSTS[host].decode()} runs and lacks an acknowledged write")

    def _may_not_both(self, draft: Draft) -> bool:
        """Before an override never; then a host that hears of it stops its guest, which takes time."""
        if draft.overrides == self.bounds.overrides:
            return True
        both_up = all(self.facts[state].guest is Guest.UP for state in draft.hosts)
        return both_up and all(self.rules(draft, host) for host in (0, 1))

    def _matters(self, draft: Draft, receiver: int, message: PeerMessage) -> bool:
        """Whether a message of a round can do more than teach."""
        base = message.base
        disk = self.disks.values[draft.disks[receiver]]
        if base is None or (disk.base is not None and disk.base.order > base.order):
            return False
        if isinstance(message, Prepare | Accept):
            return disk.base != base or message.ballot >= disk.promised
        state = draft.hosts[receiver]
        current = self.worker.deciders[state].register.round if state != DOWN else None
        if current is None or current.ballot != getattr(message, "ballot", None):
            return False
        return not (isinstance(message, Accepted) and current.value is None)


def _agree(agreed: tuple[Grant, ...], grant: Grant) -> tuple[Grant, ...]:
    for each in agreed:
        if (each.order, each.fork) == (grant.order, grant.fork):
            if each != grant:
                raise Violation(f"one-grant: {each.describe()} and {grant.describe()}")
            return agreed
    if grant.in_sync == {grant.owner} and grant.sole != grant.owner_id:
        raise Violation(f"alone: {grant.describe()} needs others for the next change")
    return tuple(sorted((*agreed, grant), key=lambda each: (each.order, each.fork)))


def chain_of(override: int) -> bytes:
    """The chain that the override begins with which so many are left, itself included."""
    return CHAIN + b" %d" % override


def _probes(decider: Decider) -> frozenset[int]:
    register, every = decider.register, range(len(decider.register.witnesses))
    voter = register.voting_witness()
    if decider.owns:
        return frozenset(every[decider.current : decider.current + 1])
    if voter is not None:
        return frozenset({register.witnesses.index(str(voter.name))})
    return frozenset(every) if decider.promise_out else frozenset()


def bits(number: int) -> Iterator[int]:
    """The members of a set of bits."""
    while number:
        lowest = number & -number
        yield lowest.bit_length() - 1
        number ^= lowest
