"""Keeping in the life of a replica: opened with it, gone on with, and errnos where a disk fails."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest

from pairsync.core.dirty import DirtyMap
from pairsync.core.limits import VolumeOptions
from pairsync.core.messages import Condition, Generation, OpKind, WriteOp
from pairsync.core.superblock import Superblock
from pairsync.core.units import BLOCK_BYTES, MIB
from pairsync.errors import BackendError
from pairsync.guest.config import VolumeConfig
from pairsync.guest.keeping import keep_job, kept_job
from pairsync.guest.replica import Replica, create_replica, open_replica
from pairsync.storage.kept import Keeper
from pairsync.storage.overlay import Overlays
from pairsync.storage.undolog import UndoLog

PAIR = b"p" * 16


@pytest.fixture
def volume(tmp_path: Path) -> VolumeConfig:
    path = tmp_path / "vda.img"
    create_replica(path, name="vda", pair_id=PAIR, volume_id=b"v" * 16, size_bytes=MIB)
    return VolumeConfig("vda", path, VolumeOptions(overlay_bytes=2 * MIB))


def _keeper(replica: Replica) -> Keeper:
    if replica.keeper is None:
        raise AssertionError("nothing is kept of a replica on real files")
    return replica.keeper


def _blocks(replica: Replica) -> tuple[Superblock, Superblock]:
    first = Generation(1, 1, 1)
    durable = replace(replica.store.superblock, condition=Condition.CONSISTENT, lineage=(first,))
    return durable, replace(durable, condition=Condition.SYNCING, sync_target=first)


def test_a_replica_goes_on_with_its_log(volume: VolumeConfig) -> None:
    replica = open_replica(volume, PAIR)
    durable, syncing = _blocks(replica)
    assert _keeper(replica).overlays.bytes_max == 2 * MIB
    assert keep_job(_keeper(replica), durable, syncing) == 0
    replica.store.write_superblock(syncing)
    replica.device.apply([WriteOp(OpKind.DATA, 0, BLOCK_BYTES, memoryview(b"b" * BLOCK_BYTES))])
    replica.close()
    replica = open_replica(volume, PAIR)
    undo = _keeper(replica).undo
    assert undo is not None
    assert 0 in undo.kept
    assert keep_job(_keeper(replica), syncing, durable) == 0
    assert kept_job(_keeper(replica), durable) == 0
    assert list(_keeper(replica).infos()) == []
    replica.close()


def test_a_failing_disk_is_an_errno(volume: VolumeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    replica = open_replica(volume, PAIR)
    durable, syncing = _blocks(replica)

    def fail(*_: object) -> None:
        raise BackendError("no room", errno.ENOSPC)

    monkeypatch.setattr(Keeper, "before", fail)
    monkeypatch.setattr(Keeper, "after", fail)
    assert keep_job(_keeper(replica), durable, syncing) == errno.ENOSPC
    assert kept_job(_keeper(replica), durable) == errno.ENOSPC
    replica.close()


def test_a_replica_whose_overlays_cannot_be_read_is_closed(
    volume: VolumeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Overlays) -> None:
        raise BackendError("broken", errno.EIO)

    with monkeypatch.context() as patch:
        patch.setattr(Overlays, "_load", fail)
        with pytest.raises(BackendError, match="broken"):
            open_replica(volume, PAIR)
    open_replica(volume, PAIR).close()


def test_a_log_that_cannot_be_gone_on_with_yet_is_given_back(
    volume: VolumeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A standby whose disk failed in that moment found its log in use ever after, by itself."""
    replica = open_replica(volume, PAIR)
    durable, syncing = _blocks(replica)
    assert keep_job(_keeper(replica), durable, syncing) == 0
    replica.store.write_superblock(replace(syncing, clean=False))
    undo = _keeper(replica).undo
    assert undo is not None
    undo.narrow(DirtyMap(MIB // BLOCK_BYTES))
    replica.store.append_intents(1, replica.setup.first_generation, [(2, 3)])
    replica.close()

    def fail(*_: object) -> None:
        raise BackendError("broken", errno.EIO)

    with monkeypatch.context() as patch:
        patch.setattr(UndoLog, "narrow", fail)
        with pytest.raises(BackendError, match="broken"):
            open_replica(volume, PAIR)
    replica = open_replica(volume, PAIR)
    assert _keeper(replica).undo is not None
    replica.close()
