"""Events of a guest for any number of subscribers, none of whom can slow it down.

A subscriber that does not keep up loses the oldest events and is told how many.
"""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import Self

import trio

from pairsync.core.events import Event
from pairsync.errors import ClosedError

__all__ = ["BACKLOG_EVENTS_MAX", "EventHub", "Subscription"]

BACKLOG_EVENTS_MAX = 1024
"""Events kept for a subscriber that is slow: ten minutes of resync progress, and 200 KB."""


class Subscription:
    """Events from the moment it was made; ``async for event in subscription`` or `receive`.

    Use it as a context manager, so that nothing gathers for a subscriber that is gone.
    """

    def __init__(self, hub: EventHub) -> None:
        self._hub = hub
        self._events: deque[Event] = deque()
        self._arrived = trio.lowlevel.ParkingLot()
        self._closed = ""  # why
        self.lost_count = 0
        """Events that were dropped because they were not taken in time."""

    def push(self, event: Event) -> None:
        """Take an event (called by the hub)."""
        if len(self._events) >= BACKLOG_EVENTS_MAX:
            self._events.popleft()
            self.lost_count += 1
        self._events.append(event)
        self._arrived.unpark_all()

    def receive_nowait(self) -> Event:
        """The next event; raises `trio.WouldBlock` if there is none."""
        if not self._events:
            raise trio.WouldBlock
        return self._events.popleft()

    async def receive(self) -> Event:
        """Wait for the next event; raises `ClosedError` once the subscription or the guest is closed."""
        await trio.lowlevel.checkpoint()
        while not self._events:
            if self._closed:
                raise ClosedError(self._closed)
            await self._arrived.park()
        return self._events.popleft()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        try:
            return await self.receive()
        except ClosedError:
            raise StopAsyncIteration from None

    def close(self, reason: str = "the subscription is closed") -> None:
        """Take no more, and have whoever waits told why; idempotent."""
        self._closed = self._closed or reason
        self._hub.forget(self)
        self._arrived.unpark_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class EventHub:
    """Hands each event of a guest to every subscriber."""

    def __init__(self, guest: str) -> None:
        self._guest = guest
        self._closed = False
        self._subscriptions: dict[Subscription, None] = {}

    def subscribe(self) -> Subscription:
        """A new subscriber; one that comes too late is closed already, else it would wait for ever."""
        subscription = Subscription(self)
        self._subscriptions[subscription] = None
        if self._closed:
            self.close()
        return subscription

    def forget(self, subscription: Subscription) -> None:
        """Take a subscriber off."""
        self._subscriptions.pop(subscription, None)

    def publish(self, event: Event) -> None:
        """Tell everybody."""
        for subscription in self._subscriptions:
            subscription.push(event)

    def close(self) -> None:
        """End every subscription, for good."""
        self._closed = True
        for subscription in list(self._subscriptions):
            subscription.close(f"guest {self._guest} is closed")
