"""``pairsync host init``: the first files of a host that is to be half of a real pair."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from pathlib import Path

from pairsync.errors import BackendError, ConfigError
from pairsync.guest.replica import create_replica
from pairsync.io.keys import open_identity

__all__ = ["init_host", "volume_id_of"]


def volume_id_of(pair_id: bytes, name: str) -> bytes:
    """The id of a volume: the same on both hosts without their having met."""
    return hashlib.sha256(pair_id + name.encode()).digest()[:16]


def init_host(directory: Path, volumes: Mapping[str, int], pair_id: str | None) -> list[str]:
    """Make key, certificate, volumes and a ``host.toml`` to be completed; what to do next, as lines.

    Raises `ConfigError` if the directory holds a host already.
    """
    if (directory / "host.toml").exists():
        raise ConfigError(f"{directory} holds a host already; nothing was changed")
    if not volumes:
        raise ConfigError("a host needs at least one --volume NAME=SIZE")
    first = pair_id is None
    text = secrets.token_hex(16) if pair_id is None else pair_id.lower()
    try:
        identifier = bytes.fromhex(text)
    except ValueError as error:
        raise ConfigError(f"pair id {text!r} is not hexadecimal") from error
    if len(identifier) != 16:
        raise ConfigError(f"pair id {text!r} has {len(identifier)} bytes, not 16")
    identity = open_identity(directory / "identity", f"pairsync host {directory.name}")
    for name, size_bytes in volumes.items():
        create_replica(
            directory / f"{name}.img",
            name=name,
            pair_id=identifier,
            volume_id=volume_id_of(identifier, name),
            size_bytes=size_bytes,
        )
    lines = [
        "[host]",
        f"name = {json.dumps(directory.name)}",
        "",
        "[guest]",
        'name = "guest"',
        f"pair_id = {json.dumps(text)}",
        f'role = "{"active" if first else "standby"}"',
        "",
        "[link]",
        'peer_certificate = "peer.pem"            # copy the other host\'s identity/certificate here',
        'listen = ["0.0.0.0:10888"]',
        'paths = [{ name = "main", peer = "PEER:10888" }]   # one entry for each network path',
        "",
        "[nbd]",
        'socket = "nbd.sock"',
    ]
    for name in volumes:
        lines += ["", "[[volumes]]", f"name = {json.dumps(name)}", f"path = {json.dumps(name + '.img')}"]
    try:
        (directory / "host.toml").write_text("\n".join(lines) + "\n")
    except OSError as error:
        raise BackendError(f"{directory}/host.toml: {error.strerror}", error.errno or 5) from error
    return [
        f"fingerprint  {identity.fingerprint.hex()}",
        f"pair id      {text}",
        (
            f"next: copy the other host's certificate to {directory}/peer.pem and put its address into "
            f"{directory}/host.toml, then: pairsync host run {directory}/host.toml"
        ),
    ]
