"""Every bound of the front door by name, with its unit and its reason.

A client is a stranger until it has finished the handshake, and a guest (which may be hostile) afterwards:
nothing that it sends may cost more than what is written here.
"""

from __future__ import annotations

from dataclasses import dataclass

from pairsync.core.units import KIB, MIB
from pairsync.errors import ConfigError

__all__ = ["OPTION_BYTES_MAX", "OPTION_SKIP_BYTES_MAX", "PAYLOAD_SKIP_BYTES_MAX", "NbdLimits"]

OPTION_BYTES_MAX = 64 * KIB
"""Data of one option.  The longest sensible one, SET_META_CONTEXT with a name of 4 KiB and a dozen queries,
stays below; more is skipped and answered with NBD_REP_ERR_TOO_BIG."""

OPTION_SKIP_BYTES_MAX = 4 * MIB
"""Data of an option that is still read in order to answer TOO_BIG; who announces more is cut off."""

PAYLOAD_SKIP_BYTES_MAX = 64 * MIB
"""Payload of a refused WRITE that is still read in order to answer it; beyond this "Size constraints" lets
a server take it for an attack (it names 32 MiB as what never is)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NbdLimits:
    """What one server, one connection and one reply may cost; raises `ConfigError` for a useless value."""

    connections_max: int = 512
    """Connections in all: a descriptor and about 40 KiB each; leaves half of the usual 1024 descriptors."""

    handshakes_max: int = 128
    """Connections that have not chosen an export yet.  One more, and the one that has been without progress
    for longest is dropped, so that idle strangers cannot keep a client out."""

    handshake_deadline_s: float = 10.0
    """From accept to the choice of an export, TLS included."""

    options_max: int = 256
    """Options in one handshake: `nbdinfo --list` needs three an export."""

    requests_in_flight_max: int = 1024
    """Requests of a connection that wait for the export; above, its socket is not read.  QEMU sends up to 16
    a connection, libnbd's tools up to 64."""

    bytes_in_flight_max: int = 64 * MIB
    """Payload of a connection's requests in flight, two of the largest; above, its socket is not read."""

    total_bytes_in_flight_max: int = 512 * MIB
    """The same over all connections, unsent replies and half-received payloads included.  A connection that
    has nothing in flight may still begin one request, so that nobody starves."""

    total_bytes_hard_max: int = 1024 * MIB
    """The same, from where on nobody begins another request: of 512 connections with the largest request each
    16 GiB would come.  What was begun is still taken in, so one request more may be held."""

    unsent_bytes_max: int = 1 * MIB
    """Replies that a client has not taken yet; above, its socket is not read."""

    batch_bytes_max: int = 1 * MIB
    """Payload that is handled in one go before others get their turn: about half a millisecond."""

    slow_requests_max: int = 16
    """Tasks of a connection that wait for a disk (reads that miss the page cache, flush, block status)."""

    extents_max: int = 8192
    """Extents of a block status reply, 64 KiB.  The document's bound is 2**20 ("Structured reply types");
    an image full of alternating blocks would make that 8 MiB a request."""

    stall_deadline_s: float = 300.0
    """How long a client may stop in the middle of a request or of taking a reply; a tenth of it while
    ``total_bytes_in_flight_max`` is reached.  Long enough for a client whose process is stopped for a while,
    and for the largest request over a line of 1 Mbit/s.  Who is silent between requests has no deadline."""

    drain_deadline_s: float = 30.0
    """How long a closing connection waits for its requests in flight and unsent replies."""

    tls_close_deadline_s: float = 1.0
    """How long a TLS connection may take to send its close_notify."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value <= 0:
                raise ConfigError(f"NbdLimits.{name} is {value}; it must be positive")
        if self.handshakes_max > self.connections_max:
            raise ConfigError(
                f"NbdLimits.handshakes_max ({self.handshakes_max}) exceeds connections_max "
                f"({self.connections_max})"
            )
        if self.total_bytes_in_flight_max > self.total_bytes_hard_max:
            raise ConfigError(
                f"NbdLimits.total_bytes_in_flight_max ({self.total_bytes_in_flight_max}) exceeds "
                f"total_bytes_hard_max ({self.total_bytes_hard_max})"
            )
