"""Subscribers: each hears everything in order, and none can slow down who tells it."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from pairsync.core.events import AloneEvent, Event
from pairsync.errors import ClosedError
from pairsync.guest.events import BACKLOG_EVENTS_MAX, EventHub, Subscription


def _events(count: int, first: int = 0) -> list[Event]:
    return [AloneEvent("vda", str(number)) for number in range(first, first + count)]


def _take_all(subscription: Subscription) -> list[Event]:
    taken: list[Event] = []
    while True:
        try:
            taken.append(subscription.receive_nowait())
        except trio.WouldBlock:
            return taken


def test_every_subscriber_hears_everything_from_when_it_began() -> None:
    hub = EventHub("db1")
    first = hub.subscribe()
    early, late = _events(2), _events(2, 2)
    for event in early:
        hub.publish(event)
    second = hub.subscribe()
    for event in late:
        hub.publish(event)
    assert _take_all(first) == early + late
    assert _take_all(second) == late


def test_a_slow_one_loses_the_oldest_and_is_told() -> None:
    hub = EventHub("db1")
    slow, quick = hub.subscribe(), hub.subscribe()
    events = _events(BACKLOG_EVENTS_MAX + 3)
    heard = []
    for event in events:
        hub.publish(event)
        heard.append(quick.receive_nowait())
    assert heard == events
    assert quick.lost_count == 0
    assert slow.lost_count == 3
    assert _take_all(slow) == events[3:]


async def test_receiving_waits_for_an_event() -> None:
    hub = EventHub("db1")
    heard: list[Event] = []
    with hub.subscribe() as subscription:

        async def listen() -> None:
            heard.append(await subscription.receive())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            await trio.testing.wait_all_tasks_blocked()
            assert not heard
            hub.publish(_events(1)[0])
    assert heard == _events(1)


async def test_a_wait_can_be_cancelled_without_losing_anything() -> None:
    hub = EventHub("db1")
    subscription = hub.subscribe()
    with trio.CancelScope() as scope:
        scope.cancel()
        await subscription.receive()
    assert scope.cancelled_caught
    hub.publish(_events(1)[0])
    with trio.CancelScope() as scope:
        scope.cancel()
        await subscription.receive()
    assert scope.cancelled_caught
    assert subscription.receive_nowait() == _events(1)[0]


async def test_the_end_comes_after_what_was_told_before() -> None:
    hub = EventHub("db1")
    subscription = hub.subscribe()
    for event in _events(2):
        hub.publish(event)
    hub.close()
    hub.publish(_events(1, 7)[0])  # nobody is there any more
    assert [event async for event in subscription] == _events(2)
    with pytest.raises(ClosedError):
        await subscription.receive()


async def test_closing_wakes_who_waits() -> None:
    hub = EventHub("db1")
    ended = []

    async def listen(subscription: Subscription) -> None:
        async for _ in subscription:
            pytest.fail("there was no event")
        ended.append(subscription)

    async with trio.open_nursery() as nursery:
        subscriptions = [hub.subscribe(), hub.subscribe()]
        for subscription in subscriptions:
            nursery.start_soon(listen, subscription)
        await trio.testing.wait_all_tasks_blocked()
        subscriptions[0].close()
        subscriptions[0].close()
        await trio.testing.wait_all_tasks_blocked()
        assert ended == subscriptions[:1]
        hub.close()
    assert ended == subscriptions


def test_who_has_left_gathers_nothing() -> None:
    hub = EventHub("db1")
    with hub.subscribe() as subscription:
        pass
    hub.publish(_events(1)[0])
    assert _take_all(subscription) == []


def test_one_may_leave_while_all_are_told() -> None:
    hub = EventHub("db1")
    gone, stays = hub.subscribe(), hub.subscribe()
    gone.close()
    hub.publish(_events(1)[0])
    assert _take_all(stays) == _events(1)
