"""Verified reads: the guest never sees what has fallen over on this host's disk, and it is mended."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import trio
from tests.guest.harness import Pair, in_time

from pairsync.core.events import ScrubFindingEvent
from pairsync.core.limits import VolumeOptions
from pairsync.core.messages import Role
from pairsync.core.units import BLOCK_BYTES, MIB
from pairsync.errors import BackendError
from pairsync.guest.remote import PeerReader
from pairsync.guest.verified import VerifiedReader
from pairsync.storage.file import RawFile

VERIFY = VolumeOptions(verify_reads=True)


def flip(pair: Pair, offset: int) -> None:
    """One bit of the active's disk, behind its back."""
    with pair.image("a").open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 2]))


async def test_what_has_fallen_over_is_read_from_the_peer_and_mended(pair: Pair) -> None:
    content = random.Random(9).randbytes(MIB)
    async with in_time(), pair.both(options=VERIFY) as (active, _):
        volume = active.volume("vda")
        await volume.write(0, content)
        for offset in (5, 17 * BLOCK_BYTES, MIB - 1):
            flip(pair, offset)
        with active.subscribe() as events:
            assert await volume.read(0, MIB) == content
            assert await volume.read(17 * BLOCK_BYTES + 3, 9) == content[17 * BLOCK_BYTES + 3 :][:9]
            found: set[int] = set()
            while len(found) < 3:
                event = await events.receive()
                if isinstance(event, ScrubFindingEvent):
                    assert (event.fault, event.repair) == ("here", True)
                    found.add(event.block)
            assert found == {0, 17, 255}
        while pair.image("a").read_bytes()[:MIB] != content:
            await trio.sleep(0.01)


async def test_a_guest_that_leaves_meanwhile_mends_nothing_any_more(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = PeerReader.read_into

    async with in_time(), pair.both(options=VERIFY) as (active, _):

        async def ask_and_leave(self: PeerReader, offset: int, into: memoryview, error: BackendError) -> None:
            await ask(self, offset, into, error)
            await active.become(Role.STANDBY, 2, in_order=False)

        monkeypatch.setattr(PeerReader, "read_into", ask_and_leave)
        await active.volume("vda").write(0, b"x" * BLOCK_BYTES)
        flip(pair, 9)
        assert await active.volume("vda").read(0, 10) == b"x" * 10


async def test_nothing_is_read_where_nothing_is_wanted(pair: Pair) -> None:
    async def in_thread(job: Callable[[], Any]) -> Any:
        raise AssertionError("nothing is to be read")

    async with in_time(), pair.both() as (active, _):
        reader = VerifiedReader(active, 0, PeerReader(active, 0), in_thread)
        await reader.read_into(RawFile.__new__(RawFile), 5, memoryview(bytearray()))


async def test_a_busy_guest_sees_no_false_alarm(pair: Pair) -> None:
    async with in_time(), pair.both(options=VERIFY) as (active, _):
        volume = active.volume("vda")
        over = trio.Event()

        async def write(seed: int) -> None:
            noise = random.Random(seed)
            while not over.is_set():
                block = noise.randrange(8)
                await volume.write(block * BLOCK_BYTES + seed * 512, noise.randbytes(512))

        with active.subscribe() as events:
            async with trio.open_nursery() as nursery:
                for seed in range(4):
                    nursery.start_soon(write, seed)
                for _ in range(150):
                    await volume.read(0, 8 * BLOCK_BYTES)
                over.set()
            told = []
            with trio.move_on_after(0):
                while True:
                    told.append(await events.receive())
            assert not [event for event in told if isinstance(event, ScrubFindingEvent)]


async def test_alone_a_wrong_block_is_an_error_and_no_data(pair: Pair) -> None:
    async with in_time(), pair.both(options=VERIFY) as (active, standby):
        await active.volume("vda").write(0, b"x" * BLOCK_BYTES)
        assert standby.link is not None
        standby.link.cut()
        while active.in_sync:
            await trio.sleep(0.01)
        flip(pair, 9)
        with pytest.raises(BackendError, match="does not hold what its digest says"):
            await active.volume("vda").read(0, 10)
        assert await active.volume("vda").read(BLOCK_BYTES, 10) == bytes(10)
