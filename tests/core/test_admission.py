"""Which batch is taken in, which waits, which gathers."""

from __future__ import annotations

from typing import Any

import pytest

from pairsync.core.admission import Admission
from pairsync.core.dirty import DirtyMap
from pairsync.core.limits import VolumeOptions
from pairsync.core.messages import OpKind, WriteOp
from pairsync.core.tracker import Tracker
from pairsync.core.units import MIB, NS_PER_S
from pairsync.core.window import FRAME_OPS_MAX, GATHER_DATA_BYTES_MAX, OPS_MAX, Ticket, Window

BLOCKS = 1 << 16


class World:
    """An admission with all that it looks at."""

    def __init__(self, **options: Any) -> None:
        self.options = VolumeOptions(**options)
        self.tracker = Tracker(BLOCKS, DirtyMap(BLOCKS), window_bytes=self.options.intent_window_bytes)
        self.window = Window(0)
        self.admission = Admission(self.tracker, self.window, self.options)
        self.admission.opened = True

    def send(self, length: int, now_ns: int = 0) -> None:
        """Data on its way to the peer, as a resync's (it never crowds)."""
        for at in range(0, length, MIB):
            self.window.send([WriteOp(OpKind.DATA, at, MIB, bytes(MIB))], None, 1, now_ns)

    def push(self, length: int = 4096) -> Ticket:
        ticket = Ticket("waiting", [WriteOp(OpKind.DATA, 0, length, bytes(length))], 0)
        self.admission.waiting.push(ticket)
        return ticket


def test_nothing_is_taken_in_before_the_volume_is_open() -> None:
    world = World()
    world.admission.opened = False
    assert not world.admission.at_once(0)
    assert not world.admission.welcome(0)
    ticket = world.push()
    assert world.admission.next(0) is None
    world.admission.opened = True
    assert world.admission.next(0) is ticket


def test_a_batch_does_not_overtake_those_that_wait() -> None:
    world = World()
    assert world.admission.at_once(0)
    first = world.push()
    assert not world.admission.at_once(0)
    assert world.admission.next(0) is first
    assert world.admission.at_once(0)


def test_there_are_bounds_on_batches_and_on_data_in_flight() -> None:
    world = World(tickets_max=3, inflight_bytes=2 * MIB)
    assert world.admission.at_once(2)
    assert not world.admission.at_once(3)
    world.send(MIB)
    assert world.admission.welcome(0)
    world.send(MIB)
    assert not world.admission.welcome(0)


@pytest.mark.parametrize("level", ["sync", "async"])
def test_what_waits_for_its_intents_is_in_flight_already(level: str) -> None:
    world = World(level=level, inflight_bytes=2 * MIB, lag_bytes=2 * MIB)
    ops = [WriteOp(OpKind.DATA, 0, MIB, bytes(MIB))]
    world.admission.recording(ops)
    assert world.admission.welcome(0)
    world.admission.recording(ops)
    assert not world.admission.welcome(0)
    world.admission.recorded(ops)
    assert world.admission.welcome(0)
    world.send(MIB)
    assert not world.admission.welcome(0)


@pytest.mark.parametrize(("at_bound", "waits"), [("throttle", True), ("fall-behind", False)])
def test_ops_without_data_are_bounded_with_those_that_wait_for_their_intents(
    at_bound: str, waits: bool
) -> None:
    world = World(level="async", at_bound=at_bound)
    ops = [WriteOp(OpKind.TRIM, 0, 4096)] * FRAME_OPS_MAX
    for _ in range(OPS_MAX // FRAME_OPS_MAX // 2):
        world.window.send(ops, None, 1, 0)
        assert world.admission.welcome(0)
        world.admission.recording(ops)
    assert world.admission.welcome(0) is not waits
    assert not world.admission.too_much, "what was sent is within the bound"
    world.admission.recorded(ops)
    assert world.admission.welcome(0)


def test_the_volumes_of_a_guest_share_the_ops_in_flight() -> None:
    together: list[Window] = []
    first, second = Window(0, together), Window(1, together)
    ops = [WriteOp(OpKind.TRIM, 0, 4096)] * FRAME_OPS_MAX
    while not first.full():
        first.send(ops, None, 1, 0)
    assert first.op_count == OPS_MAX // 2
    assert not second.full()
    assert second.full(OPS_MAX // 2)
    list(first.applied(1, 0))
    assert not first.full()
    first.reset()
    assert first.op_count == 0


def test_who_waits_is_bounded_too() -> None:
    world = World(inflight_bytes=MIB)
    world.push(MIB)
    assert not world.admission.welcome(0)


def test_while_an_intent_is_recorded_small_batches_gather_and_large_ones_go_on() -> None:
    world = World()
    world.admission.recording([])
    assert not world.admission.at_once(0)
    assert world.admission.welcome(0), "nobody is asked to wait"
    world.push()
    assert world.admission.next(0) is None
    world.push(GATHER_DATA_BYTES_MAX)
    assert world.admission.next(0) is not None


def test_sync_waits_for_a_crowded_peer_async_does_not() -> None:
    for level, at_once in (("sync", False), ("async", True)):
        world = World(level=level)
        for number in range(3):
            ticket = Ticket(number, [WriteOp(OpKind.DATA, 0, 4096, bytes(4096))], 0)
            world.window.send(ticket.ops, ticket, 1, 0)
            if number == 0:
                list(world.window.applied(1, 1000))  # it is near
        assert world.admission.at_once(2) is at_once


@pytest.mark.parametrize(("at_bound", "waits"), [("throttle", True), ("fall-behind", False)])
def test_the_bound_of_async_in_bytes_and_in_seconds(at_bound: str, waits: bool) -> None:
    world = World(level="async", at_bound=at_bound, lag_bytes=4 * MIB, lag_ns=NS_PER_S)
    world.send(2 * MIB, now_ns=0)
    assert not world.admission.look(NS_PER_S, joined=True)
    assert world.admission.at_once(0)
    assert world.admission.look(NS_PER_S + 1, joined=True), "too old"
    assert not world.admission.look(NS_PER_S + 1, joined=False), "a resync over a slow link is always old"
    assert world.admission.look(NS_PER_S + 1, joined=True)
    assert world.admission.at_once(0) is not waits
    list(world.window.applied(2, 2 * NS_PER_S))
    assert not world.admission.look(2 * NS_PER_S, joined=True)
    assert world.admission.at_once(0)
    world.send(5 * MIB, now_ns=2 * NS_PER_S)
    assert world.admission.look(2 * NS_PER_S, joined=True), "too much"
    assert world.admission.at_once(0) is not waits


def test_a_peer_that_is_being_resynced_may_be_spared_live_writes() -> None:
    world = World(level="async", at_bound="fall-behind", lag_bytes=4 * MIB)
    assert world.admission.mirrors(joined=False)
    world.send(2 * MIB)
    assert not world.admission.mirrors(joined=False)
    assert world.admission.mirrors(joined=True)


@pytest.mark.parametrize("level", ["sync", "async"])
def test_a_resync_that_takes_all_it_may_leaves_the_guest_room(level: str) -> None:
    world = World(level=level, inflight_bytes=8 * MIB, lag_bytes=12 * MIB)
    while world.admission.room_to_copy:
        world.send(MIB)
    assert world.window.copied_bytes == 6 * MIB
    assert world.admission.welcome(0)
    assert world.admission.at_once(0)


@pytest.mark.parametrize("level", ["sync", "async"])
def test_a_guest_that_fills_the_window_leaves_a_resync_its_part_of_it(level: str) -> None:
    world = World(level=level, inflight_bytes=2 * MIB, lag_bytes=8 * MIB)
    ticket = Ticket("guest", [WriteOp(OpKind.DATA, at * MIB, MIB, bytes(MIB)) for at in range(8)], 0)
    world.window.send(ticket.ops, ticket, 1, 0)
    assert not world.admission.welcome(0)
    room = [world.admission.room_to_copy]
    world.send(2 * MIB)
    room.append(world.admission.room_to_copy)
    assert room == [True, False]
    list(world.window.applied(10, NS_PER_S))
    assert world.window.copied_bytes == 0
    assert world.admission.room_to_copy
