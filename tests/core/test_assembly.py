"""What a host says of its replica is what its superblock says."""

from __future__ import annotations

from dataclasses import replace

from pairsync.core.assembly import state_of
from pairsync.core.dirty import DirtyMap
from pairsync.core.limits import VolumeOptions
from pairsync.core.messages import Condition, Generation
from pairsync.testing.manual import blank_superblock

FIRST, SECOND = Generation(1, 1, 7), Generation(1, 2, 8)


def test_a_host_introduces_its_replica_as_it_is_recorded() -> None:
    block = replace(
        blank_superblock("vda", 1 << 20),
        condition=Condition.SYNCING,
        lineage=(SECOND, FIRST),
        sync_target=SECOND,
        map_base=FIRST,
    )
    dirty = DirtyMap(256)
    dirty.mark(3, 7)
    state = state_of(block, dirty, VolumeOptions(digests=False), reached=7, given=5)
    assert (state.name, state.size_bytes, state.volume_id) == ("vda", 1 << 20, block.volume_id)
    assert (state.condition, state.lineage) == (Condition.SYNCING, (SECOND, FIRST))
    assert (state.sync_target, state.map_base) == (SECOND, FIRST)
    assert state.dirty_blocks == 4
    assert not state.proves
    assert (state.reached, state.given) == (7, 5)
