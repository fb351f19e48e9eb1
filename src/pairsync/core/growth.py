"""Growth: a volume of the active host becomes larger while it is used.

::

    IDLE ──asked──▶ EXTENDING ──the files here have room──▶ READY ──▶ AGREEING ──the peer has recorded it──┐
                      │ no room                              │           │ no room there                   │
                      ▼                                      │           ▼                                 ▼
                    refused: nothing has changed             └─ there is no peer ──────────────────▶ RECORDING
                                                                                  durable here: served ─▶ IDLE

* **The size of a volume is the largest that either host has recorded, and it never falls.**  Who records a
  size has made room for it before, so nothing is ever cut off to bring the two together: whichever host has
  the smaller one grows by itself before the next session begins (``core.lineage`` says when that is right).
* **The peer records first, then this host, then the new size is served**: whoever sees it may rely on it on
  every replica that counts.  Whatever is cut off in between leaves two sizes, and the larger one counts.
* Without a peer the growth is acknowledged like a write: not before a generation is durable that does not
  count on the peer (DESIGN rule 2).  A peer that is lost in the middle of it is such a case, whatever it has
  recorded.
* **What is added reads as zero on both hosts**: it is not dirty, and never copied.
* While the sizes may differ, nobody is asked about digests: a last block that was partial has another one
  once it is whole.
* Peers that have shown each other their sizes, and have not agreed on a plan yet, find what they have shown.
"""

from __future__ import annotations

import enum
import errno
from dataclasses import replace

from pairsync.errors import InternalError, ProtocolError

from .copier import Copier
from .dirty import DirtyMap
from .effects import Complete, Effect, Emit, Extend, Send
from .events import GrowFailedEvent, GrownEvent
from .messages import Grow, Grown
from .scrubber import Scrubber
from .standing import Phase, Standing, SuperblockWriter
from .tracker import Tracker
from .units import block_count_of

__all__ = ["Growth", "StandbyGrowth"]

_AGREE_IN = frozenset({Phase.SYNCING, Phase.IN_SYNC})
"""Where the peer has nothing else to record; it comes to one of these, or is lost."""


class _Stage(enum.Enum):
    IDLE = "idle"
    EXTENDING = "extending"  # waiting for room in the files here
    READY = "ready"  # there is room; waiting for a moment that suits
    AGREEING = "agreeing"  # waiting for Grown
    RECORDING = "recording"  # waiting for the superblock


_IDLE = _Stage.IDLE  # looked up once, see `core.tracker`


class Growth:
    """See the module; one a volume of an active host."""

    def __init__(
        self,
        index: int,
        size_bytes: int,
        tracker: Tracker,
        standing: Standing,
        copier: Copier,
        scrubber: Scrubber,
        out: list[Effect],
    ) -> None:
        self.size_bytes = size_bytes
        """What is served; rises when the new size is durable wherever it has to be."""
        self.introduced = False
        """The peer was told a size and there is no plan yet: it must not change; set by the session."""
        self.waiting_since_ns: int | None = None
        """Since when the peer owes `Grown`."""
        self._index = index
        self._tracker = tracker
        self._standing = standing
        self._copier = copier
        self._scrubber = scrubber
        self._out = out
        self._stage = _Stage.IDLE
        self._owners: list[object] = []  # who waits for `_wanted_bytes`, or less
        self._wanted_bytes = size_bytes  # never below what is served
        self._target_bytes = size_bytes  # of the growth that is under way
        self._peer_bytes = 0  # what the peer is known to have recorded
        self._ended = False  # no further growth

    @property
    def idle(self) -> bool:
        """Whether `advance` would find nothing to do."""
        return self._stage is _IDLE and self._wanted_bytes == self.size_bytes

    @property
    def catching_up(self) -> bool:
        """Whether a size is on its way here that the peer has already: no session begins before."""
        return self.size_bytes < self._peer_bytes and self._stage is not _Stage.IDLE

    def ask(self, owner: object, size_bytes: int) -> None:
        """Grow to that size; ends in one `Complete`, at once if the volume has it already."""
        if self._ended or size_bytes <= self.size_bytes:
            self._out.append(Complete(owner, [errno.EIO] if self._ended else None))
            return
        self._owners.append(owner)
        self._wanted_bytes = max(self._wanted_bytes, size_bytes)

    def catch_up(self, size_bytes: int) -> None:
        """The peer has recorded a larger size: this host is to have it before they meet again."""
        self.introduced = False  # that session is over
        self._peer_bytes = max(self._peer_bytes, size_bytes)
        self._wanted_bytes = max(self._wanted_bytes, size_bytes)

    def advance(self, now_ns: int) -> bool:
        """Go on as far as possible; whether the peer has the same size: only then it is asked for digests."""
        if self._ended:
            pass
        elif self._stage is _Stage.IDLE and self._wanted_bytes > self.size_bytes:
            self._target_bytes = self._wanted_bytes
            self._stage = _Stage.EXTENDING
            self._out.append(Extend(self._index, self, self._target_bytes))
        elif self._stage is _Stage.READY and not self.introduced:
            self._agree(now_ns)
        return self._stage not in {_Stage.AGREEING, _Stage.RECORDING}

    def _agree(self, now_ns: int) -> None:
        standing = self._standing
        if standing.phase is Phase.ABSENT:
            if self._target_bytes <= self._peer_bytes or standing.may_acknowledge_alone:
                self._record()
            else:
                standing.request_alone()
        elif standing.phase in _AGREE_IN and not self._copier.questions.count:
            self._stage = _Stage.AGREEING
            self.waiting_since_ns = now_ns
            term = standing.superblock.term
            self._out.append(Send([Grow(term, self._index, self._target_bytes)]))

    def _record(self) -> None:
        self._stage = _Stage.RECORDING
        self.waiting_since_ns = None
        self._standing.grow(self._target_bytes)

    def extended(self, error: int) -> None:
        """The files here have room, or they cannot have it."""
        if self._stage is not _Stage.EXTENDING:
            raise InternalError("room was made that was not asked for")
        if error:
            self._refuse(error)
        else:
            self._stage = _Stage.READY

    def answered(self, message: Grown) -> None:
        """The peer has recorded the size, or cannot."""
        if self._stage is not _Stage.AGREEING or message.size_bytes != self._target_bytes:
            raise ProtocolError(f"the peer grew to {message.size_bytes} bytes unasked")
        if message.errno:
            self._refuse(message.errno)
        else:
            self._peer_bytes = message.size_bytes
            self._record()

    def peer_lost(self) -> None:
        """The session is over: what the peer has recorded is not known."""
        self.introduced = False
        if self._stage is _Stage.AGREEING:
            self._stage = _Stage.READY
            self.waiting_since_ns = None

    def persisted(self) -> None:
        """A superblock is durable, and the open files have the size that it says."""
        size_bytes = self._standing.durable_size_bytes
        if size_bytes == self.size_bytes:
            return
        if self._stage is not _Stage.RECORDING or size_bytes != self._target_bytes:
            raise InternalError(f"a size of {size_bytes} bytes was recorded that was not asked for")
        before, self.size_bytes = self.size_bytes, size_bytes
        self._tracker.grow(block_count_of(size_bytes))
        self._copier.grow(size_bytes)
        self._scrubber.grow(size_bytes)
        self._stage = _Stage.IDLE
        self._out.append(Emit(GrownEvent(self._standing.name, size_bytes, before)))
        if self._wanted_bytes == size_bytes:
            self._out.extend(Complete(owner, None) for owner in self._take_owners())

    def _refuse(self, error: int) -> None:
        """It cannot be, on one side at least; nothing that counts has changed."""
        where = "peer" if self._stage is _Stage.AGREEING else "here"
        self._stage = _Stage.IDLE
        self.waiting_since_ns = None
        self._wanted_bytes = self.size_bytes
        reason = errno.errorcode.get(error, str(error))
        self._out.append(Emit(GrowFailedEvent(self._standing.name, self._target_bytes, where, reason)))
        self._out.extend(Complete(owner, [error]) for owner in self._take_owners())

    def end(self, *, failed: bool) -> None:
        """The volume is closed, or serves nothing any more (``failed``).  Who waits is told; what is being
        recorded is, unless the volume has failed."""
        self._ended = True
        if failed or self._stage is not _Stage.RECORDING:
            self._out.extend(Complete(owner, [errno.EIO]) for owner in self._take_owners())

    def _take_owners(self) -> list[object]:
        owners, self._owners = self._owners, []
        return owners


class StandbyGrowth:
    """The standby's half: it records the size that the active host names."""

    def __init__(self, index: int, writer: SuperblockWriter, own_dirty: DirtyMap, out: list[Effect]) -> None:
        self.catching_up = False
        """A size is on its way here that the active host has already: no session begins before."""
        self._index = index
        self._writer = writer
        self._own_dirty = own_dirty
        self._out = out
        self._size_bytes = writer.durable.size_bytes  # what was durable last
        self._asked: object = None  # the token of the room that the active host waits for
        self._owed_bytes: int | None = None  # the size of which it is to hear when it is durable

    def take(self, message: Grow, *, begun: bool) -> None:
        """The active host wants that size; ends in one `Grown`, unless the session does before."""
        block = self._writer.desired
        if not begun or message.size_bytes < block.size_bytes:
            raise ProtocolError(f"volume {block.name!r} is to have {message.size_bytes} bytes")
        self._asked = object()
        self._out.append(Extend(self._index, self._asked, message.size_bytes))

    def catch_up(self, size_bytes: int) -> None:
        """It has that size: this host is to have it before they meet again."""
        self.catching_up = True
        self._out.append(Extend(self._index, self, size_bytes))

    def extended(self, token: object, size_bytes: int, error: int) -> None:
        """The files here have room for that size, or cannot have it."""
        if token is self:
            self.catching_up = False
        elif token is not self._asked:
            return  # of an earlier session
        elif error:
            self._out.append(Send([Grown(self._index, size_bytes, error)]))
        else:
            self._owed_bytes = size_bytes
        if error:
            reason = errno.errorcode.get(error, str(error))
            self._out.append(Emit(GrowFailedEvent(self._writer.desired.name, size_bytes, "here", reason)))
        elif size_bytes > self._writer.desired.size_bytes:
            self._writer.want(replace(self._writer.desired, size_bytes=size_bytes))
        self._answer()

    def persisted(self) -> None:
        """A superblock is durable, and the open files have the size that it says."""
        block, before = self._writer.durable, self._size_bytes
        if block.size_bytes > before:
            self._size_bytes = block.size_bytes
            self._own_dirty.grow(block_count_of(block.size_bytes))
            self._out.append(Emit(GrownEvent(block.name, block.size_bytes, before)))
        self._answer()

    def _answer(self) -> None:
        if self._owed_bytes is not None and self._writer.durable.size_bytes >= self._owed_bytes:
            self._out.append(Send([Grown(self._index, self._owed_bytes)]))
            self._owed_bytes = None

    def session_over(self) -> None:
        """Nobody waits any more."""
        self._asked = self._owed_bytes = None
