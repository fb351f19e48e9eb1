"""The digest table against a plain model: every leaf is that of its block, or unknown where it may be."""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pairsync.core.dirty import DirtyMap
from pairsync.core.messages import Buffer, OpKind, WriteOp
from pairsync.core.questions import BadBlock
from pairsync.core.units import BLOCK_BYTES, MIB, block_count_of, extent_of
from pairsync.errors import BackendError, ClosedError, InternalError
from pairsync.storage import digeststate, digesttable
from pairsync.storage.digestfile import (
    UNKNOWN_DIGEST,
    ZERO_DIGEST,
    block_digests,
    digests_bytes,
    unpack_leaves,
)
from pairsync.storage.digests import create_digests, format_digests, load_digests, open_digests
from pairsync.storage.file import RawFile, create_volume, open_volume
from pairsync.testing.disks import Fault, PowerCut, SimAction, SimDisk, SimFile, SimMedium, SimOperation

ID = b"v" * 16
SIZE_BYTES = 5 * MIB + 1234  # three pages of leaves; the last block is partial
BLOCKS = block_count_of(SIZE_BYTES)
NO_LIMIT = 1 << 40


class Unreadable(RawFile):
    """Shows which leaves are unknown: only these are read."""

    def read_into(self, offset: int, view: memoryview) -> None:
        raise BackendError("not to be read")

    def hole_bytes(self, offset: int, length: int) -> int:
        return 0


class GrowingFile(SimFile):
    """Its size can be set."""

    def resize(self, size_bytes: int) -> None:
        platter = self.medium.platter(self.path, self.medium.life)
        del platter.live[size_bytes:]
        platter.live.extend(bytes(size_bytes - len(platter.live)))
        self.size_bytes = size_bytes


class Bench:
    """A volume and its table, on a medium of its own each: only the table's is to be cut."""

    def __init__(self, size_bytes: int = SIZE_BYTES, *, blank: bool = True, pending_max: int = 8192) -> None:
        self.size_bytes = size_bytes
        self.pending_max = pending_max
        self.medium = SimMedium()
        self.device = SimDisk(SimMedium(), "vda", size_bytes)
        self.medium.create("digests", digests_bytes(size_bytes))
        file = self.medium.open("digests")
        format_digests(file, volume_id=ID, size_bytes=size_bytes, blank=blank)
        self.changed: set[int] = set()  # since the last `save`: what the dirty map would hold
        self.load(file)

    def load(self, file: SimFile, doubtful: Iterable[int] = ()) -> None:
        unclear = DirtyMap(block_count_of(self.size_bytes))
        for block in doubtful:
            unclear.mark(block, block + 1)
        opened = load_digests(file, volume_id=ID, size_bytes=self.size_bytes, doubtful=unclear)
        self.table = opened.table
        self.table._pending_max = self.pending_max

    def apply(self, *ops: WriteOp) -> None:
        for op in ops:
            self.changed.update(range(*extent_of(op.offset, op.length)))
        self.device.apply(ops)
        self.table.note(self.device, ops)

    def save(self, milestone: int | None = None) -> None:
        self.table.save(milestone)
        self.changed.clear()

    def reopen(self) -> None:
        self.table.close()
        self.load(self.medium.open("digests"))

    def kill(self) -> None:
        """The process dies; what it had written is in the page cache."""
        self.medium.process_crash()
        self.load(self.medium.open("digests"), self.changed)

    def content(self) -> bytes:
        return self.device._file.read(0, self.size_bytes)

    def truth(self) -> list[int]:
        return block_digests(memoryview(self.content()))

    def leaves(self) -> list[int]:
        """What is recorded; nothing becomes known by asking."""
        device = Unreadable(self.device._file)
        stop = block_count_of(self.size_bytes)
        found: list[int] = []
        while len(found) < stop:  # an answer ends where much cannot be read
            answer = self.table.examine(
                device, 0, len(found), stop, read_bytes_max=NO_LIMIT, pages_max=NO_LIMIT
            )
            found += unpack_leaves(answer.digests)
        return found

    def examine(self, level: int = 0, **options: Any) -> list[int]:
        """The nodes of a level, all of them."""
        nodes = -(-block_count_of(self.size_bytes) // 512**level)
        options = {"read_bytes_max": NO_LIMIT, "pages_max": NO_LIMIT} | options
        return list(unpack_leaves(self.table.examine(self.device, level, 0, nodes, **options).digests))


def data_op(offset: int, data: bytes) -> WriteOp:
    return WriteOp(OpKind.DATA, offset, len(data), memoryview(data))


def block_op(block: int, seed: int) -> WriteOp:
    return data_op(block * BLOCK_BYTES, random.Random(seed).randbytes(BLOCK_BYTES))


# ------------------------------------------------------------------ the model

offsets = st.integers(0, SIZE_BYTES - 1)
aligned = st.integers(0, BLOCKS - 1).map(lambda block: block * BLOCK_BYTES)
lengths = st.one_of(
    st.just(BLOCK_BYTES), st.integers(1, 3 * BLOCK_BYTES), st.sampled_from([16 * BLOCK_BYTES, 9 * MIB // 2])
)
kinds = st.sampled_from([OpKind.DATA, OpKind.DATA, OpKind.ZERO, OpKind.TRIM, OpKind.ZERO_ALLOCATE])


def make_op(kind: OpKind, offset: int, length: int, seed: int) -> WriteOp:
    length = min(length, SIZE_BYTES - offset)
    if kind is not OpKind.DATA:
        return WriteOp(kind, offset, length)
    length = min(length, 40 * BLOCK_BYTES)
    data = bytes(length) if seed % 5 == 0 else random.Random(seed).randbytes(length)
    return data_op(offset, data)


ops = st.builds(make_op, kinds, st.one_of(offsets, aligned), lengths, st.integers(0, 1 << 32))
steps = st.one_of(
    st.lists(ops, min_size=1, max_size=6),
    st.sampled_from(["save", "reopen", "look"]),
)


@settings(max_examples=40)  # 10 ms each on a quiet machine
@given(script=st.lists(steps, max_size=8), pending_max=st.sampled_from([1, 4, 10_000]))
def test_every_leaf_is_that_of_its_block(script: Sequence[Any], pending_max: int) -> None:
    bench = Bench(pending_max=pending_max)
    for step in script:
        if step == "save":
            bench.save(7)
        elif step == "reopen":
            bench.save()
            bench.reopen()
        elif step == "look":
            assert bench.leaves() == bench.truth()
        else:
            bench.apply(*step)
    assert bench.leaves() == bench.truth()
    assert bench.table.mismatches(0, memoryview(bench.content())) == []
    other = Bench(blank=False)
    other.device.apply([data_op(0, bench.content())])
    for level in (0, 1, 2):
        assert bench.examine(level) == other.examine(level) == bench.examine(level, read=True)


@settings(max_examples=30)
@given(st.sets(st.integers(0, BLOCKS - 2), max_size=6), st.sets(st.integers(0, BLOCKS - 2), max_size=2))
def test_nodes_are_equal_exactly_where_the_leaves_are(same: set[int], different: set[int]) -> None:
    one, two = Bench(), Bench()
    for bench, seed in ((one, 0), (two, 1)):
        bench.apply(*(block_op(block, block) for block in sorted(same)))
        bench.apply(*(block_op(block, BLOCKS + seed) for block in sorted(different)))
    for level in (0, 1, 2):
        pairs = enumerate(zip(one.examine(level), two.examine(level), strict=True))
        found = {node for node, (left, right) in pairs if left != right}
        assert found == {block // 512**level for block in different}


# ------------------------------------------------------------------ single ways of changing a leaf


def test_a_batch_counts_as_a_whole() -> None:
    """The edges are read when all of it is there, whichever op came first."""
    bench = Bench()
    edge = data_op(BLOCK_BYTES // 2, b"x" * BLOCK_BYTES)
    bench.apply(edge, block_op(0, 1), WriteOp(OpKind.TRIM, 100, BLOCK_BYTES * 3), block_op(2, 3), edge)
    assert bench.leaves() == bench.truth()


def test_an_edge_that_cannot_be_read_back_is_unknown() -> None:
    bench = Bench()
    bench.apply(block_op(3, 1))
    op = data_op(3 * BLOCK_BYTES + 5, b"y")
    bench.device.apply([op])
    bench.table.note(Unreadable(bench.device._file), [op])
    expected = bench.truth()
    expected[3] = UNKNOWN_DIGEST
    assert bench.leaves() == expected
    assert bench.examine() == bench.truth()


@pytest.mark.parametrize("count", [1, 3, 1200])
def test_what_is_forgotten_is_unknown_until_it_is_noted(count: int) -> None:
    bench = Bench()
    bench.apply(block_op(5, 1), block_op(6, 1), block_op(1250, 2))
    bench.save()
    bench.apply(block_op(6, 4))
    bench.table.forget([(5, 5 + count)])
    bench.apply(block_op(6, 7))
    expected = bench.truth()
    expected[5 : 5 + count] = [UNKNOWN_DIGEST] * count
    expected[6] = bench.truth()[6]
    assert bench.leaves() == expected
    assert bench.table.mismatches(0, memoryview(bytes(4 * MIB))) == [6]
    bench.save()
    bench.reopen()
    leaves = bench.leaves()
    assert all(leaf in (UNKNOWN_DIGEST, was) for leaf, was in zip(leaves, bench.truth(), strict=True))
    assert leaves[5] == UNKNOWN_DIGEST
    assert bench.examine() == bench.truth()


@pytest.mark.parametrize("unknown_blocks", [range(4, 9), range(BLOCKS - 2, BLOCKS), range(BLOCKS)])
def test_what_a_reader_saw_fills_only_what_is_unknown(unknown_blocks: range) -> None:
    bench = Bench()
    bench.apply(block_op(5, 1), block_op(9, 1), data_op((BLOCKS - 1) * BLOCK_BYTES, b"z"))
    content = bench.content()
    bench.table.forget([(unknown_blocks.start, unknown_blocks.stop)])
    expected = bench.leaves()
    start, stop = 4 * BLOCK_BYTES + 1, 7 * BLOCK_BYTES - 1  # blocks 5 of 4, 5 and 6
    assert bench.table.compare([(start, memoryview(content)[start:stop])]) == []
    expected[5] = bench.truth()[5]
    assert bench.leaves() == expected
    assert bench.table.compare([(0, memoryview(content))]) == []
    assert bench.leaves() == bench.truth()
    truth = bench.truth()
    assert bench.table.compare([(0, memoryview(bytes(len(content))))]) == [
        BadBlock(block, digest, ZERO_DIGEST) for block, digest in enumerate(truth) if digest
    ]
    assert bench.leaves() == truth


@settings(max_examples=40)
@given(st.lists(ops, max_size=6), offsets, st.integers(1, SIZE_BYTES), st.sets(st.integers(0, BLOCKS - 1)))
def test_what_is_recorded_as_zero_is_told_as_far_as_it_goes(
    script: list[WriteOp], offset: int, length: int, forgotten: set[int]
) -> None:
    bench = Bench()
    if script:
        bench.apply(*script)
    bench.table.forget((block, block + 1) for block in forgotten)
    length = min(length, SIZE_BYTES - offset)
    found = bench.table.zero_bytes(offset, length)
    first = offset // BLOCK_BYTES
    leaves = bench.leaves()[first : block_count_of(offset + length)]
    zero = next((at for at, leaf in enumerate(leaves) if leaf != ZERO_DIGEST), len(leaves))
    unknown_too = next((at for at, leaf in enumerate(leaves) if leaf > UNKNOWN_DIGEST), len(leaves))
    most = max((first + unknown_too) * BLOCK_BYTES - offset, 0)
    assert min(max((first + zero) * BLOCK_BYTES - offset, 0), length) <= found <= min(most, length)


def test_a_long_run_of_zeroes_is_found_in_bounded_looks() -> None:
    size = 70 * 512 * BLOCK_BYTES
    bench = Bench(size)
    pages = range(0, 70 * 512, 512)
    bench.apply(*(block_op(page + 511, 1) for page in pages))
    bench.apply(*(WriteOp(OpKind.TRIM, (page + 511) * BLOCK_BYTES, BLOCK_BYTES) for page in pages))
    bench.table._state.leaves.patch(dict.fromkeys((page + 511 for page in pages), 0))  # no hole of the file
    assert bench.table.zero_bytes(0, size) in {64 * 512 * BLOCK_BYTES, size}


def test_mismatches_are_of_whole_known_blocks() -> None:
    bench = Bench()
    last = BLOCKS - 1
    bench.apply(*(block_op(block, block) for block in (1, 2, 3, 600)), data_op(last * BLOCK_BYTES, b"end"))
    bench.save()
    bench.apply(block_op(2, 77))
    bench.table.forget([(3, 4)])
    good = bytearray(bench.content())
    assert bench.table.mismatches(0, memoryview(good)) == []
    bad = bytearray(good)
    for block in (0, 1, 2, 3, 600, last):
        bad[block * BLOCK_BYTES] ^= 1
    assert bench.table.mismatches(0, memoryview(bad)) == [0, 1, 2, 600, last]
    at = BLOCK_BYTES + 1
    assert bench.table.mismatches(at, memoryview(bad)[at : 3 * BLOCK_BYTES - 1]) == []
    assert bench.table.mismatches(at, memoryview(bad)[at : 3 * BLOCK_BYTES]) == [2]
    assert bench.table.mismatches(last * BLOCK_BYTES, memoryview(bad)[last * BLOCK_BYTES : -1]) == []
    assert bench.table.mismatches(last * BLOCK_BYTES, memoryview(bad)[last * BLOCK_BYTES :]) == [last]


# ------------------------------------------------------------------ what is unknown, over restarts


def test_a_rebuild_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digeststate, "_UNKNOWN_LEAVES_MAX", 0)
    bench = Bench(blank=False)
    bench.device.apply([data_op(0, random.Random(1).randbytes(SIZE_BYTES))])
    first = bench.table.examine(bench.device, 1, 0, 3, read_bytes_max=1, pages_max=NO_LIMIT)
    assert (first.stop, first.filled) == (1, 512)
    bench.apply(block_op(BLOCKS - 5, 9))
    assert bench.table.known_below == 512
    bench.save(4)
    bench.reopen()
    assert (bench.table.known_below, bench.table.milestone) == (512, 4)
    again = bench.table.examine(bench.device, 1, 0, 3, read_bytes_max=NO_LIMIT, pages_max=NO_LIMIT)
    assert (again.stop, again.filled) == (3, BLOCKS - 512)
    assert bench.leaves() == bench.truth()
    bench.save()
    bench.reopen()
    assert bench.table.known_below == BLOCKS
    assert bench.leaves() == bench.truth()


def test_unknown_blocks_become_leaves_a_few_with_each_save() -> None:
    bench = Bench()
    bench.apply(*(block_op(block, block) for block in range(20)))
    bench.save()
    bench.changed = {2, 3, 7, 11}
    bench.kill()
    bench.table._unknown_save_max = 3
    bench.save()
    assert bench.table.known_below == 11
    bench.save()
    assert bench.table.known_below == BLOCKS
    expected = bench.truth()
    for block in (2, 3, 7, 11):
        expected[block] = UNKNOWN_DIGEST
    assert bench.leaves() == expected
    bench.reopen()
    assert bench.leaves() == expected
    assert bench.examine() == bench.truth()


def test_many_unknown_blocks_are_left_to_known_below(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digeststate, "_UNKNOWN_LEAVES_MAX", 3)
    bench = Bench()
    bench.changed = {2, 3, 7, 11}
    bench.kill()
    step = bench.medium.step
    bench.save()
    assert bench.table.known_below == 2
    assert bench.medium.step == step + 8  # a flush, the header settled, then stored in both slots
    bench.reopen()
    assert bench.table.known_below == 2
    assert bench.leaves()[:3] == [0, 0, UNKNOWN_DIGEST]


# ------------------------------------------------------------------ saving


def test_saving_nothing_does_nothing() -> None:
    bench = Bench()
    bench.save()
    step = bench.medium.step
    bench.save()
    assert bench.medium.step == step
    bench.save(1)
    stored = bench.medium.step
    assert stored == step + 4  # the other slot is settled, then the header is stored, durably
    bench.save(1)
    assert bench.medium.step == stored
    assert bench.table.milestone == 1


def test_leaves_go_to_the_file_before_a_save_where_there_are_many() -> None:
    bench = Bench(pending_max=4)
    step = bench.medium.step
    bench.apply(*(block_op(block, block) for block in (0, 500, 600)))
    assert bench.medium.step == step
    bench.apply(block_op(700, 7))
    assert bench.medium.step == step + 2 + 2  # a write each: two of two pages
    assert bench.leaves() == bench.truth()


def test_in_memory_it_is_the_pages_that_count() -> None:
    bench = Bench()
    bench.table._pages_max = 1
    step = bench.medium.step
    for block in range(20):
        bench.apply(block_op(block, block))
    assert bench.medium.step == step
    bench.apply(*(block_op(block, block) for block in range(600, 620)))
    assert bench.medium.step > step
    assert bench.leaves() == bench.truth()


def run_op(block: int, count: int, seed: int) -> WriteOp:
    return data_op(block * BLOCK_BYTES, random.Random(seed).randbytes(count * BLOCK_BYTES))


def test_a_long_run_goes_to_the_file_at_once() -> None:
    bench = Bench()
    bench.save()
    step = bench.medium.step
    bench.apply(run_op(100, 32, 1))
    assert bench.medium.step == step + 1
    bench.apply(run_op(200, 31, 2))
    assert bench.medium.step == step + 1, "a short one is pending"
    bench.apply(run_op(190, 40, 3))
    assert bench.medium.step == step + 1, "and so is what comes behind it"
    assert bench.leaves() == bench.truth()
    bench.save()
    bench.reopen()
    assert bench.leaves() == bench.truth()


@pytest.mark.parametrize("before", [0, 1])
def test_a_long_run_in_a_batch_keeps_the_order(before: int) -> None:
    small = [block_op(110, 7), data_op(120 * BLOCK_BYTES + 5, b"x" * 9), WriteOp(OpKind.ZERO, 0, 4096 * 111)]
    bench = Bench()
    bench.apply(*small[:before], run_op(100, 40, 8), *small[before:])
    assert bench.leaves() == bench.truth()
    other = Bench(blank=False)
    other.device.apply([data_op(0, bench.content())])
    assert bench.examine(1) == other.examine(1)


def test_nodes_of_a_long_run_are_made_anew() -> None:
    bench = Bench()
    before = bench.examine(1)
    bench.apply(run_op(500, 40, 1))
    after = bench.examine(1)
    assert [old == new for old, new in zip(before, after, strict=True)][:3] == [False, False, True]


def test_a_long_run_that_cannot_be_written_is_pending() -> None:
    bench = Bench()
    bench.save()
    run = run_op(100, 40, 1)
    bench.device.apply([run])
    bench.changed.update(range(100, 140))
    bench.medium.fault = failing(SimAction.WRITE)
    bench.table.note(bench.device, [run])
    bench.medium.fault = None
    assert bench.leaves() == bench.truth()
    bench.save()
    bench.reopen()
    assert bench.leaves() == bench.truth()


class TroubledFile(SimFile):
    """Calls somebody while it writes or flushes, as another thread would."""

    during: Callable[[str], None] | None = None

    def _interrupt(self, what: str) -> None:
        during, self.during = self.during, None
        if during is not None:
            during(what)

    def _write(self, offset: int, buffers: Sequence[Buffer], *, durable: bool) -> None:
        if offset >= 8192:
            self._interrupt("write")
        super()._write(offset, buffers, durable=durable)

    def _flush(self) -> None:
        self._interrupt("flush")
        super()._flush()


@pytest.mark.parametrize("unknown", [False, True])
@pytest.mark.parametrize("when", ["write", "flush"])
def test_what_is_noted_while_a_save_runs_waits_for_nothing_and_is_kept(when: str, unknown: bool) -> None:
    bench = Bench(blank=not unknown)
    bench.table.close()
    bench.medium.open("digests")
    file = TroubledFile(bench.medium, "digests")
    bench.load(file)
    told: list[str] = []

    def during(what: str) -> None:
        told.append(what)
        if what != when:
            file.during = during
            return
        bench.apply(block_op(1, 50), block_op(2, 60), block_op(900, 1))
        bench.table.forget([(7, 8), (100, 1200)])
        assert bench.table.compare([(0, memoryview(bench.content())[: 7 * BLOCK_BYTES])]) == []
        assert bench.table.mismatches(0, memoryview(bench.content())) == []

    bench.apply(*(block_op(block, 3) for block in (1, 7, 8, 700)), WriteOp(OpKind.TRIM, 0, BLOCK_BYTES))
    file.during = during
    bench.save()
    assert told[-1] == when
    steps = [list(range(7, 8)), list(range(100, 1200))]
    expected = bench.truth()
    for block in [block for run in steps for block in run if block != 900]:
        expected[block] = UNKNOWN_DIGEST
    expected[900] = UNKNOWN_DIGEST
    leaves = bench.leaves()
    for block in range(9):
        assert leaves[block] == expected[block]
    assert leaves[100:1200] == expected[100:1200]
    before = bench.medium.step
    bench.save()
    assert bench.medium.step > before
    bench.reopen()
    assert bench.leaves()[:9] == expected[:9]
    assert bench.examine() == bench.truth()


# ------------------------------------------------------------------ errors of the file


def failing(*actions: SimAction, number: int = errno.ENOSPC) -> Callable[[SimOperation], Fault | None]:
    return lambda operation: Fault(number) if operation.action in actions else None


def test_what_cannot_be_written_stays_pending() -> None:
    bench = Bench(pending_max=4)
    bench.medium.fault = failing(SimAction.WRITE, SimAction.ZERO)
    for block in range(0, 60, 2):
        bench.apply(block_op(block, block))
    bench.apply(WriteOp(OpKind.TRIM, 10 * BLOCK_BYTES, 9 * MIB // 2), block_op(12, 5))
    for _ in range(2):
        with pytest.raises(BackendError, match="No space"):
            bench.save()
        with pytest.raises(BackendError, match="No space"):
            bench.leaves()
    assert bench.table.mismatches(0, memoryview(bench.content())) == []
    assert bench.table.sound
    bench.medium.fault = None
    assert bench.leaves() == bench.truth()
    bench.save()
    bench.reopen()
    assert bench.leaves() == bench.truth()


def test_too_much_that_cannot_be_written_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digesttable, "LEAVING_MAX", 10)
    bench = Bench(pending_max=4)
    bench.medium.fault = failing(SimAction.WRITE)
    for block in range(40):
        bench.apply(block_op(block, block))
    assert bench.table._leaving is not None
    assert len(bench.table._leaving.few) + len(bench.table._pending.few) <= 10 + 4
    bench.medium.fault = None
    leaves, truth = bench.leaves(), bench.truth()
    assert leaves[40:] == truth[40:]
    assert all(leaf in (now, UNKNOWN_DIGEST) for leaf, now in zip(leaves, truth, strict=True))
    assert UNKNOWN_DIGEST in leaves
    assert bench.examine() == truth


def test_after_a_failed_flush_nothing_is_called_durable() -> None:
    bench = Bench()
    bench.save()
    bench.apply(block_op(1, 1))
    bench.medium.fault = failing(SimAction.FLUSH, number=errno.EIO)
    with pytest.raises(BackendError):
        bench.save(5)
    bench.medium.fault = None
    assert not bench.table.sound
    for _ in range(2):
        with pytest.raises(BackendError, match="earlier flush"):
            bench.save(6)
    assert bench.table.milestone == 0
    assert bench.leaves() == bench.truth()  # it still answers


def test_a_table_that_cannot_be_read_says_nothing_about_the_content() -> None:
    bench = Bench()
    bench.medium.fault = failing(SimAction.READ, number=errno.EIO)
    with pytest.raises(BackendError):
        bench.table.mismatches(0, memoryview(bytes(BLOCK_BYTES)))


def test_a_closed_table() -> None:
    bench = Bench()
    assert (bench.table.path, bench.table.may_block, bench.table.size_bytes) == ("digests", False, SIZE_BYTES)
    bench.table.close()
    bench.table.close()
    with pytest.raises(ClosedError):
        bench.save(1)


# ------------------------------------------------------------------ growing


def test_a_volume_grows() -> None:
    bench = Bench()
    bench.table.close()
    bench.medium.open("digests")
    bench.load(GrowingFile(bench.medium, "digests"))
    bench.apply(block_op(3, 3), data_op((BLOCKS - 1) * BLOCK_BYTES, b"tail"))
    before = bench.examine()
    old, bench.size_bytes = bench.device, 3 * SIZE_BYTES
    bench.device = SimDisk(SimMedium(), "vda", bench.size_bytes)
    bench.device.apply([data_op(0, old._file.read(0, SIZE_BYTES))])
    bench.table.extend(bench.size_bytes)
    bench.table.resize(bench.size_bytes)
    leaves = bench.leaves()
    assert leaves[: BLOCKS - 1] == before[: BLOCKS - 1]
    assert set(leaves[BLOCKS - 1 :]) == {UNKNOWN_DIGEST}
    bench.apply(block_op(BLOCKS + 100, 1), WriteOp(OpKind.TRIM, 0, BLOCK_BYTES * 2))
    bench.save()
    bench.reopen()
    assert bench.table.known_below > BLOCKS - 1  # some became unknown leaves
    assert set(bench.leaves()[BLOCKS - 1 : BLOCKS + 100]) == {UNKNOWN_DIGEST}
    assert bench.examine() == bench.truth()
    with pytest.raises(InternalError):
        bench.table.resize(bench.size_bytes - 1)


def test_a_table_that_cannot_grow_is_as_before() -> None:
    bench = Bench()
    with pytest.raises(BackendError, match="cannot be enlarged"):
        bench.table.extend(10 * SIZE_BYTES)
    with pytest.raises(InternalError):
        bench.table.resize(10 * SIZE_BYTES)
    assert bench.leaves() == bench.truth()


def test_what_cannot_be_written_when_a_volume_grows_is_unknown_afterwards() -> None:
    bench = Bench()
    bench.table.close()
    bench.medium.open("digests")
    bench.load(GrowingFile(bench.medium, "digests"))
    bench.apply(block_op(3, 3))
    bench.table.extend(2 * SIZE_BYTES)
    bench.medium.fault = lambda operation: Fault(errno.EIO) if operation.action is SimAction.WRITE else None
    old, bench.size_bytes = bench.device, 2 * SIZE_BYTES
    bench.device = SimDisk(SimMedium(), "vda", bench.size_bytes)
    bench.device.apply([data_op(0, old._file.read(0, SIZE_BYTES))])
    bench.table.resize(bench.size_bytes)
    bench.medium.fault = None
    assert set(bench.leaves()) == {UNKNOWN_DIGEST}
    assert bench.examine() == bench.truth()


# ------------------------------------------------------------------ power cuts

SMALL_BLOCKS = 560


def play(bench: Bench, script: str) -> None:
    """``w``: writes; ``z``: wide zeroing; ``f``: in doubt; ``s``: save; ``k``: kill; ``x``: look."""
    for number, step in enumerate(script):
        if step == "w":
            bench.apply(*(block_op(block, number) for block in (number, 40, 41, 520 + 3 * number)))
        elif step == "z":
            bench.apply(WriteOp(OpKind.TRIM, (2 + number) * BLOCK_BYTES, 530 * BLOCK_BYTES))
        elif step == "f":
            bench.changed |= {40, 41, *range(100, 120)}
            bench.table.forget([(40, 42), (100, 120)])
        elif step == "s":
            bench.save(number)
        elif step == "k":
            bench.kill()
        else:
            bench.examine(1)


@pytest.mark.parametrize(("pending_max", "unknown_max"), [(3, 1000), (1000, 1000), (3, 1)])
@pytest.mark.parametrize("script", ["wswzsws", "wszwxkxws", "wsfwskws", "zwskskws"])
def test_power_cuts_leave_every_leaf_exact_that_is_not_in_doubt(
    script: str,
    pending_max: int,
    unknown_max: int,
    every_outcome: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(digesttable, "WIDE_BLOCKS", 8)
    monkeypatch.setattr(digeststate, "_UNKNOWN_LEAVES_MAX", unknown_max)

    def attempt(step: int | None) -> tuple[SimMedium, Bench]:
        bench = Bench(SMALL_BLOCKS * BLOCK_BYTES - 7, pending_max=pending_max)
        base = bench.medium.step
        bench.medium.cut_at_step = None if step is None else base + step
        with suppress(PowerCut):
            play(bench, script)
        bench.medium.step -= base
        return bench.medium, bench

    def judge(medium: SimMedium, bench: Bench) -> None:
        bench.load(medium.open("digests"), bench.changed)
        truth = bench.truth()
        for block, leaf in enumerate(bench.leaves()):
            if block in bench.changed:
                assert leaf == UNKNOWN_DIGEST
            else:
                assert leaf in (truth[block], UNKNOWN_DIGEST)
        assert bench.examine(1)
        bench.save()
        bench.reopen()
        assert bench.leaves() == truth

    assert every_outcome(attempt, judge) > 20


def test_a_power_cut_during_a_rebuild_never_makes_known_what_is_not(
    every_outcome: Callable[..., int],
) -> None:
    def attempt(step: int | None) -> tuple[SimMedium, Bench]:
        bench = Bench(SMALL_BLOCKS * BLOCK_BYTES - 7, blank=False)
        bench.device.apply([block_op(block, block) for block in (1, 300, 511, 513)])
        base = bench.medium.step
        bench.medium.cut_at_step = None if step is None else base + step
        with suppress(PowerCut):
            for page in range(2):
                bench.table.examine(bench.device, 1, page, page + 1, read_bytes_max=1, pages_max=1)
                bench.save(page + 1)
        bench.medium.step -= base
        return bench.medium, bench

    def judge(medium: SimMedium, bench: Bench) -> None:
        bench.load(medium.open("digests"))
        truth = bench.truth()
        assert all(leaf in (now, UNKNOWN_DIGEST) for leaf, now in zip(bench.leaves(), truth, strict=True))
        assert bench.examine() == truth

    assert every_outcome(attempt, judge) > 10


def test_a_wide_zeroing_makes_unknown_blocks_known() -> None:
    bench = Bench(blank=False)
    bench.apply(WriteOp(OpKind.ZERO, 5 * BLOCK_BYTES, 1100 * BLOCK_BYTES))
    for _ in range(2):
        assert set(bench.leaves()[5:1105]) == {0}
        assert set(bench.leaves()[1105:] + bench.leaves()[:5]) == {UNKNOWN_DIGEST}
        bench.save()


# ------------------------------------------------------------------ threads, on a real file


def test_noting_beside_saving_and_checking(tmp_path: Path, leak_guard: object) -> None:
    """Writes, saves, and verified reads of blocks that stand still, all at the same time."""
    blocks, still = 3000, 100
    size_bytes = blocks * BLOCK_BYTES
    create_volume(tmp_path / "vda", size_bytes)
    device = open_volume(tmp_path / "vda")
    create_digests(tmp_path / "digests", volume_id=ID, size_bytes=size_bytes, blank=True)
    opened = open_digests(
        tmp_path / "digests", volume_id=ID, size_bytes=size_bytes, doubtful=DirtyMap(blocks)
    )
    table = opened.table
    table._pending_max = 300
    first = [block_op(block, block) for block in range(still)]
    device.apply(first)
    table.note(device, first)
    content = memoryview(bytearray(still * BLOCK_BYTES))
    device.read_into(0, content)
    done = threading.Event()
    found: list[object] = []

    def keep_saving() -> None:
        while not done.is_set():
            table.save()

    def keep_checking() -> None:
        while not done.is_set():
            found.extend(table.mismatches(0, content))

    threads = [threading.Thread(target=job) for job in (keep_saving, keep_checking)]
    for thread in threads:
        thread.start()
    rng = random.Random(1)
    payloads = [rng.randbytes(BLOCK_BYTES) for _ in range(50)]
    try:
        for round_number in range(4):
            for start in range(still, blocks, 29):
                stop = min(start + 29, blocks)
                ops = [
                    data_op(at * BLOCK_BYTES, payloads[(at + round_number) % 50]) for at in range(start, stop)
                ]
                device.apply(ops)
                table.note(device, ops)
            trim = WriteOp(OpKind.TRIM, still * BLOCK_BYTES, 1100 * BLOCK_BYTES)
            device.apply([trim])
            table.note(device, [trim])
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert found == []
    raw = bytearray(size_bytes)
    device.read_into(0, memoryview(raw))
    answer = table.examine(device, 0, 0, blocks, read_bytes_max=NO_LIMIT, pages_max=NO_LIMIT)
    assert answer.filled == 0
    assert list(unpack_leaves(answer.digests)) == block_digests(memoryview(raw))
    table.close()
    device.close()
