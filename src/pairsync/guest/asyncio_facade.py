"""A guest for asyncio programs: the same without any knowledge of trio.

::

    asyncio task ──call──▶ task in the guest's trio nursery ──result or error──▶ asyncio future

trio runs as a guest of the asyncio loop (`trio.lowlevel.start_guest_run`), in the same thread, so nothing is
locked and nothing is copied.  Invariants:

- What an asyncio task waits for has ended in trio before the wait is over, also when it is cancelled.
- An error of a call is raised in the task that called, nowhere else.  Only an error of the guest itself ends
  the guest; it is raised where the ``async with`` block ends.
- A thread has at most one trio run: the first guest of a loop starts it and ends it, further ones share it
  (`AsyncioGuest.beside`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Generic, ParamSpec, Self, TypeVar

import trio
from outcome import Outcome

from pairsync.core.events import Event
from pairsync.core.messages import Buffer, Role
from pairsync.core.scrubber import ScrubReport
from pairsync.errors import BusyError, ClosedError, InternalError

from .config import GuestConfig
from .events import Subscription
from .guest import Guest, open_guest
from .points import Point
from .statistics import GuestStatistics

__all__ = ["AsyncioGuest", "AsyncioSubscription"]

T = TypeVar("T")
P = ParamSpec("P")


async def _outlast(
    *futures: asyncio.Future[Any], cancel: Callable[[], None] | None = None
) -> asyncio.CancelledError | None:
    """Wait until one of the futures is done, whatever happens.

    A cancellation of our own task is answered by ``cancel`` and returned, to be raised once all is in order.
    """
    interrupted: asyncio.CancelledError | None = None
    while not any(future.done() for future in futures):
        try:
            await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError as error:
            interrupted = error
            if cancel is not None:
                cancel()
    return interrupted


class _Job(Generic[T]):
    """A trio task whose outcome an asyncio future hears."""

    def __init__(self, loop: asyncio.AbstractEventLoop, what: str) -> None:
        self.future: asyncio.Future[T] = loop.create_future()
        self.scope = trio.CancelScope()
        self._what = what  # for the error of a job that was cut off

    async def run(self, function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> None:
        """The trio task."""
        try:
            with self.scope:
                self.future.set_result(await function(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  # it is not held up here: the caller's task raises it
            self.future.set_exception(error)
        finally:
            if self.scope.cancelled_caught:
                self.future.cancel()
            elif not self.future.done():
                self.future.set_exception(ClosedError(f"{self._what} was closed"))

    async def wait(self) -> T:
        """The result, for an asyncio task; when that is cancelled, so is the job, and it is waited for."""
        interrupted = await _outlast(self.future, cancel=self.scope.cancel)
        if interrupted is not None:
            raise interrupted from (None if self.future.cancelled() else self.future.exception())
        return self.future.result()


class _TrioRun:
    """The trio run of a loop's thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[Outcome[None]] = self._loop.create_future()
        self._nursery: trio.Nursery | None = None

    async def start(self) -> None:
        """Begin; `BusyError` if the thread has a trio run already."""
        if trio.lowlevel.in_trio_run():
            raise BusyError("this thread has a trio run already: open a further guest with `beside`")
        started = self._loop.create_future()
        trio.lowlevel.start_guest_run(
            self._main,
            started,
            run_sync_soon_threadsafe=self._loop.call_soon_threadsafe,
            run_sync_soon_not_threadsafe=self._loop.call_soon,
            done_callback=self._ended.set_result,
            host_uses_signal_set_wakeup_fd=True,
        )
        interrupted = await _outlast(started, self._ended)  # a few turns of the loop
        if interrupted is not None:
            await self.end()
            raise interrupted

    async def _main(self, started: asyncio.Future[None]) -> None:
        async with trio.open_nursery() as self._nursery:
            started.set_result(None)
            await trio.sleep_forever()

    def spawn(self, what: str, function: Callable[[], Awaitable[T]]) -> _Job[T]:
        """Run a function as a task of the run."""
        if self._nursery is None:
            raise InternalError("the trio run has not begun")
        job: _Job[T] = _Job(self._loop, what)
        self._nursery.start_soon(job.run, function)
        return job

    async def end(self) -> None:
        """End it, whatever happens; a cancellation meanwhile is raised afterwards."""
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()
        interrupted = await _outlast(self._ended)
        self._ended.result().unwrap()
        if interrupted is not None:
            raise interrupted


class AsyncioSubscription:
    """Events from the moment it was made; ``async for event in subscription`` or `receive`."""

    def __init__(self, guest: AsyncioGuest, subscription: Subscription) -> None:
        self._guest = guest
        self._subscription = subscription

    @property
    def lost_count(self) -> int:
        """Events that were dropped because they were not taken in time."""
        return self._subscription.lost_count

    async def receive(self) -> Event:
        """Wait for the next event; raises `ClosedError` once the subscription or the guest is closed."""
        try:
            event = self._subscription.receive_nowait()
        except trio.WouldBlock:
            return await self._guest.call(self._subscription.receive)
        await asyncio.sleep(0)  # a subscriber that always finds an event must let others run
        return event

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        try:
            return await self.receive()
        except ClosedError:
            raise StopAsyncIteration from None

    def close(self) -> None:
        """Take no more; idempotent."""
        self._subscription.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncioGuest:
    """A guest on this host, for asyncio: ``async with AsyncioGuest(config) as guest``.

    Entering raises what `pairsync.open_guest` raises, and `BusyError` if the thread has a trio run already.
    All methods belong to the loop that entered; they raise `ClosedError` before and afterwards.
    """

    def __init__(self, config: GuestConfig) -> None:
        self._config = config
        self._shared: AsyncioGuest | None = None  # whose trio run we use, instead of one of our own
        self._run: _TrioRun | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._life: _Job[None] | None = None
        self._calls: trio.Nursery | None = None  # of all calls; not None: the guest is open
        self._guest: Guest | None = None

    def beside(self, config: GuestConfig) -> AsyncioGuest:
        """Another guest in the same loop; to be closed before this one is."""
        other = AsyncioGuest(config)
        other._shared = self
        return other

    # ------------------------------------------------------------------ life

    async def __aenter__(self) -> Self:
        if self._life is not None:
            raise BusyError(f"guest {self.name} was opened already: an object opens its guest once")
        self._loop = asyncio.get_running_loop()
        if self._shared is None:
            run = _TrioRun()
            await run.start()
        else:
            run = self._shared._open_run()
        self._run = run
        opened: asyncio.Future[None] = self._loop.create_future()
        life = self._life = run.spawn(f"guest {self.name}", lambda: self._live(opened))
        interrupted = await _outlast(opened, life.future, cancel=life.scope.cancel)
        if interrupted is not None or not opened.done():
            await self.aclose()  # raises what kept it from opening
            raise interrupted or ClosedError(f"guest {self.name} was closed")
        return self

    async def _live(self, opened: asyncio.Future[None]) -> None:
        async with open_guest(self._config) as guest:
            try:
                async with trio.open_nursery() as calls:
                    self._guest, self._calls = guest, calls
                    opened.set_result(None)
                    await trio.sleep_forever()
            finally:
                self._calls = None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close in order; calls that are under way end with `ClosedError`.  Idempotent."""
        if self._life is None:
            return
        if self._calls is not None:
            self._calls.cancel_scope.cancel()
        interrupted = await _outlast(
            self._life.future
        )  # closing in order is bounded, and not to be cut short
        await self._end_run()
        if interrupted is not None:
            raise interrupted
        if not self._life.future.cancelled():
            self._life.future.result()

    async def _end_run(self) -> None:
        run, self._run = self._run, None
        if run is not None and self._shared is None:
            await run.end()

    def _open_run(self) -> _TrioRun:
        if self._run is None or self._calls is None:
            raise ClosedError(f"guest {self.name} is not open")
        return self._run

    def _opened(self) -> Guest:
        if self._guest is None or self._calls is None:
            raise ClosedError(f"guest {self.name} is not open")
        return self._guest

    # ------------------------------------------------------------------ use

    async def call(self, function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a trio function beside the guest and return its result, for what has no method here."""
        if self._calls is None or self._loop is None:
            raise ClosedError(f"guest {self.name} is not open")
        if asyncio.get_running_loop() is not self._loop:
            raise BusyError(f"guest {self.name} belongs to another loop")
        job: _Job[T] = _Job(self._loop, f"guest {self.name}")
        self._calls.start_soon(lambda: job.run(function, *args, **kwargs))
        return await job.wait()

    @property
    def guest(self) -> Guest:
        """The trio guest, for `call`."""
        return self._opened()

    @property
    def name(self) -> str:
        """The guest's name."""
        return self._config.name

    @property
    def role(self) -> Role:
        """Whether it runs here: what was asked for, and once it is open, what is so."""
        return self._config.role if self._guest is None else self._guest.role

    @property
    def in_sync(self) -> bool:
        """Whether every volume is in sync with the peer."""
        return self._opened().in_sync

    async def wait_in_sync(self) -> None:
        """Return when every volume is in sync (it may be over a moment later)."""
        await self.call(self._opened().wait_in_sync)

    def statistics(self) -> GuestStatistics:
        """A moment's view."""
        return self._opened().statistics()

    def subscribe(self) -> AsyncioSubscription:
        """A stream of what happens from now on; see `AsyncioSubscription`."""
        return AsyncioSubscription(self, self._opened().subscribe())

    async def read(self, volume: str, offset: int, length: int) -> bytes:
        """As `Volume.read`."""
        return await self.call(self._opened().volume(volume).read, offset, length)

    async def write(self, volume: str, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """As `Volume.write`.

        Cancelled, it may or may not happen, and ``data`` stays in use for a time that nobody is told: do not
        reuse that buffer.
        """
        await self.call(self._opened().volume(volume).write, offset, data, fua=fua)

    async def zero(self, volume: str, offset: int, length: int, *, allocate: bool = False) -> None:
        """As `Volume.zero`."""
        await self.call(self._opened().volume(volume).zero, offset, length, allocate=allocate)

    async def trim(self, volume: str, offset: int, length: int) -> None:
        """As `Volume.trim`."""
        await self.call(self._opened().volume(volume).trim, offset, length)

    async def flush(self, volume: str) -> None:
        """As `Volume.flush`."""
        await self.call(self._opened().volume(volume).flush)

    async def grow(self, volume: str, size_bytes: int) -> None:
        """As `Volume.grow`."""
        await self.call(self._opened().volume(volume).grow, size_bytes)

    async def scrub(self, volume: str, *, repair: bool = False) -> ScrubReport:
        """As `Volume.scrub`."""
        return await self.call(self._opened().volume(volume).scrub, repair=repair)

    async def make_point(self, volume: str, name: str) -> Point:
        """As `Volume.make_point`."""
        return await self.call(self._opened().volume(volume).make_point, name)

    def points(self, volume: str) -> tuple[Point, ...]:
        """As `Volume.points`."""
        return self._opened().volume(volume).points()

    async def drop_point(self, volume: str, name: str) -> None:
        """As `Volume.drop_point`."""
        await self.call(self._opened().volume(volume).drop_point, name)

    async def changed_since(
        self, volume: str, point: str | Point, offset: int, length: int
    ) -> list[tuple[int, bool]]:
        """As `Volume.changed_since`."""
        return await self.call(self._opened().volume(volume).changed_since, point, offset, length)

    def dirty_runs(self, volume: str, offset: int, length: int) -> list[tuple[int, int]]:
        """As `Volume.dirty_runs`, of this moment."""
        return list(self._opened().volume(volume).dirty_runs(offset, length))

    async def digests(
        self, volume: str, offset: int, length: int, *, point: str | Point | None = None
    ) -> bytes:
        """As `Volume.digests`."""
        return await self.call(self._opened().volume(volume).digests, offset, length, point=point)
