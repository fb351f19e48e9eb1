"""etcd as a witness: the suite on a real member and a real cluster, and answers that are none."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pairsync.core.units import NS_PER_S
from pairsync.core.witness import Conflict, Snapshot, WitnessKey
from pairsync.errors import ConfigError, PeerLost, ProtocolError, RefusedError
from pairsync.io.etcd import ANSWER_BYTES_MAX, EtcdConfig, EtcdStore, etcd_tls, open_etcd
from pairsync.node.labfile import free_ports
from pairsync.testing.witness import (
    LOSS_CHECKS,
    RESTART_CHECKS,
    WITNESS_CHECKS,
    EtcdBench,
    WitnessCheck,
    running_etcd,
)

PAIR = b"one pair of two!"
KEY = WitnessKey(PAIR, "db1")
PATIENCE_S = 30.0
HELD = base64.b64encode(b"PSw1" + bytes(25))
ONE, TWO = "http://one:2379", "http://two:2379"

needs_etcd = pytest.mark.tools("etcd")


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[EtcdBench]:
    async with running_etcd(tmp_path, PAIR) as bench:
        yield bench


@needs_etcd
async def test_the_suite_on_one_member(bench: EtcdBench) -> None:
    for check in (*WITNESS_CHECKS, *LOSS_CHECKS):
        await check(bench)


@needs_etcd
@pytest.mark.parametrize("check", RESTART_CHECKS, ids=lambda check: check.__name__)
async def test_the_suite_with_kills(bench: EtcdBench, check: WitnessCheck) -> None:
    await check(bench)


@needs_etcd
async def test_a_cluster_of_three_and_the_loss_of_each_member(tmp_path: Path) -> None:
    async with running_etcd(tmp_path, PAIR, members=3) as bench:
        for check in WITNESS_CHECKS:
            await check(bench)
        config = EtcdConfig(endpoints=bench.endpoints, try_ns=NS_PER_S)
        async with open_etcd(config) as store:
            now = await store.get(KEY)
            for member in range(3):
                await bench.kill(member)
                with trio.fail_after(PATIENCE_S):
                    done: Snapshot | Conflict | None = None
                    while not isinstance(done, Snapshot):
                        try:
                            done = await store.swap(KEY, now.version, b"without %d" % member)
                            now = done if isinstance(done, Snapshot) else done.current
                        except PeerLost:
                            await trio.sleep(0.1)
                await bench.start(member)
                await bench.ready()
            assert await store.get(KEY) == now
            await bench.kill(0)
            await bench.kill(1)
            with trio.fail_after(PATIENCE_S), pytest.raises(PeerLost):
                await store.get(KEY)  # one of three must not answer


def _sign(
    directory: Path, name: str, ca: tuple[x509.Name, ec.EllipticCurvePrivateKey] | None
) -> tuple[x509.Name, ec.EllipticCurvePrivateKey]:
    """A certificate and its key as files; of the authority itself without ``ca``."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer, signer = ca or (subject, key)
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    builder = builder.add_extension(x509.BasicConstraints(ca=ca is None, path_length=None), critical=True)
    local = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    certificate = builder.add_extension(local, critical=False).sign(signer, hashes.SHA256())
    pem = serialization.Encoding.PEM
    (directory / f"{name}.pem").write_bytes(certificate.public_bytes(pem))
    plain = serialization.NoEncryption()
    (directory / f"{name}.key").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return subject, key


@needs_etcd
async def test_a_cluster_behind_tls_knows_its_clients_by_their_certificates(tmp_path: Path) -> None:
    ca = _sign(tmp_path, "ca", None)
    for name in ("server", "client"):
        _sign(tmp_path, name, ca)
    _sign(tmp_path, "stranger", None)
    client, peer = free_ports(2)
    url, peer_url = f"https://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
    argv = ["etcd", "--data-dir", str(tmp_path / "m"), "--log-level", "error", "--client-cert-auth"]
    argv += ["--listen-client-urls", url, "--advertise-client-urls", url, "--listen-peer-urls", peer_url]
    argv += ["--initial-advertise-peer-urls", peer_url, "--initial-cluster", f"default={peer_url}"]
    argv += ["--cert-file", f"{tmp_path}/server.pem", "--key-file", f"{tmp_path}/server.key"]
    argv += ["--trusted-ca-file", f"{tmp_path}/ca.pem"]
    process = await trio.lowlevel.open_process(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def config(trusts: str, name: str | None) -> EtcdConfig:
        certificate, key = (None if name is None else tmp_path / f"{name}.{end}" for end in ("pem", "key"))
        return EtcdConfig(endpoints=(url,), tls=etcd_tls(tmp_path / f"{trusts}.pem", certificate, key))

    try:
        async with open_etcd(config("ca", "client")) as store:
            with trio.fail_after(PATIENCE_S):
                while True:
                    with suppress(PeerLost):
                        await store.get(KEY)
                        break
                    await trio.sleep(0.1)
            now = await store.get(KEY)
            assert isinstance(await store.swap(KEY, now.version, b"x"), Snapshot)
        for trusts, stranger in (("ca", None), ("ca", "stranger"), ("stranger", "client")):
            async with open_etcd(config(trusts, stranger)) as store:
                with pytest.raises(PeerLost):
                    await store.get(KEY)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


@pytest.mark.parametrize(
    ("files", "wrong"),
    [
        (["missing.pem", None, None], "missing.pem"),
        (["damaged.pem", None, None], "damaged.pem"),
        (["ca.pem", "missing.pem", "client.key"], "missing.pem"),
        (["ca.pem", "client.pem", "ca.key"], "ca.key"),
    ],
)
def test_files_of_tls_that_cannot_be_used_are_named(
    tmp_path: Path, files: list[str | None], wrong: str
) -> None:
    _sign(tmp_path, "client", _sign(tmp_path, "ca", None))
    (tmp_path / "damaged.pem").write_text("nothing")
    ca, certificate, key = (None if each is None else tmp_path / each for each in files)
    assert ca is not None
    with pytest.raises(ConfigError, match=f"etcd: .*{wrong}"):
        etcd_tls(ca, certificate, key)


@needs_etcd
async def test_a_cluster_put_back_is_noticed_by_a_host(bench: EtcdBench, tmp_path: Path) -> None:
    async with open_etcd(EtcdConfig(endpoints=bench.endpoints)) as store, httpx2.AsyncClient() as client:
        first = await store.get(KEY)
        name = base64.b64encode(f"pairsync/{PAIR.hex()}/db1".encode()).decode()
        url = f"{bench.endpoints[0]}/v3/kv"
        before = (await client.post(f"{url}/range", json={"key": name})).json()["kvs"][0]["value"]
        second = await store.swap(KEY, first.version, b"x")
        assert isinstance(second, Snapshot)
        await client.post(f"{url}/put", json={"key": name, "value": before})
        third = await store.get(KEY)
        assert third.incarnation != first.incarnation
        assert third.value is None
        await client.post(f"{url}/deleterange", json={"key": name})
        fourth = await store.get(KEY)
        assert fourth.incarnation not in {first.incarnation, third.incarnation}
        await client.post(f"{url}/put", json={"key": name, "value": "bm9uc2Vuc2U="})
        with pytest.raises(ProtocolError, match="something else"):
            await store.get(KEY)


# -- an etcd of our own making -------------------------------------------------------------------------------


class Fake:
    """Answers as etcd does, at two endpoints; `spoil` changes what one of them answers."""

    def __init__(self) -> None:
        self.keys: dict[str, str] = {}
        self.asked: list[str] = []
        self.spoil: dict[str, Any] = {}
        self.deaf: set[str] = set()
        """Endpoints that do what they are asked, and whose answer is lost."""

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        await trio.lowlevel.checkpoint()
        self.asked.append(request.url.host)
        spoilt = self.spoil.get(request.url.host)
        if isinstance(spoilt, Exception):
            raise spoilt
        if isinstance(spoilt, float):
            await trio.sleep(spoilt)
        if isinstance(spoilt, httpx2.Response):
            return spoilt
        answer = self._answer(json.loads(request.content))
        if request.url.host in self.deaf:
            raise httpx2.ReadError("reset")
        return httpx2.Response(200, json=answer)

    def _answer(self, asked: Any) -> Any:
        header = {"cluster_id": "14841639068965178418", "revision": "5"}
        if "compare" not in asked:
            return {"header": header, **self._range(asked["key"])}
        (compare,) = asked["compare"]
        there = self.keys.get(compare["key"])
        holds = there is None if compare["target"] == "CREATE" else there == compare["value"]
        responses = []
        for each in asked["success" if holds else "failure"]:
            if put := each.get("request_put"):
                self.keys[put["key"]] = put["value"]
                responses.append({"response_put": {"header": header}})
            else:
                responses.append({"response_range": self._range(each["request_range"]["key"])})
        return {"header": header, "responses": responses, **({"succeeded": True} if holds else {})}

    def _range(self, key: str) -> Any:
        there = self.keys.get(key)
        return {} if there is None else {"kvs": [{"key": key, "value": there}], "count": "1"}

    def open(self) -> EtcdStore:
        client = httpx2.AsyncClient(transport=httpx2.MockTransport(self))
        return EtcdStore(EtcdConfig(endpoints=(ONE, TWO)), client, lambda count: bytes(range(count)))


async def test_the_next_endpoint_is_asked_and_kept() -> None:
    fake = Fake()
    fake.spoil["one"] = httpx2.ConnectError("refused")
    store = fake.open()
    first = await store.get(KEY)
    assert fake.asked == ["one", "two", "two"]
    await store.swap(KEY, first.version, b"x")
    assert fake.asked[3:] == ["two"]


async def test_an_endpoint_that_is_slow_or_has_no_leader_is_passed_by(
    autojump_clock: trio.testing.MockClock,
) -> None:
    fake = Fake()
    store = fake.open()
    for trouble in (60.0, httpx2.Response(503, json={"code": 14, "message": "etcdserver: no leader"})):
        fake.spoil["one"], store._first = trouble, 0
        await store.get(KEY)
    fake.spoil["two"] = 60.0
    with pytest.raises(PeerLost, match=r"two:2379: no answer within 2 s.*one:2379: etcdserver: no leader"):
        await store.get(KEY)


async def test_a_swap_whose_answer_was_lost_is_recognised_at_the_next_endpoint() -> None:
    fake = Fake()
    store = fake.open()
    first = await store.get(KEY)
    fake.deaf.add("one")
    done = await store.swap(KEY, first.version, b"mine")
    assert done == Snapshot(first.incarnation, first.version + 1, b"mine")
    assert fake.asked[-2:] == ["one", "two"]


async def test_a_lost_swap_that_another_one_has_followed_is_not_called_a_conflict() -> None:
    fake = Fake()
    store, other = fake.open(), fake.open()
    first = await store.get(KEY)

    original = fake._answer

    def follow(asked: Any) -> Any:
        answer = original(asked)
        if fake.asked[-1] == "one" and "compare" in asked:
            (name,) = fake.keys
            stored = base64.b64decode(fake.keys[name])
            later = stored[:19] + bytes([stored[19] + 1]) + b"otherone" + b"\x01theirs"
            fake.keys[name] = base64.b64encode(later).decode()
        return answer

    fake._answer = follow  # type: ignore[method-assign]
    fake.deaf.add("one")
    with pytest.raises(PeerLost, match="may have been done"):
        await store.swap(KEY, first.version, b"mine")
    fake.deaf.clear()
    assert (await other.get(KEY)).value == b"theirs"


async def test_two_hosts_that_write_the_same_do_not_both_win() -> None:
    fake = Fake()
    numbers = iter(range(100))
    stores = [fake.open() for _ in range(2)]
    for store in stores:
        store._entropy = lambda count: next(numbers).to_bytes(count, "big")
    first = await stores[0].get(KEY)
    await stores[1].get(KEY)
    done = [await store.swap(KEY, first.version, b"the same") for store in stores]
    assert [type(each) for each in done] == [Snapshot, Conflict]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no json",
        b"[]",
        b"{}",
        b'{"header": {}, "kvs": [{}]}',
        b'{"header": {"cluster_id": "1"}, "kvs": [{"value": "!"}]}',
        '{"header": {"cluster_id": "1"}, "kvs": [{"value": "\u00e9"}]}'.encode(),
        b'{"header": {"cluster_id": "\\ud800"}, "kvs": [{"value": "%s"}]}' % HELD,
        b'{"header": {"cluster_id": "1"}, "kvs": [{"value": "AAAA"}]}',
        b'{"header": {"cluster_id": "1"}, "kvs": [{}, {}]}',
        b'{"header": {"cluster_id": "1"}, "kvs": 7}',
        b"[" * 40_000,
        b" " * (ANSWER_BYTES_MAX + 1),
        b'{"header": {"cluster_id": 7}, "kvs": [{"value": "%s"}]}' % base64.b64encode(b"PSw1" + bytes(25)),
        b'{"header": {"cluster_id": "7"}, "kvs": [{"value": "%s"}]}' % base64.b64encode(b"PSw1" + bytes(26)),
    ],
)
async def test_garbage_is_refused(content: bytes) -> None:
    fake = Fake()
    fake.spoil["one"] = httpx2.Response(200, content=content)
    fake.spoil["two"] = httpx2.Response(200, content=content)
    with pytest.raises(ProtocolError):
        await fake.open().get(KEY)


class Raw(httpx2.AsyncByteStream):
    """A body as it comes from the network."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        await trio.lowlevel.checkpoint()
        yield self.content


async def test_what_claims_to_be_compressed_is_not_decompressed() -> None:
    """What the decompression of garbage raised was taken for no answer at all, and ended the host."""
    fake = Fake()
    for name in ("one", "two"):
        fake.spoil[name] = httpx2.Response(200, headers={"content-encoding": "gzip"}, stream=Raw(b"garbage"))
    with pytest.raises(ProtocolError, match="is encoded"):
        await fake.open().get(KEY)


@pytest.mark.parametrize(
    "answer",
    [httpx2.Response(502, content=b"<html>"), httpx2.Response(403, json={"code": 7, "message": "denied"})],
)
async def test_an_endpoint_that_answers_nonsense_does_not_hide_the_next(answer: httpx2.Response) -> None:
    fake = Fake()
    fake.spoil["one"] = answer
    store = fake.open()
    first = await store.get(KEY)
    assert isinstance(await store.swap(KEY, first.version, b"x"), Snapshot)
    assert fake.asked == ["one", "two", "two", "two"]


async def test_what_etcd_refuses_is_told() -> None:
    fake = Fake()
    denied: Any = {"code": 7, "message": "etcdserver: permission denied"}
    contents: list[Any] = [denied, [], {"code": [], "message": 5}]
    for content in contents:
        fake.spoil["one"] = fake.spoil["two"] = httpx2.Response(403, json=content)
        with pytest.raises(RefusedError, match=r"permission denied|HTTP status 403"):
            await fake.open().get(KEY)


@pytest.mark.parametrize(
    "changes",
    [{"endpoints": ()}, {"endpoints": ("10.0.0.7:2379",)}, {"endpoints": (ONE,) * 10}, {"try_ns": 0}],
)
def test_what_cannot_be_configured_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="etcd"):
        EtcdConfig(**{"endpoints": (ONE,), **changes}).check()


async def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(ConfigError, match=r"pairsync\[etcd\]"):
        async with open_etcd(EtcdConfig(endpoints=(ONE,))):
            pass


async def test_what_is_no_url_is_refused_before_it_is_asked() -> None:
    with pytest.raises(ConfigError, match="is no endpoint"):
        async with open_etcd(EtcdConfig(endpoints=("http://[::1:2379",))):
            pass
