"""The simulated link: one ordered stream each way, in sessions that either end may believe alive or dead.

A session begins at the two ends at slightly different times.  What is sent arrives in order, after a delay
that depends on size and load, never before the session has begun at the receiver.  A cut is silence: what
is on its way waits, and arrives after all if the link heals before anybody noticed; otherwise the ends notice
at different times, and what had not arrived is lost.  When a session begins anew, an end that still believes
in the old one is told of its end first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from random import Random
from typing import Protocol

from pairsync.core.messages import Message, Write
from pairsync.core.tracker import ops_bytes
from pairsync.core.units import KIB, NS_PER_MS, NS_PER_S, NS_PER_US

from .clock import Clock, Trace
from .profile import Speeds

__all__ = ["Link", "LinkHost", "LinkProfile", "LinkWorld"]

MESSAGE_BYTES = 64
"""What a message costs beside its data."""


class LinkHost(Protocol):
    """What the link needs of a host."""

    @property
    def name(self) -> str:
        """For the trace."""

    @property
    def up(self) -> bool:
        """Whether there is a process that listens."""

    def link_up(self) -> None:
        """A session has begun at this end."""

    def link_lost(self, reason: str) -> None:
        """It has ended."""

    def link_received(self, messages: Sequence[Message]) -> None:
        """These have arrived."""


class LinkProfile(Protocol):
    """How fast it is."""

    @property
    def speeds(self) -> Speeds:
        """Of the link and of the disks."""


class LinkWorld(Protocol):
    """What the link needs of the world: both simulators of the core have it."""

    @property
    def clock(self) -> Clock:
        """Simulated time."""

    @property
    def random(self) -> Random:
        """Of the seed."""

    @property
    def trace(self) -> Trace:
        """What happened."""

    @property
    def profile(self) -> LinkProfile:
        """What the seed has drawn."""

    @property
    def hosts(self) -> Sequence[LinkHost]:
        """Both."""


class _End:
    """One host's view."""

    __slots__ = ("flight", "last_arrival_ns", "opened", "opens_ns", "sender_free_ns", "session")

    def __init__(self) -> None:
        self.session = 0  # the session that this end is in, or about to be in; 0: none
        self.opened = False  # the host has been told
        self.opens_ns = 0  # when it is, or was, told
        self.flight: deque[tuple[int, int, Sequence[Message]]] = deque()  # towards this end: arrival, session
        self.last_arrival_ns = 0
        self.sender_free_ns = 0


class Link:
    """Between host 0 and host 1."""

    def __init__(self, world: LinkWorld) -> None:
        self._world = world
        self._clock = world.clock
        self._random = world.random
        self.up = True
        self.slow = 1.0  # factor on all delays
        self._ends = (_End(), _End())
        self.last_session = 0  # number of the newest
        self._cut_number = 0
        self._attempting = False

    def session_of(self, index: int) -> int:
        """The session that this end is in; 0: none."""
        return self._ends[index].session

    @property
    def opened(self) -> bool:
        """Whether both hosts have been told of the session."""
        return self.whole and self._ends[0].opened and self._ends[1].opened

    @property
    def whole(self) -> bool:
        """Whether both ends are in the same session."""
        return self._ends[0].session == self._ends[1].session != 0

    # ------------------------------------------------------------------ sessions

    def connect_soon(self) -> None:
        """Try to begin a session, after a while."""
        if not self._attempting:
            self._attempting = True
            self._clock.after(self._random.randrange(5 * NS_PER_MS, 1500 * NS_PER_MS), self._connect)

    def _connect(self) -> None:
        self._attempting = False
        hosts = self._world.hosts
        if not self.up or not hosts[0].up or not hosts[1].up or self.whole:
            return
        if not self._welcome():
            self.connect_soon()
            return
        for index in (0, 1):
            if self._ends[index].session:
                self._end(index, "the peer began a new session")
        self._attempting = False  # it has succeeded
        self.last_session += 1
        now = self._clock.now
        for index, end in enumerate(self._ends):
            end.session = self.last_session
            end.opened = False
            end.flight.clear()
            end.opens_ns = now + self._random.randrange(5 * NS_PER_MS)
            self._clock.at(end.opens_ns, self._opened, index, end.session)

    def _welcome(self) -> bool:
        """Whether both hosts take each other for a peer."""
        return True

    def _opened(self, index: int, session: int) -> None:
        end = self._ends[index]
        if end.session == session:
            end.opened = True
            host = self._world.hosts[index]
            self._world.trace.note(host.name, "connected", session)
            host.link_up()

    def _end(self, index: int, reason: str) -> None:
        """This end's session is over: the host is told (if it knew of it)."""
        end = self._ends[index]
        end.session = 0
        end.flight.clear()
        if end.opened:
            end.opened = False
            host = self._world.hosts[index]
            self._world.trace.note(host.name, "lost", 0, reason)
            if host.up:
                host.link_lost(reason)
        self.connect_soon()

    def _end_session(self, index: int, session: int, reason: str) -> None:
        if self._ends[index].session == session:
            self._end(index, reason)

    # ------------------------------------------------------------------ the stream

    def send(self, index: int, messages: Sequence[Message]) -> None:
        """From that end; dropped if it is in no session."""
        mine, theirs = self._ends[index], self._ends[1 - index]
        if not mine.session:
            return
        size = sum(
            MESSAGE_BYTES + (ops_bytes(message.ops) if isinstance(message, Write) else 0)
            for message in messages
        )
        speeds = self._world.profile.speeds
        now = self._clock.now
        leaves = max(now, mine.sender_free_ns) + int(size * speeds.link_ns_per_kib * self.slow) // KIB
        mine.sender_free_ns = leaves
        arrival = leaves + int(speeds.link_ns * self.slow * (0.5 + self._random.random()))
        if theirs.session == mine.session:
            arrival = max(arrival, theirs.opens_ns + 1)
        arrival = max(arrival, theirs.last_arrival_ns)
        theirs.last_arrival_ns = arrival
        theirs.flight.append((arrival, mine.session, messages))
        self._clock.at(arrival, self._arrive, 1 - index)

    def _arrive(self, index: int) -> None:
        end = self._ends[index]
        now = self._clock.now
        while self.up and end.flight and end.flight[0][0] <= now:
            _, session, messages = end.flight.popleft()
            host = self._world.hosts[index]
            if session == end.session and end.opened and host.up:
                host.link_received(messages)

    def on_its_way(self, index: int) -> list[Message]:
        """What may still arrive at that end."""
        return [message for _, _, messages in self._ends[index].flight for message in messages]

    # ------------------------------------------------------------------ ends of sessions

    def drop(self, index: int, reason: str) -> None:
        """That host ends the session on purpose; what it sent before may still arrive."""
        session = self._ends[index].session
        if not session:
            return
        here = self._clock.now + self._random.randrange(2 * NS_PER_MS)
        self._clock.at(here, self._end_session, index, session, reason)
        there = self._clock.now + self._random.randrange(5 * NS_PER_MS)
        if self._random.random() < 0.7:
            there = max(there, self._ends[1 - index].last_arrival_ns + NS_PER_US)
        self._clock.at(there, self._end_session, 1 - index, session, f"the peer ended the session: {reason}")

    def reset(self, *, one_sided: bool) -> None:
        """The session breaks: both ends notice, one of them possibly much later."""
        late = self._random.randrange(2)
        for index, end in enumerate(self._ends):
            delay = self._random.randrange(5 * NS_PER_MS)
            if one_sided and index == late:
                delay += self._silence_ns()
            self._clock.after(delay, self._end_session, index, end.session, "connection reset")

    def _silence_ns(self) -> int:
        return self._random.randrange(NS_PER_S, 6 * NS_PER_S)

    def cut(self) -> None:
        """Silence from now on."""
        if not self.up:
            return
        self.up = False
        self._cut_number += 1
        for index, end in enumerate(self._ends):
            if end.session:
                self._clock.after(self._silence_ns(), self._notice, index, end.session, self._cut_number)

    def _notice(self, index: int, session: int, cut: int) -> None:
        if not self.up and cut == self._cut_number:
            self._end_session(index, session, "silence")

    def heal(self) -> None:
        """The network works again."""
        if self.up:
            return
        self.up = True
        for index in (0, 1):
            self._clock.after(self._random.randrange(20 * NS_PER_MS), self._arrive, index)
        self.connect_soon()

    # ------------------------------------------------------------------ hosts

    def host_down(self, index: int, *, silent: bool) -> None:
        """The host is gone; a part of what it had sent arrives; the peer notices soon, or by the silence."""
        mine, theirs = self._ends[index], self._ends[1 - index]
        session, mine.session, mine.opened = mine.session, 0, False
        mine.flight.clear()
        survivors = self._random.randrange(len(theirs.flight) + 1)
        while len(theirs.flight) > survivors:
            theirs.flight.pop()
        if session and theirs.session == session:
            delay = self._silence_ns() if silent else self._random.randrange(30 * NS_PER_MS)
            when = max(self._clock.now + delay, theirs.last_arrival_ns + 1 if not silent else 0)
            self._clock.at(when, self._end_session, 1 - index, session, "the peer hung up")

    def host_up(self) -> None:
        """A host is there again."""
        self.connect_soon()
