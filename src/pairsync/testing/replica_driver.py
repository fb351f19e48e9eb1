"""A process that lives the life of a replica on real files, to be killed, failed and traced.

``python -m pairsync.testing.replica_driver DIRECTORY`` makes a volume and its metadata there, uses them for
three lives (the first is abandoned, the second recovers and ends in order, the third finds it clean), and
writes a line to its output whenever what is known changes (`replica_ledger.Known`), before anything is tried
that would change it.  An error of the disk ends it with one line and status 1.

``--each`` is for fault injection: for every call of every kind that changes something it does the whole
again in a process and a directory of its own, ``KIND-NUMBER``, with the output in ``KIND-NUMBER.out`` and the
error line in ``KIND-NUMBER.err``.  A tracer that strikes at the `STRUCK_AT`-th call of each kind then strikes
at the NUMBERth of this one: the process first makes as many calls as it takes, which fail and do nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from pairsync.core.units import BLOCK_BYTES
from pairsync.errors import BackendError, PairsyncError
from pairsync.storage.file import create_volume, open_volume
from pairsync.storage.linux import fallocate
from pairsync.storage.metadata import create_metadata, metadata_path, open_metadata

from .replica_ledger import SEGMENT_BYTES, Known, Ledger, life_superblock
from .replica_life import ReplicaLife, hand_made

__all__ = ["BLOCK_COUNT", "KINDS", "STRUCK_AT", "live", "main", "make", "volume_path"]

BLOCK_COUNT: Final = 12
"""Blocks of the volume."""

STRUCK_AT: Final = 100
"""More calls of one kind than a run makes."""

_NO_FD: Final = 1 << 20  # above every limit on descriptors: a call on it fails and does nothing

KINDS: Final[dict[str, Callable[[], object]]] = {
    "pwritev2": lambda: os.pwritev(_NO_FD, [b"-"], 0),
    "fdatasync": lambda: os.fdatasync(_NO_FD),
    "fsync": lambda: os.fsync(_NO_FD),
    "rename": lambda: Path("/-/-").rename("/-/-"),
    "ftruncate": lambda: os.ftruncate(_NO_FD, 0),
    "fallocate": lambda: fallocate(_NO_FD, 0, 0, 1),
}
"""System calls that change something durable, each with a way to make one that does nothing."""


def volume_path(directory: Path) -> Path:
    """Of the volume; its metadata lies beside it."""
    return directory / "vda"


def make(directory: Path) -> None:
    """A new replica with small journal segments."""
    path = volume_path(directory)
    create_volume(path, BLOCK_COUNT * BLOCK_BYTES)
    first = life_superblock(1, BLOCK_COUNT * BLOCK_BYTES, clean=True)
    create_metadata(metadata_path(path), first, segment_bytes=SEGMENT_BYTES)


def live(directory: Path, tell: Callable[[Known], None]) -> None:
    """All three lives."""
    size_bytes = BLOCK_COUNT * BLOCK_BYTES
    make(directory)
    ledger = Ledger(size_bytes)
    tell(ledger.known())
    for use in (hand_made, _recover_and_end, _find_it_clean):
        known = ledger.known()
        opened = open_metadata(metadata_path(volume_path(directory)))
        try:
            device = open_volume(volume_path(directory), size_bytes)
        except BackendError:
            opened.store.close()
            raise
        stamp, ledger = ledger.stamp, Ledger.after(known, size_bytes)
        ledger.stamp = stamp
        life = ReplicaLife(opened, device, ledger, tell)
        try:
            use(life)
        finally:
            life.abandon()


def _recover_and_end(life: ReplicaLife) -> None:
    life.begin()
    life.meet()
    life.resync()
    life.write([8])
    life.end()


def _find_it_clean(life: ReplicaLife) -> None:
    life.begin()
    life.write([10, 0])


def _tell(known: Known) -> None:
    os.write(1, known.to_json().encode() + b"\n")


def _run(directory: Path) -> int:
    try:
        live(directory, _tell)
    except PairsyncError as error:
        os.write(2, f"error: {error}\n".encode())
        return 1
    return 0


def _run_struck(directory: Path, kind: str, number: int) -> int:
    for name, fd in ((".out", 1), (".err", 2)):
        target = os.open(f"{directory}{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(target, fd)
        os.close(target)
    for _ in range(STRUCK_AT - number):
        with suppress(OSError):
            KINDS[kind]()
    return _run(directory)


def _each(directory: Path, counts: Sequence[tuple[str, int]]) -> None:
    """A process for each call; prints ``KIND NUMBER STATUS``, as ``waitpid`` has it."""
    for kind, count in counts:
        for number in range(1, count + 1):
            place = directory / f"{kind}-{number}"
            place.mkdir()
            pid = os.fork()
            if pid == 0:
                status = 70  # what goes wrong here is our own bug, and shows in the .err file
                try:
                    status = _run_struck(place, kind, number)
                finally:
                    sys.stderr.flush()
                    os._exit(status)
            _, status = os.waitpid(pid, 0)
            sys.stdout.write(f"{kind} {number} {status}\n")
            sys.stdout.flush()


def main() -> int:
    """See the module; ends with the status of the process."""
    parser = argparse.ArgumentParser(prog="python -m pairsync.testing.replica_driver", description=__doc__)
    parser.add_argument("directory", type=Path, help="where the files lie: there, and empty")
    parser.add_argument("--each", nargs="+", metavar="KIND=COUNT", help="one run for each of so many calls")
    arguments = parser.parse_args()
    if arguments.each is None:
        return _run(arguments.directory)
    pairs = [each.partition("=") for each in arguments.each]
    _each(arguments.directory, [(kind, int(count)) for kind, _, count in pairs])
    return 0


if __name__ == "__main__":
    sys.exit(main())
