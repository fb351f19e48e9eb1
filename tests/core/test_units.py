"""Blocks, bytes and extents: rounding is outwards, ranges are half open."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pairsync.core.units import (
    BLOCK_BYTES,
    GIB,
    KIB,
    MIB,
    NS_PER_MS,
    NS_PER_S,
    NS_PER_US,
    TIB,
    Extent,
    block_count_of,
    extent_of,
)

OFFSETS = st.integers(0, 20 * BLOCK_BYTES)


@given(offset=OFFSETS, length=st.integers(1, 5 * BLOCK_BYTES))
def test_an_extent_holds_exactly_the_blocks_that_are_touched(offset: int, length: int) -> None:
    touched = {byte // BLOCK_BYTES for byte in (offset, offset + length - 1)}
    extent = extent_of(offset, length)
    assert (extent.start, extent.stop - 1) == (min(touched), max(touched))
    assert extent.block_count == max(touched) - min(touched) + 1


@given(offset=OFFSETS, length=st.integers(-BLOCK_BYTES, 0))
def test_an_empty_range_touches_no_block(offset: int, length: int) -> None:
    assert extent_of(offset, length).block_count == 0


@given(*[st.tuples(st.integers(0, 9), st.integers(0, 9)).map(sorted)] * 2)
def test_extents_intersect_if_they_share_a_block(left: list[int], right: list[int]) -> None:
    one, other = Extent(*left), Extent(*right)
    shared = bool(set(range(*one)) & set(range(*other)))
    if one.block_count and other.block_count:
        assert one.intersects(other) is shared
    assert one.intersects(other) is other.intersects(one)


def test_the_last_block_may_be_partial() -> None:
    assert [block_count_of(size) for size in (0, 1, BLOCK_BYTES, BLOCK_BYTES + 1)] == [0, 1, 1, 2]


def test_an_extent_is_described_tersely() -> None:
    assert Extent(3, 7).describe() == "3..7"


def test_units_are_what_they_are_called() -> None:
    assert (KIB, MIB, GIB, TIB) == (2**10, 2**20, 2**30, 2**40)
    assert (NS_PER_US, NS_PER_MS, NS_PER_S) == (10**3, 10**6, 10**9)
