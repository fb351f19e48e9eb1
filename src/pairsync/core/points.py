"""Points: names for what a volume held at one moment in its write order, the same moment on both hosts.

A point is made between two writes.  Where the peer is in sync and lacks nothing that is not in the stream,
`Remember` goes into the stream at the same place, so that its replica keeps the same point; otherwise only
this host has it.  The points of a volume are those of its active host: when a session begins, and when one is
dropped here, the standby is told which to keep.  A name that is given again is another point, so points are
told apart by their ``tag``.

One point of a volume is made at a time.  The peer is waited for, but not for ever: a peer that is late may
have it all the same, and says so.

`SourcePoints` is the active host's half, `TargetPoints` the standby's.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from pairsync.errors import InternalError, ProtocolError

from .effects import Complete, DropPoints, Effect, Emit, MakePoint, Send
from .events import PointEvent
from .messages import KeepOnly, PointMark, Remember, Remembered
from .standing import Phase, Standing
from .units import NS_PER_S

__all__ = ["PEER_WAIT_NS", "POINTS_MAX", "SourcePoints", "TargetPoints"]

POINTS_MAX: Final = 16
"""Points of one volume: two weeks of daily ones.  Each takes at most 1/512 of what the volume holds."""

PEER_WAIT_NS: Final = 60 * NS_PER_S
"""How long the peer may take to make a point before the caller hears that only this host has it: 2 GiB of
digests, those of a dense volume of 1 TiB, take a slow disk as long."""


class _Making:
    """A point that is asked for; the token of its `MakePoint`."""

    __slots__ = ("asked_ns", "local", "mark", "owner", "peer")

    def __init__(self, owner: object, mark: PointMark) -> None:
        self.owner = owner
        self.mark = mark
        self.asked_ns: int | None = None  # when it was asked for; None: it waits for its turn
        self.local: int | None = None  # how it ended here: an errno or 0
        self.peer = False  # whether an answer of the peer is waited for


class _Dropping:
    """The token of a `DropPoints`."""

    __slots__ = ("mark", "owner")

    def __init__(self, owner: object, mark: PointMark) -> None:
        self.owner = owner
        self.mark = mark


class SourcePoints:
    """Those of one volume of an active host; see the module."""

    def __init__(self, index: int, standing: Standing, out: list[Effect]) -> None:
        self._index = index
        self._standing = standing
        self._out = out
        self.peer_keeps = False  # whether the peer keeps digests; set before a session begins
        self._marks: dict[int, PointMark] = {}  # by tag, of those that are there; made and told
        self._dropping: list[PointMark] = []  # until that is durable they may come back
        self._on_peer: set[int] = set()  # tags of those that the peer has as well, by what it has said
        self._making: deque[_Making] = deque()  # the first one is under way, or about to be
        self._owed = False  # the peer has not answered a `Remember` of this session

    def found(self, marks: Iterable[PointMark]) -> None:
        """This host has these, from before it was opened."""
        self._marks.update((mark.tag, mark) for mark in marks)

    # ------------------------------------------------------------------ questions

    @property
    def marks(self) -> tuple[PointMark, ...]:
        """All points, the oldest first."""
        return tuple(sorted(self._marks.values(), key=lambda mark: (mark.created_s, mark.name)))

    @property
    def tags(self) -> tuple[int, ...]:
        """Of all points."""
        return tuple(self._marks)

    def on_peer(self, tag: int) -> bool:
        """Whether the peer is known to have that point too."""
        return tag in self._on_peer

    @property
    def idle(self) -> bool:
        """Whether `advance` would find nothing to do."""
        return not self._making

    # ------------------------------------------------------------------ the embedder's side

    def make(self, owner: object, mark: PointMark) -> None:
        """Make a point; ends in one `Complete`: with EEXIST if there is one of that name, ENOSPC if there are
        too many."""
        others = [*self._marks.values(), *self._dropping, *(each.mark for each in self._making)]
        if any(each.name == mark.name for each in others):
            self._out.append(Complete(owner, [errno.EEXIST]))
        elif len(others) >= POINTS_MAX:
            self._out.append(Complete(owner, [errno.ENOSPC]))
        else:
            self._making.append(_Making(owner, mark))

    def drop(self, owner: object, name: str) -> None:
        """Drop a point, on both hosts; ends in one `Complete`: with ENOENT if there is none of that name."""
        for mark in self._marks.values():
            if mark.name == name:
                break
        else:
            self._out.append(Complete(owner, [errno.ENOENT]))
            return
        del self._marks[mark.tag]
        keep = (*self._kept(), *(each.tag for each in self._dropping))  # each drops its own
        self._dropping.append(mark)
        self._out.append(DropPoints(self._index, _Dropping(owner, mark), keep))
        self._tell()

    def _kept(self) -> tuple[int, ...]:
        return (*self._marks, *(each.mark.tag for each in self._making))

    def _tell(self) -> None:
        """The peer, if it listens, keeps no others than these."""
        self._on_peer &= {*self._kept()}
        if self.peer_keeps and self._standing.phase is not Phase.ABSENT:
            term = self._standing.superblock.term
            self._out.append(Send([KeepOnly(term, self._index, self._kept())]))

    # ------------------------------------------------------------------ making one

    def advance(self, now_ns: int, *, peer_has_all: bool) -> None:
        """Go on as far as possible; ``peer_has_all``: nothing is missing there that is not in the stream."""
        if not self._making or self._making[0].asked_ns is not None:
            return
        making = self._making[0]
        if self.peer_keeps and not self._owed and self._standing.phase is Phase.IN_SYNC:
            if not peer_has_all:
                return  # a few blocks are being copied
            making.peer = self._owed = True
            term = self._standing.superblock.term
            self._out.append(Send([Remember(term, self._index, making.mark)]))
        making.asked_ns = now_ns
        self._out.append(MakePoint(self._index, making, making.mark))

    def tick(self, now_ns: int) -> None:
        """Time has passed."""
        making = self._making[0] if self._making else None
        if making is None or not making.peer or making.asked_ns is None:
            return
        if now_ns - making.asked_ns > PEER_WAIT_NS:
            making.peer = False
            self._end(making)

    def made(self, token: object, error: int) -> None:
        """This host has made the point, durably, or could not."""
        if not isinstance(token, _Making):
            raise InternalError(f"a point that nobody has asked for: {token!r}")
        token.local = error
        self._end(token)

    def peer_made(self, message: Remembered) -> None:
        """The peer has, or could not; perhaps after it was given up."""
        self._owed = False
        if message.tag not in self._kept():
            return  # it was dropped since, or could not be made here: the peer has been told
        if not message.errno:
            self._on_peer.add(message.tag)
        making = self._making[0] if self._making else None
        if making is not None and making.peer and making.mark.tag == message.tag:
            making.peer = False
            self._end(making)

    def _end(self, making: _Making) -> None:
        if making.local is None or making.peer or making not in self._making:
            return
        self._making.remove(making)
        if making.local:
            self._tell()
            self._out.append(Complete(making.owner, [making.local]))
            return
        self._marks[making.mark.tag] = making.mark
        both = self.on_peer(making.mark.tag)
        self._out.append(Emit(PointEvent(self._standing.name, making.mark.name, on_peer=both)))
        self._out.append(Complete(making.owner, None))

    def dropped(self, token: object, error: int) -> None:
        """Points were dropped here, or could not be."""
        if not isinstance(token, _Dropping):
            raise InternalError(f"points that nobody has dropped: {token!r}")
        self._dropping.remove(token.mark)
        if error:
            self._marks[token.mark.tag] = token.mark  # it is still there, on this host
        self._out.append(Complete(token.owner, [error] if error else None))

    # ------------------------------------------------------------------ sessions

    def begin_session(self, theirs: Sequence[int], *, peer_keeps: bool) -> None:
        """A session has begun; the peer has points of these tags."""
        self.peer_keeps = peer_keeps
        self._on_peer = {*theirs}.intersection(self._kept())
        if not self._on_peer.issuperset(theirs):
            self._tell()

    def peer_lost(self) -> None:
        """The session is over: what it owes is not waited for."""
        self.peer_keeps = self._owed = False
        for making in list(self._making):
            making.peer = False
            self._end(making)

    def give_up(self) -> list[object]:
        """The volume serves nothing any more: who waits."""
        making, self._making = self._making, deque()
        return [each.owner for each in making]


class TargetPoints:
    """Those of one volume of a standby; see the module."""

    def __init__(self, index: int, marks: Iterable[PointMark], out: list[Effect]) -> None:
        self._index = index
        self._out = out
        self._marks = {mark.tag: mark for mark in marks}
        self._session = 0  # answers of earlier ones are not sent
        self._making: int | None = None  # tag of the one that this session waits for
        self._wanted: tuple[int, ...] | None = None  # tags to keep, once the last such order was performed
        self._keeping: tuple[int, ...] | None = None  # that is being performed

    @property
    def tags(self) -> tuple[int, ...]:
        """Of the points that this replica has, and is not about to drop."""
        return tuple(tag for tag in self._marks if self._keeping is None or tag in self._keeping)

    def take(self, message: Remember | KeepOnly, *, begun: bool) -> None:
        """The active host makes one, or says which there are; ``begun``: a plan was agreed and recorded."""
        if isinstance(message, KeepOnly):
            self._wanted = message.tags
            self._keep()
            return
        if not begun:
            raise ProtocolError("a point without a plan")
        if self._making is not None:
            raise ProtocolError("a point before the last one was made")
        self._making = message.mark.tag
        if self._wanted is not None:  # an older order, which is performed behind it
            self._wanted += (message.mark.tag,)
        self._out.append(MakePoint(self._index, (self._session, message.mark), message.mark))

    def made(self, token: object, error: int) -> None:
        """The point is there, durably, or could not be made."""
        session, mark = _asked_of(token)
        if not error:
            self._marks = {tag: each for tag, each in self._marks.items() if each.name != mark.name}
            self._marks[mark.tag] = mark
        if session == self._session:
            self._making = None
            self._out.append(Send([Remembered(self._index, mark.tag, error)]))

    def _keep(self) -> None:
        if self._keeping is not None or self._wanted is None:
            return
        self._keeping, self._wanted = self._wanted, None
        self._out.append(DropPoints(self._index, self._keeping, self._keeping))

    def dropped(self, token: object, error: int) -> None:
        """Others than these were dropped; what could not be is told again when a session begins."""
        self._keeping = None
        if not error and isinstance(token, tuple):
            self._marks = {tag: each for tag, each in self._marks.items() if tag in token}
        self._keep()

    def session_over(self) -> None:
        """The session has ended; the next one starts anew."""
        self._session += 1
        self._making = self._wanted = None


def _asked_of(token: object) -> tuple[int, PointMark]:
    if not (isinstance(token, tuple) and len(token) == 2 and isinstance(token[1], PointMark)):
        raise InternalError(f"a point that nobody has asked for: {token!r}")
    return token
