"""etcd (v3) as a witness, through its JSON gateway: for operators who run many pairs and have a cluster.

One key a guest, ``PREFIX PAIR/GUEST``; its value is one of ours::

    magic "PSw1" | incarnation 8 | version u64 | nonce 8 | has a value u8 | value

A swap is one transaction: if the key still holds, byte for byte, what was read, put the next.  Incarnation,
version and a nonce of the writer make every such value unique, so the comparison needs no revision of etcd's,
holds across a cluster that was restored, and tells a swap of ours that was done although its answer was lost:
a transaction can be repeated at the next endpoint.  Reads are linearizable (etcd's default).

**Incarnation.**  Drawn by whoever makes the key, and shown together with the cluster's id (which members and
``--initial-cluster-token`` make up): a key that was deleted, a cluster that was made anew or was restored
under another token, show another one.  A cluster restored from a backup under the same token shows the old
one; a host that has seen a register farther begins a new incarnation then, as the built-in witness does.

**Endpoints** are tried in turn, beginning with the one that answered last; each has `EtcdConfig.try_ns`.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import secrets
import ssl
import struct
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import trio

from pairsync.core.units import KIB, NS_PER_S
from pairsync.core.witness import (
    INCARNATION_BYTES,
    VALUE_BYTES_MAX,
    VERSION_MAX,
    Conflict,
    Snapshot,
    WitnessKey,
    check_value,
    first_version,
)
from pairsync.errors import ClosedError, ConfigError, PeerError, PeerLost, ProtocolError, RefusedError

if TYPE_CHECKING:
    import httpx2

__all__ = ["ENDPOINTS_MAX", "EtcdConfig", "EtcdStore", "etcd_tls", "open_etcd"]

ENDPOINTS_MAX = 9
"""Members of a cluster; etcd advises seven at most."""

ANSWER_BYTES_MAX = 64 * KIB
"""An answer holds one register in base64, and a header: 2 kB."""

ATTEMPTS_MAX = 5
"""Rounds of "read, then put if unchanged" until a register is made or renewed: somebody else has done it by
then, or the store is no register."""

KNOWN_MAX = 4096
"""Registers of which the last state is remembered: more guests than a host has."""

_HEAD: Final = struct.Struct(f">4s{INCARNATION_BYTES}sQ8sB")
_MAGIC: Final = b"PSw1"
_NOT_NOW: Final = frozenset({4, 8, 10, 14})
"""gRPC codes of a member that cannot answer now: too late, too much, aborted, unavailable (no leader)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdConfig:
    """A cluster: its client URLs, and where the keys lie."""

    endpoints: tuple[str, ...]
    prefix: str = "pairsync/"
    tls: ssl.SSLContext | None = None
    """For ``https`` endpoints: whom to trust, and the client's own certificate; None: the system's trust."""
    try_ns: int = 2 * NS_PER_S
    """What one endpoint has to answer, before the next is asked."""

    def check(self) -> None:
        """Raises `ConfigError`."""
        if not 0 < len(self.endpoints) <= ENDPOINTS_MAX:
            raise ConfigError(f"etcd: {len(self.endpoints)} endpoints, 1 to {ENDPOINTS_MAX} are possible")
        for endpoint in self.endpoints:
            if not endpoint.startswith(("http://", "https://")):
                raise ConfigError(f"etcd: {endpoint!r} is no endpoint such as https://10.0.0.7:2379")
        if self.try_ns <= 0:
            raise ConfigError("etcd: an endpoint needs time to answer")


def etcd_tls(ca: Path, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """Trust in what ``ca`` has signed, and the certificate and key that the cluster asks of its clients.

    PEM files; `ConfigError` names the one that cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"etcd: {ca}: {error.strerror or error}") from error
    if certificate is not None:
        try:
            context.load_cert_chain(certificate, key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"etcd: {certificate}, {key}: {error.strerror or error}") from error
    return context


class _Stored(NamedTuple):
    """What a key holds: a register, and the very bytes."""

    incarnation: bytes
    version: int
    value: bytes | None
    raw: bytes


class _Known(NamedTuple):
    """A register as it was last seen."""

    stored: _Stored
    snapshot: Snapshot


class _NotNow(Exception):
    """An endpoint cannot answer now; another one may."""


class EtcdStore:
    """A `WitnessStore` in an etcd cluster; made by `open_etcd`."""

    def __init__(
        self, config: EtcdConfig, client: httpx2.AsyncClient, entropy: Callable[[int], bytes]
    ) -> None:
        self._config = config
        self._client = client
        self._entropy = entropy
        self._first = 0  # the endpoint that answered last
        self._known: OrderedDict[WitnessKey, _Known] = OrderedDict()  # at most KNOWN_MAX

    async def get(self, key: WitnessKey) -> Snapshot:
        """As `WitnessStore.get`."""
        answer, _ = await self._post("range", {"key": self._name(key)})
        return (await self._current(key, _found(answer), answer)).snapshot

    async def swap(self, key: WitnessKey, version: int, value: bytes) -> Snapshot | Conflict:
        """As `WitnessStore.swap`."""
        check_value(value)
        known = self._known.get(key)
        if known is None or known.snapshot.version != version:
            await self.get(key)
            known = self._known[key]
        if known.snapshot.version != version:
            return Conflict(known.snapshot)
        after = self._make(known.stored.incarnation, version + 1, value)
        answer, tries = await self._put(key, known.stored.raw, after)
        now = await self._current(key, _found(answer), answer)
        if now.stored.raw == after.raw:  # also where an earlier try had done it, unheard
            return now.snapshot
        if tries > 1:
            raise PeerLost(f"etcd: the swap of {key.guest!r} may have been done before another one was")
        return Conflict(now.snapshot)

    async def _current(self, key: WitnessKey, found: bytes | None, answer: Any) -> _Known:
        """What a register is, given what its key held; made or renewed where that must be."""
        for _ in range(ATTEMPTS_MAX):
            before = self._known.get(key)
            if found is not None:
                now = self._shown(_decode(found), answer)
                if before is None or not now.snapshot.is_behind(before.snapshot):
                    return self._learn(key, now)
            fresh = self._make(self._entropy(INCARNATION_BYTES), first_version(self._entropy(8)), None)
            answer, _ = await self._put(key, found, fresh)
            found = _found(answer)
        raise ProtocolError(f"etcd: register {key.guest!r} changes whenever it is looked at")

    def _shown(self, stored: _Stored, answer: Any) -> _Known:
        cluster = _text(answer, "header", "cluster_id").encode()
        incarnation = hashlib.sha256(stored.incarnation + cluster).digest()[:INCARNATION_BYTES]
        return _Known(stored, Snapshot(incarnation, stored.version, stored.value))

    def _learn(self, key: WitnessKey, now: _Known) -> _Known:
        self._known[key] = now
        self._known.move_to_end(key)
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)
        return now

    def _make(self, incarnation: bytes, version: int, value: bytes | None) -> _Stored:
        head = _HEAD.pack(_MAGIC, incarnation, version, self._entropy(8), value is not None)
        return _Stored(incarnation, version, value, head + (value or b""))

    def _name(self, key: WitnessKey) -> str:
        return _encode(f"{self._config.prefix}{key.pair_id.hex()}/{key.guest}".encode())

    async def _put(self, key: WitnessKey, before: bytes | None, after: _Stored) -> tuple[Any, int]:
        """Put ``after`` if the key holds ``before`` (None: is not there); the answer shows what it holds."""
        name = self._name(key)
        if before is None:
            compare = {"key": name, "target": "CREATE", "result": "EQUAL", "create_revision": "0"}
        else:
            compare = {"key": name, "target": "VALUE", "result": "EQUAL", "value": _encode(before)}
        look = {"request_range": {"key": name}}
        put = {"request_put": {"key": name, "value": _encode(after.raw)}}
        request = {"compare": [compare], "success": [put, look], "failure": [look]}
        return await self._post("txn", request)

    # ------------------------------------------------------------------ the network

    async def _post(self, what: str, request: Any) -> tuple[Any, int]:
        """The answer of the first endpoint that has one, and how many were asked; raises `PeerError`.

        An endpoint that did not answer, or answered what makes no sense, may have done what it was asked all
        the same.  One that is broken, or is somebody else's by now, must not hide those that are well.
        """
        endpoints = self._config.endpoints
        troubles: list[str] = []
        wrong: PeerError | None = None  # what an endpoint has answered, if one has
        for turn in range(len(endpoints)):
            place = (self._first + turn) % len(endpoints)
            trouble = f"no answer within {self._config.try_ns / 1e9:g} s"
            with trio.move_on_after(self._config.try_ns / 1e9):
                try:
                    answer = await self._ask(f"{endpoints[place]}/v3/kv/{what}", request)
                except _NotNow as error:
                    trouble = str(error)
                except (ProtocolError, RefusedError) as error:
                    wrong, trouble = error, str(error)
                else:
                    self._first = place
                    return answer, turn + 1
            troubles.append(f"{endpoints[place]}: {trouble}")
        self._first = (self._first + 1) % len(endpoints)
        if wrong is not None:
            raise wrong
        raise PeerLost(f"etcd: {'; '.join(troubles)}")

    async def _ask(self, url: str, request: Any) -> Any:
        import httpx2  # noqa: PLC0415  # an extra; `open_etcd` has looked for it

        content = bytearray()
        try:
            async with (
                self._client.stream("POST", url, content=json.dumps(request)) as response,
                contextlib.aclosing(response.aiter_bytes()) as chunks,
            ):
                if "content-encoding" in response.headers:  # nobody asked for it: nothing is decompressed
                    raise ProtocolError(f"etcd: {url} answers what is encoded")
                async for chunk in chunks:
                    content += chunk
                    if len(content) > ANSWER_BYTES_MAX:
                        raise ProtocolError(f"etcd: {url} answers more than {ANSWER_BYTES_MAX} bytes")
        except httpx2.TransportError as error:
            raise _NotNow(str(error) or type(error).__name__) from error
        except RuntimeError as error:  # the client was closed
            raise ClosedError(f"etcd: {error}") from error
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"etcd: {url} answers what is no JSON") from error
        if response.status_code != httpx2.codes.OK:
            self._refuse(url, response.status_code, answer)
        return answer

    def _refuse(self, url: str, status: int, answer: Any) -> None:
        told = answer if isinstance(answer, dict) else {}
        message, code = told.get("message"), told.get("code")
        text = message if isinstance(message, str) else f"HTTP status {status}"
        if type(code) is int and code in _NOT_NOW:
            raise _NotNow(text)
        raise RefusedError(f"etcd: {url}: {text[:200]}")


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode(raw: bytes) -> _Stored:
    """Raises `ProtocolError` for a value that is none of ours."""
    try:
        magic, incarnation, version, _, has_value = _HEAD.unpack_from(raw)
    except struct.error as error:
        raise ProtocolError("etcd: the key of a register holds something else") from error
    value = raw[_HEAD.size :]
    sound = magic == _MAGIC and version <= VERSION_MAX and has_value <= 1 and (has_value or not value)
    if not sound or len(value) > VALUE_BYTES_MAX:
        raise ProtocolError("etcd: the key of a register holds something else")
    return _Stored(incarnation, version, value if has_value else None, raw)


def _text(answer: Any, *path: str) -> str:
    """What stands there: a number or base64, both ASCII."""
    for name in path:
        answer = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(answer, str) or not answer.isascii():
        raise ProtocolError(f"etcd: an answer without {'.'.join(path)}")
    return answer


def _found(answer: Any) -> bytes | None:
    """What the key held at the end of a range or a transaction; None if it was not there."""
    if isinstance(answer, dict) and isinstance(responses := answer.get("responses"), list) and responses:
        last = responses[-1]
        answer = last.get("response_range") if isinstance(last, dict) else None
    kvs = answer.get("kvs", []) if isinstance(answer, dict) else None
    if not isinstance(kvs, list) or len(kvs) > 1:
        raise ProtocolError("etcd: an answer that is none to what was asked")
    if not kvs:
        return None
    try:
        return base64.b64decode(_text(kvs[0], "value"), validate=True)
    except binascii.Error as error:
        raise ProtocolError("etcd: a value that is no base64") from error


@contextlib.asynccontextmanager
async def open_etcd(
    config: EtcdConfig, *, entropy: Callable[[int], bytes] = secrets.token_bytes
) -> AsyncIterator[EtcdStore]:
    """A witness in an etcd cluster; that it cannot be reached is told by the requests.

    Raises `ConfigError` where the configuration cannot be, or the extra ``etcd`` is not installed.
    """
    config.check()
    try:
        import httpx2  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise ConfigError('etcd as a witness needs: pip install "pairsync[etcd]"') from error
    verify = True if config.tls is None else config.tls
    for endpoint in config.endpoints:
        try:
            httpx2.URL(endpoint)
        except httpx2.InvalidURL as error:
            raise ConfigError(f"etcd: {endpoint!r} is no endpoint: {error}") from error
    plain = {"accept-encoding": "identity"}
    async with httpx2.AsyncClient(verify=verify, timeout=None, trust_env=False, headers=plain) as client:
        yield EtcdStore(config, client, entropy)
