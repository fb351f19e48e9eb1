"""What the tests of the front door share: a disk in memory, and certificates for TLS."""

from __future__ import annotations

import dataclasses
import datetime as dt
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pairsync.core.units import MIB
from pairsync.testing.nbd_memory import MemoryExport

DISK_BYTES = 8 * MIB


@pytest.fixture
def disk() -> Iterator[MemoryExport]:
    """A disk of 8 MiB named vda."""
    export = MemoryExport("vda", DISK_BYTES, description="a disk for tests")
    yield export
    export.close()


@dataclasses.dataclass(frozen=True)
class Credentials:
    """A directory with the file names that libnbd and QEMU expect, and contexts made from it."""

    directory: Path

    def server(self) -> ssl.SSLContext:
        """A server that wants a client certificate of the same authority."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.directory / "server-cert.pem", self.directory / "server-key.pem")
        context.load_verify_locations(self.directory / "ca-cert.pem")
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client(self) -> ssl.SSLContext:
        """A client that trusts the authority and shows its own certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.directory / "ca-cert.pem")
        context.load_cert_chain(self.directory / "client-cert.pem", self.directory / "client-key.pem")
        return context


def _make_credentials(directory: Path) -> None:
    now = dt.datetime.now(dt.UTC)

    def certificate(
        name: str,
        issuer: x509.Name | None,
        key: ec.EllipticCurvePrivateKey,
        signer: ec.EllipticCurvePrivateKey,
    ) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer or subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        )
        return builder.sign(signer, hashes.SHA256())

    def write(name: str, signed: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        (directory / f"{name}-cert.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (directory / f"{name}-key.pem").write_bytes(private)

    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = certificate("test authority", None, authority_key, authority_key)
    write("ca", authority, authority_key)
    for name in ("server", "client"):
        key = ec.generate_private_key(ec.SECP256R1())
        write(name, certificate(name, authority.subject, key, authority_key), key)


@pytest.fixture(scope="session")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    """Fresh keys and certificates for ``localhost``."""
    directory = tmp_path_factory.mktemp("pki")
    _make_credentials(directory)
    return Credentials(directory)
