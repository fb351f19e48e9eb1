"""What a lab is made of: its file, its places; made once, completed later, never contradicted."""

from __future__ import annotations

import dataclasses
import json
import socket
from pathlib import Path

import pytest

from pairsync.core.messages import Condition
from pairsync.errors import BackendError, ConfigError
from pairsync.guest.replica import open_replica
from pairsync.io.keys import load_identity
from pairsync.node.hostfile import read_host_file
from pairsync.node.labfile import (
    LabFile,
    control_socket_of,
    free_ports,
    nbd_socket_of,
    open_lab_file,
    remove_sockets,
)
from pairsync.node.labprepare import prepare, put_empty_disk
from pairsync.node.places import sockets_of
from pairsync.node.witnessdir import list_pairs, read_witness_file

SIZE = 1 << 20


def _new(directory: Path, *, single: bool = False, **volumes: int) -> LabFile:
    lab = open_lab_file(directory, volumes or {"vda": SIZE}, None, single=single)
    prepare(directory, lab)
    return lab


def test_a_new_lab_has_all_that_two_hosts_need(tmp_path: Path) -> None:
    lab = _new(tmp_path, vda=SIZE, vdb=5000)
    assert LabFile.load(tmp_path) == lab
    hosts = {name: read_host_file(tmp_path / name / "host.toml") for name in "ab"}
    registers = [hosts[name].register for name in "ab"]
    for register in registers:
        assert register is not None
        assert [each.name for each in register.witnesses] == ["witness"]
    assert list_pairs(tmp_path / "witness")[0].pair_id == lab.pair_id
    identities = {name: load_identity(tmp_path / name / "identity") for name in "ab"}
    ids = set()
    for name, peer in ("ab", "ba"):
        host = hosts[name]
        assert host.pair_id == bytes.fromhex(lab.pair_id)
        assert host.link is not None
        assert host.link.peer_certificate.read_bytes() == identities[peer].certificate_pem
        assert host.link.listen == (("127.0.0.1", lab.ports[name]),)
        assert [path.peer for path in host.link.paths] == [("127.0.0.1", lab.ports[peer])]
        for volume, size_bytes in lab.volumes.items():
            (config,) = (each for each in host.volumes if each.name == volume)
            replica = open_replica(config, host.pair_id)
            assert replica.device.size_bytes == size_bytes
            ids.add(replica.setup.superblock.volume_id)
            replica.close()
    assert len(ids) == len(lab.volumes)  # the same on both hosts
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700


def test_a_second_time_resumes_what_is_there(tmp_path: Path) -> None:
    lab = _new(tmp_path)
    certificate = (tmp_path / "a" / "identity" / "host.crt").read_bytes()
    (tmp_path / "a" / "vda.img").write_bytes(b"x" * SIZE)
    again = open_lab_file(tmp_path, {}, None, single=False)
    assert again == lab
    prepare(tmp_path, again)
    assert (tmp_path / "a" / "identity" / "host.crt").read_bytes() == certificate
    assert (tmp_path / "a" / "vda.img").read_bytes() == b"x" * SIZE


def test_volumes_can_be_added_and_the_level_changed(tmp_path: Path) -> None:
    lab = _new(tmp_path)
    more = open_lab_file(tmp_path, {"vdb": 4096}, "async", single=False)
    prepare(tmp_path, more)
    assert (more.volumes, more.level, more.pair_id) == ({"vda": SIZE, "vdb": 4096}, "async", lab.pair_id)
    host = read_host_file(tmp_path / "a" / "host.toml")
    assert [(volume.name, volume.options.level) for volume in host.volumes] == [
        ("vda", "async"),
        ("vdb", "async"),
    ]


def test_digests_are_kept_unless_told_otherwise(tmp_path: Path) -> None:
    _new(tmp_path)

    def kept(digests: bool | None) -> list[bool]:
        prepare(tmp_path, open_lab_file(tmp_path, {}, None, single=False, digests=digests))
        (volume,) = read_host_file(tmp_path / "b" / "host.toml").volumes
        return [volume.options.digests, LabFile.load(tmp_path).digests]

    assert kept(None) == [True, True]
    assert kept(False) == [False, False]
    assert kept(None) == [False, False], "as it was"
    assert kept(True) == [True, True]


def test_a_guest_has_a_home_only_where_that_is_said(tmp_path: Path) -> None:
    _new(tmp_path)

    def home_of(home: str | None) -> list[str | None]:
        prepare(tmp_path, open_lab_file(tmp_path, {}, None, single=False, home=home))
        registers = [read_host_file(tmp_path / name / "host.toml").register for name in "ab"]
        return [register.home for register in registers if register is not None]

    assert home_of(None) == [None, None]
    assert home_of("b") == ["b", "b"]
    assert home_of(None) == ["b", "b"], "as it was"
    assert home_of("stays") == [None, None]


def test_a_lab_of_before_keeps_digests(tmp_path: Path) -> None:
    _new(tmp_path)
    before = json.loads((tmp_path / "lab.json").read_text())
    del before["digests"]
    (tmp_path / "lab.json").write_text(json.dumps(before))
    assert LabFile.load(tmp_path).digests


def test_ports_that_somebody_else_has_taken_are_replaced(tmp_path: Path) -> None:
    lab = _new(tmp_path)
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", lab.ports["a"]))
        squatter.listen()
        again = open_lab_file(tmp_path, {}, None, single=False)
        assert again.ports["a"] != lab.ports["a"]
        assert dataclasses.replace(again, ports=lab.ports) == lab

        prepare(tmp_path, again)
    assert read_witness_file(tmp_path / "witness").listen == (("127.0.0.1", again.ports["witness"]),)


def test_in_namespaces_everybody_is_found_on_the_cable_in_between(tmp_path: Path) -> None:
    def places(network: str | None) -> dict[str, str]:
        prepare(tmp_path, open_lab_file(tmp_path, {"vda": SIZE}, None, single=False, network=network))
        found = {"witness": " ".join(name for name, _ in read_witness_file(tmp_path / "witness").listen)}
        for name in "ab":
            host = read_host_file(tmp_path / name / "host.toml")
            assert host.link is not None
            assert host.register is not None
            (listen,), (path,), (witness,) = host.link.listen, host.link.paths, host.register.witnesses
            assert witness.address is not None
            found[name] = f"{path.name}: {listen[0]} to {path.peer[0]}, {witness.address[0]}"
        return found

    cables = {
        "witness": "10.231.2.2 10.231.3.2",
        "a": "a-b: 10.231.1.1 to 10.231.1.2, 10.231.2.2",
        "b": "a-b: 10.231.1.2 to 10.231.1.1, 10.231.3.2",
    }
    loopback = {
        "witness": "127.0.0.1",
        "a": "loopback: 127.0.0.1 to 127.0.0.1, 127.0.0.1",
        "b": "loopback: 127.0.0.1 to 127.0.0.1, 127.0.0.1",
    }
    assert places("namespaces") == cables
    assert places(None) == cables, "as it was"
    assert places("loopback") == loopback
    assert places(None) == loopback


def test_a_single_host_has_no_network(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a single host has no network"):
        open_lab_file(tmp_path, {"vda": SIZE}, None, single=True, network="namespaces")
    _new(tmp_path, single=True)
    with pytest.raises(ConfigError, match="a single host has no network"):
        open_lab_file(tmp_path, {}, None, single=False, network="namespaces")


def test_a_single_host_has_neither_peer_nor_link(tmp_path: Path) -> None:
    _new(tmp_path, single=True)
    assert read_host_file(tmp_path / "a" / "host.toml").link is None
    assert not (tmp_path / "b" / "host.toml").exists()
    assert open_lab_file(tmp_path, {}, None, single=False).single


@pytest.mark.parametrize(
    ("volumes", "finding"),
    [({"vda": SIZE + 1}, f"volume 'vda' in .* has {SIZE} bytes, not {SIZE + 1}")],
)
def test_what_contradicts_the_lab_is_refused(tmp_path: Path, volumes: dict[str, int], finding: str) -> None:
    _new(tmp_path)
    with pytest.raises(ConfigError, match=finding):
        open_lab_file(tmp_path, volumes, None, single=False)


def test_a_pair_does_not_become_a_single_host(tmp_path: Path) -> None:
    before = _new(tmp_path)
    with pytest.raises(ConfigError, match="made with two hosts"):
        open_lab_file(tmp_path, {}, None, single=True)
    assert LabFile.load(tmp_path) == before


@pytest.mark.parametrize("seconds", [0.0, 0.5, 61.0, float("nan")])
def test_a_failover_time_that_no_host_takes_is_refused_before_it_is_written_down(
    tmp_path: Path, seconds: float
) -> None:
    for _ in range(2):  # a new lab, and one that is there
        with pytest.raises(ConfigError, match=f"failover time of {seconds:g} s"):
            open_lab_file(tmp_path, {"vda": SIZE}, None, single=False, failover_s=seconds)
        before = _new(tmp_path)
    assert LabFile.load(tmp_path) == before


def test_a_new_lab_needs_volumes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one --volume"):
        open_lab_file(tmp_path, {}, None, single=False)


def test_what_is_no_lab_is_named(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "none", Path(__file__)):
        with pytest.raises(ConfigError, match="holds no lab"):
            LabFile.load(place)
    (tmp_path / "lab.json").mkdir()
    with pytest.raises(ConfigError, match=r"lab\.json: Is a directory"):
        LabFile.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"volumes": {}}', '{"more": 1}', "null"])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "lab.json").write_text(text)
    with pytest.raises(ConfigError, match=r"lab\.json is damaged"):
        LabFile.load(tmp_path)


def test_what_cannot_be_made_leaves_nothing_behind(tmp_path: Path) -> None:
    lab = open_lab_file(tmp_path, {"vda": SIZE, "vdb": SIZE}, None, single=False)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "vdb.img").mkdir()  # nothing that could hold a volume
    with pytest.raises(BackendError):
        prepare(tmp_path, lab)
    assert not (tmp_path / "lab.json").exists()
    assert list(tmp_path.rglob("*.pairsync")) == []
    (tmp_path / "b" / "vdb.img").rmdir()
    prepare(tmp_path, lab)
    assert len(list(tmp_path.rglob("*.pairsync"))) == 4


def test_an_empty_disk_takes_the_place_of_a_replica(tmp_path: Path) -> None:
    lab = _new(tmp_path, vda=SIZE, vdb=SIZE, vda1=SIZE)
    where = tmp_path / "b"
    (where / "vda.img").write_bytes(b"x" * SIZE)
    (where / "vdb.img").write_bytes(b"y" * SIZE)
    (where / "vda.img.pairsync-more").write_bytes(b"z")
    before = (where / "vda.img").stat().st_ino
    pair_id = bytes.fromhex(lab.pair_id)
    with (where / "vda.img").open("rb"):  # its number is not given out again
        put_empty_disk(where / "vda.img", "vda", pair_id, SIZE)
        assert (where / "vda.img").stat().st_ino != before
    assert (where / "vda.img").read_bytes() == bytes(SIZE)
    assert (where / "vdb.img").read_bytes() == b"y" * SIZE
    assert (where / "vda1.img.pairsync").exists()
    assert not (where / "vda.img.pairsync-more").exists()
    host = read_host_file(where / "host.toml")
    replica = open_replica(host.volumes[0], pair_id)
    assert replica.setup.superblock.condition is Condition.BLANK
    replica.close()


def test_sockets_lie_in_the_directory_if_its_name_is_short(tmp_path: Path) -> None:
    short = Path("/srv/lab")
    assert control_socket_of(short) == Path("/srv/lab/sockets/lab.control")
    assert nbd_socket_of(short, "a") == Path("/srv/lab/sockets/a.nbd")
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    place = sockets_of(deep)
    assert len(str(place)) < 80
    assert place != sockets_of(deep / "f")
    places = place, sockets_of(deep / "witness")
    for each in places:
        each.mkdir()
    remove_sockets(deep)
    assert not any(each.exists() for each in places)
    (tmp_path / "sockets").mkdir()
    remove_sockets(tmp_path)


def test_free_ports_differ_and_stay_free() -> None:
    """None is of those that outgoing connections are given: a host that comes back would find it taken."""
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ports = free_ports(20)
    assert len(set(ports)) == 20
    if last - first < 40_000:
        assert not set(ports) & set(range(first, last + 1))
