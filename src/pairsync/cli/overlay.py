"""``pairsync lab overlay``: what the losing side of a resync had written on its own.

The form of these commands is fixed: scripts of others depend on it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from pairsync.errors import ConfigError, PeerLost

from .asking import ask_host
from .values import show_bytes

if TYPE_CHECKING:
    from pairsync.guest.config import VolumeConfig
    from pairsync.node.hostfile import HostFile

__all__ = ["overlay"]

ASK_S = 10.0
"""How long a host may take to answer what it knows by heart."""

LOOK_S = 0.25
"""Between two questions how far an export is."""

overlay = App(name="overlay", help="What a resync has overwritten and kept: list, export, undo.")

_Json = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON.")]
_Id = Annotated[str, Parameter(help="HOST/VOLUME/NUMBER, as `list` shows it.")]

Progress = Callable[[int, int], None]


def _host_file(directory: Path, host: str) -> HostFile:
    from pairsync.node.hostfile import read_host_file

    return read_host_file(directory / host / "host.toml")


def _volume(host: HostFile, name: str) -> VolumeConfig:
    for volume in host.volumes:
        if volume.name == name:
            return volume
    raise ConfigError(f"host {host.name} has no volume {name!r}")


def _list(directory: Path) -> list[dict[str, Any]]:
    from pairsync.node.labfile import HOSTS, LabFile
    from pairsync.node.overlays import describe_overlay, open_stopped

    lab = LabFile.load(directory)
    found: list[dict[str, Any]] = []
    for name in HOSTS[:1] if lab.single else HOSTS:
        host = _host_file(directory, name)
        answer = ask_host(host, {"do": "overlays"}, seconds=ASK_S)
        for volume in host.volumes:
            if answer is not None:
                infos = answer["volumes"][volume.name]
            else:
                with open_stopped(volume, host.pair_id) as stopped:
                    infos = [describe_overlay(info) for info in stopped.overlays.list()]
            found += [{**info, "id": f"{name}/{volume.name}/{info['id']}", "host": name} for info in infos]
    return found


def _active(directory: Path) -> HostFile | None:
    """The host on which the guest runs."""
    from pairsync.node.labfile import HOSTS, LabFile
    from pairsync.node.labstatus import runs

    for name in HOSTS[:1] if LabFile.load(directory).single else HOSTS:
        host = _host_file(directory, name)
        answer = ask_host(host, {"do": "status"}, seconds=ASK_S)
        if answer is not None and runs(answer["guest"]):
            return host
    return None


def _find(directory: Path, overlay_id: str) -> dict[str, Any]:
    there = _list(directory)
    for each in there:
        if each["id"] == overlay_id:
            return each
    known = ", ".join(each["id"] for each in there) or "none"
    raise ConfigError(f"no overlay {overlay_id!r} in this lab; there is {known}")


@overlay.command(name="list")
def list_(directory: Path, /, *, json_: _Json = False) -> int:
    """List the overlays of both hosts, whether they run or not.

    kept: what a replica had written on its own before a resync overwrote it. undo: the way back of a resync
    that is not complete.
    """
    found = _list(directory)
    if json_:
        print(json.dumps({"overlays": found}, indent=2))
        return 0
    if not found:
        print("no overlays")
    for each in found:
        when = datetime.fromtimestamp(each["created_s"], UTC)
        state = each["state"] if each["state"] == "kept" or each["whole"] else "undo, not whole"
        print(
            f"{each['id']:<16} {state}, {show_bytes(each['data_bytes'])} in {each['blocks']} blocks, "
            f"{when:%Y-%m-%d %H:%M:%S} UTC, of generation {each['lineage'][0] if each['lineage'] else 'none'}"
        )
    return 0


@overlay.command
def export(directory: Path, overlay_id: _Id, file: Path, /, *, json_: _Json = False) -> int:
    """Write an overlay as a raw image: the volume as its replica had it, where it had written on its own.

    The other blocks are those of that host's replica now. FILE must not exist; it is sparse, and there whole
    or not at all. `qemu-img` and others open it.
    """
    import trio

    from pairsync.node.overlays import open_stopped

    found = _find(directory, overlay_id)
    number = overlay_id.rpartition("/")[2]
    host, name, target = _host_file(directory, found["host"]), found["volume"], file.absolute()
    show = _progress(overlay_id, quiet=json_)
    request = {"do": "overlay-export", "volume": name, "id": number, "file": str(target)}
    answer = trio.run(_export, host, request, show)
    if answer is None:
        with open_stopped(_volume(host, name), host.pair_id) as stopped:
            stopped.export(number, target, show)
    done = {"id": overlay_id, "file": str(target), "size_bytes": target.stat().st_size}
    print(json.dumps(done) if json_ else f"{overlay_id}: written to {target}")
    return 0


async def _export(host: HostFile, request: Mapping[str, Any], show: Progress) -> dict[str, Any] | None:
    """Have a running host export, and show how far it is; None if it is down."""
    import trio

    from pairsync.node.control import ask

    async def follow() -> None:
        while True:
            await trio.sleep(LOOK_S)
            how_far = await ask(host.control, {"do": "overlay-progress", "file": request["file"]})
            if how_far["total"]:
                show(how_far["done"], how_far["total"])

    answer: dict[str, Any] | None = None
    failure: ConfigError | PeerLost | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        try:
            answer = await ask(host.control, request)
        except (ConfigError, PeerLost) as error:
            failure = error
        nursery.cancel_scope.cancel()
    if isinstance(failure, ConfigError):
        raise failure
    return answer


@overlay.command
def undo(directory: Path, overlay_id: _Id, /, *, json_: _Json = False) -> int:
    """Write an overlay's blocks back through the active host, as its guest would; it must run.

    The volume must not be mounted meanwhile. What they overwrite is NOT kept: export the volume first if it
    is of worth. The overlay stays.
    """
    from pairsync.node.overlays import overlay_path

    found = _find(directory, overlay_id)
    if found["state"] != "kept":
        raise ConfigError(f"{overlay_id} is the way back of a resync that is not complete: see host promote")
    keeper, active = _host_file(directory, found["host"]), _active(directory)
    file = overlay_path(_volume(keeper, found["volume"]), overlay_id.rpartition("/")[2])
    request = {"do": "overlay-undo", "volume": found["volume"], "file": str(file)}
    answer = None if active is None else ask_host(active, request, seconds=float("inf"))
    if answer is None:
        raise ConfigError("no host is active: an overlay is written back through the one that is")
    done = {"id": overlay_id, "bytes": answer["bytes"]}
    print(json.dumps(done) if json_ else f"{overlay_id}: {show_bytes(answer['bytes'])} written back")
    return 0


def _progress(what: str, *, quiet: bool) -> Progress:
    """Percentages on a terminal's standard error."""
    last = -1

    def show(done: int, total: int) -> None:
        nonlocal last
        percent = 100 * done // max(total, 1)
        if percent != last and not quiet and sys.stderr.isatty():
            last = percent
            sys.stderr.write(f"\r{what}: {percent} %" + ("\n" if done >= total else ""))
            sys.stderr.flush()

    return show
