"""The write-intent journal against a set of blocks: appends, release, crashes at every step, damage."""

from __future__ import annotations

import contextlib
import errno
import random
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pairsync.core.units import Extent
from pairsync.errors import BackendError, InternalError, MetadataError
from pairsync.storage.journal import Journal, Replay, decode_release_mark, encode_release_mark
from pairsync.storage.records import EXTENTS_PER_RECORD, RECORD_BYTES
from pairsync.storage.slots import DualSlot
from pairsync.testing.disks import Fault, PowerCut, SimFile, SimMedium

SEED = 99
BLOCKS = 5000
SEGMENT_BYTES = 8 * RECORD_BYTES
JOURNAL_AT = 8192


def _medium() -> SimMedium:
    medium = SimMedium()
    medium.create("f", JOURNAL_AT + 2 * SEGMENT_BYTES)
    journal, file = _open(medium)
    journal.format()
    file.flush()
    medium.process_crash()
    return medium


def _open(medium: SimMedium) -> tuple[Journal, SimFile]:
    file = medium.open("f")
    mark = DualSlot(file, what="release mark", kind=2, offset=0, slot_bytes=4096, mirrored=False)
    journal = Journal(
        file, mark, offset=JOURNAL_AT, segment_bytes=SEGMENT_BYTES, block_count=BLOCKS, seed=SEED
    )
    return journal, file


def _replayed(medium: SimMedium) -> tuple[Journal, Replay]:
    medium.process_crash()
    journal, _ = _open(medium)
    return journal, journal.replay()


def _blocks(extents: Iterable[tuple[int, int]]) -> set[int]:
    return {block for start, stop in extents for block in range(start, stop)}


# -- plain behaviour -----------------------------------------------------------------------------------------


def test_a_new_journal_is_empty() -> None:
    _, replay = _replayed(_medium())
    assert replay == Replay((), 1, ())


def test_intents_come_back_sorted_and_merged() -> None:
    medium = _medium()
    journal, _ = _replayed(medium)
    journal.append(1, 1, [(10, 12), (4, 5)])
    journal.append(1, 1, [(11, 20), (5, 6)])
    journal.append(0, 2, [(30, 31)])
    _, replay = _replayed(medium)
    assert replay.extents == (Extent(4, 6), Extent(10, 20), Extent(30, 31))
    assert replay.generation_next == 3


def test_released_intents_are_gone_and_the_segment_is_used_again() -> None:
    medium = _medium()
    journal, _ = _replayed(medium)
    for generation in range(1, 30):
        segment = generation % 2
        journal.release(segment)
        journal.open_segment(segment, generation)
        journal.append(segment, generation, [(generation, generation + 1)])
        journal.append(segment, generation, [(100 + generation, 101 + generation)])
    journal.release(0)
    _, replay = _replayed(medium)
    assert replay.extents == (Extent(29, 30), Extent(129, 130))
    assert replay.generation_next == 30


def test_a_replayed_segment_is_released_before_it_is_used() -> None:
    medium = _medium()
    journal, _ = _replayed(medium)
    journal.append(0, 1, [(1, 2)])
    journal, replay = _replayed(medium)
    with pytest.raises(InternalError, match="released"):
        journal.append(0, 1, [(2, 3)])
    with pytest.raises(InternalError, match="not released"):
        journal.open_segment(0, replay.generation_next)
    journal.release(0)
    journal.append(0, replay.generation_next, [(2, 3)])
    assert _replayed(medium)[1].extents == (Extent(2, 3),)


def test_misuse_is_our_own_bug() -> None:
    journal, _ = _replayed(_medium())
    journal.append(0, 5, [(1, 2)])
    with pytest.raises(InternalError, match="generation 5 after 5"):
        journal.append(1, 5, [(1, 2)])
    with pytest.raises(InternalError, match="not released"):
        journal.append(0, 6, [(1, 2)])
    with pytest.raises(InternalError):
        journal.append(0, 5, [(1, BLOCKS + 1)])
    journal.release(0)
    with pytest.raises(InternalError, match="was released"):
        journal.append(0, 5, [(1, 2)])
    with pytest.raises(InternalError, match="generation 4 after 5"):
        journal.append(0, 4, [(1, 2)])


def test_room() -> None:
    medium = _medium()
    journal, _ = _replayed(medium)
    assert journal.room(0) == 8
    journal.append(0, 1, [])  # costs nothing
    journal.append(0, 1, [(1, 2)])
    assert journal.room(0) == 7
    many = [(2 * i, 2 * i + 1) for i in range(2 * EXTENTS_PER_RECORD + 1)]
    journal.append(0, 1, many)
    assert journal.room(0) == 4
    with pytest.raises(InternalError, match="has room for 4 records, not 5"):
        journal.append(0, 1, [(1, 2)] * (4 * EXTENTS_PER_RECORD + 1))
    journal.append(0, 1, [(4000, 4001)] * (4 * EXTENTS_PER_RECORD))
    with pytest.raises(InternalError, match="has room for 0 records"):
        journal.append(0, 1, [(1, 2)])
    assert _blocks(_replayed(medium)[1].extents) == _blocks(many) | {1, 4000}


def test_a_failed_append_may_be_replayed_and_ends_the_writing() -> None:
    medium = _medium()
    journal, _ = _replayed(medium)
    journal.append(0, 1, [(1, 2)])
    medium.fault = lambda op: Fault(errno.EIO, done_bytes=4096) if op.durable else None
    with pytest.raises(BackendError):
        journal.append(0, 1, [(5, 6)])
    medium.fault = None
    with pytest.raises(BackendError, match="an earlier flush failed"):
        journal.append(0, 1, [(7, 8)])
    assert _blocks(_replayed(medium)[1].extents) >= {1}


@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=2, max_size=2))
def test_release_mark(released: list[int]) -> None:
    assert decode_release_mark(encode_release_mark(released)) == released


@given(st.binary(max_size=40).filter(lambda raw: len(raw) != 16))
def test_a_release_mark_of_another_length(raw: bytes) -> None:
    with pytest.raises(MetadataError):
        decode_release_mark(raw)


# -- damage --------------------------------------------------------------------------------------------------


def _filled() -> SimMedium:
    """Segment 1 has a released and three live records of generation 3, segment 0 two of generation 2."""
    medium = _medium()
    journal, _ = _replayed(medium)
    for place in range(5):
        journal.append(1, 1, [(place, place + 1)])
    journal.append(0, 2, [(10, 11)])
    journal.append(0, 2, [(12, 13)])
    journal.release(1)
    for place in range(3):
        journal.append(1, 3, [(20 + place, 21 + place)])
    medium.process_crash()
    return medium


LIVE = {10, 12, 20, 21, 22}


@pytest.mark.parametrize("segment", [0, 1])
@pytest.mark.parametrize("place", range(8))
def test_a_damaged_record_is_noticed_unless_it_is_the_last(segment: int, place: int) -> None:
    medium = _filled()
    medium.damage("f", JOURNAL_AT + segment * SEGMENT_BYTES + place * RECORD_BYTES + 48, 0x40)
    last = {0: 1, 1: 2}[segment]
    if place < last:
        with pytest.raises(
            MetadataError, match=f"record {place} of journal segment {segment} .* was durable"
        ):
            _replayed(medium)
        return
    lost = {(0, 1): {12}, (1, 2): {22}}.get((segment, place), set())
    assert _blocks(_replayed(medium)[1].extents) == LIVE - lost


@given(st.data())
def test_flipped_bits_anywhere_never_invent_or_hide(data: st.DataObject) -> None:
    medium = _filled()
    pages = data.draw(st.lists(st.integers(0, len(medium.content("f")) // RECORD_BYTES - 1), min_size=1))
    for page in pages:
        at = page * RECORD_BYTES + data.draw(st.integers(0, 60))
        medium.damage("f", at, data.draw(st.integers(1, 255)))
    refused: MetadataError | None = None
    found: set[int] = set()
    try:
        found = _blocks(_replayed(medium)[1].extents)
    except MetadataError as error:
        refused = error
    if refused is not None:
        assert "damaged" in str(refused)
        return
    assert found <= LIVE | {0, 1, 2, 3, 4}  # an older release mark brings dead records back
    if len(set(pages)) == 1:
        assert LIVE - found in (set(), {12}, {22})  # the last append of a segment looks torn


def test_records_in_another_place_are_no_records() -> None:
    medium = _filled()
    file = medium.open("f")
    record = file.read(JOURNAL_AT + SEGMENT_BYTES, RECORD_BYTES)
    for place in (1, 3, 4):
        file.write(JOURNAL_AT + place * RECORD_BYTES, (record,), durable=True)
    found = _blocks(_replayed(medium)[1].extents)
    assert found == LIVE - {12}  # its last record was overwritten: torn, as far as one can see


# -- crashes -------------------------------------------------------------------------------------------------


def _workload(journal: Journal, known: dict[str, set[int]]) -> None:
    """Fills both segments in turn, with appends of one and of several pages."""

    def append(segment: int, generation: int, start: int, count: int) -> None:
        extents = [(start + 2 * i, start + 2 * i + 1) for i in range(count)]
        known["in flight"] = _blocks(extents)
        journal.append(segment, generation, extents)
        known["durable"] |= known["in flight"]
        known[f"segment {segment}"] = known.get(f"segment {segment}", set()) | known["in flight"]
        known["in flight"] = set()

    def release(segment: int) -> None:
        gone = known.pop(f"segment {segment}", set())
        known["durable"] -= gone
        known["leaving"] = gone
        journal.release(segment)
        known["leaving"] = set()

    append(1, 1, 0, 1)
    append(1, 1, 100, EXTENTS_PER_RECORD + 10)
    append(0, 2, 2000, 3)
    release(1)
    append(1, 3, 3000, EXTENTS_PER_RECORD + 1)
    append(1, 3, 4500, 1)
    release(0)
    append(0, 4, 4600, 2)
    release(1)
    append(1, 5, 4700, 1)


def test_a_power_cut_at_every_step(every_outcome: Callable[..., int]) -> None:
    """A superset of the durable intents, and nothing but those, those in flight and those being released."""

    def attempt(step: int | None) -> tuple[SimMedium, dict[str, set[int]]]:
        medium = _medium()
        journal, _ = _replayed(medium)
        known: dict[str, set[int]] = {"durable": set(), "in flight": set(), "leaving": set()}
        medium.step, medium.cut_at_step = 0, step
        with contextlib.suppress(PowerCut):
            _workload(journal, known)
        return medium, known

    def judge(medium: SimMedium, known: dict[str, set[int]]) -> None:
        journal, replay = _replayed(medium)
        found = _blocks(replay.extents)
        assert known["durable"] <= found
        assert found <= known["durable"] | known["in flight"] | known["leaving"]
        for segment in (0, 1):  # and it goes on from there
            journal.release(segment)
            journal.append(segment, replay.generation_next + segment, [(segment, segment + 1)])
        assert _replayed(medium)[1].extents == (Extent(0, 2),)

    assert every_outcome(attempt, judge) > 400


class JournalMachine(RuleBasedStateMachine):
    """Appends, releases and crashes at random, against one set of blocks for each segment."""

    @initialize()
    def make(self) -> None:
        self.medium = _medium()
        self.journal, replay = _replayed(self.medium)
        self.generation = replay.generation_next
        self.live: list[set[int]] = [set(), set()]
        self.writable = [False, False]
        self.maybe: set[int] = set()  # what a torn append may have left

    @rule(
        segment=st.integers(0, 1),
        starts=st.lists(st.integers(0, BLOCKS - 10), min_size=1, max_size=5),
        length=st.integers(1, 9),
        tear=st.booleans(),
        rng=st.randoms(use_true_random=False),
    )
    def append(self, segment: int, starts: list[int], length: int, tear: bool, rng: random.Random) -> None:
        if not self.writable[segment]:
            if self.live[segment]:
                self.release(segment)
            self.journal.release(segment)
            self.journal.open_segment(segment, self.generation)
            self.generation += 1
            self.writable[segment] = True
        if self.journal.room(segment) == 0:
            return
        extents = [(start, start + length) for start in starts]
        if tear:
            self.medium.cut_at_step = self.medium.step
            with pytest.raises(PowerCut):
                self.journal.append(segment, self._generation_of(segment), extents)
            self.medium.cut_at_step = None
            self.maybe |= _blocks(extents)
            self.medium.power_cut(rng.randrange)
            self._reopen()
            return
        self.journal.append(segment, self._generation_of(segment), extents)
        self.live[segment] |= _blocks(extents)

    def _generation_of(self, segment: int) -> int:
        return self.journal._segments[segment].generation

    @precondition(lambda self: any(self.writable) or any(self.live))
    @rule(segment=st.integers(0, 1))
    def release(self, segment: int) -> None:
        self.journal.release(segment)
        self.live[segment] = set()
        self.writable[segment] = False

    @rule(rng=st.randoms(use_true_random=False))
    def power_cut(self, rng: random.Random) -> None:
        self.medium.power_cut(rng.randrange)
        self._reopen()

    @rule()
    def process_crash(self) -> None:
        self._reopen()

    def _reopen(self) -> None:
        self.journal, replay = _replayed(self.medium)
        self.generation = replay.generation_next
        self.writable = [False, False]
        found = _blocks(replay.extents)
        durable = self.live[0] | self.live[1]
        assert durable <= found <= durable | self.maybe
        if self.maybe:  # start from a clean slate: what was torn stays until it is released
            for segment in (0, 1):
                self.release(segment)
            self.maybe = set()

    @invariant()
    def a_reader_would_find_it(self) -> None:
        """Whatever has been appended is there without any further write."""
        if not hasattr(self, "medium"):
            return
        twin = SimMedium()
        twin.create("f", JOURNAL_AT + 2 * SEGMENT_BYTES)
        handle = twin.open("f")
        handle.write(0, (self.medium.content("f"),), durable=True)
        handle.close()
        found = _blocks(_replayed(twin)[1].extents)
        assert found == self.live[0] | self.live[1]


TestJournalMachine = JournalMachine.TestCase
TestJournalMachine.settings = settings(max_examples=40, stateful_step_count=25)
