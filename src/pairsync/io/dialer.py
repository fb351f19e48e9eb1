"""The dialing end of a link: one task a path, which keeps that path up for as long as the link is open.

An attempt connects the control connection, authenticates it, offers a lane, connects the lane, and runs the
path until it goes down; then it backs off and tries again.  If no session is running, the first path that
gets so far begins one; the others wait for it (no longer than one handshake) and join.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import trio

from pairsync.core.backoff import Backoff
from pairsync.errors import PeerError, PeerLost, ProtocolError, RefusedError
from pairsync.wire.hello import Bye, LaneAccept, LaneOffer, LaneRefuse, Refuse, shorten
from pairsync.wire.seals import LANE_ID_BYTES, SECRET_BYTES, SESSION_ID_BYTES

from .config import PathConfig
from .control import ControlChannel, dial_control
from .hub import Hub
from .lane import Lane
from .lanes import LaneTerms, make_lane, send_preamble
from .network import Connection, describe_address
from .path import Path
from .session import Session
from .tls import TlsStream

__all__ = ["Dialer"]

_log = logging.getLogger("pairsync.link")


@dataclass(slots=True)
class _Attempt:
    """What one attempt holds; given up together, unless a path takes the connections over."""

    connections: list[Connection]
    taken: bool = False


class Dialer:
    """Dials every path of a link."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._beginning = trio.Lock()  # one path at a time begins a session

    async def run(self) -> None:
        """Dial until cancelled."""
        async with trio.open_nursery() as nursery:
            for rank, path in enumerate(self._hub.config.paths):
                nursery.start_soon(self._keep_up, path, rank, name=f"dial {path.name}")

    async def _keep_up(self, path: PathConfig, rank: int) -> None:
        hub, timings = self._hub, self._hub.config.timings
        backoff = Backoff(first_ns=timings.backoff_first_ns, limit_ns=timings.backoff_limit_ns)
        told = ""
        while True:
            await hub.gate.wait_open()
            reason = await self._attempt(path, rank)
            if reason is None:  # it came up, and what ended it is no reason to stay away
                backoff.succeeded()
            if reason is not None and reason != told:
                _log.warning("path %s: cannot connect: %s", path.name, reason)
            told = reason or ""
            fraction = int.from_bytes(hub.network.entropy(4), "big") / 2**32
            await trio.sleep(backoff.failed(fraction) / 1e9)

    async def _attempt(self, path: PathConfig, rank: int) -> str | None:
        """One attempt, to the end of the path if it comes up; ``None``, or what is wrong with the peer."""
        hub = self._hub
        held = _Attempt([])
        who = f"{path.name} at {describe_address(path.peer)}"
        deadline_s = hub.config.timings.handshake_ns / 1e9
        try:
            with trio.move_on_after(deadline_s) as scope:
                opened, session = await self._open(path, rank, held, who)
            if scope.cancelled_caught:
                return f"{who}: no answer within {deadline_s:g} s"
            await hub.run_path(opened, session)
            if opened.violation:
                return f"{who}: {opened.violation}"
        except PeerError as error:
            if isinstance(error, (RefusedError, ProtocolError)):
                hub.refusals.count("dialling")
            return str(error)
        finally:
            if not held.taken:
                for connection in held.connections:
                    hub.gate.retire(connection)
        return None

    async def _connect(self, path: PathConfig, held: _Attempt, who: str) -> Connection:
        try:
            connection = await self._hub.network.connect(path.peer, path.local)
        except OSError as error:
            raise PeerLost(f"{who}: {error.strerror or error}") from error
        held.connections.append(connection)
        return connection

    async def _open(self, path: PathConfig, rank: int, held: _Attempt, who: str) -> tuple[Path, Session]:
        hub = self._hub
        connection = await self._connect(path, held, who)
        stream = TlsStream(connection, hub.gate, hub.contexts, dialing=True, who=who)
        pinned = hub.contexts.peer_fingerprint
        channel, welcome = await dial_control(stream, hub.me, pinned, path=path.name, rank=rank, who=who)
        if hub.running() is not None:
            return await self._bring_up(path, rank, channel, welcome.protocol, held, who)
        async with self._beginning:
            return await self._bring_up(path, rank, channel, welcome.protocol, held, who)

    async def _bring_up(
        self, path: PathConfig, rank: int, channel: ControlChannel, protocol: int, held: _Attempt, who: str
    ) -> tuple[Path, Session]:
        hub = self._hub
        running = hub.running()
        join = running is not None
        session_id = running.info.session_id if running is not None else hub.network.entropy(SESSION_ID_BYTES)
        terms = await self._agree(channel, session_id, protocol, join=join, who=who)
        connection = await self._connect(path, held, who)
        lane = make_lane(terms, connection, hub.gate, dialing=True, who=who)
        first_record = await self._prove(lane, connection, terms, who)
        opened = Path(
            path.name,
            rank,
            control=channel,
            lane=lane,
            connections=(held.connections[0], connection),
            timings=hub.config.timings,
            network=hub.network,
            gate=hub.gate,
            voted=hub.voted,
        )
        session = hub.open_path(
            opened,
            session_id=session_id,
            protocol=protocol,
            join=join,
            first_record=first_record,
            greet=False,
        )
        held.taken = True
        return opened, session

    async def _agree(
        self, channel: ControlChannel, session_id: bytes, protocol: int, *, join: bool, who: str
    ) -> LaneTerms:
        hub = self._hub
        lane_id, secret = hub.network.entropy(LANE_ID_BYTES), hub.network.entropy(SECRET_BYTES)
        await channel.send(LaneOffer(lane_id, session_id, join, secret))
        answer = await channel.receive()
        if isinstance(answer, LaneRefuse):
            running = hub.running()
            if answer.session_gone and running is not None and running.info.session_id == session_id:
                hub.close_session("the peer has lost this session")
            raise PeerLost(f"{who}: {answer.reason}")
        if isinstance(answer, (Bye, Refuse)):  # refused: it has too many control connections, or dials itself
            raise PeerLost(f"{who}: the peer said: {answer.reason}")
        if not isinstance(answer, LaneAccept) or answer.lane_id != lane_id:
            reason = f"{type(answer).__name__} in answer to LaneOffer"
            await channel.farewell(Bye(shorten(reason)))
            raise ProtocolError(f"{who}: {reason}")
        return LaneTerms(
            version=protocol,
            session_id=session_id,
            lane_id=lane_id,
            dialer_fingerprint=hub.me.fingerprint,
            listener_fingerprint=hub.contexts.peer_fingerprint,
            dialer_secret=secret,
            listener_secret=answer.secret,
        )

    async def _prove(self, lane: Lane, connection: Connection, terms: LaneTerms, who: str) -> memoryview:
        await self._hub.gate.wait_open()
        send_preamble(connection, terms.lane_id, who)
        running = self._hub.running()
        lane.transmit(0, running.acknowledgement if running is not None else 0, ())
        return await lane.receive_first()
