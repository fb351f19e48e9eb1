"""``pairsync host move`` and ``override``: who owns the guest, by a person's word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pairsync.errors import ConfigError

from .asking import ask_running
from .values import operator_name

__all__ = ["host_move", "host_override"]

MOVE_S = 60.0
"""How long a planned move may take: a flush of everything is in it."""

ASK_S = 10.0


def _check(file: Path) -> None:
    """`ConfigError` if there is no such host, or nobody can say who owns its guest."""
    from pairsync.node.hostfile import read_host_file

    if read_host_file(file).register is None:
        raise ConfigError(f"{file}: the roles of this host are fixed (no [register])")


def host_move(
    file: Path,
    /,
    *,
    json_: Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON.")] = False,
) -> int:
    """Have the guest run on the other host, as planned: nothing is lost, clients reconnect there.

    To be called on the host where it runs; both hosts must be in sync.

    Parameters
    ----------
    file
        The host's file.
    """
    _check(file)
    ask_running(file, {"do": "move"}, seconds=MOVE_S)
    print(json.dumps({"moved": True}) if json_ else "the other host owns the guest now")
    return 0


def host_override(
    file: Path,
    /,
    *,
    operator: Annotated[str | None, Parameter(help="Who decides it; by default the user's name.")] = None,
    above_term: Annotated[
        int, Parameter(help="The other host has seen this term: be above it. `host concede` says so.")
    ] = 0,
    insist: Annotated[
        bool,
        Parameter(
            negative=(), help="Do so although this host was told that what the other one has is newer."
        ),
    ] = False,
    yes: Annotated[
        bool, Parameter(negative=(), help="Do it; without, it is only said what it means.")
    ] = False,
    json_: Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON.")] = False,
) -> int:
    """Make this host the owner of the guest, whatever was agreed: when those who should agree are gone.

    What the other host acknowledged and this one does not have is missing here afterwards. It is not
    overwritten: when the other host is back, both replicas stand apart until somebody chooses one. A host
    that was told that the other one has what is newer says so, and does it only with --insist.

    Parameters
    ----------
    file
        The host's file; the host must be running.
    """
    _check(file)
    if not yes:
        print("Nothing was changed. Be sure that the guest does not run on the other host;")
        print("then: the same command with --yes")
        return 1
    name = operator_name(operator)
    request = {"do": "override", "operator": name, "above": above_term, "insist": insist}
    ask_running(file, request, seconds=ASK_S)
    print(json.dumps({"operator": name}) if json_ else f"this host owns the guest now, by the word of {name}")
    return 0
