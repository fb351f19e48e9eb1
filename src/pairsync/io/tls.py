"""Mutual TLS 1.3 between two pinned keys, over any `Connection`.

The trust store of either side is exactly the peer's certificate: no authority can vouch for a stranger, and
after the handshake each side compares the fingerprint of what it was shown with the one that is pinned.
Names and dates in certificates mean nothing for that (``check_hostname`` off, time check off).  No session
tickets: each connection proves the keys anew.

In TLS 1.3 a client ends its handshake before the server has judged the client's certificate (RFC 8446
section 4.4.2.4 and appendix E.1); only a read tells the client.  So the dialer counts as authenticated when
the listener's first message has arrived, not before.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import ssl
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Protocol, TypeVar

import trio

from pairsync.errors import ConfigError, InternalError, PeerLost, RefusedError

from .gate import Gate
from .keys import HostIdentity, certificate_der
from .network import Connection

__all__ = ["ListenerPins", "Pins", "TlsContexts", "TlsStream"]

T = TypeVar("T")

_RECEIVE_BYTES = 16 * 1024
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL; ssl.VerifyFlags does not name it


class Pins(Protocol):
    """Whom one end of a connection trusts, and the context for it."""

    @property
    def pinned(self) -> Container[bytes]:
        """Fingerprints of the keys that the other end may have."""
        ...

    @property
    def buffer(self) -> memoryview:
        """For what is received, shared by all streams: TLS is given it before another task runs."""
        ...

    @property
    def dialer(self) -> ssl.SSLContext:
        """For connections that this end opens."""
        ...

    @property
    def listener(self) -> ssl.SSLContext:
        """For connections that it accepts."""
        ...


class TlsContexts:
    """The two contexts of a host, made once from its identity and the peer's certificate."""

    def __init__(self, identity: HostIdentity, peer_certificate_pem: bytes) -> None:
        peer_der = certificate_der(peer_certificate_pem)
        self.peer_fingerprint = hashlib.sha256(peer_der).digest()
        if self.peer_fingerprint == identity.fingerprint:
            raise ConfigError("the peer's certificate is this host's own")
        self.pinned = frozenset({self.peer_fingerprint})
        self.buffer = _make_buffer()
        self.dialer = _context(ssl.PROTOCOL_TLS_CLIENT, identity, peer_der)
        self.listener = _context(ssl.PROTOCOL_TLS_SERVER, identity, peer_der)


class ListenerPins:
    """The context of one who is dialled by many, each with a pinned key: the witness.

    Thousands of certificates in one context cost a handshake nothing that can be measured.
    """

    def __init__(self, identity: HostIdentity, certificate_ders: Iterable[bytes]) -> None:
        ders = list(certificate_ders)
        self.pinned = frozenset(hashlib.sha256(der).digest() for der in ders)
        self.buffer = _make_buffer()
        self.listener = _context(ssl.PROTOCOL_TLS_SERVER, identity, b"".join(ders))

    @property
    def dialer(self) -> ssl.SSLContext:
        """It dials nobody."""
        raise InternalError("a witness dials nobody")


def _make_buffer() -> memoryview:
    return memoryview(bytearray(_RECEIVE_BYTES))


def _context(side: int, identity: HostIdentity, peer_der: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags = ssl.VerifyFlags(
        ssl.VERIFY_X509_TRUSTED_FIRST | ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    )
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION
    if side == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    try:
        if peer_der:
            context.load_verify_locations(cadata=peer_der)
        with _key_file(identity) as path:
            context.load_cert_chain(path)
    except ssl.SSLError as error:
        raise ConfigError(f"key or certificate cannot be used: {error}") from error
    return context


@contextlib.contextmanager
def _key_file(identity: HostIdentity) -> Iterator[str]:
    """OpenSSL loads a key from a file only: give it one in memory, without a name."""
    descriptor = os.memfd_create("pairsync-identity", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, identity.key_pem + identity.certificate_pem)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


class TlsStream:
    """TLS over a `Connection` behind a `Gate`; one task may receive while others send.

    ``ahead`` is what was read from the connection before it was known to be TLS.  Every method raises
    `RefusedError` where TLS fails and `PeerLost` where the connection does, both naming ``who``.
    """

    def __init__(
        self,
        connection: Connection,
        gate: Gate,
        contexts: Pins,
        *,
        dialing: bool,
        who: str,
        ahead: bytes = b"",
    ) -> None:
        self._connection = connection
        self._gate = gate
        self._who = who
        self._pinned = contexts.pinned
        self._buffer = contexts.buffer
        self._incoming = ssl.MemoryBIO()
        self._incoming.write(ahead)
        self._outgoing = ssl.MemoryBIO()
        context = contexts.dialer if dialing else contexts.listener
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=not dialing)
        self._flushing = trio.Lock()  # what TLS has made leaves in the order in which it was made
        self._ended = False  # the end of what the other side sends was given to TLS

    async def handshake(self) -> bytes:
        """Do the handshake and check the pin, whose fingerprint is returned; the caller sets a deadline."""
        await self._run(self._tls.do_handshake)
        shown = self._tls.getpeercert(binary_form=True)
        fingerprint = hashlib.sha256(shown or b"").digest()
        if fingerprint not in self._pinned:
            raise RefusedError(f"{self._who}: its key {fingerprint.hex()[:16]} is not the pinned one")
        return fingerprint

    async def send_all(self, data: bytes) -> None:
        """Send everything."""
        await self._run(lambda: self._tls.write(data))

    async def receive_some(self) -> bytes:
        """What has arrived, at least one byte; the end is `PeerLost`."""
        data = await self._run(lambda: self._tls.read(_RECEIVE_BYTES))
        if not data:  # some versions of Python raise instead
            raise PeerLost(f"{self._who}: the other end hung up")
        return data

    async def drain(self) -> None:
        """Read whatever comes until the other end hangs up; the caller sets a deadline."""
        while await self._fill():
            self._incoming.read()

    async def _run(self, operation: Callable[[], T]) -> T:
        """Repeat ``operation`` with what arrives until it succeeds; what it wants to send is sent."""
        while True:
            try:
                result = operation()
            except ssl.SSLWantReadError:
                await self._flush()
                if self._ended:  # some versions of OpenSSL and Python ask for more even at the end
                    raise PeerLost(f"{self._who}: the other end hung up") from None
                await self._fill()
            except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
                raise PeerLost(f"{self._who}: the other end hung up") from error
            except ssl.SSLError as error:
                await self._flush()  # the alert, which tells the other end why
                raise RefusedError(f"{self._who}: TLS: {_reason(error)}") from error
            else:
                await self._flush()
                return result

    async def _flush(self) -> None:
        async with self._flushing:
            left = memoryview(self._outgoing.read())
            while left:
                await self._gate.wait_open()
                try:
                    left = left[self._connection.send_nowait(left) :]
                    if left:
                        await self._connection.wait_writable()
                except OSError as error:
                    raise PeerLost(f"{self._who}: {error}") from error

    async def _fill(self) -> bool:
        """Give TLS what has arrived; returns whether there was anything but the end."""
        while True:
            try:
                await self._connection.wait_readable()
                await self._gate.wait_open()
                received = self._connection.receive_nowait(self._buffer)
            except OSError as error:
                raise PeerLost(f"{self._who}: {error}") from error
            if received is None:
                continue
            if received:
                self._incoming.write(self._buffer[:received])
            else:
                self._ended = True
                self._incoming.write_eof()
            return received > 0


def _reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate shown is not the pinned one ({error.verify_message})"
    reason = (error.reason or "").lower()
    if "unknown_ca" in reason or "bad_certificate" in reason or "certificate_unknown" in reason:
        return f"the other end does not accept our certificate ({reason})"
    if "certificate_required" in reason or "did_not_return_a_certificate" in reason:
        return f"a certificate is missing ({reason})"
    return reason.replace("_", " ") or str(error)
