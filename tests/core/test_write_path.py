"""The write path, rule by rule, with a pair that is driven by hand (see also ``test_source.py``)."""

from __future__ import annotations

import errno
from collections.abc import Mapping

import pytest

from pairsync.core.effects import Complete, DropSession, Effect, Emit, Flush, Journal, Persist, Send
from pairsync.core.events import BehindEvent, TroubleEvent
from pairsync.core.limits import VolumeOptions
from pairsync.core.messages import Adopt, Adopted, Barrier, Message, OpKind, Role, Write, WriteOp
from pairsync.core.session import SessionPhase
from pairsync.core.standing import Phase
from pairsync.core.units import BLOCK_BYTES, MIB, NS_PER_MS, NS_PER_S
from pairsync.core.window import MESSAGES_MAX
from pairsync.testing.manual import ManualHost, ManualPair

BLOCKS = 1024


def data(block: int, blocks: int = 1, fill: int = 7) -> list[WriteOp]:
    length = blocks * BLOCK_BYTES
    return [WriteOp(OpKind.DATA, block * BLOCK_BYTES, length, bytes([fill]) * length)]


def zero(block: int) -> list[WriteOp]:
    return [WriteOp(OpKind.ZERO, block * BLOCK_BYTES, BLOCK_BYTES)]


def alone(options: VolumeOptions | None = None) -> ManualPair:
    """Host a is active; nobody is connected."""
    pair = ManualPair(BLOCKS * BLOCK_BYTES, options)
    pair.a.start(Role.ACTIVE, 1)
    pair.b.start(Role.STANDBY, 1)
    pair.settle()
    pair.a.trace.clear()
    return pair


def synced(options: VolumeOptions | None = None) -> ManualPair:
    pair = alone(options)
    pair.connect()
    pair.settle()
    assert pair.a.session.in_sync
    pair.a.trace.clear()
    pair.b.trace.clear()
    return pair


def run(host: ManualHost, *lanes: str) -> None:
    """All that is under way in those lanes of a host ends."""
    while busy := [lane for lane in host.busy if not lanes or lane[0] in lanes]:
        host.complete(*busy[0])


def ended(pair: ManualPair) -> Mapping[object, object]:
    """How each request ended; each once."""
    found = {end.ticket: end.errnos for end in pair.a.completed}
    assert len(found) == len(pair.a.completed)
    return found


def sent(host: ManualHost) -> list[Message]:
    return [message for effect in host.trace if isinstance(effect, Send) for message in effect.messages]


def wanted(host: ManualHost, kind: type[Effect]) -> list[Effect]:
    return [effect for effect in host.trace if isinstance(effect, kind)]


def peer_phase(pair: ManualPair) -> Phase:
    return pair.a.session.sources[0].standing.phase


# -- acknowledgements ----------------------------------------------------------------------------------------


def test_the_intent_is_durable_before_either_disk_is_written() -> None:
    pair = synced()
    pair.a.write("w", data(3))
    assert len(wanted(pair.a, Journal)) == 1
    assert sent(pair.a) == []
    assert pair.a.waiting("disk") == ()
    run(pair.a, "meta")
    assert [type(message) for message in sent(pair.a)] == [Write]
    assert len(pair.a.waiting("disk")) == 1


@pytest.mark.parametrize("peer_first", [False, True])
def test_sync_needs_both_disks(peer_first: bool) -> None:
    pair = synced()
    pair.a.write("w", data(3))
    run(pair.a, "meta")
    for peer in (peer_first, not peer_first):
        assert ended(pair) == {}
        if peer:
            pair.deliver(pair.a)
            run(pair.b)
            pair.deliver(pair.b)
        else:
            run(pair.a, "disk")
    assert ended(pair) == {"w": None}


def test_a_write_that_waits_for_the_permit_ends_with_a_peer_that_never_left() -> None:
    """The link flapped: nothing becomes durable when the peer is back, and nobody else looks (a seed)."""
    pair = synced()
    pair.a.session.permitted(0, alone=False)
    pair.cut()
    pair.a.write("w", data(3))
    run(pair.a)
    assert ended(pair) == {}
    pair.connect()
    pair.settle()
    assert pair.a.session.in_sync
    assert ended(pair) == {"w": None}


def test_a_guest_that_was_given_up_opens_no_generation_with_a_permit_that_comes_late() -> None:
    """Its disks may be closed by then: the host ended, just when it was to serve again."""
    pair = synced()
    pair.a.session.permitted(0, alone=False)
    pair.cut()
    pair.a.write("w", data(3))
    run(pair.a)
    pair.a.session.abandon("it does not run here any more")
    pair.a.session.take()
    pair.a.session.permitted(1, alone=True)
    assert pair.a.session.take() == []


def test_async_needs_this_disk_only() -> None:
    pair = synced(VolumeOptions(level="async"))
    pair.a.write("w", data(3))
    run(pair.a)
    assert ended(pair) == {"w": None}
    assert len(pair.a.outbox) == 1


@pytest.mark.parametrize("level", ["sync", "async"])
def test_between_the_loss_and_a_durable_generation_nothing_is_acknowledged(level: str) -> None:
    """Rule 2, for a write in flight, a write of later, and a flush."""
    pair = synced(VolumeOptions(level=level))
    pair.a.write("w1", data(3))
    run(pair.a, "meta")
    pair.cut()
    pair.a.write("w2", data(4))
    pair.a.complete("disk")
    assert len(wanted(pair.a, Persist)) == 1
    assert ended(pair) == {}
    pair.a.flush("f")
    run(pair.a, "side")
    assert ended(pair) == {}
    pair.a.complete("meta")  # the superblock stands before the intent of w2
    assert ended(pair) == {"w1": None, "f": None}
    run(pair.a)
    assert ended(pair) == {"w1": None, "f": None, "w2": None}


def test_a_flush_that_the_peer_has_covered_needs_no_new_generation() -> None:
    pair = synced()
    pair.a.flush("f")
    pair.deliver(pair.a)
    run(pair.b)
    pair.deliver(pair.b)
    pair.cut()
    run(pair.a, "side")
    assert ended(pair) == {"f": None}


def test_a_flush_that_lost_its_peer_is_held_until_the_generation_is_durable() -> None:
    pair = synced()
    pair.a.flush("f")
    run(pair.a, "side")
    assert ended(pair) == {}
    pair.cut()
    assert ended(pair) == {}
    run(pair.a)
    assert ended(pair) == {"f": None}


def test_a_held_flush_ends_too_when_the_peer_comes_back_first() -> None:
    pair = synced()
    pair.a.flush("f")
    pair.cut()
    run(pair.a, "side")
    assert ended(pair) == {}
    pair.connect()
    pair.settle()
    assert ended(pair) == {"f": None}


# -- flushes and generations ---------------------------------------------------------------------------------


def test_flushes_share_the_next_one() -> None:
    pair = synced()
    for name in ("f1", "f2", "f3"):
        pair.a.flush(name)
    assert [type(message) for message in sent(pair.a)] == [Barrier]
    pair.settle()
    assert ended(pair) == {"f1": None, "f2": None, "f3": None}
    assert len([message for message in sent(pair.a) if isinstance(message, Barrier)]) == 2
    assert len(wanted(pair.a, Flush)) == 2


def test_a_flush_over_a_quiet_volume_closes_its_generation() -> None:
    pair = synced()
    pair.a.write("w", data(3))
    pair.settle()
    assert pair.a.session.sources[0].tracker.dirty().count == 1
    pair.a.flush("f")
    pair.settle()
    assert pair.a.session.sources[0].tracker.dirty().count == 0
    assert len(wanted(pair.a, Flush)) == 1
    assert pair.a.metadata[0].recovered().count == 0


def test_a_flush_over_a_busy_volume_leaves_its_generation_open() -> None:
    pair = synced()
    pair.a.write("w", data(3))
    run(pair.a, "meta")
    pair.a.flush("f")
    pair.settle()
    assert pair.a.session.sources[0].tracker.dirty().count == 1


def test_a_generation_is_closed_after_a_time_even_if_nobody_flushes() -> None:
    pair = synced(VolumeOptions(flush_after_ns=NS_PER_S))
    pair.a.write("w", data(3))
    pair.settle()
    pair.tick(NS_PER_S - 1)
    pair.settle()
    assert pair.a.session.sources[0].tracker.dirty().count == 1
    pair.tick(1)
    pair.settle()
    assert pair.a.session.sources[0].tracker.dirty().count == 0


def test_a_full_window_makes_writes_wait_until_a_generation_is_released() -> None:
    pair = synced(VolumeOptions(intent_window_bytes=4 * MIB))
    half = 2 * MIB // BLOCK_BYTES
    source = pair.a.session.sources[0]
    pair.a.write("w1", data(0, half))
    run(pair.a)
    pair.a.write("w2", data(half, half - 100))
    run(pair.a)
    assert source.accepting
    pair.a.write("w3", data(half - 100, 100))
    run(pair.a)
    assert not pair.a.session.sources[0].accepting
    pair.a.write("w4", data(0))
    run(pair.a)
    assert not any(message.ops[0].offset == 0 for message in sent(pair.a)[1:] if isinstance(message, Write))
    pair.settle()
    assert set(ended(pair)) == {"w1", "w2", "w3", "w4"}


def test_a_block_of_a_lost_write_is_copied_and_of_a_flushed_one_not() -> None:
    pair = synced()
    pair.a.write("w1", data(3))
    pair.settle()
    pair.a.flush("f")
    pair.settle()
    pair.a.write("w2", data(4))
    run(pair.a, "meta")
    pair.cut()
    pair.settle()
    assert pair.a.session.sources[0].tracker.dirty().describe() == "1[4..5]"


# -- failures ------------------------------------------------------------------------------------------------


def test_a_failed_write_fails_alone_and_its_blocks_are_copied() -> None:
    pair = synced()
    pair.a.write("w", data(3))
    run(pair.a, "meta")
    pair.deliver(pair.a)
    pair.a.complete("disk", error=errno.ENOSPC)
    assert ended(pair) == {"w": [errno.ENOSPC]}
    (event,) = wanted(pair.a, Emit)
    assert isinstance(event, Emit)
    assert event.event == TroubleEvent("vda", fatal=False, reason="a write failed: ENOSPC")
    pair.settle()
    assert pair.differing() == []
    assert pair.a.session.in_sync


def test_trouble_is_told_once_a_second() -> None:
    pair = alone()
    for number in range(4):
        pair.a.write(number, data(number))
        run(pair.a, "meta")
        pair.a.complete("disk", error=errno.EIO)
        pair.tick(NS_PER_S // 2)
    assert [error for error in ended(pair).values() if error] == [[errno.EIO]] * 4
    assert len(wanted(pair.a, Emit)) == 2


def test_an_intent_that_cannot_be_recorded_fails_its_write_only() -> None:
    pair = alone()
    pair.a.write("w1", data(3))
    pair.a.complete("meta", error=errno.EIO)
    assert ended(pair) == {"w1": [errno.EIO]}
    assert pair.a.waiting("disk") == ()
    pair.a.write("w2", data(3))
    assert len(wanted(pair.a, Journal)) == 2  # the mark is there, the record is not
    run(pair.a)
    assert ended(pair)["w2"] is None


def test_after_a_failed_flush_nothing_is_served() -> None:
    pair = synced()
    source = pair.a.session.sources[0]
    pair.a.write("w1", data(3))
    run(pair.a, "meta")
    pair.a.write("w2", data(4))  # its intent is on its way
    pair.a.flush("f1")
    pair.a.flush("f2")
    pair.a.complete("side", error=errno.EIO)
    assert ended(pair) == {"w1": [errno.EIO], "w2": [errno.EIO], "f1": [errno.EIO], "f2": [errno.EIO]}
    assert source.failed == "a flush failed: EIO"
    assert not source.serving
    pair.a.write("w3", data(5) + data(6))
    pair.a.flush("f3")
    pair.a.close("c")
    assert ended(pair)["w3"] == [errno.EIO, errno.EIO]
    assert ended(pair)["f3"] == [errno.EIO]
    assert ended(pair)["c"] == [errno.EIO]
    clear = len(pair.a.trace)
    pair.settle()  # late answers of disk, journal and peer
    pair.tick(10 * NS_PER_S)
    run(pair.a)
    assert not any(isinstance(effect, (Flush, Journal, Complete)) for effect in pair.a.trace[clear:])
    assert pair.a.session.phase is SessionPhase.OFFLINE


@pytest.mark.parametrize("lane", ["bitmap", "superblock"])
def test_metadata_that_cannot_be_written_stops_the_volume(lane: str) -> None:
    pair = alone()
    pair.a.write("w", data(3))
    run(pair.a)
    if lane == "bitmap":
        pair.tick(5 * NS_PER_S)
        pair.a.complete("side")  # the flush
    else:
        pair.a.close("c")
        pair.a.complete("side")
        pair.a.complete("meta")  # the bitmap
    pair.a.complete("meta", error=errno.ENOSPC)
    pair.a.write("late", data(4))
    what = "the dirty bitmap" if lane == "bitmap" else "the metadata"
    assert pair.a.session.sources[0].failed == f"{what} cannot be written: ENOSPC"
    assert ended(pair)["late"] == [errno.EIO]
    assert all(error for name, error in ended(pair).items() if name != "w")


def test_a_failure_is_told_once_and_ends_the_session_once() -> None:
    pair = synced()
    pair.a.flush("f")
    pair.a.write("w", data(3))
    pair.a.complete("side", error=errno.EIO)
    pair.a.session.sources[0].abandon("again", fatal=True)
    assert len(wanted(pair.a, DropSession)) == 1
    assert pair.a.session.sources[0].failed == "a flush failed: EIO"


def test_late_answers_to_a_failed_volume_change_nothing() -> None:
    pair = synced()
    source = pair.a.session.sources[0]
    pair.a.write("w", data(3))
    pair.a.flush("f1")
    source._closer.cut(pair.now_ns)
    pair.a.complete("meta")
    pair.a.complete("disk")  # the generation is flushed beside the guest's flush
    pair.a.write("late", data(4))
    assert len(pair.a.waiting("side")) == 2
    pair.a.complete("side", error=errno.EIO)
    before = len(pair.a.completed)
    pair.a.complete("side")
    pair.a.complete("meta", error=errno.EIO)
    pair.deliver(pair.a, len(pair.a.outbox))
    run(pair.b)
    pair.deliver(pair.b, len(pair.b.outbox))
    assert len(pair.a.completed) == before
    assert source.failed == "a flush failed: EIO"


def test_a_resync_that_cannot_read_ends_the_session() -> None:
    pair = alone()
    pair.a.write("w", data(3))
    run(pair.a)
    pair.connect()
    while not pair.a.waiting("disk"):
        pair.step()
    pair.a.complete("disk", error=errno.EIO)
    (drop,) = wanted(pair.a, DropSession)
    assert drop == DropSession("cannot read what the peer lacks: EIO", refused=True)
    pair.settle()
    for _ in range(4):
        if not pair.linked:
            pair.connect()
        pair.tick(NS_PER_S)
        pair.settle()
    assert pair.a.session.in_sync


# -- a peer that does not answer -----------------------------------------------------------------------------


@pytest.mark.parametrize("owes", ["a write", "a flush", "its readiness", "the lineage"])
def test_a_peer_that_owes_an_answer_for_too_long_is_left(owes: str) -> None:
    options = VolumeOptions(peer_deadline_ns=3 * NS_PER_S)
    if owes in {"a write", "a flush"}:
        pair = synced(options)
        if owes == "a write":
            pair.a.write("w", data(3))
            run(pair.a)
        else:
            pair.a.flush("f")
            run(pair.a)
    else:
        pair = alone(options)
        stop: type[Message] = Adopt if owes == "the lineage" else Write
        pair.connect()
        pair.deliver(pair.a)
        pair.deliver(pair.b)
        run(pair.a)
        if owes == "the lineage":
            while not any(isinstance(message, stop) for message in pair.a.outbox):
                pair.step()
    pair.tick(3 * NS_PER_S)
    assert wanted(pair.a, DropSession) == []
    pair.tick(1)
    (drop,) = wanted(pair.a, DropSession)
    assert drop == DropSession("the peer owes an answer for more than 3 s", refused=True)


def test_a_peer_that_answers_slowly_but_answers_is_kept() -> None:
    pair = synced(VolumeOptions(peer_deadline_ns=3 * NS_PER_S))
    for number in range(2):
        pair.a.write(number, data(number))
        run(pair.a, "meta")
    for _ in range(2):
        pair.tick(2 * NS_PER_S)
        pair.deliver(pair.a)
        run(pair.b)
        pair.deliver(pair.b)
    assert wanted(pair.a, DropSession) == []


# -- async ---------------------------------------------------------------------------------------------------


def small_async(**more: object) -> VolumeOptions:
    return VolumeOptions(level="async", lag_bytes=MIB, lag_ns=2 * NS_PER_S, **more)  # type: ignore[arg-type]


def test_throttled_by_bytes() -> None:
    pair = synced(small_async())
    source = pair.a.session.sources[0]
    pair.a.write("w1", data(0, 256))
    run(pair.a)
    assert not source.accepting
    pair.a.write("w2", data(256))
    run(pair.a)
    assert ended(pair) == {"w1": None}
    pair.settle()
    assert ended(pair) == {"w1": None, "w2": None}


def test_throttled_by_age() -> None:
    pair = synced(small_async())
    pair.a.write("w1", data(0))
    run(pair.a)
    pair.tick(2 * NS_PER_S + 1)
    pair.a.write("w2", data(1))
    run(pair.a)
    assert ended(pair) == {"w1": None}
    assert pair.a.session.in_sync
    pair.settle()
    assert ended(pair) == {"w1": None, "w2": None}


def test_a_throttled_writer_goes_on_when_the_peer_is_lost() -> None:
    pair = synced(small_async())
    pair.a.write("w1", data(0))
    run(pair.a)
    pair.tick(2 * NS_PER_S + 1)
    pair.a.write("w2", data(1))
    pair.cut()
    run(pair.a)
    assert ended(pair) == {"w1": None, "w2": None}
    assert pair.a.session.sources[0].accepting


def test_a_silent_peer_keeps_nobody_waiting_within_the_bound() -> None:
    pair = synced(small_async())
    for number in range(50):
        pair.a.write(number, data(number))
        run(pair.a)
    assert len(ended(pair)) == 50


@pytest.mark.parametrize("fills", ["bytes", "messages"])
def test_a_peer_falls_behind_at_the_bound_not_at_the_next_tick(fills: str) -> None:
    pair = synced(small_async(at_bound="fall-behind"))
    if fills == "bytes":
        batches = [data(0, 200), data(200, 200), data(400)]
    else:
        batches = [zero(number % 5) for number in range(MESSAGES_MAX + 1)]
    for number, ops in enumerate(batches):
        pair.a.write(number, ops)
        run(pair.a)
    assert peer_phase(pair) is Phase.BEHIND
    assert len(ended(pair)) == len(batches)
    assert len(pair.a.outbox) <= MESSAGES_MAX
    (event, _) = [effect.event for effect in wanted(pair.a, Emit) if isinstance(effect, Emit)]
    assert isinstance(event, BehindEvent)
    assert pair.forgotten() == []
    pair.settle()
    pair.tick(NS_PER_S // 2)
    pair.settle()
    assert pair.a.session.in_sync
    assert pair.differing() == []


@pytest.mark.parametrize("level", ["sync", "async"])
def test_what_a_slow_journal_holds_back_is_in_flight_already(level: str) -> None:
    """However slow the journal, what is sent when it has caught up is what may be in flight."""
    pair = synced(VolumeOptions(level=level, inflight_bytes=2 * MIB, lag_bytes=2 * MIB))
    for number in range(10):
        pair.a.write(number, data(0, 256))  # the same blocks each time: the intent window never fills
    run(pair.a, "meta")
    on_the_way = [message for message in sent(pair.a) if isinstance(message, Write)]
    assert sum(op.length for message in on_the_way for op in message.ops) == 2 * MIB
    pair.settle()
    assert set(ended(pair)) == set(range(10))


def test_sync_messages_without_data_are_bounded_too() -> None:
    pair = synced(VolumeOptions(tickets_max=2 * MESSAGES_MAX))
    window = pair.a.session.sources[0]._window
    window._answer_ns = NS_PER_S  # a distant peer: nothing is gathered
    number = 0
    while pair.a.session.sources[0].accepting:
        pair.a.write(number, zero(number % 5))
        run(pair.a)
        number += 1
        assert number <= MESSAGES_MAX
    assert number == MESSAGES_MAX
    pair.settle()
    assert len(ended(pair)) == MESSAGES_MAX


def test_a_lineage_adopted_just_before_the_peer_fell_behind_is_no_breach() -> None:
    pair = alone(small_async(at_bound="fall-behind"))
    pair.connect()
    while not any(isinstance(message, Adopted) for message in pair.b.outbox):
        pair.step()
    assert peer_phase(pair) is Phase.ADOPTING
    pair.a.write("w1", data(0))
    run(pair.a)
    pair.tick(2 * NS_PER_S + 1)
    assert peer_phase(pair) is Phase.BEHIND
    run(pair.a)
    pair.deliver(pair.b)
    assert peer_phase(pair) is Phase.BEHIND
    assert pair.a.session.phase is SessionPhase.RUNNING
    for _ in range(4):
        pair.settle()
        pair.tick(NS_PER_S // 2)
    assert pair.a.session.in_sync
    assert pair.differing() == []


# -- closing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_peer", [False, True])
def test_closing_leaves_a_clean_superblock_and_an_exact_map(with_peer: bool) -> None:
    pair = synced() if with_peer else alone()
    for number in range(3):
        pair.a.write(number, data(number))
    pair.a.close("c1")
    pair.a.close("c2")
    pair.a.write("late", data(9))
    assert ended(pair) == {"late": [errno.EIO]}
    pair.settle()
    assert ended(pair) == {0: None, 1: None, 2: None, "late": [errno.EIO], "c1": None, "c2": None}
    metadata = pair.a.metadata[0]
    assert metadata.superblock.clean
    assert metadata.recovered().count == (0 if with_peer else 3)
    pair.a.write("later", data(9))
    assert ended(pair)["later"] == [errno.EIO]


def test_closing_writes_what_is_only_in_memory() -> None:
    """The peer has told blocks of its own, and is gone again."""
    pair = alone()
    pair.a.session.sources[0].copier.marked([(5, 7)])
    pair.a.close("c")
    pair.settle()
    assert ended(pair) == {"c": None}
    assert pair.a.metadata[0].recovered().describe() == "2[5..7]"


def test_closing_before_anything_was_opened_waits_for_it() -> None:
    pair = ManualPair(BLOCKS * BLOCK_BYTES)
    pair.a.start(Role.ACTIVE, 1)
    pair.a.close("c")
    assert ended(pair) == {}
    run(pair.a)
    assert ended(pair) == {"c": None}
    assert pair.a.metadata[0].superblock.clean


def test_a_crash_after_an_orderly_close_finds_nothing_to_copy() -> None:
    pair = synced()
    pair.a.write("w", data(3))
    pair.settle()
    pair.a.close("c")
    pair.settle()
    pair.crash(pair.a, power=True)
    pair.a.start(Role.ACTIVE, 1)
    pair.settle()
    pair.connect()
    pair.settle()
    assert pair.a.session.in_sync
    assert pair.differing() == []
    assert pair.a.session.sources[0].tracker.dirty().count == 0


def test_time_is_not_lost_on_a_volume_that_has_nothing_to_do() -> None:
    pair = synced()
    pair.tick(60 * NS_PER_S)
    pair.tick(NS_PER_MS)
    assert pair.a.trace == []
