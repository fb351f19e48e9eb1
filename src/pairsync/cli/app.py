"""The command line: what it understands, and how its errors look.

Exit status: 0 well, 1 it could not be done (one line on standard error says why), 2 the command was wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from pairsync.errors import PairsyncError

from .lab import lab

__all__ = ["app", "run"]

app = App(
    name="pairsync",
    help="A disk that lives on two hosts at once.",
    version=lambda: version("pairsync"),
    version_flags=["--version"],
)
app.command(lab)

host = App(name="host", help="One host of a pair, in the foreground.")
app.command(host)


@host.command(name="run")
def host_run(file: Path, /) -> int:
    """Run the host that FILE (host.toml) describes, until SIGINT or SIGTERM.

    Parameters
    ----------
    file
        The host's file; `pairsync lab up` writes one for each of its hosts, to be taken as examples.
    """
    from pairsync.node.hostmain import run_host_file

    return run_host_file(file)


@host.command(name="init")
def host_init(
    directory: Path,
    /,
    *,
    volume: Annotated[list[str] | None, Parameter(negative=(), help="NAME=SIZE, such as vda=20G.")] = None,
    pair_id: Annotated[str | None, Parameter(help="The pair's id, from the first host.")] = None,
) -> int:
    """Make a host's key, certificate and volumes in DIRECTORY, and say what the other host needs.

    The first host makes up the pair's id; give it to the second one with --pair-id.
    """
    from pairsync.node.hostinit import init_host

    from .values import parse_volumes

    for line in init_host(directory, parse_volumes(volume or []), pair_id):
        print(line)
    return 0


@app.command
def demo(*, directory: Path | None = None, keep: bool = False) -> int:
    """Show the main job on real input: a disk on two hosts, one of them killed and brought back.

    Parameters
    ----------
    directory
        Where to work; a temporary directory by default.
    keep
        Leave the directory behind.
    """
    from pairsync.node.demo import run_demo

    return run_demo(directory, keep=keep)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """One line for what a person can do something about; a traceback only for our own bugs."""
    try:
        yield
    except* PairsyncError as group:
        lines = sorted({str(error) for error in _leaves(group)})
        for line in lines:
            print(f"pairsync: {line}", file=sys.stderr)
        raise SystemExit(1) from None
    except* KeyboardInterrupt:
        raise SystemExit(130) from None


def _leaves(group: BaseExceptionGroup[PairsyncError]) -> Iterator[PairsyncError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def run() -> None:
    """Parse the command line and run the command."""
    with _plain_errors():
        result = app(result_action="return_value")
    sys.exit(result if isinstance(result, int) else 0)
