"""``pairsync witness``: the third vote, for one pair or for thousands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from .values import show_bytes

__all__ = ["witness"]

ASK_S = 10.0
"""How long a witness may take to say how it is, or to read its roll again."""

witness = App(name="witness", help="The third vote: a small server that no guest data ever reaches.")

_Directory = Annotated[Path, Parameter(help="The witness's directory, as `witness init` was given it.")]
_Json = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON.")]
_Pair = Annotated[str, Parameter(help="The pair's id, 32 hexadecimal digits, as pairsync host init said it.")]


@witness.command
def init(
    directory: Annotated[Path, Parameter(help="Where to make it.")],
    /,
    *,
    listen: Annotated[
        list[str] | None,
        Parameter(negative=(), help="Where hosts reach it, ADDRESS[:PORT]; repeatable; else 0.0.0.0:10889."),
    ] = None,
) -> int:
    """Make a witness in DIRECTORY: its key, its certificate and witness.toml, and say what to do next.

    It belongs on a third machine: one that does not fail together with either host. It needs little: a few
    hundred bytes a guest, no clock that is right, and a round trip of a second is near enough.
    """
    from pairsync.node.hostfile import parse_address
    from pairsync.node.witnessdir import WITNESS_PORT, init_witness

    texts = listen or [f"0.0.0.0:{WITNESS_PORT}"]
    for line in init_witness(directory, [parse_address(each, WITNESS_PORT) for each in texts]):
        print(line)
    return 0


@witness.command
def add(
    directory: _Directory,
    /,
    *,
    pair: _Pair,
    host: Annotated[
        list[Path],
        Parameter(negative=(), help="Certificate of a host (its identity/host.crt); give it twice."),
    ],
    replace: Annotated[
        bool, Parameter(negative=(), help="The pair is served already: take these certificates from now on.")
    ] = False,
) -> int:
    """Let a pair use the witness. One that runs serves it at once.

    Each host may touch what is stored for its own pair, and nothing else.
    """
    from pairsync.node.witnessdir import add_pair

    added = add_pair(directory, pair, host, replace=replace)
    print(
        f"pair {added.pair_id}: hosts {added.hosts[0][:16]} and {added.hosts[1][:16]}; {_reload(directory)}"
    )
    return 0


@witness.command
def remove(directory: _Directory, /, *, pair: _Pair) -> int:
    """Stop serving a pair, and forget what is stored for it.

    Its hosts then run as without a witness. Added again, it is a new voter to them.
    """
    from pairsync.node.witnessdir import remove_pair

    remove_pair(directory, pair)
    print(f"pair {pair}: removed; {_reload(directory)}")
    return 0


@witness.command(name="list")
def list_(directory: _Directory, /, *, json_: _Json = False) -> int:
    """List the pairs that may use the witness, with the fingerprints of their hosts."""
    from pairsync.node.witnessdir import list_pairs

    pairs = list_pairs(directory)
    if json_:
        print(
            json.dumps(
                {"pairs": [{"pair_id": each.pair_id, "hosts": each.hosts} for each in pairs]}, indent=2
            )
        )
        return 0
    if not pairs:
        print("no pairs: pairsync witness add")
    for each in pairs:
        print(f"{each.pair_id}  {each.hosts[0][:16]}  {each.hosts[1][:16]}")
    return 0


@witness.command
def serve(
    directory: _Directory,
    /,
    *,
    listen: Annotated[
        list[str] | None, Parameter(negative=(), help="In place of what witness.toml says, ADDRESS[:PORT].")
    ] = None,
) -> int:
    """Run the witness of DIRECTORY in the foreground, until SIGINT or SIGTERM.

    Prints a JSON line {"event": "ready", "pid": ..., "address": "HOST:PORT"}; the log goes to standard error.
    SIGHUP makes it read again which pairs it serves.
    """
    from pairsync.node.hostfile import parse_address
    from pairsync.node.witnessdir import WITNESS_PORT
    from pairsync.node.witnessmain import run_witness

    addresses = None if listen is None else [parse_address(each, WITNESS_PORT) for each in listen]
    return run_witness(directory, listen=addresses)


@witness.command
def status(directory: _Directory, /, *, json_: _Json = False) -> int:
    """Show how the running witness of DIRECTORY is; exit status 0 only if it runs."""
    from pairsync.errors import ConfigError

    answer = _ask(directory, "status")
    if answer is None:
        raise ConfigError(f"the witness in {directory} is not running")
    now = answer["witness"]
    if json_:
        print(json.dumps(now, indent=2))
        return 0
    print(f"serves {now['pairs']} pairs at {', '.join(now['addresses'])}, pid {now['pid']}")
    print(f"  {now['hosts_connected']} hosts connected, {now['half_open']} connections half open")
    print(
        f"  {now['registers']} registers in {show_bytes(now['file_bytes'])}, "
        f"{now['swaps']} swaps in {now['uptime_s']:.0f} s, {now['crossed']} crossed, {now['failed']} failed"
    )
    print(f"  {show_bytes(now['resident_bytes'])} of memory, {now['descriptors']} descriptors")
    if now["began_anew"]:
        print(f"  BEGAN ANEW: {now['began_anew']}; to every pair it is a new voter")
    if now["refusals"]:
        print("  refused: " + ", ".join(f"{count} {kind}" for kind, count in now["refusals"].items()))
    return 0


def _ask(directory: Path, do: str) -> Mapping[str, Any] | None:
    """The running witness's answer; None if it is down."""
    import trio

    from pairsync.errors import ConfigError, PeerLost
    from pairsync.node.control import ask
    from pairsync.node.witnessdir import control_path, read_witness_file

    read_witness_file(directory)

    async def main() -> Mapping[str, Any] | None:
        with trio.move_on_after(ASK_S):
            try:
                return await ask(control_path(directory), {"do": do})
            except PeerLost:
                return None
        raise ConfigError(f"the witness in {directory} did not answer within {ASK_S:g} s")

    return trio.run(main)


def _reload(directory: Path) -> str:
    return "it does not run yet" if _ask(directory, "reload") is None else "the running witness knows"
