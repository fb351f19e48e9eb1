"""What is told of a guest: one word for each state, on both hosts."""

from __future__ import annotations

import dataclasses

import pytest
import trio
from tests.guest.harness import Pair, await_event, in_time

from pairsync.core.events import ResyncEvent
from pairsync.core.units import BLOCK_BYTES, MIB
from pairsync.guest.guest import open_guest
from pairsync.guest.statistics import GuestStatistics, VolumeStatistics


async def test_a_new_pair_and_its_life(pair: Pair) -> None:
    async with in_time(), open_guest(pair.config("b")) as standby:
        blank = standby.statistics()
        assert (blank.role, blank.connected, blank.in_sync) == ("standby", False, False)
        assert (blank.volumes[0].state, blank.volumes[0].generation) == ("blank", None)
        async with open_guest(pair.config("a")) as active:
            await active.wait_in_sync()
            mine, theirs = active.statistics(), standby.statistics()
            assert (mine.role, mine.connected, mine.in_sync, mine.term) == ("active", True, True, 1)
            assert (mine.volumes[0].state, theirs.volumes[0].state) == ("in-sync", "consistent")
            assert mine.volumes[0].generation == theirs.volumes[0].generation is not None
            assert mine.volumes[0].level == "sync"
            assert mine.volumes[0].size_bytes == theirs.volumes[0].size_bytes == 8 * MIB
            assert mine.link is not None
            assert [path.name for path in mine.link.paths] == ["loopback"]
            await active.volume("vda").write(0, b"x" * (3 * BLOCK_BYTES))
            assert active.statistics().volumes[0].dirty_blocks == 3
            assert active.statistics().volumes[0].inflight_bytes == 0
            assert standby.statistics().volumes[0].dirty_blocks == 0


async def test_a_resync_shows_how_far_it_is(files: Pair) -> None:
    files.create(size_bytes=64 * MIB)
    async with in_time(), open_guest(files.config("a")) as active:
        await active.volume("vda").write(0, b"x" * (48 * MIB))
        assert active.statistics().volumes[0].resync_fraction is None
        with active.subscribe() as events:
            async with open_guest(files.config("b")) as standby:
                await await_event(events, ResyncEvent)
                while (under_way := active.statistics().volumes[0]).resync_fraction is None:
                    assert under_way.state == "preparing"
                    await trio.lowlevel.checkpoint()
                assert under_way.state == "syncing"
                assert 0 <= under_way.resync_fraction < 1
                await active.wait_in_sync()
                done = active.statistics().volumes[0]
                assert (done.state, done.resync_fraction, done.resync_remaining_s) == ("in-sync", None, None)
                assert standby.statistics().volumes[0].state == "consistent"
        assert active.statistics().volumes[0].state in {"in-sync", "absent"}
    async with in_time(), open_guest(files.config("a")) as active:
        assert active.statistics().volumes[0].state == "absent"


async def test_figures_are_frozen(pair: Pair) -> None:
    async with in_time(), open_guest(pair.config("a", link=False)) as alone:
        figures = alone.statistics()
    assert isinstance(figures, GuestStatistics)
    assert isinstance(figures.volumes[0], VolumeStatistics)
    with pytest.raises(dataclasses.FrozenInstanceError):
        figures.in_sync = True  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        figures.volumes[0].state = "fine"  # type: ignore[misc]
