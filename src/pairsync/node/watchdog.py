"""The kernel's watchdog device: a timer in hardware (or in the kernel) that resets the machine.

Whoever opens the device starts the timer; every write sets it back; closing it without the letter ``V``
written before lets it run on (``Documentation/watchdog/watchdog-api.rst`` of Linux).  So it fires when the
process that holds it is killed or stopped, and when the kernel does not run it any more: just the cases in
which the guard cannot kill anything.

The guard holds it (`pairsync.node.guard`), and this module imports as little as that does.  ``ioctl`` is an
argument, for tests: there is no device on an ordinary machine.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable
from typing import TypeAlias

__all__ = ["SECONDS_MAX", "Watchdog", "open_watchdog"]

_SETTIMEOUT = 0xC0045706  # <linux/watchdog.h>: _IOWR('W', 6, int), seconds; answers what was set
_INT = struct.Struct("i")

_PING = b"\0"  # anything but the letter below
_MAGIC_CLOSE = b"V"

SECONDS_MAX = 3600
"""More is a mistake."""

Ioctl: TypeAlias = Callable[[int, int, bytes], bytes | int]


class Watchdog:
    """An armed device.  ``seconds`` is what the device says it keeps; None where it does not say."""

    def __init__(self, descriptor: int, seconds: int | None) -> None:
        self.seconds = seconds
        self._descriptor = descriptor  # -1 once closed

    def ping(self) -> None:
        """Set the timer back.  `OSError` if the device is gone: then nothing can be done but to say so."""
        os.write(self._descriptor, _PING)

    def close(self) -> None:
        """Stop the timer, unless the driver was told that nobody may (``nowayout``)."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            try:
                os.write(descriptor, _MAGIC_CLOSE)
            finally:
                os.close(descriptor)


def open_watchdog(path: str, seconds: int, *, ioctl: Ioctl = fcntl.ioctl) -> Watchdog:
    """Open and arm a device that resets the machine ``seconds`` after the last ping.

    A driver may keep another time than it is asked for; see `Watchdog.seconds`.  `OSError` where there is no
    device, or another process holds it.
    """
    if not 0 < seconds <= SECONDS_MAX:
        raise ValueError(f"a watchdog of {seconds} s: 1 to {SECONDS_MAX} are allowed")
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY)
    kept: int | None = None
    try:
        answer = ioctl(descriptor, _SETTIMEOUT, _INT.pack(seconds))
        kept = int(_INT.unpack(answer)[0]) if isinstance(answer, bytes) else None
    except OSError as error:
        if error.errno not in {errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL}:
            Watchdog(descriptor, None).close()
            raise
    return Watchdog(descriptor, kept)
