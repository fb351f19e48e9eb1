"""The control channel: hello from both ends, messages in any pieces, the last word."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio
from tests.io.harness import PAIR_ID, MemoryConnection, Pair

from pairsync.errors import PeerError, PeerLost, ProtocolError, RefusedError
from pairsync.io.control import ControlChannel, Introduction, accept_control, dial_control
from pairsync.io.gate import Gate
from pairsync.io.tls import TlsContexts, TlsStream
from pairsync.wire.hello import Bye, Hello, Ping, Pong, Refuse, Welcome


@dataclasses.dataclass
class Ends:
    """Two hosts with a connection between them, before the handshake."""

    pair: Pair

    def __post_init__(self) -> None:
        self.near = MemoryConnection(("10.0.0.2", 7000), 1 << 20)
        self.far = MemoryConnection(("10.0.0.1", 40000), 1 << 20)
        self.near.peer, self.far.peer = self.far, self.near
        self.dialing = TlsContexts(self.pair.dialer, self.pair.listener.certificate_pem)
        self.listening = TlsContexts(self.pair.listener, self.pair.dialer.certificate_pem)
        self.dialer = Introduction("dialer 1", PAIR_ID, self.pair.dialer.fingerprint, (1, 1))
        self.listener = Introduction("listener 1", PAIR_ID, self.pair.listener.fingerprint, (1, 1))

    async def dial(self) -> tuple[ControlChannel, Welcome]:
        stream = TlsStream(self.near, Gate(), self.dialing, dialing=True, who="listener")
        pinned = self.pair.listener.fingerprint
        return await dial_control(stream, self.dialer, pinned, path="copper", rank=2, who="listener")

    async def accept(self) -> tuple[ControlChannel, Hello, int]:
        stream = TlsStream(self.far, Gate(), self.listening, dialing=False, who="dialer")
        return await accept_control(stream, self.listener, self.pair.dialer.fingerprint, who="dialer")

    async def raw(self, *, dialing: bool) -> ControlChannel:
        connection, contexts = (self.near, self.dialing) if dialing else (self.far, self.listening)
        stream = TlsStream(connection, Gate(), contexts, dialing=dialing, who="raw")
        await stream.handshake()
        return ControlChannel(stream, "raw")


async def both(*work: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Run all; a result is what was returned, or the `PeerError` that was raised."""
    results: list[Any] = [None] * len(work)

    async def one(index: int) -> None:
        try:
            results[index] = await work[index]()
        except PeerError as error:
            results[index] = error

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for index in range(len(work)):
                nursery.start_soon(one, index)
    return results


async def test_hello_and_welcome(pair: Pair) -> None:
    ends = Ends(pair)
    (near, welcome), (far, hello, version) = await both(ends.dial, ends.accept)
    assert (welcome.software, welcome.protocol, version) == ("listener 1", 1, 1)
    assert (hello.path, hello.rank, hello.software) == ("copper", 2, "dialer 1")
    await near.send(Ping(1))
    await near.send(Ping(2))
    assert [await far.receive(), await far.receive()] == [Ping(1), Ping(2)]
    await far.send(Pong(2))
    assert await near.receive() == Pong(2)
    assert (near.who, far.who) == ("listener", "dialer")
    ends.far.close()
    with pytest.raises(PeerLost, match="listener"):
        await near.receive()


async def test_many_senders_keep_messages_whole(pair: Pair) -> None:
    ends = Ends(pair)
    (near, _), (far, _, _) = await both(ends.dial, ends.accept)
    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(near.send, Ping(number))
    assert {(await far.receive()).number for _ in range(50)} == set(range(50))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"protocols": (2, 3)}, "peer speaks 1..1, we speak 2..3"),
        ({"pair_id": b"q" * 16}, "pair 6f6e6520 asked for, this is pair 71717171"),
    ],
)
async def test_the_listener_refuses_in_words(pair: Pair, change: dict[str, Any], why: str) -> None:
    ends = Ends(pair)
    ends.listener = dataclasses.replace(ends.listener, **change)
    at_dialer, at_listener = await both(ends.dial, ends.accept)
    assert isinstance(at_dialer, RefusedError)
    assert isinstance(at_listener, RefusedError)
    assert str(at_dialer) == f"listener refused: no common protocol version: {why}" or why in str(at_dialer)
    assert why in str(at_listener)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (Welcome(1, "s", b"q" * 16, b"?" * 32), "pair 71717171"),
        (Welcome(1, "s", PAIR_ID, b"f" * 32), "claims key 6666"),
        (Welcome(9, "s", PAIR_ID, b"?" * 32), "peer speaks 9..9"),
    ],
)
async def test_the_dialer_refuses_in_words(pair: Pair, answer: Welcome, why: str) -> None:
    ends = Ends(pair)

    async def liar() -> Any:
        channel = await ends.raw(dialing=False)
        await channel.receive()
        if answer.fingerprint == b"?" * 32:
            await channel.send(dataclasses.replace(answer, fingerprint=pair.listener.fingerprint))
        else:
            await channel.send(answer)
        return await channel.receive()

    at_dialer, at_liar = await both(ends.dial, liar)
    assert isinstance(at_dialer, RefusedError)
    assert why in str(at_dialer)
    assert isinstance(at_liar, Refuse)
    assert why in at_liar.reason


async def test_other_beginnings_are_protocol_errors(pair: Pair) -> None:
    ends = Ends(pair)

    async def says(dialing: bool, message: Any) -> None:
        channel = await ends.raw(dialing=dialing)
        if not dialing:
            await channel.receive()
        await channel.send(message)

    at_listener, _ = await both(ends.accept, lambda: says(True, Ping(1)))
    assert isinstance(at_listener, ProtocolError)
    assert "begins with Ping" in str(at_listener)
    ends = Ends(pair)
    at_dialer, _ = await both(ends.dial, lambda: says(False, Bye("what")))
    assert isinstance(at_dialer, ProtocolError)
    assert "Bye in answer to Hello" in str(at_dialer)


async def test_a_farewell_waits_for_the_other_end_but_not_for_long(
    pair: Pair, autojump_clock: trio.testing.MockClock
) -> None:
    ends = Ends(pair)
    (near, _), (far, _, _) = await both(ends.dial, ends.accept)
    began = trio.current_time()
    await near.farewell(Bye("night"))
    assert 0 < trio.current_time() - began < 1
    assert await far.receive() == Bye("night")
    ends.near.sever()
    await near.farewell(Bye("night"))  # to nobody


async def test_who_hangs_up_is_the_peers_loss_in_every_version_of_python(pair: Pair) -> None:
    """At the end some raise and some read nothing, which must not be asked for again and again."""
    ends = Ends(pair)
    near, _ = await both(partial(ends.raw, dialing=True), partial(ends.raw, dialing=False))
    near._stream._tls = ReadsNothing()
    with trio.fail_after(5), pytest.raises(PeerLost, match="raw: the other end hung up"):
        await near.receive()


class ReadsNothing:
    """What ``ssl.SSLObject`` of Python 3.11.2 is at the end."""

    def read(self, _size_bytes: int) -> bytes:
        return b""
