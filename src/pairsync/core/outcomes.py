"""What the timeless half of arbitration (`core.decider`) wants done: effects, waits, questions.

`core.arbiter` turns waits into deadlines and questions into numbered ones.
"""

from __future__ import annotations

import enum
from typing import NamedTuple, TypeAlias

from .acceptor import AcceptorState
from .arbitration import Effect

__all__ = ["AskWitness", "Guest", "Outcome", "Wait", "Waiting"]


class Wait(enum.StrEnum):
    """What is waited for, and what its end means.  (Strings: they are looked up with every input.)"""

    BEAT = "beat"
    """The next heartbeat is due."""
    SILENCE = "silence"
    """The peer has answered no heartbeat for long enough to be taken for dead."""
    LEASE = "lease"
    """The guest has to be stopped: the peer's promise cannot be relied on any more."""
    PROMISE = "promise"
    """What was promised to the owner has run out."""
    ROUND = "round"
    """The round is taken for stuck, or the pause after one that was overtaken is over."""
    PROBE = "probe"
    """The witness is to be asked how it is."""
    LOST = "lost"
    """The witness has not answered for long enough to go on without it."""
    HOME = "home"
    """An alternate witness is used: the preferred one is to be asked whether it is back."""


class Waiting(NamedTuple):
    """Begin to wait, from now on even if that wait was on already.  `Decider.waits` says which are on."""

    wait: Wait


class AskWitness(NamedTuple):
    """Swap ``state`` in at ``version``, or only look (both None)."""

    witness: str
    version: int | None
    state: AcceptorState | None


class Guest(enum.Enum):
    """The guest on this host, as far as the decider has said and heard."""

    DOWN = "down"
    UP = "up"
    STOPPING = "stopping"


Outcome: TypeAlias = Effect | Waiting | AskWitness
