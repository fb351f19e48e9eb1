"""Registers for many: one change of a pair at a time, many pairs in one write, nothing shown early."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence

import pytest
import trio

from pairsync.core.witness import Conflict, Snapshot, WitnessKey
from pairsync.errors import BackendError, ClosedError, ConfigError
from pairsync.node.registers import Registers
from pairsync.storage.registerfile import GUESTS_MAX, Entry, RegisterFile
from pairsync.testing.disks import SimMedium
from pairsync.testing.simfiles import SimDirectory

PATIENCE_S = 20.0


class SlowFile(RegisterFile):
    """Its disk works when it is let go, and fails when told."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.failing = False
        self.batches: list[int] = []
        super().__init__(
            SimDirectory(SimMedium()),
            identity=lambda file: bytes(32),
            entropy=secrets.token_bytes,
            room_bytes=4096,
        )

    def append(self, entries: Sequence[Entry]) -> None:
        self.gate.wait(PATIENCE_S)
        if self.failing:
            raise BackendError("the disk says no")
        super().append(entries)
        self.batches.append(len(entries))


def key(number: int, guest: str = "db1") -> WitnessKey:
    return WitnessKey(number.to_bytes(16, "big"), guest)


@pytest.fixture
def file() -> SlowFile:
    return SlowFile()


@pytest.fixture
async def registers(file: SlowFile, nursery: trio.Nursery) -> Registers:
    registers = Registers(file)
    nursery.start_soon(registers.run)
    return registers


async def test_a_register_is_made_read_and_swapped(registers: Registers) -> None:
    first = await registers.get(key(1))
    assert await registers.get(key(1)) == first
    second = await registers.swap(key(1), first.version, b"x")
    assert second == Snapshot(first.incarnation, first.version + 1, b"x")
    assert await registers.swap(key(1), first.version, b"y") == Conflict(second)
    assert await registers.get(key(1)) == second
    assert (len(registers), registers.distrust, registers.size_bytes > 0) == (1, None, True)


async def test_a_swap_makes_the_register_too(registers: Registers) -> None:
    done = await registers.swap(key(1), 5, b"x")
    assert isinstance(done, Conflict)
    assert done.current == await registers.get(key(1))


async def test_pairs_share_a_write_and_nothing_is_shown_before_it_is_durable(
    registers: Registers, file: SlowFile
) -> None:
    first = {number: await registers.get(key(number)) for number in range(20)}
    file.batches.clear()
    file.gate.clear()
    done: list[Snapshot | Conflict] = []

    async def swap(number: int) -> None:
        done.append(await registers.swap(key(number), first[number].version, b"x"))

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            for number in first:
                nursery.start_soon(swap, number)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert done == []
            for number, before in first.items():
                assert await registers.get(key(number)) == before
            file.gate.set()
    assert len(done) == 20
    assert sum(file.batches) == 20
    assert len(file.batches) <= 3


async def test_a_pair_changes_one_thing_at_a_time(registers: Registers, file: SlowFile) -> None:
    first = await registers.get(key(1))
    await registers.get(key(1, "db2"))
    file.gate.clear()
    done: dict[str, Snapshot | Conflict] = {}

    async def swap(name: str) -> None:
        done[name] = await registers.swap(key(1), first.version, name.encode())

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(swap, "one")
            await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.start_soon(swap, "two")
            await trio.testing.wait_all_tasks_blocked(0.05)
            file.gate.set()
    assert isinstance(done["one"], Snapshot)
    assert done["two"] == Conflict(done["one"])


async def test_first_looks_at_once_make_one_register(registers: Registers) -> None:
    found: list[Snapshot] = []

    async def look() -> None:
        found.append(await registers.get(key(1)))

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(look)
    assert len(set(found)) == 1


async def test_a_disk_that_fails_is_told_to_those_it_concerns(registers: Registers, file: SlowFile) -> None:
    first = await registers.get(key(1))
    file.failing = True
    for _ in range(2):
        with pytest.raises(BackendError, match="says no"):
            await registers.swap(key(1), first.version, b"x")
    assert await registers.get(key(1)) == first
    file.failing = False
    assert isinstance(await registers.swap(key(1), first.version, b"y"), Snapshot)


async def test_a_register_that_is_behind_begins_anew_once(registers: Registers) -> None:
    first = await registers.get(key(1))
    ahead = Snapshot(first.incarnation, first.version + 3, None)
    await registers.renew(key(2), ahead)
    await registers.renew(key(1), first)
    assert await registers.get(key(1)) == first
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(registers.renew, key(1), ahead)
    after = await registers.get(key(1))
    assert after.incarnation != first.incarnation
    assert registers.batches == 2


async def test_a_pair_cannot_fill_the_witness(registers: Registers) -> None:
    for number in range(GUESTS_MAX):
        await registers.get(key(1, f"guest {number}"))
    with pytest.raises(ConfigError, match="may have no more"):
        await registers.get(key(1, "one more"))
    await registers.get(key(2))


async def test_a_pair_that_is_struck_off_is_forgotten(registers: Registers) -> None:
    first, kept = await registers.get(key(1)), await registers.get(key(2))
    assert await registers.keep_only({key(2).pair_id}) == 1
    assert await registers.get(key(2)) == kept
    assert (await registers.get(key(1))).incarnation != first.incarnation


async def test_who_waits_at_the_end_is_told(file: SlowFile) -> None:
    registers = Registers(file)
    told: list[str] = []

    async def ask() -> None:
        try:
            await registers.get(key(1))
        except ClosedError as error:
            told.append(str(error))

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as outer:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(registers.run)
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
                outer.start_soon(ask)
            outer.start_soon(ask)
    assert told == ["the witness is being stopped"] * 2
