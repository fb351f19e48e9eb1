"""``pairsync host``: one host of a real pair."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from pairsync.errors import ConfigError

from .asking import ask_running, ask_when_running, host_of_file
from .overlay import host_overlay
from .point import host_point
from .progress import Progress, show_progress
from .promote import host_promote
from .register import host_move, host_override
from .show import grown_line, host_lines, scrub_lines, scrubbed
from .truths import host_concede, host_truths
from .values import checked_timeout, parse_places, parse_size

__all__ = ["host"]

ASK_S = 10.0
"""How long a host may take to say how it is."""

GROW_S = 60.0
"""How long a growth may take, which waits for the peer's answer or for its loss."""

SCRUB_S = 86400.0
"""How long a scrub of a volume may take: a day, for the guest comes first."""

_Json = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON.")]

host = App(name="host", help="One host of a pair, in the foreground.")
host.command(host_promote, name="promote")
host.command(host_overlay)
host.command(host_point)
host.command(host_move, name="move")
host.command(host_override, name="override")
host.command(host_truths, name="truths")
host.command(host_concede, name="concede")


@host.command(name="init")
def host_init(
    directory: Annotated[Path, Parameter(help="Where to make them; it holds no host yet.")],
    /,
    *,
    volume: Annotated[
        list[str] | None,
        Parameter(negative=(), help="NAME=SIZE for a new file, NAME=/dev/... for what exists; repeatable."),
    ] = None,
    pair: Annotated[str | None, Parameter(help="The pair's id, as the first host's init said it.")] = None,
    peer: Annotated[
        list[str] | None,
        Parameter(negative=(), help="Address of the other host, ADDRESS[:PORT]; one for each network path."),
    ] = None,
    listen: Annotated[str, Parameter(help="Where to listen for it, ADDRESS:PORT.")] = "0.0.0.0:10888",
    witness: Annotated[
        list[str] | None,
        Parameter(
            negative=(),
            help="Address of the witness, ADDRESS[:PORT]; once more for an alternate one; without any nobody "
            "takes over by itself.",
        ),
    ] = None,
    failover: Annotated[
        float, Parameter(help="Seconds from the end of one host until the other one serves.")
    ] = 5.0,
    name: Annotated[
        str | None, Parameter(help="For people, logs and home; by default the machine's.")
    ] = None,
    overwrite: Annotated[
        bool, Parameter(negative=(), help="Standby only: the existing volumes hold nothing of worth.")
    ] = False,
) -> int:
    """Make a host's key, certificate, volumes and host.toml in DIRECTORY, and say what to do next.

    The first host makes up the pair's id and is the active one at first.  The second is made with --pair
    and the same volumes, and is its standby; so is one that takes the place of a host that is lost.
    """
    import socket

    from pairsync.node.hostfile import parse_address
    from pairsync.node.hostinit import LINK_PORT, HostPlan, init_host
    from pairsync.node.witnessdir import WITNESS_PORT

    plan = HostPlan(
        volumes=parse_places(volume or []),
        name=name or socket.gethostname(),
        pair_id=pair,
        peers=[parse_address(each, LINK_PORT) for each in peer or []],
        listen=parse_address(listen),
        overwrite=overwrite,
        witnesses=[parse_address(each, WITNESS_PORT) for each in witness or []],
        failover_s=failover,
    )
    for line in init_host(directory, plan):
        print(line)
    return 0


@host.command(name="run")
def host_run(file: Path, /) -> int:
    """Run the host that FILE (host.toml) describes, in the foreground, until SIGINT or SIGTERM.

    Events go to standard output as JSON lines, the log to standard error.

    Parameters
    ----------
    file
        The host's file, as `pairsync host init` makes it.
    """
    from pairsync.node.hostmain import run_host_file

    return run_host_file(file)


@host.command(name="status")
def host_status(file: Path, /, *, json_: _Json = False) -> int:
    """Show what the running host of FILE (host.toml) says; exit status 0 only if it is in sync.

    Parameters
    ----------
    file
        The host's file.
    """
    what, answer = ask_running(file, {"do": "status"}, seconds=ASK_S)
    guest = answer["guest"]
    if json_:
        print(json.dumps(guest, indent=2))
    else:
        print("\n".join(host_lines(guest, what.name)))
    return 0 if guest["in_sync"] else 1


@host.command(name="wait")
def host_wait(
    file: Path,
    /,
    *,
    in_sync: Annotated[bool, Parameter(negative=(), help="Wait until both hosts are in sync.")] = False,
    timeout: Annotated[float, Parameter(help="Seconds.")] = 60.0,
) -> int:
    """Wait until the host of FILE (host.toml) is in a state; exit status 1 if it is not reached in time.

    The host may still be starting.

    Parameters
    ----------
    file
        The host's file.
    """
    if not in_sync:
        raise ConfigError("say what to wait for: --in-sync")
    ask_when_running(file, {"do": "wait-in-sync"}, seconds=checked_timeout(timeout))
    return 0


def _told(volume: str, show: Progress, answer: Mapping[str, Any]) -> None:
    scrubbed(answer["guest"], volume, show)


@host.command(name="scrub")
def host_scrub(
    file: Path,
    /,
    *,
    volume: Annotated[list[str] | None, Parameter(negative=(), help="Only these volumes.")] = None,
    repair: Annotated[
        bool, Parameter(negative=(), help="Mend what is wrong on one host from the other.")
    ] = False,
    timeout: Annotated[float, Parameter(help="Seconds for each volume.")] = SCRUB_S,
    json_: _Json = False,
) -> int:
    """Have both hosts read everything and compare it with their digests, and with each other's.

    To be called on the active host. Runs beside the guest, which comes first, and waits while the other
    host is not in sync. What is wrong is told with its place and whose it is: here, peer, both, or
    different (each is what its own digest says). Exit status 0 if nothing is wrong, or everything was
    mended.

    Parameters
    ----------
    file
        The host's file.
    """
    (what,) = host_of_file(file)
    results: dict[str, Any] = {}
    for name in volume or [each.name for each in what.volumes]:
        request = {"do": "scrub", "volume": name, "repair": repair}
        with show_progress(name, quiet=json_) as show:
            watch = None if show is None else ({"do": "status"}, partial(_told, name, show))
            _, results[name] = ask_running(file, request, seconds=checked_timeout(timeout), watch=watch)
        results[name].pop("ok", None)
    clean = all(each["findings"] == each["repaired"] for each in results.values())
    print(json.dumps({"clean": clean, "volumes": results}) if json_ else "\n".join(scrub_lines(results)))
    return 0 if clean else 1


@host.command(name="grow")
def host_grow(
    file: Annotated[Path, Parameter(help="The host's file.")],
    volume: Annotated[str, Parameter(help="The volume.")],
    size: Annotated[str, Parameter(help="Its new size, such as 2G; larger than it is.")],
    /,
    *,
    timeout: Annotated[float, Parameter(help="Seconds.")] = GROW_S,
    json_: _Json = False,
) -> int:
    """Make a volume of the active host of FILE (host.toml) larger while it is used, on both hosts.

    A file is extended; of a block device the host uses more, after it was enlarged on both hosts. What is
    added reads as zeroes. Clients that connect from now on see the new size. No volume is made smaller.
    """
    request = {"do": "grow", "volume": volume, "size_bytes": parse_size(size)}
    _, answer = ask_running(file, request, seconds=checked_timeout(timeout))
    answer.pop("ok", None)
    print(json.dumps(answer) if json_ else grown_line(answer))
    return 0
