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
    return Budget(5000, 8000)


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


def test_what_is_arriving_is_charged_and_not_awaited(flight: Flight, budget: Budget) -> None:
    flight.arriving(700)
    assert (flight.arriving_bytes, budget.used_bytes) == (700, 700)
    assert state(flight) == (False, True, 4)
    assert flight.waits_for_client
    flight.arriving(0)
    flight.enter(1, 700)
    assert budget.used_bytes == 700
    assert not flight.waits_for_client


def test_above_the_hard_limit_only_what_has_begun_goes_on(flight: Flight, budget: Budget) -> None:
    budget.used_bytes = 8000
    assert state(flight)[0] is True
    budget.used_bytes -= 1
    flight.arriving(1)
    assert state(flight)[0] is False


async def test_waiting_for_others(flight: Flight, budget: Budget, nursery: trio.Nursery) -> None:
    other = Flight(LIMITS, budget)
    other.enter(1, 100)
    other.enter(1, 7950)
    seen: list[bool] = []

    async def wait() -> None:
        await flight.wait_room()
        seen.append(flight.full)

    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    assert not flight.waits_for_client  # we keep it waiting
    other.leave(1, 0)
    await trio.testing.wait_all_tasks_blocked()
    assert seen == []
    other.leave(1, 100)
    await trio.testing.wait_all_tasks_blocked()
    assert seen == [False]
    assert not budget.waiting


async def test_who_gives_up_waiting_is_forgotten(flight: Flight, budget: Budget) -> None:
    budget.used_bytes = 8000
    with trio.move_on_after(0):
        await flight.wait_room()
    assert not budget.waiting
    assert flight.waits_for_client


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
