"""An overlay's file: torn ends are cut off, damage before the end is told from them and named."""

from __future__ import annotations

import dataclasses

import pytest

from pairsync.core.messages import Generation
from pairsync.core.units import BLOCK_BYTES
from pairsync.errors import BackendError, BusyError, InternalError, MetadataError
from pairsync.storage.overlayfile import PAGE_BYTES, RECORDS_AT, Chunk, OverlayHeader, OverlayState, chunks_of
from pairsync.storage.overlaylog import OverlayLog, create_log, open_log
from pairsync.testing.disks import SimAction, SimMedium, SimOperation
from pairsync.testing.simfiles import SimDirectory

HEADER = OverlayHeader(
    pair_id=b"p" * 16,
    volume_id=b"v" * 16,
    volume="vda",
    size_bytes=1 << 24,
    number=1,
    created_s=5,
    lineage=(Generation(1, 1, 1),),
    target=Generation(2, 1, 1),
    state=OverlayState.UNDO,
    whole=True,
)
RECORD_BYTES = PAGE_BYTES + 2 * BLOCK_BYTES


def _two(number: int) -> list[Chunk]:
    return chunks_of(10 * number, memoryview(bytes([number + 1]) * (2 * BLOCK_BYTES)))


def _log(appends: int = 4) -> tuple[SimMedium, OverlayLog]:
    """A log of so many records, of two blocks and one append each."""
    medium = SimMedium()
    log = create_log(SimDirectory(medium), "o", HEADER)
    log.commit()
    for number in range(appends):
        log.append(_two(number), durable=True)
    return medium, log


def _reopen(medium: SimMedium) -> OverlayLog:
    medium.process_crash()
    return open_log(SimDirectory(medium), "o")


def _numbers(log: OverlayLog) -> list[int]:
    return [record.number for record in log.records()]


def test_records_come_back() -> None:
    medium, log = _log()
    assert (log.record_count, log.stop) == (4, RECORDS_AT + 4 * RECORD_BYTES)
    log = _reopen(medium)
    assert (log.record_count, log.stop) == (4, RECORDS_AT + 4 * RECORD_BYTES)
    assert log.damage == []
    for record in log.records():
        chunks, damage = log.read(record)
        assert damage is None
        assert [(each.start, each.stop) for each in chunks] == [(10 * record.number, 10 * record.number + 2)]
        assert bytes(chunks[0].data or b"") == bytes([record.number + 1]) * (2 * BLOCK_BYTES)
    log.trim()
    assert len(medium.content("o")) == log.stop
    log.close()


def test_a_file_cut_anywhere_within_the_last_record_has_one_less() -> None:
    whole_bytes = RECORDS_AT + 4 * RECORD_BYTES
    for size in range(whole_bytes - RECORD_BYTES, whole_bytes, 512):
        medium, log = _log()
        log.file.resize(size)
        log = _reopen(medium)
        assert (log.record_count, log.damage) == (3, []), size
        log.append(_two(7), durable=True)
        log = _reopen(medium)
        assert [record.extents[0][0] for record in log.records()] == [0, 10, 20, 70]
        log.close()


@pytest.mark.parametrize("within", [0, 50, PAGE_BYTES - 1, PAGE_BYTES, RECORD_BYTES - 1])
def test_a_spoilt_last_record_counts_as_torn(within: int) -> None:
    medium, log = _log()
    medium.damage("o", RECORDS_AT + 3 * RECORD_BYTES + within, 1)
    log = _reopen(medium)
    assert (log.record_count, log.damage) == (3, [])
    log.close()


def test_a_spoilt_last_record_that_was_counted_is_damage() -> None:
    medium, log = _log()
    log.write_header(dataclasses.replace(HEADER, record_count=4))
    medium.damage("o", RECORDS_AT + 3 * RECORD_BYTES, 1)
    log = _reopen(medium)
    assert _numbers(log) == [0, 1, 2]
    (damage,) = log.damage
    assert (damage.offset, damage.extents) == (RECORDS_AT + 3 * RECORD_BYTES, ())
    assert "o: damaged: record 3 at" in damage.what
    log.close()


@pytest.mark.parametrize(
    ("spoilt", "left", "which"),
    [
        ([0], [1, 2, 3], "record 0 at"),
        ([1], [0, 2, 3], "record 1 at"),
        ([1, 2], [0, 3], "records 1 to 2 at"),
    ],
)
def test_a_spoilt_record_before_the_end_is_damage(spoilt: list[int], left: list[int], which: str) -> None:
    medium, log = _log()
    for number in spoilt:
        medium.damage("o", RECORDS_AT + number * RECORD_BYTES + 9, 1)
    log = _reopen(medium)
    assert _numbers(log) == left
    assert [damage.offset for damage in log.damage] == [RECORDS_AT + spoilt[0] * RECORD_BYTES]
    assert which in log.damage[0].what
    log.close()


def test_damaged_content_is_found_when_it_is_read() -> None:
    medium, log = _log()
    medium.damage("o", RECORDS_AT + RECORD_BYTES + PAGE_BYTES + BLOCK_BYTES, 1)
    log = _reopen(medium)
    assert log.damage == []
    found = [log.read(record) for record in log.records()]
    assert [damage is None for _, damage in found] == [True, False, True, True]
    damage = found[1][1]
    assert damage is not None
    assert (damage.offset, list(damage.extents)) == (RECORDS_AT + RECORD_BYTES, [(11, 12)])
    assert [(each.start, each.stop) for each in found[1][0]] == [(10, 11)]
    log.close()


def test_of_an_append_of_several_records_none_counts_before_all_are_there() -> None:
    medium, log = _log(2)
    chunks = chunks_of(100, memoryview(b"x" * (600 * BLOCK_BYTES)))  # three records
    log.append(chunks, durable=True)
    stop = log.stop
    medium.damage(
        "o", RECORDS_AT + 2 * RECORD_BYTES + 256 * BLOCK_BYTES + PAGE_BYTES + 1, 1
    )  # the middle one
    log = _reopen(medium)
    assert (log.record_count, log.damage) == (3, [])  # the first stays: its blocks were not overwritten yet
    log.append(_two(5), durable=True)
    assert log.stop < stop
    log = _reopen(medium)
    assert (_numbers(log), log.damage) == ([0, 1, 2, 3], [])
    log.close()


def test_what_was_not_committed_does_not_count() -> None:
    medium, log = _log(1)
    log.append(_two(1), durable=False)
    assert log.record_count == 1
    log.append(_two(2), durable=False)
    medium.power_cut(lambda _: 0)
    log = open_log(SimDirectory(medium), "o")
    assert log.record_count == 1
    log.append(_two(1), durable=False)
    log.append(_two(2), durable=False)
    log.commit()
    assert log.record_count == 3
    medium.power_cut(lambda _: 0)
    log = open_log(SimDirectory(medium), "o")
    assert log.record_count == 3
    log.close()


def test_a_refused_append_forgets_what_was_not_durable() -> None:
    medium, log = _log(1)
    sizes: list[int] = []

    def refuse(file_bytes: int) -> None:
        sizes.append(file_bytes)
        raise BackendError("no")

    log.append(_two(1), durable=False)
    with pytest.raises(BackendError, match="no"):
        log.append(_two(2), durable=True, admit=refuse)
    assert sizes == [RECORDS_AT + 3 * RECORD_BYTES]
    log.append(_two(3), durable=True)
    log = _reopen(medium)
    assert [record.extents[0][0] for record in log.records()] == [0, 30]
    log.close()


def test_a_page_that_spoils_while_it_is_open_is_named() -> None:
    medium, log = _log()
    medium.damage("o", RECORDS_AT + RECORD_BYTES, 1)
    with pytest.raises(MetadataError, match=f"o: damaged: the record at {RECORDS_AT + RECORD_BYTES}"):
        list(log.records())
    log.close()


def test_either_copy_of_the_header_is_enough() -> None:
    for spoilt in (0, PAGE_BYTES):
        medium, log = _log()
        log.write_header(dataclasses.replace(HEADER, whole=False))
        medium.damage("o", spoilt + 20, 1)
        log = _reopen(medium)
        assert not log.header.whole
        log.close()


def test_settling_writes_the_header_and_the_last_append_anew() -> None:
    """A process whose flush failed may have left them in the page cache, clean, and nowhere else."""
    medium, _ = _log()
    log = _reopen(medium)
    before = medium.content("o")
    seen: list[tuple[SimAction, int, int]] = []

    def note(operation: SimOperation) -> None:
        if operation.action is not SimAction.READ:
            seen.append((operation.action, operation.offset, operation.length))

    medium.fault = note
    log.settle()
    assert seen[0] == (SimAction.WRITE, 0, PAGE_BYTES)
    assert seen[1:] == [
        (SimAction.WRITE, RECORDS_AT + 3 * RECORD_BYTES, RECORD_BYTES),
        (SimAction.FLUSH, 0, 0),
    ]
    assert medium.content("o") == before
    log.close()


def test_files_that_are_no_overlays_are_refused() -> None:
    medium, log = _log()
    directory = SimDirectory(medium)
    with pytest.raises(BusyError):
        open_log(directory, "o")
    with pytest.raises(InternalError, match="another overlay"):
        log.write_header(dataclasses.replace(HEADER, number=2))
    medium.damage("o", 20, 1)
    medium.damage("o", PAGE_BYTES + 20, 1)
    with pytest.raises(MetadataError, match="o: damaged: neither copy of the overlay header"):
        _reopen(medium)
    medium.create("short", PAGE_BYTES)
    with pytest.raises(MetadataError, match="short: damaged: 4096 bytes are no overlay"):
        open_log(directory, "short")
    directory.open("o").close()  # nothing was left open
