"""A volume's digests: making, opening and, where they cannot be relied on, making them anew.

The parts: ``digestfile`` (what a digest is, the file), ``digesttable`` with ``digestlayer`` (keeping it up,
safe at every crash), ``digestwalk`` (answering from it).

The table is a summary of the data, so losing it loses nothing: one that is missing, damaged, cut short, or
of another volume is replaced by one in which everything is unknown, and a note says so.  It never keeps a
volume from opening, with two exceptions: a table that newer software wrote is not touched (`MetadataError`),
and where none can be made at all (`BackendError`) the caller goes on without.
"""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from pairsync.core.dirty import DirtyMap
from pairsync.core.questions import BadBlock
from pairsync.core.units import BLOCK_BYTES, block_count_of
from pairsync.errors import BackendError, InternalError, MetadataError

from .blockfile import BlockFile, OpenFile, Resizable, enlarge_file
from .digestfile import (
    LEAVES_PER_NODE,
    UNKNOWN_DIGEST,
    ZERO_DIGEST,
    Header,
    LeafFile,
    block_digest,
    decode_header,
    digests_bytes,
    digests_path,
    encode_header,
    header_slots,
)
from .digestheader import HeaderKeeper
from .digeststate import TableState
from .digesttable import DigestTable
from .digestwalk import Examined
from .osfile import OsFile, backend_error, sync_directory, whole_file
from .slots import DualSlot

__all__ = [
    "LEAVES_PER_NODE",
    "UNKNOWN_DIGEST",
    "ZERO_DIGEST",
    "BadBlock",
    "DigestTable",
    "Examined",
    "OpenedDigests",
    "block_digest",
    "create_digests",
    "digests_bytes",
    "digests_path",
    "discard_digests",
    "format_digests",
    "given_milestone",
    "load_digests",
    "open_digests",
]


@dataclass(frozen=True, slots=True)
class OpenedDigests:
    """A table that was opened, or made anew."""

    table: DigestTable
    notes: tuple[str, ...]
    """What was found wrong and what was done about it: for the log."""


def format_digests(file: BlockFile, *, volume_id: bytes, size_bytes: int, blank: bool) -> None:
    """Make an empty table in a file of `digests_bytes`; durable on return.

    ``blank``: the volume reads as zero from end to end, which is then known; else everything is unknown.
    """
    LeafFile(file).zero(0, -(-block_count_of(size_bytes) // LEAVES_PER_NODE) * LEAVES_PER_NODE)
    file.flush()  # before the header claims anything about the leaves
    header_slots(file).format(encode_header(_empty(volume_id, size_bytes, blank=blank)))
    file.flush()


def _empty(volume_id: bytes, size_bytes: int, *, blank: bool) -> Header:
    return Header(volume_id, size_bytes, block_count_of(size_bytes) if blank else 0, 0, settled=True)


def create_digests(path: str | os.PathLike[str], *, volume_id: bytes, size_bytes: int, blank: bool) -> None:
    """Make the table's file; durable on return, and whole or not there.  One that exists is replaced.

    `BusyError` if it is being made or in use, else `BackendError`.
    """
    with whole_file(Path(path).absolute()) as file:
        file.resize(digests_bytes(size_bytes))
        format_digests(file, volume_id=volume_id, size_bytes=size_bytes, blank=blank)


def discard_digests(path: str | os.PathLike[str]) -> None:
    """The volume is about to be written without its table, which would be wrong ever after: remove it.

    Durable on return; nothing if there is none.  `BackendError` if it cannot be removed.
    """
    file = Path(path).absolute()
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise backend_error(f"{file}: removing", error) from error
    sync_directory(file)


def given_milestone(path: str | os.PathLike[str], *, open_file: OpenFile = OsFile) -> int:
    """The milestone that the table of a host that is down has recorded; 0 where there is no whole one.

    `BusyError` if it is in use.
    """
    try:
        file = open_file(path)
    except BackendError:
        return 0
    try:
        return decode_header(header_slots(file).load()[0]).milestone
    except BackendError:
        return 0
    finally:
        file.close()


def open_digests(
    path: str | os.PathLike[str],
    *,
    volume_id: bytes,
    size_bytes: int,
    doubtful: DirtyMap,
    open_file: OpenFile = OsFile,
) -> OpenedDigests:
    """Open the table of a volume of that size for this process alone, through ``open_file``.

    See `load_digests`.

    `BusyError` if it is in use, `MetadataError` if a newer version wrote it, `BackendError` where none can be
    made.
    """
    notes: tuple[str, ...] = ()
    try:
        file = open_file(path)
    except BackendError as error:
        if error.errno != errno.ENOENT:
            raise
        create_digests(path, volume_id=volume_id, size_bytes=size_bytes, blank=False)
        notes = (f"{os.fspath(path)}: there was no digest table; all blocks will be read once",)
        file = open_file(path)
    try:
        opened = load_digests(file, volume_id=volume_id, size_bytes=size_bytes, doubtful=doubtful)
    except BaseException:
        file.close()
        raise
    return OpenedDigests(opened.table, notes + opened.notes)


def load_digests(file: BlockFile, *, volume_id: bytes, size_bytes: int, doubtful: DirtyMap) -> OpenedDigests:
    """Read what is in the file; it belongs to the table from here on (close that).

    ``doubtful``: the recovered dirty map if the volume was not closed in order, else an empty one.  A table
    of a smaller volume grows, what was added being unknown; any other that does not fit is made anew.
    `MetadataError` if a newer version wrote it, `BackendError` where it cannot be made anew.
    """
    if doubtful.block_count != block_count_of(size_bytes):
        raise InternalError(f"{file.path}: doubtful blocks of a volume of {doubtful.block_count} blocks")
    slots = header_slots(file)
    notes: tuple[str, ...] = ()
    whole = False  # both slots say what `header` does, or less
    try:
        header, notes = _load_header(file, slots, volume_id, size_bytes)
        whole = not notes
        if header.size_bytes < size_bytes:
            enlarge_file(file, digests_bytes(size_bytes))
            notes += (f"{file.path}: the volume has grown from {header.size_bytes} to {size_bytes} bytes",)
    except BackendError as error:
        if isinstance(error, MetadataError) and error.errno == errno.EPROTONOSUPPORT:
            raise
        header = _empty(volume_id, size_bytes, blank=False)
        _make_anew(file, header)
        slots = header_slots(file)
        slots.load()
        notes = (f"{error}; all blocks will be read once",)
        whole = True
    unknown = DirtyMap(block_count_of(size_bytes))
    unknown.merge(doubtful)
    known_below = header.known_below
    if header.size_bytes < size_bytes:  # its last block, if it was partial, is another block now
        known_below = min(known_below, header.size_bytes // BLOCK_BYTES)
    unknown.mark(known_below, unknown.block_count)
    state = TableState(LeafFile(file), size_bytes, unknown, threading.Lock())
    return OpenedDigests(DigestTable(state, HeaderKeeper(slots, header, whole=whole)), notes)


def _load_header(
    file: BlockFile, slots: DualSlot, volume_id: bytes, size_bytes: int
) -> tuple[Header, tuple[str, ...]]:
    """The header, if the table can be used for that volume, and what was found damaged beside it."""
    if file.size_bytes < digests_bytes(1):
        raise MetadataError(f"{file.path}: damaged: {file.size_bytes} bytes are no digest table")
    payload, notes = slots.load()
    try:
        header = decode_header(payload)
    except MetadataError as error:
        raise MetadataError(f"{file.path}: {error}") from error
    if header.volume_id != volume_id:
        raise MetadataError(f"{file.path}: the digests of another volume ({header.volume_id.hex()})")
    if header.size_bytes > size_bytes:
        raise MetadataError(
            f"{file.path}: the digests of {header.size_bytes} bytes, the volume has {size_bytes}"
        )
    if file.size_bytes < digests_bytes(header.size_bytes):
        raise MetadataError(f"{file.path}: damaged: cut to {file.size_bytes} bytes")
    return header, notes


def _make_anew(file: BlockFile, header: Header) -> None:
    if isinstance(file, Resizable):
        file.resize(0)  # gives back the room of what is not needed any more
    enlarge_file(file, digests_bytes(header.size_bytes))
    format_digests(file, volume_id=header.volume_id, size_bytes=header.size_bytes, blank=False)
