"""pairsync: a disk that lives on two hosts at once.

What an embedder opens and is told; everything here is found on first use, so that importing the package costs
nothing (the command line prints its help without loading trio).

::

    async with pairsync.open_guest(config) as guest:        # trio
        await guest.volume("vda").write(0, b"...")

    async with pairsync.AsyncioGuest(config) as guest:      # asyncio
        await guest.write("vda", 0, b"...")

``pairsync.errors`` holds the exception tree, ``pairsync.events`` the classes of all events.  The package logs
under ``pairsync.*`` and leaves it to the program what becomes of that.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pairsync import errors
    from pairsync.core import events
    from pairsync.core.events import Event
    from pairsync.core.limits import VolumeOptions
    from pairsync.core.messages import Role
    from pairsync.errors import (
        ArbitrationError,
        BackendError,
        BusyError,
        ClosedError,
        ConfigError,
        PairsyncError,
    )
    from pairsync.guest.asyncio_facade import AsyncioGuest
    from pairsync.guest.config import GuestConfig, VolumeConfig
    from pairsync.guest.events import Subscription
    from pairsync.guest.guest import Guest, open_guest
    from pairsync.guest.points import Point
    from pairsync.guest.replica import create_replica
    from pairsync.guest.statistics import GuestStatistics, VolumeStatistics
    from pairsync.guest.volume import Volume
    from pairsync.io.config import LinkConfig, LinkTimings, PathConfig
    from pairsync.io.keys import HostIdentity, make_identity, open_identity
    from pairsync.polling import BusyPolling

__all__ = [
    "ArbitrationError",
    "AsyncioGuest",
    "BackendError",
    "BusyError",
    "BusyPolling",
    "ClosedError",
    "ConfigError",
    "Event",
    "Guest",
    "GuestConfig",
    "GuestStatistics",
    "HostIdentity",
    "LinkConfig",
    "LinkTimings",
    "PairsyncError",
    "PathConfig",
    "Point",
    "Role",
    "Subscription",
    "Volume",
    "VolumeConfig",
    "VolumeOptions",
    "VolumeStatistics",
    "create_replica",
    "errors",
    "events",
    "make_identity",
    "open_guest",
    "open_identity",
]

# where each name lives; a module stands for itself
_HOMES = {
    "errors": "pairsync.errors",
    "events": "pairsync.core.events",
    "ArbitrationError": "pairsync.errors",
    "AsyncioGuest": "pairsync.guest.asyncio_facade",
    "BackendError": "pairsync.errors",
    "BusyError": "pairsync.errors",
    "BusyPolling": "pairsync.polling",
    "ClosedError": "pairsync.errors",
    "ConfigError": "pairsync.errors",
    "Event": "pairsync.core.events",
    "Guest": "pairsync.guest.guest",
    "GuestConfig": "pairsync.guest.config",
    "GuestStatistics": "pairsync.guest.statistics",
    "HostIdentity": "pairsync.io.keys",
    "LinkConfig": "pairsync.io.config",
    "LinkTimings": "pairsync.io.config",
    "PairsyncError": "pairsync.errors",
    "PathConfig": "pairsync.io.config",
    "Point": "pairsync.guest.points",
    "Role": "pairsync.core.messages",
    "Subscription": "pairsync.guest.events",
    "Volume": "pairsync.guest.volume",
    "VolumeConfig": "pairsync.guest.config",
    "VolumeOptions": "pairsync.core.limits",
    "VolumeStatistics": "pairsync.guest.statistics",
    "create_replica": "pairsync.guest.replica",
    "make_identity": "pairsync.io.keys",
    "open_guest": "pairsync.guest.guest",
    "open_identity": "pairsync.io.keys",
}

logging.getLogger(__name__).addHandler(logging.NullHandler())

if not TYPE_CHECKING:  # a type checker would take every misspelt name for an object

    def __getattr__(name: str) -> object:
        """Find a public name where it lives, once (PEP 562)."""
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = importlib.import_module(home)
        found = module if name in {"errors", "events"} else getattr(module, name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
