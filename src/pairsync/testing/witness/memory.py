"""A store in memory: the model of all others, and the witness of tests and simulators."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from pairsync.core.witness import (
    INCARNATION_BYTES,
    Conflict,
    Snapshot,
    WitnessKey,
    check_value,
    first_version,
)
from pairsync.errors import PeerLost
from pairsync.io.witnessstore import WitnessStore

from .bench import WitnessBench

__all__ = ["MemoryBench", "MemoryWitness"]


class MemoryWitness:
    """A `RegisterKeeper` in memory; what it does to its callers is set from outside.

    ``reachable``: off, every call raises `PeerLost` and nothing happens.  ``answers``: off, every call does
    what it is to do and then raises `PeerLost`.
    """

    def __init__(self, entropy: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self.reachable = True
        self.answers = True
        self._entropy = entropy
        self._registers: dict[WitnessKey, Snapshot] = {}

    def forget(self) -> None:
        """Lose everything."""
        self._registers.clear()

    def look(self, key: WitnessKey) -> Snapshot:
        """The register, which is made if there is none; at once."""
        if key not in self._registers:
            incarnation = self._entropy(INCARNATION_BYTES)
            self._registers[key] = Snapshot(incarnation, first_version(self._entropy(8)), None)
        return self._registers[key]

    def put(self, key: WitnessKey, version: int, value: bytes) -> Snapshot | Conflict:
        """Swap, at once."""
        check_value(value)
        current = self.look(key)
        if current.version != version:
            return Conflict(current)
        self._registers[key] = Snapshot(current.incarnation, version + 1, value)
        return self._registers[key]

    async def get(self, key: WitnessKey) -> Snapshot:
        """As `WitnessStore.get`."""
        await self._arrive()
        found = self.look(key)
        await self._leave()
        return found

    async def swap(self, key: WitnessKey, version: int, value: bytes) -> Snapshot | Conflict:
        """As `WitnessStore.swap`."""
        check_value(value)
        await self._arrive()
        done = self.put(key, version, value)
        await self._leave()
        return done

    async def renew(self, key: WitnessKey, seen: Snapshot) -> None:
        """As `RegisterKeeper.renew`."""
        await trio.lowlevel.checkpoint()
        if key in self._registers and self._registers[key].is_behind(seen):
            del self._registers[key]

    async def _arrive(self) -> None:
        await trio.lowlevel.checkpoint()
        if not self.reachable:
            raise PeerLost("the witness in memory is not reachable")

    async def _leave(self) -> None:
        await trio.lowlevel.checkpoint()
        if not self.answers:
            raise PeerLost("the answer of the witness in memory was lost")


class MemoryBench(WitnessBench):
    """The store in memory, for the checks."""

    def __init__(self, pair_id: bytes) -> None:
        super().__init__(pair_id)
        self.witness = MemoryWitness()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[WitnessStore]:
        """As `WitnessBench.open`."""
        yield self.witness

    async def restart(self) -> None:
        """It answers nothing for a moment: what it had done stays done."""
        self.witness.answers = False
        await trio.testing.wait_all_tasks_blocked()
        self.witness.answers = True

    async def forget(self) -> None:
        """As `WitnessBench.forget`."""
        self.witness.forget()
        await trio.lowlevel.checkpoint()
