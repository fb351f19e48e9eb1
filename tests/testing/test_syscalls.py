"""Lines of strace become a recording, and what is not understood is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from pairsync.errors import InternalError
from pairsync.testing.recording import (
    Flush,
    Link,
    Note,
    Recording,
    Rename,
    Resize,
    SyncDirectory,
    Unlink,
    Write,
)
from pairsync.testing.syscalls import inject_command, recorded, trace_command

PLACE = Path("/d")


def hexed(text: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in text.encode())


def fd(number: int, path: str) -> str:
    return f"{number}<{hexed(path)}>"


CREATE = (
    f'7  openat(AT_FDCWD<{hexed("/")}>, "{hexed("/d/f")}", O_RDWR|O_CREAT|O_CLOEXEC, 0600) = {fd(3, "/d/f")}'
)


def read(*lines: str) -> Recording:
    return recorded([f"{line}\n" for line in lines], PLACE, bytes.decode)


def test_a_life_of_a_file() -> None:
    file = fd(3, "/d/f")
    recording = read(
        CREATE,
        f"7  ftruncate({file}, 8192) = 0",
        f"7  fallocate({file}, 0, 0, 8192) = 0",
        f"7  fallocate({file}, 0, 0, 16384) = 0",
        f'7  pwritev2({file}, [{{iov_base="{hexed("ab")}", iov_len=2}}, '
        f'{{iov_base="{hexed("c")}", iov_len=1}}], 2, 512, RWF_DSYNC) = 3',
        f'7  pwritev2({file}, [{{iov_base="{hexed("abc")}", iov_len=3}}], 1, 0, 0) = 2',
        f'7  pwrite64({file}, "{hexed("xy")}", 2, 9) = 2',
        f"7  fallocate({file}, FALLOC_FL_KEEP_SIZE|FALLOC_FL_PUNCH_HOLE, 16380, 4096) = 0",
        f"7  fdatasync({file}) = 0",
        f'7  write(1<{hexed("pipe:[5]")}>, "{hexed("told")}", 4) = 4',
        f'7  rename("{hexed("/d/f")}", "{hexed("/d/g")}") = 0',
        f"7  fsync({fd(4, '/d')}) = 0",
        f'7  openat(AT_FDCWD<{hexed("/")}>, "{hexed("/d/g")}", O_RDWR|O_TRUNC) = {fd(5, "/d/g")}',
        f'7  unlink("{hexed("/d/g")}") = 0',
        "7  +++ exited with 0 +++",
    )
    assert recording.operations == [
        Link("f", 0),
        Resize(0, 8192),
        Resize(0, 16384),
        Write(0, 512, b"abc", durable=True),
        Write(0, 0, b"ab"),
        Write(0, 9, b"xy"),
        Write(0, 16380, bytes(4)),
        Flush(0),
        Note("told"),
        Rename("f", "g"),
        SyncDirectory(),
        Resize(0, 0),
        Unlink("g"),
    ]


def test_what_failed_or_lies_elsewhere_is_left_out() -> None:
    elsewhere = fd(3, "/e/f")
    recording = read(
        CREATE,
        f"7  ftruncate({fd(3, '/d/f')}, 8192) = -1 EIO (Input/output error)",
        f"7  ftruncate({fd(3, '/d/f')}, 8192) = -1 EIO (Input/output error) (INJECTED)",
        f"7  ftruncate({elsewhere}, 8192) = 0",
        f"7  fsync({elsewhere}) = 0",
        f'7  openat(AT_FDCWD<{hexed("/")}>, "{hexed("/d")}", O_RDONLY|O_DIRECTORY) = {fd(4, "/d")}',
        f'7  openat(AT_FDCWD<{hexed("/")}>, "{hexed("/d/h")}", O_RDWR) = 5',
        f'8  write(1<{hexed("pipe:[6]")}>, "{hexed("of a helper")}", 11) = 11',
        "8  write(1, <unfinished ...>",
        "7  --- SIGCHLD {si_signo=SIGCHLD} ---",
    )
    assert recording.operations == [Link("f", 0)]


@pytest.mark.parametrize(
    "line",
    [
        "7  fsync( <unfinished ...>",
        f"8  fsync({fd(3, '/d/f')}) = 0",
        f"7  sendfile({fd(3, '/d/f')}, 4, NULL, 9) = 9",
        f"7  fsync({fd(3, '/d/e/f')}) = 0",
        f"7  fallocate({fd(3, '/d/f')}, FALLOC_FL_COLLAPSE_RANGE, 0, 4096) = 0",
        f'7  write({fd(3, "/d/f")}, "{hexed("a")}", 1) = 1',
        f'7  pwritev2({fd(3, "/d/f")}, [{{iov_base="{hexed("a")}"..., iov_len=9}}], 1, 0, 0) = 9',
        f'7  pwritev2({fd(3, "/d/f")}, [{{iov_base="{hexed("a")}", iov_len=1}}], 1, 0, RWF_APPEND) = 1',
        f"7  pwritev2({fd(3, '/d/f')}, 0x7f00, 1) = 1",
    ],
)
def test_what_is_not_understood_is_refused(line: str) -> None:
    with pytest.raises(InternalError):
        read(CREATE, line)


def test_the_commands() -> None:
    assert trace_command(Path("/t"))[-2:] == ["-o", "/t"]
    assert inject_command(["fsync", "rename"], "error=EIO", 9)[-3:] == [
        "trace=fsync,rename",
        "-e",
        "inject=fsync,rename:error=EIO:when=9",
    ]
