"""Going back by decision: whole again, apart from its source, refused where there is nothing to decide."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest

from pairsync.core.messages import Condition, Generation, OpKind, WriteOp
from pairsync.core.units import BLOCK_BYTES, MIB
from pairsync.errors import ArbitrationError, BackendError, BusyError, ConfigError
from pairsync.guest.config import VolumeConfig
from pairsync.guest.promote import look_at_replicas, promote_replicas
from pairsync.guest.replica import Replica, create_replica, open_replica

PAIR = b"p" * 16
FIRST, SECOND = Generation(3, 1, 7), Generation(3, 2, 8)


def _volume(directory: Path, name: str = "vda") -> VolumeConfig:
    path = directory / f"{name}.img"
    create_replica(path, name=name, pair_id=PAIR, volume_id=name.encode().ljust(16), size_bytes=MIB)
    return VolumeConfig(name, path)


def _write(replica: Replica, fill: bytes) -> None:
    data = memoryview(fill * (4 * BLOCK_BYTES))
    replica.device.apply([WriteOp(OpKind.DATA, 0, len(data), data)])
    replica.device.flush()


def _consistent(volume: VolumeConfig) -> None:
    replica = open_replica(volume, PAIR)
    _write(replica, b"a")
    block = replica.store.superblock
    replica.store.write_superblock(
        replace(block, condition=Condition.CONSISTENT, lineage=(FIRST,), term=3, peer_in_sync=True)
    )
    replica.close()


def _half_overwritten(volume: VolumeConfig) -> None:
    _consistent(volume)
    replica = open_replica(volume, PAIR)
    assert replica.keeper is not None
    block = replica.store.superblock
    syncing = replace(block, condition=Condition.SYNCING, sync_target=SECOND)
    replica.keeper.before(block, syncing)
    replica.store.write_superblock(syncing)
    _write(replica, b"b")
    replica.close()


def _term_of(volume: VolumeConfig) -> int:
    replica = open_replica(volume, PAIR)
    term = replica.store.superblock.term
    replica.close()
    return term


def _content(volume: VolumeConfig) -> bytes:
    return Path(volume.path).read_bytes()[: 4 * BLOCK_BYTES]


def test_it_is_told_first_and_then_done(tmp_path: Path) -> None:
    volume = _volume(tmp_path)
    _half_overwritten(volume)
    (told,) = look_at_replicas([volume], PAIR)
    assert _content(volume) == b"b" * 4 * BLOCK_BYTES
    assert (told.volume, told.reverts, told.generation, told.blocks, told.term) == (
        *("vda", True, FIRST.describe()),
        *(256, 4),  # and the hole behind what was written
    )
    assert told.resync_began_s is not None
    assert promote_replicas([volume], PAIR) == [told]
    assert _content(volume) == b"a" * 4 * BLOCK_BYTES
    replica = open_replica(volume, PAIR)
    block = replica.store.superblock
    assert (block.condition, block.term, block.map_base) == (Condition.CONSISTENT, 4, None)
    assert block.lineage[0].term == 4
    assert block.lineage[1:] == (FIRST,)
    assert not block.peer_in_sync
    assert replica.keeper is not None
    assert list(replica.keeper.infos()) == []
    digests = replica.device.examine(0, 0, 4, read=True)
    assert not digests.bad
    replica.close()


def test_a_cut_decision_is_made_again(tmp_path: Path) -> None:
    volume = _volume(tmp_path)
    _half_overwritten(volume)

    def opener(volume: VolumeConfig, pair_id: bytes) -> Replica:
        replica = open_replica(volume, pair_id)
        replica.device.apply = _fail  # type: ignore[method-assign]  # of this one
        return replica

    def _fail(ops: object) -> None:
        raise BackendError("the disk says no", errno.EIO)

    with pytest.raises(BackendError):
        promote_replicas([volume], PAIR, opener=opener)
    replica = open_replica(volume, PAIR)
    block = replica.store.superblock
    assert (block.condition, block.sync_target) == (
        Condition.SYNCING,
        None,
    )  # all is copied, if it is resumed
    replica.close()
    promote_replicas([volume], PAIR)
    assert _content(volume) == b"a" * 4 * BLOCK_BYTES


def test_others_of_the_guest_stay_as_they_are(tmp_path: Path) -> None:
    volumes = [_volume(tmp_path), _volume(tmp_path, "vdb")]
    _half_overwritten(volumes[0])
    _consistent(volumes[1])
    first, second = promote_replicas(volumes, PAIR)
    assert (first.reverts, second.reverts, second.resync_began_s) == (True, False, None)
    assert _term_of(volumes[1]) == 3


def test_nothing_to_decide(tmp_path: Path) -> None:
    volume = _volume(tmp_path)
    with pytest.raises(ArbitrationError, match="never written"):
        promote_replicas([volume], PAIR)
    _consistent(volume)
    with pytest.raises(ConfigError, match="nothing to decide"):
        look_at_replicas([volume], PAIR)


def test_no_way_back(tmp_path: Path) -> None:
    volume = _volume(tmp_path)
    _half_overwritten(volume)
    (tmp_path / "vda.img.pairsync-overlay-1").unlink()
    with pytest.raises(ArbitrationError, match="there is no way back"):
        promote_replicas([volume], PAIR)


def test_not_while_the_host_runs(tmp_path: Path) -> None:
    volume = _volume(tmp_path)
    _half_overwritten(volume)
    replica = open_replica(volume, PAIR)
    with pytest.raises(BusyError):
        promote_replicas([volume], PAIR)
    replica.close()
