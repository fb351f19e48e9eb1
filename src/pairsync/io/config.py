"""What a link is told when it is opened, checked as a whole before anything happens."""

from __future__ import annotations

from dataclasses import dataclass, field

from pairsync.core.limits import UNAPPLIED_BYTES_MAX
from pairsync.core.stream import WINDOW_BYTES_MIN
from pairsync.core.units import MIB, NS_PER_MS, NS_PER_S
from pairsync.errors import ConfigError
from pairsync.wire.hello import PAIR_ID_BYTES, PROTOCOL_MAX, PROTOCOL_MIN
from pairsync.wire.limits import PATH_NAME_BYTES_MAX, PATHS_MAX, SOFTWARE_BYTES_MAX

from .keys import HostIdentity
from .network import Address

__all__ = ["WINDOW_BYTES", "WINDOW_BYTES_MAX", "LinkConfig", "LinkTimings", "PathConfig"]

WINDOW_BYTES = 32 * MIB
"""Default window: ten gigabits a second for 25 ms; it is also what a lost path makes the link send again."""

WINDOW_BYTES_MAX = UNAPPLIED_BYTES_MAX
"""Largest window: it is held in memory by reference, and the peer holds as much."""


@dataclass(frozen=True, slots=True)
class PathConfig:
    """One network path to the peer; the first of a list is preferred."""

    name: str
    peer: Address
    local: str | None = None
    """Local address to dial from; ``None`` leaves it to the routing table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkTimings:
    """Every interval and deadline of a link, in nanoseconds."""

    heartbeat_ns: int = 500 * NS_PER_MS
    """Between two pings on a path."""
    silence_ns: int = 2 * NS_PER_S
    """Silence on a control connection after which its path is dead."""
    lane_silence_ns: int = 10 * NS_PER_S
    """A lane that for so long brought no byte, or no acknowledgement of what was sent on it, is dead although
    its control connection lives.  One record must fit: 1.3 Mbit/s at least."""
    backoff_first_ns: int = 100 * NS_PER_MS
    backoff_limit_ns: int = 5 * NS_PER_S
    """Dialling again: doubling from the first to the limit, with jitter; from the start again after a path
    that was up and did not end by a breach of the protocol."""
    handshake_ns: int = 5 * NS_PER_S
    """From connecting to the lane being up, on either end."""

    def check(self) -> None:
        """Raises `ConfigError`."""
        if self.heartbeat_ns <= 0 or self.heartbeat_ns * 2 > self.silence_ns:
            raise ConfigError("link timings: silence must be at least two heartbeats")
        if self.lane_silence_ns < self.silence_ns:
            raise ConfigError("link timings: a lane's silence must not be shorter than its path's")
        if not 0 < self.backoff_first_ns <= self.backoff_limit_ns:
            raise ConfigError("link timings: 0 < first back-off <= limit of the back-off")
        if self.handshake_ns <= 0:
            raise ConfigError("link timings: a handshake needs time")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkConfig:
    """A link to one peer.

    ``listen`` may be empty on the host that dials (the one whose fingerprint is smaller); ``paths`` names
    the peer's addresses, which the listening host uses only to keep places for them.
    """

    identity: HostIdentity
    peer_certificate_pem: bytes
    pair_id: bytes
    listen: tuple[Address, ...] = ()
    paths: tuple[PathConfig, ...] = ()
    timings: LinkTimings = field(default_factory=LinkTimings)
    window_bytes: int = WINDOW_BYTES
    software: str = "pairsync"
    protocol_min: int = PROTOCOL_MIN
    protocol_max: int = PROTOCOL_MAX

    def check(self) -> None:
        """Raises `ConfigError` naming what is wrong."""
        self.timings.check()
        if len(self.pair_id) != PAIR_ID_BYTES:
            raise ConfigError(f"link: a pair id has {PAIR_ID_BYTES} bytes, not {len(self.pair_id)}")
        if len(self.paths) > PATHS_MAX:
            raise ConfigError(f"link: {len(self.paths)} paths, at most {PATHS_MAX} are allowed")
        names = [path.name for path in self.paths]
        if len(set(names)) != len(names):
            raise ConfigError("link: two paths have the same name")
        for name in names:
            if not name.isprintable() or not 0 < len(name.encode()) <= PATH_NAME_BYTES_MAX:
                raise ConfigError(f"link: {name!r:.80} is no name for a path")
        if not WINDOW_BYTES_MIN <= self.window_bytes <= WINDOW_BYTES_MAX:
            raise ConfigError(
                f"link: a window of {self.window_bytes} bytes; "
                f"{WINDOW_BYTES_MIN} to {WINDOW_BYTES_MAX} are allowed"
            )
        if not 0 <= self.protocol_min <= self.protocol_max <= 0xFFFF:
            raise ConfigError(f"link: protocol versions {self.protocol_min}..{self.protocol_max}")
        if len(self.software.encode()) > SOFTWARE_BYTES_MAX:
            raise ConfigError("link: the software name is too long")
