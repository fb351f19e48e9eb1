"""A witness store of the operator's own, named in ``host.toml`` by where it is in Python.

``MODULE:NAME`` is a callable that takes the options of the file as keyword arguments and returns an
asynchronous context manager of a `WitnessStore`, as ``examples/own_witness.py`` has one.  The module is
installed beside the package.  What a store must do is in ``pairsync.io.witnessstore``, and the checks that it
must pass are in ``pairsync.testing.witness``.

Its code is not ours: whatever it raises that is no error of a store counts as a store that was lost, and ends
no host.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

from pairsync.core.witness import Conflict, Snapshot, WitnessKey
from pairsync.errors import ConfigError, PairsyncError, PeerLost
from pairsync.io.witnessstore import WitnessStore

__all__ = ["open_own_store"]

_log = logging.getLogger("pairsync.witness")

T = TypeVar("T")


class _OwnStore:
    """A `WitnessStore` whose every error is one that hosts know."""

    def __init__(self, place: str, store: WitnessStore) -> None:
        self._place = place
        self._store = store

    async def get(self, key: WitnessKey) -> Snapshot:
        """As `WitnessStore.get`."""
        return await self._answer(self._store.get(key))

    async def swap(self, key: WitnessKey, version: int, value: bytes) -> Snapshot | Conflict:
        """As `WitnessStore.swap`."""
        return await self._answer(self._store.swap(key, version, value))

    async def _answer(self, asked: Awaitable[T]) -> T:
        try:
            return await asked
        except PairsyncError:
            raise
        except Exception as error:
            _log.exception("witness store %s", self._place)
            raise PeerLost(f"witness store {self._place}: {type(error).__name__}: {error}") from error


@asynccontextmanager
async def open_own_store(place: str, options: Mapping[str, str]) -> AsyncIterator[WitnessStore]:
    """The store of ``place``, while the block is open.

    Raises `ConfigError`, which names the place, if it cannot be found or does not open.
    """
    module, _, name = place.partition(":")
    try:
        manager = getattr(importlib.import_module(module), name)(**options)
        store = await manager.__aenter__()
    except PairsyncError:
        raise
    except Exception as error:
        raise ConfigError(f"witness store {place}: {type(error).__name__}: {error}") from error
    try:
        yield _OwnStore(place, store)
    finally:
        await manager.__aexit__(None, None, None)
