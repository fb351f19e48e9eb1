"""Blocks that are not what their digests say on the active host: mended from the peer or told, never sent."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pairsync.core.doubts import DOUBTS_MAX, TRIES_MAX
from pairsync.core.effects import Apply, Examine, Read
from pairsync.core.events import DifferenceEvent, InSyncEvent, ScrubFindingEvent, TroubleEvent
from pairsync.core.fetcher import Fetcher, Repair
from pairsync.core.limits import VolumeOptions
from pairsync.core.messages import OpKind, Prove, Role, Unfetched, Write, WriteOp
from pairsync.core.scrubber import FINDINGS_MAX
from pairsync.core.session import HOLD_OFF_NS_MAX
from pairsync.core.units import BLOCK_BYTES, MIB, NS_PER_S
from pairsync.testing.manual import ManualPair

BLOCKS = 130


def a_write(block: int, byte: int, *, count: int = 1) -> list[WriteOp]:
    length = count * BLOCK_BYTES
    return [WriteOp(OpKind.DATA, block * BLOCK_BYTES, length, bytes([byte]) * length)]


def in_sync(blocks: int = BLOCKS) -> ManualPair:
    pair = ManualPair(blocks * BLOCK_BYTES, VolumeOptions(inflight_bytes=MIB))
    pair.a.start(Role.ACTIVE, 1)
    pair.b.start(Role.STANDBY, 0)
    pair.settle()
    for block in (0, 3, 60, 129):
        pair.a.write(f"w{block}", a_write(block, block + 1))
    pair.settle()
    pair.connect()
    pair.settle()
    assert trusted(pair)
    pair.tick(6 * NS_PER_S)
    pair.settle()
    assert not pair.a.session.sources[0].tracker.dirty()
    return pair


@pytest.fixture
def pair() -> ManualPair:
    return in_sync()


def flip(pair: ManualPair, host: str, block: int) -> None:
    pair.host(host).disks[0].content[block * BLOCK_BYTES + 77] ^= 4


def rot_digest(pair: ManualPair, host: str, block: int) -> None:
    pair.host(host).disks[0].record(block, 1 << 40)


def lack(pair: ManualPair, *blocks: int) -> None:
    """The peer is thought to lack them, as after a crash, or without a map that reaches back."""
    pair.a.session.sources[0].tracker.want([(block, block + 1) for block in blocks])


def again(pair: ManualPair) -> None:
    """A new session, and all that comes of it."""
    if pair.linked:
        pair.cut()
    pair.tick(HOLD_OFF_NS_MAX + 1)
    pair.connect()
    pair.settle()
    pair.tick(6 * NS_PER_S)
    pair.settle()


def trusted(pair: ManualPair) -> bool:
    return pair.a.session.in_sync


def findings(pair: ManualPair) -> list[tuple[int, str, bool]]:
    events = [event for event in pair.a.events if isinstance(event, ScrubFindingEvent)]
    return [(event.block, event.fault, event.repair) for event in events]


@pytest.mark.parametrize("block", [0, 3, 60, 129, 50])
def test_a_rotted_block_that_is_to_be_copied_is_mended_from_the_peer(pair: ManualPair, block: int) -> None:
    good = bytes(pair.a.disks[0].content)
    pair.cut()
    flip(pair, "a", block)
    lack(pair, block, 42)
    again(pair)
    assert bytes(pair.a.disks[0].content) == bytes(pair.b.disks[0].content) == good
    assert findings(pair) == [(block, "here", True)]
    assert trusted(pair)
    assert not pair.a.session.sources[0].tracker.dirty()
    assert bytes(pair.a.disks[0].durable) == bytes(pair.b.disks[0].durable) == good


@pytest.mark.parametrize("host", ["a", "b"])
def test_a_wrong_digest_is_found_by_the_proof_and_recorded_anew(pair: ManualPair, host: str) -> None:
    good = bytes(pair.a.disks[0].content)
    rot_digest(pair, host, 60)
    again(pair)
    assert trusted(pair)
    differences = [event for event in pair.a.events if isinstance(event, DifferenceEvent)]
    assert [event.first_block for event in differences] == [60]
    assert findings(pair) == ([(60, "digest", True)] if host == "a" else [])
    for disk in (pair.a.disks[0], pair.b.disks[0]):
        assert bytes(disk.content) == good
        assert disk.wrong(0, BLOCKS) == []


def lost(pair: ManualPair, how: str) -> None:
    """The active's block 3 is wrong, and the peer cannot help."""
    if how == "both":
        flip(pair, "b", 3)
    elif how == "another":
        pair.b.disks[0].apply(a_write(3, 99))
    flip(pair, "a", 3)
    lack(pair, 3, 42, 70)


@pytest.mark.parametrize(("how", "fault"), [("both", "both"), ("another", "lost")])
def test_what_nobody_has_is_told_again_and_again_and_ends_with_a_write(
    pair: ManualPair, how: str, fault: str
) -> None:
    before = bytes(pair.b.disks[0].content)
    pair.cut()
    lost(pair, how)
    pair.b.disks[0].apply(a_write(70, 7))  # of the rest, what the peer should not have
    theirs = bytes(pair.b.disks[0].content)[3 * BLOCK_BYTES : 4 * BLOCK_BYTES]
    pair.tick(HOLD_OFF_NS_MAX + 1)
    pair.connect()
    pair.settle()
    assert findings(pair) == [(3, fault, False)]
    (trouble,) = [event for event in pair.a.events if isinstance(event, TroubleEvent)]
    assert "1 blocks, the first is 3, are not what their digests say" in trouble.reason
    assert not pair.linked
    assert bytes(pair.b.disks[0].content)[3 * BLOCK_BYTES : 4 * BLOCK_BYTES] == theirs, "it is not touched"
    assert bytes(pair.b.disks[0].content)[70 * BLOCK_BYTES :] == before[70 * BLOCK_BYTES :], "all else is"
    pair.connect()
    pair.settle()
    assert len(findings(pair)) == 1, "the next session waits"
    again(pair)
    assert len(findings(pair)) == 2
    assert not trusted(pair)
    pair.a.write("anew", a_write(3, 55))
    again(pair)
    assert trusted(pair)
    assert not pair.differing()
    assert len(findings(pair)) == 2


def test_a_write_that_the_disk_has_dropped_is_not_taken_for_a_wrong_digest(pair: ManualPair) -> None:
    pair.cut()
    before = bytes(pair.a.disks[0].content)
    pair.a.write("dropped", a_write(3, 77))
    pair.settle()
    pair.a.disks[0].content[:] = before
    again(pair)
    assert findings(pair) == [(3, "lost", False)], "both hosts hold the same, and it is not what was written"
    assert not trusted(pair)
    assert pair.a.disks[0].wrong(0, BLOCKS) == [3]


def test_a_write_meanwhile_ends_the_doubt(pair: ManualPair) -> None:
    pair.cut()
    lost(pair, "another")
    pair.connect()
    while not any(isinstance(message, Prove) and message.read for message in pair.a.outbox):
        assert pair.step()
    pair.a.write("anew", a_write(2, 55, count=3))
    pair.settle()
    assert trusted(pair)
    assert findings(pair) == []
    assert not pair.differing()


def test_a_write_overtakes_what_was_fetched(pair: ManualPair) -> None:
    pair.cut()
    flip(pair, "a", 3)
    lack(pair, 3)
    pair.connect()
    while not findings(pair):
        assert pair.step()
    pair.a.write("part", [WriteOp(OpKind.DATA, 3 * BLOCK_BYTES + 512, 512, b"n" * 512)])
    while pair.step():
        assert not any(
            isinstance(effect, Apply) and isinstance(effect.token, Repair)
            for effect in pair.a.waiting("disk")
        ), "what it would bring back is older"
    assert trusted(pair)
    assert not pair.differing()
    assert pair.a.disks[0].content[3 * BLOCK_BYTES + 512] == ord("n")


def test_what_reads_well_when_it_is_looked_at_again_is_copied(pair: ManualPair) -> None:
    good = bytes(pair.a.disks[0].content)
    pair.cut()
    flip(pair, "a", 3)
    lack(pair, 3)
    pair.connect()
    while not any(isinstance(effect, Examine) and effect.read for effect in pair.a.waiting("disk")):
        assert pair.step()
    flip(pair, "a", 3)
    pair.settle()
    assert trusted(pair)
    assert findings(pair) == []
    assert bytes(pair.b.disks[0].content) == good


def test_a_disk_that_reads_now_this_now_that_is_given_up(pair: ManualPair) -> None:
    pair.cut()
    lack(pair, 3)
    pair.connect()
    flips = 0
    while pair.linked:
        waiting = pair.a.waiting("disk")
        if waiting and isinstance(waiting[0], Read):
            flip(pair, "a", 3)
            pair.a.complete("disk")
            flip(pair, "a", 3)
            flips += 1
        else:
            assert pair.step()
    assert flips == TRIES_MAX
    assert findings(pair) == [(3, "here", False)]


def test_a_peer_that_leaves_out_what_it_is_asked_for_is_not_asked_for_ever(
    pair: ManualPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = Fetcher.answered
    answers = 0

    def leave_out(fetcher: Fetcher, message: Write | Unfetched) -> None:
        nonlocal answers
        answers += 1
        assert answers <= TRIES_MAX
        answered(fetcher, message._replace(ops=[]) if isinstance(message, Write) else message)

    monkeypatch.setattr(Fetcher, "answered", leave_out)
    pair.cut()
    flip(pair, "a", 3)
    lack(pair, 3)
    pair.connect()
    pair.settle()
    assert answers == TRIES_MAX
    assert findings(pair)[-1] == (3, "here", False)
    assert not pair.linked


@pytest.mark.parametrize("error", ["fetch", "write"])
def test_a_repair_that_fails_leaves_the_block_to_the_next_session(pair: ManualPair, error: str) -> None:
    good = bytes(pair.a.disks[0].content)
    pair.cut()
    flip(pair, "a", 3)
    lack(pair, 3)
    pair.connect()
    while pair.linked:
        mine, theirs = pair.a.waiting("disk"), pair.b.waiting("disk")
        if error == "write" and mine and isinstance(mine[0], Apply):
            pair.a.complete("disk", error=errno.EIO)
        elif error == "fetch" and theirs and isinstance(theirs[0], Read):
            pair.b.complete("disk", error=errno.EIO)
            assert any(isinstance(message, Unfetched) for message in pair.b.outbox)
        else:
            assert pair.step()
    assert findings(pair) == [(3, "here", True), (3, "here", False)]
    again(pair)
    assert trusted(pair)
    assert bytes(pair.a.disks[0].content) == bytes(pair.b.disks[0].content) == good


def test_the_peer_dies_while_it_is_asked(pair: ManualPair) -> None:
    good = bytes(pair.a.disks[0].content)
    pair.cut()
    flip(pair, "a", 3)
    lack(pair, 3)
    pair.connect()
    while not findings(pair):
        assert pair.step()
    pair.crash(pair.b)
    assert 3 in pair.a.session.sources[0].tracker.todo
    pair.b.start(Role.STANDBY, 0)
    pair.settle()
    again(pair)
    assert trusted(pair)
    assert bytes(pair.a.disks[0].content) == bytes(pair.b.disks[0].content) == good


def test_a_repair_of_a_peer_in_sync_does_not_spoil_it(pair: ManualPair) -> None:
    """As a scrub asks for, or a write that has failed here: the block is copied while the peer counts."""
    good = bytes(pair.a.disks[0].content)
    flip(pair, "a", 60)
    lack(pair, 60)
    pair.tick(NS_PER_S)
    pair.settle()
    assert findings(pair) == [(60, "here", True)]
    assert bytes(pair.a.disks[0].content) == bytes(pair.b.disks[0].content) == good
    assert len([event for event in pair.a.events if isinstance(event, InSyncEvent)]) == 1
    pair.tick(6 * NS_PER_S)
    pair.settle()
    assert not pair.a.session.sources[0].tracker.dirty(), "its flush is asked for, without any write"


def test_a_disk_that_is_all_wrong_is_given_up_in_bounded_steps() -> None:
    blocks = DOUBTS_MAX + 600
    pair = in_sync(blocks)
    pair.cut()
    for block in range(blocks):
        rot_digest(pair, "a", block)
    pair.b.disks[0].apply(a_write(0, 9, count=blocks))
    lack(pair, *range(blocks))
    pair.connect()
    pair.settle()
    assert not pair.linked
    assert len(findings(pair)) == FINDINGS_MAX
    (trouble,) = [event for event in pair.a.events if isinstance(event, TroubleEvent)]
    assert DOUBTS_MAX <= int(trouble.reason.split()[1]) < blocks
    assert all(content == 9 for content in pair.b.disks[0].content[::BLOCK_BYTES])


def test_many_wrong_blocks_that_the_peer_has_are_all_mended(pair: ManualPair) -> None:
    good = bytes(pair.a.disks[0].content)
    pair.cut()
    for block in range(0, BLOCKS, 2):
        flip(pair, "a", block)
    lack(pair, *range(BLOCKS))
    again(pair)
    assert trusted(pair)
    assert bytes(pair.a.disks[0].content) == bytes(pair.b.disks[0].content) == good


def test_without_digests_on_the_peer_nobody_can_help(pair: ManualPair) -> None:
    pair.cut()
    flip(pair, "a", 3)
    lack(pair, 3)
    pair.b.crash(power=False)
    pair.b.options = VolumeOptions(digests=False)
    pair.b.start(Role.STANDBY, 0)
    pair.settle()
    pair.tick(HOLD_OFF_NS_MAX)
    pair.connect()
    pair.settle()
    assert findings(pair) == [(3, "lost", False)]
    assert not pair.linked


BLOCK = st.integers(0, 20)
DAMAGE = st.tuples(st.sampled_from("ab"), st.sampled_from([flip, rot_digest]), BLOCK)
WRITE = st.tuples(st.integers(0, 200), st.integers(0, 21 * BLOCK_BYTES), st.integers(1, 9000))


@settings(max_examples=60)
@given(st.lists(DAMAGE, max_size=6), st.lists(WRITE, max_size=4), st.sets(BLOCK))
def test_whatever_is_wrong_no_good_copy_is_lost(
    damage: list[tuple[str, Callable[[ManualPair, str, int], None], int]],
    writes: list[tuple[int, int, int]],
    missing: set[int],
) -> None:
    """One wrong thing a block: where a write has not met it first, both hosts end with the good content."""
    pair = in_sync()
    good = bytearray(pair.a.disks[0].content)
    touched: set[int] = set()
    struck: set[int] = set()
    pair.cut()
    for host, strike, block in damage:
        if block not in struck:
            struck.add(block)
            strike(pair, host, block)
    # What the peer may have missed, under a wrong digest, is for a person.
    told = {block for host, strike, block in damage if host == "a" and strike is rot_digest}
    lack(pair, *missing - told)
    pair.connect()
    for steps, offset, length in writes:
        for _ in range(steps):
            pair.step()
        op = WriteOp(OpKind.DATA, offset, length, b"w" * length)
        good[offset : offset + length] = b"w" * length
        touched |= {offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES}
        pair.a.write("w", [op])
    pair.settle()
    assert trusted(pair)
    source = pair.a.session.sources[0]
    source.scrubber.start("scrub", repair=True, now_ns=pair.now_ns)
    for _ in range(20):
        pair.tick(NS_PER_S)
        pair.settle()
    assert not pair.differing()
    for block in set(range(BLOCKS)) - (touched & struck):
        at = block * BLOCK_BYTES
        assert pair.a.disks[0].content[at : at + BLOCK_BYTES] == good[at : at + BLOCK_BYTES]
