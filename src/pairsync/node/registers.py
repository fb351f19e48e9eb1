"""The registers of the built-in witness for many at once: reads from memory, changes durable in batches.

A pair changes one register at a time; whoever comes meanwhile for that pair waits.  What several pairs change
at the same time goes to the disk in one write: the disk's latency bounds what a pair gets, not what all get.
A register is shown only as it is durable, so what one host has read no crash takes back.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import TypeVar

import trio

from pairsync.core.witness import Conflict, Snapshot, WitnessKey, check_value
from pairsync.errors import BackendError, ClosedError
from pairsync.storage.registerfile import Entry, RegisterFile

__all__ = ["Registers"]

_log = logging.getLogger("pairsync.witness")

T = TypeVar("T")


class _Change:
    """An entry on its way to the disk."""

    __slots__ = ("done", "entry", "failure")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.done = trio.Event()
        self.failure: BackendError | ClosedError | None = None


class Registers:
    """A `RegisterKeeper` over a `RegisterFile`; works while `run` runs."""

    def __init__(self, file: RegisterFile) -> None:
        self._file = file
        # Invariant: what is on its way, by pair; each is in the queue or in the batch that is being written.
        self._staged: dict[bytes, _Change] = {}
        # Invariant: one change of a pair at most, so never longer than there are pairs.
        self._queue: list[_Change] = []
        self._work = trio.Event()
        self._disk = trio.Lock()  # one thread at a time in the file
        self._closed = False
        self.batches = 0
        """Writes to the disk since the start."""

    @property
    def distrust(self) -> str | None:
        """Why the file that was found was not believed; None if it was."""
        return self._file.distrust

    def __len__(self) -> int:
        return len(self._file)

    @property
    def size_bytes(self) -> int:
        """Of the file."""
        return self._file.size_bytes

    async def get(self, key: WitnessKey) -> Snapshot:
        """As `WitnessStore.get`; raises `BackendError`, or `ConfigError` if the pair has too many."""
        found = self._file.find(key)
        if found is None:
            await self._settled(key.pair_id)
            found = self._file.find(key)
        if found is None:
            fresh = self._file.fresh(key)
            await self._change(fresh)
            return fresh.snapshot
        return found

    async def swap(self, key: WitnessKey, version: int, value: bytes) -> Snapshot | Conflict:
        """As `WitnessStore.swap`; raises `BackendError`, or `ConfigError`."""
        check_value(value)
        await self.get(key)
        await self._settled(key.pair_id)
        current = self._file.find(key)
        if current is None:  # the pair was struck off the roll meanwhile
            raise ClosedError(f"pair {key.pair_id.hex()[:8]} is not served any more")
        if current.version != version:
            return Conflict(current)
        after = Snapshot(current.incarnation, version + 1, value)
        await self._change(Entry(key, after))
        return after

    async def renew(self, key: WitnessKey, seen: Snapshot) -> None:
        """As `RegisterKeeper.renew`."""
        current = self._file.find(key)
        if current is None or not current.is_behind(seen):
            return
        await self._settled(key.pair_id)
        entry = self._file.renewed(key, seen)
        if entry is not None:
            _log.error(
                "register %r of pair %s is behind what a host has seen: this witness was put back to an "
                "earlier state; the register begins anew",
                key.guest,
                key.pair_id.hex()[:8],
            )
            await self._change(entry)

    async def keep_only(self, pairs: Collection[bytes]) -> int:
        """Forget the registers of all other pairs; how many there were.  Raises `BackendError`."""
        async with self._disk:
            return await trio.to_thread.run_sync(self._file.keep_only, pairs)

    async def run(self) -> None:
        """Write batches until cancelled."""
        try:
            while True:
                await self._work.wait()
                self._work = trio.Event()
                batch, self._queue = self._queue, []
                failure: BackendError | None = None
                try:
                    async with self._disk:
                        await trio.to_thread.run_sync(self._file.append, [each.entry for each in batch])
                except BackendError as error:
                    failure = error
                    _log.error("registers cannot be written: %s", error)
                self.batches += 1
                self._finish(batch, failure)
        finally:
            self._closed = True
            self._finish(list(self._staged.values()), ClosedError("the witness is being stopped"))

    def _finish(self, batch: list[_Change], failure: BackendError | ClosedError | None) -> None:
        for each in batch:
            each.failure = failure
            del self._staged[each.entry.key.pair_id]
            each.done.set()

    async def _settled(self, pair_id: bytes) -> None:
        """Return when nothing of that pair is on its way, with no checkpoint between that and the return."""
        while (change := self._staged.get(pair_id)) is not None:
            await change.done.wait()

    async def _change(self, entry: Entry) -> None:
        """Make an entry durable, of a settled pair.  Cancelled, it may come into force all the same."""
        if self._closed:
            raise ClosedError("the witness is being stopped")
        change = self._staged[entry.key.pair_id] = _Change(entry)
        self._queue.append(change)
        self._work.set()
        await change.done.wait()
        if change.failure is not None:
            raise type(change.failure)(str(change.failure)) from change.failure
