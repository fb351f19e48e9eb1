"""The codec: every message there and back, strictness field by field, payload by reference."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairsync.core.messages import (
    Applied,
    Barrier,
    Buffer,
    Failed,
    Generation,
    Leave,
    Marked,
    Message,
    OpKind,
    Relay,
    RelayRead,
    Write,
    WriteOp,
)
from pairsync.errors import InternalError, ProtocolError
from pairsync.wire import catalogue
from pairsync.wire.codec import decode, encode
from pairsync.wire.digests import payload_digest
from pairsync.wire.limits import (
    FRAME_HEADER_BYTES_MAX,
    FRAME_PAYLOAD_BYTES_MAX,
    MARKED_EXTENTS_MAX,
    NUMBER_MAX,
    OP_BYTES_MAX,
    REASON_BYTES_MAX,
    VOLUMES_MAX,
    WRITE_OPS_MAX,
)

OP = struct.Struct(">QIB")


def split(parts: list[Buffer]) -> tuple[bytes, bytes]:
    return bytes(parts[0]), b"".join(parts[1:])


def plain(message: Message) -> Message:
    """The same with ranges as a list and data as bytes, to compare."""
    if not isinstance(message, Write | Relay):
        return message
    ops = [op._replace(data=None if op.data is None else bytes(op.data)) for op in message.ops]
    joined = b"".join(op.data for op in ops if op.data is not None)
    return message._replace(ops=ops, digest=payload_digest(joined))


def write(*ops: WriteOp, digest: int = 0, number: int = 1) -> Write:
    return Write(term=3, volume=1, number=number, resync=False, ops=ops, digest=digest)


def data_op(data: Buffer, offset: int = 4096) -> WriteOp:
    return WriteOp(OpKind.DATA, offset, len(data), data)


def test_every_kind_of_message_comes_back(messages_strategy: st.SearchStrategy[Message]) -> None:
    seen: set[type[Any]] = set()

    @given(messages_strategy)
    def there_and_back(message: Message) -> None:
        seen.add(type(message))
        header, payload = split(encode(message))
        assert plain(decode(header, payload)) == plain(message)

    there_and_back()
    assert len(seen) > 5


def test_no_kind_of_message_is_missing(kinds: tuple[type[Any], ...]) -> None:
    numbered = {made for made, _ in catalogue.TABLE.values()}
    assert numbered | {Write, Relay, Applied} == set(kinds)


def test_payload_is_passed_by_reference_both_ways() -> None:
    block = bytearray(b"x" * 4096)
    view = memoryview(block)
    parts = encode(write(data_op(view), data_op(view[:512])))
    assert parts[1] is view
    payload = memoryview(bytes(block) + bytes(block[:512]))
    decoded = decode(bytes(parts[0]), payload)
    assert isinstance(decoded, Write)
    second = decoded.ops[1].data
    assert isinstance(second, memoryview)
    assert second.obj is payload.obj


def test_a_given_digest_is_sent_and_checked() -> None:
    data = b"y" * 512
    header, payload = split(encode(write(data_op(data), digest=payload_digest(data))))
    assert isinstance(decode(header, payload), Write)
    header, payload = split(encode(write(data_op(data), digest=12345)))
    with pytest.raises(ProtocolError, match="digest"):
        decode(header, payload)


def test_changed_payload_is_found() -> None:
    header, _ = split(encode(write(data_op(b"abc"))))
    with pytest.raises(ProtocolError, match="digest"):
        decode(header, b"abd")


@pytest.mark.parametrize(
    ("op", "why"),
    [
        (WriteOp(OpKind.DATA, 0, 4, None), "data without data"),
        (WriteOp(OpKind.ZERO, 0, 4, b"1234"), "zero with data"),
        (WriteOp(OpKind.DATA, 0, 5, b"1234"), "another length"),
        (WriteOp(OpKind.DATA, 0, 0, b""), "empty"),
        (WriteOp(OpKind.ZERO, 0, 0), "empty"),
        (WriteOp(OpKind.TRIM, 0, OP_BYTES_MAX + 1), "too long"),
        (WriteOp(OpKind.DATA, -1, 4, b"1234"), "negative"),
        (WriteOp(OpKind.TRIM, NUMBER_MAX, 1), "beyond the largest offset"),
    ],
)
def test_a_range_that_cannot_be_is_our_own_bug(op: WriteOp, why: str) -> None:
    with pytest.raises(InternalError, match="cannot be sent"):
        encode(write(op))


@pytest.mark.parametrize(
    "message",
    [
        write(),
        write(*[WriteOp(OpKind.TRIM, 0, 1)] * (WRITE_OPS_MAX + 1)),
        write(data_op(bytes(FRAME_PAYLOAD_BYTES_MAX + 1))),
        write(data_op(b"x"), number=0),
        Relay(1, 0, 0, [data_op(b"x")]),
        Relay(1, 0, 1, []),
        RelayRead(1, 0, 1, 0, FRAME_PAYLOAD_BYTES_MAX + 1),
        Write(1, VOLUMES_MAX, 1, False, [data_op(b"x")]),
        Write(-1, 0, 1, False, [data_op(b"x")]),
        Applied(VOLUMES_MAX, 1),
        Applied(0, -1),
        Barrier(NUMBER_MAX + 1, 0, 0),
        Failed(0, 5, "x" * (REASON_BYTES_MAX + 1)),
        Leave("\ud800"),
        Marked(0, ((0, 1),) * (MARKED_EXTENTS_MAX + 1)),
        Marked(0, ((1, 1),)),
        Generation(1, 2, 3),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_the_peer_would_refuse_is_not_sent(message: Any) -> None:
    with pytest.raises(InternalError):
        encode(message)


def test_the_largest_write_fits() -> None:
    block = bytes(FRAME_PAYLOAD_BYTES_MAX // WRITE_OPS_MAX)
    parts = encode(write(*[data_op(block, offset=n * len(block)) for n in range(WRITE_OPS_MAX)]))
    header, payload = split(parts)
    assert len(header) < FRAME_HEADER_BYTES_MAX
    assert len(payload) == FRAME_PAYLOAD_BYTES_MAX
    decoded = decode(header, payload)
    assert isinstance(decoded, Write)
    assert len(decoded.ops) == WRITE_OPS_MAX


def entries(*ops: tuple[int, int, int]) -> bytes:
    return b"".join(OP.pack(*op) for op in ops)


HEAD = struct.Struct(">BBBQBBBQBBQBH")
GOOD: dict[str, Any] = {
    "array": 0x97,
    "kind": 4,
    "u64_0": 0xCF,
    "term": 3,
    "u8": 0xCC,
    "volume": 1,
    "u64_1": 0xCF,
    "number": 1,
    "resync": 0xC2,
    "u64_2": 0xCF,
    "digest": payload_digest(b"abcd"),
    "bytes": 0xC5,
    "length": OP.size,
    "entries": entries((0, 4, 0)),
}


def header_of(fields: dict[str, Any]) -> bytes:
    *head, ranges = fields.values()
    return HEAD.pack(*head) + bytes(ranges)


def test_the_good_write_is_good_and_its_header_is_msgpack() -> None:
    message = decode(header_of(GOOD), b"abcd")
    assert message == Write(3, 1, 1, False, [WriteOp(OpKind.DATA, 0, 4, b"abcd")], GOOD["digest"])
    assert header_of(GOOD) == bytes(encode(message)[0])
    assert msgpack.unpackb(header_of(GOOD)) == [4, 3, 1, 1, False, GOOD["digest"], GOOD["entries"]]
    assert msgpack.unpackb(encode(Applied(7, 9))[0]) == [5, 7, 9]


def test_what_is_relayed_has_the_form_of_a_write_and_is_of_no_resync() -> None:
    fields = GOOD | {"kind": 17}
    message = Relay(3, 1, 1, [WriteOp(OpKind.DATA, 0, 4, b"abcd")], GOOD["digest"])
    assert decode(header_of(fields), b"abcd") == message
    assert bytes(encode(message)[0]) == header_of(fields)
    with pytest.raises(ProtocolError, match="Relay: it belongs to a resync"):
        decode(header_of(fields | {"resync": 0xC3}), b"abcd")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("array", 0x96),
        ("kind", 5),
        ("u64_0", 0xD3),
        ("term", NUMBER_MAX + 1),
        ("u8", 0xD0),
        ("volume", VOLUMES_MAX),
        ("u64_1", 0xCE),
        ("number", 0),
        ("number", NUMBER_MAX + 1),
        ("resync", 0xC0),
        ("resync", 0xC4),
        ("u64_2", 0xCB),
        ("digest", payload_digest(b"abcd") ^ 1),
        ("bytes", 0xDA),
        ("length", OP.size + 1),
        ("length", OP.size - 1),
        ("length", 0),
        ("length", 2 * OP.size),
        ("entries", b""),
        ("entries", entries((0, 4, 0))[:-1]),
        ("entries", entries((0, 4, 0)) + b"x"),
        ("entries", entries((0, 5, 0))),
        ("entries", entries((0, 3, 0))),
        ("entries", entries((0, 4, 4))),
        ("entries", entries((0, 4, 0x7F))),
        ("entries", entries((0, 4, 0), (0, 0, 1))),
        ("entries", entries((0, 4, 0), (0, OP_BYTES_MAX + 1, 1))),
        ("entries", entries((NUMBER_MAX, 4, 0))),
        ("entries", entries(*[(0, 4, 1)] * (WRITE_OPS_MAX + 1))),
    ],
)
def test_each_field_of_a_write_is_checked(field: str, value: Any) -> None:
    fields = {**GOOD, field: value}
    if field == "entries" and value and len(value) % OP.size == 0:
        fields["length"] = len(value)  # so that only the ranges are wrong
    with pytest.raises(ProtocolError):
        decode(header_of(fields), b"abcd")


@pytest.mark.parametrize("payload", [b"", b"abc", b"abcde", bytes(FRAME_PAYLOAD_BYTES_MAX + 1)])
def test_a_write_takes_its_payload_exactly(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(header_of({**GOOD, "digest": payload_digest(payload)}), payload)


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [4],
        [4, 3, 1, 1, False, 0, entries((0, 4, 1))],  # not the fixed form
        [5, 0],
        [5, 0, 1],  # not the fixed form
        [5, 0, 1, 2],
        [5, VOLUMES_MAX, 1],
        [5, 0, "1"],
        [6, 1, 2],
        [7, 1, 2, 3],
        [0],
        [13],
        "text",
        4,
        None,
        {"a": 1},
        [6, {"a": 1}, 1, 1],
        [6, msgpack.ExtType(1, b"x"), 1, 1],
        [6, msgpack.Timestamp(1), 1, 1],
        [9, 0, [1, 2]],
        [9, 0, [1, 2, -1]],
        [12, 0, [[2, 1]]],
        [12, 0, [[1]]],
    ],
    ids=repr,
)
def test_other_forms_are_refused(fields: Any) -> None:
    with pytest.raises(ProtocolError):
        decode(msgpack.packb(fields), b"")


def test_payload_belongs_to_writes_only() -> None:
    header, _ = split(encode(Applied(0, 1)))
    with pytest.raises(ProtocolError, match="came with a message that has none"):
        decode(header, b"x")


def test_headers_are_limited_before_they_are_read() -> None:
    with pytest.raises(ProtocolError, match="at most"):
        decode(bytes(FRAME_HEADER_BYTES_MAX + 1), b"")


@pytest.mark.parametrize("claim", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"])
def test_a_declared_length_allocates_nothing(claim: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(claim, b"")


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(ProtocolError):
        decode(b"\x91" * 100_000, b"")


@given(st.binary(max_size=200), st.binary(max_size=50))
def test_arbitrary_bytes_are_refused_in_words(header: bytes, payload: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        decode(header, payload)
