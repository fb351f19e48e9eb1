"""Records and the frames in them, in plaintext: what a lane seals and opens.

::

    record   first frame number u64 | cumulative acknowledgement u64 | frame count u32 | frame ...
    frame    header length u32 | payload length u32 | header | payload

All integers are big-endian.  Frames of a record are numbered upwards from the first; the acknowledgement is
the number of the next frame that the sender of the record expects.  A record without frames carries the
acknowledgement alone.  Every length is checked against its limit and against what is left before anything
is sliced; a record is used to its last byte or refused.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from pairsync.core.messages import Buffer
from pairsync.errors import InternalError, ProtocolError

from .limits import (
    FRAME_HEADER_BYTES_MAX,
    FRAME_PAYLOAD_BYTES_MAX,
    FRAME_PREFIX_BYTES,
    FRAMES_PER_RECORD_MAX,
    NUMBER_MAX,
    RECORD_HEADER_BYTES,
)

__all__ = ["Frame", "Record", "make_frame", "pack_record", "parse_frames", "parse_record"]

_RECORD = struct.Struct(">QQI")
_PREFIX = struct.Struct(">II")


class Frame(NamedTuple):
    """An encoded message as it waits for its acknowledgement: buffers by reference, prefix included."""

    parts: list[Buffer]
    size_bytes: int


class Record(NamedTuple):
    """The head of a record; ``frames`` is the unparsed rest."""

    first: int
    acknowledged: int
    frame_count: int
    frames: memoryview


def make_frame(parts: list[Buffer]) -> Frame:
    """Put the prefix before what ``codec.encode`` returned (the list is taken over)."""
    header = parts[0]
    header_bytes = len(header)
    payload_bytes = 0
    for index in range(1, len(parts)):
        payload_bytes += len(parts[index])
    if header_bytes > FRAME_HEADER_BYTES_MAX or payload_bytes > FRAME_PAYLOAD_BYTES_MAX:
        raise InternalError(f"a frame of {header_bytes} + {payload_bytes} bytes is over the limits")
    parts[0] = _PREFIX.pack(header_bytes, payload_bytes) + header
    return Frame(parts, FRAME_PREFIX_BYTES + header_bytes + payload_bytes)


def pack_record(first: int, acknowledged: int, frames: Sequence[Frame]) -> bytes:
    """The plaintext of a record: the one place where payload is copied on its way out."""
    parts: list[Buffer] = [_RECORD.pack(first, acknowledged, len(frames))]
    for frame in frames:
        parts += frame.parts
    return b"".join(parts)


def parse_record(plaintext: memoryview) -> Record:
    """Check the head of a record; raises `ProtocolError`."""
    if len(plaintext) < RECORD_HEADER_BYTES:
        raise ProtocolError(f"record of {len(plaintext)} bytes, its head alone has {RECORD_HEADER_BYTES}")
    first, acknowledged, frame_count = _RECORD.unpack_from(plaintext)
    if first > NUMBER_MAX - FRAMES_PER_RECORD_MAX or acknowledged > NUMBER_MAX:
        raise ProtocolError(f"record with frame number {first}, acknowledgement {acknowledged}")
    if frame_count > FRAMES_PER_RECORD_MAX:
        raise ProtocolError(f"record of {frame_count} frames, at most {FRAMES_PER_RECORD_MAX} are allowed")
    if not frame_count and len(plaintext) != RECORD_HEADER_BYTES:
        raise ProtocolError(f"{len(plaintext) - RECORD_HEADER_BYTES} bytes in a record without frames")
    return Record(first, acknowledged, frame_count, plaintext[RECORD_HEADER_BYTES:])


def parse_frames(record: Record, skip: int = 0) -> list[tuple[memoryview, memoryview]]:
    """Header and payload of each frame but the first ``skip``; raises `ProtocolError`."""
    frames = record.frames
    available_bytes = len(frames)
    position = 0
    found: list[tuple[memoryview, memoryview]] = []
    for index in range(record.frame_count):
        body = position + FRAME_PREFIX_BYTES
        if body > available_bytes:
            raise ProtocolError(f"record ends in the prefix of frame {index} of {record.frame_count}")
        header_bytes, payload_bytes = _PREFIX.unpack_from(frames, position)
        if header_bytes > FRAME_HEADER_BYTES_MAX or payload_bytes > FRAME_PAYLOAD_BYTES_MAX:
            raise ProtocolError(f"frame {index} of {header_bytes} + {payload_bytes} bytes is over the limits")
        payload = body + header_bytes
        position = payload + payload_bytes
        if position > available_bytes:
            raise ProtocolError(f"record ends in frame {index} of {record.frame_count}")
        if index >= skip:
            found.append((frames[body:payload], frames[payload:position]))
    if position != available_bytes:
        raise ProtocolError(f"{available_bytes - position} bytes behind the last frame of a record")
    return found
