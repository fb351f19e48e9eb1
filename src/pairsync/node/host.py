"""One host process: a guest, its NBD front door, its control socket; until it is told to stop.

SIGINT and SIGTERM end it in order: clients first, then the guest (flush, exact dirty map), then the sockets.
A second signal, or the end of standard input where the parent asked for that, does not wait for disks.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import trio

from pairsync.core.events import Event
from pairsync.core.timing import derive
from pairsync.core.units import BLOCK_BYTES
from pairsync.errors import ConfigError
from pairsync.guest.config import GuestConfig
from pairsync.guest.disks import Opener
from pairsync.guest.door import Door
from pairsync.guest.guest import Guest, open_guest
from pairsync.guest.replica import open_replica
from pairsync.io.config import LinkConfig, LinkTimings
from pairsync.io.keys import host_subject, open_identity, read_certificate
from pairsync.io.network import describe_address
from pairsync.nbd.export import Export
from pairsync.nbd.listen import NbdListener, open_tcp_listeners, open_unix_listener
from pairsync.nbd.negotiation import TlsMode
from pairsync.nbd.server import serve_nbd

from . import ending
from .arbitrate import Ballots, arbitration_handlers, open_arbitration
from .control import Answer, Handler, serve_control
from .hostfile import HostFile, LinkFile, NbdFile
from .memory import held, trim_memory
from .overlays import overlay_handlers
from .points import point_handlers
from .truths import truth_handlers

__all__ = ["More", "event_line", "guest_config", "no_more", "run_host", "status_of"]

More: TypeAlias = Callable[[Guest], Mapping[str, Handler]]
"""Further requests that a host's control socket understands, for a guest that has been opened."""


def event_line(event: Event, **more: Any) -> dict[str, Any]:
    """An event as a JSON object: its name, its fields, one sentence, and the monotonic time."""
    fields = {key: value for key, value in asdict(event).items() if key != "kind"}
    return {"event": event.kind, **more, **fields, "text": event.describe()}


def status_of(guest: Guest) -> dict[str, Any]:
    """A guest's statistics as JSON values."""
    status = asdict(guest.statistics())
    if status["link"] is not None:
        status["link"]["refused"] = dict(status["link"]["refused"])
    return status


def _link_config(host: HostFile, link: LinkFile) -> LinkConfig:
    if not link.peer_certificate.exists():
        raise ConfigError(
            f"{link.peer_certificate} is missing: copy identity/host.crt of the other host there"
        )
    return LinkConfig(
        identity=open_identity(host.identity, host_subject(host.name)),
        peer_certificate_pem=read_certificate(link.peer_certificate),
        pair_id=host.pair_id,
        listen=link.listen,
        paths=link.paths,
        timings=_link_timings(host, link),
    )


def _link_timings(host: HostFile, link: LinkFile) -> LinkTimings:
    """As stated; where the owner is agreed on, no slower than a peer is given up in time."""
    if host.register is None:
        return link.timings
    timing = derive(host.register.failover_ns)
    return replace(
        link.timings,
        heartbeat_ns=min(link.timings.heartbeat_ns, timing.heartbeat_ns),
        silence_ns=min(link.timings.silence_ns, timing.silence_ns),
        backoff_limit_ns=min(link.timings.backoff_limit_ns, timing.failover_ns // 5),
    )


def guest_config(host: HostFile) -> GuestConfig:
    """What a host's file says of its guest; makes the host's identity on first use.

    Raises `ConfigError` if the peer's certificate cannot be read.
    """
    link = None if host.link is None else _link_config(host, host.link)
    return GuestConfig(host.guest, host.pair_id, host.role, host.volumes, link, host.term)


def _tls_context(directory: Path) -> ssl.SSLContext:
    """Server certificate, and clients that hold one of ``ca-cert.pem``: what libnbd and QEMU expect."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(directory / "server-cert.pem", directory / "server-key.pem")
        context.load_verify_locations(directory / "ca-cert.pem")
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{directory}: {error}") from error
    return context


LOOK_S = 0.05
"""Between two looks whether a grant calls both hosts in sync."""

SCRUB_FOUND_MAX = 100
"""Findings of a scrub that an answer names one by one; the events name ten times as many."""


def _handlers(guest: Guest, votes: Ballots | None) -> dict[str, Handler]:
    """What the control socket understands."""

    async def status(_: Mapping[str, Any]) -> Answer:
        await trio.lowlevel.checkpoint()
        agreed = {} if votes is None else votes.describe()
        return {"guest": {**status_of(guest), **agreed}, "process": _process_status()}

    async def wait(_: Mapping[str, Any]) -> Answer:
        await guest.wait_in_sync()
        while True:
            if votes is None or votes.arbitration.in_sync:
                return {"in_sync": True}
            await trio.sleep(LOOK_S)

    async def cut(_: Mapping[str, Any]) -> Answer:
        await trio.lowlevel.checkpoint()
        _link_of(guest).cut()
        return {}

    async def heal(_: Mapping[str, Any]) -> Answer:
        await trio.lowlevel.checkpoint()
        _link_of(guest).heal()
        return {}

    async def scrub(request: Mapping[str, Any]) -> Answer:
        volume = guest.volume(str(request.get("volume")))
        report = await volume.scrub(repair=request.get("repair") is True)
        found = [
            {"block": each.block, "offset": each.block * BLOCK_BYTES, "fault": each.fault.value}
            for each in (report.found or [])[:SCRUB_FOUND_MAX]
        ]
        return {
            "bytes": report.total_bytes,
            "seconds": round(report.seconds(guest.now_ns()), 3),
            "findings": report.findings,
            "repaired": report.repaired,
            "found": found,
        }

    async def grow(request: Mapping[str, Any]) -> Answer:
        volume = guest.volume(str(request.get("volume")))
        size_bytes = request.get("size_bytes")
        if type(size_bytes) is not int:
            raise ConfigError(f"{size_bytes!r} is not a size in bytes")
        before = volume.size_bytes
        await volume.grow(size_bytes)
        return {"volume": volume.name, "size_bytes": volume.size_bytes, "before_bytes": before}

    agreed = {} if votes is None else arbitration_handlers(votes)
    link = {"cut": cut, "heal": heal}
    return {"status": status, "wait-in-sync": wait, **link, "scrub": scrub, "grow": grow, **agreed}


def _process_status() -> dict[str, int]:
    """What this process holds: where something leaks, it shows here first."""
    return {"tasks": trio.lowlevel.current_statistics().tasks_living, **held()}


def _link_of(guest: Guest) -> Any:
    if guest.link is None:
        raise ConfigError(f"guest {guest.name} has no peer")
    return guest.link


def no_more(guest: Guest) -> Mapping[str, Handler]:
    """No further requests."""
    del guest
    return {}


async def run_host(
    host: HostFile,
    tell: Callable[[dict[str, Any]], None],
    *,
    follow_stdin: bool = False,
    cut: bool = False,
    opener: Opener = open_replica,
    more: More = no_more,
) -> None:
    """Run until a signal; ``tell`` hears ``ready`` and then every event.

    ``follow_stdin``: end, without waiting for disks, when standard input ends (the parent is gone).  ``cut``:
    the link is cut from the first moment, until the control socket is told to heal it.  ``opener`` replaces
    disks, and ``more`` adds to what the control socket understands.
    Raises what `open_guest` raises, and `BackendError` or `ConfigError` where a socket cannot be opened.
    """
    config = guest_config(host)
    tls = None if host.nbd.tls is None else _tls_context(host.nbd.tls)
    async with trio.open_nursery() as outer:
        if follow_stdin:
            outer.start_soon(ending.follow_stdin, outer.cancel_scope)
        async with (
            open_guest(config, opener=opener) as guest,
            _register_of(host, config, guest) as votes,
            trio.open_nursery() as nursery,
        ):
            if cut:
                _link_of(guest).cut()
            subscription = guest.subscribe()
            handlers = {**_handlers(guest, votes), **overlay_handlers(guest), **point_handlers(guest)}
            handlers |= truth_handlers(guest, votes)
            await nursery.start(serve_control, host.control, {**handlers, **more(guest)})
            doors = await _open_doors(nursery, guest, host.nbd, tls)
            await nursery.start(ending.await_signal, nursery.cancel_scope)
            nursery.start_soon(trim_memory)
            tell(_ready(host, guest, doors))
            with subscription:
                async for event in subscription:
                    tell(event_line(event, host=host.name, monotonic_ns=time.monotonic_ns()))
        outer.cancel_scope.cancel()


@asynccontextmanager
async def _register_of(host: HostFile, config: GuestConfig, guest: Guest) -> AsyncIterator[Ballots | None]:
    """Take part in agreeing on the owner, where that is agreed on."""
    if host.register is None or config.link is None:
        yield None
        return
    async with open_arbitration(host, config.link, guest) as ballots:
        yield ballots


async def _open_doors(
    nursery: trio.Nursery, guest: Guest, nbd: NbdFile, tls: ssl.SSLContext | None
) -> list[NbdListener]:
    """Serve NBD where the file says; TLS guards TCP, and a Unix socket is its owner's alone."""
    exports: dict[str, Export] = {name: Door(guest, name) for name in guest.volumes}
    default = next(iter(exports)) if len(exports) == 1 else None
    doors: list[NbdListener] = []
    if nbd.socket is not None:
        listener = open_unix_listener(nbd.socket)
        await nursery.start(partial(serve_nbd, [listener], exports, default_export=default))
        doors.append(listener)
    if nbd.listen is not None:
        listeners = await open_tcp_listeners(*nbd.listen)
        mode = TlsMode.OFF if tls is None else TlsMode.REQUIRE
        serve = partial(serve_nbd, listeners, exports, tls=tls, tls_mode=mode, default_export=default)
        await nursery.start(serve)
        doors.extend(listeners)
    return doors


def _ready(host: HostFile, guest: Guest, doors: list[NbdListener]) -> dict[str, Any]:
    addresses = guest.link.addresses if guest.link is not None else ()
    return {
        "event": "ready",
        "host": host.name,
        "link": describe_address(addresses[0]) if addresses else None,
        "nbd": [door.address for door in doors],
        "ill": dict(guest.ailments),
    }
