"""The real network: connect, listen, send and receive without blocking, and errors as OSError."""

from __future__ import annotations

import errno
import time

import pytest
import trio

from pairsync.io.network import TcpNetwork, describe_address


async def test_bytes_cross_and_the_end_is_seen() -> None:
    network = TcpNetwork()
    listener = await network.listen(("127.0.0.1", 0))
    near = await network.connect(listener.address, "127.0.0.3")
    far = await listener.accept()
    assert far.remote[0] == "127.0.0.3"
    assert near.remote == listener.address
    buffer = memoryview(bytearray(10))
    assert far.receive_nowait(buffer) is None
    assert near.send_nowait(b"hello") == 5
    await far.wait_readable()
    assert far.receive_nowait(buffer) == 5
    assert bytes(buffer[:5]) == b"hello"
    near.close()
    near.close()
    await far.wait_readable()
    assert far.receive_nowait(buffer) == 0
    far.close()
    listener.close()
    listener.close()


async def test_a_full_socket_takes_nothing_until_it_is_read() -> None:
    network = TcpNetwork()
    listener = await network.listen(("127.0.0.1", 0))
    near = await network.connect(listener.address, None)
    far = await listener.accept()
    block = bytes(1 << 20)
    while near.send_nowait(block):
        pass
    buffer = memoryview(bytearray(1 << 20))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.wait_writable)
        await trio.testing.wait_all_tasks_blocked()
        assert nursery.child_tasks
        with trio.fail_after(20):
            while nursery.child_tasks:
                far.receive_nowait(buffer)
                await trio.sleep(0.001)
    assert near.send_nowait(block) > 0
    for end in (near, far, listener):
        end.close()


async def test_closing_wakes_who_waits() -> None:
    network = TcpNetwork()
    listener = await network.listen(("::1", 0))
    near = await network.connect(listener.address, None)
    far = await listener.accept()

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await far.wait_readable()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        far.close()
    near.close()
    listener.close()


async def test_a_refused_connection_and_a_bad_address_leave_nothing(leak_guard: object) -> None:
    network = TcpNetwork()
    listener = await network.listen(("127.0.0.1", 0))
    address = listener.address
    listener.close()
    with pytest.raises(OSError, match="ECONNREFUSED") as caught:
        await network.connect(address, None)
    assert caught.value.errno == errno.ECONNREFUSED
    with pytest.raises(OSError, match="Cannot assign"):
        await network.connect(address, "192.0.2.9")
    with pytest.raises(OSError, match="Cannot assign"):
        await network.listen(("192.0.2.9", 0))


async def test_clock_and_entropy() -> None:
    network = TcpNetwork()
    before = time.monotonic_ns()
    assert before <= network.now_ns() <= time.monotonic_ns()
    assert len(network.entropy(32)) == 32
    assert network.entropy(16) != network.entropy(16)


def test_addresses_in_words() -> None:
    assert describe_address(("10.0.0.1", 5)) == "10.0.0.1:5"
    assert describe_address(("fe80::1", 5)) == "[fe80::1]:5"
