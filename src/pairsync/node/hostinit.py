"""``pairsync host init``: the first files of a host that is to be half of a real pair.

The two hosts have not met yet.  What both must agree on is the pair's id, which the first one draws, and
the names and sizes of the volumes; the id of a volume follows from these.  What they must be given is each
other's certificate, by whatever way their owner trusts.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pairsync.core.timing import FAILOVER_NS_DEFAULT, stated_failover_ns
from pairsync.core.units import NS_PER_S
from pairsync.errors import BackendError, ConfigError
from pairsync.guest.replica import create_replica
from pairsync.io.keys import host_subject, open_identity
from pairsync.io.network import Address, describe_address
from pairsync.storage.acceptorfile import AcceptorFile
from pairsync.storage.digests import digests_path
from pairsync.storage.file import open_volume

from .arbitrate import create_memory, first_memory
from .durable import write_durably
from .hostfile import WITNESSES_MAX

__all__ = ["LINK_PORT", "HostPlan", "init_host", "volume_id_of"]

LINK_PORT = 10888
"""Where a host listens for its peer if nothing else is said."""

WITNESS_NAMES = ("witness", "alternate")
"""What the preferred witness is called, and another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPlan:
    """What a host is to become.

    A volume is a size in bytes (a new sparse file in the directory) or the path of a file or block device
    that is there already.  ``overwrite``: what such a one holds is worthless; without it a standby's existing
    content is never resynced over.  ``witnesses``: the third vote, the preferred one first, perhaps an
    alternate one; without any the active host alone decides what is agreed, and nobody takes over.
    """

    volumes: Mapping[str, int | Path]
    name: str
    pair_id: str | None = None  # None: this is the first host of the pair, and the active one
    peers: Sequence[Address] = ()  # of the other host, one for each network path
    listen: Address = ("0.0.0.0", LINK_PORT)  # noqa: S104  # strangers are refused by key, not by address
    overwrite: bool = False
    witnesses: Sequence[Address] = ()
    failover_s: float = FAILOVER_NS_DEFAULT / NS_PER_S


def volume_id_of(pair_id: bytes, name: str) -> bytes:
    """The id of a volume: the same on both hosts without their having met."""
    return hashlib.sha256(pair_id + name.encode()).digest()[:16]


def init_host(directory: Path, plan: HostPlan) -> list[str]:
    """Make key, certificate, volumes and ``host.toml``; what to do next, as lines.

    Raises `ConfigError` if the directory holds a host already or something asked for cannot be,
    `BackendError` if the disk says no.  After an error no volume is left behind, so that it can be repeated.
    """
    if (directory / "host.toml").exists():
        raise ConfigError(f"{directory} holds a host already; nothing was changed")
    if not plan.volumes:
        raise ConfigError("a host needs at least one --volume NAME=SIZE")
    if len(plan.witnesses) > WITNESSES_MAX:
        raise ConfigError(f"{len(plan.witnesses)} witnesses: a preferred one and an alternate one at most")
    text = secrets.token_hex(16) if plan.pair_id is None else plan.pair_id.lower()
    pair_id = _parse_pair_id(text)
    if plan.overwrite and plan.pair_id is None:
        raise ConfigError("the first host is the active one: its content is what the other host will have")
    for name, what in plan.volumes.items():
        if isinstance(what, Path) and plan.pair_id is not None and not plan.overwrite:
            raise ConfigError(
                f"--volume {name}={what}: what it holds will be overwritten with what the first host has: "
                "say --overwrite if it is of no worth"
            )
    stated_failover_ns(plan.failover_s)
    sizes = {name: what if isinstance(what, int) else _size_of(what) for name, what in plan.volumes.items()}
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BackendError(f"{directory}: {error.strerror}", error.errno or 5) from error
    identity = open_identity(directory / "identity", host_subject(plan.name))
    with ExitStack() as undo:
        for name, what in plan.volumes.items():
            data, metadata = _places(directory, name, what)
            create_replica(
                data,
                name=name,
                pair_id=pair_id,
                volume_id=volume_id_of(pair_id, name),
                size_bytes=sizes[name],
                metadata=metadata,
                overwrite=plan.overwrite,
            )
            undo.callback(metadata.unlink)
            undo.callback(Path(digests_path(str(metadata))).unlink)
            if isinstance(what, int):
                undo.callback(data.unlink)
        memory = directory / "register"
        first = plan.pair_id is None
        AcceptorFile.create(memory, first_memory(identity.fingerprint) if first else create_memory())
        undo.callback(memory.unlink)
        try:
            write_durably(directory / "host.toml", _host_toml(plan, text).encode())
        except OSError as error:
            raise BackendError(f"{directory}/host.toml: {error.strerror}", error.errno or 5) from error
        undo.pop_all()
    return _what_next(directory, plan, text, sizes, identity.fingerprint)


def _places(directory: Path, name: str, what: int | Path) -> tuple[Path, Path]:
    """Where data and metadata of a volume lie."""
    metadata = directory / f"{name}.pairsync"
    if isinstance(what, Path):
        return what, metadata
    data = directory / f"{name}.img"
    if data.exists():
        raise ConfigError(f"{data} exists; to take it over as it is, say --volume {name}={data.absolute()}")
    return data, metadata


def _size_of(path: Path) -> int:
    device = open_volume(path)
    try:
        return device.size_bytes
    finally:
        device.close()


def _parse_pair_id(text: str) -> bytes:
    try:
        pair_id = bytes.fromhex(text)
    except ValueError as error:
        raise ConfigError(f"pair id {text!r} is not hexadecimal") from error
    if len(pair_id) != 16:
        raise ConfigError(f"pair id {text!r} has {len(pair_id)} bytes, not 16")
    return pair_id


def _host_toml(plan: HostPlan, pair_id: str) -> str:
    paths = ", ".join(
        f'{{ name = "path{number}", peer = {json.dumps(describe_address(peer))} }}'
        for number, peer in enumerate(plan.peers, 1)
    )
    lines = [
        "[host]",
        f"name = {json.dumps(plan.name)}",
        "",
        "[guest]",
        'name = "guest"                      # the same on both hosts',
        f"pair_id = {json.dumps(pair_id)}",
        "",
        "[register]                          # who is active is agreed on, not stated",
        f"failover_s = {plan.failover_s:g}                      # from one host's end until the other serves",
        *_witness_toml(plan),
        "",
        "[link]",
        'peer_certificate = "peer.pem"       # identity/host.crt of the other host',
        f"listen = [{json.dumps(describe_address(plan.listen))}]",
        '# the other host\'s addresses, one for each network path: { name = "path1", peer = "ADDRESS:PORT" }',
        f"paths = [{paths}]",
        "",
        "[nbd]",
        'socket = "nbd.sock"',
    ]
    for name, what in plan.volumes.items():
        place = f"{name}.img" if isinstance(what, int) else str(what.absolute())
        lines += ["", "[[volumes]]", f"name = {json.dumps(name)}", f"path = {json.dumps(place)}"]
        lines.append(f"metadata = {json.dumps(name + '.pairsync')}")
    return "\n".join(lines) + "\n"


def _witness_toml(plan: HostPlan) -> list[str]:
    if not plan.witnesses:
        return ["# without [[register.witnesses]] nobody takes over from a host that is lost"]
    lines: list[str] = []
    for name, address in zip(WITNESS_NAMES, plan.witnesses, strict=False):
        lines += [
            "",
            "[[register.witnesses]]",
            f"name = {json.dumps(name):<29}# the same on both hosts",
            f"address = {json.dumps(describe_address(address))}",
            f"certificate = {json.dumps(name + '.pem'):<22}# identity/host.crt of that witness",
        ]
    return lines


def _words_there(plan: HostPlan, sizes: Mapping[str, int]) -> str:
    """How the other host is made, beside the pair's id."""
    words = [f"--volume {name}={size}" for name, size in sizes.items()]
    port = plan.listen[1]
    words += ["--peer ADDRESS" if port == LINK_PORT else f"--peer ADDRESS:{port}"] * max(len(plan.peers), 1)
    words += sorted({f"--listen 0.0.0.0:{port}" for _, port in plan.peers if port != LINK_PORT})
    words += [f"--witness {describe_address(each)}" for each in plan.witnesses]
    if plan.failover_s != FAILOVER_NS_DEFAULT / NS_PER_S:
        words.append(f"--failover {plan.failover_s:g}")  # what one host promises the other one relies on
    return " ".join(words)


def _what_next(
    directory: Path, plan: HostPlan, pair_id: str, sizes: Mapping[str, int], fingerprint: bytes
) -> list[str]:
    role = "active" if plan.pair_id is None else "standby"
    lines = [
        f"{directory}: host {plan.name!r}, {role} at first",
        f"fingerprint  {fingerprint.hex()}",
        f"pair id      {pair_id}",
        "",
        "Next:",
    ]
    number = 1
    if plan.pair_id is None:
        lines.append(f"  {number}. On the other host, with the address at which it reaches this one:")
        lines.append(f"     pairsync host init DIRECTORY --pair {pair_id} {_words_there(plan, sizes)}")
        number += 1
    lines.append(
        f"  {number}. Give each host the other's certificate (no secret, but it must be the right one):"
    )
    lines.append(f"     {directory}/identity/host.crt goes to the other host as DIRECTORY/peer.pem,")
    lines.append(f"     the other host's identity/host.crt comes here as {directory}/peer.pem.")
    number += 1
    for name, address in zip(WITNESS_NAMES, plan.witnesses, strict=False):
        lines.append(
            f"  {number}. Put identity/host.crt of the witness at {describe_address(address)} here as "
            f"{directory}/{name}.pem, and there:"
        )
        words = f"--pair {pair_id} --host A/host.crt --host B/host.crt"
        lines.append(f"     pairsync witness add DIRECTORY {words}")
        number += 1
    if not plan.peers:
        lines.append(f"  {number}. Put the other host's address into {directory}/host.toml ([link], paths).")
        number += 1
    lines.append(f"  {number}. Run it: pairsync host run {directory}/host.toml")
    return lines
