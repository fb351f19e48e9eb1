"""Making, opening and replacing a digest table, on real files and on a simulated medium."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest

from pairsync.core.dirty import DirtyMap
from pairsync.core.messages import OpKind, WriteOp
from pairsync.core.units import BLOCK_BYTES, MIB, TIB, block_count_of
from pairsync.errors import BackendError, BusyError, InternalError, MetadataError
from pairsync.storage import slots
from pairsync.storage.digestfile import Header, encode_header, header_slots
from pairsync.storage.digests import (
    OpenedDigests,
    block_digest,
    create_digests,
    digests_bytes,
    format_digests,
    load_digests,
    open_digests,
)
from pairsync.storage.file import RawFile, create_volume, open_volume
from pairsync.testing.disks import Fault, SimAction, SimMedium, SimOperation

ID = b"v" * 16
SIZE_BYTES = 3 * MIB + 100
BLOCKS = block_count_of(SIZE_BYTES)


def no_doubt(size_bytes: int = SIZE_BYTES) -> DirtyMap:
    return DirtyMap(block_count_of(size_bytes))


def open_it(path: Path, size_bytes: int = SIZE_BYTES, volume_id: bytes = ID) -> OpenedDigests:
    return open_digests(path, volume_id=volume_id, size_bytes=size_bytes, doubtful=no_doubt(size_bytes))


def volume(path: Path, size_bytes: int = SIZE_BYTES) -> RawFile:
    create_volume(path, size_bytes)
    return open_volume(path)


def fill_some(device: RawFile) -> list[int]:
    """Blocks 1 and 600, and the digests of all."""
    digests = [0] * block_count_of(device.size_bytes)
    for block in (1, 600):
        data = random.Random(block).randbytes(BLOCK_BYTES)
        device.apply([WriteOp(OpKind.DATA, block * BLOCK_BYTES, BLOCK_BYTES, data)])
        digests[block] = block_digest(data)
    return digests


def leaves(opened: OpenedDigests, device: RawFile) -> tuple[list[int], int]:
    """All leaves, and how many of them were unknown."""
    stop = block_count_of(device.size_bytes)
    answer = opened.table.examine(device, 0, 0, stop, read_bytes_max=1 << 40, pages_max=1 << 40)
    raw = answer.digests
    return [int.from_bytes(raw[at : at + 8], "little") for at in range(0, len(raw), 8)], answer.filled


def test_a_blank_volume_is_known_from_the_start(tmp_path: Path) -> None:
    path = tmp_path / "digests"
    create_digests(path, volume_id=ID, size_bytes=SIZE_BYTES, blank=True)
    device = volume(tmp_path / "vda")
    opened = open_it(path)
    assert opened.notes == ()
    assert opened.table.known_below == BLOCKS
    assert leaves(opened, device) == ([0] * BLOCKS, 0)
    opened.table.close()
    device.close()


def test_a_table_that_is_taken_over_or_missing_learns_what_is_there(tmp_path: Path) -> None:
    device = volume(tmp_path / "vda")
    expected = fill_some(device)
    opened = open_it(tmp_path / "digests")
    assert "there was no digest table" in opened.notes[0]
    assert opened.table.known_below == 0
    assert leaves(opened, device)[0] == expected
    opened.table.save(9)
    opened.table.close()
    again = open_it(tmp_path / "digests")
    assert again.notes == ()
    assert (again.table.milestone, again.table.known_below) == (9, BLOCKS)
    assert leaves(again, device) == (expected, 0)
    again.table.close()
    device.close()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["digests", "vda"]


def test_a_table_in_use_is_busy(tmp_path: Path) -> None:
    opened = open_it(tmp_path / "digests")
    with pytest.raises(BusyError):
        open_it(tmp_path / "digests")
    opened.table.close()


def test_where_no_table_can_be_made_the_reason_is_told(tmp_path: Path) -> None:
    with pytest.raises(BackendError):
        open_it(tmp_path / "missing" / "digests")


def spoil_header(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[40] ^= 1
    raw[4096 + 40] ^= 1
    path.write_bytes(raw)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4096])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_volume(path: Path) -> None:
    create_digests(path, volume_id=b"w" * 16, size_bytes=SIZE_BYTES, blank=True)


def larger_volume(path: Path) -> None:
    create_digests(path, volume_id=ID, size_bytes=SIZE_BYTES + 1, blank=True)


def wrong_payload(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[:4096] = slots.encode_slot(3, slots.SlotValue(99, b"\x80"))
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoil_header, "neither copy"),
        (cut, "cut to"),
        (empty, "no digest table"),
        (other_volume, "of another volume"),
        (larger_volume, "the volume has"),
        (wrong_payload, "other fields"),
    ],
)
def test_what_cannot_be_relied_on_is_made_anew(tmp_path: Path, spoil: object, says: str) -> None:
    path = tmp_path / "digests"
    create_digests(path, volume_id=ID, size_bytes=SIZE_BYTES, blank=True)
    device = volume(tmp_path / "vda")
    expected = fill_some(device)
    assert callable(spoil)
    spoil(path)
    opened = open_it(path)
    assert says in opened.notes[0]
    assert "read once" in opened.notes[0]
    assert opened.table.known_below == 0
    assert leaves(opened, device)[0] == expected
    opened.table.close()
    again = open_it(path)  # nothing was saved: still anew, and whole
    assert (again.notes, again.table.known_below) == ((), 0)
    again.table.close()
    device.close()


def test_a_newer_table_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "digests"
    with monkeypatch.context() as patch:
        patch.setattr(slots, "FORMAT_VERSION", 2)
        create_digests(path, volume_id=ID, size_bytes=SIZE_BYTES, blank=True)
    before = path.read_bytes()
    with pytest.raises(MetadataError, match="newer version"):
        open_it(path)
    assert path.read_bytes() == before


def test_a_table_of_a_smaller_volume_grows(tmp_path: Path) -> None:
    path = tmp_path / "digests"
    create_digests(path, volume_id=ID, size_bytes=SIZE_BYTES, blank=True)
    grown_bytes = 2 * SIZE_BYTES
    device = volume(tmp_path / "vda", grown_bytes)
    opened = open_it(path, grown_bytes)
    assert "has grown" in opened.notes[0]
    assert opened.table.known_below == SIZE_BYTES // BLOCK_BYTES
    opened.table.save()
    opened.table.close()
    again = open_it(path, grown_bytes)
    assert again.notes == ()
    assert again.table.known_below == SIZE_BYTES // BLOCK_BYTES
    found, filled = leaves(again, device)
    assert found == [0] * block_count_of(grown_bytes)
    assert filled == block_count_of(grown_bytes) - SIZE_BYTES // BLOCK_BYTES
    again.table.close()
    device.close()


def test_an_unreadable_header_is_written_anew() -> None:
    medium = SimMedium()
    medium.create("digests", digests_bytes(SIZE_BYTES))
    file = medium.open("digests")
    format_digests(file, volume_id=ID, size_bytes=SIZE_BYTES, blank=True)
    before = medium.step

    def strike(operation: SimOperation) -> Fault | None:
        reading = operation.action is SimAction.READ and medium.step == before
        return Fault(errno.EIO) if reading and operation.offset < 4096 else None

    medium.fault = strike
    opened = load_digests(file, volume_id=ID, size_bytes=SIZE_BYTES, doubtful=no_doubt())
    assert opened.table.known_below == 0
    medium.fault = None
    opened.table.save(1)
    opened.table.close()


@pytest.mark.parametrize("lost", [0, 4096])
def test_one_damaged_slot_does_not_matter(lost: int) -> None:
    """Neither now nor, when the other one is lost later, then."""
    medium = SimMedium()
    medium.create("digests", digests_bytes(SIZE_BYTES))
    file = medium.open("digests")
    format_digests(file, volume_id=ID, size_bytes=SIZE_BYTES, blank=True)
    slot = header_slots(file)
    slot.load()
    slot.store(encode_header(Header(ID, SIZE_BYTES, 50, 1, settled=True)))
    slot.store(encode_header(Header(ID, SIZE_BYTES, 50, 1, settled=True)))
    file.close()
    for offset in (lost, 4096 - lost):
        medium.damage("digests", offset + 40, 1)
        opened = load_digests(
            medium.open("digests"), volume_id=ID, size_bytes=SIZE_BYTES, doubtful=no_doubt()
        )
        assert "torn or damaged" in opened.notes[0]
        assert (opened.table.known_below, opened.table.milestone) == (50, 1)
        opened.table.save()
        opened.table.close()


def test_a_file_of_fixed_size_that_is_too_small_is_an_error() -> None:
    medium = SimMedium()
    medium.create("digests", 8192)
    with pytest.raises(BackendError, match="cannot be enlarged"):
        load_digests(medium.open("digests"), volume_id=ID, size_bytes=SIZE_BYTES, doubtful=no_doubt())


def test_doubtful_blocks_of_another_volume_are_our_bug() -> None:
    medium = SimMedium()
    medium.create("digests", digests_bytes(SIZE_BYTES))
    with pytest.raises(InternalError):
        load_digests(medium.open("digests"), volume_id=ID, size_bytes=SIZE_BYTES, doubtful=no_doubt(MIB))


def test_doubtful_blocks_are_unknown(tmp_path: Path) -> None:
    path = tmp_path / "digests"
    create_digests(path, volume_id=ID, size_bytes=SIZE_BYTES, blank=True)
    device = volume(tmp_path / "vda")
    doubtful = no_doubt()
    doubtful.mark(5, 8)
    opened = open_digests(path, volume_id=ID, size_bytes=SIZE_BYTES, doubtful=doubtful)
    assert opened.table.known_below == 5
    opened.table.save()  # few unknown blocks become leaves of the file
    assert opened.table.known_below == BLOCKS
    opened.table.close()
    again = open_it(path)
    assert again.table.known_below == BLOCKS
    assert leaves(again, device) == ([0] * BLOCKS, 3)
    again.table.close()
    device.close()


def test_a_sparse_terabyte_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "digests"
    device = volume(tmp_path / "vda", TIB)
    opened = open_it(path, TIB)
    device.apply([WriteOp(OpKind.DATA, TIB // 2, 4, b"data")])
    answer = opened.table.examine(device, 2, 0, 1024, read_bytes_max=4 * MIB, pages_max=100)
    assert answer.stop == 1024
    assert answer.filled == TIB // BLOCK_BYTES
    nodes = [answer.digests[at : at + 8] for at in range(0, 8192, 8)]
    assert [index for index, node in enumerate(nodes) if any(node)] == [512]
    opened.table.save()
    assert path.stat().st_blocks * 512 < MIB
    trim = WriteOp(OpKind.TRIM, 0, TIB)
    device.apply([trim])
    opened.table.note(device, [trim])
    answer = opened.table.examine(device, 2, 0, 1024, read_bytes_max=4 * MIB, pages_max=100)
    assert (answer.stop, answer.digests, answer.filled) == (1024, bytes(8192), 0)
    opened.table.save()
    opened.table.close()
    device.close()
