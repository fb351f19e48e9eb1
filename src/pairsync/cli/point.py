"""``pairsync lab point`` and ``pairsync host point``: names for what a volume holds at one moment.

The form of these commands is fixed: scripts of others depend on it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from pairsync.errors import ConfigError

from .asking import Hosts, active_of, ask_host, host_of_file, hosts_of_lab

if TYPE_CHECKING:
    from pairsync.node.hostfile import HostFile

__all__ = ["host_point", "lab_point"]

ASK_S = 10.0
"""How long a host may take to answer what it knows by heart."""

MAKE_S = 300.0
"""How long making or dropping a point may take: a copy of all digests, on both hosts."""

_Json = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON.")]
_Place = Annotated[Path, Parameter(help="A lab's directory, or a host's file.")]
_Volume = Annotated[str, Parameter(help="The volume.")]
_Name = Annotated[str, Parameter(help="A name, to be used only once: letters, digits, '.', '_', '-'.")]


def _answers(
    hosts: Sequence[HostFile], volume: str
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """The points by host, and what those say that run and do not know them, as with a disk that fails."""
    found: dict[str, list[dict[str, Any]]] = {}
    unknown: dict[str, str] = {}
    for host in hosts:
        try:
            answer = ask_host(host, {"do": "points", "volume": volume}, seconds=ASK_S)
        except ConfigError as error:
            unknown[host.name] = str(error)
            continue
        if answer is not None:
            found[host.name] = answer["points"]
    if unknown and not found:
        raise ConfigError(next(iter(unknown.values())))
    return found, unknown


def _ask_active(hosts: Sequence[HostFile], request: dict[str, Any]) -> dict[str, Any]:
    host = active_of(hosts, seconds=ASK_S)
    if host is None:
        raise ConfigError("no active host is running here: points are made and dropped on the active one")
    answer = ask_host(host, request, seconds=MAKE_S)
    if answer is None:
        raise ConfigError(f"host {host.name} has gone away")
    return answer


def _line(point: dict[str, Any]) -> str:
    when = datetime.fromtimestamp(point["created_s"], UTC)
    where = {True: "on both hosts", False: "on this host only", None: "on this host"}[point["on_peer"]]
    return f"{point['name']:<20} {when:%Y-%m-%d %H:%M:%S} UTC, {where}, id {point['id']}"


def _commands(hosts_of: Hosts, where: str) -> App:
    point = App(name="point", help="Names for what a volume holds at one moment: make, list, drop.")

    @point.command
    def make(place: _Place, volume: _Volume, name: _Name, /, *, json_: _Json = False) -> int:
        answer = _ask_active(hosts_of(place), {"do": "point-make", "volume": volume, "name": name})
        print(json.dumps(answer["point"]) if json_ else _line(answer["point"]))
        return 0

    @point.command(name="list")
    def list_(place: _Place, volume: _Volume, /, *, json_: _Json = False) -> int:
        found, unknown = _answers(hosts_of(place), volume)
        if not found:
            raise ConfigError("no host is running here")
        if json_:
            print(json.dumps({"hosts": found, **({"unknown": unknown} if unknown else {})}, indent=2))
            return 0
        for host, points in found.items():
            print(f"host {host}:{'' if points else ' no points'}")
            for each in points:
                print(f"  {_line(each)}")
        for host, reason in unknown.items():
            print(f"host {host}: not known: {reason}")
        return 0

    @point.command
    def drop(place: _Place, volume: _Volume, name: _Name, /, *, json_: _Json = False) -> int:
        _ask_active(hosts_of(place), {"do": "point-drop", "volume": volume, "name": name})
        print(json.dumps({"dropped": name}) if json_ else f"{name}: dropped")
        return 0

    make.__doc__ = f"""Remember what a volume holds now: durable, and on both hosts if they are in sync.

    What may have changed since is the NBD meta context pairsync:changed:NAME. {where}
    """
    list_.__doc__ = f"""List the points that each running host has, the oldest first. {where}"""
    drop.__doc__ = f"""Forget a point, on both hosts. {where}"""
    return point


lab_point = _commands(hosts_of_lab, "The first argument is the lab's directory.")
host_point = _commands(host_of_file, "The first argument is the host's file.")
