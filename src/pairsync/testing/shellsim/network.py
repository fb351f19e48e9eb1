"""Simulated networks: named paths between two hosts, each with a speed, a delay and faults of its own.

A path is two wires, one a direction.  Whatever one end does (data, the end of a stream, a reset, an attempt
to connect) travels over the wire of that direction, in order, and takes effect at the other end when it
arrives.  As with TCP, a **silent cut** loses nothing by itself: what is under way waits until the cut is
healed, unless somebody has given the connection up meanwhile.  A **reset** ends the connections of a path at
both ends.  The death of a **process** closes its connections (in order, or with a reset where data was not
read); the death of a **machine** is silence, and later a reset for whoever still talks to what it has
forgotten.

The window of a connection counts bytes that were taken and not read yet at the other end, so a reader that
does not read stops the writer.  All sizes and times come from the seed: see `WireSpeed`.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import trio

from pairsync.core.messages import Buffer
from pairsync.core.units import NS_PER_MS
from pairsync.io.network import Address

from .trace import Timers

__all__ = ["HostNetwork", "SimConnection", "SimListener", "SimNetwork", "SimPath", "WireSpeed"]

SEGMENT_BYTES = 64
"""What a segment without data weighs."""

RETRANSMIT_NS_MAX = 200 * NS_PER_MS
"""How long after a cut has healed the first segment goes out again."""


@dataclass(frozen=True, slots=True)
class WireSpeed:
    """How one path carries data."""

    delay_ns: int  # one way
    jitter_ns: int
    ns_per_kib: int
    window_bytes: int  # taken and not read
    piece_bytes: int  # most that one call takes or gives


def _os_error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


class _Wire:
    """One direction of a path: in order, with a speed; may be cut."""

    def __init__(self, timers: Timers, random: Random, speed: WireSpeed) -> None:
        self._timers = timers
        self._random = random
        self.speed = speed
        self.cut = False
        self.slow = 1  # everything takes so many times as long
        self._free_ns = 0  # when the last byte that was put on it has left
        self._arrival_ns = 0  # when the last segment arrives; those behind it do not overtake
        # What has not arrived, in order: whenever something is due the first of it arrives.
        self._under_way: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._held: deque[int] = deque()  # sizes of what was due while it was cut, until it is healed

    def carry(self, size_bytes: int, arrive: Callable[..., None], *arguments: Any) -> None:
        """Call ``arrive(*arguments)`` at the other end."""
        self._under_way.append((arrive, arguments))
        self._send(size_bytes)

    def _send(self, size_bytes: int) -> None:
        speed = self.speed
        self._free_ns = (
            max(self._free_ns, self._timers.now_ns()) + size_bytes * speed.ns_per_kib * self.slow // 1024
        )
        arrival = self._free_ns + speed.delay_ns * self.slow + self._random.randrange(speed.jitter_ns + 1)
        self._arrival_ns = max(self._arrival_ns, arrival)
        self._timers.at(self._arrival_ns, self._arrive, size_bytes)

    def _arrive(self, size_bytes: int) -> None:
        if self.cut:
            self._held.append(size_bytes)
        else:
            arrive, arguments = self._under_way.popleft()
            arrive(*arguments)

    def heal(self) -> None:
        """End the cut; what waits is sent again."""
        if not self.cut:
            return
        self.cut = False
        held, self._held = self._held, deque()
        self._free_ns = max(self._free_ns, self._timers.now_ns() + self._random.randrange(RETRANSMIT_NS_MAX))
        for size_bytes in held:
            self._send(size_bytes)


class SimConnection:
    """One end of a connection; a `Connection`."""

    def __init__(
        self, net: SimNetwork, owner: HostNetwork, local: Address, remote: Address, wire: _Wire
    ) -> None:
        self._net = net
        self._owner = owner
        self.local = local
        self._remote = remote
        self._wire = wire  # towards the other end
        self.peer: SimConnection | None = None
        self._arrived: deque[memoryview] = deque()
        self._unread_there = 0  # bytes that the other end has not read
        self._ended = False  # the other end has sent all it had
        self._error: OSError | None = None
        self.closed = False  # by this end, or its host has died
        self._readable = trio.lowlevel.ParkingLot()
        self._writable = trio.lowlevel.ParkingLot()
        net.connections[self] = None

    @property
    def remote(self) -> Address:
        """As `Connection.remote`."""
        return self._remote

    # ------------------------------------------------------------------ this end

    def _check(self) -> None:
        if self.closed:
            raise _os_error(errno.EBADF)
        if self._error is not None:
            raise self._error

    def send_nowait(self, data: Buffer) -> int:
        """As `Connection.send_nowait`."""
        self._check()
        speed = self._wire.speed
        taken = min(len(data), speed.window_bytes - self._unread_there, speed.piece_bytes)
        if taken <= 0:
            return 0
        self._unread_there += taken
        self._wire.carry(
            taken + SEGMENT_BYTES, self._other()._data, memoryview(bytes(memoryview(data)[:taken]))
        )
        return taken

    def _other(self) -> SimConnection:
        if self.peer is None:
            raise _os_error(errno.ENOTCONN)
        return self.peer

    async def wait_writable(self) -> None:
        """As `Connection.wait_writable`."""
        await trio.lowlevel.checkpoint()
        while not (self.closed or self._error or self._unread_there < self._wire.speed.window_bytes):
            await self._writable.park()
        if self.closed:
            raise trio.ClosedResourceError

    async def wait_readable(self) -> None:
        """As `Connection.wait_readable`."""
        await trio.lowlevel.checkpoint()
        while not (self.closed or self._error or self._arrived or self._ended):
            await self._readable.park()
        if self.closed:
            raise trio.ClosedResourceError

    async def attend(self, take: Callable[[], bool]) -> None:
        """As `Connection.attend`."""
        await self.wait_readable()
        while take():
            await self.wait_readable()

    def receive_nowait(self, buffer: memoryview) -> int | None:
        """As `Connection.receive_nowait`; data that came before a reset is lost with it, as in a kernel."""
        self._check()
        room = min(len(buffer), self._wire.speed.piece_bytes)
        taken = 0
        while self._arrived and taken < room:
            piece = self._arrived[0]
            part = piece[: room - taken]
            buffer[taken : taken + len(part)] = part
            taken += len(part)
            if len(part) == len(piece):
                self._arrived.popleft()
            else:
                self._arrived[0] = piece[len(part) :]
        if taken:
            if self.peer is not None:
                self.peer._read_there(taken)
            return taken
        return 0 if self._ended else None

    def close(self) -> None:
        """As `Connection.close`."""
        if self.closed:
            return
        self.forget()
        if self.peer is not None and self._error is None:
            gone = self.peer._reset if self._arrived else self.peer._end
            self._wire.carry(SEGMENT_BYTES, gone)

    def forget(self) -> None:
        """This end is gone, and nobody is told."""
        self.closed = True
        self._net.connections.pop(self, None)
        self._wake()

    def _wake(self) -> None:
        self._readable.unpark_all()
        self._writable.unpark_all()

    def fail(self) -> None:
        """The network ends the connection at this end."""
        if self._error is None and not self.closed:
            self._error = _os_error(errno.ECONNRESET)
            self._arrived.clear()
            self._wake()

    # ------------------------------------------------------------------ what arrives from the other end

    def _data(self, piece: memoryview) -> None:
        if self.closed:
            if self._owner.machine_up and self.peer is not None:
                self._wire.carry(SEGMENT_BYTES, self.peer._reset)
        elif self._error is None:
            self._arrived.append(piece)
            self._readable.unpark_all()

    def _end(self) -> None:
        if not self.closed:
            self._ended = True
            self._readable.unpark_all()

    def _reset(self) -> None:
        self.fail()

    def _read_there(self, count: int) -> None:
        self._unread_there -= count
        self._writable.unpark_all()


class SimListener:
    """A `Listener`."""

    def __init__(self, net: SimNetwork, owner: HostNetwork, address: Address) -> None:
        self._net = net
        self.owner = owner
        self._address = address
        self._waiting: deque[SimConnection] = deque()
        self._arrived = trio.lowlevel.ParkingLot()
        self.closed = False

    @property
    def address(self) -> Address:
        """As `Listener.address`."""
        return self._address

    def offer(self, connection: SimConnection) -> None:
        """A connection has come."""
        self._waiting.append(connection)
        self._arrived.unpark()

    async def accept(self) -> SimConnection:
        """As `Listener.accept`."""
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            if self.closed:
                raise trio.ClosedResourceError
            await self._arrived.park()
        return self._waiting.popleft()

    def close(self) -> None:
        """As `Listener.close`; connections that nobody has accepted are reset."""
        if self.closed:
            return
        self.closed = True
        if self._net.listeners.get(self._address) is self:
            del self._net.listeners[self._address]
        for connection in self._waiting:
            connection.close()
        self._arrived.unpark_all()


class SimPath:
    """A path between the two hosts; ``wires`` are keyed by the host that sends."""

    def __init__(self, name: str, wires: dict[str, _Wire]) -> None:
        self.name = name
        self.wires = wires

    def cut(self, *senders: str) -> None:
        """Silence, for what those hosts send; for both if none is named."""
        for sender in senders or self.wires:
            self.wires[sender].cut = True

    def heal(self) -> None:
        """End every cut."""
        for wire in self.wires.values():
            wire.heal()
            wire.slow = 1

    @property
    def whole(self) -> bool:
        """Whether nothing is cut."""
        return not any(wire.cut for wire in self.wires.values())


class SimNetwork:
    """All paths between two hosts."""

    def __init__(
        self, timers: Timers, random: Random, speeds: dict[str, WireSpeed], hosts: tuple[str, str]
    ) -> None:
        self._timers = timers
        self.hosts = hosts
        self.paths = {
            name: SimPath(name, {host: _Wire(timers, random, speed) for host in hosts})
            for name, speed in speeds.items()
        }
        self.connections: dict[SimConnection, None] = {}
        """Ends that are open, in the order in which they were made."""
        self.listeners: dict[Address, SimListener] = {}
        self.dark: set[str] = set()
        """Hosts whose machine has no power."""

    def route(self, address: Address) -> tuple[SimPath, str]:
        """Path and host of an address, whose name is ``host.path``."""
        host, _, path = address[0].partition(".")
        if path not in self.paths or host not in self.hosts:
            raise _os_error(errno.EHOSTUNREACH)
        return self.paths[path], host

    def reset(self, path: SimPath) -> None:
        """Every connection over the path breaks at both ends; what was under way is lost."""
        for connection in list(self.connections):
            if self.route(connection.local)[0] is path:
                connection.fail()

    def heal(self) -> None:
        """Everything works."""
        for path in self.paths.values():
            path.heal()


class HostNetwork:
    """What one life of a host sees; a `Network`.  ``secret`` is where its entropy comes from."""

    def __init__(self, net: SimNetwork, timers: Timers, host: str, secret: Random) -> None:
        self._net = net
        self._timers = timers
        self._secret = secret
        self.host = host
        self.dead = False
        self.machine_up = True
        self._ports = 40000  # the next local port

    def die(self, *, power: bool) -> None:
        """The process has ended: the system closes what it had open; without power nobody is told."""
        self.dead = True
        if power:
            self.machine_up = False
            self._net.dark.add(self.host)
        for listener in [each for each in self._net.listeners.values() if each.owner is self]:
            listener.close()
        for connection in [each for each in self._net.connections if each._owner is self]:
            connection.forget() if power else connection.close()

    def machine_restarts(self) -> None:
        """From here on whoever talks to connections of this life is told that they are gone."""
        self.machine_up = True
        self._net.dark.discard(self.host)

    async def connect(self, address: Address, local: str | None) -> SimConnection:
        """As `Network.connect`."""
        await trio.lowlevel.checkpoint()
        if self.dead:
            raise _os_error(errno.ENETDOWN)
        path, there = self._net.route(address)
        self._ports += 1
        mine = SimConnection(
            self._net,
            self,
            (local or f"{self.host}.{path.name}", self._ports),
            address,
            path.wires[self.host],
        )
        answered = trio.Event()
        path.wires[self.host].carry(SEGMENT_BYTES, self._knock, mine, path, there, answered)
        try:
            await answered.wait()
            mine._check()
        except BaseException:
            mine.close()
            raise
        return mine

    def _knock(self, mine: SimConnection, path: SimPath, there: str, answered: trio.Event) -> None:
        """The attempt has reached the other host."""
        listener = self._net.listeners.get(mine.remote)
        back = path.wires[there]
        if there in self._net.dark:
            return
        if listener is None:
            back.carry(SEGMENT_BYTES, self._refuse, mine, answered)
        else:
            theirs = SimConnection(self._net, listener.owner, mine.remote, mine.local, back)
            theirs.peer = mine
            listener.offer(theirs)
            back.carry(SEGMENT_BYTES, self._accept, mine, theirs, answered)

    @staticmethod
    def _refuse(mine: SimConnection, answered: trio.Event) -> None:
        if not mine.closed:
            mine._error = _os_error(errno.ECONNREFUSED)
        answered.set()

    @staticmethod
    def _accept(mine: SimConnection, theirs: SimConnection, answered: trio.Event) -> None:
        if mine.closed:
            mine._wire.carry(SEGMENT_BYTES, theirs._reset)
        else:
            mine.peer = theirs
        answered.set()

    async def listen(self, address: Address) -> SimListener:
        """As `Network.listen`."""
        await trio.lowlevel.checkpoint()
        if self.dead or self._net.route(address)[1] != self.host:
            raise _os_error(errno.EADDRNOTAVAIL)
        if address in self._net.listeners:
            raise _os_error(errno.EADDRINUSE)
        listener = self._net.listeners[address] = SimListener(self._net, self, address)
        return listener

    def now_ns(self) -> int:
        """As `Network.now_ns`."""
        return self._timers.now_ns()

    def entropy(self, count: int) -> bytes:
        """As `Network.entropy`; the same for the same seed."""
        return self._secret.randbytes(count)
