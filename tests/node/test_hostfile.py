"""``host.toml``: what it says, what it leaves out, and what cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from pairsync.core.limits import VolumeOptions
from pairsync.core.messages import Role
from pairsync.core.units import NS_PER_MS, NS_PER_S
from pairsync.errors import ConfigError
from pairsync.io.config import LinkTimings, PathConfig
from pairsync.node.hostfile import FenceFile, NbdFile, parse_address, read_host_file

WHOLE = """
[host]
name = "alpha"
identity = "keys"
control = "/run/alpha.sock"

[guest]
name = "db1"
pair_id = "000102030405060708090A0B0C0D0E0F"
role = "standby"
term = 7

[link]
peer_certificate = "other.pem"
listen = ["0.0.0.0:7001", "[::]:7001"]
paths = [
    { name = "cable", peer = "10.0.0.2:7002", local = "10.0.0.1" },
    { name = "office", peer = "beta.example:7002" },
]
heartbeat_ms = 250
silence_ms = 1500.5

[nbd]
socket = "nbd.sock"
listen = "127.0.0.1:10809"
tls = "certificates"

[[volumes]]
name = "vda"
path = "vda.img"

[[volumes]]
name = "vdb"
path = "/dev/vg0/vdb"
metadata = "vdb.pairsync"
level = "async"
at_bound = "fall-behind"
lag_bytes = 10000000
lag_s = 2.5
intent_window_bytes = 8000000
inflight_bytes = 4000000
latency_goal_s = 0.02
peer_deadline_s = 9
disk_deadline_s = 3
flush_after_s = 1
"""

LEAST = """
[host]
name = "a"
[guest]
name = "g"
pair_id = "00000000000000000000000000000000"
role = "active"
[[volumes]]
name = "v"
path = "v.img"
"""

LINK = '\n[link]\npeer_certificate = "p.pem"\n'


def _file(directory: Path, text: str) -> Path:
    path = directory / "host.toml"
    path.write_text(text)
    return path


def test_everything_that_can_be_said(tmp_path: Path) -> None:
    found = read_host_file(_file(tmp_path, WHOLE))
    assert (found.name, found.guest, found.role, found.term) == ("alpha", "db1", Role.STANDBY, 7)
    assert found.pair_id == bytes(range(16))
    assert (found.identity, found.control) == (tmp_path / "keys", Path("/run/alpha.sock"))
    assert found.link is not None
    assert found.link.peer_certificate == tmp_path / "other.pem"
    assert found.link.listen == (("0.0.0.0", 7001), ("::", 7001))
    assert found.link.paths == (
        PathConfig("cable", ("10.0.0.2", 7002), "10.0.0.1"),
        PathConfig("office", ("beta.example", 7002)),
    )
    assert found.link.timings == LinkTimings(heartbeat_ns=250 * NS_PER_MS, silence_ns=1_500_500_000)
    assert found.nbd == NbdFile(tmp_path / "nbd.sock", ("127.0.0.1", 10809), tmp_path / "certificates")
    first, second = found.volumes
    assert (first.name, first.path, first.metadata) == ("vda", tmp_path / "vda.img", None)
    assert first.options == VolumeOptions()
    assert (second.path, second.metadata) == (Path("/dev/vg0/vdb"), tmp_path / "vdb.pairsync")
    assert second.options == VolumeOptions(
        level="async",
        at_bound="fall-behind",
        lag_bytes=10_000_000,
        lag_ns=2_500_000_000,
        intent_window_bytes=8_000_000,
        inflight_bytes=4_000_000,
        latency_goal_ns=20_000_000,
        peer_deadline_ns=9 * NS_PER_S,
        disk_deadline_ns=3 * NS_PER_S,
        flush_after_ns=NS_PER_S,
    )


def test_the_least_that_must_be_said(tmp_path: Path) -> None:
    found = read_host_file(_file(tmp_path, LEAST))
    assert (found.link, found.nbd, found.term) == (None, NbdFile(), 1)
    assert (found.identity, found.control) == (tmp_path / "identity", tmp_path / "control.sock")


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _file(tmp_path, LEAST)
    monkeypatch.chdir(tmp_path)
    found = read_host_file(Path("host.toml"))
    assert found.volumes[0].path == tmp_path / "v.img"


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ("[host]", "[hosts]", "'host' is missing"),
        ('name = "a"', "", r"\[host\]: 'name' is missing"),
        ('name = "a"', "name = 5", r"\[host\]: 'name' must be a str, not 5"),
        ('name = "a"', 'name = "a"\nnmae = "b"', r"\[host\]: unknown key 'nmae'"),
        ("[guest]", "[guest]\nterm = true", "'term' must be a int, not True"),
        ("[guest]", "[guest]\nterm = 1.0", "'term' must be a int"),
        ('"active"', '"owner"', "role 'owner': active or standby"),
        ('"00000000000000000000000000000000"', '"zz"', "pair_id 'zz' is not hexadecimal"),
        ('"00000000000000000000000000000000"', '"00ff"', "pair_id has 2 bytes, not 16"),
        ("[[volumes]]", "[volumes]", "'volumes' must be a list"),
        ('path = "v.img"', 'path = "v.img"\nlag = 5', r"\[\[volumes\]\] 1: unknown key 'lag'"),
        ('path = "v.img"', 'path = "v.img"\nlevel = "semi"', r"\[\[volumes\]\] 1: .*level 'semi'"),
        ('path = "v.img"', 'path = "v.img"\nlag_bytes = 5', r"\[\[volumes\]\] 1: lag_bytes 5: at least"),
        ('path = "v.img"', 'path = "v.img"\nlag_s = "5"', "'lag_s' must be a float"),
        ("[[volumes]]", "[nbd]\nport = 5\n[[volumes]]", r"\[nbd\]: unknown key 'port'"),
        ("[[volumes]]", '[nbd]\nlisten = "10809"\n[[volumes]]', "'10809' is not an address"),
        ("[[volumes]]", "surplus = 1\n[[volumes]]", "unknown key 'surplus'"),
        ("[[volumes]]", "[[volumes", "host.toml: "),
        ("[[volumes]]", "[link]\n[[volumes]]", r"\[link\]: paths: none; say"),
        ("[[volumes]]", f"{LINK}paths = [5]\n[[volumes]]", r"\[link\] path 1: a table is expected"),
        ("[[volumes]]", f'{LINK}paths = [{{ name = "x" }}]\n[[volumes]]', r"\[link\] path 1: 'peer' is mis"),
        (
            "[[volumes]]",
            f'{LINK}paths = [{{ name = "x", peer = "h:1", rank = 1 }}]\n[[volumes]]',
            r"\[link\] path 1: unknown key 'rank'",
        ),
        (
            "[[volumes]]",
            f'{LINK}paths = [{{ name = "x", peer = "h:1" }}]\nlisten = [7001]\n[[volumes]]',
            "7001 is not an address",
        ),
    ],
)
def test_mistakes_are_named_with_their_place(tmp_path: Path, old: str, new: str, finding: str) -> None:
    assert old in LEAST
    path = _file(tmp_path, LEAST.replace(old, new, 1))
    with pytest.raises(ConfigError, match=finding) as refused:
        read_host_file(path)
    assert str(refused.value).startswith(f"{path}: ")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: No such file"):
        read_host_file(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match="Is a directory"):
        read_host_file(tmp_path)
    path = tmp_path / "host.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"host\.toml"):
        read_host_file(path)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:1", ("127.0.0.1", 1)),
        ("beta:65535", ("beta", 65535)),
        ("[::1]:0", ("::1", 0)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


def test_a_port_may_be_left_out_where_there_is_a_usual_one() -> None:
    assert parse_address("beta", 10888) == ("beta", 10888)
    assert parse_address("[fe80::1]", 10888) == ("fe80::1", 10888)
    assert parse_address("beta:1", 10888) == ("beta", 1)


@pytest.mark.parametrize("text", ["", "beta", ":1", "beta:", "beta:x", "beta:65536", "beta:-1", "b:٣", 7])
def test_no_addresses(text: object) -> None:
    with pytest.raises(ConfigError, match="is not an address of the form host:port"):
        parse_address(text)


REGISTER = """
[host]
name = "alpha"

[guest]
name = "db1"
pair_id = "000102030405060708090A0B0C0D0E0F"

[register]
memory = "votes"
failover_s = 2
watchdog = "/dev/watchdog"
home = "alpha"
home_after_s = 90.5

[[register.witnesses]]
name = "hill"
address = "192.0.2.7:10889"
certificate = "hill.pem"

[[register.witnesses]]
name = "cluster"
etcd = ["http://127.0.0.1:2379", "http://127.0.0.1:2380"]

[fence]
command = ["fence_ipmilan", "-v"]
options = { ip = "192.0.2.8" }
secrets = "fence.secrets"
turn_on = false
deadline_s = 60
attempt_s = 20.5

[link]
peer_certificate = "other.pem"
paths = [{ name = "cable", peer = "10.0.0.2:7002" }]

[[volumes]]
name = "vda"
path = "vda.img"
"""


def test_where_the_owner_is_agreed_on_the_file_says_how_and_not_who(tmp_path: Path) -> None:
    file = tmp_path / "host.toml"
    file.write_text(REGISTER)
    host = read_host_file(file)
    assert host.role is Role.STANDBY
    assert host.register is not None
    assert host.register.memory == tmp_path / "votes"
    assert host.register.failover_ns == 2 * NS_PER_S
    hill, cluster = host.register.witnesses
    assert (hill.name, hill.address, hill.certificate) == (
        "hill",
        ("192.0.2.7", 10889),
        tmp_path / "hill.pem",
    )
    assert cluster.etcd == ("http://127.0.0.1:2379", "http://127.0.0.1:2380")
    assert host.register.watchdog == Path("/dev/watchdog")
    assert (host.register.home, host.register.home_after_ns) == ("alpha", 90_500 * NS_PER_MS)
    assert host.fence == FenceFile(
        command=("fence_ipmilan", "-v"),
        options={"ip": "192.0.2.8"},
        secrets=tmp_path / "fence.secrets",
        turn_on=False,
        deadline_ns=60 * NS_PER_S,
        attempt_ns=20_500 * NS_PER_MS,
    )


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "failover_s = 2",
            "failover_s = 0.5",
            "'failover_s': a failover time of 0.5 s: from 1 to 60 s are possible",
        ),
        ('name = "cluster"', 'name = "hill"', "names of their own"),
        ('etcd = ["http://127.0.0.1:2379", "http://127.0.0.1:2380"]', 'store = "table"', "MODULE:NAME"),
        (
            'etcd = ["http://127.0.0.1:2379", "http://127.0.0.1:2380"]',
            'etcd = ["https://127.0.0.1:2379"]\nca = "ca.pem"\nkey = "client.key"',
            "ca, certificate and key",
        ),
        (
            'etcd = ["http://127.0.0.1:2379", "http://127.0.0.1:2380"]',
            'store = "table:open"\noptions = { port = 7 }',
            "strings in quotes",
        ),
        ("home_after_s = 90.5", "home_after_s = 0", "home_after_s must be from 1 to 604800"),
        ('etcd = ["http://127.0.0.1:2379", "http://127.0.0.1:2380"]', "etcd = []", "one or more addresses"),
        ('certificate = "hill.pem"\n', "", "'certificate' is missing"),
        ('name = "db1"', 'name = "db1"\nrole = "active"', "unknown key 'role'"),
        ('memory = "votes"', 'memories = "votes"', "unknown key 'memories'"),
        ('command = ["fence_ipmilan", "-v"]', "", "'command' is missing"),
        ('ip = "192.0.2.8"', "port = 7", "strings in quotes"),
        ("turn_on = false", "turn_off = true", r"\[fence\]: unknown key 'turn_off'"),
    ],
)
def test_what_a_register_cannot_be(tmp_path: Path, old: str, new: str, words: str) -> None:
    file = tmp_path / "host.toml"
    assert old in REGISTER
    file.write_text(REGISTER.replace(old, new, 1))
    with pytest.raises(ConfigError, match=words):
        read_host_file(file)


def test_an_etcd_behind_tls_is_named_with_its_files(tmp_path: Path) -> None:
    file = tmp_path / "host.toml"
    etcd = 'etcd = ["http://127.0.0.1:2379", "http://127.0.0.1:2380"]'
    files = 'etcd = ["https://e:2379"]\nca = "ca.pem"\ncertificate = "c.pem"\nkey = "/k.pem"'
    file.write_text(REGISTER.replace(etcd, files))
    register = read_host_file(file).register
    assert register is not None
    cluster = register.witnesses[1]
    assert (cluster.ca, cluster.certificate, cluster.key) == (
        tmp_path / "ca.pem",
        tmp_path / "c.pem",
        Path("/k.pem"),
    )


def test_a_store_of_ones_own_is_named(tmp_path: Path) -> None:
    file = tmp_path / "host.toml"
    etcd = 'etcd = ["http://127.0.0.1:2379", "http://127.0.0.1:2380"]'
    file.write_text(REGISTER.replace(etcd, 'store = "our.table:open"\noptions = { path = "/db" }'))
    register = read_host_file(file).register
    assert register is not None
    assert (register.witnesses[1].store, register.witnesses[1].options) == ("our.table:open", {"path": "/db"})


def test_a_register_needs_a_peer(tmp_path: Path) -> None:
    begin, end = REGISTER.index("[link]"), REGISTER.index("[[volumes]]")
    file = tmp_path / "host.toml"
    file.write_text(REGISTER[:begin] + REGISTER[end:])
    with pytest.raises(ConfigError, match="nobody to agree with"):
        read_host_file(file)


def test_nobody_is_turned_off_where_nobody_takes_over(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[fence\]: without a \[register\]"):
        read_host_file(_file(tmp_path, LEAST + '[fence]\ncommand = ["agent"]\n'))
