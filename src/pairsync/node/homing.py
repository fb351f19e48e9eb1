"""A guest that is not at home on this host goes back, where the operator's file says so (`core.homing`)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import trio

from pairsync.core.homing import Homing
from pairsync.errors import ArbitrationError, BackendError, CallerError, PeerError
from pairsync.guest.arbitration import Arbitration
from pairsync.guest.guest import Guest

__all__ = ["take_home"]

_log = logging.getLogger("pairsync.homing")

LOOK_S: Final = 0.25
"""Between two looks whether the guest could go home."""


async def take_home(arbitration: Arbitration, guest: Guest, after_ns: int, now_ns: Callable[[], int]) -> None:
    """Move the guest to the other host whenever `Homing` says so, until cancelled.

    ``now_ns``: the clock of ``arbitration``.  A move that is refused or fails leaves the guest here, and is
    tried again later.
    """
    homing = Homing(after_ns)
    while True:
        await trio.sleep(LOOK_S)
        if not homing.goes(guest.serves and arbitration.in_sync, now_ns()):
            continue
        _log.warning("%s: goes home, to the other host", guest.name)
        try:
            await arbitration.move()
        except (ArbitrationError, BackendError, CallerError, PeerError) as error:
            _log.warning("%s: is not home yet: %s", guest.name, error)
