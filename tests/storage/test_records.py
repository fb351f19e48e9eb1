"""One page of the journal: what is written is read, anything else is nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairsync.core.units import Extent
from pairsync.errors import InternalError
from pairsync.storage.records import (
    BLOCK_COUNT_MAX,
    EXTENTS_PER_RECORD,
    RECORD_BYTES,
    Record,
    decode_record,
    encode_record,
    pack_extents,
)

SEED = 0x1234_5678_9ABC_DEF0

U32 = st.integers(0, (1 << 32) - 1)


@st.composite
def some_extents(draw: st.DrawFn) -> list[Extent]:
    starts = draw(st.lists(st.integers(0, BLOCK_COUNT_MAX - 1), max_size=40))
    return [Extent(s, draw(st.integers(s + 1, min(s + (1 << 24) - 1, BLOCK_COUNT_MAX)))) for s in starts]


@given(U32, st.integers(0, (1 << 64) - 1), U32, U32, some_extents())
def test_what_is_encoded_is_decoded(
    segment: int, generation: int, number: int, settled: int, extents: list[Extent]
) -> None:
    record = Record(segment, generation, number, settled, tuple(pack_extents(extents, BLOCK_COUNT_MAX)))
    page = encode_record(record, SEED)
    assert len(page) == RECORD_BYTES
    found = decode_record(page, SEED)
    assert found == record
    assert found.extents() == extents
    assert decode_record(memoryview(page), SEED) == record
    assert decode_record(page, SEED + 1) is None


def test_every_single_bit_is_vouched_for() -> None:
    page = encode_record(Record(1, 2, 3, 4, pack_extents([(5, 6), (7, 9)], 10)), SEED)
    for bit in range(8 * (48 + 16)):
        flipped = bytearray(page)
        flipped[bit // 8] ^= 1 << bit % 8
        assert decode_record(bytes(flipped), SEED) is None


@given(st.binary(max_size=RECORD_BYTES))
def test_arbitrary_bytes_are_no_record(page: bytes) -> None:
    assert decode_record(page, SEED) is None


@given(st.integers(0, RECORD_BYTES - 1))
def test_a_page_cut_short_is_no_record(length: int) -> None:
    page = encode_record(
        Record(0, 1, 0, 0, pack_extents([(i, i + 1) for i in range(EXTENTS_PER_RECORD)], 1000)), SEED
    )
    assert decode_record(page, SEED) is not None
    assert decode_record(page[:length], SEED) is None


def test_long_extents_are_split() -> None:
    longest = (1 << 24) - 1
    words = pack_extents([(3, 3 + 2 * longest + 5), (1, 2)], BLOCK_COUNT_MAX)
    assert Record(0, 1, 0, 0, words).extents() == [
        Extent(3, 3 + longest),
        Extent(3 + longest, 3 + 2 * longest),
        Extent(3 + 2 * longest, 3 + 2 * longest + 5),
        Extent(1, 2),
    ]


@pytest.mark.parametrize("extent", [(5, 5), (6, 5), (-1, 2), (9, 11), (10, 11)])
def test_an_extent_outside_the_volume_is_our_own_bug(extent: tuple[int, int]) -> None:
    with pytest.raises(InternalError):
        pack_extents([(0, 10), extent], 10)


def test_too_many_extents_for_a_page() -> None:
    with pytest.raises(InternalError):
        encode_record(Record(0, 1, 0, 0, [1] * (EXTENTS_PER_RECORD + 1)), SEED)
