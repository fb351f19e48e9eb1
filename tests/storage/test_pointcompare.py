"""Comparing a point with the table: runs, bounds, and what is passed over."""

from __future__ import annotations

import threading

from pairsync.core.dirty import DirtyMap
from pairsync.core.units import Extent
from pairsync.storage.digestfile import LeafFile, digests_bytes
from pairsync.storage.digeststate import TableState
from pairsync.storage.pointcompare import ChangedRuns, changed_runs
from pairsync.storage.pointcopy import PointCopy
from pairsync.storage.pointfile import PointFile, PointHeader, point_bytes
from pairsync.testing.disks import SimMedium
from pairsync.testing.simfiles import SimDirectory

PAGES = 300
BLOCKS = PAGES * 512


def both(leaves: dict[int, int]) -> tuple[TableState, PointFile, SimMedium]:
    medium = SimMedium()
    medium.create("d", digests_bytes(BLOCKS * 4096))
    state = TableState(LeafFile(medium.open("d")), BLOCKS * 4096, DirtyMap(BLOCKS), threading.Lock())
    state.leaves.patch(leaves)
    file = SimDirectory(medium).create("p")
    file.resize(point_bytes(BLOCKS * 4096))
    point = PointFile(file, PointHeader(b"v" * 16, "p", 1, 1, BLOCKS * 4096, BLOCKS))
    copy = PointCopy(state, point, file)
    while copy.step():
        pass
    return state, point, medium


def ask(
    state: TableState, point: PointFile, first: int = 0, stop: int = BLOCKS, **bounds: int
) -> ChangedRuns:
    return changed_runs(state, point, first, stop, **{"runs_max": 1000, "pages_max": 10_000, **bounds})


def test_runs_are_joined_and_cut_to_the_range() -> None:
    state, point, _ = both({1: 9, 2: 9, 5000: 9})
    state.leaves.patch({2: 8, 3: 8, 5000: 0, 9000: 5})
    found = ask(state, point)
    assert (found.runs, found.stop) == ([Extent(2, 4), Extent(5000, 5001), Extent(9000, 9001)], BLOCKS)
    assert ask(state, point, 3, 5000).runs == [Extent(3, 4)]
    assert ask(state, point, 3, 5001).runs == [Extent(3, 4), Extent(5000, 5001)]
    state.unknown.mark(0, 2)
    assert ask(state, point).runs[0] == Extent(0, 4)


def test_an_answer_is_bounded_and_goes_on() -> None:
    state, point, _ = both({})
    state.leaves.patch({page * 512: 5 for page in range(PAGES)})
    found = ask(state, point, pages_max=10)
    assert 0 < found.stop < BLOCKS
    assert len(found.runs) == found.stop // 512
    few = ask(state, point, runs_max=3)
    assert 3 <= len(few.runs) <= 3 + 64
    at, runs = 0, 0
    while at < BLOCKS:
        found = ask(state, point, at, pages_max=1)
        at, runs = found.stop, runs + len(found.runs)
    assert runs == PAGES


def test_a_hole_in_both_is_one_step() -> None:
    state, point, medium = both({1: 5, BLOCKS - 1: 5})
    reads = 0

    def count(operation: object) -> None:
        nonlocal reads
        reads += 1

    medium.fault = count
    assert ask(state, point).runs == []
    assert reads < 20  # of 300 pages


def test_the_end_of_a_volume_that_has_grown_counts_as_changed() -> None:
    state, point, _ = both({})
    grown = TableState(state.leaves, BLOCKS * 4096 + 10, DirtyMap(BLOCKS + 1), threading.Lock())
    assert ask(grown, point, 0, BLOCKS + 1).runs == [Extent(BLOCKS, BLOCKS + 1)]
