"""The hub: one session at a time, paths by name, and calls of the handler in order."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from tests.io.harness import MemoryNetwork, Pair, Recorder

from pairsync.errors import InternalError, PeerLost, ProtocolError
from pairsync.io.hub import Hub
from pairsync.io.session import Session
from pairsync.wire.frames import pack_record
from pairsync.wire.hello import PROTOCOL_RENEWS
from pairsync.wire.limits import PATHS_MAX

EMPTY = memoryview(pack_record(0, 0, []))


class FakeLane:
    def __init__(self) -> None:
        self.blocked = False
        self.bytes_in = self.bytes_out = self.records_in = self.records_out = 10
        self.sent = 0

    def transmit(self, first: int, acknowledged: int, frames: Any) -> None:
        self.sent += 1


class FakePath:
    """Stands for a path: runs until it is stopped."""

    def __init__(self, name: str, rank: int = 0) -> None:
        self.name, self.rank = name, rank
        self.lane = FakeLane()
        self.reason = ""
        self.violation = ""
        self.up = False
        self.hung_up = False
        self._stopped = trio.Event()

    def stop(self, reason: str, *, farewell: bool) -> None:
        self.reason = self.reason or reason
        self._stopped.set()

    async def run(self, session: Any) -> None:
        await self._stopped.wait()

    async def hang_up(self) -> None:
        self.hung_up = True


def fake(name: str, rank: int = 0) -> Any:
    return FakePath(name, rank)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def make_hub(pair: Pair, recorder: Recorder | None) -> Hub:
    hub = Hub(pair.listener_config(), MemoryNetwork())
    hub.handler = recorder
    return hub


def begin(
    hub: Hub, path: Any, session: bytes = b"1" * 16, *, join: bool = False, protocol: int = 1
) -> Session:
    return hub.open_path(
        path, session_id=session, protocol=protocol, join=join, first_record=EMPTY, greet=True
    )


async def test_paths_begin_join_and_leave(pair: Pair, recorder: Recorder) -> None:
    hub = make_hub(pair, recorder)
    first, second = fake("a"), fake("b", 1)
    session = begin(hub, first)
    assert begin(hub, second, join=True) is session
    assert hub.running() is session
    assert first.lane.sent == 1  # the greeting
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hub.run_path, first, session)
        nursery.start_soon(hub.run_path, second, session)
        await trio.testing.wait_all_tasks_blocked()
        first.stop("gone", farewell=False)
        await trio.testing.wait_all_tasks_blocked()
        assert recorder.up
        second.stop("gone too", farewell=False)
    assert [event[0] for event in recorder.events] == ["connected", "up", "up", "down", "down", "lost"]
    assert recorder.reasons("lost") == ["the last path is down: b: gone too"]
    assert first.hung_up
    assert second.hung_up
    assert hub.session is None
    assert (hub.totals.bytes_in, hub.totals.sessions) == (20, 1)


async def test_a_new_session_ends_the_old_one_first(pair: Pair, recorder: Recorder) -> None:
    hub = make_hub(pair, recorder)
    old = fake("a")
    begin(hub, old)
    begin(hub, fake("a"), b"2" * 16)
    assert [event[0] for event in recorder.events] == ["connected", "up", "down", "lost", "connected", "up"]
    assert recorder.reasons("lost") == ["the peer began a new session"]
    assert old.reason == "the peer began a new session"


async def test_a_path_of_the_same_name_is_replaced_and_the_session_goes_on(
    pair: Pair, recorder: Recorder
) -> None:
    hub = make_hub(pair, recorder)
    old, new = fake("a"), fake("a")
    session = begin(hub, old)
    begin(hub, new, join=True)
    assert hub.paths == {"a": new}
    assert session.is_sending_on(new.lane)
    assert recorder.up
    assert old.reason == "replaced by a newer connection"
    await hub.run_path(old, session)
    assert recorder.up


async def test_a_session_that_is_over_cannot_be_joined(pair: Pair, recorder: Recorder) -> None:
    hub = make_hub(pair, recorder)
    with pytest.raises(PeerLost, match="was over before"):
        begin(hub, fake("a"), join=True)
    begin(hub, fake("a"))
    with pytest.raises(PeerLost, match="was over before"):
        begin(hub, fake("b"), b"2" * 16, join=True)
    with pytest.raises(PeerLost, match="version 2 in a session of 1"):
        begin(hub, fake("b"), join=True, protocol=2)
    hub.end_session("enough")
    with pytest.raises(PeerLost, match="was over before"):
        begin(hub, fake("b"), join=True)


async def test_paths_are_bounded(pair: Pair, recorder: Recorder) -> None:
    hub = make_hub(pair, recorder)
    begin(hub, fake("0"))
    for number in range(1, PATHS_MAX):
        begin(hub, fake(str(number)), join=True)
    with pytest.raises(PeerLost, match="paths are up already"):
        begin(hub, fake("one more"), join=True)
    assert len(hub.paths) == PATHS_MAX


async def test_nothing_comes_up_while_cut(pair: Pair, recorder: Recorder) -> None:
    hub = make_hub(pair, recorder)
    hub.gate.close()
    with pytest.raises(PeerLost, match="cut"):
        begin(hub, fake("a"))
    assert recorder.events == []


async def test_a_first_record_that_lies_begins_nothing(pair: Pair, recorder: Recorder) -> None:
    hub = make_hub(pair, recorder)
    liar = memoryview(pack_record(0, 99, []))
    with pytest.raises(ProtocolError, match="acknowledges frame 98"):
        hub.open_path(fake("a"), session_id=b"1" * 16, protocol=1, join=False, first_record=liar, greet=True)
    assert recorder.events == []
    assert hub.session is None


async def test_ending_only_marks_and_the_paths_announce(pair: Pair, recorder: Recorder) -> None:
    hub = make_hub(pair, recorder)
    path = fake("a")
    session = begin(hub, path)
    hub.end_session("why not")
    assert recorder.up  # nothing was called from within
    assert hub.running() is None
    await hub.run_path(path, session)
    assert recorder.reasons("lost") == ["why not"]
    hub.end_session("again")  # without a session: nothing


async def test_a_renewal_is_told_from_without(pair: Pair, recorder: Recorder) -> None:
    hub = make_hub(pair, recorder)
    hub.renew_session("nothing to renew")
    session = begin(hub, fake("a"), protocol=PROTOCOL_RENEWS)
    hub.renew_session("a new role")
    assert recorder.reasons("lost") == []  # nothing was called from within
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hub.tell_renewals)
        await recorder.until(lambda: len(recorder.sessions) == 2)
        nursery.cancel_scope.cancel()
    assert hub.running() is session
    assert [event[0] for event in recorder.events] == ["connected", "up", "lost", "connected"]


async def test_what_cannot_be_renewed_is_ended(pair: Pair, recorder: Recorder) -> None:
    hub = make_hub(pair, recorder)
    begin(hub, fake("a"), protocol=1)
    hub.renew_session("a new role")
    assert hub.running() is None


async def test_a_hub_without_a_handler_is_a_bug(pair: Pair) -> None:
    with pytest.raises(InternalError, match="handler"):
        begin(make_hub(pair, None), fake("a"))
