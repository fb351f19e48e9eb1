"""How a volume's machines are put together: what a host says of itself is what its superblock says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pairsync.core.dirty import DirtyMap
from pairsync.core.limits import VolumeOptions
from pairsync.core.messages import Condition, Generation
from pairsync.core.setup import VolumeSetup, state_of
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


@pytest.mark.parametrize(
    ("recorded", "given", "parted", "first", "milestone"),
    [
        (1, 0, None, 2, 2),  # a generation of the lineage has the number 2 already
        (9, 4, None, 9, 9),
        (4, 9, None, 9, 9),  # numbers go on above those of an earlier owner
        (9, 4, 6, 9, 6),  # what was recorded since the peer was left, it cannot know
    ],
)
def test_milestones_go_on_above_all_that_is_known(
    recorded: int, given: int, parted: int | None, first: int, milestone: int
) -> None:
    block = replace(blank_superblock("vda", 1 << 20), lineage=(SECOND, FIRST), parted=parted)
    setup = VolumeSetup(block, DirtyMap(256), VolumeOptions(), recorded, given=given)
    assert (setup.first_generation, setup.milestone) == (first, milestone)
