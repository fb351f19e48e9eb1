"""How a host takes part in the grant register: its memory, its witnesses, its guard, put together.

What is agreed is ``core.arbiter``'s business, and doing it is ``guest.arbitration``'s.  Here is what only a
host process has: files, certificates, and a guard process that kills it if it does not stop in time.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import trio

from pairsync.core.acceptor import AcceptorState, HostMemory, gives_way
from pairsync.core.arbiter import Arbiter
from pairsync.core.grants import FORK_BYTES, INCARNATION_BYTES, OPERATOR_BYTES_MAX, VoterId, genesis
from pairsync.core.messages import Condition
from pairsync.core.outlook import Outlook
from pairsync.core.timing import Timing, derive
from pairsync.core.units import NS_PER_S
from pairsync.core.witness import Conflict, Snapshot, WitnessKey
from pairsync.errors import BackendError, ConfigError
from pairsync.guest.arbitration import Arbitration
from pairsync.guest.guest import Guest
from pairsync.io.config import LinkConfig
from pairsync.io.etcd import EtcdConfig, etcd_tls, open_etcd
from pairsync.io.gate import Gate
from pairsync.io.keys import fingerprint_of, read_certificate
from pairsync.io.witness import WitnessConfig, open_witness
from pairsync.io.witnessstore import WitnessStore
from pairsync.storage.acceptorfile import AcceptorFile
from pairsync.wire.arbitration import decode_host_memory, encode_host_memory

from .control import Answer, Handler
from .fence import PowerFence
from .fencing import Fencer, fence_config
from .guardclient import boottime_ns
from .guardkeeper import GuardKeeper, keep_guard
from .homing import is_home, take_home
from .hostfile import HostFile, RegisterFile, WitnessFile
from .ownwitness import open_own_store

__all__ = [
    "Ballots",
    "arbitration_handlers",
    "create_memory",
    "first_memory",
    "open_arbitration",
    "operator_of",
]

TERM_MAX = 1 << 62
"""An override goes above a term of that height at most: there is room for all others then."""


def first_memory(fingerprint: bytes) -> bytes:
    """The memory of the host that owns the guest first: it alone decides what is agreed next."""
    incarnation = secrets.token_bytes(INCARNATION_BYTES)
    grant = genesis(VoterId(fingerprint, incarnation), secrets.token_bytes(FORK_BYTES))
    return encode_host_memory(HostMemory(AcceptorState(incarnation, grant), promise_ns=0))


def create_memory() -> bytes:
    """The memory of a host that has lived through nothing: it waits to be told of."""
    state = AcceptorState(secrets.token_bytes(INCARNATION_BYTES))
    return encode_host_memory(HostMemory(state, promise_ns=0))


def _open_memory(register: RegisterFile, empty: bytes | None = None) -> AcceptorFile:
    """This host's memory; a lost one is begun anew, and one that was put back is not believed.

    What it knows to be decided stays true; what it has promised since is not known, so it is another voter.
    ``empty``: this host, if its disks are.
    """
    memory = AcceptorFile.open_or_begin(register.memory, create_memory())
    known, promise_ns = decode_host_memory(memory.state)
    if memory.moved or (empty is not None and gives_way(known, empty)):
        state = AcceptorState(secrets.token_bytes(INCARNATION_BYTES), known.base)
        memory.store(encode_host_memory(HostMemory(state, promise_ns)))
    return memory


class _HostWarden:
    """The guard process of this host."""

    def __init__(self, guard: GuardKeeper) -> None:
        self._guard = guard

    def lease_until(self, until_ns: int | None) -> None:
        """As `Warden`."""
        if until_ns is None:
            self._guard.disarm()
        else:
            self._guard.arm(until_ns)

    async def settled(self) -> None:
        """As `Warden`."""
        await self._guard.settled()

    def rest(self) -> None:
        """As `Warden`."""
        self._guard.rest()

    def lease_valid(self) -> bool:
        """As `Warden`."""
        return self._guard.lease_valid(boottime_ns())

    def take_lateness_ns(self) -> int:
        """As `Warden`."""
        return self._guard.take_lateness_ns()


class Ballots:
    """A host's part in the register, while it is open."""

    def __init__(
        self,
        arbitration: Arbitration,
        timing: Timing,
        witnesses: Mapping[str, _Cable],
        fencer: Fencer | None,
    ) -> None:
        self.fencer = fencer
        self.arbitration = arbitration
        self.timing = timing
        self.witnesses = witnesses

    def describe(self) -> dict[str, Any]:
        """The grant in force and what would survive, as JSON values; in sync is what the grant calls so."""
        standing, seen = self.arbitration.standing(), self.arbitration.outlook()
        judged = self.arbitration.punctuality.judgement
        smallest_ns = judged.smallest_failover_ns
        fenced = None if self.fencer is None else self.fencer.last
        return {
            "in_sync": self.arbitration.in_sync,
            "grant": None if standing is None else asdict(standing),
            "survives": None if seen is None else _survives(seen),
            "timing": {
                "failover_s": self.timing.failover_ns / NS_PER_S,
                "verdict": judged.verdict.name.lower(),
                "reason": judged.reason,
                "smallest_failover_s": None if smallest_ns is None else smallest_ns / NS_PER_S,
            },
            "fence": None if fenced is None else asdict(fenced),
        }

    def cut(self, *, cut: bool) -> None:
        """Pull the cables to the witnesses, or put them back."""
        for witness in self.witnesses.values():
            witness.cut() if cut else witness.heal()


@asynccontextmanager
async def open_arbitration(host: HostFile, link: LinkConfig, guest: Guest) -> AsyncIterator[Ballots]:
    """Take part for as long as the block is open.

    Leaving the block in order halts the guest first, in order.  Raises `ConfigError`, `BusyError` or
    `BackendError` where that cannot be; in a group, as from any nursery, where it ends while open.
    """
    register = host.register
    if register is None:
        raise ConfigError(f"host {host.name}: its file has no [register]")
    timing = derive(register.failover_ns)
    fence = None if host.fence is None else PowerFence(fence_config(host.fence))
    if register.watchdog is not None:
        _check_device(register.watchdog)
    stays = register.home is None or is_home(
        register.home, link.identity.certificate_pem, link.peer_certificate_pem
    )
    async with AsyncExitStack() as stack:
        blank = any(each.superblock.condition is Condition.BLANK for each in guest.session.targets)
        empty = link.identity.fingerprint if blank else None
        memory = await trio.to_thread.run_sync(_open_memory, register, empty)
        stack.callback(memory.close)
        guard = await stack.enter_async_context(
            keep_guard(watchdog=register.watchdog, watchdog_s=timing.watchdog_s)
        )
        if register.watchdog is not None:
            _check_armed(guard.about)
        witnesses = {
            each.name: await stack.enter_async_context(_open_witness(each, link))
            for each in register.witnesses
        }
        state, promise_ns = decode_host_memory(memory.state)
        arbiter = Arbiter(
            link.identity.fingerprint,
            fingerprint_of(link.peer_certificate_pem),
            state,
            timing,
            witnesses=tuple(witnesses),
            promise_ns=promise_ns,
            first_number=secrets.randbits(62),
            fraction=guest.draw_fraction,
        )
        key = WitnessKey(host.pair_id, host.guest)
        arbitration = Arbitration(
            guest,
            arbiter,
            memory,
            witnesses,
            key,
            _HostWarden(guard),
            host=link.identity.fingerprint,
            now_ns=boottime_ns,
        )
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        nursery.start_soon(_follow_guard, guard)
        await nursery.start(arbitration.run)
        fencer: Fencer | None = None
        if fence is not None:
            fencer = Fencer(arbitration, guest, fence, witnesses, key, boottime_ns)
            nursery.start_soon(fencer.run)
        if not stays:
            nursery.start_soon(take_home, arbitration, guest, register.home_after_ns, boottime_ns)
        yield Ballots(arbitration, timing, witnesses, fencer)
        # An orderly end: the guest's last writes are flushed while its lease is still renewed.
        with trio.CancelScope(shield=True):
            await arbitration.end()


def _check_device(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(f"[register]: watchdog: {path}: {error.strerror}") from error
    if not stat.S_ISCHR(mode):
        raise ConfigError(f"[register]: watchdog: {path}: no device")
    if not os.access(path, os.W_OK):
        raise ConfigError(f"[register]: watchdog: {path}: not ours to write to")


def _check_armed(about: Mapping[str, str]) -> None:
    """Whoever asks for a watchdog relies on it."""
    said = about.get("watchdog", "none")
    if said.startswith("none"):
        raise BackendError(f"[register]: the watchdog cannot be armed{said.removeprefix('none')}")


def _survives(seen: Outlook) -> dict[str, Any]:
    return {
        "redundant": seen.redundant,
        "single": {
            failure.value: {
                "fate": each.fate.value,
                "within_s": each.within_ns / NS_PER_S,
                "lost_bytes": each.lost_bytes,
            }
            for failure, each in seen.single.items()
        },
        "safe_pairs": [[first.value, second.value] for first, second in seen.safe_pairs],
    }


async def _follow_guard(guard: GuardKeeper) -> None:
    await guard.lost.wait()
    raise BackendError(f"the guard is lost, and nothing is served without it: {guard.lost_reason}")


@asynccontextmanager
async def _open_witness(witness: WitnessFile, link: LinkConfig) -> AsyncIterator[_Cable]:
    if witness.etcd:
        tls = None if witness.ca is None else etcd_tls(witness.ca, witness.certificate, witness.key)
        async with open_etcd(EtcdConfig(endpoints=witness.etcd, tls=tls)) as store:
            yield _Cable(store)
    elif witness.store:
        async with open_own_store(witness.store, witness.options) as store:
            yield _Cable(store)
    else:
        async with open_witness(_witness(witness, link)) as client:
            yield _Cable(client)


class _Cable:
    """A witness, behind a cable that a lab can cut: nothing goes there and back meanwhile."""

    def __init__(self, store: WitnessStore) -> None:
        self._store = store
        self._gate = Gate()

    def cut(self) -> None:
        """Pull it out."""
        self._gate.close()

    def heal(self) -> None:
        """Put it back."""
        self._gate.open()

    async def get(self, key: WitnessKey) -> Snapshot:
        """As `WitnessStore.get`."""
        await self._gate.wait_open()
        found = await self._store.get(key)
        await self._gate.wait_open()
        return found

    async def swap(self, key: WitnessKey, version: int, value: bytes) -> Snapshot | Conflict:
        """As `WitnessStore.swap`."""
        await self._gate.wait_open()
        found = await self._store.swap(key, version, value)
        await self._gate.wait_open()
        return found


def _witness(witness: WitnessFile, link: LinkConfig) -> WitnessConfig:
    if witness.address is None or witness.certificate is None:
        raise ConfigError(f"witness {witness.name}: no address")
    return WitnessConfig(
        address=witness.address,
        certificate_pem=read_certificate(witness.certificate),
        identity=link.identity,
        pair_id=link.pair_id,
    )


def operator_of(request: Mapping[str, Any]) -> str:
    """Who decides it: a name that every voter can write down and read back; else `ConfigError`."""
    name = str(request.get("operator", "")).strip()
    if not name.isprintable() or not 0 < len(name.encode()) <= OPERATOR_BYTES_MAX:
        raise ConfigError(
            f"an override needs the name of who decides it: at most {OPERATOR_BYTES_MAX} bytes of UTF-8"
        )
    return name


def arbitration_handlers(ballots: Ballots) -> dict[str, Handler]:
    """What the control socket understands of it."""
    arbitration = ballots.arbitration

    async def move(_: Mapping[str, Any]) -> Answer:
        await arbitration.move()
        return {}

    async def override(request: Mapping[str, Any]) -> Answer:
        await trio.lowlevel.checkpoint()
        name = operator_of(request)
        above = request.get("above", 0)
        if type(above) is not int or not 0 <= above <= TERM_MAX:
            raise ConfigError(f"{above!r} is no term: 0 to {TERM_MAX}")
        insist = request.get("insist") is True
        arbitration.override(name, secrets.token_bytes(FORK_BYTES), above=above, insist=insist)
        return {}

    async def cut(_: Mapping[str, Any]) -> Answer:
        await trio.lowlevel.checkpoint()
        ballots.cut(cut=True)
        return {}

    async def heal(_: Mapping[str, Any]) -> Answer:
        await trio.lowlevel.checkpoint()
        ballots.cut(cut=False)
        return {}

    return {"move": move, "override": override, "cut-witness": cut, "heal-witness": heal}
