"""``python -m pairsync.testing.explore``: explore arbitration within bounds; how many worlds.

Exit code 0: nothing is wrong; 1: a rule is broken, the way to it is shown; 2: stopped before all was seen.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

from pairsync.errors import ConfigError

from .search import Result, explore, walk
from .world import Bounds

__all__ = ["main"]


def _bounds(text: str) -> Bounds:
    """``terms=3,crashes=2,witness=0``: what is not named is as usual."""
    changed: dict[str, int | bool] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in Bounds._fields or not value.isdecimal():
            raise ConfigError(f"{part!r}: NAME=NUMBER, with NAME of {', '.join(Bounds._fields)}")
        usual = getattr(Bounds(), name)
        changed[name] = bool(int(value)) if isinstance(usual, bool) else int(value)
    return Bounds(**changed)  # type: ignore[arg-type]  # by the types of what is usual


def _arguments() -> argparse.ArgumentParser:
    usual = ",".join(f"{name}={int(value)}" for name, value in Bounds()._asdict().items())
    parser = argparse.ArgumentParser(prog="python -m pairsync.testing.explore", description=__doc__)
    parser.add_argument("--bounds", default="", metavar="NAME=N,...", help=f"usually {usual}")
    parser.add_argument("--states", type=int, default=0, help="stop after so many worlds (0: never)")
    parser.add_argument("--walk", type=int, default=0, metavar="WAYS", help="random ways instead")
    parser.add_argument("--seed", type=int, default=0, help="of the random ways")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    return parser


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _report(bounds: Bounds, result: Result, elapsed_s: float) -> list[str]:
    shown = ", ".join(f"{name} {int(value)}" for name, value in bounds._asdict().items())
    extent = "all within the bounds" if result.complete else "not all that there are"
    lines = [
        f"bounds: {shown}",
        f"{result.states} distinct worlds, {result.steps} steps, {result.host_states} states of hosts",
        f"{extent}, {elapsed_s:.0f} s",
    ]
    if result.violation is not None:
        lines += [*result.way, f"BROKEN {result.violation}"]
    return lines


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit code."""
    options = _arguments().parse_args(arguments)
    bounds = _bounds(options.bounds)
    began = time.monotonic()
    if options.walk:
        result = walk(bounds, seed=options.seed, ways=options.walk)
    else:
        result = explore(bounds, states_max=options.states)
    elapsed_s = time.monotonic() - began
    if options.json:
        _say(json.dumps({"bounds": bounds._asdict(), "elapsed_s": elapsed_s, **result._asdict()}))
    else:
        for line in _report(bounds, result, elapsed_s):
            _say(line)
    if result.violation is not None:
        return 1
    return 0 if result.complete or options.walk else 2


if __name__ == "__main__":
    sys.exit(main())
