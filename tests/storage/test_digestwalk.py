"""Examining: what is answered, what is read for it, where it ends early, and what is called bad."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable

import pytest

from pairsync.core.dirty import DirtyMap
from pairsync.core.messages import OpKind, WriteOp
from pairsync.core.questions import BadBlock
from pairsync.core.units import BLOCK_BYTES, GIB, KIB, MIB, block_count_of
from pairsync.errors import BackendError, InternalError
from pairsync.storage.digestfile import (
    UNKNOWN_DIGEST,
    block_digest,
    digests_bytes,
    node_digest,
    pack_leaves,
    unpack_leaves,
)
from pairsync.storage.digests import format_digests, load_digests
from pairsync.storage.digestwalk import ANSWER_NODES_MAX, Examined
from pairsync.testing.disks import Fault, SimAction, SimDisk, SimMedium, SimOperation

ID = b"v" * 16
PAGES = 5
SIZE_BYTES = PAGES * 2 * MIB - 3000
BLOCKS = block_count_of(SIZE_BYTES)
NO_LIMIT = 1 << 40


class Stand:
    """A volume with a table that has seen every write, and a count of what is read of either."""

    def __init__(self, size_bytes: int = SIZE_BYTES, *, blank: bool = True) -> None:
        self.medium = SimMedium()
        self.device = SimDisk(self.medium, "vda", size_bytes)
        self.medium.create("digests", digests_bytes(size_bytes))
        file = self.medium.open("digests")
        format_digests(file, volume_id=ID, size_bytes=size_bytes, blank=blank)
        doubtful = DirtyMap(block_count_of(size_bytes))
        self.table = load_digests(file, volume_id=ID, size_bytes=size_bytes, doubtful=doubtful).table
        self.reads: list[SimOperation] = []
        self.broken: Callable[[SimOperation], bool] = lambda _: False
        self.medium.fault = self._watch

    def _watch(self, operation: SimOperation) -> Fault | None:
        if operation.action is SimAction.READ:
            self.reads.append(operation)
        return Fault(errno.EIO) if self.broken(operation) else None

    def put(self, block: int, *, note: bool = True) -> int:
        """Other content for a block; its digest."""
        offset = block * BLOCK_BYTES
        data = random.Random(block).randbytes(min(BLOCK_BYTES, self.device.size_bytes - offset))
        ops = [WriteOp(OpKind.DATA, offset, len(data), data)]
        self.device.apply(ops)
        if note:
            self.table.note(self.device, ops)
        return block_digest(data)

    def ask(
        self,
        level: int,
        first: int,
        stop: int,
        *,
        read: bool = False,
        read_bytes_max: int = NO_LIMIT,
        pages_max: int = NO_LIMIT,
    ) -> Examined:
        self.reads.clear()
        return self.table.examine(
            self.device, level, first, stop, read=read, read_bytes_max=read_bytes_max, pages_max=pages_max
        )

    def volume_reads(self) -> list[tuple[int, int]]:
        return [(each.offset, each.length) for each in self.reads if each.name == "vda"]


def test_nodes_are_digests_of_what_lies_below() -> None:
    stand = Stand()
    leaves = [0] * (PAGES * 512)
    for block in (0, 513, 514, 1999, BLOCKS - 1):
        leaves[block] = stand.put(block)
    pages = [node_digest(pack_leaves(leaves[at : at + 512])) for at in range(0, len(leaves), 512)]
    assert list(unpack_leaves(stand.ask(0, 0, BLOCKS).digests)) == leaves[:BLOCKS]
    assert list(unpack_leaves(stand.ask(0, 513, 600).digests)) == leaves[513:600]
    for _ in range(2):  # computed, and remembered
        assert list(unpack_leaves(stand.ask(1, 0, PAGES).digests)) == pages
        assert list(unpack_leaves(stand.ask(1, 1, 3).digests)) == pages[1:3]
        top = node_digest(pack_leaves(pages + [0] * (512 - PAGES)))
        assert list(unpack_leaves(stand.ask(2, 0, 1).digests)) == [top]
    assert stand.reads == []
    stand.put(514)
    leaves[514] = stand.put(515)
    assert list(unpack_leaves(stand.ask(1, 0, PAGES).digests))[1] != pages[1]
    assert stand.ask(2, 0, 1).digests != pack_leaves([top])
    assert pages[2] == 0


def test_the_size_of_the_volume_is_not_in_its_nodes() -> None:
    small, large = Stand(), Stand(SIZE_BYTES + 9 * MIB)
    small.put(7)
    large.put(7)
    assert small.ask(2, 0, 1) == large.ask(2, 0, 1)


@pytest.mark.parametrize(
    ("level", "first", "stop"), [(3, 0, 1), (-1, 0, 1), (0, 0, BLOCKS + 1), (1, 3, 2), (1, -1, 2), (2, 0, 2)]
)
def test_nodes_that_do_not_exist_are_our_bug(level: int, first: int, stop: int) -> None:
    with pytest.raises(InternalError):
        Stand().ask(level, first, stop)


def test_a_device_smaller_than_its_table_is_our_bug() -> None:
    stand = Stand()
    stand.device = SimDisk(stand.medium, "small", MIB)
    with pytest.raises(InternalError, match="small"):
        stand.ask(0, 0, 1)


def test_an_empty_range_has_an_empty_answer() -> None:
    assert Stand().ask(1, 2, 2) == Examined(2, b"", (), 0)


# ------------------------------------------------------------------ what is read


def test_only_what_is_unknown_and_no_hole_is_read() -> None:
    stand = Stand(blank=False)
    for block in (0, 600, 601, 1500):
        stand.put(block, note=False)
    known = stand.put(1501)
    answer = stand.ask(1, 0, PAGES)
    assert answer.filled == BLOCKS - 1
    assert sum(length for _, length in stand.volume_reads()) <= 4 * 256 * KIB
    assert stand.ask(0, 0, BLOCKS).filled == 0
    assert stand.volume_reads() == []
    assert known in unpack_leaves(stand.ask(0, 1501, 1502).digests)


def test_a_scrub_reads_all_that_is_no_hole() -> None:
    stand = Stand()
    for block in range(600, 700):
        stand.put(block)
    stand.put(BLOCKS - 1)
    for level, stop in ((0, BLOCKS), (1, PAGES), (2, 1)):
        plain = stand.ask(level, 0, stop)
        assert stand.volume_reads() == []
        answer = stand.ask(level, 0, stop, read=True)
        assert answer == plain
        covered = {
            block
            for offset, length in stand.volume_reads()
            for block in range(offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES))
        }
        assert covered >= {*range(600, 700), BLOCKS - 1}
        assert sum(length for _, length in stand.volume_reads()) <= MIB


def test_a_table_of_zeroes_is_not_read() -> None:
    stand = Stand(GIB // 16)
    stand.put(700)
    for read in (False, True):
        stand.ask(1, 0, 32, read=read)
        assert len([each for each in stand.reads if each.name == "digests"]) == 1


# ------------------------------------------------------------------ where it ends


def test_it_ends_early_and_goes_on_where_it_ended() -> None:
    stand = Stand()
    for block in range(BLOCKS):
        stand.put(block)
    whole = stand.ask(1, 0, PAGES).digests
    stand.table.forget([(0, BLOCKS)])
    at, digests, steps = 0, b"", 0
    while at < PAGES:
        answer = stand.ask(1, at, PAGES, read_bytes_max=3 * MIB)
        assert answer.stop == min(at + 2, PAGES)
        at, steps = answer.stop, steps + 1
        digests += answer.digests
    assert (digests, steps) == (whole, 3)
    stand.put(0)
    assert stand.ask(1, 0, PAGES, read_bytes_max=0, pages_max=0).stop == 1  # a node at least
    assert stand.ask(0, 0, BLOCKS, pages_max=2).stop == 1024
    assert stand.ask(0, 5, BLOCKS, read=True, read_bytes_max=7 * BLOCK_BYTES).stop == 12
    assert stand.ask(0, 5, BLOCKS, read=True, read_bytes_max=1).stop == 6
    assert stand.ask(2, 0, 1, read=True, read_bytes_max=1).stop == 1


def test_an_answer_is_bounded() -> None:
    stand = Stand(GIB // 2)
    stand.put(100_000)
    answer = stand.ask(0, 0, GIB // 2 // BLOCK_BYTES)
    assert answer.stop == ANSWER_NODES_MAX
    assert len(answer.digests) == 8 * ANSWER_NODES_MAX
    rest = stand.ask(0, answer.stop, 2 * ANSWER_NODES_MAX)
    assert rest.stop == 2 * ANSWER_NODES_MAX
    assert any(rest.digests)


# ------------------------------------------------------------------ what is bad


def test_one_flipped_bit_is_found_and_stays_recorded() -> None:
    stand = Stand()
    recorded = stand.put(600)
    stand.medium.damage("vda", 600 * BLOCK_BYTES + 77, 4)
    found = block_digest(stand.medium.content("vda")[600 * BLOCK_BYTES : 601 * BLOCK_BYTES])
    for level, stop in ((0, BLOCKS), (1, PAGES), (2, 1)):
        assert stand.ask(level, 0, stop).bad == ()
        for _ in range(2):
            assert stand.ask(level, 0, stop, read=True).bad == (BadBlock(600, recorded, found),)
    assert stand.ask(0, 600, 601).digests == pack_leaves([recorded])


def test_content_where_zeroes_are_recorded_and_zeroes_where_content_is() -> None:
    stand = Stand()
    recorded = stand.put(600)
    found = stand.put(1600, note=False)
    stand.device.apply([WriteOp(OpKind.TRIM, 512 * BLOCK_BYTES, 2 * MIB)])
    for level, stop in ((0, BLOCKS), (1, PAGES), (2, 1)):
        bad = stand.ask(level, 0, stop, read=True).bad
        assert bad == (BadBlock(600, recorded, 0), BadBlock(1600, 0, found))


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_block_that_cannot_be_read_is_bad(level: int) -> None:
    stand = Stand()
    recorded = stand.put(601)
    for block in (600, 602):
        stand.put(block)
    stop = (BLOCKS, PAGES, 1)[level]
    healthy = stand.ask(level, 0, stop).digests
    place = 601 * BLOCK_BYTES

    def broken(operation: SimOperation) -> bool:
        inside = operation.offset <= place + 512 < operation.offset + operation.length
        return operation.name == "vda" and inside and operation.action is SimAction.READ

    stand.broken = broken
    answer = stand.ask(level, 0, stop, read=True)
    assert answer == Examined(stop, healthy, (BadBlock(601, recorded, UNKNOWN_DIGEST),), 0)
    stand.table.forget([(600, 603)])
    for read in (True, False):
        answer = stand.ask(level, 0, stop, read=read)
        assert answer.bad == (BadBlock(601, UNKNOWN_DIGEST, UNKNOWN_DIGEST),)
        assert answer.digests != healthy
        assert answer.filled == (2 if read else 0)
    stand.broken = lambda _: False
    assert stand.ask(level, 0, stop) == Examined(stop, healthy, (), 1)  # no sum over it was kept


def test_a_disk_that_fails_altogether_ends_the_answer() -> None:
    stand = Stand(64 * MIB, blank=False)
    stand.device.apply([WriteOp(OpKind.DATA, 0, 64 * MIB, b"x" * (64 * MIB))])
    stand.broken = lambda operation: operation.name == "vda"
    answer = stand.ask(1, 0, 32)
    assert answer.stop == 1
    assert len(answer.bad) == 512


def test_an_error_of_the_table_is_raised_and_nothing_is_lost() -> None:
    stand = Stand(blank=False)
    digest = stand.put(3, note=False)
    stand.broken = lambda each: each.name == "digests" and each.action is not SimAction.READ
    with pytest.raises(BackendError, match="digests"):
        stand.ask(0, 0, 4)
    stand.broken = lambda each: each.name == "digests"
    with pytest.raises(BackendError, match="digests"):
        stand.ask(0, 0, 4)
    stand.broken = lambda _: False
    assert stand.ask(0, 0, 4) == Examined(4, pack_leaves([0, 0, 0, digest]), (), 4)


# ------------------------------------------------------------------ the cache
