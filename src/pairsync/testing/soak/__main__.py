"""``python -m pairsync.testing.soak``: chains of faults from a seed, or one that is written down.

Exit code 0: nothing went wrong; 1: something did, and was told.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

import trio

from pairsync.node.labfile import HOSTS, STAYS
from pairsync.testing.failuretable.__main__ import MEMORY, add_network

from .plan import draw, parse
from .runner import soak

__all__ = ["main"]


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pairsync.testing.soak", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the first chain")
    parser.add_argument("--chains", type=int, default=10, help="how many (default %(default)s)")
    parser.add_argument(
        "--chain", action="append", help="this one instead, as `pairsync.testing.soak.plan` says; repeatable"
    )
    parser.add_argument("--failover", type=float, default=2.0, help="seconds (default %(default)s)")
    add_network(parser)
    parser.add_argument("--home", choices=(*HOSTS, STAYS), default=STAYS, help="of the guest")
    parser.add_argument("--keep", action="store_true", help="leave the directory of a lab that went wrong")
    return parser


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit code."""
    options = _arguments().parse_args(arguments)
    if options.chain is not None:
        chains = [(chain, parse(chain)) for chain in options.chain]
    else:
        seeds = range(options.seed, options.seed + options.chains)
        plans = [draw(seed, failover_s=options.failover) for seed in seeds]
        chains = [
            (f"seed {seed}: {'; '.join(map(str, plan))}", plan)
            for seed, plan in zip(seeds, plans, strict=True)
        ]
    place = Path(tempfile.mkdtemp(prefix="pairsync-soak-", dir=MEMORY if MEMORY.is_dir() else None))
    wrong = 1
    try:
        work = partial(
            soak,
            place / "lab",
            chains,
            seed=options.seed,
            failover_s=options.failover,
            network=options.network,
            home=options.home,
            tell=_say,
        )
        wrong = trio.run(work)
    finally:
        if wrong and options.keep:
            _say(f"kept: {place}")
        else:
            shutil.rmtree(place, ignore_errors=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
