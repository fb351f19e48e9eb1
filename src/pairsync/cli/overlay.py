"""``pairsync lab overlay`` and ``pairsync host overlay``: what a losing side had written on its own.

The form of these commands is fixed: scripts of others depend on it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from pairsync.core.units import BLOCK_BYTES
from pairsync.errors import BackendError, BusyError, ConfigError

from .asking import Hosts, Watch, active_of, ask_host, host_of_file, hosts_of_lab
from .progress import Progress, show_progress
from .values import show_bytes

if TYPE_CHECKING:
    from pairsync.guest.config import VolumeConfig
    from pairsync.node.hostfile import HostFile

__all__ = ["host_overlay", "lab_overlay"]

ASK_S = 10.0
"""How long a host may take to answer what it knows by heart."""

_Json = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON.")]
_Place = Annotated[Path, Parameter(help="A lab's directory, or a host's file.")]
_Image = Annotated[Path, Parameter(help="The image to write.")]
_Id = Annotated[str, Parameter(help="HOST/VOLUME/NUMBER, as `list` shows it.")]


def _volume(host: HostFile, name: str) -> VolumeConfig:
    for volume in host.volumes:
        if volume.name == name:
            return volume
    raise ConfigError(f"host {host.name} has no volume {name!r}")


def _list(hosts: Sequence[HostFile]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """All overlays, and why those of a HOST/VOLUME are not known: its disk fails, for instance."""
    found: list[dict[str, Any]] = []
    unknown: dict[str, str] = {}
    for host in hosts:
        try:
            answer = ask_host(host, {"do": "overlays"}, seconds=ASK_S)
        except ConfigError as error:
            unknown |= {f"{host.name}/{volume.name}": str(error) for volume in host.volumes}
            continue
        for volume in host.volumes:
            where = f"{host.name}/{volume.name}"
            try:
                infos = _stopped(host, volume) if answer is None else _told(answer, volume.name)
            except (BackendError, BusyError) as error:
                unknown[where] = str(error)
                continue
            found += [{**info, "id": f"{where}/{info['id']}", "host": host.name} for info in infos]
    return found, unknown


def _told(answer: Mapping[str, Any], volume: str) -> list[dict[str, Any]]:
    """What a running host says of a volume."""
    unknown: dict[str, str] = answer.get("unknown", {})
    if volume in unknown:
        raise BackendError(unknown[volume])
    found: list[dict[str, Any]] = answer["volumes"].get(volume, [])  # its file may name more than it has
    return found


def _stopped(host: HostFile, volume: VolumeConfig) -> list[dict[str, Any]]:
    """What lies beside a volume of a host that is down."""
    from pairsync.node.overlays import describe_overlay, open_stopped

    with open_stopped(volume, host.pair_id) as stopped:
        return [describe_overlay(info) for info in stopped.overlays.list()]


def _active(hosts: Sequence[HostFile]) -> HostFile:
    """The one on which the guest runs."""
    host = active_of(hosts, seconds=ASK_S)
    if host is not None:
        return host
    raise ConfigError(
        "an overlay is written back through the host that is active, "
        + ("and none is" if len(hosts) > 1 else f"and {hosts[0].name} is not: `host move` makes it so")
    )


def _find(hosts: Sequence[HostFile], overlay_id: str) -> tuple[HostFile, dict[str, Any]]:
    there, unknown = _list(hosts)
    for each in there:
        if each["id"] == overlay_id:
            return next(host for host in hosts if host.name == each["host"]), each
    known = ", ".join(each["id"] for each in there) or "none"
    but = "".join(f"; {where}: {reason}" for where, reason in unknown.items())
    raise ConfigError(f"no overlay {overlay_id!r} here; there is {known}{but}")


def _line(overlay: Mapping[str, Any]) -> str:
    when = datetime.fromtimestamp(overlay["created_s"], UTC)
    state = overlay["state"] if overlay["state"] == "kept" or overlay["whole"] else "undo, not whole"
    generation = overlay["lineage"][0] if overlay["lineage"] else "none"
    return (
        f"{overlay['id']:<16} {state}, {show_bytes(overlay['data_bytes'])} in {overlay['blocks']} blocks, "
        f"{when:%Y-%m-%d %H:%M:%S} UTC, of generation {generation}"
    )


def _export(host: HostFile, volume: str, number: str, target: Path, *, quiet: bool) -> None:
    """Have the host write it, or do it here if that is down.

    One that goes away in the middle of it is about to come back, and is not kept from its disks.
    """
    from pairsync.node.overlays import open_stopped

    what = f"{host.name}/{volume}/{number}"
    if ask_host(host, {"do": "overlays"}, seconds=ASK_S) is None:
        with (
            show_progress(what, quiet=quiet) as show,
            open_stopped(_volume(host, volume), host.pair_id) as stopped,
        ):
            stopped.export(number, target, show or (lambda _done, _total: None))
        return
    request = {"do": "overlay-export", "volume": volume, "id": number, "file": str(target)}
    with show_progress(what, quiet=quiet) as show:
        if ask_host(host, request, seconds=float("inf"), watch=_watch(target, show)) is None:
            raise ConfigError(f"host {host.name} has gone away, and {target} is not written")


def _watch(file: Path, show: Progress | None, total_bytes: int = 0) -> Watch | None:
    """How to learn how far a host is with that file; ``total_bytes`` where it does not know that itself."""
    if show is None:
        return None

    def told(how_far: Mapping[str, Any]) -> None:
        if total := how_far["total"] or total_bytes:
            show(how_far["done"], total)

    return {"do": "overlay-progress", "file": str(file)}, told


def _commands(hosts_of: Hosts, where: str) -> App:
    overlay = App(name="overlay", help="What a resync has overwritten and kept: list, export, undo.")

    @overlay.command(name="list")
    def list_(place: _Place, /, *, json_: _Json = False) -> int:
        found, unknown = _list(hosts_of(place))
        if json_:
            print(json.dumps({"overlays": found, **({"unknown": unknown} if unknown else {})}, indent=2))
        else:
            lines = [_line(each) for each in found]
            lines += [f"{where:<16} not known: {reason}" for where, reason in unknown.items()]
            print("\n".join(lines) or "no overlays")
        return 0

    @overlay.command
    def export(place: _Place, overlay_id: _Id, file: _Image, /, *, json_: _Json = False) -> int:
        host, found = _find(hosts_of(place), overlay_id)
        number, target = overlay_id.rpartition("/")[2], file.absolute()
        _export(host, found["volume"], number, target, quiet=json_)
        done = {"id": overlay_id, "file": str(target), "size_bytes": target.stat().st_size}
        print(json.dumps(done) if json_ else f"{overlay_id}: written to {target}")
        return 0

    @overlay.command
    def undo(place: _Place, overlay_id: _Id, /, *, json_: _Json = False) -> int:
        from pairsync.node.overlays import overlay_path

        hosts = hosts_of(place)
        keeper, found = _find(hosts, overlay_id)
        if found["state"] != "kept":
            raise ConfigError(
                f"{overlay_id} is the way back of a resync that is not complete: see host promote"
            )
        file = overlay_path(_volume(keeper, found["volume"]), overlay_id.rpartition("/")[2])
        request = {"do": "overlay-undo", "volume": found["volume"], "file": str(file)}
        active = _active(hosts)
        total_bytes = found["blocks"] * BLOCK_BYTES
        with show_progress(overlay_id, quiet=json_) as show:
            watch = _watch(file, show, total_bytes)
            answer = ask_host(active, request, seconds=float("inf"), watch=watch)
        if answer is None:
            raise ConfigError(f"host {active.name} has gone away; what it had written back is there")
        done = {"id": overlay_id, "bytes": answer["bytes"]}
        print(json.dumps(done) if json_ else f"{overlay_id}: {show_bytes(answer['bytes'])} written back")
        return 0

    list_.__doc__ = f"""List the overlays, of hosts that run and of hosts that do not. {where}

    kept: what a replica had written on its own before a resync overwrote it. undo: the way back of a resync
    that is not complete.
    """
    export.__doc__ = f"""Write an overlay as a raw image: what its replica held where it had written apart.

    The other blocks are those of that host's replica now. FILE must not exist; it is sparse, and there whole
    or not at all. `qemu-img` and others open it. {where}
    """
    undo.__doc__ = f"""Write an overlay's blocks back as the guest would, through the active host.

    The volume must not be mounted meanwhile. What they overwrite is NOT kept: export the volume first if it
    is of worth. The overlay stays. {where}
    """
    return overlay


lab_overlay = _commands(hosts_of_lab, "The first argument is the lab's directory.")
host_overlay = _commands(host_of_file, "The first argument is the host's file.")
