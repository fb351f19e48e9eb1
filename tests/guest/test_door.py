"""The front door: on either host, wherever the guest is active, and its clients notice nothing."""

from __future__ import annotations

import errno
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from tests.guest.harness import Pair, in_time, noise
from tests.guest.test_roles import Asked

from pairsync.core.messages import OpKind, Relayed, Role, Serving, WriteOp
from pairsync.core.units import BLOCK_BYTES, MIB
from pairsync.errors import BackendError, ClosedError, ConfigError
from pairsync.guest import door as door_module
from pairsync.guest.door import Door
from pairsync.guest.export import CONTEXT_CHANGED, CONTEXT_DIRTY, STATE_CHANGED, STATE_DIRTY
from pairsync.guest.guest import open_guest
from pairsync.guest.volume import Volume
from pairsync.guest.wakeful import STILL_NS, Wakeful
from pairsync.nbd.constants import CONTEXT_ALLOCATION
from pairsync.nbd.export import STALE_S, Export

BLOCKS = 64


async def write(door: Door, ops: list[WriteOp]) -> list[int] | None:
    """As a connection of a client does it."""
    ended = trio.Event()
    found: list[list[int] | None] = []

    def done(errnos: object) -> None:
        found.append(None if errnos is None else list(errnos))  # type: ignore[call-overload]
        ended.set()

    await door.wait_writable()
    door.submit(ops, done)
    await ended.wait()
    return found[0]


async def put(door: Door, offset: int, data: bytes) -> None:
    assert await write(door, [WriteOp(OpKind.DATA, offset, len(data), data)]) is None


async def get(door: Door, offset: int, length: int) -> bytes:
    content = bytearray(length)
    if not door.read_nowait(offset, memoryview(content)):
        await door.read(offset, memoryview(content))
    return bytes(content)


async def relaying(door: Door) -> None:
    """Return when the peer serves."""
    while not door._guest.relay.open:
        await trio.sleep(0.005)


@asynccontextmanager
async def doors(pair: Pair) -> AsyncIterator[tuple[Door, Door]]:
    """Those of the active host and of the standby."""
    async with in_time(), pair.both() as (active, standby):
        here, there = Door(active, "vda"), Door(standby, "vda")
        await relaying(there)
        yield here, there


async def test_the_standbys_door_is_as_good_as_the_actives(pair: Pair) -> None:
    async with doors(pair) as (here, there):
        export: Export = there
        assert (export.name, export.size_bytes) == ("vda", 8 * MIB)
        assert not export.read_only
        await put(there, 100, noise(1, 5000))
        assert await get(here, 100, 5000) == noise(1, 5000)
        ops = [
            WriteOp(OpKind.ZERO, 0, 2 * MIB),
            WriteOp(OpKind.DATA, 3, 3, b"abc", True),
            WriteOp(OpKind.TRIM, 4096, 4096),
        ]
        assert await write(there, ops) is None
        await there.flush()
        await there.cache(0, 4096)
        for door in (here, there):
            assert await get(door, 0, 10) == b"\0\0\0abc\0\0\0\0"
        whole = noise(2, 5 * MIB + 17)  # more than one message
        await put(there, 1, whole)
        assert await get(there, 1, len(whole)) == whole
    assert pair.same()


async def test_many_requests_share_the_room_that_there_is(pair: Pair) -> None:
    async with doors(pair) as (here, there):
        size = MIB // 2

        async def one(at: int) -> None:
            await put(there, at * size, noise(at, size))
            assert await get(there, at * size, size) == noise(at, size)
            await there.flush()

        for _ in range(4):
            async with trio.open_nursery() as nursery:
                for at in range(8 * MIB // size):
                    nursery.start_soon(one, at)
        assert await get(here, 0, size) == noise(0, size)
    assert pair.same()


async def test_block_status_of_a_host_that_does_not_own_is_never_wrong(pair: Pair) -> None:
    async with in_time(), pair.both() as (active, standby):
        here, there = Door(active, "vda"), Door(standby, "vda")
        assert await here.block_status(CONTEXT_ALLOCATION, 0, 4096, 9) == [(4096, 3)]
        assert await there.block_status(CONTEXT_ALLOCATION, 0, 4096, 9) == [(4096, 0)]
        assert await there.block_status(CONTEXT_DIRTY, 0, 4096, 9) == [(4096, STATE_DIRTY)]
        await active.volume("vda").make_point("monday")
        for door, flags in ((here, 0), (there, STATE_CHANGED)):
            monday = door.meta_contexts()[f"{CONTEXT_CHANGED}monday"]
            assert await door.block_status(monday, 0, 4096, 9) == [(4096, flags)]
        with pytest.raises(ConfigError, match="no metadata context"):
            await here.block_status("qemu:dirty", 0, 4096, 9)


async def test_an_error_of_the_request_is_told_and_not_tried_again(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with doors(pair) as (_, there):
        calls = []

        def refuse(self: Volume, ops: list[WriteOp], done: Callable[[list[int]], None]) -> None:
            calls.append(len(ops))
            done([errno.ENOSPC] * len(ops))

        monkeypatch.setattr(Volume, "submit", refuse)
        assert await write(there, [WriteOp(OpKind.DATA, 0, 1, b"x")]) == [errno.ENOSPC]
        assert calls == [1]

        async def fail(self: Volume) -> None:
            raise BackendError("no", errno.EIO)

        monkeypatch.setattr(Volume, "flush", fail)
        with pytest.raises(BackendError, match="flush at the owner: EIO"):
            await there.flush()


async def test_a_peer_that_asks_for_too_much_is_left(pair: Pair) -> None:
    async with doors(pair) as (here, there):
        session = here._guest.link.session if here._guest.link else None
        here._guest.received([Relayed(99)])
        while here._guest.link and here._guest.link.session is session:
            await trio.sleep(0.01)
        await relaying(there)
        await put(there, 0, noise(1))


class Client:
    """Writes and reads through one door without end, each write checked for ever after."""

    def __init__(self, door: Door, seed: int, first: int = 0) -> None:
        self.door = door
        self.random = random.Random(seed)
        self.first = first  # its blocks: it has half of them for itself
        self.content: dict[int, bytes] = {}
        self.count = 0
        self.stopped = False  # what is begun ends
        self.ended = trio.Event()  # and has ended

    async def run(self) -> None:
        while not self.stopped:
            await self.step()
            await trio.sleep(0)
        self.ended.set()

    async def step(self) -> None:
        block = self.first + self.random.randrange(BLOCKS // 2)
        if self.random.random() < 0.3:
            found = await get(self.door, block * BLOCK_BYTES, BLOCK_BYTES)
            assert found == self.content.get(block, bytes(BLOCK_BYTES))
        else:
            self.count += 1
            data = noise(self.count * 2 + self.first)
            await put(self.door, block * BLOCK_BYTES, data)
            self.content[block] = data
            if self.count % 7 == 0:
                await self.door.flush()

    async def check(self, door: Door) -> None:
        for block, data in self.content.items():
            assert await get(door, block * BLOCK_BYTES, BLOCK_BYTES) == data


@pytest.mark.parametrize("in_order", [True, False])
async def test_a_guest_moves_to_and_fro_under_writers_at_both_doors(pair: Pair, in_order: bool) -> None:
    async with in_time(), pair.both() as (first, second):
        doors = [Door(first, "vda"), Door(second, "vda")]
        clients = [Client(doors[0], 1), Client(doors[1], 2, BLOCKS // 2)]
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(client.run)
            for term, (source, target) in enumerate(2 * [(first, second), (second, first)], 2):
                counts = [client.count for client in clients]
                while any(client.count < count + 20 for client, count in zip(clients, counts, strict=True)):
                    await trio.sleep(0.01)
                await source.become(Role.STANDBY, term, in_order=in_order)
                await target.become(Role.ACTIVE, term, in_order=in_order)
                await target.wait_in_sync()
            for client in clients:
                client.stopped = True
        for client in clients:
            for door in doors:
                await client.check(door)


async def test_a_cut_link_is_waited_out(pair: Pair) -> None:
    async with doors(pair) as (here, there):
        client = Client(there, 3)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            link = here._guest.link
            assert link is not None
            for _ in range(2):
                while client.count % 50 < 20:
                    await trio.sleep(0.01)
                link.cut()
                while there._guest.relay.open:
                    await trio.sleep(0.01)
                await trio.testing.wait_all_tasks_blocked()
                before = client.count
                link.heal()
                while client.count < before + 30:
                    await trio.sleep(0.01)
            client.stopped = True
        await client.check(here)


async def test_what_a_client_had_asked_for_before_it_died_is_not_done_later(pair: Pair) -> None:
    """It was begun anew on the other host meanwhile, and has written there."""
    async with doors(pair) as (here, there):
        answers: list[object] = []
        dead = False

        def done(errnos: object) -> None:
            answers.append(errnos)

        def hung_up() -> bool:
            return dead

        link = here._guest.link
        assert link is not None
        link.cut()
        Asked(here._guest)
        here._guest.session.permitted(here._guest.now_ns(), alone=False)
        here.submit([WriteOp(OpKind.DATA, 0, 3, b"old")], done, hung_up)  # begun, and needs the peer
        await here._guest.become(Role.STANDBY, 2, in_order=False)
        here.submit([WriteOp(OpKind.DATA, 8, 3, b"old"), WriteOp(OpKind.DATA, 16, 3, b"old")], done, hung_up)
        await there._guest.become(Role.ACTIVE, 2, in_order=False)
        await put(there, 0, b"new" + bytes(20))
        dead = True
        await trio.sleep(2 * STALE_S)
        link.heal()
        await relaying(here)
        assert answers == [[errno.EIO], [errno.EIO] * 2]
        for door in (here, there):
            assert await get(door, 0, 24) == b"new" + bytes(21)


@pytest.mark.parametrize("by_standby", [False, True])
async def test_what_lay_there_while_the_process_stood_still_is_done_for_the_living(
    pair: Pair, by_standby: bool
) -> None:
    """A client had given it up, gone to the other host, and written there; the host went on, and did it."""
    async with doors(pair) as both:
        door, now_ns = both[by_standby], 0

        def clock() -> int:
            return now_ns

        for still, gone, errnos in (
            (False, True, None),  # it sends, says that it disconnects, and leaves
            (True, True, [errno.EIO]),
            (True, False, None),
        ):
            door._wakeful = Wakeful(clock)
            now_ns += still * (STILL_NS + 1)
            answers: list[object] = []
            ended = trio.Event()

            def done(errnos: object, answers: list[object] = answers, ended: trio.Event = ended) -> None:
                answers.append(errnos)
                ended.set()

            await put(both[not by_standby], 0, b"new")
            door.submit([WriteOp(OpKind.DATA, 0, 3, b"old")], done, lambda gone=gone: gone)  # type: ignore[misc]
            await ended.wait()
            assert answers == [errnos]
            assert await get(door, 0, 3) == (b"old" if errnos is None else b"new")


async def test_nobody_owns_for_too_long(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "WAIT_S", 0.3)
    async with in_time(), open_guest(pair.config("b")) as standby:
        door = Door(standby, "vda")
        with pytest.raises(BackendError, match="nobody has served it"):
            await get(door, 0, 1)
        with pytest.raises(BackendError, match="nobody has served it"):
            await door.flush()
        with pytest.raises(BackendError, match="nobody has served it"):
            await door.wait_writable()
        ended: list[object] = []
        door.submit([WriteOp(OpKind.DATA, 0, 3, b"abc"), WriteOp(OpKind.ZERO, 0, 9)], ended.append)
        while not ended:
            await trio.sleep(0.05)
        assert ended == [[errno.EIO] * 2]
        door.submit([WriteOp(OpKind.DATA, 0, 3, b"abc")], ended.append)
    assert ended[1:] == [[errno.EIO]]
    with pytest.raises(ClosedError):
        await door.flush()


async def test_who_serves_under_an_older_term_is_not_asked(pair: Pair) -> None:
    async with doors(pair) as (_, there):
        assert there._guest.session.term == 1
        there._guest.received([Serving(0, serves=True)])
        assert not there._guest.relay.open
