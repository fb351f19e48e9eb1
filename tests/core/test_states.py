"""What a host says of itself: the names of generations."""

from __future__ import annotations

from pairsync.core.states import Condition, Generation, VolumeState


def test_a_generation_is_named_by_its_numbers_and_the_end_of_its_tag() -> None:
    assert Generation(1, 4, 0x1239F).describe() == "1.4/9f"
    assert Generation(12, 300, 0x05).describe() == "12.300/05"


def test_generations_with_the_same_numbers_are_told_apart() -> None:
    assert Generation(1, 4, 1) != Generation(1, 4, 2)


def test_a_replica_that_was_resynced_has_another_past_and_nothing_of_its_own() -> None:
    old, new = Generation(1, 1, 1), Generation(2, 1, 2)
    state = VolumeState("vda", bytes(16), 1 << 20, Condition.SYNCING, (), new, old, dirty_blocks=7, given=3)
    expected = VolumeState("vda", bytes(16), 1 << 20, Condition.CONSISTENT, (new, old), given=3)
    assert state.adopted((new, old)) == expected


def test_who_says_nothing_of_milestones_was_given_none_and_may_have_reached_any() -> None:
    state = VolumeState("vda", bytes(16), 1 << 20, Condition.CONSISTENT, (Generation(1, 1, 1),))
    assert (state.reached, state.given) == (None, 0)
