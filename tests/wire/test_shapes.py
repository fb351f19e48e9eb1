"""Strict shapes: what a value must be, and how its fault is named."""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

import msgpack
import pytest

from pairsync.errors import InternalError, ProtocolError
from pairsync.wire.shapes import (
    binary,
    boolean,
    choice,
    pack,
    sequence,
    structure,
    text,
    unpack_array,
    unsigned,
)


class Colour(enum.IntEnum):
    RED = 1
    BLUE = 4


class Point(NamedTuple):
    x: int
    y: int


point = structure(Point, ("x", unsigned(10)), ("y", unsigned(10, minimum=2)))


def test_good_values_pass_unchanged() -> None:
    assert unsigned(5)(5) == 5
    assert boolean(True) is True
    assert text(4)("äö") == "äö"
    assert binary(2)(b"ab") == b"ab"
    assert choice(Colour)(4) is Colour.BLUE
    assert sequence(unsigned(3), 2)([1, 2]) == (1, 2)
    assert point([1, 2]) == Point(1, 2)


@pytest.mark.parametrize(
    ("shape", "value", "text_"),
    [
        (unsigned(5), 6, "outside 0..5"),
        (unsigned(5), -1, "outside"),
        (unsigned(5), True, "expected an integer, got bool"),
        (unsigned(5), 1.0, "got float"),
        (unsigned(5), None, "got nothing"),
        (boolean, 1, "expected a boolean"),
        (text(3), "äö", "text of 4 bytes"),
        (text(3), b"a", "got a byte string"),
        (binary(2), b"abc", "3 bytes, expected 2"),
        (binary(2), "ab", "got a text"),
        (choice(Colour), 2, "2 is no Colour"),
        (choice(Colour), True, "no Colour"),
        (choice(Colour), [1], "no Colour"),
        (sequence(unsigned(3), 2), [1, 2, 3], "array of 3 items"),
        (sequence(unsigned(3), 2), (1,), "expected an array"),
        (sequence(unsigned(3), 2), [4], "outside"),
        (point, [1], "Point: 1 fields, expected 2"),
        (point, 1, "Point: expected an array, got int"),
        (point, [1, 1], "Point.y: integer 1 is outside 2..10"),
        (point, [[], 3], "Point.x: expected an integer, got an array of 0"),
    ],
)
def test_faults_are_named(shape: Any, value: Any, text_: str) -> None:
    with pytest.raises(ProtocolError, match=text_):
        shape(value)


def test_unpack_array_takes_one_array_and_nothing_behind_it() -> None:
    assert unpack_array(msgpack.packb([1, "a"]), bytes_max=10, count_max=2) == [1, "a"]
    for bad in (b"", b"\x90", b"\x01", b"\x92\x01", b"\x91\x01\x01", b"\xc1", b"\x91\xa1\xff"):
        with pytest.raises(ProtocolError):
            unpack_array(bad, bytes_max=10, count_max=2)
    with pytest.raises(ProtocolError):
        unpack_array(msgpack.packb([1, 2, 3]), bytes_max=10, count_max=2)
    with pytest.raises(ProtocolError, match="11 bytes, at most 10"):
        unpack_array(bytes(11), bytes_max=10, count_max=2)


def test_pack_refuses_what_is_not_of_the_protocol() -> None:
    assert pack([1, Colour.RED, Point(1, 2)]) == msgpack.packb([1, 1, [1, 2]])
    for alien in (object(), 1 << 70, "\ud800"):
        with pytest.raises(InternalError, match="cannot be encoded"):
            pack([alien])
