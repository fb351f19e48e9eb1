"""Every limit of the wire, with its unit and its reason.  Both hosts check both directions.

The limits of one layer imply those of the next: ops bound a header, header and payload bound a frame, and
the largest frame bounds a record, so a record's length is judged before a byte is allocated for it.
"""

from __future__ import annotations

from pairsync.core.superblock import LINEAGE_GENERATIONS_MAX
from pairsync.core.units import GIB, KIB, MIB

__all__ = [
    "CONTROL_MESSAGE_BYTES_MAX",
    "FRAMES_PER_RECORD_MAX",
    "FRAME_HEADER_BYTES_MAX",
    "FRAME_PAYLOAD_BYTES_MAX",
    "FRAME_PREFIX_BYTES",
    "KEY_BYTES_MAX",
    "KEY_RECORDS_MAX",
    "LINEAGE_GENERATIONS_MAX",
    "MARKED_EXTENTS_MAX",
    "NAME_BYTES_MAX",
    "NUMBER_MAX",
    "OP_BYTES_MAX",
    "PATHS_MAX",
    "PATH_NAME_BYTES_MAX",
    "POINT_NAME_BYTES_MAX",
    "POINT_TAGS_MAX",
    "REASON_BYTES_MAX",
    "RECORD_BYTES_MAX",
    "RECORD_COALESCE_BYTES",
    "RECORD_HEADER_BYTES",
    "RECORD_PLAINTEXT_BYTES_MAX",
    "SOFTWARE_BYTES_MAX",
    "TAG_BYTES",
    "VOLUMES_MAX",
    "VOTE_BYTES_MAX",
    "WRITE_OPS_MAX",
]

NUMBER_MAX = (1 << 63) - 1
"""Largest number, offset or size: fits a signed 64-bit integer everywhere (off_t, SQL, other languages)."""

FRAME_PAYLOAD_BYTES_MAX = 1 * MIB
"""Data of one `Write`.  A larger request (NBD allows 32 MiB) is sent as several: a live write never waits
behind more than one of these once a lane takes it, and 1 MiB is where AES-GCM and loopback TCP are at
their best."""

WRITE_OPS_MAX = 1024
"""Ranges of one `Write`: 4 KiB each fill the payload four times over; 13 bytes of header each."""

OP_BYTES_MAX = 2 * GIB
"""Length of one range without data (zero, trim); longer ones are split.  Fits 32 bits, block aligned."""

VOLUMES_MAX = 64
"""Volumes of a guest: more than any machine of an ordinary pair has disks."""

NAME_BYTES_MAX = 255
"""Name of a guest or a volume in UTF-8: what a file name may have."""

REASON_BYTES_MAX = 1024
"""A sentence for people (a rule, a failure, a farewell) in UTF-8."""

POINT_NAME_BYTES_MAX = 64
"""Name of a point: it becomes part of a file's name, with the volume's."""

POINT_TAGS_MAX = 64
"""Points of a volume: a host keeps 16 (``core.points``) and one that is being made; with room for more."""

MARKED_EXTENTS_MAX = 8192
"""Runs of blocks of one `Marked`, 19 bytes each at most; a longer map goes in pieces.  It is also the
largest array of the protocol."""

FRAME_PREFIX_BYTES = 8
"""Two big-endian 32-bit lengths: header, payload."""

FRAME_HEADER_BYTES_MAX = 256 * KIB
"""msgpack header of one frame.  The largest is `Introduce`: 64 volumes of 64 generations of at most 28
bytes, with names of 255 bytes, are 133 KiB; a `Write` of 1024 ranges is 13 KiB."""

FRAMES_PER_RECORD_MAX = 1024
"""Frames of one record: bounds the loop between two looks at the event queue."""

RECORD_HEADER_BYTES = 20
"""First frame number (64 bits), cumulative acknowledgement (64 bits), frame count (32 bits)."""

RECORD_COALESCE_BYTES = 512 * KIB
"""A sender closes a record once it holds this much.  Measured best between 256 KiB and 1 MiB: system calls
and wake-ups are amortised, and the record still fits the second-level cache while it is sealed."""

RECORD_PLAINTEXT_BYTES_MAX = (
    RECORD_HEADER_BYTES
    + RECORD_COALESCE_BYTES
    + FRAME_PREFIX_BYTES
    + FRAME_HEADER_BYTES_MAX
    + FRAME_PAYLOAD_BYTES_MAX
)
"""A record may be just short of the coalescing bound when the largest frame is added."""

TAG_BYTES = 16
"""AES-GCM authentication tag."""

RECORD_BYTES_MAX = RECORD_PLAINTEXT_BYTES_MAX + TAG_BYTES
"""Ciphertext and tag of one record: the largest length that a lane accepts, checked before allocation."""

KEY_BYTES_MAX = 64 * GIB
"""Plaintext under one lane key before both sides step to the next one (the limit of a single AES-GCM
message is 64 GiB; the bound for the whole key at 2^-57 advantage lies about there for 16 KiB records)."""

KEY_RECORDS_MAX = 1 << 32
"""Records under one lane key: NIST SP 800-38D section 8.3 bounds invocations with one key."""

CONTROL_MESSAGE_BYTES_MAX = 4 * KIB
"""One message of a control connection: the longest are a vote, and two short texts with 100 bytes of keys."""

VOTE_BYTES_MAX = 2 * KIB
"""One message between the halves of a grant register: two grants of three voters each are 600 bytes."""

PATHS_MAX = 4
"""Network paths of a link."""

PATH_NAME_BYTES_MAX = 64
"""Name of a path in UTF-8."""

SOFTWARE_BYTES_MAX = 128
"""Software name and version in a hello, for logs."""
