"""The built-in witness as a whole: the suite over real sockets, killed, put back, its roll changed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from pairsync.core.witness import Snapshot, WitnessKey
from pairsync.errors import BackendError, BusyError, ConfigError, PeerError, RefusedError
from pairsync.io.admission import HANDSHAKES_A_SECOND
from pairsync.io.keys import make_identity
from pairsync.io.witness import WitnessClient, open_witness
from pairsync.io.witnessserver import PLACES
from pairsync.node.control import ask
from pairsync.node.witness import serve_witness
from pairsync.node.witnessdir import control_path, init_witness, remove_pair
from pairsync.storage.registerfile import FILE_NAME, LOST_NAME
from pairsync.testing.witness import (
    LOSS_CHECKS,
    RESTART_CHECKS,
    WITNESS_CHECKS,
    BuiltinBench,
    running_witness,
)

PAIR, OTHER = b"one pair of two!", b"another of two.."
PATIENCE_S = 20.0


async def patiently(ask: Callable[[], Awaitable[Snapshot]]) -> Snapshot:
    """The first answer of a witness that is away for a moment."""
    with trio.fail_after(PATIENCE_S):
        while True:
            try:
                return await ask()
            except PeerError:
                await trio.sleep(0.01)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[BuiltinBench]:
    async with running_witness(tmp_path / "w", PAIR) as bench:
        yield bench


async def test_the_suite_over_real_sockets(bench: BuiltinBench) -> None:
    for check in (*WITNESS_CHECKS, *RESTART_CHECKS, *LOSS_CHECKS):
        await check(bench)


async def test_a_store_put_back_is_another_voter(bench: BuiltinBench) -> None:
    async with bench.client() as client:
        first = await client.get(bench.key("db1"))
        await bench.end()
        shutil.copy2(bench.directory / FILE_NAME, bench.directory / "backup")
        await bench.start()
        async with bench.client() as other:
            await other.swap(bench.key("db1"), first.version, b"x")
        await bench.end()
        (bench.directory / "backup").replace(bench.directory / FILE_NAME)
        await bench.start()
        async with bench.client() as other:
            after = await other.get(bench.key("db1"))
        assert after.incarnation != first.incarnation
        assert after.value is None
        assert (bench.directory / LOST_NAME).exists()
        assert "is a copy" in (await bench.status())["began_anew"]


async def test_a_machine_put_back_as_a_whole_is_noticed_by_its_hosts(bench: BuiltinBench) -> None:
    async with bench.client() as client:
        first = await client.get(bench.key("db1"))
        before = (bench.directory / FILE_NAME).read_bytes()
        await client.swap(bench.key("db1"), first.version, b"x")
        await bench.end()
        with (bench.directory / FILE_NAME).open("r+b") as file:  # the very file, as it was
            file.write(before)
        await bench.start()
        assert (await bench.status())["began_anew"] is None
        after = await patiently(lambda: client.get(bench.key("db1")))
        assert after.incarnation != first.incarnation
        assert after.value is None


async def test_ten_thousand_connections_cost_a_moment_and_hosts_are_served(bench: BuiltinBench) -> None:
    worst_s = 0.0
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    hello = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), hello).do_handshake()
    first_words = [b"", hello.read(), b"\x16", b"GET / HTTP/1.0\r\n\r\n"]

    async def ask(client: WitnessClient) -> None:
        nonlocal worst_s
        while True:
            began = trio.current_time()
            now = await client.get(bench.key("db1"))
            await client.swap(bench.key("db1"), now.version, b"x")
            worst_s = max(worst_s, trio.current_time() - began)
            await trio.sleep(0.01)

    async with bench.client() as client:
        before = await bench.status()
        began_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, client)
            for _ in range(40):
                strangers = [socket.socket() for _ in range(250)]  # within anybody's limit of descriptors
                for number, stranger in enumerate(strangers):
                    stranger.setblocking(False)
                    with contextlib.suppress(BlockingIOError):
                        stranger.connect(bench.address)
                    await trio.lowlevel.checkpoint()
                    with contextlib.suppress(OSError):
                        stranger.send(first_words[number % 4])
                assert (await bench.status())["half_open"] <= PLACES.address + PLACES.peers
                for stranger in strangers:
                    stranger.close()
            nursery.cancel_scope.cancel()
        await client.get(bench.key("db1"))
        assert client.connections == 1
        with trio.fail_after(PATIENCE_S):
            while True:
                after = await bench.status()
                if after["descriptors"] <= before["descriptors"] + 1 and not after["half_open"]:
                    break
                await trio.sleep(0.1)
        assert after["resident_bytes"] - before["resident_bytes"] < 32 << 20
        refused = dict(after["refusals"])
        assert sum(refused.values()) > 1000
        refused.pop("too many", None)  # at once; the others cost a handshake: no more than the pace lets in
        assert sum(refused.values()) <= HANDSHAKES_A_SECOND * (trio.current_time() - began_s + 1)
    assert worst_s < 5


async def test_the_roll_is_read_again_when_asked_and_on_sighup(bench: BuiltinBench) -> None:
    hosts = (make_identity(), make_identity())
    bench.enroll(OTHER, hosts)
    async with (
        bench.client() as mine,
        open_witness(bench.config(hosts[0], OTHER)) as theirs,
    ):
        key = WitnessKey(OTHER, "db1")
        with pytest.raises(RefusedError):
            await theirs.get(key)
        assert await ask(control_path(bench.directory), {"do": "reload"}) == {"ok": True, "pairs": 2}
        first = await patiently(lambda: theirs.get(key))
        remove_pair(bench.directory, OTHER.hex())
        os.kill(bench.pid, signal.SIGHUP)
        with trio.fail_after(PATIENCE_S):
            while (await bench.status())["pairs"] != 1 or theirs.connected:
                await trio.sleep(0.01)
        with pytest.raises(PeerError):
            await theirs.get(key)
        await mine.get(bench.key("db1"))
        assert mine.connections == 1
        bench.enroll(OTHER, hosts)
        await ask(control_path(bench.directory), {"do": "reload"})
        assert (await patiently(lambda: theirs.get(key))).incarnation != first.incarnation


async def test_a_damaged_roll_changes_nothing(bench: BuiltinBench) -> None:
    (bench.directory / "pairs" / "nonsense.pem").write_text("")
    with pytest.raises(ConfigError, match="no pair id"):
        await ask(control_path(bench.directory), {"do": "reload"})
    os.kill(bench.pid, signal.SIGHUP)
    async with bench.client() as client:
        await client.get(bench.key("db1"))


async def test_it_ends_in_order_and_keeps_what_it_has(bench: BuiltinBench) -> None:
    async with bench.client() as client:
        first = await client.get(bench.key("db1"))
    for how in (signal.SIGINT, signal.SIGTERM):
        assert await bench.end(how) == 0
        await bench.start()
    async with bench.client() as client:
        assert await client.get(bench.key("db1")) == first


async def test_it_can_be_embedded(tmp_path: Path, nursery: trio.Nursery) -> None:
    init_witness(tmp_path / "w", [("127.0.0.1", 0)])
    ready = await nursery.start(partial(serve_witness, tmp_path / "w"))
    assert ready["pid"] == os.getpid()
    status = (await ask(control_path(tmp_path / "w"), {"do": "status"}))["witness"]
    assert (status["pairs"], status["connections"], status["began_anew"]) == (0, 0, None)
    with pytest.raises(BusyError, match=r"the witness in .* is up"):
        await serve_witness(tmp_path / "w")
    host, _, port = ready["address"].rpartition(":")
    init_witness(tmp_path / "other", [(host, int(port))])
    with pytest.raises(BackendError, match=r"cannot listen on 127\.0\.0\.1"):
        await serve_witness(tmp_path / "other")


def test_it_can_be_embedded_in_a_thread_of_its_own(tmp_path: Path) -> None:
    init_witness(tmp_path, [("127.0.0.1", 0)])
    pairs: list[int] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve_witness, tmp_path))
            pairs.append((await ask(control_path(tmp_path), {"do": "reload"}))["pairs"])
            nursery.cancel_scope.cancel()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    thread.join(PATIENCE_S)
    assert pairs == [0]
