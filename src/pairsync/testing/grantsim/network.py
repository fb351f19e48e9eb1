"""Three paths: between the hosts, and from each host to the witnesses; each direction works or does not.

Votes and questions to a witness are datagrams: lost, repeated, late, overtaken, as the seed wants it.  Bulk
data goes over `pairsync.testing.sim.link`, one ordered stream that falls silent when either direction of the
path does.  Two hosts without a common protocol version (`releases`) have neither.

Nobody hears a vote of a process while he is in a session with an earlier one of that host: votes travel on
the paths of the session (``io.hub``), and the old one is over before the new one brings any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pairsync.core.arbitration import PeerMessage, WitnessGet, WitnessSwap
from pairsync.core.units import NS_PER_MS, NS_PER_S
from pairsync.errors import RefusedError
from pairsync.testing.sim.link import Link
from pairsync.wire.arbitration import VOTE_VERSION, decode_message, encode_message

from .releases import Release, agreed, overlap
from .witness import Seen, Witness

if TYPE_CHECKING:
    from .host import GrantHost
    from .world import GrantWorld

__all__ = ["WITNESS", "Network"]

WITNESS = 2
"""Where the witnesses are; hosts are 0 and 1."""

GIVE_UP_NS = 15 * NS_PER_S
"""As ``guest.arbitration`` gives up a question."""


class _GrantLink(Link):
    """The stream: a peer that is silent is given up when the heartbeats say so (``node.host``)."""

    def __init__(self, world: GrantWorld, network: Network) -> None:
        super().__init__(world)
        self._timing = world.profile.timing
        self._network = network

    def _welcome(self) -> bool:
        return self._network.welcome()

    def _silence_ns(self) -> int:
        return self._timing.silence_ns + self._random.randrange(self._timing.heartbeat_ns)

    def _end(self, index: int, reason: str) -> None:
        session = self._ends[index].session
        super()._end(index, reason)
        if session:  # the other end hears nothing of it any more, whatever becomes of the path
            silence_ns = self._timing.silence_ns + self._timing.heartbeat_ns
            self._clock.after(silence_ns, self._end_session, 1 - index, session, "silence")


class Network:
    """See the module."""

    def __init__(self, world: GrantWorld) -> None:
        self._world = world
        self._random = world.random
        self._clock = world.clock
        self.link = _GrantLink(world, self)
        self.cut: set[tuple[int, int]] = set()
        """Directions in which nothing arrives."""
        self.cut_ns = 0  # when that has changed last
        self.loss = 0.0  # of datagrams
        self.repeats = 0.02
        self.slow = 1.0  # factor on their delays
        self.strangers = False
        """The hosts speak no common version: each hears nothing of the other."""
        self.protocol = VOTE_VERSION
        """The version that they speak, if they do."""

    # ------------------------------------------------------------------ what works

    def connected(self, one: int, other: int) -> bool:
        """Whether both directions work."""
        return (one, other) not in self.cut and (other, one) not in self.cut

    def reaches(self, sender: int, receiver: int) -> bool:
        """Whether what that host says is heard by the other one, and understood."""
        return (sender, receiver) not in self.cut and not self.strangers

    def meet(self) -> None:
        """A host has started, maybe with another release."""
        one, other = self._world.hosts
        self.strangers = not overlap(one.release, other.release)
        if not self.strangers:
            self.protocol = min(one.release[1], other.release[1])

    def welcome(self) -> bool:
        """The hello of a link, at both ends: who cannot be understood is refused, with the reason."""
        world = self._world
        one, other = world.hosts
        try:
            version = agreed(one.release, other.release)
        except RefusedError as error:
            world.trace.note("link", "refused", 0, str(error))
            world.coverage.reach("refused:versions")
            return False
        self.understood(version, one.release, other.release)
        return True

    def understood(self, version: int, *releases: Release) -> None:
        """They speak that version from now on."""
        if not all(low <= version <= high for low, high in releases):
            self._world.fail("version", f"version {version} between {releases}")
        if len(set(releases)) > 1:
            self._world.coverage.reach("versions-differ")

    def set_cut(self, ways: set[tuple[int, int]]) -> None:
        """Nothing arrives in these directions; all others work."""
        self.cut, self.cut_ns = ways, self._clock.now
        self.settle()

    def settle(self) -> None:
        """The stream falls silent, or goes on: after a change of paths, or of a host that stands still."""
        if self.connected(0, 1) and not any(host.frozen for host in self._world.hosts):
            self.link.heal()
        else:
            self.link.cut()

    # ------------------------------------------------------------------ datagrams

    def _delay(self, most_ns: int) -> int:
        return int(most_ns * self.slow * (0.2 + 0.8 * self._random.random()))

    def _copies(self) -> int:
        if self._random.random() < self.loss:
            return 0
        return 2 if self._random.random() < self.repeats else 1

    def vote(self, sender: int, message: PeerMessage) -> None:
        """From that host to the other."""
        if not self.reaches(sender, 1 - sender):
            return
        life = self._world.hosts[sender].life
        if self.protocol < VOTE_VERSION:
            message = decode_message(encode_message(message, self.protocol))
        for _ in range(self._copies()):
            delay_ns = self._delay(self._world.profile.control_ns)
            self._clock.after(delay_ns, self._voted, 1 - sender, life, message)

    def _voted(self, receiver: int, life: int, message: PeerMessage) -> None:
        host = self._world.hosts[receiver]
        if self.link.session_of(receiver) and host.session_with != life:
            return
        if self.reaches(1 - receiver, receiver):
            host.voted(message)

    def ask(self, host: GrantHost, witness: Witness, question: WitnessGet | WitnessSwap) -> None:
        """A question of that host; it is answered, found to be unreachable, or given up."""
        life = host.life
        if not witness.up and (host.index, WITNESS) not in self.cut and self._random.random() < 0.5:
            self._clock.after(NS_PER_MS, host.witness_fails, life, question)  # the connection is refused
            return
        if witness.release != host.release:
            try:
                self.understood(agreed(host.release, witness.release), host.release, witness.release)
            except RefusedError:
                self._world.coverage.reach("refused:witness-versions")
                self._clock.after(NS_PER_MS, host.witness_fails, life, question)
                return
        self._clock.after(GIVE_UP_NS, host.witness_fails, life, question)
        seen = host.seen.get(witness.name)
        for _ in range(self._copies()):
            self._clock.after(
                self._delay(self._world.profile.witness_ns), self._asked, host, life, witness, seen, question
            )

    def _asked(
        self,
        host: GrantHost,
        life: int,
        witness: Witness,
        seen: Seen | None,
        question: WitnessGet | WitnessSwap,
    ) -> None:
        if (host.index, WITNESS) in self.cut or not witness.up:
            return
        if isinstance(question, WitnessSwap):
            view = witness.ask(seen, question.version, question.state)
        else:
            view = witness.ask(seen, None, None)
        if (WITNESS, host.index) in self.cut or self._random.random() < self.loss:
            return
        self._clock.after(
            self._delay(self._world.profile.witness_ns), host.witness_says, life, question, view
        )
