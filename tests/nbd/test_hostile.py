"""Hostile sessions beside a healthy client: it works on, and afterwards everything has come back.

A couple of seconds by default; ``PAIRSYNC_HOSTILE_S=60`` makes it the minute that a release deserves.
"""

from __future__ import annotations

import ctypes
import gc
import os
import random
import resource
import struct
from pathlib import Path
from typing import Protocol

import pytest
import trio

from pairsync.core.units import KIB, MIB
from pairsync.errors import PeerLost
from pairsync.nbd import NbdLimits
from pairsync.nbd import constants as c
from pairsync.nbd.limits import OPTION_BYTES_MAX
from pairsync.node.memory import resident_bytes
from pairsync.testing.nbd_client import NbdClient
from pairsync.testing.nbd_memory import MemoryExport
from pairsync.testing.nbd_service import NbdService, serving_nbd

HOSTILE_S = float(os.environ.get("PAIRSYNC_HOSTILE_S", "2"))
ATTACKERS = 8
IDLE_HANDSHAKES = 1000
RSS_GROWTH_BYTES_MAX = 8 * MIB
SETTLE_S = 20.0

option = NbdClient.option_bytes
request = NbdClient.request_bytes


class Leaks(Protocol):
    """What the fixture `leak_guard` gives."""

    def rebase(self) -> None: ...
    async def settle(self) -> None: ...


def _rss_bytes() -> int:
    """Memory in use: what the allocator keeps for the next burst is no leak."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return resident_bytes()


# -- what attackers say --------------------------------------------------------------------------------------


def _options(chance: random.Random) -> list[bytes]:
    name = chance.choice(["vda", "", "none", "x" * 5000])
    return [
        option(c.OPT_STRUCTURED_REPLY),
        option(c.OPT_LIST),
        option(c.OPT_LIST, b"unwanted"),
        option(c.OPT_STARTTLS),
        option(c.OPT_INFO, NbdClient.info_data(name, [c.INFO_BLOCK_SIZE] * chance.randrange(4))),
        option(c.OPT_SET_META_CONTEXT, NbdClient.meta_data(name, ["base:allocation", "pairsync:dirty"])),
        option(c.OPT_LIST_META_CONTEXT, NbdClient.meta_data(name, ["base:"] * chance.randrange(100))),
        option(chance.randrange(1 << 32), chance.randbytes(20)),
        option(
            c.OPT_INFO, length=chance.choice([OPTION_BYTES_MAX, OPTION_BYTES_MAX + 1, 1 << 20, 0xFFFFFFFF])
        ),
        option(c.OPT_LIST) * 300,
        option(c.OPT_SET_META_CONTEXT, struct.pack(">II", 0, 0xFFFFFFFF)),
        chance.randbytes(40),
    ]


def _requests(chance: random.Random) -> list[bytes]:
    offset = chance.choice([0, 4096, 8 * MIB - 1, (1 << 64) - 1])
    length = chance.choice([0, 1, 4096, 200_000, 32 * MIB, 64 * MIB + 1, 0xFFFFFFFF])
    kind = chance.randrange(10)
    payload = bytes(min(length, 300_000)) if kind == c.CMD_WRITE else b""
    return [
        request(kind, offset, length, flags=chance.randrange(64), payload=payload),
        request(c.CMD_READ, 0, 64 * KIB) * 100,  # whose answers nobody takes
        request(c.CMD_WRITE, 1 * MIB, 4096, payload=b"hostile!" * 512),
        request(c.CMD_WRITE, 1 * MIB, 32 * MIB, payload=b"never the whole of it"),
        request(c.CMD_BLOCK_STATUS, 0, 8 * MIB) * 50,
        request(c.CMD_FLUSH) * 50,
        request(c.CMD_DISC),
        chance.randbytes(28),
    ]


def _conversation(chance: random.Random) -> bytes:
    """A session that is right or wrong in places, cut off anywhere."""
    parts = [struct.pack(">I", chance.choice([3, 3, 3, 1, 0, 0xFF]))]
    parts += chance.choices(_options(chance), k=chance.randrange(4))
    if chance.random() < 0.7:
        parts.append(option(c.OPT_GO, NbdClient.info_data("vda")))
        parts += chance.choices(_requests(chance), k=chance.randrange(6))
    data = bytearray(b"".join(parts))
    if data and chance.random() < 0.3:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data[: chance.randrange(len(data) + 1)] if chance.random() < 0.5 else data)


async def _attack(service: NbdService, seed: int, done: list[int]) -> None:
    """One hostile session after the other until cancelled."""
    chance = random.Random(seed)
    while True:
        data = _conversation(chance)
        async with await NbdClient.connect_unix(str(service.path)) as client:
            with trio.move_on_after(0.05):  # an attacker need not wait for a server that does not read
                try:
                    for start in range(0, len(data), 10_000):
                        await client.send(data[start : start + 10_000])
                    if chance.random() < 0.5:
                        await client.wait_hang_up()
                except PeerLost:
                    pass
        done[0] += 1


async def _work(service: NbdService, turns: list[int], *, until: trio.Event | None = None) -> None:
    """A healthy client: what it writes is what it reads, within a bounded time."""
    client = await service.client()
    base, number = 4 * MIB, 0
    while until is None or not until.is_set():
        data = number.to_bytes(8, "big") * 512
        with trio.fail_after(5):
            await client.write(base + number % 256 * 4096, data)
            assert await client.read(base + number % 256 * 4096, 4096) == data
        number += 1
        turns[0] += 1


async def _until_quiet(service: NbdService) -> None:
    with trio.fail_after(SETTLE_S):
        while True:
            statistics = service.server.statistics()
            if not statistics.connections and not statistics.handshaking and not statistics.bytes_in_flight:
                return
            await trio.sleep(0.01)


async def test_hostile_sessions(
    disk: MemoryExport, tmp_path: Path, leak_guard: Leaks, caplog: pytest.LogCaptureFixture
) -> None:
    limits = NbdLimits(handshake_deadline_s=0.5, drain_deadline_s=1.0)
    turns, sessions = [0], [0]
    async with serving_nbd(tmp_path, [disk], limits=limits) as service:
        leak_guard.rebase()
        with trio.move_on_after(0.3):  # warm up, so that what is compared is what hostility costs
            await _attack(service, 0, [0])
        await _until_quiet(service)
        before = _rss_bytes()
        with trio.move_on_after(HOSTILE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_work, service, turns)
                for number in range(ATTACKERS):
                    nursery.start_soon(_attack, service, number, sessions)
        for client in service.clients:
            await client.aclose()
        await _until_quiet(service)
        assert turns[0] > 20 * HOSTILE_S
        assert sessions[0] > 20 * HOSTILE_S
        reasons = service.server.statistics().refused
        assert {"handshake", "protocol"} <= set(reasons), reasons
        await leak_guard.settle()
        growth = _rss_bytes() - before
        assert growth < RSS_GROWTH_BYTES_MAX, f"{growth >> 20} MiB more after {sessions[0]} sessions"
        late = await service.client()
        assert await late.read(0, 4) == disk.peek(0, 4)
    assert len(caplog.records) < 200, "refusals must not flood the log"


@pytest.fixture
def many_descriptors() -> None:
    """The test holds the clients' ends as well."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * IDLE_HANDSHAKES + 500
    if soft != resource.RLIM_INFINITY and soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            pytest.skip(f"needs {wanted} descriptors, {hard} are allowed")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@pytest.mark.usefixtures("many_descriptors")
async def test_a_thousand_idle_handshakes(disk: MemoryExport, tmp_path: Path, leak_guard: Leaks) -> None:
    """A healthy client works on, and a new one gets in at any time."""
    turns, stop = [0], trio.Event()
    async with serving_nbd(tmp_path, [disk]) as service:
        leak_guard.rebase()
        before = _rss_bytes()
        idle: list[NbdClient] = []
        async with trio.open_nursery() as nursery:

            async def work() -> None:
                await _work(service, turns, until=stop)

            nursery.start_soon(work)
            for number in range(IDLE_HANDSHAKES):
                idle.append(await NbdClient.connect_unix(str(service.path)))
                if number % 3 == 0:
                    await idle[-1].send(b"\0\0\0\3IHAVEOPT")
                if number % 100 == 99:
                    newcomer = await service.client()
                    assert await newcomer.read(0, 4) == bytes(4)
                    turns_before = turns[0]
                    with trio.fail_after(5):
                        while turns[0] == turns_before:
                            await trio.sleep(0.001)
            assert service.server.statistics().handshaking <= NbdLimits().handshakes_max
            stop.set()
        evicted = service.server.statistics().refused["evicted"]
        assert evicted >= IDLE_HANDSHAKES - NbdLimits().handshakes_max - 20
        for client in (*idle, *service.clients):
            await client.aclose()
        idle.clear()
        await _until_quiet(service)
        await leak_guard.settle()
        assert _rss_bytes() - before < RSS_GROWTH_BYTES_MAX


STATES = {
    "connected": b"",
    "half the flags": b"\0\0",
    "flags": b"\0\0\0\3",
    "half an option": b"\0\0\0\3IHAVEOPT\0\0",
    "an option without its data": b"\0\0\0\3" + option(c.OPT_INFO, length=100),
    "an oversized option": b"\0\0\0\3" + option(c.OPT_INFO, bytes(100), length=OPTION_BYTES_MAX + 5),
    "an answered option": b"\0\0\0\3" + option(c.OPT_LIST),
    "aborted": b"\0\0\0\3" + option(c.OPT_ABORT),
    "transmission": b"\0\0\0\3" + option(c.OPT_GO, NbdClient.info_data("vda")),
}
GO = STATES["transmission"]
STATES |= {
    "half a request": GO + request(c.CMD_READ, 0, 4096)[:20],
    "a read that is not taken": GO + request(c.CMD_READ, 0, 8 * MIB),
    "half a small payload": GO + request(c.CMD_WRITE, 0, 4096, payload=bytes(100)),
    "half a large payload": GO + request(c.CMD_WRITE, 0, 8 * MIB, payload=bytes(100_000)),
    "half a refused payload": GO + request(c.CMD_WRITE, 8 * MIB, 4096, payload=bytes(100)),
    "a flush": GO + request(c.CMD_FLUSH),
    "disconnected": GO + request(c.CMD_DISC),
    "more after disconnect": GO + request(c.CMD_DISC) + bytes(100),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("politely", [True, False])
async def test_hang_up_in_every_state(
    disk: MemoryExport, tmp_path: Path, leak_guard: Leaks, state: str, politely: bool
) -> None:
    async with serving_nbd(tmp_path, [disk]) as service:
        leak_guard.rebase()
        for settle_first in (False, True):
            client = await service.connect()
            await client.send(STATES[state])
            if settle_first:
                await trio.testing.wait_all_tasks_blocked()
            if politely and isinstance(client.stream, trio.SocketStream):
                await client.stream.send_eof()
                with trio.fail_after(SETTLE_S):
                    await client.wait_hang_up()
            await client.aclose()
        await _until_quiet(service)
        await leak_guard.settle()
        assert disk.writes_done == 0
        survivor = await service.client()
        assert await survivor.read(0, 1) == b"\0"
