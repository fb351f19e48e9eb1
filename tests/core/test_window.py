"""The in-flight window, tickets and gathering, against plain lists."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairsync.core.effects import Complete
from pairsync.core.limits import VolumeOptions
from pairsync.core.messages import OpKind, WriteOp
from pairsync.core.units import KIB, MIB, NS_PER_MS
from pairsync.core.window import (
    BATCHES_AHEAD,
    FRAME_DATA_BYTES_MAX,
    FRAME_OPS_MAX,
    GATHER_DATA_BYTES_MAX,
    NEAR_NS,
    RANGE_BYTES_MAX,
    Ticket,
    Waiting,
    Window,
)
from pairsync.errors import ProtocolError

FAR_NS = 20 * NS_PER_MS


def data(offset: int, length: int = 4096) -> WriteOp:
    return WriteOp(OpKind.DATA, offset, length, bytes(length))


def ticket(owner: object, *ops: WriteOp, now_ns: int = 0) -> Ticket:
    return Ticket(owner, list(ops), now_ns)


def test_a_large_batch_is_cut_into_messages_and_ends_with_the_last() -> None:
    window = Window(3)
    batch = ticket("x", *(data(i * MIB, MIB) for i in range(3)))
    messages = window.send(batch.ops, batch, 7, 0)
    assert [(m.number, m.volume, m.term, m.resync, len(m.ops)) for m in messages] == [
        (1, 3, 7, False, 1),
        (2, 3, 7, False, 1),
        (3, 3, 7, False, 1),
    ]
    assert batch.number == 3
    assert window.data_bytes == 3 * MIB
    assert list(window.applied(2, 1)) == []
    assert window.data_bytes == MIB
    assert list(window.applied(3, 2)) == [(batch, MIB)]
    assert window.data_bytes == 0


PIECES = st.builds(WriteOp, st.just(OpKind.DATA), st.just(0), st.integers(1, FRAME_DATA_BYTES_MAX))
RANGES = st.builds(
    WriteOp,
    st.sampled_from([OpKind.ZERO, OpKind.TRIM, OpKind.ZERO_ALLOCATE]),
    st.just(0),
    st.integers(1, RANGE_BYTES_MAX),
)
TINY = st.builds(WriteOp, st.sampled_from(OpKind), st.just(0), st.just(512))


@given(
    st.lists(st.lists(PIECES | RANGES, max_size=8) | st.lists(TINY, min_size=500, max_size=600), min_size=1)
)
def test_no_message_is_larger_than_allowed_and_none_loses_or_reorders_an_op(
    lists: list[list[WriteOp]],
) -> None:
    ops = [op._replace(offset=at) for at, op in enumerate(op for each in lists for op in each)]
    if not ops:
        return
    messages = Window(0).send(ops, None, 1, 0)
    assert [op for message in messages for op in message.ops] == ops
    for message in messages:
        assert message.resync
        assert len(message.ops) <= FRAME_OPS_MAX
        assert sum(op.length for op in message.ops if op.kind is OpKind.DATA) <= FRAME_DATA_BYTES_MAX
        assert sum(op.length for op in message.ops if op.kind is not OpKind.DATA) <= RANGE_BYTES_MAX
    for one, other in itertools.pairwise(messages):  # none could have been spared
        both = [*one.ops, other.ops[0]]
        assert (
            len(both) > FRAME_OPS_MAX
            or sum(op.length for op in both if op.kind is OpKind.DATA) > FRAME_DATA_BYTES_MAX
            or sum(op.length for op in both if op.kind is not OpKind.DATA) > RANGE_BYTES_MAX
        )


def test_a_range_larger_than_any_message_goes_alone() -> None:
    ops = [WriteOp(OpKind.TRIM, 0, size) for size in (4096, 2 * RANGE_BYTES_MAX, 4096)]
    assert [message.ops for message in Window(0).send(ops, None, 1, 0)] == [[op] for op in ops]


def test_a_great_discard_is_many_answers_and_each_of_them_is_progress() -> None:
    window = Window(0)
    batch = ticket("all", *(WriteOp(OpKind.TRIM, i * RANGE_BYTES_MAX, RANGE_BYTES_MAX) for i in range(64)))
    messages = window.send(batch.ops, batch, 1, 0)
    assert len(messages) == 64
    deadline_ns = VolumeOptions().peer_deadline_ns
    for number in range(1, 64):
        now_ns = number * (deadline_ns - 1)
        assert list(window.applied(number, now_ns)) == []
        assert window.owed_since_ns(1) == now_ns, "a barrier behind it waits as long as there are answers"
    assert list(window.applied(64, 64 * deadline_ns)) == [(batch, 0)]


def test_an_answer_to_what_was_not_sent_is_the_peers_fault() -> None:
    window = Window(0)
    window.send([data(0)], None, 1, 0)
    with pytest.raises(ProtocolError, match="write 2, which was not sent"):
        list(window.applied(2, 0))
    assert list(window.applied(1, 0)) == [(None, 4096)]
    assert list(window.applied(1, 0)) == []  # an old answer once more says nothing new


def test_who_owes_since_when() -> None:
    window = Window(0)
    assert window.owed_since_ns(None) is None
    window.send([data(0)], None, 1, 100)
    window.send([data(4096)], None, 1, 200)
    assert window.owed_since_ns(None) == 100
    assert window.lag_ns(500) == 400
    list(window.applied(1, 700))
    assert window.owed_since_ns(None) == 700, "the peer has just answered: it owes the second since then"
    assert window.lag_ns(800) == 600
    window.reset()
    assert window.owed_since_ns(None) is None
    assert [m.number for m in window.send([data(0)], None, 1, 900)] == [1], "numbers begin anew"


def test_a_question_waits_for_what_was_sent_before_it() -> None:
    window = Window(0)
    for number in range(3):
        window.send([data(4096 * number)], None, 1, 100 + number)
    assert window.owed_since_ns(110) == 100
    list(window.applied(2, 5000))  # slow, but it goes on
    window.send([data(0)], None, 1, 5000)
    assert window.owed_since_ns(110) == 5000
    list(window.applied(3, 7000))
    assert window.owed_since_ns(110) == 7000, "for the write behind the question"
    list(window.applied(4, 9000))
    assert window.owed_since_ns(110) == 7000, "going on with other things is no answer"
    assert window.owed_since_ns(9200) == 9200, "another question"
    assert window.owed_since_ns(None) is None
    assert window.owed_since_ns(9650) == 9650


def test_a_question_waits_for_what_was_sent_before_it_for_other_volumes_too() -> None:
    together: list[Window] = []
    busy, idle = Window(0, together), Window(1, together)
    for number in range(2):
        busy.send([data(4096 * number)], None, 1, 100)
    assert idle.owed_since_ns(110) is None
    assert busy.owed_since_ns(None) == 100, "if the peer does not go on, that is told here"
    list(busy.applied(1, 5000))
    assert idle.owed_since_ns(110) is None
    list(busy.applied(2, 9000))
    assert idle.owed_since_ns(110) == 9000


def test_a_near_peer_with_two_small_batches_is_crowded_a_far_one_never() -> None:
    for answer_ns, crowded in ((NEAR_NS // 2, True), (FAR_NS, False)):
        window = Window(0)
        first = ticket("first", data(0))
        window.send(first.ops, first, 1, 0)
        list(window.applied(1, answer_ns))
        for i in range(BATCHES_AHEAD):
            assert not window.crowded
            batch = ticket(i, data(i * 4096))
            window.send(batch.ops, batch, 1, answer_ns)
        assert window.crowded is crowded


def test_large_batches_do_not_crowd() -> None:
    window = Window(0)
    for i in range(BATCHES_AHEAD):
        batch = ticket(i, data(i * MIB, GATHER_DATA_BYTES_MAX // BATCHES_AHEAD))
        window.send(batch.ops, batch, 1, 0)
    assert not window.crowded


def test_gathering_keeps_the_order_and_tells_every_owner_its_own() -> None:
    waiting = Waiting()
    assert not waiting
    waiting.push(ticket("a", data(0), data(4096)))
    waiting.push(ticket("b", WriteOp(OpKind.TRIM, 8192, 4096)))
    waiting.push(ticket("c", data(16384)))
    assert waiting.data_bytes == 3 * 4096
    batch = waiting.gather()
    assert not waiting
    assert waiting.data_bytes == 0
    assert [op.offset for op in batch.ops] == [0, 4096, 8192, 16384]
    assert batch.complete(None) == [Complete("a", None), Complete("b", None), Complete("c", None)]
    assert batch.complete([0, 5, 0, 28]) == [Complete("a", [0, 5]), Complete("b", None), Complete("c", [28])]
    assert batch.fail(5) == [Complete("a", [5, 5]), Complete("b", [5]), Complete("c", [5])]


@given(st.lists(st.tuples(st.integers(1, 80), st.integers(1, 400)), min_size=1, max_size=30))
def test_gathered_batches_stay_within_their_bounds(batches: list[tuple[int, int]]) -> None:
    waiting = Waiting()
    expected: list[int] = []
    for number, (kib, count) in enumerate(batches):
        waiting.push(ticket(number, *(data(number, kib * KIB // count + 1) for _ in range(count))))
        expected.append(number)
    owners: list[object] = []
    while waiting:
        batch = waiting.gather()
        owners += [owner for owner, _ in batch.owners]
        if len(batch.owners) > 1:
            assert len(batch.ops) <= FRAME_OPS_MAX
            assert sum(op.length for op in batch.ops) <= GATHER_DATA_BYTES_MAX
        assert sum(count for _, count in batch.owners) == len(batch.ops)
    assert owners == expected
    assert waiting.data_bytes == 0


def test_clearing_gives_all_back() -> None:
    waiting = Waiting()
    waiting.push(ticket("a", data(0)))
    waiting.push(ticket("b", data(0)))
    assert [t.owners[0][0] for t in waiting.clear()] == ["a", "b"]
    assert not waiting
    assert waiting.data_bytes == 0
