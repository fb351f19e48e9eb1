"""Comparing two replicas: against `bytes`, without reading what neither has."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from pairsync.core.units import MIB
from pairsync.errors import BackendError, BusyError
from pairsync.node.compare import PIECE_BYTES, compare_volumes
from pairsync.storage.file import open_volume


def _file(path: Path, content: bytes | bytearray) -> Path:
    path.write_bytes(content)
    return path


def test_random_files_as_bytes_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pairsync.node.compare.PIECE_BYTES", 10_000)
    rng = random.Random(5)
    for number in range(60):
        left = rng.randbytes(rng.randrange(1, 40_000))
        right = bytearray(left)
        places = sorted({rng.randrange(len(left)) for _ in range(number % 3)})
        for place in places:
            right[place] ^= 1
        found = compare_volumes(_file(tmp_path / "l", left), _file(tmp_path / "r", right))
        assert found.equal == (not places)
        assert found.first_difference == (places[0] if places else None)
        assert found.size_bytes == len(left)


def test_holes_are_equal_to_holes_and_to_zeroes(tmp_path: Path) -> None:
    left, right = _file(tmp_path / "l", b""), _file(tmp_path / "r", b"")
    os.truncate(left, 1 << 40)
    os.truncate(right, 1 << 40)
    found = compare_volumes(left, right)
    assert (found.equal, found.read_bytes) == (True, 0)
    with open(right, "r+b") as file:
        file.seek(1 << 39)
        file.write(bytes(8192))
    found = compare_volumes(left, right)
    assert found.equal
    assert 8192 <= found.read_bytes <= 4 * MIB
    with open(left, "r+b") as file:
        file.seek((1 << 39) + 5000)
        file.write(b"x")
    assert compare_volumes(left, right).first_difference == (1 << 39) + 5000


@pytest.mark.parametrize("sizes", [(5000, 6000), (6000, 5000)])
def test_another_size_differs_at_the_end_of_the_shorter(tmp_path: Path, sizes: tuple[int, int]) -> None:
    left, right = (tmp_path / str(size) for size in sizes)
    for content in (b"x", b"\0"):
        found = compare_volumes(_file(left, content * sizes[0]), _file(right, content * sizes[1]))
        assert (found.equal, found.first_difference) == (False, 5000)


def test_progress_ends_at_the_whole(tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    left, right = (_file(tmp_path / name, b"x" * (2 * PIECE_BYTES + 1)) for name in "lr")
    compare_volumes(left, right, lambda done, total: heard.append((done, total)))
    assert heard[-1] == (2 * PIECE_BYTES + 1, 2 * PIECE_BYTES + 1)
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)
    assert len(heard) >= 3


def test_files_in_use_or_missing_are_errors_and_given_back(tmp_path: Path) -> None:
    left, right = _file(tmp_path / "l", b"x"), _file(tmp_path / "r", b"x")
    device = open_volume(right)
    with pytest.raises(BusyError, match="/r: in use"):
        compare_volumes(left, right)
    device.close()
    with pytest.raises(BackendError, match="nowhere"):
        compare_volumes(left, tmp_path / "nowhere")
    assert compare_volumes(left, right).equal
