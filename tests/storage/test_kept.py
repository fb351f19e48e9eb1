"""What a resync overwrites is kept: when a log is begun, what of it stays, what is given up without room."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import replace

import pytest

from pairsync.core.dirty import DirtyMap
from pairsync.core.events import NoWayBackEvent, OverlayDroppedEvent, OverlayKeptEvent
from pairsync.core.messages import Condition, Generation, OpKind, WriteOp
from pairsync.core.superblock import Superblock, new_superblock
from pairsync.core.units import BLOCK_BYTES
from pairsync.errors import BackendError, InternalError
from pairsync.storage.kept import Keeper, KeepingDevice
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
