"""Helpers of the link tests: a recording handler, two hosts, an in-memory network, a hostile relay."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import trio

from pairsync.core.messages import Applied, Buffer, Message, OpKind, Write, WriteOp
from pairsync.core.units import NS_PER_MS, NS_PER_S
from pairsync.io import (
    Address,
    HostIdentity,
    Link,
    LinkConfig,
    LinkTimings,
    Network,
    PathConfig,
    SessionInfo,
    open_link,
)
from pairsync.wire.hello import LANE_PREAMBLE_BYTES
from pairsync.wire.seals import LENGTH_BYTES

PAIR_ID = b"one pair of two!"
LOOPBACK: Address = ("127.0.0.1", 0)
PATIENCE_S = 20.0  # a bound for a busy machine, never a wait
QUICK = LinkTimings(
    heartbeat_ns=50 * NS_PER_MS,
    silence_ns=10 * NS_PER_S,  # of real time: a busy machine is no dead one
    backoff_first_ns=20 * NS_PER_MS,
    backoff_limit_ns=200 * NS_PER_MS,
)


class Recorder:
    """A handler that writes everything down; `answer` makes it a standby that applies at once."""

    def __init__(self, *, answer: bool = False) -> None:
        self.link: Link | None = None
        self.events: list[tuple[Any, ...]] = []
        self.sessions: list[SessionInfo] = []
        self.messages: list[Message] = []
        self.up = False
        self.paths: set[str] = set()
        self._answer = answer
        self._moved = trio.Event()

    def _note(self, *event: Any) -> None:
        self.events.append(event)
        self._moved.set()
        self._moved = trio.Event()

    def connected(self, session: SessionInfo) -> None:
        assert not self.up
        self.up = True
        self.sessions.append(session)
        self._note("connected", session.session_id)

    def received(self, messages: list[Message]) -> None:
        assert self.up
        assert messages
        for message in messages:
            if isinstance(message, Write):
                # payload first, while the record's buffer is alive; the recorder keeps copies
                expected = make_write(message.number, message.ops[0].length)
                assert bytes(message.ops[0].data or b"") == expected.ops[0].data
                message = expected._replace(digest=message.digest)  # noqa: PLW2901
            self.messages.append(message)
        if self._answer and self.link is not None:
            self.link.send([Applied(m.volume, m.number) for m in messages if isinstance(m, Write)])
        self._moved.set()
        self._moved = trio.Event()

    def lost(self, reason: str) -> None:
        assert self.up
        self.up = False
        self._note("lost", reason)

    def path_changed(self, path: str, up: bool, reason: str) -> None:
        assert (path in self.paths) is not up
        (self.paths.add if up else self.paths.discard)(path)
        self._note("up" if up else "down", path, reason)

    def numbers(self) -> list[int]:
        return [message.number for message in self.messages if isinstance(message, (Write, Applied))]

    def reasons(self, kind: str) -> list[str]:
        return [event[-1] for event in self.events if event[0] == kind]

    async def until(self, condition: Callable[[], object]) -> None:
        with trio.fail_after(PATIENCE_S):
            while not condition():
                await self._moved.wait()

    async def until_down(self, count: int) -> None:
        """Until paths went down that many times."""
        await self.until(lambda: len(self.reasons("down")) >= count)

    async def until_up(self) -> None:
        await self.until(lambda: self.up)


def make_write(number: int, size: int = 4096, volume: int = 0) -> Write:
    data = number.to_bytes(8, "big") * (size // 8)
    return Write(1, volume, number, False, [WriteOp(OpKind.DATA, number * size, len(data), data)])


@dataclasses.dataclass
class Pair:
    """Two hosts that know each other, and how their links are opened."""

    dialer: HostIdentity
    listener: HostIdentity
    timings: LinkTimings = QUICK
    networks: tuple[Network | None, Network | None] = (None, None)
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)

    def listener_config(self, **changes: Any) -> LinkConfig:
        values: dict[str, Any] = {
            "identity": self.listener,
            "peer_certificate_pem": self.dialer.certificate_pem,
            "pair_id": PAIR_ID,
            "listen": (LOOPBACK,),
            "timings": self.timings,
            **self.overrides,
            **changes,
        }
        return LinkConfig(**values)

    def dialer_config(self, *addresses: Address, **changes: Any) -> LinkConfig:
        values: dict[str, Any] = {
            "identity": self.dialer,
            "peer_certificate_pem": self.listener.certificate_pem,
            "pair_id": PAIR_ID,
            "paths": tuple(PathConfig(f"path{n}", address) for n, address in enumerate(addresses)),
            "timings": self.timings,
            **self.overrides,
            **changes,
        }
        return LinkConfig(**values)

    @contextlib.asynccontextmanager
    async def listen(self, handler: Recorder, **changes: Any) -> AsyncIterator[Link]:
        async with open_link(self.listener_config(**changes), network=self.networks[1]) as link:
            handler.link = link
            link.set_handler(handler)
            yield link

    @contextlib.asynccontextmanager
    async def dial(self, handler: Recorder, *addresses: Address, **changes: Any) -> AsyncIterator[Link]:
        async with open_link(self.dialer_config(*addresses, **changes), network=self.networks[0]) as link:
            handler.link = link
            link.set_handler(handler)
            yield link


# -- an in-memory network: deterministic under a mock clock ------------------------------------------------


class MemoryConnection:
    """One end of a byte stream with a bounded buffer; `blackhole` swallows what is sent."""

    def __init__(self, remote: Address, capacity_bytes: int) -> None:
        self._remote = remote
        self._capacity = capacity_bytes
        self.peer: MemoryConnection | None = None
        self.buffer = bytearray()
        self.ended = False
        self.closed = False
        self.blackhole = False
        self.broken = False
        self._readable = trio.Event()
        self._writable = trio.Event()

    @property
    def remote(self) -> Address:
        return self._remote

    def _other(self) -> MemoryConnection:
        assert self.peer is not None
        return self.peer

    def send_nowait(self, data: Buffer) -> int:
        other = self._other()
        if self.closed:
            raise OSError(9, "closed here")
        if other.closed or self.broken:
            raise ConnectionResetError(104, "reset by the other end")
        if self.blackhole:
            return len(data)
        count = min(len(data), self._capacity - len(other.buffer))
        other.buffer += data[:count]
        other._readable.set()
        return count

    async def wait_writable(self) -> None:
        await trio.lowlevel.checkpoint()
        while not self.closed and not self._other().closed:
            if len(self._other().buffer) < self._capacity:
                return
            self._writable = trio.Event()
            await self._writable.wait()

    async def wait_readable(self) -> None:
        await trio.lowlevel.checkpoint()
        while not self.buffer and not self.ended:
            if self.closed:
                raise trio.ClosedResourceError
            self._readable = trio.Event()
            await self._readable.wait()

    async def attend(self, take: Callable[[], bool]) -> None:
        await self.wait_readable()
        while take():
            await self.wait_readable()

    def receive_nowait(self, buffer: memoryview) -> int | None:
        if not self.buffer:
            return 0 if self.ended else None
        count = min(len(buffer), len(self.buffer))
        buffer[:count] = self.buffer[:count]
        del self.buffer[:count]
        self._other()._writable.set()
        return count

    def sever(self) -> None:
        """Both ends find the connection broken."""
        for end in (self, self._other()):
            end.broken = end.ended = True
            end._readable.set()
            end._writable.set()

    def close(self) -> None:
        self.closed = True
        self._readable.set()
        self._writable.set()
        other = self._other()
        if not self.blackhole:
            other.ended = True
            other._readable.set()
        other._writable.set()


class MemoryListener:
    def __init__(self, network: MemoryNetwork, address: Address) -> None:
        self._network = network
        self._address = address
        self._send, self._receive = trio.open_memory_channel[MemoryConnection](1000)

    @property
    def address(self) -> Address:
        return self._address

    def offer(self, connection: MemoryConnection) -> None:
        self._send.send_nowait(connection)

    async def accept(self) -> MemoryConnection:
        return await self._receive.receive()

    def close(self) -> None:
        self._network.listeners.pop(self._address, None)


class MemoryNetwork:
    """Both hosts use the same; `connections` are the ends of the host that dialled."""

    def __init__(self, seed: int = 0, capacity_bytes: int = 1 << 20) -> None:
        self.listeners: dict[Address, MemoryListener] = {}
        self.connections: list[MemoryConnection] = []
        self.attempts_ns: list[int] = []
        self.down = False
        self._capacity = capacity_bytes
        self._random = random.Random(seed)

    async def connect(self, address: Address, local: str | None) -> MemoryConnection:
        await trio.lowlevel.checkpoint()
        self.attempts_ns.append(self.now_ns())
        if self.down or address not in self.listeners:
            raise ConnectionRefusedError(111, "refused")
        near = MemoryConnection(address, self._capacity)
        far = MemoryConnection((local or "10.0.0.1", 40000 + len(self.connections)), self._capacity)
        near.peer, far.peer = far, near
        self.connections.append(near)
        self.listeners[address].offer(far)
        return near

    async def listen(self, address: Address) -> MemoryListener:
        await trio.lowlevel.checkpoint()
        bound = (address[0], address[1] or 7000 + len(self.listeners))
        listener = self.listeners[bound] = MemoryListener(self, bound)
        return listener

    def now_ns(self) -> int:
        return int(trio.current_time() * 1e9)

    def entropy(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def swallow(self) -> None:
        """From here on nothing that is sent on an open connection arrives, in either direction."""
        for near in self.connections:
            near.blackhole = True
            near._other().blackhole = True


# -- a relay in the middle of real connections --------------------------------------------------------------

Tamper = Callable[[int, bytes], list[bytes]]


class Relay:
    """Forwards TCP connections to a link, and misbehaves when told.

    ``tamper_lane`` sees each sealed record that the dialer sends on a lane, with its number on that lane, and
    returns what is forwarded in its place.
    """

    def __init__(self, target: Address) -> None:
        self._target = target
        self.address: Address = LOOPBACK
        self.tamper_lane: Tamper | None = None
        self.frozen = False
        self.accepting = True
        self.connections = 0
        self.lane_starts: list[bytes] = []
        self._streams: list[trio.SocketStream] = []
        self._thaw = trio.Event()

    def kill(self) -> None:
        """Reset every connection that is open."""
        streams, self._streams = self._streams, []
        for stream in streams:
            stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\x01\x00\x00\x00" + bytes(4))
            stream.socket.close()

    def freeze(self) -> None:
        self.frozen = True
        self._thaw = trio.Event()

    def thaw(self) -> None:
        self.frozen = False
        self._thaw.set()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.address = listeners[0].socket.getsockname()[:2]
        task_status.started()
        await trio.serve_listeners(self._serve, listeners)

    async def _serve(self, near: trio.SocketStream) -> None:
        self.connections += 1
        if not self.accepting:
            await near.aclose()
            return
        with _quiet():
            far = await trio.open_tcp_stream(*self._target)
            self._streams += [near, far]
            async with near, far, trio.open_nursery() as nursery:
                nursery.start_soon(self._forward, near, far, nursery.cancel_scope, True)
                nursery.start_soon(self._forward, far, near, nursery.cancel_scope, False)

    async def _forward(
        self, source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope, up: bool
    ) -> None:
        with _quiet():
            first = await source.receive_some(65536)
            if up and self.tamper_lane is not None and first[:1] == b"P":
                await self._forward_records(source, sink, first, self.tamper_lane)
            elif up and first[:1] == b"P":
                self.lane_starts.append(first)
            data = first
            while data:
                while self.frozen:
                    await self._thaw.wait()
                await sink.send_all(data)
                data = await source.receive_some(65536)
        scope.cancel()

    async def _forward_records(
        self, source: trio.SocketStream, sink: trio.SocketStream, pending: bytes, tamper: Tamper
    ) -> None:
        while len(pending) < LANE_PREAMBLE_BYTES:
            pending += await source.receive_some(65536)
        await sink.send_all(pending[:LANE_PREAMBLE_BYTES])
        pending = pending[LANE_PREAMBLE_BYTES:]
        number = 0
        while True:
            while len(pending) < LENGTH_BYTES or len(pending) < self._record_bytes(pending):
                more = await source.receive_some(65536)
                if not more:
                    return
                pending += more
            size = self._record_bytes(pending)
            for record in tamper(number, pending[:size]):
                await sink.send_all(record)
            pending = pending[size:]
            number += 1

    @staticmethod
    def _record_bytes(pending: bytes) -> int:
        return LENGTH_BYTES + int.from_bytes(pending[:LENGTH_BYTES], "big")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A relay does not mind broken connections."""
    try:
        yield
    except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
        pass


def connections(capacity_bytes: int = 1 << 20) -> tuple[MemoryConnection, MemoryConnection]:
    """Both ends of a connection in memory."""
    near, far = MemoryConnection(("a", 1), capacity_bytes), MemoryConnection(("b", 2), capacity_bytes)
    near.peer, far.peer = far, near
    return near, far
