"""Giving memory back to the system.

The C library keeps what was freed for later use.  After a burst of large buffers (a client that asks for much
and takes nothing, a resync) a host would hold on to hundreds of MiB for the rest of its life.  `trim_memory`
looks at what is resident now and then and, if that is far above the least that was seen, has the library
return its free pages.  What is in use stays resident, of course: then it tries less and less often.

So the library need not do it by itself: `keep_freed_memory` stops it, for buffers of a resync that were freed
and are taken again a moment later had 40 page faults each.
"""

from __future__ import annotations

import ctypes
import mmap
import resource
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeAlias

import trio

from pairsync.core.units import KIB, MIB

__all__ = ["TRIM_ABOVE_BYTES", "held", "keep_freed_memory", "resident_bytes", "trim_memory"]

TRIM_ABOVE_BYTES = 32 * MIB
"""Trim if so much more is resident than ever after a trim: less is not worth the page faults that follow."""

LOOK_S_MIN = 2.0
LOOK_S_MAX = 60.0
"""Between two looks: soon after a burst, seldom where memory is in use; a trim takes some milliseconds."""


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def held() -> dict[str, int]:
    """Resident memory and open descriptors; where none is left to look with, the peak and all that may be."""
    try:
        return {"resident_bytes": resident_bytes(), "descriptors": len(list(Path("/proc/self/fd").iterdir()))}
    except OSError:
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB
        return {"resident_bytes": peak_bytes, "descriptors": resource.getrlimit(resource.RLIMIT_NOFILE)[0]}


_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
"""Of ``mallopt``, see malloc.h of the GNU C library."""
_MMAP_BYTES = 32 * MIB
"""Larger blocks have pages of their own; the most to which the library raises that bound by itself."""


def keep_freed_memory() -> None:
    """Have the C library keep what was freed, as far as `trim_memory` lets it; nothing where it cannot."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, TRIM_ABOVE_BYTES)


Trim: TypeAlias = Callable[[], Awaitable[object]]


def _library_trim() -> Trim | None:
    """What makes the C library return its free pages; None if it has no such thing."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is None:
        return None
    return partial(trio.to_thread.run_sync, malloc_trim, 0)  # the event loop goes on meanwhile


async def trim_memory(*, resident: Callable[[], int] = resident_bytes, trim: Trim | None = None) -> None:
    """Do so until cancelled; returns at once where the C library cannot."""
    trim = _library_trim() if trim is None else trim
    if trim is None:
        return
    least, wait_s = resident(), LOOK_S_MIN
    while True:
        await trio.sleep(wait_s)
        try:
            now = resident()
            if now > least + TRIM_ABOVE_BYTES:
                wait_s = min(wait_s * 2, LOOK_S_MAX)
                await trim()
                now = resident()
        except OSError:  # no descriptor to look with: that is no reason to end
            continue
        if now <= least + TRIM_ABOVE_BYTES:
            least, wait_s = min(least, now), LOOK_S_MIN
