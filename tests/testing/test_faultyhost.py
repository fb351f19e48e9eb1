"""The host process of a lab: its words, and its disks in every state; the whole of it is in tests/e2e."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from pairsync.core.messages import Condition, Role
from pairsync.core.units import MIB
from pairsync.errors import BackendError, ConfigError
from pairsync.guest.config import GuestConfig, VolumeConfig
from pairsync.guest.guest import Guest, open_guest
from pairsync.guest.replica import create_replica, open_replica
from pairsync.testing import faultyhost
from pairsync.testing.faulty import DiskState, FaultyDisk
from pairsync.testing.faultyhost import HostDisks, main

PAIR_ID = bytes(range(16))
DEADLINE_S = 60.0


@pytest.fixture
def volume(tmp_path: Path) -> VolumeConfig:
    path = tmp_path / "vda.img"
    create_replica(path, name="vda", pair_id=PAIR_ID, volume_id=bytes(16), size_bytes=MIB)
    return VolumeConfig("vda", path)


@asynccontextmanager
async def alone(volume: VolumeConfig, disks: HostDisks) -> AsyncIterator[Guest]:
    config = GuestConfig("guest", PAIR_ID, Role.ACTIVE, [volume])
    with trio.fail_after(DEADLINE_S):
        async with open_guest(config, opener=disks.open) as guest:
            yield guest


async def test_a_disk_is_turned_while_its_guest_runs(volume: VolumeConfig) -> None:
    disks = HostDisks({})
    async with alone(volume, disks) as guest:
        disk = disks.handlers(guest)["disk"]
        vda = guest.volume("vda")
        await vda.write(0, b"before")
        assert await disk({"volume": "vda", "state": "fail"}) == {}
        with pytest.raises(BackendError):
            await vda.read(0, 6)
        await disk({"volume": "vda", "state": "hang"})
        with trio.move_on_after(0.1) as scope:
            await vda.write(0, b"beyond")  # its loop goes on
        assert scope.cancelled_caught
        await disk({"volume": "vda", "state": "ok"})
        await vda.flush()
        assert await vda.read(0, 6) == b"beyond"  # what hung has been done
        with pytest.raises(ConfigError, match="'melt'; there are ok, fail, hang, full, replace"):
            await disk({"volume": "vda", "state": "melt"})
        with pytest.raises(ConfigError, match="no volume 'vdb'"):
            await disk({"volume": "vdb", "state": "ok"})


async def test_an_empty_disk_is_put_in(volume: VolumeConfig) -> None:
    disks = HostDisks({})
    async with alone(volume, disks) as guest:
        vda = guest.volume("vda")
        await vda.write(0, b"before")
        await vda.flush()
        await disks.turn(guest, "vda", "replace")
        with pytest.raises(BackendError):  # what is open lies on the old one
            await vda.read(0, 6)
        fresh = open_replica(volume, PAIR_ID)
        assert fresh.setup.superblock.condition is Condition.BLANK
        assert fresh.device.size_bytes == MIB
        fresh.close()


def test_a_disk_has_its_state_from_the_first_moment(volume: VolumeConfig) -> None:
    with pytest.raises(BackendError, match=r"vda\.img\.pairsync: open: Input/output error"):
        HostDisks({"vda": DiskState.FAIL}).open(volume, PAIR_ID)
    replica = HostDisks({"vdb": DiskState.FAIL}).open(volume, PAIR_ID)
    replica.close()
    replica = HostDisks({"vda": DiskState.FULL}).open(volume, PAIR_ID)
    assert replica.device.may_block  # it can be made to hang
    replica.close()


def test_each_volume_has_a_disk_of_its_own_for_all_its_files(volume: VolumeConfig) -> None:
    disks = HostDisks({})
    replica = disks.open(volume, PAIR_ID)
    disk = disks._disk("vda")
    assert disks._disk("vda") is disk
    assert disks._disk("vdb") is not disk
    disk.set(DiskState.FAIL)
    with pytest.raises(BackendError):
        replica.device.flush()
    with pytest.raises(BackendError):
        replica.store.write_superblock(replica.store.superblock)
    replica.close()
    assert isinstance(disk, FaultyDisk)


@pytest.mark.parametrize("words", [[], ["one", "two"], ["--cut"], ["--disk=vda=fail"], ["one", "--unknown"]])
def test_wrong_words_are_told(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["faultyhost", *words])
    assert main() == 2
    assert "usage:" in capsys.readouterr().err


def test_a_wrong_state_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["faultyhost", "host.toml", "--disk=vda=melt"])
    assert main() == 1
    assert "no state of a disk 'melt'" in capsys.readouterr().err


def test_the_words_reach_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}

    def run_host_file(path: Path, **options: object) -> int:
        seen.update(path=path, **options)
        return 7

    monkeypatch.setattr(faultyhost, "run_host_file", run_host_file)
    monkeypatch.setattr(sys, "argv", ["faultyhost", "host.toml", "--disk=a=b=hang", "--cut"])
    assert main() == 7
    assert (seen["path"], seen["cut"], seen["follow_stdin"]) == (Path("host.toml"), True, False)
    opener = seen["opener"]
    assert callable(opener)
    disks = getattr(opener, "__self__")  # noqa: B009 - a bound method's
    assert disks._disk("a=b").state is DiskState.HANG
