"""The stream of a session against a plain list: ordered, each once, whatever paths do."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pairsync.core.stream import (
    ACKNOWLEDGE_BYTES,
    ACKNOWLEDGE_FRAMES,
    OVERDRAFT_BYTES,
    WINDOW_BYTES_MIN,
    WINDOW_FRAMES_MAX,
    StreamReceiver,
    StreamSender,
)
from pairsync.errors import InternalError, ProtocolError


@dataclasses.dataclass(frozen=True)
class Item:
    label: int
    size_bytes: int = 100


def due(receiver: StreamReceiver) -> bool:
    return receiver.acknowledgement_due


def owed(receiver: StreamReceiver) -> bool:
    return receiver.acknowledgement_owed


def sender_with(*sizes: int) -> StreamSender[Item]:
    sender: StreamSender[Item] = StreamSender(WINDOW_BYTES_MIN)
    for label, size in enumerate(sizes):
        sender.push(Item(label, size))
    return sender


def test_take_closes_a_batch_at_the_bound_and_numbers_go_on() -> None:
    sender = sender_with(10, 10, 10, 10)
    assert sender.take(11, 100) == (0, [Item(0, 10), Item(1, 10)])
    assert sender.take(1, 100) == (2, [Item(2, 10)])
    assert sender.take(1000, 1) == (3, [Item(3, 10)])
    assert sender.take(1000, 10) == (4, [])


def test_room_counts_every_byte_that_is_not_acknowledged() -> None:
    sender = sender_with(1000, 500)
    assert sender.room_bytes == WINDOW_BYTES_MIN - 1500
    sender.take(10_000, 10)
    assert sender.room_bytes == WINDOW_BYTES_MIN - 1500
    assert sender.acknowledge(1)
    assert sender.room_bytes == WINDOW_BYTES_MIN - 500
    assert sender.held_bytes == 500
    assert sender.base == 1


def test_an_older_acknowledgement_changes_nothing() -> None:
    sender = sender_with(1, 1, 1)
    sender.take(100, 10)
    assert sender.acknowledge(2)
    assert not sender.acknowledge(1)
    assert not sender.acknowledge(2)
    assert sender.unacknowledged() == [Item(2, 1)]


def test_what_was_never_sent_cannot_be_acknowledged() -> None:
    sender = sender_with(1, 1)
    sender.take(1, 1)
    with pytest.raises(ProtocolError, match="acknowledges frame 1; 1 were sent"):
        sender.acknowledge(2)


def test_after_a_rewind_the_old_path_may_still_be_acknowledged() -> None:
    sender = sender_with(1, 1, 1)
    sender.take(100, 10)
    assert sender.rewind() == 3
    assert sender.acknowledge(2)
    assert sender.take(100, 10) == (2, [Item(2, 1)])


def test_the_overdraft_has_an_end() -> None:
    sender: StreamSender[Item] = StreamSender(WINDOW_BYTES_MIN)
    sender.push(Item(0, WINDOW_BYTES_MIN + OVERDRAFT_BYTES))
    assert sender.room_bytes < 0
    with pytest.raises(InternalError, match="overdrawn"):
        sender.push(Item(1, 1))
    assert sender.unacknowledged_frames == 1


def test_frames_are_limited_too() -> None:
    sender: StreamSender[Item] = StreamSender(WINDOW_BYTES_MIN)
    for _ in range(WINDOW_FRAMES_MAX):
        sender.push(Item(0, 0))
    assert sender.room_bytes == 0
    for _ in range(WINDOW_FRAMES_MAX):
        sender.push(Item(0, 0))
    with pytest.raises(InternalError, match="overdrawn"):
        sender.push(Item(0, 0))


def test_a_window_that_is_too_small_is_refused() -> None:
    with pytest.raises(InternalError, match="window"):
        StreamSender(WINDOW_BYTES_MIN - 1)


def test_release_lets_go_of_everything() -> None:
    sender = sender_with(5, 5)
    sender.take(1, 1)
    sender.release()
    assert (sender.held_bytes, sender.unacknowledged()) == (0, [])


def test_a_gap_is_the_peers_fault() -> None:
    receiver = StreamReceiver()
    assert receiver.accept(0, 2, 100) == 0
    with pytest.raises(ProtocolError, match="frame 3 came where 2 is next"):
        receiver.accept(3, 1, 100)
    assert receiver.expected == 2


def test_duplicates_are_dropped_and_answered_at_once() -> None:
    receiver = StreamReceiver()
    receiver.accept(0, 5, 100)
    receiver.acknowledgement_sent()
    assert receiver.accept(0, 3, 100) == 3
    assert due(receiver)
    receiver.acknowledgement_sent()
    assert receiver.accept(3, 4, 100) == 2
    assert receiver.expected == 7


def test_acknowledgements_fall_due_by_bytes_by_frames_and_by_a_new_path() -> None:
    receiver = StreamReceiver()
    receiver.accept(0, 1, ACKNOWLEDGE_BYTES - 1)
    assert owed(receiver)
    assert not due(receiver)
    receiver.accept(1, 1, 1)
    assert due(receiver)
    receiver.acknowledgement_sent()
    assert not owed(receiver)
    receiver.accept(2, ACKNOWLEDGE_FRAMES, 1)
    assert due(receiver)
    receiver.acknowledgement_sent()
    receiver.path_changed()
    assert due(receiver)
    assert owed(receiver)


@given(st.integers(0, 50), st.lists(st.tuples(st.integers(0, 60), st.integers(0, 10)), max_size=40))
def test_receiver_agrees_with_a_set(start: int, runs: list[tuple[int, int]]) -> None:
    receiver = StreamReceiver()
    receiver.accept(0, start, 1)
    seen = list(range(start))
    for first, count in runs:
        if first > len(seen):
            with pytest.raises(ProtocolError):
                receiver.accept(first, count, 1)
            continue
        skip = receiver.accept(first, count, 1)
        seen += list(range(first, first + count))[skip:]
        assert seen == list(range(receiver.expected))


class Wires(RuleBasedStateMachine):
    """A sender and a receiver over two paths that carry records in order and may die with what is on them."""

    @initialize()
    def start(self) -> None:
        self.sender: StreamSender[Item] = StreamSender(WINDOW_BYTES_MIN)
        self.receiver = StreamReceiver()
        self.pushed: list[Item] = []
        self.delivered: list[Item] = []
        self.path = 0
        self.wires: list[list[tuple[int, list[Item]]]] = [[], []]
        self.answers: list[list[int]] = [[], []]

    @rule(size=st.integers(1, 200_000), count=st.integers(1, 5))
    def push(self, size: int, count: int) -> None:
        for _ in range(count):
            if self.sender.room_bytes <= 0:
                return
            item = Item(len(self.pushed), size)
            self.pushed.append(item)
            self.sender.push(item)

    @rule(bytes_max=st.integers(1, 300_000), frames_max=st.integers(1, 4))
    def send(self, bytes_max: int, frames_max: int) -> None:
        first, items = self.sender.take(bytes_max, frames_max)
        if items:
            self.wires[self.path].append((first, items))

    @rule(path=st.integers(0, 1))
    def deliver(self, path: int) -> None:
        if not self.wires[path]:
            return
        first, items = self.wires[path].pop(0)
        skip = self.receiver.accept(first, len(items), sum(item.size_bytes for item in items))
        self.delivered += items[skip:]
        if self.receiver.acknowledgement_due:
            self.answers[path].append(self.receiver.expected)
            self.receiver.acknowledgement_sent()

    @rule(path=st.integers(0, 1))
    def heartbeat(self, path: int) -> None:
        self.answers[path].append(self.receiver.expected)
        self.receiver.acknowledgement_sent()

    @rule(path=st.integers(0, 1))
    def answer(self, path: int) -> None:
        if self.answers[path]:
            self.sender.acknowledge(self.answers[path].pop(0))

    @rule(dies=st.booleans(), lost=st.integers(0, 10))
    def switch(self, dies: bool, lost: int) -> None:
        """Change the path; if the old one dies, the end of what is on it is lost."""
        if dies:
            self.wires[self.path] = self.wires[self.path][:lost]
            self.answers[self.path] = self.answers[self.path][:lost]
            self.receiver.path_changed()
        self.path = 1 - self.path
        self.sender.rewind()

    @precondition(lambda self: len(self.pushed) > 0)
    @rule()
    def drain(self) -> None:
        """With one good path everything arrives, and the window is free again."""
        self.switch(dies=False, lost=0)
        while self.sender.unsent_frames:
            self.send(1 << 20, 8)
        while self.wires[self.path]:
            self.deliver(self.path)
        self.heartbeat(self.path)
        while self.answers[self.path]:
            self.answer(self.path)
        assert self.delivered == self.pushed
        assert self.sender.room_bytes == WINDOW_BYTES_MIN
        assert not self.receiver.acknowledgement_owed

    @invariant()
    def prefix(self) -> None:
        assert self.delivered == self.pushed[: len(self.delivered)]
        assert self.receiver.expected == len(self.delivered)

    @invariant()
    def held_is_what_is_not_acknowledged(self) -> None:
        held = self.sender.unacknowledged()
        assert held == self.pushed[self.sender.base :]
        assert self.sender.held_bytes == sum(item.size_bytes for item in held)


TestWires = Wires.TestCase
