"""A real process on real files, struck at every call that changes something, and its calls replayed to a cut.

`pairsync.testing.replica_driver` makes a replica, uses it for three lives, and tells what it knows.  It is
killed before, and fails in, each of its writes, flushes, renames and the like (strace's ``inject``); what is
left is opened and held against the rules.  And what it asked of the file system is recorded, and every state
that a power cut may leave of that is built as real files (ALICE's method).
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.conftest import MakeDirectory

from pairsync.core.units import BLOCK_BYTES
from pairsync.errors import BackendError, MetadataError, MismatchError
from pairsync.guest.config import VolumeConfig
from pairsync.guest.replica import open_replica
from pairsync.storage.metadata import metadata_path
from pairsync.testing.crashpoints import Budget, CrashState, explore, live_state
from pairsync.testing.recording import Flush, Recording, Rename, SyncDirectory, Write
from pairsync.testing.replica_driver import BLOCK_COUNT, KINDS, STRUCK_AT, make, volume_path
from pairsync.testing.replica_ledger import (
    PAIR_ID,
    VOLUME_NAME,
    Known,
    Ledger,
    check_content,
    check_found,
)
from pairsync.testing.syscalls import inject_command, recorded, trace_command

pytestmark = pytest.mark.tools("strace")

SIZE = BLOCK_COUNT * BLOCK_BYTES

DRIVER = [sys.executable, "-m", "pairsync.testing.replica_driver"]

RUN_S = 120.0  # a strace over all runs of one kind of fault: some 80 processes of 50 ms
CALLS_MIN = 60  # that the driver makes: fewer, and the lives have been cut down

BRIEF = Budget(exhaustive_max=64, subsets_max=32, draws=6)


def check(directory: Path, known: Known | None) -> None:
    """What lies there, against what was known; None: nothing had been told."""
    path = volume_path(directory)
    if known is None:
        known = Ledger(SIZE).known()
        if not Path(metadata_path(path)).exists():
            # what a creation that was cut short has left is in nobody's way
            path.unlink(missing_ok=True)
            make(directory)
    replica = open_replica(VolumeConfig(VOLUME_NAME, path), PAIR_ID)
    try:
        setup = replica.setup
        check_found(setup.superblock, setup.recovered, setup.first_generation, known)
        check_content(replica.device, setup.recovered, known)
    finally:
        replica.close()


# -- what it asked of the file system, cut -------------------------------------------------------------------


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """The driver's run as the kernel has seen it."""
    place = tmp_path_factory.mktemp("traced")
    directory, output = place / "files", place / "trace"
    directory.mkdir()
    subprocess.run([*trace_command(output), *DRIVER, directory], check=True, stdout=subprocess.PIPE)
    with output.open(encoding="ascii") as lines:
        recording = recorded(lines, directory, lambda line: Known.from_json(line.decode()))
    there = {path.name: path.read_bytes() for path in directory.iterdir()}
    assert live_state(recording).files == there  # nothing was overlooked
    return recording


def explored(recording: Recording, directory: Path) -> int:
    def judge(state: CrashState) -> None:
        state.lay_out(directory)
        check(directory, state.notes[-1] if state.notes else None)

    return explore(recording, judge, BRIEF).states


def test_every_power_cut_of_the_traced_run(traced: Recording, make_directory: MakeDirectory) -> None:
    states = explored(traced, make_directory())
    print(f"{states} states examined")
    assert states > 600


def without(recording: Recording, operation: type, *, before: type | None = None) -> Recording:
    """The run without such an operation, wherever it is, or where the other one follows."""
    again = Recording()
    following = [*recording.operations[1:], None]
    again.operations = [
        each
        for each, then in zip(recording.operations, following, strict=True)
        if not (isinstance(each, operation) and (before is None or isinstance(then, before)))
    ]
    assert len(again.operations) < len(recording.operations)
    return again


def undurable(recording: Recording) -> Recording:
    """The run with writes that wait for nothing."""
    again = Recording()
    again.operations = [
        each._replace(durable=False) if isinstance(each, Write) else each for each in recording.operations
    ]
    return again


def test_a_call_that_is_left_out_of_the_trace_is_found(
    traced: Recording, make_directory: MakeDirectory
) -> None:
    directory = make_directory()
    with pytest.raises(MetadataError, match="damaged"):  # renamed, and its content not flushed
        explored(without(traced, Flush, before=Rename), directory)
    with pytest.raises(BackendError, match="No such file"):  # told to be made, and the name not durable
        explored(without(traced, SyncDirectory), directory)
    with pytest.raises(MismatchError, match="has 0 bytes"):  # the volume's size was never flushed
        explored(without(traced, Flush, before=SyncDirectory), directory)
    with pytest.raises(MetadataError, match="neither copy of the superblock"):
        explored(undurable(traced), directory)


# -- struck at every call ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def counts(traced: Recording, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """How many calls of each kind the driver makes."""
    place = tmp_path_factory.mktemp("counted")
    kinds, output = ",".join(KINDS), place / "trace"
    (place / "files").mkdir()
    command: list[str | Path] = [
        "strace",
        "-f",
        "-qqq",
        "-o",
        str(output),
        "-e",
        f"trace={kinds}",
        *DRIVER,
        place / "files",
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = Counter(line.split()[1].partition("(")[0] for line in output.read_text().splitlines())
    counted = {kind: found[kind] for kind in KINDS}
    assert all(0 < count < STRUCK_AT for count in counted.values()), counted
    assert sum(counted.values()) > CALLS_MIN
    return counted


def struck(counts: dict[str, int], what: str, directory: Path) -> Iterator[tuple[str, int, Path]]:
    """Each run: its name, its status and its directory; with ``.out`` and ``.err`` beside that."""
    aims = [f"{kind}={count}" for kind, count in counts.items()]
    command: list[str | Path] = [
        *inject_command(list(KINDS), what, STRUCK_AT),
        *DRIVER,
        directory,
        "--each",
        *aims,
    ]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=RUN_S).stdout
    runs = told.splitlines()
    assert len(runs) == sum(counts.values())
    for run in runs:
        kind, number, status = run.split()
        yield run, int(status), directory / f"{kind}-{number}"


def last_known(directory: Path) -> Known | None:
    """What the process has told last."""
    lines = directory.with_name(directory.name + ".out").read_text().splitlines()
    return Known.from_json(lines[-1]) if lines else None


def test_killed_at_every_call(counts: dict[str, int], make_directory: MakeDirectory) -> None:
    for run, status, directory in struck(counts, "signal=KILL", make_directory()):
        assert os.WIFSIGNALED(status), run
        assert os.WTERMSIG(status) == signal.SIGKILL, run
        check(directory, last_known(directory))


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_every_call_fails_once(counts: dict[str, int], make_directory: MakeDirectory, number: int) -> None:
    survived = []
    for run, status, directory in struck(counts, f"error={errno.errorcode[number]}", make_directory()):
        said = directory.with_name(directory.name + ".err").read_text()
        if status == 0:
            survived.append(run)
            assert said == "", run
        else:
            assert os.waitstatus_to_exitcode(status) == 1, (run, said)
            (line,) = said.splitlines()
            assert line.startswith(f"error: {directory}"), (run, said)
            assert os.strerror(number) in line, (run, said)
        check(directory, last_known(directory))
    # A batch of several requests is written again one by one, and so is a run that stands beside others.
    assert all(run.startswith("pwritev2") for run in survived), survived
    assert len(survived) < sum(counts.values()) / 4
