"""The bytes of an overlay: records and headers come back as they were, and nothing else is taken for one."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairsync.core.messages import Generation
from pairsync.core.units import BLOCK_BYTES
from pairsync.errors import InternalError, MetadataError
from pairsync.storage.overlayfile import (
    BLOCKS_PER_RECORD,
    EXTENTS_PER_RECORD,
    PAGE_BYTES,
    Chunk,
    OverlayHeader,
    OverlayState,
    chunks_of,
    decode_overlay_header,
    decode_overlay_record,
    encode_overlay_header,
    encode_overlay_record,
    overlay_info,
    overlay_seed,
    pack_chunks,
)

SEED = 77
BLOCKS = 1 << 30
HEADER = OverlayHeader(
    pair_id=b"p" * 16,
    volume_id=b"v" * 16,
    volume="vda",
    size_bytes=100 * BLOCK_BYTES + 1,
    number=3,
    created_s=1_900_000_000,
    lineage=(Generation(4, 2, 9), Generation(3, 1, 8)),
    target=Generation(5, 1, (1 << 64) - 1),
    state=OverlayState.UNDO,
    whole=True,
    record_count=7,
    block_count=20,
    data_block_count=11,
)


def _content(blocks: str) -> memoryview:
    """A letter for each block; a dot is a block of zeroes."""
    return memoryview(b"".join((b"\0" if each == "." else each.encode()) * BLOCK_BYTES for each in blocks))


def _bytes_of(chunk: Chunk) -> bytes:
    return bytes((chunk.stop - chunk.start) * BLOCK_BYTES) if chunk.data is None else bytes(chunk.data)


# -- content -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("blocks", "runs"),
    [
        ("ab", [(5, 7, True)]),
        ("....", [(5, 9, False)]),
        (".a", [(5, 6, False), (6, 7, True)]),
        ("a..bc.", [(5, 6, True), (6, 8, False), (8, 10, True), (10, 11, False)]),
    ],
)
def test_blocks_of_zeroes_carry_no_content(blocks: str, runs: list[tuple[int, int, bool]]) -> None:
    chunks = chunks_of(5, _content(blocks))
    assert [(start, stop, data is not None) for start, stop, data, _ in chunks] == runs
    assert b"".join(map(_bytes_of, chunks)) == _content(blocks)
    assert all(
        len(chunk.digests) == (0 if chunk.data is None else chunk.stop - chunk.start) for chunk in chunks
    )


def test_a_block_with_one_bit_is_content() -> None:
    content = bytearray(2 * BLOCK_BYTES)
    content[-1] = 1
    assert [(start, stop, data is None) for start, stop, data, _ in chunks_of(0, memoryview(content))] == [
        (0, 1, True),
        (1, 2, False),
    ]


@given(st.lists(st.tuples(st.integers(1, 300), st.booleans(), st.integers(1, 3)), max_size=12), st.booleans())
def test_records_hold_all_chunks_in_order(sizes: list[tuple[int, bool, int]], many: bool) -> None:
    chunks: list[Chunk] = []
    at = 0
    for size, has_data, gap in sizes * (60 if many else 1):
        at += gap
        length = 1 if many else size
        data = memoryview(bytes([at % 251 + 1]) * (length * BLOCK_BYTES)) if has_data else None
        chunks += [Chunk(at, at + length)] if data is None else chunks_of(at, data)
        at += length
    records = list(pack_chunks(chunks))
    for record in records:
        assert 0 < len(record) <= EXTENTS_PER_RECORD
        assert sum(len(chunk.digests) for chunk in record) <= BLOCKS_PER_RECORD
    blocks = [
        (chunk.start + i, chunk.data is None) for chunk in chunks for i in range(chunk.stop - chunk.start)
    ]
    packed = [chunk for record in records for chunk in record]
    assert [
        (chunk.start + i, chunk.data is None) for chunk in packed for i in range(chunk.stop - chunk.start)
    ] == blocks
    assert b"".join(bytes(chunk.data) for chunk in packed if chunk.data is not None) == b"".join(
        bytes(chunk.data) for chunk in chunks if chunk.data is not None
    )


def test_a_terabyte_of_zeroes_is_one_record() -> None:
    records = list(pack_chunks([Chunk(0, 1 << 28)]))
    assert len(records) == 1
    page, contents = encode_overlay_record(0, 0, 8192, records[0], SEED)
    assert not contents
    record = decode_overlay_record(page, 8192, SEED, BLOCKS)
    assert record is not None
    assert record.extents[0][0] == 0
    assert record.extents[-1][1] == 1 << 28
    assert all(mine[1] == other[0] for mine, other in zip(record.extents, record.extents[1:], strict=False))


# -- records -------------------------------------------------------------------------------------------------


def _record() -> tuple[bytes, bytes]:
    chunks = [*chunks_of(10, _content("ab.c")), Chunk(100, 5000)]
    page, contents = encode_overlay_record(4, 3, 8192, chunks, SEED)
    return page, b"".join(contents)


def test_a_record_comes_back() -> None:
    page, content = _record()
    assert len(page) == PAGE_BYTES
    record = decode_overlay_record(page, 8192, SEED, BLOCKS)
    assert record is not None
    assert record[:3] == (4, 3, 8192)
    assert record.extents == [(10, 12, True), (12, 13, False), (13, 14, True), (100, 5000, False)]
    assert record.stop == 8192 + PAGE_BYTES + len(content)
    chunks, lost = record.chunks(memoryview(content))
    assert not lost
    assert b"".join(map(_bytes_of, chunks[:3])) == _content("ab.c")


def test_no_flipped_bit_of_a_page_goes_unseen() -> None:
    page, _ = _record()
    rng = random.Random(1)
    for at in [*range(64 + 12 * 8), *(rng.randrange(PAGE_BYTES) for _ in range(200))]:
        spoilt = bytearray(page)
        spoilt[at] ^= 1 << rng.randrange(8)
        assert decode_overlay_record(bytes(spoilt), 8192, SEED, BLOCKS) is None, at


def test_a_record_of_another_place_or_file_or_volume_is_none() -> None:
    page, _ = _record()
    assert decode_overlay_record(page, 8192 + PAGE_BYTES, SEED, BLOCKS) is None
    assert decode_overlay_record(page, 8192, SEED + 1, BLOCKS) is None
    assert decode_overlay_record(page, 8192, SEED, 4999) is None
    assert decode_overlay_record(page[:-1], 8192, SEED, BLOCKS) is None
    assert decode_overlay_record(bytes(PAGE_BYTES), 8192, SEED, BLOCKS) is None


def test_damaged_content_loses_its_blocks_and_no_other() -> None:
    page, content = _record()
    record = decode_overlay_record(page, 8192, SEED, BLOCKS)
    assert record is not None
    for damaged, expected in [({1}, {11}), ({0, 2}, {10, 13}), ({0, 1, 2}, {10, 11, 13})]:
        spoilt = bytearray(content)
        for block in damaged:
            spoilt[block * BLOCK_BYTES + 77] ^= 4
        chunks, lost = record.chunks(memoryview(spoilt))
        assert {block for start, stop in lost for block in range(start, stop)} == expected
        found = {block for chunk in chunks for block in range(chunk.start, chunk.stop)}
        assert found == {*range(10, 14), *range(100, 5000)} - expected
        whole = {10: b"a", 11: b"b", 13: b"c"}
        for chunk in chunks:
            for block in range(chunk.start, chunk.stop) if chunk.data is not None else ():
                assert _bytes_of(chunk.part(block, block + 1)) == whole[block] * BLOCK_BYTES


def test_records_that_could_not_be_read_back_are_not_made() -> None:
    (chunk,) = chunks_of(0, _content("a"))
    for chunks in (
        [chunk] * (BLOCKS_PER_RECORD + 1),
        [Chunk(i, i + 1) for i in range(EXTENTS_PER_RECORD + 1)],
        [Chunk(0, 1, chunk.data, ())],
    ):
        with pytest.raises(InternalError, match="an overlay record of"):
            encode_overlay_record(0, 0, 8192, chunks, SEED)


# -- headers -------------------------------------------------------------------------------------------------


def test_a_header_comes_back() -> None:
    assert decode_overlay_header(encode_overlay_header(HEADER)) == HEADER
    longest = dataclasses.replace(
        HEADER, volume="ä" * 127, lineage=tuple(Generation(*[(1 << 64) - 1 - i] * 3) for i in range(64))
    )
    payload = encode_overlay_header(longest)
    assert decode_overlay_header(payload) == longest
    assert len(payload) < PAGE_BYTES - 48


def test_what_people_are_told() -> None:
    info = overlay_info(HEADER, 12345)
    assert (info.id, info.volume, info.block_count, info.data_bytes) == ("3", "vda", 20, 11 * BLOCK_BYTES)
    assert (info.state, info.whole, info.file_bytes) == (OverlayState.UNDO, True, 12345)
    assert (info.lineage, info.target, info.created_s) == (HEADER.lineage, HEADER.target, HEADER.created_s)


def test_the_seed_tells_overlays_apart() -> None:
    others: list[dict[str, Any]] = [
        {"number": 4},
        {"created_s": 1},
        {"volume_id": b"w" * 16},
        {"pair_id": b"q" * 16},
    ]
    seeds = {overlay_seed(dataclasses.replace(HEADER, **change)) for change in others}
    assert len(seeds | {overlay_seed(HEADER)}) == 5
    assert overlay_seed(dataclasses.replace(HEADER, state=OverlayState.KEPT, block_count=21)) == overlay_seed(
        HEADER
    )


BAD_FIELDS: list[dict[str, Any]] = [
    {"pair_id": b"short"},
    {"volume": "x" * 256},
    {"size_bytes": 0},
    {"number": -1},
    {"created_s": 1 << 64},
    {"block_count": 102},
    {"data_block_count": 21},
    {"lineage": (Generation(1, 1, 1),) * 65},
    {"whole": 1},
    {"target": Generation(1, 1, -1)},
]


@pytest.mark.parametrize("change", BAD_FIELDS, ids=lambda change: next(iter(change)))
def test_headers_that_could_not_be_read_back_are_refused_both_ways(change: dict[str, Any]) -> None:
    with pytest.raises(InternalError, match="overlay header"):
        encode_overlay_header(dataclasses.replace(HEADER, **change))
    fields = msgpack.unpackb(encode_overlay_header(HEADER))
    value = next(iter(change.values()))
    fields[next(iter(change))] = list(value) if isinstance(value, Generation) else value
    if (value if isinstance(value, int) else 0) < 1 << 64:
        with pytest.raises(MetadataError, match="damaged: overlay header"):
            decode_overlay_header(msgpack.packb(fields))


def test_payloads_of_another_form_are_damage() -> None:
    payload = encode_overlay_header(HEADER)
    fields = msgpack.unpackb(payload)
    others = [
        b"",
        b"\xc1",
        payload + b"\0",
        payload[:-1],
        msgpack.packb([1]),
        msgpack.packb({**fields, "more": 1}),
        msgpack.packb({**fields, "state": 9}),
        msgpack.packb({**fields, "state": "0"}),
        msgpack.packb({**fields, "lineage": [[1, 2]]}),
        msgpack.packb({**fields, "lineage": 5}),
        msgpack.packb({**fields, "target": None}),
        msgpack.packb(dict(reversed(fields.items()))),
        msgpack.packb({**fields, "number": 3.0}),
    ]
    for other in others:
        with pytest.raises(MetadataError, match="damaged: overlay header"):
            decode_overlay_header(other)
