"""The simulated guest: it writes to the volumes of the active host in bursts, and remembers what it is owed.

Every sector it writes is filled with the number of the write, so a disk can be read as a list of authors.
Requests take both doors of a volume: `Volume.submit` with batches, as the NBD server does, and the methods
with which an embedder waits.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import trio

from pairsync.core.messages import OpKind, WriteOp
from pairsync.core.units import NS_PER_S
from pairsync.errors import BackendError, ClosedError, ConfigError
from pairsync.guest.volume import Volume
from pairsync.testing.sim.history import History, WriteRecord

from .show import show_op

if TYPE_CHECKING:
    from .host import Life
    from .world import World

__all__ = ["STAMP_BYTES", "Request", "Writer"]

SECTOR_BYTES = 512

STAMP_BYTES = 8
"""A sector holds the number of its write, over and over."""

BLOCK_SECTORS = 8

WHOLE_SHARE = 0.02
"""Of writes that take the whole volume."""

FAILED_PAUSE_S = 0.2
"""After a request that failed: so fast a guest tries again."""


class Request:
    """A batch of writes, or a flush, that has not been answered."""

    __slots__ = ("asked_ns", "number", "ops_count", "records", "submitted", "volume")

    def __init__(self, number: int, volume: int, submitted: int, asked_ns: int) -> None:
        self.number = number
        self.volume = volume
        self.submitted = submitted  # in the history's own time
        self.asked_ns = asked_ns
        self.records: list[tuple[int, WriteRecord]] | None = None  # None: a flush
        self.ops_count = 0


class Writer:
    """See the module."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._random = world.habits
        profile = world.profile
        self.histories = [
            History(profile.device_bytes(index) // SECTOR_BYTES) for index in range(len(profile.sizes_bytes))
        ]
        self.requests: dict[int, Request] = {}  # not answered, by number, oldest first
        self._numbers = count(1)
        self._versions = count(1)
        self.writing = True
        self.answered = 0

    def next_version(self) -> int:
        """A number that no write has had."""
        return next(self._versions)

    # ------------------------------------------------------------------ activity

    def begin(self, life: Life, users: trio.Nursery) -> None:
        """The active host has opened its guest."""
        guest = life.guest
        if guest is None:
            raise RuntimeError("a guest that is not open")
        for index, volume in enumerate(guest.volumes.values()):
            for _ in range(self._world.profile.habits.depth):
                users.start_soon(self._task, life, index, volume)

    def grow(self, life: Life, users: trio.Nursery) -> None:
        """Somebody wants one of the volumes larger."""
        profile = self._world.profile
        index = self._random.randrange(len(profile.sizes_bytes))
        volume = None if life.guest is None else list(life.guest.volumes.values())[index]
        if volume is None or not life.serves():
            return
        room = (profile.device_bytes(index) - volume.size_bytes) // SECTOR_BYTES
        if room > 0:
            size_bytes = volume.size_bytes + (1 + self._random.randrange(room)) * SECTOR_BYTES
            self._world.trace.note("guest", "grow", f"{volume.name} to {size_bytes}")
            users.start_soon(self._grow, life, index, volume, size_bytes)

    async def _grow(self, life: Life, index: int, volume: Volume, size_bytes: int) -> None:
        try:
            await volume.grow(size_bytes)
        except (BackendError, ClosedError, ConfigError):  # no room, closed, or somebody else was quicker
            return
        if not life.dead:
            self._world.reach("grown")
            self.histories[index].volume_sectors = -(-size_bytes // SECTOR_BYTES)

    async def _task(self, life: Life, index: int, volume: Volume) -> None:
        """One of several writers of a volume: bursts and pauses, until its host closes."""
        random, habits = self._random, self._world.profile.habits
        while life.serves():
            await trio.sleep(habits.idle_ns * random.expovariate(1.0) / NS_PER_S)
            for _ in range(1 + random.randrange(habits.burst_requests)):
                if not (life.serves() and self.writing):
                    break
                try:
                    good = await self._request(life, index, volume)
                except ClosedError:
                    if life.serves():
                        raise
                    return  # it closed while this one waited to be welcome
                await trio.sleep(
                    habits.think_ns * random.expovariate(1.0) / NS_PER_S if good else FAILED_PAUSE_S
                )

    async def _request(self, life: Life, index: int, volume: Volume) -> bool:
        """One request, to its end; whether it went well."""
        random, habits = self._random, self._world.profile.habits
        choice = random.random()
        if choice < habits.flush_share:
            return await self.flush(life, index, volume)
        if choice < habits.flush_share + habits.read_share:
            return self._read(index, volume)
        if random.random() < 0.5:
            await volume.wait_writable()
            if not life.serves():
                return True
            return await self._submit(life, index, volume)
        op = self._draw_op(volume)
        request = self._new_request(index, [op])
        calls = {
            OpKind.DATA: partial(volume.write, op.offset, op.data or b"", fua=op.fua),
            OpKind.ZERO: partial(volume.zero, op.offset, op.length),
            OpKind.ZERO_ALLOCATE: partial(volume.zero, op.offset, op.length, allocate=True),
            OpKind.TRIM: partial(volume.trim, op.offset, op.length),
        }
        try:
            await calls[op.kind]()
        except BackendError as error:
            self._answer(life, request, [error.errno])
            return False
        except ClosedError:
            self._withdraw(life, request)
            raise
        self._answer(life, request, None)
        return True

    async def _submit(self, life: Life, index: int, volume: Volume) -> bool:
        ops = [
            self._draw_op(volume)
            for _ in range(1 + self._random.randrange(self._world.profile.habits.ops_max))
        ]
        request = self._new_request(index, ops)
        ended = trio.Event()
        result: list[Sequence[int] | None] = []

        def done(errnos: Sequence[int] | None) -> None:
            result.append(errnos)
            ended.set()
            self._answer(life, request, errnos)

        volume.submit(ops, done)
        await ended.wait()
        return result[0] is None

    async def flush(self, life: Life, index: int, volume: Volume) -> bool:
        """Make all durable that was acknowledged."""
        request = self._new_request(index, None)
        try:
            await volume.flush()
        except BackendError as error:
            self._answer(life, request, [error.errno])
            return False
        except ClosedError:
            self._withdraw(life, request)
            raise
        self._answer(life, request, None)
        return True

    def _read(self, index: int, volume: Volume) -> bool:
        """What is read is not older than what was acknowledged."""
        size = volume.size_bytes
        sectors = -(-size // SECTOR_BYTES)
        start = self._random.randrange(sectors)
        stop = min(start + 1 + self._random.randrange(64), sectors)
        buffer = memoryview(bytearray(min(stop * SECTOR_BYTES, size) - start * SECTOR_BYTES))
        if self._world.damage.touches(self._world.active, index, start * SECTOR_BYTES, len(buffer)):
            return False  # reads are not verified: see ``guest.verified``
        try:
            if not volume.read_nowait(start * SECTOR_BYTES, buffer):
                return False  # the peer would have to be asked
        except BackendError:
            return False
        self._world.checker.read(index, start, stop, buffer)
        return True

    # ------------------------------------------------------------------ requests

    def _new_request(self, volume: int, ops: list[WriteOp] | None) -> Request:
        world = self._world
        history = self.histories[volume]
        request = Request(next(self._numbers), volume, history.tick(), world.timers.now_ns())
        self.requests[request.number] = request
        if ops is None:
            world.trace.note("guest", "flush", request.number)
            return request
        request.records = []
        request.ops_count = len(ops)
        for op in ops:
            stop = -(-(op.offset + op.length) // SECTOR_BYTES)
            version = _version(op.data) if op.data is not None else self.next_version()
            zero = op.kind is not OpKind.DATA
            record = WriteRecord(op.offset // SECTOR_BYTES, stop, request.submitted, zero=zero, fua=op.fua)
            request.records.append((version, record))
            history.begin(version, record)
        world.trace.note("guest", "write", f"{request.number} {' '.join(map(show_op, ops))}")
        return request

    def _draw_op(self, volume: Volume) -> WriteOp:
        random, habits = self._random, self._world.profile.habits
        size = volume.size_bytes
        sectors = -(-size // SECTOR_BYTES)
        length = sectors if random.random() < WHOLE_SHARE else 1 + random.randrange(habits.op_sectors_max)
        region = sectors // 8 if random.random() < habits.hot_share else sectors
        start = random.randrange(max(region, 1))
        if habits.aligned:
            start -= start % BLOCK_SECTORS
            length += -length % BLOCK_SECTORS
        offset = start * SECTOR_BYTES
        length_bytes = min(length * SECTOR_BYTES, size - offset)
        kind = random.choice(habits.kinds)
        if kind is not OpKind.DATA:
            return WriteOp(kind, offset, length_bytes)
        stamp = self.next_version().to_bytes(STAMP_BYTES, "little")
        data = stamp * (length_bytes // STAMP_BYTES)
        return WriteOp(kind, offset, length_bytes, data, random.random() < habits.fua_share)

    def _answer(self, life: Life, request: Request, errnos: Sequence[int] | None) -> None:
        """A request has been answered; by a process that is dead it is not."""
        if life.dead:
            return
        world = self._world
        world.trace.note("guest", "answer", f"{request.number} {'' if errnos is None else list(errnos)}")
        if self.requests.pop(request.number, None) is None:
            world.fail("answer", f"request {request.number} was answered twice")
        self.answered += 1
        volume = request.volume
        history = self.histories[volume]
        if request.records is None:
            if errnos is None:
                world.checker.flush_acknowledged(volume, history.flush_done(request.submitted))
            return
        if errnos is not None and len(errnos) != request.ops_count:
            world.fail("answer", f"{len(errnos)} errnos for {request.ops_count} ops")
        for index, (version, record) in enumerate(request.records):
            good = errnos is None or errnos[index] == 0
            history.end(version, record, acknowledged=good)
            if good:
                world.checker.write_acknowledged(volume, record)

    def _withdraw(self, life: Life, request: Request) -> None:
        """The guest closed before it took the request."""
        self._answer(life, request, [errno.ESHUTDOWN] * max(request.ops_count, 1))

    def host_died(self) -> None:
        """Requests that were not answered never will be; their writes may have happened or not."""
        for request in self.requests.values():
            for version, record in request.records or ():
                self.histories[request.volume].end(version, record, acknowledged=False)
        self.requests.clear()


def _version(data: object) -> int:
    return int.from_bytes(memoryview(data)[:STAMP_BYTES], "little")  # type: ignore[arg-type]  # bytes it is
