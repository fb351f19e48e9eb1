"""Arbitration, explored exhaustively within bounds: no rule is broken, and nothing was left out.

Larger bounds: ``python -m pairsync.testing.explore --bounds crashes=2,alarms=3,...``.
"""

from __future__ import annotations

import json

import pytest

from pairsync.errors import ConfigError
from pairsync.testing.explore import Bounds, explore, walk
from pairsync.testing.explore.__main__ import main

EXPLORED = {
    "three terms, two crashes, a move": (Bounds(terms=3, crashes=2, amnesias=0, alarms=1, moves=1), 150_000),
    "a memory is lost": (
        Bounds(terms=2, epochs=2, ballots=1, crashes=1, amnesias=1, alarms=2, moves=0),
        50_000,
    ),
    "two crashes, one loses its memory": (
        Bounds(terms=2, ballots=1, crashes=2, amnesias=1, alarms=1, moves=0),
        90_000,
    ),
    "three alarms": (Bounds(terms=2, crashes=0, amnesias=0, alarms=3, moves=0), 40_000),
    "no witness": (Bounds(terms=3, crashes=2, amnesias=1, alarms=2, moves=1, witness=False), 5_000),
    "two witnesses": (
        Bounds(terms=2, epochs=4, ballots=2, crashes=0, amnesias=0, alarms=2, moves=0, witness=2),
        40_000,
    ),
    "two witnesses, one forgets": (
        Bounds(terms=2, ballots=1, crashes=1, amnesias=1, alarms=1, moves=0, witness=2),
        30_000,
    ),
    "a move and an override": (
        Bounds(terms=4, ballots=1, crashes=1, amnesias=0, alarms=1, moves=1, witness=0, overrides=1),
        10_000,
    ),
    "an override": (
        Bounds(terms=3, ballots=1, crashes=0, amnesias=0, alarms=1, moves=0, overrides=1),
        30_000,
    ),
    "two overrides, no witness": (
        Bounds(terms=3, ballots=1, crashes=1, amnesias=0, alarms=1, moves=0, witness=0, overrides=2),
        10_000,
    ),
    "slow heartbeats": (Bounds(terms=2, crashes=0, amnesias=0, alarms=2, moves=0, prompt=False), 50_000),
    "the first grants": (Bounds(terms=2, crashes=1, amnesias=0, alarms=1, moves=0, paired=False), 1_000),
}
"""With how many worlds there are at least: fewer would mean that something is not explored any more."""


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPLORED)
def test_no_rule_is_broken(name: str) -> None:
    bounds, worlds_min = EXPLORED[name]
    result = explore(bounds)
    print(f"{name}: {result.states} distinct worlds, {result.steps} steps, {result.host_states} host states")
    assert result.violation is None, "\n".join([*result.way, result.violation])
    assert result.complete
    assert result.states >= worlds_min


def test_random_ways_go_deeper() -> None:
    bounds = Bounds(terms=4, epochs=5, ballots=4, crashes=4, amnesias=2, alarms=20, moves=2)
    for more in (bounds, bounds._replace(terms=6, witness=2, overrides=2)):
        result = walk(more, seed=1, ways=60)
        assert result.violation is None, "\n".join([*result.way, result.violation])
        assert result.states > 1000


def test_the_same_every_time() -> None:
    bounds = Bounds(terms=2, crashes=1, amnesias=0, alarms=1, moves=0, witness=False)
    assert explore(bounds) == explore(bounds)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    small = "terms=2,crashes=1,amnesias=0,alarms=1,witness=0"
    assert main(["--bounds", small]) == 0
    assert "all within the bounds" in capsys.readouterr().out
    assert main(["--bounds", small, "--states", "10"]) == 2
    assert "not all" in capsys.readouterr().out
    assert main(["--bounds", small, "--walk", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["violation"] is None
    for wrong in ("terms", "colour=3", "terms=-1"):
        with pytest.raises(ConfigError):
            main(["--bounds", wrong])
