"""Requests by bytes: what is accepted, what is refused with which error, any fragmentation."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairsync.core.messages import OpKind, WriteOp
from pairsync.errors import InternalError, ProtocolError
from pairsync.nbd import constants as c
from pairsync.nbd.limits import PAYLOAD_SKIP_BYTES_MAX
from pairsync.nbd.requests import (
    WINDOW_BYTES_MIN,
    Batch,
    Rejection,
    Request,
    RequestParser,
    RequestRules,
)
from pairsync.testing.nbd_client import NbdClient

SIZE = 64 << 20
RULES = RequestRules(SIZE, structured=True, fast_zero=True, block_status=True)
BIG = 1 << 40  # more requests and bytes than any test has

request = NbdClient.request_bytes


def cookie(number: int) -> bytes:
    return number.to_bytes(8, "big")


@dataclass
class Taken:
    """Everything that a parser handed out, comparable."""

    reads: list[tuple[bytes, int, int]] = field(default_factory=list)
    writes: list[tuple[bytes, OpKind, int, int, bytes | None, bool]] = field(default_factory=list)
    others: list[Request] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    disconnect: bool = False
    violation: str | None = None

    def add(self, batch: Batch) -> None:
        self.reads += batch.reads
        for op, number in zip(batch.writes, batch.write_cookies, strict=True):
            data = None if op.data is None else bytes(op.data)
            self.writes.append((number, op.kind, op.offset, op.length, data, op.fua))
        assert batch.payload_bytes == sum(op.length for op in batch.writes if op.data is not None)
        self.others += batch.others
        self.rejections += batch.rejections
        self.disconnect = self.disconnect or batch.disconnect


def drain(parser: RequestParser, taken: Taken, requests_max: int = BIG, bytes_max: int = BIG) -> None:
    while taken.violation is None:
        try:
            batch = parser.take(requests_max, bytes_max)
        except ProtocolError as error:
            taken.violation = str(error)
            return
        assert len(batch) <= requests_max
        taken.add(batch)
        if not batch.more:
            return


def parse(*parts: bytes, rules: RequestRules = RULES) -> Taken:
    parser, taken = RequestParser(rules), Taken()
    for part in parts:
        parser.feed(part)
        drain(parser, taken)
    return taken


def rejected(data: bytes, rules: RequestRules = RULES) -> int:
    """The error of the only request in there."""
    taken = parse(data, rules=rules)
    assert not (taken.reads)
    assert not (taken.writes)
    assert not (taken.others)
    assert not (taken.violation)
    (rejection,) = taken.rejections
    assert rejection.message
    return rejection.error


def test_reads_and_writes_of_one_buffer() -> None:
    data = b"".join(
        [
            request(c.CMD_READ, 4096, 512, cookie=1),
            request(c.CMD_WRITE, 0, 4, cookie=2, payload=b"abcd"),
            request(c.CMD_READ, 0, 1, flags=c.CMD_FLAG_DF | c.CMD_FLAG_FUA, cookie=3),
            request(c.CMD_WRITE, SIZE - 1, 1, flags=c.CMD_FLAG_FUA, cookie=4, payload=b"z"),
        ]
    )
    taken = parse(data)
    assert taken.reads == [(cookie(1), 4096, 512), (cookie(3), 0, 1)]
    assert taken.writes == [
        (cookie(2), OpKind.DATA, 0, 4, b"abcd", False),
        (cookie(4), OpKind.DATA, SIZE - 1, 1, b"z", True),
    ]
    assert not taken.rejections


def test_payload_is_a_view_of_the_buffer() -> None:
    parser = RequestParser(RULES)
    data = request(c.CMD_WRITE, 0, 4, payload=b"abcd")
    parser.feed(data)
    (op,) = parser.take(BIG, BIG).writes
    assert isinstance(op.data, memoryview)
    assert op.data.obj is data


@pytest.mark.parametrize(
    ("kind", "flags", "expected"),
    [
        (c.CMD_TRIM, 0, WriteOp(OpKind.TRIM, 512, 1024)),
        (c.CMD_TRIM, c.CMD_FLAG_FUA, WriteOp(OpKind.TRIM, 512, 1024, None, fua=True)),
        (c.CMD_WRITE_ZEROES, 0, WriteOp(OpKind.ZERO, 512, 1024)),
        (c.CMD_WRITE_ZEROES, c.CMD_FLAG_NO_HOLE, WriteOp(OpKind.ZERO_ALLOCATE, 512, 1024)),
        (c.CMD_WRITE_ZEROES, c.CMD_FLAG_FAST_ZERO, WriteOp(OpKind.ZERO, 512, 1024)),
        (
            c.CMD_WRITE_ZEROES,
            c.CMD_FLAG_FAST_ZERO | c.CMD_FLAG_NO_HOLE | c.CMD_FLAG_FUA,
            WriteOp(OpKind.ZERO_ALLOCATE, 512, 1024, None, fua=True),
        ),
    ],
)
def test_writes_without_payload(kind: int, flags: int, expected: WriteOp) -> None:
    parser = RequestParser(RULES)
    parser.feed(request(kind, 512, 1024, flags=flags, cookie=9))
    batch = parser.take(BIG, BIG)
    assert batch.writes == [expected]
    assert batch.write_cookies == [cookie(9)]
    assert batch.payload_bytes == 0


def test_zeroing_and_trimming_may_be_larger_than_a_payload() -> None:
    rules = RequestRules(1 << 40)
    for kind in (c.CMD_TRIM, c.CMD_WRITE_ZEROES):
        taken = parse(request(kind, 0, c.LENGTH_MAX), rules=rules)
        assert [write[3] for write in taken.writes] == [c.LENGTH_MAX]


def test_other_requests() -> None:
    data = b"".join(
        [
            request(c.CMD_FLUSH, cookie=1),
            request(c.CMD_FLUSH, flags=c.CMD_FLAG_FUA, cookie=2),
            request(c.CMD_CACHE, 0, SIZE, cookie=3),
            request(c.CMD_BLOCK_STATUS, 0, SIZE, flags=c.CMD_FLAG_REQ_ONE, cookie=4),
            request(c.CMD_BLOCK_STATUS, 5, 6, cookie=5),
        ]
    )
    assert parse(data).others == [
        Request(cookie(1), c.CMD_FLUSH, 0, 0, one_extent=False),
        Request(cookie(2), c.CMD_FLUSH, 0, 0, one_extent=False),
        Request(cookie(3), c.CMD_CACHE, 0, SIZE, one_extent=False),
        Request(cookie(4), c.CMD_BLOCK_STATUS, 0, SIZE, one_extent=True),
        Request(cookie(5), c.CMD_BLOCK_STATUS, 5, 6, one_extent=False),
    ]


MAX = c.PAYLOAD_BYTES_MAX
READ_ONLY = RequestRules(SIZE, read_only=True)
PLAIN = RequestRules(SIZE)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        # "Error values": out of range
        (request(c.CMD_READ, SIZE, 1), c.EINVAL),
        (request(c.CMD_READ, SIZE - 1, 2), c.EINVAL),
        (request(c.CMD_READ, (1 << 64) - 1, 1), c.EINVAL),
        (request(c.CMD_TRIM, SIZE - 1, 2), c.EINVAL),
        (request(c.CMD_CACHE, SIZE - 1, 2), c.EINVAL),
        (request(c.CMD_BLOCK_STATUS, SIZE - 1, 2), c.EINVAL),
        (request(c.CMD_WRITE, SIZE - 1, 2, payload=b"ab"), c.ENOSPC),
        (request(c.CMD_WRITE, (1 << 64) - 1, 2, payload=b"ab"), c.ENOSPC),
        (request(c.CMD_WRITE_ZEROES, SIZE - 1, 2), c.ENOSPC),
        # "Error values": unknown commands and flags
        (request(8), c.EINVAL),
        (request(0xFFFF, 1, 1), c.EINVAL),
        (request(c.CMD_READ, 0, 1, flags=c.CMD_FLAG_NO_HOLE), c.EINVAL),
        (request(c.CMD_READ, 0, 1, flags=0x8000), c.EINVAL),
        (request(c.CMD_WRITE, 0, 1, flags=c.CMD_FLAG_DF, payload=b"x"), c.EINVAL),
        (request(c.CMD_TRIM, 0, 1, flags=c.CMD_FLAG_NO_HOLE), c.EINVAL),
        (request(c.CMD_FLUSH, flags=c.CMD_FLAG_REQ_ONE), c.EINVAL),
        (request(c.CMD_CACHE, 0, 1, flags=c.CMD_FLAG_FAST_ZERO), c.EINVAL),
        (request(c.CMD_WRITE_ZEROES, 0, 1, flags=c.CMD_FLAG_DF), c.EINVAL),
        (request(c.CMD_BLOCK_STATUS, 0, 1, flags=c.CMD_FLAG_DF), c.EINVAL),
        # no length, or one where none may be
        (request(c.CMD_READ, 0, 0), c.EINVAL),
        (request(c.CMD_WRITE, 0, 0), c.EINVAL),
        (request(c.CMD_TRIM, 0, 0), c.EINVAL),
        (request(c.CMD_WRITE_ZEROES, 0, 0), c.EINVAL),
        (request(c.CMD_CACHE, 0, 0), c.EINVAL),
        (request(c.CMD_BLOCK_STATUS, 0, 0), c.EINVAL),
        (request(c.CMD_FLUSH, 0, 1), c.EINVAL),
        (request(c.CMD_FLUSH, 1, 0), c.EINVAL),
        # "Size constraints" and "NBD_CMD_READ"
        (request(c.CMD_READ, 0, MAX + 1), c.EOVERFLOW),
        (request(c.CMD_WRITE, 0, MAX + 1, payload=bytes(MAX + 1)), c.EINVAL),
    ],
)
def test_refused(data: bytes, error: int) -> None:
    assert rejected(data) == error


@pytest.mark.parametrize(
    ("data", "rules", "error"),
    [
        (request(c.CMD_READ, 0, MAX + 1), PLAIN, c.EINVAL),
        (request(c.CMD_READ, 0, 1, flags=c.CMD_FLAG_DF), PLAIN, c.EINVAL),
        (request(c.CMD_BLOCK_STATUS, 0, 1), PLAIN, c.EINVAL),
        (request(c.CMD_WRITE_ZEROES, 0, 1, flags=c.CMD_FLAG_FAST_ZERO), PLAIN, c.ENOTSUP),
        (request(c.CMD_WRITE, 0, 2, payload=b"ab"), READ_ONLY, c.EPERM),
        (request(c.CMD_TRIM, 0, 2), READ_ONLY, c.EPERM),
        (request(c.CMD_WRITE_ZEROES, 0, 2), READ_ONLY, c.EPERM),
        (request(c.CMD_READ, 0, 1), RequestRules(0), c.EINVAL),
    ],
)
def test_refused_by_what_was_agreed(data: bytes, rules: RequestRules, error: int) -> None:
    assert rejected(data, rules) == error


def test_a_refused_write_is_answered_behind_its_payload() -> None:
    parser, taken = RequestParser(READ_ONLY), Taken()
    parser.feed(request(c.CMD_WRITE, 0, 10, cookie=1, payload=b"12345"))
    drain(parser, taken)
    assert not taken.rejections
    parser.feed(b"67890" + request(c.CMD_READ, 0, 1, cookie=2))
    drain(parser, taken)
    assert [rejection.cookie for rejection in taken.rejections] == [cookie(1)]
    assert taken.reads == [(cookie(2), 0, 1)]


def test_shutting_down() -> None:
    parser, taken = RequestParser(RULES), Taken()
    parser.shutting_down = True
    parser.feed(request(c.CMD_READ, 0, 1) + request(c.CMD_WRITE, 0, 1, payload=b"x") + request(c.CMD_FLUSH))
    drain(parser, taken)
    assert [rejection.error for rejection in taken.rejections] == [c.ESHUTDOWN] * 3


def test_disconnect_is_the_last_word() -> None:
    taken = parse(request(c.CMD_READ, 0, 1) + request(c.CMD_DISC) + b"rubbish" * 9, b"more")
    assert taken.disconnect
    assert len(taken.reads) == 1
    assert taken.violation is None


def test_bad_magic_after_good_requests() -> None:
    parser = RequestParser(RULES)
    parser.feed(request(c.CMD_READ, 0, 1) + bytes(28))
    batch = parser.take(BIG, BIG)
    assert len(batch.reads) == 1
    assert batch.more
    for _ in range(2):
        with pytest.raises(ProtocolError, match="magic"):
            parser.take(BIG, BIG)


def test_an_absurd_payload_is_not_waited_for() -> None:
    good = request(c.CMD_READ, 0, 1)
    taken = parse(good + request(c.CMD_WRITE, 0, PAYLOAD_SKIP_BYTES_MAX + 1) + good)
    assert len(taken.reads) == 1, "what follows is payload, not a request"
    assert taken.violation is not None
    assert "payload" in taken.violation


def test_room_ends_before_the_buffer() -> None:
    parser = RequestParser(RULES)
    parser.feed(b"".join(request(c.CMD_READ, 0, 4096, cookie=number) for number in range(10)))
    first = parser.take(4, BIG)
    assert len(first.reads) == 4
    assert first.more
    by_bytes = parser.take(BIG, 3 * 4096)
    assert len(by_bytes.reads) == 3
    assert by_bytes.more
    alone = parser.take(BIG, 1)
    assert len(alone.reads) == 1, "one request is always taken, however little room there is"
    assert alone.more
    rest = parser.take(BIG, BIG)
    assert [read[0] for read in rest.reads] == [cookie(8), cookie(9)]
    assert not rest.more


def test_feeding_again_before_everything_was_taken_loses_nothing() -> None:
    parser = RequestParser(RULES)
    parser.feed(request(c.CMD_READ, 0, 1, cookie=1) * 2)
    assert len(parser.take(1, BIG).reads) == 1
    parser.feed(request(c.CMD_READ, 0, 1, cookie=2))
    assert [read[0] for read in parser.take(BIG, BIG).reads] == [cookie(1), cookie(2)]


# -- payload that spans buffers ------------------------------------------------------------------------------


def test_window() -> None:
    length = WINDOW_BYTES_MIN + 10
    payload = bytes(range(256)) * (length // 256 + 1)
    data = request(c.CMD_WRITE, 0, length, cookie=7, payload=payload[:length])
    parser = RequestParser(RULES)
    parser.feed(data[:30])
    assert len(parser.take(BIG, BIG)) == 0
    window = parser.window()
    assert window is not None
    assert len(window) == length - 2
    window[:100] = payload[2:102]
    parser.filled(100)
    assert len(parser.take(BIG, BIG)) == 0
    window = parser.window()
    assert window is not None
    assert len(window) == length - 102, "what is left, however little that is"
    parser.feed(data[130:] + request(c.CMD_READ, 0, 1))  # nobody is obliged to use it
    batch = parser.take(BIG, BIG)
    assert batch.write_cookies == [cookie(7)]
    data_of = batch.writes[0].data
    assert data_of is not None
    assert bytes(data_of) == payload[:length]
    assert len(batch.reads) == 1


def receive(parser: RequestParser, data: bytes) -> bytes:
    """Fill what the parser's window takes of the data; what is left of them."""
    window = parser.window()
    assert window is not None
    count = min(len(window), len(data))
    window[:count] = data[:count]
    parser.filled(count)
    return data[count:]


def test_behind_a_large_write_the_window_is_the_next_header() -> None:
    payload = bytes(range(256)) * (WINDOW_BYTES_MIN // 256)
    large = [
        request(c.CMD_WRITE, number << 20, len(payload), cookie=number, payload=payload)
        for number in range(3)
    ]
    parser = RequestParser(RULES)
    parser.feed(large[0][:28])
    batch = parser.take(BIG, BIG)
    left = large[0][28:] + large[1] + large[2][:500]
    while left:
        left = receive(parser, left)
        assert parser.take(BIG, BIG, batch) is batch
    assert batch.write_cookies == [cookie(0), cookie(1)]
    assert all(op.data == payload for op in batch.writes)
    assert batch.payload_bytes == 2 * len(payload)
    assert receive(parser, large[2][500:]) == b""
    assert parser.take(BIG, BIG).write_cookies == [cookie(2)]
    # a header in two pieces, and no window behind what is no large write
    flush = request(c.CMD_FLUSH, cookie=9)
    assert receive(parser, flush[:5]) == b""
    begun = parser.unfinished
    assert receive(parser, flush[5:] + b"x") == b"x"
    assert parser.take(BIG, BIG).others[0].cookie == cookie(9)
    assert (begun, parser.unfinished, parser.window()) == (True, False, None)


def test_a_batch_that_is_added_to_keeps_its_limits() -> None:
    length = WINDOW_BYTES_MIN
    parser = RequestParser(RULES)
    data = request(c.CMD_WRITE, 0, length, payload=bytes(length)) * 3
    batch = parser.take(2, BIG)
    parser.feed(data[:28])
    parser.take(2, BIG, batch)
    data = data[28:]
    while not batch.more:
        data = receive(parser, data)
        parser.take(2, BIG, batch)
    assert len(batch) == 2
    assert len(data) == length
    assert parser.window() is None, "the third header has not been taken"
    assert len(parser.take(2, BIG)) == 0
    assert receive(parser, data) == b""
    assert len(parser.take(2, BIG)) == 1


def test_no_window_without_a_payload() -> None:
    parser = RequestParser(RULES)
    assert parser.window() is None
    with pytest.raises(InternalError):
        parser.filled(1)
    parser.feed(request(c.CMD_WRITE, 0, MAX))
    parser.take(BIG, BIG)
    assert parser.window() is not None
    with pytest.raises(InternalError):
        parser.filled(MAX + 1)


def test_a_write_that_never_ends_is_never_handed_out() -> None:
    data = request(c.CMD_WRITE, 0, 5000, payload=bytes(4999))
    for cut in (27, 28, 29, 5026):
        taken = parse(data[:cut])
        assert taken == Taken()


# -- any bytes, in any pieces --------------------------------------------------------------------------------

some_request = st.one_of(
    st.builds(
        lambda kind, offset, length, flags, number: request(
            kind,
            offset,
            length,
            flags=flags,
            cookie=number,
            payload=bytes(length) if kind == c.CMD_WRITE else b"",
        ),
        st.integers(0, 9),
        st.one_of(st.integers(0, 9000), st.integers(SIZE - 100, SIZE + 100)),
        st.integers(0, 300),
        st.sampled_from([0, 0, 0, 1, 2, 4, 8, 16, 32, 19]),
        st.integers(0, (1 << 64) - 1),
    ),
    st.builds(
        lambda payload, number: request(c.CMD_WRITE, 0, len(payload), cookie=number, payload=payload),
        st.binary(min_size=1, max_size=200),
        st.integers(0, 99),
    ),
    st.binary(max_size=3),
)
some_requests = st.lists(some_request, max_size=10).map(b"".join)
some_rules = st.builds(
    RequestRules, st.just(SIZE), st.booleans(), st.booleans(), st.booleans(), st.booleans()
)


def in_pieces(data: bytes, sizes: list[int], rules: RequestRules, room: tuple[int, int]) -> Taken:
    parser, taken = RequestParser(rules), Taken()
    position, turn = 0, 0
    while position < len(data):
        size = sizes[turn % len(sizes)]
        window = parser.window()
        if window is None:
            piece = data[position : position + size]
            parser.feed(piece)
        else:
            piece = data[position : position + min(size, len(window))]
            window[: len(piece)] = piece
            parser.filled(len(piece))
        position, turn = position + len(piece), turn + 1
        drain(parser, taken, *room)
    return taken


@given(
    data=some_requests,
    sizes=st.lists(st.integers(1, 500), min_size=1, max_size=5),
    rules=some_rules,
    room=st.tuples(st.integers(1, 4), st.integers(1, 600)),
)
def test_any_pieces_and_any_room(
    data: bytes, sizes: list[int], rules: RequestRules, room: tuple[int, int]
) -> None:
    whole = parse(data, rules=rules)
    assert in_pieces(data, sizes, rules, room) == whole
    assert in_pieces(data, [1], rules, (1, 1)) == whole


@given(data=st.binary(max_size=300), sizes=st.lists(st.integers(1, 90), min_size=1, max_size=3))
def test_arbitrary_bytes(data: bytes, sizes: list[int]) -> None:
    assert in_pieces(data, sizes, RULES, (BIG, BIG)) == parse(data)


def test_a_large_payload_in_pieces_goes_through_windows() -> None:
    payload = bytes(range(251)) * 2000
    data = request(c.CMD_WRITE, 0, len(payload), cookie=1, payload=payload) + request(c.CMD_FLUSH, cookie=2)
    taken = in_pieces(data, [70_001, 3], RULES, (BIG, BIG))
    assert [write[4] for write in taken.writes] == [payload]
    assert len(taken.others) == 1


@given(
    kinds=st.lists(st.sampled_from(["large", "small", "flush", "refused", "bad"]), min_size=1, max_size=6),
    sizes=st.lists(st.sampled_from([1, 27, 28, 29, 5000, 70_001]), min_size=1, max_size=4),
    room=st.tuples(st.integers(1, 3), st.sampled_from([1, 100_000, BIG])),
)
def test_rows_of_large_writes_in_any_pieces(
    kinds: list[str], sizes: list[int], room: tuple[int, int]
) -> None:
    payload = bytes(range(251)) * 300
    made = {
        "large": request(c.CMD_WRITE, 0, len(payload), cookie=1, payload=payload),
        "small": request(c.CMD_WRITE, 0, 4096, cookie=2, payload=payload[:4096]),
        "flush": request(c.CMD_FLUSH, cookie=3),
        "refused": request(c.CMD_WRITE, SIZE, len(payload), cookie=4, payload=payload),
        "bad": bytes(28),
    }
    data = b"".join(made[kind] for kind in kinds)
    if max(sizes) < 100:
        data = data[:70_000]  # byte by byte takes its time
    assert in_pieces(data, sizes, RULES, room) == parse(data)


def test_what_is_arriving_and_what_is_unfinished() -> None:
    parser = RequestParser(RULES)
    states = []
    write = request(c.CMD_WRITE, 0, 4096, payload=bytes(4096))
    refused = request(c.CMD_WRITE, SIZE, 100, payload=bytes(100))
    for piece in (b"", write[:20], write[20:28], write[28:100], write[100:], write[:10], write[10:], write):
        parser.feed(piece)
        parser.take(BIG, BIG)
        states.append((parser.unfinished, parser.arriving_bytes))
    assert states == [(False, 0), (True, 0), *[(True, 4096)] * 2, (False, 0), (True, 0), *[(False, 0)] * 2]
    for piece, unfinished in ((refused[:50], True), (refused[50:], False)):
        parser.feed(piece)
        parser.take(BIG, BIG)
        assert (parser.unfinished, parser.arriving_bytes) == (unfinished, 0)  # what is skipped holds nothing
