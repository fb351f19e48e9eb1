"""The built-in witness on the network: who may ask for which registers, and nobody costs more than a place.

A connection is half open until it has proved a key that is on the roll (mutual TLS, pinned) and has said
which pair it speaks for, of which that key must be one of the two.  Half-open connections have few places,
the oldest gives way, and new ones are paced (``admission``): whoever comes too fast is hung up on, and an
honest host backs off and tries again.  Addresses from which a key was proved before have places of their own,
so a crowd of strangers does not keep known hosts out.

A host has at most `CONNECTIONS_HOST_MAX` connections; its newest pushes the oldest out, for the old one is
most likely a network path that died.  A connection on which nothing comes for `SILENCE_S` is dropped.
Requests of a connection are answered one by one, in order: what a host can have under way here is what fits
its TCP connection.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import trio

from pairsync.core.witness import Conflict, Snapshot, WitnessKey
from pairsync.errors import BackendError, CallerError, PeerLost, ProtocolError, RefusedError
from pairsync.wire.hello import negotiate, shorten
from pairsync.wire.witness import (
    WITNESS,
    WITNESS_PROTOCOL_MAX,
    WITNESS_PROTOCOL_MIN,
    Beat,
    Crossed,
    Declined,
    Failed,
    Greet,
    Greeted,
    Look,
    Request,
    Seen,
    Swap,
    Swapped,
    WitnessMessage,
)

from .admission import HANDSHAKES_A_SECOND, Admission, Pace, Places
from .channel import Channel, accept_handshake
from .gate import Gate
from .keys import HostIdentity
from .network import Connection, Listener, Network, describe_address
from .refusals import Refusals
from .tls import ListenerPins, TlsStream
from .witnessstore import RegisterKeeper

__all__ = [
    "CONNECTIONS_HOST_MAX",
    "HANDSHAKE_S",
    "PLACES",
    "SILENCE_S",
    "Roll",
    "WitnessServer",
    "WitnessStatistics",
]

SILENCE_S = 120.0
"""A connection on which nothing comes for so long is dropped; a host says something every 10 s or so."""

HANDSHAKE_S = 10.0
"""From the connection to the greeting: six round trips of a second, and more."""

CONNECTIONS_HOST_MAX = 2
"""Connections of one host: while a new one is made the old one may not have been noticed to be dead."""

PLACES = Places(address=64, strangers=512, peers=512)
"""Half-open connections: at a round trip of a second and four of these a handshake, a hundred a second.
Each takes some 50 KB."""

KNOWN_ADDRESSES_MAX = 8192
"""Addresses that are remembered as those of hosts; the one that was not heard of for longest is forgotten."""

ACCEPT_RETRY_S = 0.1
"""When the system is out of descriptors or memory."""

_log = logging.getLogger("pairsync.witness")


@dataclass(frozen=True, slots=True)
class Roll:
    """Who is served: for each pair's id the certificates (DER) of its hosts."""

    pairs: Mapping[bytes, frozenset[bytes]]

    def fingerprints(self) -> dict[bytes, frozenset[bytes]]:
        """For each pair the fingerprints of its hosts."""
        return {
            pair_id: frozenset(hashlib.sha256(der).digest() for der in ders)
            for pair_id, ders in self.pairs.items()
        }


@dataclass(frozen=True, slots=True)
class WitnessStatistics:
    """What a witness server says of itself."""

    connections: int
    half_open: int
    looks: int
    swaps: int
    """Swaps that were done."""
    crossed: int
    """Swaps that came too late."""
    failed: int
    """Requests that could not be answered."""
    refusals: Mapping[str, int]
    """Connections refused, by kind."""
    connected: Mapping[bytes, int]
    """Connections of each host that has any, by fingerprint."""


class WitnessServer:
    """Serves the registers of ``keeper`` to those on the roll."""

    def __init__(self, keeper: RegisterKeeper, identity: HostIdentity, roll: Roll, network: Network) -> None:
        self._keeper = keeper
        self._identity = identity
        self._network = network
        self._gate = Gate()
        # Invariant: an address in it has proved a key; at most KNOWN_ADDRESSES_MAX.
        self._known: OrderedDict[str, None] = OrderedDict()
        self._admission = Admission(self._known, PLACES)
        now_ns = network.now_ns()
        self._pace_known = Pace(HANDSHAKES_A_SECOND, now_ns)
        self._pace_strangers = Pace(HANDSHAKES_A_SECOND, now_ns)
        self._refusals = Refusals(network.now_ns)
        # Invariant: the open connections of each host, oldest first, at most CONNECTIONS_HOST_MAX each.
        self._open: dict[bytes, OrderedDict[trio.CancelScope, bytes]] = {}
        self._looks = self._swaps = self._crossed = self._failed = 0
        self.admit(roll)

    def admit(self, roll: Roll) -> None:
        """Serve these from now on; connections of others are dropped."""
        self._pins = ListenerPins(self._identity, frozenset().union(*roll.pairs.values()))
        self._hosts_of = roll.fingerprints()
        for fingerprint, scopes in self._open.items():
            for scope, pair_id in scopes.items():
                if fingerprint not in self._hosts_of.get(pair_id, frozenset()):
                    scope.cancel()

    def statistics(self) -> WitnessStatistics:
        """Figures since the start, and what is open now."""
        connected = {host: len(scopes) for host, scopes in self._open.items()}
        return WitnessStatistics(
            connections=sum(connected.values()),
            half_open=self._admission.half_open,
            looks=self._looks,
            swaps=self._swaps,
            crossed=self._crossed,
            failed=self._failed,
            refusals=self._refusals.counts(),
            connected=connected,
        )

    async def run(self, listener: Listener) -> None:
        """Accept until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    connection = await listener.accept()
                except OSError as error:
                    self._refusals.refuse("accept", f"cannot accept: {error}")
                    await trio.sleep(ACCEPT_RETRY_S)
                    continue
                known = connection.remote[0] in self._known
                pace = self._pace_known if known else self._pace_strangers
                if pace.delay_ns(self._network.now_ns()):
                    self._refusals.refuse(
                        "too many", f"{describe_address(connection.remote)}: too many handshakes"
                    )
                    connection.close()
                    continue
                nursery.start_soon(self._serve, connection)

    # ------------------------------------------------------------------ one connection

    async def _serve(self, connection: Connection) -> None:
        """One connection, from its first byte to its end."""
        who = describe_address(connection.remote)
        greeted: tuple[Channel[WitnessMessage], bytes, bytes] | None = None
        try:
            with self._admission.place(connection.remote[0]) as scope:
                scope.deadline = trio.current_time() + HANDSHAKE_S
                greeted = await self._greet(connection, who)
            if scope.cancelled_caught:
                late = trio.current_time() >= scope.deadline
                reason = "no handshake in time" if late else "its place went to a newer connection"
                self._refusals.refuse("half-open", f"{who}: {reason}")
            elif greeted is not None:
                self._remember(connection.remote[0])
                await self._converse(*greeted)
        except PeerLost as error:
            if greeted is None:  # a host that hangs up later is nothing special
                self._refusals.refuse("hung up", str(error))
        except RefusedError as error:
            self._refusals.refuse("handshake", str(error))
        except ProtocolError as error:
            self._refusals.refuse("protocol", str(error))
        finally:
            connection.close()

    def _remember(self, address: str) -> None:
        self._known[address] = None
        self._known.move_to_end(address)
        if len(self._known) > KNOWN_ADDRESSES_MAX:
            self._known.popitem(last=False)

    async def _greet(self, connection: Connection, who: str) -> tuple[Channel[WitnessMessage], bytes, bytes]:
        """Prove the key and the pair: the channel, the host's fingerprint, the pair's id."""
        stream = TlsStream(connection, self._gate, self._pins, dialing=False, who=who)
        fingerprint = await accept_handshake(stream)
        channel = Channel(stream, WITNESS, who)
        greet = await channel.receive()
        if not isinstance(greet, Greet):
            raise ProtocolError(f"{who}: begins with {type(greet).__name__}, not with Greet")
        try:
            version = negotiate(
                (WITNESS_PROTOCOL_MIN, WITNESS_PROTOCOL_MAX), (greet.protocol_min, greet.protocol_max)
            )
            self._check_pair(fingerprint, greet.pair_id)
        except RefusedError as error:
            await channel.farewell(Declined(shorten(str(error))))
            raise RefusedError(f"{who}: {error}") from error
        await channel.send(Greeted(version, "pairsync"))
        return channel, fingerprint, greet.pair_id

    def _check_pair(self, fingerprint: bytes, pair_id: bytes) -> None:
        if fingerprint not in self._hosts_of.get(pair_id, frozenset()):
            raise RefusedError(f"key {fingerprint.hex()[:16]} is no host of pair {pair_id.hex()[:8]}")

    async def _converse(self, channel: Channel[WitnessMessage], fingerprint: bytes, pair_id: bytes) -> None:
        mine = self._open.setdefault(fingerprint, OrderedDict())
        with trio.CancelScope() as scope:
            mine[scope] = pair_id
            for oldest in list(mine)[:-CONNECTIONS_HOST_MAX]:
                oldest.cancel()
            try:
                await self._answer_all(channel, pair_id)
            finally:
                del mine[scope]
                if not mine and self._open.get(fingerprint) is mine:
                    del self._open[fingerprint]

    async def _answer_all(self, channel: Channel[WitnessMessage], pair_id: bytes) -> None:
        last = 0  # number of the last request
        while True:
            with trio.move_on_after(SILENCE_S) as scope:
                message = await channel.receive()
                if isinstance(message, Beat):
                    await channel.send(message)
                elif isinstance(message, (Look, Swap)) and message.number > last:
                    last = message.number
                    await channel.send(await self._answer(message, pair_id))
                else:
                    raise ProtocolError(f"{channel.who}: {message!r:.100} where a request is expected")
            if scope.cancelled_caught:
                raise PeerLost(f"{channel.who}: silent for {SILENCE_S:g} s")

    async def _answer(self, request: Request, pair_id: bytes) -> WitnessMessage:
        number = request.number
        try:
            key = WitnessKey(pair_id, request.guest)
            if request.knows is not None:
                await self._keeper.renew(
                    key, Snapshot(request.knows.incarnation, request.knows.version, None)
                )
            if isinstance(request, Look):
                found = await self._keeper.get(key)
                self._looks += 1
                return Seen(number, found.incarnation, found.version, found.value)
            done = await self._keeper.swap(key, request.version, request.value)
        except (BackendError, CallerError) as error:
            self._failed += 1
            _log.warning("a request of pair %s failed: %s", pair_id.hex()[:8], error)
            return Failed(number, shorten(str(error)))
        if isinstance(done, Conflict):
            self._crossed += 1
            now = done.current
            return Crossed(number, now.incarnation, now.version, now.value)
        self._swaps += 1
        return Swapped(number, done.incarnation, done.version)
