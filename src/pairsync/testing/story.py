"""Stories of arbitration: two hosts with their arbiters and a witness, in simulated time.

The data plane is the simplest one: its session is lost when a process ends (`Arbiter.peer_out` at once) and
silent when a link is cut; `PROOF_NS` after the hosts can talk again the replica that is out is proven.  Two
guests at once, or a guest that lacks what was acknowledged, end the story.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from pairsync.core.acceptor import AcceptorState
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
from pairsync.core.grants import Grant, VoterId, genesis
from pairsync.core.timing import Timing, derive
from pairsync.core.units import NS_PER_MS
from pairsync.errors import ConfigError, InternalError

__all__ = ["Story", "StoryHost", "describe_grant"]

DELAY_NS = 2 * NS_PER_MS
"""Of a message between the hosts."""
WITNESS_DELAY_NS = 5 * NS_PER_MS
PERSIST_NS = 1 * NS_PER_MS
STOP_NS = 10 * NS_PER_MS
PROOF_NS = 300 * NS_PER_MS
"""From the first word of the peer until its replica is proven."""
EVENTS_MAX = 200_000
"""Of one command; more is a loop."""


class StoryHost:
    """One host: its process (``arbiter``), its disk, and the guest with its guard."""

    def __init__(self, name: str, story: Story, disk: AcceptorState) -> None:
        self.name = name
        self.id = name.encode() * 32
        self.disk = disk
        self.promise_ns: int | None = story.timing.promise_ns  # likewise durable
        self.arbiter: Arbiter | None = None
        self.life = 0
        """Of the process: what was begun in another life ends in nothing."""
        self.running = False
        self.lacking = False
        self.guard_ns: int | None = None
        self.paused: list[Callable[[], None]] | None = None
        self._story = story
        self._proving = False

    @property
    def other(self) -> StoryHost:
        """The peer."""
        return self._story.b if self is self._story.a else self._story.a

    def start(self) -> None:
        """The process begins, the guest's volumes can be served."""
        story = self._story
        self.life += 1
        self.arbiter = Arbiter(
            self.id,
            self.other.id,
            self.disk,
            story.timing,
            witnesses=story.witnesses,
            promise_ns=self.promise_ns,
            first_number=self.life << 32,
            fraction=lambda: 0.5,
        )
        self.perform(self.arbiter.start(story.now_ns))
        self.perform(self.arbiter.is_ready(True, story.now_ns))

    def crash(self) -> None:
        """The process ends, and the guest with it; the peer's connection breaks."""
        self.arbiter, self.running, self.guard_ns, self.paused = None, False, None, None
        self.life += 1
        peer = self.other
        if self._story.joined("a-b"):
            peer.does(lambda arbiter, now_ns: arbiter.peer_out(now_ns))

    def does(self, input_of: Callable[[Arbiter, int], list[Effect]]) -> None:
        """Give the arbiter an input, now or when the process goes on."""
        if self.arbiter is None:
            return
        if self.paused is not None:
            self.paused.append(lambda: self.does(input_of))
            return
        self.perform(input_of(self.arbiter, self._story.now_ns))

    def later(self, delay_ns: int, input_of: Callable[[Arbiter, int], list[Effect]]) -> None:
        """Likewise after a while, in this life."""
        life = self.life
        self._story.at(
            self._story.now_ns + delay_ns, lambda: self.does(input_of) if self.life == life else None
        )

    def perform(self, effects: list[Effect]) -> None:
        """Do what the arbiter wants."""
        for effect in effects:
            self._perform(effect)
        self._wake()
        self._prove()
        self._acknowledge()

    def _perform(self, effect: Effect) -> None:
        story = self._story
        if isinstance(effect, PersistAcceptor):
            written_down = effect

            def written(arbiter: Arbiter, now_ns: int) -> list[Effect]:
                self.disk, self.promise_ns = written_down
                return arbiter.persisted(now_ns)

            self.later(PERSIST_NS, written)
        elif isinstance(effect, SendPeer):
            story.send(self, effect.message)
        elif isinstance(effect, WitnessGet | WitnessSwap):
            story.ask(self, effect)
        elif isinstance(effect, LeaseUntil):
            self.guard_ns = effect.until_ns
            if effect.until_ns is not None:
                story.at(effect.until_ns, self._guard)
        else:
            self._tell(effect)

    def _tell(self, effect: Effect) -> None:
        story = self._story
        if isinstance(effect, Own):
            story.say(self, f"own {describe_grant(effect.grant)}")
            self.running = True
            story.check()
        elif isinstance(effect, Stop):
            story.say(self, f"stop: {effect.reason}")
            self.later(STOP_NS, self._is_down)
        elif isinstance(effect, Yield):
            story.say(self, f"stand by under {describe_grant(effect.grant)}")
        elif isinstance(effect, InForce):
            alone = ", acknowledge alone" if effect.peer_excluded else ""
            story.say(self, f"in force {describe_grant(effect.grant)}{alone}")
        elif isinstance(effect, TwoTruths):
            story.say_once(
                self, f"two truths: {describe_grant(effect.ours)} and {describe_grant(effect.theirs)}"
            )

    def _is_down(self, arbiter: Arbiter, now_ns: int) -> list[Effect]:
        self.running = False
        return arbiter.stopped(now_ns)

    def _guard(self) -> None:
        if self.running and self.guard_ns is not None and self._story.now_ns >= self.guard_ns:
            self._story.say(self, "the guard kills the guest")
            self.running, self.guard_ns = False, None
            self.does(lambda arbiter, now_ns: arbiter.stopped(now_ns))

    def _wake(self) -> None:
        if self.arbiter is None:
            return
        deadline_ns = self.arbiter.next_deadline_ns()
        if deadline_ns is not None:
            life = self.life
            at_ns = max(deadline_ns, self._story.now_ns)
            self._story.at(at_ns, lambda: self._ring() if self.life == life else None)

    def _ring(self) -> None:
        if self.arbiter is None:
            return
        deadline_ns = self.arbiter.next_deadline_ns()
        if deadline_ns is not None and deadline_ns <= self._story.now_ns:
            self.does(lambda arbiter, now_ns: arbiter.tick(now_ns))

    def _prove(self) -> None:
        """Prove the peer's replica, if it is out and the hosts can talk."""
        if not self._proving and self._may_prove():
            self._proving = True
            life, peers = self.life, self.other.life

            def proven() -> None:
                self._proving = False
                if (self.life, self.other.life) == (life, peers) and self._may_prove():
                    self.does(self._vouch)

            self._story.at(self._story.now_ns + PROOF_NS, proven)

    def _may_prove(self) -> bool:
        arbiter = self.arbiter
        if arbiter is None or not self.running or arbiter.grant is None or self.other.arbiter is None:
            return False
        decider = arbiter.decider
        theirs = self.other.arbiter.grant
        if theirs is not None and theirs.term > arbiter.grant.term:
            return False
        return self._story.joined("a-b") and decider.peer_alive and not decider.vouched

    def _vouch(self, arbiter: Arbiter, now_ns: int) -> list[Effect]:
        taken, effects = arbiter.peer_in(now_ns)
        if taken:
            self.other.lacking = False
        return effects

    def _acknowledge(self) -> None:
        """The guest writes all the time."""
        if self.running and self.arbiter is not None and self.arbiter.peer_excluded:
            self.other.lacking = True


class Story:
    """The pair, its witness and the time."""

    def __init__(self, *, witness: bool, failover_ns: int, witness_delay_ns: int = WITNESS_DELAY_NS) -> None:
        """``witness_delay_ns``: of a message to the witness or from there."""
        self.timing: Timing = derive(failover_ns)
        self.witnesses = ("w",) if witness else ()
        self.now_ns = 0
        self._witness_delay_ns = witness_delay_ns
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0
        self._cut: set[str] = set()
        self._stores = 1
        self.store = WitnessView(b"store--1", 1000, None)
        self.lines: list[str] = []
        first = VoterId(b"a" * 32, b"memory-1")
        self.a = StoryHost("a", self, AcceptorState(first.incarnation, genesis(first, b"the-fork")))
        self.b = StoryHost("b", self, AcceptorState(b"memory-2"))
        self.b.lacking = True
        self._memories = 2
        self.a.start()
        self.b.start()

    def host(self, name: str) -> StoryHost:
        """The host of that name; `ConfigError` if there is none."""
        for host in (self.a, self.b):
            if host.name == name:
                return host
        raise ConfigError(f"no host is called {name!r}: a or b")

    # ------------------------------------------------------------------ what carries the story

    def at(self, time_ns: int, event: Callable[[], None]) -> None:
        """Something happens then."""
        self._count += 1
        heapq.heappush(self._events, (time_ns, self._count, event))

    def run(self, duration_ns: int) -> None:
        """Time passes."""
        end_ns = self.now_ns + duration_ns
        for _ in range(EVENTS_MAX):
            if not self._events or self._events[0][0] > end_ns:
                self.now_ns = end_ns
                return
            self.now_ns, _, event = heapq.heappop(self._events)
            event()
        raise InternalError(f"more than {EVENTS_MAX} events in {duration_ns} ns")

    def say(self, host: StoryHost, text: str) -> None:
        """A line of the transcript."""
        self.lines.append(f"{self.now_ns // NS_PER_MS:6} {host.name}: {text}")

    def say_once(self, host: StoryHost, text: str) -> None:
        """Likewise, unless it was said by this command."""
        if not any(line.endswith(f" {host.name}: {text}") for line in self.lines):
            self.say(host, text)

    def check(self) -> None:
        """The rules; raises `InternalError`."""
        if self.a.running and self.b.running:
            raise InternalError(f"the guest runs on both hosts at {self.now_ns} ns")
        for host in (self.a, self.b):
            grant = host.arbiter.grant if host.arbiter is not None else None
            if host.running and host.lacking and grant is not None and not grant.override:
                raise InternalError(f"host {host.name} runs and lacks acknowledged writes")

    def joined(self, link: str) -> bool:
        """Whether that link carries anything."""
        return link not in self._cut

    def send(self, sender: StoryHost, message: PeerMessage) -> None:
        """To the other host."""

        def arrive() -> None:
            if self.joined("a-b"):
                sender.other.does(lambda arbiter, now_ns: arbiter.hears(message, now_ns))

        self.at(self.now_ns + DELAY_NS, arrive)

    def ask(self, host: StoryHost, question: WitnessGet | WitnessSwap) -> None:
        """The witness."""
        link, life = f"{host.name}-w", host.life

        def arrive() -> None:
            if not self.joined(link):
                return
            if isinstance(question, WitnessSwap) and question.version == self.store.version:
                self.store = self.store._replace(version=self.store.version + 1, state=question.state)
            view = self.store
            self.at(self.now_ns + self._witness_delay_ns, lambda: answer(view))

        def answer(view: WitnessView) -> None:
            if self.joined(link) and host.life == life:
                host.does(
                    lambda arbiter, now_ns: arbiter.answered(question.number, question.witness, view, now_ns)
                )

        self.at(self.now_ns + self._witness_delay_ns, arrive)

    # ------------------------------------------------------------------ what strikes it

    def cut(self, link: str, *, heal: bool) -> None:
        """Take links away, or give them back."""
        known = {"a-b", "a-w", "b-w"}
        if link not in known | {"all"}:
            raise ConfigError(f"no link is called {link!r}")
        links = known if link == "all" else {link}
        self._cut = self._cut - links if heal else self._cut | links

    def forget(self, name: str) -> None:
        """A memory is lost."""
        if name == "w":
            self._stores += 1
            self.store = WitnessView(b"store--%d" % self._stores, 1000 * self._stores, None)
            return
        host = self.host(name)
        host.crash()
        self._memories += 1
        host.disk = AcceptorState(b"memory-%d" % self._memories)
        host.lacking = True

    def pause(self, host: StoryHost, duration_ns: int) -> None:
        """A process stands still for a while."""
        host.paused = []

        def go_on() -> None:
            waiting, host.paused = host.paused, None
            for each in waiting or []:
                each()

        self.at(self.now_ns + duration_ns, go_on)

    def status(self) -> list[str]:
        """How everybody stands."""
        lines = []
        for host in (self.a, self.b):
            if host.arbiter is None:
                lines.append(f"{host.name}: no process")
                continue
            grant = host.arbiter.grant
            runs = "the guest runs" if host.running else "no guest"
            lacks = ", lacks writes" if host.lacking else ""
            lines.append(
                f"{host.name}: {runs}{lacks}, {'no grant' if grant is None else describe_grant(grant)}"
            )
        return lines


def describe_grant(grant: Grant) -> str:
    """Such as ``2.1 b, in sync b, voters b``; a number behind a voter is that of its memory."""
    in_sync = " ".join(sorted(host[:1].decode() for host in grant.in_sync))
    names = sorted(
        f"{voter.name if isinstance(voter.name, str) else voter.name[:1].decode()}"
        f"{voter.incarnation.decode()[-1:]}"
        for voter in grant.voters
    )
    forced_by = f", forced by {grant.override}" if grant.override else ""
    return (
        f"{grant.term}.{grant.epoch} {grant.owner[:1].decode()}, in sync {in_sync}, "
        f"voters {' '.join(names)}{forced_by}"
    )
