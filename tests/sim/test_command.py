"""Every simulator: a seed has one trace, in every process, and its command says what came of it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from pairsync.testing.grantsim import GrantWorld
from pairsync.testing.grantsim.__main__ import COMMAND as GRANTS
from pairsync.testing.shellsim.__main__ import COMMAND as SHELL
from pairsync.testing.sim import World
from pairsync.testing.sim.__main__ import COMMAND as CORE
from pairsync.testing.sim.command import SimulatorCommand

EACH = pytest.mark.parametrize("command", [CORE, GRANTS, SHELL], ids=["core", "grants", "shell"])


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """What the hosts log would fill pages."""
    caplog.set_level(logging.CRITICAL + 1, "pairsync")


@pytest.mark.parametrize(
    ("command", "seeds"),
    [(CORE, (1, 8, 17, 43)), (GRANTS, (2, 9, 39)), (SHELL, (3,))],
    ids=["core", "grants", "shell"],
)
def test_same_seed_same_trace(command: SimulatorCommand, seeds: tuple[int, ...]) -> None:
    first, second = (list(map(command.simulate, seeds)) for _ in range(2))
    assert first == second
    assert all(each.failure is None and each.events > 500 for each in first)
    others = [command.simulate(seed + 1) for seed in seeds]
    assert len({each.digest for each in (*first, *others)}) == 2 * len(seeds)


@pytest.mark.parametrize(
    ("command", "seeds"),
    [(CORE, (3, 8, 12)), (GRANTS, (3, 8, 12)), (SHELL, (4,))],
    ids=["core", "grants", "shell"],
)
def test_trace_does_not_depend_on_the_process(command: SimulatorCommand, seeds: tuple[int, ...]) -> None:
    """Sets and dicts of strings are ordered differently in every process unless the hash seed is fixed."""
    program = (
        f"from {command.module}.__main__ import COMMAND\n"
        f"print([COMMAND.simulate(seed).digest for seed in {seeds}])"
    )
    here = f"{[command.simulate(seed).digest for seed in seeds]}\n"
    for hash_seed in ("0", "77"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == here


@pytest.mark.parametrize(("command", "world"), [(CORE, World), (GRANTS, GrantWorld)], ids=["core", "grants"])
def test_failure_shows_the_trace_and_how_to_replay_it(
    command: SimulatorCommand,
    world: type[World | GrantWorld],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def go_wrong(self: World | GrantWorld) -> None:
        self.trace.note("active", "applied", 7)
        self.fail("lost-write", "sector 3 holds something else")

    monkeypatch.setattr(world, "run", go_wrong)
    assert command.main(["--seed", "5"]) == 1
    shown = capsys.readouterr().out
    assert "lost-write: sector 3 holds something else" in shown
    assert "active   applied" in shown
    assert f"python -m {command.module} --seed 5" in shown


@EACH
def test_run_that_reaches_too_little_fails(
    command: SimulatorCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replace(command, coverage_seeds=1).main(["--seeds", "1", "--jobs", "1"]) == 2
    assert "not reached: crash-" in capsys.readouterr().out


@EACH
def test_everything_required_counts_as_reached_only_if_it_was(command: SimulatorCommand) -> None:
    required = command.required()
    assert len(set(required)) == len(required)
    assert command.missing(required) == []
    assert command.missing([]) == required
    assert command.missing(required[1:]) == required[:1]


@EACH
def test_summary_as_json(command: SimulatorCommand, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--seeds", "1", "--start", "3", "--jobs", "1", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["seeds"], figures["failed"], figures["failures"]) == (1, [], {})
    assert figures["ratio"] > 1
