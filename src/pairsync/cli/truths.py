"""``truths``, ``concede`` and ``keep``: both hosts have written on their own, and a person picks a side.

The form of these commands is fixed: scripts of others depend on it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from pairsync.errors import ConfigError

from .asking import ask_host, ask_socket
from .values import LabDirectory, operator_name, show_bytes

if TYPE_CHECKING:
    from pairsync.guest.concede import Given
    from pairsync.node.hostfile import HostFile
    from pairsync.node.truths import Side

__all__ = ["host_concede", "host_truths", "lab_override", "lab_truths"]

ASK_S = 10.0
"""How long a host may take to answer what it knows by heart."""

KEEP_S = 120.0
"""How long picking a side may take: a host is ended in order, opened, and started again."""

_Json = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON.")]
_Operator = Annotated[str | None, Parameter(help="Who decides it; by default the user's name.")]
_Insist = Annotated[
    bool,
    Parameter(negative=(), help="Do so although that host was told that what the other one has is newer."),
]
_Host = Annotated[Literal["a", "b"], Parameter(help="The host.")]
_PeerFile = Annotated[
    Path | None, Parameter(help="host.toml of the other host, where its files can be read from here too.")
]


def _side(host: HostFile) -> Side:
    """A host, whether it runs or not."""
    from pairsync.node.truths import side_from_answer, stopped_side

    answer = ask_host(host, {"do": "truths"}, seconds=ASK_S)
    return stopped_side(host) if answer is None else side_from_answer(answer)


def _read(file: Path) -> HostFile:
    from pairsync.node.hostfile import read_host_file

    return read_host_file(file)


# ---------------------------------------------------------------------- one host


def host_truths(file: Path, /, *, peer_file: _PeerFile = None, json_: _Json = False) -> int:
    """Show what this host has that the other one lacks, whether it runs or not; nothing is changed.

    What the other one has lived through is known if both hosts run and are linked, or by --peer-file.

    Parameters
    ----------
    file
        The host's file.
    """
    from pairsync.node.truths import describe_sides

    host = _read(file)
    side = _side(host)
    theirs = side.peer if peer_file is None else _side(_read(peer_file)).introduction
    found = describe_sides(host, side, theirs)
    if json_:
        print(json.dumps({"host": host.name, **found}, indent=2))
    else:
        for line in _side_lines(f"host {host.name}", found):
            print(line)
    return 0


def host_concede(
    file: Path,
    /,
    *,
    peer_file: _PeerFile = None,
    common: Annotated[
        list[str] | None,
        Parameter(
            negative=(),
            help="VOLUME=GENERATION: the newest one that both hosts lived through, as `host truths` or a "
            "refusal names it; repeatable.",
        ),
    ] = None,
    yes: Annotated[
        bool, Parameter(negative=(), help="Do it; without, it is only said what would be done.")
    ] = False,
    json_: _Json = False,
) -> int:
    """Give way to the other host's truth: this one becomes its standby, and is resynced from it.

    Nothing is overwritten by this, and nothing is merged: when the two meet, the resync overwrites what this
    host had written on its own, and keeps it first, as an overlay that can be listed, exported and undone.
    The host must not run. Exit status 0 when it is done, 1 without --yes.

    Parameters
    ----------
    file
        The host's file.
    """
    from pairsync.node.truths import concede_host, look_at_conceding

    host = _read(file)
    theirs = None if peer_file is None else _side(_read(peer_file)).introduction
    named = _named(common or [])
    term = 0
    if yes:
        given, term = concede_host(host, theirs, named)
    else:
        given = look_at_conceding(host, theirs, named)
    if json_:
        print(json.dumps({"done": yes, "term": term or None, "volumes": [asdict(each) for each in given]}))
    else:
        for line in _concession_lines(host, file, given, term=term, done=yes):
            print(line)
    return 0 if yes else 1


def _named(texts: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, equals, generation = text.partition("=")
        if not (name and equals and generation):
            raise ConfigError(f"{text!r}: a generation is named as VOLUME=GENERATION, such as vda=1.3/8b")
        found[name] = generation
    return found


def _concession_lines(
    host: HostFile, file: Path, given: Sequence[Given], *, term: int, done: bool
) -> Iterator[str]:
    for each in given:
        yield _given_line(each)
        if each.blocks * 4096 > each.room_bytes and not each.stays:
            yield (
                f"  WARNING: overlays of {each.volume} may take {show_bytes(each.room_bytes)}. What does not "
                "fit is not overwritten, and the resync waits: raise overlay_bytes in its file first."
            )
    yield ""
    if not done:
        yield "Nothing was changed. What these blocks hold now is kept as an overlay, not merged; to go on:"
        more = "the same command with --yes"
        yield f"  {more}"
        return
    yield "Next:"
    yield f"  1. If the guest does not run on the other host, or under a term below {term}, there:"
    if host.register is None:
        yield f'       role = "active" and term = {term} (or more) in its file'
    else:
        yield f"       pairsync host override OTHER_HOST_TOML --above-term {term} --yes"
    yield f"  2. Here: pairsync host run {file}"


def _given_line(each: Given) -> str:
    if each.stays:
        return f"{each.volume}: stays as it is: nothing stands between the two replicas"
    where = "is resynced as a whole" if each.common is None else f"goes back to generation {each.common}"
    gone = ", ".join(each.given_up) or "none"
    what = "all blocks count" if each.everything else f"{each.blocks} blocks count"
    return (
        f"{each.volume}: {where}, does not claim {gone} any more; {what} as written here "
        f"(at most {show_bytes(each.blocks * 4096)} are kept as an overlay)"
    )


# ---------------------------------------------------------------------- a lab


def lab_truths(
    directory: LabDirectory,
    /,
    *,
    keep: Annotated[
        Literal["a", "b"] | None,
        Parameter(help="Pick this side; the other host is resynced from it, and its writes are kept aside."),
    ] = None,
    operator: _Operator = None,
    json_: _Json = False,
) -> int:
    """Show what each host has that the other lacks, whether they run or not; with --keep, pick a side.

    With --keep the lab must be up and the kept host running; the other one is ended, gives way (see `host
    concede`), and is started again if it ran. What it had written on its own stays as an overlay (`lab
    overlay`). Exit status 0 if there is one truth, or a side was picked.
    """
    if keep is not None:
        return _keep(directory, keep, operator_name(operator), json_=json_)
    from pairsync.node.labfile import HOSTS, LabFile
    from pairsync.node.truths import describe_sides

    if LabFile.load(directory).single:
        raise ConfigError("this lab has a single host: there is one truth")
    hosts = {name: _read(directory / name / "host.toml") for name in HOSTS}
    sides = {name: _side(host) for name, host in hosts.items()}
    found = {
        name: describe_sides(hosts[name], sides[name], sides[other].introduction)
        for name, other in zip(HOSTS, reversed(HOSTS), strict=True)
    }
    two = any(
        volume["relation"] in {"diverged", "unrelated", "foreign"}
        or (volume["relation"] == "behind" and _should_serve(each))  # it would have to be overwritten
        for each in found.values()
        for volume in each["volumes"].values()
    )
    if json_:
        print(json.dumps({"two_truths": two, "hosts": found}, indent=2))
    else:
        print("TWO TRUTHS: neither replica may be overwritten by a machine" if two else "one truth")
        for name, each in found.items():
            for line in _side_lines(f"host {name}", each):
                print(line)
        if two:
            print(f"to pick a side: pairsync lab truths {directory} --keep a|b")
    return 1 if two else 0


def _should_serve(side: Mapping[str, Any]) -> bool:
    return side["role"] == "active" or (side["grant"] is not None and side["grant"]["owner"] == "here")


def _ask_lab(directory: Path, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    from pairsync.node.labfile import LabFile, control_socket_of

    LabFile.load(directory)
    who = f"the lab in {directory}"
    answer = ask_socket(control_socket_of(directory), who, request, seconds=seconds)
    if answer is None:
        raise ConfigError(f"{who} is not up")
    answer.pop("ok", None)
    return answer


def _keep(directory: Path, host: str, operator: str, *, json_: bool) -> int:
    answer = _ask_lab(directory, {"do": "keep", "host": host, "operator": operator}, KEEP_S)
    if json_:
        print(json.dumps(answer))
        return 0
    for each in answer["volumes"]:
        blocks = "all" if each["everything"] else each["blocks"]
        what = "stays as it is" if each["stays"] else f"gives way; {blocks} blocks count as written there"
        print(f"host {answer['conceded']}, {each['volume']}: {what}")
    forced = f", by the word of {operator}" if answer["forced"] else ""
    print(f"host {host} owns the guest{forced}")
    return 0


def lab_override(
    directory: LabDirectory,
    host: _Host,
    /,
    *,
    operator: _Operator = None,
    insist: _Insist = False,
    json_: _Json = False,
) -> int:
    """Make a host the owner of the guest, whatever was agreed: when those who should agree are gone."""
    name = operator_name(operator)
    answer = _ask_lab(directory, {"do": "override", "host": host, "operator": name, "insist": insist}, ASK_S)
    print(json.dumps(answer) if json_ else f"host {host} owns the guest, by the word of {name}")
    return 0


# ---------------------------------------------------------------------- for people


def _side_lines(who: str, side: Mapping[str, Any]) -> Iterator[str]:
    yield f"{who}: {side['role'] if side['running'] else 'not running'}, {_grant_words(side['grant'])}"
    for name, volume in side["volumes"].items():
        yield f"  {name:<12} {_volume_words(volume)}"


def _grant_words(grant: Mapping[str, Any] | None) -> str:
    if grant is None:
        return "knows of no grant"
    owner = "this host owns the guest" if grant["owner"] == "here" else "the other host owns the guest"
    forced = f", forced by {grant['override']}" if grant["override"] else ""
    return f"grant {grant['term']}.{grant['epoch']}: {owner}{forced}"


def _volume_words(volume: Mapping[str, Any]) -> str:
    relation = volume["relation"]
    if relation == "foreign":
        return "is another volume than the other host's: it stays refused"
    when = ""
    if volume["last_written_s"] is not None:
        when = f"; last written {datetime.fromtimestamp(volume['last_written_s'], UTC):%Y-%m-%d %H:%M:%S} UTC"
    if relation is None:
        return f"generation {volume['generation'] or 'none'}; what the other host has is not known{when}"
    unheard_of = volume["condition"] == "consistent" and volume["generation"] is None  # taken over as it was
    if relation in {"same", "behind", "both-empty", "local-empty"} and not unheard_of:
        return f"has nothing that the other host lacks, but for what its dirty map holds ({relation}){when}"
    since = f"since generation {volume['common']}" if volume["common"] else "nothing in common"
    own = ", ".join(volume["own_generations"]) or "none"
    blocks = volume["own_blocks"]
    what = "any block may be" if blocks is None else f"{blocks} blocks ({show_bytes(volume['own_bytes'])})"
    return f"{since}: {what} written on its own, in generations {own}{when}"
