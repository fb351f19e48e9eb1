"""``python -m pairsync.testing.grantsim``: the simulator of arbitration."""

from __future__ import annotations

import sys

from pairsync.testing.sim.command import SimulatorCommand

from .coverage import required
from .world import simulate

__all__ = ["COMMAND"]

COMMAND = SimulatorCommand("pairsync.testing.grantsim", simulate, required, coverage_seeds=1500)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
