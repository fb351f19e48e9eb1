"""The host's side of its guard (`pairsync.node.guard`): start it, keep it armed, never serve without it.

::

    async with open_guard() as guard:
        await guard.add_group(machine.pid)              # the guest's processes, right after they were started
        guard.arm(sent_ns + timing.guard_after_ns)      # with every answered request for the lease
        await guard.settled()                           # the first time, before the guest may run
        ...
        if not guard.lease_valid(boottime_ns()):        # at the door, before an acknowledgement leaves
            ...

**A lease is valid here only as far as the guard holds it.**  `arm` says what the guard should hold; what
`lease_valid` goes by is what it has answered.  So a guard that is dead, stopped or starved lets the host's
own door close at the old deadline, and one that is known to be lost closes it at once.  What to do then is
the host's to decide: stop the guest, or leave the block and open another guard before the old deadline.

Where no deadline was needed so far, the first one counts at once: others have a say from then on.  Who agrees
to that arms before anybody else hears of it.

Leaving the block tells the guard, which kills the groups that are still there and spares the host.  A host
that dies, or hangs until the deadline, it kills with all groups.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from pairsync.errors import BackendError, ConfigError, InternalError

from .guard import ANSWER, DEADLINE_AHEAD_NS, NEVER_NS, REQUEST, Say, Tell, boottime_ns
from .watchdog import SECONDS_MAX

__all__ = ["GuardClient", "boottime_ns", "open_guard"]

READY_S = 10.0
"""How long a guard may take to start: an interpreter and a handful of modules."""

LOOK_S = 0.5
"""Between two looks whether the guard answers, and how long one may take."""

LOOKS_MAX = 3
"""Looks in a row that are not answered, after which a guard is lost.  More than one: after a machine stood
still, all its time-outs have run out."""

END_S = 5.0
"""How long a guard may take to end after it was told to; it has then something to kill, or is stopped."""

READY_BYTES_MAX = 4096

_LOG = logging.getLogger(__name__)


class GuardClient:
    """See the module; made by `open_guard`."""

    def __init__(self, host_end: socket.socket, pid: int, about: Mapping[str, str]) -> None:
        self.pid = pid
        self.about = about
        """How well it could be protected from delays: ``memory``, ``scheduling``, ``oom``, ``watchdog``."""
        self.lost = trio.Event()
        """Set when there is no guard any more; `lost_reason` says why."""
        self.lost_reason: str | None = None
        self._socket = host_end
        # Invariants: valid_ns is the deadline that the guard last said it holds, NEVER_NS where it needs
        # none, 0 before the first and once it is lost; told counts records, answered is the last that was.
        self._valid_ns = 0
        self._told = 0
        self._outdated = 0  # answers up to that number tell of what is not wanted any more
        self._answered = 0
        self._errors: dict[int, int] = {}  # of `Tell.ADD` under way: its number, then its errno
        self._moved = trio.Condition()
        self._late_ns = 0

    # ------------------------------------------------------------------ the lease

    def lease_valid(self, now_ns: int) -> bool:
        """Whether an acknowledgement may leave at ``now_ns`` (`boottime_ns`): one comparison."""
        return now_ns < self._valid_ns

    @property
    def valid_until_ns(self) -> int:
        """Until when, as the guard has confirmed it; 0: not at all."""
        return self._valid_ns

    def arm(self, deadline_ns: int) -> None:
        """Kill at ``deadline_ns`` of CLOCK_BOOTTIME; an earlier one than is held changes nothing.

        Never blocks.  `InternalError` for a deadline that no lease can have.
        """
        if not 0 < deadline_ns <= boottime_ns() + DEADLINE_AHEAD_NS:
            raise InternalError(f"a guard's deadline of {deadline_ns} ns is no near moment of CLOCK_BOOTTIME")
        if self._valid_ns == NEVER_NS:  # others have a say from now on, whether or not the guard hears of it
            self._valid_ns, self._outdated = deadline_ns, self._told
        self._tell(Tell.ARM, deadline_ns)

    def disarm(self) -> None:
        """No deadline: nobody else may change the grant that is in force.  Never blocks."""
        self._tell(Tell.DISARM)

    def rest(self) -> None:
        """Nothing is served here (this host is the standby): no deadline, and no lease.  Never blocks."""
        self._valid_ns = 0
        self._outdated = self._tell(Tell.REST)

    async def settled(self) -> None:
        """Return when the guard has answered all that it was told; `BackendError` if it is lost."""
        number = self._told
        async with self._moved:
            while self._answered < number and not self.lost.is_set():
                await self._moved.wait()
        if self.lost.is_set():
            raise BackendError(f"the guard is lost: {self.lost_reason}")

    def take_lateness_ns(self) -> int:
        """By how much the guard was late at worst since the last call: a measured stall."""
        late_ns, self._late_ns = self._late_ns, 0
        return late_ns

    # ------------------------------------------------------------------ what is to be killed

    async def add_group(self, pid: int) -> None:
        """Have the process group that ``pid`` leads killed too.  `BackendError` if it cannot be watched.

        To be called right after the process was started, and before it is waited for.
        """
        number = self._tell(Tell.ADD, pid)
        self._errors[number] = errno.EPIPE
        try:
            await self.settled()
            failed = self._errors[number]
        finally:
            del self._errors[number]
        if failed:
            raise BackendError(f"process group {pid} cannot be guarded: {os.strerror(failed)}", failed)

    def drop_group(self, pid: int) -> None:
        """That group has ended in order."""
        self._tell(Tell.DROP, pid)

    # ------------------------------------------------------------------ inside

    def _tell(self, what: Tell, value: int = 0) -> int:
        if self.lost.is_set():
            return self._told
        self._told += 1
        try:
            self._socket.send(REQUEST.pack(what, self._told, value, boottime_ns()))
        except ConnectionError:
            self._lose("it has died")
        except OSError as error:  # a full buffer too: it has not read for many heartbeats
            self._lose(f"it takes no records: {error.strerror}")
        return self._told

    def _lose(self, why: str) -> None:
        if not self.lost.is_set():
            self._valid_ns = 0
            self.lost_reason = why
            self.lost.set()

    async def _read(self) -> None:
        """Take in what it answers, until it is lost."""
        while not self.lost.is_set():
            try:
                record = self._socket.recv(ANSWER.size + 1)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._socket)
                continue
            except ConnectionError:
                record = b""
            if len(record) == ANSWER.size:
                self._take(*ANSWER.unpack(record))
            else:
                self._lose("it has died" if not record else f"it sent a record of {len(record)} bytes")
            async with self._moved:
                self._moved.notify_all()
        async with self._moved:
            self._moved.notify_all()

    def _take(self, what: int, number: int, value: int, lay_ns: int) -> None:
        if what == Say.UNWATCHED:
            _LOG.warning("the watchdog device has failed: %s", os.strerror(value))
            return
        if what == Say.HELD:
            if number > self._outdated:
                self._valid_ns = value
        elif what == Say.ADDED:
            if number in self._errors:
                self._errors[number] = value
        else:
            self._lose(f"it sent a record of kind {what}")
            return
        self._answered = number
        self._late_ns = max(self._late_ns, lay_ns)

    async def _look(self) -> None:
        """Notice a guard that does not answer, also while there is nothing to tell it."""
        unanswered: deque[int] = deque(maxlen=LOOKS_MAX)
        while not self.lost.is_set():
            unanswered.append(self._tell(Tell.LOOK))
            await trio.sleep(LOOK_S)
            if self._answered >= unanswered[-1]:
                unanswered.clear()
            elif len(unanswered) == LOOKS_MAX and self._answered < unanswered[0]:
                self._lose(f"it has not answered for {LOOK_S * LOOKS_MAX:g} s")
        async with self._moved:
            self._moved.notify_all()


async def _await_ready(host_end: socket.socket) -> Mapping[str, str]:
    with trio.move_on_after(READY_S):
        await trio.lowlevel.wait_readable(host_end)
        text = host_end.recv(READY_BYTES_MAX)
        if not text:
            raise BackendError("the guard did not start: its words are on standard error")
        about: dict[str, str] = json.loads(text)
        return about
    raise BackendError(f"the guard did not start within {READY_S:g} s")


@asynccontextmanager
async def open_guard(
    *, kill_host: bool = True, watchdog: Path | None = None, watchdog_s: int = 10
) -> AsyncIterator[GuardClient]:
    """Start a guard for this process; see the module.

    ``kill_host``: whether it kills this process too, besides the groups that it is given: the default, for
    what this process serves must stop as well.  ``watchdog``: a device to be armed (``/dev/watchdog``), which
    resets the machine ``watchdog_s`` seconds after the last renewal (`Timing.watchdog_s`).

    `BackendError` if it does not start: then nothing may be served.  `ConfigError` for a time that cannot be.
    """
    if not 0 < watchdog_s <= SECONDS_MAX:
        raise ConfigError(f"watchdog: {watchdog_s} s; 1 to {SECONDS_MAX} are allowed")
    host_end, guard_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with host_end:
        host_end.setblocking(False)
        with guard_end:
            words = ["--socket", str(guard_end.fileno()), "--host", str(os.getpid())]
            words += [] if kill_host else ["--spare-host"]
            words += [] if watchdog is None else ["--watchdog", str(watchdog)]
            words += ["--watchdog-seconds", str(watchdog_s)]
            process = await trio.lowlevel.open_process(
                [sys.executable, "-P", "-m", "pairsync.node.guard", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(guard_end.fileno(),),
                start_new_session=True,  # a signal to the host's group is not for it
            )
        patience_s = 0.0  # one that did not start, or is lost, is not waited for
        try:
            guard = GuardClient(host_end, process.pid, await _await_ready(host_end))
            _LOG.info(
                "guard %d: %s", guard.pid, ", ".join(f"{key} {text}" for key, text in guard.about.items())
            )
            if watchdog is None:
                _LOG.warning("no watchdog device: nothing stops a guest whose guard is itself stopped")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(guard._read)
                nursery.start_soon(guard._look)
                try:
                    yield guard
                finally:
                    nursery.cancel_scope.cancel()
                    guard._tell(Tell.END)
                    patience_s = 0.0 if guard.lost.is_set() else END_S
        finally:
            with trio.CancelScope(shield=True):
                with trio.move_on_after(patience_s):
                    await process.wait()
                if process.returncode is None:
                    process.kill()
                    await process.wait()
