"""A copy of the digest table: its bounds, and what it does to the table it copies."""

from __future__ import annotations

import threading

from pairsync.core.dirty import DirtyMap
from pairsync.storage.digestfile import LeafFile, digests_bytes, unpack_leaves
from pairsync.storage.digeststate import TableState
from pairsync.storage.pointcopy import PIECE_PAGES, PointCopy, known_below
from pairsync.storage.pointfile import PointFile, PointHeader, point_bytes
from pairsync.testing.disks import SimMedium
from pairsync.testing.simfiles import SimDirectory

PAGES = 400
BLOCKS = PAGES * 512


def begun() -> tuple[TableState, PointCopy]:
    medium = SimMedium()
    medium.create("d", digests_bytes(BLOCKS * 4096))
    state = TableState(LeafFile(medium.open("d")), BLOCKS * 4096, DirtyMap(BLOCKS), threading.Lock())
    state.leaves.patch({page * 512: page + 2 for page in range(PAGES)})
    file = SimDirectory(medium).create("p")
    file.resize(point_bytes(BLOCKS * 4096))
    point = PointFile(file, PointHeader(b"v" * 16, "p", 1, 1, BLOCKS * 4096, BLOCKS))
    return state, PointCopy(state, point, file)


def test_a_step_is_bounded() -> None:
    state, copy = begun()
    assert copy.step()
    assert 256 <= copy.unflushed_pages < 256 + PIECE_PAGES
    assert not copy.step()
    assert copy.unflushed_pages == PAGES
    assert state.leaves.before is None  # the table does not tell it any more
    assert unpack_leaves(copy.point.read(512 * 9, 512 * 9 + 2)).tolist() == [11, 0]


def test_a_page_is_copied_once_and_before_it_changes() -> None:
    state, copy = begun()
    state.leaves.patch({512 * 300: 1_000_000})
    assert copy.unflushed_pages == 1
    state.leaves.patch({512 * 300: 2_000_000, 512 * 301: 5})
    assert copy.unflushed_pages == 2
    state.leaves.zero(512 * 290, 512 * 310)
    assert copy.unflushed_pages == 20
    while copy.step():
        pass
    assert copy.unflushed_pages == PAGES
    taken = unpack_leaves(copy.point.read(0, BLOCKS))
    assert [taken[page * 512] for page in range(PAGES)] == [page + 2 for page in range(PAGES)]


def test_where_the_known_ends() -> None:
    unknown = DirtyMap(1000)
    assert known_below(unknown) == 1000
    unknown.mark(3, 5)
    assert known_below(unknown) == 1000
    unknown.mark(900, 1000)
    assert known_below(unknown) == 900
    for block in range(10, 800, 2):
        unknown.mark(block, block + 1)
    assert known_below(unknown) == 1000  # too many to be looked at: they are copied as leaves
