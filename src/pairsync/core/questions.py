"""Questions about digests: asked of both hosts at one place in the stream, answered when both have answered.

A question names nodes of one level.  It stands in the stream, and in the data lane of either host, between
the same two writes: so both answer for the same moment, whatever the guest writes meanwhile.  The one thing
that must hold when it is asked is that **the peer lacks nothing** that is not in the stream before it.

A host may answer for a first part of what was asked (it had to read many blocks): the smaller part counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pairsync.errors import InternalError, ProtocolError

from .effects import Effect, Examine, Send
from .messages import Proof, Prove
from .standing import Standing

__all__ = [
    "ANSWER_NODES_MAX",
    "BAD_BLOCKS_MAX",
    "DIGEST_BYTES",
    "FAN_OUT",
    "LEVEL_TOP",
    "QUESTIONS_MAX",
    "SPAN_BLOCKS",
    "UNKNOWN_DIGEST",
    "Answer",
    "BadBlock",
    "Examined",
    "Questions",
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

SPAN_BLOCKS = (1, FAN_OUT, FAN_OUT * FAN_OUT)
"""Blocks below one node, by level."""

ANSWER_NODES_MAX = 8192
"""Digests in one answer: 64 KiB, at level 2 those of 8 TiB."""

BAD_BLOCKS_MAX = 1024
"""Bad blocks that one answer names; of more the first ones."""

QUESTIONS_MAX = 4
"""Questions that have no answer yet: enough that the distance of the peer does not count."""


class BadBlock(NamedTuple):
    """A block whose content is not what is recorded."""

    block: int
    recorded: int
    """Its digest by the table; `UNKNOWN_DIGEST` only where the block cannot be read either."""
    found: int
    """The digest of what was read; `UNKNOWN_DIGEST` if it could not be read."""


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
    return -(-block_count // SPAN_BLOCKS[level])


class Answer(NamedTuple):
    """What both hosts have said about the nodes ``first <= node < stop``: a first part of what was asked."""

    level: int
    first: int
    stop: int
    asked_stop: int
    mine: Examined
    theirs: Proof
    asked_ns: int


class _Question:
    __slots__ = ("asked_ns", "first", "level", "mine", "number", "stop", "theirs", "then")

    def __init__(
        self, number: int, level: int, first: int, stop: int, asked_ns: int, then: Callable[[Answer], None]
    ) -> None:
        self.number = number
        self.level = level
        self.first = first
        self.stop = stop
        self.asked_ns = asked_ns
        self.then = then
        self.mine: Examined | None = None
        self.theirs: Proof | None = None


class Questions:
    """Those of one volume, asked by its active host; see the module."""

    def __init__(self, index: int, standing: Standing, out: list[Effect]) -> None:
        self._index = index
        self._standing = standing
        self._out = out
        self._next_number = 1  # never repeats, in later sessions neither
        self._asked: dict[int, _Question] = {}  # by number; at most QUESTIONS_MAX

    @property
    def count(self) -> int:
        """How many have not been answered by both."""
        return len(self._asked)

    @property
    def waiting_since_ns(self) -> int | None:
        """Since when the peer owes an answer."""
        return min((each.asked_ns for each in self._asked.values() if each.theirs is None), default=None)

    def ask(
        self, level: int, first: int, stop: int, *, read: bool, now_ns: int, then: Callable[[Answer], None]
    ) -> None:
        """Ask both; ``then`` hears the answers, unless `forget` comes first."""
        if len(self._asked) >= QUESTIONS_MAX:
            raise InternalError(f"more than {QUESTIONS_MAX} questions at once")
        number = self._next_number
        self._next_number += 1
        self._asked[number] = _Question(number, level, first, stop, now_ns, then)
        term = self._standing.superblock.term
        self._out.append(Send([Prove(term, self._index, number, level, first, stop, read=read)]))
        self._out.append(Examine(self._index, number, level, first, stop, read=read))

    def forget(self) -> None:
        """Whatever was asked does not matter any more."""
        self._asked.clear()

    def examined(self, token: object, answer: Examined) -> None:
        """What this host has."""
        question = self._asked.get(token) if isinstance(token, int) else None
        if question is not None:
            if not 0 < len(answer.digests) <= (question.stop - question.first) * DIGEST_BYTES:
                raise InternalError(f"{len(answer.digests)} bytes of digests for {question.number}")
            question.mine = answer
            self._end(question)

    def answered(self, message: Proof) -> None:
        """What the peer has."""
        if not 0 < message.question < self._next_number:
            raise ProtocolError(f"an answer to question {message.question}, which was not asked")
        question = self._asked.get(message.question)
        if question is None:
            return  # forgotten meanwhile
        size, most = len(message.digests), (question.stop - question.first) * DIGEST_BYTES
        if size % DIGEST_BYTES or not 0 < size <= most:
            raise ProtocolError(f"{size} bytes for digests {question.first}..{question.stop}")
        span = SPAN_BLOCKS[question.level]
        if any(not question.first * span <= block < question.stop * span for block in message.bad):
            raise ProtocolError(f"a bad block that question {message.question} was not about")
        if question.theirs is not None:
            raise ProtocolError(f"question {message.question} was answered twice")
        question.theirs = message
        self._end(question)

    def _end(self, question: _Question) -> None:
        mine, theirs = question.mine, question.theirs
        if mine is None or theirs is None:
            return
        del self._asked[question.number]
        stop = question.first + min(len(mine.digests), len(theirs.digests)) // DIGEST_BYTES
        question.then(
            Answer(question.level, question.first, stop, question.stop, mine, theirs, question.asked_ns)
        )
