"""The identity of a host: a self-made key and certificate, and the fingerprint that the peer pins.

There is no authority: each host makes its own Ed25519 key and a certificate around it, once, and the two
hosts of a pair are given each other's certificate.  The certificate never expires and its validity begins in
1970, because a host whose clock is wrong must be able to replicate; trust ends by removing the pin.  Ed25519
is chosen for being small, fast, and the same length every time.  The name in it is the one that people use;
who may connect does not depend on it.

The key file is readable by its owner only (0600), and is written and renamed, so that a crash leaves either
no identity or a whole one.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from pairsync.errors import BackendError, ConfigError

__all__ = [
    "CERTIFICATE_BYTES_MAX",
    "HostIdentity",
    "certificate_der",
    "fingerprint_of",
    "host_name_of",
    "host_subject",
    "load_identity",
    "make_identity",
    "open_identity",
    "read_certificate",
    "save_identity",
]

CERTIFICATE_BYTES_MAX = 16 * 1024
"""Size of a key or certificate file that is read; ours have 300 and 500 bytes."""

_HOST_PREFIX = "pairsync host "
_COMMON_NAME_MAX = 64  # RFC 5280 appendix A.1, ub-common-name

_KEY_NAME = "host.key"
_CERTIFICATE_NAME = "host.crt"
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_NEVER = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)  # RFC 5280 section 4.1.2.5


@dataclass(frozen=True, slots=True)
class HostIdentity:
    """A host's key and certificate; ``fingerprint`` (SHA-256 of the DER certificate) is its name."""

    key_pem: bytes = field(repr=False)
    certificate_pem: bytes
    fingerprint: bytes


def make_identity(common_name: str = "pairsync host") -> HostIdentity:
    """A new key and a certificate around it; `ConfigError` for a name that does not fit into one."""
    if not 0 < len(common_name) <= _COMMON_NAME_MAX or not common_name.isprintable():
        raise ConfigError(
            f"{common_name!r} is no name for a certificate: at most {_COMMON_NAME_MAX} printable characters"
        )
    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    public = key.public_key()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_EPOCH)
        .not_valid_after(_NEVER)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, algorithm=None)
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    certificate_pem = certificate.public_bytes(serialization.Encoding.PEM)
    return HostIdentity(key_pem, certificate_pem, fingerprint_of(certificate_pem))


def host_subject(name: str) -> str:
    """The common name of the certificate of the host of that name."""
    return _HOST_PREFIX + name


def host_name_of(certificate_pem: bytes) -> str:
    """The name that a host had when its key was made; empty if its certificate says none."""
    certificate = x509.load_der_x509_certificate(certificate_der(certificate_pem))
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value).removeprefix(_HOST_PREFIX) if names else ""


def certificate_der(certificate_pem: bytes) -> bytes:
    """The one certificate of a PEM text; raises `ConfigError` for none, for several, or for damage."""
    try:
        found = x509.load_pem_x509_certificates(certificate_pem)
    except ValueError as error:
        raise ConfigError("not a PEM certificate") from error
    if len(found) != 1:
        raise ConfigError(f"expected one certificate, found {len(found)}")
    return found[0].public_bytes(serialization.Encoding.DER)


def read_certificate(path: Path) -> bytes:
    """The one certificate (PEM) in a file; `ConfigError` or `BackendError` that names the file."""
    try:
        pem = _read(path, private=False)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    try:
        certificate_der(pem)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return pem


def fingerprint_of(certificate_pem: bytes) -> bytes:
    """SHA-256 of the certificate in DER, 32 bytes."""
    return hashlib.sha256(certificate_der(certificate_pem)).digest()


def save_identity(identity: HostIdentity, directory: Path) -> None:
    """Write key and certificate into ``directory`` (made with mode 0700 if missing), durably."""
    with _backend_errors(f"identity in {directory}"):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # the key last: a directory with a key is complete
        _write(directory / _CERTIFICATE_NAME, identity.certificate_pem, 0o644)
        _write(directory / _KEY_NAME, identity.key_pem, 0o600)


def load_identity(directory: Path) -> HostIdentity:
    """Read what `save_identity` wrote.

    Raises `ConfigError` if the files are missing, damaged, or do not belong together, or if others than
    their owner may read the key.
    """
    try:
        key_pem = _read(directory / _KEY_NAME, private=True)
        certificate_pem = _read(directory / _CERTIFICATE_NAME, private=False)
        key = serialization.load_pem_private_key(key_pem, password=None)
    except FileNotFoundError as error:
        raise ConfigError(f"no identity in {directory}: {error.filename} is missing") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"the key in {directory} is damaged") from error
    try:
        fingerprint = fingerprint_of(certificate_pem)
    except ConfigError as error:
        raise ConfigError(f"{directory / _CERTIFICATE_NAME}: {error}") from error
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    spki = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if certificate.public_key().public_bytes(*spki) != key.public_key().public_bytes(*spki):
        raise ConfigError(f"key and certificate in {directory} do not belong together")
    try:
        certificate.verify_directly_issued_by(certificate)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise ConfigError(f"the certificate in {directory} is not signed by its own key") from error
    return HostIdentity(key_pem, certificate_pem, fingerprint)


def open_identity(directory: Path, common_name: str = "pairsync host") -> HostIdentity:
    """The identity in ``directory``; made on first use."""
    if not (directory / _KEY_NAME).exists():
        save_identity(make_identity(common_name), directory)
    return load_identity(directory)


def _read(path: Path, *, private: bool) -> bytes:
    with _backend_errors(str(path)), open(path, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if private and mode & 0o077:
            raise ConfigError(f"{path} may be read by others (mode {mode & 0o777:04o}); it must be 0600")
        content = file.read(CERTIFICATE_BYTES_MAX + 1)
    if len(content) > CERTIFICATE_BYTES_MAX:
        raise ConfigError(f"{path}: larger than {CERTIFICATE_BYTES_MAX} bytes, what is no certificate")
    return content


def _write(path: Path, content: bytes, mode: int) -> None:
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    with open(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextlib.contextmanager
def _backend_errors(what: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BackendError(f"{what}: {error.strerror or error}", error.errno or 5) from error
