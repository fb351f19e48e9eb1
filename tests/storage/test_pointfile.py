"""The file of a point: what it says of itself, and what damage to it does."""

from __future__ import annotations

import pytest

from pairsync.core.messages import PointMark
from pairsync.errors import InternalError, MetadataError
from pairsync.storage.digestfile import PAGE_BYTES, UNKNOWN_DIGEST, pack_leaves, unpack_leaves
from pairsync.storage.pointfile import PointFile, PointHeader, load_point, point_bytes
from pairsync.testing.disks import SimMedium

SIZE = 1100 * 4096 - 100
HEADER = PointHeader(b"v" * 16, "monday", 7, 99, SIZE, 1100)


def made(header: PointHeader = HEADER) -> tuple[SimMedium, PointFile]:
    medium = SimMedium()
    medium.create("p", point_bytes(header.size_bytes))
    point = PointFile(medium.open("p"), header)
    page = bytearray(pack_leaves(range(2, 514)))
    point.write_pages(0, page + bytes(PAGE_BYTES) + page)
    point.write_header()
    point.file.flush()
    return medium, point


def test_it_comes_back() -> None:
    medium, point = made()
    point.file.close()
    again = load_point(medium.open("p"))
    assert again.header == HEADER
    assert again.header.mark == PointMark("monday", 7, 99)
    assert (again.page_count, again.known_below(SIZE)) == (3, 1100)
    assert unpack_leaves(again.read(510, 515)).tolist() == [512, 513, 0, 0, 0]
    assert unpack_leaves(again.read(1024, 1027)).tolist() == [2, 3, 4]
    assert [again.zero_pages(page, 3) for page in range(3)] == [0, 1, 0]
    assert again.data_pages(0, 3) >= 1


def test_a_volume_that_has_grown_has_another_last_block() -> None:
    point = made()[1]
    assert point.known_below(SIZE + 100) == 1099
    assert point.known_below(2 * SIZE) == 1099
    assert made(HEADER._replace(known_below=5))[1].known_below(2 * SIZE) == 5


@pytest.mark.parametrize("where", [8192, 12288 + 8, 12288 + 2 * 4096])
def test_a_damaged_page_is_not_known(where: int) -> None:
    medium, point = made()
    medium.platter("p", medium.life).live[where] ^= 4
    leaves = unpack_leaves(point.read(0, 1100))
    page = {8192: 0, 12288 + 8: 0}.get(where, 2)
    stop = min(page * 512 + 512, 1100)
    assert {leaf == UNKNOWN_DIGEST for leaf in leaves[page * 512 : stop]} == {True}
    assert leaves.count(UNKNOWN_DIGEST) == stop - page * 512


def test_a_page_that_was_lost_to_zeroes_is_not_known() -> None:
    medium, point = made()
    medium.platter("p", medium.life).live[12288 : 12288 + 4096] = bytes(4096)
    assert point.zero_pages(0, 3) == 0
    assert set(unpack_leaves(point.read(0, 512))) == {UNKNOWN_DIGEST}


def test_what_is_no_point_is_refused() -> None:
    medium, point = made()
    point.file.close()
    for live, text in [
        (bytes(100), "are no point"),
        (bytes(point_bytes(SIZE)), "neither copy"),
        (bytes(medium.platter("p", medium.life).live[:16384]), "cut to"),
    ]:
        other = SimMedium()
        other.create("p", len(live) // 512 * 512 or 512)
        other.platter("p", other.life).live[:] = live
        with pytest.raises(MetadataError, match=text):
            load_point(other.open("p"))


@pytest.mark.parametrize(
    "header",
    [
        HEADER._replace(name="../x"),
        HEADER._replace(tag=-1),
        HEADER._replace(size_bytes=0),
        HEADER._replace(known_below=1101),
        HEADER._replace(volume_id=b""),
        HEADER._replace(created_s="now"),  # type: ignore[arg-type]
    ],
)
def test_no_header_is_written_that_could_not_be_read(header: PointHeader) -> None:
    point = made()[1]
    point.header = header
    with pytest.raises(InternalError):
        point.write_header()
