"""Messages of the witness: every one travels unchanged, every limit holds, any bytes are refused in words."""

from __future__ import annotations

import contextlib

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairsync.core.witness import VALUE_BYTES_MAX
from pairsync.errors import InternalError, ProtocolError
from pairsync.wire.vocabulary import StreamDecoder
from pairsync.wire.witness import (
    WITNESS,
    WITNESS_MESSAGE_BYTES_MAX,
    Beat,
    Crossed,
    Declined,
    Failed,
    Greet,
    Greeted,
    Knowledge,
    Look,
    Seen,
    Swap,
    Swapped,
    WitnessMessage,
)

number = st.integers(1, (1 << 63) - 1)
version = st.integers(0, (1 << 63) - 1)
incarnation = st.binary(min_size=8, max_size=8)
value = st.binary(max_size=VALUE_BYTES_MAX)
guest = st.text(max_size=60)
knows = st.none() | st.builds(Knowledge, incarnation, version)
MESSAGES: st.SearchStrategy[WitnessMessage] = st.one_of(
    st.builds(
        Greet,
        st.integers(0, 9),
        st.integers(0, 9),
        guest.map(lambda t: t[:30]),
        st.binary(min_size=16, max_size=16),
    ),
    st.builds(Greeted, st.integers(0, 9), guest.map(lambda t: t[:30])),
    st.builds(Declined, guest),
    st.builds(Look, number, guest, knows),
    st.builds(Swap, number, guest, knows, version, value),
    st.builds(Seen, number, incarnation, version, st.none() | value),
    st.builds(Swapped, number, incarnation, version),
    st.builds(Crossed, number, incarnation, version, st.none() | value),
    st.builds(Failed, number, guest),
    st.builds(Beat, number),
)


@given(MESSAGES)
def test_every_message_travels_unchanged(message: WitnessMessage) -> None:
    assert StreamDecoder(WITNESS).feed(WITNESS.encode(message)) == [message]


def test_the_longest_message_fits() -> None:
    top = (1 << 63) - 1
    longest = Swap(top, "x" * 255, Knowledge(b"i" * 8, top), top, b"v" * VALUE_BYTES_MAX)
    assert len(WITNESS.encode(longest)) <= WITNESS_MESSAGE_BYTES_MAX


@given(st.binary(max_size=64))
def test_any_bytes_are_refused_in_words(encoded: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        WITNESS.decode(encoded)


@pytest.mark.parametrize(
    "fields",
    [
        [4, 0, "db1", None],  # requests count from 1
        [4, 1, "x" * 256, None],
        [4, 1, "db1", [b"short", 1]],
        [5, 1, "db1", None, -1, b""],
        [5, 1, "db1", None, 1, b"v" * (VALUE_BYTES_MAX + 1)],
        [6, 1, b"12345678", 1 << 63, None],
        [6, 1, b"12345678", True, None],
        [10],
        [11, 1],
        [1, 1, 1, "me", b"short"],
    ],
)
def test_limits_hold(fields: list[object]) -> None:
    with pytest.raises(ProtocolError):
        WITNESS.decode(msgpack.packb(fields))


def test_what_is_too_long_is_not_sent() -> None:
    with pytest.raises(InternalError, match="Swap"):
        WITNESS.encode(Swap(1, "db1", None, 1, bytes(VALUE_BYTES_MAX + 1)))
