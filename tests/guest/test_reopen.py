"""A standby whose disk fails, hangs, fills up or vanishes: the guest goes on, the pair comes back."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from tests.guest.harness import PAIR_ID, Pair, await_event, in_time, noise

from pairsync.core.events import Event, PeerEvent, TroubleEvent
from pairsync.core.limits import VolumeOptions
from pairsync.core.units import BLOCK_BYTES, MIB, NS_PER_MS
from pairsync.errors import BackendError
from pairsync.guest import disks as disks_module
from pairsync.guest import reopen, watch
from pairsync.guest.config import VolumeConfig
from pairsync.guest.events import Subscription
from pairsync.guest.guest import Guest, open_guest
from pairsync.guest.replica import Replica, create_replica, open_replica
from pairsync.testing.faulty import DiskState, FaultyDisk

QUICK_DISK = VolumeOptions(disk_deadline_ns=300 * NS_PER_MS)
SLOW_DISK = VolumeOptions(disk_deadline_ns=1000 * NS_PER_MS)
HOLES = 4 * MIB  # from here on nothing is ever written before a disk fills up


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask a disk that nobody uses soon."""
    monkeypatch.setattr(watch, "PROBE_NS", 300 * NS_PER_MS)


class Sick:
    """Both hosts in one process, with a switch for the standby's disk."""

    def __init__(self, pair: Pair, disk: FaultyDisk, active: Guest, standby: Guest) -> None:
        self.pair = pair
        self.disk = disk
        self.active = active
        self.standby = standby
        self.number = 0

    async def write(self, count: int = 10, at: int = 0) -> None:
        for _ in range(count):
            self.number += 1
            offset = at + self.number % 64 * BLOCK_BYTES
            await self.active.volume("vda").write(offset, noise(self.number))

    async def turn(self, state: DiskState) -> None:
        """As a command does it while the guest runs."""
        self.disk.arm()
        await self.standby.use_threads("vda")
        self.disk.set(state)

    @property
    def told(self) -> tuple[str, str | None]:
        """What the standby says of its volume."""
        (volume,) = self.standby.statistics().volumes
        return volume.state, volume.failed


@asynccontextmanager
async def sick_standby(pair: Pair, options: VolumeOptions = QUICK_DISK) -> AsyncIterator[Sick]:
    disk = FaultyDisk()
    opener = partial(open_replica, open_file=disk.open)
    async with (
        in_time(),
        open_guest(pair.config("b", options=options), opener=opener) as standby,
        open_guest(pair.config("a")) as active,
    ):
        await active.wait_in_sync()
        sick = Sick(pair, disk, active, standby)
        await sick.write()
        yield sick
        await active.wait_in_sync()
        await standby.wait_in_sync()
        assert sick.told == ("consistent", None)
        await sick.write()
        disk.slow_ns = 0
    assert pair.same()


def _seen(events: Subscription) -> Iterator[Event]:
    with contextlib.suppress(trio.WouldBlock):
        while True:
            yield events.receive_nowait()


async def _peer_lost(events: Subscription) -> PeerEvent:
    while True:
        event = await await_event(events, PeerEvent)
        if not event.connected:
            return event


@pytest.mark.parametrize("place", ["pair", "disk_pair"])
async def test_a_disk_that_fails_costs_only_the_standby(place: str, request: pytest.FixtureRequest) -> None:
    async with sick_standby(request.getfixturevalue(place)) as sick:
        with sick.standby.subscribe() as events, sick.active.subscribe() as told:
            await sick.turn(DiskState.FAIL)
            await sick.write()  # it is acknowledged all the same
            trouble = await await_event(events, TroubleEvent)
            assert (trouble.volume, trouble.fatal) == ("vda", False)
            assert "EIO" in trouble.reason
            await _peer_lost(told)
            again = await await_event(events, TroubleEvent)  # it cannot be opened anew either
            assert "Input/output error" in again.reason
            assert sick.told == ("failed", again.reason)
            assert not sick.active.in_sync
            assert "EIO" in str(sick.active.statistics().refusal)
        await sick.turn(DiskState.OK)


async def test_a_disk_that_nobody_uses_is_asked(pair: Pair) -> None:
    async with sick_standby(pair) as sick:
        await sick.active.volume("vda").flush()
        with sick.active.subscribe() as told:
            await sick.turn(DiskState.FAIL)
            await _peer_lost(told)
        assert not sick.active.in_sync
        await sick.turn(DiskState.OK)


@pytest.mark.parametrize("ends_with", [DiskState.OK, DiskState.FAIL])
async def test_a_hang_is_told_by_its_deadline(pair: Pair, ends_with: DiskState) -> None:
    async with sick_standby(pair) as sick:
        with sick.standby.subscribe() as events:
            await sick.turn(DiskState.HANG)
            started = trio.current_time()
            await sick.write()
            assert trio.current_time() - started < 5  # far below the deadline for a silent peer
            trouble = await await_event(events, TroubleEvent)
            told_s = re.fullmatch(
                r"the disk hangs: an operation has been running for ([\d.]+) s", trouble.reason
            )
            assert told_s is not None
            assert 0.2 < float(told_s[1]) < 5
            await sick.write(50)
            await trio.testing.wait_all_tasks_blocked()
            assert sick.told == ("failed", trouble.reason)  # as long as it hangs
            await sick.turn(ends_with)  # what has hung ends, and nobody minds
            if ends_with is DiskState.FAIL:
                assert "Input/output" in (await await_event(events, TroubleEvent)).reason
        await sick.turn(DiskState.OK)


async def test_slowness_is_no_hang(pair: Pair) -> None:
    async with sick_standby(pair, SLOW_DISK) as sick:
        with sick.active.subscribe() as told, sick.standby.subscribe() as events:
            await sick.turn(DiskState.OK)
            sick.disk.slow_ns = 100 * NS_PER_MS  # ten operations in a deadline
            await sick.write(20)
            await sick.active.volume("vda").flush()
            assert sick.active.in_sync
            for each in (told, events):
                assert not any(isinstance(event, PeerEvent | TroubleEvent) for event in _seen(each))


async def test_a_full_disk_takes_part_again_when_it_has_room(pair: Pair) -> None:
    async with sick_standby(pair) as sick:
        with sick.standby.subscribe() as events:
            await sick.turn(DiskState.FULL)
            await sick.write(at=HOLES)
            assert "ENOSPC" in (await await_event(events, TroubleEvent)).reason
        await sick.write(at=HOLES)
        await sick.turn(DiskState.OK)


def _empty(pair: Pair) -> None:
    create_replica(
        pair.image("b"), name="vda", pair_id=PAIR_ID, volume_id=b"vda".ljust(16, b"."), size_bytes=8 * MIB
    )


def _vanish(pair: Pair) -> list[tuple[Path, Path]]:
    moved = []
    for end in ("", ".pairsync"):
        here = Path(f"{pair.image('b')}{end}")
        there = here.with_name(f"gone-{here.name}")
        here.rename(there)
        moved.append((there, here))
    return moved


async def test_a_disk_replaced_by_an_empty_one_is_filled_again(pair: Pair) -> None:
    async with sick_standby(pair) as sick:
        await sick.turn(DiskState.HANG)
        with sick.standby.subscribe() as events:
            await sick.write()
            await await_event(events, TroubleEvent)
        sick.disk.pull()
        _vanish(pair)
        _empty(pair)
        await sick.turn(DiskState.OK)


@pytest.mark.parametrize("busy", [False, True])
async def test_files_that_vanish_are_missed_and_taken_back(pair: Pair, busy: bool) -> None:
    """No fault is injected: the files of a real disk are gone, and there again."""
    async with sick_standby(pair) as sick:
        with sick.standby.subscribe() as events:
            moved = _vanish(pair)
            if busy:
                await sick.write()
                await sick.active.volume("vda").flush()
            trouble = await await_event(events, TroubleEvent)
            assert errno.errorcode[errno.ENOENT] in trouble.reason
            missed = await await_event(events, TroubleEvent)
            assert "No such file" in missed.reason
            await sick.write()
            for there, here in moved:
                there.rename(here)


async def test_a_disk_that_hangs_while_it_is_opened_is_told(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reopen, "OPENING_S", 0.2)
    async with sick_standby(pair) as sick:
        with sick.standby.subscribe() as events:
            await sick.turn(DiskState.FAIL)
            await sick.write()
            while "Input/output" not in (await await_event(events, TroubleEvent)).reason:
                pass
            await sick.turn(DiskState.HANG)
            assert "while it is opened" in (await await_event(events, TroubleEvent)).reason
        await sick.turn(DiskState.OK)


async def test_an_observer_that_slept_does_not_judge(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every look came after a long sleep: an operation that hangs is not held against the disk."""
    monkeypatch.setattr(watch, "STALL_NS", 1)
    async with sick_standby(pair) as sick:
        with sick.standby.subscribe() as events:
            await sick.turn(DiskState.HANG)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sick.write)
                await trio.sleep(1.0)  # three times the deadline
                assert not any(isinstance(event, TroubleEvent) for event in _seen(events))
                await sick.turn(DiskState.OK)


async def test_the_term_is_not_forgotten_with_the_disk(pair: Pair) -> None:
    async with in_time(), open_guest(pair.config("b")) as standby:
        async with open_guest(pair.config("a", term=7)) as active:
            await active.wait_in_sync()
        with standby.subscribe() as events:
            _vanish(pair)
            _empty(pair)
            await await_event(events, TroubleEvent)
        while standby.statistics().volumes[0].state != "blank":
            await trio.sleep(0.01)
        assert standby.session.term == 7
        assert standby.session.targets[0].superblock.term == 0
        async with open_guest(pair.config("a", term=7)) as active:
            await active.wait_in_sync()
    assert pair.same()


async def test_it_can_be_closed_while_a_disk_is_ill(pair: Pair) -> None:
    async with in_time():
        disk = FaultyDisk()
        opener = partial(open_replica, open_file=disk.open)
        async with (
            open_guest(pair.config("a")) as active,
            open_guest(pair.config("b", options=QUICK_DISK), opener=opener) as standby,
        ):
            await active.wait_in_sync()
            disk.set(DiskState.FAIL)
            with standby.subscribe() as events:
                await await_event(events, TroubleEvent)


async def test_what_is_opened_anew_waits_for_what_hangs(pair: Pair) -> None:
    """A job that hangs may still write: until it has ended the replica is not opened again."""
    opened = 0
    disk = FaultyDisk()

    def opener(volume: VolumeConfig, pair_id: bytes) -> Replica:
        nonlocal opened
        opened += 1
        return open_replica(volume, pair_id, open_file=disk.open)

    async with (
        in_time(),
        open_guest(pair.config("b", options=QUICK_DISK), opener=opener) as standby,
        open_guest(pair.config("a")) as active,
    ):
        await active.wait_in_sync()
        disk.arm()
        await standby.use_threads("vda")
        with standby.subscribe() as events:
            disk.set(DiskState.HANG)
            await active.volume("vda").write(0, noise(1))
            await await_event(events, TroubleEvent)
        await trio.sleep(1.0)  # four times the longest first wait: it would have been tried
        assert opened == 1
        disk.set(DiskState.OK)
        await active.wait_in_sync()
        assert opened == 2
    assert pair.same()


@pytest.mark.parametrize("what", ["fails", "hangs", "is missing", "is too small", "has damaged metadata"])
async def test_a_standby_that_is_opened_without_its_disk_comes_back(
    pair: Pair, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disks_module, "OPENING_S", 0.3)
    monkeypatch.setattr(reopen, "OPENING_S", 0.3)
    states = {"fails": DiskState.FAIL, "hangs": DiskState.HANG}
    disk, image = FaultyDisk(states.get(what, DiskState.OK)), pair.image("b")
    metadata = image.with_name(f"{image.name}.pairsync")
    away = pair.base / "away"
    if what == "is missing":
        image.rename(away)
    elif what == "is too small":
        os.truncate(image, MIB)
    elif what == "has damaged metadata":
        metadata.rename(away)
        metadata.write_bytes(bytes(away.stat().st_size))
    opener = partial(open_replica, open_file=disk.open)
    async with (
        in_time(),
        open_guest(pair.config("b", options=QUICK_DISK), opener=opener) as standby,
        open_guest(pair.config("a")) as active,
    ):
        assert standby.ill
        (volume,) = standby.statistics().volumes
        assert (volume.state, volume.size_bytes, volume.failed) == ("failed", None, standby.ailments["vda"])
        vda = standby.volume("vda")
        assert (vda.name, vda.path) == ("vda", str(image))
        with pytest.raises(BackendError, match="could not be opened so far"):
            await vda.read(0, 1)
        with pytest.raises(BackendError, match="opened anew"):
            standby.replica("vda")
        await active.volume("vda").write(0, b"before")
        await trio.sleep(0.5)
        assert standby.ill
        assert not active.in_sync
        disk.set(DiskState.OK)
        if what == "is missing":
            away.rename(image)
        elif what == "is too small":
            os.truncate(image, 8 * MIB)
        elif what == "has damaged metadata":
            away.replace(metadata)
        await active.wait_in_sync()
        assert not standby.ailments
        assert vda.size_bytes == 8 * MIB
        assert await vda.read(0, 6) == b"before"
    assert pair.same()
