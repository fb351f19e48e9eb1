"""What a lab is: its file, and the names of its sockets."""

from __future__ import annotations

import errno
import json
import secrets
import shutil
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Self
from urllib.parse import quote

from pairsync.core.timing import stated_failover_ns
from pairsync.errors import BackendError, ConfigError

from .durable import write_durably
from .places import sockets_of

__all__ = [
    "ALL",
    "CABLES",
    "ETCD",
    "GUEST",
    "HOSTS",
    "LINK",
    "LOOPBACK",
    "NAMESPACES",
    "NETWORKS",
    "STAYS",
    "WITNESS",
    "WITNESSES",
    "LabFile",
    "cables_of",
    "control_socket_of",
    "ends_of",
    "free_ports",
    "nbd_socket_of",
    "open_lab_file",
    "remove_sockets",
    "uri_of",
]

HOSTS = ("a", "b")
"""The two hosts; ``a`` is active at first."""

GUEST = "lab"
"""The one guest, of all volumes."""

LINK = "a-b"
CABLES = (LINK, "a-witness", "b-witness")
"""What can be cut; ``ALL`` is all of them."""

ALL = "all"

WITNESS = "witness"
"""The third process of a lab, and its directory."""

WITNESSES = ("builtin", "etcd", "none")
"""What a lab can be given: a witness of its own, an etcd of one member, or none: the active host alone
decides."""

LOOPBACK = "loopback"
NAMESPACES = "namespaces"
NETWORKS = (LOOPBACK, NAMESPACES)
"""Where the processes of a lab meet: on this machine's loopback, or each in a network namespace of its own,
with real cables in between."""

STAYS = "stays"
"""In place of a host: the guest has no home."""

ETCD = "etcd"
"""Of the ports of a lab: the one on which a member of etcd would meet others."""

FIXED = "fixed"
"""In a lab that was made before hosts agreed on anything."""

PORT_MIN = 16384
"""Lowest port that is chosen: below it are the services that people know by number."""

PORTS_TRIED = 1000
"""Ports that are looked at before giving up."""


@dataclass(frozen=True, slots=True)
class LabFile:
    """What the lab was asked for; kept in ``lab.json``."""

    volumes: dict[str, int]  # name -> bytes
    level: str
    single: bool
    pair_id: str
    ports: dict[str, int]  # link port of each host
    digests: bool = True  # whether the hosts keep digests of their blocks; files of before do not say it
    witness: str = FIXED  # one of `WITNESSES`, or `FIXED` in labs of before: nobody takes over
    failover_s: float = 5.0
    home: str = STAYS  # a host, or `STAYS`: the guest does not go back by itself
    network: str = LOOPBACK  # one of `NETWORKS`

    @property
    def arbitrated(self) -> bool:
        """Whether the hosts agree on who is active."""
        return not self.single and self.witness != FIXED

    @property
    def cables(self) -> tuple[str, ...]:
        """Those of `CABLES` that there are."""
        if self.single:
            return ()
        return CABLES if self.arbitrated and self.witness != "none" else (LINK,)

    def address(self, name: str, other: str) -> str:
        """Where that host, or the witness, is found by another one: on the cable between the two."""
        if self.network == LOOPBACK:
            return "127.0.0.1"
        (cable,) = [each for each in CABLES if {name, other} == set(each.split("-"))]
        return f"10.231.{CABLES.index(cable) + 1}.{cable.split('-').index(name) + 1}"

    @property
    def witness_listens(self) -> tuple[tuple[str, int], ...]:
        """Addresses and ports of the witness, that of host a first."""
        addresses = dict.fromkeys(self.address(WITNESS, host) for host in HOSTS)
        return tuple((address, self.ports[WITNESS]) for address in addresses)

    def save(self, directory: Path) -> None:
        """Write it durably, whole or not at all."""
        write_durably(directory / "lab.json", f"{json.dumps(asdict(self), indent=2)}\n".encode())

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read it; `ConfigError` if the directory holds no lab."""
        path = directory / "lab.json"
        try:
            return cls(**json.loads(path.read_text()))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ConfigError(f"{directory} holds no lab (no lab.json)") from error
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path} is damaged: {error}") from error


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
    witness: str | None = None,
    failover_s: float | None = None,
    home: str | None = None,
    network: str | None = None,
) -> LabFile:
    """What the lab is: as asked for the first time, as it was afterwards.

    `ConfigError` if what is asked for contradicts what is there.
    """
    if failover_s is not None:
        stated_failover_ns(failover_s)
    lab = LabFile.load(directory) if (directory / "lab.json").exists() else None
    if (single if lab is None else lab.single) and network == NAMESPACES:
        raise ConfigError("a single host has no network")
    if lab is None:
        if not volumes:
            raise ConfigError("a new lab needs at least one --volume NAME=SIZE")
        return LabFile(
            dict(volumes),
            level or "sync",
            single,
            secrets.token_hex(16),
            _draw_ports(),
            digests is not False,
            witness or WITNESSES[0],
            failover_s or 5.0,
            home or STAYS,
            network or LOOPBACK,
        )
    if witness is not None and witness != lab.witness:
        raise ConfigError(f"the lab in {directory} was made with witness {lab.witness}, not {witness}")
    if single and not lab.single:
        raise ConfigError(f"the lab in {directory} was made with two hosts, not with a single one")
    for name, size in volumes.items():
        if lab.volumes.get(name, size) != size:
            raise ConfigError(f"volume {name!r} in {directory} has {lab.volumes[name]} bytes, not {size}")
    ports = lab.ports
    if ETCD not in ports or not all(_is_free(port) for port in ports.values()):
        ports = _draw_ports()
    return replace(
        lab,
        volumes={**lab.volumes, **volumes},
        level=level or lab.level,
        ports=ports,
        digests=lab.digests if digests is None else digests,
        failover_s=failover_s or lab.failover_s,
        home=home or lab.home,
        network=network or lab.network,
    )


def _draw_ports() -> dict[str, int]:
    names = (*HOSTS, WITNESS, ETCD)
    return dict(zip(names, free_ports(len(names)), strict=True))


def cables_of(name: str) -> tuple[str, ...]:
    """Those of `CABLES` that have an end at that host."""
    return tuple(cable for cable in CABLES if name in cable.split("-"))


def ends_of(cable: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """Who is at each end of one of `CABLES`, and who at the other one."""
    first, second = cable.split("-")
    return (first, second), (second, first)


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


def nbd_socket_of(directory: Path, host: str) -> Path:
    """The front door of one host."""
    return sockets_of(directory) / f"{host}.nbd"


def uri_of(directory: Path, host: str, volume: str) -> str:
    """NBD URI of a volume at a host's door."""
    where = quote(str(nbd_socket_of(directory, host)), safe="/")
    return f"nbd+unix:///{quote(volume, safe='')}?socket={where}"


def remove_sockets(directory: Path) -> None:
    """Remove the sockets that killed processes left behind, and the short directories if any were needed."""
    for place in (directory, directory / WITNESS):
        sockets = sockets_of(place)
        if sockets.parent != place.absolute():
            shutil.rmtree(sockets, ignore_errors=True)
        elif sockets.exists():
            for path in sockets.iterdir():
                if path.is_socket():
                    path.unlink()
