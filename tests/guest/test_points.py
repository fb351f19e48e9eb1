"""Points of an open guest: made and asked about while it writes, over restarts and a change of roles."""

from __future__ import annotations

import os
import random

import pytest
import trio
from tests.guest.harness import Pair, in_time

from pairsync.core.limits import VolumeOptions
from pairsync.core.messages import Role
from pairsync.core.units import BLOCK_BYTES, MIB
from pairsync.errors import ArbitrationError, ConfigError
from pairsync.guest.export import CONTEXT_CHANGED, STATE_CHANGED, VolumeExport
from pairsync.guest.guest import open_guest
from pairsync.guest.points import Point
from pairsync.guest.volume import Volume
from pairsync.storage.digests import block_digest

SIZE = 8 * MIB


async def changed(volume: Volume, point: str | Point) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    at = 0
    while at < volume.size_bytes:
        for length, differs in await volume.changed_since(point, at, volume.size_bytes - at):
            if differs:
                runs.append((at, length))
            at += length
    return runs


async def test_what_has_changed_since(pair: Pair) -> None:
    async with in_time(), open_guest(pair.config("a", link=False)) as guest:
        volume = guest.volume("vda")
        await volume.write(100, b"before")
        point = await volume.make_point("monday")
        assert (point.name, point.on_peer) == ("monday", False)
        assert volume.points() == (point,)
        assert await changed(volume, "monday") == []
        await volume.write(BLOCK_BYTES - 1, b"xy")
        await volume.write(3 * MIB, os.urandom(MIB))
        await volume.trim(3 * MIB, 2 * BLOCK_BYTES)
        expected = [(0, 2 * BLOCK_BYTES), (3 * MIB + 2 * BLOCK_BYTES, MIB - 2 * BLOCK_BYTES)]
        assert await changed(volume, "monday") == await changed(volume, point) == expected
        assert await volume.changed_since("monday", 5, 10) == [(10, True)]
        assert await volume.changed_since("monday", 2 * BLOCK_BYTES - 1, 5) == [(1, True), (4, False)]
        assert await volume.changed_since("monday", SIZE, 0) == []
    async with in_time(), open_guest(pair.config("a", link=False)) as guest:
        volume = guest.volume("vda")
        assert volume.points() == (point,)
        assert await changed(volume, "monday") == expected
        await volume.drop_point("monday")
        assert volume.points() == ()
        with pytest.raises(ConfigError, match="no point 'monday' on this host"):
            await changed(volume, "monday")
        with pytest.raises(ConfigError, match="no point"):
            await volume.drop_point("monday")


async def test_digests_now_and_then(pair: Pair) -> None:
    async with in_time(), open_guest(pair.config("a", link=False)) as guest:
        volume = guest.volume("vda")
        await volume.write(BLOCK_BYTES, b"x" * BLOCK_BYTES)
        await volume.make_point("monday")
        await volume.write(BLOCK_BYTES, b"y" * BLOCK_BYTES)
        then, now = (block_digest(letter * BLOCK_BYTES).to_bytes(8, "little") for letter in (b"x", b"y"))
        assert await volume.digests(0, 3 * BLOCK_BYTES) == bytes(8) + now + bytes(8)
        assert await volume.digests(0, 3 * BLOCK_BYTES, point="monday") == bytes(8) + then + bytes(8)
        assert await volume.digests(BLOCK_BYTES, 0) == b""
        with pytest.raises(ConfigError, match="whole blocks"):
            await volume.digests(1, 5)


async def test_a_name_made_again_is_another_point(pair: Pair) -> None:
    async with in_time(), open_guest(pair.config("a", link=False)) as guest:
        volume = guest.volume("vda")
        export = VolumeExport(volume)
        first = await volume.make_point("monday")
        context = export.meta_contexts()[f"{CONTEXT_CHANGED}monday"]
        await volume.write(0, b"x")
        assert await export.block_status(context, 0, SIZE, 100) == [
            (BLOCK_BYTES, STATE_CHANGED),
            (SIZE - BLOCK_BYTES, 0),
        ]
        assert await export.block_status(context, 0, SIZE, 1) == [(BLOCK_BYTES, STATE_CHANGED)]
        with pytest.raises(ConfigError, match="already"):
            await volume.make_point("monday")
        await volume.drop_point("monday")
        second = await volume.make_point("monday")
        assert first.id != second.id
        assert await changed(volume, "monday") == []
        for ask in (changed(volume, first), export.block_status(context, 0, SIZE, 100)):
            with pytest.raises(ConfigError, match="no point 'monday'"):
                await ask


async def test_what_cannot_be_is_said(pair: Pair) -> None:
    options = VolumeOptions(digests=False)
    async with in_time(), open_guest(pair.config("a", link=False, options=options)) as guest:
        volume = guest.volume("vda")
        with pytest.raises(ConfigError, match="keeps no digests"):
            await volume.make_point("monday")
        with pytest.raises(ConfigError, match="keeps no digests"):
            await volume.changed_since("monday", 0, SIZE)
        assert volume.points() == ()
    async with in_time(), open_guest(pair.config("a", link=False)) as guest:
        volume = guest.volume("vda")
        for name in ("", "../x", ".x", "a b"):
            with pytest.raises(ConfigError, match="is no name of a point"):
                await volume.make_point(name)
        for number in range(16):
            await volume.make_point(f"p{number}")
        with pytest.raises(ConfigError, match="16 points already"):
            await volume.make_point("more")
    async with in_time(), open_guest(pair.config("a", role=Role.STANDBY, link=False)) as guest:
        volume = guest.volume("vda")
        assert len(volume.points()) == 16
        assert volume.points()[0].on_peer is None
        for call in (volume.make_point("x"), volume.drop_point("p1"), volume.changed_since("p1", 0, SIZE)):
            with pytest.raises(ArbitrationError):
                await call


async def test_both_hosts_keep_it_and_the_chain_goes_on_when_the_roles_are_swapped(pair: Pair) -> None:
    async with in_time(), pair.both() as (active, standby):
        volume = active.volume("vda")
        await volume.write(0, b"x" * MIB)
        async with trio.open_nursery() as nursery:  # the guest writes meanwhile
            nursery.start_soon(volume.write, 2 * MIB, b"y" * MIB)
            point = await volume.make_point("monday")
        assert point.on_peer
        assert [(each.name, each.id) for each in standby.volume("vda").points()] == [("monday", point.id)]
        await volume.write(MIB, b"z" * BLOCK_BYTES)
        await volume.flush()
        here = await changed(volume, point)
    async with in_time(), open_guest(pair.config("b", role=Role.ACTIVE, link=False, term=2)) as other:
        volume = other.volume("vda")
        assert await changed(volume, point) == here
        await volume.write(5 * MIB, b"w" * BLOCK_BYTES)
        assert (5 * MIB, BLOCK_BYTES) in await changed(volume, point)


async def test_a_crash_and_a_resync_miss_nothing(pair: Pair) -> None:
    rng = random.Random(1)
    content = bytearray(SIZE)

    async def scribble(volume: Volume, count: int) -> None:
        for _ in range(count):
            offset, length = rng.randrange(SIZE - 20_000), rng.randrange(1, 20_000)
            data = rng.randbytes(length)
            await volume.write(offset, data)
            content[offset : offset + length] = data

    def differing(then: bytes) -> set[int]:
        return {
            block
            for block in range(SIZE // BLOCK_BYTES)
            if then[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
            != content[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
        }

    def blocks(runs: list[tuple[int, int]]) -> set[int]:
        return {
            block
            for offset, length in runs
            for block in range(offset // BLOCK_BYTES, (offset + length) // BLOCK_BYTES)
        }

    async with in_time(), pair.both() as (active, _):
        await scribble(active.volume("vda"), 20)
        then = bytes(content)
        await active.volume("vda").make_point("monday")
        await scribble(active.volume("vda"), 5)
    async with in_time(), open_guest(pair.config("a", link=False)) as alone:
        await scribble(alone.volume("vda"), 10)
        assert blocks(await changed(alone.volume("vda"), "monday")) == differing(then)
    async with in_time(), pair.both() as (active, standby):  # a resync
        assert standby.volume("vda").points()[0].name == "monday"
        assert blocks(await changed(active.volume("vda"), "monday")) == differing(then)
        (point,) = active.volume("vda").points()
        assert point.on_peer
    async with in_time(), open_guest(pair.config("b", role=Role.ACTIVE, link=False, term=2)) as other:
        assert blocks(await changed(other.volume("vda"), point)) >= differing(then)


async def test_a_damaged_point_is_told_of_and_not_offered(pair: Pair) -> None:
    async with in_time(), open_guest(pair.config("a", link=False)) as guest:
        await guest.volume("vda").make_point("monday")
    where = pair.image("a").with_name("vda.img.pairsync-point-monday")
    where.write_bytes(b"x" * 100)
    async with in_time(), open_guest(pair.config("a", link=False)) as guest:
        assert guest.volume("vda").points() == ()
        contexts = VolumeExport(guest.volume("vda")).meta_contexts()
        assert list(contexts) == ["base:allocation", "pairsync:dirty"]
        await guest.volume("vda").make_point("monday")  # in its place
        assert await changed(guest.volume("vda"), "monday") == []
