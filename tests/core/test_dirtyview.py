"""Several maps and intent sets seen as one: against plain sets, and without a copy of a full map."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st
from tests.core.test_dirty import HUGE_BLOCKS, SIZES, loaded, ranges, runs_of

from pairsync.core.dirty import PAGE_BLOCKS, PAGE_BYTES, DirtyMap, IntentSet
from pairsync.core.dirtyview import DirtyView
from pairsync.core.units import Extent


@given(block_count=st.sampled_from(SIZES), data=st.data())
def test_a_view_shows_the_union_of_maps_and_intents(block_count: int, data: st.DataObject) -> None:
    maps = [DirtyMap(block_count) for _ in range(data.draw(st.integers(0, 3)))]
    intents = [IntentSet(block_count) for _ in range(data.draw(st.integers(0, 2)))]
    wanted: set[int] = set()
    both: list[DirtyMap | IntentSet] = [*maps, *intents]
    for each in both:
        for start, stop in data.draw(st.lists(ranges(block_count), max_size=4)):
            each.mark(start, stop)
            wanted.update(range(start, stop))
    view = DirtyView(block_count, maps, intents)
    assert bool(view) == bool(wanted)
    assert view.count == len(wanted)
    assert list(view.runs()) == runs_of(wanted)
    start, stop = data.draw(ranges(block_count))
    assert list(view.runs(start, stop)) == runs_of(b for b in wanted if start <= b < stop)
    assert all((block in view) == (block in wanted) for block in {start, max(stop - 1, 0)})
    assert set(view.page_numbers()) == {block // PAGE_BLOCKS for block in wanted}
    assert loaded(block_count, {n: view.page_bytes(n) for n in view.page_numbers()}).count == len(wanted)
    assert all(view.page_bytes(n) == bytes(PAGE_BYTES) for n in {0, 1, 2} - set(view.page_numbers()))
    assert view.describe().startswith(f"{len(wanted)}[")


def test_a_view_of_a_full_map_of_a_tebibyte_copies_none_of_it() -> None:
    todo, sent = DirtyMap(HUGE_BLOCKS), DirtyMap(HUGE_BLOCKS)
    todo.mark(1, HUGE_BLOCKS)
    todo.clear(PAGE_BLOCKS + 5, PAGE_BLOCKS + 7)
    sent.mark(PAGE_BLOCKS + 5, PAGE_BLOCKS + 6)
    intents = IntentSet(HUGE_BLOCKS)
    intents.mark(0, 1)
    tracemalloc.start()
    try:
        view = DirtyView(HUGE_BLOCKS, (todo, sent), (intents,))
        assert view.count == HUGE_BLOCKS - 1
        gap = PAGE_BLOCKS + 6
        assert list(view.runs()) == [Extent(0, gap), Extent(gap + 1, HUGE_BLOCKS)]
        assert list(view.runs(gap, gap + 2)) == [Extent(gap + 1, gap + 2)]
        assert tracemalloc.get_traced_memory()[1] < 8 * PAGE_BYTES
    finally:
        tracemalloc.stop()
