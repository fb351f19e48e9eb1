"""Dirty maps and intent sets against a Python set, page borders included, and what they cost in memory."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Iterable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pairsync.core.dirty import (
    INTENT_WIDE_BLOCKS,
    PAGE_BLOCKS,
    PAGE_BYTES,
    DirtyMap,
    IntentSet,
)
from pairsync.core.units import BLOCK_BYTES, MIB, TIB, Extent
from pairsync.errors import InternalError

HUGE_BLOCKS = TIB // BLOCK_BYTES
SIZES = [1, 2, 7, 64, PAGE_BLOCKS - 1, PAGE_BLOCKS, PAGE_BLOCKS + 1, 3 * PAGE_BLOCKS - 5, HUGE_BLOCKS]
STEPS = 25  # of a machine: the oracle of a long run is slow
LONGEST_RUN = PAGE_BLOCKS + 3  # what the oracle can hold as single integers


def runs_of(blocks: Iterable[int]) -> list[Extent]:
    """The oracle's runs: ascending, as long as possible."""
    found: list[Extent] = []
    for block in sorted(blocks):
        if found and found[-1].stop == block:
            found[-1] = Extent(found[-1].start, block + 1)
        else:
            found.append(Extent(block, block + 1))
    return found


def loaded(block_count: int, pages: Mapping[int, bytes]) -> DirtyMap:
    """A map from saved pages."""
    result = DirtyMap(block_count)
    for number, content in pages.items():
        result.load_page(number, content)
    return result


@st.composite
def ranges(draw: st.DrawFn, block_count: int) -> tuple[int, int]:
    """Half-open ranges, often at a page border or at the end of the volume."""
    borders = [b for k in range(4) for b in (k * PAGE_BLOCKS - 1, k * PAGE_BLOCKS, k * PAGE_BLOCKS + 1)]
    borders += [block_count - 1, block_count]
    points = st.one_of(
        st.sampled_from([b for b in borders if 0 <= b <= block_count]), st.integers(0, block_count)
    )
    start = draw(points)
    length = draw(st.sampled_from([1, 1, 1, 2, 3, 8, 9, 64, 70, 0, 1, 2, 3, 8, 9, LONGEST_RUN]))
    return start, min(start + length, block_count)


class DirtyMapMachine(RuleBasedStateMachine):
    """Two maps and two sets; whatever is done to a map is done to its set."""

    def __init__(self) -> None:
        super().__init__()
        self.block_count = 0
        self.maps: list[DirtyMap] = []
        self.sets: list[set[int]] = []

    @initialize(block_count=st.sampled_from(SIZES))
    def begin(self, block_count: int) -> None:
        self.block_count = block_count
        self.maps = [DirtyMap(block_count), DirtyMap(block_count)]
        self.sets = [set(), set()]

    @rule(data=st.data(), which=st.integers(0, 1))
    def mark(self, data: st.DataObject, which: int) -> None:
        start, stop = data.draw(ranges(self.block_count))
        before = len(self.sets[which])
        self.sets[which].update(range(start, stop))
        assert self.maps[which].mark(start, stop) == len(self.sets[which]) - before

    @rule(data=st.data(), which=st.integers(0, 1))
    def clear(self, data: st.DataObject, which: int) -> None:
        start, stop = data.draw(ranges(self.block_count))
        before = len(self.sets[which])
        self.sets[which].difference_update(range(start, stop))
        assert self.maps[which].clear(start, stop) == before - len(self.sets[which])

    @rule(which=st.integers(0, 1))
    def clear_all(self, which: int) -> None:
        assert self.maps[which].clear(0, self.block_count) == len(self.sets[which])
        self.sets[which] = set()

    @rule(which=st.integers(0, 1))
    def merge_other(self, which: int) -> None:
        self.maps[which].merge(self.maps[1 - which])
        self.sets[which] |= self.sets[1 - which]

    @rule(which=st.integers(0, 1))
    def list_all(self, which: int) -> None:
        assert list(self.maps[which].runs()) == runs_of(self.sets[which])

    @rule(which=st.integers(0, 1))
    def merge_itself(self, which: int) -> None:
        self.maps[which].merge(self.maps[which])

    @rule(which=st.integers(0, 1))
    def take(self, which: int) -> None:
        taken = self.maps[which].take()
        assert list(taken.runs()) == runs_of(self.sets[which])
        assert taken.count == len(self.sets[which])
        self.sets[which] = set()

    @rule(which=st.integers(0, 1))
    def copy_is_independent(self, which: int) -> None:
        twin = self.maps[which].copy()
        assert twin == self.maps[which]
        twin.mark(0, self.block_count if self.block_count < LONGEST_RUN else 1)
        twin.clear(0, self.block_count)
        assert twin.count == 0

    @rule(which=st.integers(0, 1))
    def save_and_load(self, which: int) -> None:
        saved = {number: self.maps[which].page_bytes(number) for number in self.maps[which].page_numbers()}
        assert all(len(content) == PAGE_BYTES for content in saved.values())
        assert loaded(self.block_count, saved) == self.maps[which]

    @rule(data=st.data(), which=st.integers(0, 1))
    def load_one_page_into_the_other(self, data: st.DataObject, which: int) -> None:
        number = data.draw(st.integers(0, min((self.block_count - 1) // PAGE_BLOCKS, 3)))
        self.maps[1 - which].load_page(number, self.maps[which].page_bytes(number))
        first = number * PAGE_BLOCKS
        self.sets[1 - which] |= {b for b in self.sets[which] if first <= b < first + PAGE_BLOCKS}

    @rule(data=st.data(), which=st.integers(0, 1))
    def ask(self, data: st.DataObject, which: int) -> None:
        start, stop = data.draw(ranges(self.block_count))
        inside = runs_of(b for b in self.sets[which] if start <= b < stop)
        assert list(self.maps[which].runs(start, stop)) == inside
        assert self.maps[which].next_run(start, stop) == (inside[0] if inside else None)
        assert self.maps[which].intersects(start, stop) == bool(inside)
        first = min((b for b in self.sets[which] if b >= start), default=None)
        following = self.maps[which].next_run(start)
        assert (following.start if following else None) == first
        for block in {start, max(stop - 1, 0)}:
            assert (block in self.maps[which]) == (block in self.sets[which])

    @invariant()
    @precondition(lambda self: bool(self.maps))
    def same(self) -> None:
        for each, oracle in zip(self.maps, self.sets, strict=True):
            assert each.count == len(oracle)
            assert bool(each) == bool(oracle)
        assert (self.maps[0] == self.maps[1]) == (self.sets[0] == self.sets[1])

    def teardown(self) -> None:
        for each, oracle in zip(self.maps, self.sets, strict=True):
            assert list(each.runs()) == runs_of(oracle)
            assert set(each.page_numbers()) == {block // PAGE_BLOCKS for block in oracle}


TestDirtyMapMachine = DirtyMapMachine.TestCase
TestDirtyMapMachine.settings = settings(stateful_step_count=STEPS)


class IntentSetMachine(RuleBasedStateMachine):
    """One intent set beside a set: narrow and wide ranges overlap in every way."""

    def __init__(self) -> None:
        super().__init__()
        self.block_count = 0
        self.intents = IntentSet(0)
        self.oracle: set[int] = set()

    @initialize(block_count=st.sampled_from(SIZES))
    def begin(self, block_count: int) -> None:
        self.block_count = block_count
        self.intents = IntentSet(block_count)

    def _mark(self, start: int, length: int) -> None:
        stop = min(start + length, self.block_count)
        fresh = set(range(start, stop)) - self.oracle
        assert self.intents.mark(start, stop) == len(fresh)
        self.oracle |= fresh

    @rule(data=st.data())
    def mark(self, data: st.DataObject) -> None:
        start, stop = data.draw(ranges(self.block_count))
        self._mark(start, stop - start)

    @rule(data=st.data(), over=st.integers(0, 2))
    def mark_around_the_limit(self, data: st.DataObject, over: int) -> None:
        start = data.draw(st.integers(0, min(self.block_count, 3 * INTENT_WIDE_BLOCKS)))
        self._mark(start, INTENT_WIDE_BLOCKS - 1 + over)

    @rule(data=st.data(), length=st.integers(1, 5))
    def mark_a_little_near_the_beginning(self, data: st.DataObject, length: int) -> None:
        self._mark(data.draw(st.integers(0, min(self.block_count - 1, 4 * INTENT_WIDE_BLOCKS))), length)

    @rule()
    def merge_into_a_map(self) -> None:
        target = DirtyMap(self.block_count)
        target.mark(0, 1)
        self.intents.merge_into(target)
        assert list(target.runs()) == runs_of(self.oracle | {0})

    @invariant()
    def same(self) -> None:
        assert bool(self.intents) == bool(self.oracle)
        for block in (0, INTENT_WIDE_BLOCKS, self.block_count - 1):
            assert (block in self.intents) == (block in self.oracle)

    def teardown(self) -> None:
        listed = list(self.intents.runs())
        assert {block for run in listed for block in range(*run)} == self.oracle
        assert sum(run.block_count for run in listed) == len(self.oracle)
        assert self.intents.page_numbers() == {block // PAGE_BLOCKS for block in self.oracle}


TestIntentSetMachine = IntentSetMachine.TestCase
TestIntentSetMachine.settings = settings(stateful_step_count=STEPS, max_examples=50)


# -- growing -------------------------------------------------------------------------------------------------


@given(before=st.sampled_from(SIZES), added=st.sampled_from(SIZES), data=st.data())
def test_a_volume_that_grows_keeps_its_marks(before: int, added: int, data: st.DataObject) -> None:
    both: list[DirtyMap | IntentSet] = [DirtyMap(before), IntentSet(before)]
    runs = data.draw(st.lists(ranges(before), max_size=4))
    more = data.draw(st.lists(ranges(before + added), max_size=4))
    wanted = {block for run in runs + more for block in range(*run)}
    for each in both:
        for run in runs:
            each.mark(*run)
        each.grow(before + added)
        for run in more:
            each.mark(*run)
        assert {block for run in each.runs() for block in range(*run)} == wanted
        assert each.block_count == before + added


def test_a_volume_does_not_shrink() -> None:
    with pytest.raises(InternalError):
        DirtyMap(10).grow(9)


# -- what cannot be ------------------------------------------------------------------------------------------


@given(block_count=st.sampled_from(SIZES), data=st.data())
def test_ranges_outside_the_volume_are_our_own_bug(block_count: int, data: st.DataObject) -> None:
    start, stop = data.draw(
        st.sampled_from([(-1, 0), (0, block_count + 1), (1, 0), (block_count + 1, block_count + 1)])
    )
    for change in (DirtyMap(block_count).mark, DirtyMap(block_count).clear, IntentSet(block_count).mark):
        with pytest.raises(InternalError, match=r"blocks .* of a volume of"):
            change(start, stop)


def test_a_volume_has_no_negative_size() -> None:
    with pytest.raises(InternalError):
        DirtyMap(-1)


def test_an_empty_volume_has_an_empty_map() -> None:
    empty = DirtyMap(0)
    assert empty.mark(0, 0) == 0
    assert empty.next_run(0) is None
    assert list(empty.runs()) == []


def test_a_larger_volume_is_not_merged() -> None:
    with pytest.raises(InternalError, match="larger volume"):
        DirtyMap(8).merge(DirtyMap(9))


def test_maps_are_compared_with_maps_only_and_not_hashed() -> None:
    assert DirtyMap(8) != DirtyMap(9)
    assert DirtyMap(8) != {1}
    with pytest.raises(TypeError):
        hash(DirtyMap(8))


@pytest.mark.parametrize(
    ("block_count", "number", "bit"),
    [
        (5, 0, 5),
        (PAGE_BLOCKS + 5, 1, 5),
        (PAGE_BLOCKS, 1, 0),
        (5, 3, 0),
        (PAGE_BLOCKS - 1, 0, PAGE_BLOCKS - 1),
    ],
)
def test_a_page_that_marks_beyond_the_volume_is_refused(block_count: int, number: int, bit: int) -> None:
    content = bytearray(PAGE_BYTES)
    content[bit // 8] = 1 << (bit % 8)
    with pytest.raises(InternalError, match="beyond the volume"):
        DirtyMap(block_count).load_page(number, bytes(content))


def test_a_page_has_one_size() -> None:
    with pytest.raises(InternalError, match="bitmap page of 4095 bytes"):
        DirtyMap(8).load_page(0, bytes(PAGE_BYTES - 1))


def test_bits_are_in_the_order_of_the_kernels_dirty_log() -> None:
    marked = DirtyMap(64)
    marked.mark(10, 11)
    marked.mark(63, 64)
    page = marked.page_bytes(0)
    assert page[:8] == bytes([0, 0b100, 0, 0, 0, 0, 0, 0x80])
    assert not any(page[8:])


def test_description_is_terse_and_bounded() -> None:
    marked = DirtyMap(100)
    assert marked.describe() == "0[]"
    for block in range(0, 100, 10):
        marked.mark(block, block + 2)
    assert marked.describe() == "20[0..2 10..12 20..22 30..32 40..42 50..52 60..62 70..72]"


# -- memory --------------------------------------------------------------------------------------------------


def _python_bytes_of(marked: DirtyMap) -> int:
    """What the allocator of Python knows of; the bits themselves are among it or in `_bits_bytes_of`."""
    return sys.getsizeof(marked._pages) + sum(sys.getsizeof(page) for page in marked._pages.values())


def test_a_map_of_a_tebibyte_takes_32_mib_at_most_and_a_clean_or_full_one_next_to_nothing() -> None:
    tracemalloc.start()
    try:
        marked = DirtyMap(HUGE_BLOCKS)
        assert tracemalloc.get_traced_memory()[0] < 4096
        assert marked.mark(0, HUGE_BLOCKS) == HUGE_BLOCKS
        other = DirtyMap(HUGE_BLOCKS)
        other.merge(marked)
        saved = {number: other.page_bytes(number) for number in other.page_numbers()}
        assert loaded(HUGE_BLOCKS, saved) == marked
        assert tracemalloc.get_traced_memory()[0] < 2 * MIB
        del other, saved
        for block in range(0, HUGE_BLOCKS, PAGE_BLOCKS):
            marked.clear(block + 1, block + 2)
        # sys.getsizeof counts a bitarray's buffer, wherever it was allocated
        assert 32 * MIB <= _python_bytes_of(marked) < 35 * MIB
        assert tracemalloc.get_traced_memory()[0] < 35 * MIB
        assert marked.clear(0, HUGE_BLOCKS) == HUGE_BLOCKS - HUGE_BLOCKS // PAGE_BLOCKS
        assert list(marked.page_numbers()) == []
        assert tracemalloc.get_traced_memory()[0] < MIB
    finally:
        tracemalloc.stop()


def test_what_full_pages_share_is_never_changed() -> None:
    maps = [DirtyMap(4 * PAGE_BLOCKS) for _ in range(3)]
    for each in maps[:2]:
        each.mark(0, 4 * PAGE_BLOCKS)
    maps[2].mark(5, 6)
    maps[2].merge(maps[0])
    assert maps[0].clear(7, 8) == 1
    assert maps[1].clear(PAGE_BLOCKS, 2 * PAGE_BLOCKS) == PAGE_BLOCKS
    maps[1].mark(PAGE_BLOCKS + 1, PAGE_BLOCKS + 2)
    maps[1].merge(maps[0])
    assert [each.count for each in maps] == [4 * PAGE_BLOCKS - 1, 4 * PAGE_BLOCKS, 4 * PAGE_BLOCKS]
    fresh = DirtyMap(PAGE_BLOCKS)
    assert fresh.mark(0, PAGE_BLOCKS) == fresh.count == PAGE_BLOCKS
    assert fresh.mark(3, 9) == 0


def test_scattered_intents_cost_a_set_entry_each_not_a_page() -> None:
    tracemalloc.start()
    try:
        intents = IntentSet(HUGE_BLOCKS)
        for block in range(0, HUGE_BLOCKS, HUGE_BLOCKS // 4096):
            intents.mark(block, block + 1)
        assert tracemalloc.get_traced_memory()[0] < 4096 * 150
        intents.mark(0, HUGE_BLOCKS)  # a discard of the whole volume
        assert tracemalloc.get_traced_memory()[0] < 4096 * 150 + MIB
    finally:
        tracemalloc.stop()


def test_a_sparse_map_of_a_tebibyte_is_walked_by_its_pages() -> None:
    marked = DirtyMap(HUGE_BLOCKS)
    wanted = [
        Extent(0, 3),
        Extent(HUGE_BLOCKS // 2, HUGE_BLOCKS // 2 + 1),
        Extent(HUGE_BLOCKS - 1, HUGE_BLOCKS),
    ]
    for run in reversed(wanted):
        marked.mark(*run)
    assert list(marked.runs()) == wanted
    assert marked.next_run(4) == wanted[1]
    assert not marked.intersects(4, HUGE_BLOCKS // 2)


def test_runs_beside_another_map_leave_out_what_it_marks() -> None:
    marked, other = DirtyMap(3 * PAGE_BLOCKS), DirtyMap(3 * PAGE_BLOCKS)
    marked.mark(5, 2 * PAGE_BLOCKS + 9)
    other.mark(0, 7)
    other.mark(9, 10)
    other.mark(PAGE_BLOCKS, 2 * PAGE_BLOCKS)
    found, start = [], 0
    while (run := marked.next_run_beside(other, start, marked.block_count, PAGE_BLOCKS // 2)) is not None:
        found.append(tuple(run))
        start = run.stop
    half = 10 + PAGE_BLOCKS // 2
    assert found == [(7, 9), (10, half), (half, PAGE_BLOCKS), (2 * PAGE_BLOCKS, 2 * PAGE_BLOCKS + 9)]
