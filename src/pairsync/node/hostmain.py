"""``python -m pairsync.node.hostmain HOST.toml``: the host process itself, without the command line tool.

``--follow-stdin``: end when standard input ends.  ``--cut``: begin with the link cut.

Events go to standard output as JSON lines, the log to standard error.  Exit status: 0 after an orderly end,
1 with one line that says what is wrong.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

from pairsync.guest.disks import Opener
from pairsync.guest.replica import open_replica
from pairsync.polling import BusyPolling

from .host import More, no_more, run_host
from .hostfile import read_host_file
from .lines import LineWriter
from .memory import keep_freed_memory
from .process import run_process

__all__ = ["FLAGS", "main", "run_host_file"]

GC_YOUNG_OBJECTS = 20_000
"""New objects that may gather before a collection of the young ones: some hundred requests, a few MiB."""

FLAGS = ("--follow-stdin", "--cut")


def run_host_file(
    path: Path,
    *,
    follow_stdin: bool = False,
    cut: bool = False,
    opener: Opener = open_replica,
    more: More = no_more,
) -> int:
    """Run the host of a file until a signal; the exit status.  For the options see `run_host`."""
    _calm_collector()
    keep_freed_memory()

    async def serve(lines: LineWriter) -> None:
        host = read_host_file(path)
        await run_host(host, lines, follow_stdin=follow_stdin, cut=cut, opener=opener, more=more)

    return run_process(serve, [BusyPolling()])


def _calm_collector() -> None:
    """Keep the cyclic garbage collector from stopping the data path.

    What the imports made stays for ever and need not be walked again (a full collection took ten
    milliseconds with it); the data path itself makes no cycles, so young objects are looked at seldom.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_YOUNG_OBJECTS)


def main() -> int:
    """The program."""
    files = [argument for argument in sys.argv[1:] if argument not in FLAGS]
    if len(files) != 1:
        sys.stderr.write(f"usage: python -m pairsync.node.hostmain HOST.toml [{'] ['.join(FLAGS)}]\n")
        return 2
    follow_stdin, cut = (flag in sys.argv[1:] for flag in FLAGS)
    return run_host_file(Path(files[0]), follow_stdin=follow_stdin, cut=cut)


if __name__ == "__main__":
    sys.exit(main())
