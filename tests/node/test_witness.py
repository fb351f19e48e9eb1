"""The built-in witness as a whole: the suite over real sockets, killed, put back, its roll changed."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from pairsync.core.witness import Snapshot, WitnessKey
from pairsync.errors import BackendError, BusyError, ConfigError, PeerError, RefusedError
from pairsync.io.keys import make_identity
from pairsync.io.witness import open_witness
from pairsync.node.control import ask
from pairsync.node.witness import serve_witness
from pairsync.node.witnessdir import control_path, init_witness, remove_pair
from pairsync.storage.registerfile import FILE_NAME, LOST_NAME
from pairsync.testing.witness import (
    LOSS_CHECKS,
    RESTART_CHECKS,
    WITNESS_CHECKS,
    BuiltinBench,
    WitnessCheck,
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
    for check in WITNESS_CHECKS:
        await check(bench)


@pytest.mark.parametrize("check", [*RESTART_CHECKS, *LOSS_CHECKS], ids=lambda check: check.__name__)
async def test_the_suite_with_kills_and_losses(bench: BuiltinBench, check: WitnessCheck) -> None:
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


async def test_a_second_witness_in_the_same_place_is_refused(bench: BuiltinBench) -> None:
    with pytest.raises(BusyError, match=r"the witness in .* is up"):
        await serve_witness(bench.directory)


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
    init_witness(tmp_path, [("127.0.0.1", 0)])
    ready = await nursery.start(partial(serve_witness, tmp_path))
    assert ready["pid"] == os.getpid()
    assert ready["address"].startswith("127.0.0.1:")
    status = (await ask(control_path(tmp_path), {"do": "status"}))["witness"]
    assert (status["pairs"], status["connections"], status["began_anew"]) == (0, 0, None)


async def test_an_address_that_is_taken_is_named(bench: BuiltinBench, tmp_path: Path) -> None:
    init_witness(tmp_path / "other", [bench.address])
    with pytest.raises(BackendError, match="cannot listen on 127"):
        await serve_witness(tmp_path / "other")
