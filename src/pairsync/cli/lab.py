"""``pairsync lab``: a whole pair on this machine, each host its own process.

The form of these commands is fixed: scripts of others depend on it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from pairsync.errors import ConfigError

from .asking import Watch, ask_socket
from .overlay import lab_overlay
from .point import lab_point
from .progress import Progress, show_progress
from .show import agreed_lines, grown_line, guest_lines, scrub_lines, scrubbed
from .truths import lab_override, lab_truths
from .values import LabDirectory, checked_timeout, parse_size, parse_volumes, show_bytes

__all__ = ["lab"]

lab = App(name="lab", help="A whole pair on this machine, to try, to test and to measure.")
lab.command(lab_overlay)
lab.command(lab_point)
lab.command(lab_truths, name="truths")
lab.command(lab_override, name="override")

_Json = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON.")]
_Host = Annotated[Literal["a", "b"], Parameter(help="The host.")]
_Process = Annotated[Literal["a", "b", "witness"], Parameter(help="The host, or the witness.")]
_NewVolumes = Annotated[
    list[str] | None,
    Parameter(
        negative=(),
        help="NAME=SIZE, such as vda=256M; repeatable. At least one at first; later ones are added.",
    ),
]
_Level = Annotated[
    Literal["sync", "async"] | None,
    Parameter(
        help="When a write is acknowledged: once both hosts have it (sync, by default), or once the active "
        "one has, the other lagging by a bound."
    ),
]
_Network = Annotated[
    Literal["loopback", "namespaces"] | None,
    Parameter(
        help="Where they meet: on loopback (default), or each in a network namespace of its own, with cables "
        "that `cut` pulls for real (as root)."
    ),
]
_Cable = Annotated[Literal["a-b", "a-witness", "b-witness", "all"], Parameter(help="Which cable.")]


@lab.command
def up(
    directory: Annotated[Path, Parameter(help="Where the lab lies; made if it is not there.")],
    /,
    *,
    volume: _NewVolumes = None,
    level: _Level = None,
    single: Annotated[
        bool, Parameter(negative=(), help="One host, no replication (to compare with).")
    ] = False,
    digests: Annotated[
        bool | None, Parameter(help="Keep digests of all blocks (default), or none (to compare with).")
    ] = None,
    witness: Annotated[
        Literal["builtin", "etcd", "none"] | None,
        Parameter(help="The third vote (builtin); none: the active host alone decides, nobody takes over."),
    ] = None,
    failover: Annotated[
        float | None, Parameter(help="Seconds from the end of one host until the other serves (5).")
    ] = None,
    home: Annotated[
        Literal["a", "b", "stays"] | None,
        Parameter(help="Where the guest goes back to once that host is in sync again (stays)."),
    ] = None,
    network: _Network = None,
    json_: Annotated[bool, Parameter(name="--json", negative=(), help="JSON also on a terminal.")] = False,
) -> int:
    """Start both hosts and their witness, and stay in the foreground.

    Prints a JSON line {"event": "ready", "hosts": ...} and then an event a line (as text if standard output
    is a terminal).  SIGINT or SIGTERM ends it in order.  A second `up` on the same DIRECTORY resumes what is
    there.
    """
    import trio

    from pairsync.node.lab import run_lab
    from pairsync.node.labfile import NAMESPACES, open_lab_file
    from pairsync.node.labprepare import prepare
    from pairsync.node.lines import LineWriter
    from pairsync.node.namespaces import obstacle
    from pairsync.node.places import DirectoryLock

    volumes = parse_volumes(volume or [])
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with DirectoryLock(directory):
        what = open_lab_file(
            directory,
            volumes,
            level,
            single=single,
            digests=digests,
            witness=witness,
            failover_s=failover,
            home=home,
            network=network,
        )
        if what.network == NAMESPACES and (reason := obstacle()) is not None:
            raise ConfigError(f"{reason} (--network loopback needs nothing)")
        prepare(directory, what)
        as_text = sys.stdout.isatty() and not json_
        lines = LineWriter(render=_as_text if as_text else None)
        try:
            trio.run(partial(run_lab, directory, what, lines))
        finally:
            lines.close()
    return 0


def _as_text(line: Mapping[str, Any]) -> str:
    if line["event"] == "ready":
        rows = ["ready"]
        for name, host in line["hosts"].items():
            rows.append(f"  host {name}: pid {host['pid']}, link {host['link']}")
            rows += [
                f"    {volume}: {each['uri'] or each['path']}" for volume, each in host["volumes"].items()
            ]
        return "\n".join(rows)
    host = f"{line['host']}: " if "host" in line else ""
    return f"{host}{line.get('text', line['event'])}"


def _ask(
    directory: Path, request: Mapping[str, Any], seconds: float = 60.0, watch: Watch | None = None
) -> dict[str, Any]:
    """Ask the supervisor; `ConfigError` if the lab is not up."""
    from pairsync.node.labfile import LabFile, control_socket_of

    LabFile.load(directory)
    who = f"the lab in {directory}"
    answer = ask_socket(control_socket_of(directory), who, request, seconds=seconds, watch=watch)
    if answer is None:
        raise ConfigError(f"{who} is not up")
    return answer


@lab.command
def status(directory: LabDirectory, /, *, json_: _Json = False) -> int:
    """Show both hosts and their volumes."""
    answer = _ask(directory, {"do": "status"})
    answer.pop("ok", None)
    if json_:
        print(json.dumps(answer, indent=2))
        return 0
    print("in sync" if answer["in_sync"] else "NOT in sync")
    for name, guest in answer.get("guests", {}).items():
        where = "runs NOWHERE" if guest["active"] is None else f"runs on {guest['active']}"
        print("\n".join(agreed_lines(guest, name, where)) or f"guest {name}: {where}")
    for name, each in answer["hosts"].items():
        _print_host(name, each)
    witness = answer.get("witness")
    if witness is not None:
        running = f"pid {witness['pid']}" if witness["running"] else "not running"
        print(f"witness: {'paused' if witness['paused'] else running}")
    for cable in answer.get("cut", ()):
        print(f"cable {cable}: CUT by `lab cut`")
    return 0


def _print_host(name: str, host: Mapping[str, Any]) -> None:
    guest = host["guest"]
    if guest is None:
        print(f"host {name}: {'running, but does not answer' if host['running'] else 'not running'}")
        _print_disks(host)
        return
    peer = "peer connected" if guest["connected"] else "peer away"
    print(f"host {name}: {guest['role']}, pid {host['pid']}, {peer}")
    for line in guest_lines(guest):
        print(line)
    _print_disks(host)


def _print_disks(host: Mapping[str, Any]) -> None:
    for volume, state in host["disks"].items():
        if state != "ok":
            print(f"  {volume:<12} DISK made to {state} by `lab disk`")


@lab.command
def kill(directory: LabDirectory, host: _Process, /) -> int:
    """Kill a host's process, or the witness's (SIGKILL)."""
    _ask(directory, {"do": "kill", "host": host})
    return 0


@lab.command
def start(directory: LabDirectory, host: _Process, /) -> int:
    """Start what was killed; returns when it serves."""
    _ask(directory, {"do": "start", "host": host})
    return 0


@lab.command
def pause(directory: LabDirectory, host: _Process, /) -> int:
    """Stop a host's process for the moment (SIGSTOP): as a machine does that hangs."""
    _ask(directory, {"do": "pause", "host": host})
    return 0


@lab.command
def resume(directory: LabDirectory, host: _Process, /) -> int:
    """Let a paused host go on (SIGCONT)."""
    _ask(directory, {"do": "resume", "host": host})
    return 0


@lab.command
def cut(directory: LabDirectory, cable: _Cable = "a-b", /) -> int:
    """Cut the link of the hosts, or another cable: as if it were pulled."""
    _ask(directory, {"do": "cut", "cable": cable})
    return 0


@lab.command
def heal(directory: LabDirectory, cable: _Cable = "a-b", /) -> int:
    """Mend what `lab cut` has cut: the link of the hosts, or another cable."""
    _ask(directory, {"do": "heal", "cable": cable})
    return 0


@lab.command
def move(
    directory: LabDirectory,
    guest: Annotated[str, Parameter(help="The guest; a lab has one.")] = "lab",
    /,
    *,
    json_: _Json = False,
) -> int:
    """Have the guest run on the other host, as planned: nothing is lost, clients reconnect there."""
    answer = _ask(directory, {"do": "move", "guest": guest})
    answer.pop("ok", None)
    text = f"{guest}: from host {answer['from']} to the other one in {answer['seconds']:.3f} s"
    print(json.dumps(answer) if json_ else text)
    return 0


@lab.command
def disk(
    directory: LabDirectory,
    host: _Host,
    volume: Annotated[str, Parameter(help="The volume whose replica lies on that disk.")],
    what: Annotated[
        Literal["ok", "fail", "hang", "full", "replace"], Parameter(help="What becomes of it, as above.")
    ],
    /,
    *,
    json_: _Json = False,
) -> int:
    """Make the disk of one replica fail, or work again; returns at once.

    - fail: every access ends with an I/O error (EIO), also reads from the cache.
    - hang: no access ends, until the disk is given another state.
    - full: what needs new space ends with ENOSPC; overwriting goes on.
    - ok: it works again, and holds what was written before.
    - replace: its files are removed and an empty disk is put in its place, which works.

    Data and metadata of the replica lie on it. A disk stays as it is when its host is killed and started
    again, which begins without it, and works again with the next `up`; `status` shows it. A standby takes
    itself out, the guest goes on, and both are in sync again some seconds after `ok` or `replace`. Where it
    is the active host's disk, reads are answered by the peer, and on any other failure the guest is active on
    the peer from then on, while that is in sync.
    """
    answer = _ask(directory, {"do": "disk", "host": host, "volume": volume, "disk": what})
    answer.pop("ok", None)
    print(json.dumps(answer) if json_ else f"host {host}, disk of {volume}: {what}")
    return 0


@lab.command
def scrub(
    directory: LabDirectory,
    /,
    *,
    volume: Annotated[list[str] | None, Parameter(negative=(), help="Only these volumes.")] = None,
    repair: Annotated[
        bool, Parameter(negative=(), help="Mend what is wrong on one host from the other.")
    ] = False,
    timeout: Annotated[float, Parameter(help="Seconds.")] = 3600.0,
    json_: _Json = False,
) -> int:
    """Have both hosts read everything and compare it with their digests, and with each other's.

    Runs beside the guest, which comes first, and waits while the other host is not in sync. What is wrong
    is told with its place and the host that is wrong: here (the active one), peer (the standby), both, or
    different (each is what its own digest says). Exit status 0 if nothing is wrong, or everything was
    mended.
    """
    from pairsync.node.labfile import LabFile

    known = LabFile.load(directory).volumes
    results: dict[str, Any] = {}
    for name in volume or list(known):
        request = {"do": "scrub", "volume": name, "repair": repair}
        with show_progress(name, quiet=json_) as show:
            watch = None if show is None else ({"do": "status"}, partial(_told, name, show))
            results[name] = _ask(directory, request, seconds=checked_timeout(timeout), watch=watch)
        results[name].pop("ok", None)
    clean = all(each["findings"] == each["repaired"] for each in results.values())
    print(json.dumps({"clean": clean, "volumes": results}) if json_ else "\n".join(scrub_lines(results)))
    return 0 if clean else 1


def _told(volume: str, show: Progress, status: Mapping[str, Any]) -> None:
    for each in status["hosts"].values():
        scrubbed(each["guest"], volume, show)


@lab.command
def grow(
    directory: LabDirectory,
    volume: Annotated[str, Parameter(help="The volume.")],
    size: Annotated[str, Parameter(help="Its new size, such as 2G; larger than it is.")],
    /,
    *,
    timeout: Annotated[float, Parameter(help="Seconds.")] = 60.0,
    json_: _Json = False,
) -> int:
    """Make a volume larger while it is used; returns when the new size is served.

    On both hosts, if the standby is there; else it follows when it is back. What is added reads as zeroes.
    NBD clients that connect from now on see the new size; those that are connected keep the one that they
    were told, for NBD cannot tell them another. No volume is made smaller.
    """
    request = {"do": "grow", "volume": volume, "size_bytes": parse_size(size)}
    answer = _ask(directory, request, seconds=checked_timeout(timeout))
    answer.pop("ok", None)
    print(json.dumps(answer) if json_ else grown_line(answer))
    return 0


@lab.command
def wait(
    directory: LabDirectory,
    /,
    *,
    in_sync: Annotated[
        bool, Parameter(negative=(), help="Both hosts are in sync, and a witness that is up has its vote.")
    ] = False,
    timeout: Annotated[float, Parameter(help="Seconds.")] = 60.0,
) -> int:
    """Wait until the lab is in a state, such as --in-sync; exit status 1 if it is not reached in time."""
    if not in_sync:
        raise ConfigError("say what to wait for: --in-sync")
    _ask(directory, {"do": "wait"}, seconds=checked_timeout(timeout))
    return 0


@lab.command
def check(directory: LabDirectory, /, *, json_: _Json = False) -> int:
    """Compare the volumes of both hosts byte by byte; the lab must be down.  Exit status 0 only if equal."""
    from pairsync.node.compare import compare_volumes
    from pairsync.node.labfile import HOSTS, LabFile
    from pairsync.node.places import DirectoryLock

    what = LabFile.load(directory)
    if what.single:
        raise ConfigError("this lab has a single host: there is nothing to compare")
    results: dict[str, Any] = {}
    with DirectoryLock(directory):
        for name in what.volumes:
            left, right = (directory / each / f"{name}.img" for each in HOSTS)
            with show_progress(name, quiet=json_) as show:
                found = compare_volumes(left, right, show)
            results[name] = {
                "equal": found.equal,
                "size_bytes": found.size_bytes,
                "first_difference": found.first_difference,
            }
    if json_:
        print(json.dumps({"equal": all(each["equal"] for each in results.values()), "volumes": results}))
    else:
        for name, each in results.items():
            size = show_bytes(each["size_bytes"])
            where = "" if each["equal"] else f", first at byte {each['first_difference']}"
            print(f"{name}: {'equal' if each['equal'] else 'DIFFERENT'} ({size}{where})")
    return 0 if all(each["equal"] for each in results.values()) else 1
