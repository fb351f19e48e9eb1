"""The demonstration's tree: copied within bounds, changed, and compared without mercy."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pairsync.errors import ConfigError
from pairsync.node.demotree import (
    DIFFERENCES_MAX,
    EDITS_MAX,
    change_tree,
    compare_trees,
    copy_tree,
    default_sources,
)


def _nothing() -> None:
    pass


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small tree with everything that a tree may hold."""
    source = tmp_path / "source"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "empty").mkdir()
    (source / "site-packages").mkdir()
    (source / "site-packages" / "huge").write_bytes(b"x" * 100_000)
    for number in range(300):
        (source / "deep" / f"file{number:03}").write_bytes(b"%03d" % number * 10)
    (source / "deep" / "er" / "näme with spaces").write_text("odd")
    (source / "deep" / "er" / "nothing in it").touch()
    (source / "link").symlink_to("deep/file000")
    (source / "broken link").symlink_to("nowhere")
    os.mkfifo(source / "fifo")
    return source


def test_a_copy_has_files_links_and_directories(source: Path, tmp_path: Path) -> None:
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1

    tree = copy_tree([source], tmp_path / "tree", step)
    assert (tree.files, tree.sources) == (302, (source,))
    assert tree.size_bytes == 300 * 30 + 3
    assert steps >= 302
    copy = tmp_path / "tree" / "source"
    assert not (copy / "site-packages").exists()
    assert not (copy / "fifo").exists()
    assert (copy / "broken link").readlink() == Path("nowhere")
    assert compare_trees(source, copy, _nothing) == ["fifo is missing"]


@pytest.mark.parametrize(("bytes_max", "files_max", "files"), [(3000, 1000, 100), (10**6, 7, 7)])
def test_a_copy_stops_at_its_bounds(
    source: Path, tmp_path: Path, bytes_max: int, files_max: int, files: int
) -> None:
    tree = copy_tree(
        [source / "deep", source], tmp_path / "tree", _nothing, bytes_max=bytes_max, files_max=files_max
    )
    assert abs(tree.files - files) <= 2  # the odd ones are smaller
    assert tree.size_bytes <= bytes_max
    assert tree.sources == (source / "deep",)


def test_what_may_not_be_read_is_left_out(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read everything, so the refusal is put in the way."""
    copyfile, scandir = shutil.copyfile, os.scandir

    def refuse_file(path: str, target: Path) -> object:
        if path.endswith("file000"):
            target.touch()  # as far as it had come
            raise PermissionError(path)
        return copyfile(path, target)

    def refuse_directory(path: Path) -> object:
        if Path(path).name == "er":
            raise PermissionError(path)
        return scandir(path)

    monkeypatch.setattr(shutil, "copyfile", refuse_file)
    monkeypatch.setattr(os, "scandir", refuse_directory)
    tree = copy_tree([source], tmp_path / "tree", _nothing)
    assert tree.files == 299
    assert not (tree.path / "source" / "deep" / "file000").exists()
    assert (tree.path / "source" / "deep" / "file001").exists()


def test_nothing_to_copy_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no files to copy in .*empty"):
        copy_tree([tmp_path / "empty"], tmp_path / "tree", _nothing)
    with pytest.raises(ConfigError, match="no directory at all"):
        copy_tree([], tmp_path / "tree2", _nothing)


def test_this_machine_has_something_to_copy() -> None:
    assert all(path.is_dir() for path in default_sources())
    assert any((path / "os.py").exists() for path in default_sources())


def test_changes_are_scattered_and_named(source: Path, tmp_path: Path) -> None:
    tree = copy_tree([source], tmp_path / "tree", _nothing).path
    before = copy_tree([source], tmp_path / "before", _nothing).path
    edits = change_tree(tree)
    assert (len(edits.removed), len(edits.written)) == (EDITS_MAX, EDITS_MAX + 1)
    assert set(edits.removed).isdisjoint(edits.written)
    assert not any((tree / name).exists() for name in edits.removed)
    assert all((tree / name).read_bytes() for name in edits.written)
    changed = {name for name in edits.written if (before / name).exists()}
    assert len(changed) == EDITS_MAX
    assert all((before / name).read_bytes() != (tree / name).read_bytes() for name in changed)
    assert all(" " not in name for name in (*edits.removed, *edits.written))
    numbers = [int(name[-3:]) for name in edits.removed if name[-3:].isdecimal()]
    assert max(numbers) - min(numbers) > 200


def test_differences_are_found_and_few_are_named(source: Path, tmp_path: Path) -> None:
    (source / "fifo").unlink()
    copy = copy_tree([source], tmp_path / "tree", _nothing).path / "source"
    assert compare_trees(source, copy, _nothing) == []
    (copy / "lost+found").mkdir()
    assert compare_trees(source, copy, _nothing) == []
    (copy / "deep" / "file007").write_bytes(b"other")
    (copy / "surplus").touch()
    (copy / "link").unlink()
    (copy / "link").symlink_to("elsewhere")
    (copy / "empty").rmdir()
    (copy / "empty").write_text("now a file")
    assert compare_trees(source, copy, _nothing) == [
        "deep/file007 differs",
        "empty differs",
        "link differs",
        "surplus should not be there",
    ]
    for number in range(20):
        (copy / "deep" / f"file{number:03}").unlink()
    assert len(compare_trees(source, copy, _nothing)) == DIFFERENCES_MAX
