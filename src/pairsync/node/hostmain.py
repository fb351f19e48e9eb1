"""``python -m pairsync.node.hostmain HOST.toml``: the host process itself, without the command line tool.

Events go to standard output as JSON lines, the log to standard error.  Exit status: 0 after an orderly end,
1 with one line that says what is wrong.
"""

from __future__ import annotations

import logging
import sys
from functools import partial
from pathlib import Path

import trio

from pairsync.errors import PairsyncError

from .host import run_host
from .hostfile import read_host_file
from .lines import LineWriter

__all__ = ["main", "run_host_file"]


def run_host_file(path: Path, *, follow_stdin: bool = False) -> int:
    """Run the host of a file until a signal; the exit status."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    lines = LineWriter()
    failures: list[PairsyncError] = []
    try:
        trio.run(partial(run_host, read_host_file(path), lines, follow_stdin=follow_stdin))
    except* PairsyncError as group:
        failures = _leaves(group)
    finally:
        lines.close()
    for error in failures:
        sys.stderr.write(f"pairsync: {error}\n")
    return 1 if failures else 0


def _leaves(group: BaseExceptionGroup[PairsyncError]) -> list[PairsyncError]:
    found: list[PairsyncError] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found


def main() -> int:
    """The program."""
    arguments = sys.argv[1:]
    follow = "--follow-stdin" in arguments
    files = [argument for argument in arguments if argument != "--follow-stdin"]
    if len(files) != 1:
        sys.stderr.write("usage: python -m pairsync.node.hostmain HOST.toml [--follow-stdin]\n")
        return 2
    return run_host_file(Path(files[0]), follow_stdin=follow)


if __name__ == "__main__":
    sys.exit(main())
