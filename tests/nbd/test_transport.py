"""Sockets and streams behind one interface."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

import pytest
import trio

from pairsync.errors import PeerLost
from pairsync.nbd.transport import RECEIVE_BYTES, SocketTransport, StreamTransport


@pytest.fixture
def pair() -> Iterator[tuple[SocketTransport, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    yield SocketTransport(ours), theirs
    ours.close()
    theirs.close()


async def test_socket_receives(pair: tuple[SocketTransport, socket.socket]) -> None:
    transport, peer = pair
    peer.sendall(b"abcdef")
    assert await transport.receive() == b"abcdef"
    peer.sendall(b"ghi")
    window = memoryview(bytearray(2))
    assert await transport.receive_into(window) == 2
    assert bytes(window) == b"gh"
    assert await transport.receive() == b"i"
    assert transport.receive_nowait_into(window) is None
    peer.sendall(b"jkl")
    assert transport.receive_nowait_into(window) == 2
    assert bytes(window) == b"jk"
    assert transport.receive_nowait_into(window) == 1
    peer.close()
    assert transport.receive_nowait_into(window) == 0
    assert await transport.receive() == b""
    assert await transport.receive_into(window) == 0


async def test_a_peer_that_has_hung_up_is_told_before_all_is_received(
    pair: tuple[SocketTransport, socket.socket],
) -> None:
    transport, peer = pair
    stream = StreamTransport(trio.SocketStream(trio.socket.from_stdlib_socket(transport._socket)))
    context = ssl.create_default_context()
    secret = StreamTransport(trio.SSLStream(stream._stream, context, server_hostname="a"))
    alike = (transport, stream, secret)
    peer.sendall(b"abcdef")
    assert not any(each.hung_up() for each in alike)
    peer.shutdown(socket.SHUT_WR)
    assert all(each.hung_up() for each in alike)
    assert await transport.receive() == b"abcdef"
    await transport.aclose()
    assert transport.hung_up()
    assert not StreamTransport(trio.testing.memory_stream_pair()[0]).hung_up()


async def test_receiving_is_a_checkpoint_even_with_data(pair: tuple[SocketTransport, socket.socket]) -> None:
    transport, peer = pair
    peer.sendall(b"abc")
    with trio.testing.assert_checkpoints():
        await transport.receive()


async def test_each_receive_has_its_own_buffer(pair: tuple[SocketTransport, socket.socket]) -> None:
    transport, peer = pair
    kept = []
    for number in range(3):
        peer.sendall(bytes([number]) * 100)
        kept.append(memoryview(await transport.receive()))
    assert [bytes(view) for view in kept] == [bytes([number]) * 100 for number in range(3)]


async def test_socket_sends_what_goes(pair: tuple[SocketTransport, socket.socket]) -> None:
    transport, peer = pair
    data = bytes(range(256)) * 16384
    sent = transport.send_nowait(data)
    assert 0 < sent < len(data)
    assert transport.send_nowait(data) == 0
    received = bytearray()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport.send_all, memoryview(data)[sent:])
        while len(received) < len(data):
            received += await trio.to_thread.run_sync(peer.recv, RECEIVE_BYTES)
    assert received == data


async def test_gone_peer_is_lost(pair: tuple[SocketTransport, socket.socket]) -> None:
    transport, peer = pair
    transport.send_nowait(b"never read")
    peer.close()
    with pytest.raises(PeerLost):
        transport.send_nowait(b"x")
    with pytest.raises(PeerLost):
        await transport.send_all(b"x")
    with pytest.raises(PeerLost) as caught:
        await transport.receive()
    assert isinstance(caught.value.__cause__, OSError)


async def test_reset_while_receiving_into_a_window(pair: tuple[SocketTransport, socket.socket]) -> None:
    transport, peer = pair
    transport.send_nowait(b"never read")
    peer.close()
    with pytest.raises(PeerLost):
        await transport.receive_into(memoryview(bytearray(8)))


async def test_socket_closes(pair: tuple[SocketTransport, socket.socket]) -> None:
    transport, peer = pair
    await transport.aclose()
    assert peer.recv(1) == b""


async def test_stream() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    transport = StreamTransport(ours)
    await theirs.send_all(b"abcdef")
    window = memoryview(bytearray(4))
    assert await transport.receive_into(window) == 4
    assert bytes(window) == b"abcd"
    assert transport.receive_nowait_into(window) is None, "a stream cannot tell"
    assert await transport.receive() == b"ef"
    assert transport.send_nowait(b"xyz") == 0
    await transport.send_all(b"xyz")
    assert await theirs.receive_some() == b"xyz"
    await theirs.aclose()
    assert await transport.receive() == b""
    with pytest.raises(PeerLost):
        await transport.send_all(b"x")
    await transport.aclose()


async def test_broken_stream_is_lost() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    transport = StreamTransport(ours)
    assert isinstance(theirs, trio.StapledStream)
    assert isinstance(theirs.send_stream, trio.testing.MemorySendStream)
    theirs.send_stream.close_hook = None
    ours_receive = ours.receive_stream
    assert isinstance(ours_receive, trio.testing.MemoryReceiveStream)

    async def broken() -> None:
        raise trio.BrokenResourceError

    ours_receive.receive_some_hook = broken
    with pytest.raises(PeerLost):
        await transport.receive()
    with pytest.raises(PeerLost):
        await transport.receive_into(memoryview(bytearray(4)))
