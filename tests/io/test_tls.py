"""Mutual TLS 1.3 between pinned keys, over connections in memory."""

from __future__ import annotations

import ssl

import pytest
import trio
from tests.io.harness import MemoryConnection, Pair, connections

from pairsync.errors import ConfigError, InternalError, PeerLost, RefusedError
from pairsync.io.gate import Gate
from pairsync.io.keys import HostIdentity, certificate_der, make_identity
from pairsync.io.tls import ListenerPins, Pins, TlsContexts, TlsStream


async def shake(dialer: Pins, listener: Pins) -> tuple[str, str]:
    """Both handshakes, each followed by one message; what either end ended with."""
    near, far = connections()
    results = {"dialer": "good", "listener": "good"}

    async def side(contexts: Pins, connection: MemoryConnection, name: str) -> None:
        try:
            dialing = name == "dialer"
            stream = TlsStream(connection, Gate(), contexts, dialing=dialing, who=name)
            await stream.handshake()
            await stream.send_all(b"hi")
            assert await stream.receive_some() == b"hi"
        except (RefusedError, PeerLost) as error:
            results[name] = f"{type(error).__name__}: {error}"
        finally:
            connection.close()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(side, dialer, near, "dialer")
            nursery.start_soon(side, listener, far, "listener")
    return results["dialer"], results["listener"]


@pytest.fixture
def stranger() -> HostIdentity:
    return make_identity()


async def test_pinned_keys_meet(pair: Pair) -> None:
    dialer = TlsContexts(pair.dialer, pair.listener.certificate_pem)
    listener = TlsContexts(pair.listener, pair.dialer.certificate_pem)
    assert dialer.peer_fingerprint == pair.listener.fingerprint
    assert await shake(dialer, listener) == ("good", "good")


async def test_the_listener_refuses_a_wrong_key(pair: Pair, stranger: HostIdentity) -> None:
    dialer = TlsContexts(stranger, pair.listener.certificate_pem)
    listener = TlsContexts(pair.listener, pair.dialer.certificate_pem)
    at_dialer, at_listener = await shake(dialer, listener)
    assert at_listener.startswith("RefusedError: listener: TLS: the certificate shown is not the pinned one")
    # TLS 1.3: the dialer's handshake had ended well; only its first read told it
    assert at_dialer.startswith("RefusedError: dialer: TLS: the other end does not accept our certificate")


async def test_the_dialer_refuses_a_wrong_key(pair: Pair, stranger: HostIdentity) -> None:
    dialer = TlsContexts(pair.dialer, pair.listener.certificate_pem)
    listener = TlsContexts(stranger, pair.dialer.certificate_pem)
    at_dialer, at_listener = await shake(dialer, listener)
    assert "not the pinned one" in at_dialer
    assert at_listener != "good"


async def test_the_fingerprint_decides_even_where_the_trust_store_agrees(
    pair: Pair, stranger: HostIdentity
) -> None:
    dialer = TlsContexts(pair.dialer, pair.listener.certificate_pem)
    dialer.dialer.load_verify_locations(cadata=stranger.certificate_pem.decode())
    listener = TlsContexts(stranger, pair.dialer.certificate_pem)
    at_dialer, _ = await shake(dialer, listener)
    assert "is not the pinned one" in at_dialer


def test_contexts_are_strict(pair: Pair) -> None:
    contexts = TlsContexts(pair.dialer, pair.listener.certificate_pem)
    for context in (contexts.dialer, contexts.listener):
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.minimum_version is context.maximum_version is ssl.TLSVersion.TLSv1_3
        assert context.options & ssl.OP_NO_TICKET
        assert context.cert_store_stats()["x509"] == 1
    assert contexts.listener.num_tickets == 0


def test_a_host_is_not_its_own_peer(pair: Pair) -> None:
    with pytest.raises(ConfigError, match="this host's own"):
        TlsContexts(pair.dialer, pair.dialer.certificate_pem)


def test_a_damaged_key_is_named(pair: Pair) -> None:
    damaged = HostIdentity(b"no key", pair.dialer.certificate_pem, pair.dialer.fingerprint)
    with pytest.raises(ConfigError, match="cannot be used"):
        TlsContexts(damaged, pair.listener.certificate_pem)


def stream(connection: MemoryConnection, pair: Pair, *, dialing: bool, ahead: bytes = b"") -> TlsStream:
    mine, peer = (pair.dialer, pair.listener) if dialing else (pair.listener, pair.dialer)
    contexts = TlsContexts(mine, peer.certificate_pem)
    return TlsStream(connection, Gate(), contexts, dialing=dialing, who="someone", ahead=ahead)


async def shaken(pair: Pair, capacity_bytes: int = 1 << 20) -> tuple[TlsStream, TlsStream]:
    """Both ends after their handshakes; the listener's first bytes were read ahead."""
    near, far = connections(capacity_bytes)
    dialer = stream(near, pair, dialing=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(dialer.handshake)
        await far.wait_readable()
        ahead = memoryview(bytearray(5))
        assert far.receive_nowait(ahead) == 5
        listener = stream(far, pair, dialing=False, ahead=bytes(ahead))
        await listener.handshake()
    return dialer, listener


async def test_more_than_the_connection_takes_at_once(pair: Pair) -> None:
    dialer, listener = await shaken(pair, capacity_bytes=100)
    got = bytearray()
    data = bytes(range(256)) * 200
    async with trio.open_nursery() as nursery:
        nursery.start_soon(dialer.send_all, data)
        while len(got) < len(data):
            got += await listener.receive_some()
    assert got == data


async def test_the_end_and_broken_connections_are_the_peers_loss(pair: Pair) -> None:
    dialer, listener = await shaken(pair)
    listener._connection.close()
    with pytest.raises(PeerLost, match=r"someone: .*reset"):
        await dialer.send_all(b"x")
    with pytest.raises(PeerLost, match=r"someone: the other end hung up"):
        await dialer.receive_some()


async def test_what_is_not_tls_any_more_is_refused_and_told(pair: Pair) -> None:
    dialer, listener = await shaken(pair)
    dialer._connection.send_nowait(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(RefusedError, match=r"someone: TLS: "):
        await listener.receive_some()
    with pytest.raises(RefusedError, match=r"someone: TLS: .*alert"):
        await dialer.receive_some()


async def test_a_shut_gate_holds_tls_back(pair: Pair) -> None:
    dialer, listener = await shaken(pair)
    dialer._gate.close()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(dialer.send_all, b"later")
        await trio.testing.wait_all_tasks_blocked()
        assert isinstance(listener._connection, MemoryConnection)
        before = len(listener._connection.buffer)
        dialer._gate.open()
    assert before == 0
    assert await listener.receive_some() == b"later"


async def test_one_listener_knows_many_dialers_and_no_stranger(pair: Pair, stranger: HostIdentity) -> None:
    others = [make_identity() for _ in range(50)]  # all with the same name in their certificates
    many = ListenerPins(
        pair.listener,
        [certificate_der(one.certificate_pem) for one in (*others[:25], pair.dialer, *others[25:])],
    )
    dialer = TlsContexts(pair.dialer, pair.listener.certificate_pem)
    assert await shake(dialer, many) == ("good", "good")
    _, listener_end = await shake(TlsContexts(stranger, pair.listener.certificate_pem), many)
    assert "not the pinned one" in listener_end
    nobody = ListenerPins(pair.listener, [])
    _, listener_end = await shake(dialer, nobody)
    assert "not the pinned one" in listener_end
    with pytest.raises(InternalError, match="dials nobody"):
        nobody.dialer  # noqa: B018
