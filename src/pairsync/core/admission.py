"""Admission: which batch is taken in now, and which waits.

A batch waits, in order, while

* the volume is not open yet, or the peer is too far behind: then the embedder is asked to wait too;
* the write-intent window is full, or there are too many batches: likewise;
* the peer has as much to apply as it may (what is only waiting for its intent record counts): likewise;
* it would do better in company (`Window.crowded`, an intent that is being recorded): then it is gathered with
  those that come meanwhile, and nobody is asked to wait.

The bound of ``async`` lives here as well: how far the peer may lag, in bytes and in time.
"""

from __future__ import annotations

from collections.abc import Sequence

from .limits import VolumeOptions
from .messages import WriteOp
from .tracker import Tracker, ops_bytes
from .window import GATHER_DATA_BYTES_MAX, Ticket, Waiting, Window

__all__ = ["Admission"]


class Admission:
    """See the module."""

    def __init__(self, tracker: Tracker, window: Window, options: VolumeOptions) -> None:
        self.sync = options.level == "sync"
        """Whether an acknowledgement needs the peer."""
        self.falls_behind = not self.sync and options.at_bound == "fall-behind"
        """Whether the writer goes on when the peer lags too far."""
        self.opened = False
        """The recovered map and the superblock are durable: writes may begin.  Set once."""
        self.journaling = 0
        """Batches whose intents are on their way to the disk."""
        self._recording_bytes = 0  # data of those batches: it will be sent whatever happens meanwhile
        self._recording_ops = 0  # their ops
        self.waiting = Waiting()
        self._tracker = tracker
        self._window = window
        self._options = options
        self._late = False  # the oldest write that the peer lacks is older than the bound

    def must_wait(self, live_count: int) -> bool:
        """Whether there is no room for a batch beside ``live_count`` others."""
        if not self.opened or self._tracker.must_wait or live_count >= self._options.tickets_max:
            return True
        if self.falls_behind:
            return False
        if self._window.full(self._recording_ops):
            return True
        under_way = self._window.data_bytes + self._recording_bytes
        if self.sync:
            return under_way >= self._options.inflight_bytes
        return self._late or under_way >= self._options.lag_bytes

    def recording(self, ops: Sequence[WriteOp]) -> None:
        """The intents of a batch are on their way to the disk; it is sent when they are there."""
        self.journaling += 1
        self._recording_bytes += ops_bytes(ops)
        self._recording_ops += len(ops)

    def recorded(self, ops: Sequence[WriteOp]) -> None:
        """They are durable, or could not be written."""
        self.journaling -= 1
        self._recording_bytes -= ops_bytes(ops)
        self._recording_ops -= len(ops)

    def welcome(self, live_count: int) -> bool:
        """Whether the embedder may give another batch now."""
        return self.waiting.data_bytes < self._options.inflight_bytes and not self.must_wait(live_count)

    def at_once(self, live_count: int) -> bool:
        """Whether a new batch can be taken in without having waited."""
        return not (self.waiting or self._crowded or self.must_wait(live_count))

    def next(self, live_count: int) -> Ticket | None:
        """What has waited long enough."""
        if not self.waiting or self._crowded or self.must_wait(live_count):
            return None
        return self.waiting.gather()

    @property
    def _crowded(self) -> bool:
        recording = self.journaling > 0 and self.waiting.data_bytes < GATHER_DATA_BYTES_MAX
        return recording or (self.sync and self._window.crowded)  # ``async`` waits for no answer of the peer

    def look(self, now_ns: int, *, joined: bool) -> bool:
        """Look at the lag; whether it is beyond what ``async`` allows.

        How old it is says nothing of a peer that is still being resynced: what is on its way to it is as old
        as a slow link makes it, for hours, and the writer would wait for the end of the resync.
        """
        self._late = joined and self._window.lag_ns(now_ns) > self._options.lag_ns
        return self._late or self.too_much

    @property
    def too_much(self) -> bool:
        """Whether the peer lacks more than ``async`` allows, whatever its age."""
        return self._window.data_bytes > self._options.lag_bytes or self._window.full()

    @property
    def room_to_copy(self) -> bool:
        """Whether a resync may ask for more.

        A guest that writes faster than the link keeps the window full: what may be under way for the resync
        is its own, or it would stand still (DESIGN rule 11).
        """
        window = self._window
        return window.copied_bytes < self._options.copying_bytes and not window.full()

    def mirrors(self, *, joined: bool) -> bool:
        """Whether a peer that is there is sent a write now; one that is being resynced may be spared."""
        if self.falls_behind and not joined:
            return self._window.data_bytes < self._options.lag_bytes // 2 and not self._window.full()
        return True
