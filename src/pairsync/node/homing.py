"""A guest that is not at home on this host goes back, where the operator's file says so (`core.homing`)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import trio

from pairsync.core.homing import Homing
from pairsync.errors import ArbitrationError, BackendError, CallerError, ConfigError, PeerError
from pairsync.guest.arbitration import Arbitration
from pairsync.guest.guest import Guest
from pairsync.io.keys import host_name_of

__all__ = ["is_home", "take_home"]

_log = logging.getLogger("pairsync.homing")

LOOK_S: Final = 0.25
"""Between two looks whether the guest could go home."""


def is_home(home: str, own_pem: bytes, peer_pem: bytes) -> bool:
    """Whether the host with the first certificate is the one called ``home``, not that with the second one.

    By the names in the certificates: both hosts have both, so that what is home to one is to the other.
    `ConfigError` if that cannot be told: a guest whose home is nowhere would go to and fro.
    """
    own, peer = host_name_of(own_pem), host_name_of(peer_pem)
    if own == peer:
        raise ConfigError(f"[register]: home: both hosts have the name {own!r} in their certificates")
    if home not in {own, peer}:
        raise ConfigError(
            f"[register]: home: {home!r} is neither this host, {own!r}, nor the other one, {peer!r} "
            "(so their certificates call them)"
        )
    return home == own


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
