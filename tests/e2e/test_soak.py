"""Chains of faults that strike while others are dealt with, with real processes and writers at both doors.

Many more are drawn from seeds by ``python -m pairsync.testing.soak``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pairsync.node.labfile import LOOPBACK
from pairsync.testing.soak.plan import parse
from pairsync.testing.soak.runner import soak

FAILOVER_S = 2.0

CHAINS = [
    "move; wait 0.02; kill a b; mend 0; wait 0.1; mend 0; settle",
    "disk b vda replace; wait 0.1; kill a b witness; wait 0.2; mend 1; mend 1; settle",
    "kill b; settle; mend 0; wait 0.4; kill lab; settle; guard a; wait 0.3; restart; kill witness; settle",
    "cut a-b; settle; grow; disk a vdb fail; wait 0.5; mend 1; scrub; pause b; mend 0; wait 1; mend 0",
]
"""In the last one a cable is mended whose host stands still at that moment: on loopback it cannot be told."""

pytestmark = pytest.mark.slow


async def test_nothing_acknowledged_is_lost_by_failures_that_overlap(lab_directory: Path) -> None:
    said: list[str] = []
    chains = [(chain, parse(chain)) for chain in CHAINS]
    wrong = await soak(
        lab_directory, chains, seed=1, failover_s=FAILOVER_S, network=LOOPBACK, tell=said.append
    )
    assert not wrong, "\n".join(said)
    assert said == [f"{chain}: ok" for chain in CHAINS]
