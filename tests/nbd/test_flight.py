"""Back-pressure of one connection: when it is full, when idle, and who is woken."""

from __future__ import annotations

import pytest
import trio

from pairsync.nbd.budget import Budget
from pairsync.nbd.flight import Flight
from pairsync.nbd.limits import NbdLimits

LIMITS = NbdLimits(requests_in_flight_max=4, bytes_in_flight_max=1000, unsent_bytes_max=100)


@pytest.fixture
def budget() -> Budget:
    return Budget(5000)


@pytest.fixture
def flight(budget: Budget) -> Flight:
    return Flight(LIMITS, budget)


def state(flight: Flight) -> tuple[bool, bool, int]:
    return flight.full, flight.idle, flight.room_requests


@pytest.mark.parametrize(("requests", "payload", "unsent"), [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_each_limit_makes_it_full(
    flight: Flight, budget: Budget, requests: int, payload: int, unsent: int
) -> None:
    assert state(flight) == (False, True, 4)
    flight.enter(3, 999)
    flight.unsent_changed(99)
    assert state(flight) == (False, False, 1)
    assert budget.used_bytes == 1098
    flight.enter(requests, payload)
    flight.unsent_changed(unsent)
    assert state(flight)[0] is True
    flight.leave(requests, payload)
    flight.unsent_changed(-unsent)
    assert state(flight)[0] is False
    flight.leave(3, 999)
    assert state(flight)[1] is False
    flight.unsent_changed(-99)
    assert state(flight) == (False, True, 4)
    assert budget.used_bytes == 0


def test_who_has_nothing_may_begin_one_though_the_budget_is_gone(flight: Flight, budget: Budget) -> None:
    budget.used_bytes = 5000
    assert state(flight)[0] is False
    flight.enter(1, 1)
    assert state(flight)[0] is True
    flight.leave(1, 1)
    assert state(flight)[0] is False
    flight.unsent_changed(1)
    assert state(flight)[0] is True


async def test_waiting_for_room_and_for_the_end(flight: Flight, nursery: trio.Nursery) -> None:
    seen: list[str] = []

    async def wait(what: str) -> None:
        await (flight.wait_room() if what == "room" else flight.wait_idle())
        seen.append(what)

    flight.enter(4, 10)
    flight.unsent_changed(50)
    for what in ("room", "idle"):
        nursery.start_soon(wait, what)
    await trio.testing.wait_all_tasks_blocked()
    assert seen == []
    flight.leave(1, 0)
    await trio.testing.wait_all_tasks_blocked()
    assert seen == ["room"]
    flight.leave(3, 10)
    await trio.testing.wait_all_tasks_blocked()
    assert seen == ["room"]
    flight.unsent_changed(-50)
    await trio.testing.wait_all_tasks_blocked()
    assert seen == ["room", "idle"]
