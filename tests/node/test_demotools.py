"""The outside programs of the demonstration, on a small file system and a disk in memory behind NBD."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
from tools import system

from pairsync.core.units import BLOCK_BYTES, MIB
from pairsync.errors import BackendError, ConfigError
from pairsync.node.demotools import PACKAGES, Stretch, Tools, find_tools, stretches_of
from pairsync.node.demotree import change_tree, compare_trees, copy_tree
from pairsync.testing.nbd_memory import MemoryExport
from pairsync.testing.nbd_service import NbdService, serving_nbd

DEADLINE_S = 120.0
SIZE = 32 * MIB

tools_wanted = pytest.mark.tools(*PACKAGES)


def _nothing() -> None:
    pass


def _tools() -> Tools:
    return Tools(find_tools())


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree of 200 files in two directories."""
    for number in range(200):
        path = tmp_path / "source" / f"d{number % 2}" / f"file{number:03}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(1) * (number * 100 + 1))
    return copy_tree([tmp_path / "source"], tmp_path / "tree", _nothing).path


# -- finding them --------------------------------------------------------------------------------------------


def test_what_is_missing_is_one_line_with_its_package(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        find_tools(str(tmp_path))
    assert str(refused.value) == (
        "missing: mkfs.ext4, debugfs, e2fsck, qemu-img; on Debian: apt-get install e2fsprogs qemu-utils"
    )
    for name in ("mkfs.ext4", "debugfs", "e2fsck"):
        (tmp_path / name).touch(mode=0o755)
    with pytest.raises(ConfigError, match=r"^missing: qemu-img; on Debian: apt-get install qemu-utils$"):
        find_tools(str(tmp_path))


def test_make_installs_what_the_demonstration_needs() -> None:
    wanted = {need.probe: need.package for need in system.needs() if "demo" in need.groups}
    assert PACKAGES.items() <= wanted.items()


@tools_wanted
def test_an_ordinary_users_path_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/local/bin:/usr/bin:/bin")
    assert set(find_tools()) == set(PACKAGES)


# -- a file system -------------------------------------------------------------------------------------------


@tools_wanted
async def test_an_image_holds_the_tree_before_and_after_changes(tree: Path, tmp_path: Path) -> None:
    tools, image = _tools(), tmp_path / "image"
    with trio.fail_after(DEADLINE_S):
        await tools.make_image(image, tree, SIZE)
        assert image.stat().st_size == SIZE
        assert image.stat().st_blocks * 512 < SIZE
        await tools.extract(image, tmp_path / "before")
        assert compare_trees(tree, tmp_path / "before", _nothing) == []
        edits = change_tree(tree)
        await tools.change_image(image, tree, edits)
        assert await tools.check_image(image) == ""
        await tools.extract(image, tmp_path / "after")
        assert compare_trees(tree, tmp_path / "after", _nothing) == []
        assert compare_trees(tree, tmp_path / "before", _nothing) != []


@tools_wanted
async def test_damage_is_found(tree: Path, tmp_path: Path) -> None:
    tools, image = _tools(), tmp_path / "image"
    with trio.fail_after(DEADLINE_S):
        await tools.make_image(image, tree, SIZE)
        content = bytearray(image.read_bytes())
        content[1024 + 12] ^= 0xFF  # the superblock's count of free blocks
        image.write_bytes(content)
        assert "superblock" in (await tools.check_image(image)).lower()


@tools_wanted
async def test_a_program_that_fails_says_why(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE_S), pytest.raises(BackendError, match=r"mkfs\.ext4 failed with status"):
        await _tools().make_image(tmp_path / "nowhere" / "image", tmp_path, SIZE)


# -- stretches -----------------------------------------------------------------------------------------------


def _image(path: Path, size_bytes: int, *data: tuple[int, int]) -> Path:
    path.touch()
    os.truncate(path, size_bytes)
    with path.open("r+b") as file:
        for offset, length in data:
            file.seek(offset)
            file.write(b"x" * length)
    return path


def test_stretches_hold_about_as_much_data_each(tmp_path: Path) -> None:
    image = _image(tmp_path / "image", 16 * MIB, (1 * MIB, 3 * MIB), (8 * MIB, 2 * MIB))
    assert stretches_of(image, 2 * MIB) == [
        Stretch(0, 3 * MIB),
        Stretch(3 * MIB, 6 * MIB),
        Stretch(9 * MIB, 7 * MIB),
    ]
    assert stretches_of(image, 100 * MIB) == [Stretch(0, 16 * MIB)]


def test_stretches_cover_everything_once_and_are_cut_at_blocks(tmp_path: Path) -> None:
    image = _image(tmp_path / "image", 10_000_001, (5000, 3_000_000), (7_000_000, 1_234_567))
    stretches = stretches_of(image, 700_001)
    at = 0
    for stretch in stretches:
        assert stretch.offset == at
        assert at % BLOCK_BYTES == 0
        at += stretch.length
    assert at == 10_000_001
    assert len(stretches) > 3


def test_an_empty_image_is_one_stretch(tmp_path: Path) -> None:
    assert stretches_of(_image(tmp_path / "image", MIB), 4096) == [Stretch(0, MIB)]


# -- NBD -----------------------------------------------------------------------------------------------------


async def _content(service: NbdService) -> bytes:
    client = await service.client()
    return b"".join([await client.read(at, MIB) for at in range(0, SIZE, MIB)])


@tools_wanted
async def test_an_image_is_written_in_stretches_and_then_only_what_differs(
    tree: Path, tmp_path: Path
) -> None:
    tools, image = _tools(), tmp_path / "image, with a comma"
    heard: list[float] = []
    export = MemoryExport("vda", SIZE)
    with trio.fail_after(DEADLINE_S):
        await tools.make_image(image, tree, SIZE)
        async with serving_nbd(tmp_path, [export]) as service:
            for stretch in stretches_of(image, MIB):
                heard.clear()
                await tools.write_stretch(image, stretch, service.path, "vda", heard.append)
                assert heard[-1] == 1.0
                assert heard == sorted(heard)
            assert await _content(service) == image.read_bytes()
            await tools.change_image(image, tree, change_tree(tree))
            before = await _content(service)
            assert before != image.read_bytes()
            await tools.write_changes(image, service.uri("vda"))
            assert await _content(service) == image.read_bytes()
    assert not list(tmp_path.glob("*.qcow2"))


@tools_wanted
async def test_a_client_that_finds_no_server_says_so(tmp_path: Path) -> None:
    image = _image(tmp_path / "image", MIB, (0, 4096))
    with trio.fail_after(DEADLINE_S), pytest.raises(BackendError, match="qemu-img convert failed"):
        await _tools().write_stretch(image, Stretch(0, MIB), tmp_path / "no.sock", "vda", lambda _: None)


@tools_wanted
async def test_a_cancelled_client_is_killed(tmp_path: Path) -> None:
    image = _image(tmp_path / "image", MIB, (0, MIB))
    export = MemoryExport("vda", MIB)
    async with serving_nbd(tmp_path, [export]) as service:
        with trio.move_on_after(DEADLINE_S) as scope:

            def stop(_: float) -> None:
                scope.cancel()

            await _tools().write_stretch(image, Stretch(0, MIB), service.path, "vda", stop)
        assert scope.cancelled_caught
