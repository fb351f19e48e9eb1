"""``python -m pairsync.testing.failuretable``: run the failure table, or measure how long nobody serves.

Exit code 0: everything came as foreseen and no acknowledged write was lost; 1: something did not.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

import trio

from pairsync.node.labfile import LOOPBACK, NAMESPACES, NETWORKS
from pairsync.node.namespaces import obstacle

from .cells import all_cells
from .measure import measure
from .report import as_markdown, write_report
from .table import run_cells

__all__ = ["MEMORY", "add_network", "main"]

MEMORY = Path("/dev/shm")  # noqa: S108 - only as the parent of a directory of our own
"""Where a flush costs nothing: how fast disks are is not the question here."""


def add_network(parser: argparse.ArgumentParser) -> None:
    """Have it understand ``--network``."""
    parser.add_argument(
        "--network",
        choices=NETWORKS,
        default=LOOPBACK if obstacle() else NAMESPACES,
        help="of the lab; namespaces, in which cables are pulled for real, need root and iproute2, and are "
        "the default where there are both (here %(default)s)",
    )


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pairsync.testing.failuretable", description=__doc__)
    parser.add_argument("--failover", type=float, default=2.0, help="seconds (default %(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("build/failure-table"), help="directory of the report"
    )
    add_network(parser)
    parser.add_argument("--only", help="cells whose name contains this")
    parser.add_argument("--kills", type=int, default=0, help="measure: kill the active host so many times")
    parser.add_argument("--moves", type=int, default=0, help="measure: move the guest so many times")
    return parser


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit code."""
    options = _arguments().parse_args(arguments)
    place = tempfile.mkdtemp(prefix="pairsync-table-", dir=MEMORY if MEMORY.is_dir() else None)
    try:
        return _run(options, Path(place) / "lab")
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _run(options: argparse.Namespace, directory: Path) -> int:
    if options.kills or options.moves:
        work = partial(
            measure,
            directory,
            failover_s=options.failover,
            network=options.network,
            kills=options.kills,
            moves=options.moves,
            tell=_say,
        )
        _say(json.dumps(trio.run(work)))
        return 0
    cells = [cell for cell in all_cells() if options.only is None or options.only in cell.name]
    where = {"failover_s": options.failover, "network": options.network}
    results = trio.run(partial(run_cells, directory, cells, **where, tell=_say))
    write_report(options.output, results, **where)
    _say(as_markdown(results, **where))
    return 1 if any(each.wrong for each in results) else 0


if __name__ == "__main__":
    sys.exit(main())
