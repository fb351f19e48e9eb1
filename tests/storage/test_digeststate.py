"""What is known of a digest table's file: the cache of nodes, unknown leaves."""

from __future__ import annotations

import threading

from pairsync.core.dirty import DirtyMap
from pairsync.storage.digestfile import (
    UNKNOWN_DIGEST,
    LeafFile,
    digests_bytes,
    pack_leaves,
    unpack_leaves,
)
from pairsync.storage.digeststate import NodeCache, TableState, mask_unknown
from pairsync.testing.disks import SimMedium


def test_a_mask_says_unknown_of_the_marked_blocks_only() -> None:
    unknown = DirtyMap(2000)
    unknown.mark(3, 5)
    unknown.mark(1030, 1031)
    raw = bytearray(pack_leaves([7] * 40))
    mask_unknown(raw, unknown, 0, 40)
    assert list(unpack_leaves(raw)) == [7, 7, 7, UNKNOWN_DIGEST, UNKNOWN_DIGEST, *[7] * 35]
    raw = bytearray(pack_leaves([7] * 40))
    mask_unknown(raw, unknown, 1024, 1064)
    assert [at for at, leaf in enumerate(unpack_leaves(raw)) if leaf == UNKNOWN_DIGEST] == [6]


def test_what_is_read_has_the_unknown_blocks_in_it() -> None:
    size_bytes = 1200 * 4096
    medium = SimMedium()
    medium.create("d", digests_bytes(size_bytes))
    state = TableState(LeafFile(medium.open("d")), size_bytes, DirtyMap(1200), threading.Lock())
    state.leaves.patch({1: 77, 600: 88})
    state.unknown.mark(600, 602)
    assert list(unpack_leaves(state.read(599, 603))) == [0, UNKNOWN_DIGEST, UNKNOWN_DIGEST, 0]
    assert list(unpack_leaves(state.read(0, 3))) == [0, 77, 0]
    assert [state.known_pages_end(page, 3) for page in range(3)] == [1, 1, 3]
    state.write_unknown(1)  # a bounded number at a time
    assert list(state.unknown.runs()) == [(601, 602)]
    assert list(unpack_leaves(state.leaves.read(599, 603))) == [0, UNKNOWN_DIGEST, 0, 0]


def test_a_cache_forgets_what_is_stale() -> None:
    cache = NodeCache()
    for page in range(0, 2048, 100):
        cache.set_page(page, page + 2)
    for span in range(4):
        cache.set_span(span, 7)
    cache.stale(300, 301)
    cache.stale(900, 1101)
    known = {page for page in range(2048) if cache.page(page) != UNKNOWN_DIGEST}
    assert known == set(range(0, 2048, 100)) - {300, 900, 1000, 1100}
    assert [cache.span(span) for span in range(4)] == [UNKNOWN_DIGEST, UNKNOWN_DIGEST, UNKNOWN_DIGEST, 7]
    cache.stale(1536, 1537)
    assert cache.span(3) == UNKNOWN_DIGEST


def test_a_cache_is_bounded() -> None:
    cache = NodeCache()
    for span in range(5000):
        cache.set_page(span * 512, 3)
    assert cache.page(0) == UNKNOWN_DIGEST
    assert cache.page(4999 * 512) == 3
    assert len(cache._spans) <= 4096
