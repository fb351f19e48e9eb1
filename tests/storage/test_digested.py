"""A device that keeps digests: they are those of what was written, whatever happens to their table."""

from __future__ import annotations

import errno
from contextlib import closing
from random import Random

import pytest

from pairsync.core.dirty import DirtyMap
from pairsync.core.messages import OpKind, WriteOp
from pairsync.core.questions import BadBlock, node_count
from pairsync.core.units import BLOCK_BYTES, block_count_of
from pairsync.errors import BackendError, InternalError
from pairsync.storage.digested import DigestedDevice
from pairsync.storage.digests import digests_bytes, format_digests, load_digests
from pairsync.testing.disks import Fault, SimAction, SimDisk, SimMedium, SimOperation
from pairsync.testing.manualdisk import ManualDisk
from pairsync.testing.tree import digests_of, leaf_of

SIZE = 70 * BLOCK_BYTES + 512


class Rig:
    """A digested device on a simulated medium, and a model of it."""

    def __init__(self) -> None:
        self.medium = SimMedium()
        self.medium.create("data", SIZE)
        self.medium.create("table", digests_bytes(SIZE))
        file = self.medium.open("table")
        format_digests(file, volume_id=bytes(16), size_bytes=SIZE, blank=True)
        file.close()
        self.model = ManualDisk(SIZE)
        self.device = self.open()

    def open(self, *doubtful: int) -> DigestedDevice:
        blocks = DirtyMap(block_count_of(SIZE))
        for block in doubtful:
            blocks.mark(block, block + 1)
        file = self.medium.open("table")
        table = load_digests(file, volume_id=bytes(16), size_bytes=SIZE, doubtful=blocks).table
        return DigestedDevice(SimDisk(self.medium, "data"), table)

    def apply(self, *ops: WriteOp) -> None:
        self.device.apply(ops)
        self.model.apply(ops)

    def check(self, *, read: bool = False) -> None:
        """The tree is that of the model."""
        count = block_count_of(SIZE)
        for level in range(3):
            stop = node_count(count, level)
            found = self.device.examine(level, 0, stop, read=read)
            assert not found.bad
            assert found.digests == digests_of(self.model.leaf, count, level, 0, stop)


def data(offset: int, length: int, byte: int) -> WriteOp:
    return WriteOp(OpKind.DATA, offset, length, bytes([byte]) * length)


def test_digests_follow_what_is_applied() -> None:
    rig = Rig()
    random = Random(7)
    for _ in range(60):
        offset = random.randrange(SIZE)
        length = random.randrange(1, min(SIZE - offset, 9 * BLOCK_BYTES) + 1)
        kind = random.choice(list(OpKind))
        if kind is OpKind.DATA:
            rig.apply(data(offset, length, random.randrange(3)))
        else:
            rig.apply(WriteOp(kind, offset, length))
        rig.check(read=random.random() < 0.3)


def test_what_was_saved_is_there_after_a_restart_and_what_is_in_doubt_is_read() -> None:
    rig = Rig()
    rig.apply(data(0, 3 * BLOCK_BYTES, 1))
    rig.device.flush()
    rig.device.save_digests(4)
    rig.device.close()
    rig.device = rig.open(1)
    rig.check()


def test_what_a_standby_left_in_disorder_is_believed_by_a_standby_and_not_by_an_active_host() -> None:
    rig = Rig()
    rig.device.begin_life(active=False)
    rig.apply(data(0, BLOCK_BYTES, 1))
    rig.device.save_digests(1)
    rig.apply(data(0, BLOCK_BYTES, 2))  # in the page cache, and its digest nowhere
    rig.device.close()
    rig.device = rig.open()
    rig.device.begin_life(active=False)
    assert rig.device.examine(0, 0, 1, read=True).bad == [0]
    rig.device.close()
    rig.device = rig.open()
    rig.device.begin_life(active=True)
    rig.check(read=True)


def test_disorder_outlives_a_standby_that_ends_in_order() -> None:
    rig = Rig()
    rig.device.begin_life(active=False)
    rig.apply(data(0, BLOCK_BYTES, 1))
    rig.device.save_digests(1)
    rig.apply(data(0, BLOCK_BYTES, 2))
    rig.device.close()
    for _ in range(2):  # lives that never see their active host, and write nothing
        rig.device = rig.open()
        rig.device.begin_life(active=False)
        rig.device.end_life()
        rig.device.close()
    rig.device = rig.open()
    rig.device.begin_life(active=True)
    rig.check(read=True)


def test_what_a_standby_left_in_order_is_believed() -> None:
    rig = Rig()
    rig.device.begin_life(active=False)
    rig.apply(data(0, BLOCK_BYTES, 1))
    rig.device.end_life()
    rig.device.close()
    rig.medium.fault = lambda operation: (
        Fault(errno=errno.EIO) if operation.name == "data" and operation.action is SimAction.READ else None
    )
    rig.device = rig.open()
    rig.device.begin_life(active=True)
    rig.check()


@pytest.mark.parametrize("active", [True, False])
def test_what_an_active_host_left_in_the_page_cache_is_durable_before_it_is_read(active: bool) -> None:
    """It becomes a digest, and a power cut must not take it away behind that digest's back."""
    rig = Rig()
    rig.apply(data(0, BLOCK_BYTES, 1))
    rig.device.close()
    rig.device = rig.open(0)
    done: list[tuple[str, SimAction]] = []

    def note(operation: SimOperation) -> None:
        done.append((operation.name, operation.action))

    rig.medium.fault = note
    rig.device.begin_life(active=active)
    flushed = ("data", SimAction.FLUSH)
    assert (done[0] == flushed) is active
    assert done.count(flushed) == active
    assert ("table", SimAction.FLUSH) in done


def test_content_that_fell_over_is_told_by_reading_and_by_nothing_else() -> None:
    rig = Rig()
    rig.apply(data(0, 5 * BLOCK_BYTES, 1))
    SimDiskBackdoor(rig).flip(2 * BLOCK_BYTES)
    rig.check()
    assert rig.device.examine(0, 0, 5, read=True).bad == [2]


class SimDiskBackdoor:
    """Changes content behind the device's back."""

    def __init__(self, rig: Rig) -> None:
        self._device = rig.device._device

    def flip(self, offset: int) -> None:
        self._device.apply([data(offset, 1, 77)])


def test_a_failed_write_leaves_unknown_digests_which_are_read() -> None:
    rig = Rig()
    rig.apply(data(0, 4 * BLOCK_BYTES, 1))
    struck: list[SimOperation] = []

    def fault(operation: SimOperation) -> Fault | None:
        if operation.name == "data" and operation.action is SimAction.WRITE and not struck:
            struck.append(operation)
            return Fault(errno=errno.EIO)
        return None

    rig.medium.fault = fault
    with pytest.raises(BackendError):
        rig.device.apply([data(BLOCK_BYTES, BLOCK_BYTES, 9)])
    content = bytearray(BLOCK_BYTES)
    rig.device.read_into(BLOCK_BYTES, memoryview(content))
    rig.model.content[BLOCK_BYTES : 2 * BLOCK_BYTES] = content
    rig.check()


def test_a_table_that_cannot_be_saved_says_so_and_is_made_up_for() -> None:
    rig = Rig()
    rig.apply(data(0, BLOCK_BYTES, 1))
    rig.device.save_digests(1)
    rig.apply(data(0, BLOCK_BYTES, 2), data(8 * BLOCK_BYTES, BLOCK_BYTES, 3))
    full = True

    def fault(operation: SimOperation) -> Fault | None:
        if (
            full
            and operation.name == "table"
            and operation.action is SimAction.WRITE
            and operation.offset >= 8192
        ):
            return Fault(errno=errno.ENOSPC)
        return None

    rig.medium.fault = fault
    rig.device.save_digests(2)
    rig.device.close()
    rig.device = rig.open()  # killed now: nothing in the table is believed
    full = False
    rig.check()


def test_a_block_that_cannot_be_read_proves_nothing() -> None:
    rig = Rig()
    rig.apply(data(0, BLOCK_BYTES, 1))
    rig.device.close()
    rig.device = rig.open(0)
    rig.medium.fault = lambda operation: (
        Fault(errno=errno.EIO) if operation.name == "data" and operation.action is SimAction.READ else None
    )
    with pytest.raises(BackendError, match="block 0 cannot be read"):
        rig.device.examine(2, 0, 1, read=False)


def test_what_was_read_is_compared_and_what_is_unknown_becomes_known() -> None:
    rig = Rig()
    rig.apply(data(0, 3 * BLOCK_BYTES, 1), data(70 * BLOCK_BYTES, 512, 2))
    found, recorded = (leaf_of(bytes([byte]) * BLOCK_BYTES) for byte in (9, 1))
    content = bytes([9]) * 2 * BLOCK_BYTES
    assert rig.device.seen([(0, memoryview(content))]) == [
        BadBlock(block, recorded, found) for block in (0, 1)
    ]
    assert rig.device.seen([(70 * BLOCK_BYTES, memoryview(bytes([2]) * 512))]) == []
    assert [bad.block for bad in rig.device.seen([(70 * BLOCK_BYTES, memoryview(bytes(512)))])] == [70]
    rig.device.save_digests(1)
    rig.device.close()
    rig.device = rig.open(1)
    assert [bad.block for bad in rig.device.seen([(0, memoryview(content))])] == [0]
    assert rig.device.examine(0, 1, 2, read=True).bad == [1], "it was unknown, and was believed"


def test_a_hole_where_something_was_written_is_none() -> None:
    rig = Rig()
    rig.apply(data(9 * BLOCK_BYTES, BLOCK_BYTES, 1))
    assert rig.device.hole_bytes(0, SIZE) == 9 * BLOCK_BYTES
    rig.device._device.apply([WriteOp(OpKind.TRIM, 9 * BLOCK_BYTES, BLOCK_BYTES)])  # the table hears nothing
    assert rig.device.hole_bytes(0, SIZE) == 9 * BLOCK_BYTES
    assert rig.device.hole_bytes(9 * BLOCK_BYTES, BLOCK_BYTES) == 0
    assert rig.device.hole_bytes(10 * BLOCK_BYTES, SIZE - 10 * BLOCK_BYTES) == SIZE - 10 * BLOCK_BYTES


def test_a_device_without_digests_answers_nothing() -> None:
    rig = Rig()
    plain = SimDisk(SimMediumWith("plain", SIZE), "plain")
    with pytest.raises(InternalError, match="not kept"):
        plain.examine(0, 0, 1, read=False)
    assert plain.seen([(0, memoryview(b"x"))]) == ()
    plain.save_digests(1)
    rig.device.close()


class SimMediumWith(SimMedium):
    def __init__(self, name: str, size_bytes: int) -> None:
        super().__init__()
        self.create(name, size_bytes)


def test_no_bad_block_is_left_out_of_an_answer_that_covers_it() -> None:
    """What was lost is a hole now, and holes cost nothing to read: only their number ends an answer."""
    size = 5 * 512 * BLOCK_BYTES
    medium = SimMedium()
    medium.create("data", size)
    medium.create("table", digests_bytes(size))
    with closing(medium.open("table")) as file:
        format_digests(file, volume_id=bytes(16), size_bytes=size, blank=True)
    nothing = DirtyMap(size // BLOCK_BYTES)
    table = load_digests(medium.open("table"), volume_id=bytes(16), size_bytes=size, doubtful=nothing).table
    disk = SimDisk(medium, "data")
    device = DigestedDevice(disk, table)
    device.apply([data(0, size, 7)])
    disk.apply([WriteOp(OpKind.ZERO, 0, size)])
    bad: list[int] = []
    at = 0
    while at < 5:
        found = device.examine(1, at, 5, read=True)
        bad += found.bad
        at += len(found.digests) // 8
    assert bad == list(range(5 * 512))


def test_a_repair_that_fails_does_not_make_a_bad_block_a_good_one() -> None:
    """What was recorded is what was to be written: it stays, or a flipped bit would be believed."""
    rig = Rig()
    rig.apply(data(0, 3 * BLOCK_BYTES, 1))
    rig.apply(data(5 * BLOCK_BYTES, BLOCK_BYTES, 1))
    SimDiskBackdoor(rig).flip(BLOCK_BYTES)
    rig.medium.fault = lambda operation: (
        Fault(errno=errno.EIO) if operation.name == "data" and operation.action is SimAction.WRITE else None
    )
    for ops in (
        [data(BLOCK_BYTES, BLOCK_BYTES, 1)],
        [data(BLOCK_BYTES, BLOCK_BYTES, 1), data(5 * BLOCK_BYTES, BLOCK_BYTES, 9)],
    ):
        with pytest.raises(BackendError):
            rig.device.apply(ops)
        assert rig.device.examine(1, 0, 1, read=True).bad == [1]
    with pytest.raises(BackendError):  # it may hold the first of two
        rig.device.apply([data(BLOCK_BYTES, BLOCK_BYTES, 9), data(BLOCK_BYTES, BLOCK_BYTES, 1)])
    assert not rig.device.examine(1, 0, 1, read=True).bad
