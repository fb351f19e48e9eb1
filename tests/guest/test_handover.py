"""The owner's disk fails, hangs, fills up or vanishes: the guest goes to the peer, clients do not notice."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from tests.guest.harness import PAIR_ID, Host, Pair, in_time, noise
from tests.guest.test_door import Client, get, write

from pairsync.core.limits import VolumeOptions
from pairsync.core.messages import OpKind, Role, WriteOp
from pairsync.core.units import BLOCK_BYTES, MIB, NS_PER_MS, NS_PER_S
from pairsync.errors import BackendError
from pairsync.guest import reopen, watch
from pairsync.guest.door import Door
from pairsync.guest.guest import Guest, open_guest
from pairsync.guest.handover import Handover
from pairsync.guest.replica import create_replica, open_replica
from pairsync.guest.watch import Ailment
from pairsync.testing.faulty import DiskState, FaultyDisk

QUICK_DISK = VolumeOptions(disk_deadline_ns=300 * NS_PER_MS)
"""For disks that hang.  Of others a busy machine could make it seem so."""
SERVICE_S = 3.0  # within which service goes on, beside the deadline of a disk; on a machine that is busy


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask a disk that nobody uses soon, and open it anew soon."""
    monkeypatch.setattr(watch, "PROBE_NS", 300 * NS_PER_MS)
    monkeypatch.setattr(reopen, "RETRY_NS_MAX", 300 * NS_PER_MS)


class Register:
    """The grant register of both hosts: agrees at once, and moves a guest whose disk has failed to a peer
    that is not out of the grant."""

    def __init__(self) -> None:
        self.term = 1
        self.guests: list[Guest] = []
        self.nursery: trio.Nursery | None = None
        self.reasons: list[Ailment | None] = []  # of the moves
        self.willing = True
        self.excluded = True  # the owner's peer; until it is proven in sync
        self.asked = 0  # how often, while not willing
        self.patience_ns = 10 * NS_PER_S  # beyond any test, but for those that exhaust it
        self.moved = trio.Event()

    def speaks_for(self, guest: Guest) -> None:
        self.guests.append(guest)
        guest.arbiter = _Voice(self, guest)

    async def move(self, source: Guest, target: Guest) -> None:
        self.reasons.append(source.leaves_for)
        self.term += 1
        await source.become(Role.STANDBY, self.term, in_order=False)
        self.term += 1
        await target.become(Role.ACTIVE, self.term, in_order=False)
        self.excluded = True
        target.permitted(alone=True)
        self.moved.set()


class _Voice:
    overtaken = False

    def __init__(self, register: Register, guest: Guest) -> None:
        self.register = register
        self.guest = guest

    def ask_alone(self) -> None:
        self.register.excluded = True
        self.guest.permitted(alone=True)

    def link_up(self) -> None:
        pass

    @property
    def alone(self) -> bool:
        return self.register.excluded

    @property
    def patience_ns(self) -> int:
        return self.register.patience_ns

    def disk_failed(self) -> str:
        register = self.register
        if self.guest.in_sync and register.excluded:
            register.excluded = False
            self.guest.permitted(alone=False)
        if register.excluded:
            return "not in sync"
        if not register.willing or register.nursery is None:
            register.asked += 1
            return "not yet"
        (target,) = [guest for guest in register.guests if guest is not self.guest]
        register.nursery.start_soon(register.move, self.guest, target)
        return ""


class Sick:
    """Both hosts with their doors, a switch for the disk of either, and a client at each door."""

    def __init__(self, pair: Pair, disks: dict[Host, FaultyDisk], guests: dict[Host, Guest]) -> None:
        self.pair = pair
        self.disks = disks
        self.guests = guests
        self.register = Register()
        self.doors = {host: Door(guest, "vda") for host, guest in guests.items()}
        self.clients = [Client(self.doors["a"], 1), Client(self.doors["b"], 2, 32)]

    async def turn(self, host: Host, state: DiskState) -> None:
        """As a command does it while the guest runs."""
        self.disks[host].arm()
        await self.guests[host].use_threads("vda")
        self.disks[host].set(state)

    async def rest(self) -> None:
        """Have the clients end, and return when the owner's disk has nothing left to do by itself."""
        for client in self.clients:
            client.stopped = True
            await client.ended.wait()
        tracker = self.guests["a"].session.sources[0].tracker
        while tracker.unflushed or tracker.closing is not None:  # a flush covers what no other has yet begun
            await self.doors["a"].flush()

    def resume(self) -> None:
        """Let the clients go on."""
        assert self.register.nursery is not None
        for client in self.clients:
            client.stopped, client.ended = False, trio.Event()
            self.register.nursery.start_soon(client.run)

    async def progress(self) -> None:
        """Return when each client has had some answers."""
        counts = [client.count for client in self.clients]
        while any(client.count < count + 5 for client, count in zip(self.clients, counts, strict=True)):
            await trio.sleep(0.01)


@asynccontextmanager
async def sick_pair(pair: Pair, options: VolumeOptions | None = None) -> AsyncIterator[Sick]:
    """At its end the guest is in sync again, and everything is checked."""
    disks: dict[Host, FaultyDisk] = {"a": FaultyDisk(), "b": FaultyDisk()}

    def opened(host: Host) -> contextlib.AbstractAsyncContextManager[Guest]:
        opener = partial(open_replica, open_file=disks[host].open)
        return open_guest(pair.config(host, options=options), opener=opener)

    async with in_time(), opened("b") as standby, opened("a") as active:
        sick = Sick(pair, disks, {"a": active, "b": standby})
        sick.register.speaks_for(active)
        sick.register.speaks_for(standby)
        await active.wait_in_sync()
        active.perform()
        async with trio.open_nursery() as nursery:
            sick.register.nursery = nursery
            sick.resume()
            await sick.progress()
            try:
                yield sick
            except BaseException:
                for disk in disks.values():
                    disk.set(DiskState.OK)  # or closing waits for what hangs, for longer than a test may take
                raise
            await sick.progress()
            for guest in sick.guests.values():
                await guest.wait_in_sync()
            for client in sick.clients:
                client.stopped = True
        for client in sick.clients:
            for door in sick.doors.values():
                await client.check(door)
        await sick.doors["a"].flush()
    assert pair.same()


async def test_a_disk_that_fails_is_left_and_comes_back(pair: Pair) -> None:
    async with sick_pair(pair) as sick:
        for host, other in (("a", "b"), ("b", "a")):
            sick.register.moved = trio.Event()
            await sick.turn(host, DiskState.FAIL)  # type: ignore[arg-type]
            began = trio.current_time()
            await sick.register.moved.wait()
            await sick.progress()
            assert trio.current_time() - began < SERVICE_S
            assert sick.guests[other].role is Role.ACTIVE  # type: ignore[index]
            (volume,) = sick.guests[host].statistics().volumes  # type: ignore[index]
            assert volume.state == "failed"
            await sick.turn(host, DiskState.OK)  # type: ignore[arg-type]
            await sick.guests[other].wait_in_sync()  # type: ignore[index]
            sick.guests[other].perform()  # type: ignore[index]
        assert "EIO" in str(sick.register.reasons[0])


@pytest.mark.parametrize("ends_with", [DiskState.OK, DiskState.FAIL])
async def test_a_disk_that_hangs_is_not_waited_for(pair: Pair, ends_with: DiskState) -> None:
    async with sick_pair(pair, QUICK_DISK) as sick:
        await sick.turn("a", DiskState.HANG)
        answers: list[object] = []
        # A write of its own: both clients may be reading just now, and reads that hang are left behind.
        sick.doors["a"].submit([WriteOp(OpKind.DATA, 6 * MIB, BLOCK_BYTES, noise(7))], answers.append)
        began = trio.current_time()
        await sick.register.moved.wait()
        await sick.progress()
        assert trio.current_time() - began < SERVICE_S + 0.3
        assert any("hangs" in str(reason) for reason in sick.register.reasons)
        assert answers == [None]
        assert not sick.guests["a"]._disks.idle  # what it was asked is still under way
        await trio.sleep(0.3)
        assert not sick.guests["b"].in_sync
        await sick.turn("a", ends_with)  # what hung is written late, or fails
        await sick.progress()
        await sick.turn("a", DiskState.OK)


async def test_reads_that_hang_are_noticed_too(pair: Pair) -> None:
    async with sick_pair(pair, QUICK_DISK) as sick:
        await sick.rest()
        await sick.turn("a", DiskState.HANG)
        for client in sick.clients:
            await client.check(sick.doors["a"])
        assert "hangs" in str(sick.register.reasons[0])
        assert sick.guests["b"].role is Role.ACTIVE
        await sick.turn("a", DiskState.OK)
        sick.resume()


async def test_a_disk_that_fails_unused_is_found_by_asking(pair: Pair) -> None:
    async with sick_pair(pair) as sick:
        await sick.rest()
        await sick.turn("a", DiskState.FAIL)
        await sick.register.moved.wait()
        assert "it was asked whether it works" in str(sick.register.reasons[0])
        for client in sick.clients:
            await client.check(sick.doors["a"])
        sick.resume()
        await sick.turn("a", DiskState.OK)


async def test_a_disk_without_room_is_left_for_one_that_has_some(pair: Pair) -> None:
    async with sick_pair(pair) as sick:
        await sick.turn("a", DiskState.FULL)
        door = sick.doors["a"]
        data = noise(99, MIB)
        assert await write(door, [WriteOp(OpKind.DATA, 6 * MIB, MIB, data)]) is None
        assert any("ENOSPC" in str(reason) for reason in sick.register.reasons)
        assert await get(door, 6 * MIB, MIB) == data
        await sick.turn("a", DiskState.OK)


async def test_a_disk_that_is_replaced_by_an_empty_one(pair: Pair) -> None:
    async with sick_pair(pair) as sick:
        disk = sick.disks["a"]
        disk.arm()
        await sick.guests["a"].use_threads("vda")
        disk.pull()
        await sick.register.moved.wait()
        for path in pair.base.joinpath("a").iterdir():
            path.unlink()
        create_replica(
            pair.image("a"),
            name="vda",
            pair_id=PAIR_ID,
            volume_id=b"vda".ljust(16, b"."),
            size_bytes=8 * MIB,
        )
        disk.set(DiskState.OK)


@pytest.mark.parametrize("reason", ["peer out of sync", "not wanted", "nobody to decide", "async"])
async def test_where_the_peer_cannot_own_the_guest_is_told(pair: Pair, reason: str) -> None:
    disk = FaultyDisk()
    opener = partial(open_replica, open_file=disk.open)
    options = VolumeOptions(level="async") if reason == "async" else None
    async with (
        in_time(),
        open_guest(pair.config("b", options=options)) as standby,
        open_guest(pair.config("a", options=options), opener=opener) as active,
    ):
        register = Register()
        if reason != "nobody to decide":
            register.speaks_for(active)
            register.speaks_for(standby)
        async with trio.open_nursery() as register.nursery:
            await active.wait_in_sync()
            door = Door(active, "vda")
            op = WriteOp(OpKind.DATA, 0, BLOCK_BYTES, noise(1))
            register.willing, register.patience_ns = reason != "not wanted", 50 * NS_PER_MS
            if reason == "peer out of sync":
                assert active.link is not None
                active.link.cut()
                while active.in_sync:
                    await trio.sleep(0.01)
                assert await write(door, [op]) is None
            disk.arm()
            await active.use_threads("vda")
            disk.set(DiskState.FAIL)
            assert await write(door, [op]) == [5]
            assert bool(register.asked) is (reason == "not wanted")
            assert active.serves
            if reason == "not wanted":
                assert active.in_sync
                asked = register.asked
                assert await write(door, [op]) == [5]
                assert register.asked == asked + 1, "who could not own a moment ago is not waited for again"
            disk.set(DiskState.OK)


@pytest.mark.parametrize("what", ["write", "flush", "relayed write"])
async def test_a_peer_that_cannot_own_yet_is_waited_for(pair: Pair, what: str) -> None:
    """It is in sync before it has said that it could serve, and before that is agreed."""
    async with sick_pair(pair) as sick:
        await sick.rest()
        sick.register.willing = False
        await sick.turn("a", DiskState.FAIL)
        op = WriteOp(OpKind.DATA, 6 * MIB, BLOCK_BYTES, noise(7))
        answers: list[list[int] | None] = []

        async def ask() -> None:
            if what == "flush":
                await sick.doors["a"].flush()
                answers.append(None)
            else:
                answers.append(await write(sick.doors["a" if what == "write" else "b"], [op]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            while sick.register.asked < 5:
                await trio.sleep(0.01)
            assert not answers
            assert not sick.guests["a"].serves
            sick.register.willing = True
        assert answers == [None]
        assert sick.guests["b"].role is Role.ACTIVE
        await sick.turn("a", DiskState.OK)
        if what != "flush":
            assert await get(sick.doors["b"], op.offset, op.length) == op.data
        sick.resume()


@pytest.mark.parametrize("what", ["write", "flush"])
async def test_a_peer_that_is_lost_is_not_waited_for(pair: Pair, what: str) -> None:
    disk = FaultyDisk()
    opener = partial(open_replica, open_file=disk.open)
    async with (
        in_time(),
        open_guest(pair.config("b")) as standby,
        open_guest(pair.config("a"), opener=opener) as active,
    ):
        register = Register()
        register.speaks_for(active)
        register.speaks_for(standby)
        register.willing = False
        await active.wait_in_sync()
        door = Door(active, "vda")
        disk.arm()
        await active.use_threads("vda")
        disk.set(DiskState.FAIL)
        answers: list[list[int] | None] = []

        async def ask() -> None:
            if what == "write":
                answers.append(await write(door, [WriteOp(OpKind.DATA, 0, BLOCK_BYTES, noise(1))]))
                return
            with pytest.raises(BackendError):
                await door.flush()
            answers.append([5])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            while not register.asked:
                await trio.sleep(0.01)
            assert active.link is not None
            active.link.cut()
            began = trio.current_time()
            if what == "flush":  # no write asks to go on alone: the register puts out who is silent
                while active.in_sync:
                    await trio.sleep(0.01)
                register.excluded = True
                active.permitted(alone=True)
        assert trio.current_time() - began < SERVICE_S
        assert answers == [[5]]
        disk.set(DiskState.OK)


async def test_a_guest_is_left_once(pair: Pair) -> None:
    async with in_time(), pair.both() as (active, standby):
        register = Register()
        register.speaks_for(active)
        register.speaks_for(standby)
        ailment = Ailment("vda", "a test")
        async with trio.open_nursery() as register.nursery:
            assert Handover(standby).attempt(ailment) is None
            assert Handover(active).attempt(ailment) == ""
            assert Handover(active).attempt(ailment) is None
            assert not active.serves
        assert register.reasons == [ailment]
        assert standby.role is Role.ACTIVE
        await standby.wait_in_sync()
