"""A volume that grows while it is used: in which order, who hears of it, and what is cut off in between.

Every interleaving is in ``test_session_machine.py``, every crash in the simulators.
"""

from __future__ import annotations

import errno
import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.core.test_standing import in_sync_block

from pairsync.core.copier import Copier
from pairsync.core.dirty import DirtyMap
from pairsync.core.effects import Complete, Effect, Extend, Persist, Send
from pairsync.core.events import DifferenceEvent, GrowFailedEvent, GrownEvent, ScrubFindingEvent
from pairsync.core.fetcher import Fetcher
from pairsync.core.growth import Growth
from pairsync.core.limits import VolumeOptions
from pairsync.core.messages import Grow, Grown, OpKind, Role, WriteOp
from pairsync.core.questions import Questions
from pairsync.core.resync import Pacer
from pairsync.core.scrubber import Scrubber
from pairsync.core.session import HOLD_OFF_NS_MAX, SessionPhase
from pairsync.core.standing import Phase, Standing
from pairsync.core.tracker import Tracker
from pairsync.core.units import BLOCK_BYTES, MIB, NS_PER_S
from pairsync.errors import InternalError
from pairsync.testing.manual import ManualHost, ManualPair

BLOCKS = 16
SIZE = BLOCKS * BLOCK_BYTES
LARGER = SIZE + 5 * BLOCK_BYTES


def made(size_bytes: int = SIZE) -> ManualPair:
    pair = ManualPair(size_bytes, VolumeOptions(scrub_interval_ns=0))
    pair.a.start(Role.ACTIVE, 1)
    pair.b.start(Role.STANDBY, 1)
    pair.settle()
    return pair


def synced(size_bytes: int = SIZE) -> ManualPair:
    pair = made(size_bytes)
    pair.connect()
    pair.settle()
    assert pair.a.session.in_sync
    return pair


def written(block: int, fill: int = 1) -> list[WriteOp]:
    return [WriteOp(OpKind.DATA, block * BLOCK_BYTES, BLOCK_BYTES, bytes([fill]) * BLOCK_BYTES)]


def ended(pair: ManualPair) -> dict[object, object]:
    return {end.ticket: end.errnos for end in pair.a.completed}


def sizes(pair: ManualPair) -> tuple[int, int]:
    """As recorded."""
    return tuple(host.metadata[0].superblock.size_bytes for host in (pair.a, pair.b))  # type: ignore[return-value]


def served(pair: ManualPair) -> int:
    return pair.a.session.sources[0].growth.size_bytes


def whole(pair: ManualPair, size_bytes: int = LARGER) -> None:
    """Both have that size, are equal and in sync."""
    assert pair.a.session.in_sync
    assert pair.b.session.in_sync
    assert sizes(pair) == (size_bytes, size_bytes)
    assert served(pair) == size_bytes
    assert [len(host.disks[0].content) for host in (pair.a, pair.b)] == [size_bytes, size_bytes]
    assert pair.differing() == []


def told(host: ManualHost, kind: type[object]) -> list[object]:
    return [event for event in host.events if isinstance(event, kind)]


def until(pair: ManualPair, kind: type[Effect], host: ManualHost, lane: str) -> None:
    """Let things happen until that host is about to do that."""
    while not any(isinstance(each, kind) for each in host.waiting(lane)):
        assert pair.step()


# -- in sync -------------------------------------------------------------------------------------------------


def test_both_grow_in_the_middle_of_writes_and_nothing_is_copied() -> None:
    pair = synced()
    pair.a.write("before", written(BLOCKS - 1))
    pair.a.grow("g", LARGER)
    pair.a.write("meanwhile", written(2))
    pair.settle()
    assert ended(pair) == {"before": None, "g": None, "meanwhile": None}
    whole(pair)
    assert told(pair.a, GrownEvent) == [GrownEvent("vda", LARGER, SIZE)] == told(pair.b, GrownEvent)
    assert pair.a.session.sources[0].tracker.todo.count == 0
    pair.a.write("tail", written(BLOCKS + 4))
    pair.a.flush("f")
    pair.settle()
    whole(pair)
    assert pair.a.disks[0].content[-1] == 1


def test_the_peer_records_first_then_this_host_and_then_it_is_served() -> None:
    pair = synced()
    pair.a.grow("g", LARGER)
    assert sizes(pair) == (SIZE, SIZE)
    until(pair, Persist, pair.b, "meta")
    assert (sizes(pair), served(pair)) == ((SIZE, SIZE), SIZE)
    until(pair, Persist, pair.a, "meta")
    assert (sizes(pair), served(pair)) == ((SIZE, LARGER), SIZE)
    assert ended(pair) == {}
    pair.a.complete("meta")
    assert (sizes(pair), served(pair)) == ((LARGER, LARGER), LARGER)
    assert ended(pair) == {"g": None}


def test_a_size_that_it_has_is_no_growth() -> None:
    pair = synced()
    pair.a.grow("same", SIZE)
    assert ended(pair) == {"same": None}
    assert not pair.a.busy


def test_several_who_ask_get_what_they_asked_for() -> None:
    pair = synced()
    pair.a.grow("small", SIZE + BLOCK_BYTES)
    pair.a.grow("large", LARGER)
    pair.a.grow("middle", SIZE + 2 * BLOCK_BYTES)
    pair.settle()
    assert ended(pair) == {"small": None, "large": None, "middle": None}
    whole(pair)
    assert [event.size_bytes for event in told(pair.a, GrownEvent)] == [SIZE + BLOCK_BYTES, LARGER]  # type: ignore[attr-defined]


def test_a_partial_last_block_becomes_another_block_and_no_false_alarm() -> None:
    pair = synced(SIZE - 512)
    pair.a.write("w", [WriteOp(OpKind.DATA, SIZE - 1024, 512, b"x" * 512)])
    pair.a.session.sources[0].scrubber.start("s", repair=False, now_ns=0)
    pair.a.grow("g", SIZE + 512)
    pair.settle()
    assert ended(pair) == {"w": None, "s": None, "g": None}
    pair.cut()
    pair.connect()
    pair.settle()
    whole(pair, SIZE + 512)
    assert not told(pair.a, DifferenceEvent)
    assert not told(pair.a, ScrubFindingEvent)


def test_it_waits_while_digests_are_asked_for_and_asks_for_none_meanwhile() -> None:
    pair = synced(SIZE - 512)
    source = pair.a.session.sources[0]
    source.scrubber.start("s", repair=False, now_ns=0)
    source.advance(0)
    pair.a.perform()
    assert source.copier.questions.count == 1
    pair.a.grow("g", LARGER)
    until(pair, Persist, pair.b, "meta")
    assert source.copier.questions.count == 0  # first the scrub had its answer
    source.scrubber.start("t", repair=False, now_ns=0)
    source.advance(0)
    assert source.copier.questions.count == 0
    pair.settle()
    assert ended(pair) == {"s": None, "g": None, "t": None}
    assert source.scrubber.report is not None
    assert source.scrubber.report.total_bytes == LARGER
    whole(pair)


# -- without a peer ------------------------------------------------------------------------------------------


def test_alone_it_grows_and_the_peer_follows_when_it_is_back() -> None:
    pair = made()
    pair.a.grow("g", LARGER)
    pair.settle()
    assert ended(pair) == {"g": None}
    assert (sizes(pair), served(pair)) == ((LARGER, SIZE), LARGER)
    pair.a.write("tail", written(BLOCKS + 4))
    pair.settle()
    pair.connect()
    pair.settle()
    assert "standby-smaller" in (pair.b.session.refusal or "")
    pair.tick(HOLD_OFF_NS_MAX)
    pair.connect()
    pair.settle()
    whole(pair)


def test_a_growth_without_a_peer_that_was_in_sync_needs_a_generation_of_its_own() -> None:
    pair = synced()
    generation = pair.a.session.sources[0].standing.newest
    pair.cut()
    pair.a.grow("g", LARGER)
    pair.settle()
    assert pair.a.session.sources[0].standing.newest != generation
    assert not pair.a.metadata[0].superblock.peer_in_sync
    assert ended(pair) == {"g": None}


def test_the_peer_is_lost_while_it_is_asked() -> None:
    pair = synced()
    pair.a.grow("g", LARGER)
    until(pair, Extend, pair.b, "disk")
    pair.cut()
    pair.settle()
    assert ended(pair) == {"g": None}
    assert not pair.a.metadata[0].superblock.peer_in_sync
    assert sizes(pair) == (LARGER, SIZE)  # room was made there, for a session that is over
    pair.connect()
    pair.settle()
    pair.tick(HOLD_OFF_NS_MAX)
    pair.connect()
    pair.settle()
    whole(pair)


def test_what_was_introduced_does_not_change_before_there_is_a_plan() -> None:
    pair = made()
    pair.a.grow("g", LARGER)
    pair.connect()
    pair.a.complete("disk")  # there is room: now it could be recorded
    assert not pair.a.busy
    pair.settle()
    assert ended(pair) == {"g": None}
    whole(pair)


# -- cut off -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("who", ["a", "b"])
def test_a_host_dies_at_any_moment_of_a_growth(who: str, *, power: bool) -> None:
    steps = 0
    while True:
        pair = synced()
        pair.a.write("w", written(BLOCKS - 1, 7))
        pair.settle()
        pair.a.grow("g", LARGER)
        for _ in range(steps):
            if not pair.step():
                break
        done = "g" in ended(pair)
        pair.crash(pair.host(who), power=power)
        pair.settle()
        pair.host(who).start(Role.ACTIVE if who == "a" else Role.STANDBY, 1)
        grown = done or max(sizes(pair)) == LARGER or who == "b"
        for _ in range(3):
            pair.settle()
            pair.tick(HOLD_OFF_NS_MAX)
            if not pair.linked:
                pair.connect()
        pair.settle()
        whole(pair, LARGER if grown else SIZE)
        if done:
            break
        steps += 1
    assert steps > 5


def test_the_active_was_cut_off_before_it_recorded_what_the_peer_has() -> None:
    pair = synced()
    pair.a.grow("g", LARGER)
    until(pair, Persist, pair.a, "meta")
    pair.crash(pair.a)
    pair.a.start(Role.ACTIVE, 1)
    pair.settle()
    assert (sizes(pair), served(pair)) == ((SIZE, LARGER), SIZE)
    generation = pair.a.session.sources[0].standing.newest
    pair.connect()
    pair.settle()
    assert "active-smaller" in (pair.a.session.refusal or "")
    assert sizes(pair) == (LARGER, LARGER)
    assert pair.a.session.sources[0].standing.newest == generation  # the peer has it: nothing is done alone
    pair.tick(HOLD_OFF_NS_MAX)
    pair.connect()
    pair.settle()
    whole(pair)


# -- no room -------------------------------------------------------------------------------------------------


def test_without_room_here_nothing_has_changed() -> None:
    pair = synced()
    pair.a.grow("g", LARGER)
    pair.a.complete("disk", error=errno.ENOSPC)
    pair.settle()
    assert ended(pair) == {"g": [errno.ENOSPC]}
    whole(pair, SIZE)
    assert told(pair.a, GrowFailedEvent) == [GrowFailedEvent("vda", LARGER, "here", "ENOSPC")]
    pair.a.grow("again", LARGER)
    pair.settle()
    whole(pair)


def test_without_room_on_the_peer_nothing_has_changed() -> None:
    pair = synced()
    pair.a.grow("g", LARGER)
    until(pair, Extend, pair.b, "disk")
    pair.b.complete("disk", error=errno.ENOSPC)
    pair.settle()
    assert ended(pair) == {"g": [errno.ENOSPC]}
    whole(pair, SIZE)
    assert told(pair.a, GrowFailedEvent) == [GrowFailedEvent("vda", LARGER, "peer", "ENOSPC")]
    assert told(pair.b, GrowFailedEvent) == [GrowFailedEvent("vda", LARGER, "here", "ENOSPC")]


@pytest.mark.parametrize("behind", ["a", "b"])
def test_who_cannot_catch_up_says_so_and_tries_again_ever_more_seldom(behind: str) -> None:
    pair = synced()
    pair.a.grow("g", LARGER)
    if behind == "a":
        until(pair, Persist, pair.a, "meta")
        pair.crash(pair.a)
        pair.a.start(Role.ACTIVE, 1)
    else:
        pair.cut()
    pair.settle()
    host = pair.host(behind)
    attempts: list[int] = []
    for second in range(20):
        if not pair.linked:
            pair.connect()
        while True:
            if any(isinstance(each, Extend) for each in host.waiting("disk")):
                host.complete("disk", error=errno.ENOSPC)
                attempts.append(second)
            elif not pair.step():
                break
        pair.tick(NS_PER_S)
    assert 3 <= len(attempts) <= 6
    assert attempts[-1] - attempts[-2] >= 4
    assert len(told(host, GrowFailedEvent)) == len(attempts)
    for _ in range(3):
        pair.tick(HOLD_OFF_NS_MAX)
        if not pair.linked:
            pair.connect()
        pair.settle()
    whole(pair)


# -- ends ----------------------------------------------------------------------------------------------------


def test_a_volume_that_is_closed_does_not_grow_any_more() -> None:
    pair = synced()
    pair.a.grow("g", LARGER)
    pair.a.close("c")
    pair.settle()
    assert ended(pair) == {"g": [errno.EIO], "c": None}
    pair.a.grow("late", LARGER)
    assert ended(pair)["late"] == [errno.EIO]
    assert sizes(pair) == (SIZE, SIZE)


def test_a_growth_that_is_being_recorded_ends_before_the_volume_is_closed() -> None:
    pair = synced()
    pair.a.grow("g", LARGER)
    until(pair, Persist, pair.a, "meta")
    pair.a.close("c")
    pair.settle()
    assert ended(pair) == {"g": None, "c": None}
    assert sizes(pair) == (LARGER, LARGER)


def test_a_volume_that_fails_does_not_grow() -> None:
    pair = made()
    pair.a.grow("g", LARGER)
    pair.a.complete("disk")
    pair.a.complete("meta", error=errno.EIO)
    assert ended(pair) == {"g": [errno.EIO]}
    pair.a.grow("late", LARGER)
    assert ended(pair)["late"] == [errno.EIO]


# -- a peer that breaks the rules ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [SIZE, LARGER, LARGER + 1])
def test_an_answer_that_was_not_asked_for_ends_the_session(size: int) -> None:
    pair = synced()
    pair.a.session.received([Grown(0, size)], pair.now_ns)
    assert pair.a.session.phase is SessionPhase.LEAVING
    assert "unasked" in (pair.a.session.refusal or "")
    assert served(pair) == SIZE


def test_a_peer_that_does_not_answer_is_left_and_the_growth_goes_on() -> None:
    pair = synced()
    pair.a.grow("g", LARGER)
    until(pair, Extend, pair.b, "disk")
    pair.tick(pair.a.options.peer_deadline_ns + NS_PER_S)
    while pair.a.drop is None:
        assert pair.step()
    pair.cut(pair.a.drop.reason)
    assert pair.a.session.sources[0].standing.phase is Phase.ABSENT
    while "g" not in ended(pair):
        pair.a.complete(*pair.a.busy[0])
    assert served(pair) == LARGER


def test_reports_that_nobody_waits_for_are_our_own_bug() -> None:
    pair = synced()
    assert isinstance(pair.a.session.sources[0].growth, Growth)
    with pytest.raises(InternalError):
        pair.a.session.extended(0, None, LARGER, 0, 0)
    assert [each for each in pair.a.session.take() if isinstance(each, Complete)] == []


# -- in any order --------------------------------------------------------------------------------------------

SIZES = [SIZE + extra for extra in (1, BLOCK_BYTES // 2, BLOCK_BYTES, 5 * BLOCK_BYTES, 9 * BLOCK_BYTES)]


class GrowthMachine(RuleBasedStateMachine):
    """Answers come in any order, or never, and the peer comes and goes.  What is served only grows, is
    recorded wherever it counts, and every request ends once."""

    def __init__(self) -> None:
        super().__init__()
        self.out: list[Effect] = []
        block = in_sync_block(SIZE)
        tags = itertools.count(2)
        self.standing = Standing(0, block, lambda: next(tags), self.out)
        self.tracker = Tracker(BLOCKS, DirtyMap(BLOCKS), window_bytes=MIB)
        questions, fetcher = Questions(0, self.standing, self.out), Fetcher(0, self.standing, self.out)
        pacer, nothing = Pacer(NS_PER_S, MIB), lambda _: None
        copier = Copier(0, SIZE, self.tracker, self.standing, questions, fetcher, pacer, self.out)
        scrubber = Scrubber(
            0, self.tracker, self.standing, questions, fetcher, pacer, nothing, nothing, self.out
        )
        self.growth = Growth(0, SIZE, self.tracker, self.standing, copier, scrubber, self.out)
        self.served = self.room = self.theirs = (
            SIZE  # what is served; room in the files here; what the peer has
        )
        self.shown: int | None = None  # the peer was told that size, and there is no plan yet
        self.extends: list[Extend] = []
        self.persists: list[Persist] = []
        self.asked_peer: list[int] = []
        self.open: dict[int, int] = {}  # requests that have not ended, by number
        self.number = 0

    def _perform(self) -> None:
        self.growth.advance(0)
        for effect in self.out:
            if isinstance(effect, Extend):
                self.extends.append(effect)
            elif isinstance(effect, Persist):
                self.persists.append(effect)
            elif isinstance(effect, Send):
                self.asked_peer += [each.size_bytes for each in effect.messages if isinstance(each, Grow)]
            elif isinstance(effect, Complete):
                assert isinstance(effect.ticket, int)
                size_bytes = self.open.pop(effect.ticket)
                assert effect.errnos is not None or size_bytes <= self.growth.size_bytes
        self.out.clear()
        assert len(self.extends) <= 1
        assert len(self.asked_peer) <= 1
        assert (self.growth.waiting_since_ns is None) == (not self.asked_peer)

    @rule(size_bytes=st.sampled_from([SIZE, *SIZES]))
    def ask(self, size_bytes: int) -> None:
        self.number += 1
        self.open[self.number] = size_bytes
        self.growth.ask(self.number, size_bytes)
        self._perform()

    # ------------------------------------------------------------------ answers

    @precondition(lambda self: bool(self.extends))
    @rule(fails=st.booleans())
    def room_is_made(self, fails: bool) -> None:
        extend = self.extends.pop()
        self.room = self.room if fails else max(self.room, extend.size_bytes)
        self.growth.extended(errno.ENOSPC if fails else 0)
        self._perform()
        assert not (fails and (self.open or self.extends)), "it is given up"

    @precondition(lambda self: bool(self.persists))
    @rule()
    def it_is_recorded(self) -> None:
        persist = self.persists.pop(0)
        assert persist.superblock.size_bytes <= self.room
        self.standing.persisted(persist.token)
        self.growth.persisted()
        self._perform()

    @precondition(lambda self: bool(self.asked_peer))
    @rule(fails=st.booleans())
    def the_peer_answers(self, fails: bool) -> None:
        size_bytes = self.asked_peer.pop()
        self.theirs = self.theirs if fails else size_bytes
        self.growth.answered(Grown(0, size_bytes, errno.ENOSPC if fails else 0))
        self._perform()
        assert not (fails and (self.open or self.extends)), "it is given up"

    # ------------------------------------------------------------------ sessions

    @precondition(lambda self: self.standing.phase is Phase.ABSENT and self.shown is None)
    @rule()
    def the_hosts_introduce_themselves(self) -> None:
        if not self.growth.catching_up:
            self.shown = self.standing.superblock.size_bytes
            self.growth.introduced = True

    @precondition(lambda self: self.shown is not None)
    @rule()
    def they_agree_or_one_grows_first(self) -> None:
        assert self.shown == self.standing.superblock.size_bytes
        shown, self.shown = self.shown, None
        if shown < self.theirs:
            self.growth.catch_up(self.theirs)
        else:
            self.theirs = shown
            self.growth.introduced = False
            self.standing.prepare()
            self.standing.begun()
            self.standing.adopt()
            self.standing.adopted(self.standing.newest)
        self._perform()

    @precondition(lambda self: self.standing.phase is not Phase.ABSENT or self.shown is not None)
    @rule(recorded=st.booleans())
    def the_peer_is_lost(self, recorded: bool) -> None:
        """It may have recorded what it was asked for."""
        if self.asked_peer and recorded:
            self.theirs = self.asked_peer[0]
        self.asked_peer.clear()
        self.shown = None
        if self.standing.phase is not Phase.ABSENT:
            self.standing.leave(Phase.ABSENT, at_once=False)
        self.growth.peer_lost()
        self._perform()

    # ------------------------------------------------------------------ what must hold

    @invariant()
    def what_is_served_is_recorded_where_it_counts(self) -> None:
        served, self.served = self.served, self.growth.size_bytes
        assert served <= self.served == self.standing.durable_size_bytes <= self.room
        counts = not self.standing.may_acknowledge_alone
        assert self.served <= self.theirs or not counts
        assert self.tracker.block_count == -(-self.served // BLOCK_BYTES)
        assert not self.tracker.todo, "what is added is the same on both hosts"

    def teardown(self) -> None:
        """It ends, whoever is there."""
        if self.shown is not None:
            self.they_agree_or_one_grows_first()
        for _ in range(20):
            self._perform()
            if self.extends:
                self.room_is_made(fails=False)
            if self.persists:
                self.it_is_recorded()
            if self.asked_peer:
                self.the_peer_answers(fails=False)
            self.what_is_served_is_recorded_where_it_counts()
        assert not self.open
        assert self.growth.idle


TestGrowthMachine = GrowthMachine.TestCase
TestGrowthMachine.settings = settings(stateful_step_count=40)
