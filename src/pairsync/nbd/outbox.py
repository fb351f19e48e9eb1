"""Replies of one connection on their way out: sent at once where the socket takes them, else by a task.

Order is kept.  While `Outbox.run` is sending, or a rest waits for it, everything else queues behind.
What the client has not taken after a `push` or `send` is reported as ``held_bytes``; the connection stops
reading its socket above a limit, which bounds it.  A reply that goes at once is never accounted for.
A peer that is gone is told to ``on_lost`` once; from then on everything is dropped.
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
        self.held_bytes = 0  # what `on_change` knows of: the queue, and what `run` is sending
        self.sends = 0  # that `run` has completed; only grows
        self._transport = transport
        self._on_lost = on_lost
        self._on_change = on_change
        self._queue: deque[Buffer] = deque()
        self._size_bytes = 0  # of the queue and of what `run` is sending; equals held_bytes but within a push
        self._sending = False  # `run` is in the middle of a send
        self._wake: trio.Event | None = None  # set when `run` should look; None while it is not waiting
        self._closed = False

    @property
    def empty(self) -> bool:
        """Whether everything has been handed to the kernel."""
        return not self._size_bytes

    def post(self, data: Buffer) -> None:
        """Queue a reply; `push` must follow.  The buffer must not change afterwards."""
        if not self._closed:
            self._queue.append(data)
            self._size_bytes += len(data)

    def send(self, view: memoryview) -> None:
        """Send now what goes, and queue a copy of the rest: the caller may reuse the memory."""
        if self._closed:
            return
        sent = 0
        if not self._size_bytes:
            try:
                sent = self._transport.send_nowait(view)
            except PeerLost as error:
                self._lose(error)
                return
        if sent < len(view):
            self.post(bytes(view[sent:]))
            self._leave_rest()

    def push(self) -> None:
        """Send now what goes of the queue; the rest is left to `run`."""
        queue = self._queue
        while queue and not self._sending:
            data = self._next()
            try:
                sent = self._transport.send_nowait(data)
            except PeerLost as error:
                self._lose(error)
                return
            self._size_bytes -= sent
            if sent < len(data):
                queue.appendleft(memoryview(data)[sent:])
                break
        if self._size_bytes != self.held_bytes:
            self._leave_rest()

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
            self.sends += 1
            if not self._closed:
                self._size_bytes -= len(data)
                self._report()

    def close(self) -> None:
        """Drop what is left, and let go of the owner; idempotent."""
        self._closed = True
        self._queue.clear()
        self._size_bytes = 0
        self._leave_rest()
        self._on_lost = self._on_change = _ignore

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

    def _leave_rest(self) -> None:
        """What is left is held from now on, and `run` is to send it."""
        self._report()
        if self._wake is not None:
            self._wake.set()

    def _report(self) -> None:
        difference = self._size_bytes - self.held_bytes
        self.held_bytes = self._size_bytes
        if difference:
            self._on_change(difference)

    def _lose(self, error: PeerLost) -> None:
        on_lost = self._on_lost
        if not self._closed:
            self.close()
            on_lost(error)


def _ignore(_: object) -> None:
    """Nobody is interested any more."""
