"""A scrub finds what has fallen over where it has, mends it from the other side, and tells nothing else."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from tests.core.test_standing import in_sync_block

from pairsync.core.dirty import DirtyMap
from pairsync.core.effects import Apply, Complete, Effect, Emit, Examine, Send
from pairsync.core.events import ScrubEvent, ScrubFindingEvent
from pairsync.core.fetcher import Fetcher, Repair
from pairsync.core.messages import (
    Fetch,
    Message,
    OpKind,
    Proof,
    Prove,
    Role,
    Write,
    WriteOp,
)
from pairsync.core.questions import FAN_OUT, Examined, Questions
from pairsync.core.resync import Pacer
from pairsync.core.scrubber import BUSY_WAITS, PRESSED_WAITS, QUESTIONS_AHEAD, Fault, Finding, Scrubber
from pairsync.core.standing import Standing
from pairsync.core.tracker import Tracker
from pairsync.core.units import BLOCK_BYTES, MIB, NS_PER_MS, NS_PER_S, Extent
from pairsync.testing.manual import ManualPair

BLOCKS = 1100  # three nodes of level 1, the last one partial
SIZE = BLOCKS * BLOCK_BYTES


def a_write(block: int, byte: int = 1) -> list[WriteOp]:
    return [WriteOp(OpKind.DATA, block * BLOCK_BYTES, BLOCK_BYTES, bytes([byte]) * BLOCK_BYTES)]


@pytest.fixture
def pair() -> ManualPair:
    pair = ManualPair(SIZE)
    pair.a.start(Role.ACTIVE, 1)
    pair.b.start(Role.STANDBY, 0)
    pair.settle()
    for block in (0, 3, 600, 1099):
        pair.a.write(f"w{block}", a_write(block, block % 250 + 1))
    pair.settle()
    pair.connect()
    pair.settle()
    assert pair.a.session.in_sync
    return pair


def scrubber_of(pair: ManualPair) -> Scrubber:
    return pair.a.session.sources[0].scrubber


def flip(pair: ManualPair, host: str, block: int) -> None:
    """A bit falls over on the disk."""
    pair.host(host).disks[0].content[block * BLOCK_BYTES + 77] ^= 4


def scrub(pair: ManualPair, *, repair: bool) -> list[Finding]:
    source = pair.a.session.sources[0]
    source.scrubber.start("scrub", repair=repair, now_ns=pair.now_ns)
    source.advance(pair.now_ns)
    pair.a.perform()
    for _ in range(100):
        pair.settle()
        if any(complete.ticket == "scrub" for complete in pair.a.completed):
            break
        pair.tick(NS_PER_S)
    pair.a.completed = [complete for complete in pair.a.completed if complete.ticket != "scrub"]
    report = source.scrubber.report
    assert report is not None
    assert report.complete
    assert report.fraction == 1.0
    assert report.found is not None
    return report.found


def test_clean_replicas_raise_no_alarm(pair: ManualPair) -> None:
    assert scrub(pair, repair=True) == []
    assert [event for event in pair.a.events if isinstance(event, ScrubEvent)][-1].findings == 0


@pytest.mark.parametrize("block", [0, 3, 600, 1099, 500])
@pytest.mark.parametrize(("host", "fault"), [("a", Fault.HERE), ("b", Fault.PEER)])
def test_one_flipped_bit_is_found_where_it_is_and_mended(
    pair: ManualPair, host: str, fault: Fault, block: int
) -> None:
    before = bytes(pair.a.disks[0].content)
    flip(pair, host, block)
    assert scrub(pair, repair=False) == [Finding(block, fault)]
    assert pair.differing() == [block], "told, and nothing was touched"
    assert scrub(pair, repair=True) == [Finding(block, fault)]
    pair.tick(6 * NS_PER_S)
    pair.settle()
    assert not pair.differing()
    assert bytes(pair.a.disks[0].content) == before
    assert ScrubFindingEvent("vda", block, fault.value, repair=True) in pair.a.events
    assert pair.a.session.in_sync, "it counts all the while"
    assert scrub(pair, repair=True) == []


def test_a_block_that_is_wrong_on_both_hosts_is_only_told(pair: ManualPair) -> None:
    flip(pair, "a", 600)
    pair.b.disks[0].content[600 * BLOCK_BYTES] ^= 1
    assert scrub(pair, repair=True) == [Finding(600, Fault.BOTH)]
    assert pair.differing() == [600]


def test_content_that_differs_under_true_digests_is_copied_from_the_active(pair: ManualPair) -> None:
    pair.b.disks[0].apply(a_write(3, 99))  # a misdirected write, say
    assert scrub(pair, repair=True) == [Finding(3, Fault.DIFFERENT)]
    pair.settle()
    assert not pair.differing()
    assert pair.a.disks[0].content[3 * BLOCK_BYTES] == 4


def test_a_block_that_is_written_while_it_is_fetched_keeps_what_was_written(pair: ManualPair) -> None:
    flip(pair, "a", 3)
    source = pair.a.session.sources[0]
    source.scrubber.start("scrub", repair=True, now_ns=0)
    source.advance(0)
    pair.a.perform()
    while not any(isinstance(message, Write) for message in pair.b.outbox):
        assert pair.step()
    pair.a.write("late", a_write(3, 200))
    while pair.step():
        pass
    assert pair.a.disks[0].content[3 * BLOCK_BYTES] == 200
    assert not pair.differing()


def test_a_fetch_that_fails_leaves_the_block_and_ends_the_scrub(pair: ManualPair) -> None:
    flip(pair, "a", 3)
    source = pair.a.session.sources[0]
    source.scrubber.start("scrub", repair=True, now_ns=0)
    source.advance(0)
    pair.a.perform()
    while not [effect for effect in pair.b.waiting("disk") if type(effect).__name__ == "Read"]:
        assert pair.step()
    pair.b.complete("disk", error=errno.EIO)
    pair.settle()
    pair.tick(NS_PER_S)
    pair.settle()
    report = source.scrubber.report
    assert report is not None
    assert (report.complete, report.findings, report.repaired) == (True, 1, 0)
    assert pair.differing() == [3]


def test_a_scrub_goes_on_where_it_was_when_the_peer_is_back(pair: ManualPair) -> None:
    flip(pair, "b", 1099)
    source = pair.a.session.sources[0]
    source.scrubber.start("scrub", repair=False, now_ns=0)
    source.advance(0)
    pair.a.perform()
    pair.step()
    pair.cut()
    pair.settle()
    assert source.scrubber.running
    pair.connect()
    for _ in range(10):
        pair.settle()
        pair.tick(NS_PER_S)
    report = source.scrubber.report
    assert report is not None
    assert report.complete
    assert report.found == [Finding(1099, Fault.PEER)]


def test_a_busy_guest_has_the_disks_for_itself_most_of_the_time(pair: ManualPair) -> None:
    source = pair.a.session.sources[0]
    pair.a.write("w", a_write(7))
    pair.settle()
    source.scrubber.start("scrub", repair=False, now_ns=pair.now_ns)
    source.advance(pair.now_ns)
    pair.a.perform()
    assert len(pair.a.waiting("disk")) == 1, "one piece at a time"
    pair.now_ns = pair.a.now_ns = pair.b.now_ns = 10_000_000  # it took 10 ms
    pair.settle()
    source.advance(20_000_000)
    pair.a.perform()
    assert not pair.a.waiting("disk")
    source.advance(41_000_000)
    pair.a.perform()
    assert len(pair.a.waiting("disk")) == 1


def test_a_guest_whose_writes_miss_their_goal_has_the_disks_for_longer(pair: ManualPair) -> None:
    source = pair.a.session.sources[0]
    pacer = source.scrubber._pacer
    pair.a.write("w", a_write(7))
    pair.settle()
    for at_ms in (30, 60, 90, 120):
        pacer.foreground(2 * pacer.goal_ns, at_ms * NS_PER_MS)
    pair.now_ns = pair.a.now_ns = pair.b.now_ns = 120 * NS_PER_MS
    source.scrubber.start("scrub", repair=False, now_ns=pair.now_ns)
    source.advance(pair.now_ns)
    pair.a.perform()
    assert len(pair.a.waiting("disk")) == 1
    pair.now_ns = pair.a.now_ns = pair.b.now_ns = 130 * NS_PER_MS  # it took 10 ms
    pair.settle()
    source.advance(279 * NS_PER_MS)  # a sixteenth of the time is the scrub's
    pair.a.perform()
    assert not pair.a.waiting("disk")
    source.advance(281 * NS_PER_MS)
    pair.a.perform()
    assert len(pair.a.waiting("disk")) == 1


def test_a_volume_that_fails_ends_its_scrub(pair: ManualPair) -> None:
    source = pair.a.session.sources[0]
    source.scrubber.start("scrub", repair=False, now_ns=0)
    source.flush("f", 0)
    pair.a.perform()
    pair.a.complete("side", error=errno.EIO)
    assert ("scrub", [errno.EIO]) in [(c.ticket, c.errnos) for c in pair.a.completed]
    assert not any(isinstance(effect, Apply) for effect in pair.a.waiting("disk"))


def test_a_volume_that_has_failed_tells_nothing_of_what_was_asked_before(pair: ManualPair) -> None:
    """Its disk has lost what was not flushed: of course it does not hold what the digests say."""
    flip(pair, "a", 3)
    source = pair.a.session.sources[0]
    source.scrubber.start("scrub", repair=True, now_ns=0)
    source.advance(0)
    source.flush("f", 0)
    pair.a.perform()
    pair.deliver(pair.a, len(pair.a.outbox))
    while pair.b.waiting("disk"):
        pair.b.complete("disk")
    pair.deliver(pair.b, len(pair.b.outbox))
    pair.a.complete("side", error=errno.EIO)
    pair.a.complete("disk")
    assert not [event for event in pair.a.events if isinstance(event, ScrubFindingEvent)]


def test_what_was_mended_on_an_idle_peer_is_made_durable_by_itself(pair: ManualPair) -> None:
    flip(pair, "b", 3)
    assert scrub(pair, repair=True) == [Finding(3, Fault.PEER)]
    source = pair.a.session.sources[0]
    for _ in range(source.options.flush_after_ns // NS_PER_S + 1):
        pair.tick(NS_PER_S)
        pair.settle()
    assert not source.tracker.dirty()


def test_without_digests_on_both_hosts_nothing_is_scrubbed() -> None:
    pair = ManualPair(SIZE)
    pair.b.options = replace(pair.b.options, digests=False)
    pair.a.start(Role.ACTIVE, 1)
    pair.b.start(Role.STANDBY, 0)
    pair.settle()
    pair.connect()
    pair.settle()
    assert pair.a.session.in_sync
    source = pair.a.session.sources[0]
    source.scrubber.tick(1, 1)
    source.scrubber.tick(1, NS_PER_S)
    assert not source.scrubber.running, "a peer that is asked for digests that it does not keep ends there"
    source.scrubber.start("scrub", repair=True, now_ns=1)
    source.advance(1)
    pair.a.perform()
    assert [(each.ticket, each.errnos) for each in pair.a.completed] == [("scrub", [errno.ENOTSUP])]
    assert not any(isinstance(effect, Examine) for effect in pair.a.trace)


def test_a_bad_block_behind_the_end_of_the_volume_hurts_nobody(pair: ManualPair) -> None:
    """The last node covers more blocks than there are; a peer may name any of them."""
    pair.tick(10 * NS_PER_S)  # the guest is idle: all in one question
    pair.settle()
    source = pair.a.session.sources[0]
    source.scrubber.start("scrub", repair=True, now_ns=pair.now_ns)
    source.advance(pair.now_ns)
    pair.a.perform()
    while not (proofs := [message for message in pair.b.outbox if isinstance(message, Proof)]):
        assert pair.step()
    pair.b.outbox[pair.b.outbox.index(proofs[0])] = replace(proofs[0], bad=(BLOCKS,))
    pair.settle()
    pair.tick(NS_PER_S)
    pair.settle()
    assert source.scrubber.report is not None
    assert (source.scrubber.report.complete, source.scrubber.report.found) == (True, [])


def test_what_was_being_fetched_when_the_peer_was_lost_is_fetched_when_it_is_back(pair: ManualPair) -> None:
    flip(pair, "a", 3)
    source = pair.a.session.sources[0]
    source.scrubber.start("scrub", repair=True, now_ns=0)
    source.advance(0)
    pair.a.perform()
    while not any(isinstance(message, Write) for message in pair.b.outbox):
        assert pair.step()
    pair.cut()
    pair.settle()
    pair.connect()
    for _ in range(5):
        pair.settle()
        pair.tick(NS_PER_S)
    assert source.scrubber.report is not None
    assert source.scrubber.report.complete
    assert not pair.differing()


def test_a_repair_and_a_resync_of_one_block_leave_it_equal(pair: ManualPair) -> None:
    """A block is fetched from the peer while this host's copy of it is on its way there."""
    source = pair.a.session.sources[0]
    source.scrubber.mend(3)
    source.advance(0)  # asks the peer for it
    source.tracker.want([(3, 4)])  # a write failed here, say
    flip(pair, "a", 3)
    source.advance(0)
    pair.a.perform()
    for order in range(2):
        pair.deliver(pair.a, len(pair.a.outbox))
        if order == 0:
            pair.b.complete("disk")
            pair.deliver(pair.b, 1)
    pair.settle()
    pair.tick(6 * NS_PER_S)
    pair.settle()
    assert not pair.differing()
    assert pair.a.session.in_sync


@pytest.mark.parametrize("answered", [False, True])
def test_a_repair_makes_a_read_of_the_resync_speak_for_nothing(pair: ManualPair, answered: bool) -> None:
    """The read stands in the lane before the repair: what it finds is what the repair puts away."""
    source = pair.a.session.sources[0]
    flip(pair, "a", 3)
    source.scrubber.mend(3)
    source.advance(0)
    pair.a.perform()
    pair.deliver(pair.a, len(pair.a.outbox))
    pair.b.complete("disk")
    source.tracker.want([(3, 4)])
    source.advance(0)
    pair.a.perform()
    if answered:
        pair.deliver(pair.b, len(pair.b.outbox))
    pair.a.complete("disk")
    pair.settle()
    pair.tick(6 * NS_PER_S)
    pair.settle()
    assert not pair.differing()


def test_nothing_is_fetched_that_the_peer_lacks(pair: ManualPair) -> None:
    source = pair.a.session.sources[0]
    source.tracker.want([(3, 4)])
    heard: list[tuple[object, int]] = []
    source.scrubber.fetch([Extent(2, 5)], 0, lambda ops, error: heard.append((ops, error)))
    assert heard == [(None, errno.EIO)]
    source.scrubber.mend(3)
    source.advance(0)
    pair.a.perform()
    assert not any(isinstance(message, Fetch) for message in pair.a.outbox)
    pair.settle()
    assert any(isinstance(each, Send) and isinstance(each.messages[0], Fetch) for each in pair.a.trace)


def test_a_bad_block_here_is_not_copied_to_the_peer_because_digests_differ_too(pair: ManualPair) -> None:
    pair.b.disks[0].apply(a_write(3, 99))
    flip(pair, "a", 3)
    assert scrub(pair, repair=True) == [Finding(3, Fault.HERE)]
    assert not pair.differing()
    assert pair.a.disks[0].content[3 * BLOCK_BYTES] == 99, "from the side whose copy is what it recorded"


# -- in any order --------------------------------------------------------------------------------------------

SPOTS = [0, 1, 511, 512, 1023, 1024, 1099]  # of BLOCKS: on the borders of nodes
WHERE = st.sampled_from(["here", "there", "lost write", "both"])


class Replica:
    """Of each block that is not as it was: the number of what it holds, and of what its digest says."""

    def __init__(self) -> None:
        self.holds: dict[int, int] = {}
        self.recorded: dict[int, int] = {}

    def write(self, block: int, number: int) -> None:
        self.holds[block] = self.recorded[block] = number

    def is_bad(self, block: int) -> bool:
        return self.holds.get(block, 0) != self.recorded.get(block, 0)

    def examine(self, level: int, first: int, stop: int) -> Examined:
        """As a host answers, with any function of the digests below a node as its digest."""
        span = FAN_OUT**level
        digests = b""
        for node in range(first, stop):
            below = [(b, n) for b, n in sorted(self.recorded.items()) if b // span == node and n]
            digests += (hash(tuple(below)) & (1 << 64) - 1).to_bytes(8, "little")
        spots = range(first * span, stop * span)
        return Examined(digests, tuple(block for block in SPOTS if block in spots and self.is_bad(block)))


class ScrubMachine(RuleBasedStateMachine):
    """Damage and writes while scrubs run, and answers in any order: nothing is told of a sound block, what
    was damaged before a scrub began is told once, each scrub ends, and one that repairs leaves both equal."""

    def __init__(self) -> None:
        super().__init__()
        self.out: list[Effect] = []
        block = in_sync_block(SIZE)
        standing = Standing(0, block, lambda: 2, self.out)
        standing.prepare()
        standing.begun()
        standing.adopt()
        assert standing.adopted(block.lineage[0])
        tracker = Tracker(BLOCKS, DirtyMap(BLOCKS), window_bytes=MIB)
        self.pacer = Pacer(NS_PER_MS, MIB)
        self.questions, fetcher = Questions(0, standing, self.out), Fetcher(0, standing, self.out)
        self.scrubber = Scrubber(
            0,
            tracker,
            standing,
            self.questions,
            fetcher,
            self.pacer,
            self._repairing,
            self._lacking,
            self.out,
        )
        self.scrubber.possible = True
        self.out.clear()
        self.now_ns = NS_PER_S
        self.number = 0
        self.here, self.there = Replica(), Replica()
        self.lane: deque[object] = deque()  # of this host's disk
        self.stream: deque[object] = deque()  # to the peer, which does one after the other
        self.replies: deque[Message] = deque()
        self.copying: dict[int, bool] = {}  # blocks that the peer lacks: whether a read speaks for them
        self.owed: dict[int, set[int]] = {}  # scrubs that run: blocks that they have to tell
        self.told: set[int] = set()  # blocks, since the last scrub began
        self.changed: set[int] = set()  # blocks that were written or damaged since then
        self.struck: set[int] = set()  # blocks that were ever damaged
        self.fetched: int | None = None  # a block
        self.written: dict[int, int] = {}  # blocks that were not damaged since

    # ------------------------------------------------------------------ what others do

    def _repairing(self, ops: Sequence[WriteOp]) -> None:
        self.copying |= {b: False for b in self.copying if b in {op.offset // BLOCK_BYTES for op in ops}}

    def _lacking(self, extents: Sequence[Extent]) -> None:
        assert self.scrubber.report is not None
        assert self.scrubber.report.repair
        for block in (block for extent in extents for block in range(*extent)):
            self._copy(block)

    def _copy(self, block: int) -> None:
        if block not in self.copying:
            self.copying[block] = True
            self.lane.append(block)

    def _perform(self) -> None:
        asked = self.questions.count
        self.scrubber.advance(self.now_ns, peer_has_all=not self.copying)
        ahead = 1 if self.pacer.busy(self.now_ns) else QUESTIONS_AHEAD
        assert self.questions.count <= max(asked, ahead)
        assert not self.copying or self.questions.count == asked, "what is being copied differs, of course"
        for effect in self.out:
            if isinstance(effect, Send):
                self.stream.extend(effect.messages)
                fetches = [message for message in effect.messages if isinstance(message, Fetch)]
                self.fetched = fetches[0].extents[0][0] if fetches else self.fetched
            elif isinstance(effect, Examine | Apply):
                self.lane.append(effect)
            elif isinstance(effect, Complete):
                assert isinstance(effect.ticket, int)
                assert not self.owed.pop(effect.ticket) - self.told, "damage that was not told"
            elif isinstance(effect, Emit) and isinstance(effect.event, ScrubFindingEvent):
                block = effect.event.block
                assert block in self.struck, "a false alarm"
                assert block not in self.told or block in self.changed, "told twice"
                self.told.add(block)
        self.out.clear()

    # ------------------------------------------------------------------ the guest, and the disks

    @rule(block=st.sampled_from(SPOTS), fetched=st.booleans(), busy=st.booleans())
    def write(self, block: int, fetched: bool, busy: bool) -> None:
        """It makes a block whole, wherever it has arrived; one that was fetched last, if there is any."""
        block = self.fetched if fetched and self.fetched is not None else block
        self.number += 1
        self.changed.add(block)
        self.written[block] = self.number
        op = WriteOp(OpKind.DATA, block * BLOCK_BYTES, BLOCK_BYTES)
        self.scrubber.written([op])
        self._repairing([op])
        self.lane.append((block, self.number))
        self.stream.append((block, self.number))
        for owed in self.owed.values():
            owed.discard(block)
        if busy:
            self.pacer.foreground(0, self.now_ns)

    @initialize(struck=st.dictionaries(st.sampled_from(SPOTS), WHERE))
    def begin(self, struck: dict[int, str]) -> None:
        for block, where in struck.items():
            self._damage(block, where)

    @rule(block=st.sampled_from(SPOTS), where=WHERE)
    def damage(self, block: int, where: str) -> None:
        """Once, of what is the same on both hosts and stays so."""
        written = {job[0] for job in (*self.lane, *self.stream) if isinstance(job, tuple)}
        if block not in {*self.copying, *written, *self._damaged()}:
            self._damage(block, where)

    def _damage(self, block: int, where: str) -> None:
        self.number += 1
        self.struck.add(block)
        self.written.pop(block, None)
        self.changed.add(block)
        if where in {"here", "both"}:
            self.here.holds[block] = -self.number
        if where in {"there", "both"}:
            self.there.holds[block] = -self.number
        if where == "lost write":
            self.there.write(block, -self.number)

    def _damaged(self) -> set[int]:
        here, there = self.here, self.there
        bad = {block for block in SPOTS if here.is_bad(block) or there.is_bad(block)}
        return bad | {b for b in SPOTS if here.recorded.get(b, 0) != there.recorded.get(b, 0)}

    def _under_way(self) -> bool:
        return bool(self.lane or self.stream or self.replies or self.copying)

    @rule(repair=st.booleans())
    def start(self, repair: bool) -> None:
        self.number += 1
        if not self.owed:
            self.told.clear()
            self.changed.clear()
            self.owed[self.number] = set() if self._under_way() else self._damaged()
        else:
            self.owed[self.number] = set()
        self.scrubber.start(self.number, repair=repair, now_ns=self.now_ns)
        self._perform()

    # ------------------------------------------------------------------ what ends

    @precondition(lambda self: bool(self.lane))
    @rule()
    def this_disk_does_something(self) -> None:
        job = self.lane.popleft()
        if isinstance(job, Examine):
            self.questions.examined(job.token, self.here.examine(job.level, job.first, job.stop))
        elif isinstance(job, Apply):
            assert isinstance(job.token, Repair)
            for op in job.ops:
                assert op.data is not None
                self.here.write(op.offset // BLOCK_BYTES, int.from_bytes(op.data[:8], "little", signed=True))
            job.token.then(None)
        elif isinstance(job, tuple):
            self.here.write(*job)
        else:
            assert isinstance(job, int)
            if not self.copying.pop(job):
                self._copy(job)
            elif not self.here.is_bad(job):  # else it is in doubt, and the next scrub tells
                self.stream.append((job, self.here.holds.get(job, 0)))
        self._perform()

    @precondition(lambda self: bool(self.stream))
    @rule()
    def the_peer_does_something(self) -> None:
        job = self.stream.popleft()
        if isinstance(job, tuple):
            self.there.write(*job)
        elif isinstance(job, Prove):
            found = self.there.examine(job.level, job.first, job.stop)
            self.replies.append(Proof(0, job.question, found.digests, tuple(found.bad)))
        else:
            assert isinstance(job, Fetch)
            blocks = [block for start, stop in job.extents for block in range(start, stop)]
            ops = [
                WriteOp(
                    OpKind.DATA,
                    block * BLOCK_BYTES,
                    BLOCK_BYTES,
                    self.there.holds.get(block, 0).to_bytes(8, "little", signed=True).ljust(BLOCK_BYTES),
                )
                for block in blocks
                if not self.there.is_bad(block)
            ]
            self.replies.append(Write(1, 0, job.number, True, ops))

    @precondition(lambda self: bool(self.replies))
    @rule()
    def an_answer_arrives(self) -> None:
        message = self.replies.popleft()
        if isinstance(message, Proof):
            self.questions.answered(message)
        else:
            assert isinstance(message, Write)
            self.scrubber.fetched(message)
        self._perform()

    @rule(ms=st.sampled_from([1, 100, 2000]))
    def time_passes(self, ms: int) -> None:
        self.now_ns += ms * NS_PER_MS
        self._perform()

    def _settle(self) -> None:
        for _ in range(200):
            while self.lane or self.stream or self.replies:
                if self.lane:
                    self.this_disk_does_something()
                if self.stream:
                    self.the_peer_does_something()
                if self.replies:
                    self.an_answer_arrives()
            if not self.owed:
                return
            self.time_passes(2000)
        raise AssertionError("a scrub that does not end")

    def teardown(self) -> None:
        """Of what nobody has, a write is awaited; all else is equal after a scrub that repairs."""
        self._settle()
        lost = {block for block in SPOTS if self.here.is_bad(block) and self.there.is_bad(block)}
        self.start(repair=True)
        self._settle()
        for block in set(SPOTS) - lost:
            assert self.here.holds.get(block, 0) == self.there.holds.get(block, 0), block
            assert not self.here.is_bad(block)
            assert not self.there.is_bad(block)
        for block, number in self.written.items():
            assert self.here.holds[block] == number, "a write was undone"


TestScrubMachine = ScrubMachine.TestCase
TestScrubMachine.settings = settings(stateful_step_count=40, max_examples=80)


@given(st.lists(st.integers(1, 5), min_size=2, max_size=6), st.booleans())
def test_beside_a_busy_guest_it_reads_for_its_share_of_the_time(took_ms: list[int], pressed: bool) -> None:
    """One piece after the other, whatever each takes, and from one scrub to the next as well."""
    machine = ScrubMachine()
    for _ in range(20):
        machine.now_ns += 60 * NS_PER_MS
        machine.pacer.foreground(machine.pacer.goal_ns * 2 if pressed else 0, machine.now_ns)
    assert machine.pacer.pressed == pressed
    waits, began_ns, read_ns = PRESSED_WAITS if pressed else BUSY_WAITS, machine.now_ns, 0
    for ms in took_ms:
        while not machine.lane:
            machine.start(repair=False)
            machine.now_ns += NS_PER_MS
            machine.pacer.foreground(machine.pacer.goal_ns * 2 if pressed else 0, machine.now_ns)
        assert machine.questions.count == 1
        assert machine.now_ns - began_ns >= (1 + waits) * read_ns
        machine.now_ns += ms * NS_PER_MS
        read_ns += ms * NS_PER_MS
        machine.this_disk_does_something()
        machine.the_peer_does_something()
        machine.an_answer_arrives()
