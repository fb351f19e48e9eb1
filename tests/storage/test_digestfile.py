"""What one digest is, and the file of them."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from pairsync.core.units import BLOCK_BYTES, MIB, TIB
from pairsync.errors import BackendError, InternalError, MetadataError
from pairsync.storage import digestfile
from pairsync.storage.digestfile import (
    LEAF_BYTES,
    LEAVES_PER_NODE,
    PAGE_BYTES,
    UNKNOWN_DIGEST,
    ZERO_DIGEST,
    Header,
    LeafFile,
    block_digest,
    block_digests,
    decode_header,
    digests_bytes,
    digests_path,
    encode_header,
    header_slots,
    node_digest,
    pack_leaves,
    unpack_leaves,
)
from pairsync.testing.disks import Fault, SimAction, SimFile, SimMedium, SimOperation

HEADER = Header(b"v" * 16, 5 * MIB, 77, 3, settled=True)


def open_leaves(size_bytes: int = 5 * MIB) -> tuple[SimMedium, LeafFile]:
    medium = SimMedium()
    medium.create("digests", digests_bytes(size_bytes))
    return medium, LeafFile(medium.open("digests"))


def test_the_digest_of_a_block_is_its_xxh3() -> None:
    data = bytes(range(256)) * 16
    assert block_digest(data) == block_digest(memoryview(data)) == xxh3_64_intdigest(data)
    assert block_digest(data[:100]) == xxh3_64_intdigest(data[:100])


@pytest.mark.parametrize("length", [1, 100, BLOCK_BYTES - 1, BLOCK_BYTES])
def test_zeroes_of_any_length_have_the_digest_0(length: int) -> None:
    assert block_digest(bytes(length)) == ZERO_DIGEST
    assert block_digest(bytes(length - 1) + b"\1") not in (ZERO_DIGEST, UNKNOWN_DIGEST)


@pytest.mark.parametrize("hashed", [ZERO_DIGEST, UNKNOWN_DIGEST, xxh3_64_intdigest(bytes(BLOCK_BYTES))])
def test_a_hash_that_means_something_else_is_not_taken(monkeypatch: pytest.MonkeyPatch, hashed: int) -> None:
    monkeypatch.setattr(digestfile, "xxh3_64_intdigest", lambda _: hashed)
    data = b"\1" * BLOCK_BYTES
    assert block_digest(data) not in (ZERO_DIGEST, UNKNOWN_DIGEST)
    assert block_digests(memoryview(data * 2 + data[:9])) == [block_digest(data)] * 3
    assert node_digest(data) not in (ZERO_DIGEST, UNKNOWN_DIGEST)
    assert block_digest(bytes(BLOCK_BYTES)) == node_digest(bytes(PAGE_BYTES)) == ZERO_DIGEST


@given(st.lists(st.sampled_from([b"\0", b"\1", b"ab"]), max_size=5), st.integers(0, BLOCK_BYTES - 1))
def test_many_blocks_at_once_are_those_one_by_one(fillings: list[bytes], rest: int) -> None:
    data = b"".join((each * BLOCK_BYTES)[:BLOCK_BYTES] for each in fillings) + bytes(rest)
    singly = [block_digest(data[at : at + BLOCK_BYTES]) for at in range(0, len(data), BLOCK_BYTES)]
    assert block_digests(memoryview(data)) == singly


@given(st.lists(st.integers(0, (1 << 64) - 1), max_size=20))
def test_leaves_are_packed_little_endian(leaves: list[int]) -> None:
    packed = pack_leaves(leaves)
    assert packed == b"".join(leaf.to_bytes(8, "little") for leaf in leaves)
    assert list(unpack_leaves(packed)) == leaves


# ------------------------------------------------------------------ the header


def test_a_header_comes_back() -> None:
    assert decode_header(encode_header(HEADER)) == HEADER


@pytest.mark.parametrize(
    "changes",
    [
        {"volume_id": b"short"},
        {"volume_id": "v" * 16},
        {"size_bytes": 0},
        {"size_bytes": True},
        {"known_below": 5 * MIB // BLOCK_BYTES + 1},
        {"known_below": -1},
        {"settled": 1},
        {"milestone": 1 << 64},
        {"milestone": None},
    ],
)
def test_an_impossible_header_is_refused_both_ways(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    header = HEADER._replace(**changes)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(InternalError):
        encode_header(header)
    import msgpack

    try:
        payload = msgpack.packb(header._asdict())
    except OverflowError:
        return
    with pytest.raises(MetadataError, match="damaged"):
        decode_header(payload)


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x80", b"\x93\1\2\3", encode_header(HEADER) + b"x"])
def test_what_is_no_header_is_damaged(payload: bytes) -> None:
    with pytest.raises(MetadataError, match="damaged"):
        decode_header(payload)


def test_the_header_lies_before_the_leaves() -> None:
    _, leaves = open_leaves()
    slots = header_slots(leaves.file)
    slots.format(encode_header(HEADER))
    leaves.write(0, b"\xff" * LEAF_BYTES)
    slots.store(encode_header(HEADER._replace(milestone=4)))
    payload, notes = header_slots(leaves.file).load()
    assert decode_header(payload).milestone == 4
    assert notes == ()
    assert leaves.read(0, 2) == b"\xff" * 8 + bytes(8)


def test_the_file_is_beside_the_metadata() -> None:
    assert digests_path("vda.raw.pairsync") == "vda.raw.pairsync-digests"
    assert digests_bytes(1) == 12 * 1024
    assert digests_bytes(TIB) == TIB // 512 + 8192


# ------------------------------------------------------------------ leaves


@given(st.dictionaries(st.integers(0, 1279), st.integers(0, (1 << 64) - 1), max_size=60))
def test_patched_leaves_read_back(changes: dict[int, int]) -> None:
    _, leaves = open_leaves()
    model = [block * 3 for block in range(1280)]
    leaves.write(0, pack_leaves(model))
    pages = leaves.patch(changes)
    for block, digest in changes.items():
        model[block] = digest
    assert list(unpack_leaves(leaves.read(0, 1280))) == model
    assert pages == sorted({block // LEAVES_PER_NODE for block in changes})


def test_holes_are_zero_pages() -> None:
    _, leaves = open_leaves()
    assert leaves.zero_pages(0, 3) == 3
    leaves.write(600, pack_leaves([5]))
    assert [leaves.zero_pages(page, 3) for page in range(3)] == [1, 0, 1]
    leaves.zero(513, 700)
    assert leaves.zero_pages(0, 3) == 3


def test_zeroing_a_hole_writes_nothing() -> None:
    medium, leaves = open_leaves()
    leaves.begin_flush()()
    assert medium.step == 2
    leaves.zero(0, 1280)
    leaves.begin_flush()()
    assert medium.step == 2


def test_only_what_was_written_is_flushed_and_a_failed_flush_is_never_good_again() -> None:
    medium, leaves = open_leaves()

    def strike(operation: SimOperation) -> Fault | None:
        return Fault(errno.EIO) if operation.action is SimAction.FLUSH else None

    leaves.begin_flush()()  # what the process before may have left
    medium.fault = strike
    leaves.begin_flush()()
    leaves.write(3, pack_leaves([9]))
    for _ in range(2):
        with pytest.raises(BackendError):
            leaves.begin_flush()()
    assert isinstance(leaves.file, SimFile)
    assert not leaves.file.sound
