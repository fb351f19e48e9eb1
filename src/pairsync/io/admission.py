"""Who may be in the middle of a handshake: places for strangers are few, and the peer always gets one.

Until a connection has proved a key it is *half open* and costs a place.  There are few places for each
address and few for all strangers together; the addresses at which the peer is configured have places of
their own.  When none is free the oldest half-open connection of the same class is thrown out: an honest
peer needs milliseconds for its handshake, an idle stranger keeps its place until somebody needs it.
New handshakes are paced too, since each costs processor time that the running session needs.

Lane tokens: a lane's id is worth one connection, for as long as its offer stands.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict, deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import trio

from pairsync.core.units import NS_PER_S

__all__ = [
    "HALF_OPEN_ADDRESS_MAX",
    "HALF_OPEN_PEER_MAX",
    "HALF_OPEN_STRANGERS_MAX",
    "HANDSHAKES_A_SECOND",
    "Admission",
    "Pace",
    "Places",
    "UsedTokens",
]

HALF_OPEN_STRANGERS_MAX = 48
"""Half-open connections from addresses that are not the peer's."""

HALF_OPEN_ADDRESS_MAX = 16
"""Half-open connections from one such address."""

HALF_OPEN_PEER_MAX = 48
"""Half-open connections from the peer's addresses; it needs two a path, strangers may sit behind the same
address."""

HANDSHAKES_A_SECOND = 200
"""New handshakes of either class: at a millisecond of processor each, a fifth of one core at the worst."""

USED_TOKENS_MAX = 64
"""Lane ids that are remembered after their use, to tell a replay from a stranger in the log."""


class Pace:
    """A token bucket: ``rate`` a second, as many at once."""

    def __init__(self, rate: int, now_ns: int) -> None:
        self._rate = rate
        # Invariant: 0 <= tokens <= rate, as of then_ns.
        self._tokens = float(rate)
        self._then_ns = now_ns

    def delay_ns(self, now_ns: int) -> int:
        """Take one more; returns 0 if it is within the rate, else how long to wait until it would be."""
        elapsed_ns = max(0, now_ns - self._then_ns)
        self._then_ns = now_ns
        self._tokens = min(float(self._rate), self._tokens + elapsed_ns * self._rate / NS_PER_S)
        if self._tokens < 1:
            return NS_PER_S // self._rate
        self._tokens -= 1
        return 0


@dataclass(frozen=True, slots=True)
class Places:
    """How many may be half open: from one strange address, from all of them, from the peer's addresses."""

    address: int = HALF_OPEN_ADDRESS_MAX
    strangers: int = HALF_OPEN_STRANGERS_MAX
    peers: int = HALF_OPEN_PEER_MAX


class Admission:
    """The places of half-open connections; ``peer_hosts`` may change under it."""

    def __init__(self, peer_hosts: Collection[str], places: Places = Places()) -> None:
        self._peer_hosts = peer_hosts
        self._limits = places
        # Invariant: every half-open connection that has not been thrown out, oldest first.
        self._places: OrderedDict[trio.CancelScope, str] = OrderedDict()

    @property
    def half_open(self) -> int:
        """Connections in the middle of a handshake."""
        return len(self._places)

    def is_peer(self, host: str) -> bool:
        """Whether the peer is configured at that address."""
        return host in self._peer_hosts

    @contextlib.contextmanager
    def place(self, host: str) -> Iterator[trio.CancelScope]:
        """Take a place; the scope is cancelled when the place is needed by a newer connection."""
        if self.is_peer(host):
            self._make_room([s for s, h in self._places.items() if h in self._peer_hosts], self._limits.peers)
        else:
            self._make_room([s for s, h in self._places.items() if h == host], self._limits.address)
            strangers = [s for s, h in self._places.items() if h not in self._peer_hosts]
            self._make_room(strangers, self._limits.strangers)
        with trio.CancelScope() as scope:
            self._places[scope] = host
            try:
                yield scope
            finally:
                self._places.pop(scope, None)

    def _make_room(self, oldest_first: list[trio.CancelScope], places_max: int) -> None:
        for scope in oldest_first[: max(0, len(oldest_first) - places_max + 1)]:
            del self._places[scope]
            scope.cancel()


class UsedTokens:
    """Remembers the lane ids used last."""

    def __init__(self) -> None:
        self._used: deque[bytes] = deque(maxlen=USED_TOKENS_MAX)

    def add(self, lane_id: bytes) -> None:
        """That lane id has been used."""
        self._used.append(lane_id)

    def __contains__(self, lane_id: bytes) -> bool:
        return lane_id in self._used
