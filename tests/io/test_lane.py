"""A lane over a real socket: batching, blocking, and every kind of tampering in the middle."""

from __future__ import annotations

import socket
from itertools import pairwise

import pytest
import trio
from tests.io.conftest import StartRelay
from tests.io.harness import Pair, Recorder, Tamper, make_write

from pairsync.errors import PeerLost, ProtocolError
from pairsync.io.gate import Gate
from pairsync.io.lane import FIRST_RECORD_BYTES, RECEIVE_BUFFER_BYTES, Lane
from pairsync.io.network import TcpConnection
from pairsync.wire.codec import encode
from pairsync.wire.frames import Frame, make_frame, parse_frames, parse_record
from pairsync.wire.limits import FRAME_PAYLOAD_BYTES_MAX, RECORD_BYTES_MAX
from pairsync.wire.seals import LENGTH_BYTES, Opener, Sealer

ONE, TWO = bytes(32), bytes([1]) * 32


def lane_pair(gate: Gate | None = None) -> tuple[Lane, Lane, list[TcpConnection]]:
    listener = socket.create_server(("127.0.0.1", 0))
    near = socket.create_connection(listener.getsockname())
    far, _ = listener.accept()
    listener.close()
    connections = [TcpConnection(sock, sock.getpeername()) for sock in (near, far)]
    gate = gate or Gate()
    left = Lane(connections[0], Sealer(ONE), Opener(TWO), gate, "left")
    right = Lane(connections[1], Sealer(TWO), Opener(ONE), gate, "right")
    return left, right, connections


def frames(*sizes: int) -> list[Frame]:
    return [make_frame(encode(make_write(number, size))) for number, size in enumerate(sizes, 1)]


def close(connections: list[TcpConnection]) -> None:
    for connection in connections:
        connection.close()


async def test_records_arrive_in_order_and_are_counted() -> None:
    left, right, connections = lane_pair()
    arrived: list[tuple[int, int]] = []

    def deliver(plaintext: memoryview) -> None:
        record = parse_record(plaintext)
        arrived.append((record.first, len(parse_frames(record))))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(right.run_reader, deliver)
        for first in range(50):
            left.transmit(first, 0, frames(*([4096] * (first % 5))))
        with trio.fail_after(20):
            while len(arrived) < 50:
                await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
    assert arrived == [(first, first % 5) for first in range(50)]
    assert left.records_out == right.records_in == 50
    assert left.bytes_out == right.bytes_in
    close(connections)


async def test_others_have_a_turn_between_records_that_came_together() -> None:
    left, right, connections = lane_pair()
    for first in range(10):
        left.transmit(first, 0, frames(100))
    told: list[int] = []
    turns: list[int] = []  # how many records had been told at each turn of somebody else

    async def others() -> None:
        while len(told) < 10:
            turns.append(len(told))
            await trio.lowlevel.checkpoint()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(right.run_reader, lambda plaintext: told.append(parse_record(plaintext).first))
            await others()
            nursery.cancel_scope.cancel()
    assert told == list(range(10))
    # Two of them where the two tasks change places in a turn; trio orders them as it likes.
    assert max(after - before for before, after in pairwise([*turns, 10])) <= 2
    close(connections)


async def test_a_gate_that_is_shut_between_two_records_keeps_the_second() -> None:
    gate = Gate()
    left, right, connections = lane_pair(gate)
    for first in range(2):
        left.transmit(first, 0, frames(100))
    told: list[int] = []

    def deliver(plaintext: memoryview) -> None:
        told.append(parse_record(plaintext).first)
        gate.close()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(right.run_reader, deliver)
            while not told:
                await trio.lowlevel.checkpoint()
            await trio.testing.wait_all_tasks_blocked()
            assert told == [0]
            nursery.cancel_scope.cancel()
    close(connections)


async def test_a_full_socket_blocks_the_lane_until_the_writer_has_emptied_it() -> None:
    left, right, connections = lane_pair()
    big = frames(FRAME_PAYLOAD_BYTES_MAX)
    sent, got = 0, []
    while not left.blocked:
        left.transmit(sent, 0, big)
        sent += 1
        assert sent < 100
    resumed: list[int] = []

    def resume() -> None:
        assert not left.blocked
        resumed.append(sent)
        if len(resumed) < 4:
            left.transmit(sent + len(resumed) - 1, 0, big)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(left.run_writer, resume)
        nursery.start_soon(right.run_reader, lambda plaintext: got.append(parse_record(plaintext).first))
        with trio.fail_after(20):
            while len(got) < sent + 1:
                await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
    assert got == list(range(len(got)))
    close(connections)


async def test_the_end_of_the_connection() -> None:
    left, right, connections = lane_pair()
    connections[0].close()
    with pytest.raises(PeerLost, match="right"):
        await right.run_reader(lambda plaintext: None)
    close(connections)
    assert left.records_out == 0


async def test_a_failed_send_is_told_by_the_writer_not_to_the_caller() -> None:
    left, _, connections = lane_pair()
    connections[1].close()
    with trio.fail_after(20):
        while not left.blocked:
            left.transmit(0, 0, frames(1024))
            await trio.sleep(0.001)
    with pytest.raises(PeerLost, match="left"):
        await left.run_writer(lambda: None)
    close(connections)


async def test_a_shut_gate_keeps_what_arrives_in_the_socket() -> None:
    gate = Gate()
    left, right, connections = lane_pair(gate)
    arrived: list[memoryview] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(right.run_reader, arrived.append)
        await trio.testing.wait_all_tasks_blocked()
        gate.close()
        left.transmit(0, 0, [])
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not arrived
        gate.open()
        with trio.fail_after(20):
            while not arrived:
                await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
    close(connections)


async def test_the_first_record_is_read_exactly() -> None:
    left, right, connections = lane_pair()
    left.transmit(0, 7, [])
    left.transmit(7, 0, frames(16))
    assert parse_record(await right.receive_first()).acknowledged == 7
    rest = memoryview(bytearray(RECEIVE_BUFFER_BYTES))
    assert connections[1].receive_nowait(rest) == left.bytes_out - FIRST_RECORD_BYTES - LENGTH_BYTES
    close(connections)


async def test_the_first_record_must_be_small() -> None:
    left, right, connections = lane_pair()
    left.transmit(0, 0, frames(16))
    with pytest.raises(ProtocolError, match="a first record of"):
        await right.receive_first()
    close(connections)


async def test_a_first_record_cut_by_a_hang_up() -> None:
    _, right, connections = lane_pair()
    connections[0].send_nowait(bytes(3))
    connections[0].close()
    with pytest.raises(PeerLost, match="hung up"):
        await right.receive_first()
    close(connections)


def test_the_receive_buffer_holds_the_largest_record_behind_a_piece_of_another() -> None:
    assert RECEIVE_BUFFER_BYTES >= 2 * (LENGTH_BYTES + RECORD_BYTES_MAX)


def _flip(record: bytes) -> bytes:
    return record[:-1] + bytes([record[-1] ^ 1])


class Reorder:
    """Swaps two neighbouring records."""

    def __init__(self) -> None:
        self.held = b""

    def __call__(self, number: int, record: bytes) -> list[bytes]:
        if number == 20:
            self.held = record
            return []
        return [record, self.held] if number == 21 else [record]


TAMPERS: dict[str, tuple[Tamper, str]] = {
    "changed": (lambda n, record: [_flip(record)] if n == 20 else [record], "fails its seal"),
    "replayed": (lambda n, record: [record, record] if n == 20 else [record], "fails its seal"),
    "left out": (lambda n, record: [] if n == 20 else [record], "fails its seal"),
    "cut": (
        lambda n, record: [(len(record) - 5).to_bytes(4, "big") + record[4:-1]] if n == 20 else [record],
        "fails its seal",
    ),
    "oversized": (
        lambda n, record: [(RECORD_BYTES_MAX + 1).to_bytes(4, "big") + record[4:]] if n == 20 else [record],
        "announced",
    ),
    "reordered": (Reorder(), "fails its seal"),
}


@pytest.mark.parametrize("kind", TAMPERS)
async def test_tampering_costs_the_path_and_nothing_else(
    kind: str, pair: Pair, start_relay: StartRelay, caplog: pytest.LogCaptureFixture
) -> None:
    """The path goes down with a clear reason; the session goes on over the other, nothing lost or doubled."""
    tamper, logged = TAMPERS[kind]
    active, standby = Recorder(), Recorder(answer=True)
    async with pair.listen(standby) as listening:
        relays = [await start_relay(listening.addresses[0]) for _ in range(2)]
        async with pair.dial(active, *(relay.address for relay in relays)) as link:
            await active.until(lambda: len(active.paths) == 2)
            relays[0].tamper_lane = tamper
            relays[0].kill()  # so that the next lane on it is watched from its first record
            await active.until_down(1)
            await active.until(lambda: len(active.paths) == 2)
            for number in range(1, 61):
                link.send([make_write(number)])
                await trio.sleep(0)
            await standby.until_down(2)
            relays[0].tamper_lane = None
            await active.until(lambda: len(active.messages) == 60)
        assert standby.numbers() == active.numbers() == list(range(1, 61))
        assert len(standby.sessions) == 1
        assert listening.statistics().refused["protocol"] == 1
        assert logged in " ".join(standby.reasons("down"))
    assert logged in caplog.text
