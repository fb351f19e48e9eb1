"""Data of NBD options and of their replies: bytes <-> values, no state.  PURE.

Sources are the entries of "Option types" and "Option reply types" in the protocol document.  A parser here
raises `OptionError` for what the document calls syntactically invalid; the machine in `negotiation` turns
that into NBD_REP_ERR_INVALID.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from . import constants as c

__all__ = [
    "ExportRequest",
    "MetaRequest",
    "OptionError",
    "info_block_size",
    "info_export",
    "info_text",
    "matching_contexts",
    "option_reply",
    "parse_export_request",
    "parse_meta_request",
    "parse_name",
    "server_entry",
    "transmission_flags",
]

_REPLY = struct.Struct(">QIII")
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_INFO_EXPORT = struct.Struct(">HQH")
_INFO_BLOCK_SIZE = struct.Struct(">HIII")


class OptionError(ValueError):
    """The data of an option is malformed; never leaves the pure machine."""


class ExportRequest(NamedTuple):
    """Data of NBD_OPT_INFO and NBD_OPT_GO."""

    name: str
    wanted: frozenset[int]


class MetaRequest(NamedTuple):
    """Data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT."""

    name: str
    queries: tuple[str, ...]


def parse_name(data: bytes, what: str = "export name") -> str:
    """A string of the protocol ("Conventions"): UTF-8 without NUL, at most 4096 bytes."""
    if len(data) > c.STRING_BYTES_MAX:
        raise OptionError(f"the {what} has {len(data)} bytes, more than {c.STRING_BYTES_MAX}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise OptionError(f"the {what} is not UTF-8") from error
    if "\0" in text:
        raise OptionError(f"the {what} contains NUL")
    return text


def _take(data: bytes, position: int, length: int, what: str) -> bytes:
    stop = position + length
    if stop > len(data):
        raise OptionError(f"the option ends inside the {what}")
    return data[position:stop]


def _take_u32(data: bytes, position: int, what: str) -> int:
    value: int = _U32.unpack(_take(data, position, 4, what))[0]
    return value


def parse_export_request(data: bytes) -> ExportRequest:
    """NBD_OPT_INFO and NBD_OPT_GO: name, then 16-bit information requests; nothing may follow them."""
    name_bytes = _take_u32(data, 0, "length of the export name")
    name = parse_name(_take(data, 4, name_bytes, "export name"))
    position = 4 + name_bytes
    count: int = _U16.unpack(_take(data, position, 2, "number of information requests"))[0]
    wanted = _take(data, position + 2, 2 * count, "information requests")
    if len(data) != position + 2 + 2 * count:
        raise OptionError("bytes follow the information requests")
    return ExportRequest(name, frozenset(struct.unpack(f">{count}H", wanted)))


def parse_meta_request(data: bytes) -> MetaRequest:
    """NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT; every query needs a namespace and a colon."""
    name_bytes = _take_u32(data, 0, "length of the export name")
    name = parse_name(_take(data, 4, name_bytes, "export name"))
    position = 4 + name_bytes
    count = _take_u32(data, position, "number of queries")
    position += 4
    if count > (len(data) - position) // 4:
        raise OptionError(f"{count} queries do not fit into the option")
    queries = []
    for _ in range(count):
        length = _take_u32(data, position, "length of a query")
        query = parse_name(_take(data, position + 4, length, "query"), "query")
        if ":" not in query:
            raise OptionError("a query has no namespace")
        queries.append(query)
        position += 4 + length
    if position != len(data):
        raise OptionError("bytes follow the queries")
    return MetaRequest(name, tuple(queries))


def option_reply(option: int, kind: int, data: bytes = b"") -> bytes:
    """One reply packet of "Fixed newstyle negotiation"; the data of an error is a text for people."""
    return _REPLY.pack(c.OPTION_REPLY_MAGIC, option, kind, len(data)) + data


def server_entry(name: str, description: str) -> bytes:
    """Data of NBD_REP_SERVER."""
    raw = name.encode()
    return _U32.pack(len(raw)) + raw + description.encode()


def info_export(size_bytes: int, flags: int) -> bytes:
    """NBD_INFO_EXPORT."""
    return _INFO_EXPORT.pack(c.INFO_EXPORT, size_bytes, flags)


def info_text(kind: int, text: str) -> bytes:
    """NBD_INFO_NAME and NBD_INFO_DESCRIPTION."""
    return _U16.pack(kind) + text.encode()


def info_block_size() -> bytes:
    """NBD_INFO_BLOCK_SIZE with the constraints of this server."""
    return _INFO_BLOCK_SIZE.pack(
        c.INFO_BLOCK_SIZE, c.MINIMUM_BLOCK_BYTES, c.PREFERRED_BLOCK_BYTES, c.PAYLOAD_BYTES_MAX
    )


def transmission_flags(*, read_only: bool, structured: bool) -> int:
    """ "Transmission flags": what every export of this server can do.

    DF needs structured replies.  A read-only export announces nothing that writes.  CAN_MULTI_CONN is the
    promise stated in `export`.
    """
    flags = c.FLAG_HAS_FLAGS | c.FLAG_SEND_FLUSH | c.FLAG_SEND_FUA | c.FLAG_CAN_MULTI_CONN | c.FLAG_SEND_CACHE
    if structured:
        flags |= c.FLAG_SEND_DF
    if read_only:
        return flags | c.FLAG_READ_ONLY
    return flags | c.FLAG_SEND_TRIM | c.FLAG_SEND_WRITE_ZEROES | c.FLAG_SEND_FAST_ZERO


def matching_contexts(available: Sequence[str], queries: Sequence[str], *, wildcards: bool) -> list[str]:
    """The contexts that one of the queries names, in the export's order.

    ``namespace:`` alone matches the whole namespace when listing and nothing when selecting ("The `base:`
    metadata namespace"), and so does whatever ends with a colon; unknown names and namespaces are ignored.
    """
    exact = set(queries)
    spaces = tuple(query for query in exact if query.endswith(":")) if wildcards else ()
    return [name for name in available if name in exact or name.startswith(spaces)]
