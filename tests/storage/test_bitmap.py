"""The bitmap on disk against a set of blocks: torn pages, damaged sectors, holes."""

from __future__ import annotations

import contextlib
import errno
import random
from collections.abc import Callable

import pytest
from bitarray import bitarray
from hypothesis import given
from hypothesis import strategies as st

from pairsync.core.dirty import PAGE_BLOCKS, PAGE_BYTES, DirtyMap
from pairsync.errors import BackendError, InternalError
from pairsync.storage.bitmap import (
    STORED_PAGE_BYTES,
    Bitmap,
    bitmap_area_bytes,
    decode_page,
    encode_page,
    page_count_of,
)
from pairsync.testing.disks import Fault, PowerCut, SimAction, SimFile, SimMedium

SEED = 77
BLOCKS = 40 * PAGE_BLOCKS - 1000
AT = 4096
SECTOR_BLOCKS = 456 * 8


def _medium(block_count: int = BLOCKS) -> SimMedium:
    medium = SimMedium()
    medium.create("f", AT + bitmap_area_bytes(block_count))
    return medium


def _bitmap(medium: SimMedium, block_count: int = BLOCKS) -> Bitmap:
    medium.process_crash()
    return Bitmap(medium.open("f"), offset=AT, block_count=block_count, seed=SEED)


def _page(blocks: set[int]) -> bytes:
    bits = bitarray(PAGE_BLOCKS, endian="little")
    for block in blocks:
        bits[block] = 1
    return bits.tobytes()


def _marked(bitmap: Bitmap) -> set[int]:
    found: set[int] = set()
    for page in bitmap.read():
        bits = bitarray(endian="little")
        bits.frombytes(page.content)
        found |= {page.number * PAGE_BLOCKS + i for i in bits.search(bitarray("1"))}
    return found


PAGES = st.integers(0, page_count_of(BLOCKS) - 1)
SOME_BLOCKS = st.sets(st.integers(0, PAGE_BLOCKS - 1001), max_size=20)


@given(st.integers(0, 1 << 30), st.binary(min_size=1, max_size=64), st.integers(0, (1 << 64) - 1))
def test_what_is_encoded_is_decoded(number: int, pattern: bytes, seed: int) -> None:
    content = (pattern * PAGE_BYTES)[:PAGE_BYTES]
    stored = encode_page(number, content, seed)
    assert len(stored) == STORED_PAGE_BYTES
    assert decode_page(number, stored, seed) == (content, 0)
    assert decode_page(number, memoryview(stored), seed) == (content, 0)


def test_what_was_never_written_is_clean() -> None:
    assert decode_page(5, bytes(STORED_PAGE_BYTES), SEED) == (bytes(PAGE_BYTES), 0)
    assert list(_bitmap(_medium()).read()) == []


@given(st.lists(st.dictionaries(PAGES, SOME_BLOCKS, max_size=6), max_size=5))
def test_the_bitmap_holds_what_was_written_last(batches: list[dict[int, set[int]]]) -> None:
    medium = _medium()
    bitmap = _bitmap(medium)
    oracle: dict[int, set[int]] = {}
    for batch in batches:
        bitmap.write({number: _page(blocks) for number, blocks in batch.items()})
        oracle |= batch
    medium.power_cut(lambda _: 0)  # durable on return
    assert _marked(_bitmap(medium)) == {n * PAGE_BLOCKS + b for n, blocks in oracle.items() for b in blocks}


def test_it_loads_into_a_dirty_map_and_back() -> None:
    medium = _medium()
    dirty = DirtyMap(BLOCKS)
    dirty.mark(5, 70_000)
    dirty.mark(BLOCKS - 3, BLOCKS)
    _bitmap(medium).write({number: dirty.page_bytes(number) for number in dirty.page_numbers()})
    loaded = DirtyMap(BLOCKS)
    for page in _bitmap(medium).read():
        assert page.damaged_sectors == 0
        loaded.load_page(page.number, page.content)
    assert loaded == dirty


@pytest.mark.parametrize("blocks", [1, 7, 8, PAGE_BLOCKS - 1, PAGE_BLOCKS, PAGE_BLOCKS + 1])
def test_any_number_of_blocks(blocks: int) -> None:
    medium = _medium(blocks)
    full = DirtyMap(blocks)
    full.mark(0, blocks)
    bitmap = _bitmap(medium, blocks)
    bitmap.write({number: full.page_bytes(number) for number in full.page_numbers()})
    assert _marked(bitmap) == set(range(blocks))
    for at in range(AT, len(medium.content("f"))):
        if at % 512 == 100:
            medium.damage("f", at, 0xFF)
    assert _marked(bitmap) == set(range(blocks))  # damage sets no bit behind the last block
    for page in bitmap.read():
        full.load_page(page.number, page.content)


def test_pages_and_their_numbers_are_checked() -> None:
    bitmap = _bitmap(_medium())
    for pages in ({-1: bytes(PAGE_BYTES)}, {40: bytes(PAGE_BYTES)}, {0: bytes(10)}):
        with pytest.raises(InternalError):
            bitmap.write(pages)


def test_neighbouring_pages_are_one_write_and_one_flush() -> None:
    medium = _medium()
    bitmap = _bitmap(medium)
    bitmap.write({})
    assert medium.step == 0
    bitmap.write({number: bytes(PAGE_BYTES) for number in (7, 3, 4, 5, 9)})
    assert medium.step == 3 + 2


def test_no_space_is_reported_and_passes() -> None:
    medium = _medium()
    bitmap = _bitmap(medium)
    medium.fault = lambda op: Fault(errno.ENOSPC) if op.action is SimAction.WRITE else None
    with pytest.raises(BackendError) as caught:
        bitmap.write({3: _page({1})})
    assert caught.value.errno == errno.ENOSPC
    medium.fault = None
    bitmap.write({3: _page({1})})
    assert _marked(bitmap) == {3 * PAGE_BLOCKS + 1}


@given(number=PAGES, at=st.integers(0, STORED_PAGE_BYTES - 1), xor=st.integers(1, 255))
def test_a_damaged_sector_counts_as_dirty(number: int, at: int, xor: int) -> None:
    medium = _medium()
    blocks = {10, SECTOR_BLOCKS + 10, 20_000}
    bitmap = _bitmap(medium)
    bitmap.write({number: _page(blocks)})
    medium.damage("f", AT + number * STORED_PAGE_BYTES + at, xor)
    (page,) = bitmap.read()
    assert page.damaged_sectors == 1
    base, sector = number * PAGE_BLOCKS, at // 512
    dirty = set(range(sector * SECTOR_BLOCKS, min((sector + 1) * SECTOR_BLOCKS, PAGE_BLOCKS)))
    assert _marked(bitmap) == {base + b for b in blocks | dirty if base + b < BLOCKS}


def test_a_page_that_went_astray_counts_as_dirty() -> None:
    medium = _medium()
    bitmap = _bitmap(medium)
    bitmap.write({2: _page({1}), 3: _page(set())})
    medium.process_crash()
    handle = medium.open("f")
    handle.write(
        AT + 2 * STORED_PAGE_BYTES,
        (handle.read(AT + 3 * STORED_PAGE_BYTES, STORED_PAGE_BYTES),),
        durable=True,
    )
    (page,) = _bitmap(medium).read()
    assert (page.number, page.damaged_sectors) == (2, 9)


def test_a_power_cut_at_every_step(every_outcome: Callable[..., int]) -> None:
    """Every sector shows the old or the new page, and nothing counts as damaged."""
    old = {0: {1, SECTOR_BLOCKS, 8 * SECTOR_BLOCKS}, 1: {5}, 3: {7}}
    new = {0: {2, SECTOR_BLOCKS}, 1: set[int](), 2: {9}}

    def attempt(step: int | None) -> tuple[SimMedium, bool]:
        medium = _medium()
        bitmap = _bitmap(medium)
        bitmap.write({number: _page(blocks) for number, blocks in old.items()})
        medium.step, medium.cut_at_step = 0, step
        with contextlib.suppress(PowerCut):
            bitmap.write({number: _page(blocks) for number, blocks in new.items()})
            return medium, True
        return medium, False

    def judge(medium: SimMedium, written: bool) -> None:
        pages = list(_bitmap(medium).read())
        assert not any(page.damaged_sectors for page in pages)
        found = {page.number: page.content for page in pages}
        for number in range(4):
            content = found.get(number, bytes(PAGE_BYTES))
            was = _page(old.get(number, set()))
            will = _page(new[number]) if number in new else was
            for at in range(0, PAGE_BYTES, 456):
                allowed = {will[at : at + 456]} if written else {was[at : at + 456], will[at : at + 456]}
                assert content[at : at + 456] in allowed

    assert every_outcome(attempt, judge) > 200


def test_a_sector_torn_within_itself_counts_as_dirty() -> None:
    """The assumption about disks may fail: it costs resync, not data."""
    old, new = encode_page(0, _page({1, 2}), SEED), encode_page(0, _page({3, 4000}), SEED)
    rng = random.Random(1)
    for _ in range(200):
        cut = rng.randrange(len(old))
        content, damaged = decode_page(0, new[:cut] + old[cut:], SEED)
        bits = bitarray(endian="little")
        bits.frombytes(content)
        for sector in range(9):
            span = slice(sector * 512, (sector + 1) * 512)
            torn = (new[:cut] + old[cut:])[span]
            if torn not in (old[span], new[span]):
                assert damaged == 1
                assert bits[sector * SECTOR_BLOCKS : (sector + 1) * SECTOR_BLOCKS].all()


def test_holes_are_not_read() -> None:
    medium = _medium()
    bitmap = _bitmap(medium)
    bitmap.write({0: _page({1}), 25: _page({2}), 39: _page({3})})
    read_bytes = 0

    def note(operation: object) -> None:
        nonlocal read_bytes
        read_bytes += getattr(operation, "length", 0)

    medium.fault = note
    assert _marked(bitmap) == {1, 25 * PAGE_BLOCKS + 2, 39 * PAGE_BLOCKS + 3}
    assert read_bytes <= 3 * 3 * STORED_PAGE_BYTES


def test_a_page_with_a_hole_in_it_comes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems with small blocks may keep parts of a stored page as holes (what a torn write left)."""
    medium = _medium()
    bitmap = _bitmap(medium)
    bitmap.write({5: _page({1, 30_000})})
    at = AT + 5 * STORED_PAGE_BYTES
    for place in range(at + 1024, at + 2048):
        medium.damage("f", place, medium.content("f")[place])  # two sectors of zeroes
    sector_runs = [(at - AT, True), (1024, False), (1024, True), (STORED_PAGE_BYTES, False)]

    def allocation(_: SimFile, offset: int, length: int) -> list[tuple[int, bool]]:
        runs = sector_runs if offset == AT else []
        return [*runs, (length - sum(run for run, _ in runs), True)]

    monkeypatch.setattr(SimFile, "allocation", allocation)
    assert [page.number for page in bitmap.read()] == [5]
    assert _marked(bitmap) == {5 * PAGE_BLOCKS + 1, 5 * PAGE_BLOCKS + 30_000}
