"""The command line: what it understands, and how its errors look.

Exit status: 0 well, 1 it could not be done (one line on standard error says why), 2 the command was wrong.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from pairsync.errors import PairsyncError

from .asking import ask_running
from .lab import lab
from .point import host_point
from .promote import host_promote
from .register import host_move, host_override
from .truths import host_concede, host_truths
from .witness import witness

__all__ = ["app", "run"]

ASK_S = 10.0
"""How long a host may take to say how it is."""

GROW_S = 60.0
"""How long a growth may take, which waits for the peer's answer or for its loss."""

app = App(
    name="pairsync",
    help="A disk that lives on two hosts at once.",
    version=lambda: version("pairsync"),
    version_flags=["--version"],
)
app.command(lab)
app.command(witness)

host = App(name="host", help="One host of a pair, in the foreground.")
app.command(host)


host.command(host_promote, name="promote")
host.command(host_point)
host.command(host_move, name="move")
host.command(host_override, name="override")
host.command(host_truths, name="truths")
host.command(host_concede, name="concede")


@host.command(name="init")
def host_init(
    directory: Path,
    /,
    *,
    volume: Annotated[
        list[str] | None,
        Parameter(negative=(), help="NAME=SIZE for a new file, NAME=/dev/... for what exists; repeatable."),
    ] = None,
    pair_id: Annotated[str | None, Parameter(help="The pair's id, as the first host's init said it.")] = None,
    peer: Annotated[
        list[str] | None,
        Parameter(negative=(), help="Address of the other host, ADDRESS[:PORT]; one for each network path."),
    ] = None,
    listen: Annotated[str, Parameter(help="Where to listen for it, ADDRESS:PORT.")] = "0.0.0.0:10888",
    witness: Annotated[
        str | None,
        Parameter(help="Address of the witness, ADDRESS[:PORT]; without one nobody takes over by itself."),
    ] = None,
    failover: Annotated[
        float, Parameter(help="Seconds from the end of one host until the other one serves.")
    ] = 5.0,
    name: Annotated[str | None, Parameter(help="For people and logs; by default the host's name.")] = None,
    overwrite: Annotated[
        bool, Parameter(negative=(), help="Standby only: the existing volumes hold nothing of worth.")
    ] = False,
) -> int:
    """Make a host's key, certificate, volumes and host.toml in DIRECTORY, and say what to do next.

    The first host makes up the pair's id and is the active one at first.  The second is made with --pair-id
    and the same volumes, and is its standby.
    """
    import socket

    from pairsync.node.hostfile import parse_address
    from pairsync.node.hostinit import LINK_PORT, HostPlan, init_host
    from pairsync.node.witnessdir import WITNESS_PORT

    from .values import parse_places

    plan = HostPlan(
        volumes=parse_places(volume or []),
        name=name or socket.gethostname(),
        pair_id=pair_id,
        peers=[parse_address(each, LINK_PORT) for each in peer or []],
        listen=parse_address(listen),
        overwrite=overwrite,
        witness=None if witness is None else parse_address(witness, WITNESS_PORT),
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
def host_status(
    file: Path,
    /,
    *,
    json_: Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON.")] = False,
) -> int:
    """Show what the running host of FILE (host.toml) says; exit status 0 only if it is in sync.

    Parameters
    ----------
    file
        The host's file.
    """
    import json

    from .show import guest_lines

    what, answer = ask_running(file, {"do": "status"}, seconds=ASK_S)
    guest = answer["guest"]
    if json_:
        print(json.dumps(guest, indent=2))
    else:
        print("in sync" if guest["in_sync"] else "NOT in sync")
        print(f"host {what.name}: {guest['role']}, {'peer connected' if guest['connected'] else 'peer away'}")
        for line in guest_lines(guest):
            print(line)
    return 0 if guest["in_sync"] else 1


@host.command(name="grow")
def host_grow(
    file: Path,
    volume: Annotated[str, Parameter(help="The volume.")],
    size: Annotated[str, Parameter(help="Its new size, such as 2G; larger than it is.")],
    /,
    *,
    timeout: Annotated[float, Parameter(help="Seconds.")] = GROW_S,
    json_: Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON.")] = False,
) -> int:
    """Make a volume of the active host of FILE (host.toml) larger while it is used, on both hosts.

    A file is extended; of a block device the host uses more, after it was enlarged on both hosts. What is
    added reads as zeroes. Clients that connect from now on see the new size. No volume is made smaller.
    """
    import json

    from .show import grown_line
    from .values import parse_size

    request = {"do": "grow", "volume": volume, "size_bytes": parse_size(size)}
    _, answer = ask_running(file, request, seconds=timeout)
    answer.pop("ok", None)
    print(json.dumps(answer) if json_ else grown_line(answer))
    return 0


@app.command
def demo(
    *,
    directory: Annotated[
        Path | None, Parameter(help="Where to make its own directory; /tmp or $TMPDIR by default.")
    ] = None,
    keep: Annotated[
        bool, Parameter(negative=(), help="Leave what was made, to look at and to play on.")
    ] = False,
) -> int:
    """Show the main job on real input: a disk on two hosts, one of them killed and brought back.

    Takes well under a minute, 600 MiB of room, no root; cleans up behind itself.  Exit status 0 only if
    everything was as it must be.
    """
    from pairsync.node.demo import run_demo

    return run_demo(directory, keep=keep)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """One line for what a person can do something about; a traceback only for our own bugs."""
    status = 0  # what is raised within ``except*`` would come out in a group
    try:
        yield
    except* PairsyncError as group:
        for line in sorted({str(error) for error in _leaves(group)}):
            print(f"pairsync: {line}", file=sys.stderr)
        status = 1
    except* KeyboardInterrupt:
        status = status or 130
    except* BrokenPipeError:  # whoever read what is printed has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = status or 141
    if status:
        raise SystemExit(status)


def _leaves(group: BaseExceptionGroup[PairsyncError]) -> Iterator[PairsyncError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def run() -> None:
    """Parse the command line and run the command."""
    with _plain_errors():
        result = app(sys.argv[1:], result_action="return_value")
    sys.exit(result if isinstance(result, int) else 0)
