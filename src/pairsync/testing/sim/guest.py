"""The simulated guest: it writes to the active host's volumes in bursts, and knows what it is owed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, cast

from pairsync.core.messages import OpKind, WriteOp
from pairsync.core.standing import Phase
from pairsync.core.units import NS_PER_MS, NS_PER_S, Extent
from pairsync.core.window import FRAME_DATA_BYTES_MAX

from .disk import SECTOR_BYTES, SECTORS_PER_BLOCK, values_of_op
from .history import History, WriteRecord

if TYPE_CHECKING:
    from .world import World

__all__ = ["Guest", "Request", "describe_op"]


DATA_SECTORS_MAX = FRAME_DATA_BYTES_MAX // SECTOR_BYTES
"""The embedder's door cuts longer ops into pieces of that size."""


VERIFIED_SHARE = 0.05
"""How likely a request comes with a verified read, while the active's disk is wrong."""

BEGINS_NS_MAX = (NS_PER_S // 4, 3 * NS_PER_S)
"""After its host has started: it writes at once, or gives the hosts time to meet."""

READS_MAX = 16
"""Reads that the peer answers at once, as ``guest.remote`` bounds them."""

STIR = 0.15
"""How likely a change of the peer's phase wakes the guest."""


class Request:
    """A batch of writes, a flush or a growth, that has not completed."""

    __slots__ = ("asked_ns", "grows", "number", "ops_count", "records", "submitted", "volume")

    def __init__(self, number: int, volume: int, submitted: int, asked_ns: int) -> None:
        self.number = number
        self.volume = volume
        self.submitted = submitted  # in the history's own time
        self.asked_ns = asked_ns
        self.records: list[tuple[int, WriteRecord]] | None = None  # None: no write
        self.ops_count = 0
        self.grows = False  # neither write nor flush


class Guest:
    """See the module."""

    def __init__(self, world: World, sector_counts: Sequence[int]) -> None:
        self._world = world
        self._clock = world.clock
        self._random = world.random
        self.histories = [History(sectors) for sectors in sector_counts]
        self.requests: dict[int, Request] = {}  # not completed, by number, oldest first
        self._depth = [0] * len(self.histories)  # of them, for each volume
        self._reads = [0] * len(self.histories)  # of the peer, not answered
        self._burst = [0] * len(self.histories)  # requests left until it rests
        self._wakes_ns = [-1] * len(self.histories)  # when the next wake-up is due; past: none is
        self._numbers = count(1)
        self._versions = count(1)
        self.writing = False
        self.completed = 0

    def next_version(self) -> int:
        """A number that no write has had."""
        return next(self._versions)

    # ------------------------------------------------------------------ activity

    def begin(self) -> None:
        """Start writing, or go on."""
        self.writing = True
        for volume in range(len(self.histories)):
            self._wake_after(volume, self._random.randrange(self._random.choice(BEGINS_NS_MAX)))

    def rest(self) -> None:
        """Submit nothing more."""
        self.writing = False

    def stir(self, *, sure: bool = False) -> None:
        """Something has just changed: the moment to write, for somebody who looks for trouble."""
        if self.writing and (sure or self._random.random() < STIR):
            for volume in range(len(self.histories)):
                self._burst[volume] = max(self._burst[volume], 1 + self._random.randrange(4))
                self._wake_after(volume, self._random.randrange(2 * NS_PER_MS))

    def _wake_after(self, volume: int, delay_ns: int) -> None:
        """Wake up then, unless that happens earlier anyway."""
        when = self._clock.now + delay_ns
        if not self._clock.now <= self._wakes_ns[volume] <= when:
            self._wakes_ns[volume] = when
            self._clock.at(when, self._wake, volume, when)

    def _may_write(self) -> bool:
        host = self._world.active
        return self.writing and host.up and not host.closing and not host.suspect

    def _wake(self, volume: int, when_ns: int) -> None:
        if self._wakes_ns[volume] != when_ns:
            return  # an earlier moment was chosen meanwhile
        self._wakes_ns[volume] = -1
        if not self._may_write():
            return
        habits = self._world.profile.habits
        if self._burst[volume] <= 0:
            self._burst[volume] = 1 + self._random.randrange(2 * habits.burst_requests)
        source = self._session_source(volume)
        if source.failed is not None:  # every request fails at once, until somebody starts the host again
            self._burst[volume] = 1
        while self._burst[volume] > 0 and self._depth[volume] < habits.depth:
            self._burst[volume] -= 1
            self._submit(volume)
        if self._burst[volume] <= 0:
            self._wake_after(volume, int(habits.idle_ns * self._random.expovariate(1.0)))

    def _submit(self, volume: int) -> None:
        if self._world.active.replicas[volume].disk.wrong and self._random.random() < VERIFIED_SHARE:
            self._read_verified(volume)
        if self._random.random() < self._world.profile.habits.flush_share:
            self.flush(volume)
        else:
            self._write_some(volume)

    def flush(self, volume: int) -> None:
        """Ask for a flush."""
        request = self._new_request(volume)
        self._world.trace.note("guest", "flush", request.number)
        self._session_source(volume).flush(request.number, self._clock.now)
        self._world.active.perform()

    def _read_verified(self, volume: int) -> None:
        """Read a block that is not what its digest says: the peer is asked, and the block mended."""
        world = self._world
        replica, source = world.active.replicas[volume], self._session_source(volume)
        block = self._random.choice(replica.disk.wrong_blocks())
        if source.standing.phase is not Phase.IN_SYNC or self._reads[volume] >= READS_MAX:
            return  # it fails, or waits
        self._reads[volume] += 1
        owed = self.histories[volume].acked[:]
        world.damage.compared(world.active, replica, [block])

        def then(ops: Sequence[WriteOp] | None, _errno: int) -> None:
            self._reads[volume] -= 1
            world.trace.note("guest", "read", block, "failed" if ops is None else f"{len(ops)} ops")
            for op in ops or ():
                start, stop = op.offset // SECTOR_BYTES, (op.offset + op.length) // SECTOR_BYTES
                values = values_of_op(op)
                content = [values] * stop if isinstance(values, int) else [*[0] * start, *values]
                world.checker.read(volume, content, start, stop, owed)
                world.coverage.reach("damage-read")
                source.scrubber.mend(block)

        world.trace.note("guest", "read-verified", block)
        source.scrubber.fetch([Extent(block, block + 1)], self._clock.now, then)
        world.active.perform()

    def write_soon(self, volume: int, block: int) -> None:
        """While it is being repaired, if that takes a round trip."""
        speeds = self._world.profile.speeds
        delay_ns = self._random.randrange(2 * speeds.link_ns + 4 * speeds.disk_ns)
        self._clock.after(delay_ns, self._write_block, volume, block)

    def _write_block(self, volume: int, block: int) -> None:
        if self._may_write():
            start = block * SECTORS_PER_BLOCK
            sectors: int = self._session_source(volume).growth.size_bytes // SECTOR_BYTES
            length = min(SECTORS_PER_BLOCK, sectors - start)
            data = cast("Any", self.next_version())
            self._write(volume, [WriteOp(OpKind.DATA, start * SECTOR_BYTES, length * SECTOR_BYTES, data)])

    def _write_some(self, volume: int) -> None:
        count_ = 1 + self._random.randrange(self._world.profile.habits.ops_max)
        self._write(volume, [self._draw_op(volume) for _ in range(count_)])

    def grow(self, volume: int) -> None:
        """Somebody wants the volume larger."""
        source = self._session_source(volume)
        size_bytes: int = source.growth.size_bytes
        profile = self._world.profile
        room = profile.sizes_bytes[volume] + profile.growth_bytes - size_bytes
        if room <= 0:
            return
        request = self._new_request(volume)
        request.grows = True
        size_bytes += (1 + self._random.randrange(room // SECTOR_BYTES)) * SECTOR_BYTES
        self._world.trace.note("guest", "grow", request.number, str(size_bytes))
        source.growth.ask(request.number, size_bytes)
        source.advance(self._clock.now)
        self._world.active.perform()

    def _write(self, volume: int, ops: list[WriteOp]) -> None:
        request = self._new_request(volume)
        request.records = []
        history = self.histories[volume]
        for op in ops:
            version = cast("Any", op.data) if op.kind is OpKind.DATA else self.next_version()
            start, stop = op.offset // SECTOR_BYTES, (op.offset + op.length) // SECTOR_BYTES
            zero = op.kind is not OpKind.DATA
            record = WriteRecord(start, stop, request.submitted, zero=zero, fua=op.fua)
            request.records.append((version, record))
            history.begin(version, record)
        request.ops_count = len(ops)
        self._world.trace.note("guest", "write", request.number, tuple(map(describe_op, ops)))
        self._session_source(volume).write(request.number, ops, self._clock.now)
        self._world.active.perform()

    def _new_request(self, volume: int) -> Request:
        number = next(self._numbers)
        submitted = self.histories[volume].tick()
        request = self.requests[number] = Request(number, volume, submitted, self._clock.now)
        self._depth[volume] += 1
        return request

    def _session_source(self, volume: int) -> Any:
        session = self._world.active.session
        if session is None:
            raise RuntimeError("the guest writes to a host that is down")
        return session.sources[volume]

    def _draw_op(self, volume: int) -> WriteOp:
        random, habits = self._random, self._world.profile.habits
        sectors: int = self._session_source(volume).growth.size_bytes // SECTOR_BYTES
        length = 1 + random.randrange(habits.op_sectors_max)
        if random.random() < 0.02:
            length = sectors  # all of it
        region = sectors // 8 if random.random() < habits.hot_share else sectors
        start = random.randrange(max(region, 1))
        if habits.aligned:
            start -= start % SECTORS_PER_BLOCK
            length += -length % SECTORS_PER_BLOCK
        length = min(length, sectors - start)
        kind = random.choice(habits.kinds)
        if kind is OpKind.DATA:
            length = min(length, DATA_SECTORS_MAX)
        fua = random.random() < habits.fua_share
        # The core never looks into the guest's data: its number stands for it.
        data = cast("Any", self.next_version()) if kind is OpKind.DATA else None
        return WriteOp(kind, start * SECTOR_BYTES, length * SECTOR_BYTES, data, fua)

    # ------------------------------------------------------------------ ends of requests

    def complete(self, number: int, errnos: Sequence[int] | None) -> None:
        """A request has ended."""
        world = self._world
        request = self.requests.pop(number, None)
        world.trace.note("guest", "complete", number, "" if errnos is None else f"errors {errnos}")
        if request is None:
            world.fail("complete", f"request {number} completed twice, or was never made")
        self.completed += 1
        volume = request.volume
        self._depth[volume] -= 1
        history = self.histories[volume]
        if request.grows:
            world.coverage.reach("grown" if errnos is None else "no-room")
            if errnos is None:
                served: int = self._session_source(volume).growth.size_bytes
                history.volume_sectors = served // SECTOR_BYTES
        elif request.records is None:
            if errnos is None:
                world.checker.flush_acknowledged(volume, history.flush_done(request.submitted))
        else:
            world.require(
                errnos is None or len(errnos) == request.ops_count, "complete", "one errno for each op"
            )
            for index, (version, record) in enumerate(request.records):
                good = errnos is None or errnos[index] == 0
                history.end(version, record, acknowledged=good)
                if good:
                    world.checker.write_acknowledged(volume, record)
        if self._burst[volume] > 0:
            think = self._world.profile.habits.think_ns
            self._wake_after(volume, int(think * self._random.expovariate(1.0)))

    def host_died(self) -> None:
        """Requests that have not completed never will; their writes may have happened or not."""
        for request in self.requests.values():
            for version, record in request.records or ():
                self.histories[request.volume].end(version, record, acknowledged=False)
        self.requests.clear()
        self._depth = [0] * len(self.histories)
        self._reads = [0] * len(self.histories)


def describe_op(op: WriteOp) -> str:
    """Terse: kind, first sector, sectors, the number of the write."""
    number = "" if op.data is None else f"={op.data!r}"
    start, count_ = op.offset // SECTOR_BYTES, op.length // SECTOR_BYTES
    return f"{op.kind.name.lower()}@{start}+{count_}{number}{'!' if op.fua else ''}"
