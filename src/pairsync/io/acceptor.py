"""The listening end of a link: tells control connections, lanes and strangers apart, and trusts none early.

The first bytes say what a connection claims to be: a TLS handshake, or a lane's preamble.  Until it has
proved a key it is half open (``admission``) and has one deadline for everything.  Whatever it sends in that
time ends at worst in its own refusal: the running session is touched only once a lane is proved, which takes
the key of TLS, the token that was given over it, and a sealed first record.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import trio

from pairsync.errors import PeerLost, ProtocolError, RefusedError
from pairsync.wire.hello import (
    LANE_PREAMBLE_BYTES,
    Bye,
    Hello,
    LaneAccept,
    LaneOffer,
    LaneRefuse,
    Refuse,
    parse_lane_preamble,
    shorten,
)
from pairsync.wire.limits import PATHS_MAX
from pairsync.wire.seals import SECRET_BYTES

from .admission import HANDSHAKES_A_SECOND, Admission, Pace, UsedTokens
from .control import ControlChannel, accept_control
from .hub import Hub
from .lane import Lane
from .lanes import LaneTerms, make_lane
from .network import Connection, Listener, describe_address
from .path import Path
from .tls import TlsStream

__all__ = ["CONTROLS_MAX", "Acceptor"]

CONTROLS_MAX = 2 * PATHS_MAX
"""Authenticated control connections: each path may be replaced by a newer one before it is given up."""

_TLS_HANDSHAKE = 0x16  # content type of the first TLS record, RFC 8446 section 5.1
_ACCEPT_RETRY_S = 0.1  # when the system is out of descriptors or memory

_log = logging.getLogger("pairsync.link")


@dataclass(slots=True)
class _Token:
    """An offered lane that has not come yet, and then the lane."""

    terms: LaneTerms
    arrived: trio.Event = field(default_factory=trio.Event)
    lane: Lane | None = None
    connection: Connection | None = None
    first_record: memoryview | None = None


class Acceptor:
    """Accepts what connects to the listening addresses of a link."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        now_ns = hub.network.now_ns()
        self._admission = Admission(frozenset(path.peer[0] for path in hub.config.paths))
        self._pace_peer = Pace(HANDSHAKES_A_SECOND, now_ns)
        self._pace_strangers = Pace(HANDSHAKES_A_SECOND, now_ns)
        # Invariant: every lane that was offered, accepted and has neither come nor expired, by its id; each
        # belongs to one control connection, so there are at most CONTROLS_MAX.
        self._tokens: dict[bytes, _Token] = {}
        self._used = UsedTokens()
        self._controls = 0

    @property
    def half_open(self) -> int:
        """Connections that have proved nothing yet."""
        return self._admission.half_open

    async def run(self, listener: Listener) -> None:
        """Accept until cancelled."""
        hub = self._hub
        async with trio.open_nursery() as nursery:
            while True:
                await hub.gate.wait_open()
                try:
                    connection = await listener.accept()
                except OSError as error:
                    hub.refusals.refuse("accept", f"cannot accept: {error}")
                    await trio.sleep(_ACCEPT_RETRY_S)
                    continue
                host, _ = connection.remote
                if self._admission.is_peer(host):
                    await trio.sleep(self._pace_peer.delay_ns(hub.network.now_ns()) / 1e9)
                elif self._pace_strangers.delay_ns(hub.network.now_ns()):
                    hub.refusals.refuse(
                        "too many", f"{describe_address(connection.remote)}: too many handshakes"
                    )
                    hub.gate.retire(connection)
                    continue
                nursery.start_soon(self._serve, connection)

    async def _serve(self, connection: Connection) -> None:
        """One connection, from its first byte to its end."""
        hub = self._hub
        who = describe_address(connection.remote)
        handed_over = False
        control: tuple[ControlChannel, Hello, int] | None = None
        try:
            with self._admission.place(connection.remote[0]) as scope:
                scope.deadline = trio.current_time() + hub.config.timings.handshake_ns / 1e9
                await hub.gate.wait_open()
                ahead = await self._first_bytes(connection, who)
                if ahead[0] == _TLS_HANDSHAKE:
                    stream = TlsStream(
                        connection, hub.gate, hub.contexts, dialing=False, who=who, ahead=ahead
                    )
                    control = await accept_control(stream, hub.me, hub.contexts.peer_fingerprint, who=who)
                else:
                    await self._prove_lane(ahead, connection, who)
                    handed_over = True
            if control is not None:
                await self._serve_control(*control, connection, who)
            elif not handed_over:
                late = trio.current_time() >= scope.deadline
                reason = "no handshake in time" if late else "its place went to a newer connection"
                hub.refusals.refuse("half-open", f"{who}: {reason}")
        except PeerLost as error:
            hub.refusals.refuse("hung up", str(error))
        except RefusedError as error:
            hub.refusals.refuse("handshake", str(error))
        except ProtocolError as error:
            hub.refusals.refuse("protocol", str(error))
        finally:
            if not handed_over:
                hub.gate.retire(connection)

    async def _first_bytes(self, connection: Connection, who: str) -> bytes:
        """Enough to tell what this is: a lane's whole preamble, or the beginning of TLS."""
        buffer = bytearray(LANE_PREAMBLE_BYTES)
        view = memoryview(buffer)
        end = 0
        while end < LANE_PREAMBLE_BYTES:
            try:
                await connection.wait_readable()
                await self._hub.gate.wait_open()
                received = connection.receive_nowait(view[end:])
            except OSError as error:
                raise PeerLost(f"{who}: {error}") from error
            if received == 0:
                raise PeerLost(f"{who}: hung up before it said anything")
            end += received or 0
            if end and buffer[0] == _TLS_HANDSHAKE:
                break
        return bytes(view[:end])

    async def _prove_lane(self, preamble: bytes, connection: Connection, who: str) -> None:
        """Hand the lane to the control connection that it was agreed on; raises `PeerError`."""
        lane_id = parse_lane_preamble(preamble)
        token = self._tokens.get(lane_id)
        if token is None:
            known = "was used already" if lane_id in self._used else "is unknown or expired"
            raise RefusedError(f"{who}: the token of lane {lane_id.hex()[:8]} {known}")
        lane = make_lane(token.terms, connection, self._hub.gate, dialing=False, who=who)
        first_record = await lane.receive_first()
        # only now is the token spent: who merely knows it must not take the lane from who has its key
        if self._tokens.pop(lane_id, None) is not token:
            raise RefusedError(f"{who}: the token of lane {lane_id.hex()[:8]} was used already")
        self._used.add(lane_id)
        token.lane, token.connection, token.first_record = lane, connection, first_record
        token.arrived.set()

    async def _serve_control(
        self, channel: ControlChannel, hello: Hello, version: int, connection: Connection, who: str
    ) -> None:
        """The peer's authenticated control connection: agree on a lane, then run the path."""
        hub = self._hub
        reason = None
        if hub.dials:
            reason = "this host's key is the smaller one: it dials, you listen"
        elif self._controls >= CONTROLS_MAX:
            reason = f"{self._controls} control connections are open already"
        if reason is not None:
            await channel.farewell(Refuse(reason))
            raise RefusedError(f"{who}: {reason}")
        self._controls += 1
        token: _Token | None = None
        try:
            with trio.move_on_after(hub.config.timings.handshake_ns / 1e9):
                offer, token = await self._agree(channel, version, who)
                await token.arrived.wait()
            if token is None or token.lane is None:
                raise PeerLost(f"{who}: no lane came within the time for it")
            await self._run_path(channel, hello, version, connection, offer, token)
        finally:
            self._controls -= 1
            if token is not None:
                self._tokens.pop(token.terms.lane_id, None)
                if token.connection is not None:
                    hub.gate.retire(token.connection)

    async def _agree(self, channel: ControlChannel, version: int, who: str) -> tuple[LaneOffer, _Token]:
        hub = self._hub
        offer = await channel.receive()
        if isinstance(offer, (Bye, Refuse)):
            raise PeerLost(f"{who}: the peer said: {offer.reason}")
        if not isinstance(offer, LaneOffer):
            reason = f"{type(offer).__name__} where LaneOffer is expected"
            await channel.farewell(Bye(reason))
            raise ProtocolError(f"{who}: {reason}")
        running = hub.running()
        same = running is not None and running.info.session_id == offer.session_id
        if offer.join is not same:
            reason = "that session is not running here" if offer.join else "that session is running already"
            await channel.send(LaneRefuse(offer.lane_id, offer.join, reason))
            raise RefusedError(f"{who}: {reason}")
        if offer.lane_id in self._tokens or offer.lane_id in self._used:
            await channel.send(LaneRefuse(offer.lane_id, False, "that lane id was used before"))
            raise RefusedError(f"{who}: offers lane {offer.lane_id.hex()[:8]} twice")
        secret = hub.network.entropy(SECRET_BYTES)
        token = _Token(
            LaneTerms(
                version=version,
                session_id=offer.session_id,
                lane_id=offer.lane_id,
                dialer_fingerprint=hub.contexts.peer_fingerprint,
                listener_fingerprint=hub.me.fingerprint,
                dialer_secret=offer.secret,
                listener_secret=secret,
            )
        )
        self._tokens[offer.lane_id] = token
        try:
            await channel.send(LaneAccept(offer.lane_id, secret))
        except BaseException:
            del self._tokens[offer.lane_id]
            raise
        return offer, token

    async def _run_path(
        self,
        channel: ControlChannel,
        hello: Hello,
        version: int,
        connection: Connection,
        offer: LaneOffer,
        token: _Token,
    ) -> None:
        hub = self._hub
        if token.lane is None or token.connection is None or token.first_record is None:
            raise PeerLost(f"{channel.who}: its lane did not come")
        path = Path(
            shorten(hello.path),
            hello.rank,
            control=channel,
            lane=token.lane,
            connections=(connection, token.connection),
            timings=hub.config.timings,
            network=hub.network,
            gate=hub.gate,
            voted=hub.voted,
        )
        session = hub.open_path(
            path,
            session_id=offer.session_id,
            protocol=version,
            join=offer.join,
            first_record=token.first_record,
            greet=True,
        )
        await hub.run_path(path, session)
