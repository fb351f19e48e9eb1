r"""System calls of a real process: made to fail, or turned into a recording (ALICE's method).

`inject_command` has strace strike at a chosen call of a program.  `trace_command` has it write down all that
the program does to files, and `recorded` makes a `Recording` of that: what ``testing.crashpoints`` cuts at
every point.  So the crash states are those of what the process has really asked of the file system, whatever
its code says.

What is understood is what pairsync does: one thread that works on regular files of one directory, by
positional writes.  Anything else that changes a file there is refused (`InternalError`), never skipped.  The
lines look like this (strace 6, ``-f -y -xx``: descriptors with their paths, all strings in hexadecimal)::

    4711  pwritev2(3<\x2f\x76>, [{iov_base="\x00\x01", iov_len=2}], 1, 4096, RWF_DSYNC) = 2
    4711  rename("\x2f\x61", "\x2f\x62") = 0

The method: Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from pairsync.errors import InternalError

from .recording import Flush, Recording, Resize, SyncDirectory, Write

__all__ = ["inject_command", "recorded", "trace_command"]

_STRING_BYTES_MAX: Final = 1 << 24  # of one write, as strace prints it; a longer one is refused

_TRACED: Final = (
    "openat,open,creat,ftruncate,truncate,fallocate,write,writev,pwrite64,pwritev,pwritev2,fsync,fdatasync,"
    "rename,renameat,renameat2,link,linkat,unlink,unlinkat,copy_file_range,sendfile"
)

_CALL: Final = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+)(?:<.*>)?(?: \w+ \(.*\))?$")
_ENDED: Final = re.compile(r"(\d+) +(\+\+\+|---) ")
_STRING: Final = r'"((?:\\x[0-9a-f]{2})*)"'
_DESCRIPTOR: Final = re.compile(r"(\d+)<((?:\\x[0-9a-f]{2})*)>")
_TWO_NAMES: Final = re.compile(rf"{_STRING}, {_STRING}$")
_ONE_NAME: Final = re.compile(rf"(?:AT_FDCWD<[^>]*>, )?{_STRING}(?:, (.*))?$")
_VECTOR: Final = re.compile(rf"\{{iov_base={_STRING}, iov_len=(\d+)\}}")
_VECTOR_END: Final = re.compile(r"\], \d+, (\d+)(?:, ([\w|]+))?$")
_BUFFER: Final = re.compile(rf"{_STRING}, \d+(?:, (\d+))?$")


def trace_command(output: Path) -> list[str]:
    """What to put before a command, to have its calls written to ``output``."""
    how = ["-f", "-y", "-xx", "-qqq", "-s", str(_STRING_BYTES_MAX), "-e", f"trace={_TRACED}"]
    return ["strace", *how, "-o", str(output)]


def inject_command(calls: Sequence[str], what: str, when: int) -> list[str]:
    """What to put before a command, to have each process struck at its ``when``-th call of each kind.

    ``what`` is strace's word for it, such as ``error=EIO`` (instead of the call) or ``signal=KILL`` (before).
    """
    names = ",".join(calls)
    tail = ["-e", f"trace={names}", "-e", f"inject={names}:{what}:when={when}"]
    return ["strace", "-f", "-qqq", "-o", "/dev/null", *tail]


def recorded(lines: Iterable[str], directory: Path, note: Callable[[bytes], Any]) -> Recording:
    """The recording of a trace: the files of ``directory``, which was empty when it began.

    What the first process of the trace writes to its output becomes a note, by ``note``.
    """
    reader = _Reader(directory, note)
    for line in lines:
        reader.take(line.rstrip("\n"))
    return reader.recording


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


class _Reader:
    """Takes one line after the other."""

    def __init__(self, directory: Path, note: Callable[[bytes], Any]) -> None:
        self.recording = Recording()
        self._directory = directory.absolute()
        self._note = note
        self._pid = ""  # of the first process; only it may touch the files
        self._sizes: dict[int, int] = {}  # of the files by their numbers
        self._takers: dict[str, Callable[[str, int], None]] = {
            "openat": self._openat,
            "ftruncate": self._ftruncate,
            "fallocate": self._fallocate,
            "write": self._write,
            "pwrite64": self._pwrite,
            "pwritev2": self._pwritev2,
            "fsync": self._flush,
            "fdatasync": self._flush,
            "rename": self._rename,
            "unlink": self._unlink,
        }

    def take(self, line: str) -> None:
        if _ENDED.match(line):
            return
        found = _CALL.match(line)
        pid = line.partition(" ")[0]
        self._pid = self._pid or pid
        if found is None:
            if pid != self._pid:
                return  # a helper of some library; what it may do to our files has a line of its own
            raise InternalError(f"a line of strace that is not understood: {line[:200]}")
        _, call, arguments, result = found.groups()
        ours = str(self._directory).encode().hex(" ").replace(" ", "\\x") in arguments
        if not ours and not (call == "write" and pid == self._pid and arguments.startswith("1<")):
            return
        if pid != self._pid or call not in self._takers:
            raise InternalError(f"{call} by process {pid} on {self._directory}: {arguments[:200]}")
        if int(result) >= 0:
            self._takers[call](arguments, int(result))

    # ------------------------------------------------------------------ names and descriptors

    def _name(self, path: str) -> str:
        """The name in the directory; `InternalError` for a path that lies elsewhere."""
        where = Path(_bytes(path).decode())
        if where.parent != self._directory:
            raise InternalError(f"{where} does not lie in {self._directory}")
        return where.name

    def _file(self, arguments: str) -> int:
        """The number of the file that the first argument, a descriptor, stands for."""
        found = _DESCRIPTOR.match(arguments)
        if found is None:
            raise InternalError(f"no descriptor: {arguments[:200]}")
        return self.recording.number(self._name(found[2]))

    def _matched(self, pattern: re.Pattern[str], arguments: str) -> re.Match[str]:
        found = pattern.search(arguments)
        if found is None:
            raise InternalError(f"arguments that are not understood: {arguments[:200]}")
        return found

    def _openat(self, arguments: str, _: int) -> None:
        path, flags = self._matched(_ONE_NAME, arguments).groups()
        if Path(_bytes(path).decode()) == self._directory:
            return
        name = self._name(path)
        try:
            number = self.recording.number(name)
        except KeyError:
            if "O_CREAT" in flags:
                self._sizes[self.recording.create(name)] = 0
            return
        if "O_TRUNC" in flags:
            self._resize(number, 0)

    def _rename(self, arguments: str, _: int) -> None:
        old, new = self._matched(_TWO_NAMES, arguments).groups()
        self.recording.rename(self._name(old), self._name(new))

    def _unlink(self, arguments: str, _: int) -> None:
        self.recording.unlink(self._name(self._matched(_ONE_NAME, arguments)[1]))

    # ------------------------------------------------------------------ content

    def _resize(self, number: int, size_bytes: int) -> None:
        self._sizes[number] = size_bytes
        self.recording.operations.append(Resize(number, size_bytes))

    def _put(self, number: int, offset: int, data: bytes, *, durable: bool) -> None:
        self._sizes[number] = max(self._sizes[number], offset + len(data))
        self.recording.operations.append(Write(number, offset, data, durable))

    def _ftruncate(self, arguments: str, _: int) -> None:
        self._resize(self._file(arguments), int(arguments.rpartition(", ")[2]))

    def _fallocate(self, arguments: str, _: int) -> None:
        number = self._file(arguments)
        mode, offset, length = arguments.split(", ")[-3:]
        stop = int(offset) + int(length)
        if mode == "0":
            if stop > self._sizes[number]:
                self._resize(number, stop)
            return
        if "FALLOC_FL_KEEP_SIZE" not in mode or not ("PUNCH_HOLE" in mode or "ZERO_RANGE" in mode):
            raise InternalError(f"fallocate with mode {mode}")
        stop = min(stop, self._sizes[number])
        self._put(number, int(offset), bytes(stop - int(offset)), durable=False)

    def _write(self, arguments: str, result: int) -> None:
        if not arguments.startswith("1<"):
            raise InternalError(f"a write that is not positional: {arguments[:200]}")
        self.recording.note(self._note(_bytes(self._matched(_BUFFER, arguments)[1])[:result]))

    def _pwrite(self, arguments: str, result: int) -> None:
        data, offset = self._matched(_BUFFER, arguments).groups()
        self._put(self._file(arguments), int(offset), _bytes(data)[:result], durable=False)

    def _pwritev2(self, arguments: str, result: int) -> None:
        offset, flags = self._matched(_VECTOR_END, arguments).groups()
        data = b"".join([_bytes(base) for base, _ in _VECTOR.findall(arguments)])
        if len(data) < result or flags not in {"0", "RWF_DSYNC"}:
            raise InternalError(f"{len(data)} of {result} bytes are told, with flags {flags}")
        self._put(self._file(arguments), int(offset), data[:result], durable=flags == "RWF_DSYNC")

    def _flush(self, arguments: str, _: int) -> None:
        found = self._matched(_DESCRIPTOR, arguments)
        if Path(_bytes(found[2]).decode()) == self._directory:
            self.recording.operations.append(SyncDirectory())
        else:
            self.recording.operations.append(Flush(self._file(arguments)))
