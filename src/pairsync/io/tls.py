"""Mutual TLS 1.3 between two pinned keys, over any `Connection`.

The trust store of either side is exactly the peer's certificate: no authority can vouch for a stranger, and
after the handshake each side compares the fingerprint of what it was shown with the one that is pinned.
Names and dates in certificates mean nothing here (``check_hostname`` off, time check off).  No session
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
from collections.abc import Iterator

import trio

from pairsync.errors import ConfigError, PeerLost, RefusedError

from .gate import Gate
from .keys import HostIdentity, certificate_der
from .network import Connection

__all__ = ["ConnectionStream", "TlsContexts", "handshake", "peer_errors"]

_RECEIVE_BYTES = 16 * 1024
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL; ssl.VerifyFlags does not name it


class TlsContexts:
    """The two contexts of a host, made once from its identity and the peer's certificate."""

    def __init__(self, identity: HostIdentity, peer_certificate_pem: bytes) -> None:
        peer_der = certificate_der(peer_certificate_pem)
        self.peer_fingerprint = hashlib.sha256(peer_der).digest()
        if self.peer_fingerprint == identity.fingerprint:
            raise ConfigError("the peer's certificate is this host's own")
        self.dialer = _context(ssl.PROTOCOL_TLS_CLIENT, identity, peer_der)
        self.listener = _context(ssl.PROTOCOL_TLS_SERVER, identity, peer_der)
        self.listener.num_tickets = 0


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
    try:
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


class ConnectionStream(trio.abc.Stream):
    """A `Connection` behind a `Gate` as a stream, with bytes that were read ahead put back in front."""

    def __init__(self, connection: Connection, gate: Gate, ahead: bytes = b"") -> None:
        self._connection = connection
        self._gate = gate
        self._ahead = ahead
        self._buffer = bytearray(_RECEIVE_BYTES)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything."""
        left = memoryview(data)
        await trio.lowlevel.checkpoint()
        while True:
            await self._gate.wait_open()
            try:
                left = left[self._connection.send_nowait(left) :]
                if not left:
                    return
                await self._connection.wait_writable()
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the connection takes data."""
        await self._gate.wait_open()
        await self._connection.wait_writable()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive what is there, ``b""`` at the end."""
        limit = min(max_bytes or _RECEIVE_BYTES, _RECEIVE_BYTES)
        if self._ahead:
            await trio.lowlevel.checkpoint()
            data, self._ahead = self._ahead[:limit], self._ahead[limit:]
            return data
        with memoryview(self._buffer)[:limit] as view:
            while True:
                try:
                    await self._connection.wait_readable()
                    await self._gate.wait_open()
                    received = self._connection.receive_nowait(view)
                except OSError as error:
                    raise trio.BrokenResourceError(str(error)) from error
                if received is not None:
                    return bytes(view[:received])

    async def aclose(self) -> None:
        """Hang up."""
        self._connection.close()
        await trio.lowlevel.checkpoint()


@contextlib.contextmanager
def peer_errors(who: str) -> Iterator[None]:
    """Turn what a TLS stream raises into `PeerLost` or `RefusedError`, with the reason in words."""
    try:
        yield
    except trio.BrokenResourceError as error:
        cause = error.__cause__
        if isinstance(cause, ssl.SSLError):
            raise RefusedError(f"{who}: TLS: {_ssl_reason(cause)}") from error
        raise PeerLost(f"{who}: {cause or 'the connection broke'}") from error
    except ssl.SSLError as error:
        raise RefusedError(f"{who}: TLS: {_ssl_reason(error)}") from error
    except OSError as error:
        raise PeerLost(f"{who}: {error}") from error


def _ssl_reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate shown is not the pinned one ({error.verify_message})"
    reason = (error.reason or "").lower()
    if "unknown_ca" in reason or "bad_certificate" in reason or "certificate_unknown" in reason:
        return f"the other end does not accept our certificate ({reason})"
    if "certificate_required" in reason or "did_not_return_a_certificate" in reason:
        return f"a certificate is missing ({reason})"
    return reason.replace("_", " ") or str(error)


async def handshake(
    stream: ConnectionStream, contexts: TlsContexts, *, dialing: bool, who: str
) -> trio.SSLStream[ConnectionStream]:
    """Do the handshake and check the pin; the caller sets a deadline.

    Raises `RefusedError` or `PeerLost`.
    """
    context = contexts.dialer if dialing else contexts.listener
    secured = trio.SSLStream(stream, context, server_side=not dialing, https_compatible=True)
    with peer_errors(who):
        await secured.do_handshake()
    shown = secured.getpeercert(binary_form=True)
    fingerprint = hashlib.sha256(shown or b"").digest()
    if fingerprint != contexts.peer_fingerprint:
        raise RefusedError(f"{who}: its key {fingerprint.hex()[:16]} is not the pinned one")
    return secured
