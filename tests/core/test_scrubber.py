"""A scrub finds what has fallen over where it has, mends it from the other side, and tells nothing else."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from pairsync.core.effects import Apply, Examine, Send
from pairsync.core.events import ScrubEvent, ScrubFindingEvent
from pairsync.core.messages import Fetch, OpKind, Proof, Role, Write, WriteOp
from pairsync.core.scrubber import Fault, Finding, Scrubber
from pairsync.core.units import BLOCK_BYTES, NS_PER_MS, NS_PER_S, Extent
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
