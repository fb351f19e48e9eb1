"""The failure table: all single failures and some of the others, with real processes and real writers, in
network namespaces with cables that are pulled.

The whole table is ``make failure-table``; what it said last is in ``docs/failure-table.md``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pairsync.node.labfile import NAMESPACES
from pairsync.testing.failuretable.cells import sample
from pairsync.testing.failuretable.report import as_markdown, write_report
from pairsync.testing.failuretable.table import run_cells

FAILOVER_S = 2.0
SEED = 11
OTHERS = 4
"""Cells beside the single failures, drawn by `SEED`."""

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.tools("ip")]


async def test_nobody_loses_a_write_and_nobody_serves_twice(lab_directory: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    results = await run_cells(
        lab_directory, sample(SEED, OTHERS), failover_s=FAILOVER_S, network=NAMESPACES, tell=lines.append
    )
    write_report(tmp_path, results, FAILOVER_S, NAMESPACES)
    print(as_markdown(results, FAILOVER_S, NAMESPACES))
    assert not [each for each in results if each.wrong], "\n".join(lines)
    assert all(each.lost == 0 for each in results)
