"""The simulator of the whole shell: its seeds, its determinism, and what it finds in a broken shell."""

from __future__ import annotations

import pytest

from pairsync.testing.shellsim import simulate
from pairsync.testing.shellsim.runner import be_quiet


@pytest.fixture(autouse=True)
def quiet() -> None:
    be_quiet()


def test_the_same_seed_gives_the_same_trace() -> None:
    first, second = simulate(3), simulate(3)
    assert first.failure is None
    assert first == second
    assert first.lines > 1000
