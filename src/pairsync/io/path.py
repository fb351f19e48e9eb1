"""One network path that is up: its control connection, its lane, and the tasks that keep and watch both.

A path goes down as a whole: when either connection ends or breaks, when the control connection is silent
for too long, when the lane makes no progress although control lives, on a farewell, or when it is stopped.
Both connections are then given up together, and `run` returns the reason.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable

import trio

from pairsync.core.liveness import PathMonitor, Verdict
from pairsync.errors import PeerError, PeerLost, ProtocolError
from pairsync.wire.hello import Bye, Ping, Pong, Vote, shorten

from .config import LinkTimings
from .control import ControlChannel
from .gate import Gate
from .lane import Lane
from .network import Connection, Network
from .session import Session

__all__ = ["Path"]

_NAP_NS_MIN = 1_000_000
"""No loop of a path runs more often than this, whatever its deadlines say."""

VOTES_WAITING_MAX = 64
"""Votes that a path which takes nothing may keep; older ones go first: their senders ask again."""

_log = logging.getLogger("pairsync.link")


class Path:
    """A path of a running session."""

    def __init__(
        self,
        name: str,
        rank: int,
        *,
        control: ControlChannel,
        lane: Lane,
        connections: tuple[Connection, Connection],
        timings: LinkTimings,
        network: Network,
        gate: Gate,
        voted: Callable[[bytes], None] = lambda _content: None,
    ) -> None:
        """``voted`` hears what the peer's half of the grant register says."""
        self.name = name
        self.rank = rank
        self.lane = lane
        self.reason = ""
        # What the peer did against the protocol on this path, if that is what took it down.
        self.violation = ""
        # Whether the hub still counts this path as up; moved by the hub alone.
        self.up = False
        self._control = control
        self._connections = connections
        self._timings = timings
        self._network = network
        self._gate = gate
        self._scope = trio.CancelScope()
        self._farewell = False
        self._voted = voted
        self._votes: deque[bytes] = deque(maxlen=VOTES_WAITING_MAX)  # to be sent
        self._vote_waits = trio.Event()
        now_ns = network.now_ns()
        self.monitor = PathMonitor(
            interval_ns=timings.heartbeat_ns, silence_ns=timings.silence_ns, now_ns=now_ns
        )
        # Lane progress: what was seen last, and when it last moved.
        self._seen_in = 0
        self._moved_in_ns = now_ns
        self._seen_base = 0
        self._moved_base_ns = now_ns
        self._seen_records_out = 0

    def stop(self, reason: str, *, farewell: bool) -> None:
        """Take the path down from outside; ``farewell`` tells the peer why."""
        if not self.reason:
            self.reason = reason
            self._farewell = farewell
            self._scope.cancel()

    def vote(self, content: bytes) -> None:
        """Send a vote as soon as the control connection takes it; never blocks."""
        self._votes.append(content)
        self._vote_waits.set()

    async def run(self, session: Session) -> None:
        """Keep the path until it goes down; then `reason` says why, and `hang_up` is to be called."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._guard, lambda: self.lane.run_reader(session.receive))
                nursery.start_soon(self._guard, lambda: self.lane.run_writer(session.pump))
                nursery.start_soon(self._guard, self._listen)
                nursery.start_soon(self._guard, lambda: self._beat(session))
                nursery.start_soon(self._guard, self._send_votes)
                nursery.start_soon(self._guard, lambda: self._watch(session))

    async def hang_up(self) -> None:
        """Say farewell if the peer is to be told, and give up both connections.  Shielded, and short."""
        try:
            if self._farewell:
                await self._control.farewell(Bye(shorten(self.reason)))
        finally:
            for connection in self._connections:
                self._gate.retire(connection)

    async def _guard(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run one task of the path; what the peer did wrong takes the path down, anything else propagates."""
        try:
            await work()
        except ProtocolError as error:
            self.violation = self.violation or str(error)
            self.stop(str(error), farewell=True)
        except PeerError as error:
            self.stop(str(error), farewell=False)  # it is gone: nobody to tell

    async def _listen(self) -> None:
        while True:
            message = await self._control.receive()
            now_ns = self._network.now_ns()
            if isinstance(message, Ping):
                self.monitor.heard(now_ns)
                await self._control.send(Pong(message.number))
            elif isinstance(message, Pong):
                self.monitor.pong(message.number, now_ns)
            elif isinstance(message, Vote):
                self.monitor.heard(now_ns)
                self._voted(message.content)
            elif isinstance(message, Bye):
                raise PeerLost(f"the peer said: {message.reason}")
            else:
                raise ProtocolError(f"{type(message).__name__} on an established control connection")

    async def _beat(self, session: Session) -> None:
        """Ping, and keep the lane from falling silent.  Apart from `_watch`, for a send may block."""
        while True:
            await self._sleep_until(self.monitor.next_ping_ns)
            await self._gate.wait_open()
            lane = self.lane
            session.keep_alive(lane, idle=lane.records_out == self._seen_records_out)
            self._seen_records_out = lane.records_out
            await self._control.send(Ping(self.monitor.ping(self._network.now_ns())))

    async def _send_votes(self) -> None:
        """Apart from `_beat`, for a vote does not wait for a heartbeat."""
        while True:
            await self._vote_waits.wait()
            self._vote_waits = trio.Event()
            while self._votes:
                await self._gate.wait_open()
                await self._control.send(Vote(self._votes.popleft()))

    async def _watch(self, session: Session) -> None:
        suspected = False
        while True:
            now_ns = self._network.now_ns()
            verdict = self.monitor.verdict(now_ns)
            if verdict is Verdict.DEAD:
                raise PeerLost(f"silent for {self.monitor.silence_ns(now_ns) / 1e9:.1f} s")
            if (verdict is Verdict.SUSPECT) is not suspected:
                suspected = not suspected
                _log.debug("path %s is %s", self.name, verdict.value)
            self._check_lane(session, now_ns)
            half_beat_ns = now_ns + self._timings.heartbeat_ns // 2
            await self._sleep_until(min(half_beat_ns, self.monitor.next_deadline_ns()))

    async def _sleep_until(self, deadline_ns: int) -> None:
        await trio.sleep(max(_NAP_NS_MIN, deadline_ns - self._network.now_ns()) / 1e9)

    def _check_lane(self, session: Session, now_ns: int) -> None:
        if self._gate.shut:
            return
        lane = self.lane
        if lane.bytes_in != self._seen_in:
            self._seen_in, self._moved_in_ns = lane.bytes_in, now_ns
        base, waiting = session.unacknowledged()
        if base != self._seen_base or not waiting or not session.is_sending_on(lane):
            self._seen_base, self._moved_base_ns = base, now_ns
        still_ns = now_ns - min(self._moved_in_ns, self._moved_base_ns)
        if still_ns > self._timings.lane_silence_ns:
            # control lives, so the peer can be told
            self.stop(f"its lane has made no progress for {still_ns / 1e9:.1f} s", farewell=True)
