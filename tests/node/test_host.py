"""One host in this process: what its sockets answer, what it tells, and every way in which it ends."""

from __future__ import annotations

import os
import signal
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from pairsync.core.events import InSyncEvent, PeerEvent, TroubleEvent
from pairsync.core.messages import Role
from pairsync.core.units import MIB, NS_PER_S
from pairsync.errors import BackendError, BusyError, ConfigError, MismatchError, PairsyncError
from pairsync.guest.config import VolumeConfig
from pairsync.guest.guest import Guest
from pairsync.guest.replica import Replica, create_replica, open_replica
from pairsync.io.config import PathConfig
from pairsync.io.keys import make_identity
from pairsync.node.control import Answer, Handler, ask
from pairsync.node.host import event_line, run_host
from pairsync.node.hostfile import HostFile, LinkFile, NbdFile, RegisterFile
from pairsync.testing.nbd_client import NbdClient

PAIR_ID = bytes(range(16))
DEADLINE_S = 20.0


def make_host(directory: Path, **changes: Any) -> HostFile:
    """An active host without a peer, with one volume of 1 MiB."""
    path = directory / "vda.img"
    if not path.exists():
        create_replica(path, name="vda", pair_id=PAIR_ID, volume_id=bytes(16), size_bytes=MIB)
    host = HostFile(
        name="a",
        identity=directory / "identity",
        control=directory / "control.sock",
        guest="guest",
        pair_id=PAIR_ID,
        role=Role.ACTIVE,
        term=1,
        volumes=(VolumeConfig("vda", path),),
        link=None,
        nbd=NbdFile(socket=directory / "nbd.sock"),
    )
    return replace(host, **changes)


def make_link(directory: Path, port: int = 0) -> LinkFile:
    """A peer that is not there."""
    certificate = directory / "peer.pem"
    certificate.write_bytes(make_identity("peer").certificate_pem)
    path = PathConfig("main", ("127.0.0.1", 1))
    return LinkFile(peer_certificate=certificate, listen=(("127.0.0.1", port),), paths=(path,))


class Running:
    """A host that runs beside the test."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.ready = trio.Event()
        self.ended = trio.Event()

    def tell(self, line: dict[str, Any]) -> None:
        self.told.append(line)
        self.ready.set()

    async def run(self, host: HostFile, **options: Any) -> None:
        await run_host(host, self.tell, **options)
        self.ended.set()


@asynccontextmanager
async def running(host: HostFile, **options: Any) -> AsyncIterator[Running]:
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            host_run = Running()
            nursery.start_soon(partial(host_run.run, host, **options))
            await host_run.ready.wait()
            yield host_run
            nursery.cancel_scope.cancel()


async def failure_of(host: HostFile) -> PairsyncError:
    """The error with which a host refuses to run."""
    with pytest.raises((PairsyncError, BaseExceptionGroup)) as caught, trio.fail_after(DEADLINE_S):
        await run_host(host, lambda _: None)
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, PairsyncError)
    return error


async def test_it_says_that_it_is_ready_and_serves(tmp_path: Path) -> None:
    async with running(make_host(tmp_path)) as host:
        assert host.told == [
            {"event": "ready", "host": "a", "link": None, "nbd": [f"unix:{tmp_path / 'nbd.sock'}"], "ill": {}}
        ]
        async with await NbdClient.connect_unix(str(tmp_path / "nbd.sock")) as client:
            await client.negotiate("")  # the only volume is the default one
            await client.write(0, b"kept")
        answer = await ask(tmp_path / "control.sock", {"do": "status"})
        guest = answer["guest"]
        assert (guest["role"], guest["connected"], guest["in_sync"], guest["link"]) == (
            "active",
            False,
            False,
            None,
        )
        (volume,) = guest["volumes"]
        assert (volume["name"], volume["size_bytes"], volume["dirty_blocks"]) == ("vda", MIB, 1)
        process = answer["process"]
        assert process["descriptors"] <= len(os.listdir("/proc/self/fd")) + 2
        assert process["resident_bytes"] > MIB
        assert process["tasks"] > 5
        for command in ("cut", "heal"):
            with pytest.raises(ConfigError, match="has no peer"):
                await ask(tmp_path / "control.sock", {"do": command})
        with pytest.raises(ConfigError, match="unknown request"):
            await ask(tmp_path / "control.sock", {"do": "explode"})


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
async def test_it_ends_in_order(tmp_path: Path, how: signal.Signals) -> None:
    """Clients are hung up on, sockets are gone, and the next start finds nothing to make up for."""
    async with running(make_host(tmp_path)) as host:
        async with await NbdClient.connect_unix(str(tmp_path / "nbd.sock")) as client:
            await client.negotiate("vda")
            await client.write(4096, b"x" * 4096)
            os.kill(os.getpid(), how)
            await host.ended.wait()
            assert await client.wait_hang_up() == b""
        assert not (tmp_path / "control.sock").exists()
        assert not (tmp_path / "nbd.sock").exists()
    async with running(make_host(tmp_path)):
        answer = await ask(tmp_path / "control.sock", {"do": "status"})
        assert answer["guest"]["volumes"][0]["dirty_blocks"] == 1


async def test_the_link_can_be_cut_from_the_first_moment(tmp_path: Path) -> None:
    host = make_host(tmp_path, link=make_link(tmp_path))
    async with running(host, cut=True) as cut:
        assert cut.told[0]["link"].startswith("127.0.0.1:")
        assert (await ask(host.control, {"do": "status"}))["guest"]["link"]["cut"]
        await ask(host.control, {"do": "heal"})
        assert not (await ask(host.control, {"do": "status"}))["guest"]["link"]["cut"]
        await ask(host.control, {"do": "cut"})
        assert (await ask(host.control, {"do": "status"}))["guest"]["link"]["cut"]


async def test_disks_and_requests_can_be_replaced_and_added(tmp_path: Path) -> None:
    opened: list[str] = []

    def opener(volume: VolumeConfig, pair_id: bytes) -> Replica:
        opened.append(volume.name)
        return open_replica(volume, pair_id)

    def more(guest: Guest) -> dict[str, Handler]:
        async def name(_: Mapping[str, Any]) -> Answer:
            await trio.lowlevel.checkpoint()
            return {"name": guest.name}

        return {"name": name}

    host = make_host(tmp_path)
    async with running(host, opener=opener, more=more):
        assert (await ask(host.control, {"do": "name"}))["name"] == "guest"
        assert (await ask(host.control, {"do": "status"}))["guest"]["name"] == "guest"
    assert opened == ["vda"]


async def test_a_standby_opens_its_front_door_too_and_its_clients_wait(tmp_path: Path) -> None:
    host = make_host(tmp_path, role=Role.STANDBY, link=make_link(tmp_path))
    async with running(host) as standby:
        assert standby.told[0]["nbd"] == [f"unix:{tmp_path / 'nbd.sock'}"]
        async with await NbdClient.connect_unix(str(tmp_path / "nbd.sock")) as client:
            await client.negotiate("")
            with trio.move_on_after(0.2):
                await client.read(0, 1)
                pytest.fail("nobody owns")
        answer = await ask(host.control, {"do": "status"})
        assert answer["guest"]["volumes"][0]["state"] == "blank"


async def test_a_home_that_neither_host_is_called_is_refused(tmp_path: Path) -> None:
    def host(home: str) -> HostFile:
        register = RegisterFile(memory=tmp_path / "register", failover_ns=5 * NS_PER_S, home=home)
        return make_host(tmp_path, role=Role.STANDBY, link=make_link(tmp_path), register=register)

    refused = await failure_of(host("aa"))
    assert isinstance(refused, ConfigError)
    assert "home: 'aa' is neither this host, 'a', nor the other one, 'peer'" in str(refused)
    async with running(host("peer")):
        pass  # what else is in its file is right


async def test_a_wait_for_the_peer_ends_with_the_one_who_waits(tmp_path: Path) -> None:
    host = make_host(tmp_path)
    async with running(host):
        tasks = (await ask(host.control, {"do": "status"}))["process"]["tasks"]
        for _ in range(3):
            with trio.move_on_after(0.05):
                await ask(host.control, {"do": "wait-in-sync"})
                pytest.fail("it cannot be in sync")
        while (await ask(host.control, {"do": "status"}))["process"]["tasks"] > tasks:
            await trio.sleep(0.01)


async def test_what_stands_in_the_way_is_named(tmp_path: Path) -> None:
    host = make_host(tmp_path)
    link = make_link(tmp_path)
    missing = await failure_of(replace(host, link=replace(link, peer_certificate=tmp_path / "none.pem")))
    assert isinstance(missing, ConfigError)
    assert "none.pem" in str(missing)
    (tmp_path / "damaged.pem").write_text("no certificate")
    damaged = await failure_of(replace(host, link=replace(link, peer_certificate=tmp_path / "damaged.pem")))
    assert str(damaged) == f"{tmp_path}/damaged.pem: not a PEM certificate"
    exposed = await failure_of(replace(host, nbd=NbdFile(listen=("0.0.0.0", 0))))
    assert isinstance(exposed, ConfigError)
    assert "TLS" in str(exposed)
    tls = await failure_of(replace(host, nbd=NbdFile(listen=("127.0.0.1", 0), tls=tmp_path / "no-tls")))
    assert isinstance(tls, ConfigError)
    assert "no-tls" in str(tls)
    stranger = await failure_of(replace(host, pair_id=bytes(16)))
    assert isinstance(stranger, MismatchError)
    async with running(host):
        assert isinstance(await failure_of(replace(host, control=tmp_path / "other.sock")), BusyError)
    with trio.socket.socket() as occupied:
        await occupied.bind(("127.0.0.1", 0))
        occupied.listen()
        port = occupied.getsockname()[1]
        busy = await failure_of(replace(host, link=make_link(tmp_path, port)))
    assert isinstance(busy, BackendError)
    assert str(port) in str(busy)


async def test_tcp_clients_need_the_certificate_that_is_asked_for(tmp_path: Path) -> None:
    """The front door on TCP with TLS: plain clients are refused, those with the authority's key are not."""
    tls = tmp_path / "tls"
    tls.mkdir()
    identity = make_identity("server")
    for name, content in (
        ("server-cert.pem", identity.certificate_pem),
        ("server-key.pem", identity.key_pem),
        ("ca-cert.pem", identity.certificate_pem),
    ):
        (tls / name).write_bytes(content)
    host = make_host(tmp_path, nbd=NbdFile(listen=("127.0.0.1", 0), tls=tls))
    async with running(host) as served:
        (address,) = served.told[0]["nbd"]
        port = int(address.rpartition(":")[2])
        async with await NbdClient.connect_tcp("127.0.0.1", port) as plain:
            await plain.greet()
            (reply,) = await plain.option(6, plain.info_data("vda"))  # INFO
            assert reply.kind & 1 << 31
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.load_cert_chain(tls / "server-cert.pem", tls / "server-key.pem")
        client = await NbdClient.connect_tcp("127.0.0.1", port)
        await client.greet()
        (reply,) = await client.option(5)  # STARTTLS
        assert reply.kind == 1
        secured = trio.SSLStream(client.stream, context)
        async with NbdClient(secured) as inside:
            await inside.go("vda")
            assert inside.size_bytes == MIB


def test_event_lines_hold_name_fields_and_a_sentence() -> None:
    line = event_line(InSyncEvent("vda", "1.2/ab"), host="a", monotonic_ns=5)
    assert line == {
        "event": "in-sync",
        "host": "a",
        "monotonic_ns": 5,
        "volume": "vda",
        "generation": "1.2/ab",
        "text": "vda: in sync at generation 1.2/ab",
    }
    assert event_line(PeerEvent(False, "silence"))["event"] == "peer-lost"
    assert event_line(TroubleEvent("vda", True, "EIO"))["fatal"] is True
