"""Prover: two replicas are the same because their digests say so, not because a label does (DESIGN rule 8).

Both hosts keep a digest of every block, in a tree of three levels: a *leaf* is the digest of a block, a node
of level 1 that of 512 leaves (2 MiB of volume), a node of level 2 that of 512 of those (1 GiB).

The walk begins with all nodes of level 2, one question for any ordinary volume (`core.questions`); where
answers differ it asks for the children.  Leaves that differ are blocks that the peer was wrongly thought to
hold: whoever asked for the proof copies them, and begins it again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from .dirty import DirtyMap
from .questions import (
    ANSWER_NODES_MAX,
    DIGEST_BYTES,
    FAN_OUT,
    LEVEL_TOP,
    QUESTIONS_MAX,
    Answer,
    Questions,
    node_count,
)
from .tracker import Tracker
from .units import Extent

__all__ = ["Prover", "differing_nodes"]


class Prover:
    """One walk after the other over one volume, asked by its active host; see the module."""

    def __init__(self, tracker: Tracker, questions: Questions) -> None:
        self._tracker = tracker
        self._questions = questions
        # What is still to be asked: (level, first, stop).  A differing span is one entry, whose children are
        # asked about before the next one: a few hundred entries.
        self._waiting: deque[tuple[int, int, int]] = deque()
        self.differing = DirtyMap(tracker.block_count)
        """Blocks that differ, as far as this walk has come."""
        self.found = DirtyMap(tracker.block_count)
        """Blocks that differed though no map held them, in any walk of this session."""

    def start(self) -> None:
        """Begin at the top."""
        self.stop()
        self.differing = DirtyMap(self._tracker.block_count)
        self._wait(LEVEL_TOP, 0, node_count(self._tracker.block_count, LEVEL_TOP))

    def stop(self) -> None:
        """Whatever was asked does not matter any more."""
        self._questions.forget()
        self._waiting.clear()

    def forget(self) -> None:
        """The session is over."""
        self.stop()
        self.found = DirtyMap(self._tracker.block_count)

    @property
    def finished(self) -> bool:
        """Whether every answer has come."""
        return not self._questions.count and not self._waiting

    def _wait(self, level: int, first: int, stop: int) -> None:
        """Ask about these next, in parts that fit an answer."""
        parts = [(level, at, min(at + ANSWER_NODES_MAX, stop)) for at in range(first, stop, ANSWER_NODES_MAX)]
        self._waiting.extendleft(reversed(parts))

    def advance(self, now_ns: int) -> None:
        """Ask on; only to be called while the peer lacks nothing that was not sent."""
        while self._waiting and self._questions.count < QUESTIONS_MAX:
            level, first, stop = self._waiting.popleft()
            self._questions.ask(level, first, stop, read=False, now_ns=now_ns, then=self._compare)

    def _compare(self, answer: Answer) -> None:
        if answer.stop < answer.asked_stop:
            self._wait(answer.level, answer.stop, answer.asked_stop)
        runs = differing_nodes(answer)
        if answer.level:
            count = node_count(self._tracker.block_count, answer.level - 1)
            for start, end in reversed(runs):
                self._wait(answer.level - 1, start * FAN_OUT, min(end * FAN_OUT, count))
            return
        self.found.grow(self._tracker.block_count)
        for start, end in runs:
            self.differing.mark(start, end)
            self.found.mark(start, end)


def differing_nodes(answer: Answer) -> list[Extent]:
    """Runs of nodes whose digests are not equal on both hosts."""
    size = (answer.stop - answer.first) * DIGEST_BYTES
    mine, theirs = answer.mine.digests[:size], answer.theirs.digests[:size]
    if mine == theirs:
        return []
    return list(_runs(memoryview(mine).cast("Q"), memoryview(theirs).cast("Q"), answer.first))


def _runs(mine: memoryview, theirs: memoryview, first: int) -> Iterator[Extent]:
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
