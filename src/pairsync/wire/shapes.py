"""Strict shapes of decoded msgpack values: type, range and arity are checked, nothing is converted silently.

A *shape* is a function from an untrusted value to a checked one; it raises `ProtocolError` with a clear
text.  Shapes compose (`sequence`, `structure`), so that the tables of ``codec`` and ``hello`` read like the
protocol.  Every array, text and byte string has a maximum, given where the shape is made.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import msgpack

from pairsync.core.messages import Buffer
from pairsync.errors import InternalError, ProtocolError

__all__ = [
    "Shape",
    "binary",
    "boolean",
    "bounded_binary",
    "choice",
    "optional",
    "pack",
    "sequence",
    "structure",
    "text",
    "unpack_array",
    "unsigned",
]

T = TypeVar("T")
E = TypeVar("E", bound=enum.IntEnum)
Shape: TypeAlias = Callable[[object], T]


def unsigned(maximum: int, *, minimum: int = 0) -> Shape[int]:
    """An integer in ``minimum..maximum``; a boolean or a float is not an integer."""

    def read(value: object) -> int:
        if type(value) is not int:
            raise ProtocolError(f"expected an integer, got {_kind(value)}")
        if not minimum <= value <= maximum:
            raise ProtocolError(f"integer {value} is outside {minimum}..{maximum}")
        return value

    return read


def boolean(value: object) -> bool:
    """True or false; 0 and 1 are not."""
    if type(value) is not bool:
        raise ProtocolError(f"expected a boolean, got {_kind(value)}")
    return value


def text(bytes_max: int) -> Shape[str]:
    """A text of at most ``bytes_max`` bytes of UTF-8."""

    def read(value: object) -> str:
        if type(value) is not str:
            raise ProtocolError(f"expected a text, got {_kind(value)}")
        length_bytes = len(value.encode("utf-8", "surrogatepass"))
        if length_bytes > bytes_max:
            raise ProtocolError(f"text of {length_bytes} bytes, at most {bytes_max} are allowed")
        return value

    return read


def binary(length_bytes: int) -> Shape[bytes]:
    """A byte string of exactly ``length_bytes`` bytes."""

    def read(value: object) -> bytes:
        if type(value) is not bytes:
            raise ProtocolError(f"expected a byte string, got {_kind(value)}")
        if len(value) != length_bytes:
            raise ProtocolError(f"byte string of {len(value)} bytes, expected {length_bytes}")
        return value

    return read


def bounded_binary(bytes_max: int) -> Shape[bytes]:
    """A byte string of at most ``bytes_max`` bytes."""

    def read(value: object) -> bytes:
        if type(value) is not bytes:
            raise ProtocolError(f"expected a byte string, got {_kind(value)}")
        if len(value) > bytes_max:
            raise ProtocolError(f"byte string of {len(value)} bytes, at most {bytes_max} are allowed")
        return value

    return read


def choice(members: type[E]) -> Shape[E]:
    """A member of an enumeration, by its number."""
    by_number = {member.value: member for member in members}

    def read(value: object) -> E:
        if type(value) is not int or value not in by_number:
            raise ProtocolError(f"{value!r:.40} is no {members.__name__}")
        return by_number[value]

    return read


def sequence(item: Shape[T], count_max: int) -> Shape[tuple[T, ...]]:
    """An array of at most ``count_max`` items of one shape."""

    def read(value: object) -> tuple[T, ...]:
        if type(value) is not list:
            raise ProtocolError(f"expected an array, got {_kind(value)}")
        if len(value) > count_max:
            raise ProtocolError(f"array of {len(value)} items, at most {count_max} are allowed")
        return tuple([item(entry) for entry in value])

    return read


def optional(item: Shape[T]) -> Shape[T | None]:
    """Nil, or a value of that shape."""

    def read(value: object) -> T | None:
        return None if value is None else item(value)

    return read


def structure(make: Callable[..., T], *fields: tuple[str, Shape[Any]]) -> Shape[T]:
    """An array of exactly these fields, in order, given to ``make``."""
    owner = getattr(make, "__name__", "structure")

    def read(value: object) -> T:
        if type(value) is not list:
            raise ProtocolError(f"{owner}: expected an array, got {_kind(value)}")
        if len(value) != len(fields):
            raise ProtocolError(f"{owner}: {len(value)} fields, expected {len(fields)}")
        checked: list[Any] = []
        for (name, shape), entry in zip(fields, value, strict=True):
            try:
                checked.append(shape(entry))
            except ProtocolError as error:
                raise ProtocolError(f"{owner}.{name}: {error}") from None
        return make(*checked)

    return read


def unpack_array(encoded: Buffer, *, bytes_max: int, count_max: int) -> list[Any]:
    """The one msgpack array that ``encoded`` holds; maps and extensions do not occur in this protocol.

    Raises `ProtocolError` for anything else.  No declared length can make the decoder allocate more than
    the input justifies: every count and length is bounded by the size of the input as well.
    """
    if len(encoded) > bytes_max:
        raise ProtocolError(f"message header of {len(encoded)} bytes, at most {bytes_max} are allowed")
    try:
        value = msgpack.unpackb(
            encoded, max_array_len=count_max, max_map_len=0, max_ext_len=0, strict_map_key=True
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolError(f"not msgpack: {str(error) or type(error).__name__}") from error
    if type(value) is not list or not value:
        raise ProtocolError(f"expected a message, got {_kind(value)}")
    return value


def pack(fields: list[Any]) -> bytes:
    """msgpack of our own fields; frozen dataclasses within become arrays of their fields."""
    try:
        encoded: bytes = msgpack.packb(fields, default=_fields_of)
    except (ValueError, TypeError, OverflowError) as error:
        raise InternalError(f"a message of ours cannot be encoded: {error}") from error
    return encoded


def _fields_of(value: object) -> list[Any]:
    if not dataclasses.is_dataclass(value):
        raise TypeError(f"{type(value).__name__} is not part of the protocol")
    return [getattr(value, field.name) for field in dataclasses.fields(value)]


def _kind(value: object) -> str:
    if isinstance(value, list):
        return f"an array of {len(value)}"
    return {"NoneType": "nothing", "str": "a text", "bytes": "a byte string"}.get(
        type(value).__name__, type(value).__name__
    )
