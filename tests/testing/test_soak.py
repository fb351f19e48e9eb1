"""Chains of a soak: as a seed draws them, and as a person writes them."""

from __future__ import annotations

import pytest

from pairsync.errors import ConfigError
from pairsync.node.labfile import CABLES, HOSTS, WITNESS
from pairsync.testing.soak.clients import SIZES
from pairsync.testing.soak.plan import FAULTS_MAX, FAULTS_MIN, LAB, Step, draw, parse

FAULTS = {"kill", "guard", "pause", "cut", "disk", "restart"}
SEEDS = range(300)


def test_a_chain_that_was_drawn_can_be_read_back() -> None:
    for seed in SEEDS:
        steps = draw(seed, failover_s=2.0)
        assert steps == draw(seed, failover_s=2.0)
        assert parse("; ".join(map(str, steps))) == steps
        assert FAULTS_MIN <= sum(step.what in FAULTS for step in steps) <= FAULTS_MAX


def test_everything_is_drawn_some_time() -> None:
    drawn = {step for seed in SEEDS for step in draw(seed, failover_s=2.0)}
    words = {word for step in drawn if step.what not in {"wait", "mend"} for word in step.words}
    assert words == {*HOSTS, WITNESS, LAB, *CABLES, *SIZES, "fail", "hang", "full", "replace"}
    orders = {"move", "scrub", "grow", "point", "mend", "wait", "settle"}
    assert {step.what for step in drawn} == FAULTS | orders
    assert Step("kill", ("a", "b", "witness")) in drawn


@pytest.mark.parametrize("text", ["", "kill", "mend", "move a", "explode", "disk a fail", "kill a;; move"])
def test_what_is_no_step_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="no step"):
        parse(text)
