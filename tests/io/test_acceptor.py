"""Strangers, old peers and liars at the listening end: refused in words, the session untouched."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from tests.io.conftest import StartRelay
from tests.io.harness import PAIR_ID, MemoryNetwork, Pair, Recorder, make_write

from pairsync.core.units import NS_PER_MS, NS_PER_S
from pairsync.errors import PeerLost, RefusedError
from pairsync.io import Address, Link, TcpNetwork, make_identity
from pairsync.io.acceptor import CONTROLS_MAX
from pairsync.io.admission import HALF_OPEN_PEER_MAX
from pairsync.io.control import ControlChannel, Introduction, dial_control
from pairsync.io.gate import Gate
from pairsync.io.tls import TlsContexts, TlsStream
from pairsync.wire.hello import Bye, LaneAccept, LaneOffer, LaneRefuse, Ping, pack_lane_preamble


@dataclasses.dataclass
class Running:
    """A pair with a session up, and how to show that it is not disturbed."""

    active: Recorder
    standby: Recorder
    link: Link
    listening: Link
    number: int = 0

    @property
    def address(self) -> Address:
        return self.listening.addresses[0]

    def refused(self, kind: str) -> int:
        return self.listening.statistics().refused.get(kind, 0)

    async def until_refused(self, kind: str, count: int = 1) -> None:
        with trio.fail_after(20):
            while self.refused(kind) < count:
                await trio.sleep(0.01)

    async def works(self) -> None:
        """The same session still carries messages both ways."""
        self.number += 1
        self.link.send([make_write(self.number)])
        await self.active.until(lambda: self.active.numbers() == list(range(1, self.number + 1)))
        assert len(self.active.sessions) == len(self.standby.sessions) == 1


@contextlib.asynccontextmanager
async def running(pair: Pair, **changes: Any) -> AsyncIterator[Running]:
    active, standby = Recorder(), Recorder(answer=True)
    async with (
        pair.listen(standby, **changes) as listening,
        pair.dial(active, listening.addresses[0]) as link,
    ):
        await active.until_up()
        await standby.until_up()
        yield Running(active, standby, link, listening)


@contextlib.asynccontextmanager
async def control_as(
    pair: Pair, address: Address, *, path: str = "other", protocols: tuple[int, int] = (1, 1), **changes: Any
) -> AsyncIterator[ControlChannel]:
    """An authenticated control connection of the dialing host, made by hand."""
    me = Introduction("by hand", PAIR_ID, pair.dialer.fingerprint, protocols)
    contexts = TlsContexts(pair.dialer, pair.listener.certificate_pem)
    connection = await TcpNetwork().connect(address, None)
    try:
        channel, _ = await dial_control(
            TlsStream(connection, Gate(), contexts, dialing=True, who="by hand"),
            dataclasses.replace(me, **changes),
            contexts.peer_fingerprint,
            path=path,
            rank=1,
            who="by hand",
        )
        yield channel
    finally:
        connection.close()


def offer(lane: bytes = b"l" * 16, *, session: bytes = b"s" * 16, join: bool = False) -> LaneOffer:
    return LaneOffer(lane, session, join, b"x" * 32)


async def talk_tls(address: Address, context: ssl.SSLContext) -> bytes:
    """What a TLS client of its own gets to read after its handshake."""
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    stream = trio.SSLStream(await trio.open_tcp_stream(*address), context)
    try:
        await stream.do_handshake()
        await stream.send_all(b"let me in")
        return bytes(await stream.receive_some(100))
    finally:
        await trio.aclose_forcefully(stream)


async def test_a_stranger_without_a_certificate(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    async with running(pair) as pairing:
        with pytest.raises(trio.BrokenResourceError):
            await talk_tls(pairing.address, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        await pairing.until_refused("handshake")
        await pairing.works()
    assert "a certificate is missing" in caplog.text


async def test_a_wrong_key(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    stranger = make_identity()
    async with running(pair) as pairing:
        with pytest.raises(trio.BrokenResourceError):
            await talk_tls(pairing.address, TlsContexts(stranger, pair.listener.certificate_pem).dialer)
        await pairing.until_refused("handshake")
        await pairing.works()
    assert "the certificate shown is not the pinned one" in caplog.text


async def test_tls_1_2_is_not_spoken(pair: Pair) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with running(pair) as pairing:
        with pytest.raises(trio.BrokenResourceError):
            await talk_tls(pairing.address, context)
        await pairing.until_refused("handshake")
        await pairing.works()


@pytest.mark.parametrize(
    ("said", "kind", "logged"),
    [
        (b"GET / HTTP/1.1\r\nHost: me\r\n\r\n", "protocol", "neither TLS nor a lane"),
        (bytes(1000), "protocol", "neither TLS nor a lane"),
        (b"\x16\x03\x01" + b"\xff" * 500, "handshake", "TLS"),
        (b"", "hung up", "before it said anything"),
        (b"PSL", "hung up", "before it said anything"),
        (b"\x16\x03\x01\x02\x00", "hung up", "TLS"),
        (pack_lane_preamble(b"unknown lane id!") + bytes(40), "handshake", "unknown or expired"),
    ],
)
async def test_noise(
    pair: Pair, caplog: pytest.LogCaptureFixture, said: bytes, kind: str, logged: str, leak_guard: Any
) -> None:
    async with running(pair) as pairing:
        leak_guard.rebase()
        async with await trio.open_tcp_stream(*pairing.address) as stream:
            with contextlib.suppress(trio.BrokenResourceError):
                if said:
                    await stream.send_all(said)
                await stream.send_eof()
                while await stream.receive_some():
                    pass
        with trio.fail_after(20):
            while not pairing.listening.statistics().refused:
                await trio.sleep(0.01)
        await pairing.works()
        await leak_guard.settle()
    assert "refused" in caplog.text
    assert logged in caplog.text or kind == "hung up"


async def test_an_idle_connection_is_thrown_out_at_its_deadline(
    pair: Pair,
    memory: MemoryNetwork,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running(pair) as pairing:
        connection = await memory.connect(pairing.address, None)
        await trio.sleep(1)
        assert pairing.listening.statistics().half_open == 1
        await trio.sleep(pair.timings.handshake_ns / NS_PER_S)
        assert pairing.listening.statistics().half_open == 0
        assert pairing.refused("half-open") == 1
        assert connection.ended
        await pairing.works()
    assert "no handshake in time" in caplog.text


async def test_idle_strangers_take_no_place_from_the_peer(
    pair: Pair, start_relay: StartRelay, leak_guard: Any
) -> None:
    active, standby = Recorder(), Recorder(answer=True)
    async with pair.listen(standby) as listening:
        relay = await start_relay(listening.addresses[0])
        async with pair.dial(active, relay.address) as link:
            await active.until_up()
            leak_guard.rebase()
            streams: list[trio.SocketStream] = []

            async def idle() -> None:
                with contextlib.suppress(OSError):
                    streams.append(await trio.open_tcp_stream(*listening.addresses[0]))

            async with trio.open_nursery() as nursery:
                for _ in range(150):
                    nursery.start_soon(idle)
            with trio.fail_after(20):
                while listening.statistics().refused.get("half-open", 0) < 20:
                    await trio.sleep(0.01)
            assert listening.statistics().half_open <= HALF_OPEN_PEER_MAX
            relay.kill()
            await active.until(lambda: len(active.sessions) >= 2 and active.up)
            await standby.until(lambda: len(standby.sessions) >= 2 and standby.up)
            link.send([make_write(1)])
            await active.until(lambda: active.messages)
            for stream in streams:
                await stream.aclose()
            await leak_guard.settle()


async def test_another_pair(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    async with running(pair) as pairing:
        with pytest.raises(RefusedError, match="pair 6f746865 asked for, this is pair 6f6e6520"):
            async with control_as(pair, pairing.address, pair_id=b"other pair id 16"):
                pass
        await pairing.until_refused("handshake")
        await pairing.works()
    assert "pair 6f746865 asked for" in caplog.text


async def test_another_fingerprint_than_the_key_shown(pair: Pair) -> None:
    async with running(pair) as pairing:
        with pytest.raises(RefusedError, match="claims key 6666"):
            async with control_as(pair, pairing.address, fingerprint=b"f" * 32):
                pass
        await pairing.works()


@pytest.mark.parametrize("old_side", ["dialer", "listener"])
async def test_an_old_peer_is_refused_with_both_ranges(
    pair: Pair, old_side: str, caplog: pytest.LogCaptureFixture
) -> None:
    new, old = {"protocol_min": 3, "protocol_max": 4}, {"protocol_min": 1, "protocol_max": 2}
    active, standby = Recorder(), Recorder()
    async with (
        pair.listen(standby, **(old if old_side == "listener" else new)) as listening,
        pair.dial(active, listening.addresses[0], **(old if old_side == "dialer" else new)) as link,
    ):
        with trio.fail_after(20):
            while not (link.statistics().refused and listening.statistics().refused):
                await trio.sleep(0.01)
        assert set(listening.statistics().refused) == {"handshake"}
    assert not active.events
    assert not standby.events
    peers_view = (
        "peer speaks 1..2, we speak 3..4" if old_side == "dialer" else "peer speaks 3..4, we speak 1..2"
    )
    assert peers_view in caplog.text


async def test_neighbouring_versions_agree_on_the_common_one(pair: Pair) -> None:
    active, standby = Recorder(), Recorder()
    async with (
        pair.listen(standby, protocol_min=1, protocol_max=1) as listening,
        pair.dial(active, listening.addresses[0], protocol_min=1, protocol_max=7),
    ):
        await active.until_up()
        assert active.sessions[0].protocol == 1


async def test_the_host_that_dials_refuses_to_be_dialled(pair: Pair) -> None:
    active, standby = Recorder(), Recorder()
    async with (
        pair.listen(standby) as listening,
        pair.dial(active, listening.addresses[0], listen=(("127.0.0.1", 0),)) as link,
    ):
        await active.until_up()
        swapped = Pair(pair.listener, pair.dialer)
        async with control_as(swapped, link.addresses[0]) as channel:
            assert "it dials, you listen" in str(await channel.receive())
        with trio.fail_after(20):
            while link.statistics().refused.get("handshake") != 1:
                await trio.sleep(0.01)


async def test_a_replayed_lane_is_refused(
    pair: Pair, start_relay: StartRelay, caplog: pytest.LogCaptureFixture
) -> None:
    active, standby = Recorder(), Recorder(answer=True)
    async with pair.listen(standby) as listening:
        relay = await start_relay(listening.addresses[0])
        async with pair.dial(active, relay.address) as link:
            await active.until_up()
            await standby.until_up()
            pairing = Running(active, standby, link, listening)
            (captured,) = relay.lane_starts
            replay = await trio.open_tcp_stream(*listening.addresses[0])
            await replay.send_all(captured)
            await pairing.until_refused("handshake")
            await pairing.works()
            await replay.aclose()
    assert "was used already" in caplog.text


async def test_a_token_without_its_key_is_not_spent(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    """Who knows a lane's id, but not its key, can neither open the lane nor keep its owner from it."""
    async with running(pair) as pairing, control_as(pair, pairing.address) as channel:
        await channel.send(offer())
        assert isinstance(await channel.receive(), LaneAccept)
        thief = await trio.open_tcp_stream(*pairing.address)
        await thief.send_all(pack_lane_preamble(b"l" * 16) + (36).to_bytes(4, "big") + bytes(36))
        await pairing.until_refused("protocol")
        await thief.aclose()
        assert "fails its seal" in caplog.text
        second = await trio.open_tcp_stream(*pairing.address)
        await second.send_all(pack_lane_preamble(b"l" * 16) + (36).to_bytes(4, "big") + bytes(36))
        await pairing.until_refused("protocol", 2)  # not "used already", not "unknown"
        await second.aclose()
        await pairing.works()


async def test_a_first_record_that_is_too_large(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    async with running(pair) as pairing, control_as(pair, pairing.address) as channel:
        await channel.send(offer())
        assert isinstance(await channel.receive(), LaneAccept)
        for length, logged in (
            (37, "a first record of 37 bytes"),
            (0xFFFFFFFF, "4294967295 bytes announced"),
        ):
            stream = await trio.open_tcp_stream(*pairing.address)
            await stream.send_all(pack_lane_preamble(b"l" * 16) + length.to_bytes(4, "big") + bytes(100))
            with contextlib.suppress(trio.BrokenResourceError):
                assert await stream.receive_some() == b""
            await stream.aclose()
            assert logged in caplog.text
        await pairing.works()


async def test_an_offered_lane_that_never_comes(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    timings = dataclasses.replace(pair.timings, handshake_ns=300 * NS_PER_MS)
    async with running(pair, timings=timings) as pairing, control_as(pair, pairing.address) as channel:
        await channel.send(offer())
        assert isinstance(await channel.receive(), LaneAccept)
        with pytest.raises(PeerLost, match="hung up"):
            await channel.receive()
        late = await trio.open_tcp_stream(*pairing.address)
        await late.send_all(pack_lane_preamble(b"l" * 16) + (36).to_bytes(4, "big") + bytes(36))
        await pairing.until_refused("handshake")
        await late.aclose()
        await pairing.works()
    assert "no lane came" in caplog.text
    assert "unknown or expired" in caplog.text


async def test_a_session_that_is_not_there_cannot_be_joined(pair: Pair) -> None:
    async with running(pair) as pairing:
        async with control_as(pair, pairing.address) as channel:
            await channel.send(offer(session=b"never was a one!", join=True))
            answer = await channel.receive()
            assert isinstance(answer, LaneRefuse)
            assert answer.session_gone
        async with control_as(pair, pairing.address) as channel:
            await channel.send(offer(session=pairing.active.sessions[0].session_id))
            answer = await channel.receive()
            assert isinstance(answer, LaneRefuse)
            assert not answer.session_gone
        await pairing.works()


async def test_a_lane_id_is_good_for_one_offer(pair: Pair) -> None:
    async with running(pair) as pairing, control_as(pair, pairing.address) as first:
        await first.send(offer())
        assert isinstance(await first.receive(), LaneAccept)
        async with control_as(pair, pairing.address, path="third") as second:
            await second.send(offer())
            assert isinstance(await second.receive(), LaneRefuse)
        await pairing.works()


async def test_the_peer_out_of_turn(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    async with running(pair) as pairing:
        async with control_as(pair, pairing.address) as channel:
            await channel.send(Ping(1))
            answer = await channel.receive()
            assert isinstance(answer, Bye)
        async with control_as(pair, pairing.address) as channel:
            await channel.send(Bye("changed my mind"))
            with pytest.raises(PeerLost):
                await channel.receive()
        await pairing.works()
    assert "Ping where LaneOffer is expected" in caplog.text
    assert "changed my mind" in caplog.text


async def test_control_connections_are_bounded(pair: Pair) -> None:
    async with running(pair) as pairing, contextlib.AsyncExitStack() as stack:
        for number in range(CONTROLS_MAX - 1):  # one is in use
            await stack.enter_async_context(control_as(pair, pairing.address, path=f"p{number}"))
        channel = await stack.enter_async_context(control_as(pair, pairing.address, path="one too many"))
        message = await channel.receive()
        assert "control connections are open already" in str(message)
        await pairing.works()


async def test_refusals_are_logged_where_operators_look(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    async with running(pair) as pairing:
        stream = await trio.open_tcp_stream(*pairing.address)
        await stream.send_all(bytes(100))
        await pairing.until_refused("protocol")
        await stream.aclose()
    records = [record for record in caplog.records if "refused" in record.message]
    assert records[0].name == "pairsync.link"
    assert records[0].levelno == logging.WARNING
