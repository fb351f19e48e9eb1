"""Replies of one connection on their way out: sent at once where the socket takes them, else by a task.

Order is kept.  While `Outbox.run` is sending, or a rest waits for it, everything else queues behind.
``held_bytes`` is what the client has not taken; the connection stops reading its socket above a limit, which
bounds it.  A peer that is gone is told to ``on_lost`` once; from then on everything is dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import trio

from pairsync.core.messages import Buffer
from pairsync.errors import PeerLost

from .transport import Transport

__all__ = ["Outbox"]

JOIN_BYTES_MAX = 64 * 1024
"""Queued replies are joined up to this size, so that many small ones cost one system call."""


class Outbox:
    """See the module's theory.  ``on_change`` is told every difference of `held_bytes`."""

    def __init__(
        self, transport: Transport, *, on_lost: Callable[[PeerLost], None], on_change: Callable[[int], None]
    ) -> None:
        self.held_bytes = 0  # sum of the queue, and what `run` is sending
        self._transport = transport
        self._on_lost = on_lost
        self._on_change = on_change
        self._queue: deque[Buffer] = deque()
        self._sending = False  # `run` is in the middle of a send
        self._wake: trio.Event | None = None  # set when `run` should look; None while it is not waiting
        self._closed = False

    @property
    def empty(self) -> bool:
        """Whether everything has been handed to the kernel."""
        return not self.held_bytes

    def post(self, data: Buffer) -> None:
        """Queue a reply; `push` sends it.  The buffer must not change afterwards."""
        if self._closed:
            return
        self._queue.append(data)
        self.held_bytes += len(data)
        self._on_change(len(data))

    def send(self, view: memoryview) -> None:
        """Send now what goes, and queue a copy of the rest: the caller may reuse the memory."""
        if self._closed:
            return
        sent = 0
        if not self.held_bytes:
            try:
                sent = self._transport.send_nowait(view)
            except PeerLost as error:
                self._lose(error)
                return
        if sent < len(view):
            self.post(bytes(view[sent:]))
            self._wake_up()

    def push(self) -> None:
        """Send now what goes of the queue; the rest is left to `run`."""
        queue = self._queue
        if self._sending:
            return
        while queue:
            data = self._next()
            try:
                sent = self._transport.send_nowait(data)
            except PeerLost as error:
                self._lose(error)
                return
            if sent < len(data):
                queue.appendleft(memoryview(data)[sent:])
                self._shrink(sent)
                self._wake_up()
                return
            self._shrink(sent)

    async def run(self) -> None:
        """Send what did not go at once; runs as long as the connection does."""
        while not self._closed:
            if not self._queue:
                self._wake = trio.Event()
                await self._wake.wait()
                self._wake = None
                continue
            data = self._next()
            self._sending = True
            try:
                await self._transport.send_all(data)
            except PeerLost as error:
                self._lose(error)
                return
            finally:
                self._sending = False
            if not self._closed:
                self._shrink(len(data))

    def close(self) -> None:
        """Drop what is left."""
        self._closed = True
        self._queue.clear()
        self._shrink(self.held_bytes)
        self._wake_up()

    def _next(self) -> Buffer:
        """Take the head of the queue, with small neighbours joined to it."""
        queue = self._queue
        first = queue.popleft()
        if not queue or len(first) + len(queue[0]) > JOIN_BYTES_MAX:
            return first
        parts, size = [first], len(first)
        while queue and size + len(queue[0]) <= JOIN_BYTES_MAX:
            size += len(queue[0])
            parts.append(queue.popleft())
        return b"".join(parts)

    def _shrink(self, count: int) -> None:
        self.held_bytes -= count
        self._on_change(-count)

    def _wake_up(self) -> None:
        if self._wake is not None:
            self._wake.set()

    def _lose(self, error: PeerLost) -> None:
        if not self._closed:
            self.close()
            self._on_lost(error)
