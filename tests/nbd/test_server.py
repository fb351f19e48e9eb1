"""The server around the machines: admission, deadlines, eviction, draining, what is refused and why."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from pairsync.core.units import MIB
from pairsync.errors import BackendError, ConfigError, InternalError, PeerLost
from pairsync.nbd import (
    NbdLimits,
    NbdListener,
    NbdServer,
    NbdStatistics,
    TlsMode,
    open_tcp_listeners,
    open_unix_listener,
    serve_nbd,
)
from pairsync.nbd import constants as c
from pairsync.nbd.server import ACCEPT_BACK_OFF_S, LOGGED_FULLY
from pairsync.testing.nbd_client import NbdClient, NbdReplyError
from pairsync.testing.nbd_memory import MemoryExport
from pairsync.testing.nbd_service import NbdService, serving_nbd

DEADLINE_S = 20.0


async def _until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(DEADLINE_S):
        while not condition():
            await trio.sleep(0.001)


async def test_unix_and_tcp_and_several_exports(disk: MemoryExport, tmp_path: Path) -> None:
    log = MemoryExport("log", MIB, description="a second one")
    (listener,) = await open_tcp_listeners("127.0.0.1", 0)
    async with serving_nbd(tmp_path, [disk, log], listeners=[listener], default_export="log") as service:
        port = listener.port
        assert port is not None
        async with await NbdClient.connect_tcp("127.0.0.1", port) as over_tcp:
            await over_tcp.negotiate("log")
            await over_tcp.write(0, b"over tcp")
            over_unix = await service.client("")
            assert over_unix.size_bytes == MIB
            assert await over_unix.read(0, 8) == b"over tcp"
            await service.client("vda")
            await _until(lambda: service.server.statistics().connections == 3)
            statistics = service.server.statistics()
            assert statistics.clients == {"vda": 1, "log": 2}
            assert statistics.accepted == 3
            assert statistics.handshaking == 0
    with pytest.raises(OSError, match="failed"):
        await NbdClient.connect_tcp("127.0.0.1", port)
    assert not service.path.exists()
    log.close()


async def test_exports_may_come_and_go(disk: MemoryExport, tmp_path: Path) -> None:
    exports: dict[str, MemoryExport] = {}
    async with trio.open_nursery() as nursery:
        listener = open_unix_listener(tmp_path / "s")
        server = NbdServer(exports)
        await nursery.start(server.serve, [listener])
        async with await NbdClient.connect_unix(str(tmp_path / "s")) as client:
            with pytest.raises(NbdReplyError, match="no export named 'vda'"):
                await client.negotiate("vda")
            exports["vda"] = disk
            await client.go("vda")
            assert await client.read(0, 4) == bytes(4)
            del exports["vda"]
            assert server.disconnect("vda") == 1
            assert await client.wait_hang_up() == b""
        nursery.cancel_scope.cancel()


async def test_a_stream_can_be_served(disk: MemoryExport) -> None:
    server = NbdServer({"vda": disk})
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, ours)
        client = await NbdClient(theirs).negotiate("vda")
        await client.write(5, b"in memory")
        assert await client.read(0, 16) == bytes(5) + b"in memory" + bytes(2)
        assert await client.disconnect() == b""


# -- configuration -------------------------------------------------------------------------------------------


async def test_tcp_for_everybody_needs_tls(disk: MemoryExport) -> None:
    (listener,) = await open_tcp_listeners("0.0.0.0", 0)
    with pytest.raises(ConfigError, match="other hosts"):
        await NbdServer({"vda": disk}).serve([listener])
    assert listener.socket.fileno() < 0, "listeners are closed in any case"


def test_tls_needs_a_context_and_the_other_way_round() -> None:
    import ssl

    with pytest.raises(ConfigError, match="needs an SSL context"):
        NbdServer({}, tls_mode=TlsMode.REQUIRE)
    with pytest.raises(ConfigError, match="takes no SSL context"):
        NbdServer({}, tls=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))


# -- admission -----------------------------------------------------------------------------------------------


async def test_full_server_turns_away(
    disk: MemoryExport, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limits = NbdLimits(connections_max=2, handshakes_max=2)
    async with serving_nbd(tmp_path, [disk], limits=limits) as service:
        first = await service.client()
        await service.client()
        third = await service.connect()
        assert await third.wait_hang_up() == b""
        assert service.server.statistics().refused == {"full": 1}
        assert "refused (full, number 1): 2 clients are connected" in caplog.text
        await first.disconnect()
        await _until(lambda: service.server.statistics().connections == 1)
        await service.client()


async def test_established_clients_push_out_handshaking_ones(disk: MemoryExport, tmp_path: Path) -> None:
    limits = NbdLimits(connections_max=3, handshakes_max=3)
    async with serving_nbd(tmp_path, [disk], limits=limits) as service:
        idle = [await service.connect() for _ in range(3)]
        await _until(lambda: service.server.statistics().handshaking == 3)
        client = await service.client()
        assert len(await idle[0].wait_hang_up()) == 18
        assert await client.read(0, 1) == b"\0"
        assert service.server.statistics().refused == {"evicted": 1}


async def test_the_one_without_progress_goes_first(disk: MemoryExport, tmp_path: Path) -> None:
    async with serving_nbd(tmp_path, [disk], limits=NbdLimits(handshakes_max=2)) as service:
        diligent, lazy = await service.connect(), await service.connect()
        await lazy.receive(18)
        await diligent.greet()
        assert (await diligent.option(c.OPT_LIST))[-1].kind == c.REP_ACK
        await service.connect()
        assert await lazy.wait_hang_up() == b""
        await diligent.go("vda")
        assert await diligent.read(0, 1) == b"\0"


@pytest.mark.parametrize("said", [b"", b"\0\0", b"\0\0\0\3", b"\0\0\0\3IHAVEOPT\0\0\0\7\0\0\0\x09abc"])
async def test_handshake_deadline(
    disk: MemoryExport, tmp_path: Path, said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving_nbd(tmp_path, [disk], limits=NbdLimits(handshake_deadline_s=0.05)) as service:
        client = await service.connect()
        await client.send(said)
        assert len(await client.wait_hang_up()) == 18
        assert service.server.statistics().refused == {"deadline": 1}
        assert service.server.statistics().handshaking == 0
        assert "no export chosen within 0.05 s" in caplog.text


async def test_established_clients_have_no_deadline(disk: MemoryExport, tmp_path: Path) -> None:
    async with serving_nbd(tmp_path, [disk], limits=NbdLimits(handshake_deadline_s=0.05)) as service:
        client = await service.client()
        await trio.sleep(0.2)  # four handshakes' worth of real time
        assert await client.read(0, 1) == b"\0"


async def test_refusals_are_logged_fully_at_first_then_by_doublings(
    disk: MemoryExport, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "pairsync.nbd")
    async with serving_nbd(tmp_path, [disk]) as service:
        for _ in range(40):
            client = await service.connect()
            await client.greet(flags=0x10)
            assert await client.wait_hang_up() == b""
    logged = [record for record in caplog.records if "unknown client flags" in record.getMessage()]
    assert len(logged) == LOGGED_FULLY + 2  # 16 and 32
    assert service.server.statistics().refused == {"handshake": 40}


async def test_hang_up_in_the_handshake_is_nothing_to_warn_of(
    disk: MemoryExport, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pairsync.nbd")
    async with serving_nbd(tmp_path, [disk]) as service:
        silent, polite = await service.connect(), await service.connect()
        await silent.greet()
        await silent.aclose()
        await polite.greet()
        assert [reply.kind for reply in await polite.option(c.OPT_ABORT)] == [c.REP_ACK]
        assert await polite.wait_hang_up() == b""
        await _until(lambda: service.server.statistics().handshaking == 0)
        assert service.server.statistics().refused == {}
    assert [record.getMessage() for record in caplog.records] == [f"serving NBD on unix:{service.path}"]


async def test_no_descriptors_is_waited_out(
    disk: MemoryExport,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    failures = [errno.EMFILE, errno.ENFILE, errno.ECONNABORTED, errno.ENOMEM]

    class Scarce:
        def __init__(self, sock: socket.socket) -> None:
            self._sock = sock

        def fileno(self) -> int:
            return self._sock.fileno()

        def accept(self) -> tuple[socket.socket, object]:
            if failures:
                raise OSError(failures.pop(), "scarce")
            return self._sock.accept()

        def close(self) -> None:
            self._sock.close()

    listener = open_unix_listener(tmp_path / "s")
    monkeypatch.setattr(listener, "socket", Scarce(listener.socket))
    async with trio.open_nursery() as nursery:
        server: NbdServer = await nursery.start(serve_nbd, [listener], {"vda": disk})
        began = trio.current_time()
        async with await NbdClient.connect_unix(str(tmp_path / "s")) as client:
            await client.negotiate("vda")
        assert server.statistics().refused == {"no descriptors": 3, "not accepted": 1}
        assert trio.current_time() - began >= 3 * ACCEPT_BACK_OFF_S
        nursery.cancel_scope.cancel()


async def test_a_listener_that_listens_no_more(disk: MemoryExport) -> None:
    (listener,) = await open_tcp_listeners("127.0.0.1", 0)
    with pytest.RaisesGroup(BackendError, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_nbd, [listener], {"vda": disk})
            listener.socket.shutdown(socket.SHUT_RDWR)


# -- the end -------------------------------------------------------------------------------------------------


async def test_drain(disk: MemoryExport, tmp_path: Path) -> None:
    listener: NbdListener = open_unix_listener(tmp_path / "s")
    async with trio.open_nursery() as nursery:
        server: NbdServer = await nursery.start(serve_nbd, [listener], {"vda": disk})
        busy, idle, late = [await NbdClient.connect_unix(str(tmp_path / "s")) for _ in range(3)]
        await busy.negotiate("vda")
        await idle.negotiate("vda")
        await late.greet()
        assert (await late.option(c.OPT_LIST))[-1].kind == c.REP_ACK
        disk.hold()
        write = await busy.request(c.CMD_WRITE, 0, 4, payload=b"abcd")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(server.drain)
        assert await idle.wait_hang_up() == b""
        refused = await busy.command(c.CMD_READ, 0, 4)
        assert refused.error == c.ESHUTDOWN
        with pytest.raises(NbdReplyError) as caught:
            await late.go("vda")
        assert caught.value.error == c.REP_ERR_SHUTDOWN
        disk.release()
        assert (await busy.reply()).cookie == write
        for client in (busy, late):
            assert await client.wait_hang_up() == b""
            await client.aclose()
        await idle.aclose()
    # the nursery ends by itself: `serve` has returned
    assert not (tmp_path / "s").exists()
    assert disk.peek(0, 4) == b"abcd"


async def test_drain_does_not_wait_for_ever(disk: MemoryExport, tmp_path: Path) -> None:
    async with serving_nbd(tmp_path, [disk], limits=NbdLimits(drain_deadline_s=0.05)) as service:
        client = await service.client()
        disk.hold()
        await client.request(c.CMD_WRITE, 0, 4, payload=b"abcd")
        await trio.testing.wait_all_tasks_blocked()
        await service.server.drain()
        assert await client.wait_hang_up() == b""
        disk.release()


async def test_our_own_bug_ends_the_server(
    disk: MemoryExport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nonsense(*_: object) -> list[tuple[int, int]]:
        return []

    monkeypatch.setattr(disk, "block_status", nonsense)  # breaks the promise of `Export`
    with pytest.RaisesGroup(InternalError, flatten_subgroups=True):
        async with serving_nbd(tmp_path, [disk]) as service:
            client = await service.client(contexts=(c.CONTEXT_ALLOCATION,))
            with pytest.raises(PeerLost):
                await client.block_status(0, 4096)


async def test_statistics_are_a_value(disk: MemoryExport, tmp_path: Path) -> None:
    async with serving_nbd(tmp_path, [disk]) as service:
        client = await service.client()
        await client.write(0, bytes(4096))
        await client.read(0, 512)
        await client.zero(0, 4096)
        assert service.server.statistics() == NbdStatistics(
            connections=1,
            handshaking=0,
            clients={"vda": 1},
            bytes_in_flight=0,
            accepted=1,
            requests=3,
            reads=1,
            writes=2,
            errors=0,
            bytes_read=512,
            bytes_written=4096,
            refused={},
        )


# -- many clients --------------------------------------------------------------------------------------------


async def test_a_hundred_idle_and_sixteen_busy_clients(disk: MemoryExport, tmp_path: Path) -> None:
    """Each busy client has its own stretch of the disk and checks every byte of it."""
    rounds, block_bytes, stretch_bytes = 30, 8192, 256 * 1024

    async def work(service: NbdService, number: int) -> None:
        client = await service.client()
        base = number * stretch_bytes
        for turn in range(rounds):
            data = bytes([number, turn]) * (block_bytes // 2)
            offset = base + turn * block_bytes
            await client.write(offset, data)
            assert await client.read(offset, block_bytes) == data
        await client.flush()
        assert await client.disconnect() == b""

    async with serving_nbd(tmp_path, [disk]) as service:
        idle = [await service.client() for _ in range(100)]
        async with trio.open_nursery() as nursery:
            for number in range(16):
                nursery.start_soon(work, service, number)
        assert service.server.statistics().connections == 100
        assert service.server.statistics().writes == 16 * rounds
        for client in idle:
            assert await client.read(0, 1) == b"\0"
