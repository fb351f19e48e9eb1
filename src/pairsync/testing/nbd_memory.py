"""`MemoryExport`: a disk in memory for the NBD front door, with faults to switch on.

Sparse: memory is an anonymous mapping that the kernel fills page by page, trims give pages back, and one bit
a block remembers what is allocated.  So a terabyte costs 64 MiB of bits and what is written.

It keeps what an `Export` promises: a write that is done is read by all, `MemoryExport.flush` covers what was
done before it (`flushed` is the number of writes covered).  The faults are attributes, to be changed at any
time: hold back completions, miss the page cache, fail, refuse writes for a while.
"""

from __future__ import annotations

import collections
import errno
import mmap
from collections.abc import Mapping, Sequence

import trio
from bitarray import bitarray

from pairsync.core.messages import OpKind, WriteOp
from pairsync.core.units import BLOCK_BYTES, block_count_of, extent_of
from pairsync.errors import BackendError
from pairsync.nbd.constants import CONTEXT_ALLOCATION, STATE_HOLE, STATE_ZERO
from pairsync.nbd.export import Done, HungUp

__all__ = ["CONTEXT_DIRTY", "MemoryExport"]

CONTEXT_DIRTY = "pairsync:dirty"

_MAP_NORESERVE = 0x4000  # Linux; the module `mmap` has no name for it


class MemoryExport:
    """A disk of zeroes; see the module's text.  ``fast_zero`` and ``read_only`` as in `Export`."""

    def __init__(
        self,
        name: str,
        size_bytes: int,
        *,
        description: str = "",
        read_only: bool = False,
        fast_zero: bool = True,
    ) -> None:
        self.name = name
        self.description = description
        self.size_bytes = size_bytes
        self.read_only = read_only
        self.fast_zero = fast_zero
        blocks = block_count_of(size_bytes)
        self._map = mmap.mmap(-1, max(1, blocks) * BLOCK_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
                              | _MAP_NORESERVE)  # fmt: skip
        self._view = memoryview(self._map)[:size_bytes]
        self._allocated = bitarray(blocks)
        self._dirty = bitarray(blocks)
        self.writes_done = 0
        """Ops applied so far."""
        self.flushed = 0
        """Ops covered by the last flush or FUA."""
        self.cached: list[tuple[int, int]] = []
        """Ranges of CACHE requests."""

        self.cold = False
        """Fault: `read_nowait` always says that it would block."""
        self.read_error = 0
        """Fault: reads fail with this errno."""
        self.write_error = 0
        """Fault: every op fails with this errno and changes nothing."""
        self.flush_error = 0
        """Fault: flush and cache and block status fail with this errno."""
        self.read_gate: trio.Event | None = None
        """Fault: reads that may block wait for it."""
        self.write_gate: trio.Event | None = None
        """Fault: `wait_writable` waits for it."""
        self._holding = False
        self._held: collections.deque[tuple[Sequence[WriteOp], Done]] = collections.deque()

    # -- for tests -------------------------------------------------------------------------------------------

    def hold(self) -> None:
        """Fault: from now on writes are taken and not done."""
        self._holding = True

    @property
    def held_count(self) -> int:
        """Batches that are taken and not done."""
        return len(self._held)

    def release(self) -> None:
        """End `hold`: do what was held back, in order."""
        self._holding = False
        while self._held:
            self._do(*self._held.popleft())

    def peek(self, offset: int, length: int) -> bytes:
        """What the disk holds, whatever the faults."""
        return bytes(self._view[offset : offset + length])

    def poke(self, offset: int, data: bytes) -> None:
        """Put data on the disk, past all counters."""
        self._view[offset : offset + len(data)] = data
        self._mark(offset, len(data), allocated=True)

    def clean(self) -> None:
        """Forget what is dirty."""
        self._dirty.setall(0)

    def close(self) -> None:
        """Give the memory back; the disk cannot be used afterwards."""
        self._view.release()
        self._map.close()

    # -- Export ----------------------------------------------------------------------------------------------

    def meta_contexts(self) -> Mapping[str, str]:
        """See `Export.meta_contexts`."""
        return {name: name for name in (CONTEXT_ALLOCATION, CONTEXT_DIRTY)}

    def read_nowait(self, offset: int, into: memoryview) -> bool:
        """See `Export.read_nowait`."""
        if self.cold:
            return False
        if self.read_error:
            raise BackendError("the disk cannot be read", self.read_error)
        into[:] = self._view[offset : offset + len(into)]
        return True

    async def read(self, offset: int, into: memoryview) -> None:
        """See `Export.read`."""
        await trio.lowlevel.checkpoint()
        if self.read_gate is not None:
            await self.read_gate.wait()
        if self.read_error:
            raise BackendError("the disk cannot be read", self.read_error)
        into[:] = self._view[offset : offset + len(into)]

    def submit(self, ops: Sequence[WriteOp], done: Done, hung_up: HungUp | None = None) -> None:
        """See `Export.submit`."""
        del hung_up
        if self._holding:
            self._held.append((ops, done))
        else:
            self._do(ops, done)

    @property
    def writable(self) -> bool:
        """See `Export.writable`."""
        return self.write_gate is None or self.write_gate.is_set()

    async def wait_writable(self) -> None:
        """See `Export.wait_writable`."""
        if self.write_gate is not None:
            await self.write_gate.wait()

    async def flush(self) -> None:
        """See `Export.flush`."""
        await trio.lowlevel.checkpoint()
        self._fail_if(self.flush_error)
        self.flushed = self.writes_done

    async def cache(self, offset: int, length: int) -> None:
        """See `Export.cache`."""
        await trio.lowlevel.checkpoint()
        self._fail_if(self.flush_error)
        self.cached.append((offset, length))

    async def block_status(
        self, context: str, offset: int, length: int, extents_max: int
    ) -> list[tuple[int, int]]:
        """See `Export.block_status`."""
        await trio.lowlevel.checkpoint()
        self._fail_if(self.flush_error)
        dirty = context == CONTEXT_DIRTY
        bits, set_flags, clear_flags = (
            (self._dirty, 1, 0) if dirty else (self._allocated, 0, STATE_HOLE | STATE_ZERO)
        )
        extents: list[tuple[int, int]] = []
        position, stop = offset, offset + length
        while position < stop and len(extents) < extents_max:
            block = position // BLOCK_BYTES
            state = bits[block]
            change = bits.find(not state, block)
            end = min(self.size_bytes, change * BLOCK_BYTES if change >= 0 else self.size_bytes)
            extents.append((end - position, set_flags if state else clear_flags))
            position = end
        return extents

    # -- doing -----------------------------------------------------------------------------------------------

    def _fail_if(self, number: int) -> None:
        if number:
            raise BackendError("the disk fails", number)

    def _do(self, ops: Sequence[WriteOp], done: Done) -> None:
        if self.write_error:
            done([self.write_error] * len(ops))
            return
        for op in ops:
            self._apply(op)
        done(None)

    def _apply(self, op: WriteOp) -> None:
        kind, offset, length, data, fua = op
        if kind is OpKind.DATA:
            if data is None or len(data) != length:
                raise BackendError("a write without its data", errno.EINVAL)
            self._view[offset : offset + length] = data
            self._mark(offset, length, allocated=True)
        else:
            self._zero(offset, length)
            if kind is OpKind.ZERO_ALLOCATE:
                self._mark(offset, length, allocated=True)
        self.writes_done += 1
        if fua:
            self.flushed = self.writes_done

    def _mark(self, offset: int, length: int, *, allocated: bool) -> None:
        start, stop = extent_of(offset, length)
        if stop - start == 1:  # the common case, without making a slice
            self._dirty[start] = 1
            self._allocated[start] = allocated
        else:
            self._dirty[start:stop] = 1
            self._allocated[start:stop] = allocated

    def _zero(self, offset: int, length: int) -> None:
        """Whole blocks are given back to the kernel, the ends are overwritten."""
        stop = offset + length
        first, last = -(-offset // BLOCK_BYTES), stop // BLOCK_BYTES
        self._dirty[offset // BLOCK_BYTES : -(-stop // BLOCK_BYTES)] = 1
        if first >= last:
            self._view[offset:stop] = bytes(length)
            return
        inner_start, inner_stop = first * BLOCK_BYTES, last * BLOCK_BYTES
        self._map.madvise(mmap.MADV_DONTNEED, inner_start, inner_stop - inner_start)
        self._allocated[first:last] = 0
        self._view[offset:inner_start] = bytes(inner_start - offset)
        self._view[inner_stop:stop] = bytes(stop - inner_stop)
