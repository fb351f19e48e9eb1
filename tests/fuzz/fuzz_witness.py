"""Fuzz targets of the witness: what a host or a stranger sends it, and what it finds in its file."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from xxhash import xxh3_128_digest

from pairsync.core.witness import Snapshot, WitnessKey
from pairsync.errors import MetadataError, ProtocolError
from pairsync.storage.registerfile import FILE_NAME, Entry, RegisterFile
from pairsync.testing.disks import SimMedium
from pairsync.testing.simfiles import SimDirectory
from pairsync.wire.vocabulary import StreamDecoder
from pairsync.wire.witness import WITNESS, Beat, Crossed, Greet, Knowledge, Look, Swap

ROOM_BYTES = 4096
PAGE_BYTES = 4096
RECORD = struct.Struct("<4sIQQ")
KEY = WitnessKey(b"p" * 16, "guest")


def fuzz_messages(data: bytes) -> None:
    """The byte stream of a witness connection; what is accepted can be said again, and means the same."""
    try:
        messages = StreamDecoder(WITNESS).feed(data)
    except ProtocolError:
        return
    for message in messages:
        if StreamDecoder(WITNESS).feed(WITNESS.encode(message)) != [message]:
            raise RuntimeError("a message that changes on its way")


def seeds_messages() -> Iterable[bytes]:
    """The beginning of a conversation, and an answer."""
    knows = Knowledge(b"i" * 8, 5)
    yield b"".join(
        WITNESS.encode(each)
        for each in (
            Greet(1, 1, "pairsync", b"p" * 16),
            Look(1, "guest", None),
            Swap(2, "guest", knows, 5, b"v" * 40),
            Beat(1),
        )
    )
    yield WITNESS.encode(Crossed(2, b"i" * 8, 6, None))


def _opened(medium: SimMedium) -> RegisterFile:
    return RegisterFile(
        SimDirectory(medium), identity=lambda file: bytes(32), entropy=bytes, room_bytes=ROOM_BYTES
    )


def _load(content: bytes) -> None:
    """Open what is there; whatever it is, the witness works with what it has made of it."""
    medium = SimMedium()
    size = -(-len(content) // 512) * 512
    medium.create(FILE_NAME, size)
    medium.platter(FILE_NAME, medium.life).live[: len(content)] = content
    try:
        file = _opened(medium)
    except MetadataError:
        return
    entry = Entry(KEY, Snapshot(b"i" * 8, 7, b"after"))
    file.append([entry])
    medium.process_crash()
    if _opened(medium).find(KEY) != entry.snapshot:
        raise RuntimeError("a file that was opened loses what was stored then")


def _sample() -> bytes:
    medium = SimMedium()
    file = _opened(medium)
    for number in range(3):
        file.append([Entry(KEY, Snapshot(b"i" * 8, number, b"v" * number))])
    return medium.content(FILE_NAME)


def fuzz_file(data: bytes) -> None:
    """A whole file."""
    _load(data[: PAGE_BYTES + ROOM_BYTES])


def seeds_file() -> Iterable[bytes]:
    """A good one."""
    yield _sample()


def fuzz_records(data: bytes) -> None:
    """Records whose heads and digests are right, whatever they say: each is a length and as many bytes."""
    page = _sample()[:PAGE_BYTES]
    (seed,) = struct.unpack_from("<Q", page, 16)
    records = bytearray()
    number = 0
    while len(data) > 1 and len(records) < 2 * ROOM_BYTES:
        body, data = data[1 : 1 + data[0]], data[1 + data[0] :]
        head = RECORD.pack(b"PSwr", len(body), number, number)
        record = head + xxh3_128_digest(head + body, seed) + body
        records += record.ljust(-(-len(record) // 512) * 512, b"\0")
        number += 1
    _load(page + bytes(records))


def seeds_records() -> Iterable[bytes]:
    """The bodies of good ones."""
    content = _sample()[PAGE_BYTES:]
    bodies = []
    for at in range(0, 3 * 512, 512):
        _, length, _, _ = RECORD.unpack_from(content, at)
        bodies.append(bytes([length]) + content[at + 40 : at + 40 + length])
    yield b"".join(bodies)
