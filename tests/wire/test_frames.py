"""Records and frames: there and back, and every length checked."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairsync.errors import InternalError, ProtocolError
from pairsync.wire.frames import make_frame, pack_record, parse_frames, parse_record
from pairsync.wire.limits import (
    FRAME_HEADER_BYTES_MAX,
    FRAME_PAYLOAD_BYTES_MAX,
    FRAME_PREFIX_BYTES,
    FRAMES_PER_RECORD_MAX,
    NUMBER_MAX,
    RECORD_HEADER_BYTES,
)

HEAD = struct.Struct(">QQI")


def record_of(count: int, body: bytes, first: int = 0) -> memoryview:
    return memoryview(HEAD.pack(first, 0, count) + body)


@given(
    st.integers(0, NUMBER_MAX - FRAMES_PER_RECORD_MAX),
    st.integers(0, NUMBER_MAX),
    st.lists(st.tuples(st.binary(max_size=50), st.lists(st.binary(max_size=50), max_size=3)), max_size=8),
    st.data(),
)
def test_there_and_back(
    first: int, acknowledged: int, frames: list[tuple[bytes, list[bytes]]], data: st.DataObject
) -> None:
    made = [make_frame([header, *parts]) for header, parts in frames]
    plaintext = pack_record(first, acknowledged, made)
    assert len(plaintext) == RECORD_HEADER_BYTES + sum(frame.size_bytes for frame in made)
    record = parse_record(memoryview(plaintext))
    assert record[:3] == (first, acknowledged, len(frames))
    skip = data.draw(st.integers(0, len(frames)))
    parsed = [(bytes(header), bytes(payload)) for header, payload in parse_frames(record, skip)]
    assert parsed == [(header, b"".join(parts)) for header, parts in frames[skip:]]


def test_payload_is_not_copied() -> None:
    part = memoryview(bytearray(4096))
    frame = make_frame([b"header", part])
    assert frame.parts[1] is part
    plaintext = memoryview(pack_record(0, 0, [frame]))
    ((_, payload),) = parse_frames(parse_record(plaintext))
    assert payload.obj is plaintext.obj


@pytest.mark.parametrize(
    "plaintext",
    [
        b"",
        bytes(RECORD_HEADER_BYTES - 1),
        HEAD.pack(NUMBER_MAX, 0, 0),
        HEAD.pack(0, NUMBER_MAX + 1, 0),
        HEAD.pack(0, 0, FRAMES_PER_RECORD_MAX + 1),
        HEAD.pack(0, 0, 0) + b"x",
    ],
)
def test_heads_are_checked(plaintext: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_record(memoryview(plaintext))


@pytest.mark.parametrize(
    ("count", "body"),
    [
        (1, b""),
        (1, bytes(FRAME_PREFIX_BYTES - 1)),
        (1, struct.pack(">II", 1, 0)),
        (1, struct.pack(">II", 0, 1)),
        (1, struct.pack(">II", FRAME_HEADER_BYTES_MAX + 1, 0)),
        (1, struct.pack(">II", 0, FRAME_PAYLOAD_BYTES_MAX + 1)),
        (1, struct.pack(">II", 0xFFFFFFFF, 0xFFFFFFFF)),
        (1, struct.pack(">II", 1, 0) + b"xy"),
        (2, struct.pack(">II", 1, 0) + b"x"),
    ],
)
@pytest.mark.parametrize("skip", [0, 1])
def test_frames_are_checked_to_the_last_byte(count: int, body: bytes, skip: int) -> None:
    with pytest.raises(ProtocolError):
        parse_frames(parse_record(record_of(count, body)), skip)


def test_a_frame_over_the_limits_is_not_made() -> None:
    with pytest.raises(InternalError, match="over the limits"):
        make_frame([b"", bytes(FRAME_PAYLOAD_BYTES_MAX), b"x"])
    with pytest.raises(InternalError, match="over the limits"):
        make_frame([bytes(FRAME_HEADER_BYTES_MAX + 1)])


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_frames_or_refused(plaintext: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        record = parse_record(memoryview(plaintext))
        assert len(parse_frames(record)) == record.frame_count
