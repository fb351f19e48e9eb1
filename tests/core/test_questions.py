"""Questions about digests: both answer for the same moment, and no answer is taken for another one's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pairsync.core.effects import Effect, Examine, Send
from pairsync.core.messages import Condition, Generation, Proof, Prove
from pairsync.core.questions import (
    DIGEST_BYTES,
    FAN_OUT,
    QUESTIONS_MAX,
    Answer,
    Examined,
    Questions,
    node_count,
)
from pairsync.core.standing import Standing
from pairsync.errors import InternalError, ProtocolError
from pairsync.testing.manual import blank_superblock


class Desk:
    def __init__(self) -> None:
        self.out: list[Effect] = []
        block = replace(
            blank_superblock("vda", 1 << 20),
            term=4,
            condition=Condition.CONSISTENT,
            lineage=(Generation(1, 1, 1),),
        )
        self.questions = Questions(2, Standing(2, block, lambda: 1, self.out), self.out)
        self.answers: list[Answer] = []
        self.bad: tuple[int, ...] = ()

    def ask(self, first: int = 0, stop: int = 8, now_ns: int = 5) -> int:
        self.questions.ask(0, first, stop, read=True, now_ns=now_ns, then=self.answers.append)
        send, examine = self.out
        self.out.clear()
        assert isinstance(send, Send)
        assert isinstance(examine, Examine)
        (prove,) = send.messages
        assert isinstance(prove, Prove)
        assert (prove.term, prove.volume, prove.read) == (4, 2, True)
        assert examine == Examine(2, prove.question, 0, first, stop, read=True)
        return prove.question

    def proof(self, question: int, count: int) -> None:
        self.questions.answered(Proof(2, question, bytes(count * DIGEST_BYTES), self.bad))

    def examined(self, question: int, count: int) -> None:
        self.questions.examined(question, Examined(bytes(count * DIGEST_BYTES)))


@pytest.mark.parametrize("mine_first", [False, True])
@pytest.mark.parametrize(("mine", "theirs"), [(8, 8), (2, 8), (8, 3)])
def test_the_smaller_part_counts_whoever_answers_first(mine_first: bool, mine: int, theirs: int) -> None:
    desk = Desk()
    desk.bad = (16,)
    number = desk.ask(16, 24)
    assert desk.questions.waiting_since_ns == 5
    for ours in (mine_first, not mine_first):
        assert not desk.answers
        desk.examined(number, mine) if ours else desk.proof(number, theirs)
    (answer,) = desk.answers
    assert (answer.first, answer.stop, answer.asked_stop) == (16, 16 + min(mine, theirs), 24)
    assert (answer.theirs.bad, answer.asked_ns) == ((16,), 5)
    assert desk.questions.count == 0
    assert desk.questions.waiting_since_ns is None


def test_there_are_never_too_many() -> None:
    desk = Desk()
    for _ in range(QUESTIONS_MAX):
        desk.ask()
    with pytest.raises(InternalError, match="at once"):
        desk.questions.ask(0, 0, 1, read=False, now_ns=0, then=desk.answers.append)


def test_answers_that_fit_no_question_are_refused_and_late_ones_dropped() -> None:
    desk = Desk()
    number = desk.ask()
    for size in (0, 7, 72):
        with pytest.raises(ProtocolError):
            desk.questions.answered(Proof(2, number, bytes(size)))
    for bad in (-1, 8, 1 << 40):
        with pytest.raises(ProtocolError, match="was not about"):
            desk.questions.answered(Proof(2, number, bytes(8), (bad,)))
    for unknown in (0, number + 1):
        with pytest.raises(ProtocolError, match="not asked"):
            desk.proof(unknown, 1)
    with pytest.raises(InternalError):
        desk.examined(number, 9)
    desk.proof(number, 1)
    with pytest.raises(ProtocolError, match="twice"):
        desk.proof(number, 1)
    desk.questions.forget()
    desk.proof(number, 1)
    desk.examined(number, 1)
    assert not desk.answers
    assert desk.ask() > number, "numbers never repeat"


def test_nodes_of_every_level_are_counted_with_the_last_partial_one() -> None:
    assert [node_count(FAN_OUT * FAN_OUT + 1, level) for level in (0, 1, 2)] == [262_145, 513, 2]
    for level in (-1, 3):
        with pytest.raises(ProtocolError):
            node_count(1, level)
