"""The router: who may speak when, what ends a session, and how long the next one waits.

The orders in which a whole pair may do its work are in ``test_session_machine.py``, whole stories in
``tests/test_transcripts.py``.
"""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from pairsync.core.effects import Complete, DropSession, Effect, Persist, Read, Send
from pairsync.core.events import Event, PeerEvent, RefusedEvent
from pairsync.core.limits import VolumeOptions
from pairsync.core.lineage import Relation
from pairsync.core.messages import (
    Adopt,
    Adopted,
    Applied,
    Barrier,
    BarrierDone,
    Begin,
    Begun,
    Condition,
    Failed,
    Generation,
    Introduce,
    Leave,
    Marked,
    Message,
    OpKind,
    Prove,
    Role,
    SyncMode,
    VolumePlan,
    Write,
    WriteOp,
)
from pairsync.core.reports import Reports
from pairsync.core.resync import Found
from pairsync.core.session import GREETING_NS_MAX, HOLD_OFF_NS_MAX, HOLD_OFF_NS_MIN, SessionPhase
from pairsync.core.truths import Truth, truth_of
from pairsync.core.units import BLOCK_BYTES, NS_PER_S, Extent
from pairsync.errors import InternalError
from pairsync.testing.manual import ManualHost, ManualPair

BLOCKS = 16
SOME = Generation(1, 1, 1)
PLAN = VolumePlan(SyncMode.NOTHING, "rule", SOME)


def started(*, volumes: int = 1, options: VolumeOptions | None = None) -> ManualPair:
    pair = ManualPair(BLOCKS * BLOCK_BYTES, options, volumes=volumes)
    pair.a.start(Role.ACTIVE, 1)
    pair.b.start(Role.STANDBY, 1)
    pair.settle()
    return pair


def synced(*, volumes: int = 1, options: VolumeOptions | None = None) -> ManualPair:
    pair = started(volumes=volumes, options=options)
    pair.connect()
    pair.settle()
    assert pair.a.session.in_sync
    assert pair.b.session.in_sync
    clear(pair)
    return pair


def clear(pair: ManualPair) -> None:
    for host in (pair.a, pair.b):
        host.trace.clear()
        host.events.clear()


def phase(host: ManualHost) -> SessionPhase:
    return host.session.phase


def told(host: ManualHost, kind: type[Event]) -> list[Event]:
    return [event for event in host.events if isinstance(event, kind)]


def wanted(host: ManualHost, kind: type[Effect]) -> list[Effect]:
    return [effect for effect in host.trace if isinstance(effect, kind)]


def sent(host: ManualHost) -> list[Message]:
    return [message for effect in host.trace if isinstance(effect, Send) for message in effect.messages]


def receive(host: ManualHost, *messages: Message) -> None:
    host.session.received(messages, host.now_ns)
    host.perform()


def block_write(block: int, fill: int = 1) -> list[WriteOp]:
    return [WriteOp(OpKind.DATA, block * BLOCK_BYTES, BLOCK_BYTES, bytes([fill]) * BLOCK_BYTES)]


def test_what_the_shell_reports_is_a_part_of_the_session() -> None:
    assert isinstance(started().a.session, Reports)


def test_a_peer_is_known_by_what_it_has_become() -> None:
    """It introduced itself as never written; what both hold now is one truth, also once it is away."""
    pair = synced()
    mine = pair.a.session.introduction().volumes[0]

    def truth() -> Truth:
        met = pair.a.session.met
        assert met is not None
        return truth_of(mine, met.volumes[0])

    assert (truth().relation, truth().own) == (Relation.SAME, ())
    pair.cut()
    pair.a.write("w", block_write(3))
    pair.settle()
    mine = pair.a.session.introduction().volumes[0]
    assert (truth().relation, truth().blocks) == (Relation.AHEAD, 1)


# -- introductions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["a", "b"])
def test_either_may_introduce_itself_first(first: str) -> None:
    pair = started()
    pair.connect()
    host = pair.host(first)
    pair.deliver(host)
    assert phase(pair.other(host)) is SessionPhase.RUNNING
    pair.settle()
    assert pair.a.session.in_sync
    assert pair.b.session.in_sync


def test_an_introduction_that_comes_early_is_kept_until_this_host_is_ready() -> None:
    pair = ManualPair(BLOCKS * BLOCK_BYTES)
    pair.a.start(Role.ACTIVE, 1)
    pair.b.start(Role.STANDBY, 1)
    pair.b.complete("meta")
    pair.connect()
    pair.deliver(pair.b)
    assert phase(pair.a) is SessionPhase.OFFLINE  # its superblock is not written yet
    assert sent(pair.a) == []
    pair.a.complete("meta")
    pair.a.complete("meta")
    assert phase(pair.a) is SessionPhase.RUNNING
    assert isinstance(sent(pair.a)[0], Introduce)
    pair.settle()
    assert pair.a.session.in_sync


def test_a_standby_greets_when_its_superblock_is_written() -> None:
    pair = ManualPair(BLOCKS * BLOCK_BYTES)
    pair.a.start(Role.ACTIVE, 1)
    pair.b.start(Role.STANDBY, 1)
    pair.connect()
    assert sent(pair.b) == []
    pair.b.complete("meta")
    assert isinstance(sent(pair.b)[0], Introduce)


def test_who_introduces_itself_twice_is_refused() -> None:
    pair = synced()
    receive(pair.b, pair.a.session.introduction())
    assert told(pair.b, RefusedEvent) == [RefusedEvent("ProtocolError", "the peer introduced itself twice")]
    assert phase(pair.b) is SessionPhase.LEAVING


@pytest.mark.parametrize(
    "message",
    [Begin(1, 0, PLAN), Begun(0), Write(1, 0, 1, False, []), Applied(0, 1)],
    ids=lambda message: type(message).__name__,
)
def test_nothing_comes_before_the_introductions(message: Message) -> None:
    pair = started()
    pair.connect()
    for host in (pair.a, pair.b):
        receive(host, message)
        (event,) = told(host, RefusedEvent)
        assert event.describe().endswith(f"{type(message).__name__} before the introductions")


def test_what_was_written_between_the_two_introductions_counts() -> None:
    """The plan is made when the peer's introduction arrives: what this host said of itself may be old."""
    pair = synced()
    pair.cut()
    pair.connect()
    pair.a.write("w", block_write(3))
    while pair.a.busy:
        pair.a.complete(*pair.a.busy[0])
    pair.settle()
    assert pair.a.session.in_sync
    assert pair.differing() == []
    assert [end.ticket for end in pair.a.completed] == ["w"]


def test_a_peer_that_says_nothing_is_left() -> None:
    pair = started()
    pair.connect()
    pair.tick(GREETING_NS_MAX)
    assert phase(pair.a) is SessionPhase.GREETING
    pair.tick(1)
    assert told(pair.a, RefusedEvent) == [RefusedEvent("silent-peer", "the peer did not introduce itself")]


# -- messages of the wrong kind ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [Barrier(1, 0, 1), Begin(1, 0, PLAN), Adopt(1, 0, (SOME,)), Prove(1, 0, 1, 0, 0, 1, read=False)],
    ids=lambda message: type(message).__name__,
)
def test_the_active_takes_no_orders(message: Message) -> None:
    pair = synced()
    receive(pair.a, message)
    (event,) = told(pair.a, RefusedEvent)
    assert event.describe() == f"refused (ProtocolError): {type(message).__name__} to the active host"


@pytest.mark.parametrize(
    "message",
    [Applied(0, 1), BarrierDone(0, 1), Begun(0), Marked(0, ()), Adopted(0, SOME)],
    ids=lambda message: type(message).__name__,
)
def test_the_standby_takes_no_answers(message: Message) -> None:
    pair = synced()
    receive(pair.b, message)
    (event,) = told(pair.b, RefusedEvent)
    assert event.describe() == f"refused (ProtocolError): {type(message).__name__} to the standby host"


def test_a_volume_that_does_not_exist_is_refused() -> None:
    pair = synced(volumes=2)
    receive(pair.a, Applied(2, 1))
    receive(pair.b, Barrier(1, 2, 1))
    for host in (pair.a, pair.b):
        assert told(host, RefusedEvent) == [RefusedEvent("ProtocolError", "volume 2 of 2")]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (Applied(0, 77), "the peer applied write 77, which was not sent"),
        (BarrierDone(0, 77), "the peer answered barrier 77, which was not asked"),
        (Begun(0), "the peer answered a plan that was not sent"),
        (Adopted(0, Generation(8, 8, 8)), "the peer adopted 8.8/08, which is not in force"),
        (Marked(0, ((0, BLOCKS + 1),)), f"the peer marks blocks 0..{BLOCKS + 1} of {BLOCKS}"),
        (Marked(0, ((2, 2),)), f"the peer marks blocks 2..2 of {BLOCKS}"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_an_answer_to_what_was_not_asked_ends_the_session(message: Message, reason: str) -> None:
    pair = synced()
    receive(pair.a, message)
    assert told(pair.a, RefusedEvent) == [RefusedEvent("ProtocolError", reason)]
    assert sent(pair.a) == [Leave(f"ProtocolError: {reason}")]
    assert pair.a.session.refusal == f"ProtocolError: {reason}"


def test_a_stale_term_is_refused_by_the_data_path() -> None:
    pair = synced()
    target = pair.b.session.targets[0]
    target._writer.want(replace(target.superblock, term=9))  # a later owner has been heard of
    pair.a.write("w", block_write(3))
    pair.settle()
    assert told(pair.b, RefusedEvent) == [
        RefusedEvent("ArbitrationError", "term 1 is stale: 9 is recorded here")
    ]
    assert not any(pair.b.disks[0].content)


# -- ending --------------------------------------------------------------------------------------------------


def test_who_is_leaving_hears_nothing_any_more() -> None:
    pair = synced()
    receive(pair.b, Leave("enough"))
    assert phase(pair.b) is SessionPhase.LEAVING
    assert pair.b.session.refusal == "peer-left: enough"
    assert sent(pair.b) == []  # it knows
    clear(pair)
    receive(pair.b, Barrier(1, 0, 1), pair.a.session.introduction())
    assert pair.b.trace == []


def test_the_rest_of_a_batch_is_not_heard_either() -> None:
    pair = synced()
    receive(pair.b, Leave("enough"), Barrier(1, 0, 1))
    assert len(told(pair.b, RefusedEvent)) == 1


def test_a_peer_may_fail_before_it_has_introduced_itself() -> None:
    pair = started()
    pair.connect()
    receive(pair.a, Failed(0, errno.EIO, "the metadata cannot be written: EIO"))
    assert pair.a.session.refusal == "peer-failed: the metadata cannot be written: EIO"


def test_a_peer_whose_volume_failed_is_left() -> None:
    pair = synced()
    receive(pair.a, Failed(0, errno.ENOSPC, "a write failed: ENOSPC"))
    assert told(pair.a, RefusedEvent) == [RefusedEvent("peer-failed", "a write failed: ENOSPC")]
    assert pair.a.session.refusal == "peer-failed: a write failed: ENOSPC"


def test_coming_and_going_are_told_in_pairs() -> None:
    pair = started()
    pair.connect()
    pair.settle()
    pair.cut("first")
    pair.connect()
    pair.cut("before the introductions")
    pair.connect()
    pair.settle()
    receive(pair.a, Leave("second"))
    pair.settle()
    changes = [event for event in pair.a.events if isinstance(event, PeerEvent)]
    assert [event.connected for event in changes] == [True, False, True, False]
    assert changes[1].reason == "first"


def test_a_host_that_is_down_has_no_session() -> None:
    pair = ManualPair(BLOCKS * BLOCK_BYTES)
    with pytest.raises(InternalError, match="host a is down"):
        _ = pair.a.session


# -- waiting -------------------------------------------------------------------------------------------------


def refuse_once(pair: ManualPair) -> int:
    """Connect, let ``a`` be refused; how long it waits before the next introduction, in nanoseconds."""
    clear(pair)
    waited = 0
    if not pair.linked:
        pair.connect()
    while not any(isinstance(message, Introduce) for message in sent(pair.a)):
        pair.tick(NS_PER_S // 4)
        waited += NS_PER_S // 4
        assert waited < 2 * HOLD_OFF_NS_MAX
    receive(pair.a, Leave("no"))
    pair.cut()
    return waited


def test_the_wait_doubles_up_to_a_minute() -> None:
    pair = started()
    waits = [refuse_once(pair) // NS_PER_S for _ in range(9)]
    assert waits[1:] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert HOLD_OFF_NS_MIN == NS_PER_S
    assert HOLD_OFF_NS_MAX == 60 * NS_PER_S


@pytest.mark.parametrize("ends", ["is lost", "is refused", "is dropped"])
def test_the_wait_is_forgotten_after_a_session_that_held(ends: str) -> None:
    pair = synced()
    pair.cut()
    for _ in range(5):
        refuse_once(pair)
    pair.connect()
    while not pair.a.session.in_sync:
        pair.tick(NS_PER_S)
        pair.settle()
    pair.tick(HOLD_OFF_NS_MAX + 1)
    if ends == "is refused":
        receive(pair.a, Leave("no"))
    elif ends == "is dropped":
        pair.a.session.dropped(pair.now_ns)
    pair.cut()
    if ends == "is lost":
        refuse_once(pair)
    assert refuse_once(pair) == NS_PER_S


def test_a_disk_of_the_peer_that_fails_again_and_again_is_not_waited_for_twice() -> None:
    pair = synced()
    for _ in range(4):
        receive(pair.a, Failed(0, 5, "EIO"))
        pair.cut()
        assert sync_again(pair) == NS_PER_S
    pair.cut()


def sync_again(pair: ManualPair) -> int:
    """Connect, and wait until both are in sync; how long ``a`` waited before it introduced itself."""
    clear(pair)
    waited = 0
    pair.connect()
    while not any(isinstance(message, Introduce) for message in sent(pair.a)):
        pair.tick(NS_PER_S // 4)
        waited += NS_PER_S // 4
        assert waited < 2 * HOLD_OFF_NS_MAX
    while not pair.a.session.in_sync:
        pair.tick(NS_PER_S)
        pair.settle()
    return waited


def test_a_short_session_does_not_make_the_next_wait_shorter() -> None:
    pair = synced()
    pair.cut()
    refuse_once(pair)
    refuse_once(pair)
    pair.connect()
    while not pair.a.session.in_sync:
        pair.tick(NS_PER_S)
        pair.settle()
    pair.cut()
    refuse_once(pair)
    assert refuse_once(pair) == 4 * NS_PER_S


def test_a_drop_that_a_volume_wants_waits_like_a_refusal() -> None:
    pair = synced()
    pair.a.session.dropped(pair.now_ns)
    assert phase(pair.a) is SessionPhase.LEAVING
    pair.a.session.dropped(pair.now_ns)  # asked for twice
    pair.cut()
    assert refuse_once(pair) == NS_PER_S


def test_a_drop_without_a_link_does_not_keep_the_next_session_out() -> None:
    """A standby's superblock cannot be written while nobody is connected."""
    pair = ManualPair(BLOCKS * BLOCK_BYTES)
    pair.a.start(Role.ACTIVE, 1)
    pair.b.start(Role.STANDBY, 1)
    pair.b.complete("meta", error=errno.EIO)
    assert wanted(pair.b, DropSession)
    assert phase(pair.b) is SessionPhase.OFFLINE
    pair.connect()
    for _ in range(8):
        pair.tick(NS_PER_S // 2)
        pair.settle()
    assert pair.a.session.in_sync
    assert pair.b.session.in_sync


def test_a_superblock_that_fails_again_and_again_is_not_written_in_a_hurry() -> None:
    pair = ManualPair(BLOCKS * BLOCK_BYTES)
    pair.a.start(Role.ACTIVE, 1)
    pair.b.start(Role.STANDBY, 1)
    attempts = 0
    for _ in range(240):  # two minutes
        if not pair.linked:
            pair.connect()
        while pair.b.waiting("meta"):
            attempts += 1
            pair.b.complete("meta", error=errno.EIO)
        pair.settle()
        pair.tick(NS_PER_S // 2)
    assert attempts == 7  # after 0, 1, 2, 4, 8, 16, 32 and 60 seconds
    assert not pair.b.session.in_sync


# -- what is in sync -----------------------------------------------------------------------------------------


def test_a_standby_is_in_sync_only_when_the_active_has_said_so_in_this_session() -> None:
    pair = synced()
    pair.cut()
    assert not pair.b.session.in_sync
    pair.a.write("w", block_write(3))
    while pair.a.busy:
        pair.a.complete(*pair.a.busy[0])
    pair.connect()
    pair.deliver(pair.a)
    assert phase(pair.b) is SessionPhase.RUNNING
    assert pair.b.metadata[0].superblock.condition is Condition.CONSISTENT
    assert not pair.b.session.in_sync
    pair.settle()
    assert pair.b.session.in_sync


def test_all_volumes_have_to_be_in_sync() -> None:
    pair = started(volumes=2)
    pair.connect()
    while not pair.a.session.sources[0].standing.joined:
        pair.step()
    assert not pair.a.session.in_sync
    assert not pair.b.session.in_sync
    pair.settle()
    assert pair.a.session.in_sync


def test_each_volume_fails_for_itself_but_the_session_is_the_guests() -> None:
    pair = synced(volumes=2)
    pair.a.write("w0", block_write(1), 0)
    pair.a.write("w1", block_write(1), 1)
    pair.a.complete("meta", 0)
    pair.a.complete("meta", 1)
    pair.deliver(pair.a, 2)
    pair.b.complete("disk", 1, error=errno.EIO)
    assert Failed(1, errno.EIO, "a write failed: EIO") in sent(pair.b)
    for _ in range(10):
        pair.settle()
        pair.tick(NS_PER_S // 2)
        if not pair.linked:
            pair.connect()
    assert pair.a.session.in_sync
    assert sorted(str(end.ticket) for end in pair.a.completed) == ["w0", "w1"]
    assert pair.differing(0) == []
    assert pair.differing(1) == []


def test_a_failed_volume_lets_no_session_begin() -> None:
    pair = synced()
    pair.a.flush("f")
    pair.a.complete("side", error=errno.EIO)
    assert pair.a.completed == [Complete("f", [errno.EIO])]
    pair.settle()
    pair.connect()
    for _ in range(20):
        pair.tick(NS_PER_S)
    assert not any(isinstance(message, Introduce) for message in sent(pair.a))


@pytest.mark.parametrize("volumes", [1, 2])
def test_the_peer_of_a_failed_volume_hears_why_and_both_wait(volumes: int) -> None:
    pair = synced(volumes=volumes)
    pair.a.flush("f")
    pair.a.complete("side", error=errno.EIO)
    pair.settle()
    clear(pair)
    why = "volume-failed: vda: a flush failed: EIO"
    for _ in range(10 * 60 * 4):  # ten minutes
        if not pair.linked:
            pair.connect()
        pair.settle()
        pair.tick(NS_PER_S // 4)
    assert set(sent(pair.a)) == {Leave(why)}
    assert pair.a.session.refusal == why
    assert pair.b.session.refusal == f"peer-left: {why}"
    assert {event.describe() for event in told(pair.b, RefusedEvent)} == {f"refused (peer-left): {why}"}
    # 1 + 2 + 4 + 8 + 16 + 32 seconds, then once a minute
    assert 10 <= len(told(pair.a, RefusedEvent)) <= 16
    assert 10 <= len(told(pair.b, RefusedEvent)) <= 16


def test_a_higher_term_that_the_standby_has_recorded_is_its_own() -> None:
    pair = ManualPair(BLOCKS * BLOCK_BYTES)
    pair.b.metadata[0].superblock = replace(pair.b.metadata[0].superblock, term=7)
    pair.a.start(Role.ACTIVE, 1)
    pair.b.start(Role.STANDBY, 1)
    pair.connect()
    pair.settle()
    (event,) = told(pair.a, RefusedEvent)
    assert event.describe() == "refused (stale-term): the active host's term 1 is older than 7"


def test_a_higher_term_that_the_standby_has_learnt_is_its_own_from_then_on() -> None:
    """The standby lives on while the active host is started under a new term, and then under the old one."""
    pair = synced()
    pair.crash(pair.a)
    pair.a.start(Role.ACTIVE, 5)
    for _ in range(4):
        if not pair.linked:
            pair.connect()
        pair.settle()
        pair.tick(NS_PER_S)
    assert pair.b.session.in_sync
    assert pair.b.session.term == pair.b.session.introduction().term == 5
    pair.cut()
    clear(pair)
    pair.crash(pair.a)
    pair.a.metadata[0].superblock = replace(pair.a.metadata[0].superblock, term=1)  # a copy of the old disk
    pair.a.start(Role.ACTIVE, 1)
    for _ in range(4):
        if not pair.linked:
            pair.connect()
        pair.settle()
        pair.tick(NS_PER_S)
    assert told(pair.a, RefusedEvent)[0] == RefusedEvent(
        "stale-term", "the active host's term 1 is older than 5"
    )
    assert not pair.b.session.in_sync


# -- reports of the shell ------------------------------------------------------------------------------------


def test_effects_are_taken_once() -> None:
    pair = started()
    pair.connect()
    assert pair.a.session.take() == []


def test_a_standbys_superblock_is_reported_like_an_actives() -> None:
    pair = synced()
    assert wanted(pair.b, Persist) == []
    assert pair.b.session.sources == []
    assert pair.a.session.targets == []


def test_late_answers_to_reads_are_dropped() -> None:
    pair = started()
    pair.a.write("w", block_write(3))
    pair.settle()
    pair.connect()
    while not pair.a.waiting("disk"):
        pair.step()
    (read,) = pair.a.waiting("disk")
    assert isinstance(read, Read)
    pair.cut()
    clear(pair)
    pair.a.complete("disk")
    pair.a.session.read_failed(0, read.number, errno.EIO, pair.now_ns)
    pair.a.session.read_done(0, 999, Found([Extent(0, 1)], []), pair.now_ns)
    pair.a.session.mapped(0, object(), [], pair.now_ns)
    pair.a.perform()
    assert sent(pair.a) == []
    assert pair.a.session.sources[0].tracker.dirty().count == 1
