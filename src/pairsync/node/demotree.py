"""The demonstration's input: a real directory tree, a few changes to it, and the proof that it came through.

The tree is copied from what every machine has (the Python library, then documentation, headers,
translations), up to a bound, so that what is expected later is fixed and nobody's package upgrade disturbs
it.  Special files, and what may not be read, are left out.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pairsync.core.units import MIB
from pairsync.errors import ConfigError

__all__ = ["Edits", "Tree", "change_tree", "compare_trees", "copy_tree", "default_sources"]

TREE_BYTES_MAX = 80 * MIB
"""What is copied: enough to be killed in the middle of, little enough for a minute on a slow machine."""

TREE_FILES_MAX = 10_000
"""A sixth of the inodes that the image gets by default."""

SKIPPED = {"site-packages", "dist-packages"}
"""Directories of the Python library that hold other people's programs, sometimes gigabytes."""

PLAIN_NAME = re.compile(r"[A-Za-z0-9_.+-]+(?:/[A-Za-z0-9_.+-]+)*")
"""Paths that need no quoting for anybody."""

EDITS_MAX = 40
"""Files that are removed, and that are changed."""

_TURNED_OVER = bytes(255 - byte for byte in range(256))

DIFFERENCES_MAX = 5
"""Differences that are named; more would say no more."""


@dataclass(frozen=True, slots=True)
class Tree:
    """What was copied."""

    path: Path
    sources: tuple[Path, ...]
    files: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Edits:
    """What was changed, as paths relative to the tree."""

    removed: tuple[str, ...]
    written: tuple[str, ...]  # changed or new


def default_sources() -> list[Path]:
    """Directories that a Linux machine with Python has, the surest first."""
    places = [sysconfig.get_paths()["stdlib"], "/usr/share/doc", "/usr/include", "/usr/share/locale"]
    return [Path(place) for place in places if Path(place).is_dir()]


def _entries(directory: Path) -> Iterator[os.DirEntry[str]]:
    """Everything below, in a fixed order, directories before what they hold."""
    try:
        with os.scandir(directory) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except PermissionError:
        return
    for entry in entries:
        if entry.name in SKIPPED:
            continue
        yield entry
        if entry.is_dir(follow_symlinks=False):
            yield from _entries(Path(entry.path))


def copy_tree(
    sources: Sequence[Path],
    target: Path,
    step: Callable[[], None],
    *,
    bytes_max: int = TREE_BYTES_MAX,
    files_max: int = TREE_FILES_MAX,
) -> Tree:
    """Copy the sources into new directories of ``target`` until a bound is met; ``step`` is called often.

    Raises `ConfigError` if there is nothing to copy.
    """
    files = size_bytes = 0
    used: list[Path] = []
    for source in sources:
        place = target / source.name
        place.mkdir(parents=True)
        used.append(source)
        for entry in _entries(source):
            step()
            is_file = entry.is_file(follow_symlinks=False)
            length = entry.stat(follow_symlinks=False).st_size if is_file else 0
            if size_bytes + length > bytes_max or files >= files_max:
                return Tree(target, tuple(used), files, size_bytes)
            if _copy(entry, place / Path(entry.path).relative_to(source)) and is_file:
                files += 1
                size_bytes += length
    if not files:
        raise ConfigError(f"no files to copy in {', '.join(map(str, sources)) or 'no directory at all'}")
    return Tree(target, tuple(used), files, size_bytes)


def _copy(entry: os.DirEntry[str], place: Path) -> bool:
    """Copy one entry; False if it is neither file, link nor directory, or may not be read."""
    if entry.is_symlink():
        place.symlink_to(Path(entry.path).readlink())
    elif entry.is_dir():
        place.mkdir()
    elif entry.is_file():
        try:
            shutil.copyfile(entry.path, place)
        except PermissionError:
            place.unlink(missing_ok=True)
            return False
    else:
        return False
    return True


def _plain_files(tree: Path) -> list[str]:
    found = (Path(entry.path) for entry in _entries(tree) if entry.is_file(follow_symlinks=False))
    names = (str(path.relative_to(tree)) for path in found if path.stat().st_size)
    return [name for name in names if PLAIN_NAME.fullmatch(name)]


def change_tree(tree: Path) -> Edits:
    """Remove some files, turn over every bit of some, and add one: scattered over the whole tree."""
    names = _plain_files(tree)
    stride = max(1, len(names) // (2 * EDITS_MAX))
    chosen = names[::stride][: 2 * EDITS_MAX]
    removed, changed = chosen[0::2], chosen[1::2]
    for name in removed:
        (tree / name).unlink()
    for name in changed:
        (tree / name).write_bytes((tree / name).read_bytes().translate(_TURNED_OVER))
    note = "written-while-one-host-was-down.txt"
    (tree / note).write_text("The other host was down when this was written.\n")
    return Edits(tuple(removed), (*changed, note))


def compare_trees(expected: Path, found: Path, step: Callable[[], None]) -> list[str]:
    """What differs in kind, content or link target; empty if nothing does.  At most a few are named."""
    differences: list[str] = []
    wanted = {os.path.relpath(entry.path, expected): entry for entry in _entries(expected)}
    there = {os.path.relpath(entry.path, found): entry for entry in _entries(found)}
    there.pop("lost+found", None)  # made with the file system
    for name in sorted(wanted.keys() | there.keys()):
        step()
        if name not in there:
            differences.append(f"{name} is missing")
        elif name not in wanted:
            differences.append(f"{name} should not be there")
        elif not _same(wanted[name], there[name]):
            differences.append(f"{name} differs")
        if len(differences) >= DIFFERENCES_MAX:
            break
    return differences


def _same(left: os.DirEntry[str], right: os.DirEntry[str]) -> bool:
    kind = stat.S_IFMT(left.stat(follow_symlinks=False).st_mode)
    if kind != stat.S_IFMT(right.stat(follow_symlinks=False).st_mode):
        return False
    if kind == stat.S_IFLNK:
        return Path(left.path).readlink() == Path(right.path).readlink()
    return kind != stat.S_IFREG or Path(left.path).read_bytes() == Path(right.path).read_bytes()
