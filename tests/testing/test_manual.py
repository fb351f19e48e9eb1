"""The hand-driven pair keeps the contract of effects, and complains when it is broken."""

from __future__ import annotations

import pytest

from pairsync.core.effects import Journal, SavePages
from pairsync.core.messages import OpKind, Role, WriteOp
from pairsync.core.resync import PIECE_BYTES
from pairsync.core.units import BLOCK_BYTES, Extent
from pairsync.errors import InternalError
from pairsync.testing.manual import ManualDisk, ManualMetadata, ManualPair, blank_superblock

PIECE_BLOCKS = PIECE_BYTES // BLOCK_BYTES


def data(block: int, blocks: int = 1, *, fua: bool = False) -> WriteOp:
    return WriteOp(OpKind.DATA, block * BLOCK_BYTES, blocks * BLOCK_BYTES, b"x" * blocks * BLOCK_BYTES, fua)


# -- the disk ------------------------------------------------------------------------------------------------


def test_a_power_cut_takes_what_was_not_made_durable() -> None:
    disk = ManualDisk(4 * BLOCK_BYTES)
    disk.apply([data(0), data(1, fua=True)])
    disk.power_cut()
    assert disk.content[:BLOCK_BYTES] == bytes(BLOCK_BYTES)
    assert disk.content[BLOCK_BYTES] == ord("x")


def test_a_write_beyond_the_end_is_our_own_bug() -> None:
    with pytest.raises(InternalError, match="of 4096 bytes"):
        ManualDisk(BLOCK_BYTES).apply([data(1)])


def test_a_read_finds_zeroes_in_one_go_and_data_in_pieces() -> None:
    disk = ManualDisk(4 * PIECE_BYTES)
    disk.apply([data(3, 2 * PIECE_BLOCKS)])
    covered, ops = disk.find(Extent(0, 1000))
    assert (covered, ops[0].kind) == (Extent(0, 3), OpKind.ZERO)
    covered, ops = disk.find(Extent(3, 1000))
    assert (covered, ops[0].length) == (Extent(3, 3 + PIECE_BLOCKS), PIECE_BYTES)
    assert disk.written == set(range(3, 3 + 2 * PIECE_BLOCKS))


def test_the_last_block_may_be_partial() -> None:
    disk = ManualDisk(BLOCK_BYTES + 10)
    covered, (op,) = disk.find(Extent(0, 2))
    assert (covered, op.length) == (Extent(0, 2), BLOCK_BYTES + 10)


# -- the metadata --------------------------------------------------------------------------------------------


def test_a_segment_is_used_again_only_when_it_was_released() -> None:
    metadata = ManualMetadata(blank_superblock("vda", 16 * BLOCK_BYTES))
    metadata.append(Journal(0, None, 1, 5, [Extent(1, 2)]))
    metadata.append(Journal(0, None, 1, 5, [Extent(3, 4)]))
    with pytest.raises(InternalError, match="segment 1 holds generation 5"):
        metadata.append(Journal(0, None, 1, 7, [Extent(1, 2)]))
    metadata.save(SavePages(0, None, {}, (1,)))
    metadata.append(Journal(0, None, 1, 7, [Extent(9, 10)]))
    assert metadata.generation_max == 7
    assert metadata.recovered().count == 0  # the superblock says it was closed in order


# -- the hosts -----------------------------------------------------------------------------------------------


def test_lanes_are_strictly_in_order_but_for_the_side() -> None:
    pair = ManualPair(16 * BLOCK_BYTES)
    pair.a.start(Role.ACTIVE, 1)
    with pytest.raises(InternalError, match="strictly in order"):
        pair.a.complete("meta", at=1)
    with pytest.raises(InternalError, match="nothing is under way in lane disk"):
        pair.a.complete("disk")
    with pytest.raises(InternalError, match="up already"):
        pair.a.start(Role.ACTIVE, 1)


def test_what_was_not_delivered_is_lost_with_the_link() -> None:
    pair = ManualPair(16 * BLOCK_BYTES)
    pair.a.start(Role.ACTIVE, 1)
    pair.b.start(Role.STANDBY, 1)
    pair.settle()
    pair.connect()
    with pytest.raises(InternalError, match="has sent 1 messages"):
        pair.deliver(pair.a, 2)
    pair.cut()
    assert not pair.a.outbox
    pair.connect()
    pair.settle()
    assert pair.a.session.in_sync
    assert pair.differing() == []
    assert pair.forgotten() == []


def test_a_loop_without_progress_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = ManualPair(16 * BLOCK_BYTES)
    monkeypatch.setattr(pair, "step", lambda: True)
    with pytest.raises(InternalError, match="does not come to rest"):
        pair.settle()


def test_hosts_have_two_names() -> None:
    with pytest.raises(InternalError, match="no host 'c'"):
        ManualPair(BLOCK_BYTES).host("c")
