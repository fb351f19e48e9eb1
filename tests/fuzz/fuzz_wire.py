"""Fuzz targets of the wire room: each decoder that sees bytes of a peer or a stranger."""

from __future__ import annotations

from collections.abc import Iterable

from pairsync.core.messages import (
    Adopt,
    Applied,
    Barrier,
    Generation,
    Introduce,
    Leave,
    Marked,
    Message,
    OpKind,
    Relay,
    Relayed,
    RelayFlush,
    RelayRead,
    Role,
    Serving,
    Write,
    WriteOp,
)
from pairsync.core.stream import Renew
from pairsync.errors import ProtocolError
from pairsync.wire.codec import decode, encode
from pairsync.wire.frames import make_frame, pack_record, parse_frames, parse_record
from pairsync.wire.hello import (
    CONTROL,
    Hello,
    LaneOffer,
    Ping,
    Refuse,
    pack_lane_preamble,
    parse_lane_preamble,
)
from pairsync.wire.seals import LENGTH_BYTES, Opener, Sealer, record_length
from pairsync.wire.vocabulary import StreamDecoder

SECRET = bytes(32)
SAMPLES: list[Message] = [
    Introduce(b"p" * 16, "guest", Role.ACTIVE, 3, ()),
    Write(
        3, 0, 7, False, [WriteOp(OpKind.DATA, 4096, 5, b"hello"), WriteOp(OpKind.TRIM, 0, 4096, None, True)]
    ),
    Applied(0, 7),
    Barrier(3, 0, 1),
    Adopt(3, 0, (Generation(3, 1, 99),)),
    Leave("no more"),
    Marked(0, ((1, 5), (9, 10))),
    Serving(3, serves=True, names=("g", "vda")),
    Relay(3, 0, 7, [WriteOp(OpKind.DATA, 4096, 5, b"hello"), WriteOp(OpKind.ZERO, 0, 4096)]),
    RelayRead(3, 0, 8, 4096, 512),
    RelayFlush(3, 0, 9),
    Relayed(7, (0, 28)),
    Renew("a new role"),
]


def fuzz_codec(data: bytes) -> None:
    """The first byte says how much of the rest is the header; the rest is the payload."""
    cut = data[0] if data else 0
    try:
        message = decode(data[1 : 1 + cut], data[1 + cut :])
    except ProtocolError:
        return
    if isinstance(message, Write | Relay):
        held = sum(op.length for op in message.ops if op.data is not None)
        if held != len(data) - 1 - cut:
            raise RuntimeError("a batch whose ranges do not take its payload exactly")
    # what was accepted can be said again, and means the same
    parts = encode(message)
    if encode(decode(bytes(parts[0]), b"".join(parts[1:])))[0] != parts[0]:
        raise RuntimeError("a message that changes on its way")


def seeds_codec() -> Iterable[bytes]:
    """One of each kind."""
    for message in SAMPLES:
        header, *payload = encode(message)
        yield bytes([len(header)]) + header + b"".join(payload)


def fuzz_record(data: bytes) -> None:
    """The plaintext of a record, to the messages in it."""
    try:
        for header, payload in parse_frames(parse_record(memoryview(data))):
            decode(header, payload)
    except ProtocolError:
        return


def seeds_record() -> Iterable[bytes]:
    """A record of every kind of message, and an empty one."""
    yield pack_record(5, 9, [make_frame(encode(message)) for message in SAMPLES])
    yield pack_record(0, 0, [])


def fuzz_seal(data: bytes) -> None:
    """A lane's byte stream: lengths and sealed records."""
    opener = Opener(SECRET)
    view = memoryview(data)
    while len(view) >= LENGTH_BYTES:
        try:
            end = LENGTH_BYTES + record_length(view[:LENGTH_BYTES])
            if end > len(view):
                return
            opener.open(view[LENGTH_BYTES:end])
        except ProtocolError:
            return
        view = view[end:]


def seeds_seal() -> Iterable[bytes]:
    """Two records in a row."""
    sealer = Sealer(SECRET)
    out = memoryview(bytearray(1024))
    first = bytes(out[: sealer.seal(pack_record(0, 0, []), out)])
    yield first + bytes(out[: sealer.seal(pack_record(1, 2, [make_frame(encode(SAMPLES[1]))]), out)])


def fuzz_control(data: bytes) -> None:
    """The byte stream of a control connection, whole and byte by byte: the same messages or refusal."""
    results: list[object] = []
    for pieces in ([data], [data[index : index + 1] for index in range(len(data))]):
        decoder = StreamDecoder(CONTROL)
        messages: list[object] = []
        refused = False
        for piece in pieces:
            try:
                messages += decoder.feed(piece)
            except ProtocolError:
                refused = True
                break
        results.append((messages if not refused else None, refused))
    if results[0] != results[1]:
        raise RuntimeError("another outcome in other pieces")


def seeds_control() -> Iterable[bytes]:
    """The beginning of a dialer's conversation, and a refusal."""
    yield (
        CONTROL.encode(Hello(1, 1, "pairsync", b"p" * 16, b"f" * 32, "path", 0))
        + CONTROL.encode(LaneOffer(b"l" * 16, b"s" * 16, False, b"x" * 32))
        + CONTROL.encode(Ping(1))
    )
    yield CONTROL.encode(Refuse("no"))


def fuzz_preamble(data: bytes) -> None:
    """What a connection says first if it claims to be a lane."""
    try:
        parse_lane_preamble(data)
    except ProtocolError:
        return


def seeds_preamble() -> Iterable[bytes]:
    """A good one."""
    yield pack_lane_preamble(b"l" * 16)
