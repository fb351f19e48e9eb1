"""Hostile sessions against the link port and the NBD socket of a running host.

Each attack is one coroutine that opens one connection, misbehaves in one way and waits a moment for the host
to hang up.  None may learn anything: what the host says to a stranger is given to `Toll.told`.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from random import Random
from typing import TypeAlias

import trio

from pairsync.errors import PeerLost, ProtocolError
from pairsync.io import make_identity
from pairsync.nbd import constants as c
from pairsync.testing.nbd_client import NbdClient
from pairsync.wire.hello import pack_lane_preamble

ATTACK_S = 1.0
"""How long one attack waits for the host to hang up."""

Attack: TypeAlias = Callable[[], Awaitable[None]]

_GONE = (OSError, PeerLost, ProtocolError, trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError)


class Toll:
    """What the attacks did."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.told = bytearray()
        """Application data that a stranger received: there must be none."""

    def add(self, name: str) -> None:
        """One more attack of that kind."""
        self.counts[name] = self.counts.get(name, 0) + 1


async def attack_until(over: Callable[[], bool], attacks: Sequence[Attack], toll: Toll, seed: int) -> None:
    """Attack after attack, drawn at random; each has a moment only."""
    random = Random(seed)
    while not over():
        attack = random.choice(attacks)
        with trio.move_on_after(ATTACK_S), contextlib.suppress(*_GONE):
            await attack()
        toll.add(attack.__name__)


async def hold_idle(connect: Callable[[], Awaitable[trio.abc.Stream]], count: int, over: trio.Event) -> int:
    """Open many connections that say nothing; returns how many could be opened."""
    streams = []
    for _ in range(count):
        with contextlib.suppress(*_GONE):
            streams.append(await connect())
    await over.wait()
    for stream in streams:
        await trio.aclose_forcefully(stream)
    return len(streams)


# ---------------------------------------------------------------------- the link


class LinkStrangers:
    """Attacks on a listening address, from a local address of their own."""

    def __init__(
        self, target: tuple[str, int], source: str, captured: Sequence[bytes], keys: Path, seed: int
    ) -> None:
        self._target = target
        self._source = source
        self._captured = captured
        self._random = Random(seed)
        self._hello = _client_hello()
        self._certificate = keys / "stranger.pem"
        identity = make_identity("stranger")
        self._certificate.write_bytes(identity.key_pem + identity.certificate_pem)
        self.toll = Toll()

    def attacks(self) -> list[Attack]:
        """All of them."""
        found: list[Attack] = [
            self.garbage,
            self.tls_without_certificate,
            self.tls_with_a_wrong_certificate,
            self.tls_of_an_old_version,
            self.half_a_handshake,
            self.a_lane_without_a_token,
            self.reset,
        ]
        return found + ([self.replay] if self._captured else [])

    async def connect(self) -> trio.SocketStream:
        """A connection that has said nothing."""
        sock = trio.socket.socket()
        try:
            await sock.bind((self._source, 0))
            await sock.connect(self._target)
        except BaseException:
            sock.close()
            raise
        return trio.SocketStream(sock)

    async def _drain(self, stream: trio.abc.Stream) -> bytes:
        data = b""
        while more := await stream.receive_some(65536):
            data += more
        return data

    async def garbage(self) -> None:
        """Any bytes at all."""
        async with await self.connect() as stream:
            await stream.send_all(self._random.randbytes(self._random.randrange(1, 65536)))
            self.toll.told += await self._drain(stream)

    async def _tls(self, context: ssl.SSLContext) -> None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        async with await self.connect() as stream:
            secured = trio.SSLStream(stream, context)
            await secured.send_all(self._random.randbytes(300))
            self.toll.told += await self._drain(secured)

    async def tls_without_certificate(self) -> None:
        """The client's side of the handshake ends well; only then it is judged."""
        await self._tls(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))

    async def tls_with_a_wrong_certificate(self) -> None:
        """A certificate like ours, of a key that nobody has pinned."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_cert_chain(self._certificate)
        await self._tls(context)

    async def tls_of_an_old_version(self) -> None:
        """TLS 1.2 at most."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        await self._tls(context)

    async def half_a_handshake(self) -> None:
        """The beginning of a TLS handshake, cut anywhere, or spoilt."""
        hello = bytearray(self._hello)
        if self._random.random() < 0.5:
            hello[self._random.randrange(len(hello))] ^= 1 << self._random.randrange(8)
        async with await self.connect() as stream:
            await stream.send_all(hello[: self._random.randrange(1, len(hello) + 1)])
            await self._drain(stream)  # the server's hello, which everybody gets

    async def a_lane_without_a_token(self) -> None:
        """The preamble of a lane that was never offered, and a record."""
        async with await self.connect() as stream:
            await stream.send_all(pack_lane_preamble(self._random.randbytes(16)))
            await stream.send_all(self._random.randbytes(self._random.randrange(4096)))
            self.toll.told += await self._drain(stream)

    async def replay(self) -> None:
        """What the true peer has sent before, whole or cut."""
        data = self._random.choice(self._captured)
        if self._random.random() < 0.3:
            data = data[: self._random.randrange(len(data))]
        async with await self.connect() as stream:
            await stream.send_all(data)
            await self._drain(stream)

    async def reset(self) -> None:
        """Hang up without a farewell."""
        async with await self.connect() as stream:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await stream.send_all(self._hello[:100])


def _client_hello() -> bytes:
    """The first flight of a TLS 1.3 client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    return outgoing.read()


class Capture:
    """What is sent to a TCP port of this machine over loopback, connection by connection (root)."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket = trio.socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(socket.ntohs(8)))
        self._segments: dict[int, dict[int, bytes]] = {}  # source port -> sequence number -> payload

    async def run(self) -> None:
        """Listen until cancelled."""
        await self._socket.bind(("lo", 0x0800))
        while True:
            packet, address = await self._socket.recvfrom(1 << 17)
            if address[2] == socket.PACKET_HOST:
                self._take(packet)

    def _take(self, packet: bytes) -> None:
        header = 4 * (packet[0] & 15)
        if packet[9] != socket.IPPROTO_TCP or len(packet) < header + 20:
            return
        source, target, sequence = struct.unpack_from(">HHI", packet, header)
        payload = packet[header + 4 * (packet[header + 12] >> 4) :]
        if target == self._port and payload:
            self._segments.setdefault(source, {})[sequence] = payload

    def streams(self) -> list[bytes]:
        """What each connection sent, from its beginning."""
        self._socket.close()
        return [b"".join(payload for _, payload in sorted(flow.items())) for flow in self._segments.values()]


# ---------------------------------------------------------------------- the front door


class NbdStrangers:
    """Attacks on an NBD socket."""

    def __init__(self, path: Path, seed: int) -> None:
        self._path = str(path)
        self._random = Random(seed)
        self.toll = Toll()

    def attacks(self) -> list[Attack]:
        """All of them."""
        return [
            self.garbage,
            self.garbage_after_the_greeting,
            self.a_huge_option,
            self.options_without_end,
            self.half_an_option,
            self.a_wrong_export,
            self.garbage_in_transmission,
            self.hang_up_in_mid_request,
            self.requests_beyond_the_end,
            self.unknown_requests,
            self.a_huge_write,
            self.reads_that_nobody_takes,
        ]

    async def connect(self) -> trio.SocketStream:
        """A connection that has said nothing; the handshake's greeting may be waiting in it."""
        return await trio.open_unix_socket(self._path)

    async def _client(self) -> NbdClient:
        return NbdClient(await self.connect())

    async def _end(self, client: NbdClient) -> None:
        await client.wait_hang_up()

    async def garbage(self) -> None:
        """Any bytes at all."""
        async with await self._client() as client:
            await client.send(self._random.randbytes(self._random.randrange(1, 8192)))
            await self._end(client)

    async def garbage_after_the_greeting(self) -> None:
        """Any bytes for options."""
        async with await self._client() as client:
            await client.greet()
            await client.send(self._random.randbytes(self._random.randrange(1, 8192)))
            await self._end(client)

    async def a_huge_option(self) -> None:
        """An option of 4 GiB."""
        async with await self._client() as client:
            await client.greet()
            await client.send(client.option_bytes(c.OPT_GO, b"x" * 1000, length=0xFFFF_FFFF))
            await self._end(client)

    async def options_without_end(self) -> None:
        """LIST and META_CONTEXT, again and again."""
        async with await self._client() as client:
            await client.greet()
            for _ in range(300):
                await client.option(c.OPT_LIST)
                await client.option(c.OPT_LIST_META_CONTEXT, client.meta_data("vda", ["base:"] * 20))
            await self._end(client)

    async def half_an_option(self) -> None:
        """Cut anywhere."""
        async with await self._client() as client:
            await client.greet()
            option = client.option_bytes(c.OPT_GO, client.info_data("vda", [1, 2, 3]))
            await client.send(option[: self._random.randrange(1, len(option))])

    async def a_wrong_export(self) -> None:
        """A name that is not there, and names that are none."""
        async with await self._client() as client:
            await client.greet()
            for name in ("", "vdz", "../vda", "v" * 4096, "\0"):
                await client.option(c.OPT_GO, client.info_data(name))

    async def _in_transmission(self) -> NbdClient:
        return await (await self._client()).negotiate_or_hang_up("vda")

    async def garbage_in_transmission(self) -> None:
        """Bytes that are no request."""
        async with await self._in_transmission() as client:
            await client.send(self._random.randbytes(self._random.randrange(28, 8192)))
            await self._end(client)

    async def hang_up_in_mid_request(self) -> None:
        """A write of which only a part comes: it must not be applied."""
        async with await self._in_transmission() as client:
            request = client.request_bytes(c.CMD_WRITE, 0, 65536, payload=b"\xee" * 65536)
            await client.send(request[: self._random.randrange(1, len(request))])

    async def requests_beyond_the_end(self) -> None:
        """Offsets and lengths that are not within the volume."""
        async with await self._in_transmission() as client:
            for kind in (c.CMD_READ, c.CMD_TRIM, c.CMD_WRITE_ZEROES, c.CMD_BLOCK_STATUS):
                for offset, length in ((client.size_bytes, 1), (1 << 63, 4096), ((1 << 64) - 1, 0xFFFF_FFFF)):
                    if not (await client.command(kind, offset, length)).error:
                        self.toll.told += b"!"

    async def unknown_requests(self) -> None:
        """Commands and flags that do not exist."""
        async with await self._in_transmission() as client:
            for kind in (8, 99, 0xFFFF):
                if not (await client.command(kind, 0, 4096)).error:
                    self.toll.told += b"!"
            if not (await client.command(c.CMD_READ, 0, 4096, flags=0xFF00)).error:
                self.toll.told += b"!"

    async def a_huge_write(self) -> None:
        """A write of 4 GiB, of which little comes."""
        async with await self._in_transmission() as client:
            await client.send(client.request_bytes(c.CMD_WRITE, 0, 0xFFFF_FFFF, payload=b"\xee" * 100_000))
            await self._end(client)

    async def reads_that_nobody_takes(self) -> None:
        """Gigabytes are asked for, and not read."""
        async with await self._in_transmission() as client:
            for _ in range(200):
                await client.request(c.CMD_READ, 0, 4 << 20)
            await trio.sleep(ATTACK_S)
