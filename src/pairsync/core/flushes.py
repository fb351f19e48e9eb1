"""Flushes of one volume: here and there at once, shared by all who ask meanwhile.

A flush is a local one and, while a peer is there whose copy counts, a `Barrier` that asks it for the same.
At most one flush for the guest runs at a time; requests that arrive while it runs may not share it (it may
not cover what was acknowledged since it began), so they share the next one.  Beside it at most one flush
runs that closes a write-intent generation.

Barrier numbers never repeat, so an answer that belongs to an earlier session is told by its number.
"""

from __future__ import annotations

from collections.abc import Callable

from pairsync.errors import InternalError, ProtocolError

from .effects import Effect, Flush, Send
from .messages import Barrier
from .standing import Standing

__all__ = ["FlushOp", "Flushes"]


class FlushOp:
    """One flush under way."""

    __slots__ = ("closes", "local_pending", "number", "owners", "peer_covered", "peer_pending", "started_ns")

    def __init__(self, number: int, owners: list[object], *, closes: int, now_ns: int) -> None:
        self.number = number  # of the barrier
        self.owners = owners  # embedder requests that end with it
        self.closes = closes  # the write-intent generation that it closes; 0: none
        self.local_pending = True
        self.peer_pending = False  # a `Barrier` was sent in the running session and not answered
        self.peer_covered = False  # the peer has made durable what came before the `Barrier`
        self.started_ns = now_ns

    @property
    def done(self) -> bool:
        """Whether nothing is awaited any more."""
        return not self.local_pending and not self.peer_pending


class Flushes:
    """See the module."""

    def __init__(
        self,
        volume: int,
        standing: Standing,
        out: list[Effect],
        before_barrier: Callable[[int], None] = lambda _now_ns: None,
    ) -> None:
        self._before_barrier = before_barrier  # sends what a barrier is to cover and is not sent yet
        self._volume = volume
        self._standing = standing
        self._out = out
        self._next_number = 1
        self._live: dict[int, FlushOp] = {}  # by number; at most one of the guest's and one that closes
        self._guest: FlushOp | None = None  # the guest's, also in `_live`
        self._waiting: list[object] = []  # owners that share the guest's next flush

    @property
    def busy(self) -> bool:
        """Whether a flush of the guest is under way."""
        return self._guest is not None

    @property
    def any(self) -> bool:
        """Whether any flush is under way."""
        return bool(self._live)

    def request(self, owner: object, *, to_peer: bool, closes: int, now_ns: int) -> None:
        """The guest wants a flush; it ``closes`` a generation only if none is under way."""
        if self._guest is not None:
            if closes:
                raise InternalError("a shared flush cannot close a generation")
            self._waiting.append(owner)
            return
        self._guest = self._start([owner], to_peer=to_peer, closes=closes, now_ns=now_ns)

    def start_closing(self, closes: int, now_ns: int) -> None:
        """Flush both sides, this one alone while there is no peer, to close that generation."""
        self._start([], to_peer=self._standing.mirrored, closes=closes, now_ns=now_ns)

    def _start(self, owners: list[object], *, to_peer: bool, closes: int, now_ns: int) -> FlushOp:
        op = FlushOp(self._next_number, owners, closes=closes, now_ns=now_ns)
        self._next_number += 1
        self._live[op.number] = op
        self._out.append(Flush(self._volume, op, digests=closes > 0))
        if to_peer:
            op.peer_pending = True
            self._before_barrier(now_ns)
            term = self._standing.superblock.term
            milestone = self._standing.give() if closes else None
            self._out.append(Send([Barrier(term, self._volume, op.number, closes, milestone)]))
        return op

    def local_done(self, token: object) -> FlushOp:
        """The local flush of ``token`` has ended."""
        if not isinstance(token, FlushOp) or not token.local_pending:
            raise InternalError("a flush was reported that is not under way")
        token.local_pending = False
        return token

    def peer_done(self, barrier: int) -> FlushOp:
        """The peer answered a barrier."""
        op = self._live.get(barrier)
        if op is None or not op.peer_pending:
            raise ProtocolError(f"the peer answered barrier {barrier}, which was not asked")
        op.peer_pending = False
        op.peer_covered = True
        return op

    def peer_lost(self) -> list[FlushOp]:
        """No answer will come any more; the flushes that this completes."""
        freed = []
        for op in self._live.values():
            if op.peer_pending:
                op.peer_pending = False
                if op.done:
                    freed.append(op)
        return freed

    def finished(self, op: FlushOp, *, to_peer: bool, now_ns: int) -> None:
        """``op`` is done; the next shared flush begins."""
        self._live.pop(op.number, None)
        if op is self._guest:
            self._guest = None
            if self._waiting:
                owners, self._waiting = self._waiting, []
                self._guest = self._start(owners, to_peer=to_peer, closes=0, now_ns=now_ns)

    def oldest_peer_wait_ns(self) -> int | None:
        """When the longest unanswered barrier was sent."""
        return min((op.started_ns for op in self._live.values() if op.peer_pending), default=None)

    def abort(self) -> list[object]:
        """Give up; everybody who waits."""
        owners = [owner for op in self._live.values() for owner in op.owners] + self._waiting
        self._live.clear()
        self._guest = None
        self._waiting = []
        return owners
