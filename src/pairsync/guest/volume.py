"""A volume as its user sees it: read, write, trim, zero, flush.

Reads are answered by the local replica, from the page cache at once where it has the range.  Writes go to
the guest's session machine (`pairsync.core`), which answers when the acknowledgement level is met.

Requests of any size are taken: what is more than `PART_BYTES_MAX` goes on in parts (``guest.pieces``), each
of which waits for its room.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import trio

from pairsync.core.messages import Buffer, OpKind, WriteOp
from pairsync.core.scrubber import ScrubReport
from pairsync.core.source import VolumeSource
from pairsync.core.units import BLOCK_BYTES, VOLUME_BYTES_MAX, extent_of
from pairsync.core.window import FRAME_DATA_BYTES_MAX, FRAME_OPS_MAX
from pairsync.errors import ArbitrationError, BackendError, ClosedError, ConfigError, InternalError

from .config import PART_BYTES_MAX, VolumeConfig
from .pieces import Done, bytes_of, parts_of
from .points import Point, VolumePoints
from .remote import PeerReader
from .replica import Replica
from .verified import VerifiedReader
from .waiting import Waiter

if TYPE_CHECKING:
    from .guest import Guest

__all__ = ["READS_AT_ONCE", "Volume", "volumes_of"]

PARTLESS_OPS_MAX = PART_BYTES_MAX // FRAME_DATA_BYTES_MAX
"""So many ops of one message each are certainly no more than a part."""

READS_AT_ONCE = 16
"""Reads of one volume that wait for its disk at the same time: what a disk's queue makes use of."""

T = TypeVar("T")


class Volume:
    """One volume of an open guest; made by the guest, valid until it is closed.

    All methods raise `ClosedError` afterwards; writing to a guest that is not active raises
    `ArbitrationError`.
    """

    def __init__(self, guest: Guest, index: int, config: VolumeConfig, replica: Replica | None) -> None:
        """``replica`` None: it could not be opened so far."""
        self._guest = guest
        self._index = index
        self._config = config
        self._opened = replica
        self._peer = PeerReader(guest, index)
        self._verifies = config.options.verify_reads
        self._verified = VerifiedReader(guest, index, self._peer, self._in_thread)
        self._points = VolumePoints(guest, index, self._in_thread, lambda: int(time.time()))
        self._readers = trio.CapacityLimiter(READS_AT_ONCE)
        self._reading = 0  # jobs of `_in_thread` that have not ended, nor been left behind
        self._read_ns = 0  # when the last of them ended, or the first began
        self._welcome = trio.lowlevel.ParkingLot()  # those who wait in `wait_writable`

    def use(self, replica: Replica) -> None:
        """The replica was opened anew (called by the guest)."""
        self._opened = replica
        self._readers = trio.CapacityLimiter(READS_AT_ONCE)  # threads that hang keep their places

    @property
    def name(self) -> str:
        """Name of the volume and of its NBD export."""
        return self._config.name

    @property
    def _replica(self) -> Replica:
        if self._opened is None:
            raise BackendError(f"volume {self.name}: its disk could not be opened so far", errno.EIO)
        return self._opened

    @property
    def known(self) -> bool:
        """Whether its disk was opened in this life, so that its size is known."""
        return self._opened is not None

    @property
    def size_bytes(self) -> int:
        """Size; any number from 1.  It only grows.  `BackendError` until it is `known`."""
        session = self._guest.session
        if session.sources:
            return session.sources[self._index].growth.size_bytes
        if session.targets:
            return session.targets[self._index].superblock.size_bytes
        return self._replica.device.size_bytes  # its disk is ill: what it was

    async def grow(self, size_bytes: int) -> None:
        """Let the volume have that size, on both hosts, while it is used; what is added reads as zero.

        Returns when the new size is served: it is durable here and, while the peer is there, on the peer; a
        peer that is away hears of it when it is back.  A file is extended, a block device must have been
        enlarged before.  Nothing happens if the volume has that size already.  Cancelled, it goes on.

        Raises `ConfigError` for a smaller size, `BackendError` where a host has no room or the disk fails
        (nothing has changed then, and it may be tried again), `ClosedError` or `ArbitrationError` where the
        guest is not active here any more (the new owner knows whether the volume has grown).
        """
        source = self._source()
        self._check_whole(size_bytes)
        if not self.size_bytes <= size_bytes <= VOLUME_BYTES_MAX:
            raise ConfigError(
                f"volume {self.name} has {self.size_bytes} bytes and cannot be made {size_bytes}: "
                f"it only grows, to {VOLUME_BYTES_MAX} at most"
            )
        waiter = Waiter()
        now_ns = self._guest.now_ns()
        source.growth.ask(waiter, size_bytes)
        source.advance(now_ns)
        self._guest.perform()
        await self._end_of(waiter, f"growing to {size_bytes} bytes")

    @property
    def path(self) -> str:
        """The local replica's file or device."""
        return os.fspath(self._config.path)

    async def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``; `BackendError` if the disk fails and the peer cannot help."""
        self._check(offset, length)  # before room is made for it
        content = bytearray(length)
        await self.read_into(offset, memoryview(content))
        return bytes(content)

    async def read_into(self, offset: int, into: memoryview) -> None:
        """Fill ``into``, any buffer in one piece; waits for the disk in a worker thread where it has to.

        Cancelled, it returns at once, and ``into`` may be filled until the disk has answered all the same.
        """
        into = memoryview(bytes_of(into, f"volume {self.name}: where to read to"))
        if into.readonly:
            raise ConfigError(f"volume {self.name}: where to read to: cannot be written")
        self._check(offset, len(into))
        if self._guest.closed or self._guest.paused:
            raise ClosedError(f"guest {self._guest.name} is closed")
        if self.read_nowait(offset, into):
            await trio.lowlevel.checkpoint()
            return
        try:
            if self._verifies:
                await self._verified.read_into(self._replica.device, offset, into)
            else:
                await self._in_thread(partial(self._replica.device.read_into, offset, into))
        except BackendError as error:
            await self._peer.read_into(offset, into, error)

    async def _in_thread(self, job: Callable[[], T]) -> T:
        if not self._reading:
            self._read_ns = self._guest.now_ns()
        self._reading += 1
        try:
            return await trio.to_thread.run_sync(job, abandon_on_cancel=True, limiter=self._readers)
        finally:
            self._reading -= 1
            self._read_ns = self._guest.now_ns()

    @property
    def read_age_ns(self) -> int:
        """For how long reads have been waiting for the disk, and none has ended."""
        return self._guest.now_ns() - self._read_ns if self._reading else 0

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Write; returns when the acknowledgement level is met.  ``data`` must not change before that.

        ``fua``: durable too, on every replica whose acknowledgement counts.  Raises `BackendError` if the
        local disk fails (then the range may hold old or new data).

        A write that was begun cannot be taken back.  Cancelled, it may or may not happen, and ``data`` stays
        in use until it has ended all the same, of which nobody is told: do not reuse that buffer.  (`submit`
        does tell, and cannot be cancelled.)
        """
        data = bytes_of(data, f"volume {self.name}: what is to be written")
        await self._run(WriteOp(OpKind.DATA, offset, len(data), data, fua), "write")

    async def zero(self, offset: int, length: int, *, allocate: bool = False) -> None:
        """Make the range read as zeroes; ``allocate`` keeps its space."""
        await self._run(WriteOp(OpKind.ZERO_ALLOCATE if allocate else OpKind.ZERO, offset, length), "zero")

    async def trim(self, offset: int, length: int) -> None:
        """Give the range's space back; it reads as zeroes afterwards."""
        await self._run(WriteOp(OpKind.TRIM, offset, length), "trim")

    async def flush(self) -> None:
        """Make durable all that was acknowledged, on every replica whose acknowledgement counts."""
        source = self._source()
        waiter = Waiter()
        source.flush(waiter, self._guest.now_ns())
        self._guest.perform()
        await waiter.wait(f"volume {self.name}: flush")

    async def _run(self, op: WriteOp, what: str) -> None:
        self._check(op.offset, op.length)
        if op.length == 0:
            self._source()  # whether one may write does not depend on how much
            await trio.lowlevel.checkpoint()
            return
        await self.wait_writable()
        waiter = Waiter()
        self.submit([op], waiter)
        await waiter.wait(f"volume {self.name}: {what} of {op.length} bytes at {op.offset}")

    def _check(self, offset: int, length: int) -> None:
        self._check_whole(offset, length)
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise ConfigError(f"volume {self.name} has {self.size_bytes} bytes, not {offset}+{length}")

    def _check_whole(self, *numbers: int) -> None:
        if any(type(number) is not int for number in numbers):
            told = "+".join(map(repr, numbers))
            raise ConfigError(f"volume {self.name}: {told}: must be whole numbers of bytes")

    def _source(self) -> VolumeSource:
        """The session machine's half for this volume, if the guest runs here."""
        sources = self._guest.session.sources
        if self._guest.closed:
            raise ClosedError(f"guest {self._guest.name} is closed")
        if self._guest.paused:
            raise ClosedError(f"guest {self._guest.name} is changing its role")
        if not sources:
            raise ArbitrationError(f"guest {self._guest.name} does not run here: this host is its standby")
        return sources[self._index]

    async def _end_of(self, waiter: Waiter, doing: str) -> None:
        """Return when it has ended well; where the guest has left this host meanwhile, that is raised."""
        try:
            await waiter.wait(f"volume {self.name}: {doing}")
        except BackendError:
            self._source()
            raise

    # ------------------------------------------------------------------ in batches, without a task

    def read_nowait(self, offset: int, into: memoryview) -> bool:
        """Fill ``into`` if the page cache has the range; else False, also where the peer has to be asked."""
        replica = self._opened
        if self._verifies or replica is None:
            return False
        try:
            return replica.device.read_nowait(offset, into)
        except BackendError:
            if self._peer.ready:
                return False
            raise

    def submit(self, ops: Sequence[WriteOp], done: Done) -> None:
        """Take a batch, in this order; ``done`` hears an errno for each op, or None: all well.

        Never blocks; `wait_writable` is the back-pressure.  Data must not change until ``done``.
        """
        source = self._source()
        if _fits(ops):
            source.write(done, ops, self._guest.now_ns())
        else:
            for part, ended in parts_of(ops, done, PART_BYTES_MAX):
                source.write(ended, part, self._guest.now_ns())
        self._guest.perform()

    @property
    def writable(self) -> bool:
        """Whether `wait_writable` would return at once."""
        guest = self._guest
        sources = guest.session.sources
        return bool(sources) and not guest.closed and not guest.paused and sources[self._index].accepting

    async def wait_writable(self) -> None:
        """Return when a batch is welcome."""
        while not self._source().accepting:
            await self._welcome.park()

    def wake_writers(self) -> None:
        """Let those go on who wait for `wait_writable` (called by the guest when something has moved)."""
        guest = self._guest
        if self._welcome and (guest.closed or guest.paused or self._source().accepting):
            self._welcome.unpark_all()

    async def scrub(self, *, repair: bool = False) -> ScrubReport:
        """Have both hosts read all of the volume and compare it with its digests; what was found.

        ``repair``: mend what is wrong on one host from the other.  It waits while the peer is not in sync.
        Cancelled, the scrub goes on by itself.  Raises `ConfigError` where no digests are kept,
        `BackendError` if the volume fails meanwhile, `ClosedError` or `ArbitrationError` if the guest is not
        active here any more.
        """
        source = self._source()
        if not source.options.digests:
            raise ConfigError(f"volume {self.name} keeps no digests: there is nothing to compare with")
        waiter = Waiter()
        now_ns = self._guest.now_ns()
        source.scrubber.start(waiter, repair=repair, now_ns=now_ns)
        source.advance(now_ns)
        self._guest.perform()
        await self._end_of(waiter, "scrub")
        report = source.scrubber.report
        if report is None:
            raise InternalError(f"volume {self.name}: a scrub has ended without a report")
        return report

    # ------------------------------------------------------------------ what has changed

    async def make_point(self, name: str) -> Point:
        """Remember what the volume holds now under ``name``; durable on return, on both hosts if they can.

        Now is one moment between this call and its return, in the order of the writes: every write that was
        acknowledged before is in it.  Reads and writes go on meanwhile.  Use a name only once: one that is
        dropped and given again is another point.

        Raises `ConfigError` for a name that cannot be or is there already, where `POINTS_MAX` points are
        there, or where no digests are kept; `BackendError` where the disk fails.  Cancelled, the point may be
        made all the same.
        """
        return await self._points.make(self._replica, name)

    def points(self) -> tuple[Point, ...]:
        """All points that this host has, the oldest first."""
        return self._points.all(self._replica)

    async def drop_point(self, name: str) -> None:
        """Forget a point, on both hosts; `ConfigError` if there is none of that name."""
        await self._points.drop(self._replica, name)

    async def changed_since(self, point: str | Point, offset: int, length: int) -> list[tuple[int, bool]]:
        """Runs of the range: bytes, and whether they may hold something else than at that point.

        They follow each other from ``offset`` on and may stop early; ask on behind them.  Never misses a
        change: blocks (4 KiB) of which that is not known count as changed.  What was written and has its old
        content again counts as unchanged.  A `Point` is that very point, a name whichever has it now.

        Raises `ConfigError` if this host has no such point, or no digests are kept.
        """
        self._check(offset, length)
        return await self._points.changed_since(self._replica, point, offset, length)

    async def digests(self, offset: int, length: int, *, point: str | Point | None = None) -> bytes:
        """The digests of the blocks (4 KiB) of the range, 8 bytes each, now or as of a point.

        Little endian xxh3_64 of the block's content, 0 for one of zeroes, 1 where it is not known (of a point
        only); a hash that happens to be 0 or 1 has its highest bit set.  ``offset`` must be a whole number of
        blocks.  May stop early, after one block at least; what is not known now is read.

        Raises `ConfigError` as `changed_since`, `BackendError` where the disk fails.
        """
        self._check(offset, length)
        return await self._points.digests(self._replica, offset, length, point)

    async def cache(self, offset: int, length: int) -> None:
        """Read ahead."""
        self._check(offset, length)
        await self._in_thread(partial(self._replica.device.cache, offset, length))

    async def allocation(self, offset: int, length: int) -> list[tuple[int, bool]]:
        """Runs of the range: bytes, and whether they are a hole; may stop early."""
        self._check(offset, length)
        return await self._in_thread(partial(self._replica.device.allocation, offset, length))

    def dirty_runs(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Byte ranges (offset, length) within the range that the peer is not known to hold durably."""
        self._check(offset, length)
        start, stop = extent_of(offset, length)
        for run in self._source().tracker.dirty().runs(start, stop):
            first = max(run.start * BLOCK_BYTES, offset)
            yield first, min(run.stop * BLOCK_BYTES, offset + length) - first


def volumes_of(
    guest: Guest, configs: Sequence[VolumeConfig], replicas: Sequence[Replica]
) -> dict[str, Volume]:
    """The volumes of a guest by name; those of which there is a replica were opened."""
    opened = {each.name: each for each in replicas}
    return {
        each.name: Volume(guest, index, each, opened.get(each.name)) for index, each in enumerate(configs)
    }


def _fits(ops: Sequence[WriteOp]) -> bool:
    """Whether the batch can go on as it is."""
    if len(ops) == 1:
        return 0 < ops[0].length <= FRAME_DATA_BYTES_MAX
    lengths = [op.length for op in ops]
    if not 0 < len(ops) <= FRAME_OPS_MAX or min(lengths) <= 0 or max(lengths) > FRAME_DATA_BYTES_MAX:
        return False
    return len(ops) <= PARTLESS_OPS_MAX or sum(lengths) <= PART_BYTES_MAX
