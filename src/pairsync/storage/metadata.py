"""The metadata of one volume: one file beside it, written by one host, safe at every crash.

``<volume path>.pairsync``, format version 1, all numbers little endian::

    offset              bytes            what                                          module
    0                   16 KiB           superblock, slot 0                            slots, superblock
    16 KiB              16 KiB           superblock, slot 1
    32 KiB              4 KiB            journal release mark, slot 0                  slots, journal
    36 KiB              4 KiB            journal release mark, slot 1
    40 KiB              24 KiB           zero
    64 KiB              segment_bytes    write-intent journal, segment 0               journal, records
                        segment_bytes    write-intent journal, segment 1
                        4608 a page      dirty bitmap, up to a whole 4 KiB             bitmap
    end

Each part states in its module what a crash may leave of it and how that is told from damage.  Together they
keep the one promise that matters (DESIGN rule 7): **the union of bitmap and journal holds every block whose
intent was durable and that was not cleared after its segment was released** - at any instant, whatever subset
of the unflushed sectors a power cut keeps.  What a disk is assumed to do: a sector of 512 bytes is written
whole or not at all, and what ``fdatasync`` or ``RWF_DSYNC`` has confirmed stays.

A volume that grows needs more pages of bitmap, which lie at the end: first the file is enlarged, durably
(`MetadataStore.extend`), then the superblock says the new size.  So a file may be larger than its volume
needs (a growth that was cut short), never smaller; pages that were never needed are zero.

A file is made under another name and renamed when it is whole and durable, so it exists whole or not at all.
Its space (16 MiB, and 36 MiB for each TiB of volume) is reserved then: a file system that is full, as it
easily is below sparse volumes, must not be what stops the dirty map from being written.  Bitmap pages that
were never written stay holes to a reader.
All methods block; one thread writes at a time.  A failed flush ends all writing (``storage.blockfile``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

from pairsync.core.dirty import DirtyMap
from pairsync.core.superblock import Superblock
from pairsync.core.units import KIB, MIB, block_count_of
from pairsync.errors import BackendError, ConfigError, InternalError, MetadataError

from .bitmap import Bitmap, BitmapPage, bitmap_area_bytes
from .blockfile import BlockFile, OpenFile, enlarge_file
from .journal import SEGMENT_COUNT, Journal
from .osfile import OsFile, whole_file
from .slots import DualSlot
from .superblock import Layout, decode_superblock, encode_superblock

__all__ = [
    "SEGMENT_BYTES_DEFAULT",
    "FoundMap",
    "MetadataStore",
    "OpenedMetadata",
    "create_metadata",
    "format_metadata",
    "load_metadata",
    "metadata_bytes",
    "metadata_path",
    "open_metadata",
]

SEGMENT_BYTES_DEFAULT: Final = 8 * MIB
"""2048 appends: at one append a batch, a generation of half the 64 MiB window ends before its room does."""

_SUPERBLOCK_AT: Final = 0
_SUPERBLOCK_SLOT_BYTES: Final = 16 * KIB
_MARK_AT: Final = 32 * KIB
_MARK_SLOT_BYTES: Final = 4 * KIB
_JOURNAL_AT: Final = 64 * KIB

_SUPERBLOCK_KIND: Final = 1
_MARK_KIND: Final = 2


def metadata_path(volume_path: str | os.PathLike[str]) -> str:
    """Where the metadata of a raw file lies; for a block device the operator names a path."""
    return os.fspath(volume_path) + ".pairsync"


def metadata_bytes(size_bytes: int, segment_bytes: int = SEGMENT_BYTES_DEFAULT) -> int:
    """Size of the metadata file of such a volume."""
    journal_bytes = SEGMENT_COUNT * segment_bytes
    return _JOURNAL_AT + journal_bytes + bitmap_area_bytes(block_count_of(size_bytes))


def _superblock_slots(file: BlockFile) -> DualSlot:
    return DualSlot(
        file,
        what="superblock",
        kind=_SUPERBLOCK_KIND,
        offset=_SUPERBLOCK_AT,
        slot_bytes=_SUPERBLOCK_SLOT_BYTES,
        mirrored=True,
    )


class MetadataStore:
    """The open metadata of one volume; made by `open_metadata` or `load_metadata`."""

    def __init__(self, file: BlockFile, slots: DualSlot, layout: Layout, superblock: Superblock) -> None:
        self._file = file
        self._slots = slots
        self._layout = layout
        self._superblock = superblock  # the durable one
        block_count = block_count_of(superblock.size_bytes)
        self._journal = _journal(file, layout, block_count)
        self._bitmap = Bitmap(
            file,
            offset=_JOURNAL_AT + SEGMENT_COUNT * layout.segment_bytes,
            block_count=block_count,
            seed=layout.seed,
        )

    @property
    def path(self) -> str:
        """The metadata file, for messages."""
        return self._file.path

    @property
    def may_block(self) -> bool:
        """Whether a call can wait for a disk; False on tmpfs and ramfs."""
        return not self._file.memory_backed

    @property
    def sound(self) -> bool:
        """False after a failed flush: nothing can be recorded any more."""
        return self._file.sound

    @property
    def superblock(self) -> Superblock:
        """The newest durable one."""
        return self._superblock

    def extend(self, size_bytes: int) -> None:
        """Make room, durably, for the metadata of a volume of that size; nothing else changes.

        May be called from another thread than the rest.  `BackendError` (ENOSPC) if there is no room.
        """
        enlarge_file(self._file, metadata_bytes(size_bytes, self._layout.segment_bytes))
        if isinstance(self._file, OsFile):
            self._file.reserve()
        self._file.flush()

    def write_superblock(self, superblock: Superblock) -> None:
        """Replace the superblock; durable on return.  A larger size needs `extend` first, and none is smaller
        (`InternalError`)."""
        size_bytes = superblock.size_bytes
        room_bytes = metadata_bytes(size_bytes, self._layout.segment_bytes)
        if size_bytes < self._superblock.size_bytes or room_bytes > self._file.size_bytes:
            raise InternalError(
                f"{self.path}: a superblock for {size_bytes} bytes, not {self._superblock.size_bytes}"
            )
        self._slots.store(encode_superblock(self._layout, superblock))
        self._superblock = superblock
        self._journal.grow(block_count_of(size_bytes))
        self._bitmap.grow(block_count_of(size_bytes))

    def settle(self) -> tuple[str, ...]:
        """Make durable what was found when the file was opened; what is wrong if that fails, for the log."""
        try:
            self._slots.settle()
            self._journal.settle()
        except BackendError as error:
            return (f"what was found could not be made durable: {error}",)
        return ()

    def append_intents(self, segment: int, generation: int, extents: Sequence[tuple[int, int]]) -> None:
        """Note that these blocks are about to be written; durable on return.

        ``generation`` is the one that fills the segment, or a higher one than ever before, which starts the
        released segment anew.  `InternalError` if the segment is not released, or has not the room.
        """
        self._journal.append(segment, generation, extents)

    def open_segment(self, segment: int, generation: int) -> None:
        """Start a released segment anew (the first append does it too); writes nothing."""
        self._journal.open_segment(segment, generation)

    def release_segment(self, segment: int) -> None:
        """Give up the segment's intents, for good once this has returned.

        Every block that it recorded must be durable on both hosts, or set in the bitmap by a
        `write_bitmap` that has returned.
        """
        self._journal.release(segment)

    def segment_room(self, segment: int) -> int:
        """How many appends of few extents the segment takes before it is full."""
        return self._journal.room(segment)

    def write_bitmap(self, pages: Mapping[int, bytes]) -> None:
        """Replace these pages of the bitmap (4096 bytes each); durable on return.

        `BackendError` with ENOSPC where the file system could not reserve the space beforehand, or copies on
        write: nothing is lost, and it may be tried again while no segment is released.
        """
        self._bitmap.write(pages)

    def read_bitmap(self) -> Iterator[BitmapPage]:
        """The pages with a set bit as they stand on disk, ascending."""
        return self._bitmap.read()

    def close(self) -> None:
        """Give the file back; idempotent.  Nothing is pending: all that was promised is durable."""
        self._file.close()


class FoundMap(NamedTuple):
    """The dirty set of a replica that was opened."""

    blocks: DirtyMap
    doubtful: DirtyMap
    """Those of them that the journal names: they may hold anything after a crash."""
    damaged_sectors: int
    """Of the bitmap: their blocks are counted as dirty."""


@dataclass(frozen=True, slots=True)
class OpenedMetadata:
    """What a metadata file says when it is opened.

    The dirty set is the union of ``pages`` and ``intents``.  Both journal segments stay taken until they are
    released: first write the bitmap with the intents merged in, then release both, then start with
    ``generation_next``.
    """

    store: MetadataStore
    superblock: Superblock
    pages: Iterator[BitmapPage]
    """Reads while it is iterated, in the thread that does; once."""
    intents: Sequence[tuple[int, int]]
    """Blocks of the journal's live records: sorted, disjoint `Extent` values."""
    generation_next: int
    """Higher than any journal generation in the file."""
    notes: tuple[str, ...]
    """What was found damaged and could be made up for: for the log."""

    def dirty_map(self) -> FoundMap:
        """The dirty set; reads the pages, so once."""
        blocks = DirtyMap(block_count_of(self.superblock.size_bytes))
        damaged = 0
        for page in self.pages:
            blocks.load_page(page.number, page.content)
            damaged += page.damaged_sectors
        doubtful = DirtyMap(blocks.block_count)
        if not self.superblock.clean:
            for start, stop in self.intents:
                doubtful.mark(start, stop)
            blocks.merge(doubtful)
        return FoundMap(blocks, doubtful, damaged)


def _journal(file: BlockFile, layout: Layout, block_count: int) -> Journal:
    mark = DualSlot(
        file,
        what="journal release mark",
        kind=_MARK_KIND,
        offset=_MARK_AT,
        slot_bytes=_MARK_SLOT_BYTES,
        mirrored=False,
    )
    return Journal(
        file,
        mark,
        offset=_JOURNAL_AT,
        segment_bytes=layout.segment_bytes,
        block_count=block_count,
        seed=layout.seed,
    )


def format_metadata(
    file: BlockFile, superblock: Superblock, *, segment_bytes: int = SEGMENT_BYTES_DEFAULT
) -> None:
    """Write the metadata of a new volume into a file of zeroes of `metadata_bytes`; durable on return."""
    seed = xxh3_64_intdigest(superblock.pair_id + superblock.volume_id)
    layout = Layout(segment_bytes, seed)
    payload = encode_superblock(layout, superblock)
    _journal(file, layout, block_count_of(superblock.size_bytes)).format()
    _superblock_slots(file).format(payload)
    file.flush()


def load_metadata(file: BlockFile) -> OpenedMetadata:
    """Read what is in the file; it belongs to the store from here on (close that).

    `MetadataError` where it is damaged or of a newer version; nothing is written then.  Else superblock and
    release mark are written as they were found, for what a killed process has left may not be durable yet.
    Where that fails nothing else can be recorded either, and a note says so.
    """
    slots = _superblock_slots(file)
    if file.size_bytes < _JOURNAL_AT:
        raise MetadataError(f"{file.path}: damaged: {file.size_bytes} bytes are no metadata file")
    payload, notes = slots.load()
    try:
        layout, superblock = decode_superblock(payload)
    except MetadataError as error:
        raise MetadataError(f"{file.path}: {error}") from error
    expected_bytes = metadata_bytes(superblock.size_bytes, layout.segment_bytes)
    if file.size_bytes < expected_bytes:
        raise MetadataError(
            f"{file.path}: damaged: has {file.size_bytes} bytes, {expected_bytes} expected for volume "
            f"{superblock.name}"
        )
    store = MetadataStore(file, slots, layout, superblock)
    replay = store._journal.replay()
    notes += replay.notes + store.settle()
    return OpenedMetadata(
        store, superblock, store.read_bitmap(), replay.extents, replay.generation_next, notes
    )


def open_metadata(path: str | os.PathLike[str], *, open_file: OpenFile = OsFile) -> OpenedMetadata:
    """Open a metadata file for this process alone, through ``open_file``.

    `BusyError` if it is in use, `MetadataError` if damaged or of a newer version, else `BackendError`.
    """
    file = open_file(path)
    try:
        return load_metadata(file)
    except BaseException:
        file.close()
        raise


def create_metadata(
    path: str | os.PathLike[str], superblock: Superblock, *, segment_bytes: int = SEGMENT_BYTES_DEFAULT
) -> None:
    """Make the metadata file of a new volume; durable on return, and whole or not there.

    `ConfigError` if it exists, `BusyError` if it is being made, `BackendError` (ENOSPC, ...) otherwise.
    """
    final = Path(path).absolute()
    with whole_file(final) as file:
        if final.exists():
            raise ConfigError(f"{final}: exists already; nothing was changed")
        file.resize(metadata_bytes(superblock.size_bytes, segment_bytes))
        file.reserve()
        format_metadata(file, superblock, segment_bytes=segment_bytes)
