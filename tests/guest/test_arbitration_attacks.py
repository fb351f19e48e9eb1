"""What an adversary has tried against an arbitrated pair, each of which has worked once."""

from __future__ import annotations

import contextlib
import errno
import shutil
import time
from pathlib import Path

import pytest
import trio
from tests.guest.halves import FORK, TIMING, Both, Half, agreed, until
from tests.guest.harness import Host, Pair, in_time, noise

from pairsync.core.arbiter import Arbiter
from pairsync.core.arbitration import Accept, Stop
from pairsync.core.grants import FORK_BYTES
from pairsync.core.messages import OpKind, Role, WriteOp
from pairsync.core.timing import derive
from pairsync.core.units import BLOCK_BYTES, NS_PER_S
from pairsync.errors import ArbitrationError, BackendError
from pairsync.guest.config import VolumeConfig
from pairsync.guest.disks import Unopened
from pairsync.guest.door import Door
from pairsync.guest.guest import Guest
from pairsync.guest.replica import Replica
from pairsync.storage.lane import start_lane
from pairsync.testing.faulty import DiskState
from pairsync.wire.arbitration import decode_message

PATIENT = derive(8 * NS_PER_S)
"""For a test in which an answer is late on purpose: a busy machine makes it later."""

QUICK_S = 4.0  # less than the deadline of a disk: nobody has found out that it hangs


@pytest.fixture
def both(pair: Pair) -> Both:
    return Both(pair)


def exchange_disk(both: Both, host: Host) -> None:
    """Empty files where the replica's were; the register's memory stays."""
    for file in Path(both.pair.base / host).glob("vda*"):
        file.unlink()
    both.pair.create(hosts=host)


async def move_in_vain(half: Half, why: str = "given it back") -> None:
    """The guest does not stay with the other host: whoever asked hears why, or has seen it there before."""
    try:
        await half.arbitration.move()
    except ArbitrationError as error:
        if why not in str(error):
            raise


async def test_an_exchanged_disk_is_not_promoted_though_the_grant_calls_its_host_in_sync(both: Both) -> None:
    async with in_time():
        async with both.whole() as (first, _):
            await first.write(3)
        exchange_disk(both, "b")
        async with both.host("b") as second:
            await trio.sleep(1.5 * TIMING.failover_ns / NS_PER_S)
            assert not second.serves
            async with both.host("a") as first:
                await until(lambda: first.serves)
                assert await first.read(3) == noise(3)
                await until(lambda: agreed(first) and agreed(second) and first.guest.in_sync)
                await first.arbitration.move()
                await until(lambda: second.serves)
                assert await second.read(3) == noise(3)


@pytest.mark.parametrize("what", ["empty", "fails"])
async def test_a_host_that_could_not_serve_is_not_made_the_owner_and_says_why(both: Both, what: str) -> None:
    """It was: nobody ran the guest then, and nobody said why."""
    reason = "vda was never written" if what == "empty" else "Input/output error"
    async with in_time():
        async with both.whole() as (first, _):
            await first.write(3)
        for host in both.disks:
            exchange_disk(both, host)
        if what == "fails":
            both.disks["b"].set(DiskState.FAIL)
        async with both.host("b") as second:
            before = second.arbitration.arbiter.decider.base
            with pytest.raises(ArbitrationError, match=f"{reason}.*nothing was changed"):
                second.arbitration.override("Dr Weber", FORK)
            assert second.arbitration.arbiter.decider.base == before
            standing = second.arbitration.standing()
            assert standing is None or not standing.waits  # it does not own the guest
        async with both.host("a") as first:
            await until(lambda: first.arbitration.standing() is not None)
            standing = first.arbitration.standing()
            assert standing is not None
            assert "vda was never written" in standing.waits
            assert not first.serves


async def test_a_disk_from_before_the_last_moves_is_not_promoted(both: Both) -> None:
    async with in_time():
        async with both.whole() as (first, second):
            await first.write(3)
        here, backup = both.pair.base / "b", both.pair.base / "backup"
        shutil.copytree(here, backup)
        async with both.whole() as (first, second):
            for source, target in ((first, second), (second, first)):
                await source.arbitration.move()
                await until(lambda: target.serves)  # noqa: B023 - awaited in this round
                await target.write(4)
                await until(lambda: agreed(first) and agreed(second))
        for file in backup.glob("vda*"):
            shutil.copy2(file, here / file.name)
        async with both.host("b") as second:
            await trio.sleep(1.5 * TIMING.failover_ns / NS_PER_S)
            assert not second.serves
            async with both.host("a") as first:
                await until(lambda: agreed(first) and agreed(second) and first.guest.in_sync)
                await first.arbitration.move()
                await until(lambda: second.serves)
                assert await second.read(4) == noise(4)


async def test_a_permit_that_was_asked_for_is_taken_back_too(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with in_time(), both.whole() as (first, _):

        def permitted() -> bool:
            return first.guest.session._permit.alone

        assert not permitted()
        monkeypatch.setattr(Arbiter, "peer_excluded", True)
        first.arbitration.ask_alone()
        assert permitted()
        monkeypatch.setattr(Arbiter, "peer_excluded", False)
        await until(lambda: not permitted())


async def test_an_orderly_end_is_not_undone_by_a_grant_that_comes_meanwhile(both: Both) -> None:
    """The standby has just gone, and the last writes wait for a grant without it."""
    async with in_time(), both.host("a") as first:
        async with both.host("b") as second:
            await until(lambda: agreed(first) and agreed(second))
            assert first.guest.link is not None
            first.guest.link.cut()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(first.write, 5)
                await trio.sleep(0)
                began = trio.current_time()
                await first.arbitration.end()
                assert trio.current_time() - began < TIMING.failover_ns / NS_PER_S
            for _ in range(20):
                assert not first.serves
                await trio.sleep(0.01)
        grant = first.arbitration.arbiter.grant
        assert grant is not None
        assert grant.in_sync == {both.fingerprints["a"]}


async def ends_soon(both: Both, half: Half) -> bool:
    """Whether host ``a`` ends in order though its disk hangs."""

    async def write_in_vain() -> None:
        with contextlib.suppress(BackendError):
            await half.write(5)

    both.disks["a"].arm()
    await half.guest.use_threads("vda")
    both.disks["a"].set(DiskState.HANG)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_in_vain)
        await trio.sleep(0)
        with trio.move_on_after(2 * TIMING.failover_ns / NS_PER_S) as scope:
            await half.arbitration.end()
        both.disks["a"].set(DiskState.OK)
        await half.arbitration.end()
    return not scope.cancelled_caught


async def test_an_orderly_end_waits_for_a_disk_that_hangs_only_where_no_other_host_can_take_over(
    both: Both,
) -> None:
    async with in_time(), both.whole() as (first, _):
        await until(lambda: first.arbitration.arbiter.decider.peer_could_own)
        assert await ends_soon(both, first)
    async with in_time(), both.host("a") as first:
        await until(lambda: first.serves)
        await first.write(1)
        assert not await ends_soon(both, first)


async def test_who_asked_for_a_move_hears_that_nobody_knows_how_it_ended(both: Both) -> None:
    """All cables are cut when the old owner has asked for the one acceptance that it needs."""
    async with in_time(), both.whole() as (first, second):
        link = first.guest.link
        assert link is not None
        vote = link.vote

        def cut_there(content: bytes) -> None:
            if isinstance(decode_message(content), Accept):
                link.cut()
                first.cable.cut = True
            vote(content)

        link.vote = cut_there  # type: ignore[method-assign]
        with pytest.raises(ArbitrationError, match="went silent"):
            await first.arbitration.move()
        await until(lambda: second.serves)
        assert not first.serves
        link.heal()
        first.cable.cut = False
        await until(lambda: agreed(first) and agreed(second))


async def test_a_move_that_was_decided_is_not_told_as_failed_while_it_is_written_down(both: Both) -> None:
    both.timings = {"a": PATIENT, "b": PATIENT}
    async with in_time(), both.whole() as (first, second):
        memory = first.arbitration._memory
        store = memory.store

        def slow(state: bytes) -> None:
            time.sleep(0.15)
            store(state)

        memory.store = slow  # type: ignore[method-assign]
        nursery, _ = first.arbitration._running()
        first.arbitration._lane = await start_lane(nursery, "slow", may_block=True)
        await first.arbitration.move()
        await until(lambda: second.serves)


async def test_a_guest_is_served_while_what_it_wrote_is_flushed_before_a_move(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with in_time(), both.whole() as (first, second):
        volume, slow = first.guest.volume("vda"), trio.Event()
        flush = volume.flush

        async def wait_and_flush() -> None:
            await slow.wait()
            await flush()

        monkeypatch.setattr(volume, "flush", wait_and_flush)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.arbitration.move)
            await trio.sleep(0.1)
            await first.write(3)
            assert first.serves
            slow.set()
        await until(lambda: second.serves)
        assert await second.read(3) == noise(3)


async def test_a_replica_that_failed_just_before_a_move_is_out_of_sync_after_it(both: Both) -> None:
    """Nothing was left to be flushed there: it counted as stopped in order."""
    async with in_time(), both.whole() as (first, second):
        await until(lambda: first.arbitration.arbiter.decider.peer_could_own)
        first.guest.session.sources[0].abandon("a flush failed: EIO")  # nobody has looked at it yet
        refusal, effects = first.arbitration.arbiter.move(first.arbitration._now_ns())
        assert refusal == ""
        first.arbitration._act(effects)
        await until(lambda: second.serves)
        grant = second.arbitration.arbiter.grant
        assert grant is not None
        assert grant.in_sync == {both.fingerprints["b"]}


@pytest.mark.parametrize("host", ["a", "b"])
async def test_a_move_does_not_stand_still_with_a_disk_that_does(
    both: Both, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hangs when all was flushed and the guest is about to be halted: a move comes about without the old
    owner's disk, and is taken back where the new one's is waited for.  Either way a client is served on."""
    async with in_time(), both.whole() as (first, second):
        halves = {"a": first, "b": second}
        disk, door, volume = both.disks[host], Door(first.guest, "vda"), first.guest.volume("vda")
        Door(second.guest, "vda")
        disk.arm()
        await halves[host].guest.use_threads("vda")
        flush, answers, since_s = volume.flush, list[object](), trio.current_time()

        async def flush_and_hang() -> None:
            await flush()
            disk.set(DiskState.HANG)
            door.submit([WriteOp(OpKind.DATA, 3 * BLOCK_BYTES, BLOCK_BYTES, noise(3))], answers.append)

        monkeypatch.setattr(volume, "flush", flush_and_hang)
        if host == "a":
            await first.arbitration.move()
            await until(lambda: bool(answers))
            assert second.serves
        else:
            with pytest.raises(ArbitrationError, match="too slow"):
                await first.arbitration.move()
            await until(lambda: bool(answers))
            assert first.serves
        assert answers == [None]
        assert trio.current_time() - since_s < QUICK_S
        disk.set(DiskState.OK)
        await until(lambda: agreed(first) and agreed(second))
        assert await halves["b" if host == "a" else "a"].read(3) == noise(3)
    assert both.pair.same()


async def test_a_host_whose_disk_fails_as_it_takes_over_a_moved_guest_gives_it_back(both: Both) -> None:
    """It owned the guest alone, and its process ended: nobody could run the guest any more."""
    async with in_time(), both.whole() as (first, second):
        await first.write(3)
        disks, broken = second.guest._disks, True
        opener = disks._opener

        def fails(volume: VolumeConfig, pair_id: bytes) -> Replica:
            if broken:
                raise BackendError("no such disk", errno.EIO)
            return opener(volume, pair_id)

        disks._opener = fails
        await move_in_vain(first)
        await until(lambda: first.serves)
        grant = first.arbitration.arbiter.grant
        assert grant is not None
        assert (grant.term, grant.in_sync) == (3, frozenset({both.fingerprints["a"]}))
        assert await first.read(3) == noise(3)
        await first.write(4)
        broken = False
        await until(lambda: agreed(first) and agreed(second))
        await first.arbitration.move()
        await until(lambda: second.serves)
        assert await second.read(4) == noise(4)


async def test_who_asked_for_a_move_hears_that_the_guest_was_given_back_meanwhile(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was told that the other host went silent, where two looks had the guest there in between them."""
    monkeypatch.setattr("pairsync.guest.arbitration.MOVE_LOOK_S", TIMING.failover_ns / NS_PER_S)
    async with in_time(), both.whole() as (first, second):

        def fails(volume: VolumeConfig, pair_id: bytes) -> Replica:
            raise BackendError("no such disk", errno.EIO)

        second.guest._disks._opener = fails
        with pytest.raises(ArbitrationError, match="the other host has given it back"):
            await first.arbitration.move()
        await until(lambda: first.serves)


async def test_who_has_handed_over_takes_over_again_at_once(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new owner is lost before the two could compare what they have; for they are equal by the move."""
    async with in_time(), both.host("a") as first:
        async with both.host("b") as second:
            await until(lambda: agreed(first) and agreed(second))
            await first.write(3)
            monkeypatch.setattr(
                Guest, "rejoin", lambda guest, _: guest.perform()
            )  # no session of the replicas
            await first.arbitration.move()
            await until(lambda: (now := first.arbitration.standing()) is not None and now.epoch == 2)
            assert second.guest.link is not None
            second.guest.link.cut()
            second.cable.cut = True
        await until(lambda: first.serves)
        assert await first.read(3) == noise(3)


async def test_a_disk_that_fails_before_the_replicas_have_met_again_is_left_to_who_has_moved_the_guest_here(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its clients got EIO, though the other host had all and the grant said so."""
    async with in_time(), both.whole() as (first, second):
        monkeypatch.setattr(Guest, "rejoin", lambda guest, _: guest.perform())  # no session of the replicas
        Door(first.guest, "vda")
        door = Door(second.guest, "vda")
        await first.write(3)
        await first.arbitration.move()
        await until(lambda: second.serves and second.arbitration.arbiter.decider.peer_ready)
        assert not second.guest.in_sync
        answers = list[object]()
        both.disks["b"].arm()
        await second.guest.use_threads("vda")
        both.disks["b"].set(DiskState.FAIL)
        door.submit([WriteOp(OpKind.DATA, 4 * BLOCK_BYTES, BLOCK_BYTES, noise(4))], answers.append)
        await until(lambda: bool(answers))
        assert answers == [None]
        assert first.serves
        assert [await first.read(block) for block in (3, 4)] == [noise(3), noise(4)]
        both.disks["b"].set(DiskState.OK)


async def test_a_disk_that_fails_is_not_left_to_a_host_that_lacks_a_write(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was acknowledged since the guest moved here, before the replicas have met."""
    async with in_time(), both.whole() as (first, second):
        monkeypatch.setattr(Guest, "rejoin", lambda guest, _: guest.perform())
        door = Door(second.guest, "vda")
        await first.arbitration.move()
        await until(lambda: second.serves and second.arbitration.arbiter.decider.peer_ready)
        await second.write(3)  # by a grant that leaves the other one out
        both.disks["b"].arm()
        await second.guest.use_threads("vda")
        both.disks["b"].set(DiskState.FAIL)
        answers = list[object]()
        door.submit([WriteOp(OpKind.DATA, 4 * BLOCK_BYTES, BLOCK_BYTES, noise(4))], answers.append)
        await until(lambda: bool(answers))
        assert answers == [[errno.EIO]]
        assert not first.serves
        both.disks["b"].set(DiskState.OK)
        assert await second.read(3) == noise(3)


async def test_a_disk_that_fails_while_the_guest_halts_to_move_puts_out_its_own_replica(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one was put out for it, and the guest was served from what was left here: an empty disk."""
    async with in_time(), both.whole() as (first, second):
        await first.write(3)
        monkeypatch.setattr(
            first.guest._disks.replicas[0].store,
            "write_superblock",
            lambda _: (_ for _ in ()).throw(BackendError("pulled out", errno.EIO)),
        )
        await first.arbitration.move()
        await until(lambda: second.serves)
        grant = second.arbitration.arbiter.grant
        assert grant is not None
        assert grant.order == (2, 1)
        assert grant.in_sync == {both.fingerprints["b"]}
        assert await second.read(3) == noise(3)


async def test_a_disk_that_was_exchanged_while_it_was_opened_anew_is_not_served(both: Both) -> None:
    async with in_time(), both.whole() as (first, second):
        await first.write(3)
        disks = second.guest._disks
        opener = disks._opener

        def exchanged(volume: VolumeConfig, pair_id: bytes) -> Replica:
            disks._opener = opener
            exchange_disk(both, "b")
            return opener(volume, pair_id)

        disks._opener = exchanged
        await move_in_vain(first)
        await until(lambda: first.serves)
        assert not second.serves
        assert await first.read(3) == noise(3)


async def test_who_is_overruled_while_its_disks_are_opened_serves_nothing(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It began to serve under the old term, and stopped a moment later."""
    async with in_time(), both.whole() as (first, second):
        await first.write(3)
        disks, roles = second.guest._disks, list[Role | None]()
        reopen, renew = disks.reopen, second.guest.renew

        async def slowly(*, term: int, within_s: float) -> Unopened | None:
            monkeypatch.setattr(disks, "reopen", reopen)
            first.arbitration.override("Dr Weber", b"o" * FORK_BYTES)
            await until(lambda: isinstance(second.arbitration._wish, Stop))
            return await reopen(term=term, within_s=within_s)

        def renewed(role: Role | None = None, term: int = 0, *, ill: bool = False) -> None:
            roles.append(role)
            renew(role, term, ill=ill)

        monkeypatch.setattr(disks, "reopen", slowly)
        monkeypatch.setattr(second.guest, "renew", renewed)
        await move_in_vain(first, "a person has said otherwise")
        await until(lambda: agreed(first) and agreed(second))
        assert first.serves
        assert roles
        assert set(roles) == {Role.STANDBY}
        assert await first.read(3) == noise(3)


async def test_who_is_overruled_while_its_metadata_hang_serves_nothing(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads were answered while its new role was not durable yet, for up to ten seconds."""
    async with in_time(), both.whole() as (first, second):
        await first.write(3)
        disk, guest, served = both.disks["b"], second.guest, list[bool]()
        disk.arm()
        await guest.use_threads("vda")
        renew, turn = guest.renew, guest.turn

        def renewed(role: Role | None = None, term: int = 0, *, ill: bool = False) -> None:
            renew(role, term, ill=ill)
            if role is Role.ACTIVE:
                monkeypatch.setattr(guest, "renew", renew)
                disk.set(DiskState.HANG)
                first.arbitration.override("Dr Weber", b"o" * FORK_BYTES)

        def turned() -> None:
            served.append(guest.serves)
            turn()

        monkeypatch.setattr(guest, "renew", renewed)
        monkeypatch.setattr(guest, "turn", turned)
        await move_in_vain(first, "a person has said otherwise")
        await until(lambda: first.serves)
        disk.set(DiskState.OK)
        await until(lambda: agreed(first) and agreed(second))
        assert first.serves
        assert served
        assert not any(served)


async def test_a_guest_goes_on_without_a_standby_that_was_back_before_it_was_left_out(
    both: Both,
) -> None:
    """The witness was away while the link flapped.  When the standby's disk failed later, nobody asked
    whether the guest may go on without it, and it stood still."""
    async with in_time(), both.whole() as (first, second):
        arbiter = first.arbitration.arbiter
        await until(lambda: first.arbitration.in_sync)
        first.cable.cut = True
        await first.write(1)
        assert first.guest.link is not None
        first.guest.link.renew_session("a flap")
        await until(lambda: not arbiter.decider.vouched)
        await until(lambda: agreed(first) and first.guest.in_sync and arbiter.decider.vouched)
        first.cable.cut = False
        both.disks["b"].arm()
        await second.guest.use_threads("vda")
        both.disks["b"].set(DiskState.FAIL)
        await first.write(2)
        assert arbiter.peer_excluded
        assert arbiter.decider.peer_alive
        both.disks["b"].set(DiskState.OK)
