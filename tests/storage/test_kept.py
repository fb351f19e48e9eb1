"""What a resync overwrites is kept: when a log is begun, what of it stays, what is given up without room."""

from __future__ import annotations

import errno
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

import pytest

from pairsync.core.dirty import DirtyMap
from pairsync.core.events import NoWayBackEvent, OverlayDroppedEvent, OverlayKeptEvent
from pairsync.core.messages import Buffer, Condition, Generation, OpKind, WriteOp
from pairsync.core.superblock import Superblock, new_superblock
from pairsync.core.units import BLOCK_BYTES
from pairsync.errors import BackendError, BusyError, ClosedError, InternalError
from pairsync.storage.directory import OsDirectory, OsGrowingFile
from pairsync.storage.file import open_volume
from pairsync.storage.kept import Keeper, KeepingDevice
from pairsync.storage.osfile import OsFile
from pairsync.storage.overlay import Overlays
from pairsync.storage.overlayfile import RECORDS_AT, OverlayState
from pairsync.testing.disks import Fault, SimAction, SimDisk, SimMedium, SimOperation
from pairsync.testing.simfiles import SimDirectory

BLOCKS = 64
SIZE = BLOCKS * BLOCK_BYTES
FIRST = Generation(1, 1, 7)
SECOND = Generation(1, 2, 8)

CONSISTENT = replace(
    new_superblock(pair_id=b"p" * 16, volume_id=b"v" * 16, name="vda", size_bytes=SIZE),
    condition=Condition.CONSISTENT,
    lineage=(FIRST,),
)
SYNCING = replace(CONSISTENT, condition=Condition.SYNCING, sync_target=SECOND)
ADOPTED = replace(CONSISTENT, lineage=(SECOND, FIRST))


def write(block: int, fill: bytes, count: int = 1) -> WriteOp:
    length = count * BLOCK_BYTES
    return WriteOp(OpKind.DATA, block * BLOCK_BYTES, length, memoryview(fill * length))


class Host:
    """A replica's data and overlays on one medium."""

    def __init__(self, *own: int, bytes_max: int | None = None) -> None:
        self.medium = SimMedium()
        self.own = DirtyMap(BLOCKS)
        for block in own:
            self.own.mark(block, block + 1)
        self.bytes_max = bytes_max
        self.open(CONSISTENT)
        self.device.apply([write(0, b"a", BLOCKS)])
        self.device.flush()

    def open(self, durable: Superblock) -> None:
        overlays = Overlays(SimDirectory(self.medium), "vda", SIZE, bytes_max=self.bytes_max)
        disk = SimDisk(self.medium, "vda", SIZE)
        self.keeper = Keeper(overlays, disk, "vda", self.own.copy(), lambda: 1000)
        self.keeper.recover(durable)
        self.device = KeepingDevice(disk, self.keeper, may_block=False)

    def reopen(self, durable: Superblock) -> None:
        self.medium.process_crash()
        self.open(durable)

    def begin(self) -> None:
        self.keeper.before(CONSISTENT, SYNCING)
        self.keeper.after(SYNCING)

    def end(self) -> None:
        self.keeper.before(SYNCING, ADOPTED)
        self.keeper.after(ADOPTED)

    def states(self) -> list[OverlayState]:
        return [info.state for info in self.keeper.infos()]

    def kept(self) -> dict[int, bytes]:
        """First byte of each block of all kept overlays."""
        found: dict[int, bytes] = {}
        for info in self.keeper.infos():
            for ops in self.keeper.overlays.ops(info.id):
                for op in ops:
                    for block in range(op.offset // BLOCK_BYTES, (op.offset + op.length) // BLOCK_BYTES):
                        at = block * BLOCK_BYTES - op.offset
                        found[block] = b"\0" if op.data is None else bytes(op.data[at : at + 1])
        return found


@pytest.fixture
def host() -> Iterator[Host]:
    there = Host(3, 5)
    yield there
    there.device.close()


def test_what_was_written_alone_stays_and_the_rest_goes(host: Host) -> None:
    host.begin()
    host.device.apply([write(2, b"b", 2)])
    host.end()
    assert host.states() == [OverlayState.KEPT]
    assert host.kept() == {3: b"a"}
    (event,) = host.keeper.take_events()
    assert event == OverlayKeptEvent("vda", "1", 1, BLOCK_BYTES)
    assert host.keeper.take_events() == []


def test_what_is_written_once_a_resync_is_complete_is_not_kept(host: Host) -> None:
    host.begin()
    host.end()
    host.device.apply([write(3, b"b")])
    assert host.kept() == {}
    assert host.states() == []


def test_the_next_resync_finds_nothing_of_its_own(host: Host) -> None:
    host.begin()
    host.end()
    host.keeper.before(ADOPTED, replace(ADOPTED, condition=Condition.SYNCING, sync_target=SECOND))
    host.device.apply([write(3, b"b")])
    host.end()
    assert host.states() == []


def test_a_way_back_lasts_until_the_superblock_is_durable() -> None:
    host = Host()
    host.begin()
    host.device.apply([write(2, b"b")])
    host.keeper.before(SYNCING, ADOPTED)
    assert host.keeper.undo is not None
    assert host.keeper.undo.whole
    host.keeper.after(ADOPTED)
    assert host.states() == []
    host.device.close()


@pytest.mark.parametrize("durable", [CONSISTENT, ADOPTED])
def test_a_log_that_is_of_no_use_any_more_goes(durable: Superblock) -> None:
    host = Host()
    host.begin()
    host.reopen(durable)
    assert host.states() == []
    host.device.close()


def test_an_interrupted_resync_goes_on(host: Host) -> None:
    host.begin()
    host.device.apply([write(2, b"b", 2)])
    host.reopen(SYNCING)
    assert host.keeper.undo is not None
    assert host.keeper.undo.kept.count == 2
    host.keeper.before(SYNCING, replace(SYNCING, sync_target=Generation(1, 3, 9)))
    host.device.apply([write(3, b"c", 3)])
    host.end()
    assert host.kept() == {3: b"a", 5: b"a"}


def test_cut_between_the_overlay_and_the_superblock(host: Host) -> None:
    """It is done again, and what the first time has kept is not kept again."""
    host.begin()
    host.device.apply([write(3, b"b")])
    host.keeper.before(SYNCING, ADOPTED)
    host.reopen(SYNCING)
    assert host.keeper.undo is None
    host.keeper.before(SYNCING, SYNCING)
    host.device.apply([write(3, b"c", 3)])
    host.end()
    assert host.kept() == {3: b"a", 5: b"a"}


def test_nothing_is_kept_of_what_is_worth_nothing() -> None:
    blank = replace(CONSISTENT, condition=Condition.BLANK, lineage=())
    for durable in (blank, replace(SYNCING, lineage=()), SYNCING):
        host = Host()
        host.keeper.before(durable, replace(SYNCING, lineage=durable.lineage))
        host.device.apply([write(2, b"b")])
        assert host.states() == []
        host.device.close()


def test_a_resync_goes_somewhere(host: Host) -> None:
    with pytest.raises(InternalError, match="towards nothing"):
        host.keeper.before(CONSISTENT, replace(SYNCING, sync_target=None))


def test_a_log_that_was_damaged_is_set_aside(host: Host) -> None:
    host.begin()
    for block in range(4):
        host.device.apply([write(block, b"b")])
    host.medium.damage("vda.pairsync-overlay-1", 2 * BLOCK_BYTES + 1, 1)
    host.reopen(SYNCING)
    assert host.keeper.undo is None
    assert host.states() == [OverlayState.KEPT]
    (event,) = host.keeper.take_events()
    assert isinstance(event, NoWayBackEvent)


# ---------------------------------------------------------------------- without room


def _fill(host: Host) -> None:
    """One kept overlay of 128 KiB."""
    for block in range(32):
        host.own.mark(block, block + 1)
    host.reopen(CONSISTENT)
    host.begin()
    host.device.apply([write(0, b"b", 32)])
    host.end()
    host.keeper.take_events()
    host.reopen(CONSISTENT)


def test_kept_overlays_are_dropped_for_the_bound(host: Host) -> None:
    _fill(host)
    host.begin()
    host.keeper.overlays.bytes_max = host.keeper.overlays.file_bytes + BLOCK_BYTES
    host.device.apply([write(40, b"b")])
    (event,) = host.keeper.take_events()
    assert isinstance(event, OverlayDroppedEvent)
    assert host.keeper.undo is not None
    assert host.keeper.undo.whole
    assert host.states() == [OverlayState.UNDO]


def _disk_full(host: Host) -> None:
    """Overlays find no room to grow."""

    def fault(operation: SimOperation) -> Fault | None:
        grows = operation.action is SimAction.WRITE and operation.offset >= RECORDS_AT
        return Fault(errno.ENOSPC) if grows and "overlay" in operation.name else None

    host.medium.fault = fault


def test_an_overlay_is_told_and_dropped_for_a_full_disk(host: Host) -> None:
    _fill(host)
    host.begin()

    def fault(operation: SimOperation) -> Fault | None:
        full = "vda.pairsync-overlay-1" in host.medium.names()
        return Fault(errno.ENOSPC) if full and operation.action is SimAction.WRITE else None

    host.medium.fault = fault
    host.device.apply([write(40, b"b")])
    (event,) = host.keeper.take_events()
    assert isinstance(event, OverlayDroppedEvent)
    assert (event.overlay, event.created_s, event.data_bytes) == ("1", 1000, 32 * BLOCK_BYTES)
    assert host.keeper.undo is not None
    assert host.keeper.undo.whole


def test_the_way_back_is_given_up_before_a_write_fails() -> None:
    host = Host()
    host.begin()
    _disk_full(host)
    host.device.apply([write(7, b"b")])
    (event,) = host.keeper.take_events()
    assert isinstance(event, NoWayBackEvent)
    assert host.states() == []
    host.device.close()


def test_what_was_written_alone_is_never_given_up(host: Host) -> None:
    host.begin()
    _disk_full(host)
    host.device.apply([write(7, b"b")])
    assert host.keeper.undo is not None
    assert not host.keeper.undo.whole
    with pytest.raises(BackendError) as caught:
        host.device.apply([write(3, b"b")])
    assert caught.value.errno == errno.ENOSPC
    host.medium.fault = None
    host.device.apply([write(3, b"b")])
    host.end()
    assert host.kept() == {3: b"a"}


def test_other_errors_of_the_disk_are_no_want_of_room(host: Host) -> None:
    host.begin()
    host.medium.fault = lambda operation: Fault(errno.EIO) if "overlay" in operation.name else None
    with pytest.raises(BackendError) as caught:
        host.device.apply([write(7, b"b")])
    assert caught.value.errno == errno.EIO
    assert host.keeper.take_events() == []
    host.medium.fault = None


def test_a_resync_is_refused_where_no_log_can_be_begun(host: Host) -> None:
    host.medium.fault = lambda operation: Fault(errno.ENOSPC) if "overlay" in operation.name else None
    with pytest.raises(BackendError):
        host.keeper.before(CONSISTENT, SYNCING)
    assert host.states() == []


def test_the_device_passes_on_what_concerns_the_disk(host: Host) -> None:
    device = host.device
    view = memoryview(bytearray(2))
    device.read_into(0, view)
    assert (device.path, device.size_bytes, device.may_block, bytes(view)) == ("vda", SIZE, False, b"aa")
    assert device.read_nowait(0, view)
    device.seen([(0, memoryview(b"aa"))])
    device.cache(0, BLOCK_BYTES)
    assert device.allocation(0, SIZE) == [(SIZE, False)]
    assert device.hole_bytes(0, SIZE) == 0


def test_a_failing_disk_keeps_nothing_from_being_closed(host: Host) -> None:
    host.begin()
    host.device.apply([write(7, b"b")])
    host.medium.fault = lambda operation: Fault(errno.EIO) if "overlay" in operation.name else None
    host.device.close()
    host.medium.fault = None
    host.reopen(SYNCING)
    assert host.keeper.undo is not None
    assert 7 in host.keeper.undo.kept


def test_without_room_for_a_way_back_a_resync_goes_on_where_nothing_was_written_alone() -> None:
    host = Host()
    host.medium.fault = lambda operation: Fault(errno.ENOSPC) if "overlay" in operation.name else None
    host.begin()
    host.device.apply([write(7, b"b")])
    host.end()
    assert [type(event) for event in host.keeper.take_events()] == [NoWayBackEvent]
    host.medium.fault = None
    assert host.states() == []
    host.device.close()


# -- ahead, in a thread, over real files ---------------------------------------------------------------------


class RealHost:
    """The same over real files, where what is announced is kept ahead."""

    def __init__(self, where: Path, *, bytes_max: int | None = None) -> None:
        self.path = where / "vda.img"
        self.path.write_bytes(random.Random(1).randbytes(SIZE))
        with self.path.open("r+b") as file:  # a few holes among them
            for block in (3, 4, 20, 40):
                file.seek(block * BLOCK_BYTES)
                file.write(bytes(BLOCK_BYTES))
        self.old = self.path.read_bytes()
        self.overlays = Overlays(OsDirectory(where), "vda.img", SIZE, bytes_max=bytes_max)
        self.disk = open_volume(self.path)
        self.keeper = Keeper(self.overlays, self.disk, "vda", DirtyMap(BLOCKS), lambda: 1000, may_block=True)
        self.device = KeepingDevice(self.disk, self.keeper, may_block=True)
        self.keeper.before(CONSISTENT, SYNCING)
        self.keeper.after(SYNCING)

    def write_all(self, batches: Sequence[Sequence[WriteOp]]) -> None:
        """As the guest's performer and its data lane do: announced when queued, applied in order."""
        queued: SimpleQueue[Sequence[WriteOp] | None] = SimpleQueue()
        failed: list[BaseException] = []

        def lane() -> None:
            while (ops := queued.get()) is not None:
                try:
                    self.device.apply(ops)
                except BackendError as error:
                    failed.append(error)

        worker = threading.Thread(target=lane)
        worker.start()
        for ops in batches:
            self.keeper.announce(ops)
            queued.put(ops)
        queued.put(None)
        worker.join(60)
        assert not worker.is_alive()
        assert failed == []

    def back(self) -> bytes:
        """What the way back leads to."""
        assert self.keeper.undo is not None
        self.keeper.undo.revert(self.disk)
        return self.path.read_bytes()


def _any_ops(rng: random.Random) -> list[WriteOp]:
    ops = []
    for _ in range(rng.randrange(1, 4)):
        offset = rng.randrange(SIZE)
        length = min(rng.choice([1, BLOCK_BYTES, rng.randrange(1, 8 * BLOCK_BYTES)]), SIZE - offset)
        kind = rng.choice(list(OpKind))
        ops.append(WriteOp(kind, offset, length, rng.randbytes(length) if kind is OpKind.DATA else None))
    return ops


@pytest.mark.parametrize("seed", range(8))
def test_what_is_kept_ahead_comes_back_exactly(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_into = OsFile.read_into

    def slowly(self: OsFile, offset: int, view: memoryview) -> None:
        time.sleep(0.001)  # who overwrites without waiting is first
        read_into(self, offset, view)

    monkeypatch.setattr(OsFile, "read_into", slowly)
    rng = random.Random(seed)
    host = RealHost(tmp_path)
    batches = [_any_ops(rng) for _ in range(60)]
    host.write_all(batches)
    new = bytearray(host.old)
    for op in (op for ops in batches for op in ops):
        new[op.offset : op.offset + op.length] = bytes(op.length) if op.data is None else op.data
    assert host.path.read_bytes() == new
    assert host.back() == host.old
    host.device.close()


def test_batches_that_wait_share_a_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = RealHost(tmp_path)
    flushed: list[int] = []
    begun, may_go = threading.Event(), threading.Event()
    write_it = OsFile.write

    def seen(self: OsFile, offset: int, buffers: Sequence[Buffer], *, durable: bool = False) -> None:
        if durable:
            flushed.append(sum(map(len, buffers)))
            begun.set()
            assert may_go.wait(20)
        write_it(self, offset, buffers, durable=durable)

    monkeypatch.setattr(OsFile, "write", seen)
    batches = [[write(block, b"n")] for block in range(5, 15)]
    host.keeper.announce(batches[0])
    assert begun.wait(20)
    for ops in batches[1:]:
        host.keeper.announce(ops)
    may_go.set()
    for ops in batches:
        host.device.apply(ops)
    page = RECORDS_AT // 2
    assert flushed == [page + BLOCK_BYTES, page + 9 * BLOCK_BYTES]
    host.device.close()


def test_without_room_ahead_the_lane_gives_the_way_back_up(tmp_path: Path) -> None:
    host = RealHost(tmp_path, bytes_max=RECORDS_AT + 10 * BLOCK_BYTES)
    host.write_all([[write(block, b"n")] for block in range(5, 40)])
    assert host.keeper.undo is None
    (event,) = host.keeper.take_events()
    assert isinstance(event, NoWayBackEvent)
    assert host.path.read_bytes()[5 * BLOCK_BYTES : 40 * BLOCK_BYTES] == b"n" * (35 * BLOCK_BYTES)
    host.device.close()


def test_who_keeps_ahead_ends_with_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def threads() -> set[str]:
        return {each.name for each in threading.enumerate() if each.name.startswith("pairsync-ahead")}

    released: list[str] = []

    def release(file: OsGrowingFile) -> None:
        released.append(file.path)
        file.close()

    monkeypatch.setattr(OsGrowingFile, "release", release)
    host = RealHost(tmp_path)
    assert threads() == {"pairsync-ahead-vda"}
    host.keeper.before(SYNCING, ADOPTED)
    host.keeper.after(ADOPTED)
    assert threads() == set()
    assert released == [str(tmp_path / "vda.img.pairsync-overlay-1")]  # nobody waits until it is freed
    host.keeper.announce([write(1, b"n")])  # nothing is kept any more
    host.device.close()


def test_a_disk_that_hangs_keeps_the_log_and_lets_the_rest_be_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pairsync.storage.kept.AHEAD_STOP_S", 0.05)
    host = RealHost(tmp_path)
    begun, may_go = threading.Event(), threading.Event()
    read_into = OsFile.read_into

    def hang(self: OsFile, offset: int, view: memoryview) -> None:
        begun.set()
        assert may_go.wait(20)
        read_into(self, offset, view)

    monkeypatch.setattr(OsFile, "read_into", hang)
    host.keeper.announce([write(1, b"n")])
    assert begun.wait(20)
    with pytest.raises(BackendError, match="hangs"):
        host.keeper.before(SYNCING, ADOPTED)
    host.device.close()
    with pytest.raises(BusyError):  # nobody appends to it beside the one that hangs
        OsFile(tmp_path / "vda.img.pairsync-overlay-1")
    may_go.set()


def test_a_job_that_was_left_behind_overwrites_nothing_that_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk hung, the host was told to end, and just then the disk went on."""
    host = RealHost(tmp_path)
    begun, may_go = threading.Event(), threading.Event()
    read_into, close = OsFile.read_into, OsFile.close

    def hang(self: OsFile, offset: int, view: memoryview) -> None:
        begun.set()
        assert may_go.wait(20)
        read_into(self, offset, view)

    def left_behind() -> None:
        with suppress(ClosedError):
            host.device.apply([write(5, b"n")])

    def late(self: OsFile) -> None:
        if self.path == str(host.path):
            worker.join(20)
        close(self)

    monkeypatch.setattr(OsFile, "read_into", hang)
    host.keeper.announce([write(1, b"n")])
    assert begun.wait(20)
    worker = threading.Thread(target=left_behind)
    worker.start()
    monkeypatch.setattr(OsFile, "close", late)
    closer = threading.Thread(target=host.device.close)
    closer.start()
    time.sleep(0.1)  # both wait
    may_go.set()
    closer.join(20)
    monkeypatch.undo()
    assert not worker.is_alive()
    undo = Overlays(OsDirectory(tmp_path), "vda.img", SIZE).open_undo(SYNCING)
    assert undo is not None
    disk = open_volume(host.path)
    undo.revert(disk)
    assert host.path.read_bytes() == host.old
    undo.close()
    disk.close()
