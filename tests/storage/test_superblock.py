"""The superblock's bytes: one form, read back exactly, everything else refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pairsync.core.messages import Condition, Generation
from pairsync.core.superblock import LINEAGE_GENERATIONS_MAX, Superblock
from pairsync.core.units import VOLUME_BYTES_MAX
from pairsync.errors import InternalError, MetadataError, MismatchError
from pairsync.storage.superblock import (
    PAYLOAD_BYTES_MAX,
    Layout,
    check_identity,
    decode_superblock,
    encode_superblock,
)

U64 = st.integers(0, (1 << 64) - 1)
IDS = st.binary(min_size=16, max_size=16)
GENERATIONS = st.builds(Generation, U64, U64, U64)
SUPERBLOCKS = st.builds(
    Superblock,
    pair_id=IDS,
    volume_id=IDS,
    name=st.text(max_size=60),
    size_bytes=st.integers(1, VOLUME_BYTES_MAX),
    term=U64,
    condition=st.sampled_from(Condition),
    lineage=st.lists(GENERATIONS, max_size=LINEAGE_GENERATIONS_MAX).map(tuple),
    sync_target=st.none() | GENERATIONS,
    peer_in_sync=st.booleans(),
    map_base=st.none() | GENERATIONS,
    clean=st.booleans(),
    boot_id=st.text(alphabet="0123456789abcdef-", max_size=36),
)
LAYOUTS = st.builds(Layout, st.integers(1, 1 << 18).map(lambda n: n * 4096), U64)


@settings(max_examples=30)  # a lineage is large to draw
@given(LAYOUTS, SUPERBLOCKS)
def test_what_is_encoded_is_decoded(layout: Layout, superblock: Superblock) -> None:
    assert decode_superblock(encode_superblock(layout, superblock)) == (layout, superblock)


def test_the_largest_fits(make_superblock: Any) -> None:
    top = Generation(*[(1 << 64) - 1] * 3)
    largest = make_superblock(
        name="ä" * 127,
        boot_id="b" * 64,
        lineage=(top,) * LINEAGE_GENERATIONS_MAX,
        sync_target=top,
        map_base=top,
    )
    assert len(encode_superblock(Layout(1 << 30, 5), largest)) <= PAYLOAD_BYTES_MAX


@pytest.mark.parametrize(
    "changes",
    [
        {"pair_id": b"short"},
        {"volume_id": b"x" * 17},
        {"name": "n" * 256},
        {"name": "\ud800"},
        {"size_bytes": 0},
        {"size_bytes": VOLUME_BYTES_MAX + 1},
        {"term": -1},
        {"term": 1 << 64},
        {"lineage": (Generation(1, 1, 1),) * (LINEAGE_GENERATIONS_MAX + 1)},
        {"lineage": (Generation(1, -1, 1),)},
        {"map_base": Generation(1, 1, 1 << 64)},
        {"sync_target": Generation(1 << 64, 1, 1)},
        {"boot_id": "b" * 65},
    ],
    ids=str,
)
def test_what_could_not_be_read_back_is_not_written(make_superblock: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(InternalError, match="superblock"):
        encode_superblock(Layout(4096, 0), make_superblock(**changes))


@pytest.mark.parametrize("segment_bytes", [0, 4095, 4097, (1 << 30) + 4096])
def test_journal_segments_have_limits(make_superblock: Any, segment_bytes: int) -> None:
    with pytest.raises(InternalError, match="segments"):
        encode_superblock(Layout(segment_bytes, 0), make_superblock())


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(payload: bytes) -> None:
    with pytest.raises(MetadataError, match="damaged: superblock"):
        decode_superblock(payload)


def _fields(superblock: Superblock) -> dict[str, Any]:
    fields: dict[str, Any] = msgpack.unpackb(encode_superblock(Layout(4096, 7), superblock))
    return fields


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("term", True),
        ("term", 1.0),
        ("term", "1"),
        ("clean", 1),
        ("name", b"vda"),
        ("pair_id", "p" * 16),
        ("condition", 3),
        ("lineage", {}),
        ("lineage", [[1, 2]]),
        ("lineage", [[1, 2, True]]),
        ("lineage", [[1, 2, 3]] * (LINEAGE_GENERATIONS_MAX + 1)),
        ("map_base", []),
        ("map_base", False),
        ("sync_target", [1, 2, -3]),
        ("size_bytes", 0),
        ("seed", -1),
        ("segment_bytes", 5000),
        ("boot_id", None),
    ],
)
def test_a_field_of_another_kind_is_refused(make_superblock: Any, key: str, value: Any) -> None:
    fields = _fields(make_superblock())
    assert key in fields
    fields[key] = value
    with pytest.raises(MetadataError, match="damaged: superblock"):
        decode_superblock(msgpack.packb(fields))


@pytest.mark.parametrize("how", ["missing", "extra", "reordered", "wide", "list", "trailing"])
def test_another_form_is_refused(make_superblock: Any, how: str) -> None:
    fields = _fields(make_superblock())
    payload = msgpack.packb(fields)
    if how == "missing":
        del fields["clean"]
        payload = msgpack.packb(fields)
    elif how == "extra":
        payload = msgpack.packb({**fields, "more": 1})
    elif how == "reordered":
        payload = msgpack.packb(dict(reversed(fields.items())))
    elif how == "wide":
        payload = msgpack.packb(fields, use_single_float=True).replace(b"\xa4term\x01", b"\xa4term\xcc\x01")
    elif how == "list":
        payload = msgpack.packb(list(fields.items()))
    else:
        payload += b"\0"
    with pytest.raises(MetadataError):
        decode_superblock(payload)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Superblock)])
def test_every_field_is_recorded(make_superblock: Any, field: str) -> None:
    assert field in _fields(make_superblock(parted=3, outdated=True))


@pytest.mark.parametrize(
    ("field", "wrongs"), [("parted", (None, -1, True, "7")), ("outdated", (None, False, 1, "yes"))]
)
def test_a_superblock_of_before_is_read_and_written_as_ever(
    make_superblock: Any, field: str, wrongs: tuple[object, ...]
) -> None:
    before = make_superblock()
    fields = _fields(before)
    assert field not in fields
    assert decode_superblock(msgpack.packb(fields))[1] == before
    for wrong in wrongs:
        with pytest.raises(MetadataError):
            decode_superblock(msgpack.packb({**fields, field: wrong}))


def test_an_outdated_replica_says_so_in_its_superblock(make_superblock: Any) -> None:
    for block in (make_superblock(outdated=True), make_superblock(outdated=True, parted=3)):
        assert decode_superblock(encode_superblock(Layout(4096, 7), block))[1] == block


def test_identity(make_superblock: Any) -> None:
    found = make_superblock()
    check_identity(found, pair_id=b"p" * 16)
    check_identity(found, pair_id=b"p" * 16, volume_id=b"v" * 16, size_bytes=1 << 20)
    with pytest.raises(MismatchError, match=f"volume vda belongs to pair {(b'p' * 16).hex()}, not to"):
        check_identity(found, pair_id=b"q" * 16)
    with pytest.raises(MismatchError, match="the metadata is that of volume vda"):
        check_identity(found, pair_id=b"p" * 16, volume_id=b"w" * 16)
    with pytest.raises(MismatchError, match=r"has 1048576 bytes .* 5 were found"):
        check_identity(found, pair_id=b"p" * 16, size_bytes=5)
