"""Replies by bytes, and the errors that may travel."""

from __future__ import annotations

import errno
import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairsync.errors import ArbitrationError, BackendError, ClosedError, InternalError, PairsyncError
from pairsync.nbd import constants as c
from pairsync.nbd import replies

ALLOWED = {c.EPERM, c.EIO, c.ENOMEM, c.EINVAL, c.ENOSPC, c.EOVERFLOW, c.ENOTSUP, c.ESHUTDOWN}
COOKIE = b"\1\2\3\4\5\6\7\10"


def test_done_replies() -> None:
    one = bytes.fromhex("67446698 00000000")
    assert replies.done_replies([COOKIE]) == one + COOKIE
    assert replies.done_replies([COOKIE, bytes(8)]) == one + COOKIE + one + bytes(8)


def test_error_replies() -> None:
    simple = replies.error_reply(COOKIE, c.EIO, "broken", structured=False)
    assert simple == bytes.fromhex("67446698 00000005") + COOKIE
    structured = replies.error_reply(COOKIE, c.EIO, "broken", structured=True)
    head = bytes.fromhex("668e33ef 0001 8001") + COOKIE + bytes.fromhex("0000000c 00000005 0006")
    assert structured == head + b"broken"


def test_the_text_of_an_error_is_short() -> None:
    reply = replies.error_reply(COOKIE, c.EIO, "\u2028" * 10_000, structured=True)
    (text_bytes,) = struct.unpack_from(">H", reply, 24)
    assert text_bytes == len(reply) - 26 <= c.STRING_BYTES_MAX


def test_read_headers() -> None:
    head = replies.STRUCTURED_READ.pack(replies.STRUCTURED_READ_HEAD, COOKIE, 9, 0x1234)
    assert head == bytes.fromhex("668e33ef 0001 0001") + COOKIE + bytes.fromhex("00000009 0000000000001234")
    assert replies.SIMPLE_READ.pack(replies.SIMPLE_READ_HEAD, COOKIE) == replies.done_replies([COOKIE])


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EROFS, c.EPERM),
        (errno.EACCES, c.EPERM),
        (errno.EDQUOT, c.ENOSPC),
        (errno.EFBIG, c.ENOSPC),
        (errno.ENOSPC, c.ENOSPC),
        (errno.ENOMEM, c.ENOMEM),
        (errno.ESHUTDOWN, c.ESHUTDOWN),
        (errno.EOPNOTSUPP, c.EIO),  # kept for FAST_ZERO
        (errno.EOVERFLOW, c.EIO),  # kept for oversized reads
        (errno.ETIMEDOUT, c.EIO),
    ],
)
def test_errors_are_mapped(number: int, expected: int) -> None:
    assert replies.nbd_error(number) == expected


def test_only_errors_of_the_document_travel() -> None:
    assert {replies.nbd_error(number) for number in range(1, 200)} <= ALLOWED


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (BackendError("full", errno.ENOSPC), c.ENOSPC),
        (BackendError("broken"), c.EIO),
        (ClosedError("going away"), c.ESHUTDOWN),
        (ArbitrationError("not the owner"), c.EIO),
    ],
)
def test_error_of(error: PairsyncError, expected: int) -> None:
    assert replies.error_of(error) == expected


def test_our_own_bug_is_not_told_to_a_client() -> None:
    with pytest.raises(InternalError, match="a bug"):
        replies.error_of(InternalError("a bug"))


def test_block_status_reply() -> None:
    reply = replies.block_status_reply(COOKIE, [(1, [(512, 0), (1024, 3)]), (2, [(4096, 1)])])
    first = bytes.fromhex("668e33ef 0000 0005") + COOKIE + bytes.fromhex("00000014 00000001")
    first += bytes.fromhex("00000200 00000000 00000400 00000003")
    second = (
        bytes.fromhex("668e33ef 0001 0005") + COOKIE + bytes.fromhex("0000000c 00000002 00001000 00000001")
    )
    assert reply == first + second


@pytest.mark.parametrize(
    ("extents", "length", "count", "expected"),
    [
        ([(10, 0)], 10, 9, [(10, 0)]),
        ([(10, 0), (5, 1)], 12, 9, [(10, 0), (2, 1)]),
        ([(10, 1), (5, 1), (1, 0)], 100, 9, [(15, 1), (1, 0)]),
        ([(10, 1), (5, 1), (1, 0)], 100, 1, [(15, 1)]),
        ([(1 << 40, 3)], c.LENGTH_MAX, 9, [(c.LENGTH_MAX, 3)]),  # CVE-2025-47711
        ([(1 << 31, 0), (1 << 31, 0), (7, 1)], c.LENGTH_MAX, 9, [(c.LENGTH_MAX, 0)]),
    ],
)
def test_cut_extents(
    extents: list[tuple[int, int]], length: int, count: int, expected: list[tuple[int, int]]
) -> None:
    assert replies.cut_extents(extents, length, count) == expected


@pytest.mark.parametrize("extents", [[], [(0, 1)], [(-5, 1)], [(5, -1)], [(5, 1 << 32)]])
def test_an_export_that_reports_nonsense_is_a_bug(extents: list[tuple[int, int]]) -> None:
    with pytest.raises(InternalError):
        replies.cut_extents(extents, 100, 9)


@given(
    extents=st.lists(st.tuples(st.integers(1, 1 << 34), st.integers(0, 3)), min_size=1, max_size=30),
    length=st.integers(1, c.LENGTH_MAX),
    count=st.integers(1, 8),
)
def test_cut_extents_keeps_the_rules(extents: list[tuple[int, int]], length: int, count: int) -> None:
    cut = replies.cut_extents(extents, length, count)
    assert 1 <= len(cut) <= count
    assert sum(extent_bytes for extent_bytes, _ in cut) <= length
    assert all(0 < extent_bytes <= c.LENGTH_MAX for extent_bytes, _ in cut)
    assert all(left[1] != right[1] for left, right in itertools.pairwise(cut))
    position = 0
    for extent_bytes, flags in cut:  # the same flags as the export said, at every extent's first byte
        start, index = 0, 0
        while start + extents[index][0] <= position:
            start, index = start + extents[index][0], index + 1
        assert extents[index][1] == flags
        position += extent_bytes
