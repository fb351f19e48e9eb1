"""Every crash point of a recorded run: what a power cut may leave, state by state.

`crash_states` cuts the power before, within and after every operation of a `Recording` and builds what may
lie on the disk then; `explore` hands each state to a function that opens it with the component's own loader
and checks the rules against the notes that had been taken.

**What may survive** (a careful POSIX file system on a disk with a cache):

* a sector of 512 bytes is written whole or not at all, and of its versions since it was last durable any one
  may remain: writes that were not flushed are kept, dropped, reordered and torn in every way;
* a flush of a file makes its content and its size durable, a durable write its own sectors (and the size that
  they need);
* names are apart from what they name: created, renamed and removed ones persist in their order, none of them
  for certain until the directory is flushed, and a flush of a file says nothing about its name;
* so a rename may be there and the content of the file not: who wants it whole flushes it first.

**How many.**  Where few combinations exist all are tried.  Beyond `Budget.exhaustive_max` these are: nothing
and everything, each beginning of the run, each write alone, each one missing, each one torn in its middle
either way (the others kept or lost), the oldest versions, and some that a seeded generator draws.  States
that equal one seen before under the same notes are left out.  No clock, and random only by the budget's seed.

A process that is killed loses nothing that was written: `live_state` is what the next one finds, and
`Recording.killed_at` what it goes on from, for nothing became durable by the kill.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from xxhash import xxh3_128_digest

from pairsync.errors import InternalError

from .disks import SECTOR_BYTES, SimMedium
from .recording import Flush, Link, Note, Operation, Recording, Rename, Resize, SyncDirectory, Unlink, Write

__all__ = ["Budget", "CrashState", "Explored", "crash_states", "explore", "live_state"]


@dataclass(frozen=True, slots=True)
class Budget:
    """How many states are tried at one crash point."""

    exhaustive_max: int = 64
    """Up to here all combinations of what is undecided."""
    subsets_max: int = 64
    """Beyond, up to here all subsets of the writes; else those that the module lists."""
    draws: int = 8
    """Besides, so many that are drawn: any version of any sector."""
    seed: int = 0


_PLENTY: Final = Budget()


@dataclass(frozen=True, slots=True)
class CrashState:
    """One state that a crash may have left."""

    files: Mapping[str, bytes]
    notes: tuple[Any, ...]
    """All notes up to the crash, in order."""
    point: int
    """Operations of the recording that had begun."""
    how: str
    """What was kept, for a failure's message."""

    def medium(self) -> SimMedium:
        """These files on a simulated medium, durable."""
        medium = SimMedium()
        for name, content in self.files.items():
            medium.create(name, len(content))
            medium.platter(name, medium.life).live[:] = content
        return medium

    def lay_out(self, directory: Path) -> None:
        """These files, and no others, in a real directory."""
        for path in directory.iterdir():
            if path.name not in self.files:
                path.unlink()
        for name, content in self.files.items():
            (directory / name).write_bytes(content)


_Cell = tuple[int, int]
"""What a crash leaves one of several versions of: a sector of a file, by numbers, or one of the next two."""

_SIZE: Final = -1  # of a file, in place of a sector's number
_NAMES: Final[_Cell] = (-1, 0)  # of the directory: the versions are the beginnings of its history

_Versions = list[tuple[int, Any]]
"""The operation that made it (-1: durable) and the value, the oldest first and the newest last."""

_Picks = dict[_Cell, int]
"""For cells: which version remains; for all others it is the newest."""


class _Disk:
    """What a process reads, and all versions that a power cut may bring back."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._live = {number: bytearray(content) for number, content in enumerate(files.values())}
        self._names = {name: number for number, name in enumerate(files)}
        self.undecided: dict[_Cell, _Versions] = {}

    # ------------------------------------------------------------------ operations

    def issue(self, index: int, operation: Operation) -> None:
        """Begin operation ``index``: what it changes may remain, or not."""
        match operation:
            case Write(file, offset, data, _):
                if offset + len(data) > len(self._live[file]):
                    self._resize(index, file, offset + len(data))
                self._put(index, file, offset, data)
            case Resize(file, size_bytes):
                self._resize(index, file, size_bytes)
            case Link(name, file):
                self._live.setdefault(file, bytearray())
                self._rename(index, {**self._names, name: file})
            case Rename(old, new):
                names = dict(self._names)
                names[new] = names.pop(old)
                self._rename(index, names)
            case Unlink(name):
                self._rename(index, {each: file for each, file in self._names.items() if each != name})

    def end(self, operation: Operation) -> None:
        """The operation has returned: what it makes durable is."""
        match operation:
            case Write(file, offset, data, True):
                if data:
                    first, last = offset // SECTOR_BYTES, (offset + len(data) - 1) // SECTOR_BYTES
                    self._settle([(file, sector) for sector in (_SIZE, *range(first, last + 1))])
            case Flush(file):
                self._settle([cell for cell in self.undecided if cell[0] == file])
            case SyncDirectory():
                self._settle([_NAMES])

    def _settle(self, cells: Iterable[_Cell]) -> None:
        for cell in cells:
            self.undecided.pop(cell, None)

    def _change(self, index: int, cell: _Cell, before: Any, after: Any) -> None:
        if before != after:
            self.undecided.setdefault(cell, [(-1, before)]).append((index, after))

    def _put(self, index: int, file: int, offset: int, data: bytes) -> None:
        live = self._live[file]
        stop = offset + len(data)
        first = offset // SECTOR_BYTES
        start = first * SECTOR_BYTES
        before = bytes(live[start : -(-stop // SECTOR_BYTES) * SECTOR_BYTES])
        live[offset:stop] = data
        after = bytes(live[start : start + len(before)])
        if before == after:
            return
        for at in range(0, len(before), SECTOR_BYTES):
            old, new = before[at : at + SECTOR_BYTES], after[at : at + SECTOR_BYTES]
            self._change(index, (file, first + at // SECTOR_BYTES), old, new)

    def _resize(self, index: int, file: int, size_bytes: int) -> None:
        live = self._live[file]
        before = len(live)
        if size_bytes < before:
            self._put(index, file, size_bytes, bytes(before - size_bytes))
        live[size_bytes:] = bytes(max(size_bytes - before, 0))
        self._change(index, (file, _SIZE), before, size_bytes)

    def _rename(self, index: int, names: dict[str, int]) -> None:
        self._change(index, _NAMES, self._names, names)
        self._names = names

    # ------------------------------------------------------------------ states

    def state(self, picks: _Picks, notes: tuple[Any, ...], point: int, how: str) -> CrashState:
        """The files with the picked versions, and of all else the newest."""
        names: Mapping[str, int] = self._names
        images: dict[int, bytearray] = {}
        for (file, sector), version in picks.items():
            versions = self.undecided[file, sector]
            if version == len(versions) - 1:
                continue  # the newest: as it is
            value = versions[version][1]
            if (file, sector) == _NAMES:
                names = value
                continue
            if file not in images:
                images[file] = self._sized(file, picks)
            if sector != _SIZE:
                image, start = images[file], sector * SECTOR_BYTES
                stop = min(start + SECTOR_BYTES, len(image))
                image[start:stop] = value.ljust(SECTOR_BYTES, b"\0")[: max(stop - start, 0)]
        files = {name: bytes(images.get(file, self._live[file])) for name, file in sorted(names.items())}
        return CrashState(files, notes, point, how)

    def _sized(self, file: int, picks: _Picks) -> bytearray:
        """A copy of the file in the size that was picked; what that adds reads as zero."""
        image = bytearray(self._live[file])
        size = (file, _SIZE)
        if size in picks:
            length = self.undecided[size][picks[size]][1]
            image[length:] = bytes(max(length - len(image), 0))
        return image


# ---------------------------------------------------------------------- which of them are tried


def _kept(undecided: Mapping[_Cell, _Versions], kept: Callable[[int], bool]) -> _Picks:
    """What remains if exactly these writers' changes do, done in the order in which they were issued."""
    picks: _Picks = {}
    for cell, versions in undecided.items():
        place = 0
        for at, (writer, _) in enumerate(versions[1:], 1):
            if kept(writer):
                place = at
            elif cell == _NAMES:
                break  # a later change of a name is never there without an earlier one
        picks[cell] = place
    return picks


def _subsets(writers: Sequence[int], budget: Budget) -> Iterator[tuple[str, frozenset[int]]]:
    """Sets of writers whose changes remain."""
    everybody = frozenset(writers)
    yield "nothing that was not durable is kept", frozenset()
    yield "everything is kept", everybody
    if 1 << len(writers) <= budget.subsets_max:
        for size in range(1, len(writers)):
            for some in itertools.combinations(writers, size):
                yield f"kept of {list(writers)}: {list(some)}", frozenset(some)
        return
    for at, writer in enumerate(writers):
        yield f"only {writer} is kept", frozenset((writer,))
        yield f"all but {writer} is kept", everybody - {writer}
        yield f"all up to {writer} is kept", frozenset(writers[: at + 1])


def _torn(undecided: Mapping[_Cell, _Versions], writers: Sequence[int]) -> Iterator[tuple[str, _Picks]]:
    """Each change torn in its middle, either way, beside all others and alone."""
    for writer in writers:
        cells = [
            cell
            for cell, versions in undecided.items()
            if cell != _NAMES and any(each == writer for each, _ in versions)
        ]
        if len(cells) < 2:
            continue
        cells.sort()
        halves = (cells[: len(cells) // 2], cells[len(cells) // 2 :])
        others = _kept(undecided, lambda each, writer=writer: each != writer)  # type: ignore[misc]
        everybody = _kept(undecided, lambda _: True)
        alone = _kept(undecided, lambda each, writer=writer: each == writer)  # type: ignore[misc]
        nobody = dict.fromkeys(undecided, 0)
        for which, half in zip(("first", "second"), halves, strict=True):
            yield (
                f"{writer} is torn, its {which} half lost, all else kept",
                everybody | {cell: others[cell] for cell in half},
            )
            yield (
                f"only the {which} half of {writer} is kept",
                nobody | {cell: alone[cell] for cell in half},
            )


def _selections(
    undecided: Mapping[_Cell, _Versions], budget: Budget, point: int
) -> Iterator[tuple[str, _Picks]]:
    cells = sorted(undecided)
    counts = [len(undecided[cell]) for cell in cells]
    if math.prod(counts) <= budget.exhaustive_max:
        for picked in itertools.product(*map(range, counts)):
            yield f"versions {list(picked)} of {cells}", dict(zip(cells, picked, strict=True))
        return
    writers = sorted({writer for versions in undecided.values() for writer, _ in versions[1:]})
    for how, some in _subsets(writers, budget):
        yield how, _kept(undecided, some.__contains__)
    yield from _torn(undecided, writers)
    yield "the oldest change is kept everywhere", dict.fromkeys(cells, 1)
    rng = random.Random(f"{budget.seed}/{point}")  # noqa: S311 - to repeat, not to hide
    for number in range(budget.draws):
        drawn = {cell: rng.randrange(count) for cell, count in zip(cells, counts, strict=True)}
        yield f"draw {number} of seed {budget.seed}", drawn
    if _NAMES in undecided:  # with every state of the names: nothing and everything of the rest
        for place in range(len(undecided[_NAMES])):
            yield f"names as of {place}, nothing else", {**dict.fromkeys(cells, 0), _NAMES: place}
            yield f"names as of {place}, all else", {_NAMES: place}


def crash_states(recording: Recording, budget: Budget = _PLENTY, *, since: int = 0) -> Iterator[CrashState]:
    """All states that are tried, each once; ``since``: only crashes from that operation on."""
    disk = _Disk(recording.files)
    notes: tuple[Any, ...] = ()
    seen: set[bytes] = set()

    def states(point: int) -> Iterator[CrashState]:
        for how, picks in _selections(disk.undecided, budget, point):
            state = disk.state(picks, notes, point, how)
            parts = [b"%d" % len(notes)]
            for name, content in state.files.items():
                parts += (name.encode(), xxh3_128_digest(content))
            key = xxh3_128_digest(b"/".join(parts))
            if key not in seen:
                seen.add(key)
                yield state

    fresh = True  # whether the notes, or what is undecided, have grown since states were last built
    for index, operation in enumerate(recording.operations):
        if isinstance(operation, Note):
            notes = (*notes, operation.what)
            fresh = True
            continue
        if fresh and index >= since:
            yield from states(index)
        before = sum(map(len, disk.undecided.values()))
        disk.issue(index, operation)
        # What an end settles takes states away: those that remain have been seen, under the same notes.
        if index >= since and sum(map(len, disk.undecided.values())) != before:
            yield from states(index + 1)
        disk.end(operation)
        fresh = False
    if fresh:
        yield from states(len(recording.operations))


def live_state(recording: Recording) -> CrashState:
    """What a process reads at the end of the recording: nothing is lost."""
    disk = _Disk(recording.files)
    notes: list[Any] = []
    for index, operation in enumerate(recording.operations):
        if isinstance(operation, Note):
            notes.append(operation.what)
        else:
            disk.issue(index, operation)
    return disk.state({}, tuple(notes), len(recording.operations), "the process was killed")


class Explored(NamedTuple):
    """How much was looked at."""

    operations: int
    """Crash points: operations of the recording, without notes."""
    states: int


def explore(
    recording: Recording,
    check: Callable[[CrashState], object],
    budget: Budget = _PLENTY,
    *,
    since: int = 0,
) -> Explored:
    """Hand every state to ``check``, which raises where a rule is broken; the exception gets to say where."""
    count = 0
    for state in crash_states(recording, budget, since=since):
        try:
            check(state)
        except BaseException as error:
            error.add_note(_describe(recording, state))
            raise
        count += 1
    if not count:
        raise InternalError("a recording without a single state")
    return Explored(sum(not isinstance(each, Note) for each in recording.operations[since:]), count)


_TOLD: Final = 6  # operations before the crash that a failure names: enough to see what was going on


def _describe(recording: Recording, state: CrashState) -> str:
    lines = [
        f"  {index}: {_told(operation)}"
        for index, operation in enumerate(recording.operations[: state.point])
        if not isinstance(operation, Note)
    ]
    told = f"crash at operation {state.point} of {len(recording.operations)}: {state.how}; the last ones were"
    return "\n".join((told, *lines[-_TOLD:]))


def _told(operation: Operation) -> str:
    if not isinstance(operation, Write):
        return str(operation)
    durably = " durably" if operation.durable else ""
    return f"{len(operation.data)} bytes at {operation.offset} of file {operation.file} written{durably}"
