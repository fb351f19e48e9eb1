"""The relay between two guests: who is served when, and that no first copy comes late."""

from __future__ import annotations

import errno

import pytest
import trio
import trio.testing
from tests.guest.harness import Pair, await_event, in_time

from pairsync.core.events import RefusedEvent
from pairsync.core.messages import OpKind, Relay, Relayed, Serving, WriteOp
from pairsync.core.units import BLOCK_BYTES
from pairsync.errors import BackendError, ClosedError, PairsyncError
from pairsync.guest.guest import Guest, open_guest
from pairsync.guest.pieces import Done
from pairsync.guest.relay import GuestRelay
from pairsync.guest.volume import Volume

OLD, NEW = b"o" * BLOCK_BYTES, b"n" * BLOCK_BYTES


async def open_relay(guest: Guest) -> GuestRelay:
    while not guest.relay.open:
        await trio.sleep(0.005)
    return guest.relay


def data(content: bytes) -> list[WriteOp]:
    return [WriteOp(OpKind.DATA, 0, len(content), content)]


async def test_only_the_standby_is_served(pair: Pair) -> None:
    async with in_time(), pair.both() as (active, standby):
        relay = await open_relay(standby)
        assert not active.relay.open
        assert not active.relay.write(0, data(OLD), print)
        active.pause(True)
        while relay.open:
            await trio.sleep(0.005)
        assert not await relay.flush(0)
        active.pause(False)
        assert await (await open_relay(standby)).flush(0)


async def test_nothing_is_served_before_what_an_earlier_session_asked_for_has_ended(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with in_time(), pair.both() as (active, standby):
        relay = await open_relay(standby)
        held: list[tuple[Volume, list[WriteOp], Done]] = []
        submit = Volume.submit

        def hold(self: Volume, ops: list[WriteOp], done: Done) -> None:
            held.append((self, ops, done))

        monkeypatch.setattr(Volume, "submit", hold)
        heard: list[Relay | Relayed | None] = []
        assert relay.write(0, data(OLD), heard.append)
        while not held:
            await trio.sleep(0.005)
        monkeypatch.setattr(Volume, "submit", submit)
        assert active.link is not None
        active.link.drop_session("a test")
        while not heard:
            await trio.sleep(0.005)
        assert heard == [None]
        await active.wait_in_sync()  # there is a new session
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not relay.open
        submit(*held[0])
        await open_relay(standby)
        assert relay.write(0, data(NEW), heard.append)
        while len(heard) < 2:
            await trio.sleep(0.005)
        assert isinstance(heard[1], Relayed)
        assert heard[1].errnos == ()
        assert await active.volume("vda").read(0, BLOCK_BYTES) == NEW


@pytest.mark.parametrize(
    ("error", "told"),
    [(BackendError("full", errno.ENOSPC), "ENOSPC"), (ClosedError("closed"), "ESHUTDOWN")],
)
async def test_what_goes_wrong_at_the_owner_is_told(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, error: PairsyncError, told: str
) -> None:
    async with in_time(), pair.both() as (_, standby):
        relay = await open_relay(standby)

        def refuse(*_: object) -> None:
            raise error

        async def refuse_later(*_: object) -> None:
            raise error

        for name in ("submit", "read_nowait"):
            monkeypatch.setattr(Volume, name, refuse)
        for name in ("flush", "read_into"):
            monkeypatch.setattr(Volume, name, refuse_later)
        with pytest.raises(BackendError, match=f"flush at the owner: {told}"):
            await relay.flush(0)
        with pytest.raises(BackendError, match=f"read at the owner: {told}"):
            await relay.read_into(0, 0, memoryview(bytearray(5)))
        heard: list[Relay | Relayed | None] = []
        relay.write(0, data(OLD), heard.append)
        while not heard:
            await trio.sleep(0.005)
        assert heard == [Relayed(3, (getattr(errno, told),))]


async def test_messages_of_the_relay_are_heard_by_a_host_that_takes_no_part(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its disk may be ill: its clients are served by the owner all the same."""
    async with in_time(), pair.both() as (active, standby):
        await open_relay(standby)
        standby._deaf = True
        standby.received([Serving(1, serves=False)])
        assert not standby.relay.open
        standby.received([Serving(1, serves=True)])
        assert await standby.relay.read_into(0, 0, memoryview(bytearray(5)))
        assert active.serves


@pytest.mark.parametrize("names", [("vdb", "vda"), ("vda",)])
async def test_clients_are_not_sent_to_a_host_that_numbers_other_volumes(
    pair: Pair, names: tuple[str, ...]
) -> None:
    """Its file names them in another order, and not all of them: the other volume would be written."""
    pair.create("vdb")
    async with (
        in_time(),
        open_guest(pair.config("a", names=("vda", "vdb"))) as active,
        open_guest(pair.config("b", names=names)) as standby,
    ):
        with standby.subscribe() as subscription:
            await await_event(subscription, RefusedEvent)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert active.serves
        assert not standby.relay.open
