"""The one file of the built-in witness: registers that survive every crash, and that know when they did not.

All registers are in memory; the file is a log of whole registers, written durably, in one piece of a fixed
size that is written with zeroes first, so that an append places nothing and moves no metadata::

    page 0   magic "PSwitnes" | format u32 | zero u32 | seed u64 | identity 32 bytes | xxh3_128 of all that
    then     records, each of whole sectors of 512 bytes:
             magic "PSwr" | body bytes u32 | number u64 | settled u64 | xxh3_128, seeded with the file's seed
             body: flags u8 | incarnation 8 | version u64 | pair id 16 | name bytes u16 | name | value

A record is a register as it is from then on.  ``number`` counts the records of the file; ``settled`` is how
many of them were durable before this one was written.  A batch that a crash has torn ends the log; a record
that was durable and is not whole is damage.

**Opening always writes a new file** (``registers.new``, flushed, then renamed): what a torn batch has left
behind the end of the log can never be taken for a later one.  So does an append that found the file full, or
one that failed: of the failed one it is then certain that it did not happen.

**Memory that is lost.**  The file names its own identity (`linux.file_identity`: file system, inode, birth
time), which a copy does not have: a file that was restored from a backup, copied or moved to another disk is
not believed, nor is a damaged one.  It is put aside as ``registers.lost``, and all registers begin anew with
other incarnations, as they do where there is no file at all.  A copy of the whole file system (a snapshot of
a virtual machine, an image of a disk) and content put back in place keep the identity: that is noticed by
the hosts, who know how far a register had been (`RegisterFile.renewed`).

One thread at a time; all methods that touch the file block.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from xxhash import xxh3_128_digest

from pairsync.core.units import KIB, MIB
from pairsync.core.witness import (
    INCARNATION_BYTES,
    VALUE_BYTES_MAX,
    VERSION_MAX,
    Snapshot,
    WitnessKey,
    check_value,
    first_version,
)
from pairsync.errors import BackendError, ConfigError, InternalError, MetadataError

from .directory import Directory, GrowingFile
from .linux import same_file

__all__ = ["FILE_NAME", "GUESTS_MAX", "LOST_NAME", "ROOM_MIN_BYTES", "Entry", "RegisterFile"]

FILE_NAME: Final = "registers"
LOST_NAME: Final = "registers.lost"
"""A file that was not believed, for a person to look at; an earlier one is replaced."""

_NEW_NAME: Final = "registers.new"

GUESTS_MAX: Final = 256
"""Registers of one pair: bounds what a host can make the witness keep (400 KB of memory)."""

_FORMAT: Final = 1
_FILE_MAGIC: Final = b"PSwitnes"
_RECORD_MAGIC: Final = b"PSwr"
_SECTOR_BYTES: Final = 512
_PAGE_BYTES: Final = 4 * KIB
ROOM_MIN_BYTES: Final = 1 * MIB
"""Room for records of an almost empty file: two thousand swaps between two new files."""
_ROOM_FACTOR: Final = 4
"""Room of a file in the size of what it begins with: three quarters of what is written are records."""
_READ_BYTES: Final = 1 * MIB

_FILE_HEAD: Final = struct.Struct("<8sIIQ32s")
_RECORD_HEAD: Final = struct.Struct("<4sIQQ")
_RECORD_HEAD_BYTES: Final = _RECORD_HEAD.size + 16
_BODY_HEAD: Final = struct.Struct(f"<B{INCARNATION_BYTES}sQ16sH")
_BODY_BYTES_MAX: Final = _BODY_HEAD.size + 255 + VALUE_BYTES_MAX
_HAS_VALUE: Final = 1


class Entry(NamedTuple):
    """A register as it is to be from now on."""

    key: WitnessKey
    snapshot: Snapshot


@dataclass(slots=True)
class _Loaded:
    """What a file says."""

    registers: dict[WitnessKey, Snapshot]
    distrust: str | None
    """Why it is not believed."""


class RegisterFile:
    """The registers of a witness; see the module."""

    def __init__(
        self,
        directory: Directory,
        *,
        identity: Callable[[GrowingFile], bytes],
        entropy: Callable[[int], bytes],
        room_bytes: int = ROOM_MIN_BYTES,
    ) -> None:
        """Open or make the file in ``directory``.

        ``identity`` gives 32 bytes that a copy of a file does not have; ``room_bytes`` is what a file has for
        records at least.  Raises `BusyError` if another process has it open, `MetadataError` if a newer
        version wrote it, and `BackendError`.
        """
        self._directory = directory
        self._identity = identity
        self._entropy = entropy
        self._room_bytes = room_bytes
        # Invariants: registers is what is durable; each pair has at most GUESTS_MAX; counts says how many.
        self._registers: dict[WitnessKey, Snapshot] = {}
        self._counts: dict[bytes, int] = {}
        self._file: GrowingFile | None = None  # None: a new file has to be written before anything else
        self._seed = 0
        self._end = 0  # where the next record goes
        self._number = 0  # of the next record; all before it are durable
        self.distrust: str | None = None
        """Why what was found was not believed, so that all registers begin anew; None if it was."""
        self._open()

    # ------------------------------------------------------------------ what is known

    def __len__(self) -> int:
        return len(self._registers)

    @property
    def size_bytes(self) -> int:
        """Of the file, room for further records included."""
        return 0 if self._file is None else self._file.size_bytes

    def pairs(self) -> Mapping[bytes, int]:
        """How many registers each pair has that has any."""
        return dict(self._counts)

    def find(self, key: WitnessKey) -> Snapshot | None:
        """The register, from memory; None if there is none yet."""
        return self._registers.get(key)

    def fresh(self, key: WitnessKey) -> Entry:
        """A register that begins anew; to be appended.  `ConfigError` if the pair has too many."""
        if key not in self._registers and self._counts.get(key.pair_id, 0) >= GUESTS_MAX:
            raise ConfigError(
                f"pair {key.pair_id.hex()[:8]} has {GUESTS_MAX} registers, and may have no more"
            )
        incarnation = self._entropy(INCARNATION_BYTES)
        return Entry(key, Snapshot(incarnation, first_version(self._entropy(8)), None))

    def renewed(self, key: WitnessKey, seen: Snapshot) -> Entry | None:
        """A new incarnation of a register that is behind what a host has ``seen``; None if it is not."""
        here = self._registers.get(key)
        return self.fresh(key) if here is not None and here.is_behind(seen) else None

    # ------------------------------------------------------------------ changing

    def append(self, entries: Sequence[Entry]) -> None:
        """Make the entries the registers; durable on return.

        After a `BackendError` none of them is in force.  Whether the disk has them, so that they would be
        found if the file were opened now, is not known until the next append has succeeded: then not.
        """
        pages = [_encode_body(entry) for entry in entries]
        room = 0 if self._file is None else self._file.size_bytes - self._end
        if self._file is None or not self._file.sound or sum(map(_record_bytes, pages)) > room:
            self._rewrite([*self._live_without(entries), *entries])
        else:
            self._extend(self._file, pages)
        for entry in entries:
            self._take(entry)

    def keep_only(self, pairs: Iterable[bytes]) -> int:
        """Forget the registers of all other pairs, durably; how many there were."""
        kept = frozenset(pairs)
        doomed = [key for key in self._registers if key.pair_id not in kept]
        if doomed:
            before = self._registers
            self._registers = {key: one for key, one in before.items() if key.pair_id in kept}
            try:
                self._rewrite(self._live_without(()))
            except BackendError:
                self._registers = before
                raise
            self._counts = {pair: count for pair, count in self._counts.items() if pair in kept}
        return len(doomed)

    def close(self) -> None:
        """Give the file back; idempotent."""
        if self._file is not None:
            self._file.close()

    def _take(self, entry: Entry) -> None:
        if entry.key not in self._registers:
            self._counts[entry.key.pair_id] = self._counts.get(entry.key.pair_id, 0) + 1
        self._registers[entry.key] = entry.snapshot

    def _live_without(self, entries: Sequence[Entry]) -> list[Entry]:
        changed = {entry.key for entry in entries}
        return [Entry(key, one) for key, one in self._registers.items() if key not in changed]

    def _extend(self, file: GrowingFile, bodies: Sequence[bytes]) -> None:
        batch = self._encode(bodies, self._number)
        try:
            file.write(self._end, [batch], durable=True)
        except BackendError:
            # Any part of it may be there: only a new file says for certain that it is not.
            self._drop_file()
            raise
        self._end += len(batch)
        self._number += len(bodies)

    def _encode(self, bodies: Sequence[bytes], settled: int) -> bytes:
        parts: list[bytes] = []
        for number, body in enumerate(bodies, settled):
            head = _RECORD_HEAD.pack(_RECORD_MAGIC, len(body), number, settled)
            digest = xxh3_128_digest(head + body, self._seed)
            parts.append((head + digest + body).ljust(_record_bytes(body), b"\0"))
        return b"".join(parts)

    def _drop_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    # ------------------------------------------------------------------ a new file

    def _rewrite(self, entries: Sequence[Entry]) -> None:
        """Put a new file with exactly these registers in the place of the old one."""
        bodies = [_encode_body(entry) for entry in entries]
        live_bytes = sum(map(_record_bytes, bodies))
        room = max(self._room_bytes, _ROOM_FACTOR * live_bytes)
        size = -(-(_PAGE_BYTES + live_bytes + room) // _PAGE_BYTES) * _PAGE_BYTES
        self._drop_file()
        self._directory.remove(_NEW_NAME)
        file = self._directory.create(_NEW_NAME)
        try:
            file.resize(size)
            self._seed = int.from_bytes(self._entropy(8), "little")
            head = _FILE_HEAD.pack(_FILE_MAGIC, _FORMAT, 0, self._seed, self._identity(file))
            records = self._encode(bodies, 0)
            page = (head + xxh3_128_digest(head)).ljust(_PAGE_BYTES, b"\0")
            file.write(0, [page, records])
            end = _PAGE_BYTES + len(records)
            for at in range(end, size, _READ_BYTES):
                file.write(at, [bytes(min(_READ_BYTES, size - at))])
            file.flush()
            self._directory.publish(file, FILE_NAME)
        except BaseException:
            file.close()
            raise
        self._file, self._end, self._number = file, end, len(bodies)

    # ------------------------------------------------------------------ opening

    def _open(self) -> None:
        names = self._directory.names(FILE_NAME)
        if FILE_NAME in names:
            file = self._directory.open(FILE_NAME)
            try:
                loaded = self._load(file)
                self.distrust = loaded.distrust
                if loaded.distrust is not None:
                    self._directory.publish(file, LOST_NAME)
            finally:
                file.close()
            for key, snapshot in loaded.registers.items():
                self._take(Entry(key, snapshot))
        self._rewrite(self._live_without(()))

    def _load(self, file: GrowingFile) -> _Loaded:
        head_bytes = _FILE_HEAD.size
        page = file.read(0, min(_PAGE_BYTES, file.size_bytes))
        head, digest = page[:head_bytes], page[head_bytes : head_bytes + 16]
        if len(page) < _PAGE_BYTES or xxh3_128_digest(head) != digest:
            return _Loaded({}, f"{file.path} is damaged: its first page is not whole")
        magic, version, _, seed, identity = _FILE_HEAD.unpack(head)
        if magic != _FILE_MAGIC:
            return _Loaded({}, f"{file.path} is no file of a witness")
        if version != _FORMAT:
            raise MetadataError(f"{file.path}: format {version} of another version; this one knows {_FORMAT}")
        if not same_file(identity, self._identity(file)):
            return _Loaded({}, f"{file.path} is a copy: restored from a backup, or moved to another disk")
        return self._replay(file, seed)

    def _replay(self, file: GrowingFile, seed: int) -> _Loaded:
        content = memoryview(
            b"".join(
                file.read(at, min(_READ_BYTES, file.size_bytes - at))
                for at in range(_PAGE_BYTES, file.size_bytes, _READ_BYTES)
            )
        )
        registers: dict[WitnessKey, Snapshot] = {}
        at = number = 0
        while (record := _decode_record(content, at, seed)) is not None and record.number == number:
            entry = _decode_body(record.body)
            if entry is None:
                return _Loaded({}, f"{file.path} is damaged: record {number} makes no sense")
            registers[entry.key] = entry.snapshot
            at += _record_bytes(record.body)
            number += 1
        for later in range(at, len(content), _SECTOR_BYTES):
            record = _decode_record(content, later, seed)
            if record is not None and record.settled > number:
                return _Loaded({}, f"{file.path} is damaged: record {number} was durable and is not whole")
        return _Loaded(registers, None)


class _Record(NamedTuple):
    number: int
    settled: int
    body: bytes


def _record_bytes(body: bytes) -> int:
    return -(-(_RECORD_HEAD_BYTES + len(body)) // _SECTOR_BYTES) * _SECTOR_BYTES


def _decode_record(content: memoryview, at: int, seed: int) -> _Record | None:
    """The whole record at that place, or None."""
    if at + _RECORD_HEAD_BYTES > len(content):
        return None
    magic, body_bytes, number, settled = _RECORD_HEAD.unpack_from(content, at)
    start = at + _RECORD_HEAD_BYTES
    if magic != _RECORD_MAGIC or body_bytes > _BODY_BYTES_MAX or start + body_bytes > len(content):
        return None
    body = bytes(content[start : start + body_bytes])
    head = content[at : at + _RECORD_HEAD.size]
    if xxh3_128_digest(bytes(head) + body, seed) != content[at + _RECORD_HEAD.size : start]:
        return None
    return _Record(number, settled, body)


def _encode_body(entry: Entry) -> bytes:
    key, (incarnation, version, value) = entry.key, _fields(entry.snapshot)
    name = key.guest.encode()
    flags = 0 if value is None else _HAS_VALUE
    head = _BODY_HEAD.pack(flags, incarnation, version, key.pair_id, len(name))
    return head + name + (value or b"")


def _fields(snapshot: Snapshot) -> tuple[bytes, int, bytes | None]:
    if len(snapshot.incarnation) != INCARNATION_BYTES or not 0 <= snapshot.version <= VERSION_MAX:
        raise InternalError(f"cannot be stored: {snapshot}")
    if snapshot.value is not None:
        check_value(snapshot.value)
    return snapshot.incarnation, snapshot.version, snapshot.value


def _decode_body(body: bytes) -> Entry | None:
    """None for what no version of ours has written."""
    try:
        flags, incarnation, version, pair_id, name_bytes = _BODY_HEAD.unpack_from(body)
        rest = body[_BODY_HEAD.size :]
        value = rest[name_bytes:]
        if flags not in {0, _HAS_VALUE} or version > VERSION_MAX or (value and not flags):
            return None
        key = WitnessKey(pair_id, rest[:name_bytes].decode())
    except (struct.error, UnicodeDecodeError, ConfigError):
        return None
    return Entry(key, Snapshot(incarnation, version, value if flags else None))
