"""Raw files and block devices: merging, making, opening, and what goes wrong."""

from __future__ import annotations

import errno
import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from tests.storage.oracle import apply_to_oracle, op_batches, read_all

from pairsync.core.messages import OpKind, WriteOp
from pairsync.core.units import TIB
from pairsync.errors import BackendError, BusyError, ConfigError, InternalError, MismatchError
from pairsync.storage.file import FUA_RUNS_MAX, RawFile, create_volume, merge_ops, open_volume
from pairsync.testing.disks import SimAction, SimDisk, SimMedium, SimOperation

SIZE = 10_000  # not a multiple of 4096, nor of 512


def recorder(seen: list[SimOperation]) -> Callable[[SimOperation], None]:
    """A fault hook that only notes what is done."""

    def note(operation: SimOperation) -> None:
        seen.append(operation)

    return note


@given(ops=op_batches(SIZE))
def test_merging_keeps_order_and_content(ops: list[WriteOp]) -> None:
    expected = bytearray(b"?" * SIZE)
    apply_to_oracle(expected, ops)
    merged = bytearray(b"?" * SIZE)
    runs = merge_ops(ops, SIZE)
    for run in runs:
        assert run.length > 0
        assert run.kind is not OpKind.TRIM
        content = b"".join(run.buffers) if run.kind is OpKind.DATA else bytes(run.length)
        assert len(content) == run.length
        merged[run.offset : run.offset + run.length] = content
    assert merged == expected
    for first, second in itertools.pairwise(runs):
        assert first.kind is not second.kind or first.offset + first.length != second.offset
    fua = {at for op in ops if op.fua for at in range(op.offset, op.offset + op.length)}
    covered = {at for run in runs if run.fua for at in range(run.offset, run.offset + run.length)}
    assert fua <= covered


@pytest.mark.parametrize(
    "op",
    [
        WriteOp(OpKind.DATA, SIZE - 1, 2, b"ab"),
        WriteOp(OpKind.ZERO, SIZE, 1),
        WriteOp(OpKind.TRIM, -1, 1),
        WriteOp(OpKind.TRIM, 5, -1),
        WriteOp(OpKind.DATA, 0, 3, b"ab"),
        WriteOp(OpKind.DATA, 0, 3),
        WriteOp(OpKind.ZERO, 0, 3, b"abc"),
    ],
)
def test_an_op_that_makes_no_sense_touches_nothing(op: WriteOp) -> None:
    disk = SimDisk(SimMedium(), "vda", SIZE)
    with pytest.raises(InternalError):
        disk.apply([WriteOp(OpKind.DATA, 0, 1, b"x"), op])
    assert not any(read_all(disk))


def test_reads_outside_the_volume_are_our_own_bug() -> None:
    disk = SimDisk(SimMedium(), "vda", SIZE)
    view = memoryview(bytearray(2))
    for call in (
        lambda: disk.read_into(SIZE - 1, view),
        lambda: disk.read_nowait(-1, view),
        lambda: disk.allocation(0, SIZE + 1),
        lambda: disk.cache(SIZE, 1),
    ):
        with pytest.raises(InternalError):
            call()


def test_many_fua_runs_cost_one_flush() -> None:
    medium = SimMedium()
    disk = SimDisk(medium, "vda", SIZE)
    seen: list[SimOperation] = []
    medium.fault = recorder(seen)

    def count(action: SimAction, durable: bool = False) -> int:
        return sum(op.action is action and op.durable is durable for op in seen)

    ops = [WriteOp(OpKind.DATA, 1000 * i, 1, b"x", True) for i in range(FUA_RUNS_MAX)]
    disk.apply(ops)
    assert (count(SimAction.WRITE, True), count(SimAction.FLUSH)) == (FUA_RUNS_MAX, 0)
    seen.clear()
    disk.apply([*ops, WriteOp(OpKind.DATA, 5000, 1, b"x", True)])
    assert (count(SimAction.WRITE, True), count(SimAction.FLUSH)) == (0, 1)
    seen.clear()
    disk.apply([WriteOp(OpKind.TRIM, 0, 10, None, True)])
    assert (count(SimAction.ZERO), count(SimAction.FLUSH)) == (1, 1)


def test_neighbours_are_one_call() -> None:
    medium = SimMedium()
    disk = SimDisk(medium, "vda", SIZE)
    seen: list[SimOperation] = []
    medium.fault = recorder(seen)
    disk.apply(
        [
            WriteOp(OpKind.DATA, 0, 2, b"ab"),
            WriteOp(OpKind.DATA, 2, 3, b"cde"),
            WriteOp(OpKind.ZERO, 5, 100),
            WriteOp(OpKind.TRIM, 105, 100),
            WriteOp(OpKind.ZERO_ALLOCATE, 205, 10),
        ]
    )
    assert [(op.action, op.offset, op.length) for op in seen] == [
        (SimAction.WRITE, 0, 5),
        (SimAction.ZERO, 5, 200),
        (SimAction.ZERO, 205, 10),
    ]


# -- making and opening --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 511, 4096, 4097, 1_000_003])
def test_a_volume_of_any_size(tmp_path: Path, size: int) -> None:
    path = tmp_path / "vda"
    create_volume(path, size)
    volume = open_volume(path, size)
    assert volume.size_bytes == size
    assert volume.path == str(path)
    volume.apply([WriteOp(OpKind.DATA, size - 1, 1, b"x", True)])
    volume.apply([WriteOp(OpKind.TRIM, 0, size)])
    volume.cache(0, size)
    assert read_all(volume) == bytes(size)
    volume.close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_existing_file_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "vda"
    path.write_bytes(b"precious")
    with pytest.raises(ConfigError, match="exists already"):
        create_volume(path, 4096)
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize("size", [0, -1])
def test_an_empty_volume_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        create_volume(tmp_path / "vda", size)
    (tmp_path / "empty").touch()
    with pytest.raises(BackendError, match="is empty"):
        open_volume(tmp_path / "empty")


def test_a_size_that_the_file_system_cannot_hold_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BackendError) as caught:
        create_volume(tmp_path / "vda", 1 << 62)
    assert caught.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BackendError, match="No such file"):
        create_volume(tmp_path / "missing" / "vda", 1)


def test_another_size_is_a_mismatch(tmp_path: Path) -> None:
    create_volume(tmp_path / "vda", 5000)
    with pytest.raises(MismatchError, match="has 5000 bytes, 6000 expected"):
        open_volume(tmp_path / "vda", 6000)
    open_volume(tmp_path / "vda").close()


def test_opened_by_one_only(tmp_path: Path) -> None:
    create_volume(tmp_path / "vda", 5000)
    volume = open_volume(tmp_path / "vda")
    with pytest.raises(BusyError):
        open_volume(tmp_path / "vda")
    volume.close()


def test_a_terabyte_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "vda"
    began = time.monotonic()
    create_volume(path, TIB)
    volume = open_volume(path, TIB)
    volume.apply([WriteOp(OpKind.DATA, TIB - 5, 5, b"hello"), WriteOp(OpKind.TRIM, 0, TIB // 2)])
    runs = volume.allocation(0, TIB)
    assert sum(length for length, _ in runs) == TIB
    assert runs[0][1]
    assert time.monotonic() - began < 1
    assert path.stat().st_blocks < 1000
    volume.close()


# -- a real shortage of space, and a real block device -------------------------------------------------------


@pytest.mark.root
@pytest.mark.tools("mount", "umount")
def test_out_of_space_is_reported_and_passes(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmp_path], check=True)
    try:
        create_volume(tmp_path / "vda", 1 << 20)
        volume = open_volume(tmp_path / "vda")
        assert not volume.may_block
        for op in (
            WriteOp(OpKind.DATA, 0, 1 << 20, bytes(1 << 20), True),
            WriteOp(OpKind.ZERO_ALLOCATE, 0, 1 << 20),
        ):
            with pytest.raises(BackendError, match="No space left on device") as caught:
                volume.apply([op])
            assert caught.value.errno == errno.ENOSPC
        volume.apply([WriteOp(OpKind.TRIM, 0, 1 << 20)])
        volume.apply([WriteOp(OpKind.DATA, 0, 1 << 16, b"x" * (1 << 16), True)])
        volume.close()
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[str]:
    """A block device of 1 MiB over the file "backing"."""
    backing = tmp_path / "backing"
    with open(backing, "wb") as file:
        file.truncate(1 << 20)
    found = subprocess.run(["losetup", "--find", "--show", backing], capture_output=True, text=True)
    if found.returncode:
        pytest.skip(f"losetup: {found.stderr.strip()}")
    name = found.stdout.strip()
    yield name
    subprocess.run(["losetup", "--detach", name], check=True)


@pytest.mark.root
@pytest.mark.tools("losetup")
def test_a_block_device(loop_device: str, tmp_path: Path) -> None:
    volume = open_volume(loop_device, 1 << 20)
    assert volume.may_block
    with pytest.raises(BusyError):
        open_volume(loop_device)
    oracle = bytearray(1 << 20)
    ops = [
        WriteOp(OpKind.DATA, 0, 1 << 20, b"x" * (1 << 20), True),
        WriteOp(OpKind.TRIM, 1000, 100_000),  # the ends are not on sectors
        WriteOp(OpKind.ZERO, 200_000, 300),  # within one sector
        WriteOp(OpKind.ZERO_ALLOCATE, 300_001, 77_777),
        WriteOp(OpKind.DATA, 500_001, 5, b"hello"),
    ]
    volume.apply(ops)
    apply_to_oracle(oracle, ops)
    volume.flush()
    assert read_all(volume) == oracle
    assert volume.allocation(5, 100) == [(100, False)]
    allocated = (tmp_path / "backing").stat().st_blocks
    volume.apply([WriteOp(OpKind.TRIM, 501_003, 400_000, None, True)])
    assert (tmp_path / "backing").stat().st_blocks <= allocated - 400_000 // 512 + 64  # given back
    volume.close()
    with pytest.raises(MismatchError):
        open_volume(loop_device, (1 << 20) + 512)


@pytest.mark.root
@pytest.mark.tools("losetup")
def test_a_block_device_that_was_enlarged_is_used_on_demand_and_its_rest_is_zeroed(
    loop_device: str, tmp_path: Path
) -> None:
    volume = open_volume(loop_device, 1 << 20)
    with pytest.raises(BackendError, match="the device has 1048576 bytes") as caught:
        volume.extend(2 << 20)
    assert caught.value.errno == errno.ENOSPC
    with (tmp_path / "backing").open("r+b") as backing:
        backing.seek(1 << 20)
        backing.write(b"rubbish" * 1000)
        backing.truncate(2 << 20)
    subprocess.run(["losetup", "--set-capacity", loop_device], check=True)
    assert volume.size_bytes == 1 << 20
    volume.extend(2 << 20)
    volume.enlarge(2 << 20)
    assert not any(volume_tail(volume, 1 << 20))
    volume.close()
    again = open_volume(loop_device, 1 << 20)  # the metadata may not know of it yet
    assert again.size_bytes == 1 << 20
    again.close()


def volume_tail(volume: RawFile, start: int) -> bytes:
    content = bytearray(volume.size_bytes - start)
    volume.read_into(start, memoryview(content))
    return bytes(content)


def test_a_file_grows_in_two_steps_and_what_lay_behind_its_end_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "vda"
    path.write_bytes(b"x" * 5000 + b"rubbish")
    volume = open_volume(path, 5000)
    assert volume.size_bytes == 5000
    with pytest.raises(InternalError):
        volume.apply([WriteOp(OpKind.DATA, 4999, 2, b"yy")])
    with pytest.raises(InternalError):
        volume.enlarge(1 << 20)
    volume.extend(1 << 20)
    assert path.stat().st_size == 1 << 20
    assert volume.size_bytes == 5000
    volume.enlarge(1 << 20)
    assert volume.size_bytes == 1 << 20
    assert volume_tail(volume, 4999) == b"x" + bytes((1 << 20) - 5000)
    volume.apply([WriteOp(OpKind.DATA, (1 << 20) - 1, 1, b"z")])
    with pytest.raises(InternalError):
        volume.enlarge(5000)
    volume.close()


def test_a_file_for_which_there_is_no_room_stays_as_it_is(tmp_path: Path) -> None:
    volume = open_volume(_made(tmp_path / "vda", 5000))
    with pytest.raises(BackendError):
        volume.extend(1 << 62)
    assert volume.size_bytes == 5000
    assert (tmp_path / "vda").stat().st_size == 5000
    volume.close()


def _made(path: Path, size: int) -> Path:
    path.write_bytes(bytes(size))
    return path


def test_a_killed_process_leaves_all_that_it_applied(tmp_path: Path) -> None:
    path = tmp_path / "vda"
    create_volume(path, 1 << 20)
    script = (
        "import os, signal, sys\n"
        "from pairsync.core.messages import OpKind, WriteOp\n"
        "from pairsync.storage.file import open_volume\n"
        "volume = open_volume(sys.argv[1])\n"
        "volume.apply([WriteOp(OpKind.DATA, 77, 5, b'hello')])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, path])
    assert killed.returncode == -9
    volume = open_volume(path)  # the lock died with the process
    assert read_all(volume)[76:83] == b"\0hello\0"
    volume.close()
