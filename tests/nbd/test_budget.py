"""The counter over all connections."""

from __future__ import annotations

from pairsync.nbd.budget import Budget


def test_budget() -> None:
    budget = Budget(100)
    assert not budget.exhausted
    budget.change(99)
    assert not budget.exhausted
    budget.change(1)
    assert (budget.exhausted, budget.used_bytes) == (True, 100)
    budget.change(-100)
    assert not budget.exhausted
    assert budget.used_bytes == 0
