"""A guard that is there again when it was lost: what a host serves under.

A guard can be killed (by a person, by the kernel when memory is short) or stand still.  The guest need not
pay for that while its lease runs: the host's door closes at once, another guard is started, is given the same
groups and the same deadline, and the door opens again, some hundred milliseconds later::

    GUARDED ──lost──▶ closed ──another holds all of it──▶ GUARDED
                        │ the deadline has passed, or guards are lost again and again
                        ▼
                       LOST: the host stops its guest, and does not serve

While it is closed nobody would kill the guest of a host that dies in that moment: its groups should have a
``PR_SET_PDEATHSIG`` besides.  `GuardKeeper` has the interface of `GuardClient`, which does the work.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeAlias

import trio

from pairsync.core.backoff import Backoff
from pairsync.core.units import NS_PER_MS, NS_PER_S
from pairsync.errors import BackendError

from .guard import NEVER_NS, boottime_ns
from .guardclient import GuardClient, open_guard

__all__ = ["GuardKeeper", "keep_guard"]

LOSSES_MAX = 5
"""Guards in a row that did not last `STEADY_NS`, after which it is given up: something kills them."""

STEADY_NS = 10 * NS_PER_S

REOPEN_FIRST_NS = 20 * NS_PER_MS
REOPEN_LIMIT_NS = 200 * NS_PER_MS
"""Before another one is started."""

_HALF = 0.5  # of the back-off's jitter: there is nobody to collide with

_LOG = logging.getLogger(__name__)

_Open: TypeAlias = Callable[[], AbstractAsyncContextManager[GuardClient]]


class GuardKeeper:
    """See the module; made by `keep_guard`."""

    def __init__(self, opener: _Open) -> None:
        self._opener = opener
        self.lost = trio.Event()
        """Set when there will be no guard any more; `lost_reason` says why."""
        self.lost_reason: str | None = None
        # Invariants: client is a guard that was told all of groups and wanted, or None; wanted_ns is what it
        # is to hold: a deadline, the latest asked for; NEVER_NS, none needed; 0, nothing is served.
        self._client: GuardClient | None = None
        self._groups: set[int] = set()
        self._wanted_ns = 0
        self._changed = trio.Condition()

    # ------------------------------------------------------------------ as GuardClient

    @property
    def pid(self) -> int | None:
        """Of the present guard."""
        return None if self._client is None else self._client.pid

    @property
    def about(self) -> Mapping[str, str]:
        """See `GuardClient.about`; empty while there is no guard."""
        return {} if self._client is None else self._client.about

    def lease_valid(self, now_ns: int) -> bool:
        """See `GuardClient.lease_valid`; no while there is no guard."""
        return self._client is not None and self._client.lease_valid(now_ns)

    @property
    def valid_until_ns(self) -> int:
        """See `GuardClient.valid_until_ns`."""
        return 0 if self._client is None else self._client.valid_until_ns

    def arm(self, deadline_ns: int) -> None:
        """See `GuardClient.arm`."""
        if self._wanted_ns in {0, NEVER_NS} or deadline_ns > self._wanted_ns:
            self._wanted_ns = deadline_ns
        if self._client is not None:
            self._client.arm(deadline_ns)

    def disarm(self) -> None:
        """See `GuardClient.disarm`."""
        self._wanted_ns = NEVER_NS
        if self._client is not None:
            self._client.disarm()

    def rest(self) -> None:
        """See `GuardClient.rest`."""
        self._wanted_ns = 0
        if self._client is not None:
            self._client.rest()

    async def settled(self) -> None:
        """See `GuardClient.settled`: also by another guard than the one that was told."""
        while True:
            client = await self._present()
            try:
                await client.settled()
            except BackendError:
                await self._absent(client)
            else:
                return

    def take_lateness_ns(self) -> int:
        """See `GuardClient.take_lateness_ns`."""
        return 0 if self._client is None else self._client.take_lateness_ns()

    async def add_group(self, pid: int) -> None:
        """See `GuardClient.add_group`."""
        while True:
            client = await self._present()
            self._groups.add(pid)
            try:
                await client.add_group(pid)
            except BackendError:
                if not client.lost.is_set():
                    self._groups.discard(pid)
                    raise
                await self._absent(client)
            else:
                return

    def drop_group(self, pid: int) -> None:
        """See `GuardClient.drop_group`."""
        self._groups.discard(pid)
        if self._client is not None:
            self._client.drop_group(pid)

    # ------------------------------------------------------------------ inside

    async def _present(self) -> GuardClient:
        async with self._changed:
            while self._client is None and not self.lost.is_set():
                await self._changed.wait()
        if self._client is None:
            raise BackendError(f"the guard is lost: {self.lost_reason}")
        return self._client

    async def _absent(self, client: GuardClient) -> None:
        async with self._changed:
            while self._client is client:
                await self._changed.wait()

    async def _set(self, client: GuardClient | None) -> None:
        self._client = client
        async with self._changed:
            self._changed.notify_all()

    async def _lose(self, reason: str) -> None:
        _LOG.error("there is no guard any more: %s", reason)
        self.lost_reason = reason
        self.lost.set()
        await self._set(None)

    async def keep(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Have a guard, one after the other, until cancelled or lost; started with the first.

        `BackendError` if the first does not start.
        """
        backoff = Backoff(first_ns=REOPEN_FIRST_NS, limit_ns=REOPEN_LIMIT_NS)
        started = False
        reason = ""
        while True:
            began_ns = boottime_ns()
            failed: BackendError | None = None
            try:
                async with self._opener() as client:
                    await self._restore(client)
                    await self._set(client)
                    if not started:
                        started = True
                        task_status.started()
                    await client.lost.wait()
                    reason = str(client.lost_reason)
                    await self._set(None)
            except* BackendError as group:
                failed = _first(group)
            if failed is not None:
                if not started:
                    raise failed
                reason = str(failed)
            if boottime_ns() >= self._wanted_ns > 0:
                await self._lose(f"{reason}, and the lease has run out meanwhile")
                return
            if boottime_ns() - began_ns >= STEADY_NS:
                backoff.succeeded()
            pause_ns = backoff.failed(_HALF)
            if backoff.failures > LOSSES_MAX:
                await self._lose(f"{backoff.failures} were lost in a row, the last one: {reason}")
                return
            _LOG.warning("the guard was lost: %s; another one is started", reason)
            await trio.sleep(pause_ns / NS_PER_S)

    async def _restore(self, client: GuardClient) -> None:
        """Tell a new guard all that the old one knew; `BackendError` if it is lost too.

        The host may change its mind meanwhile: the last look, behind which nothing is awaited, finds no more
        to be told.
        """
        told: set[int] = set()
        told_ns = 0
        while told != self._groups or told_ns != self._wanted_ns:
            for pid in told - self._groups:
                client.drop_group(pid)
                told.discard(pid)
            for pid in self._groups - told:
                try:
                    await client.add_group(pid)
                    told.add(pid)
                except BackendError:
                    if client.lost.is_set():
                        raise
                    self._groups.discard(pid)  # it has ended
            told_ns = self._wanted_ns
            if told_ns == NEVER_NS:
                client.disarm()
            elif told_ns:
                client.arm(told_ns)
            else:
                client.rest()
            await client.settled()


def _first(group: BaseExceptionGroup[BackendError]) -> BackendError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, BackendError) else BackendError(str(error))


@asynccontextmanager
async def keep_guard(
    *, kill_host: bool = True, watchdog: Path | None = None, watchdog_s: int = 10
) -> AsyncIterator[GuardKeeper]:
    """A guard for this process for as long as the block lasts; the arguments are those of `open_guard`.

    Raises what `open_guard` raises, if the first one does not start.
    """
    opener = partial(open_guard, kill_host=kill_host, watchdog=watchdog, watchdog_s=watchdog_s)
    keeper = GuardKeeper(opener)
    async with trio.open_nursery() as nursery:
        await nursery.start(keeper.keep)
        yield keeper
        nursery.cancel_scope.cancel()
