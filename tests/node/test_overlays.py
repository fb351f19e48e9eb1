"""Overlays of a host: what its control socket answers, and what of one that is down."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from pairsync.core.messages import Buffer, Condition, Generation, OpKind, Role, WriteOp
from pairsync.core.units import BLOCK_BYTES, MIB
from pairsync.errors import BackendError, BusyError, ConfigError, MismatchError
from pairsync.guest.config import GuestConfig, VolumeConfig
from pairsync.guest.guest import open_guest
from pairsync.guest.replica import Replica, create_replica, open_replica
from pairsync.guest.volume import Volume
from pairsync.node.overlays import describe_overlay, open_stopped, overlay_handlers, overlay_path
from pairsync.storage.osfile import OsFile
from pairsync.storage.overlayexport import UNFINISHED_SUFFIX

PAIR = b"p" * 16
FIRST, SECOND = Generation(1, 1, 1), Generation(1, 2, 2)


@pytest.fixture
def volume(tmp_path: Path) -> VolumeConfig:
    """A replica that was overwritten with b, and keeps one block of a."""
    path = tmp_path / "vda.img"
    create_replica(path, name="vda", pair_id=PAIR, volume_id=b"v" * 16, size_bytes=MIB)
    config = VolumeConfig("vda", path)
    replica = open_replica(config, PAIR)
    replica.device.apply([WriteOp(OpKind.DATA, 0, 8 * BLOCK_BYTES, memoryview(b"a" * 8 * BLOCK_BYTES))])
    durable = replace(replica.store.superblock, condition=Condition.CONSISTENT, lineage=(FIRST,))
    replica.store.write_superblock(replace(durable, clean=False))
    replica.store.append_intents(1, replica.setup.first_generation, [(2, 3)])
    replica.close()
    replica = open_replica(config, PAIR)
    assert replica.keeper is not None
    syncing = replace(durable, condition=Condition.SYNCING, sync_target=SECOND)
    replica.keeper.before(durable, syncing)
    replica.device.apply([WriteOp(OpKind.DATA, 0, 8 * BLOCK_BYTES, memoryview(b"b" * 8 * BLOCK_BYTES))])
    replica.keeper.before(syncing, durable)
    replica.keeper.after(durable)
    replica.store.write_superblock(durable)
    replica.close()
    return config


def _own(image: bytes) -> bool:
    expected = b"b" * 2 * BLOCK_BYTES + b"a" * BLOCK_BYTES + b"b" * 5 * BLOCK_BYTES
    return image[: 8 * BLOCK_BYTES] == expected


async def test_a_host_that_runs(volume: VolumeConfig, tmp_path: Path) -> None:
    config = GuestConfig("guest", PAIR, Role.ACTIVE, [volume])
    async with open_guest(config) as guest:
        handlers = overlay_handlers(guest)
        (info,) = (await handlers["overlays"]({}))["volumes"]["vda"]
        assert (info["id"], info["state"], info["blocks"]) == ("1", "kept", 1)
        assert info["lineage"] == [FIRST.describe()]
        image = tmp_path / "image"
        answer = await handlers["overlay-export"]({"volume": "vda", "id": "1", "file": str(image)})
        assert answer == {"file": str(image)}
        assert _own(image.read_bytes())
        assert await handlers["overlay-progress"]({"file": str(image)}) == {"done": 0, "total": 0}
        with pytest.raises(ConfigError, match="exists already"):
            await handlers["overlay-export"]({"volume": "vda", "id": "1", "file": str(image)})
        file = overlay_path(volume, "1")
        assert await handlers["overlay-undo"]({"volume": "vda", "file": str(file)}) == {"bytes": BLOCK_BYTES}
        assert _own(await guest.volume("vda").read(0, 8 * BLOCK_BYTES))
        with pytest.raises(BusyError), open_stopped(volume, PAIR):
            pass


async def test_an_undo_tells_how_far_it_is_and_runs_once(
    volume: VolumeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushing, go_on = trio.Event(), trio.Event()

    async def flush(_: Volume) -> None:
        flushing.set()
        await go_on.wait()

    monkeypatch.setattr(Volume, "flush", flush)
    async with open_guest(GuestConfig("guest", PAIR, Role.ACTIVE, [volume])) as guest:
        handlers = overlay_handlers(guest)
        request = {"volume": "vda", "file": str(overlay_path(volume, "1"))}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handlers["overlay-undo"], request)
            await flushing.wait()
            assert await handlers["overlay-progress"](request) == {"done": BLOCK_BYTES, "total": 0}
            with pytest.raises(BusyError, match="is being undone already"):
                await handlers["overlay-undo"](request)
            go_on.set()
        assert await handlers["overlay-progress"](request) == {"done": 0, "total": 0}


async def test_a_disk_that_is_being_opened_anew_is_named_and_hides_no_other(
    volume: VolumeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = VolumeConfig("data", tmp_path / "data.img")
    create_replica(other.path, name="data", pair_id=PAIR, volume_id=b"d" * 16, size_bytes=MIB)
    async with open_guest(GuestConfig("guest", PAIR, Role.ACTIVE, [volume, other])) as guest:
        there = guest.replica

        def replica(name: str) -> Replica:
            if name == "data":
                raise BackendError("volume data: its disk is being opened anew")
            return there(name)

        monkeypatch.setattr(guest, "replica", replica)
        answer = await overlay_handlers(guest)["overlays"]({})
        assert [info["id"] for info in answer["volumes"]["vda"]] == ["1"]
        assert answer["unknown"] == {"data": "volume data: its disk is being opened anew"}


class Held:
    """Lets nothing be written to an image until it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.may_go = threading.Event(), threading.Event()
        write = OsFile.write

        def held(file: OsFile, offset: int, buffers: Sequence[Buffer], *, durable: bool = False) -> None:
            if file.path.endswith(UNFINISHED_SUFFIX):
                self.begun.set()
                assert self.may_go.wait(20)
            write(file, offset, buffers, durable=durable)

        monkeypatch.setattr(OsFile, "write", held)

    async def wait_begun(self) -> None:
        while not self.begun.is_set():
            await trio.sleep(0.01)


async def test_nobody_waits_for_an_export_that_is_not_wanted_any_more(
    volume: VolumeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that was told to end went on until it was written, owned its guest, and did not serve it."""
    image = tmp_path / "image"
    request = {"volume": "vda", "id": "1", "file": str(image)}
    held = Held(monkeypatch)
    async with open_guest(GuestConfig("guest", PAIR, Role.ACTIVE, [volume])) as guest:
        handlers = overlay_handlers(guest)
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(handlers["overlay-export"], request)
                await held.wait_begun()
                with pytest.raises(BusyError, match="already"):
                    await handlers["overlay-export"](request)
                nursery.cancel_scope.cancel()
        held.may_go.set()
        with trio.fail_after(20):
            while list(tmp_path.glob("image*")):
                await trio.sleep(0.01)
        await handlers["overlay-export"](request)
        assert _own(image.read_bytes())


async def test_an_export_does_not_keep_a_host_from_taking_the_guest_over(
    volume: VolumeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The overlay's file was in use by it, so the disks could not be opened anew, and the host ended."""
    image = tmp_path / "image"
    request = {"volume": "vda", "id": "1", "file": str(image)}
    held = Held(monkeypatch)
    async with open_guest(GuestConfig("guest", PAIR, Role.ACTIVE, [volume])) as guest:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(overlay_handlers(guest)["overlay-export"], request)
            await held.wait_begun()
            await guest.become(Role.ACTIVE, 2, in_order=True)
            held.may_go.set()
        assert guest.serves
        assert _own(image.read_bytes())  # all was read by then; else it would have ended with an error


async def test_a_host_that_is_down(volume: VolumeConfig, tmp_path: Path) -> None:
    image = tmp_path / "image"
    seen: list[tuple[int, int]] = []
    with open_stopped(volume, PAIR) as stopped:
        (info,) = stopped.overlays.list()
        assert describe_overlay(info)["data_bytes"] == BLOCK_BYTES
        stopped.export("1", image, lambda done, total: seen.append((done, total)))
    assert _own(image.read_bytes())
    assert seen[-1][0] == seen[-1][1]
    with pytest.raises(MismatchError, match="another pair"), open_stopped(volume, b"q" * 16):
        pass
