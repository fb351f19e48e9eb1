"""A set of small messages on a byte stream: which there are, how they are encoded, how a stream is cut.

Each message is a 16-bit big-endian length and a msgpack array ``[type, field, ...]``.  Decoding is strict
(``wire.shapes``): what the table does not allow is `ProtocolError` and nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from pairsync.core.messages import Buffer
from pairsync.errors import InternalError, ProtocolError

from .shapes import Shape, pack, unpack_array

__all__ = ["StreamDecoder", "Vocabulary"]

M = TypeVar("M")

_LENGTH = struct.Struct(">H")


class Vocabulary(Generic[M]):
    """Messages by their type numbers; ``table`` gives each its class and the shape of its fields.

    ``bytes_max``: of one message without its length.  ``fields_max``: in any array of a message.  ``what``:
    for errors, such as ``"control message"``.
    """

    def __init__(
        self,
        what: str,
        table: Mapping[int, tuple[type[M], Shape[Any]]],
        *,
        bytes_max: int,
        fields_max: int,
    ) -> None:
        self.what = what
        self.bytes_max = bytes_max
        self._table = dict(table)
        self._number_of = {made: number for number, (made, _) in table.items()}
        self._fields_max = fields_max

    def encode(self, message: M) -> bytes:
        """The bytes of one message, length included; `InternalError` if the table does not allow it."""
        number = self._number_of.get(type(message))
        if number is None:
            raise InternalError(f"{type(message).__name__} is not a {self.what}")
        names: tuple[str, ...] = type(message).__slots__  # type: ignore[attr-defined]  # slotted dataclasses
        encoded = pack([number, *(getattr(message, name) for name in names)])
        try:
            self.decode(encoded)
        except ProtocolError as error:
            raise InternalError(f"{type(message).__name__} cannot be sent: {error}") from error
        return _LENGTH.pack(len(encoded)) + encoded

    def decode(self, encoded: Buffer) -> M:
        """One message, without its length; raises `ProtocolError`."""
        fields = unpack_array(encoded, bytes_max=self.bytes_max, count_max=self._fields_max)
        kind = fields[0]
        entry = self._table.get(kind) if type(kind) is int else None
        if entry is None:
            raise ProtocolError(f"unknown {self.what} type {kind!r:.40}")
        message: M = entry[1](fields[1:])
        return message


class StreamDecoder(Generic[M]):
    """Cuts a byte stream into messages.

    Invariant: ``_pending`` is the beginning of one message at most after each `feed`, so it never holds
    more than the longest message beyond what one call brings.
    """

    __slots__ = ("_pending", "_vocabulary")

    def __init__(self, vocabulary: Vocabulary[M]) -> None:
        self._vocabulary = vocabulary
        self._pending = bytearray()

    def feed(self, data: Buffer) -> list[M]:
        """The messages that are complete now; raises `ProtocolError`, after which the stream is of no use."""
        pending, vocabulary = self._pending, self._vocabulary
        pending += data
        messages: list[M] = []
        position = 0
        while len(pending) - position >= _LENGTH.size:
            (length_bytes,) = _LENGTH.unpack_from(pending, position)
            if not 0 < length_bytes <= vocabulary.bytes_max:
                raise ProtocolError(
                    f"{vocabulary.what} of {length_bytes} bytes announced; "
                    f"1 to {vocabulary.bytes_max} are allowed"
                )
            end = position + _LENGTH.size + length_bytes
            if end > len(pending):
                break
            messages.append(vocabulary.decode(bytes(pending[position + _LENGTH.size : end])))
            position = end
        del pending[:position]
        return messages
