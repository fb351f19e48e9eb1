"""The directory of a built-in witness: its key, whom it serves, where it listens, and the registers.

::

    witness.toml        [witness] listen = ["0.0.0.0:10889"]
    identity/           the witness's own key and certificate
    pairs/ID.pem        the certificates of the two hosts of pair ID (32 hex digits); one file a pair
    registers           what it stores (``storage.registerfile``)
    lock, sockets/      of the running witness

A pair is added and removed by whole files, so that other tools can do it too: put the file there and send the
witness SIGHUP.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pairsync.errors import BackendError, ConfigError
from pairsync.io.keys import (
    CERTIFICATE_BYTES_MAX,
    certificate_der,
    fingerprint_of,
    open_identity,
    read_certificate,
)
from pairsync.io.network import Address, describe_address
from pairsync.io.witnessserver import Roll

from .durable import write_durably
from .hostfile import parse_address
from .places import sockets_of

__all__ = [
    "PAIRS_MAX",
    "WITNESS_PORT",
    "ServedPair",
    "WitnessFile",
    "add_pair",
    "control_path",
    "init_witness",
    "list_pairs",
    "read_roll",
    "read_witness_file",
    "remove_pair",
    "write_witness_file",
]

WITNESS_PORT = 10889
"""Where a witness listens if nothing else is said."""

PAIRS_MAX = 8192
"""Pairs of one witness: 16,384 connections are what one process serves with ease, 100 MB of buffers."""

ADDRESSES_MAX = 8
"""Listening addresses."""

HOSTS = 2

_FILE = "witness.toml"
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n?", re.DOTALL)
_PAIR_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class WitnessFile:
    """The parsed ``witness.toml``."""

    listen: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class ServedPair:
    """A pair on the roll, with the fingerprints of its hosts, in hexadecimal."""

    pair_id: str
    hosts: tuple[str, ...]


def control_path(directory: Path) -> Path:
    """The control socket of the running witness."""
    return sockets_of(directory) / "witness.control"


def init_witness(directory: Path, listen: Sequence[Address]) -> list[str]:
    """Make key, certificate and ``witness.toml``; what to do next, as lines.

    Raises `ConfigError` if the directory holds a witness already, `BackendError` if the disk says no.
    """
    file = directory / _FILE
    if file.exists():
        raise ConfigError(f"{directory} holds a witness already; nothing was changed")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        (directory / "pairs").mkdir(mode=0o700, exist_ok=True)
        identity = open_identity(directory / "identity", "pairsync witness")
        write_witness_file(directory, listen)
    except OSError as error:
        raise BackendError(f"{error.filename}: {error.strerror}", error.errno or 5) from error
    return [
        f"{directory}: a witness",
        f"fingerprint  {identity.fingerprint.hex()}",
        "",
        "Next:",
        "  1. Tell it which pairs it serves, each with the certificates of its two hosts:",
        f"     pairsync witness add {directory} --pair PAIR_ID --host A/host.crt --host B/host.crt",
        f"  2. Give both hosts its certificate (no secret): {directory}/identity/host.crt",
        f"  3. Run it: pairsync witness serve {directory}",
    ]


def write_witness_file(directory: Path, listen: Sequence[Address]) -> None:
    """Write down where the witness listens from its next start on; `OSError` if that cannot be."""
    addresses = ", ".join(json.dumps(describe_address(each)) for each in listen)
    write_durably(directory / _FILE, f"[witness]\nlisten = [{addresses}]\n".encode())


def read_witness_file(directory: Path) -> WitnessFile:
    """Raises `ConfigError` naming what is wrong."""
    file = directory / _FILE
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"no witness in {directory}: make one with pairsync witness init") from error
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from error
    table = content.pop("witness", None)
    if content or not isinstance(table, dict) or set(table) != {"listen"}:
        raise ConfigError(f"{file}: expected [witness] with listen = [...], and nothing else")
    listen = table["listen"]
    texts = listen if isinstance(listen, list) else []
    if not 0 < len(texts) <= ADDRESSES_MAX or not all(isinstance(each, str) for each in texts):
        raise ConfigError(f"{file}: listen is a list of 1 to {ADDRESSES_MAX} addresses")
    return WitnessFile(tuple(parse_address(each, WITNESS_PORT) for each in texts))


# -- the roll ------------------------------------------------------------------------------------------------


def _pair_file(directory: Path, pair_id: str) -> Path:
    text = pair_id.lower()
    if not _PAIR_ID.fullmatch(text):
        raise ConfigError(f"{pair_id!r} is no pair id: 32 hexadecimal digits, as pairsync host init said it")
    read_witness_file(directory)
    return directory / "pairs" / f"{text}.pem"


def _read(path: Path, bytes_max: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(bytes_max + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    if len(content) > bytes_max:
        raise ConfigError(f"{path}: larger than {bytes_max} bytes, what is no certificate")
    return content


def _certificates(path: Path) -> list[bytes]:
    """The two certificates (PEM) of a pair's file."""
    found: list[bytes] = _PEM.findall(_read(path, HOSTS * CERTIFICATE_BYTES_MAX))
    if len(found) != HOSTS:
        raise ConfigError(f"{path}: {len(found)} certificates, a pair has {HOSTS}")
    return found


def _pair_files(directory: Path) -> list[Path]:
    try:
        files = [path for path in (directory / "pairs").iterdir() if path.suffix == ".pem"]
    except OSError as error:
        raise ConfigError(f"{directory / 'pairs'}: {error.strerror}") from error
    if len(files) > PAIRS_MAX:
        raise ConfigError(f"{directory}: {len(files)} pairs, one witness serves {PAIRS_MAX}")
    for path in files:
        if not _PAIR_ID.fullmatch(path.stem):
            raise ConfigError(f"{path}: the name is no pair id of 32 hexadecimal digits")
    return sorted(files)


def read_roll(directory: Path) -> Roll:
    """Whom the witness serves; raises `ConfigError` naming the file that is wrong."""
    return Roll(
        {
            bytes.fromhex(path.stem): frozenset(certificate_der(pem) for pem in _certificates(path))
            for path in _pair_files(directory)
        }
    )


def list_pairs(directory: Path) -> list[ServedPair]:
    """The pairs on the roll, by id."""
    read_witness_file(directory)
    return [
        ServedPair(path.stem, tuple(fingerprint_of(pem).hex() for pem in _certificates(path)))
        for path in _pair_files(directory)
    ]


def add_pair(
    directory: Path, pair_id: str, certificates: Sequence[Path], *, replace: bool = False
) -> ServedPair:
    """Put a pair on the roll, or with ``replace`` give one other certificates; durable on return.

    Raises `ConfigError` or `BackendError`.
    """
    path = _pair_file(directory, pair_id)
    if len(certificates) != HOSTS:
        raise ConfigError(f"a pair has {HOSTS} hosts: give --host twice, not {len(certificates)} times")
    if path.exists() and not replace:
        raise ConfigError(f"pair {path.stem} is served already; to give it other certificates say --replace")
    if not path.exists() and len(_pair_files(directory)) >= PAIRS_MAX:
        raise ConfigError(f"{directory}: {PAIRS_MAX} pairs are served, one witness serves no more")
    pems = [read_certificate(each) for each in certificates]
    fingerprints = tuple(fingerprint_of(pem).hex() for pem in pems)
    if len(set(fingerprints)) != HOSTS:
        raise ConfigError("both certificates are the same: give that of each host")
    content = b"".join(found + b"\n" for pem in pems for found in _PEM.findall(pem))
    try:
        write_durably(path, content)
    except OSError as error:
        raise BackendError(f"{path}: {error.strerror}", error.errno or 5) from error
    return ServedPair(path.stem, fingerprints)


def remove_pair(directory: Path, pair_id: str) -> None:
    """Strike a pair off the roll; what is stored for it is forgotten by the running witness, or at its start.

    Raises `ConfigError` if it is not there, `BackendError`.
    """
    path = _pair_file(directory, pair_id)
    try:
        path.unlink()
    except FileNotFoundError as error:
        raise ConfigError(f"pair {path.stem} is not served") from error
    except OSError as error:
        raise BackendError(f"{path}: {error.strerror}", error.errno or 5) from error
