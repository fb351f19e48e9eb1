"""The fault atlas says what the simulators do, no more and no less."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pairsync.testing import grantsim, shellsim, sim
from pairsync.testing.shellsim import profile as shell_profile

ROOT = Path(__file__).parent.parent
ATLAS = (ROOT / "docs" / "fault-atlas.md").read_text(encoding="utf-8")
PLACES = {"core", "shell", "e2e"}
CLAIMS = ("survived", "stops", "refused", "a person")


def _rows(heading: str) -> list[list[str]]:
    """The cells of the table under that heading, without its head."""
    _, found, rest = ATLAS.partition(f"## {heading}\n")
    assert found, f"no heading {heading!r}"
    lines = [line for line in rest.partition("\n## ")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


INJECTED = {row[0].strip("`"): row for row in _rows("Injected by the simulators")}


def _in(place: str) -> set[str]:
    return {fault for fault, row in INJECTED.items() if place in row[2].split(", ")}


@pytest.mark.parametrize(("place", "faults"), [("core", sim.FAULTS), ("shell", shell_profile.FAULTS)])
def test_the_atlas_has_the_faults_of_the_simulators(place: str, faults: dict[str, float]) -> None:
    assert _in(place) == set(faults)


def test_the_atlas_has_the_faults_of_the_simulator_of_grants() -> None:
    rows = _rows("Injected by the simulator of grants")
    assert [fault.strip("`") for fault, _, _ in rows] == list(grantsim.FAULTS)
    assert all(model and claim for _, model, claim in rows)


def test_every_fault_stands_once_and_is_whole() -> None:
    rows = _rows("Injected by the simulators")
    assert len(rows) == len(INJECTED)
    for fault, model, places, rules, claim in rows:
        assert re.fullmatch(r"`[a-z-]+`", fault), fault
        assert model, fault
        assert set(places.split(", ")) <= PLACES, fault
        assert set(places.split(", ")) & {"core", "shell"}, fault
        assert set(map(int, rules.split(", "))) <= set(range(1, 12)), fault
        assert claim.startswith(CLAIMS), fault


def test_what_is_not_injected_is_not_injected() -> None:
    rows = _rows("Not claimed, or not injected yet")
    assert rows
    assert all(what and why for what, why in rows)
    assert not {what for what, _ in rows} & set(INJECTED)


def test_every_file_that_is_named_exists() -> None:
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", ATLAS))
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []
    for module in (sim, shellsim):
        assert f"`{module.__name__}`" in ATLAS
