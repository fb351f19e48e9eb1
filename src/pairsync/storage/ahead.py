"""Keeping ahead: what batches will overwrite is kept while those before them are being written.

The data lane keeps what a batch overwrites and then writes it, one batch after the other, so every batch
waits for a flush of the undo log by itself: on a disk that is half the time of a resync.  An `Ahead` is told
of batches when they are queued.  A thread of its own keeps what they will overwrite, all that are waiting in
one go and with one flush, while the lane writes those before them.

**Nothing depends on it.**  The lane asks the undo log again before each batch, and keeps by itself what is
not kept yet; whatever goes wrong here is met there once more, where it can be dealt with.  What was kept for
a batch that is never written is right (nobody has changed it) and costs room.

Where the files lie in memory there is no wait to use, and the thread does not pay.  It was tried for what is
likely to be overwritten next, 4 MiB ahead of a run: 1.28 to 1.32 s for each GiB, 1.02 to 1.10 s without.

Batches are known by identity: the very object that was announced is what the lane waits for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain
from typing import Final

from pairsync.core.messages import WriteOp
from pairsync.core.units import BLOCK_BYTES, MIB, extent_of
from pairsync.errors import PairsyncError

__all__ = ["AHEAD_BYTES_MAX", "Ahead"]

AHEAD_BYTES_MAX: Final = 8 * MIB
"""Kept with one flush (whole blocks, however small the writes), or one batch if that is larger: half of what
a resync has under way when the guest is idle (`core.resync.Pacer`), so that one half is written while the
other is kept."""


class Ahead:
    """See the module.  ``keep`` is called in the thread, with the ops of some batches in their order."""

    def __init__(self, keep: Callable[[Sequence[WriteOp]], None], name: str) -> None:
        self._keep = keep
        # Announced and not dealt with, in order; by the identity of the batch, which is held until then.
        self._waiting: dict[int, Sequence[WriteOp]] = {}
        self._open = True  # the thread takes batches
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name=f"pairsync-ahead-{name}", daemon=True)
        self._thread.start()

    def announce(self, ops: Sequence[WriteOp]) -> None:
        """A batch is about to be queued; any thread."""
        with self._changed:
            if self._open:
                self._waiting[id(ops)] = ops
                self._changed.notify_all()

    def wait(self, ops: Sequence[WriteOp]) -> None:
        """Return once the thread has dealt with the batch, or never will."""
        with self._changed:
            while id(ops) in self._waiting:
                self._changed.wait()

    def close(self, timeout_s: float) -> bool:
        """End the thread; whether it has ended in that time.  Idempotent."""
        with self._changed:
            self._end()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _end(self) -> None:
        self._open = False
        self._waiting.clear()
        self._changed.notify_all()

    # ------------------------------------------------------------------ the thread

    def _work(self) -> None:
        try:
            while group := self._next():
                with suppress(PairsyncError):  # the lane meets it again
                    self._keep(list(chain.from_iterable(group)))
                with self._changed:
                    for batch in group:
                        self._waiting.pop(id(batch), None)
                    self._changed.notify_all()
        finally:
            with self._changed:
                self._end()

    def _next(self) -> list[Sequence[WriteOp]]:
        """The batches that are kept next, which stay among those that wait; none: it has been closed."""
        with self._changed:
            while self._open and not self._waiting:
                self._changed.wait()
            group: list[Sequence[WriteOp]] = []
            room = AHEAD_BYTES_MAX // BLOCK_BYTES
            for batch in self._waiting.values():
                room -= sum([extent_of(op.offset, op.length).block_count for op in batch])
                if group and room < 0:
                    break
                group.append(batch)
            return group
