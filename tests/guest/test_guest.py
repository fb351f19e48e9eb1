"""A guest's life: alone, with its peer, without it again, closed in every state; two hosts in one process."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import trio
from tests.conftest import LeakGuard
from tests.guest.harness import Pair, await_event, in_time, noise

from pairsync.core.events import AloneEvent, PeerEvent, RefusedEvent, ResyncEvent
from pairsync.core.limits import VolumeOptions
from pairsync.core.messages import Role
from pairsync.core.units import BLOCK_BYTES, MIB
from pairsync.errors import ArbitrationError, BackendError, BusyError, ClosedError, ConfigError, MismatchError
from pairsync.guest.guest import Guest, open_guest


async def _write_blocks(guest: Guest, blocks: range, seed: int = 0) -> None:
    for block in blocks:
        await guest.volume("vda").write(block * BLOCK_BYTES, noise(seed + block))


def _crash_image(pair: Pair, name: str = "vda") -> Pair:
    """The files of both hosts as they lie there now: what is left after both processes were killed."""
    crashed = Pair(pair.base / "crashed", pair.identities)
    for host in "ab":
        for end in (".img", ".img.pairsync"):
            shutil.copy(pair.base / host / f"{name}{end}", crashed.base / host / f"{name}{end}")
    return crashed


# -- alone ---------------------------------------------------------------------------------------------------


async def test_a_guest_without_any_peer_works(pair: Pair) -> None:
    async with in_time(), open_guest(pair.config("a", link=False)) as guest:
        volume = guest.volume("vda")
        await volume.write(5000, b"hello")
        await volume.flush()
        assert await volume.read(4999, 7) == b"\0hello\0"
        assert (guest.name, guest.role, guest.link, guest.in_sync) == ("guest", Role.ACTIVE, None, False)
        figures = guest.statistics()
        assert (figures.connected, figures.link, figures.term) == (False, None, 1)
        assert figures.volumes[0].dirty_blocks == 1
    assert pair.image("a").read_bytes()[5000:5005] == b"hello"


async def test_what_was_written_alone_is_copied_when_a_peer_comes(pair: Pair) -> None:
    async with in_time():
        async with open_guest(pair.config("a", link=False)) as guest:
            await _write_blocks(guest, range(10))
        async with pair.both() as (active, standby):
            assert active.in_sync
            assert standby.in_sync
    assert pair.same()
    assert pair.image("a").read_bytes()[: 10 * BLOCK_BYTES] == b"".join(noise(n) for n in range(10))


# -- together ------------------------------------------------------------------------------------------------


async def test_a_write_is_on_both_hosts_when_it_is_acknowledged(pair: Pair) -> None:
    async with in_time(), pair.both() as (active, _):
        for number in range(5):
            content = noise(number, 10_000)
            await active.volume("vda").write(number * 20_000, content)
            for host in ("a", "b"):
                on_disk = pair.image(host).read_bytes()
                assert on_disk[number * 20_000 :][: len(content)] == content
    assert pair.same()


async def test_the_same_on_a_disk_that_may_block(disk_pair: Pair) -> None:
    async with in_time(), disk_pair.both() as (active, _):
        await _write_blocks(active, range(20))
        await active.volume("vda").flush()
    assert disk_pair.same()


async def test_several_volumes_in_one_order(files: Pair) -> None:
    names = ("vda", "vdb", "data")
    for name in names:
        files.create(name)
    async with (
        in_time(),
        open_guest(files.config("a", names=names)) as active,
        open_guest(files.config("b", names=names)) as standby,
    ):
        await active.wait_in_sync()
        for number in range(30):
            await active.volume(names[number % 3]).write(number * BLOCK_BYTES, noise(number))
        assert [volume.name for volume in standby.statistics().volumes] == list(names)
        with pytest.raises(ConfigError, match="guest guest has no volume 'vdc'; it has vda, vdb, data"):
            active.volume("vdc")
    assert all(files.same(name) for name in names)


async def test_async_acknowledges_at_home_and_catches_up(pair: Pair) -> None:
    async with in_time(), pair.both(options=VolumeOptions(level="async")) as (active, _):
        await _write_blocks(active, range(50))
        await active.volume("vda").flush()
        assert active.statistics().volumes[0].level == "async"
    assert pair.same()


# -- without the peer again ----------------------------------------------------------------------------------


async def test_the_standby_goes_and_comes_back(pair: Pair) -> None:
    async with in_time(), open_guest(pair.config("a")) as active:
        async with open_guest(pair.config("b")):
            await active.wait_in_sync()
            await _write_blocks(active, range(20))
            await active.volume("vda").flush()
        with active.subscribe() as events:
            await _write_blocks(active, range(30, 37))
            alone = await await_event(events, AloneEvent)
            assert alone.volume == "vda"
            assert not active.in_sync
            assert active.statistics().volumes[0].dirty_blocks == 7
            async with open_guest(pair.config("b")):
                resync = await await_event(events, ResyncEvent)
                assert (resync.mode, resync.blocks) == ("incremental", 7)
                await active.wait_in_sync()
                await active.volume("vda").flush()
                assert active.statistics().volumes[0].dirty_blocks == 0
    assert pair.same()


async def test_the_link_is_cut_and_mended_while_writes_go_on(pair: Pair) -> None:
    async with in_time(), pair.both() as (active, _):
        assert active.link is not None
        active.link.cut()
        await _write_blocks(active, range(16))
        assert not active.in_sync
        active.link.heal()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_write_blocks, active, range(100, 200))
            await active.wait_in_sync()
    assert pair.same()


async def test_the_active_host_is_killed_and_comes_back(pair: Pair) -> None:
    async with in_time():
        async with pair.both() as (active, _):
            await _write_blocks(active, range(20))
            crashed = _crash_image(pair)
        async with open_guest(crashed.config("a")) as active:
            # what the peer may lack: all that was written and not flushed since the last look
            assert active.statistics().volumes[0].dirty_blocks >= 20
            async with open_guest(crashed.config("b")):
                await active.wait_in_sync()
                await _write_blocks(active, range(40, 50))
    assert crashed.same()
    assert crashed.image("a").read_bytes()[:BLOCK_BYTES] == noise(0)


async def test_the_standby_is_killed_in_a_resync(files: Pair) -> None:
    files.create(size_bytes=64 * MIB)
    async with in_time(), open_guest(files.config("a")) as active:
        for at in range(0, 64 * MIB, MIB):
            await active.volume("vda").write(at, noise(at, MIB))
        for _ in range(3):
            with active.subscribe() as events:
                async with open_guest(files.config("b")):
                    await await_event(events, ResyncEvent)
        async with open_guest(files.config("b")):
            await active.wait_in_sync()
    assert files.same()


async def test_roles_may_be_changed_by_a_person_with_a_higher_term(pair: Pair) -> None:
    async with in_time():
        async with pair.both() as (active, _):
            await _write_blocks(active, range(5))
        async with (
            open_guest(pair.config("a", role=Role.STANDBY)) as standby,
            open_guest(pair.config("b", role=Role.ACTIVE, term=2)) as active,
        ):
            await active.wait_in_sync()
            await _write_blocks(active, range(5, 10))
            assert standby.statistics().role == "standby"
            assert standby.statistics().term == 2
    assert pair.same()
    assert pair.image("a").read_bytes()[9 * BLOCK_BYTES :][:BLOCK_BYTES] == noise(9)


# -- refusals ------------------------------------------------------------------------------------------------


async def test_replicas_that_were_written_apart_are_refused(pair: Pair) -> None:
    async with in_time():
        async with pair.both() as (active, _):
            await _write_blocks(active, range(2))
        for host in ("a", "b"):
            async with open_guest(pair.config(host, role=Role.ACTIVE, term=2, link=False)) as alone:
                await _write_blocks(alone, range(2), seed=ord(host))
        before = pair.image("a").read_bytes(), pair.image("b").read_bytes()
        async with open_guest(pair.config("a", term=3)) as active:
            with active.subscribe() as events:
                async with open_guest(pair.config("b", term=3)):
                    refused = await await_event(events, RefusedEvent)
            assert refused.rule == "diverged"
            assert "apart" in refused.evidence
            assert not active.in_sync
            await active.volume("vda").write(0, b"still works")
    assert pair.image("a").read_bytes() != before[0]
    assert pair.image("b").read_bytes() == before[1], "nothing is overwritten silently"


async def test_the_peer_of_a_failed_volume_is_told_why_and_not_in_a_hurry(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise BackendError("the disk is gone")

    async with in_time(), pair.both() as (active, standby):
        with standby.subscribe() as events:
            monkeypatch.setattr(active.volume("vda")._replica.device, "flush", fail)
            with pytest.raises(BackendError, match="EIO"):
                await active.volume("vda").flush()
            refused = await await_event(events, RefusedEvent)
            began = trio.current_time()
            assert refused == RefusedEvent("peer-left", "volume-failed: vda: a flush failed: EIO")
            assert await await_event(events, RefusedEvent) == refused
            assert trio.current_time() - began > 1, "the second wait, of two seconds"
        assert active.statistics().refusal == "volume-failed: vda: a flush failed: EIO"


async def test_two_active_hosts_are_refused(pair: Pair) -> None:
    async with (
        in_time(),
        open_guest(pair.config("a")) as first,
        open_guest(pair.config("b", role=Role.ACTIVE)) as second,
    ):
        with first.subscribe() as events:
            refused = await await_event(events, RefusedEvent)
        assert refused.rule == "two-owners"
        assert first.statistics().refusal is not None
        await first.volume("vda").write(0, b"one")
        await second.volume("vda").write(0, b"two")


async def test_a_volume_in_use_is_busy_and_the_rest_is_given_back(files: Pair) -> None:
    for name in ("vda", "vdb"):
        files.create(name)
    async with in_time(), open_guest(files.config("a", names=("vdb",), link=False)):
        with pytest.raises(BusyError, match=r"vdb\.img"):
            async with open_guest(files.config("a", names=("vda", "vdb"), link=False)):
                pytest.fail("opened a volume that is in use")
        async with open_guest(files.config("a", names=("vda",), link=False)):
            pass


async def test_another_pairs_volume_is_refused(pair: Pair) -> None:
    config = dataclasses.replace(pair.config("a", link=False), pair_id=b"q" * 16)
    with pytest.raises(MismatchError, match="belongs to pair"):
        async with open_guest(config):
            pytest.fail("opened another pair's volume")


async def test_settings_are_checked_before_anything_is_opened(pair: Pair) -> None:
    config = dataclasses.replace(pair.config("a", link=False), volumes=())
    with pytest.raises(ConfigError, match="0 volumes"):
        async with open_guest(config):
            pytest.fail("opened a guest without volumes")


async def test_a_port_in_use_is_an_error_and_all_is_given_back(pair: Pair) -> None:
    async with in_time():
        async with open_guest(pair.config("b")):
            config = pair.config("a")
            assert config.link is not None
            taken = pair.config("b").link
            assert taken is not None
            config = dataclasses.replace(config, link=dataclasses.replace(config.link, listen=taken.listen))
            with pytest.raises(BackendError, match="in use"):
                async with open_guest(config):
                    pytest.fail("listened where somebody else does")
        async with open_guest(pair.config("a")):
            pass


async def test_a_half_overwritten_replica_is_never_active(files: Pair) -> None:
    files.create(size_bytes=64 * MIB)
    async with in_time():
        async with open_guest(files.config("a")) as active:
            for at in range(0, 64 * MIB, MIB):
                await active.volume("vda").write(at, noise(at, MIB))
            async with open_guest(files.config("b")) as standby:
                with standby.subscribe() as events:
                    await await_event(events, ResyncEvent)
        with pytest.raises(ArbitrationError):
            async with open_guest(files.config("b", role=Role.ACTIVE, term=2, link=False)):
                pytest.fail("ran a guest on a mixture")


# -- closing -------------------------------------------------------------------------------------------------


async def test_a_guest_that_was_closed_in_order_has_nothing_to_copy(pair: Pair) -> None:
    async with in_time():
        async with pair.both() as (active, _):
            await _write_blocks(active, range(50))
        async with open_guest(pair.config("a")) as active:
            with active.subscribe() as events:
                async with open_guest(pair.config("b")):
                    await active.wait_in_sync()
                    peer = await await_event(events, PeerEvent)
                    assert "0 blocks" in peer.reason or "both dirty maps empty" in peer.reason
    assert pair.same()


async def test_afterwards_nothing_works_any_more(pair: Pair) -> None:
    async with in_time():
        async with pair.both() as (active, _):
            volume = active.volume("vda")
            subscription = active.subscribe()
            await volume.make_point("monday")
        for call in (
            lambda: volume.write(0, b"x"),
            lambda: volume.read(0, 1),
            lambda: volume.trim(0, 1),
            lambda: volume.zero(0, 1),
            volume.flush,
            lambda: volume.make_point("tuesday"),
            lambda: volume.drop_point("monday"),
            lambda: volume.changed_since("monday", 0, 4096),
            lambda: volume.digests(0, 4096),
            active.wait_in_sync,
        ):
            with pytest.raises(ClosedError, match="guest guest is closed"):
                await call()
        assert [event.kind async for event in subscription][-1:] != ["alone"]
        with pytest.raises(ClosedError, match="guest guest is closed"):
            await subscription.receive()
        with pytest.raises(ClosedError):
            await active.subscribe().receive()
        with pytest.raises(ClosedError, match="guest guest is closed"):
            volume.points()


async def test_closing_answers_what_is_in_flight(pair: Pair) -> None:
    """Every write that was begun has an answer: it is done, or the guest was closed."""
    answers: list[str] = []

    async def write(guest: Guest, block: int) -> None:
        try:
            await guest.volume("vda").write(block * BLOCK_BYTES, noise(block))
        except ClosedError:
            answers.append("closed")
        else:
            answers.append("done")

    async with in_time(), trio.open_nursery() as nursery, pair.both() as (active, _):
        for block in range(500):
            nursery.start_soon(write, active, block)
        await trio.lowlevel.checkpoint()
    assert len(answers) == 500
    assert pair.same()


async def test_what_is_raised_in_the_block_comes_out_as_it_is(pair: Pair) -> None:
    async with in_time():
        with pytest.raises(ZeroDivisionError):
            async with pair.both():
                raise ZeroDivisionError


async def test_a_cancelled_guest_is_closed_in_order(pair: Pair) -> None:
    async with in_time(), open_guest(pair.config("b")):
        with trio.CancelScope() as scope:
            async with open_guest(pair.config("a")) as active:
                await active.wait_in_sync()
                await active.volume("vda").write(0, b"before")
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert pair.image("b").read_bytes()[:6] == b"before"
        async with open_guest(pair.config("a", link=False)) as active:
            assert active.statistics().volumes[0].dirty_blocks == 0


async def test_nothing_is_left_behind(pair: Pair, leak_guard: LeakGuard) -> None:
    async with in_time():
        for _ in range(2):
            async with pair.both() as (active, _):
                await _write_blocks(active, range(3))
                with active.subscribe():
                    pass
            leak_guard.rebase()
        await leak_guard.settle()
