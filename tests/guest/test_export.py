"""A volume as an NBD export: what the front door asks for, answered from a real guest."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tests.guest.harness import Pair, in_time

from pairsync.core.messages import OpKind, WriteOp
from pairsync.core.units import BLOCK_BYTES, MIB
from pairsync.errors import ArbitrationError, ConfigError
from pairsync.guest.export import CONTEXT_DIRTY, STATE_DIRTY, VolumeExport
from pairsync.guest.guest import open_guest
from pairsync.nbd.constants import CONTEXT_ALLOCATION, STATE_HOLE, STATE_ZERO
from pairsync.nbd.export import Export

SIZE = 8 * MIB
HOLE = STATE_HOLE | STATE_ZERO


async def test_it_is_what_the_front_door_asks_for(pair: Pair) -> None:
    async with in_time(), open_guest(pair.config("a", link=False)) as alone:
        export: Export = VolumeExport(alone.volume("vda"))
        assert (export.name, export.size_bytes, export.read_only) == ("vda", SIZE, False)
        assert "vda" in export.description
        assert list(export.meta_contexts()) == [CONTEXT_ALLOCATION, CONTEXT_DIRTY]

        answers: list[Sequence[int] | None] = []
        await export.wait_writable()
        export.submit([WriteOp(OpKind.DATA, 10, 5, b"hello")], answers.append)
        await export.flush()
        assert answers == [None]
        into = bytearray(7)
        await export.read(9, memoryview(into))
        assert into == b"\0hello\0"
        assert export.read_nowait(10, memoryview(into)[:5])
        await export.cache(0, SIZE)


async def test_allocation_is_told_as_nbd_does(pair: Pair) -> None:
    async with in_time(), open_guest(pair.config("a", link=False)) as alone:
        export = VolumeExport(alone.volume("vda"))
        await alone.volume("vda").write(2 * MIB, b"x" * MIB)
        extents = await export.block_status(CONTEXT_ALLOCATION, 0, SIZE, 100)
        assert extents == [(2 * MIB, HOLE), (MIB, 0), (5 * MIB, HOLE)]
        assert await export.block_status(CONTEXT_ALLOCATION, 2 * MIB + 1, 5, 100) == [(5, 0)]
        assert await export.block_status(CONTEXT_ALLOCATION, 0, SIZE, 1) == [(2 * MIB, HOLE)]


async def test_what_the_peer_lacks_is_told(pair: Pair) -> None:
    async with in_time(), open_guest(pair.config("a", link=False)) as alone:
        export = VolumeExport(alone.volume("vda"))
        assert await export.block_status(CONTEXT_DIRTY, 0, SIZE, 100) == [(SIZE, 0)]
        for block in (0, 5, 6, 2047):
            await alone.volume("vda").write(block * BLOCK_BYTES, b"x")
        extents = await export.block_status(CONTEXT_DIRTY, 0, SIZE, 100)
        assert extents == [
            (BLOCK_BYTES, STATE_DIRTY),
            (4 * BLOCK_BYTES, 0),
            (2 * BLOCK_BYTES, STATE_DIRTY),
            (2040 * BLOCK_BYTES, 0),
            (BLOCK_BYTES, STATE_DIRTY),
        ]
        assert sum(length for length, _ in extents) == SIZE
        for most in (1, 2, 3, 4):
            assert await export.block_status(CONTEXT_DIRTY, 0, SIZE, most) == extents[:most]
        # within a dirty block, and ending in one
        assert await export.block_status(CONTEXT_DIRTY, 5 * BLOCK_BYTES + 1, 10, 9) == [(10, STATE_DIRTY)]
        assert await export.block_status(CONTEXT_DIRTY, 4 * BLOCK_BYTES, BLOCK_BYTES + 1, 9) == [
            (BLOCK_BYTES, 0),
            (1, STATE_DIRTY),
        ]


async def test_other_contexts_are_refused(pair: Pair) -> None:
    async with in_time(), open_guest(pair.config("a", link=False)) as alone:
        with pytest.raises(ConfigError, match="qemu:dirty"):
            await VolumeExport(alone.volume("vda")).block_status("qemu:dirty", 0, 1, 1)


async def test_a_standbys_volume_does_not_write(pair: Pair) -> None:
    async with in_time(), open_guest(pair.config("b", link=False)) as standby:
        export = VolumeExport(standby.volume("vda"))
        with pytest.raises(ArbitrationError):
            export.submit([WriteOp(OpKind.DATA, 0, 1, b"x")], print)
        with pytest.raises(ArbitrationError):
            await export.flush()
