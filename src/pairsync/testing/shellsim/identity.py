"""Two host identities that are the same in every run, so that lengths and roles on the link are too.

Nothing secret: whoever reads this has the keys.  The host with the smaller fingerprint dials.
"""

from __future__ import annotations

import datetime as dt
import functools
import hashlib

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from pairsync.io.keys import HostIdentity, fingerprint_of

__all__ = ["identities"]


@functools.cache
def identities() -> tuple[HostIdentity, HostIdentity]:
    """The dialing host's and the listening host's."""
    first, second = sorted((_identity(number) for number in (1, 2)), key=lambda each: each.fingerprint)
    return first, second


def _identity(number: int) -> HostIdentity:
    key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"pairsync simulator %d" % number).digest())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"simulated host {number}")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(number)
        .not_valid_before(dt.datetime(1970, 1, 1, tzinfo=dt.UTC))
        .not_valid_after(dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC))
        .sign(key, algorithm=None)
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    certificate_pem = certificate.public_bytes(serialization.Encoding.PEM)
    return HostIdentity(key_pem, certificate_pem, fingerprint_of(certificate_pem))
