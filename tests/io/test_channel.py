"""A channel of any vocabulary: what arrives together, and a farewell that is heard."""

from __future__ import annotations

import trio
from tests.io.harness import MemoryConnection, Pair

from pairsync.io.channel import Channel, accept_handshake
from pairsync.io.gate import Gate
from pairsync.io.tls import TlsContexts, TlsStream
from pairsync.wire.witness import WITNESS, Beat, Declined, WitnessMessage


async def channels(pair: Pair) -> tuple[Channel[WitnessMessage], Channel[WitnessMessage], bytes]:
    near, far = MemoryConnection(("a", 1), 1 << 20), MemoryConnection(("b", 2), 1 << 20)
    near.peer, far.peer = far, near
    dialing = TlsContexts(pair.dialer, pair.listener.certificate_pem)
    listening = TlsContexts(pair.listener, pair.dialer.certificate_pem)
    dialer = TlsStream(near, Gate(), dialing, dialing=True, who="listener")
    listener = TlsStream(far, Gate(), listening, dialing=False, who="dialer")
    shown: list[bytes] = []

    async def accept() -> None:
        shown.append(await accept_handshake(listener))

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dialer.handshake)
            nursery.start_soon(accept)
    return Channel(dialer, WITNESS, "listener"), Channel(listener, WITNESS, "dialer"), shown[0]


async def test_messages_arrive_in_order_and_whole(pair: Pair) -> None:
    near, far, shown = await channels(pair)
    assert shown == pair.dialer.fingerprint
    for number in range(1, 40):
        await near.send(Beat(number))
    with trio.fail_after(20):
        assert [await far.receive() for _ in range(1, 40)] == [Beat(number) for number in range(1, 40)]


async def test_a_farewell_is_heard_and_does_not_wait_for_ever(pair: Pair) -> None:
    near, far, _ = await channels(pair)
    with trio.fail_after(20):
        await far.farewell(Declined("not today"))  # the other end neither reads nor hangs up
        assert await near.receive() == Declined("not today")
