"""The counter over all connections."""

from __future__ import annotations

from pairsync.nbd.budget import Budget


def test_budget() -> None:
    budget = Budget(100)
    assert not budget.exhausted
    budget.used_bytes += 99
    assert not budget.exhausted
    budget.used_bytes += 1
    assert (budget.exhausted, budget.used_bytes) == (True, 100)
    budget.used_bytes -= 100
    assert not budget.exhausted
    assert budget.used_bytes == 0
