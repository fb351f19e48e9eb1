"""Replies on their way out: order, what does not go at once, and a client that is gone."""

from __future__ import annotations

import ssl
from collections.abc import Callable

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from pairsync.core.messages import Buffer
from pairsync.errors import PeerLost
from pairsync.nbd.outbox import JOIN_BYTES_MAX, Outbox
from pairsync.nbd.transport import Transport


class FakeTransport:
    """Takes as many bytes at once as it is told to; `send_all` waits for its gate."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.calls = 0
        self.room = 0
        self.gate = trio.Event()
        self.lost = False

    def send_nowait(self, data: Buffer) -> int:
        self.calls += 1
        if self.lost:
            raise PeerLost("gone")
        count = min(self.room, len(data))
        self.room -= count
        self.sent += data[:count]
        return count

    async def send_all(self, data: Buffer) -> None:
        await self.gate.wait()
        if self.lost:
            raise PeerLost("gone")
        self.sent += data

    async def receive(self) -> bytes:
        raise NotImplementedError

    async def attend(self, take: Callable[[bytes], bool]) -> None:
        raise NotImplementedError

    async def receive_into(self, window: memoryview) -> int:
        raise NotImplementedError

    def receive_nowait_into(self, window: memoryview) -> int | None:
        raise NotImplementedError

    def hung_up(self) -> bool:
        raise NotImplementedError

    async def start_tls(self, context: ssl.SSLContext) -> Transport:
        raise NotImplementedError

    async def aclose(self) -> None:
        raise NotImplementedError


class Harness:
    def __init__(self) -> None:
        self.transport = FakeTransport()
        self.lost: list[PeerLost] = []
        self.held = 0
        self.changes = 0
        self.outbox = Outbox(self.transport, on_lost=self.lost.append, on_change=self._change)

    def _change(self, difference: int) -> None:
        self.changes += 1
        self.held += difference
        assert self.held >= 0

    def check(self) -> None:
        """After a push or a send, what is reported is what is there."""
        assert self.held == self.outbox.held_bytes
        assert self.outbox.empty == (self.held == 0)


@pytest.fixture
def harness() -> Harness:
    return Harness()


def test_replies_are_joined_and_sent_at_once(harness: Harness) -> None:
    harness.transport.room = 100
    for number in range(5):
        harness.outbox.post(bytes([number]) * 4)
    assert not harness.outbox.empty
    harness.outbox.push()
    assert harness.transport.calls == 1
    assert harness.changes == 0, "what goes at once is not accounted for"
    assert harness.transport.sent == b"".join(bytes([number]) * 4 for number in range(5))
    harness.check()
    assert harness.outbox.empty


def test_large_replies_are_not_copied_together(harness: Harness) -> None:
    harness.transport.room = 1 << 30
    harness.outbox.post(b"a" * JOIN_BYTES_MAX)
    harness.outbox.post(b"b" * 10)
    harness.outbox.push()
    assert harness.transport.calls == 2


def test_shared_memory_is_copied_where_it_does_not_go(harness: Harness) -> None:
    memory = bytearray(b"0123456789")
    harness.transport.room = 4
    harness.outbox.send(memoryview(memory))
    memory[:] = b"##########"
    harness.transport.room = 100
    harness.outbox.push()
    assert harness.transport.sent == b"0123456789"
    harness.check()


def test_send_keeps_behind_what_is_queued(harness: Harness) -> None:
    harness.outbox.post(b"first")
    harness.transport.room = 100
    harness.outbox.send(memoryview(b"second"))
    harness.outbox.push()
    assert harness.transport.sent == b"firstsecond"


async def test_a_task_sends_the_rest_and_nothing_overtakes(harness: Harness, nursery: trio.Nursery) -> None:
    nursery.start_soon(harness.outbox.run)
    await trio.testing.wait_all_tasks_blocked()
    harness.transport.room = 3
    harness.outbox.post(b"abcdef")
    harness.outbox.push()
    await trio.testing.wait_all_tasks_blocked()  # the task is in send_all, which waits for the gate
    harness.transport.room = 100
    harness.outbox.post(b"ghi")
    harness.outbox.push()
    harness.outbox.send(memoryview(b"jkl"))
    assert harness.transport.sent == b"abc"
    harness.check()
    harness.transport.gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert harness.transport.sent == b"abcdefghijkl"
    assert harness.outbox.empty
    harness.check()
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("how", ["push", "send", "run"])
async def test_a_client_that_is_gone_is_told_once(harness: Harness, nursery: trio.Nursery, how: str) -> None:
    nursery.start_soon(harness.outbox.run)
    await trio.testing.wait_all_tasks_blocked()
    outbox, transport = harness.outbox, harness.transport
    if how == "run":
        outbox.post(b"abc")
        outbox.push()
        await trio.testing.wait_all_tasks_blocked()
        transport.lost = True
        transport.gate.set()
        await trio.testing.wait_all_tasks_blocked()
    else:
        transport.lost = True
        if how == "push":
            outbox.post(b"abc")
            outbox.push()
        else:
            outbox.send(memoryview(b"abc"))
    assert len(harness.lost) == 1
    outbox.post(b"more")
    outbox.push()
    outbox.send(memoryview(b"more"))
    assert len(harness.lost) == 1
    assert harness.held == 0
    harness.check()
    # `run` has ended by itself: the nursery closes without being cancelled


async def test_close_in_the_middle_of_a_send_gives_everything_back(
    harness: Harness, nursery: trio.Nursery
) -> None:
    nursery.start_soon(harness.outbox.run)
    await trio.testing.wait_all_tasks_blocked()
    harness.outbox.post(b"abc")
    harness.outbox.push()
    await trio.testing.wait_all_tasks_blocked()
    harness.outbox.close()
    assert harness.held == 0
    harness.transport.gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert harness.held == 0
    harness.check()


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("post"), st.integers(0, JOIN_BYTES_MAX)),
            st.tuples(st.just("send"), st.integers(1, 2 * JOIN_BYTES_MAX)),
            st.tuples(st.just("room"), st.integers(0, 3 * JOIN_BYTES_MAX)),
        ),
        max_size=20,
    )
)
def test_whatever_goes_when_order_is_kept(steps: list[tuple[str, int]]) -> None:
    harness = Harness()
    expected = bytearray()
    for number, (what, size) in enumerate(steps):
        data = bytes([number + 1]) * size
        if what == "room":
            harness.transport.room = size
            harness.outbox.push()
        elif what == "post":
            expected += data
            harness.outbox.post(data)
            harness.outbox.push()
        else:
            expected += data
            harness.outbox.send(memoryview(data))
        harness.check()
    harness.transport.room = 1 << 30
    harness.outbox.push()
    assert harness.transport.sent == expected
    assert harness.outbox.empty
