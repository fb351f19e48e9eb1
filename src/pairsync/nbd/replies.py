"""Replies of the transmission phase: values in, bytes out.  PURE.

With structured replies negotiated, READ and BLOCK_STATUS and every error are answered with structured
chunks, the other successes with a simple reply, which is shorter and allowed ("Structured reply chunk
message"); without, everything is a simple reply.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence
from typing import Final

from pairsync.errors import BackendError, ClosedError, InternalError, PairsyncError

from . import constants as c

__all__ = [
    "DIRECT_READ_BYTES_MAX",
    "GATHERED_BYTES",
    "SCRATCH_BYTES",
    "SHARED_READ_BYTES_MAX",
    "SIMPLE_READ",
    "SIMPLE_READ_HEAD",
    "STRUCTURED_READ",
    "STRUCTURED_READ_HEAD",
    "block_status_reply",
    "cut_extents",
    "done_replies",
    "error_of",
    "error_reply",
    "nbd_error",
    "read_reply",
]

SIMPLE_READ: Final = struct.Struct(">8s8s")
"""`SIMPLE_READ_HEAD`, cookie; then the data."""

SIMPLE_READ_HEAD: Final = struct.pack(">II", c.SIMPLE_REPLY_MAGIC, 0)
"""Magic and no error."""

STRUCTURED_READ: Final = struct.Struct(">8s8sIQ")
"""`STRUCTURED_READ_HEAD`, cookie, length of the data and 8, offset; then the data."""

STRUCTURED_READ_HEAD: Final = struct.pack(
    ">IHH", c.STRUCTURED_REPLY_MAGIC, c.REPLY_FLAG_DONE, c.REPLY_TYPE_OFFSET_DATA
)
"""Magic, flags and type of the only chunk of a read."""

GATHERED_BYTES: Final = 64 * 1024
"""Replies are gathered up to this size and then sent, before the rest of the batch is read: sixteen of 4 KiB
cost one system call, and the client works on them meanwhile."""

SHARED_READ_BYTES_MAX: Final = 128 * 1024
"""Larger reads get memory of their own: it is handed on as it is where the scratch buffer would be copied."""

SCRATCH_BYTES: Final = GATHERED_BYTES + STRUCTURED_READ.size + SHARED_READ_BYTES_MAX
"""One shared read may begin just below the size at which replies are sent."""

DIRECT_READ_BYTES_MAX: Final = 1024 * 1024
"""Larger reads get a child task, which gives others a turn after each slice of this size."""

_SIMPLE: Final = struct.Struct(">II8s")
_CHUNK: Final = struct.Struct(">IHH8sI")
_ERROR: Final = struct.Struct(">IH")
_U32: Final = struct.Struct(">I")
_EXTENT: Final = struct.Struct(">II")

MESSAGE_CHARS_MAX: Final = 512
"""Of a text for people; far below the 4096 bytes of "Conventions"."""

_NBD_ERRORS: Final[dict[int, int]] = {  # "Error values": what may travel, and what is mapped to it
    errno.EPERM: c.EPERM,
    errno.EACCES: c.EPERM,
    errno.EROFS: c.EPERM,
    errno.ENOMEM: c.ENOMEM,
    errno.EINVAL: c.EINVAL,
    errno.ENOSPC: c.ENOSPC,
    errno.EDQUOT: c.ENOSPC,
    errno.EFBIG: c.ENOSPC,
    errno.ESHUTDOWN: c.ESHUTDOWN,
}


def nbd_error(number: int) -> int:
    """The protocol's error for an errno; ``NBD_EIO`` for all that have none.

    EOVERFLOW and ENOTSUP are not passed on: the document keeps them for cases that `requests` decides.
    """
    return _NBD_ERRORS.get(number, c.EIO)


def error_of(error: PairsyncError) -> int:
    """The protocol's error for what an export raised; see `export`."""
    if isinstance(error, InternalError):
        raise error
    if isinstance(error, BackendError):
        return nbd_error(error.errno)
    return c.ESHUTDOWN if isinstance(error, ClosedError) else c.EIO


def done_replies(cookies: Sequence[bytes]) -> bytes:
    """Simple replies of success without data, one a cookie."""
    return SIMPLE_READ_HEAD + SIMPLE_READ_HEAD.join(cookies)


def read_reply(cookie: bytes, offset: int, length: int, *, structured: bool) -> tuple[bytearray, memoryview]:
    """Memory for the whole reply to a read, its header in place, and the view where the data belongs."""
    if structured:
        head = STRUCTURED_READ.pack(STRUCTURED_READ_HEAD, cookie, length + 8, offset)
    else:
        head = SIMPLE_READ.pack(SIMPLE_READ_HEAD, cookie)
    reply = bytearray(len(head) + length)
    reply[: len(head)] = head
    return reply, memoryview(reply)[len(head) :]


def error_reply(cookie: bytes, error: int, message: str, *, structured: bool) -> bytes:
    """A failed request."""
    if not structured:
        return _SIMPLE.pack(c.SIMPLE_REPLY_MAGIC, error, cookie)
    text = message[:MESSAGE_CHARS_MAX].encode()
    length = _ERROR.size + len(text)
    head = _CHUNK.pack(c.STRUCTURED_REPLY_MAGIC, c.REPLY_FLAG_DONE, c.REPLY_TYPE_ERROR, cookie, length)
    return head + _ERROR.pack(error, len(text)) + text


def cut_extents(extents: Sequence[tuple[int, int]], length: int, extents_max: int) -> list[tuple[int, int]]:
    """Make an export's answer fit the request: neighbours joined, at most ``length`` bytes, counted.

    "NBD_CMD_BLOCK_STATUS": at least one descriptor, none of no length; a single one may not exceed the
    request with REQ_ONE, and here never does, which also keeps every length within 32 bits
    (CVE-2025-47711 was an extent that did not fit).  Raises `InternalError` for an answer that is none.
    """
    cut: list[tuple[int, int]] = []
    for extent_bytes, flags in extents:
        if extent_bytes <= 0 or not 0 <= flags <= c.LENGTH_MAX:
            raise InternalError(f"the export reports an extent of {extent_bytes} bytes with flags {flags:#x}")
        used = min(extent_bytes, length)
        if cut and cut[-1][1] == flags:
            cut[-1] = (cut[-1][0] + used, flags)
        elif len(cut) == extents_max:
            break
        else:
            cut.append((used, flags))
        length -= used
        if not length:
            break
    if not cut:
        raise InternalError("the export reports no extent at all")
    return cut


def block_status_reply(cookie: bytes, contexts: Sequence[tuple[int, Sequence[tuple[int, int]]]]) -> bytes:
    """One BLOCK_STATUS chunk a context, ``(id, extents)``; the last one ends the reply."""
    parts: list[bytes] = []
    last = len(contexts) - 1
    for index, (context_id, extents) in enumerate(contexts):
        flags = c.REPLY_FLAG_DONE if index == last else 0
        length = _U32.size + _EXTENT.size * len(extents)
        parts.append(_CHUNK.pack(c.STRUCTURED_REPLY_MAGIC, flags, c.REPLY_TYPE_BLOCK_STATUS, cookie, length))
        parts.append(_U32.pack(context_id))
        parts.extend(_EXTENT.pack(*extent) for extent in extents)
    return b"".join(parts)
