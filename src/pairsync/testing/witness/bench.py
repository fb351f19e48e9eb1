"""What a store's author tells the checks: how to reach it, how to kill it, how to make it forget."""

from __future__ import annotations

import abc
from contextlib import AbstractAsyncContextManager

from pairsync.core.witness import WitnessKey
from pairsync.io.witnessstore import WitnessStore

__all__ = ["WitnessBench", "WitnessBroken"]


class WitnessBroken(Exception):
    """A store did what no store may do; the message says what."""


class WitnessBench(abc.ABC):
    """One store that is served somewhere; guests of ``pair_id`` are the checks' own."""

    def __init__(self, pair_id: bytes) -> None:
        self.pair_id = pair_id

    def key(self, guest: str) -> WitnessKey:
        """The register of a guest."""
        return WitnessKey(self.pair_id, guest)

    @abc.abstractmethod
    def open(self) -> AbstractAsyncContextManager[WitnessStore]:
        """Reach the store as one more host does; may be called several times."""

    async def restart(self) -> None:
        """Kill the store's process, or all of them, at once (SIGKILL), and start it again."""
        raise NotImplementedError(f"{type(self).__name__} cannot restart its store")

    async def forget(self) -> None:
        """Make the store lose all that it holds, and serve again."""
        raise NotImplementedError(f"{type(self).__name__} cannot make its store forget")
