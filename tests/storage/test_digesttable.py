"""The digest table against a plain model: every leaf is that of its block, or unknown where it may be."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairsync.core.dirty import DirtyMap
from pairsync.core.messages import OpKind, WriteOp
from pairsync.core.units import BLOCK_BYTES, MIB, block_count_of
from pairsync.errors import BackendError
from pairsync.storage import digesttable
from pairsync.storage.digestfile import block_digest, digests_bytes, unpack_leaves
from pairsync.storage.digests import format_digests, load_digests
from pairsync.storage.digesttable import DigestTable
from pairsync.storage.file import RawFile
from pairsync.testing.disks import SimDisk, SimFile, SimMedium

ID = b"v" * 16
SIZE_BYTES = 9 * MIB + 1234  # five pages of leaves; the last block is partial
BLOCKS = block_count_of(SIZE_BYTES)
NO_LIMIT = 1 << 40


class Unreadable(RawFile):
    """Shows which leaves are unknown: only these are read."""

    def read_into(self, offset: int, view: memoryview) -> None:
        raise BackendError("not to be read")

    def hole_bytes(self, offset: int, length: int) -> int:
        return 0


class Bench:
    """A volume and its table on one medium."""

    def __init__(self, size_bytes: int = SIZE_BYTES, *, blank: bool = True) -> None:
        self.size_bytes = size_bytes
        self.medium = SimMedium()
        self.device = SimDisk(self.medium, "vda", size_bytes)
        self.medium.create("digests", digests_bytes(size_bytes))
        file = self.medium.open("digests")
        format_digests(file, volume_id=ID, size_bytes=size_bytes, blank=blank)
        self.table = self._load(file)

    def _load(self, file: SimFile, doubtful: Iterable[int] = ()) -> DigestTable:
        unclear = DirtyMap(block_count_of(self.size_bytes))
        for block in doubtful:
            unclear.mark(block, block + 1)
        opened = load_digests(file, volume_id=ID, size_bytes=self.size_bytes, doubtful=unclear)
        return opened.table

    def apply(self, *ops: WriteOp) -> None:
        self.device.apply(ops)
        self.table.note(self.device, ops)

    def reopen(self, doubtful: Iterable[int] = ()) -> None:
        self.table.close()
        self.device.close()
        self.device = SimDisk(self.medium, "vda")
        self.table = self._load(self.medium.open("digests"), doubtful)

    def truth(self) -> list[int]:
        content = self.medium.content("vda")
        return [block_digest(content[at : at + BLOCK_BYTES]) for at in range(0, self.size_bytes, BLOCK_BYTES)]

    def leaves(self) -> list[int]:
        """What is recorded; nothing becomes known by asking."""
        device = Unreadable(SimFile(self.medium, "vda"))
        answer = self.table.examine(
            device, 0, 0, block_count_of(self.size_bytes), read_bytes_max=NO_LIMIT, pages_max=NO_LIMIT
        )
        return list(unpack_leaves(answer.digests))

    def examine(self, level: int = 0, **options: Any) -> list[int]:
        """The nodes of a level, all of them."""
        nodes = -(-block_count_of(self.size_bytes) // 512**level)
        options = {"read_bytes_max": NO_LIMIT, "pages_max": NO_LIMIT} | options
        return list(unpack_leaves(self.table.examine(self.device, level, 0, nodes, **options).digests))


def data_op(offset: int, data: bytes) -> WriteOp:
    return WriteOp(OpKind.DATA, offset, len(data), memoryview(data))


def block_op(block: int, seed: int) -> WriteOp:
    return data_op(block * BLOCK_BYTES, random.Random(seed).randbytes(BLOCK_BYTES))


@pytest.fixture
def few_pending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spills after every few leaves."""
    monkeypatch.setattr(digesttable, "_PENDING_MEMORY_MAX", 5)


# ------------------------------------------------------------------ the model

offsets = st.integers(0, SIZE_BYTES - 1)
aligned = st.integers(0, BLOCKS - 1).map(lambda block: block * BLOCK_BYTES)
lengths = st.one_of(
    st.just(BLOCK_BYTES), st.integers(1, 3 * BLOCK_BYTES), st.sampled_from([16 * BLOCK_BYTES, 5 * MIB])
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


@given(script=st.lists(steps, max_size=8), pending_max=st.sampled_from([1, 4, 10_000]))
def test_every_leaf_is_that_of_its_block(script: Sequence[Any], pending_max: int) -> None:
    bench = Bench()
    bench.table._pending_max = pending_max
    for step in script:
        if step == "save":
            bench.table.save(7)
        elif step == "reopen":
            bench.table.save()
            bench.reopen()
            bench.table._pending_max = pending_max
        elif step == "look":
            assert bench.leaves() == bench.truth()
        else:
            bench.apply(*step)
    assert bench.leaves() == bench.truth()
    fresh = Bench(blank=False)
    fresh.device.apply([data_op(0, bench.medium.content("vda"))])
    for level in (0, 1, 2):
        assert bench.examine(level) == fresh.examine(level)
        assert bench.examine(level) == bench.examine(level, read=True)
