"""Numbers of the NBD protocol, under the names of its document without the ``NBD_`` prefix.

Source: NetworkBlockDevice/nbd, ``doc/proto.md``, sections "Values" (options, replies, flags, request and
error numbers), "Newstyle negotiation", "Request message", "Simple reply message" and "Structured reply chunk
message" (magic numbers).  Plain integers, because the data plane compares one of them for every request.
"""

from __future__ import annotations

from typing import Final

# -- magic numbers -------------------------------------------------------------------------------------------

INIT_MAGIC: Final = 0x4E42444D41474943  # "NBDMAGIC"
OPTION_MAGIC: Final = 0x49484156454F5054  # "IHAVEOPT"
OPTION_REPLY_MAGIC: Final = 0x3E889045565A9
REQUEST_MAGIC: Final = 0x25609513
SIMPLE_REPLY_MAGIC: Final = 0x67446698
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF

# -- "Handshake flags" (server) and "Client flags" -----------------------------------------------------------

FLAG_FIXED_NEWSTYLE: Final = 1 << 0
FLAG_NO_ZEROES: Final = 1 << 1
FLAG_C_FIXED_NEWSTYLE: Final = 1 << 0
FLAG_C_NO_ZEROES: Final = 1 << 1

# -- "Transmission flags" ------------------------------------------------------------------------------------

FLAG_HAS_FLAGS: Final = 1 << 0
FLAG_READ_ONLY: Final = 1 << 1
FLAG_SEND_FLUSH: Final = 1 << 2
FLAG_SEND_FUA: Final = 1 << 3
FLAG_ROTATIONAL: Final = 1 << 4
FLAG_SEND_TRIM: Final = 1 << 5
FLAG_SEND_WRITE_ZEROES: Final = 1 << 6
FLAG_SEND_DF: Final = 1 << 7
FLAG_CAN_MULTI_CONN: Final = 1 << 8
FLAG_SEND_RESIZE: Final = 1 << 9
FLAG_SEND_CACHE: Final = 1 << 10
FLAG_SEND_FAST_ZERO: Final = 1 << 11

# -- "Option types" ------------------------------------------------------------------------------------------

OPT_EXPORT_NAME: Final = 1
OPT_ABORT: Final = 2
OPT_LIST: Final = 3
OPT_PEEK_EXPORT: Final = 4
OPT_STARTTLS: Final = 5
OPT_INFO: Final = 6
OPT_GO: Final = 7
OPT_STRUCTURED_REPLY: Final = 8
OPT_LIST_META_CONTEXT: Final = 9
OPT_SET_META_CONTEXT: Final = 10
OPT_EXTENDED_HEADERS: Final = 11

# -- "Option reply types" ------------------------------------------------------------------------------------

REP_ACK: Final = 1
REP_SERVER: Final = 2
REP_INFO: Final = 3
REP_META_CONTEXT: Final = 4
REP_ERROR_BIT: Final = 1 << 31
REP_ERR_UNSUP: Final = REP_ERROR_BIT + 1
REP_ERR_POLICY: Final = REP_ERROR_BIT + 2
REP_ERR_INVALID: Final = REP_ERROR_BIT + 3
REP_ERR_PLATFORM: Final = REP_ERROR_BIT + 4
REP_ERR_TLS_REQD: Final = REP_ERROR_BIT + 5
REP_ERR_UNKNOWN: Final = REP_ERROR_BIT + 6
REP_ERR_SHUTDOWN: Final = REP_ERROR_BIT + 7
REP_ERR_BLOCK_SIZE_REQD: Final = REP_ERROR_BIT + 8
REP_ERR_TOO_BIG: Final = REP_ERROR_BIT + 9

INFO_EXPORT: Final = 0
INFO_NAME: Final = 1
INFO_DESCRIPTION: Final = 2
INFO_BLOCK_SIZE: Final = 3

# -- "Request types" and "Command flags" ---------------------------------------------------------------------

CMD_READ: Final = 0
CMD_WRITE: Final = 1
CMD_DISC: Final = 2
CMD_FLUSH: Final = 3
CMD_TRIM: Final = 4
CMD_CACHE: Final = 5
CMD_WRITE_ZEROES: Final = 6
CMD_BLOCK_STATUS: Final = 7

CMD_FLAG_FUA: Final = 1 << 0
CMD_FLAG_NO_HOLE: Final = 1 << 1
CMD_FLAG_DF: Final = 1 << 2
CMD_FLAG_REQ_ONE: Final = 1 << 3
CMD_FLAG_FAST_ZERO: Final = 1 << 4

# -- "Structured reply flags" and "Structured reply types" ---------------------------------------------------

REPLY_FLAG_DONE: Final = 1 << 0
REPLY_TYPE_NONE: Final = 0
REPLY_TYPE_OFFSET_DATA: Final = 1
REPLY_TYPE_OFFSET_HOLE: Final = 2
REPLY_TYPE_BLOCK_STATUS: Final = 5
REPLY_TYPE_ERROR: Final = (1 << 15) + 1
REPLY_TYPE_ERROR_OFFSET: Final = (1 << 15) + 2

# -- "The `base:` metadata namespace" ------------------------------------------------------------------------

CONTEXT_ALLOCATION: Final = "base:allocation"
STATE_HOLE: Final = 1 << 0
STATE_ZERO: Final = 1 << 1

# -- "Error values": the only ones that may travel -----------------------------------------------------------

EPERM: Final = 1
EIO: Final = 5
ENOMEM: Final = 12
EINVAL: Final = 22
ENOSPC: Final = 28
EOVERFLOW: Final = 75
ENOTSUP: Final = 95
ESHUTDOWN: Final = 108

# -- sizes of the document -----------------------------------------------------------------------------------

REQUEST_BYTES: Final = 28
"""Header of every request ("Request message")."""

STRING_BYTES_MAX: Final = 4096
"""Longest string of the protocol, export names and error messages included ("Conventions")."""

MINIMUM_BLOCK_BYTES: Final = 1
PREFERRED_BLOCK_BYTES: Final = 4096
PAYLOAD_BYTES_MAX: Final = 32 * 1024 * 1024
"""Largest READ and WRITE: the default of "Size constraints", which a server should not go below."""

LENGTH_MAX: Final = (1 << 32) - 1
"""Largest value of a length field."""

EXPORT_NAME_PADDING: Final = bytes(124)
"""Follows the answer to OPT_EXPORT_NAME unless the client asked for none ("Newstyle negotiation")."""

OPTION_NAMES: Final[dict[int, str]] = {
    OPT_EXPORT_NAME: "EXPORT_NAME",
    OPT_ABORT: "ABORT",
    OPT_LIST: "LIST",
    OPT_PEEK_EXPORT: "PEEK_EXPORT",
    OPT_STARTTLS: "STARTTLS",
    OPT_INFO: "INFO",
    OPT_GO: "GO",
    OPT_STRUCTURED_REPLY: "STRUCTURED_REPLY",
    OPT_LIST_META_CONTEXT: "LIST_META_CONTEXT",
    OPT_SET_META_CONTEXT: "SET_META_CONTEXT",
    OPT_EXTENDED_HEADERS: "EXTENDED_HEADERS",
}
"""For reasons and logs."""
