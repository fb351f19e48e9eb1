"""Asking a host process, from a command."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pairsync.errors import ConfigError, PeerLost

if TYPE_CHECKING:
    from pairsync.node.hostfile import HostFile

__all__ = ["ask_host", "ask_running", "ask_socket"]


def ask_host(host: HostFile, request: Mapping[str, Any], *, seconds: float) -> dict[str, Any] | None:
    """The host's answer; None if it is down.  `ConfigError` with its error, or if it does not answer."""
    return ask_socket(host.control, f"host {host.name}", request, seconds=seconds)


def ask_socket(
    socket: Path, who: str, request: Mapping[str, Any], *, seconds: float
) -> dict[str, Any] | None:
    """Like `ask_host`, of whoever listens there."""
    import trio

    from pairsync.node.control import ask

    async def main() -> dict[str, Any] | None:
        with trio.move_on_after(seconds):
            try:
                return await ask(socket, request)
            except PeerLost:
                return None
        raise ConfigError(f"{who} did not answer within {seconds:g} s")

    return trio.run(main)


def ask_running(file: Path, request: Mapping[str, Any], *, seconds: float) -> tuple[HostFile, dict[str, Any]]:
    """The host of ``file``, and its answer; `ConfigError` also if it is down."""
    from pairsync.node.hostfile import read_host_file

    host = read_host_file(file)
    answer = ask_host(host, request, seconds=seconds)
    if answer is None:
        raise ConfigError(f"host {host.name} is not running")
    return host, answer
