"""A vocabulary on a stream: strict both ways, cut anywhere, bounded."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairsync.errors import InternalError, ProtocolError
from pairsync.wire.shapes import structure, text, unsigned
from pairsync.wire.vocabulary import StreamDecoder, Vocabulary


@dataclass(frozen=True, slots=True)
class Count:
    number: int


@dataclass(frozen=True, slots=True)
class Say:
    words: str


@dataclass(frozen=True, slots=True)
class Stranger:
    number: int


BYTES_MAX = 40
SMALL: Vocabulary[Count | Say] = Vocabulary(
    "small message",
    {
        1: (Count, structure(Count, ("number", unsigned(255)))),
        2: (Say, structure(Say, ("words", text(60)))),
    },
    bytes_max=BYTES_MAX,
    fields_max=4,
)
MESSAGES = st.one_of(
    st.builds(Count, st.integers(0, 255)), st.builds(Say, st.text("ab\N{SNOWMAN}", max_size=10))
)


@given(st.lists(MESSAGES, max_size=8), st.data())
def test_a_stream_cut_anywhere_brings_the_same_messages(
    messages: list[Count | Say], data: st.DataObject
) -> None:
    stream = b"".join(map(SMALL.encode, messages))
    decoder = StreamDecoder(SMALL)
    found: list[Count | Say] = []
    while stream:
        count = data.draw(st.integers(1, len(stream)))
        found += decoder.feed(stream[:count])
        stream = stream[count:]
    assert found == messages


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_refused(stream: bytes) -> None:
    decoder = StreamDecoder(SMALL)
    try:
        decoder.feed(stream)
    except ProtocolError:
        return
    assert len(decoder._pending) <= BYTES_MAX + 2


@pytest.mark.parametrize("message", [Count(256), Count(-1), Say("x" * 61), Stranger(1)])
def test_what_is_not_allowed_is_not_sent(message: Count | Say) -> None:
    with pytest.raises(InternalError, match=type(message).__name__):
        SMALL.encode(message)


def test_what_is_too_long_is_not_sent_and_not_awaited() -> None:
    with pytest.raises(InternalError, match="at most 40"):
        SMALL.encode(Say("y" * 50))
    with pytest.raises(ProtocolError, match="small message of 41 bytes announced"):
        StreamDecoder(SMALL).feed(b"\x00\x29")


def test_an_unknown_type_is_named() -> None:
    with pytest.raises(ProtocolError, match="unknown small message type 9"):
        SMALL.decode(b"\x92\x09\x01")
