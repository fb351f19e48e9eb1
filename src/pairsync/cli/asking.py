"""Asking a host process, from a command."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pairsync.errors import ConfigError, PeerLost

if TYPE_CHECKING:
    from pairsync.node.hostfile import HostFile

__all__ = [
    "Hosts",
    "Watch",
    "active_of",
    "ask_host",
    "ask_running",
    "ask_socket",
    "ask_when_running",
    "host_of_file",
    "hosts_of_lab",
]

LOOK_S = 0.25
"""Between two questions how far something is."""

Hosts: TypeAlias = Callable[[Path], Sequence["HostFile"]]
"""The hosts of a place: of a lab's directory, or of a host's own file."""

Watch: TypeAlias = tuple[Mapping[str, Any], Callable[[Mapping[str, Any]], None]]
"""What to ask again and again until the answer is there, and who is shown what comes back."""


def hosts_of_lab(directory: Path) -> Sequence[HostFile]:
    """Both hosts of a lab, or its only one; `ConfigError` if there is no lab."""
    from pairsync.node.hostfile import read_host_file
    from pairsync.node.labfile import HOSTS, LabFile

    names = HOSTS[:1] if LabFile.load(directory).single else HOSTS
    return [read_host_file(directory / name / "host.toml") for name in names]


def host_of_file(file: Path) -> Sequence[HostFile]:
    """The host that a ``host.toml`` describes."""
    from pairsync.node.hostfile import read_host_file

    return [read_host_file(file)]


def ask_host(
    host: HostFile, request: Mapping[str, Any], *, seconds: float, watch: Watch | None = None
) -> dict[str, Any] | None:
    """The host's answer; None if it is down.  `ConfigError` with its error, or if it does not answer."""
    return ask_socket(host.control, f"host {host.name}", request, seconds=seconds, watch=watch)


def active_of(hosts: Sequence[HostFile], *, seconds: float) -> HostFile | None:
    """The one of them on which the guest runs; None if there is none.

    One that does not answer keeps nobody from the other; `ConfigError` if that is not active either.
    """
    from pairsync.node.labstatus import runs

    silent: ConfigError | None = None
    for host in hosts:
        try:
            answer = ask_host(host, {"do": "status"}, seconds=seconds)
        except ConfigError as error:
            silent = silent or error
            continue
        if answer is not None and runs(answer["guest"]):
            return host
    if silent is not None:
        raise silent
    return None


def ask_socket(
    socket: Path, who: str, request: Mapping[str, Any], *, seconds: float, watch: Watch | None = None
) -> dict[str, Any] | None:
    """Like `ask_host`, of whoever listens there."""
    import trio

    from pairsync.node.control import ask

    async def look(question: Mapping[str, Any], show: Callable[[Mapping[str, Any]], None]) -> None:
        while True:
            await trio.sleep(LOOK_S)
            try:
                show(await ask(socket, question))
            except (ConfigError, PeerLost):  # the answer itself says what is wrong
                return

    async def watched() -> dict[str, Any] | None:
        answer: dict[str, Any] | None = None
        failure: ConfigError | None = None
        async with trio.open_nursery() as nursery:
            if watch is not None:
                nursery.start_soon(look, *watch)
            try:
                answer = await ask(socket, request)
            except PeerLost:
                pass
            except ConfigError as error:  # raised here, it would come out in a group
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return answer

    async def main() -> dict[str, Any] | None:
        with trio.move_on_after(seconds):
            return await watched()
        raise ConfigError(f"{who} did not answer within {seconds:g} s")

    return trio.run(main)


def ask_running(
    file: Path, request: Mapping[str, Any], *, seconds: float, watch: Watch | None = None
) -> tuple[HostFile, dict[str, Any]]:
    """The host of ``file``, and its answer; `ConfigError` also if it is down."""
    (host,) = host_of_file(file)
    answer = ask_host(host, request, seconds=seconds, watch=watch)
    if answer is None:
        raise ConfigError(f"host {host.name} is not running")
    return host, answer


def ask_when_running(file: Path, request: Mapping[str, Any], *, seconds: float) -> dict[str, Any]:
    """The answer of the host of ``file``, which may still be starting, or be started anew meanwhile."""
    (host,) = host_of_file(file)
    ends_s = time.monotonic() + seconds
    while True:
        answer = ask_host(host, request, seconds=max(round(ends_s - time.monotonic(), 1), LOOK_S))
        if answer is not None:
            return answer
        if ends_s - time.monotonic() < LOOK_S:
            raise ConfigError(f"host {host.name} is not running")
        time.sleep(LOOK_S)
