"""What a connection has in flight: the back-pressure of one client, and its share of the server's `Budget`.

In flight are requests that the export has or that wait for a task, with their payload, and replies that the
client has not taken.  The connection asks `Flight.full` before it takes more, waits in `Flight.wait_room`,
and knows by `Flight.idle` that nothing is left to be answered.  A payload that is still arriving counts
for the budget only: there is nothing to be answered yet, and it must be possible to take in the rest of it.
"""

from __future__ import annotations

import trio

from .budget import Budget
from .limits import NbdLimits

__all__ = ["Flight"]


class Flight:
    """See the module's text.  What is added is subtracted again, also when the connection ends before."""

    def __init__(self, limits: NbdLimits, budget: Budget) -> None:
        self._limits = limits
        self._budget = budget
        self._requests = 0
        self._payload_bytes = 0  # of those requests, either direction
        self._unsent_bytes = 0  # replies not taken
        self.arriving_bytes = 0
        """Memory for a payload of which the client still owes a part; the budget holds the sum of the three.
        Changed by `arriving`."""
        self._waiting = False  # in `wait_room`
        self._fallen = trio.Event()  # set, and replaced, when something has become less and somebody waits
        self._awaited = False

    @property
    def idle(self) -> bool:
        """No request is in flight and every reply has left."""
        return not self._requests and not self._unsent_bytes

    @property
    def waits_for_client(self) -> bool:
        """Nothing keeps the connection from reading its socket, and the export is done with what it had."""
        return not self._requests and not self._waiting

    @property
    def full(self) -> bool:
        """Whether no more requests may be taken.  Who has nothing in flight may take one in any case."""
        limits = self._limits
        return (
            self._requests >= limits.requests_in_flight_max
            or self._payload_bytes >= limits.bytes_in_flight_max
            or self._unsent_bytes >= limits.unsent_bytes_max
            or (self._budget.exhausted and (not self.idle or self._locked_out))
        )

    @property
    def _locked_out(self) -> bool:
        """Whether not even one request may be begun; one that has begun may be finished."""
        return self._budget.overdrawn and not self.arriving_bytes

    @property
    def room_requests(self) -> int:
        """How many more requests may be in flight; positive unless `full`."""
        return self._limits.requests_in_flight_max - self._requests

    def enter(self, requests: int, payload_bytes: int) -> None:
        """Requests are handed on."""
        self._requests += requests
        self._payload_bytes += payload_bytes
        self._budget.used_bytes += payload_bytes

    def leave(self, requests: int, payload_bytes: int) -> None:
        """Requests that entered are done with."""
        self._requests -= requests
        self._payload_bytes -= payload_bytes
        self._budget.used_bytes -= payload_bytes
        self._notice()

    def unsent_changed(self, difference: int) -> None:
        """Replies wait for the client, or have left."""
        self._unsent_bytes += difference
        self._budget.used_bytes += difference
        if difference < 0:
            self._notice()

    def arriving(self, payload_bytes: int) -> None:
        """So much memory is held now for a payload that is not whole."""
        self._budget.used_bytes += payload_bytes - self.arriving_bytes
        self.arriving_bytes = payload_bytes
        self._notice()

    async def wait_room(self) -> None:
        """Return once `full` does not hold."""
        self._waiting = True
        try:
            while self.full:
                if self.idle:  # the memory is held by others
                    self._budget.waiting[self] = self._wake
                await self._wait_fall()
        finally:
            self._waiting = False
            self._budget.waiting.pop(self, None)

    async def wait_idle(self) -> None:
        """Return once `idle` holds."""
        while not self.idle:
            await self._wait_fall()

    def _notice(self) -> None:
        if self._budget.waiting:
            self._budget.notice()
        if self._awaited:
            self._wake()

    def _wake(self) -> None:
        self._awaited = False
        self._fallen.set()
        self._fallen = trio.Event()

    async def _wait_fall(self) -> None:
        self._awaited = True
        await self._fallen.wait()
