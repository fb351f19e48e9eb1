"""The counter over all connections."""

from __future__ import annotations

from functools import partial

from pairsync.nbd.budget import Budget


def test_budget() -> None:
    budget = Budget(100, 150)
    assert not budget.exhausted
    budget.used_bytes += 99
    assert not budget.exhausted
    budget.used_bytes += 1
    assert (budget.exhausted, budget.overdrawn, budget.used_bytes) == (True, False, 100)
    budget.used_bytes -= 100
    assert not budget.exhausted
    assert budget.used_bytes == 0


def test_who_waits_is_woken_once_it_has_fallen_below_the_hard_limit() -> None:
    budget = Budget(100, 150)
    woken: list[int] = []
    for number in range(3):
        budget.waiting[number] = partial(woken.append, number)
    budget.used_bytes = 150
    budget.notice()
    assert (budget.overdrawn, woken) == (True, [])
    budget.used_bytes = 149
    budget.notice()
    budget.notice()
    assert (budget.overdrawn, woken) == (False, [0, 1, 2])
