"""How a lane is opened, on either end: what is derived, what is sent first, and how it is proved.

The dialer connects, sends the preamble (which lane this is) and a first sealed record; the listener opens
that record, which proves that the connection comes from the holder of the keys, and answers with a sealed
record of its own, which proves the same to the dialer.  Both records are empty but for the acknowledgement.
"""

from __future__ import annotations

from dataclasses import dataclass

from pairsync.errors import PeerLost
from pairsync.wire.hello import pack_lane_preamble
from pairsync.wire.seals import Opener, Sealer, derive_lane_secrets

from .gate import Gate
from .lane import Lane
from .network import Connection

__all__ = ["LaneTerms", "make_lane", "send_preamble"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneTerms:
    """What both ends agreed on over the control connection."""

    version: int
    session_id: bytes
    lane_id: bytes
    dialer_fingerprint: bytes
    listener_fingerprint: bytes
    dialer_secret: bytes
    listener_secret: bytes

    def __repr__(self) -> str:
        return f"LaneTerms(lane={self.lane_id.hex()[:8]}, session={self.session_id.hex()[:8]})"


def make_lane(terms: LaneTerms, connection: Connection, gate: Gate, *, dialing: bool, who: str) -> Lane:
    """A lane with fresh keys over a fresh connection."""
    secrets = derive_lane_secrets(
        version=terms.version,
        session_id=terms.session_id,
        lane_id=terms.lane_id,
        dialer_fingerprint=terms.dialer_fingerprint,
        listener_fingerprint=terms.listener_fingerprint,
        dialer_secret=terms.dialer_secret,
        listener_secret=terms.listener_secret,
    )
    ours, theirs = secrets.from_dialer, secrets.from_listener
    if not dialing:
        ours, theirs = theirs, ours
    return Lane(connection, Sealer(ours), Opener(theirs), gate, who)


def send_preamble(connection: Connection, lane_id: bytes, who: str) -> None:
    """The dialer's first bytes; a fresh connection takes so few at once."""
    preamble = pack_lane_preamble(lane_id)
    try:
        sent_bytes = connection.send_nowait(preamble)
    except OSError as error:
        raise PeerLost(f"{who}: {error}") from error
    if sent_bytes != len(preamble):
        raise PeerLost(f"{who}: a fresh connection did not take {len(preamble)} bytes")
