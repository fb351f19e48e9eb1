"""A read that this host's disk cannot answer is answered by the peer, as new as it would be here."""

from __future__ import annotations

import errno
import random
from collections.abc import Sequence

import pytest
import trio
import trio.testing
from tests.guest.harness import Pair, in_time

from pairsync.core.events import TroubleEvent
from pairsync.core.fetcher import FETCH_BLOCKS_MAX
from pairsync.core.messages import Role, WriteOp
from pairsync.core.units import BLOCK_BYTES, MIB, Extent
from pairsync.errors import BackendError
from pairsync.guest.guest import Guest
from pairsync.guest.remote import QUESTIONS_AT_ONCE, PeerReader
from pairsync.storage.file import RawFile


class BadSectors:
    """Reads of these blocks fail on one host."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, guest: Guest) -> None:
        self.blocks: set[int] = set()
        self.failed = 0
        path = guest.volume("vda").path
        read_into, read_nowait = RawFile.read_into, RawFile.read_nowait

        def check(file: RawFile, offset: int, length: int) -> None:
            touched = range(offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES))
            if file.path == path and not self.blocks.isdisjoint(touched):
                self.failed += 1
                raise BackendError(f"{path}: Input/output error", errno.EIO)

        def failing_read(file: RawFile, offset: int, view: memoryview) -> None:
            check(file, offset, len(view))
            read_into(file, offset, view)

        def failing_nowait(file: RawFile, offset: int, view: memoryview) -> bool:
            check(file, offset, len(view))
            return read_nowait(file, offset, view)

        monkeypatch.setattr(RawFile, "read_into", failing_read)
        monkeypatch.setattr(RawFile, "read_nowait", failing_nowait)


async def test_bad_sectors_are_read_from_the_peer(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    content = random.Random(3).randbytes(2 * MIB)
    async with in_time(), pair.both() as (active, _):
        volume = active.volume("vda")
        await volume.write(4096, content)
        bad = BadSectors(monkeypatch, active)
        bad.blocks = {3, 70, FETCH_BLOCKS_MAX + 5, 400}
        with active.subscribe() as events:
            for offset, length in ((0, 0), (5000, 20_000), (3 * BLOCK_BYTES, 1), (0, len(content))):
                expected = (bytes(4096) + content)[offset : offset + length]
                assert await volume.read(offset, length) == expected
            assert bad.failed
            while not isinstance(event := await events.receive(), TroubleEvent):
                pass
            assert "answered by the peer" in event.reason
        assert active.in_sync, "it is a read that failed, no write"


async def test_many_reads_at_once_share_what_the_peer_takes(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with in_time(), pair.both() as (active, _):
        volume = active.volume("vda")
        await volume.write(0, bytes(range(256)) * 16)
        bad = BadSectors(monkeypatch, active)
        bad.blocks = {0}
        async with trio.open_nursery() as nursery:
            for _ in range(5 * QUESTIONS_AT_ONCE):
                nursery.start_soon(volume.read, 0, BLOCK_BYTES)
        assert bad.failed >= 5 * QUESTIONS_AT_ONCE
        assert await volume.read(1, 3) == bytes([1, 2, 3])


async def test_a_guest_that_leaves_while_reads_wait_for_room_ends_them(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with in_time(), pair.both() as (active, _):
        volume = active.volume("vda")
        await volume.write(0, b"x" * BLOCK_BYTES)
        bad = BadSectors(monkeypatch, active)
        bad.blocks = {0}
        ended: list[str] = []
        left = trio.Event()

        async def read() -> None:
            with pytest.raises(BackendError, match="Input/output"):
                await volume.read(0, BLOCK_BYTES)
            ended.append("told")

        ask = PeerReader._fetch

        async def ask_late(
            self: PeerReader, extents: Sequence[Extent], error: BackendError
        ) -> Sequence[WriteOp]:
            await left.wait()
            return await ask(self, extents, error)

        monkeypatch.setattr(PeerReader, "_fetch", ask_late)
        async with trio.open_nursery() as nursery:
            for _ in range(3 * QUESTIONS_AT_ONCE):
                nursery.start_soon(read)
            while bad.failed < 3 * QUESTIONS_AT_ONCE:
                await trio.sleep(0.01)
            await trio.testing.wait_all_tasks_blocked(0.05)  # a third of them ask, the others wait for room
            await active.become(Role.STANDBY, 2, in_order=False)
            left.set()
        assert len(ended) == 3 * QUESTIONS_AT_ONCE


async def test_what_is_written_meanwhile_is_what_is_read(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    async with in_time(), pair.both() as (active, _):
        volume = active.volume("vda")
        await volume.write(0, bytes([0]) * BLOCK_BYTES)
        bad = BadSectors(monkeypatch, active)
        bad.blocks = {0}
        for version in range(1, 30):
            seen: list[int] = []

            async def read(seen: list[int] = seen) -> None:
                seen.append((await volume.read(0, BLOCK_BYTES))[0])

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                nursery.start_soon(volume.write, 0, bytes([version]) * BLOCK_BYTES)
            assert seen[0] in {version - 1, version}
            assert (await volume.read(0, BLOCK_BYTES)) == bytes([version]) * BLOCK_BYTES


async def test_without_a_peer_that_counts_the_error_is_told(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with in_time(), pair.both() as (active, standby):
        volume = active.volume("vda")
        await volume.write(0, bytes(BLOCK_BYTES))
        bad = BadSectors(monkeypatch, active)
        bad.blocks = {0}
        assert standby.link is not None
        standby.link.cut()
        while active.in_sync:
            await trio.sleep(0.01)
        with pytest.raises(BackendError, match="Input/output"):
            await volume.read(0, BLOCK_BYTES)
        assert volume.size_bytes > BLOCK_BYTES
        assert await volume.read(BLOCK_BYTES, 10) == bytes(10)


async def test_content_that_has_fallen_over_at_the_peer_is_an_error_and_no_data(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with in_time(), pair.both() as (active, _):
        volume = active.volume("vda")
        await volume.write(0, b"x" * 2 * BLOCK_BYTES)
        with pair.image("b").open("r+b") as file:
            file.seek(100)
            file.write(b"y")
        bad = BadSectors(monkeypatch, active)
        bad.blocks = {0, 1}
        with pytest.raises(BackendError, match="Input/output"):
            await volume.read(0, BLOCK_BYTES)
        assert await volume.read(BLOCK_BYTES, 5) == b"xxxxx"
        assert active.in_sync
