"""A run of a component, operation by operation: what ``testing.crashpoints`` cuts at every point.

A `Recording` is the sequence of what a component did to the files of one directory: writes, zeroing, changes
of size, flushes, names that came and went, and between them *notes* of what the component had been told by
then ("these blocks are durable") or was about to try.  It is made by running the component over files that
`Recording.watch` wraps, or from traced system calls (``testing.syscalls``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pairsync.core.messages import Buffer
from pairsync.errors import InternalError
from pairsync.storage.blockfile import Allocation, BlockFile
from pairsync.storage.directory import Directory, GrowingFile

__all__ = [
    "Flush",
    "Link",
    "Note",
    "Operation",
    "Recording",
    "RecordingDirectory",
    "RecordingFile",
    "RecordingGrowingFile",
    "Rename",
    "Resize",
    "SyncDirectory",
    "Unlink",
    "Write",
]


class Write(NamedTuple):
    """Data (or zeroes) came to a file; ``durable``: on stable storage when the operation has ended."""

    file: int
    offset: int
    data: bytes
    durable: bool = False


class Resize(NamedTuple):
    """A file got another size; what is added reads as zero."""

    file: int
    size_bytes: int


class Flush(NamedTuple):
    """All of a file is durable when it has ended."""

    file: int


class Link(NamedTuple):
    """A name was given to a file: a new one, as a rule."""

    name: str
    file: int


class Rename(NamedTuple):
    """A name was changed, replacing what had the other one."""

    old: str
    new: str


class Unlink(NamedTuple):
    """A name was removed."""

    name: str


class SyncDirectory(NamedTuple):
    """All names are durable when it has ended."""


class Note(NamedTuple):
    """Not an operation: what the component had been told, or was about to try, when it came here."""

    what: Any


Operation = Write | Resize | Flush | Link | Rename | Unlink | SyncDirectory | Note


class Recording:
    """The operations of a run; ``files`` lay there, durably, when it began: they are file 0, 1, ..."""

    def __init__(self, files: Mapping[str, bytes] | None = None) -> None:
        self.files = dict(files or {})
        self.operations: list[Operation] = []
        self._numbers = {
            name: number for number, name in enumerate(self.files)
        }  # of the names as they are now
        self._count = len(self.files)

    def number(self, name: str) -> int:
        """Of the file that has this name now."""
        return self._numbers[name]

    def create(self, name: str) -> int:
        """A new file; returns its number."""
        number, self._count = self._count, self._count + 1
        self._numbers[name] = number
        self.operations.append(Link(name, number))
        return number

    def rename(self, old: str, new: str) -> None:
        """A file got another name."""
        self._numbers[new] = self._numbers.pop(old)
        self.operations.append(Rename(old, new))

    def unlink(self, name: str) -> None:
        """A name is gone."""
        del self._numbers[name]
        self.operations.append(Unlink(name))

    def sync_directory(self) -> None:
        """The names are durable."""
        self.operations.append(SyncDirectory())

    def note(self, what: Any) -> None:
        """What is known from here on."""
        self.operations.append(Note(what))

    def watch(self, file: BlockFile, name: str | None = None) -> RecordingFile:
        """The same file, with all that changes it recorded under ``name`` (its path by default)."""
        number = self._numbers[file.path if name is None else name]
        if isinstance(file, GrowingFile):
            return RecordingGrowingFile(file, self, number)
        return RecordingFile(file, self, number)

    def killed_at(self, stop: int) -> Recording:
        """The run up to that operation, for another process to go on from: a kill makes nothing durable.

        The last operation had been issued and had not returned: it is in the page cache, and no more.
        """
        again = Recording(self.files)
        for operation in self.operations[:stop]:
            match operation:
                case Link(name, _):
                    again.create(name)
                case Rename(old, new):
                    again.rename(old, new)
                case Unlink(name):
                    again.unlink(name)
                case _:
                    again.operations.append(operation)
        match again.operations[-1:]:
            case [Write() as write]:
                again.operations[-1] = write._replace(durable=False)
            case [Flush() | SyncDirectory()]:
                again.operations.pop()
        return again


class RecordingFile(BlockFile):
    """A `BlockFile` whose changes are recorded once they have been done; made by `Recording.watch`."""

    def __init__(self, file: BlockFile, recording: Recording, number: int) -> None:
        super().__init__()
        self.path = file.path
        self.size_bytes = file.size_bytes
        self.memory_backed = file.memory_backed
        self._file = file
        self._recording = recording
        self._number = number

    def _write(self, offset: int, buffers: Sequence[Buffer], *, durable: bool) -> None:
        self._file.write(offset, buffers, durable=durable)
        self._recording.operations.append(Write(self._number, offset, b"".join(buffers), durable))

    def _flush(self) -> None:
        self._file.flush()
        self._recording.operations.append(Flush(self._number))

    def zero(self, offset: int, length: int, *, keep_space: bool) -> None:
        """As `BlockFile.zero`."""
        self._file.zero(offset, length, keep_space=keep_space)
        self._recording.operations.append(Write(self._number, offset, bytes(length)))

    def read_into(self, offset: int, view: memoryview) -> None:
        """As `BlockFile.read_into`."""
        self._file.read_into(offset, view)

    def read_nowait(self, offset: int, view: memoryview) -> bool:
        """As `BlockFile.read_nowait`."""
        return self._file.read_nowait(offset, view)

    def allocation(self, offset: int, length: int) -> Allocation:
        """As `BlockFile.allocation`."""
        return self._file.allocation(offset, length)

    def hole_bytes(self, offset: int, length: int) -> int:
        """As `BlockFile.hole_bytes`."""
        return self._file.hole_bytes(offset, length)

    def will_need(self, offset: int, length: int) -> None:
        """As `BlockFile.will_need`."""
        self._file.will_need(offset, length)

    def close(self) -> None:
        """As `BlockFile.close`."""
        self._file.close()


class RecordingGrowingFile(RecordingFile, GrowingFile):
    """The same for a file of a `RecordingDirectory`."""

    def __init__(self, file: GrowingFile, recording: Recording, number: int) -> None:
        super().__init__(file, recording, number)
        self.growing = file

    def resize(self, size_bytes: int) -> None:
        """As `GrowingFile.resize`."""
        self.growing.resize(size_bytes)
        self.size_bytes = size_bytes
        self._recording.operations.append(Resize(self._number, size_bytes))


class RecordingDirectory(Directory):
    """A `Directory` whose changes are recorded, each with the flush of the directory that it promises."""

    def __init__(self, directory: Directory, recording: Recording) -> None:
        self.path = directory.path
        self._directory = directory
        self._recording = recording

    def names(self, prefix: str) -> list[str]:
        """As `Directory.names`."""
        return self._directory.names(prefix)

    def sync(self) -> None:
        """As `Directory.sync`."""
        self._directory.sync()
        self._recording.sync_directory()

    def create(self, name: str) -> RecordingGrowingFile:
        """As `Directory.create`."""
        file = self._directory.create(name)
        number = self._recording.create(name)
        self._recording.sync_directory()
        return RecordingGrowingFile(file, self._recording, number)

    def open(self, name: str, *, alone: bool = True) -> RecordingGrowingFile:
        """As `Directory.open`."""
        file = self._directory.open(name, alone=alone)
        return RecordingGrowingFile(file, self._recording, self._recording.number(name))

    def publish(self, file: GrowingFile, name: str) -> None:
        """As `Directory.publish`; of a file that was opened here."""
        if not isinstance(file, RecordingGrowingFile):
            raise InternalError(f"{file.path}: not recorded")
        old = file.growing.path.removeprefix(self.path).lstrip("/")
        self._directory.publish(file.growing, name)
        file.path = file.growing.path
        self._recording.rename(old, name)
        self._recording.sync_directory()

    def remove(self, name: str) -> None:
        """As `Directory.remove`."""
        there = name in self._directory.names(name)
        self._directory.remove(name)
        if there:
            self._recording.unlink(name)
            self._recording.sync_directory()
