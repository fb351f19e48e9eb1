"""Fuzzing the front door's pure machines.

The first bytes of an input choose the circumstances and how the rest is cut into pieces; the rest is what a
client sends.  Whatever it is, the machines answer with well-formed replies, requests within the export or
the protocol error, and say the same whatever the pieces.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import cast

from pairsync.core.messages import OpKind
from pairsync.errors import ProtocolError
from pairsync.nbd import constants as c
from pairsync.nbd.export import Export
from pairsync.nbd.negotiation import Chosen, Ended, Negotiation, StartTls, TlsMode
from pairsync.nbd.requests import Batch, RequestParser, RequestRules

SIZE_BYTES = 1 << 26  # above the largest payload, so that every limit can be reached
OPTIONS_MAX = 8
STEPS_MAX = 100_000  # a machine that does not come to an end is a finding
PIECES_MAX = 200  # bounds the time of one input
OPTION_REPLY_START = c.OPTION_REPLY_MAGIC.to_bytes(8, "big")
KNOWN_ERRORS = {c.EPERM, c.EINVAL, c.ENOSPC, c.EOVERFLOW, c.ENOTSUP, c.ESHUTDOWN}


class Finding(Exception):
    """What a machine must not do."""


def _export(name: str, *, read_only: bool = False) -> Export:
    """As much of an export as a handshake looks at."""
    contexts = {name: name for name in ("base:allocation", "pairsync:dirty")}
    export = SimpleNamespace(
        name=name,
        description="",
        size_bytes=SIZE_BYTES,
        read_only=read_only,
        fast_zero=True,
        meta_contexts=lambda: contexts,
    )
    return cast("Export", export)


EXPORTS = {"vda": _export("vda"), "log": _export("log", read_only=True)}


def _pieces(data: bytes, cuts: Sequence[int]) -> Iterator[bytes]:
    """The data in pieces whose lengths repeat; a cut of 0 is a large piece, and there are not too many."""
    position, turn, shortest = 0, 0, len(data) // PIECES_MAX
    while position < len(data):
        length = max(shortest, cuts[turn % len(cuts)] or 1024)
        yield data[position : position + length]
        position, turn = position + length, turn + 1


def _head(data: bytes, count: int) -> tuple[bytes, bytes]:
    return data[:count].ljust(count, b"\0"), data[count:]


# -- negotiation ---------------------------------------------------------------------------------------------


def _check_option_replies(reply: bytes) -> None:
    """One option's reply: packets of one option, exactly one final one, at the end."""
    position, finals = 0, 0
    while position < len(reply):
        magic, _, kind, length = struct.unpack_from(">QIII", reply, position)
        position += 20 + length
        if magic != c.OPTION_REPLY_MAGIC or position > len(reply) or finals:
            raise Finding(f"malformed option reply {reply!r}")
        finals += kind == c.REP_ACK or bool(kind & c.REP_ERROR_BIT)
    if reply and not finals:
        raise Finding(f"no final reply in {reply!r}")


def _is_over(machine: Negotiation) -> bool:
    return machine.outcome is not None


def _negotiate(pieces: Iterator[bytes], mode: TlsMode) -> tuple[bytes, object]:
    machine = Negotiation(EXPORTS, tls_mode=mode, default_export="vda", options_max=OPTIONS_MAX)
    replies = bytearray()
    early = b""
    for piece in pieces:
        if _is_over(machine):
            early += piece
            continue
        machine.feed(piece)
        for _ in range(STEPS_MAX):
            reply = machine.step()
            if reply is None:
                break
            if not isinstance(machine.outcome, Chosen) or reply[:8] == c.OPTION_REPLY_MAGIC.to_bytes(
                8, "big"
            ):
                _check_option_replies(reply)
            replies += reply
        else:
            raise Finding("the handshake does not come to an end")
    outcome = machine.outcome
    if isinstance(outcome, Chosen):
        return bytes(replies), (
            outcome.export.name,
            outcome.structured,
            outcome.contexts,
            outcome.early + early,
        )
    if isinstance(outcome, StartTls):
        _negotiate_rest(machine.after_tls(), early)
        return bytes(replies), StartTls
    return bytes(replies), outcome


def _negotiate_rest(machine: Negotiation, data: bytes) -> None:
    """The encrypted half: TLS cannot be begun again."""
    machine.feed(data)
    while (reply := machine.step()) is not None:
        if not isinstance(machine.outcome, Chosen):
            _check_option_replies(reply)
    if isinstance(machine.outcome, StartTls):
        raise Finding("TLS within TLS")


def fuzz_negotiation(data: bytes) -> None:
    """Any bytes lead to replies and at most one outcome, the same for all pieces."""
    head, rest = _head(data, 4)
    mode = list(TlsMode)[head[0] % 3]
    in_pieces = _negotiate(_pieces(rest, head[1:]), mode)
    whole = _negotiate(iter([rest]), mode)
    if in_pieces != whole:
        raise Finding(f"{in_pieces} in pieces, {whole} at once")
    if mode is TlsMode.REQUIRE and not isinstance(whole[1], (Ended, type, type(None))):
        raise Finding("an export without TLS")


def seeds_negotiation() -> list[bytes]:
    """Whole handshakes."""

    def option(number: int, payload: bytes = b"") -> bytes:
        return struct.pack(">QII", c.OPTION_MAGIC, number, len(payload)) + payload

    info = struct.pack(">I3sHH", 3, b"vda", 1, c.INFO_BLOCK_SIZE)
    meta = struct.pack(">I3sII", 3, b"vda", 1, 15) + b"base:allocation"
    flags = struct.pack(">I", c.FLAG_C_FIXED_NEWSTYLE | c.FLAG_C_NO_ZEROES)
    go = option(c.OPT_STRUCTURED_REPLY) + option(c.OPT_SET_META_CONTEXT, meta) + option(c.OPT_GO, info)
    return [
        b"\0\0\0\0" + flags + go + b"first request",
        b"\1\7\0\x30" + flags + option(c.OPT_STARTTLS) + go,
        b"\2\1\1\1" + flags + option(c.OPT_LIST) + option(c.OPT_STARTTLS) + option(c.OPT_ABORT),
        b"\0\0\0\0"
        + flags
        + option(c.OPT_LIST)
        + option(c.OPT_INFO, info)
        + option(c.OPT_EXPORT_NAME, b"log"),
        b"\0\0\0\0" + flags + option(c.OPT_STRUCTURED_REPLY) + option(c.OPT_LIST_META_CONTEXT, meta),
        b"\0\0\0\0" + bytes(4) + option(c.OPT_EXPORT_NAME, b"vda"),
    ]


# -- requests ------------------------------------------------------------------------------------------------


def _check_batch(batch: Batch, rules: RequestRules, requests_max: int) -> None:
    if len(batch) > requests_max or len(batch.writes) != len(batch.write_cookies):
        raise Finding("a batch that is larger than its room")
    ranges = [(offset, length) for _, offset, length in batch.reads]
    ranges += [(op.offset, op.length) for op in batch.writes]
    ranges += [(r.offset, r.length) for r in batch.others if r.kind != c.CMD_FLUSH]
    for offset, length in ranges:
        if not (length > 0 and offset + length <= rules.size_bytes):
            raise Finding(f"{offset}+{length} was accepted")
    for op in batch.writes:
        if rules.read_only or (op.kind is OpKind.DATA) != (op.data is not None):
            raise Finding(f"{op} was accepted")
        if op.data is not None and len(op.data) != op.length:
            raise Finding("a partial write")
    if any(rejection.error not in KNOWN_ERRORS for rejection in batch.rejections):
        raise Finding("an error that may not travel")


def _requests(pieces: Iterator[bytes], rules: RequestRules, room: tuple[int, int]) -> list[object]:
    """What the parser hands out, in the order of each kind."""
    parser = RequestParser(rules)
    reads: list[object] = []
    writes: list[object] = []
    others: list[object] = []
    rejections: list[object] = []
    ends: list[object] = []
    for piece in pieces:
        window = parser.window()
        if window is not None:
            count = min(len(window), len(piece))
            window[:count] = piece[:count]
            parser.filled(count)
            piece = piece[count:]  # noqa: PLW2901 - the rest of it comes behind the payload
        parser.feed(piece)
        for _ in range(STEPS_MAX):
            try:
                batch = parser.take(*room)
            except ProtocolError as error:
                return [reads, writes, others, rejections, [str(error)]]
            _check_batch(batch, rules, room[0])
            reads += batch.reads
            pairs = zip(batch.writes, batch.write_cookies, strict=True)
            writes += [(op._replace(data=bytes(op.data or b"")), cookie) for op, cookie in pairs]
            others += batch.others
            rejections += batch.rejections
            ends += [True] * batch.disconnect
            if not batch.more:
                break
        else:
            raise Finding("the parser does not come to an end")
    return [reads, writes, others, rejections, ends]


def fuzz_requests(data: bytes) -> None:
    """Any bytes lead to requests within the export, rejections or the protocol error, for all pieces."""
    head, rest = _head(data, 6)
    choice = head[0]
    rules = RequestRules(
        SIZE_BYTES,
        read_only=bool(choice & 1),
        structured=bool(choice & 2),
        fast_zero=bool(choice & 4),
        block_status=bool(choice & 8),
    )
    room = (1 + head[1] % 8, 1 + head[2] * 64)
    in_pieces = _requests(_pieces(rest, head[3:]), rules, room)
    whole = _requests(iter([rest]), rules, (1 << 30, 1 << 40))
    if in_pieces != whole:
        raise Finding(f"{in_pieces} in pieces, {whole} at once")


def seeds_requests() -> list[bytes]:
    """Every command, right and wrong."""

    def request(kind: int, offset: int, length: int, flags: int = 0, payload: bytes = b"") -> bytes:
        return struct.pack(">IHHQQI", c.REQUEST_MAGIC, flags, kind, 7, offset, length) + payload

    every = b"".join(request(kind, 4096, 512, payload=bytes(512) if kind == 1 else b"") for kind in range(10))
    return [
        b"\x0e\0\0\0\0\0" + request(c.CMD_READ, 0, 4096) * 5,
        b"\x0e\3\1\5\x40\1" + request(c.CMD_WRITE, 0, 40, c.CMD_FLAG_FUA, b"x" * 40) * 3,
        b"\x0f\0\0\0\0\0" + request(c.CMD_WRITE, 0, 40, 0, b"x" * 40) + request(c.CMD_FLUSH, 0, 0),
        b"\x0e\0\0\1\1\1" + every,
        b"\x0e\0\0\0\0\0"
        + request(c.CMD_WRITE_ZEROES, 0, 1 << 25, 18)
        + request(c.CMD_BLOCK_STATUS, 0, 1, 8),
        b"\x0e\0\0\x20\x7f\0" + request(c.CMD_WRITE, 0, 70_000, 0, bytes(70_000)) + request(c.CMD_DISC, 0, 0),
        b"\0\0\0\0\0\0"
        + request(c.CMD_WRITE, SIZE_BYTES, 100, 0, bytes(100))
        + request(c.CMD_READ, 1, 1 << 26),
    ]
