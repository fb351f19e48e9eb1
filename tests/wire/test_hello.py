"""Control messages: there and back in any pieces, versions, the lane's preamble."""

from __future__ import annotations

import contextlib
import itertools
import struct

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairsync.errors import InternalError, ProtocolError, RefusedError
from pairsync.wire.hello import (
    CONTROL,
    LANE_PREAMBLE_BYTES,
    Bye,
    ControlMessage,
    Hello,
    LaneAccept,
    LaneOffer,
    LaneRefuse,
    Ping,
    Pong,
    Refuse,
    Welcome,
    negotiate,
    pack_lane_preamble,
    parse_lane_preamble,
    shorten,
)
from pairsync.wire.limits import CONTROL_MESSAGE_BYTES_MAX, PATHS_MAX, REASON_BYTES_MAX
from pairsync.wire.vocabulary import StreamDecoder

MESSAGES: list[ControlMessage] = [
    Hello(1, 2, "pairsync 0.1", b"p" * 16, b"f" * 32, "copper", 0),
    Welcome(1, "pairsync 0.1", b"p" * 16, b"f" * 32),
    Refuse("ö" * (REASON_BYTES_MAX // 2)),
    LaneOffer(b"l" * 16, b"s" * 16, False, b"x" * 32),
    LaneAccept(b"l" * 16, b"y" * 32),
    LaneRefuse(b"l" * 16, True, "gone"),
    Ping(1),
    Pong(1),
    Bye(""),
]


@given(st.lists(st.sampled_from(MESSAGES), max_size=8), st.data())
def test_any_pieces_give_the_same_messages(messages: list[ControlMessage], data: st.DataObject) -> None:
    stream = b"".join(CONTROL.encode(message) for message in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    decoder = StreamDecoder(CONTROL)
    found: list[ControlMessage] = []
    for start, stop in itertools.pairwise([0, *cuts, len(stream)]):
        found += decoder.feed(stream[start:stop])
    assert found == messages


def test_secrets_are_not_shown() -> None:
    assert "xx" not in repr(MESSAGES[3])
    assert "yy" not in repr(MESSAGES[4])


@pytest.mark.parametrize(
    ("ours", "peer", "chosen"),
    [((1, 1), (1, 1), 1), ((1, 3), (2, 5), 3), ((2, 5), (1, 3), 3), ((1, 9), (4, 4), 4), ((0, 0), (0, 7), 0)],
)
def test_the_highest_common_version_is_chosen(
    ours: tuple[int, int], peer: tuple[int, int], chosen: int
) -> None:
    assert negotiate(ours, peer) == chosen
    assert negotiate(peer, ours) == chosen


def test_without_a_common_version_both_ranges_are_named() -> None:
    with pytest.raises(RefusedError, match=r"peer speaks 3\.\.4, we speak 1\.\.2"):
        negotiate((1, 2), (3, 4))
    with pytest.raises(RefusedError, match=r"peer speaks 1\.\.2, we speak 3\.\.4"):
        negotiate((3, 4), (1, 2))
    with pytest.raises(RefusedError, match=r"peer speaks 4\.\.1"):
        negotiate((1, 9), (4, 1))


ranges = st.tuples(st.integers(0, 20), st.integers(0, 20))


@given(ranges, ranges)
def test_negotiation_agrees_with_sets(ours: tuple[int, int], peer: tuple[int, int]) -> None:
    ours = (min(ours), max(ours))
    common = set(range(ours[0], ours[1] + 1)) & set(range(peer[0], peer[1] + 1))
    if common:
        assert negotiate(ours, peer) == max(common)
    else:
        with pytest.raises(RefusedError):
            negotiate(ours, peer)


def framed(fields: object) -> bytes:
    packed: bytes = msgpack.packb(fields)
    return struct.pack(">H", len(packed)) + packed


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x00",
        struct.pack(">H", CONTROL_MESSAGE_BYTES_MAX + 1),
        framed([]),
        framed([0]),
        framed([10, 1]),
        framed(["7", 1]),
        framed([7]),
        framed([7, -1]),
        framed([7, True]),
        framed([3, "x" * (REASON_BYTES_MAX + 1)]),
        framed([1, 1, 2, "s", b"p" * 16, b"f" * 32, "path", PATHS_MAX]),
        framed([1, 1, 70_000, "s", b"p" * 16, b"f" * 32, "path", 0]),
        framed([1, 1, 2, "s", b"p" * 15, b"f" * 32, "path", 0]),
        framed([4, b"l" * 16, b"s" * 16, 1, b"x" * 32]),
        framed([5, b"l" * 16, b"y" * 31]),
    ],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        StreamDecoder(CONTROL).feed(data)


def test_our_own_messages_are_checked_before_they_leave() -> None:
    with pytest.raises(InternalError, match="cannot be sent"):
        CONTROL.encode(Ping(-1))
    with pytest.raises(InternalError, match="not a control message"):
        CONTROL.encode("Hello")  # type: ignore[arg-type]


def test_the_lane_preamble() -> None:
    preamble = pack_lane_preamble(b"i" * 16)
    assert len(preamble) == LANE_PREAMBLE_BYTES
    assert preamble[0] != 0x16  # the first byte of TLS
    assert parse_lane_preamble(memoryview(preamble)) == b"i" * 16
    for bad in (b"", preamble[:-1], preamble + b"x", b"GET / HTTP/1.1\r\n".ljust(LANE_PREAMBLE_BYTES)):
        with pytest.raises(ProtocolError, match="neither TLS nor a lane"):
            parse_lane_preamble(bad)


@given(st.text(max_size=2000))
def test_a_shortened_reason_can_be_sent(reason: str) -> None:
    assert StreamDecoder(CONTROL).feed(CONTROL.encode(Bye(shorten(reason)))) == [Bye(shorten(reason))]


def test_shortening_keeps_what_fits() -> None:
    assert shorten("ünter") == "ünter"
    assert shorten("a\nb\x00") == "a?b?"
    assert len(shorten("ö" * 5000).encode()) <= REASON_BYTES_MAX


@given(st.lists(st.binary(max_size=100), max_size=5))
def test_arbitrary_bytes_are_messages_or_refused(pieces: list[bytes]) -> None:
    decoder = StreamDecoder(CONTROL)
    with contextlib.suppress(ProtocolError):
        for piece in pieces:
            decoder.feed(piece)
