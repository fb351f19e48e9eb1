"""A small value that is replaced as a whole and survives a crash at any point: two slots.

A slot is 4 KiB aligned; one is written at a time, durably, and it is always the older one.  So at any moment
one slot holds a whole value; the newest whole one wins.  A slot::

    offset  bytes  what
    0       8      magic "PAIRSYNC"
    8       4      format version (of the whole metadata file)
    12      4      crc32 of the 12 bytes above; these 16 bytes mean the same in every version
    16      4      kind of value
    20      4      payload length
    24      8      sequence number; the higher is the newer
    32      16     xxh3_128 of bytes 0..31 and the payload
    48             payload, then zeroes

A torn or damaged slot is no value (the digest fails).  A slot whose first 16 bytes are whole and name a newer
version means that newer software has been here: nothing is read and nothing touched.

``mirrored`` writes the value to the other slot as well once it is durable in the first.  Then no later
damage to one slot can bring an older value back; it costs a second durable write, so it is for values that
must not go back (a superblock) and not for those whose older value is harmless (a release mark).

What `DualSlot.load` finds need not be on the disk.  A process that was killed in the middle of a write, or
whose write could not be made durable, has left the value in the page cache, from where the next process reads
it; a power cut then takes it back, or leaves it torn.  So `DualSlot.settle` writes what was found anew, in
its place: before anybody relies on it, and at the latest before the other slot, the one that is certainly
whole, is overwritten.
"""

from __future__ import annotations

import errno
import struct
import zlib
from typing import Final, NamedTuple

from xxhash import xxh3_128_digest

from pairsync.core.units import KIB
from pairsync.errors import InternalError, MetadataError

from .blockfile import BlockFile

__all__ = ["FORMAT_VERSION", "SLOT_HEADER_BYTES", "DualSlot", "SlotValue", "decode_slot", "encode_slot"]

FORMAT_VERSION: Final = 1

SLOT_HEADER_BYTES: Final = 48

_MAGIC: Final = b"PAIRSYNC"
_PREFIX: Final = struct.Struct("<8sI")
_FIELDS: Final = struct.Struct("<IIQ")
_ALIGNMENT_BYTES: Final = 4 * KIB
_SEQUENCE_MAX: Final = (1 << 64) - 1


class SlotValue(NamedTuple):
    """What a whole slot says."""

    sequence: int
    payload: bytes


def encode_slot(kind: int, value: SlotValue) -> bytes:
    """The slot's bytes, padded to a whole number of 4 KiB."""
    prefix = _PREFIX.pack(_MAGIC, FORMAT_VERSION)
    head = prefix + struct.pack("<I", zlib.crc32(prefix))
    head += _FIELDS.pack(kind, len(value.payload), value.sequence)
    raw = head + xxh3_128_digest(head + value.payload) + value.payload
    return raw.ljust(-(-len(raw) // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES, b"\0")


def decode_slot(kind: int, raw: bytes) -> SlotValue | None:
    """The value of a slot, None if there is no whole one; `MetadataError` for a newer format version."""
    head, digest = raw[:32], raw[32:SLOT_HEADER_BYTES]
    if len(raw) < SLOT_HEADER_BYTES or head[12:16] != struct.pack("<I", zlib.crc32(head[:12])):
        return None
    magic, version = _PREFIX.unpack_from(head)
    if magic != _MAGIC:
        return None
    if version > FORMAT_VERSION:
        raise MetadataError(
            f"written by a newer version (format {version}, this one knows {FORMAT_VERSION}); "
            "nothing was touched",
            errno.EPROTONOSUPPORT,
        )
    found_kind, length, sequence = _FIELDS.unpack_from(head, 16)
    payload = raw[SLOT_HEADER_BYTES : SLOT_HEADER_BYTES + length]
    if found_kind != kind or len(payload) != length or xxh3_128_digest(head + payload) != digest:
        return None
    return SlotValue(sequence, payload)


class DualSlot:
    """Two slots of ``slot_bytes`` each, one behind the other from ``offset`` on."""

    def __init__(
        self, file: BlockFile, *, what: str, kind: int, offset: int, slot_bytes: int, mirrored: bool
    ) -> None:
        self._file = file
        self._what = what
        self._kind = kind
        self._offsets = (offset, offset + slot_bytes)
        self._slot_bytes = slot_bytes
        self._mirrored = mirrored
        self._sequence = 0  # of the newest value
        self._found: bytes | None = None  # what `load` has found, while it need not be durable
        self._older = 0  # the slot to be written next

    def load(self) -> tuple[bytes, tuple[str, ...]]:
        """The newest payload, and what was found wrong beside it (for the log).

        `MetadataError` if neither slot is whole, or a newer version wrote one.
        """
        found: list[SlotValue | None] = []
        for offset in self._offsets:
            try:
                found.append(decode_slot(self._kind, self._file.read(offset, self._slot_bytes)))
            except MetadataError as error:
                raise MetadataError(f"{self._file.path}: {error}", error.errno) from error
        first, second = found
        if first is None and second is None:
            raise MetadataError(
                f"{self._file.path}: damaged: neither copy of the {self._what} (at {self._offsets[0]} and "
                f"{self._offsets[1]}) is whole"
            )
        # Slots of equal sequence are mirrors of each other; then either may be overwritten first.
        newest = max((v.sequence, -i) for i, v in enumerate(found) if v is not None)[1] * -1
        value = found[newest]
        if value is None:
            raise InternalError("the newest slot holds nothing")
        self._sequence, self._older, self._found = value.sequence, 1 - newest, value.payload
        notes = tuple(
            f"the {self._what} at {self._offsets[i]} is torn or damaged; the other copy was used"
            for i, v in enumerate(found)
            if v is None
        )
        return value.payload, notes

    def settle(self) -> None:
        """Make durable what `load` has found (see the module); `BackendError` if that fails."""
        if self._found is not None:
            raw = encode_slot(self._kind, SlotValue(self._sequence, self._found))
            self._file.write(self._offsets[1 - self._older], (raw,), durable=True)
            self._found = None

    def store(self, payload: bytes) -> None:
        """Replace the value; durable on return.  Until then a crash leaves the old or the new one."""
        if self._sequence >= _SEQUENCE_MAX:
            raise InternalError("sequence numbers are used up")
        raw = encode_slot(self._kind, SlotValue(self._sequence + 1, payload))
        if len(raw) > self._slot_bytes:
            raise InternalError(f"{self._what} of {len(payload)} bytes does not fit a slot")
        self.settle()
        self._file.write(self._offsets[self._older], (raw,), durable=True)
        self._sequence += 1
        self._older = 1 - self._older
        if self._mirrored:
            self._file.write(self._offsets[self._older], (raw,), durable=True)

    def format(self, payload: bytes) -> None:
        """Write both slots of a new file; the caller flushes."""
        self._sequence = 1
        raw = encode_slot(self._kind, SlotValue(1, payload))
        for offset in self._offsets:
            self._file.write(offset, (raw,))
