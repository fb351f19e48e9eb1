"""``host.toml``: everything that one host process is told, in one file.

::

    [host]
    name = "a"                      # for people and logs
    identity = "identity"           # directory with the host's own key; made on first use
    control = "control.sock"        # status and commands; mode 0600

    [guest]
    name = "lab"
    pair_id = "0f…"                 # 32 hex digits, the same on both hosts
    role = "active"                 # or "standby"; not where the roles are agreed on:
    term = 1

    [register]                      # absent: the roles are fixed, and nobody takes over
    memory = "register"             # this host's own vote; made by `pairsync host init`
    failover_s = 5                  # from the end of one host until the other serves
    watchdog = "/dev/watchdog"      # absent: nothing resets a machine whose guard stands still
    home = "a"                      # where the guest goes back to; absent: it stays.  The name that the host
                                    # had when its key was made (`host init --name`); as in the other file
    home_after_s = 60               # once that host has been in sync for so long

    [[register.witnesses]]          # the preferred one first; none: the active host alone decides
    name = "w1"                     # the same on both hosts
    address = "192.0.2.7:10889"
    certificate = "witness.pem"     # or, instead of these two: etcd = ["http://192.0.2.7:2379"]; for https
                                    # with ca = "ca.pem", certificate = "client.pem", key = "client.key"
                                    # or a store of one's own: store = "MODULE:NAME", options = { key = "x" }

    [fence]                         # absent: the other host is never turned off
    command = ["fence_ipmilan"]     # a fence agent
    options = { ip = "192.0.2.8", username = "pairsync", lanplus = "1" }
    secrets = "fence.secrets"       # more options, name=value a line; mode 0600
    turn_on = true                  # again, once it was off
    deadline_s = 120                # for a proof
    attempt_s = 40                  # for one call of the agent

    [link]                          # absent: no peer
    peer_certificate = "peer.pem"
    listen = ["127.0.0.1:7001"]
    paths = [{ name = "main", peer = "127.0.0.1:7002" }]

    [nbd]
    socket = "nbd.sock"             # and / or:
    listen = "127.0.0.1:10809"
    tls = "tls"                     # for TCP: directory with server-cert.pem, server-key.pem, ca-cert.pem

    [[volumes]]
    name = "vda"
    path = "vda.img"
    level = "sync"                  # or "async"; examples/two_hosts/alpha/host.toml shows all options

Paths are relative to the file.  Unknown keys are errors: a misspelt bound would be no bound.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pairsync.core.limits import VolumeOptions
from pairsync.core.messages import Role
from pairsync.core.timing import FAILOVER_NS_DEFAULT, stated_failover_ns
from pairsync.core.units import NS_PER_MS, NS_PER_S
from pairsync.errors import ConfigError
from pairsync.guest.config import VolumeConfig
from pairsync.io.config import LinkTimings, PathConfig
from pairsync.io.network import Address

__all__ = [
    "WITNESSES_MAX",
    "FenceFile",
    "HostFile",
    "LinkFile",
    "NbdFile",
    "RegisterFile",
    "WitnessFile",
    "parse_address",
    "read_host_file",
]

WITNESSES_MAX = 2
"""A preferred witness and an alternate one."""

HOME_AFTER_NS = 60 * NS_PER_S
HOME_AFTER_NS_MIN = NS_PER_S
HOME_AFTER_NS_MAX = 7 * 24 * 3600 * NS_PER_S
"""So long the home of a guest may be asked to be in sync before the guest goes back there."""


@dataclass(frozen=True, slots=True)
class NbdFile:
    """Where the front door opens."""

    socket: Path | None = None
    listen: Address | None = None
    tls: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkFile:
    """How the peer is reached."""

    peer_certificate: Path
    listen: tuple[Address, ...]
    paths: tuple[PathConfig, ...]
    timings: LinkTimings = field(default_factory=LinkTimings)


@dataclass(frozen=True, slots=True, kw_only=True)
class WitnessFile:
    """One witness: the built-in one at an address, an etcd cluster, or a store of one's own
    (`node.ownwitness`)."""

    name: str
    address: Address | None = None
    certificate: Path | None = None
    etcd: tuple[str, ...] = ()
    ca: Path | None = None
    key: Path | None = None
    """With ``ca`` and ``certificate``: of an etcd cluster behind TLS."""
    store: str = ""
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterFile:
    """How the owner of the guest is agreed on."""

    memory: Path
    failover_ns: int
    witnesses: tuple[WitnessFile, ...] = ()
    watchdog: Path | None = None
    home: str | None = None
    """The name of the host that the guest goes back to (`node.homing`); None: it stays where it is."""
    home_after_ns: int = HOME_AFTER_NS


@dataclass(frozen=True, slots=True, kw_only=True)
class FenceFile:
    """How the other host is turned off; the secrets stay in their file (`node.fencing`)."""

    command: tuple[str, ...]
    options: Mapping[str, str]
    secrets: Path | None = None
    turn_on: bool = True
    deadline_ns: int = 120 * NS_PER_S
    attempt_ns: int = 40 * NS_PER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFile:
    """The parsed file."""

    name: str
    identity: Path
    control: Path
    guest: str
    pair_id: bytes
    role: Role
    """With a register: standby, until the register says otherwise."""
    term: int
    volumes: tuple[VolumeConfig, ...]
    link: LinkFile | None
    nbd: NbdFile
    register: RegisterFile | None = None
    fence: FenceFile | None = None


class _Table:
    """A TOML table whose keys are taken one by one; what is left over is an error."""

    def __init__(self, where: str, content: object) -> None:
        if not isinstance(content, Mapping):
            raise ConfigError(f"{where}: a table is expected")
        self.where = where
        self._rest: dict[str, Any] = dict(content)

    def take(self, key: str, kind: type, default: object = ...) -> Any:
        """The value of ``key``; ``...`` as the default makes it mandatory."""
        if key not in self._rest:
            if default is ...:
                raise ConfigError(f"{self.where}: {key!r} is missing")
            return default
        value = self._rest.pop(key)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{self.where}: {key!r} must be a number, not {value}")
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ConfigError(f"{self.where}: {key!r} must be a {kind.__name__}, not {value!r}")
        return value

    def end(self) -> None:
        """Nothing else may be there."""
        if self._rest:
            raise ConfigError(f"{self.where}: unknown key {min(self._rest)!r}")


def parse_address(text: object, port_default: int | None = None) -> Address:
    """``host:port``; an IPv6 address stands in brackets.  With ``port_default`` the port may be left out."""
    if not isinstance(text, str):
        raise ConfigError(f"{text!r} is not an address of the form host:port")
    host, colon, port = text.rpartition(":")
    if port_default is not None and (not colon or text.endswith("]")):
        host, colon, port = text, ":", str(port_default)
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise ConfigError(f"{text!r} is not an address of the form host:port")
    return host, int(port)


def read_host_file(path: Path) -> HostFile:
    """Read and check a host file; `ConfigError` names the file, the table and the key."""
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    try:
        return _parse(_Table("the file", content), path.absolute().parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _parse(top: _Table, base: Path) -> HostFile:
    host = _Table("[host]", top.take("host", dict))
    guest = _Table("[guest]", top.take("guest", dict))
    pair_id = _hex16(guest)
    register = top.take("register", dict, None)
    role = guest.take("role", str) if register is None else "standby"
    if role not in {"active", "standby"}:
        raise ConfigError(f"[guest]: role {role!r}: active or standby")
    link = top.take("link", dict, None)
    if register is not None and link is None:
        raise ConfigError("[register]: without a [link] there is nobody to agree with")
    fence = top.take("fence", dict, None)
    if fence is not None and register is None:
        raise ConfigError("[fence]: without a [register] nobody takes over, and nobody is turned off")
    volumes = top.take("volumes", list)
    nbd = top.take("nbd", dict, {})
    result = HostFile(
        name=host.take("name", str),
        identity=base / host.take("identity", str, "identity"),
        control=base / host.take("control", str, "control.sock"),
        guest=guest.take("name", str),
        pair_id=pair_id,
        role=Role.ACTIVE if role == "active" else Role.STANDBY,
        term=guest.take("term", int, 1) if register is None else 1,
        volumes=tuple(
            _volume(_Table(f"[[volumes]] {number}", each), base) for number, each in enumerate(volumes, 1)
        ),
        link=None if link is None else _link(_Table("[link]", link), base),
        nbd=_nbd(_Table("[nbd]", nbd), base),
        register=None if register is None else _register(_Table("[register]", register), base),
        fence=None if fence is None else _fence(_Table("[fence]", fence), base),
    )
    for table in (host, guest, top):
        table.end()
    return result


def _hex16(table: _Table) -> bytes:
    text = table.take("pair_id", str)
    try:
        value = bytes.fromhex(text)
    except ValueError as error:
        raise ConfigError(f"{table.where}: pair_id {text!r} is not hexadecimal") from error
    if len(value) != 16:
        raise ConfigError(f"{table.where}: pair_id has {len(value)} bytes, not 16")
    return value


def _link(table: _Table, base: Path) -> LinkFile:
    paths = []
    for number, each in enumerate(table.take("paths", list, []), 1):
        one = _Table(f"[link] path {number}", each)
        local = one.take("local", str, None)
        paths.append(PathConfig(one.take("name", str), parse_address(one.take("peer", str)), local))
        one.end()
    if not paths:
        raise ConfigError('[link]: paths: none; say { name = "path1", peer = "ADDRESS:PORT" }')
    heartbeat_ns = int(table.take("heartbeat_ms", float, 500.0) * NS_PER_MS)
    silence_ns = int(table.take("silence_ms", float, 2000.0) * NS_PER_MS)
    result = LinkFile(
        peer_certificate=base / table.take("peer_certificate", str),
        listen=tuple(parse_address(text) for text in table.take("listen", list, [])),
        paths=tuple(paths),
        timings=LinkTimings(heartbeat_ns=heartbeat_ns, silence_ns=silence_ns),
    )
    table.end()
    return result


def _register(table: _Table, base: Path) -> RegisterFile:
    failover_s = table.take("failover_s", float, FAILOVER_NS_DEFAULT / NS_PER_S)
    try:
        failover_ns = stated_failover_ns(failover_s)
    except ConfigError as error:
        raise ConfigError(f"[register]: 'failover_s': {error}") from error
    watchdog = table.take("watchdog", str, None)
    home_after_ns = int(table.take("home_after_s", float, HOME_AFTER_NS / NS_PER_S) * NS_PER_S)
    if not HOME_AFTER_NS_MIN <= home_after_ns <= HOME_AFTER_NS_MAX:
        least, most = HOME_AFTER_NS_MIN / NS_PER_S, HOME_AFTER_NS_MAX / NS_PER_S
        raise ConfigError(f"[register]: home_after_s must be from {least:g} to {most:g}")
    result = RegisterFile(
        watchdog=None if watchdog is None else base / watchdog,
        home=table.take("home", str, None),
        home_after_ns=home_after_ns,
        memory=base / table.take("memory", str, "register"),
        failover_ns=failover_ns,
        witnesses=tuple(
            _witness(_Table(f"[[register.witnesses]] {number}", each), base)
            for number, each in enumerate(table.take("witnesses", list, []), 1)
        ),
    )
    table.end()
    names = [witness.name for witness in result.witnesses]
    if len(names) > WITNESSES_MAX or len(set(names)) != len(names):
        raise ConfigError(f"[register]: at most {WITNESSES_MAX} witnesses, with names of their own")
    return result


def _fence(table: _Table, base: Path) -> FenceFile:
    command, options = table.take("command", list), table.take("options", dict, {})
    for each in (*command, *options.values()):
        if not isinstance(each, str):
            raise ConfigError("[fence]: command and options are strings in quotes")
    secrets = table.take("secrets", str, None)
    result = FenceFile(
        command=tuple(command),
        options=options,
        secrets=None if secrets is None else base / secrets,
        turn_on=table.take("turn_on", bool, True),
        deadline_ns=int(table.take("deadline_s", float, 120.0) * NS_PER_S),
        attempt_ns=int(table.take("attempt_s", float, 40.0) * NS_PER_S),
    )
    table.end()
    return result


def _witness(table: _Table, base: Path) -> WitnessFile:
    name = table.take("name", str)
    etcd = table.take("etcd", list, None)
    if etcd is not None:
        ca, certificate, key = (table.take(each, str, None) for each in ("ca", "certificate", "key"))
        table.end()
        if (certificate is None) != (key is None) or (key is not None and ca is None):
            raise ConfigError(f"{table.where}: etcd: ca alone, or ca, certificate and key")
        if not etcd or not all(isinstance(each, str) for each in etcd):
            raise ConfigError(f'{table.where}: etcd: one or more addresses such as "http://127.0.0.1:2379"')
        files = [None if each is None else base / each for each in (ca, certificate, key)]
        return WitnessFile(name=name, etcd=tuple(etcd), ca=files[0], certificate=files[1], key=files[2])
    store = table.take("store", str, None)
    if store is not None:
        options = table.take("options", dict, {})
        table.end()
        module, _, called = store.partition(":")
        if (
            not module
            or not called.isidentifier()
            or not all(isinstance(each, str) for each in options.values())
        ):
            raise ConfigError(f'{table.where}: store = "MODULE:NAME", options = strings in quotes')
        return WitnessFile(name=name, store=store, options=options)
    result = WitnessFile(
        name=name,
        address=parse_address(table.take("address", str)),
        certificate=base / table.take("certificate", str),
    )
    table.end()
    return result


def _nbd(table: _Table, base: Path) -> NbdFile:
    socket = table.take("socket", str, None)
    listen = table.take("listen", str, None)
    tls = table.take("tls", str, None)
    table.end()
    return NbdFile(
        None if socket is None else base / socket,
        None if listen is None else parse_address(listen),
        None if tls is None else base / tls,
    )


def _volume(table: _Table, base: Path) -> VolumeConfig:
    name = table.take("name", str)
    path = base / table.take("path", str)
    metadata = table.take("metadata", str, None)
    options: dict[str, Any] = {}
    for key, kind in _OPTIONS.items():
        value = table.take(key, kind, None)
        if value is not None:
            options[key] = value
    for key in _TIMES:
        seconds = table.take(f"{key}_s", float, None)
        if seconds is not None:
            options[f"{key}_ns"] = int(seconds * NS_PER_S)
    table.end()
    try:
        settings = VolumeOptions(**options)
    except ConfigError as error:
        raise ConfigError(f"{table.where}: {error}") from error
    return VolumeConfig(name, path, settings, None if metadata is None else base / metadata)


_OPTIONS: dict[str, type] = {
    "level": str,
    "at_bound": str,
    "lag_bytes": int,
    "intent_window_bytes": int,
    "inflight_bytes": int,
    "digests": bool,
    "verify_reads": bool,
    "overlay_bytes": int,
}
"""Of a volume, as `VolumeOptions` has them."""

_TIMES = ("lag", "latency_goal", "peer_deadline", "disk_deadline", "flush_after", "scrub_interval")
"""Likewise, but in seconds: ``lag_s``."""
