"""What a lab is made of: its file, its lock, its directories, its volumes and its hosts' files."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Self

from pairsync.errors import BackendError, BusyError, ConfigError
from pairsync.guest.replica import create_replica
from pairsync.io.keys import open_identity
from pairsync.storage.metadata import metadata_path

from .durable import write_durably
from .hostinit import volume_id_of

__all__ = [
    "HOSTS",
    "DirectoryLock",
    "LabFile",
    "control_socket_of",
    "free_ports",
    "nbd_socket_of",
    "open_lab_file",
    "prepare",
    "put_empty_disk",
    "remove_sockets",
    "sockets_of",
]

HOSTS = ("a", "b")
"""The two hosts; ``a`` is active."""

PORT_MIN = 16384
"""Lowest port that is chosen: below it are the services that people know by number."""

PORTS_TRIED = 1000
"""Ports that are looked at before giving up."""

SOCKET_PATH_BYTES_MAX = 80
"""Beyond this a directory is too deep for Unix sockets (108 bytes with the name and a temporary suffix)."""


@dataclass(frozen=True, slots=True)
class LabFile:
    """What the lab was asked for; kept in ``lab.json``."""

    volumes: dict[str, int]  # name -> bytes
    level: str
    single: bool
    pair_id: str
    ports: dict[str, int]  # link port of each host
    digests: bool = True  # whether the hosts keep digests of their blocks; files of before do not say it

    def save(self, directory: Path) -> None:
        """Write it durably, whole or not at all."""
        write_durably(directory / "lab.json", f"{json.dumps(asdict(self), indent=2)}\n".encode())

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read it; `ConfigError` if the directory holds no lab."""
        path = directory / "lab.json"
        try:
            return cls(**json.loads(path.read_text()))
        except FileNotFoundError as error:
            raise ConfigError(f"{directory} holds no lab (no lab.json)") from error
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path} is damaged: {error}") from error


class DirectoryLock:
    """At most one supervisor, and no offline command beside it; ``who`` would hold it."""

    def __init__(self, directory: Path, who: str = "lab") -> None:
        self._fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._fd)
            raise BusyError(f"the {who} in {directory} is up") from error

    def close(self) -> None:
        """Give it back."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def sockets_of(directory: Path) -> Path:
    """Where the sockets lie: in the directory, or, if its name is too long for that, in a short one."""
    here = directory.absolute() / "sockets"
    if len(str(here).encode()) <= SOCKET_PATH_BYTES_MAX:
        return here
    digest = hashlib.sha256(str(directory.absolute()).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"pairsync-{os.getuid()}-{digest}"


def control_socket_of(directory: Path, host: str = "lab") -> Path:
    """The supervisor's control socket, or that of one host."""
    return sockets_of(directory) / f"{host}.control"


def open_lab_file(
    directory: Path,
    volumes: Mapping[str, int],
    level: str | None,
    *,
    single: bool,
    digests: bool | None = None,
) -> LabFile:
    """What the lab is: as asked for the first time, as it was afterwards.

    `ConfigError` if what is asked for contradicts what is there.
    """
    if not (directory / "lab.json").exists():
        if not volumes:
            raise ConfigError("a new lab needs at least one --volume NAME=SIZE")
        ports = dict(zip(HOSTS, free_ports(len(HOSTS)), strict=True))
        kept = digests is not False
        return LabFile(dict(volumes), level or "sync", single, secrets.token_hex(16), ports, kept)
    lab = LabFile.load(directory)
    for name, size in volumes.items():
        if lab.volumes.get(name, size) != size:
            raise ConfigError(f"volume {name!r} in {directory} has {lab.volumes[name]} bytes, not {size}")
    ports = lab.ports
    if not all(_is_free(port) for port in ports.values()):
        ports = dict(zip(HOSTS, free_ports(len(HOSTS)), strict=True))
    return replace(
        lab,
        volumes={**lab.volumes, **volumes},
        level=level or lab.level,
        single=single or lab.single,
        ports=ports,
        digests=lab.digests if digests is None else digests,
    )


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, none of those that the system gives to outgoing connections.

    A host that is down must find its port free when it comes back.  One of the others may have been given
    away meanwhile, even to its own peer: who dials a port of that range on his own machine, on which nobody
    listens, may be given the very same one, and is then connected to himself.
    """
    given_away = _outgoing_ports()
    wanted = [port for port in range(PORT_MIN, 1 << 16) if port not in given_away]
    random = secrets.SystemRandom()
    tried = random.sample(wanted, PORTS_TRIED) if len(wanted) > PORTS_TRIED else list(given_away)
    found = list(islice((port for port in tried if _is_free(port)), count))
    if len(found) < count:
        raise BackendError(f"no {count} free ports among {len(tried)}", errno.EADDRINUSE)
    return found


def _outgoing_ports() -> range:
    """What the system gives to outgoing connections."""
    try:
        first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    except OSError:
        return range(32768, 61000)  # what Linux has by default
    return range(int(first), int(last) + 1)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def prepare(directory: Path, lab: LabFile) -> None:
    """Make what is missing: identities, volumes, host files, the directory for sockets.

    What the lab is stands in ``lab.json`` before the first volume is made, so that an end in the middle is
    made up for by the next call.  If something cannot be made, what this call made is taken away again.
    """
    file = directory / "lab.json"
    before = file.read_bytes() if file.exists() else None
    made: list[Path] = []
    try:
        _prepare(directory, lab, made)
    except BaseException as error:
        for path in reversed(made):
            path.unlink(missing_ok=True)
        file.unlink(missing_ok=True) if before is None else write_durably(file, before)
        if isinstance(error, OSError):
            raise BackendError(f"{directory}: {error.strerror or error}", error.errno or 5) from error
        raise


def _prepare(directory: Path, lab: LabFile, made: list[Path]) -> None:
    sockets = sockets_of(directory)
    sockets.mkdir(mode=0o700, parents=True, exist_ok=True)
    if sockets.stat().st_uid != os.getuid():
        raise ConfigError(f"{sockets} belongs to somebody else")
    hosts = HOSTS[:1] if lab.single else HOSTS
    for host in HOSTS:
        (directory / host).mkdir(mode=0o700, exist_ok=True)
    certificates = {
        host: open_identity(directory / host / "identity", f"pairsync lab {host}").certificate_pem
        for host in HOSTS
    }
    lab.save(directory)
    for host in hosts:
        peer = HOSTS[1 - HOSTS.index(host)]
        write_durably(directory / host / "peer.pem", certificates[peer])
        for name, size_bytes in lab.volumes.items():
            made += _make_volume(directory / host / f"{name}.img", name, size_bytes, lab)
        write_durably(directory / host / "host.toml", _host_toml(directory, host, lab).encode())


def _make_volume(path: Path, name: str, size_bytes: int, lab: LabFile) -> list[Path]:
    """Make what is missing of a volume; the files that were made.  Data that is there is taken over."""
    metadata = Path(metadata_path(path))
    if metadata.exists():
        return []
    made = [metadata] if path.exists() else [path, metadata]
    pair_id = bytes.fromhex(lab.pair_id)
    volume_id = volume_id_of(pair_id, name)
    create_replica(path, name=name, pair_id=pair_id, volume_id=volume_id, size_bytes=size_bytes)
    return made


def put_empty_disk(path: Path, name: str, pair_id: bytes, size_bytes: int) -> None:
    """In the place of a replica an empty one: its files, whatever belongs to it, are removed for good."""
    metadata = Path(metadata_path(path))
    try:
        for each in (path, *metadata.parent.glob(glob.escape(metadata.name) + "*")):
            each.unlink(missing_ok=True)
    except OSError as error:
        raise BackendError(f"{path}: {error.strerror or error}", error.errno or 5) from error
    volume_id = volume_id_of(pair_id, name)
    create_replica(path, name=name, pair_id=pair_id, volume_id=volume_id, size_bytes=size_bytes)


def _host_toml(directory: Path, host: str, lab: LabFile) -> str:
    peer = HOSTS[1 - HOSTS.index(host)]
    role = "active" if host == "a" else "standby"
    lines = [
        "[host]",
        f"name = {json.dumps(host)}",
        f"control = {json.dumps(str(control_socket_of(directory, host)))}",
        "",
        "[guest]",
        'name = "lab"',
        f"pair_id = {json.dumps(lab.pair_id)}",
        f"role = {json.dumps(role)}",
        "",
        "[nbd]",
        f"socket = {json.dumps(str(nbd_socket_of(directory, host)))}",
    ]
    if not lab.single:
        lines += [
            "",
            "[link]",
            'peer_certificate = "peer.pem"',
            f'listen = ["127.0.0.1:{lab.ports[host]}"]',
            f'paths = [{{ name = "loopback", peer = "127.0.0.1:{lab.ports[peer]}" }}]',
        ]
    for name in lab.volumes:
        lines += ["", "[[volumes]]", f"name = {json.dumps(name)}", f"path = {json.dumps(name + '.img')}"]
        lines += [f"level = {json.dumps(lab.level)}"]
        if not lab.digests:
            lines += ["digests = false"]
    return "\n".join(lines) + "\n"


def nbd_socket_of(directory: Path, host: str) -> Path:
    """The front door of one host."""
    return sockets_of(directory) / f"{host}.nbd"


def remove_sockets(directory: Path) -> None:
    """Remove the sockets that killed hosts left behind, and the short directory if the lab needed one."""
    sockets = sockets_of(directory)
    if sockets.parent != directory.absolute():
        shutil.rmtree(sockets, ignore_errors=True)
        return
    for path in sockets.iterdir():
        if path.is_socket():
            path.unlink()
