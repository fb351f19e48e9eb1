"""Keeping what a resync overwrites: a `Keeper` beside a replica, and the `KeepingDevice` that asks it.

What it decides: when the undo log of a replica is begun, what it keeps, when it goes, and what is given up
where there is no room (DESIGN rule 9).  It is told what the superblock says and is about to say, and sees all
that is written, between the digests and the disk.

**The order**, which the lanes of the guest keep (``guest.performer``):

1. `Keeper.before` a superblock that says SYNCING: the log is durable first.
2. `KeepingDevice.apply` while the log is open: what is overwritten is kept first.
3. `Keeper.before` a superblock that says CONSISTENT again: what the replica had written on its own becomes
   a kept overlay.  Where it had written nothing the log stays as it is, so that there is a way back for as
   long as the superblock says SYNCING.
4. `Keeper.after` that superblock is durable: the log goes.

A crash between 3 and 4, with own writes, leaves SYNCING and no way back: the resync was complete, and is
repeated.

**What is worth keeping.**  A replica that has lived through nothing has no consistent point and nothing of
its own: of a blank one nothing is kept.  Of one that has no way back any more only its own blocks are.

**Without room** (the bound of all overlays, or a full disk), in this order: kept overlays are dropped, the
oldest first; the way back is given up, and only own blocks are kept from there on; the write fails, and the
replica stays what it is.  Each step is told before it is taken: in the log at once, and as an event.

All methods block and belong to the data lane; `announce`, `infos` and `take_events` may be called from any
thread.  Where the files may block, what is announced is kept in a thread of its own (``storage.ahead``) while
the log is open.  One lock is over the log; the data lane needs it only for what is not kept yet.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from pairsync.core.dirty import DirtyMap
from pairsync.core.events import Event, NoWayBackEvent, OverlayDroppedEvent, OverlayKeptEvent
from pairsync.core.messages import Condition, WriteOp
from pairsync.core.superblock import Superblock
from pairsync.core.units import KIB, MIB, block_count_of
from pairsync.errors import BackendError, InternalError, MetadataError

from .ahead import Ahead
from .device import Device, WrappedDevice
from .overlay import Overlays
from .overlayfile import OverlayInfo, OverlayState
from .undolog import UndoLog

__all__ = ["Keeper", "KeepingDevice"]

_log = logging.getLogger("pairsync.storage")

ROOM_BYTES_FIRST: Final = 64 * KIB
ROOM_BYTES: Final = 16 * MIB
"""Room that is made first, and at most beyond what is written; doubled in between until it is enough, so that
nothing is dropped that need not be."""

EVENTS_MAX: Final = 256
"""Events that wait to be told; there are at most `OVERLAYS_MAX` overlays to drop, and somebody looks ten
times a second."""

AHEAD_STOP_S: Final = 5.0
"""How long who uses the log may take to end what he is doing.  On a disk that hangs he is left behind, with
the log, which nobody else can open then."""


class Keeper:
    """See the module.

    ``own`` are the blocks that the replica had written on its own when it was opened, ``device`` is what
    lies below, ``now_s`` the Unix time, and ``may_block`` says whether any of the files does.
    """

    def __init__(
        self,
        overlays: Overlays,
        device: Device,
        name: str,
        own: DirtyMap,
        now_s: Callable[[], int],
        *,
        may_block: bool = False,
    ) -> None:
        self.overlays = overlays
        self._device = device
        self._name = name
        self._own = own  # changed by `after` only: until a resync is complete they are the replica's own
        self._now_s = now_s
        # Open while the superblock says SYNCING, or is about to; None: nothing is to be kept.
        self._undo: UndoLog | None = None
        self._may_block = may_block
        self._ahead: Ahead | None = None  # while the log is open and the files may block
        self._lock = threading.Lock()  # over the open log: the data lane and `_ahead`
        self._events: deque[Event] = deque(maxlen=EVENTS_MAX)

    @property
    def undo(self) -> UndoLog | None:
        """The way back, while there is one."""
        return self._undo

    def infos(self) -> Sequence[OverlayInfo]:
        """All overlays of the replica, the oldest first."""
        return self.overlays.list()

    def take_events(self) -> list[Event]:
        """What has happened since the last call."""
        taken: list[Event] = []
        while self._events:
            taken.append(self._events.popleft())
        return taken

    def _tell(self, event: Event) -> None:
        _log.warning("%s", event.describe())
        self._events.append(event)

    def close(self) -> None:
        """Give the log back, to go on later; idempotent.  It is closed whatever the disk says, but for one
        that hangs.

        A job of the data lane that was left behind because of that may come to its turn yet: it finds the log
        open or closed (`ClosedError`), never that there is nothing to keep.
        """
        try:
            self._stop_ahead()
            if self._undo is not None:
                self._close_log(self._undo)
        except BackendError as error:  # its end is as after a crash
            _log.warning("%s: the way back was not closed in order: %s", self._name, error)

    def _close_log(self, undo: UndoLog) -> None:
        if not self._lock.acquire(timeout=AHEAD_STOP_S):
            raise _hangs(self._name)
        try:
            undo.close()
        finally:
            self._lock.release()

    def _start_ahead(self) -> None:
        if self._may_block and self._undo is not None and self._ahead is None:
            self._ahead = Ahead(self._keep_ahead, self._name)

    def _stop_ahead(self) -> None:
        """Nobody uses the log beside the data lane from here on; `BackendError` (ETIMEDOUT) if that hangs."""
        if self._ahead is not None and not self._ahead.close(AHEAD_STOP_S):
            raise _hangs(self._name)
        self._ahead = None

    # ------------------------------------------------------------------ beginning and end

    def recover(self, durable: Superblock) -> None:
        """Go on with what an earlier use of the replica has left; called once, first."""
        left = next((info for info in self.infos() if info.state is OverlayState.UNDO), None)
        if left is None:
            return
        if durable.condition is Condition.SYNCING and left.lineage == durable.lineage:
            self._open(durable, left)
        elif left.lineage == durable.lineage or not self._own:
            # Nothing was overwritten yet, or all was put back; or the resync was completed.
            self.overlays.drop(left.id)
        else:  # our order leaves nothing like it
            self.overlays.set_aside(left.id)

    def _open(self, durable: Superblock, left: OverlayInfo) -> None:
        try:
            self._undo = self.overlays.open_undo(durable)
        except MetadataError as error:
            self._tell(NoWayBackEvent(self._name, f"the undo log is damaged ({error})"))
            self.overlays.set_aside(left.id)
        if self._undo is not None and not self._undo.whole:
            self._keep_own_only(self._undo)
        self._start_ahead()

    def before(self, durable: Superblock, wanted: Superblock) -> None:
        """``wanted`` is about to take the place of ``durable``; raises `BackendError` if it must not."""
        if wanted.condition is Condition.SYNCING:
            self._begin(durable, wanted)
            self._start_ahead()
            return
        self._stop_ahead()
        if self._undo is not None and self._own:
            self._finish(self._undo)

    def _begin(self, durable: Superblock, wanted: Superblock) -> None:
        has_past = durable.condition is not Condition.BLANK and (durable.lineage or self._own)
        if self._undo is None and not (has_past and (durable.condition is Condition.CONSISTENT or self._own)):
            return  # there is no way back, and nothing of its own
        if wanted.sync_target is None:
            raise InternalError(f"volume {self._name}: a resync towards nothing")
        if self._undo is not None:
            with self._lock:
                self._undo.retarget(wanted.sync_target)
            return
        room_bytes = 0
        while self._undo is None:
            try:
                self._undo = self.overlays.begin(durable, wanted.sync_target, self._now_s())
            except BackendError as error:
                room_bytes = self._more_room(error, room_bytes, ROOM_BYTES)
                if not room_bytes and self._own:
                    raise
                if not room_bytes:  # the resync may be what makes room again
                    self._tell(NoWayBackEvent(self._name, str(error)))
                    return
        if not self._undo.whole:
            self._keep_own_only(self._undo)

    def _finish(self, undo: UndoLog) -> None:
        room_bytes = 0
        while True:
            try:
                info = undo.finish(self._own)
                break
            except BackendError as error:
                room_bytes = self._more_room(error, room_bytes, undo.info.file_bytes)
                if not room_bytes:
                    raise
            except MetadataError as error:  # what can be read is kept; the rest was lost with the disk
                _log.warning("%s: part of what was kept is lost: %s", self._name, error)
                info = undo.finish(self._own, salvage=True)
                break
        self._undo = None
        if info is not None:
            self._tell(OverlayKeptEvent(self._name, info.id, info.block_count, info.data_bytes))

    def after(self, durable: Superblock) -> None:
        """``durable`` is what it says."""
        if durable.condition is Condition.SYNCING:
            return
        self._stop_ahead()
        self._own = DirtyMap(self._own.block_count)
        undo, self._undo = self._undo, None
        if undo is not None:
            undo.discard(wait=False)  # the guest's writes are waiting already

    def grow(self, size_bytes: int) -> None:
        """The volume has that size now; nothing of what was added is the replica's own.  `BackendError`."""
        self._own.grow(block_count_of(size_bytes))
        if self._undo is not None:
            with self._lock:
                self._undo.grow(size_bytes)

    # ------------------------------------------------------------------ keeping

    def announce(self, ops: Sequence[WriteOp]) -> None:
        """The batch is about to be queued in the data lane: it may be kept ahead; any thread."""
        ahead = self._ahead
        if ahead is not None and self._undo is not None:
            ahead.announce(ops)

    def _keep_ahead(self, ops: Sequence[WriteOp]) -> None:
        with self._lock:
            if self._undo is not None:
                self._undo.preserve(self._device, ops)

    def preserve(self, ops: Sequence[WriteOp]) -> None:
        """Keep what ``ops`` are about to overwrite; raises `BackendError` where that cannot be."""
        if self._ahead is not None and self._undo is not None:
            self._ahead.wait(ops)
            if self._undo.holds(self._device, ops):
                return
        with self._lock:
            self._preserve(ops)

    def _preserve(self, ops: Sequence[WriteOp]) -> None:
        room_bytes = 0
        while self._undo is not None:
            try:
                self._undo.preserve(self._device, ops)
            except BackendError as error:
                room_bytes = self._more_room(error, room_bytes, sum(op.length for op in ops))
                if not room_bytes:
                    self._give_up_way_back(self._undo, error)
            else:
                return

    def _more_room(self, error: BackendError, had_bytes: int, wanted_bytes: int) -> int:
        """Make more room than ``had_bytes`` by dropping; how much there is now, 0: there is none."""
        if error.errno != errno.ENOSPC:
            raise error
        if had_bytes >= wanted_bytes + ROOM_BYTES:
            return 0
        room_bytes = min(2 * had_bytes or ROOM_BYTES_FIRST, wanted_bytes + ROOM_BYTES)

        def warn(info: OverlayInfo) -> None:
            self._tell(OverlayDroppedEvent(self._name, info.id, info.created_s, info.data_bytes, str(error)))

        overlays = self.overlays
        used_bytes = overlays.file_bytes
        full = used_bytes + room_bytes <= overlays.bytes_max  # the disk is, not the bound
        bound_bytes = used_bytes if full else overlays.bytes_max
        return room_bytes if overlays.make_room(room_bytes, warn, bytes_max=bound_bytes) else 0

    def _give_up_way_back(self, undo: UndoLog, error: BackendError) -> None:
        if not undo.whole:
            raise error
        self._tell(NoWayBackEvent(self._name, str(error)))
        self._keep_own_only(undo)

    def _keep_own_only(self, undo: UndoLog) -> None:
        if not self._own:
            self._undo = None
            undo.discard()
            return
        try:
            undo.narrow(self._own)
        except BackendError as error:
            if error.errno != errno.ENOSPC or undo.whole:
                raise
            # What is kept in vain stays until the end, for want of room to copy the rest aside.


def _hangs(name: str) -> BackendError:
    return BackendError(f"volume {name}: keeping what is overwritten hangs", errno.ETIMEDOUT)


class KeepingDevice(WrappedDevice):
    """``device``, whose ``keeper`` keeps what is overwritten; owns both.  See the module."""

    def __init__(self, device: Device, keeper: Keeper, *, may_block: bool) -> None:
        super().__init__(device)
        self._keeper = keeper
        self._may_block = may_block  # whether the keeper's files do

    @property
    def may_block(self) -> bool:
        """As `Device.may_block`."""
        return self._may_block or self._device.may_block

    def apply(self, ops: Sequence[WriteOp]) -> None:
        """As `Device.apply`."""
        if self._keeper.undo is not None:
            self._keeper.preserve(ops)
        self._device.apply(ops)

    def enlarge(self, size_bytes: int) -> None:
        """As `Device.enlarge`."""
        self._device.enlarge(size_bytes)
        self._keeper.grow(size_bytes)

    def close(self) -> None:
        """As `Device.close`."""
        try:
            self._keeper.close()
        finally:
            self._device.close()
