"""What a lab is made of: its directories, keys, volumes, memories, its witness and its hosts' files."""

from __future__ import annotations

import glob
import json
from collections.abc import Sequence
from pathlib import Path

from pairsync.errors import BackendError
from pairsync.guest.replica import create_replica
from pairsync.io.keys import host_subject, open_identity
from pairsync.storage.acceptorfile import AcceptorFile
from pairsync.storage.file import create_volume
from pairsync.storage.metadata import metadata_path
from pairsync.wire.arbitration import decode_host_memory

from .arbitrate import create_memory, first_memory
from .durable import write_durably
from .etcdmain import etcd_endpoint
from .hostinit import volume_id_of
from .labfile import (
    GUEST,
    HOSTS,
    LINK,
    LOOPBACK,
    STAYS,
    WITNESS,
    LabFile,
    control_socket_of,
    nbd_socket_of,
)
from .places import make_sockets
from .witnessdir import add_pair, init_witness, write_witness_file

__all__ = ["prepare", "put_empty_disk"]

HOME_AFTER_S = 3
"""So soon the guest of a lab goes home: somebody is watching."""


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
    make_sockets(directory)
    hosts = HOSTS[:1] if lab.single else HOSTS
    for host in HOSTS:
        (directory / host).mkdir(mode=0o700, exist_ok=True)
    certificates = {
        host: open_identity(directory / host / "identity", host_subject(host)).certificate_pem
        for host in HOSTS
    }
    lab.save(directory)
    if lab.arbitrated:
        _prepare_register(directory, lab, made)
    owner = _owner(directory, hosts)
    for host in hosts:
        peer = HOSTS[1 - HOSTS.index(host)]
        write_durably(directory / host / "peer.pem", certificates[peer])
        for name, size_bytes in lab.volumes.items():
            path = directory / host / f"{name}.img"
            if host == owner and not path.exists():
                create_volume(path, size_bytes)
                made.append(path)
            made += _make_volume(path, name, size_bytes, lab)
        write_durably(directory / host / "host.toml", _host_toml(directory, host, lab).encode())


def _prepare_register(directory: Path, lab: LabFile, made: list[Path]) -> None:
    """The hosts' memories, of which the first one's makes it the owner, and the witness."""
    for host in HOSTS:
        memory = directory / host / "register"
        if not memory.exists() and not (directory / host / "host.toml").exists():
            fingerprint = open_identity(directory / host / "identity", "").fingerprint
            state = first_memory(fingerprint) if host == HOSTS[0] else create_memory()
            AcceptorFile.create(memory, state)
            made.append(memory)
    if lab.witness == "builtin":
        place = directory / WITNESS
        certificates = [directory / host / "identity" / "host.crt" for host in HOSTS]
        if not (place / "witness.toml").exists():
            init_witness(place, lab.witness_listens)
        write_witness_file(place, lab.witness_listens)  # maybe not where it did last time
        add_pair(place, lab.pair_id, certificates, replace=True)
    elif lab.witness == "etcd":
        (directory / WITNESS).mkdir(mode=0o700, exist_ok=True)


def _owner(directory: Path, hosts: Sequence[str]) -> str | None:
    """Who owns the guest of a lab that has been up; None at first, and without arbitration.

    A volume that comes to such a guest begins there as one that is written: from an owner with a disk that
    was never written, which is an exchanged one, nobody would be served (`guest.roles.obstacle`).
    """
    owners: dict[tuple[int, int], bytes] = {}
    fingerprints: dict[bytes, str] = {}
    for host in hosts:
        memory = AcceptorFile.peek(directory / host / "register")
        if memory is None:
            continue
        base = decode_host_memory(memory).acceptor.base
        if base is not None and not base.is_first:
            owners[base.term, base.epoch] = base.owner
        fingerprints[open_identity(directory / host / "identity", "").fingerprint] = host
    return fingerprints.get(owners[max(owners)]) if owners else None


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
        f"name = {json.dumps(GUEST)}",
        f"pair_id = {json.dumps(lab.pair_id)}",
        *([] if lab.arbitrated else [f"role = {json.dumps(role)}"]),
        "",
        "[nbd]",
        f"socket = {json.dumps(str(nbd_socket_of(directory, host)))}",
    ]
    if not lab.single:
        path = LOOPBACK if lab.network == LOOPBACK else LINK
        lines += [
            "",
            "[link]",
            'peer_certificate = "peer.pem"',
            f'listen = ["{lab.address(host, peer)}:{lab.ports[host]}"]',
            f'paths = [{{ name = "{path}", peer = "{lab.address(peer, host)}:{lab.ports[peer]}" }}]',
        ]
    if lab.arbitrated:
        lines += ["", "[register]", f"failover_s = {lab.failover_s}"]
    if lab.arbitrated and lab.home != STAYS:
        lines += [f"home = {json.dumps(lab.home)}", f"home_after_s = {HOME_AFTER_S}"]
    if lab.arbitrated and lab.witness == "builtin":
        lines += [
            "",
            "[[register.witnesses]]",
            f"name = {json.dumps(WITNESS)}",
            f'address = "{lab.address(WITNESS, host)}:{lab.ports[WITNESS]}"',
            f"certificate = {json.dumps('../witness/identity/host.crt')}",
        ]
    if lab.arbitrated and lab.witness == "etcd":
        endpoint = etcd_endpoint(f"{lab.address(WITNESS, host)}:{lab.ports[WITNESS]}")
        lines += ["", "[[register.witnesses]]", f"name = {json.dumps(WITNESS)}", f'etcd = ["{endpoint}"]']
    for name in lab.volumes:
        lines += ["", "[[volumes]]", f"name = {json.dumps(name)}", f"path = {json.dumps(name + '.img')}"]
        lines += [f"level = {json.dumps(lab.level)}"]
        if not lab.digests:
            lines += ["digests = false"]
    return "\n".join(lines) + "\n"
