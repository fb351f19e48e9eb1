"""Prover: two replicas are the same because their digests say so, not because a label does (DESIGN rule 8).

Both hosts keep a digest of every block, in a tree of three levels: a *leaf* is the digest of a block, a node
of level 1 that of 512 leaves (2 MiB of volume), a node of level 2 that of 512 of those (1 GiB).

A question names nodes of one level.  It stands in the stream, and in the data lane of either host, between
the same two writes: so both answer for the same moment, whatever the guest writes meanwhile.  The one thing
that must hold when it is asked is that **the peer lacks nothing** that is not in the stream before it.

The walk begins with all nodes of level 2, one message for any ordinary volume; where answers differ it asks
for the children.  Leaves that differ are blocks that the peer was wrongly thought to hold: they are marked
as lacking, and copied, and the proof begins again.  A host may answer for a first part of what was asked
(it had to read blocks whose digest it did not know): the rest is asked for again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pairsync.errors import InternalError, ProtocolError

from .effects import Effect, Examine, Send
from .messages import Proof, Prove
from .standing import Standing
from .tracker import Tracker
from .units import Extent

__all__ = [
    "ANSWER_NODES_MAX",
    "BAD_BLOCKS_MAX",
    "DIGEST_BYTES",
    "FAN_OUT",
    "LEVEL_TOP",
    "QUESTIONS_MAX",
    "UNKNOWN_DIGEST",
    "Examined",
    "Prover",
    "node_count",
]

DIGEST_BYTES = 8
"""One digest, little endian: xxh3_64.  That two contents of a block that differ by accident have the same
one happens once in 10^19 blocks."""

UNKNOWN_DIGEST = 1
"""Of a block whose content has to be read; it is read before an answer is given, so it never travels."""

FAN_OUT = 512
"""Children of a node: those of level 1 fill a page of 4 KiB."""

LEVEL_TOP = 2

ANSWER_NODES_MAX = 8192
"""Digests in one answer: 64 KiB, at level 2 those of 8 TiB."""

BAD_BLOCKS_MAX = 1024
"""Bad blocks that one answer names: it ends before the node that would make it more."""

QUESTIONS_MAX = 4
"""Questions that have no answer yet: enough that the distance of the peer does not count."""

_SPAN_BLOCKS = (1, FAN_OUT, FAN_OUT * FAN_OUT)


class Examined(NamedTuple):
    """What `Examine` found out: about a first part of the nodes, one at least, or all of them."""

    digests: bytes
    """`DIGEST_BYTES` a node."""
    bad: Sequence[int] = ()
    """Blocks of these nodes whose content is not what their digest says, or that cannot be read."""


def node_count(block_count: int, level: int) -> int:
    """Nodes of that level in a volume.  Raises `ProtocolError` for a level that there is not."""
    if not 0 <= level <= LEVEL_TOP:
        raise ProtocolError(f"digests of level {level}; {LEVEL_TOP} is the highest")
    return -(-block_count // _SPAN_BLOCKS[level])


class _Question:
    """One that was asked of both hosts."""

    __slots__ = ("asked_ns", "first", "level", "mine", "number", "stop", "theirs")

    def __init__(self, number: int, level: int, first: int, stop: int, asked_ns: int) -> None:
        self.number = number  # never repeats, in later sessions neither
        self.level = level
        self.first = first
        self.stop = stop
        self.asked_ns = asked_ns
        self.mine: Examined | None = None
        self.theirs: Proof | None = None


class Prover:
    """One walk after the other over one volume, asked by its active host; see the module."""

    def __init__(self, index: int, tracker: Tracker, standing: Standing, out: list[Effect]) -> None:
        self._index = index
        self._tracker = tracker
        self._standing = standing
        self._out = out
        self._next_number = 1
        self._asked: dict[int, _Question] = {}  # by number; at most QUESTIONS_MAX
        # What is still to be asked: (level, first, stop).  A differing span is one entry, whose children are
        # asked about before the next one: a few hundred entries.
        self._waiting: deque[tuple[int, int, int]] = deque()
        self.differing = 0  # blocks of this walk that differ
        self.first_differing: int | None = None  # the lowest of them that was met

    def start(self) -> None:
        """Begin at the top."""
        self.stop()
        self.differing, self.first_differing = 0, None
        count = node_count(self._tracker.block_count, LEVEL_TOP)
        self._wait(LEVEL_TOP, 0, count)

    def stop(self) -> None:
        """Whatever was asked does not matter any more."""
        self._asked.clear()
        self._waiting.clear()

    @property
    def finished(self) -> bool:
        """Whether every answer has come."""
        return not self._asked and not self._waiting

    @property
    def waiting_since_ns(self) -> int | None:
        """Since when the peer owes an answer."""
        return min((each.asked_ns for each in self._asked.values() if each.theirs is None), default=None)

    def _wait(self, level: int, first: int, stop: int) -> None:
        """Ask about these next, in parts that fit an answer."""
        parts = [(level, at, min(at + ANSWER_NODES_MAX, stop)) for at in range(first, stop, ANSWER_NODES_MAX)]
        self._waiting.extendleft(reversed(parts))

    def advance(self, now_ns: int) -> None:
        """Ask on; only to be called while the peer lacks nothing that was not sent."""
        while self._waiting and len(self._asked) < QUESTIONS_MAX:
            level, first, stop = self._waiting.popleft()
            question = _Question(self._next_number, level, first, stop, now_ns)
            self._next_number += 1
            self._asked[question.number] = question
            term = self._standing.superblock.term
            prove = Prove(term, self._index, question.number, level, first, stop, read=False)
            self._out.append(Send([prove]))
            self._out.append(Examine(self._index, question.number, level, first, stop, read=False))

    # ------------------------------------------------------------------ answers

    def examined(self, token: object, answer: Examined) -> None:
        """What this host has."""
        question = self._asked.get(token) if isinstance(token, int) else None
        if question is not None:
            if not 0 < len(answer.digests) <= (question.stop - question.first) * DIGEST_BYTES:
                raise InternalError(f"{len(answer.digests)} bytes of digests for {question.number}")
            question.mine = answer
            self._compare(question)

    def answered(self, message: Proof) -> None:
        """What the peer has."""
        if not 0 < message.question < self._next_number:
            raise ProtocolError(f"an answer to question {message.question}, which was not asked")
        question = self._asked.get(message.question)
        if question is None:
            return  # given up meanwhile
        count = len(message.digests) // DIGEST_BYTES
        if len(message.digests) % DIGEST_BYTES or not 0 < count <= question.stop - question.first:
            raise ProtocolError(f"{len(message.digests)} bytes for digests {question.first}..{question.stop}")
        if question.theirs is not None:
            raise ProtocolError(f"question {message.question} was answered twice")
        question.theirs = message
        self._compare(question)

    def _compare(self, question: _Question) -> None:
        if question.mine is None or question.theirs is None:
            return
        del self._asked[question.number]
        mine, theirs = question.mine.digests, question.theirs.digests
        size = min(len(mine), len(theirs))
        stop = question.first + size // DIGEST_BYTES
        if stop < question.stop:
            self._wait(question.level, stop, question.stop)
        if mine[:size] == theirs[:size]:
            return
        words = memoryview(mine[:size]).cast("Q"), memoryview(theirs[:size]).cast("Q")
        runs = list(_differing(*words, question.first))
        if question.level:
            for start, end in reversed(runs):
                self._descend(question.level, start, end)
            return
        self._lacking(runs)

    def _descend(self, level: int, start: int, end: int) -> None:
        below = level - 1
        count = node_count(self._tracker.block_count, below)
        self._wait(below, start * FAN_OUT, min(end * FAN_OUT, count))

    def _lacking(self, runs: list[Extent]) -> None:
        for start, end in runs:
            self.differing += end - start
            if self.first_differing is None or start < self.first_differing:
                self.first_differing = start
        self._tracker.want(runs)


def _differing(mine: memoryview, theirs: memoryview, first: int) -> Iterator[Extent]:
    """Runs of nodes whose digests are not equal."""
    start = None
    for at in range(len(mine)):
        if (mine[at] == theirs[at]) == (start is None):
            continue
        if start is None:
            start = at
        else:
            yield Extent(first + start, first + at)
            start = None
    if start is not None:
        yield Extent(first + start, first + len(mine))
