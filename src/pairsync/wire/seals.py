"""Seals: how the records of a lane are encrypted, authenticated and kept in order (AES-256-GCM).

On the wire a record is a 4-byte big-endian length, then as many bytes of ciphertext and tag.  The nonce is
4 bytes of salt and an 8-byte counter that is never sent: both ends count, so a record that is replayed,
left out, cut short, or comes from another lane, direction or session fails its tag.  The length is
authenticated too (it is the associated data), and it is checked against its maximum before it is used.

Keys: each lane has 32 bytes of secret from each host, exchanged over the control connection (TLS 1.3 between
pinned keys).  HKDF-SHA256 over both makes one traffic secret for each direction; its ``info`` names the
protocol version, session, lane, direction and both hosts.  Key and salt are expanded from the traffic
secret.  After `KEY_BYTES_MAX` bytes or `KEY_RECORDS_MAX` records both ends step, by themselves and at the
same record, to the next traffic secret, and the counter starts again.

Sources: RFC 8446 sections 5.3 and 7.2 (nonces, key update), RFC 5869 (HKDF), NIST SP 800-38D section 8.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from pairsync.core.messages import Buffer
from pairsync.errors import InternalError, ProtocolError

from .limits import (
    KEY_BYTES_MAX,
    KEY_RECORDS_MAX,
    RECORD_BYTES_MAX,
    RECORD_HEADER_BYTES,
    RECORD_PLAINTEXT_BYTES_MAX,
    TAG_BYTES,
)

__all__ = [
    "FINGERPRINT_BYTES",
    "LANE_ID_BYTES",
    "LENGTH_BYTES",
    "SECRET_BYTES",
    "SESSION_ID_BYTES",
    "LaneSecrets",
    "Opener",
    "Sealer",
    "derive_lane_secrets",
    "record_length",
]

LENGTH_BYTES = 4
SECRET_BYTES = 32
"""What each host contributes, and each traffic secret."""
SESSION_ID_BYTES = 16
LANE_ID_BYTES = 16
FINGERPRINT_BYTES = 32

_LENGTH = struct.Struct(">I")
_NONCE = struct.Struct(">4sQ")
_LABEL = b"pairsync lane record"
_SALT_BYTES = 4


@dataclass(frozen=True, slots=True, repr=False)
class LaneSecrets:
    """The first traffic secret of either direction; never logged."""

    from_dialer: bytes
    from_listener: bytes


def derive_lane_secrets(
    *,
    version: int,
    session_id: bytes,
    lane_id: bytes,
    dialer_fingerprint: bytes,
    listener_fingerprint: bytes,
    dialer_secret: bytes,
    listener_secret: bytes,
) -> LaneSecrets:
    """Both traffic secrets of a lane; either host's secret alone gives no key."""
    for name, value, length in (
        ("session id", session_id, SESSION_ID_BYTES),
        ("lane id", lane_id, LANE_ID_BYTES),
        ("dialer's fingerprint", dialer_fingerprint, FINGERPRINT_BYTES),
        ("listener's fingerprint", listener_fingerprint, FINGERPRINT_BYTES),
        ("dialer's secret", dialer_secret, SECRET_BYTES),
        ("listener's secret", listener_secret, SECRET_BYTES),
    ):
        if len(value) != length:
            raise InternalError(f"lane keys: the {name} has {len(value)} bytes, not {length}")
    # fixed lengths, so that no two different inputs join to the same bytes
    context = version.to_bytes(4, "big") + session_id + lane_id + dialer_fingerprint + listener_fingerprint
    secret = dialer_secret + listener_secret

    def direction(name: bytes) -> bytes:
        hkdf = HKDF(algorithm=SHA256(), length=SECRET_BYTES, salt=None, info=b"pairsync " + name + context)
        return hkdf.derive(secret)

    return LaneSecrets(direction(b"dialer to listener "), direction(b"listener to dialer "))


def record_length(buffer: Buffer, position: int = 0) -> int:
    """Bytes of ciphertext and tag that follow the length at ``position``.

    Raises `ProtocolError` if no record has that length.
    """
    (length_bytes,) = _LENGTH.unpack_from(buffer, position)
    if not RECORD_HEADER_BYTES + TAG_BYTES <= length_bytes <= RECORD_BYTES_MAX:
        raise ProtocolError(
            f"record of {length_bytes} bytes announced; "
            f"{RECORD_HEADER_BYTES + TAG_BYTES} to {RECORD_BYTES_MAX} are allowed"
        )
    checked: int = length_bytes
    return checked


def _expand(secret: bytes, purpose: bytes, length_bytes: int) -> bytes:
    return HKDFExpand(algorithm=SHA256(), length=length_bytes, info=b"pairsync " + purpose).derive(secret)


class _KeySchedule:
    """One direction of a lane: the current key and the count of what it has protected.

    Invariants: ``_counter`` records and ``_protected_bytes`` bytes of plaintext were protected by the
    current key; a nonce is used once, because each record moves the counter before it uses it.  Sealing
    and opening do this in line, and alike, for they are the fast path: both ends step at the same record.
    """

    def __init__(
        self, secret: bytes, key_bytes_max: int = KEY_BYTES_MAX, key_records_max: int = KEY_RECORDS_MAX
    ) -> None:
        if key_bytes_max < RECORD_PLAINTEXT_BYTES_MAX or key_records_max < 1:
            raise InternalError(f"a lane key must serve one record at least, not {key_bytes_max} bytes")
        self._secret = secret
        self._key_bytes_max = key_bytes_max
        self._key_records_max = key_records_max
        self._counter = 0
        self._protected_bytes = 0
        self._derive()

    def _derive(self) -> None:
        cipher = AESGCM(_expand(self._secret, b"key", 32))
        self._salt = _expand(self._secret, b"salt", _SALT_BYTES)
        self._encrypt_into = cipher.encrypt_into
        self._decrypt = cipher.decrypt

    def _step(self) -> None:
        """Go on to the next traffic secret; the one before is forgotten."""
        self._secret = _expand(self._secret, b"next", SECRET_BYTES)
        self._derive()
        self._counter = 0
        self._protected_bytes = 0


class Sealer(_KeySchedule):
    """Seals the records of one direction, in order."""

    def seal(self, plaintext: bytes, out: memoryview) -> int:
        """Write length, ciphertext and tag to the start of ``out``; returns how many bytes that are.

        ``out`` must have room for `LENGTH_BYTES` + the plaintext + `TAG_BYTES` and not overlap it.
        """
        plaintext_bytes = len(plaintext)
        if not RECORD_HEADER_BYTES <= plaintext_bytes <= RECORD_PLAINTEXT_BYTES_MAX:
            raise InternalError(f"a record of {plaintext_bytes} bytes is outside the limits")
        if (
            self._protected_bytes + plaintext_bytes > self._key_bytes_max
            or self._counter >= self._key_records_max
        ):
            self._step()
        nonce = _NONCE.pack(self._salt, self._counter)
        self._counter += 1
        self._protected_bytes += plaintext_bytes
        prefix = _LENGTH.pack(plaintext_bytes + TAG_BYTES)
        end = LENGTH_BYTES + plaintext_bytes + TAG_BYTES
        out[:LENGTH_BYTES] = prefix
        self._encrypt_into(nonce, plaintext, _LABEL + prefix, out[LENGTH_BYTES:end])
        return end


class Opener(_KeySchedule):
    """Opens the records of one direction, in the order in which they were sealed."""

    def open(self, sealed: memoryview) -> memoryview:
        """The plaintext of one record, in a buffer of its own that lives as long as it is referred to.

        ``sealed`` is what followed the length.  Raises `ProtocolError` where the record was changed,
        replayed, reordered, cut, or sealed for another lane; the lane is of no use afterwards.
        """
        sealed_bytes = len(sealed)
        plaintext_bytes = sealed_bytes - TAG_BYTES
        if plaintext_bytes < 0:
            raise ProtocolError(f"record of {sealed_bytes} bytes, its tag alone has {TAG_BYTES}")
        if (
            self._protected_bytes + plaintext_bytes > self._key_bytes_max
            or self._counter >= self._key_records_max
        ):
            self._step()
        nonce = _NONCE.pack(self._salt, self._counter)
        self._counter += 1
        self._protected_bytes += plaintext_bytes
        try:
            return memoryview(self._decrypt(nonce, sealed, _LABEL + _LENGTH.pack(sealed_bytes)))
        except InvalidTag:
            raise ProtocolError(
                "record fails its seal: changed, replayed, out of order, or not of this lane"
            ) from None
