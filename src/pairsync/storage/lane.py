"""I/O lanes: blocking jobs in strict order, without blocking the event loop.

An `IoLane` is a queue of jobs and one worker thread of its own; an `InlineLane` has the same face and runs
each job at once in the caller, for devices where nothing waits for a disk (`Device.may_block`) and for the
simulator.  What both promise:

* jobs run one at a time, in the order in which they were submitted;
* ``done`` is called for every job exactly once, in the trio thread, in the same order, with the job's
  result, or with the exception that it raised (`ClosedError` where the lane ended before the job ran);
* ``submit`` never blocks and never runs ``done`` of a *later* job before that of an earlier one.

**The hop is what counts** at queue depth 1: two wake-ups of a sleeping thread.  Both directions use an
``eventfd`` and a deque; measured against the alternatives (2 cores, medians of 8 alternating rounds):
``trio.to_thread`` 250 us, ``SimpleQueue`` and ``run_sync_soon`` 87 us, ``SimpleQueue`` and eventfd 63 us,
eventfd both ways 47 us.  A side that is awake is not woken: each side says when it is about to sleep, and
looks at the queue once more after having said so, so no wake-up is lost and a burst costs one.  While the
event loop is busy a job waits for the interpreter lock until the running task comes to its next checkpoint,
once to begin and once to end (the interpreter's switch interval makes no difference).

Completions are delivered by the task that runs `IoLane.serve`, so what ``done`` raises ends that nursery
like any other error.
"""

from __future__ import annotations

import abc
import errno
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final, TypeVar

import trio

from pairsync.core.units import NS_PER_S
from pairsync.errors import BackendError, BusyError, ClosedError, InternalError

__all__ = ["LANE_JOBS_MAX", "InlineLane", "IoLane", "Lane", "start_lane"]

LANE_JOBS_MAX: Final = 131_072
"""Jobs waiting in one lane, some 300 bytes each.  Callers bound their own work below: a standby takes at most
98304 batches that are not applied (``core.target``), an owner 4096 and its resync's; who reaches this has
lost count."""

LANE_CLOSE_S: Final = 60.0
"""How long `Lane.aclose` waits for the jobs that are queued; a disk that needs longer hangs."""

LANE_STOP_S: Final = 5.0
"""How long a cancelled lane waits for the one job that is running."""

T = TypeVar("T")

_Job = tuple[Callable[[], Any], Callable[[Any], None]]


class Lane(abc.ABC):
    """Runs jobs in order; see the module."""

    @property
    @abc.abstractmethod
    def backlog(self) -> int:
        """Jobs submitted whose ``done`` has not been called."""

    @property
    def job_age_ns(self) -> int:
        """How long the running job has been running; 0 between jobs.  Large: the disk hangs."""
        return 0

    @abc.abstractmethod
    def submit(self, job: Callable[[], T], done: Callable[[T | BaseException], None]) -> None:
        """Queue ``job``; call it from the trio thread.

        `BusyError` beyond `LANE_JOBS_MAX`, `ClosedError` after `aclose`.
        """

    def submit_later(self, job: Callable[[], T], done: Callable[[T | BaseException], None]) -> None:
        """As `submit`, of a job of which each leads to the next: others have their turn before it.

        Never within this call; jobs that are submitted meanwhile may run first.
        """
        self.submit(job, done)

    @abc.abstractmethod
    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Deliver completions until `aclose`; start it once, in a nursery."""

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Take no more jobs, and wait until all are done."""

    async def run(self, job: Callable[[], T]) -> T:
        """Run one job in its turn; returns or raises what it does.

        Not cancellable once queued: the job may be using the caller's buffers.
        """
        results: list[T | BaseException] = []
        task = trio.lowlevel.current_task()
        parked = False

        def done(result: T | BaseException) -> None:
            results.append(result)
            if parked:
                trio.lowlevel.reschedule(task)

        await trio.lowlevel.checkpoint_if_cancelled()
        self.submit(job, done)
        if results:
            await trio.lowlevel.cancel_shielded_checkpoint()
        else:
            parked = True
            await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
        (result,) = results
        if isinstance(result, BaseException):
            raise result
        return result


def _outcome(job: Callable[[], Any]) -> Any:
    """What the job returns or raises; an exception that is meant for a thread is our own bug."""
    try:
        return job()
    except Exception as error:  # noqa: BLE001 - not swallowed: carried to `done`
        return error
    except BaseException as error:  # noqa: BLE001 - the same
        wrapped = InternalError(f"a job of an I/O lane ended with {type(error).__name__}")
        wrapped.__cause__ = error
        return wrapped


class InlineLane(Lane):
    """Runs each job in the caller, within `submit`; what was submitted for later, in the task that serves it.

    A job submitted from within ``done`` waits until that ``done`` has returned.
    """

    def __init__(self, name: str = "inline") -> None:
        self._name = name
        self._jobs: deque[_Job] = deque()
        self._running = False  # a `submit` further up the stack runs what is queued
        self._later: deque[_Job] = deque()  # for `serve`
        self._called = trio.Event()  # there is some of it, or the lane is closed
        self._closed = False

    @property
    def backlog(self) -> int:
        """As `Lane.backlog`; 0 but for what is to run later, or from within a job or ``done``."""
        return len(self._jobs) + self._running + len(self._later)

    def submit(self, job: Callable[[], T], done: Callable[[T | BaseException], None]) -> None:
        """As `Lane.submit`."""
        self._check_room(self._jobs)
        if self._running:
            self._jobs.append((job, done))
            return
        self._running = True
        try:
            done(_outcome(job))
            while self._jobs:
                next_job, next_done = self._jobs.popleft()
                next_done(_outcome(next_job))
        finally:
            self._running = False

    def submit_later(self, job: Callable[[], T], done: Callable[[T | BaseException], None]) -> None:
        """As `Lane.submit_later`."""
        self._check_room(self._later)
        self._later.append((job, done))
        self._called.set()

    def _check_room(self, jobs: deque[_Job]) -> None:
        if self._closed:
            raise ClosedError(f"lane {self._name} is closed")
        if len(jobs) >= LANE_JOBS_MAX:
            raise BusyError(f"lane {self._name}: {len(jobs)} jobs are waiting")

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """As `Lane.serve`; what waits for its turn when the lane is closed does not run any more."""
        task_status.started()
        try:
            while not self._closed:
                if self._later:
                    self.submit(*self._later.popleft())
                    await trio.lowlevel.checkpoint()
                else:
                    self._called = trio.Event()
                    await self._called.wait()
        finally:
            self._close()

    def hand_over(self, lane: Lane) -> None:
        """What waits for its turn gets it in that lane instead, which takes the place of this one."""
        while self._later:
            lane.submit_later(*self._later.popleft())

    async def aclose(self) -> None:
        """As `Lane.aclose`."""
        self._close()
        await trio.lowlevel.checkpoint()

    def _close(self) -> None:
        self._closed = True
        self._called.set()
        while self._later:
            self._later.popleft()[1](ClosedError(f"lane {self._name} was closed before the job ran"))


class IoLane(Lane):
    """Runs jobs in one worker thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: deque[Callable[[], Any]] = deque()  # appended by the trio thread, taken by the worker
        self._results: deque[Any] = deque()  # the other way round
        # `done` of every job that has not been reported, in order: first those of `_results`, then that of
        # the running job, then those of `_jobs`.  Trio thread only.
        self._waiting: deque[Callable[[Any], None]] = deque()
        self._closing = False  # no new jobs; set by the trio thread
        self._stopping = False  # the worker ends when it sees this
        self._worker_idle = False  # the worker is about to wait for `_jobs_fd`, or waits
        self._signalled = False  # `_finished_fd` has been written and the trio side has not looked yet
        self._worker_ended = False
        self._job_started_ns = 0  # monotonic clock; 0 between jobs
        self._jobs_fd = self._finished_fd = -1  # while `serve` runs
        self._ended = trio.Event()

    @property
    def backlog(self) -> int:
        """As `Lane.backlog`."""
        return len(self._waiting)

    @property
    def job_age_ns(self) -> int:
        """As `Lane.job_age_ns`."""
        started = self._job_started_ns
        return time.monotonic_ns() - started if started else 0

    def submit(self, job: Callable[[], T], done: Callable[[T | BaseException], None]) -> None:
        """As `Lane.submit`."""
        if self._closing:
            raise ClosedError(f"lane {self._name} is closed")
        if len(self._waiting) >= LANE_JOBS_MAX:
            raise BusyError(f"lane {self._name}: {len(self._waiting)} jobs are waiting")
        self._waiting.append(done)
        self._jobs.append(job)
        self._wake_worker()

    def _wake_worker(self) -> None:
        if self._worker_idle:
            self._worker_idle = False
            os.eventfd_write(self._jobs_fd, 1)

    # ------------------------------------------------------------------ the worker

    def _work(self) -> None:
        jobs = self._jobs
        while not self._stopping:
            if jobs:
                job = jobs.popleft()
                self._job_started_ns = time.monotonic_ns()
                self._results.append(_outcome(job))
                self._job_started_ns = 0
                self._wake_trio()
                continue
            if self._closing:
                break
            self._worker_idle = True
            if not self._called():  # by somebody who did not see the flag yet
                os.eventfd_read(self._jobs_fd)
            self._worker_idle = False
        self._worker_ended = True
        self._signalled = True
        os.eventfd_write(self._finished_fd, 1)

    def _called(self) -> bool:
        return bool(self._jobs) or self._closing or self._stopping

    def _wake_trio(self) -> None:
        if not self._signalled:
            self._signalled = True
            os.eventfd_write(self._finished_fd, 1)

    # ------------------------------------------------------------------ the trio side

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """As `Lane.serve`.

        When cancelled it waits up to `LANE_STOP_S` for the running job and drops those behind it.
        `BackendError` (ETIMEDOUT) if that job does not end: its thread is left behind.
        """
        if self._jobs_fd >= 0 or self._ended.is_set():
            raise InternalError(f"lane {self._name} is served twice")
        self._jobs_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._finished_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        worker = threading.Thread(target=self._work, name=f"pairsync-lane-{self._name}", daemon=True)
        worker.start()
        try:
            task_status.started()
            while not self._worker_ended:
                await self._wait_finished()
                for _ in range(len(self._results)):
                    self._waiting.popleft()(self._results.popleft())
        finally:
            await self._stop(worker)

    async def _wait_finished(self) -> None:
        await trio.lowlevel.wait_readable(self._finished_fd)
        os.eventfd_read(self._finished_fd)
        self._signalled = False  # before looking: what is finished from here on signals anew

    async def _stop(self, worker: threading.Thread) -> None:
        self._closing = self._stopping = True
        os.eventfd_write(self._jobs_fd, 1)
        with trio.move_on_after(LANE_STOP_S, shield=True):
            while not self._worker_ended:
                await self._wait_finished()
        self._ended.set()
        if self._worker_ended:
            worker.join()  # it has only to return
            self._close_descriptors()
            self._report_all(ClosedError(f"lane {self._name} was closed before the job ran"))
            return
        hanging = BackendError(
            f"lane {self._name}: a job has been running for {self.job_age_ns // NS_PER_S} s", errno.ETIMEDOUT
        )
        self._report_all(hanging)  # the worker may still use the descriptors: they stay open
        raise hanging

    def _close_descriptors(self) -> None:
        self._worker_idle = False
        os.close(self._jobs_fd)
        os.close(self._finished_fd)

    def _report_all(self, unfinished: Exception) -> None:
        """Call every ``done`` that is left, even if one of them raises: tasks wait for them, shielded."""
        results = list(self._results)
        with ExitStack() as stack:
            for index in reversed(range(len(self._waiting))):
                stack.callback(self._waiting[index], results[index] if index < len(results) else unfinished)
            self._waiting.clear()

    async def aclose(self) -> None:
        """As `Lane.aclose`; `BackendError` (ETIMEDOUT) after `LANE_CLOSE_S`."""
        self._closing = True
        if self._jobs_fd < 0:  # never served
            self._report_all(ClosedError(f"lane {self._name} was closed before the job ran"))
            await trio.lowlevel.checkpoint()
            return
        self._wake_worker()
        with trio.move_on_after(LANE_CLOSE_S):
            await self._ended.wait()
            return
        raise BackendError(
            f"lane {self._name}: {len(self._waiting)} jobs not done after {LANE_CLOSE_S:.0f} s",
            errno.ETIMEDOUT,
        )


async def start_lane(nursery: trio.Nursery, name: str, *, may_block: bool) -> Lane:
    """A lane of the right kind for a device, served in ``nursery`` until its `Lane.aclose`."""
    lane: Lane = IoLane(name) if may_block else InlineLane(name)
    await nursery.start(lane.serve)
    return lane
