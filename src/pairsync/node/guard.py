"""``python -m pairsync.node.guard``: the process that kills a guest whose lease has run out.

DESIGN rule 10: who lost the lease stops first, and the stop does not depend on an event loop that may be
stuck.  So the deadline lies in a process of its own, which waits for nothing else.  It asks nobody before it
kills: not the host, which may hang; not the peer, which may be cut off; not a disk.  It imports and allocates
little, locks its memory and runs before all others where it may (`harden`).

**What it knows**: one deadline, on CLOCK_BOOTTIME, which runs on while the machine is suspended and which
nobody can set; the leaders of some process groups; its host.  It kills with SIGKILL, which stopped processes
obey too:

* when the deadline passes: the groups, and the host, whose front door serves clients that are no children;
* when the host has died, or let go of its socket: the same (a guest that is nobody's must not run on);
* when the host says what makes no sense: the same, for it cannot be told any more what is to be kept;
* when the leader of a group has died: the rest of that group, while its number cannot be another's yet.

But for the last it is used up by that; a host that lives on starts another one.

**How the deadline gets here**: by records over a Unix socket of type SEQPACKET.  It keeps the bounds of
messages, so there is no half a record, whenever the sender is stopped or killed: one is sent whole or not at
all, and never blocks.  All that is there is read before the deadline is judged: a guard that was stopped
itself kills nobody whose lease was renewed in time.  Of deadlines only later ones count; "none at all" is a
record of its own, for a grant that nobody else may change.  Each is answered with what is held, for the host
may count only on a deadline that is held here, and with how long the record lay there, which tells how
punctual this process is.

**What it cannot do**: act while it is itself stopped, or the kernel hangs.  For that there is the watchdog
device: it is fed only when the deadline moves, or there is none, so that a machine whose guard stands still
resets soon after the lease.  And nobody helps where the clock stands still too: a host that is itself a
virtual machine, paused from outside, goes on where it was for as long as its lease seems to last.  Its data
stays safe by terms; what it says to the outside is not held back.

Exit status: 0 told to end, 1 could not start, 3 had to kill, 4 something that it killed did not die.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import gc
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from enum import IntEnum
from typing import Final

from pairsync.node.watchdog import Watchdog, open_watchdog

__all__ = ["ANSWER", "NEVER_NS", "REQUEST", "Guard", "Say", "Tell", "boottime_ns", "harden", "main"]

REQUEST: Final = struct.Struct("<B7xQqq")
"""Host to guard: what (`Tell`), number, value, CLOCK_BOOTTIME when it was sent.  The value is a deadline in
nanoseconds of CLOCK_BOOTTIME for `Tell.ARM`, a process id for `Tell.ADD` and `Tell.DROP`."""

ANSWER: Final = struct.Struct("<B7xQqq")
"""Guard to host: what (`Say`), number of the request, value, how long the request lay there in nanoseconds.
The value is the deadline that is held for `Say.HELD` (0: none, and no leave), else an errno or 0."""

NEVER_NS: Final = (1 << 63) - 1
"""The deadline of who needs none."""

DEADLINE_AHEAD_NS: Final = 600 * 1_000_000_000
"""A deadline farther ahead is nonsense: the longest failover time is a minute."""

GROUPS_MAX: Final = 256
"""Process groups of one guest: its machine and some helpers."""

ROUND_RECORDS_MAX: Final = 4096
"""Records read before the deadline is looked at again: more than a socket's buffer holds."""

PRIORITY: Final = 50
"""Of SCHED_FIFO, the middle: before everything ordinary, behind the kernel's own threads."""

TICK_MS: Final = 250
"""Between two rounds at rest: the watchdog is fed, and a timer that never fired would be made up for."""

DEATH_S: Final = 60.0
"""How long it is waited for the death of what was killed; longer only with a watchdog, which then resets."""

_CLOCK_BOOTTIME: Final = 7
_TIMER_FLAGS: Final = os.O_NONBLOCK | os.O_CLOEXEC
_TIMER_ABSOLUTE: Final = 1
_TIMERSPEC: Final = struct.Struct("@qqqq")  # interval and first, each seconds and nanoseconds
_KILL_GROUP_BY_PIDFD: Final = 4  # PIDFD_SIGNAL_PROCESS_GROUP, Linux 6.9
_LOCK_CURRENT: Final = 1  # MCL_CURRENT
_LOCK_FUTURE: Final = 2  # MCL_FUTURE


class Tell(IntEnum):
    """What a host tells its guard."""

    ARM = 1
    DISARM = 2
    ADD = 3
    DROP = 4
    LOOK = 5  # changes nothing, is answered
    REST = 7  # nothing is served: no deadline, and no leave either
    END = 6  # the host ends in order: kill the groups that are left, spare the host


class Say(IntEnum):
    """What a guard answers."""

    HELD = 1
    ADDED = 2
    UNWATCHED = 3  # unasked: the watchdog device has failed


def boottime_ns() -> int:
    """The one clock of deadlines."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class _Timer:
    """A descriptor that is readable from a moment of CLOCK_BOOTTIME on.  A suspension, which the time-outs of
    poll do not count, makes it readable as soon as the machine is back."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor = int(self._libc.timerfd_create(_CLOCK_BOOTTIME, _TIMER_FLAGS))
        if self.descriptor < 0:
            raise _os_error("timerfd_create")

    def set(self, when_ns: int) -> None:
        """``NEVER_NS``: never."""
        first = (0, 0) if when_ns == NEVER_NS else divmod(max(1, when_ns), 1_000_000_000)  # all zero: off
        spec = _TIMERSPEC.pack(0, 0, *first)
        if self._libc.timerfd_settime(self.descriptor, _TIMER_ABSOLUTE, spec, None) != 0:
            raise _os_error("timerfd_settime")


def _os_error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


class Guard:
    """See the module."""

    def __init__(
        self, host: socket.socket, host_pid: int, *, kill_host: bool, watchdog: Watchdog | None
    ) -> None:
        self._socket = host
        self._host_pid = host_pid
        self._kill_host = kill_host
        self._watchdog = watchdog
        self._timer = _Timer()
        self._poll = select.poll()
        # Invariants: deadline_ns only grows, except from NEVER_NS, which stands for no deadline; nothing is
        # held before the first ARM or DISARM, and after REST; groups maps the process id of a group's leader
        # to its pidfd.
        self._deadline_ns = NEVER_NS
        self._holds = False
        self._groups: dict[int, int] = {}
        self._reason: str | None = None
        self._ended = False
        self._host_fd = os.pidfd_open(host_pid)
        if os.getppid() != host_pid:
            raise OSError(errno.ESRCH, f"host process {host_pid} is not our parent (any more)")
        for descriptor in (self._socket.fileno(), self._host_fd, self._timer.descriptor):
            self._poll.register(descriptor, select.POLLIN)

    def run(self) -> int:
        """Until told to end, or until there is nothing left to guard; the exit status."""
        while True:
            ready = {descriptor for descriptor, _ in self._poll.poll(TICK_MS)}
            self._read()
            now_ns = boottime_ns()
            why = self._reason
            if now_ns >= self._deadline_ns:
                why = f"the lease has run out {(now_ns - self._deadline_ns) / 1e6:.3f} ms ago"
            if self._host_fd in ready:
                why = "the host process has died"
            if why is not None:
                return self._end(why, host=self._kill_host)
            if self._ended:
                return self._end("the host has ended", host=False)
            for pid in [pid for pid, descriptor in self._groups.items() if descriptor in ready]:
                _kill_group(pid, self._groups[pid])
                self._drop(pid)
            if self._deadline_ns == NEVER_NS:
                self._feed()

    # ------------------------------------------------------------------ records

    def _read(self) -> None:
        """All that is there; then what is known is as new as it can be."""
        for _ in range(ROUND_RECORDS_MAX):
            if self._ended or self._reason is not None:
                return
            try:
                record = self._socket.recv(REQUEST.size + 1)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._reason = f"the host's socket: {error}"
                return
            if not record:
                self._reason = "the host has let go"
            elif len(record) != REQUEST.size:
                self._reason = f"a record of {len(record)} bytes"
            else:
                self._take(*REQUEST.unpack(record))

    def _take(self, what: int, number: int, value: int, sent_ns: int) -> None:
        now_ns = boottime_ns()
        lay_ns = max(0, now_ns - sent_ns)
        self._holds = what in {Tell.ARM, Tell.DISARM} or (self._holds and what != Tell.REST)
        if what == Tell.ARM and sent_ns >= self._deadline_ns:
            return  # too late: the deadline has passed, and is about to be judged
        if what == Tell.ARM and value <= now_ns + DEADLINE_AHEAD_NS:
            if self._deadline_ns == NEVER_NS or value > self._deadline_ns:
                self._deadline_ns = value
                self._timer.set(value)
                if value > now_ns:
                    self._feed()
            self._say(Say.HELD, number, self._deadline_ns, lay_ns)
        elif what in {Tell.DISARM, Tell.REST, Tell.LOOK}:
            if what != Tell.LOOK:
                self._deadline_ns = NEVER_NS
                self._timer.set(NEVER_NS)
            self._say(Say.HELD, number, self._deadline_ns if self._holds else 0, lay_ns)
        elif what == Tell.ADD:
            self._say(Say.ADDED, number, self._add(value), lay_ns)
        elif what == Tell.DROP:
            self._drop(value)
            self._say(Say.ADDED, number, 0, lay_ns)
        elif what == Tell.END:
            self._ended = True
        else:
            self._reason = f"a record of kind {what} with {value}"

    def _add(self, pid: int) -> int:
        """0, or an errno."""
        if pid in self._groups:
            return 0
        if len(self._groups) >= GROUPS_MAX:
            return errno.E2BIG
        try:
            if os.getpgid(pid) != pid or pid in {os.getpgrp(), 1}:
                return errno.EINVAL
            self._groups[pid] = os.pidfd_open(pid)
        except OSError as error:
            return error.errno or errno.EIO
        self._poll.register(self._groups[pid], select.POLLIN)
        return 0

    def _drop(self, pid: int) -> None:
        if pid in self._groups:
            descriptor = self._groups.pop(pid)
            self._poll.unregister(descriptor)
            os.close(descriptor)

    def _say(self, what: Say, number: int, value: int, lay_ns: int) -> None:
        """A host that does not read its answers does not get them: never wait for it."""
        try:
            self._socket.send(ANSWER.pack(what, number, value, lay_ns))
        except OSError:
            return

    # ------------------------------------------------------------------ the end

    def _end(self, why: str, *, host: bool) -> int:
        """Kill, see it die, and only then speak: what is said may have to wait for a reader."""
        for pid, descriptor in self._groups.items():
            _kill_group(pid, descriptor)
        waiting = dict(self._groups)
        if host:
            _kill(self._host_fd)
            waiting[self._host_pid] = self._host_fd
        left = self._await_deaths(waiting)
        while left and self._watchdog is not None:  # nobody feeds it now: it resets the machine
            _note(f"{sorted(left)} did not die within {DEATH_S:g} s of SIGKILL")
            left = self._await_deaths(left)
        if self._watchdog is not None:
            self._watchdog.close()
        if waiting:
            _note(f"killed {sorted(waiting)}: {why}" + (f"; still there: {sorted(left)}" if left else ""))
        return 4 if left else 3 if waiting else 0

    def _await_deaths(self, waiting: dict[int, int]) -> dict[int, int]:
        """Return those that are left after `DEATH_S`."""
        end_s = time.monotonic() + DEATH_S
        left = dict(waiting)
        while left and time.monotonic() < end_s:
            poll = select.poll()
            for descriptor in left.values():
                poll.register(descriptor, select.POLLIN)
            dead = {descriptor for descriptor, _ in poll.poll(TICK_MS)}
            left = {pid: descriptor for pid, descriptor in left.items() if descriptor not in dead}
        return left

    def _feed(self) -> None:
        if self._watchdog is not None:
            try:
                self._watchdog.ping()
            except OSError as error:
                self._watchdog = None
                self._say(Say.UNWATCHED, 0, error.errno or errno.EIO, 0)


def _kill_group(pid: int, descriptor: int) -> None:
    """The whole group, by its leader's pidfd where the kernel can."""
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL, None, _KILL_GROUP_BY_PIDFD)
    except ProcessLookupError:
        return
    except OSError:  # an older kernel; a number is not given again while its group, or its zombie, is there
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def _kill(descriptor: int) -> None:
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except ProcessLookupError:
        return


def _note(text: str) -> None:
    try:
        os.write(2, f"pairsync guard: {text}\n".encode())
    except OSError:
        return


def harden() -> dict[str, str]:
    """Be as hard to delay as this user may; what came of it, by name, for the log."""
    gc.disable()
    gc.freeze()
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # it ends with its host, not before
        signal.signal(ignored, signal.SIG_IGN)
    result = {"memory": "locked", "scheduling": "real-time", "oom": "exempt"}
    unlimited = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY
    # with a limit, locking what comes later could make an allocation fail at the wrong moment
    flags = _LOCK_CURRENT | _LOCK_FUTURE if unlimited or os.geteuid() == 0 else _LOCK_CURRENT
    if ctypes.CDLL(None, use_errno=True).mlockall(flags) != 0:
        result["memory"] = f"not locked: {os.strerror(ctypes.get_errno())}"
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(PRIORITY))
    except OSError as error:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, -20)
            result["scheduling"] = f"preferred: {error.strerror}"
        except OSError:
            result["scheduling"] = f"ordinary: {error.strerror}"
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("-1000")
    except OSError as error:
        result["oom"] = f"not exempt: {error.strerror}"
    return result


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="pairsync.node.guard")
    parser.add_argument("--socket", type=int, required=True, help="descriptor of the socket to the host")
    parser.add_argument("--host", type=int, required=True, help="process id of the host")
    parser.add_argument("--spare-host", action="store_true", help="kill the groups only")
    parser.add_argument("--watchdog", help="device to arm")
    parser.add_argument("--watchdog-seconds", type=int, default=10)
    return parser.parse_args()


def main() -> int:
    """The program."""
    given = _arguments()
    about = harden()
    watchdog = None
    if given.watchdog is not None:
        try:
            watchdog = open_watchdog(given.watchdog, given.watchdog_seconds)
            kept = "its own time" if watchdog.seconds is None else f"{watchdog.seconds} s"
            about["watchdog"] = f"{given.watchdog}, {kept}"
        except OSError as error:
            about["watchdog"] = f"none: {given.watchdog}: {error.strerror}"
    host = socket.socket(fileno=given.socket)
    host.setblocking(False)
    try:
        guard = Guard(host, given.host, kill_host=not given.spare_host, watchdog=watchdog)
        host.send(json.dumps(about).encode())
    except OSError as error:
        _note(f"cannot guard: {error}")
        if watchdog is not None:
            watchdog.close()
        return 1
    return guard.run()


if __name__ == "__main__":
    sys.exit(main())
