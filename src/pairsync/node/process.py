"""A process of ours from its beginning to its exit status: a host's, a witness's, that of a lab's etcd.

Standard output takes JSON lines, standard error the log and, last, a line for each thing that is wrong.
Neither may hold the process up (``node.lines``).  Our own bugs go on as a traceback beside that.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence

import trio

from pairsync.errors import PairsyncError

from .descriptors import raise_descriptor_limit
from .lines import LineWriter, log_to_stderr

__all__ = ["run_process"]


def run_process(
    serve: Callable[[LineWriter], Awaitable[None]], instruments: Sequence[trio.abc.Instrument] = ()
) -> int:
    """Run ``serve``, which is given standard output, in trio; the exit status."""
    log = log_to_stderr()
    raise_descriptor_limit()
    lines = LineWriter()
    failures: list[PairsyncError] = []
    try:
        trio.run(serve, lines, instruments=instruments)
    except* PairsyncError as group:  # what else is in it goes on as a traceback
        failures = list(_leaves(group))
    finally:
        lines.close()
        log.close()
        for error in failures:
            sys.stderr.write(f"pairsync: {error}\n")
    return 1 if failures else 0


def _leaves(group: BaseExceptionGroup[PairsyncError]) -> Iterator[PairsyncError]:
    """The errors in an exception group, in order."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
