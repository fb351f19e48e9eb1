"""A guest's half of the grant register: two hosts and a witness in one process, with real links and files.

What is agreed is explored elsewhere; here it is *done*: roles change, permits are given and taken back,
leases reach the warden, memories are durable before anybody hears of them.
"""

from __future__ import annotations

import time

import pytest
import trio
from tests.guest.halves import TIMING, Both, Half, agreed, until
from tests.guest.harness import Host, Pair, await_event, in_time, noise

from pairsync.core.events import DiscordEvent, GrantEvent, TimingEvent
from pairsync.core.grants import FORK_BYTES
from pairsync.core.messages import OpKind, WriteOp
from pairsync.core.timing import derive
from pairsync.core.timingjudge import Measure, TimingVerdict
from pairsync.core.units import BLOCK_BYTES, NS_PER_S
from pairsync.errors import ArbitrationError
from pairsync.guest.arbitration import Arbitration
from pairsync.guest.door import Door
from pairsync.guest.standing import Standing
from pairsync.storage.acceptorfile import AcceptorFile


@pytest.fixture
def both(pair: Pair) -> Both:
    return Both(pair)


def redundant(half: Half) -> bool:
    """Whether it says that no single failure stops the guest."""
    seen = half.arbitration.outlook()
    return seen is not None and seen.redundant


async def test_the_first_owner_serves_and_all_three_agree_once_both_are_in_sync(both: Both) -> None:
    async with in_time(), both.whole() as (first, second):
        assert first.serves
        assert not second.serves
        assert first.warden.until_ns is not None  # others could take over: it has a lease
        assert second.warden.resting
        standing = second.arbitration.standing()
        assert standing is not None
        assert (standing.owner, standing.in_sync, standing.sole) == ("peer", ("here", "peer"), False)
        assert standing.witness == "hill"
        first.arbitration.arbiter.decider.peer_ready = False  # as before its first answer under that grant
        assert not redundant(first)
        await until(lambda: redundant(first))
        assert second.arbitration.outlook() is None
    grants = [both.remembers(host).base for host in ("a", "b")]
    assert grants[0] == grants[1]


async def test_a_lost_owner_is_replaced_and_is_a_standby_when_it_is_back(both: Both) -> None:
    async with in_time(), both.host("b") as second:
        async with both.host("a") as first:
            await until(lambda: agreed(first) and agreed(second))
            await first.write(3)
        began = trio.current_time()
        await until(lambda: second.serves)
        assert trio.current_time() - began < TIMING.failover_ns / NS_PER_S
        assert await second.read(3) == noise(3)
        assert second.warden.until_ns is None  # it decides alone: no lease
        await second.write(4)
        async with both.host("a") as first:
            await until(lambda: agreed(first) and agreed(second))
            assert not first.serves
            assert second.serves
            await second.guest.volume("vda").flush()
    assert both.pair.same()


async def test_a_cut_link_leaves_the_guest_where_it_is_and_the_peer_out(both: Both) -> None:
    async with in_time(), both.whole() as (first, second):
        assert first.guest.link is not None
        first.guest.link.cut()
        await first.write(5)  # acknowledged only when the peer is out by grant
        grant = first.arbitration.arbiter.grant
        assert grant is not None
        assert grant.in_sync == {both.fingerprints["a"]}
        await trio.sleep(TIMING.failover_ns / NS_PER_S)
        assert first.serves
        assert not second.serves
        first.guest.link.heal()
        await until(lambda: agreed(first) and agreed(second))


async def test_an_owner_that_reaches_nobody_stops_before_the_other_one_starts(both: Both) -> None:
    async with in_time(), both.whole() as (first, second):
        assert first.guest.link is not None
        first.guest.link.cut()
        first.cable.cut = True
        overlap = False

        async def look() -> None:
            nonlocal overlap
            while True:
                overlap = overlap or (first.serves and second.serves)
                await trio.sleep(0.001)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            await until(lambda: second.serves)
            assert not first.serves
            await second.write(6)
            nursery.cancel_scope.cancel()
        assert not overlap
        first.guest.link.heal()
        first.cable.cut = False
        await until(lambda: agreed(first) and agreed(second))
        assert second.serves
        assert not first.serves


async def test_the_owner_outlives_its_witness_and_then_its_peer(both: Both) -> None:
    both.timings = dict.fromkeys(both.fingerprints, derive(5 * NS_PER_S))  # no lease may run out before
    async with in_time(), both.host("a") as first:
        async with both.host("b") as second:
            await until(lambda: agreed(first) and agreed(second))
            for half in (first, second):
                half.cable.cut = True
            await until(lambda: (now := first.arbitration.standing()) is not None and now.sole)
        await first.write(7)
        assert first.serves


async def test_a_planned_move_goes_there_and_back(both: Both) -> None:
    async with in_time(), both.whole() as (first, second):
        for source, target in ((first, second), (second, first)):
            await source.write(8)
            with target.guest.subscribe() as events:
                await source.arbitration.move()
                await until(lambda: target.serves)  # noqa: B023 - awaited in this round
                assert (await await_event(events, GrantEvent)).owner == "here"
            assert await target.read(8) == noise(8)
            await target.write(9)
            await until(lambda: agreed(first) and agreed(second))
        assert first.serves


async def test_a_move_that_cannot_be_says_why(both: Both) -> None:
    async with in_time(), both.host("a") as first:
        await until(lambda: first.serves)
        with pytest.raises(ArbitrationError, match="the other host is not in sync"):
            await first.arbitration.move()
    async with in_time(), both.host("b") as second:
        with pytest.raises(ArbitrationError, match="the guest does not run here"):
            await second.arbitration.move()


async def test_a_person_may_overrule_and_it_is_told_as_two_truths(both: Both) -> None:
    async with in_time():
        async with both.whole() as (first, second):
            assert first.guest.link is not None
            first.guest.link.cut()
            await first.write(10)  # it goes on alone
        async with both.host("b") as second:
            await trio.sleep(2 * TIMING.failover_ns / NS_PER_S)
            assert not second.serves  # nobody lets it
            second.arbitration.override("Dr Weber", b"o" * FORK_BYTES, above=40)
            await until(lambda: second.serves)
            grant = second.arbitration.arbiter.grant
            assert grant is not None
            assert (grant.override, grant.term) == ("Dr Weber", 41)
            assert await second.read(10) == bytes(BLOCK_BYTES)
            await second.write(12)
            async with both.host("a") as first:
                await until(lambda: (now := first.arbitration.standing()) is not None and now.term == 41)
                await until(lambda: "diverged" in (second.guest.session.refusal or ""))
                assert not first.serves
                told, theirs = first.arbitration.standing(), second.arbitration.standing()
                assert isinstance(told, Standing)
                assert isinstance(theirs, Standing)
                assert (told.owner, told.override) == ("peer", "Dr Weber")
                assert (theirs.owner, theirs.override, theirs.in_sync) == ("here", "Dr Weber", ("here",))
                assert second.guest.session.met is not None
                assert len(second.guest.session.met.volumes[0].lineage) == 2


async def test_an_override_of_a_host_that_serves_is_recorded_by_both_before_the_other_is_in_sync(
    both: Both,
) -> None:
    """It changed the term of the grant alone: the standby was called in sync, and could not be promoted."""
    async with in_time(), both.whole() as (first, second):
        before = first.guest.session.term
        async with trio.open_nursery() as nursery:
            for block in range(3):
                nursery.start_soon(first.write, block)
            await trio.lowlevel.checkpoint()
            first.arbitration.override("Dr Weber", b"o" * FORK_BYTES)
        await until(lambda: first.serves and first.arbitration.in_sync)
        grant = first.arbitration.arbiter.grant
        assert grant is not None
        assert grant.term > before
        assert len(grant.voters) == 3
        assert first.guest.session.term == grant.term
        assert [each.superblock.term for each in second.guest.session.targets] == [grant.term]
        await first.arbitration.move()
        await until(lambda: second.serves)
        for block in range(3):
            assert await second.read(block) == noise(block)


@pytest.mark.parametrize("older", ["a", "b"])
async def test_a_host_of_the_version_before_is_understood_and_understands(both: Both, older: Host) -> None:
    both.protocol_max[older] = 1
    async with in_time(), both.whole() as (first, second):
        assert first.guest.link is not None
        assert first.guest.link.session is not None
        assert first.guest.link.session.protocol == 1
        assert first.arbitration.arbiter.standby_asks, "as the owner: the standby cannot say"
        await first.write(3)
        await first.arbitration.move()
        await until(lambda: second.serves)
        assert await second.read(3) == noise(3)


async def test_hosts_with_different_failover_times_say_so_and_the_owner_serves_alone(both: Both) -> None:
    async with in_time():
        async with both.whole() as (first, second):
            assert second.guest.in_sync
        both.timings["b"] = derive(3 * NS_PER_S)
        async with both.host("b") as second, both.host("a") as first:
            with first.guest.subscribe() as here, second.guest.subscribe() as there:
                told = [await await_event(here, DiscordEvent), await await_event(there, DiscordEvent)]
                assert told == [DiscordEvent(2.0, 3.0), DiscordEvent(3.0, 2.0)]
            await until(lambda: first.serves)
            await until(lambda: (now := first.arbitration.standing()) is not None and now.sole)
            await first.write(11)  # needs nobody
            assert not first.arbitration.in_sync
            assert first.warden.until_ns is None
        del both.timings["b"]
        async with both.host("b") as second, both.host("a") as first:
            await until(lambda: agreed(first) and agreed(second))
            assert await first.read(11) == noise(11)


async def test_what_it_takes_is_measured_while_it_runs(both: Both) -> None:
    async with in_time(), both.whole() as (first, second):
        measured = dict.fromkeys(Measure, 0)
        take = first.arbitration.punctuality.measured

        def count(what: Measure, sample_ns: int, now_ns: int) -> None:
            measured[what] += 1
            take(what, sample_ns, now_ns)

        first.arbitration.punctuality.measured = count  # type: ignore[method-assign]
        first.warden.late_ns = 2 * TIMING.stall_ns
        with first.guest.subscribe() as events:
            event = await await_event(events, TimingEvent)
        assert event.verdict == "broken"
        assert first.arbitration.punctuality.judgement.verdict is TimingVerdict.BROKEN
        assert first.guest.link is not None
        first.guest.link.cut()
        first.cable.cut = True
        await until(lambda: second.serves)
        first.guest.link.heal()
        first.cable.cut = False
        await until(lambda: agreed(first) and agreed(second))
        await second.arbitration.move()
        await until(lambda: first.serves)
        assert min(measured.values()) > 0, measured


async def test_a_door_is_shut_from_the_first_request_on_that_comes_without_a_lease(both: Both) -> None:
    async with in_time(), both.whole() as (first, _):
        door = Door(first.guest, "vda")
        await first.write(1)
        content = bytearray(BLOCK_BYTES)
        assert door.read_nowait(BLOCK_BYTES, memoryview(content))
        assert content == noise(1)
        first.warden.valid = False
        answered: list[object] = []
        assert not door.read_nowait(BLOCK_BYTES, memoryview(content))
        door.submit([WriteOp(OpKind.DATA, 0, BLOCK_BYTES, memoryview(noise(2)), False)], answered.append)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(door.read, BLOCK_BYTES, memoryview(content))
            await trio.sleep(0.2)
            assert (answered, first.serves) == ([], False)
            assert len(nursery.child_tasks) == 1
            first.warden.valid = True
        assert content == noise(1)
        await until(lambda: bool(answered))
        assert answered == [None]
        assert await first.read(0) == noise(2)


async def test_what_was_read_while_the_lease_ran_out_is_not_told(both: Both) -> None:
    async with in_time(), both.whole() as (first, _):
        door = Door(first.guest, "vda")
        await first.write(1)
        read_into, reads = first.guest.volume("vda").read_into, 0

        async def slow(offset: int, into: memoryview) -> None:
            nonlocal reads
            reads += 1
            await read_into(offset, into)
            first.warden.valid = reads > 1

        first.guest.volume("vda").read_into = slow  # type: ignore[method-assign]
        content = bytearray(BLOCK_BYTES)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(door.read, BLOCK_BYTES, memoryview(content))
            await until(lambda: reads == 1)
            await trio.sleep(0.1)
            assert content == bytes(BLOCK_BYTES)
            first.warden.valid = True
        assert (bytes(content), reads) == (noise(1), 2)


async def test_an_orderly_end_is_not_told_as_another(both: Both, caplog: pytest.LogCaptureFixture) -> None:
    async with in_time():
        async with both.whole() as (first, _):
            await first.write(3)
            await first.arbitration.end()
        assert "not closed in order" not in caplog.text
        async with both.host("a") as first:
            await until(lambda: first.serves)
            first.guest.session.sources[0].abandon("its disk fails")
            await first.arbitration.end()
        assert caplog.text.count("not closed in order") == 1


async def test_an_end_while_it_writes_down_what_it_has_promised_is_no_failure(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not written down then, nobody was told."""
    store = AcceptorFile.store
    slow = False

    def store_slowly(file: AcceptorFile, state: bytes) -> None:
        if slow:
            time.sleep(0.3)
        store(file, state)

    monkeypatch.setattr(AcceptorFile, "store", store_slowly)
    monkeypatch.setattr(AcceptorFile, "may_block", True)
    async with in_time(), both.whole() as (first, _):
        slow = True
        for _ in range(2):  # one is being written, and one waits behind it
            first.arbitration.override("Dr Weber", b"o" * FORK_BYTES)


async def test_after_its_end_it_asks_nobody_for_anything(both: Both) -> None:
    """The volumes may take their time to close; what their session asked for then was an error."""
    async with in_time(), both.whole() as (first, _):
        arbitration: Arbitration = first.arbitration
    arbitration.ask_alone()
    assert arbitration.arbiter.decider.register.round is not None, "it would, if it lived"
