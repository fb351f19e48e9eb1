"""Points of a pair: the same moment on both hosts, dropped on both, and never waited for without end."""

from __future__ import annotations

import errno
import random

import pytest

from pairsync.core.effects import MakePoint, Send
from pairsync.core.events import PointEvent
from pairsync.core.limits import VolumeOptions
from pairsync.core.messages import OpKind, PointMark, Remember, Remembered, Role, WriteOp
from pairsync.core.points import PEER_WAIT_NS, POINTS_MAX
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
