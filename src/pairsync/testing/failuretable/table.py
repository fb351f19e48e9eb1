"""The whole table: a lab, its watch, and cell after cell."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from pairsync.testing.lab import RunningLab, differences, running_lab
from pairsync.testing.programs import ProgramError

from .cells import Cell
from .report import line_of
from .runner import CellResult, Runner
from .watch import SIZE_BYTES, Watch, places_of_lab

__all__ = ["SEED", "run_cells", "watched_lab"]

SEED = 4
"""Of what the writers write."""


@asynccontextmanager
async def watched_lab(
    directory: Path, failover_s: float, seed: int, network: str
) -> AsyncIterator[tuple[RunningLab, Watch, Runner]]:
    """A lab that is whole, with a writer at each door; ``network``: one of `labfile.NETWORKS`."""
    options = [f"--failover={failover_s:g}", f"--network={network}"]
    async with running_lab(directory, {"vda": SIZE_BYTES}, more=options) as lab:
        watch = Watch(places_of_lab(directory), seed)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.run)
            runner = Runner(lab, watch, failover_s)
            await runner.until_whole()
            yield lab, watch, runner
            nursery.cancel_scope.cancel()


async def run_cells(
    directory: Path, cells: Sequence[Cell], *, failover_s: float, network: str, tell: Callable[[str], None]
) -> list[CellResult]:
    """Run these in one lab; ``tell`` hears a line each.  `ProgramError` where the lab does not recover."""
    results: list[CellResult] = []
    async with watched_lab(directory, failover_s, SEED, network) as (lab, watch, runner):
        for cell in cells:
            results.append(await runner.run(cell))
            tell(line_of(results[-1]))
        await runner.until_whole()
    del lab, watch
    found = differences(directory, "vda")
    if found:
        raise ProgramError(f"the replicas differ at the end: {found}")
    return results
