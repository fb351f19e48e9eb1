"""The gate: shut, nothing is closed; open, what was given up is."""

from __future__ import annotations

import trio
from tests.io.harness import MemoryConnection

from pairsync.io.gate import Gate


def connection() -> MemoryConnection:
    near, far = MemoryConnection(("a", 1), 100), MemoryConnection(("b", 2), 100)
    near.peer, far.peer = far, near
    return near


def test_an_open_gate_closes_at_once() -> None:
    one = connection()
    Gate().retire(one)
    assert one.closed


def test_a_shut_gate_keeps_what_is_given_up_until_it_opens() -> None:
    gate, one = Gate(), connection()
    gate.close()
    gate.close()
    gate.retire(one)
    assert gate.shut
    assert not one.closed
    gate.open()
    assert one.closed


def test_hanging_up_closes_even_while_shut() -> None:
    gate, one = Gate(), connection()
    gate.close()
    gate.retire(one)
    gate.hang_up()
    assert one.closed


async def test_waiting(autojump_clock: trio.testing.MockClock) -> None:
    gate = Gate()
    await gate.wait_open()
    gate.close()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gate.wait_open)
        await trio.sleep(5)
        assert nursery.child_tasks
        gate.open()
    assert trio.current_time() < 6
