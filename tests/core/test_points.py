"""Points of a pair: the same moment on both hosts, dropped on both, and never waited for without end."""

from __future__ import annotations

import errno
import random
from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.core.test_standing import in_sync_block

from pairsync.core.effects import Complete, DropPoints, Effect, MakePoint, Send
from pairsync.core.events import PointEvent
from pairsync.core.limits import VolumeOptions
from pairsync.core.messages import (
    KeepOnly,
    OpKind,
    PointMark,
    Remember,
    Remembered,
    Role,
    WriteOp,
)
from pairsync.core.points import PEER_WAIT_NS, POINTS_MAX, SourcePoints, TargetPoints
from pairsync.core.standing import Phase, Standing
from pairsync.core.units import BLOCK_BYTES, MIB, NS_PER_S
from pairsync.testing.manual import ManualPair

SIZE = MIB
MONDAY = PointMark("monday", 1, 10)
TUESDAY = PointMark("tuesday", 2, 20)


def data(block: int, letter: bytes = b"x") -> list[WriteOp]:
    return [WriteOp(OpKind.DATA, block * BLOCK_BYTES, BLOCK_BYTES, letter * BLOCK_BYTES)]


def in_sync(options: VolumeOptions | None = None) -> ManualPair:
    pair = ManualPair(SIZE, options)
    pair.a.start(Role.ACTIVE, 1)
    pair.b.start(Role.STANDBY, 1)
    pair.connect()
    pair.settle()
    assert pair.a.session.in_sync
    return pair


def ended(pair: ManualPair, owner: object) -> list[int] | None:
    (found,) = [each for each in pair.a.completed if each.ticket == owner]
    return None if found.errnos is None else list(found.errnos)


def test_both_hosts_remember_the_same_moment() -> None:
    pair = in_sync()
    pair.a.write("w1", data(1))
    pair.settle()
    pair.a.make_point("p", MONDAY)
    pair.a.write("w2", data(1, b"y"))
    pair.settle()
    assert ended(pair, "p") is None
    (mine,), (theirs,) = (list(host.metadata[0].points.items()) for host in (pair.a, pair.b))
    assert mine == theirs
    assert mine[1][BLOCK_BYTES] == ord("x")
    source = pair.a.session.sources[0].points
    assert source.marks == (MONDAY,)
    assert source.on_peer(1)
    assert PointEvent("vda", "monday", on_peer=True) in pair.a.events


@pytest.mark.parametrize("seed", range(20))
def test_the_same_moment_in_any_order_of_events(seed: int) -> None:
    pair, rng = in_sync(), random.Random(seed)
    for number in range(12):
        pair.a.write(f"w{number}", data(rng.randrange(4), bytes([65 + number])))
        if number in {3, 8}:
            pair.a.make_point(f"p{number}", PointMark(f"p{number}", number, number))
        for _ in range(rng.randrange(8)):
            choices = [(host, *lane) for host in (pair.a, pair.b) for lane in host.busy]
            if choices and rng.random() < 0.6:
                host, lane, volume = rng.choice(choices)
                host.complete(lane, volume)
            elif (sender := rng.choice([pair.a, pair.b])).outbox:
                pair.deliver(sender)
    pair.settle()
    assert pair.a.metadata[0].points == pair.b.metadata[0].points
    assert [mark.name for mark in pair.a.metadata[0].points] == ["p3", "p8"]


def test_alone_it_is_on_this_host_only_and_the_peer_drops_what_it_should_not_have() -> None:
    pair = in_sync()
    pair.a.make_point("p", MONDAY)
    pair.settle()
    pair.cut()
    pair.a.drop_point("d", "monday")
    pair.settle()
    pair.a.make_point("p2", MONDAY._replace(tag=3))  # another one of its name
    pair.settle()
    assert ended(pair, "p2") is ended(pair, "d") is None
    assert not pair.a.session.sources[0].points.on_peer(3)
    assert list(pair.b.metadata[0].points) == [MONDAY]
    pair.connect()
    pair.settle()
    assert list(pair.b.metadata[0].points) == []
    pair.a.make_point("p4", TUESDAY)
    pair.settle()
    assert list(pair.b.metadata[0].points) == [TUESDAY]
    assert set(pair.a.metadata[0].points) == {MONDAY._replace(tag=3), TUESDAY}


def test_what_both_have_is_known_in_the_next_session_too() -> None:
    pair = in_sync()
    pair.a.make_point("p", MONDAY)
    pair.settle()
    pair.crash(pair.a)
    pair.a.start(Role.ACTIVE, 1)
    pair.settle()
    assert not pair.a.session.sources[0].points.on_peer(1)
    pair.connect()
    pair.settle()
    assert pair.a.session.sources[0].points.on_peer(1)


def test_a_dropped_one_is_dropped_on_both() -> None:
    pair = in_sync()
    for mark in (MONDAY, TUESDAY):
        pair.a.make_point(mark.name, mark)
        pair.settle()
    pair.a.drop_point("d", "monday")
    pair.settle()
    assert ended(pair, "d") is None
    assert list(pair.a.metadata[0].points) == list(pair.b.metadata[0].points) == [TUESDAY]
    pair.a.drop_point("d2", "monday")
    assert ended(pair, "d2") == [errno.ENOENT]


def test_a_name_that_is_taken_and_one_too_many_are_refused() -> None:
    pair = in_sync()
    for number in range(POINTS_MAX):
        pair.a.make_point(number, PointMark(f"p{number}", number, number))
    pair.a.make_point("again", PointMark("p3", 99, 0))
    pair.a.make_point("more", PointMark("more", 100, 0))
    pair.settle()
    assert ended(pair, "again") == [errno.EEXIST]
    assert ended(pair, "more") == [errno.ENOSPC]
    assert len(pair.b.metadata[0].points) == POINTS_MAX


def complete_point(pair: ManualPair, host: str, error: int = 0) -> None:
    machine = pair.host(host)
    while not isinstance(machine.complete("disk", error=error), MakePoint):
        pass


def test_one_that_fails_here_is_dropped_there() -> None:
    pair = in_sync()
    pair.a.make_point("p", MONDAY)
    complete_point(pair, "a", errno.ENOSPC)
    pair.settle()
    assert ended(pair, "p") == [errno.ENOSPC]
    assert pair.a.session.sources[0].points.marks == ()
    assert not pair.a.metadata[0].points
    assert not pair.b.metadata[0].points


def test_one_that_fails_there_is_on_this_host_only() -> None:
    pair = in_sync()
    pair.a.make_point("p", MONDAY)
    pair.deliver(pair.a, len(pair.a.outbox))
    complete_point(pair, "b", errno.ENOSPC)
    pair.settle()
    assert ended(pair, "p") is None
    assert PointEvent("vda", "monday", on_peer=False) in pair.a.events
    assert pair.a.session.in_sync  # a backup's trouble is not the guest's


def test_a_peer_that_is_late_or_lost_is_not_waited_for() -> None:
    for loses in (False, True):
        pair = in_sync()
        pair.a.make_point("p", MONDAY)
        complete_point(pair, "a")
        assert not [each for each in pair.a.completed if each.ticket == "p"]
        if loses:
            pair.cut()
        else:
            source = pair.a.session.sources[0].points
            source.tick(pair.a.now_ns + PEER_WAIT_NS + NS_PER_S)
            pair.a.perform()
            pair.a.make_point("p2", TUESDAY)  # while the peer still owes an answer: it is not asked again
        assert ended(pair, "p") is None
        assert PointEvent("vda", "monday", on_peer=False) in pair.a.events
        pair.settle()
        if not loses:
            assert ended(pair, "p2") is None
            assert pair.a.session.sources[0].points.on_peer(1)  # it has said so, late
            assert not pair.a.session.sources[0].points.on_peer(2)
            assert pair.a.session.in_sync


def test_a_peer_without_digests_is_not_asked() -> None:
    pair = in_sync(VolumeOptions(digests=False))
    pair.a.make_point("p", MONDAY)
    pair.settle()
    sent = [m for effect in pair.a.trace if isinstance(effect, Send) for m in effect.messages]
    assert not any(isinstance(message, Remember) for message in sent)


def test_a_volume_that_fails_keeps_nobody_waiting() -> None:
    pair = in_sync()
    pair.a.make_point("p", MONDAY)
    pair.a.session.sources[0].abandon("enough", fatal=True)
    pair.a.perform()
    assert ended(pair, "p") == [errno.EIO]
    complete_point(pair, "a")  # late


def test_a_point_that_is_made_behind_an_order_to_drop_others_is_kept() -> None:
    """That order is performed behind it, for an earlier one is on its way; the active host counts on it."""
    pair = in_sync()
    for mark in (MONDAY, TUESDAY):
        pair.a.make_point(mark.name, mark)
        pair.settle()
    pair.a.drop_point("d1", "monday")
    pair.a.drop_point("d2", "tuesday")
    pair.a.make_point("p", PointMark("friday", 3, 30))
    pair.deliver(pair.a, len(pair.a.outbox))
    pair.settle()
    assert pair.a.session.sources[0].points.on_peer(3)
    assert [mark.name for mark in pair.b.metadata[0].points] == ["friday"]


def test_one_that_is_not_made_yet_cannot_be_dropped() -> None:
    """It was dropped for the caller, and kept on both disks."""
    pair = in_sync()
    pair.a.make_point("p", MONDAY)
    complete_point(pair, "a")
    pair.a.drop_point("d", "monday")
    pair.settle()
    assert (ended(pair, "p"), ended(pair, "d")) == (None, [errno.ENOENT])
    assert list(pair.a.metadata[0].points) == list(pair.b.metadata[0].points) == [MONDAY]


def test_a_name_is_free_once_its_point_is_dropped_for_certain() -> None:
    pair = in_sync()
    pair.a.make_point("p", MONDAY)
    pair.settle()
    pair.a.drop_point("d", "monday")
    pair.a.make_point("p2", MONDAY._replace(tag=3))
    assert ended(pair, "p2") == [errno.EEXIST]
    pair.a.complete("disk", error=errno.EIO)
    pair.settle()
    assert ended(pair, "d") == [errno.EIO]
    assert pair.a.session.sources[0].points.marks == (MONDAY,)


def test_one_that_could_not_be_dropped_is_not_dropped_with_another() -> None:
    pair = in_sync()
    for mark in (MONDAY, TUESDAY):
        pair.a.make_point(mark.name, mark)
        pair.settle()
    pair.a.drop_point("d1", "monday")
    pair.a.drop_point("d2", "tuesday")
    pair.a.complete("disk", error=errno.EIO)
    pair.settle()
    assert (ended(pair, "d1"), ended(pair, "d2")) == ([errno.EIO], None)
    assert pair.a.session.sources[0].points.marks == tuple(pair.a.metadata[0].points) == (MONDAY,)


def test_a_standby_does_not_introduce_itself_with_what_it_is_about_to_drop() -> None:
    out: list[Effect] = []
    target = TargetPoints(0, [MONDAY, TUESDAY], out)
    target.take(KeepOnly(1, 0, (TUESDAY.tag,)), begun=True)
    target.session_over()
    assert list(target.tags) == [TUESDAY.tag]
    (drop,) = out
    assert isinstance(drop, DropPoints)
    target.dropped(drop.token, errno.EIO)
    assert list(target.tags) == [MONDAY.tag, TUESDAY.tag]


def test_an_answer_that_nobody_waits_for_is_no_trouble() -> None:
    pair = in_sync()
    pair.a.session.received([Remembered(0, 77)], 0)
    pair.a.perform()
    assert pair.a.session.in_sync


def test_a_standby_refuses_two_at_once_and_one_without_a_plan() -> None:
    pair = in_sync()
    for number in (1, 2):
        pair.b.session.received([Remember(1, 0, PointMark(f"p{number}", number, 0))], 0)
    pair.b.perform()
    assert pair.b.session.refusal is not None
    assert "before the last one" in pair.b.session.refusal


# -- the two halves, in any order ----------------------------------------------------------------------------

NAMES = ["monday", "tuesday", "friday"]


class Side:
    """One host: what it wants, its data lane, and its disk; a write is its number, and what the disk holds is
    the last one."""

    def __init__(self) -> None:
        self.out: list[Effect] = []
        self.lane: deque[int | MakePoint | DropPoints] = deque()
        self.outbox: deque[object] = deque()
        self.holds = 0
        self.points: dict[PointMark, int] = {}  # with what the disk held

    @property
    def tags(self) -> set[int]:
        return {mark.tag for mark in self.points}

    def perform(self) -> list[Effect]:
        """File the effects; what is for the guest is returned."""
        rest: list[Effect] = []
        for effect in self.out:
            if isinstance(effect, MakePoint | DropPoints):
                self.lane.append(effect)
            elif isinstance(effect, Send):
                self.outbox.extend(effect.messages)
            else:
                rest.append(effect)
        self.out.clear()
        return rest

    def next_in_lane(self, *, fails: bool) -> MakePoint | DropPoints | None:
        job = self.lane.popleft()
        if isinstance(job, int):
            self.holds = job
            return None
        if isinstance(job, DropPoints) and not fails:
            self.points = {mark: held for mark, held in self.points.items() if mark.tag in job.keep}
        elif isinstance(job, MakePoint) and not fails:
            self.points = {mark: held for mark, held in self.points.items() if mark.name != job.mark.name}
            self.points[job.mark] = self.holds
        return job


class PointsMachine(RuleBasedStateMachine):
    """Points are made and dropped while all else happens: what both hosts have is the same moment, what the
    peer is said to have it has, and once all has ended there are as many as were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Side(), Side()
        block = in_sync_block(SIZE)
        self.standing = Standing(0, block, lambda: 2, self.a.out)
        self.source = SourcePoints(0, self.standing, self.a.out)
        self.source.found([MONDAY, TUESDAY])
        self.target = TargetPoints(0, [MONDAY, TUESDAY], self.b.out)
        self.a.points = {MONDAY: 0, TUESDAY: 0}
        self.b.points = {MONDAY: 0, TUESDAY: 0}
        self.now_ns = 0
        self.written = 0
        self.tag = TUESDAY.tag
        self.linked = False
        self.has_kept_more = False  # the peer may have what it is told to drop in the next session
        self.open: dict[object, PointMark | str] = {}  # requests that have not ended
        self.there = {"monday", "tuesday"}  # as the guest has heard

    @initialize(linked=st.booleans())
    def begin(self, linked: bool) -> None:
        if linked:
            self._connect()
            self.a_message_arrives_here()
            self._bring_up_to_date()

    def _perform(self) -> None:
        for effect in self.a.perform():
            if isinstance(effect, Complete):
                asked = self.open.pop(effect.ticket)
                if effect.errnos is None:
                    change = self.there.discard if isinstance(asked, str) else self.there.add
                    change(asked if isinstance(asked, str) else asked.name)
        self.b.perform()
        if not self.linked:
            self.a.outbox.clear()
            self.b.outbox.clear()

    # ------------------------------------------------------------------ the guest

    @rule()
    def write(self) -> None:
        self.written += 1
        self.a.lane.append(self.written)
        self.a.outbox.append(self.written)
        self._perform()

    @rule(names=st.sets(st.sampled_from(NAMES)))
    def drop(self, names: set[str]) -> None:
        for name in sorted(names):
            self.tag += 1
            self.open[self.tag] = name
            self.source.drop(self.tag, name)
        self._perform()

    @rule(name=st.sampled_from(NAMES), instead_of=st.sets(st.sampled_from(NAMES)), has_all=st.booleans())
    def make(self, name: str, instead_of: set[str], has_all: bool) -> None:
        self.drop(instead_of)
        self.tag += 1
        mark = PointMark(name, self.tag, self.tag)
        self.open[self.tag] = mark
        self.source.make(self.tag, mark)
        self._go_on(has_all=has_all)

    def _go_on(self, *, has_all: bool) -> None:
        self.source.advance(self.now_ns, peer_has_all=has_all)
        self._perform()

    @rule()
    def much_time_passes(self) -> None:
        self.now_ns += PEER_WAIT_NS + 1
        self.source.tick(self.now_ns)
        self._perform()

    # ------------------------------------------------------------------ disks and messages

    @precondition(lambda self: bool(self.a.lane))
    @rule(fails=st.sampled_from([False] * 4 + [True]))
    def this_disk_does_something(self, fails: bool) -> None:
        job, error = self.a.next_in_lane(fails=fails), errno.EIO if fails else 0
        if isinstance(job, MakePoint):
            self.source.made(job.token, error)
        elif job is not None:
            self.source.dropped(job.token, error)
        self._go_on(has_all=True)

    @precondition(lambda self: bool(self.b.lane))
    @rule(fails=st.sampled_from([False] * 4 + [True]))
    def its_disk_does_something(self, fails: bool) -> None:
        job, error = self.b.next_in_lane(fails=fails), errno.EIO if fails else 0
        if isinstance(job, MakePoint):
            self.target.made(job.token, error)
        elif job is not None:
            self.target.dropped(job.token, error)
            self.has_kept_more |= fails
        self._perform()

    @precondition(lambda self: bool(self.a.outbox))
    @rule(most=st.integers(1, 5))
    def messages_arrive_there(self, most: int) -> None:
        for _ in range(min(most, len(self.a.outbox))):
            message = self.a.outbox.popleft()
            if isinstance(message, int):
                self.b.lane.append(message)
            else:
                assert isinstance(message, Remember | KeepOnly)
                self.target.take(message, begun=True)
            self._perform()

    @precondition(lambda self: bool(self.b.outbox))
    @rule()
    def a_message_arrives_here(self) -> None:
        message = self.b.outbox.popleft()
        if isinstance(message, tuple):  # it introduces itself
            self.standing.prepare()
            self.source.begin_session(message, peer_keeps=True)
        else:
            assert isinstance(message, Remembered)
            self.source.peer_made(message)
        self._go_on(has_all=True)

    # ------------------------------------------------------------------ sessions

    @rule()
    def the_link_changes(self) -> None:
        if self.standing.phase is Phase.PREPARING:
            self._bring_up_to_date()
        elif not self.linked:
            self._connect()
        else:
            self._lose()

    def _connect(self) -> None:
        self.linked, self.has_kept_more = True, bool(self.b.lane)
        self.b.outbox.append(self.target.tags)

    def _bring_up_to_date(self) -> None:
        self.a.outbox.append(self.written)
        self.standing.begun()
        self.standing.adopt()
        assert self.standing.adopted(self.standing.newest)
        assert self.standing.phase is Phase.IN_SYNC
        self._go_on(has_all=True)

    def _lose(self) -> None:
        self.linked = False
        self.source.peer_lost()
        if self.standing.phase is not Phase.ABSENT:
            self.standing.leave(Phase.ABSENT, at_once=False)
        self.target.session_over()
        self._go_on(has_all=True)

    # ------------------------------------------------------------------ what must hold

    @invariant()
    def both_have_the_same_moment(self) -> None:
        for mark in self.a.points.keys() & self.b.points.keys():
            assert self.a.points[mark] == self.b.points[mark], mark
        assert {tag for tag in self.source.tags if self.source.on_peer(tag)} <= self.b.tags

    def teardown(self) -> None:
        self._go_on(has_all=True)
        while self.a.lane or self.b.lane or self.a.outbox or self.b.outbox or not self.linked:
            if not self.linked:
                self._connect()
            if self.a.lane:
                self.this_disk_does_something(fails=False)
            if self.b.lane:
                self.its_disk_does_something(fails=False)
            if self.a.outbox:
                self.messages_arrive_there(most=1)
            if self.b.outbox:
                self.a_message_arrives_here()
            self._go_on(has_all=True)
            self.both_have_the_same_moment()
        assert not self.open
        assert self.a.tags == set(self.source.tags)
        assert {mark.name for mark in self.a.points} == self.there
        assert len(self.a.points) == len(self.there)
        assert self.b.tags == set(self.target.tags)
        assert self.has_kept_more or self.b.tags <= self.a.tags


TestPointsMachine = PointsMachine.TestCase
TestPointsMachine.settings = settings(stateful_step_count=50)
