"""Codec of protocol versions 1 to 3: a message of ``core.messages`` to and from one frame.

A frame is a header, the msgpack array ``[type, field, ...]``, and a raw payload: the data of all
`OpKind.DATA` ranges of a `Write` or a `Relay`, joined in order; every other message has none.  Decoding is
strict: an unknown type, another number of fields, a value out of its type or range is `ProtocolError` and
nothing else, whatever the bytes are.  Payload is never copied here: `encode` returns the caller's buffers,
and the data of a decoded `WriteOp` is a slice of the payload that was given.

`Write`, `Relay` (in the same form) and `Applied` are the hot path and coded by hand.  Their headers are
msgpack like the others, but in one fixed form (every integer in its widest encoding), so that one call of
``struct`` writes or reads them; no other form is accepted.  The ranges of a batch are one byte string of
13-byte entries (offset 64 bits, length 32 bits, kind and FUA 8 bits).  The rest is a table, in ``catalogue``.
Version 2 has one message more, which ``io.session`` neither sends nor takes in version 1; before version 3
three messages lack what came later at their ends.  ``wire.hello`` chooses.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NoReturn

from pairsync.core.messages import (
    Adopt,
    Applied,
    Barrier,
    Buffer,
    Introduce,
    Message,
    OpKind,
    Relay,
    Serving,
    Write,
    WriteOp,
)
from pairsync.errors import InternalError, ProtocolError

from .catalogue import BEFORE_MILESTONES, TABLE, VOLUME_STATE
from .digests import payload_digest, payload_digest_of
from .hello import PROTOCOL_MAX, PROTOCOL_MILESTONES
from .limits import (
    FRAME_HEADER_BYTES_MAX,
    FRAME_PAYLOAD_BYTES_MAX,
    MARKED_EXTENTS_MAX,
    NUMBER_MAX,
    OP_BYTES_MAX,
    VOLUMES_MAX,
    WRITE_OPS_MAX,
)
from .shapes import pack, unpack_array

__all__ = ["decode", "encode"]

_WRITE = 4
_APPLIED = 5
_RELAY = 17

_NUMBER_OF: dict[type[Message], int] = {made: number for number, (made, _) in TABLE.items()}

_OP = struct.Struct(">QIB")
_OP_BYTES = _OP.size
_FUA = 0x80
_KIND_NUMBERS = {kind.value for kind in OpKind}
# the last byte of an entry -> kind and FUA, or None where the protocol allows no such value
_KINDS: tuple[tuple[OpKind, bool] | None, ...] = tuple(
    (OpKind(byte & ~_FUA), bool(byte & _FUA)) if byte & ~_FUA in _KIND_NUMBERS else None
    for byte in range(256)
)

# The fixed forms.  Bytes that begin a msgpack value: 0x97 and 0x93 an array of 7 and of 3, 0xcf 64-bit and
# 0xcc 8-bit unsigned, 0xc5 a byte string with a 16-bit length, 0xc2 false, 0xc3 true.
_ARRAY_7, _ARRAY_3, _U64, _U8, _BYTES, _FALSE, _TRUE = 0x97, 0x93, 0xCF, 0xCC, 0xC5, 0xC2, 0xC3
_WRITE_HEAD = struct.Struct(">BB BQ BB BQ B BQ BH")  # type, term, volume, number, resync, digest, ranges
_WRITE_FORM = (_U64, _U8, _U64, _U64, _BYTES)
_APPLIED_HEAD = struct.Struct(">BB BB BQ")  # type, volume, number
_new: Callable[[type[WriteOp], tuple[Any, ...]], WriteOp] = (
    tuple.__new__
)  # skips the keyword parsing of WriteOp(...): half the cost of decoding a batch
_DATA = OpKind.DATA
_BATCHES = {_WRITE: Write.__name__, _RELAY: Relay.__name__}  # by type number


def encode(message: Message, protocol: int = PROTOCOL_MAX) -> list[Buffer]:
    """The header, then the payload in parts: the caller's own buffers, which must not change until sent.

    ``protocol``: of the session.

    A batch whose digest is 0 gets it computed; another digest is sent as it is, so that one taken when
    the data entered this host protects it all the way.  Raises `InternalError` for a message that the
    protocol does not allow: its sender is at fault, and the peer would refuse it.
    """
    if type(message) is Write:
        return _encode_batch(_WRITE, message, resync=message.resync)
    if type(message) is Relay:
        return _encode_batch(_RELAY, message, resync=False)
    if type(message) is Applied:
        if not (0 <= message.volume < VOLUMES_MAX and 0 <= message.number <= NUMBER_MAX):
            raise InternalError(f"cannot be sent: {message}")
        return [_APPLIED_HEAD.pack(_ARRAY_3, _APPLIED, _U8, message.volume, _U64, message.number)]
    number = _NUMBER_OF.get(type(message))
    if number is None:
        raise InternalError(f"{type(message).__name__} is not a message")
    header = pack([number, *_fields_of(message, protocol)])
    try:
        decode(header, b"", protocol)
    except ProtocolError as error:
        raise InternalError(f"{type(message).__name__} cannot be sent: {error}") from error
    return [header]


def _fields_of(message: Message, protocol: int) -> list[Any]:
    slots: tuple[str, ...] = type(message).__slots__  # type: ignore[union-attr]  # the others have fixed forms
    fields: list[Any] = [getattr(message, name) for name in slots]
    if protocol < PROTOCOL_MILESTONES:
        if type(message) is Introduce:
            names = [name for name, _ in VOLUME_STATE]
            fields[-1] = [[getattr(each, name) for name in names] for each in message.volumes]
        elif type(message) in {Barrier, Adopt, Serving}:
            fields.pop()
    return fields


def decode(header: Buffer, payload: Buffer, protocol: int = PROTOCOL_MAX) -> Message:
    """The message of one frame of a session in that version.

    Raises `ProtocolError` for everything that this version does not allow.  The data of a batch are
    slices of ``payload``, which must stay as it is for as long as they are used.
    """
    if len(header) > 1 and header[0] == _ARRAY_7 and header[1] in _BATCHES:
        return _decode_batch(header, memoryview(payload))
    if len(payload):
        raise ProtocolError(f"{len(payload)} bytes of payload came with a message that has none")
    if len(header) == _APPLIED_HEAD.size and header[0] == _ARRAY_3 and header[1] == _APPLIED:
        _, _, u8, volume, u64, number = _APPLIED_HEAD.unpack(header)
        if (u8, u64) != (_U8, _U64) or volume >= VOLUMES_MAX or number > NUMBER_MAX:
            raise ProtocolError(f"Applied: volume {volume}, number {number}")
        return Applied(volume, number)
    fields = unpack_array(header, bytes_max=FRAME_HEADER_BYTES_MAX, count_max=MARKED_EXTENTS_MAX)
    kind = fields[0]
    if type(kind) is not int:
        raise ProtocolError("a message begins with its type, an integer")
    entry = TABLE.get(kind)
    if entry is None:
        fixed = kind in {_APPLIED, *_BATCHES}
        form = "in another form than its fixed one" if fixed else "unknown"
        raise ProtocolError(f"message type {kind} is {form}")
    made = entry[1]
    if protocol < PROTOCOL_MILESTONES:
        made = BEFORE_MILESTONES.get(kind, made)
    message: Message = made(fields[1:])
    return message


def _encode_batch(kind: int, message: Write | Relay, *, resync: bool) -> list[Buffer]:
    ops, name = message.ops, type(message).__name__
    if not 1 <= len(ops) <= WRITE_OPS_MAX:
        raise InternalError(f"a {name} of {len(ops)} ranges, 1 to {WRITE_OPS_MAX} are allowed")
    parts: list[Buffer] = [b""]
    entries: list[bytes] = []
    payload_bytes = 0
    for op in ops:
        what, offset, length, data, fua = op
        if data is None:
            if what is _DATA or not 0 < length <= OP_BYTES_MAX:
                _refuse(op)
        elif what is not _DATA or len(data) != length or not length:
            _refuse(op)
        else:
            parts.append(data)
            payload_bytes += length
        if not 0 <= offset <= NUMBER_MAX - length:
            _refuse(op)
        entries.append(_OP.pack(offset, length, what | _FUA if fua else what))
    if payload_bytes > FRAME_PAYLOAD_BYTES_MAX:
        raise InternalError(
            f"a {name} of {payload_bytes} bytes, at most {FRAME_PAYLOAD_BYTES_MAX} are allowed"
        )
    if not (0 <= message.volume < VOLUMES_MAX and 0 <= message.term <= NUMBER_MAX):
        raise InternalError(f"a {name} of volume {message.volume} in term {message.term} cannot be sent")
    if not 1 <= message.number <= NUMBER_MAX:
        raise InternalError(f"a {name} has number {message.number}; they count from 1")
    digest = message.digest
    if not digest and payload_bytes:
        digest = payload_digest(parts[1]) if len(parts) == 2 else payload_digest_of(parts)
    joined = b"".join(entries)
    head = _WRITE_HEAD.pack(
        *(_ARRAY_7, kind, _U64, message.term, _U8, message.volume, _U64, message.number),
        *(_TRUE if resync else _FALSE, _U64, digest, _BYTES, len(joined)),
    )
    parts[0] = head + joined
    return parts


def _refuse(op: WriteOp) -> NoReturn:
    held = "no data" if op.data is None else f"{len(op.data)} bytes of data"
    raise InternalError(f"cannot be sent: {op.kind!r} at {op.offset}, length {op.length}, with {held}")


def _decode_batch(header: Buffer, payload: memoryview) -> Write | Relay:
    name = _BATCHES[header[1]]
    if len(header) < _WRITE_HEAD.size:
        raise ProtocolError(f"{name}: a header of {len(header)} bytes")
    (_, type_number, u64_0, term, u8, volume, u64_1, number, flag, u64_2, digest, form, entries_bytes) = (
        _WRITE_HEAD.unpack_from(header)
    )
    if (u64_0, u8, u64_1, u64_2, form) != _WRITE_FORM or not _FALSE <= flag <= _TRUE:
        raise ProtocolError(f"{name}: its header is not in the fixed form")
    if term > NUMBER_MAX or volume >= VOLUMES_MAX or not 0 < number <= NUMBER_MAX:
        raise ProtocolError(f"{name}: term {term}, volume {volume}, number {number}")
    if not 0 < entries_bytes <= WRITE_OPS_MAX * _OP_BYTES or entries_bytes % _OP_BYTES:
        raise ProtocolError(f"{name}: {entries_bytes} bytes of ranges, {_OP_BYTES} each")
    if len(header) != _WRITE_HEAD.size + entries_bytes:
        raise ProtocolError(f"{name}: a header of {len(header)} bytes with {entries_bytes} bytes of ranges")
    _check_payload(name, payload, digest)
    ops = _decode_ranges(name, header[_WRITE_HEAD.size :], payload)
    if type_number == _WRITE:
        return Write(term, volume, number, flag == _TRUE, ops, digest)
    if flag == _TRUE:
        raise ProtocolError(f"{name}: it belongs to a resync")
    return Relay(term, volume, number, ops, digest)


def _check_payload(name: str, payload: memoryview, digest: int) -> None:
    if len(payload) > FRAME_PAYLOAD_BYTES_MAX:
        raise ProtocolError(f"{name}: {len(payload)} bytes of payload, at most {FRAME_PAYLOAD_BYTES_MAX}")
    if digest != payload_digest(payload):
        raise ProtocolError(f"{name}: the payload does not have the digest that came with it")


def _decode_ranges(name: str, entries: Buffer, payload: memoryview) -> list[WriteOp]:
    payload_bytes = len(payload)
    ops: list[WriteOp] = []
    append = ops.append
    position = 0
    for offset, length, code in _OP.iter_unpack(entries):
        known = _KINDS[code]
        if known is None or not length or offset > NUMBER_MAX - length:
            raise ProtocolError(f"{name}: range {len(ops)} is kind {code:#x} at {offset}, length {length}")
        kind, fua = known
        if kind is _DATA:
            end = position + length
            if end > payload_bytes:
                raise ProtocolError(
                    f"{name}: range {len(ops)} ends behind the payload of {payload_bytes} bytes"
                )
            append(_new(WriteOp, (kind, offset, length, payload[position:end], fua)))
            position = end
        elif length > OP_BYTES_MAX:
            raise ProtocolError(f"{name}: range {len(ops)} of {length} bytes, at most {OP_BYTES_MAX}")
        else:
            append(_new(WriteOp, (kind, offset, length, None, fua)))
    if position != payload_bytes:
        raise ProtocolError(f"{name}: {payload_bytes} bytes of payload, its ranges take {position}")
    return ops
