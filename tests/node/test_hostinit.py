"""``pairsync host init``: what it makes, and two hosts that are set up by what it says and nothing else."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

import pairsync
from pairsync.core.acceptor import AcceptorState
from pairsync.core.messages import Condition, Role
from pairsync.core.units import MIB
from pairsync.errors import ConfigError
from pairsync.guest.guest import open_guest
from pairsync.guest.replica import open_replica
from pairsync.io.keys import load_identity, make_identity
from pairsync.node.host import guest_config
from pairsync.node.hostfile import read_host_file
from pairsync.node.hostinit import LINK_PORT, HostPlan, init_host, volume_id_of
from pairsync.node.labfile import free_ports
from pairsync.storage.acceptorfile import AcceptorFile
from pairsync.testing.nbd_client import NbdClient
from pairsync.wire.arbitration import decode_host_memory

SRC = Path(pairsync.__file__).parent.parent
DEADLINE_S = 120.0  # seven processes start, on a machine that may be busy
PAIR_ID = "0123456789abcdef" * 2


def _condition(directory: Path, volume: int = 0) -> Condition:
    host = read_host_file(directory / "host.toml")
    replica = open_replica(host.volumes[volume], host.pair_id)
    condition = replica.setup.superblock.condition
    replica.close()
    return condition


def _memory(path: Path) -> AcceptorState:
    file = AcceptorFile.open(path)
    file.close()
    assert not file.moved
    return decode_host_memory(file.state).acceptor


# -- what it makes -------------------------------------------------------------------------------------------


def test_the_first_host_is_active_and_draws_the_pairs_id(tmp_path: Path) -> None:
    plan = HostPlan(volumes={"vda": MIB, "vdb": 5000}, name="alpha", peers=[("beta", 1), ("::1", 2)])
    lines = init_host(tmp_path / "x" / "alpha", plan)
    host = read_host_file(tmp_path / "x" / "alpha" / "host.toml")
    assert (host.name, host.role, host.guest) == ("alpha", Role.STANDBY, "guest")  # until it is agreed on
    assert host.register is not None
    grant = _memory(host.register.memory).base
    assert grant is not None
    fingerprint = load_identity(host.identity).fingerprint
    assert (grant.owner, list(grant.in_sync), len(grant.voters)) == (fingerprint, [fingerprint], 1)
    assert host.link is not None
    assert host.link.listen == (("0.0.0.0", LINK_PORT),)
    assert [(path.name, path.peer) for path in host.link.paths] == [
        ("path1", ("beta", 1)),
        ("path2", ("::1", 2)),
    ]
    assert [volume.name for volume in host.volumes] == ["vda", "vdb"]
    assert (tmp_path / "x" / "alpha" / "vdb.img").stat().st_size == 5000
    assert f"pair id      {host.pair_id.hex()}" in lines
    other = init_host(tmp_path / "y", HostPlan(volumes={"vda": MIB}, name="y"))
    assert f"pair id      {host.pair_id.hex()}" not in other


def test_the_second_is_its_standby(tmp_path: Path) -> None:
    plan = HostPlan(volumes={"vda": MIB}, name="beta", pair_id=PAIR_ID.upper(), peers=[("alpha", 1)])
    lines = init_host(tmp_path / "beta", plan)
    host = read_host_file(tmp_path / "beta" / "host.toml")
    assert (host.role, host.pair_id.hex()) == (Role.STANDBY, PAIR_ID)
    assert host.register is not None
    assert _memory(host.register.memory).base is None  # it waits to be told of
    assert not any("--pair" in line for line in lines), "there is no third host"


def test_volumes_have_the_same_id_on_both_hosts() -> None:
    ids = {volume_id_of(bytes(16), "vda"), volume_id_of(bytes(16), "vdb"), volume_id_of(b"x" * 16, "vda")}
    assert len(ids) == 3
    assert all(len(each) == 16 for each in ids)
    assert volume_id_of(bytes(16), "vda") in ids


def test_an_existing_disk_is_taken_over_with_what_it_holds(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"precious" * 1024)
    lines = init_host(tmp_path / "alpha", HostPlan(volumes={"vda": disk}, name="alpha", peers=[("b", 1)]))
    assert any(f"--volume vda={8 * 1024} " in line for line in lines), "the other host needs the same size"
    host = read_host_file(tmp_path / "alpha" / "host.toml")
    assert host.volumes[0].path == disk
    assert host.volumes[0].metadata == tmp_path / "alpha" / "vda.pairsync"
    assert _condition(tmp_path / "alpha") is Condition.CONSISTENT
    assert disk.read_bytes() == b"precious" * 1024


def test_a_standbys_disk_is_overwritten_only_if_that_is_said(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"old" * 4096)
    plan = HostPlan(volumes={"vda": disk}, name="beta", pair_id=PAIR_ID, peers=[("a", 1)])
    with pytest.raises(ConfigError, match=f"--volume vda={disk}: .*: say --overwrite if it is of no worth"):
        init_host(tmp_path / "beta", plan)
    assert not (tmp_path / "beta").exists()
    init_host(tmp_path / "beta", replace(plan, overwrite=True))
    assert _condition(tmp_path / "beta") is Condition.SYNCING


@pytest.mark.parametrize(
    ("settings", "finding"),
    [
        ({"volumes": {}}, "at least one --volume"),
        ({"pair_id": "xyz"}, "'xyz' is not hexadecimal"),
        ({"pair_id": "00"}, "has 1 bytes, not 16"),
        ({"overwrite": True}, "the first host is the active one"),
        ({"witnesses": [("g", 1)] * 3}, "3 witnesses: a preferred one and an alternate one at most"),
        ({"failover_s": 0.0}, "a failover time of 0 s: from 1 to 60 s"),
        ({"failover_s": float("nan")}, "a failover time of nan s"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    tmp_path: Path, settings: dict[str, object], finding: str
) -> None:
    plan = HostPlan(**{"volumes": {"vda": MIB}, "name": "x", **settings})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=finding):
        init_host(tmp_path / "host", plan)
    assert not (tmp_path / "host").exists()


def test_it_can_be_repeated_after_an_error_but_not_after_success(tmp_path: Path) -> None:
    directory = tmp_path / "alpha"
    directory.mkdir()
    (directory / "vdb.img").write_bytes(b"something")
    plan = HostPlan(volumes={"vda": MIB, "vdb": MIB}, name="alpha")
    with pytest.raises(ConfigError, match=r"vdb\.img exists; to take it over as it is, say --volume vdb=/"):
        init_host(directory, plan)
    assert sorted(path.name for path in directory.iterdir()) == ["identity", "vdb.img"]
    (directory / "vdb.img").unlink()
    init_host(directory, plan)
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="holds a host already; nothing was changed"):
        init_host(directory, plan)
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before


# -- two hosts, by what it says ------------------------------------------------------------------------------


def _pairsync(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", "from pairsync.cli import main; main()", *words],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env={**os.environ, "PYTHONPATH": str(SRC)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def _running(file: Path) -> Iterator[None]:
    """A host, from its ready line to its orderly end."""
    command = [sys.executable, "-c", "from pairsync.cli import main; main()", "host", "run", str(file)]
    with (file.parent / "log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, "PYTHONPATH": str(SRC)}
        )
        try:
            assert process.stdout is not None
            assert '"ready"' in process.stdout.readline(), (file.parent / "log").read_text()
            yield
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=DEADLINE_S)
            assert process.returncode == 0, (file.parent / "log").read_text()
        finally:
            process.kill()
            process.communicate()


def _await_in_sync(file: Path) -> str:
    """What the status says once it says so."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        done = subprocess.run(
            [sys.executable, "-c", "from pairsync.cli import main; main()", "host", "status", str(file)],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            env={**os.environ, "PYTHONPATH": str(SRC)},
        )
        if done.returncode == 0:
            return done.stdout
    pytest.fail(f"not in sync: {done.stdout}{done.stderr}")


def test_two_hosts_are_set_up_by_what_init_says(tmp_path: Path) -> None:
    alpha, beta = tmp_path / "alpha", tmp_path / "beta"
    ports = [str(port) for port in free_ports(2)]
    said = _pairsync(
        *("host", "init", str(alpha), "--volume", "vda=8M", "--name", "alpha"),
        *("--listen", f"127.0.0.1:{ports[0]}", "--peer", f"127.0.0.1:{ports[1]}"),
    )
    # the line for the other host, with what only its owner knows filled in
    line = next(line for line in said.splitlines() if "pairsync host init" in line)
    words = shlex.split(line.replace("DIRECTORY", str(beta)).replace("ADDRESS", "127.0.0.1"))
    said += _pairsync(*words[1:], "--name", "beta")
    goes = re.findall(r"^ +(\S+) goes to the other host as DIRECTORY/(\S+),$", said, re.MULTILINE)
    assert goes == [(f"{host}/identity/host.crt", "peer.pem") for host in (alpha, beta)]
    shutil.copy(goes[0][0], beta / goes[0][1])
    shutil.copy(goes[1][0], alpha / goes[1][1])
    assert re.findall(r"Run it: pairsync host run (\S+)", said) == [f"{alpha}/host.toml", f"{beta}/host.toml"]

    content = os.urandom(MIB)
    with _running(beta / "host.toml"), _running(alpha / "host.toml"):  # the active host ends first
        assert "host alpha: active, peer connected" in _await_in_sync(alpha / "host.toml")
        trio.run(_write_over_nbd, alpha / "nbd.sock", content)
        assert "host beta: standby, peer connected" in _await_in_sync(beta / "host.toml")
    assert (alpha / "vda.img").read_bytes()[4096:][:MIB] == content
    assert (alpha / "vda.img").read_bytes() == (beta / "vda.img").read_bytes()


async def _write_over_nbd(socket: Path, content: bytes) -> None:
    with trio.fail_after(DEADLINE_S):
        async with await NbdClient.connect_unix(str(socket)) as client:
            await client.negotiate("vda")
            await client.write(4096, content)
            await client.flush()


async def test_a_block_devices_worthless_content_is_copied_over(tmp_path: Path) -> None:
    """As `--volume vda=/dev/... --overwrite` on the standby: here a file stands for the device."""
    ports = free_ports(2)
    disk = tmp_path / "disk"
    disk.write_bytes(os.urandom(2 * MIB))
    first = HostPlan(
        volumes={"vda": 2 * MIB},
        name="a",
        peers=[("127.0.0.1", ports[1])],
        listen=("127.0.0.1", ports[0]),
    )
    init_host(tmp_path / "a", first)
    pair_id = read_host_file(tmp_path / "a" / "host.toml").pair_id
    second = HostPlan(
        volumes={"vda": disk},
        name="b",
        pair_id=pair_id.hex(),
        peers=[("127.0.0.1", ports[0])],
        listen=("127.0.0.1", ports[1]),
        overwrite=True,
    )
    init_host(tmp_path / "b", second)
    shutil.copy(tmp_path / "a" / "identity" / "host.crt", tmp_path / "b" / "peer.pem")
    shutil.copy(tmp_path / "b" / "identity" / "host.crt", tmp_path / "a" / "peer.pem")
    with trio.fail_after(DEADLINE_S):
        async with (
            open_guest(guest_config(read_host_file(tmp_path / "b" / "host.toml"))),
            open_guest(guest_config(read_host_file(tmp_path / "a" / "host.toml"))) as active,
        ):
            await active.become(Role.ACTIVE, 1, in_order=True)
            await active.wait_in_sync()
            await active.volume("vda").write(0, b"new")
    assert disk.read_bytes() == b"new" + bytes(2 * MIB - 3)


async def test_a_volume_of_another_size_is_named(tmp_path: Path) -> None:
    init_host(tmp_path / "a", HostPlan(volumes={"vda": MIB}, name="a", peers=[("127.0.0.1", 1)]))
    os.truncate(tmp_path / "a" / "vda.img", 5)
    host = read_host_file(tmp_path / "a" / "host.toml")
    (tmp_path / "a" / "peer.pem").write_bytes(make_identity("peer").certificate_pem)
    async with open_guest(guest_config(host)) as standby:
        assert f"has 5 bytes, {MIB} expected" in standby.ailments["vda"]
