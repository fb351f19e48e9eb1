"""The small NBD client against scripted servers: what it must notice."""

from __future__ import annotations

import struct

import pytest
import trio

from pairsync.errors import PeerLost, ProtocolError
from pairsync.nbd import constants as c
from pairsync.testing.nbd_client import NbdClient, NbdReplyError, OptionReply

GREETING = struct.pack(">QQH", c.INIT_MAGIC, c.OPTION_MAGIC, 3)


def _reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">QIII", c.OPTION_REPLY_MAGIC, option, kind, len(data)) + data


def _chunk(cookie: int, kind: int, payload: bytes = b"", *, done: bool = True) -> bytes:
    return struct.pack(">IHHQI", c.STRUCTURED_REPLY_MAGIC, done, kind, cookie, len(payload)) + payload


async def _client(*said: bytes) -> NbdClient:
    """A client whose server has said all this already."""
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_all(b"".join(said))
    await theirs.send_eof()
    return NbdClient(ours)


async def test_handshake() -> None:
    info = struct.pack(">HQH", c.INFO_EXPORT, 4096, 5)
    client = await _client(
        GREETING,
        _reply(c.OPT_STRUCTURED_REPLY, c.REP_ACK),
        _reply(c.OPT_SET_META_CONTEXT, c.REP_META_CONTEXT, b"\0\0\0\7a:b"),
        _reply(c.OPT_SET_META_CONTEXT, c.REP_ACK),
        _reply(c.OPT_GO, c.REP_INFO, info),
        _reply(c.OPT_GO, c.REP_ACK),
    )
    await client.negotiate("x", contexts=("a:b",))
    assert (client.size_bytes, client.flags, client.structured, client.contexts) == (
        4096,
        5,
        True,
        {"a:b": 7},
    )


async def test_refused_handshake() -> None:
    client = await _client(GREETING, _reply(c.OPT_GO, c.REP_ERR_UNKNOWN, b"none such"))
    with pytest.raises(NbdReplyError, match="none such"):
        await client.negotiate("x", structured=False)


@pytest.mark.parametrize("said", [b"x" * 18, struct.pack(">QQH", c.INIT_MAGIC, 0x420281861253, 0)])
async def test_another_server(said: bytes) -> None:
    with pytest.raises(ProtocolError, match="newstyle"):
        await (await _client(said)).greet()


async def test_a_server_that_hangs_up() -> None:
    with pytest.raises(PeerLost):
        await (await _client(GREETING[:5])).greet()
    client = await _client(b"last words")
    assert await client.receive(5) == b"last "
    assert await client.wait_hang_up() == b"words"


async def test_bad_option_reply() -> None:
    client = await _client(b"x" * 20)
    with pytest.raises(ProtocolError, match="option reply magic"):
        await client.option_replies()
    assert OptionReply(1, c.REP_ERR_POLICY, b"").final
    assert not OptionReply(1, c.REP_SERVER, b"").final


async def test_simple_replies() -> None:
    good = struct.pack(">IIQ", c.SIMPLE_REPLY_MAGIC, 0, 1) + b"data"
    bad = struct.pack(">IIQ", c.SIMPLE_REPLY_MAGIC, c.EIO, 2)
    client = await _client(good, bad)
    assert await client.read(0, 4) == b"data"
    with pytest.raises(NbdReplyError):
        await client.read(0, 4)


async def test_structured_replies() -> None:
    error = struct.pack(">IH", c.EIO, 3) + b"why"
    client = await _client(
        _chunk(1, c.REPLY_TYPE_OFFSET_DATA, bytes(8) + b"da", done=False),
        _chunk(1, c.REPLY_TYPE_OFFSET_DATA, bytes(8) + b"ta", done=False),
        _chunk(1, c.REPLY_TYPE_NONE),
        _chunk(2, c.REPLY_TYPE_ERROR, error),
        _chunk(3, c.REPLY_TYPE_BLOCK_STATUS, struct.pack(">III", 9, 512, 3)),
    )
    client.structured, client.contexts = True, {"a:b": 9}
    assert await client.read(0, 4) == b"data"
    with pytest.raises(NbdReplyError, match="5: why"):
        await client.read(0, 4)
    assert await client.block_status(0, 512) == {"a:b": [(512, 3)]}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (_chunk(1, 99), "chunk type 99"),
        (b"x" * 20, "reply magic"),
        (struct.pack(">IIQ", c.SIMPLE_REPLY_MAGIC, 0, 1) + b"data", "simple reply to a read"),
        (_chunk(1, c.REPLY_TYPE_OFFSET_DATA, bytes(9), done=False) + _chunk(2, 0), "interleaved"),
        (_chunk(5, c.REPLY_TYPE_NONE), "reply to 5"),
    ],
)
async def test_replies_that_break_the_rules(said: bytes, message: str) -> None:
    client = await _client(said)
    client.structured = True
    with pytest.raises(ProtocolError, match=message):
        await client.read(0, 4)
