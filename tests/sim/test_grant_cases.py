"""Cases that the simulator of grants has met, set up directly: seeds change their meaning, these do not."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from pairsync.testing.grantsim import GrantProfile, GrantWorld, draw_profile


def _quiet(**changes: object) -> GrantProfile:
    """No faults but what the case does."""
    return replace(draw_profile(Random(1)), faults={}, drill=False, **changes)  # type: ignore[arg-type]


def _new_guest() -> GrantWorld:
    """One that nobody has agreed on yet but who has it first."""
    worlds = (GrantWorld(seed, _quiet()) for seed in range(50))
    return next(each for each in worlds if each.checker.newest is not None and each.checker.newest.is_first)


def test_a_guest_whose_first_owner_forgets_before_anything_is_written_is_made_once_more() -> None:
    """Nobody else votes, and what is blank is not served from later, not by an override either."""
    world = _new_guest()
    world.hosts[0].forget(restored=world.hosts[0].memory)
    world.run()
    assert world.coverage.counts["operator-begins-anew"] == 1
    assert world.guest.acknowledged
