"""Resync: nothing stale is ever sent, everything arrives, and the guest's latency sets the pace.

The machine holds a disk and what the peer makes of the stream, block by block as numbers of writes.  Reads
are executed at any moment between their request and their answer, in between the guest writes whole and
partial blocks, and the peer comes and goes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pairsync.core.dirty import DirtyMap
from pairsync.core.questions import BadBlock
from pairsync.core.resync import (
    NARROW_PIECE_BYTES,
    PIECE_BYTES,
    RUN_BLOCKS_MAX,
    RUNS_PER_READ_MAX,
    WIDE_PIECE_BYTES,
    Found,
    Pacer,
    Progress,
    ReadTicket,
    ResyncSource,
)
from pairsync.core.units import BLOCK_BYTES, MIB, NS_PER_MS, NS_PER_S, Extent
from pairsync.errors import InternalError

PIECE_BLOCKS = PIECE_BYTES // BLOCK_BYTES
BLOCK_COUNT = 6 * PIECE_BLOCKS
QUOTA_BYTES_MAX = 3 * PIECE_BYTES
MIXED = -1  # the peer holds a part of something: equal to nothing


@dataclass
class Reading:
    ticket: ReadTicket
    seen: dict[int, int] | None = None  # what each block held when it was read


def blocks_of(extents: Sequence[Extent]) -> list[int]:
    return [block for extent in extents for block in range(*extent)]


class ResyncMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.todo = DirtyMap(BLOCK_COUNT)
        self.resync = ResyncSource(self.todo, Pacer(NS_PER_MS, QUOTA_BYTES_MAX))
        self.disk = [0] * BLOCK_COUNT
        self.peer = [0] * BLOCK_COUNT
        self.version = 0
        self.now_ns = NS_PER_S
        self.readings: dict[int, Reading] = {}
        self.late: list[Reading] = []  # of an earlier session
        self.in_flight: deque[int] = deque()  # bytes sent and not applied

    @initialize(
        runs=st.lists(
            st.tuples(st.integers(0, BLOCK_COUNT - 1), st.integers(1, 2 * PIECE_BLOCKS)), max_size=6
        )
    )
    def begin(self, runs: list[tuple[int, int]]) -> None:
        for start, length in runs:
            stop = min(start + length, BLOCK_COUNT)
            self.todo.mark(start, stop)
            self.peer[start:stop] = [MIXED] * (stop - start)
        self.resync.start(self.now_ns)

    # ------------------------------------------------------------------ the guest

    @rule(
        start=st.integers(0, BLOCK_COUNT - 1),
        length=st.sampled_from([1, 1, 1, 3, PIECE_BLOCKS]),
        mirrored=st.booleans(),
    )
    def write_whole_blocks(self, start: int, length: int, mirrored: bool) -> None:
        stop = min(start + length, BLOCK_COUNT)
        self.version += 1
        self.resync.written(Extent(start, stop))
        self.disk[start:stop] = [self.version] * (stop - start)
        if mirrored:
            self.todo.clear(start, stop)
            self.peer[start:stop] = [self.version] * (stop - start)
        else:
            self.todo.mark(start, stop)

    @rule(block=st.integers(0, BLOCK_COUNT - 1))
    def write_half_a_block(self, block: int) -> None:
        self.version += 1
        self.resync.written(Extent(block, block + 1))
        self.disk[block] = self.version
        self.peer[block] = MIXED if block in self.todo else self.version

    # ------------------------------------------------------------------ reads

    @rule()
    def ask(self) -> None:
        quota = self.resync._pacer.quota_bytes(self.now_ns)
        for ticket in self.resync.next_reads(self.now_ns):
            assert all(extent.block_count > 0 for extent in ticket.extents)
            assert len(ticket.extents) == 1 or len(blocks_of(ticket.extents)) <= PIECE_BLOCKS
            assert list(ticket.extents) == sorted(ticket.extents)
            blocks = blocks_of(ticket.extents)
            assert len(set(blocks)) == len(blocks)
            assert all(block in self.todo for block in blocks)
            for other in self.readings.values():
                assert not set(blocks) & set(blocks_of(other.ticket.extents))
            self.readings[ticket.number] = Reading(ticket)
        under_way = sum(each.ticket.piece_bytes for each in self.readings.values()) + sum(self.in_flight)
        assert under_way <= max(quota, PIECE_BYTES) or under_way <= QUOTA_BYTES_MAX
        assert under_way or not self.todo  # it never stands still

    def _read(self, reading: Reading) -> None:
        if reading.seen is None:
            reading.seen = {block: self.disk[block] for block in blocks_of(reading.ticket.extents)}

    @precondition(lambda self: bool(self.readings))
    @rule(data=st.data())
    def a_read_is_executed(self, data: st.DataObject) -> None:
        self._read(self.readings[data.draw(st.sampled_from(sorted(self.readings)))])

    @precondition(lambda self: bool(self.readings))
    @rule(data=st.data(), hole=st.booleans())
    def a_read_is_answered(self, data: st.DataObject, hole: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.readings)))
        covered = []
        for extent in self.readings[number].ticket.extents:
            most = extent.block_count if hole else min(extent.block_count, PIECE_BLOCKS)
            blocks = data.draw(st.one_of(st.just(most), st.integers(1, most)))
            covered.append(Extent(extent.start, extent.start + blocks))
        self._answer(number, covered, hole=hole)

    def _answer(self, number: int, covered: list[Extent], *, hole: bool) -> None:
        reading = self.readings.pop(number)
        self._read(reading)
        runs = self.resync.read_done(number, Found(covered, []))
        assert runs is not None
        assert runs == sorted(runs)
        for run in runs:
            assert any(part.start <= run.start < run.stop <= part.stop for part in covered)
            for block in range(*run):
                assert block in self.todo
                assert reading.seen is not None
                assert reading.seen[block] == self.disk[block], "stale content"
                self.peer[block] = self.disk[block]
            self.todo.clear(*run)
            data_bytes = 0 if hole else run.block_count * BLOCK_BYTES
            self.resync.sent(data_bytes)
            self.in_flight.append(data_bytes)

    @precondition(lambda self: bool(self.readings))
    @rule(data=st.data())
    def a_read_fails(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.readings)))
        del self.readings[number]
        assert self.resync.read_failed(number)
        assert not self.resync.read_failed(number)

    @precondition(lambda self: bool(self.in_flight))
    @rule()
    def the_peer_has_applied(self) -> None:
        self.resync.arrived(self.in_flight.popleft())

    # ------------------------------------------------------------------ time and sessions

    @rule(ms=st.integers(1, 400), latency_ms=st.integers(0, 3))
    def time_passes_and_a_write_ends(self, ms: int, latency_ms: int) -> None:
        self.now_ns += ms * NS_PER_MS
        self.resync._pacer.foreground(latency_ms * NS_PER_MS, self.now_ns)

    @rule()
    def the_session_ends_and_another_begins(self) -> None:
        """What was sent has arrived here; what is lost with a session is the tracker's to know."""
        self.resync.stop()
        assert self.resync.progress(self.now_ns) is None
        self.late += self.readings.values()
        self.readings.clear()
        self.in_flight.clear()
        self.resync.start(self.now_ns)

    @precondition(lambda self: bool(self.late))
    @rule(fails=st.booleans())
    def a_late_answer_is_dropped(self, fails: bool) -> None:
        ticket = self.late.pop().ticket
        if fails:
            assert not self.resync.read_failed(ticket.number)
        else:
            assert self.resync.read_done(ticket.number, Found(ticket.extents, [])) is None

    # ------------------------------------------------------------------ what must hold

    @invariant()
    def what_is_not_wanted_is_there(self) -> None:
        wanted = {block for run in self.todo.runs() for block in range(*run)}
        for block, (here, there) in enumerate(zip(self.disk, self.peer, strict=True)):
            assert here == there or block in wanted
        assert self.resync.reading == bool(self.readings)

    def teardown(self) -> None:
        """Without writes it comes to its end, in no more answers than there are pieces and holes."""
        budget = BLOCK_COUNT + len(self.readings) + 1
        while self.todo or self.readings:
            budget -= 1
            assert budget, "it does not come to an end"
            for number in list(self.readings):
                extents = self.readings[number].ticket.extents
                covered = [Extent(e.start, min(e.stop, e.start + PIECE_BLOCKS)) for e in extents]
                self._answer(number, covered, hole=False)
            while self.in_flight:
                self.the_peer_has_applied()
            self.ask()
        assert self.disk == self.peer


TestResyncMachine = ResyncMachine.TestCase
TestResyncMachine.settings = settings(stateful_step_count=40)


# -- the walk ------------------------------------------------------------------------------------------------


def source(
    *runs: tuple[int, int], block_count: int = BLOCK_COUNT, quota: int = QUOTA_BYTES_MAX
) -> ResyncSource:
    todo = DirtyMap(block_count)
    for run in runs:
        todo.mark(*run)
    resync = ResyncSource(todo, Pacer(NS_PER_MS, quota))
    resync.start(0)
    return resync


def asked(resync: ResyncSource) -> list[str]:
    return [" ".join(extent.describe() for extent in ticket.extents) for ticket in resync.next_reads(0)]


WIDE = PIECE_BLOCKS + 1
"""A run that no other is asked for together with."""


def test_it_walks_upwards_and_wraps() -> None:
    resync = source((0, WIDE), (200, 200 + WIDE), (400, 400 + WIDE), block_count=1000, quota=PIECE_BYTES)
    for number, start in enumerate([0, 200, 400], 1):
        assert asked(resync) == [f"{start}..{start + WIDE}"]
        assert resync.read_failed(number)
    assert asked(resync) == [f"0..{WIDE}"]


def test_it_asks_for_as_much_as_the_quota_allows() -> None:
    resync = source(*((at, at + WIDE) for at in range(0, 1000, 200)), block_count=2000, quota=3 * PIECE_BYTES)
    assert len(asked(resync)) == 3
    assert asked(resync) == []


def test_a_read_of_one_run_takes_a_larger_piece_while_nobody_writes_and_there_is_room_for_many() -> None:
    runs = [(at, at + WIDE) for at in range(0, 40_000, 1000)]
    for quota, pieces in ((16 * MIB, 16), (8 * MIB, 8), (8 * MIB - 1, 15)):
        resync = source(*runs, block_count=40_000, quota=quota)
        tickets = resync.next_reads(0)
        assert len(tickets) == pieces
        wide = quota >= 8 * MIB
        assert {ticket.piece_bytes for ticket in tickets} == {WIDE_PIECE_BYTES if wide else PIECE_BYTES}
        assert resync.read_failed(tickets[0].number)
        assert [len(ticket.extents) for ticket in resync.next_reads(0)] == [1]
    resync = source(*runs, block_count=40_000, quota=16 * MIB)
    resync._pacer.foreground(1, 0)
    assert {ticket.piece_bytes for ticket in resync.next_reads(0)} == {NARROW_PIECE_BYTES}
    scattered = source(*((at, at + 2) for at in range(0, 3000, 3)), block_count=3000, quota=16 * MIB)
    assert {ticket.piece_bytes for ticket in scattered.next_reads(0)} == {PIECE_BYTES}


def test_scattered_blocks_are_asked_for_together_as_far_as_a_piece_goes() -> None:
    few = source((1, 2), (5, 7), (9, 10))
    assert asked(few) == ["1..2 5..7 9..10"]
    many = source(*((at, at + 1) for at in range(0, 4 * PIECE_BLOCKS, 2)), block_count=4 * PIECE_BLOCKS)
    assert [len(ticket.extents) for ticket in many.next_reads(0)] == [PIECE_BLOCKS, PIECE_BLOCKS]


def test_scattered_blocks_are_asked_for_by_fewer_beside_a_guest_that_writes() -> None:
    resync = source(*((at, at + 1) for at in range(0, 400, 2)), block_count=400, quota=16 * MIB)
    resync._pacer.foreground(1, 0)
    tickets = resync.next_reads(0)
    narrow_blocks = NARROW_PIECE_BYTES // BLOCK_BYTES
    assert [len(ticket.extents) for ticket in tickets] == [narrow_blocks] * 4
    assert {ticket.piece_bytes for ticket in tickets} == {NARROW_PIECE_BYTES}


def test_a_run_that_does_not_fit_beside_others_is_asked_for_alone() -> None:
    resync = source((1, 2), (5, 5 + PIECE_BLOCKS), (200, 201), block_count=1000)
    assert asked(resync) == ["1..2", f"5..{5 + PIECE_BLOCKS}", "200..201"]


def test_what_is_asked_for_together_ascends() -> None:
    resync = source((5, 6), (9, 10))
    resync._cursor = 7
    assert asked(resync) == ["9..10", "5..6"]


def test_a_huge_run_is_asked_for_in_parts() -> None:
    resync = source((0, 2 * RUN_BLOCKS_MAX + 5), block_count=4 * RUN_BLOCKS_MAX)
    assert asked(resync) == [
        f"0..{RUN_BLOCKS_MAX}",
        f"{RUN_BLOCKS_MAX}..{2 * RUN_BLOCKS_MAX}",
        f"{2 * RUN_BLOCKS_MAX}..{2 * RUN_BLOCKS_MAX + 5}",
    ]


def test_a_hole_that_was_written_all_over_meanwhile_is_sent_in_bounded_steps() -> None:
    blocks = 4 * 2 * RUNS_PER_READ_MAX
    resync = source((0, blocks), block_count=blocks)
    assert asked(resync) == [f"0..{blocks}"]
    for block in range(0, blocks, 2):
        resync.written(Extent(block, block + 1))
        resync._todo.clear(block, block + 1)  # it is mirrored
    sent = resync.read_done(1, Found([Extent(0, blocks)], []))
    assert sent == [Extent(block, block + 1) for block in range(1, 2 * RUNS_PER_READ_MAX, 2)]
    for run in sent:
        resync._todo.clear(run.start, run.stop)
    rest = f"{2 * RUNS_PER_READ_MAX + 1}..{2 * RUNS_PER_READ_MAX + 2} "
    assert asked(resync)[0].startswith(rest), "the rest is not lost"


def test_a_short_answer_is_taken_up_where_it_ended() -> None:
    resync = source((4, 40), quota=PIECE_BYTES)
    assert asked(resync) == ["4..40"]
    assert resync.read_done(1, Found([Extent(4, 10)], [])) == [Extent(4, 10)]
    resync._todo.clear(4, 10)
    assert asked(resync) == ["10..40"]


def test_what_nobody_reads_yet_is_found_between_the_reads() -> None:
    resync = source((0, 10))
    assert asked(resync) == ["0..10"]
    resync._todo.mark(10, 12)
    resync._todo.mark(14, 16)
    assert asked(resync) == ["10..12 14..16"]
    assert resync.read_done(2, Found([Extent(10, 11), Extent(14, 16)], [])) == [
        Extent(10, 11),
        Extent(14, 16),
    ]
    resync._todo.clear(14, 16)
    resync._todo.clear(10, 11)
    assert asked(resync) == ["11..12"]


def test_a_run_around_a_read_is_cut_in_two() -> None:
    resync = source((4, 6))
    assert asked(resync) == ["4..6"]
    resync._todo.mark(0, 10)
    assert asked(resync) == ["6..10", "0..4"]


def test_a_block_written_meanwhile_is_not_sent_from_that_read() -> None:
    resync = source((0, 10))
    assert asked(resync) == ["0..10"]
    resync.written(Extent(3, 4))
    resync.written(Extent(8, 20))
    assert resync.read_done(1, Found([Extent(0, 10)], [])) == [Extent(0, 3), Extent(4, 8)]
    resync._todo.clear(0, 3)
    resync._todo.clear(4, 8)
    assert asked(resync) == ["3..4 8..10"], "written meanwhile, it is read again"
    assert resync.read_done(2, Found([Extent(3, 4), Extent(8, 10)], [])) == [Extent(3, 4), Extent(8, 10)]


def test_what_is_wrong_is_set_aside_until_it_is_released() -> None:
    resync = source((0, 10))
    assert asked(resync) == ["0..10"]
    resync.written(Extent(4, 5))
    wrong = [BadBlock(block, 7, 8) for block in (2, 4, 5)]
    assert resync.read_done(1, Found([Extent(0, 10)], [], wrong)) == [
        Extent(0, 2),
        Extent(3, 4),
        Extent(6, 10),
    ]
    assert resync.aside == {2, 5}, "what was written meanwhile is another content"
    for start, stop in ((0, 2), (3, 4), (6, 10)):
        resync._todo.clear(start, stop)
    assert asked(resync) == ["4..5"]
    resync.release(5)
    assert asked(resync) == ["5..6"]
    resync.stop()
    assert resync.aside == set()
    assert asked(resync) == ["2..3 4..6"], "the next session meets it again"


@pytest.mark.parametrize("covered", [Extent(1, 3), Extent(0, 11), Extent(0, -1)])
def test_an_answer_for_something_else_is_our_own_bug(covered: Extent) -> None:
    resync = source((0, 10))
    resync.next_reads(0)
    with pytest.raises(InternalError, match=r"read of 0\.\.10 answered for"):
        resync.read_done(1, Found([covered], []))


def test_without_anything_to_do_nothing_is_read() -> None:
    assert asked(source()) == []


# -- the pace ------------------------------------------------------------------------------------------------

GOAL_NS = 10 * NS_PER_MS


@given(st.lists(st.tuples(st.integers(0, 600), st.integers(0, 40)), max_size=60))
def test_the_quota_stays_in_its_bounds_and_changes_by_its_rules(writes: list[tuple[int, int]]) -> None:
    pacer = Pacer(GOAL_NS, 16 * MIB)
    now_ns, changed_ns, last_write_ns = 0, -NS_PER_S, -NS_PER_S
    quota = pacer.quota_bytes(0)
    assert quota == 16 * MIB
    for wait_ms, latency_ms in writes:
        now_ns += wait_ms * NS_PER_MS
        idle = now_ns - last_write_ns > Pacer._IDLE_NS
        before = pacer.quota_bytes(now_ns)
        assert before == (16 * MIB if idle else quota)
        pacer.foreground(latency_ms * NS_PER_MS, now_ns)
        quota = pacer.quota_bytes(now_ns)
        assert NARROW_PIECE_BYTES <= quota <= 16 * MIB
        if idle:
            assert quota == 4 * NARROW_PIECE_BYTES
            changed_ns = now_ns
        elif now_ns - changed_ns < Pacer._ADJUST_NS:
            assert quota == before
        else:
            changed_ns = now_ns
            slower = max(before // 2, NARROW_PIECE_BYTES)
            faster = min(before + NARROW_PIECE_BYTES, 16 * MIB)
            assert quota == (slower if latency_ms * NS_PER_MS > GOAL_NS else faster)
        last_write_ns = now_ns


def test_a_suffering_guest_leaves_one_piece_and_an_idle_one_everything() -> None:
    pacer = Pacer(GOAL_NS, 16 * MIB)
    now_ns = 0
    for _ in range(20):
        now_ns += 30 * NS_PER_MS
        pacer.foreground(5 * GOAL_NS, now_ns)
    assert pacer.quota_bytes(now_ns) == NARROW_PIECE_BYTES
    for _ in range(260):
        now_ns += 30 * NS_PER_MS
        pacer.foreground(GOAL_NS, now_ns)
    assert pacer.quota_bytes(now_ns) == 16 * MIB
    pacer.foreground(5 * GOAL_NS, now_ns + 30 * NS_PER_MS)
    assert pacer.quota_bytes(now_ns + NS_PER_S) == 16 * MIB


@pytest.mark.parametrize(("goal_ns", "most"), [(0, MIB), (-1, MIB), (1, PIECE_BYTES - 1)])
def test_a_pacer_has_a_goal_and_room(goal_ns: int, most: int) -> None:
    with pytest.raises(InternalError):
        Pacer(goal_ns, most)


# -- progress ------------------------------------------------------------------------------------------------


def test_progress_tells_rate_and_remaining_time() -> None:
    resync = source((0, 1000), block_count=1000)
    assert resync.progress(0) == Progress(1000, 1000, 0.0, None)
    resync._todo.clear(0, 250)
    half = resync.progress(NS_PER_S)
    assert half == Progress(1000, 750, 250.0 * BLOCK_BYTES, 3.0)
    assert half.fraction == 0.25
    assert resync.progress(NS_PER_S) == half  # asked again at once
    resync._todo.clear(250, 1000)
    done = resync.progress(2 * NS_PER_S)
    assert done is not None
    assert (done.fraction, done.remaining_blocks, done.bytes_per_s) == (1.0, 0, 500.0 * BLOCK_BYTES)
    resync.stop_counting()
    assert resync.progress(3 * NS_PER_S) is None


def test_progress_never_goes_beyond_its_bounds_when_blocks_are_added() -> None:
    resync = source((0, 10))
    resync._todo.mark(0, 100)
    grown = resync.progress(NS_PER_S)
    assert grown == Progress(100, 100, 0.0, None)
    assert grown.fraction == 0.0
    assert Progress(0, 0, 0.0, None).fraction == 1.0


def test_an_answer_that_arrives_twice_does_not_make_room_beyond_the_quota() -> None:
    resync = source((0, WIDE), (200, 201), block_count=1000, quota=PIECE_BYTES)
    resync.arrived(100 * MIB)
    assert asked(resync) == [f"0..{WIDE}"]
    assert asked(resync) == []


def test_when_all_is_being_read_it_looks_again_only_after_an_answer() -> None:
    class Watched(DirtyMap):
        looks = 0

        def next_run_beside(self, other: DirtyMap, start: int, stop: int, longest: int) -> Extent | None:
            self.looks += 1
            return super().next_run_beside(other, start, stop, longest)

    todo = Watched(BLOCK_COUNT)
    for block in range(0, BLOCK_COUNT, 3):
        todo.mark(block, block + 1)
    resync = ResyncSource(todo, Pacer(NS_PER_MS, 16 * MIB))
    tickets = resync.next_reads(0)
    assert blocks_of([each for ticket in tickets for each in ticket.extents]) == [*range(0, BLOCK_COUNT, 3)]
    todo.looks = 0
    assert not resync.next_reads(0)
    todo.clear(0, 1)  # fewer of the same
    assert not resync.next_reads(0)
    assert not todo.looks
    resync.read_failed(tickets[0].number)
    (again,) = resync.next_reads(0)
    assert again.extents == tickets[0].extents[1:]
