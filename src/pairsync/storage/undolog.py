"""The way back of a replica that is being overwritten: what a resync destroys is kept first.

An `UndoLog` lives from the moment that a resync may begin to overwrite a replica until the resync is
complete, over any number of interruptions.  The order that its owner keeps:

1. `Overlays.begin` (the log is durable), then the superblock says SYNCING, then the first block is
   overwritten;
2. for every batch in the data lane: `UndoLog.preserve`, then `Device.apply`;
3. either the source is lost for good: `UndoLog.revert`, then the superblock says CONSISTENT with the lineage
   that it had, then `UndoLog.discard`;
4. or nothing is missing any more: `UndoLog.finish`, then the superblock takes over the new lineage.

**Invariants.**  A block is kept once, with the content that it had before the resync first changed it: so the
log is right in any order of being put back, and putting it back twice changes nothing.  A block is kept,
durably, before it is overwritten.  A block that a batch does not change is not kept: zeroing what is a hole
costs nothing, over a terabyte too.

**Without room.**  `preserve` raises `BackendError` with ENOSPC where the file system is full or the bound of
all overlays is reached; nothing of the batch counts as kept, and it may be tried again.  Who calls decides:
make room (`Overlays.make_room`) and try again; or stop the resync, and the replica remains what it is; or
`narrow` the log to what the replica had written on its own, and go on: then the way back to the last
consistent point is given up, durably, before anything is overwritten that is not kept.

All methods block, in one thread at a time; `holds` may be called beside `preserve`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from pairsync.core.dirty import DirtyMap
from pairsync.core.messages import Generation, OpKind, WriteOp
from pairsync.core.units import BLOCK_BYTES, GIB, KIB, MIB, Extent, block_count_of, extent_of
from pairsync.errors import ArbitrationError, ClosedError, MetadataError, PairsyncError

from .device import Device
from .directory import Directory
from .overlayfile import Chunk, OverlayHeader, OverlayInfo, OverlayState, chunks_of, overlay_info
from .overlaylog import Damage, OverlayLog, create_log, kept_blocks, write_ops

__all__ = ["APPEND_BYTES", "NEW_SUFFIX", "UndoLog", "select_chunks"]

APPEND_BYTES: Final = 4 * MIB
"""Content gathered for one append, which with one piece more is the memory that a log takes."""

READ_BYTES: Final = MIB
"""Old content that is read in one piece."""

ASK_BYTES: Final = 64 * KIB
"""Up to here a range is read without asking for holes first: the question costs as much."""

AHEAD_BLOCKS: Final = GIB // BLOCK_BYTES
"""A hole behind what is written is kept along, so far: a first full resync of an empty replica then takes one
append for each GiB, not one for each batch."""

NEW_SUFFIX: Final = ".new"
"""Of a file that is being made; whatever has that name after a crash is worthless."""

_COPY_BYTES: Final = 4 * MIB  # appended at once while blocks are copied to a smaller file


class UndoLog:
    """See the module; made by `Overlays`.

    ``elsewhere`` are blocks that another overlay of the same replica holds already; ``admit`` is asked
    with the size that the file is about to have, and raises where that is beyond the bound; ``ended`` is
    told what the file is once it is closed (None: gone).
    """

    def __init__(
        self,
        log: OverlayLog,
        directory: Directory,
        name: str,
        *,
        elsewhere: DirtyMap | None,
        admit: Callable[[int], None],
        ended: Callable[[OverlayInfo | None], None],
    ) -> None:
        self._log = log
        self._directory = directory
        self._name = name
        self._elsewhere = elsewhere
        self._only: DirtyMap | None = None  # once narrowed: the blocks that are still kept
        self._admit = admit
        self._ended = ended
        self._is_open = True
        self._buffer = memoryview(b"")  # for old content on its way to the file
        self._filled_bytes = 0  # of the buffer, since the last append
        self._kept = kept_blocks(log)
        self._marking = threading.Lock()  # over the bits of `_kept`: see `holds`
        self._data_blocks = sum(len(record.digests) for record in log.records())

    @property
    def kept(self) -> DirtyMap:
        """The blocks whose old content is kept durably; to be read only."""
        return self._kept

    @property
    def info(self) -> OverlayInfo:
        """What the log is, with the counts of this moment."""
        return overlay_info(self._header(), self._log.file_bytes)

    def _header(self) -> OverlayHeader:
        return replace(
            self._log.header,
            record_count=self._log.record_count,
            block_count=self._kept.count,
            data_block_count=self._data_blocks,
        )

    @property
    def whole(self) -> bool:
        """Whether `revert` leads back to a consistent point."""
        return self._log.header.whole

    def retarget(self, target: Generation) -> None:
        """The resync goes on towards another generation; durable on return."""
        self._check_open()
        if target != self._log.header.target:
            self._log.write_header(replace(self._header(), target=target))

    def grow(self, size_bytes: int) -> None:
        """The volume has that size now, and what was added reads as zero; durable on return."""
        self._check_open()
        if size_bytes != self._log.header.size_bytes:
            self._log.write_header(replace(self._header(), size_bytes=size_bytes))
            kept = DirtyMap(block_count_of(size_bytes))
            kept.merge(self._kept)
            self._kept = kept

    # ------------------------------------------------------------------ keeping

    def preserve(self, device: Device, ops: Sequence[WriteOp]) -> None:
        """Keep what ``ops`` are about to overwrite for the first time; durable on return.

        Whole blocks are kept.  Costs nothing where all of them are kept already.  `BackendError` with
        ENOSPC: see the module; with another errno the log's disk has failed.  A batch that discards
        gigabytes of data takes as long as copying them does: whoever cannot wait splits it.
        """
        self._check_open()
        wanted = self._wanted(device, ops)
        if not wanted:
            return
        wanted += self._hole_behind(device, max(wanted).stop)
        gathered: list[Chunk] = []
        data_blocks = 0
        appended = False
        self._filled_bytes = 0
        for chunks in self._read_all(device, wanted):
            gathered += chunks
            data_blocks += sum([len(chunk.digests) for chunk in chunks])
            if self._filled_bytes >= APPEND_BYTES:
                self._log.append(gathered, durable=False, admit=self._admit)
                gathered, appended = [], True
                self._filled_bytes = 0
        if gathered:
            self._log.append(gathered, durable=not appended, admit=self._admit)
        if appended:
            self._log.commit()
        with self._marking:
            for start, stop in wanted:
                self._kept.mark(start, stop)
        self._data_blocks += data_blocks

    def holds(self, device: Device, ops: Sequence[WriteOp]) -> bool:
        """Whether `preserve` would find nothing to do, whatever else it is keeping just now."""
        return not self._wanted(device, ops)

    def _wanted(self, device: Device, ops: Sequence[WriteOp]) -> list[Extent]:
        with self._marking:
            return list(self._unkept_of(device, ops))

    def _unkept_of(self, device: Device, ops: Sequence[WriteOp]) -> Iterator[Extent]:
        """The blocks that the ops change and that are not kept yet: disjoint."""
        written = _merged(extent_of(op.offset, op.length) for op in ops if op.kind is OpKind.DATA)
        for extent in written:
            yield from self._unkept(extent)
        zeroed = _merged(extent_of(op.offset, op.length) for op in ops if op.kind is not OpKind.DATA)
        if not zeroed:
            return
        beside = DirtyMap(self._kept.block_count)
        for start, stop in written:
            beside.mark(start, stop)
        for extent in zeroed:
            for part in _without(beside, extent):
                for unkept in self._unkept(part):
                    yield from _allocated(device, unkept)

    def _unkept(self, extent: Extent) -> Iterator[Extent]:
        if not self._kept and self._only is None and self._elsewhere is None:
            yield extent
            return
        wanted: list[Extent] = [extent] if self._only is None else list(self._only.runs(*extent))
        for each in wanted:
            for part in _without(self._kept, each):
                yield from [part] if self._elsewhere is None else _without(self._elsewhere, part)

    def _hole_behind(self, device: Device, start: int) -> list[Extent]:
        """The hole that begins there and is not kept yet: it costs nothing now, and an append later."""
        limit = min(start + AHEAD_BLOCKS, block_count_of(device.size_bytes))
        if start >= limit or self._only is not None or self._elsewhere is not None:
            return []
        kept = self._kept.next_run(start, limit)
        hole = _hole_blocks(device, Extent(start, limit if kept is None else kept.start))
        return [Extent(start, start + hole)] if hole * BLOCK_BYTES > ASK_BYTES else []

    def _read_all(self, device: Device, extents: Sequence[Extent]) -> Iterator[list[Chunk]]:
        """The old content, piece by piece; lies in the buffer until ``_filled_bytes`` is set back."""
        for extent in extents:
            start = extent.start
            while start < extent.stop:
                hole = _hole_blocks(device, Extent(start, extent.stop))
                if hole:
                    yield [Chunk(start, start + hole)]
                    start += hole
                    continue
                stop = min(extent.stop, start + READ_BYTES // BLOCK_BYTES)
                offset = start * BLOCK_BYTES
                yield chunks_of(start, self._read(device, offset, stop * BLOCK_BYTES - offset))
                start = stop

    def _read(self, device: Device, offset: int, length: int) -> memoryview:
        begin, stop = self._filled_bytes, self._filled_bytes + length
        if stop > len(self._buffer):  # what was read so far keeps the smaller one alive until it is written
            self._buffer = memoryview(bytearray(max(stop, min(2 * stop, APPEND_BYTES + READ_BYTES))))
        content = self._buffer[begin:stop]
        self._filled_bytes = stop
        there = min(length, device.size_bytes - offset)
        device.read_into(offset, content[:there] if there < length else content)
        if there < length:
            content[there:] = bytes(length - there)
        return content

    # ------------------------------------------------------------------ going back

    def revert(self, device: Device, *, salvage: bool = False) -> list[Damage]:
        """Put everything back and flush the device; may be cut at any point, and repeated.

        Raises `ArbitrationError` where that leads to no consistent point, and `MetadataError`, naming file
        and offset, where old content is damaged; with ``salvage`` what is left is put back in both cases, and
        what is lost is returned.  The log stays: `discard` it once the superblock says what the replica is.
        """
        self._check_open()
        if not self.whole and not salvage:
            raise ArbitrationError(
                f"{self._log.path}: not everything that was overwritten is kept: there is no way back to a "
                "consistent point"
            )
        damage = list(self._log.damage)
        _refuse(damage, salvage=salvage)
        for record in self._log.records():
            chunks, lost = self._log.read(record)
            if lost is not None:
                damage.append(lost)
                _refuse(damage, salvage=salvage)
            device.apply(write_ops(chunks, device.size_bytes))
        device.flush()
        return damage

    # ------------------------------------------------------------------ the end

    def finish(self, own: DirtyMap | None, *, salvage: bool = False) -> OverlayInfo | None:
        """The resync is complete: keep the blocks of ``own``, drop the rest, and close.

        The file is replaced by a smaller one as a whole, or stays where all of it is kept.  What the overlay
        is, or None if there is none.  Raises `MetadataError` for damaged content (with ``salvage`` it is left
        out), `BackendError` (ENOSPC) if there is no room for the smaller file beside the larger one: the log
        is as it was then.
        """
        self._check_open()
        if own:
            _refuse(self._log.damage, salvage=salvage)
        if own is None or next(self._common(own), None) is None:
            self.discard()
            return None
        if next(_without_runs(own, self._kept), None) is None and not self._log.damage:
            self._log.trim()
            header = replace(self._header(), state=OverlayState.KEPT)
            self._log.write_header(header)
        else:
            header = self._compact(own, OverlayState.KEPT, whole=self.whole, salvage=salvage)
        info = overlay_info(header, self._log.file_bytes)
        self._close(info)
        return info

    def narrow(self, own: DirtyMap, *, salvage: bool = False) -> None:
        """Give up the way back, and keep only blocks of ``own`` from here on; drops all others.

        To be called again after the log was opened again.  Errors as `finish`; where there is no room the
        way back is given up nevertheless, and only the dropping of what is kept in vain is left for later.
        """
        self._check_open()
        if self.whole:
            self._log.write_header(replace(self._header(), whole=False))
        self._only = own.copy()
        if next(_without_runs(own, self._kept), None) is None:
            return
        self._compact(own, OverlayState.UNDO, whole=False, salvage=salvage)

    def discard(self, *, wait: bool = True) -> None:
        """Remove the log and close: it was put back, or nothing of it is wanted.  ``wait``: for its space."""
        self._check_open()
        self._directory.remove(self._name)
        self._close(None, removed=not wait)

    def close(self) -> None:
        """Give the file back, to go on later; idempotent."""
        if self._is_open:
            try:
                if self._log.file.sound and self._log.header != self._header():
                    self._log.write_header(
                        self._header()
                    )  # damage to the last record is none of a torn end then
            finally:
                self._close(self.info)

    def _close(self, info: OverlayInfo | None, *, removed: bool = False) -> None:
        self._is_open = False
        self._log.close(removed=removed)
        self._ended(info)

    def _check_open(self) -> None:
        if not self._is_open:
            raise ClosedError(f"{self._log.path}: the undo log is closed")

    def _common(self, own: DirtyMap) -> Iterator[Extent]:
        for run in own.runs():
            yield from self._kept.runs(*run)

    def _compact(self, own: DirtyMap, state: OverlayState, *, whole: bool, salvage: bool) -> OverlayHeader:
        """Replace the file by one that holds blocks of ``own`` only, and go on with that."""
        _refuse(self._log.damage, salvage=salvage)
        header = replace(
            self._log.header, state=state, whole=whole, record_count=0, block_count=0, data_block_count=0
        )
        smaller = create_log(self._directory, self._name + NEW_SUFFIX, header)
        try:
            header = self._copy(smaller, own, header, salvage=salvage)
            smaller.trim()
            smaller.write_header(header)
            self._directory.publish(smaller.file, self._name)
        except BaseException as error:
            smaller.close()
            if isinstance(error, PairsyncError):  # else the process is about to die
                self._directory.remove(self._name + NEW_SUFFIX)
            raise
        self._log.close()
        self._log = smaller
        self._kept = kept_blocks(smaller)
        self._data_blocks = header.data_block_count
        return header

    def _copy(
        self, smaller: OverlayLog, own: DirtyMap, header: OverlayHeader, *, salvage: bool
    ) -> OverlayHeader:
        gathered: list[Chunk] = []
        blocks = data_blocks = pending_bytes = 0
        for record in self._log.records():
            if not any(own.intersects(start, stop) for start, stop, _ in record.extents):
                continue
            chunks, lost = self._log.read(record)
            _refuse([] if lost is None else [lost], salvage=salvage)
            for chunk in select_chunks(chunks, own):
                gathered.append(chunk)
                blocks += chunk.stop - chunk.start
                data_blocks += len(chunk.digests)
                pending_bytes += len(chunk.digests) * BLOCK_BYTES
            if pending_bytes >= _COPY_BYTES:
                smaller.append(gathered, durable=False)
                gathered, pending_bytes = [], 0
        if gathered:
            smaller.append(gathered, durable=False)
        smaller.commit()
        return replace(
            header, record_count=smaller.record_count, block_count=blocks, data_block_count=data_blocks
        )


def select_chunks(chunks: Sequence[Chunk], wanted: DirtyMap) -> Iterator[Chunk]:
    """The parts of the chunks whose blocks are wanted."""
    for chunk in chunks:
        for start, stop in wanted.runs(chunk.start, chunk.stop):
            yield chunk.part(start, stop)


def _refuse(damage: Sequence[Damage], *, salvage: bool) -> None:
    if damage and not salvage:
        raise MetadataError(damage[0].what)


def _merged(extents: Iterator[Extent]) -> list[Extent]:
    """Sorted and disjoint, without the empty ones."""
    merged: list[Extent] = []
    for extent in sorted(extent for extent in extents if extent.block_count):
        if merged and extent.start <= merged[-1].stop:
            if extent.stop > merged[-1].stop:
                merged[-1] = Extent(merged[-1].start, extent.stop)
        else:
            merged.append(extent)
    return merged


def _without(marked: DirtyMap, extent: Extent) -> Iterator[Extent]:
    """The parts of the extent that are not marked."""
    start = extent.start
    if extent.stop - start == 1:  # scattered blocks come by the hundred
        if start not in marked:
            yield extent
        return
    for run in marked.runs(*extent):
        if start < run.start:
            yield Extent(start, run.start)
        start = run.stop
    if start < extent.stop:
        yield Extent(start, extent.stop)


def _without_runs(beside: DirtyMap, marked: DirtyMap) -> Iterator[Extent]:
    """What is marked and not in ``beside``."""
    for run in marked.runs():
        yield from _without(beside, run)


def _hole_blocks(device: Device, extent: Extent) -> int:
    """Blocks at the beginning of the extent that are a hole; not asked for where reading is as cheap."""
    offset = extent.start * BLOCK_BYTES
    length = min(extent.stop * BLOCK_BYTES, device.size_bytes) - offset
    if length <= ASK_BYTES:
        return 0
    hole = device.hole_bytes(offset, length)
    return extent.block_count if hole >= length else hole // BLOCK_BYTES


def _allocated(device: Device, extent: Extent) -> Iterator[Extent]:
    """The blocks of the extent that may hold anything but zeroes."""
    start = extent.start
    while start < extent.stop:
        hole = _hole_blocks(device, Extent(start, extent.stop))
        start += hole
        if start >= extent.stop:
            return
        stop = min(extent.stop, start + READ_BYTES // BLOCK_BYTES)
        yield Extent(start, stop)
        start = stop
