"""Growing on real files: room, then the superblock, then what is open; cut off in between; two guests."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest
from tests.guest.harness import Pair, await_event, in_time

from pairsync.core.events import GrownEvent
from pairsync.core.messages import Condition, Generation, OpKind, WriteOp
from pairsync.core.units import BLOCK_BYTES, MIB, VOLUME_BYTES_MAX
from pairsync.errors import ArbitrationError, BackendError, ClosedError, ConfigError
from pairsync.guest.config import VolumeConfig
from pairsync.guest.growing import extend_job, recorded_job
from pairsync.guest.guest import open_guest
from pairsync.guest.replica import Replica, create_replica, open_replica, persist_job

PAIR = b"p" * 16
SIZE = MIB + 512  # ends in the middle of a block
LARGER = 3 * MIB


@pytest.fixture
def volume(tmp_path: Path) -> VolumeConfig:
    path = tmp_path / "vda.img"
    create_replica(path, name="vda", pair_id=PAIR, volume_id=b"v" * 16, size_bytes=SIZE)
    return VolumeConfig("vda", path)


def read(replica: Replica, offset: int, length: int) -> bytes:
    content = bytearray(length)
    replica.device.read_into(offset, memoryview(content))
    return bytes(content)


def digests(replica: Replica) -> bytes:
    return replica.device.examine(0, 0, -(-replica.device.size_bytes // BLOCK_BYTES), read=False).digests


def test_room_then_the_superblock_then_what_is_open(volume: VolumeConfig) -> None:
    replica = open_replica(volume, PAIR)
    replica.device.begin_life(active=True)
    replica.device.apply([WriteOp(OpKind.DATA, SIZE - 512, 512, b"x" * 512)])
    assert extend_job(replica, LARGER) == 0
    assert replica.device.size_bytes == SIZE
    wanted = replace(replica.store.superblock, size_bytes=LARGER)
    assert persist_job(replica.store, wanted) == 0
    assert recorded_job(replica.device, None, wanted) == 0
    assert replica.device.size_bytes == LARGER
    assert read(replica, SIZE - 1, 2) == b"x\0"
    replica.device.apply([WriteOp(OpKind.DATA, LARGER - 1, 1, b"y")])
    recorded = digests(replica)
    replica.close()
    Path(f"{volume.path}.pairsync-digests").unlink()  # all blocks are read
    again = open_replica(volume, PAIR)
    assert digests(again) == recorded
    assert again.setup.superblock.size_bytes == LARGER
    again.close()


@pytest.mark.parametrize("recorded", [False, True])
def test_a_growth_that_was_cut_short_is_found_as_it_was(volume: VolumeConfig, *, recorded: bool) -> None:
    replica = open_replica(volume, PAIR)
    replica.device.begin_life(active=True)
    replica.device.apply([WriteOp(OpKind.DATA, SIZE - 512, 512, b"x" * 512)])
    assert extend_job(replica, LARGER) == 0
    if recorded:
        assert persist_job(replica.store, replace(replica.store.superblock, size_bytes=LARGER)) == 0
    replica.close()
    size = LARGER if recorded else SIZE
    with open(volume.path, "r+b") as file:  # a file that nobody has made: what lies there counts for nothing
        assert file.seek(0, 2) == LARGER
        if not recorded:
            file.seek(SIZE + 5)
            file.write(b"rubbish")
    again = open_replica(volume, PAIR)
    again.device.begin_life(active=True)
    assert again.device.size_bytes == again.setup.superblock.size_bytes == size
    assert len(digests(again)) == -(-size // BLOCK_BYTES) * 8
    wanted = replace(again.store.superblock, size_bytes=LARGER + BLOCK_BYTES)
    assert extend_job(again, wanted.size_bytes) == 0
    assert persist_job(again.store, wanted) == 0
    assert recorded_job(again.device, None, wanted) == 0
    assert not any(read(again, SIZE, wanted.size_bytes - SIZE))
    again.close()


def test_the_way_back_of_a_replica_that_is_being_overwritten_grows_along(volume: VolumeConfig) -> None:
    replica = open_replica(volume, PAIR)
    keeper = replica.keeper
    assert keeper is not None
    replica.device.begin_life(active=False)
    replica.device.apply([WriteOp(OpKind.DATA, 0, BLOCK_BYTES, b"o" * BLOCK_BYTES)])
    first = Generation(1, 1, 1)
    durable = replace(replica.store.superblock, condition=Condition.CONSISTENT, lineage=(first,))
    syncing = replace(durable, condition=Condition.SYNCING, sync_target=first)
    keeper.before(durable, syncing)
    replica.store.write_superblock(syncing)
    assert extend_job(replica, LARGER) == 0
    larger = replace(syncing, size_bytes=LARGER)
    assert persist_job(replica.store, larger) == 0
    assert recorded_job(replica.device, keeper, larger) == 0
    replica.device.apply(
        [WriteOp(OpKind.DATA, at, BLOCK_BYTES, b"n" * BLOCK_BYTES) for at in (0, LARGER - BLOCK_BYTES)]
    )
    assert keeper.undo is not None
    assert LARGER // BLOCK_BYTES - 1 in keeper.undo.kept
    keeper.undo.revert(replica.device)
    assert read(replica, 0, BLOCK_BYTES) == b"o" * BLOCK_BYTES
    assert not any(read(replica, LARGER - BLOCK_BYTES, BLOCK_BYTES))
    replica.close()


def test_a_disk_without_room_is_an_errno(volume: VolumeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    replica = open_replica(volume, PAIR)
    assert extend_job(replica, 1 << 62) in {errno.EFBIG, errno.EINVAL, errno.ENOSPC}

    def fail(size_bytes: int) -> None:
        raise BackendError(f"no {size_bytes}", errno.ENOSPC)

    monkeypatch.setattr(replica.store, "extend", fail)
    assert extend_job(replica, LARGER) == errno.ENOSPC
    monkeypatch.setattr(replica.device, "enlarge", fail)
    assert (
        recorded_job(replica.device, None, replace(replica.store.superblock, size_bytes=LARGER))
        == errno.ENOSPC
    )
    assert replica.device.size_bytes == SIZE
    replica.close()


MADE = 8 * MIB  # of the replicas of `pair`
ODD = MADE + 1536


async def test_two_guests_grow_in_use(pair: Pair) -> None:
    async with in_time(), pair.both() as (active, standby):
        volume = active.volume("vda")
        with active.subscribe() as events:
            await volume.write(MADE - 3, b"end")
            await volume.grow(ODD)
            assert (await await_event(events, GrownEvent)) == GrownEvent("vda", ODD, MADE)
        assert volume.size_bytes == standby.volume("vda").size_bytes == ODD
        assert active.statistics().volumes[0].size_bytes == ODD
        assert active.in_sync
        await volume.write(ODD - 3, b"new")
        assert await volume.read(MADE - 3, 6) == b"end\0\0\0"
        await volume.grow(ODD)
        await volume.grow(ODD + MIB)
        assert await volume.read(ODD - 3, 6) == b"new\0\0\0"
        for size in (ODD, VOLUME_BYTES_MAX + 1):
            with pytest.raises(ConfigError, match="it only grows"):
                await volume.grow(size)
        with pytest.raises(ArbitrationError):
            await standby.volume("vda").grow(2 * ODD)
        report = await volume.scrub()
        assert (report.findings, report.total_bytes) == (0, ODD + MIB)
    with pytest.raises(ClosedError):
        await volume.grow(2 * ODD)
    assert pair.same()
    assert pair.image("a").stat().st_size == ODD + MIB


async def test_alone_and_then_the_other_follows(pair: Pair) -> None:
    async with in_time():
        async with pair.both():
            pass
        async with open_guest(pair.config("a")) as active:
            await active.volume("vda").grow(ODD)
            await active.volume("vda").write(ODD - 3, b"new")
            async with open_guest(pair.config("b")) as standby:
                await active.wait_in_sync()
                assert standby.volume("vda").size_bytes == ODD
    assert pair.same()
