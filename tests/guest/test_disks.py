"""The open replicas of a guest: their queues, opening them anew, and leaving behind what hangs."""

from __future__ import annotations

import errno
import threading
from dataclasses import replace
from functools import partial

import pytest
import trio
from tests.guest.harness import PAIR_ID, Pair, in_time

from pairsync.core.limits import FLUSH_DEADLINES, VolumeOptions
from pairsync.core.messages import Role
from pairsync.core.units import NS_PER_MS
from pairsync.errors import BackendError, BusyError, ClosedError
from pairsync.guest import disks as disks_module
from pairsync.guest.config import VolumeConfig
from pairsync.guest.disks import Disks, _Opening, describe_hang, open_disks
from pairsync.guest.replica import Replica, flush_job, open_replica
from pairsync.storage import lane as lane_module
from pairsync.storage.lane import InlineLane, IoLane, Lane
from pairsync.testing.faulty import DiskState, FaultyDisk

QUICK = VolumeOptions(disk_deadline_ns=100 * NS_PER_MS)


def _kinds(disks: Disks, index: int = 0) -> set[type]:
    lanes = disks.lanes[index]
    return {type(lane) for lane in (lanes.data, lanes.meta, lanes.side)}


async def test_they_are_open_for_the_block(pair: Pair) -> None:
    async with in_time(), open_disks(pair.config("b"), open_replica) as disks:
        assert disks.idle
        assert [replica.name for replica in disks.replicas] == ["vda"]
        with pytest.raises(BusyError):
            open_replica(VolumeConfig("vda", pair.image("b")), PAIR_ID)
    open_replica(VolumeConfig("vda", pair.image("b")), PAIR_ID).close()


async def test_what_cannot_be_opened_leaves_nothing_open(pair: Pair) -> None:
    config = pair.config("b", names=("vda", "vdb"))
    with pytest.raises(BaseExceptionGroup) as raised:
        async with in_time(), open_disks(replace(config, role=Role.ACTIVE), open_replica):
            pytest.fail("it was opened")
    assert raised.group_contains(BackendError, match="vdb")
    async with in_time(), open_disks(config, open_replica) as disks:  # a standby begins without
        assert disks.unopened is not None
        volume, reason = disks.unopened.ailment
        assert (volume, "No such file" in reason) == ("vdb", True)
        assert (disks.replicas, disks.lanes) == ([], [])
        open_replica(VolumeConfig("vda", pair.image("b")), PAIR_ID).close()
        pair.create("vdb")
        assert await disks.reopen() is None
        assert [replica.name for replica in disks.replicas] == ["vda", "vdb"]


async def test_what_another_process_has_is_told_at_once_to_a_standby_too(pair: Pair) -> None:
    replica = open_replica(VolumeConfig("vda", pair.image("b")), PAIR_ID)
    with pytest.raises(BaseExceptionGroup) as raised:
        async with in_time(), open_disks(pair.config("b"), open_replica):
            pytest.fail("it was opened")
    assert raised.group_contains(BusyError)
    replica.close()


async def test_a_standby_begins_without_a_disk_that_hangs(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the attempt that was left behind does not stand in the way of the next one, which waits for it."""
    monkeypatch.setattr(disks_module, "OPENING_S", 0.2)
    disk = FaultyDisk(DiskState.HANG)
    opener = partial(open_replica, open_file=disk.open)
    async with in_time(), open_disks(pair.config("b"), opener) as disks:
        assert disks.unopened is not None
        assert disks.unopened.ailment == ("vda", "volume vda: the disk hangs while it is opened")
        unopened = await disks.reopen(within_s=0.1)
        assert unopened is not None
        assert unopened.ailment == disks.unopened.ailment
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disks.reopen)
            await trio.sleep(0.1)
            assert disks.opening == "vda"
            disk.set(DiskState.OK)
        assert len(disks.lanes) == 1


async def test_who_gives_up_while_it_opens_has_given_the_files_back(pair: Pair) -> None:
    opened, go = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()

    def opener(volume: VolumeConfig, pair_id: bytes) -> Replica:
        replica = open_replica(volume, pair_id)
        token.run_sync_soon(opened.set)
        go.wait(30)
        return replica

    async def give_up(scope: trio.CancelScope) -> None:
        await opened.wait()
        scope.cancel()
        await trio.sleep(0.05)  # who left could have opened it again by now
        go.set()

    async with in_time(), trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(give_up, scope)
            async with open_disks(pair.config("b"), opener):
                pytest.fail("it was opened")
        open_replica(VolumeConfig("vda", pair.image("b")), PAIR_ID).close()


def test_an_attempt_that_nobody_waits_for_any_more_is_not_begun(pair: Pair) -> None:
    opening = _Opening(open_replica, VolumeConfig("vda", pair.image("b")), PAIR_ID, 0, active=False)
    opening.abandon()
    with pytest.raises(ClosedError, match="nobody waits"):
        opening.run()
    assert not opening.runs
    open_replica(VolumeConfig("vda", pair.image("b")), PAIR_ID).close()


@pytest.mark.parametrize("kind", ["data", "meta", "side"])
async def test_who_is_closed_while_it_is_to_open_anew_has_no_queue_half_closed(pair: Pair, kind: str) -> None:
    """A standby that is just being mended: its end asked a closed queue to record it."""
    async with in_time(), open_disks(pair.config("b"), open_replica) as disks:
        lane: Lane = getattr(disks.lanes[0], kind)
        close = lane.aclose
        with trio.CancelScope() as scope:

            async def closes() -> None:
                scope.cancel()
                await close()

            lane.aclose = closes  # type: ignore[method-assign]
            await disks.reopen()
        assert scope.cancelled_caught
        assert disks.lanes == []


async def test_queues_in_memory_become_threads(pair: Pair) -> None:
    async with in_time(), open_disks(pair.config("b"), open_replica) as disks:
        assert _kinds(disks) == {InlineLane}
        await disks.use_threads(0)
        assert _kinds(disks) == {IoLane}
        lane = disks.lanes[0].side
        await disks.use_threads(0)
        assert disks.lanes[0].side is lane
        assert await lane.run(partial(flush_job, disks.replicas[0].device)) == 0


async def test_they_are_opened_anew(pair: Pair) -> None:
    async with in_time(), open_disks(pair.config("b"), open_replica) as disks:
        before = disks.replicas[0]
        assert await disks.reopen() is None
        assert disks.replicas[0] is not before
        assert await disks.lanes[0].side.run(partial(flush_job, disks.replicas[0].device)) == 0


async def test_what_is_gone_is_named_and_tried_again(pair: Pair) -> None:
    pair.create("vdb")
    async with in_time(), open_disks(pair.config("b", names=("vda", "vdb")), open_replica) as disks:
        away = pair.image("b", "vdb").rename(pair.base / "away")
        for _ in range(2):
            unopened = await disks.reopen()
            assert unopened is not None
            assert unopened.volume == "vdb"
            assert unopened.error.errno == errno.ENOENT  # type: ignore[union-attr]  # it is no BusyError
            assert disks.lanes == []
            assert disks.idle
            await disks.use_threads(1)  # nothing is there to have queues
        open_replica(VolumeConfig("vda", pair.image("b")), PAIR_ID).close()  # nothing is held meanwhile
        away.rename(pair.image("b", "vdb"))
        assert await disks.reopen() is None
        assert len(disks.lanes) == 2


async def test_a_disk_that_can_be_opened_must_work_too(pair: Pair) -> None:
    """It fails only once it is open: what is opened is tried before it is believed."""
    disk = FaultyDisk()

    def opener(volume: VolumeConfig, pair_id: bytes) -> Replica:
        disk.set(DiskState.OK)
        replica = open_replica(volume, pair_id, open_file=disk.open)
        disk.set(DiskState.FAIL if fails else DiskState.OK)
        return replica

    fails = False
    async with in_time(), open_disks(pair.config("b"), opener) as disks:
        fails = True
        unopened = await disks.reopen()
        assert unopened is not None
        assert "Input/output error" in str(unopened.error)
        fails = False
        assert await disks.reopen() is None


async def test_opening_that_hangs_holds_up_nobody(pair: Pair) -> None:
    disk = FaultyDisk()
    opener = partial(open_replica, open_file=disk.open)
    async with in_time(), open_disks(pair.config("b"), opener) as disks:
        disk.set(DiskState.OK)  # armed: what follows is done in a thread
        await disks.use_threads(0)
        disk.set(DiskState.HANG)
        with trio.move_on_after(0.2) as scope:
            await disks.reopen()
        assert scope.cancelled_caught
        assert disks.lanes == []
    disk.set(DiskState.OK)  # the thread that was left behind closes what it has opened
    with trio.fail_after(30):
        while True:
            try:
                open_replica(VolumeConfig("vda", pair.image("b")), PAIR_ID).close()
            except BusyError:
                await trio.sleep(0.01)
            else:
                break


@pytest.mark.parametrize(("what", "factor"), [("data", 1), ("meta", 1), ("side", FLUSH_DEADLINES)])
async def test_a_job_is_overdue_after_its_deadline(pair: Pair, what: str, factor: int) -> None:
    hold = threading.Event()
    async with in_time(), open_disks(pair.config("b", options=QUICK), open_replica) as disks:
        assert disks.overdue_ns(0) == 0
        await disks.use_threads(0)
        started = trio.current_time()
        lane: Lane = getattr(disks.lanes[0], what)
        lane.submit(hold.wait, lambda _: None)
        assert not disks.idle
        while not disks.overdue_ns(0):
            await trio.sleep(0.01)
        assert trio.current_time() - started >= factor * 0.1
        hold.set()
        await lane.run(lambda: None)
        assert disks.overdue_ns(0) == 0


@pytest.mark.parametrize("known", [True, False])
async def test_the_end_does_not_wait_for_a_disk_that_hangs(
    pair: Pair, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor for one that began to hang just now: for its deadline, not for that of closing."""
    monkeypatch.setattr(lane_module, "LANE_STOP_S", 0.2)
    hold = threading.Event()

    async def hang() -> None:
        async with in_time(), open_disks(pair.config("b", options=QUICK), open_replica) as disks:
            await disks.use_threads(0)
            disks.lanes[0].data.submit(hold.wait, lambda _: None)
            while known and not disks.overdue_ns(0):
                await trio.sleep(0.01)

    began = trio.current_time()
    with pytest.raises(BaseExceptionGroup) as raised:
        await hang()
    hold.set()
    assert trio.current_time() - began < lane_module.LANE_CLOSE_S / 4
    assert raised.group_contains(BackendError, match="vda-data: a job has been running")
    open_replica(VolumeConfig("vda", pair.image("b")), PAIR_ID).close()


def test_a_hang_in_words() -> None:
    assert describe_hang(5_123 * NS_PER_MS) == "the disk hangs: an operation has been running for 5.1 s"
