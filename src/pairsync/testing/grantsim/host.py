"""A simulated host under arbitration: its `Arbiter`, its `Session`, its memory, its guard, its clock.

What ``guest.arbitration`` does with tasks is done here with timers: effects at once and in order; changes of
the role are made by `roles`.

A host that stands still (`process`) does nothing, the guest in it goes on, and the guard, a process of its
own, kills both when the lease runs out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pairsync.core.acceptor import AcceptorState, gives_way
from pairsync.core.arbiter import Arbiter
from pairsync.core.arbitration import (
    Effect,
    InForce,
    LeaseUntil,
    Own,
    PeerMessage,
    PersistAcceptor,
    SendPeer,
    Stop,
    TwoTruths,
    WitnessGet,
    WitnessSwap,
    WitnessView,
    Yield,
)
from pairsync.core.claims import claim_of, peer_is_newer
from pairsync.core.grants import FORK_BYTES, INCARNATION_BYTES, Grant, HostId, VoterId
from pairsync.core.messages import Condition, Message, Role
from pairsync.core.units import NS_PER_S

from .medium import Medium
from .mending import Mending
from .plane import Plane
from .witness import Seen

if TYPE_CHECKING:
    from .world import GrantWorld

__all__ = ["GrantHost", "host_id"]

SESSION_TICK_NS = NS_PER_S // 2


def host_id(index: int) -> HostId:
    """The fingerprint of that host's key."""
    return bytes([0xA0 + index]) * 32


class GrantHost(Mending):
    """See the module."""

    def __init__(self, world: GrantWorld, index: int, media: list[Medium], memory: AcceptorState) -> None:
        super().__init__(world, index, media)
        self.id = host_id(index)
        self.memory = memory  # what is durable of it
        self.timing = world.profile.timing  # of its next life
        self.promise_ns: int | None = self.timing.promise_ns  # durable, too (`core.promises`)
        self.up = False
        self.digests_settled = True  # as `storage.digestheader.HeaderKeeper` records it
        self.seen: dict[str, Seen] = {}
        self.session_with = 0  # the life of the peer that the session of the link is with
        self._writes: list[PersistAcceptor] = []  # of the memory, under way
        self._memory_free_ns = 0
        self._questions: set[int] = set()
        self._ready = (False, False)
        self._tick_ns = 0

    # ------------------------------------------------------------------ life

    @property
    def serves(self) -> bool:
        """Whether the guest runs here, by true time.

        On a machine that has stood still for too long it does until the guard is awake, but nobody sees that:
        its volumes are served on a lease that holds only.
        """
        if self.plane is None or not self.plane.serves or self.asleep:
            return False
        return not self.slept or self.guard_ns is None or self.now_ns < self.guard_ns

    @property
    def voter(self) -> VoterId:
        """This host's memory."""
        return self.memory.voter(self.id)

    def content(self) -> list[int]:
        """Of all volumes, one after the other."""
        return [value for medium in self.media for value in medium.stores.disk.content]

    @property
    def base(self) -> Grant | None:
        """The newest grant that this host knows to be decided."""
        return self.memory.base if self.arbiter is None else self.arbiter.decider.base

    def start(self) -> None:
        """A process begins, as a standby, with what it finds."""
        world = self._world
        self.new_life()
        self.up = True
        self.release = self.installed
        world.network.meet()
        self._writes, self._questions = [], set()
        self.wish, self._ready, self.alone = None, (False, False), False
        self.changing = self.ending = False
        self.lease_ns = self.guard_ns = None
        self._tick_ns = 0
        self.seen = {}
        world.trace.note(self.name, "start", self.life)
        self._recall()
        ill = "its disk does not work" if self.sick else ""
        self.plane = Plane(world, self, self.media, Role.STANDBY, 1, ill=ill)
        self.arbiter = Arbiter(
            self.id,
            host_id(1 - self.index),
            self.memory,
            self.timing,
            witnesses=world.profile.witnesses,
            promise_ns=self.promise_ns,
            first_number=self._random.getrandbits(62),
            fraction=self._random.random,
        )
        self.act(self.arbiter.start(self.now_ns))
        if ill:
            world.coverage.reach("begins-ill")
            self.mend(self.plane)
        self.perform()
        self.after(self._random.randrange(SESSION_TICK_NS), self._session_tick)
        world.network.link.host_up()

    def crash(self, *, power: bool, why: str) -> None:
        """The process is gone, and the guest with it; with ``power`` the whole machine."""
        world = self._world
        world.trace.note(self.name, why, self.life)
        if self.plane is not None:
            self.plane.crash(power=power)
        done = self._random.randrange(len(self._writes) + 1)
        if done:
            self.memory, self.promise_ns = self._writes[done - 1]
        self._writes = []
        self.up = False
        self.new_life()
        self.plane = self.arbiter = None
        self.guard_ns = None
        world.guest.host_died(self)
        world.network.link.host_down(self.index, silent=power)
        world.network.settle()
        world.changed()

    def freeze(self, *, asleep: bool = False) -> None:
        """It stands still; ``asleep``: its whole machine."""
        self.stand_still(asleep=asleep)
        self._world.trace.note(self.name, "frozen", self.life, asleep)
        self._world.network.settle()
        self._world.changed()

    def thaw(self) -> None:
        """It goes on, with what has come in meanwhile."""
        if not self.frozen:
            return
        self._world.trace.note(self.name, "thawed", self.life)
        self.go_on()
        self._world.network.settle()
        self._world.changed()

    def forget(self, *, restored: AcceptorState | None) -> None:
        """Its memory was lost, or put back from a copy: it is another voter (as ``node.arbitrate``)."""
        base = restored.base if restored is not None else None
        self.memory = AcceptorState(self._random.randbytes(INCARNATION_BYTES), base)

    def _recall(self) -> None:
        """As ``node.arbitrate``: with disks that are seen to be empty it does not go on as the owner."""
        blocks = [each.stores.metadata.superblock for each in self.media if not self.sick]
        blank = any(block.condition is Condition.BLANK for block in blocks)
        if blank and gives_way(self.memory, self.id):
            self.forget(restored=self.memory)

    # ------------------------------------------------------------------ the session

    def perform(self) -> None:
        """After every input: what the session wants done, and what the arbiter is to know of it."""
        if self.plane is not None:
            self.plane.perform()
            self._look()

    def _session_tick(self) -> None:
        if self.plane is not None:
            if not self.plane.deaf:
                self.plane.session.tick(self.now_ns)
            self.watch_disks()
            self.perform()
            self.after(SESSION_TICK_NS, self._session_tick)

    def link_up(self) -> None:
        """The link has a session."""
        self.session_with = self._world.hosts[1 - self.index].life
        self.defer(self._link_up)

    def _link_up(self) -> None:
        plane, arbiter = self.plane, self.arbiter
        if plane is None or arbiter is None:
            return
        self.act(arbiter.link_up(self.now_ns))
        plane.deaf = plane.paused or bool(plane.ill)
        if not plane.deaf:
            plane.session.connected(self.now_ns)
            self.perform()

    def link_lost(self, reason: str) -> None:
        """It is over."""
        self.defer(self._link_lost, reason)

    def _link_lost(self, reason: str) -> None:
        if self.plane is not None:
            self.plane.deaf = False
            self.plane.session.lost(reason, self.now_ns)
            self.perform()

    def link_received(self, messages: Sequence[Message]) -> None:
        """Messages of the stream."""
        self.defer(self._link_received, messages)

    def _link_received(self, messages: Sequence[Message]) -> None:
        if self.plane is not None and not self.plane.deaf:
            self.plane.session.received(messages, self.now_ns)
            self.perform()

    def ask_alone(self) -> None:
        """As ``guest.arbitration.ask_alone``."""
        if self.arbiter is None or self.plane is None:
            return
        if self.arbiter.peer_excluded:
            self.permit(alone=True)
        else:
            self.act(self.arbiter.peer_out(self.now_ns))

    def _look(self) -> None:
        """As ``guest.arbitration``: whether the disks could serve, and whether the peer may be counted in."""
        plane, arbiter = self.plane, self.arbiter
        if plane is None or arbiter is None:
            return
        ready = plane.could_serve(claim_of(arbiter))
        peer_newer = not ready and peer_is_newer(plane.session)
        if (ready, peer_newer) != self._ready:
            self._ready = ready, peer_newer
            self.act(arbiter.is_ready(ready, self.now_ns, peer_newer=peer_newer))
        if plane.serves:
            self.vouch()

    def vouch(self) -> None:
        """As ``guest.arbitration``."""
        plane, arbiter = self.plane, self.arbiter
        if plane is None or arbiter is None or not plane.session.in_sync:
            return
        if arbiter.wants_proof(plane.session.term):
            _, effects = arbiter.peer_in(self.now_ns)
            self.act(effects)

    # ------------------------------------------------------------------ what others say

    def voted(self, message: PeerMessage) -> None:
        """A vote of the peer has arrived."""
        if self.up:
            self._clock.after(0, self.due, self.life, self._voted, (message,))

    def _voted(self, message: PeerMessage) -> None:
        if self.arbiter is not None:
            self.act(self.arbiter.hears(message, self.now_ns))

    def witness_says(self, life: int, question: WitnessGet | WitnessSwap, view: WitnessView) -> None:
        """A witness has answered."""
        self.due(life, self._witness_says, (question, view))

    def _witness_says(self, question: WitnessGet | WitnessSwap, view: WitnessView) -> None:
        if self.arbiter is None or question.number not in self._questions:
            return
        self._questions.discard(question.number)
        known = self.seen.get(question.witness)
        if known is not None and known.incarnation == view.incarnation and view.version < known.version:
            self.act(self.arbiter.unreachable(question.number, question.witness, self.now_ns))
            return  # as ``io.witness``: it went back
        self.seen[question.witness] = Seen(view.incarnation, view.version)
        self.act(self.arbiter.answered(question.number, question.witness, view, self.now_ns))

    def witness_fails(self, life: int, question: WitnessGet | WitnessSwap) -> None:
        """It cannot be reached, or has not answered for too long."""
        self.due(life, self._witness_fails, (question,))

    def _witness_fails(self, question: WitnessGet | WitnessSwap) -> None:
        if self.arbiter is not None and question.number in self._questions:
            self._questions.discard(question.number)
            self.act(self.arbiter.unreachable(question.number, question.witness, self.now_ns))

    def move(self) -> str:
        """An operator wants the peer to own the guest; why not, or ""."""
        if self.arbiter is None or self.frozen:
            return "down"
        refusal, effects = self.arbiter.move(self.now_ns)
        self.act(effects)
        return refusal

    def override(self) -> None:
        """An operator makes this host the owner."""
        if self.arbiter is not None and self.plane is not None:
            fork, term = self._random.randbytes(FORK_BYTES), self.plane.session.term
            self.act(self.arbiter.override("operator", fork, self.now_ns, term))

    # ------------------------------------------------------------------ effects

    def act(self, effects: Sequence[Effect]) -> None:
        """Perform these, and take back the permit if it does not hold any more."""
        for effect in effects:
            self._perform_effect(effect)
        arbiter = self.arbiter
        if arbiter is None:
            return
        if self.alone and not arbiter.peer_excluded:
            self.permit(alone=False)
        self._schedule_tick()

    def _perform_effect(self, effect: Effect) -> None:
        world = self._world
        match effect:
            case SendPeer(message=message):
                world.network.vote(self.index, message)
            case PersistAcceptor():
                self._write_memory(effect)
            case WitnessGet(witness=name) | WitnessSwap(witness=name):
                self._questions.add(effect.number)
                world.network.ask(self, world.witnesses[name], effect)
            case LeaseUntil(until_ns=until_ns):
                self.lease_ns = until_ns
                self.set_guard(until_ns)
            case InForce(grant=grant):
                world.checker.in_force(self, grant)
                if self.arbiter is not None:
                    self.permit(alone=self.arbiter.peer_excluded)
            case TwoTruths():
                world.checker.two_truths(self, effect)
            case Own() | Stop() | Yield():
                world.trace.note(self.name, type(effect).__name__.lower(), 0, effect)
                self.wish = effect
                self.follow()

    def permit(self, *, alone: bool) -> None:
        """As ``guest.arbitration`` does."""
        self.alone = alone
        if self.plane is not None and self.arbiter is not None:
            insisted = claim_of(self.arbiter).insisted
            self.plane.session.permitted(self.now_ns, alone=alone, insisted=insisted)
            self.plane.perform()

    def _write_memory(self, write: PersistAcceptor) -> None:
        self._writes.append(write)
        self._world.faults.ambush(self)
        cost_ns = int(self._world.profile.memory_ns * (0.2 + 0.8 * self._random.random()))
        self._memory_free_ns = max(self._memory_free_ns, self._clock.now) + cost_ns
        self._clock.at(self._memory_free_ns, self.due, self.life, self._memory_written, ())

    def _memory_written(self) -> None:
        self.memory, self.promise_ns = self._writes.pop(0)
        if self.arbiter is not None:
            self.act(self.arbiter.persisted(self.now_ns))
            self.perform()

    def _schedule_tick(self) -> None:
        next_ns = None if self.arbiter is None else self.arbiter.next_deadline_ns()
        if next_ns is not None and not (self.now_ns < self._tick_ns <= next_ns):
            self._tick_ns = next_ns
            self.after(next_ns - self.now_ns, self._tick, next_ns)

    def _tick(self, at_ns: int) -> None:
        if self.arbiter is not None and (at_ns == self._tick_ns or self._tick_ns <= self.now_ns):
            self._tick_ns = 0  # also where the clock's rate has changed, and it is not due yet
            self.act(self.arbiter.tick(self.now_ns))
            self.perform()
