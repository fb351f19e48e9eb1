"""Closer: brings one write-intent generation after the other from cut to released, and saves the bitmap.

::

    cut ──▶ drained (all its writes applied here) ──▶ flushed here ∥ at the peer ──▶ pages durable, released
                                              └── without a peer: flushed here, and in the bitmap as lacking

A generation is cut when the window asks for it, by a flush that finds nothing in flight, by a resync that has
sent its last block, and after a time.

One save of bitmap pages is under way at a time, whoever asked for it.  See `core.tracker` for why this order
makes a crash safe at every point.
"""

from __future__ import annotations

from pairsync.errors import InternalError

from .effects import Effect, SavePages
from .flushes import Flushes, FlushOp
from .tracker import GenerationState, Tracker

__all__ = ["Closer"]


class Closer:
    """See the module."""

    def __init__(self, index: int, tracker: Tracker, flushes: Flushes, out: list[Effect]) -> None:
        self._index = index
        self._tracker = tracker
        self._flushes = flushes
        self._out = out
        self._saving: dict[int, bytes] | None = None  # pages on their way
        self._next_peer: bool | None = None  # a generation waits for that save: whether the peer has it
        self._touched_ns: int | None = None  # when the open generation was first written

    @property
    def saving(self) -> bool:
        """Whether bitmap pages are on their way to the disk."""
        return self._saving is not None

    @property
    def busy(self) -> bool:
        """Whether a flush or a save is under way, or a generation is closing."""
        return self._saving is not None or self._tracker.closing is not None or self._flushes.any

    def recover(self) -> None:
        """Make what was recovered durable in the bitmap, and give up both segments of the last life."""
        self._start_save(self._tracker.pages_to_save(), (0, 1))

    def save_rest(self) -> bool:
        """Save all pages that are not exact on disk; False if there is none."""
        pages = self._tracker.pages_to_save()
        if pages:
            self._start_save(pages, ())
        return bool(pages)

    def _start_save(self, pages: dict[int, bytes], release: tuple[int, ...]) -> None:
        if self._saving is not None:
            raise InternalError("bitmap pages are being saved already")
        self._saving = pages
        self._out.append(SavePages(self._index, pages, pages, release))

    def saved(self, token: object) -> bool:
        """Pages are durable; whether they were asked for here."""
        if token is not self._saving:
            return False
        self._saving = None
        closing = self._tracker.closing
        if closing is not None and closing.state is GenerationState.SAVING:
            self._tracker.released()
        if self._next_peer is not None:
            peer, self._next_peer = self._next_peer, None
            self._save(peer=peer)
        return True

    def touched(self, now_ns: int) -> None:
        """The open generation has been written."""
        if self._touched_ns is None:
            self._touched_ns = now_ns

    def due(self, now_ns: int, after_ns: int) -> bool:
        """Whether the open generation has been written for ``after_ns``."""
        return self._touched_ns is not None and now_ns - self._touched_ns >= after_ns

    def cut(self, now_ns: int) -> None:
        """Close the open generation, unless one is closing already."""
        if self._tracker.closing is None:
            self._tracker.cut()
            self._touched_ns = None
            self.drain(now_ns)

    def cut_if_quiet(self) -> int:
        """Let a flush of the guest that is about to begin close the open generation, if it holds still.

        The number of that generation; 0 if it does not.
        """
        generation = self._tracker.open
        if self._flushes.busy or self._tracker.closing is not None:
            return 0
        if generation.outstanding or generation.empty:
            return 0
        self._tracker.cut()
        self._tracker.begin_flush()
        self._touched_ns = None
        return generation.number

    def drain(self, now_ns: int) -> None:
        """Flush the closing generation as soon as its writes have been applied here."""
        closing = self._tracker.closing
        if closing is None or closing.state is not GenerationState.DRAINING or closing.outstanding:
            return
        self._tracker.begin_flush()
        # Without a peer the blocks only have to reach the bitmap; they are flushed here all the same, so that
        # what a crash leaves in doubt is bounded then too.
        self._flushes.start_closing(closing.number, now_ns)

    def flush_finished(self, op: FlushOp) -> None:
        """A flush that closes a generation has ended."""
        closing = self._tracker.closing
        if op.closes and closing is not None and closing.state is GenerationState.FLUSHING:
            self._save(peer=op.peer_covered)

    def _save(self, *, peer: bool) -> None:
        closing = self._tracker.closing
        if closing is None:
            raise InternalError("no generation is closing")
        if self._saving is not None:  # a volume that is being closed saves on its own account
            self._next_peer = peer
            return
        self._start_save(self._tracker.flushed(peer=peer), (closing.segment,))
