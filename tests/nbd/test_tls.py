"""TLS at the front door: our own client, libnbd and QEMU, and what must not get through."""

from __future__ import annotations

import json
import ssl
from pathlib import Path
from typing import Protocol

import pytest
import trio
from tests.nbd.outside import run

from pairsync.core.units import MIB
from pairsync.errors import PeerLost
from pairsync.nbd import NbdLimits, TlsMode, open_tcp_listeners
from pairsync.nbd import constants as c
from pairsync.testing.nbd_client import NbdClient
from pairsync.testing.nbd_memory import MemoryExport
from pairsync.testing.nbd_service import NbdService, serving_nbd

DEADLINE_S = 60.0


class Credentials(Protocol):
    """What the fixture of that name gives."""

    directory: Path

    def server(self) -> ssl.SSLContext: ...
    def client(self) -> ssl.SSLContext: ...


async def _start_tls(client: NbdClient, context: ssl.SSLContext) -> None:
    """STARTTLS, then go on encrypted over the same client."""
    assert [reply.kind for reply in await client.option(c.OPT_STARTTLS)] == [c.REP_ACK]
    encrypted = trio.SSLStream(client.stream, context, server_hostname="localhost")
    await encrypted.do_handshake()
    client.stream = encrypted


async def _encrypted_client(service: NbdService, credentials: Credentials) -> NbdClient:
    client = await service.connect()
    await client.greet()
    await _start_tls(client, credentials.client())
    return client


@pytest.mark.parametrize("mode", [TlsMode.ALLOW, TlsMode.REQUIRE])
async def test_everything_works_encrypted(
    disk: MemoryExport, tmp_path: Path, credentials: Credentials, mode: TlsMode
) -> None:
    async with serving_nbd(tmp_path, [disk], tls=credentials.server(), tls_mode=mode) as service:
        client = await _encrypted_client(service, credentials)
        assert (await client.option(c.OPT_STRUCTURED_REPLY))[-1].kind == c.REP_ACK
        client.structured = True
        await client.go("vda")
        data = bytes(range(256)) * 8192
        await client.write(5, data)
        assert await client.read(5, len(data)) == data
        reads = [NbdClient.request_bytes(c.CMD_READ, 0, 4096, cookie=number) for number in range(100)]
        await client.send(b"".join(reads))
        assert {(await client.reply()).cookie for _ in reads} == set(range(100))
        await client.flush()
        # the server says close_notify: a clean end for a strict TLS client
        assert await client.disconnect() == b""


async def test_required_tls_refuses_plain_text(
    disk: MemoryExport, tmp_path: Path, credentials: Credentials
) -> None:
    async with serving_nbd(tmp_path, [disk], tls=credentials.server(), tls_mode=TlsMode.REQUIRE) as service:
        client = await service.connect()
        await client.greet()
        (reply,) = await client.option(c.OPT_GO, client.info_data("vda"))
        assert reply.kind == c.REP_ERR_TLS_REQD
        await client.send(client.option_bytes(c.OPT_EXPORT_NAME, b"vda"))
        assert await client.wait_hang_up() == b""
        assert service.server.statistics().refused == {"handshake": 1}


async def test_what_was_said_in_plain_text_is_forgotten(
    disk: MemoryExport, tmp_path: Path, credentials: Credentials, caplog: pytest.LogCaptureFixture
) -> None:
    """CVE-2021-3716: structured replies agreed before TLS must not hold after it."""
    async with serving_nbd(tmp_path, [disk], tls=credentials.server(), tls_mode=TlsMode.ALLOW) as service:
        client = await service.connect()
        await client.greet()
        assert (await client.option(c.OPT_STRUCTURED_REPLY))[-1].kind == c.REP_ACK
        await _start_tls(client, credentials.client())
        await client.go("vda")
        assert (await client.command(c.CMD_READ, 0, 4)).chunks == 0


async def test_what_is_pushed_behind_starttls_is_dropped(
    disk: MemoryExport, tmp_path: Path, credentials: Credentials, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving_nbd(tmp_path, [disk], tls=credentials.server(), tls_mode=TlsMode.ALLOW) as service:
        client = await service.connect()
        await client.greet()
        injected = client.option_bytes(c.OPT_STRUCTURED_REPLY) + client.option_bytes(
            c.OPT_GO, client.info_data("vda")
        )
        await client.send(client.option_bytes(c.OPT_STARTTLS) + injected)
        assert (await client.option_replies())[-1].kind == c.REP_ACK
        encrypted = trio.SSLStream(client.stream, credentials.client(), server_hostname="localhost")
        await encrypted.do_handshake()
        client.stream = encrypted
        await client.go("vda")
        assert (await client.command(c.CMD_READ, 0, 4)).chunks == 0
        assert f"{len(injected)} bytes were thrown away" in caplog.text


async def test_tls_is_not_started_twice(disk: MemoryExport, tmp_path: Path, credentials: Credentials) -> None:
    async with serving_nbd(tmp_path, [disk], tls=credentials.server(), tls_mode=TlsMode.ALLOW) as service:
        client = await _encrypted_client(service, credentials)
        assert (await client.option(c.OPT_STARTTLS))[-1].kind == c.REP_ERR_INVALID
        await client.go("vda")


async def test_a_client_without_the_right_certificate(
    disk: MemoryExport, tmp_path: Path, credentials: Credentials
) -> None:
    stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    stranger.load_verify_locations(credentials.directory / "ca-cert.pem")
    async with serving_nbd(tmp_path, [disk], tls=credentials.server(), tls_mode=TlsMode.REQUIRE) as service:
        client = await service.connect()
        await client.greet()

        async def try_it() -> None:
            await _start_tls(client, stranger)
            await client.go("vda")  # with TLS 1.3 a client learns of its refusal with its first read

        with pytest.raises((PeerLost, trio.BrokenResourceError)):
            await try_it()
        assert service.server.statistics().connections == 0


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01", b"this is not TLS at all, is it?" * 20])
async def test_a_tls_handshake_that_goes_nowhere(
    disk: MemoryExport, tmp_path: Path, credentials: Credentials, said: bytes, leak_guard: object
) -> None:
    limits = NbdLimits(handshake_deadline_s=0.2)
    async with serving_nbd(
        tmp_path, [disk], tls=credentials.server(), tls_mode=TlsMode.REQUIRE, limits=limits
    ) as service:
        client = await service.connect()
        await client.greet()
        assert (await client.option(c.OPT_STARTTLS))[-1].kind == c.REP_ACK
        await client.send(said)
        with trio.fail_after(DEADLINE_S):
            await client.wait_hang_up()
            while service.server.statistics().handshaking:
                await trio.sleep(0.001)


# -- outside programs ----------------------------------------------------------------------------------------


@pytest.mark.tools("nbdinfo", "nbdcopy")
async def test_libnbd(disk: MemoryExport, tmp_path: Path, credentials: Credentials) -> None:
    (listener,) = await open_tcp_listeners("127.0.0.1", 0)
    disk.poke(4096, b"secret" * 1000)
    async with serving_nbd(
        tmp_path, [disk], listeners=[listener], tls=credentials.server(), tls_mode=TlsMode.REQUIRE
    ) as service:
        uri = f"nbds://localhost:{listener.port}/vda?tls-certificates={credentials.directory}"
        info = json.loads(await run("nbdinfo", "--json", uri))
        assert info["TLS"] is True
        assert info["exports"][0]["export-size"] == disk.size_bytes
        image = tmp_path / "image"
        await run("nbdcopy", uri, image)
        assert image.read_bytes() == disk.peek(0, disk.size_bytes)
        image.write_bytes(b"\xa5" * disk.size_bytes)
        await run("nbdcopy", image, uri)
        assert disk.peek(0, disk.size_bytes) == b"\xa5" * disk.size_bytes
        refused = await run("nbdinfo", service.uri("vda"), check=False)
        assert "TLS" in refused


@pytest.mark.tools("qemu-img")
async def test_qemu(disk: MemoryExport, tmp_path: Path, credentials: Credentials) -> None:
    (listener,) = await open_tcp_listeners("127.0.0.1", 0)
    image = tmp_path / "image"
    image.write_bytes(b"\x5a" * MIB)
    small = MemoryExport("small", MIB)
    async with serving_nbd(
        tmp_path, [small], listeners=[listener], tls=credentials.server(), tls_mode=TlsMode.REQUIRE
    ):
        creds = f"tls-creds-x509,id=tls0,endpoint=client,dir={credentials.directory}"
        target = f"driver=nbd,host=localhost,port={listener.port},export=small,tls-creds=tls0"
        source = f"driver=raw,file.filename={image}"
        options = ["--object", creds, "--image-opts", source, "--target-image-opts", target]
        await run("qemu-img", "convert", "-n", *options)
    assert small.peek(0, MIB) == b"\x5a" * MIB
    small.close()
