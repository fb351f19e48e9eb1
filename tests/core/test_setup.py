"""With which numbers a volume goes on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pairsync.core.dirty import DirtyMap
from pairsync.core.limits import VolumeOptions
from pairsync.core.messages import Generation
from pairsync.core.setup import VolumeSetup
from pairsync.testing.manual import blank_superblock

FIRST, SECOND = Generation(1, 1, 7), Generation(1, 2, 8)


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
