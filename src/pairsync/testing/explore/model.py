"""The model: what may happen next in a world (`world`), within bounds."""

from __future__ import annotations

from collections.abc import Iterator

from pairsync.core.acceptor import AcceptorState
from pairsync.core.arbitration import PeerMessage, WitnessView
from pairsync.core.decider import Decider
from pairsync.core.grants import Grant, VoterId, genesis
from pairsync.core.outcomes import Guest, Wait

from .changes import Changes, Facts, bits, chain_of
from .hosts import Violation
from .world import CHAIN, DOWN, FRESH, HOSTS, NOTHING, STALE, WITNESSES, Bounds, Draft, Swap, World

__all__ = ["Model"]

_WARMING = (
    *("reads W", "reads V", "swap happens", "of its swap", "wait beat ends"),
    *("Beat asking", "BeatAnswer asking", "BeatAnswer granted"),
)
_ALARMS = frozenset({Wait.SILENCE, Wait.PROMISE, Wait.ROUND, Wait.LOST})


class Model(Changes):
    """See the module."""

    def __init__(self, bounds: Bounds) -> None:
        super().__init__(bounds)
        self._inside: dict[tuple[int, int, int, int], bool] = {}

    # ------------------------------------------------------------------ beginnings

    def start(self) -> World:
        """Both hosts up."""
        bounds = self.bounds
        a, b = (VoterId(host, host + b"1") for host in HOSTS)
        first = genesis(a, CHAIN)
        base_b: Grant | None = None
        stores = [WitnessView(_first_memory(name), 0, None) for name in self.witnesses]
        if bounds.paired:
            preferred = {VoterId(name, _first_memory(name)) for name in self.witnesses[:1]}
            voters = {a, b} | preferred if preferred else {a}
            first = first._replace(epoch=2, in_sync=frozenset(HOSTS), voters=frozenset(voters))
            base_b = first
            stores[:1] = [each._replace(state=AcceptorState(each.incarnation, first)) for each in stores[:1]]
        disks = (AcceptorState(a.incarnation, first), AcceptorState(b.incarnation, base_b))
        world = (
            *(DOWN, DOWN),
            *(self.disks.number(disk) for disk in disks),
            *(NOTHING,) * 6,
            *(0, 0 if bounds.paired else 2, 0, 0),
            self.stores.number(tuple(stores)),
            *(0, self.agreed.number((first,))),
            *(bounds.crashes, bounds.amnesias, bounds.alarms, bounds.moves, bounds.overrides),
        )
        return self._warm(self._comes_up(self._comes_up(world, 0), 1))

    def _warm(self, world: World) -> World:
        """Everybody is up, has read the witness and heard the other; the rest is explored."""
        seen = {world}
        while True:
            follow = [after for name, after in self.steps(world) if name.endswith(_WARMING)]
            later = next((after for after in follow if after not in seen), None)
            if later is None:
                return world
            world = later
            seen.add(world)

    def _comes_up(self, world: World, host: int) -> World:
        disk = world[2 + host]
        key = (host, disk, "start", 0)
        change = self.changes.get(key)
        if change is None:

            def make() -> Decider:
                return Decider(HOSTS[host], HOSTS[1 - host], self.disks.values[disk], self.witnesses)

            change = self.changes[key] = self.change(host, self.worker.begin(make))
        draft = Draft(world)
        self.apply(draft, host, change)
        if self.bounds.prompt:
            draft.beats = [NOTHING, NOTHING]
        return self.sealed(draft)

    # ------------------------------------------------------------------ what may happen

    def steps(self, world: World) -> Iterator[tuple[str, World]]:
        """What may happen next, with a name for people; raises `Violation`."""
        for name, after in self._happens(world):
            yield from self._settled(name, after)

    def _settled(self, name: str, world: World) -> Iterator[tuple[str, World]]:
        """Then what is settled at once: a host reads the witness, a heartbeat arrives or not."""
        if not self._unsettled(world):
            yield name, world
            return
        for more, after in self._happens(world):
            yield from self._settled(f"{name}; {more}", after)

    def _unsettled(self, world: World) -> bool:
        if self.bounds.prompt and max(world[4:8]) != NOTHING:
            return True
        return any(
            world[host] != DOWN and self.facts[world[host]].asking != NOTHING and world[8 + host] == NOTHING
            for host in (0, 1)
        )

    def _happens(self, world: World) -> Iterator[tuple[str, World]]:
        for host in (0, 1):
            asks = world[host] != DOWN and self.facts[world[host]].asking != NOTHING
            if asks and world[8 + host] == NOTHING:
                yield from self._reads(world, host)
                return
        if self.bounds.prompt and max(world[4:8]) != NOTHING:
            yield from self._prompt(world)
            return
        for host in (0, 1):
            if world[host] == DOWN:
                yield f"{_name(host)} comes up", self._comes_up(world, host)
                continue
            yield from self._messages(world, host)
            yield from self._waits(world, host)
            if self.facts[world[host]].asking != NOTHING:
                yield from self._swapping(world, host)
            yield from self._guest(world, host)
            if world[21]:
                yield from self._overrides(world, host)
            if world[17]:
                yield from self._crashes(world, host)
        yield from self._store(world)

    def _messages(self, world: World, host: int) -> Iterator[tuple[str, World]]:
        for number in bits(world[13]):
            receiver, message = self.votes.values[number]
            if receiver == host:
                after = self.works(world, host, "hears", number, message)
                yield f"{_name(host)} hears {_terse(message)}", after
        yield from self._heartbeats(world, host)

    def _prompt(self, world: World) -> Iterator[tuple[str, World]]:
        """What becomes of the heartbeat that is under way; that it is lost is as if it had not been sent."""
        for host in (0, 1):
            if world[host] != DOWN:
                yield from self._heartbeats(world, host)
        if max(world[6:8]) != NOTHING:
            draft = Draft(world)
            draft.answers = [NOTHING, NOTHING]
            yield "its answer is lost", self.sealed(draft)

    def _heartbeats(self, world: World, host: int) -> Iterator[tuple[str, World]]:
        beat, answer = world[4 + 1 - host], world[6 + 1 - host]
        if beat != NOTHING:
            heard = self.beats.values[beat]
            draft = Draft(world)
            draft.beats[1 - host] = NOTHING
            name = f"{_name(host)} hears {_terse(heard)}"
            yield name, self.works_on(draft, host, "hears beat", beat, heard)
        if answer != NOTHING:
            told = self.answers.values[answer]
            draft = Draft(world)
            draft.answers[1 - host] = NOTHING
            name = f"{_name(host)} hears {_terse(told)}"
            yield name, self.works_on(draft, host, "hears answer", answer, told)

    def _waits(self, world: World, host: int) -> Iterator[tuple[str, World]]:
        facts = self.facts[world[host]]
        name = _name(host)
        for wait in facts.waits:
            if wait is Wait.LEASE or (wait is Wait.PROMISE and world[12] >> (1 - host) & 1):
                continue
            if wait in {Wait.PROBE, Wait.HOME} and facts.asking != NOTHING:
                continue
            if wait is Wait.PROBE and self._knows(world, facts):
                continue  # it would read what it knows
            if wait not in _ALARMS:
                yield f"{name}'s wait {wait.value} ends", self.works(world, host, wait.value, 0, wait)
            elif world[19]:
                draft = Draft(world)
                draft.alarms -= 1
                yield f"{name}'s wait {wait.value} ends", self.works_on(draft, host, wait.value, 0, wait)
        if world[19] and (world[12] >> host & 1 or Wait.LEASE in facts.waits):
            draft = Draft(world)
            draft.alarms -= 1
            self._forget_beats(draft, host)
            self.work(draft, host, "lease", 0, Wait.LEASE)
            if self.facts[draft.hosts[host]].guest is not Guest.UP:
                draft.running &= ~(1 << host)  # by the guard
            yield f"{name}'s lease ends", self.sealed(draft)

    def _knows(self, world: World, facts: Facts) -> bool:
        """Whether the witnesses that it would look at hold what it has seen."""
        stores = self.stores.values[world[14]]
        return all(
            facts.views[each : each + 1] == (self.views.number(stores[each]),) for each in facts.probes
        )

    def _forget_beats(self, draft: Draft, host: int) -> None:
        """No answer to what the host has asked so far gives it a lease any more."""
        beat, answer = draft.beats[host], draft.answers[1 - host]
        if beat != NOTHING and self.beats.values[beat].number == FRESH:
            draft.beats[host] = self.beats.number(self.beats.values[beat]._replace(number=STALE))
        if answer != NOTHING and self.answers.values[answer].number == FRESH:
            draft.answers[1 - host] = NOTHING
        draft.leases &= ~(1 << host)

    def _reads(self, world: World, host: int) -> Iterator[tuple[str, World]]:
        asked = self.facts[world[host]].asking
        view, witness = self.stores.values[world[14]][asked], WITNESSES[asked]
        name = _name(host)
        key = self.views.number(view)
        yield f"{name} reads {witness}", self.works(world, host, "answered", key, witness, view)
        if world[19]:
            draft = Draft(world)
            draft.alarms -= 1
            after = self.works_on(draft, host, "unreachable", asked, witness)
            yield f"{name} cannot read {witness}", after

    def _swapping(self, world: World, host: int) -> Iterator[tuple[str, World]]:
        number = world[8 + host]
        swap = self.swaps.values[number]
        name = _name(host)
        draft = Draft(world)
        if swap.view is None:
            self._swap(draft, swap)
            done = swap._replace(view=self.stores.values[draft.stores][swap.witness])
            draft.swaps[host] = self.swaps.number(done)
            yield f"{name}'s swap happens", self.sealed(draft)
        else:
            draft.swaps[host] = NOTHING
            view = self.views.number(swap.view)
            after = self.works_on(draft, host, "answered", view, WITNESSES[swap.witness], swap.view)
            yield f"{name} hears of its swap", after
        if world[19]:
            draft = Draft(world)
            draft.alarms -= 1
            self.orphan(draft, host)
            witness = WITNESSES[swap.witness]
            after = self.works_on(draft, host, "unreachable", swap.witness, witness)
            yield f"{name} gives {witness} up", after

    def _swap(self, draft: Draft, swap: Swap) -> None:
        store = self.stores.values[draft.stores][swap.witness]
        if swap.version == store.version and swap.state.incarnation == store.incarnation:
            self._holds(draft, swap.witness, WitnessView(store.incarnation, swap.version + 1, swap.state))

    def _holds(self, draft: Draft, witness: int, view: WitnessView) -> None:
        stores = self.stores.values[draft.stores]
        draft.stores = self.stores.number((*stores[:witness], view, *stores[witness + 1 :]))

    def _store(self, world: World) -> Iterator[tuple[str, World]]:
        for number in bits(world[15]):
            draft = Draft(world)
            draft.orphans &= ~(1 << number)
            self._swap(draft, self.orphans.values[number])
            yield "a swap that was given up happens", self.sealed(draft)
        for witness, store in enumerate(self.stores.values[world[14]]):
            if world[17] and world[18] and store.incarnation.endswith(b"1"):
                draft = Draft(world)
                draft.crashes -= 1
                draft.amnesias -= 1
                self._holds(draft, witness, WitnessView(store.incarnation[:1] + b"2", 0, None))
                yield f"{WITNESSES[witness]} loses its memory", self.sealed(draft)

    def _guest(self, world: World, host: int) -> Iterator[tuple[str, World]]:
        facts = self.facts[world[host]]
        name = _name(host)
        if facts.guest is Guest.STOPPING:
            draft = Draft(world)
            draft.running &= ~(1 << host)
            yield f"{name}'s guest is down", self.works_on(draft, host, "stopped", 0)
        if not world[10] >> host & 1:
            return
        if facts.alone:
            yield f"{name} acknowledges alone", self._acknowledges(world, host, facts)
        if facts.base is None or world[1 - host] == DOWN or world[10] >> (1 - host) & 1:
            return  # what is served there is no standby's replica
        theirs = self.facts[world[1 - host]].base
        if not facts.vouched and (theirs is None or theirs.term <= facts.base.term):
            draft = Draft(world)
            if self.work(draft, host, "peer_in", 0):
                if self.rules(draft, host):
                    draft.lacking &= ~(1 << (1 - host))
                yield f"{name} vouches for the peer", self.sealed(draft)
        if world[19]:
            draft = Draft(world)
            draft.alarms -= 1
            yield f"{name} wants the peer out", self.works_on(draft, host, "peer_out", 0)
        if world[20]:
            draft = Draft(world)
            draft.moves -= 1
            if self.work(draft, host, "move", 0):
                yield f"{name} is to move the guest", self.sealed(draft)

    def _acknowledges(self, world: World, host: int, facts: Facts) -> World:
        draft, base = Draft(world), facts.base
        if base is None or not self.rules(draft, host):
            return world  # it counts for nothing
        newest = max(
            (each for each in self.agreed.values[world[16]] if each.fork == base.fork),
            key=lambda each: each.order,
            default=base,
        )
        if newest.term > base.term and newest.owner != HOSTS[host]:
            raise Violation(f"stale: {_name(host)} acknowledges alone after {newest.describe()}")
        draft.lacking |= 1 << (1 - host)
        return self.sealed(draft)

    def _overrides(self, world: World, host: int) -> Iterator[tuple[str, World]]:
        """What it has is the truth from now on, and the other one's replica lacks something of it."""
        draft = Draft(world)
        fork = chain_of(world[21])
        draft.overrides -= 1
        draft.lacking = 1 << (1 - host)
        yield (
            f"{_name(host)} is made the owner",
            self.works_on(draft, host, "override", world[21], "op", fork),
        )

    def _crashes(self, world: World, host: int) -> Iterator[tuple[str, World]]:
        for amnesia in (False, True):
            disk = self.disks.values[world[2 + host]]
            if amnesia and not (world[18] and disk.incarnation.endswith(b"1")):
                continue
            draft = Draft(world)
            draft.crashes -= 1
            self._forget_beats(draft, host)
            self.orphan(draft, host)
            draft.hosts[host] = DOWN
            draft.running &= ~(1 << host)
            if amnesia:
                draft.amnesias -= 1
                draft.disks[host] = self.disks.number(AcceptorState(HOSTS[host] + b"2"))
                draft.lacking |= 1 << host
            yield f"{_name(host)} crashes{' and loses its memory' * amnesia}", self.sealed(draft)

    def inside(self, world: World) -> bool:
        """Whether the world is within the bounds, so that its steps are explored too."""
        key = (world[2], world[3], world[14], world[16])
        found = self._inside.get(key)
        if found is None:
            newest = self.agreed.values[world[16]][-1]
            promised = [self.disks.values[disk].promised.counter for disk in world[2:4]]
            states = [each.state for each in self.stores.values[world[14]]]
            promised += [0 if state is None else state.promised.counter for state in states]
            bounds = self.bounds
            found = newest.term <= bounds.terms and newest.epoch <= bounds.epochs
            found = self._inside[key] = found and max(promised) <= bounds.ballots
        return found


def _first_memory(witness: str) -> bytes:
    return witness.encode() + b"1"


def _name(host: int) -> str:
    return HOSTS[host].decode()


def _terse(message: PeerMessage) -> str:
    base = message.base
    at = "-" if base is None else f"{base.term}.{base.epoch}"
    kind = type(message).__name__
    ballot = getattr(message, "ballot", None)
    if ballot is not None:
        return f"at {at} {kind} {ballot.counter}{ballot.proposer.decode()}"
    granted = " granted" if getattr(message, "granted", False) else ""
    asking = {0: "", FRESH: " asking", STALE: " stale"}[getattr(message, "number", 0)]
    return f"at {at} {kind}{granted or asking}"
