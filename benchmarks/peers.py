"""The contenders that are not ours: QEMU's quorum driver, nbdkit memory, qemu-nbd, a plain TCP copy.

Each is a context manager that yields a `Contender`; each keeps its files below the directory it is given.
The link of QEMU's mirror is not encrypted, ours is.

The quorum driver comes in two forms, which differ in who serves the remote child over TCP: qemu-nbd is what
people take, but up to QEMU 8.0 it leaves Nagle's algorithm on and so waits 40 ms now and then for a delayed
acknowledgement; nbdkit has no such stall.  Both run, and ours is held against the stronger.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import clients
from benchmarks.procs import BenchError, Server, free_port, run, stop_group

__all__ = ["Contender", "nbdkit_memory", "qemu_nbd", "quorum", "tcp_copy"]

EXPORT = "vda"
_COPY_DEADLINE_S = 300.0


@dataclass(frozen=True)
class Contender:
    """Somebody who serves a volume: his name in the table, his export, and his processes now."""

    name: str
    uri: str
    pids: Callable[[], Sequence[int]]

    def fill(self, size_bytes: int) -> None:
        """Fill his volume with random data, so that nobody is measured while allocating."""
        clients.fill(self.uri, size_bytes=size_bytes, seed=1)


def _blank(path: Path, size_bytes: int) -> Path:
    path.touch(mode=0o600)
    os.truncate(path, size_bytes)
    return path


def _uri(path: Path, export: str = EXPORT) -> str:
    return f"nbd+unix:///{export}?socket={path}"


@contextlib.contextmanager
def quorum(base: Path, *, size_bytes: int, remote: str) -> Iterator[Contender]:
    """A mirror of two by QEMU's quorum driver: a raw file, and an NBD client over TCP.

    `remote` is ``qemu-nbd`` or ``nbdkit``: who serves the second raw file.
    """
    base.mkdir()
    near, far = _blank(base / "local.raw", size_bytes), _blank(base / "remote.raw", size_bytes)
    port = free_port()
    far_server: list[str | Path]
    if remote == "nbdkit":
        far_server = ["nbdkit", "-f", "-i", "127.0.0.1", "-p", str(port), "-e", EXPORT, "file", far]
    else:
        far_server = ["qemu-nbd", "-f", "raw", "-t", "-e", "8", "-b", "127.0.0.1", "-p", str(port)]
        far_server += ["-x", EXPORT, far]
    far_address = f"server.type=inet,server.host=127.0.0.1,server.port={port}"
    with _door() as door:
        near_server: list[str | Path] = [
            "qemu-storage-daemon",
            *("--blockdev", f"driver=file,filename={near},node-name=near"),
            *("--blockdev", f"driver=nbd,node-name=far,export={EXPORT},{far_address}"),
            *("--blockdev", "driver=quorum,node-name=mirror,vote-threshold=2,children.0=near,children.1=far"),
            *("--nbd-server", f"addr.type=unix,addr.path={door}"),
            *("--export", f"type=nbd,id=export,node-name=mirror,name={EXPORT},writable=on"),
        ]
        with (
            Server(far_server, listens_on=("127.0.0.1", port), log_path=base / "remote.log") as far_end,
            Server(near_server, listens_on=str(door), log_path=base / "quorum.log") as near_end,
        ):
            pids = [near_end.pid, far_end.pid]
            yield Contender(f"quorum, {remote} remote", _uri(door), lambda: pids)


@contextlib.contextmanager
def _door() -> Iterator[Path]:
    """Lend a path for a Unix socket, which must be short (108 bytes), wherever the volumes lie."""
    with tempfile.TemporaryDirectory(prefix="pairsync-bench-") as directory:
        yield Path(directory) / "nbd"


@contextlib.contextmanager
def nbdkit_memory(base: Path, *, size_bytes: int) -> Iterator[Contender]:
    """A RAM disk served by nbdkit: no replication, no file."""
    base.mkdir()
    with _door() as door:
        argv: list[str | Path] = ["nbdkit", "-f", "-U", door, "memory", str(size_bytes)]
        with Server(argv, listens_on=str(door), log_path=base / "memory.log") as server:
            pids = [server.pid]
            yield Contender("nbdkit memory", _uri(door, ""), lambda: pids)


@contextlib.contextmanager
def qemu_nbd(base: Path, *, size_bytes: int) -> Iterator[Contender]:
    """A raw file served by qemu-nbd: no replication."""
    base.mkdir()
    path = _blank(base / "plain.raw", size_bytes)
    with _door() as door:
        argv: list[str | Path] = ["qemu-nbd", "-f", "raw", "-t", "-e", "8", "-k", door, "-x", EXPORT, path]
        with Server(argv, listens_on=str(door), log_path=base / "qemu-nbd.log") as server:
            pids = [server.pid]
            yield Contender("qemu-nbd", _uri(door), lambda: pids)


def tcp_copy(source: Path, target: Path) -> float:
    """Copy `source` to `target` by two processes over one TCP stream; return bytes a second."""
    script, size_bytes = Path(__file__).with_name("tcpcopy.py"), source.stat().st_size
    receiver = subprocess.Popen(
        [sys.executable, script, "receive", target, str(size_bytes)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        if receiver.stdout is None:
            raise BenchError("the receiver of the TCP copy has no standard output")
        with receiver.stdout as answers:
            port = answers.readline().decode().strip()
        if not port:
            raise BenchError("the receiver of the TCP copy ended at once")
        elapsed_ns = int(run([sys.executable, script, "send", source, port], timeout_s=_COPY_DEADLINE_S))
        if receiver.wait(_COPY_DEADLINE_S):
            raise BenchError(f"the receiver of the TCP copy ended with {receiver.returncode}")
    finally:
        stop_group(receiver, polite=signal.SIGTERM, wait_s=1.0)
    return size_bytes * 1e9 / elapsed_ns
