"""The middle of a link: the one session, the paths that are up, and who is told of what.

Dialer and acceptor bring lanes that are proved; the hub begins a session with them or lets them join it, and
runs their paths.  It alone calls the handler, and it never calls it from inside a call of the handler:
`end_session` and `renew_session`, which the handler may reach, only mark and stop, and tasks of the paths and
of the link announce what has come of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import trio

from pairsync.errors import InternalError, PeerLost, ProtocolError
from pairsync.wire.limits import PATHS_MAX

from .config import LinkConfig
from .control import Introduction
from .gate import Gate
from .network import Network
from .path import Path
from .refusals import Refusals
from .session import LinkHandler, Session, SessionInfo
from .tls import TlsContexts

__all__ = ["CLOSED", "Hub", "Totals"]

CLOSED = "the link was closed"
"""Why a session ends when its link is closed, on purpose."""

_log = logging.getLogger("pairsync.link")


@dataclass(slots=True)
class Totals:
    """Counters of paths and sessions that are over; they only grow."""

    bytes_in: int = 0
    bytes_out: int = 0
    records_in: int = 0
    records_out: int = 0
    messages_in: int = 0
    messages_out: int = 0
    frames_resent: int = 0
    frames_dropped: int = 0
    sessions: int = 0


class Hub:
    """Shared by the tasks of one link."""

    def __init__(self, config: LinkConfig, network: Network) -> None:
        self.config = config
        self.network = network
        self.gate = Gate()
        self.contexts = TlsContexts(config.identity, config.peer_certificate_pem)
        self.me = Introduction(
            config.software,
            config.pair_id,
            config.identity.fingerprint,
            (config.protocol_min, config.protocol_max),
        )
        self.dials = config.identity.fingerprint < self.contexts.peer_fingerprint
        self.refusals = Refusals(network.now_ns)
        self.totals = Totals()
        self.handler: LinkHandler | None = None
        self.vote_handler: Callable[[bytes], None] = lambda _content: None
        # Invariants: `session` is the one that the handler was told of last and not told the end of;
        # `paths` holds its paths that are up, by name.
        self.session: Session | None = None
        self.paths: dict[str, Path] = {}
        self.protocol: int | None = None  # of the session that began last
        self._renewal = trio.Event()  # there is one to be told of

    def _handler(self) -> LinkHandler:
        if self.handler is None:
            raise InternalError("a link does nothing before it has a handler")
        return self.handler

    def voted(self, content: bytes) -> None:
        """The peer's half of the grant register has said something, on whichever path."""
        if not self.gate.shut:
            self.vote_handler(content)

    def vote(self, content: bytes) -> None:
        """Say something to it, on every path that is up; what is lost is said again by who needs it."""
        if not self.gate.shut:
            for path in self.paths.values():
                path.vote(content)

    def running(self) -> Session | None:
        """The session, unless it has ended and is about to be announced as lost."""
        session = self.session
        return session if session is not None and not session.ended else None

    def open_path(
        self,
        path: Path,
        *,
        session_id: bytes,
        protocol: int,
        join: bool,
        first_record: memoryview,
        greet: bool,
    ) -> Session:
        """A path is proved: let it join the session of that id, or begin that session with it.

        With ``greet`` the lane's first record is answered before anything else is sent on it.  Raises
        `PeerLost` if the session to join is over, or the link was cut meanwhile.
        """
        if self.gate.shut:
            raise PeerLost("the link was cut during the handshake")
        running = self.running()
        if join:
            if running is None or running.info.session_id != session_id:
                raise PeerLost("the session was over before its lane was up")
            if running.info.protocol != protocol:
                raise PeerLost(f"a path of version {protocol} in a session of {running.info.protocol}")
            session = running
        else:
            self.close_session("the peer began a new session")
            session = self._begin(session_id, protocol, path.name)
        previous = self.paths.get(path.name)
        if previous is None and len(self.paths) >= PATHS_MAX:
            raise PeerLost(f"{len(self.paths)} paths are up already")
        session.receive(first_record)
        if session.ended:
            raise ProtocolError(session.reason)
        if greet:
            path.lane.transmit(0, session.acknowledgement, ())
        if previous is not None:
            self._mark_down(previous, "replaced by a newer connection")
        path.up = True
        self.paths[path.name] = path
        session.attach(path.lane, path.rank, path.name)
        if previous is not None:
            session.detach(previous.lane)
            previous.stop("replaced by a newer connection", farewell=True)
        if not join:
            self.session = session
            _log.info("session %s begins on path %s", session_id.hex()[:8], path.name)
            self._handler().connected(session.info)
        _log.info("path %s is up", path.name)
        self._handler().path_changed(path.name, True, "")
        return session

    def _begin(self, session_id: bytes, protocol: int, path: str) -> Session:
        self.protocol = protocol
        info = SessionInfo(session_id, protocol, self.contexts.peer_fingerprint, path)
        self.totals.sessions += 1

        def violated(reason: str) -> None:
            self.refusals.refuse("protocol", reason)
            session.end(reason)
            if session is self.session:
                self._stop_paths(reason)

        def over(reason: str) -> None:
            self.session = None
            _log.info("session %s is renewed: %s", session_id.hex()[:8], reason)
            self._handler().lost(reason)

        def begun() -> None:
            self.session = session
            self.totals.sessions += 1
            self._handler().connected(info)

        session = Session(
            info,
            self.gate,
            window_bytes=self.config.window_bytes,
            received=self._handler().received,
            violated=violated,
            over=over,
            begun=begun,
        )
        return session

    async def run_path(self, path: Path, session: Session) -> None:
        """Run a path that `open_path` took, to its end."""
        try:
            await path.run(session)
            if path.violation:
                self.refusals.refuse("protocol", f"path {path.name}: {path.violation}")
        finally:
            # the session goes on over another path, or its loss is told, before anybody says farewell
            self._take_down(path, session, path.reason or CLOSED)
            await path.hang_up()  # shielded, and bounded

    def _mark_down(self, path: Path, reason: str) -> None:
        """Count and announce that a path is down; once for each path."""
        if not path.up:
            return
        path.up = False
        if self.paths.get(path.name) is path:
            del self.paths[path.name]
        lane = path.lane
        self.totals.bytes_in += lane.bytes_in
        self.totals.bytes_out += lane.bytes_out
        self.totals.records_in += lane.records_in
        self.totals.records_out += lane.records_out
        _log.log(_level(reason), "path %s is down: %s", path.name, reason)
        self._handler().path_changed(path.name, False, reason)

    def _take_down(self, path: Path, session: Session, reason: str) -> None:
        self._mark_down(path, reason)
        session.detach(path.lane)
        if not session.lane_count:
            session.end(f"the last path is down: {path.name}: {reason}")
        if session.ended and session is self.session:
            self._announce_lost()

    def end_session(self, reason: str) -> None:
        """End the session and its paths; the handler is told soon, never from inside this call."""
        session = self.running()
        if session is None:
            return
        session.end(reason)
        self._stop_paths(reason)

    def renew_session(self, reason: str) -> None:
        """End the session and begin another one over the same paths, or, where that cannot be, over new ones.

        The handler is told of both soon, never from inside this call.
        """
        session = self.running()
        if session is None:
            return
        if session.renew(reason):
            self._renewal.set()
        else:
            self.end_session(reason)

    async def tell_renewals(self) -> None:
        """Tell the handler of renewals, until cancelled."""
        while True:
            await self._renewal.wait()
            self._renewal = trio.Event()
            session = self.running()
            if session is not None:
                session.tell()

    def _stop_paths(self, reason: str) -> None:
        for path in self.paths.values():
            path.stop(reason, farewell=True)

    def close_session(self, reason: str) -> None:
        """End the session and tell the handler now; not to be reached from the handler."""
        self.end_session(reason)
        if self.session is not None:
            self._announce_lost()

    def _announce_lost(self) -> None:
        session = self.session
        if session is None:
            return
        for path in list(self.paths.values()):
            self._mark_down(path, session.reason)
            path.stop(session.reason, farewell=True)
        self.session = None
        self.totals.messages_in += session.messages_in
        self.totals.messages_out += session.messages_out
        self.totals.frames_resent += session.frames_resent
        self.totals.frames_dropped += session.frames_dropped
        name = session.info.session_id.hex()[:8]
        _log.log(_level(session.reason), "session %s is lost: %s", name, session.reason)
        self._handler().lost(session.reason)


def _level(reason: str) -> int:
    return logging.INFO if reason == CLOSED else logging.WARNING
