"""The command line: what it understands, and how its errors look.

Exit status: 0 well, 1 it could not be done, 2 the command was wrong; one line on standard error says why.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, TypeVar

from cyclopts import App, CycloptsError, Parameter

from pairsync.errors import PairsyncError

from .host import host
from .lab import lab
from .witness import witness

__all__ = ["app", "run"]

Kind = TypeVar("Kind", bound=Exception)

app = App(
    name="pairsync",
    help="A disk that lives on two hosts at once.",
    version=lambda: version("pairsync"),
    version_flags=["--version"],
)
app.command(lab)
app.command(host)
app.command(witness)


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
    except* CycloptsError as group:
        for wrong in _leaves(group):
            where = " ".join(("pairsync", *(wrong.command_chain or ())))
            print(f"pairsync: {' '.join(str(wrong).split())} See {where} --help", file=sys.stderr)
        status = 2
    except* KeyboardInterrupt:
        status = status or 130
    except* BrokenPipeError:  # whoever read what is printed has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = status or 141
    except* OSError as group:  # of a place that a person named, or that is not theirs
        for error in _leaves(group):
            if error.filename is None:
                raise
            print(f"pairsync: {os.fsdecode(error.filename)}: {error.strerror}", file=sys.stderr)
        status = 1
    if status:
        raise SystemExit(status)


def _leaves(group: BaseExceptionGroup[Kind]) -> Iterator[Kind]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def run() -> None:
    """Parse the command line and run the command."""
    with _plain_errors():
        result = app(sys.argv[1:], result_action="return_value", print_error=False, exit_on_error=False)
    sys.exit(result if isinstance(result, int) else 0)
