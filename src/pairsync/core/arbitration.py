"""The vocabulary of arbitration: what hosts say to each other of a guest's grants, and what is to be done.

Every message names its sender's memory (`VoterId`) and the newest grant that the sender knows to be decided:
whatever was lost, the next message teaches it.  Messages may be lost, repeated and overtake each other.

    Beat        the owner is alive, and asks not to be replaced for a while; or: news for you
    BeatAnswer  heard; and whether the promise was given
    Prepare     begin a round for the successor of ``base``         answered by Promise or Refusal
    Accept      accept that grant as successor of ``base``          answered by Accepted or Refusal

Effects are performed in the order given.  What follows a `PersistAcceptor` waits until it is durable.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from .acceptor import AcceptorState
from .grants import Ballot, Grant, VoterId

__all__ = [
    "Accept",
    "Accepted",
    "Beat",
    "BeatAnswer",
    "Discord",
    "Effect",
    "InForce",
    "LeaseUntil",
    "Own",
    "PeerMessage",
    "PersistAcceptor",
    "Prepare",
    "Promise",
    "Refusal",
    "SendPeer",
    "Stop",
    "TwoTruths",
    "WitnessGet",
    "WitnessSwap",
    "WitnessView",
    "Yield",
]


class Beat(NamedTuple):
    """A heartbeat of the host that owns the guest as far as it knows, or that has news.

    ``number`` grows with each; 0 asks for nothing.  Another one asks that the receiver does not take over
    for the time that follows from ``failover_ns``, counted from the receipt: that of the sender, from which
    it has derived how long it relies on the answer.  A receiver with another one promises nothing.
    """

    sender: VoterId
    base: Grant | None
    number: int
    failover_ns: int = 0
    """Set by `core.arbiter`: the decider knows no time.  Likewise in `BeatAnswer`."""
    hears: bool = True
    """The sender hears the receiver: to one who does not, nothing is promised."""


class BeatAnswer(NamedTuple):
    """``granted``: the promise is given.  ``ready``: the sender's replica could serve the guest now.

    ``asks``: the sender reaches the witness that is among the voters of ``base``; None: it does not say.
    """

    sender: VoterId
    base: Grant | None
    number: int
    granted: bool
    ready: bool
    failover_ns: int = 0
    asks: bool | None = None
    """Set by `core.arbiter`, too: it is only to be shown, and nothing is decided by it."""


class Prepare(NamedTuple):
    """Promise to hear no lower ballot."""

    sender: VoterId
    base: Grant | None
    ballot: Ballot


class Promise(NamedTuple):
    """Promised; ``accepted`` under ``accepted_ballot`` until now."""

    sender: VoterId
    base: Grant | None
    ballot: Ballot
    accepted_ballot: Ballot
    accepted: Grant | None


class Accept(NamedTuple):
    """Accept ``grant`` as the successor of ``base``."""

    sender: VoterId
    base: Grant | None
    ballot: Ballot
    grant: Grant


class Accepted(NamedTuple):
    """Accepted, durably."""

    sender: VoterId
    base: Grant | None
    ballot: Ballot


class Refusal(NamedTuple):
    """The round of ``ballot`` is refused, because ``promised`` is higher or ``base`` newer."""

    sender: VoterId
    base: Grant | None
    ballot: Ballot
    promised: Ballot


PeerMessage: TypeAlias = Beat | BeatAnswer | Prepare | Promise | Accept | Accepted | Refusal


class WitnessView(NamedTuple):
    """What a witness's store holds: ``state`` at ``version``; ``incarnation`` is the store's own.

    ``state`` is None if nothing was ever written, or was written for another incarnation: then the store
    has lost its memory (or was restored from a backup), and is a new voter.
    """

    incarnation: bytes
    version: int
    state: AcceptorState | None


class PersistAcceptor(NamedTuple):
    """Write down this host's memory, durably: `Arbiter.persisted`."""

    state: AcceptorState
    promise_ns: int | None = None
    """`core.acceptor.HostMemory`.  Set by `core.arbiter`: the decider knows no time."""


class SendPeer(NamedTuple):
    """To the peer, over every path, on the control connection."""

    message: PeerMessage


class WitnessGet(NamedTuple):
    """Read what ``witness`` holds: `Arbiter.witness_view` or `witness_unreachable` with that number."""

    witness: str
    number: int


class WitnessSwap(NamedTuple):
    """Write ``state`` if the store is still at ``version``; then as `WitnessGet`.

    The answer is what the store holds afterwards, whether it was written or not.  No version occurs in two
    incarnations of a store (`core.witness`): else one could take the memory of another voter for its own.
    """

    witness: str
    number: int
    version: int
    state: AcceptorState


class Own(NamedTuple):
    """The guest may run here under ``grant``; it goes on if it runs already."""

    grant: Grant


class Stop(NamedTuple):
    """Stop the guest, and its volumes with it: `Arbiter.stopped` once nothing of it runs any more."""

    grant: Grant | None
    reason: str


class Yield(NamedTuple):
    """The other host owns the guest: be its standby."""

    grant: Grant


class LeaseUntil(NamedTuple):
    """The guard has to have stopped the guest at that time; None: it may run without a lease."""

    until_ns: int | None


class InForce(NamedTuple):
    """``grant`` is decided and durable here.  ``peer_excluded``: acknowledge without the peer from now on."""

    grant: Grant
    peer_excluded: bool


class TwoTruths(NamedTuple):
    """The peer or the witness holds a grant that cannot be of the same chain: a person has to choose."""

    ours: Grant
    theirs: Grant


class Discord(NamedTuple):
    """The peer has another failover time: its promises are worth nothing, and neither are ours to it.

    None: it has ours again.
    """

    theirs_ns: int | None


Effect: TypeAlias = (
    PersistAcceptor
    | SendPeer
    | WitnessGet
    | WitnessSwap
    | Own
    | Stop
    | Yield
    | LeaseUntil
    | InForce
    | TwoTruths
    | Discord
)
