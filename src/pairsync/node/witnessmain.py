"""``python -m pairsync.node.witnessmain DIRECTORY``: the witness process, without the command line tool.

``--follow-stdin``: end when standard input ends.

One JSON line on standard output says that it serves, the log goes to standard error.  Exit status: 0 after an
orderly end (SIGINT, SIGTERM), 1 with one line that says what is wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import trio

from pairsync.io.network import Address

from .ending import await_signal, follow_stdin
from .lines import LineWriter
from .memory import trim_memory
from .process import run_process
from .witness import serve_witness

__all__ = ["main", "run_witness"]

FLAG = "--follow-stdin"


def run_witness(directory: Path, *, listen: Sequence[Address] | None = None, follow: bool = False) -> int:
    """Run the witness of a directory until a signal; the exit status.  ``follow``: or until stdin ends."""

    async def serve(lines: LineWriter) -> None:
        async with trio.open_nursery() as nursery:
            if follow:
                nursery.start_soon(follow_stdin, nursery.cancel_scope)
            await nursery.start(await_signal, nursery.cancel_scope)
            nursery.start_soon(trim_memory)
            lines(await nursery.start(partial(serve_witness, directory, listen=listen)))

    return run_process(serve)


def main() -> int:
    """The program."""
    directories = [argument for argument in sys.argv[1:] if argument != FLAG]
    if len(directories) != 1:
        sys.stderr.write(f"usage: python -m pairsync.node.witnessmain DIRECTORY [{FLAG}]\n")
        return 2
    return run_witness(Path(directories[0]), follow=FLAG in sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
