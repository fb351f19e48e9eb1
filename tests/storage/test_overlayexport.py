"""An overlay as an image: what is in it, that other tools open it, and that it is there whole or not."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pairsync.core.dirty import DirtyMap
from pairsync.core.messages import Generation, OpKind, WriteOp
from pairsync.core.superblock import Superblock
from pairsync.core.units import BLOCK_BYTES, KIB, MIB
from pairsync.errors import ConfigError, MetadataError, MismatchError
from pairsync.storage.file import RawFile, create_volume, open_volume
from pairsync.storage.overlay import Overlays, overlays_beside
from pairsync.storage.overlayexport import UNFINISHED_SUFFIX, overlay_ops
from pairsync.storage.overlayfile import RECORDS_AT

SIZE = 8 * MIB
OWN = (3, 4, 700, 2047)


@pytest.fixture
def kept(tmp_path: Path, make_superblock: Callable[..., Superblock]) -> tuple[Path, RawFile, Overlays, bytes]:
    """A volume of which blocks were overwritten, its overlay of four of them, and its old content."""
    path = tmp_path / "v"
    create_volume(path, SIZE)
    device = open_volume(path)
    rng = random.Random(5)
    for at in (0, 2 * MIB, SIZE - 64 * KIB):
        device.apply([WriteOp(OpKind.DATA, at, 64 * KIB, rng.randbytes(64 * KIB))])
    old = path.read_bytes()
    overlays = overlays_beside(tmp_path / "v.pairsync", SIZE)
    undo = overlays.begin(make_superblock(size_bytes=SIZE), Generation(2, 1, 1), 5)
    for block in (1, *OWN):
        ops = [WriteOp(OpKind.DATA, block * BLOCK_BYTES, BLOCK_BYTES, b"n" * BLOCK_BYTES)]
        undo.preserve(device, ops)
        device.apply(ops)
    own = DirtyMap(SIZE // BLOCK_BYTES)
    for block in OWN:
        own.mark(block, block + 1)
    undo.finish(own)
    return path, device, overlays, old


def _expected(base: bytes, old: bytes) -> bytes:
    content = bytearray(base)
    for block in OWN:
        at = block * BLOCK_BYTES
        content[at : at + BLOCK_BYTES] = old[at : at + BLOCK_BYTES]
    return bytes(content)


def test_an_image_is_the_volume_with_the_overlay_put_in(
    kept: tuple[Path, RawFile, Overlays, bytes], tmp_path: Path
) -> None:
    path, device, overlays, old = kept
    with_base, alone = tmp_path / "image", tmp_path / "only"
    seen: list[tuple[int, int]] = []
    assert overlays.export("1", device, with_base, progress=lambda *at: seen.append(at)) == []
    assert with_base.read_bytes() == _expected(path.read_bytes(), old)
    assert with_base.stat().st_blocks * 512 < SIZE // 4
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]
    overlays.export("1", device, alone, only=True)
    assert alone.read_bytes() == _expected(bytes(SIZE), old)
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "image",
        "only",
        "v",
        "v.pairsync-overlay-1",
    ]
    device.close()


@pytest.mark.tools("qemu-img")
def test_qemu_img_opens_it(kept: tuple[Path, RawFile, Overlays, bytes], tmp_path: Path) -> None:
    path, device, overlays, old = kept
    image, expected = tmp_path / "image", tmp_path / "expected"
    expected.write_bytes(_expected(path.read_bytes(), old))
    overlays.export("1", device, image)
    device.close()
    shown = subprocess.run(["qemu-img", "info", str(image)], capture_output=True, text=True, check=True)
    assert "8 MiB (8388608 bytes)" in shown.stdout
    command = ["qemu-img", "compare", "-f", "raw", "-F", "raw", str(image)]
    same = subprocess.run([*command, str(expected)], capture_output=True, text=True)
    assert (same.returncode, same.stdout.strip()) == (0, "Images are identical.")
    assert subprocess.run([*command, str(path)], capture_output=True).returncode == 1


def test_refusals_leave_nothing_behind(kept: tuple[Path, RawFile, Overlays, bytes], tmp_path: Path) -> None:
    path, device, overlays, _ = kept
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="exists already"):
        overlays.export("1", device, path)
    with pytest.raises(ConfigError, match="no overlay '7'; there is 1"):
        overlays.export("7", device, tmp_path / "image")
    create_volume(tmp_path / "w", SIZE - 512)
    other = open_volume(tmp_path / "w")
    with pytest.raises(MismatchError, match="8388096 bytes, less than 8388608"):
        overlays.export("1", other, tmp_path / "image")
    other.close()
    (tmp_path / "w").unlink()

    def stop(_done: int, _total: int) -> None:
        raise ConfigError("enough")

    with pytest.raises(ConfigError, match="enough"):
        overlays.export("1", device, tmp_path / "image", progress=stop)
    assert sorted(tmp_path.iterdir()) == before
    (tmp_path / ("image" + UNFINISHED_SUFFIX)).write_bytes(b"x" * (SIZE + 5))  # of one that was killed
    overlays.export("1", device, tmp_path / "image", only=True)
    assert (tmp_path / "image").stat().st_size == SIZE
    device.close()


def test_what_is_not_damaged_is_exported_on_request(
    kept: tuple[Path, RawFile, Overlays, bytes], tmp_path: Path
) -> None:
    path, device, overlays, old = kept
    file = tmp_path / "v.pairsync-overlay-1"
    raw = bytearray(file.read_bytes())
    raw[RECORDS_AT + BLOCK_BYTES + 10] ^= 1  # the first block: 3
    file.write_bytes(raw)
    with pytest.raises(MetadataError, match="content of record 0 at 8192: blocks 3 lost"):
        overlays.export("1", device, tmp_path / "image")
    assert not (tmp_path / "image").exists()
    (damage,) = overlays.export("1", device, tmp_path / "image", salvage=True)
    assert list(damage.extents) == [(3, 4)]
    expected = bytearray(_expected(path.read_bytes(), old))
    expected[3 * BLOCK_BYTES : 4 * BLOCK_BYTES] = b"n" * BLOCK_BYTES
    assert (tmp_path / "image").read_bytes() == expected
    assert [each.what for each in overlays.damage("1")] == [damage.what]
    device.close()


def test_the_content_of_a_file_by_itself(
    kept: tuple[Path, RawFile, Overlays, bytes], tmp_path: Path, make_superblock: Callable[..., Superblock]
) -> None:
    _, _, overlays, old = kept
    file = tmp_path / "v.pairsync-overlay-1"
    volume_id = make_superblock(size_bytes=SIZE).volume_id
    found = [op for ops in overlay_ops(file, volume_id, SIZE) for op in ops]
    assert sum(op.length for op in found) == len(OWN) * BLOCK_BYTES
    for op in found:
        content = bytes(op.length) if op.data is None else bytes(op.data)
        assert content == old[op.offset : op.offset + op.length]
    for other, size_bytes in ((b"another".ljust(16), SIZE), (volume_id, SIZE - BLOCK_BYTES)):
        with pytest.raises(MismatchError, match="another volume"):
            next(overlay_ops(file, other, size_bytes))
    overlays.begin(make_superblock(size_bytes=SIZE), Generation(2, 1, 1), 5).close()
    with pytest.raises(ConfigError, match="not complete"):
        next(overlay_ops(tmp_path / "v.pairsync-overlay-2", volume_id, SIZE))
    with file.open("r+b") as damaged:
        damaged.seek(RECORDS_AT + BLOCK_BYTES)
        damaged.write(b"???")
    with pytest.raises(MetadataError):
        list(overlay_ops(file, volume_id, SIZE))
