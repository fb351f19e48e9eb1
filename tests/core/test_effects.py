"""Effects: what a shell has to perform; every kind is known, and none is confused with another."""

from __future__ import annotations

import typing

from pairsync.core import effects
from pairsync.core.effects import (
    Apply,
    Complete,
    DropSession,
    Effect,
    Emit,
    Flush,
    Journal,
    MapAllocation,
    Persist,
    Read,
    SavePages,
    Send,
)
from pairsync.testing.manual import LANES, ManualPair


def test_every_effect_is_in_the_union() -> None:
    defined = {name for name in effects.__all__ if name != "Effect"}
    assert {kind.__name__ for kind in typing.get_args(Effect)} == defined


def test_what_waits_for_an_answer_names_its_volume_and_its_token() -> None:
    answered = (Journal, Apply, Flush, SavePages, Persist, MapAllocation)
    assert {kind._fields[:2] for kind in answered} == {("volume", "token")}
    assert Read._fields[:2] == ("volume", "number")
    at_once = (Send, Complete, DropSession, Emit)
    assert not any("volume" in kind._fields for kind in at_once)


def test_a_save_releases_nothing_unless_told() -> None:
    assert SavePages(0, None, {}).release == ()


def test_a_hand_driven_host_has_a_lane_for_all_that_waits() -> None:
    pair = ManualPair(4096)
    assert set(LANES) == {"disk", "meta", "side"}
    assert pair.a.waiting("disk") == ()
